package reason_test

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"
	"maps"
	"slices"
	"strings"
)

// use is one place where an error gets a reason.
type use struct {
	reason, kind string // the kind is the sentinel's name, or a Connect code's; empty: not known here
	at           string
	keys         []string // of its metadata, where they are written out
	retry, field bool     // whether it comes with either
}

// env binds the parameters of the functions whose calls are being followed to what
// those calls give.
type env map[types.Object]ast.Expr

// scanner finds every reason in the source, with the kinds that it goes with.
type scanner struct {
	*source
	reasons  map[types.Object]bool // the fields that reasons are kept in
	kinds    map[types.Object]bool // the same of kinds
	uses     []use
	problems []string
	busy     map[types.Object]bool
	literal  *ast.CompositeLit // the error that is being looked at, if it is written as one

	metadata, retryAfter, fieldOf types.Object
}

// field finds a field of a struct of some package.
func (s *source) field(pkg, typ, field string) types.Object {
	p := s.packages[pkg]
	if p == nil {
		for _, own := range s.packages {
			for _, i := range own.Imports() {
				if i.Path() == pkg {
					p = i
				}
			}
		}
	}
	o, _, _ := types.LookupFieldOrMethod(p.Scope().Lookup(typ).Type(), true, p, field)
	if o == nil {
		panic(fmt.Sprintf("%s has no %s.%s", pkg, typ, field))
	}
	return o
}

// scan goes through all that gives one of the fields a value. Whatever it cannot read
// is a problem: nothing dynamic goes by unseen.
func (s *scanner) scan() {
	s.busy = map[types.Object]bool{}
	for _, field := range slices.SortedFunc(maps.Keys(s.reasons), func(a, b types.Object) int { return strings.Compare(a.Pkg().Path()+a.Name(), b.Pkg().Path()+b.Name()) }) {
		for _, g := range s.values[field] {
			if g.index >= 0 {
				s.problem(g.expr, "a reason is one of several results")
				continue
			}
			if s.read(g.expr) {
				continue // from another error, which has been seen where it was made
			}
			kind := s.kindBeside(g)
			s.literal, _ = g.statement.(*ast.CompositeLit)
			s.follow(g.expr, kind, nil, g.expr, 0)
		}
	}
}

// read tells whether an expression is the reason of an error that there is already,
// or one that came over the wire.
func (s *scanner) read(e ast.Expr) bool {
	e = ast.Unparen(e)
	if c, ok := e.(*ast.CallExpr); ok {
		sel, ok := c.Fun.(*ast.SelectorExpr)
		return ok && sel.Sel.Name == "GetReason"
	}
	_, ok := e.(*ast.SelectorExpr)
	return ok && s.reasons[s.object(e)]
}

// kindBeside finds the expression of the kind that a reason goes with: in the same
// literal, the same assignment, or given to the same variable elsewhere.
func (s *scanner) kindBeside(g given) ast.Expr {
	switch n := g.statement.(type) {
	case *ast.CompositeLit:
		for o, e := range s.literalFields(n) {
			if s.kinds[o] {
				return e
			}
		}
	case *ast.AssignStmt:
		for i, l := range n.Lhs {
			if len(n.Lhs) == len(n.Rhs) && s.kinds[s.object(l)] {
				return n.Rhs[i]
			}
		}
		if holder := s.object(g.in); holder != nil {
			for _, v := range s.values[holder] {
				if u, ok := v.expr.(*ast.UnaryExpr); ok && u.Op == token.AND {
					if lit, ok := u.X.(*ast.CompositeLit); ok {
						for o, e := range s.literalFields(lit) {
							if s.kinds[o] {
								return e
							}
						}
					}
				}
			}
		}
	}
	return nil
}

// follow evaluates a reason and its kind together, once for every call that decides
// on them.
func (s *scanner) follow(reason, kind ast.Expr, in env, at ast.Node, depth int) {
	if depth > 12 {
		s.problem(at, "a reason is handed on too often to be followed")
		return
	}
	if f := s.undecided(reason, in); f != nil {
		s.branch(f, reason, kind, in, at, depth)
		return
	}
	if kind != nil {
		if f := s.undecided(kind, in); f != nil {
			s.branch(f, reason, kind, in, at, depth)
			return
		}
	}
	if s.read(reason) {
		return
	}
	where := s.at(at)
	if pairs := s.pairs(reason, kind); pairs != nil {
		for _, p := range pairs {
			s.record(p[0], p[1], in, where)
		}
		return
	}
	s.record(reason, kind, in, where)
}

func (s *scanner) record(reason, kind ast.Expr, in env, where string) {
	kinds := []string{""}
	if kind != nil {
		kinds = s.kindsOf(kind, in)
	}
	keys, retry, field := s.details(in)
	for _, r := range s.strings(reason, in) {
		for _, k := range kinds {
			s.uses = append(s.uses, use{reason: r, kind: k, at: where, keys: keys, retry: retry, field: field})
		}
	}
}

// details tells what else the error that is being looked at carries.
func (s *scanner) details(in env) (keys []string, retry, field bool) {
	if s.literal == nil {
		return nil, false, false
	}
	for o, e := range s.literalFields(s.literal) {
		switch o {
		case s.metadata:
			if lit, ok := e.(*ast.CompositeLit); ok {
				for _, x := range lit.Elts {
					if kv, ok := x.(*ast.KeyValueExpr); ok {
						keys = append(keys, s.strings(kv.Key, in)...)
					}
				}
			}
		case s.retryAfter:
			retry = true
		case s.fieldOf:
			if x, ok := in[s.object(e)]; ok {
				e = x
			}
			v := s.info.Types[e].Value
			field = v == nil || constant.StringVal(v) != ""
		}
	}
	return keys, retry, field
}

// pairs are what two variables get in the same statements.
func (s *scanner) pairs(reason, kind ast.Expr) (out [][2]ast.Expr) {
	r, ok := reason.(*ast.Ident)
	k, ok2 := kind.(*ast.Ident)
	if !ok || !ok2 {
		return nil
	}
	for _, a := range s.values[s.object(r)] {
		for _, b := range s.values[s.object(k)] {
			if a.statement == b.statement && a.index < 0 && b.index < 0 {
				out = append(out, [2]ast.Expr{a.expr, b.expr})
			}
		}
	}
	return out
}

func (s *scanner) branch(f types.Object, reason, kind ast.Expr, in env, at ast.Node, depth int) {
	calls := s.calls[f]
	if len(calls) == 0 {
		s.problem(at, "the reason comes in to "+f.Name()+", which nothing is seen to call")
	}
	for _, c := range calls {
		next := maps.Clone(in)
		if next == nil {
			next = env{}
		}
		own := false
		for i, o := range s.parameters[f] {
			if i < len(c.Args) {
				next[o] = c.Args[i]
				own = own || s.object(c.Args[i]) == o
			}
		}
		if !own { // it calls itself with what it was given
			s.follow(reason, kind, next, c, depth+1)
		}
	}
}

// undecided is the function whose calls decide on an expression, if one does.
func (s *scanner) undecided(e ast.Expr, in env) types.Object {
	return s.decider(e, in, map[types.Object]bool{})
}

func (s *scanner) decider(e ast.Expr, in env, seen map[types.Object]bool) types.Object {
	switch e := ast.Unparen(e).(type) {
	case *ast.Ident:
		o := s.object(e)
		if x, ok := in[o]; ok {
			return s.decider(x, in, seen)
		}
		if f, param := s.owner[o]; param {
			return f
		}
		if seen[o] || o == nil || o.Parent() == o.Pkg().Scope() {
			return nil
		}
		seen[o] = true
		for _, g := range s.values[o] {
			if g.index == -1 {
				if f := s.decider(g.expr, in, seen); f != nil {
					return f
				}
			}
		}
	case *ast.BinaryExpr:
		if f := s.decider(e.X, in, seen); f != nil {
			return f
		}
		return s.decider(e.Y, in, seen)
	case *ast.CallExpr:
		f, _ := s.called(e).(*types.Func)
		if s.info.Types[e.Fun].IsType() || f != nil && f.FullName() == "strings.ToUpper" {
			return s.decider(e.Args[0], in, seen)
		}
	}
	return nil
}

// strings are all that a text can be.
func (s *scanner) strings(e ast.Expr, in env) []string {
	e = ast.Unparen(e)
	if v := s.info.Types[e].Value; v != nil && v.Kind() == constant.String {
		return []string{constant.StringVal(v)}
	}
	switch e := e.(type) {
	case *ast.Ident:
		return s.held(e, s.object(e), in)
	case *ast.SelectorExpr:
		if s.reasons[s.object(e)] {
			return nil
		}
		return s.held(e, s.object(e), nil)
	case *ast.BinaryExpr:
		var out []string
		for _, a := range s.strings(e.X, in) {
			for _, b := range s.strings(e.Y, in) {
				out = append(out, a+b)
			}
		}
		return out
	case *ast.CallExpr:
		if f, ok := s.called(e).(*types.Func); ok {
			if f.FullName() == "strings.ToUpper" {
				var out []string
				for _, x := range s.strings(e.Args[0], in) {
					out = append(out, strings.ToUpper(x))
				}
				return out
			}
			return s.returned(e, f, 0)
		}
		if s.info.Types[e.Fun].IsType() {
			return s.strings(e.Args[0], in)
		}
	case *ast.IndexExpr:
		return s.elements(e.X)
	}
	s.problem(e, "cannot tell what this reason can be")
	return nil
}

// held is what a variable, a parameter or a field can hold.
func (s *scanner) held(e ast.Expr, o types.Object, in env) (out []string) {
	if x, ok := in[o]; ok {
		return s.strings(x, in)
	}
	if s.busy[o] {
		return nil
	}
	s.busy[o] = true
	defer delete(s.busy, o)
	values := s.values[o]
	if len(values) == 0 {
		if all := s.constants(e); len(all) > 0 {
			return all
		}
		s.problem(e, "cannot tell what this reason can be")
	}
	for _, g := range values {
		switch g.index {
		case -1:
			out = append(out, s.strings(g.expr, in)...)
		case element:
			out = append(out, s.elements(g.expr)...)
		default:
			if c, ok := g.expr.(*ast.CallExpr); ok {
				if f, ok := s.called(c).(*types.Func); ok {
					out = append(out, s.returned(c, f, g.index)...)
					continue
				}
			}
			if ix, ok := g.expr.(*ast.IndexExpr); ok && g.index == 0 {
				out = append(out, s.elements(ix.X)...)
				continue
			}
			s.problem(g.expr, "cannot tell what this reason can be")
		}
	}
	return out
}

// constants are those of a closed set's type.
func (s *scanner) constants(e ast.Expr) (out []string) {
	named, ok := s.info.TypeOf(e).(*types.Named)
	if !ok {
		return nil
	}
	scope := named.Obj().Pkg().Scope()
	for _, name := range scope.Names() {
		if c, ok := scope.Lookup(name).(*types.Const); ok && types.Identical(c.Type(), named) {
			out = append(out, constant.StringVal(c.Val()))
		}
	}
	return out
}

// returned is what a function of the module returns.
func (s *scanner) returned(at ast.Node, f *types.Func, index int) (out []string) {
	fn := s.functions[f.Origin()]
	if fn == nil {
		s.problem(at, "cannot tell what "+f.FullName()+" returns as a reason")
		return nil
	}
	ast.Inspect(fn.body, func(n ast.Node) bool {
		if _, inner := n.(*ast.FuncLit); inner {
			return false
		}
		if r, ok := n.(*ast.ReturnStmt); ok && index < len(r.Results) {
			out = append(out, s.strings(r.Results[index], nil)...)
		}
		return true
	})
	return out
}

// elements are the values of a map or slice literal.
func (s *scanner) elements(e ast.Expr) (out []string) {
	for _, g := range s.values[s.object(e)] {
		lit, ok := g.expr.(*ast.CompositeLit)
		if !ok {
			continue
		}
		for _, x := range lit.Elts {
			if kv, ok := x.(*ast.KeyValueExpr); ok {
				x = kv.Value
			}
			out = append(out, s.strings(x, nil)...)
		}
	}
	if len(out) == 0 {
		s.problem(e, "cannot tell what this reason can be")
	}
	return out
}

// kindsOf are the sentinels or codes that an expression can be.
func (s *scanner) kindsOf(e ast.Expr, in env) (out []string) {
	e = ast.Unparen(e)
	if v := s.info.Types[e].Value; v != nil && v.Kind() == constant.String {
		return []string{constant.StringVal(v)}
	}
	o := s.object(e)
	if x, ok := in[o]; ok {
		return s.kindsOf(x, in)
	}
	if v, ok := o.(*types.Var); ok {
		if v.Pkg().Path() == module && strings.HasPrefix(v.Name(), "Err") {
			return []string{v.Name()}
		}
		for _, g := range s.values[o] {
			if g.index == -1 {
				out = append(out, s.kindsOf(g.expr, in)...)
			}
		}
	}
	if c, ok := e.(*ast.CallExpr); ok {
		if f, ok := s.called(c).(*types.Func); ok && f.Name() == "Error" { // a kind kept as text
			if sel, ok := c.Fun.(*ast.SelectorExpr); ok {
				return s.kindsOf(sel.X, in)
			}
		}
	}
	if len(out) == 0 {
		s.problem(e, "cannot tell what this kind can be")
	}
	return out
}

func (s *scanner) problem(n ast.Node, what string) {
	s.problems = append(s.problems, s.at(n)+": "+what)
}
