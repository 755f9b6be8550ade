package reason_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/whence-db/whence"

// source is the module's own code without its tests, parsed and type-checked, with
// what the scanner asks of it.
type source struct {
	fset     *token.FileSet
	info     *types.Info
	packages map[string]*types.Package
	// owner is the function that a parameter belongs to.
	owner      map[types.Object]types.Object
	parameters map[types.Object][]types.Object
	// functions are the bodies of declared functions and of literals kept in a variable.
	functions map[types.Object]*function
	calls     map[types.Object][]*ast.CallExpr
	// values are what a variable or a field is ever given; several are one tuple when
	// they come from one statement.
	values   map[types.Object][]given
	literals []*ast.CompositeLit
	root     string
}

type function struct {
	body    *ast.BlockStmt
	results *ast.FieldList
}

// given is one value that something gets: the expression, or the index-th result of it.
type given struct {
	expr      ast.Expr
	index     int
	statement ast.Node
	in        ast.Expr // x, when what gets it is the field of x
}

// readSource type-checks every package of the module from source, in the order of
// their imports, and takes all else from the compiler's export data.
func readSource(t *testing.T) *source {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-export", "-json=ImportPath,Dir,Export,GoFiles,Standard,Module", "./...")
	cmd.Dir, cmd.Stderr = root, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal("go list: ", err)
	}
	s := &source{fset: token.NewFileSet(), root: root, packages: map[string]*types.Package{}, owner: map[types.Object]types.Object{}, parameters: map[types.Object][]types.Object{},
		functions: map[types.Object]*function{}, calls: map[types.Object][]*ast.CallExpr{}, values: map[types.Object][]given{},
		info: &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Defs: map[*ast.Ident]types.Object{}, Uses: map[*ast.Ident]types.Object{},
			Selections: map[*ast.SelectorExpr]*types.Selection{}, Instances: map[*ast.Ident]types.Instance{}}}
	exports := map[string]string{}
	others := importer.ForCompiler(s.fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath, Dir, Export string
			GoFiles                 []string
			Module                  *struct{ Path string }
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return s
		} else if err != nil {
			t.Fatal(err)
		}
		exports[p.ImportPath] = p.Export
		if p.Module == nil || p.Module.Path != module {
			continue
		}
		var files []*ast.File
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(s.fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
		conf := types.Config{Importer: importing(func(path string) (*types.Package, error) {
			if own := s.packages[path]; own != nil {
				return own, nil
			}
			return others.Import(path)
		})}
		if s.packages[p.ImportPath], err = conf.Check(p.ImportPath, s.fset, files, s.info); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			s.index(f)
		}
	}
}

type importing func(path string) (*types.Package, error)

func (i importing) Import(path string) (*types.Package, error) { return i(path) }

// index notes what a file says of functions, calls and values.
func (s *source) index(f *ast.File) {
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			s.function(s.info.Defs[n.Name], n.Type, n.Body)
		case *ast.CallExpr:
			if o := s.called(n); o != nil {
				s.calls[o] = append(s.calls[o], n)
			}
		case *ast.CompositeLit:
			s.literals = append(s.literals, n)
			s.fields(n)
		case *ast.AssignStmt:
			if n.Tok == token.ASSIGN || n.Tok == token.DEFINE {
				s.assign(n, n.Lhs, n.Rhs)
			}
		case *ast.ValueSpec:
			var names []ast.Expr
			for _, name := range n.Names {
				names = append(names, name)
			}
			s.assign(n, names, n.Values)
		case *ast.RangeStmt:
			if n.Value != nil {
				s.give(n.Value, given{expr: n.X, index: element, statement: n})
			}
		}
		return true
	})
}

// element marks a value that is any element of the expression, not the expression.
const element = -2

func (s *source) function(o types.Object, t *ast.FuncType, body *ast.BlockStmt) {
	if o == nil || body == nil {
		return
	}
	s.functions[o] = &function{body: body, results: t.Results}
	for _, f := range t.Params.List {
		for _, name := range f.Names {
			s.owner[s.info.Defs[name]] = o
			s.parameters[o] = append(s.parameters[o], s.info.Defs[name])
		}
	}
}

func (s *source) assign(n ast.Node, left, right []ast.Expr) {
	for i, l := range left {
		switch {
		case len(left) == len(right):
			s.give(l, given{expr: right[i], index: -1, statement: n})
			if lit, ok := right[i].(*ast.FuncLit); ok {
				s.function(s.object(l), lit.Type, lit.Body)
			}
		case len(right) == 1:
			s.give(l, given{expr: right[0], index: i, statement: n})
		}
	}
}

func (s *source) give(to ast.Expr, g given) {
	if sel, ok := to.(*ast.SelectorExpr); ok {
		g.in = sel.X
	}
	if o := s.object(to); o != nil {
		s.values[o] = append(s.values[o], g)
	}
}

// fields notes what a composite literal gives to the fields of its struct.
func (s *source) fields(n *ast.CompositeLit) {
	for o, e := range s.literalFields(n) {
		s.values[o] = append(s.values[o], given{expr: e, index: -1, statement: n})
	}
}

func (s *source) literalFields(n *ast.CompositeLit) map[types.Object]ast.Expr {
	t, ok := deref(s.info.TypeOf(n)).Underlying().(*types.Struct)
	if !ok {
		return nil
	}
	out := map[types.Object]ast.Expr{}
	for i, e := range n.Elts {
		if kv, ok := e.(*ast.KeyValueExpr); ok {
			if key, ok := kv.Key.(*ast.Ident); ok && s.info.Uses[key] != nil {
				out[s.info.Uses[key]] = kv.Value
			}
		} else {
			out[t.Field(i)] = e
		}
	}
	return out
}

// called is the function, or the variable that holds one, that a call calls.
func (s *source) called(c *ast.CallExpr) types.Object {
	o := s.object(c.Fun)
	if f, ok := o.(*types.Func); ok {
		return f.Origin()
	}
	return o
}

// object is what an identifier or a selector stands for: a field for x.f.
func (s *source) object(e ast.Expr) types.Object {
	switch e := ast.Unparen(e).(type) {
	case *ast.Ident:
		if o := s.info.Defs[e]; o != nil {
			return o
		}
		return s.info.Uses[e]
	case *ast.SelectorExpr:
		if sel := s.info.Selections[e]; sel != nil {
			return sel.Obj()
		}
		return s.info.Uses[e.Sel]
	case *ast.IndexExpr:
		return s.object(e.X)
	}
	return nil
}

func deref(t types.Type) types.Type {
	if p, ok := t.Underlying().(*types.Pointer); ok {
		return p.Elem()
	}
	return t
}

// at names a place for a message.
func (s *source) at(n ast.Node) string {
	p := s.fset.Position(n.Pos())
	name, err := filepath.Rel(s.root, p.Filename)
	if err != nil {
		name = p.Filename
	}
	return fmt.Sprintf("%s:%d", name, p.Line)
}
