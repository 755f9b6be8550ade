package authz

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/whence-db/whence"
)

// The universe of the property test: every row that can exist in it, and every
// action. The last table and subject are never named by a scope, and the empty
// subject is a row's that has none.
var (
	tables   = []whence.TableName{"s.public.a", "s.public.b", "whence.notes", "s.public.unnamed"}
	subjects = []string{"u1", "u2", "", "unnamed"}
	values   = []string{"", "x", "y"} // "" here: the row lacks the attribute
)

type row struct {
	table   whence.TableName
	subject string
	attr    [2]string // of the attributes k0 and k1
}

func universe() (rows []row) {
	for _, t := range tables {
		for _, s := range subjects {
			for _, v0 := range values {
				for _, v1 := range values {
					rows = append(rows, row{t, s, [2]string{v0, v1}})
				}
			}
		}
	}
	return rows
}

// admits says whether a scope lets an agent see a row, by the public methods alone.
func admits(s Scope, r row) bool {
	for k, v := range s.Filter() {
		if (k != "k0" || r.attr[0] != v) && (k != "k1" || r.attr[1] != v) {
			return false
		}
	}
	return s.AllowsTable(r.table) && s.AllowsSubject(r.subject)
}

func specs() *rapid.Generator[ScopeSpec] {
	return rapid.Custom(func(t *rapid.T) ScopeSpec {
		s := ScopeSpec{Filter: map[string]string{}}
		s.AllTables = rapid.Bool().Draw(t, "all tables")
		if s.AllTables {
			s.DenyTables = rapid.SliceOfN(rapid.SampledFrom(tables[:3]), 0, 2).Draw(t, "denied tables")
		} else {
			s.Tables = rapid.SliceOfN(rapid.SampledFrom(tables[:3]), 0, 4).Draw(t, "tables")
		}
		s.AllSubjects = rapid.Bool().Draw(t, "all subjects")
		if s.AllSubjects {
			s.DenySubjects = rapid.SliceOfN(rapid.SampledFrom(subjects[:2]), 0, 2).Draw(t, "denied subjects")
		} else {
			s.Subjects = rapid.SliceOfN(rapid.SampledFrom(subjects[:2]), 0, 3).Draw(t, "subjects")
		}
		for _, k := range []string{"k0", "k1"} {
			if v := rapid.SampledFrom(values).Draw(t, k); v != "" {
				s.Filter[k] = v
			}
		}
		s.Actions = rapid.SliceOfN(rapid.SampledFrom(Actions()), 0, 4).Draw(t, "actions")
		s.Tier = rapid.SampledFrom(tiers).Draw(t, "tier")
		s.TopK = rapid.SampledFrom([]int{0, 0, 5, 9}).Draw(t, "topK")
		return s
	})
}

// TestNarrowNeverWidens compares a narrowed scope with its parent on every row and
// action there can be, and holds that a refusal has a cause.
func TestNarrowNeverWidens(t *testing.T) {
	t.Parallel()
	rows := universe()
	granted, refused := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		parent, err := newScope(specs().Draw(t, "parent"))
		if err != nil {
			t.Fatal(err)
		}
		want := specs().Draw(t, "want")
		if rapid.Bool().Draw(t, "repeat the filter") {
			want.Filter = parent.Filter()
		}
		child, err := parent.Narrow(want)
		if err != nil {
			refused++
			wished, invalid := newScope(want)
			if invalid != nil {
				t.Fatal(invalid)
			}
			if !child.IsZero() || !exceeds(parent, wished) {
				t.Fatalf("refused without cause: %v\nparent %+v\nwant %+v", err, parent.Spec(), want)
			}
			return
		}
		granted++
		for _, r := range rows {
			if admits(child, r) && !admits(parent, r) {
				t.Fatalf("the child sees %+v, its parent does not\nparent %+v\nchild %+v", r, parent.Spec(), child.Spec())
			}
		}
		for _, a := range Actions() {
			if child.Allows(a) && !parent.Allows(a) {
				t.Fatalf("the child may %s, its parent may not", a)
			}
		}
		wished, err := newScope(want)
		if err != nil || !reflect.DeepEqual(wished.Spec(), child.Spec()) {
			t.Fatalf("granted %+v instead of %+v", child.Spec(), want)
		}
	})
	if granted == 0 || refused == 0 {
		t.Errorf("%d granted, %d refused: the property was not put to the test", granted, refused)
	}
}

// exceeds says whether one of the child's parts, taken alone, admits what the
// parent's does not.
func exceeds(parent, child Scope) bool {
	for _, t := range tables {
		if child.AllowsTable(t) && !parent.AllowsTable(t) {
			return true
		}
	}
	for _, s := range subjects {
		if child.AllowsSubject(s) && !parent.AllowsSubject(s) {
			return true
		}
	}
	for _, a := range Actions() {
		if child.Allows(a) && !parent.Allows(a) {
			return true
		}
	}
	if !child.tier.Within(parent.tier) || parent.topK > 0 && (child.topK == 0 || child.topK > parent.topK) {
		return true
	}
	everywhere := func(filter map[string]string) Scope {
		return Scope{tables: part[whence.TableName]{all: true}, subjects: part[string]{all: true}, filter: filter}
	}
	for _, r := range universe() {
		if admits(everywhere(child.filter), r) && !admits(everywhere(parent.filter), r) {
			return true
		}
	}
	return false
}

func TestZeroScopeDenies(t *testing.T) {
	t.Parallel()
	fromSpec, err := newScope(ScopeSpec{})
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]Scope{"zero value": {}, "zero spec": fromSpec} {
		if !s.IsZero() {
			t.Errorf("%s: not zero", name)
		}
		for _, r := range universe() {
			if admits(s, r) {
				t.Errorf("%s admits %+v", name, r)
			}
		}
		for _, a := range Actions() {
			if s.Allows(a) {
				t.Errorf("%s allows %s", name, a)
			}
		}
		if _, err := s.Narrow(ScopeSpec{Actions: []Action{MemoryRead}}); !errors.Is(err, whence.ErrDenied) {
			t.Errorf("%s narrowed to something: %v", name, err)
		}
	}
}

func TestNarrowNamesAllThatExceeds(t *testing.T) {
	t.Parallel()
	parent, err := newScope(ScopeSpec{Tables: []whence.TableName{"s.public.a"}, Subjects: []string{"u1"},
		Filter: map[string]string{"region": "eu"}, Actions: []Action{MemoryRead}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = parent.Narrow(ScopeSpec{Tables: []whence.TableName{"s.public.b", "s.public.a", "s.public.c"}, AllSubjects: true,
		Filter: map[string]string{"region": "us"}, Actions: []Action{MemoryRead, MemoryWrite}})
	var e *whence.Error
	if !errors.As(err, &e) || !errors.Is(e.Kind, whence.ErrDenied) || e.Reason != "SCOPE_WIDENED" {
		t.Fatal(err)
	}
	want := map[string]string{"tables": "s.public.b, s.public.c", "subjects": "all", "filter": `region must be "eu"`, "actions": "memory:write"}
	if !reflect.DeepEqual(e.Metadata, want) {
		t.Errorf("metadata %v, want %v", e.Metadata, want)
	}
	for _, v := range want {
		if !strings.Contains(e.Message, v) {
			t.Errorf("the message does not say %q: %s", v, e.Message)
		}
	}
}

func TestScopeCannotBeChangedFromOutside(t *testing.T) {
	t.Parallel()
	spec := ScopeSpec{Tables: []whence.TableName{"s.public.a"}, Subjects: []string{"u1"}, Filter: map[string]string{"k": "v"}}
	s, err := newScope(spec)
	if err != nil {
		t.Fatal(err)
	}
	before := fmt.Sprint(s.Spec())
	spec.Tables[0], spec.Subjects[0], spec.Filter["k"] = "s.public.z", "z", "z"
	got := s.Spec()
	got.Tables[0], got.Subjects[0], got.Filter["k"] = "s.public.z", "z", "z"
	delete(s.Filter(), "k")
	_, names, _ := s.Tables()
	names[0] = "s.public.z"
	if after := fmt.Sprint(s.Spec()); after != before {
		t.Errorf("%s became %s", before, after)
	}
}

func TestScopeSpecValidate(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxNameLength+1)
	for name, c := range map[string]struct {
		spec  ScopeSpec
		field string
	}{
		"another type":          {ScopeSpec{Type: "bank"}, "type"},
		"all tables and some":   {ScopeSpec{AllTables: true, Tables: tables[:1]}, "tables"},
		"all subjects and some": {ScopeSpec{AllSubjects: true, Subjects: []string{"a"}}, "subjects"},
		"two parts":             {ScopeSpec{Tables: []whence.TableName{"public.a"}}, "tables"},
		"four parts":            {ScopeSpec{Tables: []whence.TableName{"a.b.c.d"}}, "tables"},
		"nameless table":        {ScopeSpec{Tables: []whence.TableName{""}}, "tables"},
		"NUL in a table":        {ScopeSpec{Tables: []whence.TableName{"a.b.c\x00"}}, "tables"},
		"nameless subject":      {ScopeSpec{Subjects: []string{""}}, "subjects"},
		"long subject":          {ScopeSpec{Subjects: []string{long}}, "subjects"},
		"broken subject":        {ScopeSpec{Subjects: []string{"\xff"}}, "subjects"},
		"turned table":          {ScopeSpec{Tables: []whence.TableName{"a.b.c\u202e"}}, "tables"},
		"nameless attribute":    {ScopeSpec{Filter: map[string]string{"": "v"}}, "filter"},
		"NUL in a value":        {ScopeSpec{Filter: map[string]string{"k": "\x00"}}, "filter"},
		"unknown action":        {ScopeSpec{Actions: []Action{"memory:*"}}, "actions"},
		"unknown tier":          {ScopeSpec{Tier: "HIGHEST"}, "tier"},
		"too high a topK":       {ScopeSpec{TopK: maxTopK + 1}, "topK"},
		"a negative topK":       {ScopeSpec{TopK: -1}, "topK"},
		"tables of a wildcard":  {ScopeSpec{Tables: []whence.TableName{"app.public.*"}}, "tables"},
		"a wildcard":            {ScopeSpec{Tables: []whence.TableName{"*"}}, "tables"},
		"subjects, a wildcard":  {ScopeSpec{Subjects: []string{"*"}}, "subjects"},
		"a denied wildcard":     {ScopeSpec{AllSubjects: true, DenySubjects: []string{"*"}}, "subjects"},
		"named and denied":      {ScopeSpec{Tables: tables[:1], DenyTables: tables[:1]}, "denyTables"},
		"subjects, both":        {ScopeSpec{Subjects: []string{"a"}, DenySubjects: []string{"b"}}, "denySubjects"},
		"too many":              {ScopeSpec{Subjects: slices.Repeat([]string{"a"}, maxScopeParts+1)}, ""},
	} {
		var e *whence.Error
		if err := c.spec.Validate(); !errors.As(err, &e) || !errors.Is(e.Kind, whence.ErrInvalid) || e.Field != c.field {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := ScopeSpec{Tables: []whence.TableName{"whence.notes", `app."a.b".c`}, Filter: map[string]string{"k": ""}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
}
