package whence_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/whence-db/whence"

// layers is the architecture: which package may import which of the others.
// A package's folder stands for the packages below it, which may import one
// another; "." is the root package. Layers point down: a row names only
// rows above it.
var layers = []layer{
	{pkg: "."},
	{pkg: "reason"},
	{pkg: "migrations"},
	{pkg: "internal/pgcluster"},
	{pkg: "internal/devissuer"},
	{pkg: "internal/login"},
	{pkg: "internal/pg", may: []string{"."}},
	{pkg: "internal/seal", may: []string{"."}},
	{pkg: "cdc", may: []string{"."}},
	{pkg: "embedder", may: []string{"."}},
	{pkg: "authz", may: []string{".", "internal/pg", "internal/seal"}},
	{pkg: "audit", may: []string{".", "internal/pg", "internal/seal"}},
	// authz for Scope alone: a scope that a caller could make up is worth nothing.
	{pkg: "index", may: []string{".", "internal/pg", "authz"}},
	{pkg: "lineage", may: []string{".", "internal/pg", "authz"}},
	{pkg: "ingest", may: []string{".", "internal/pg", "internal/seal", "cdc", "index"}},
	{pkg: "query", may: []string{".", "internal/pg", "index", "embedder", "lineage", "authz"}},
	{pkg: "notes", may: []string{".", "internal/pg", "authz", "index", "lineage", "ingest"}},
	{pkg: "gateway", may: []string{
		".", "internal/pg", "internal/seal", "authz", "audit", "index", "lineage", "ingest", "query", "notes"}},
	{pkg: "metrics", may: []string{".", "ingest"}},
	{pkg: "proto"},
	{pkg: "api", may: []string{
		".", "internal/pg", "internal/seal", "authz", "audit", "index", "lineage", "ingest", "query", "notes", "gateway", "reason", "proto"}},
	{pkg: "console", may: []string{".", "api", "proto"}},
	{pkg: "cmd", may: []string{anything}},
	{pkg: "bench", may: []string{anything}},
	{pkg: "demo", may: []string{anything}},
}

// outside names modules of others that only some packages may import.
var outside = []restriction{
	{
		prefixes: []string{
			"connectrpc.com/", "buf.build/", "google.golang.org/protobuf", "google.golang.org/genproto", "google.golang.org/grpc"},
		only: []string{"proto", "api", "console", "cmd", "bench", "demo"},
		why:  "nothing below api knows of protobuf",
	},
	{
		prefixes: []string{"github.com/pgvector/"},
		only:     []string{"index", "bench"},
		why:      "index is the only package that knows pgvector",
	},
	{
		prefixes: []string{"github.com/prometheus/"},
		only:     []string{"metrics"},
		why:      "what is measured is told to small interfaces",
	},
	{
		prefixes: []string{"github.com/jackc/pglogrepl"},
		only:     []string{"cdc", "bench"},
		why:      "the replication protocol is cdc's",
	},
	{
		prefixes: []string{"github.com/modelcontextprotocol/"},
		only:     []string{"api"},
		why:      "MCP is one more way into the API",
	},
}

// never names what must not be reached over any number of imports.
var never = []edge{
	{"cdc", "index"},
	{"embedder", "index"},
}

const anything = "*"

type (
	layer struct {
		pkg string
		may []string
	}
	restriction struct {
		prefixes []string
		only     []string
		why      string
	}
	edge struct{ from, to string }
	// graph maps an import path to what it imports.
	graph map[string][]string
)

func TestImportsPointDown(t *testing.T) {
	t.Parallel()
	g, err := readGraph(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(g[module]) == 0 {
		t.Fatalf("go list knows nothing of %s: %d packages read", module, len(g))
	}
	for _, problem := range check(g) {
		t.Error(problem)
	}
}

// readGraph reads the imports of every package but for its tests, which may
// import what they like.
func readGraph(ctx context.Context) (graph, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-e", "-json=ImportPath,Imports", "./...")
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, complaint.String())
	}
	g := graph{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return g, nil
		} else if err != nil {
			return nil, err
		}
		g[p.ImportPath] = p.Imports
	}
}

// check returns what in the graph breaks the rules above, in a stable order.
func check(g graph) []string {
	var problems []string
	report := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	for _, path := range slices.Sorted(maps.Keys(g)) {
		if supportsTests(path) {
			continue
		}
		from, ok := layerOf(path)
		if !ok {
			report("%s is in no layer: add it to the table in imports_test.go", path)
			continue
		}
		for _, imported := range g[path] {
			if within(imported, module) {
				to, ok := layerOf(imported)
				switch {
				case supportsTests(imported):
					if from.pkg != "bench" {
						report("%s imports %s, which is for tests", path, imported)
					}
				case ok && to.pkg != from.pkg && !slices.Contains(from.may, to.pkg) && !slices.Contains(from.may, anything):
					report("%s imports %s: %s may not import %s", path, imported, from.pkg, to.pkg)
				}
				continue
			}
			if from.pkg == "." && strings.Contains(strings.SplitN(imported, "/", 2)[0], ".") {
				report("%s imports %s: the root package uses the standard library only", path, imported)
			}
			for _, r := range outside {
				if hasAnyPrefix(imported, r.prefixes) && !slices.Contains(r.only, from.pkg) {
					report("%s imports %s: %s", path, imported, r.why)
				}
			}
		}
	}
	for _, e := range never {
		for _, path := range slices.Sorted(maps.Keys(g)) {
			from, ok := layerOf(path)
			if !ok || from.pkg != e.from || supportsTests(path) {
				continue
			}
			if way := g.way(path, e, map[string]bool{}); way != nil {
				report("%s must never reach %s: %s", e.from, e.to, strings.Join(way, " -> "))
			}
		}
	}
	return problems
}

// way returns the imports that lead from path to the layer e.to, or nil.
func (g graph) way(path string, e edge, seen map[string]bool) []string {
	seen[path] = true
	for _, imported := range g[path] {
		to, ok := layerOf(imported)
		if !ok || seen[imported] {
			continue
		}
		if to.pkg == e.to {
			return []string{path, imported}
		}
		if rest := g.way(imported, e, seen); rest != nil {
			return append([]string{path}, rest...)
		}
	}
	return nil
}

// layerOf returns the row whose folder holds the package.
func layerOf(path string) (layer, bool) {
	if path == module {
		return layers[0], true
	}
	for _, l := range layers[1:] {
		if within(path, module+"/"+l.pkg) {
			return l, true
		}
	}
	return layer{}, false
}

func within(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, folder+"/")
}

func hasAnyPrefix(path string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(path, p) })
}

// supportsTests tells the packages that only tests import, by their names:
// internal/pgtest, authz/authztest.
func supportsTests(path string) bool {
	return within(path, module) && strings.HasSuffix(path, "test")
}

func TestImportRulesCanFail(t *testing.T) {
	t.Parallel()
	sound := graph{
		module:                          {"strings"},
		module + "/internal/pg":         {module, "github.com/jackc/pgx/v5"},
		module + "/cdc":                 {module, "github.com/jackc/pglogrepl"},
		module + "/authz":               {module, module + "/internal/pg"},
		module + "/index":               {module, module + "/internal/pg", module + "/authz", "github.com/pgvector/pgvector-go"},
		module + "/embedder":            {module},
		module + "/embedder/lexical":    {module + "/embedder"},
		module + "/query":               {module + "/index"},
		module + "/api/mcp":             {"github.com/modelcontextprotocol/go-sdk/mcp"},
		module + "/api":                 {module + "/query", module + "/proto/gen/whence/v1", "connectrpc.com/connect/v2"},
		module + "/console":             {module + "/api"},
		module + "/cmd/whence":          {module + "/api", module + "/cdc", module + "/console"},
		module + "/internal/pgtest":     {module + "/migrations", module + "/internal/pgcluster"},
		module + "/authz/authztest":     {module + "/authz"},
		module + "/proto/gen/whence/v1": {"google.golang.org/protobuf/proto"},
	}
	if problems := check(sound); problems != nil {
		t.Fatalf("a sound graph is refused:\n%s", strings.Join(problems, "\n"))
	}
	for _, test := range []struct{ from, to, want string }{
		{"", "github.com/jackc/pgx/v5", "standard library only"},
		{"/internal/pg", module + "/index", "internal/pg may not import index"},
		{"/cdc", module + "/index", "cdc must never reach index"},
		{"/embedder/lexical", module + "/index", "embedder must never reach index"},
		{"/embedder", module + "/query", "embedder must never reach index"},
		{"/index", module + "/query", "index may not import query"},
		{"/index", module + "/lineage", "index may not import lineage"},
		{"/query", "google.golang.org/protobuf/proto", "nothing below api"},
		{"/query", "connectrpc.com/connect/v2", "nothing below api"},
		{"/query", module + "/proto/gen/whence/v1", "query may not import proto"},
		{"/query", "github.com/pgvector/pgvector-go", "only package that knows pgvector"},
		{"/api", "github.com/jackc/pglogrepl", "cdc's"},
		{"/gateway", "github.com/modelcontextprotocol/go-sdk/mcp", "one more way into the API"},
		{"/console", module + "/authz", "console may not import authz"},
		{"/console", module + "/gateway", "console may not import gateway"},
		{"/query", module + "/internal/pgtest", "for tests"},
		{"/cmd/whence", module + "/authz/authztest", "for tests"},
		{"/helpers", "strings", "in no layer"},
	} {
		bad := maps.Clone(sound)
		bad[module+test.from] = append(slices.Clone(bad[module+test.from]), test.to)
		if problems := check(bad); !slices.ContainsFunc(problems, func(p string) bool { return strings.Contains(p, test.want) }) {
			t.Errorf("%q importing %s: %q, want %q", test.from, test.to, problems, test.want)
		}
	}
}

func TestLayersNameOnlyRowsAboveThem(t *testing.T) {
	t.Parallel()
	above := []string{anything}
	for _, l := range layers {
		for _, m := range l.may {
			if !slices.Contains(above, m) {
				t.Errorf("%s may import %s, which is not above it", l.pkg, m)
			}
		}
		above = append(above, l.pkg)
	}
}
