package main

import (
	"testing"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
)

// What was not granted is named, and what the wish left open is not missed.
func TestLessThanAsked(t *testing.T) {
	t.Parallel()
	read, write := authz.MemoryRead, authz.MemoryWrite
	scope := func(change func(*authz.ScopeSpec)) taskWish {
		s := authz.ScopeSpec{Type: authz.DetailType, AllTables: true, AllSubjects: true, Actions: []authz.Action{read}, Tier: authz.TierRead}
		if change != nil {
			change(&s)
		}
		return taskWish{ScopeSpec: s, Purpose: "p"}
	}
	tables := func(names ...whence.TableName) taskWish {
		return scope(func(s *authz.ScopeSpec) { s.AllTables, s.Tables = false, names })
	}
	limited := func(calls int64, lifetime string) taskWish {
		w := scope(nil)
		w.Budget, w.Lifetime = map[string]int64{"calls": calls}, lifetime
		return w
	}
	for _, c := range []struct {
		name       string
		asked, got taskWish
		want       string
	}{
		{"the same", scope(nil), scope(nil), ""},
		{"limits of the grant's", scope(nil), limited(50, "1h0m0s"), ""},
		{"named, all granted", tables("a.b.c"), tables("a.b.c"), ""},
		{"a table lacks", tables("a.b.c", "a.b.d"), tables("a.b.c"), "no tables a.b.d"},
		{"all, some granted", scope(nil), tables("a.b.c"), "tables a.b.c alone"},
		{"all but one", scope(nil), scope(func(s *authz.ScopeSpec) { s.DenyTables = []whence.TableName{"a.b.c"} }), "no tables a.b.c"},
		{"a subject lacks", scope(func(s *authz.ScopeSpec) { s.AllSubjects, s.Subjects = false, []string{"ann", "bob"} }),
			scope(func(s *authz.ScopeSpec) { s.AllSubjects, s.Subjects = false, []string{"bob"} }), "no subjects ann"},
		{"all subjects, one granted", scope(nil), scope(func(s *authz.ScopeSpec) { s.AllSubjects, s.Subjects = false, []string{"bob"} }), "subjects bob alone"},
		{"an action lacks", scope(func(s *authz.ScopeSpec) { s.Actions = []authz.Action{read, write} }), scope(nil), "no actions memory:write"},
		{"a filter", scope(nil), scope(func(s *authz.ScopeSpec) { s.Filter = map[string]string{"lang": "en"} }), `only rows whose lang is "en"`},
		{"hits", scope(nil), scope(func(s *authz.ScopeSpec) { s.TopK = 5 }), "at most 5 hits of a query"},
		{"fewer hits", scope(func(s *authz.ScopeSpec) { s.TopK = 9 }), scope(func(s *authz.ScopeSpec) { s.TopK = 5 }), "at most 5 hits of a query"},
		{"as many hits", scope(func(s *authz.ScopeSpec) { s.TopK = 5 }), scope(func(s *authz.ScopeSpec) { s.TopK = 5 }), ""},
		{"calls and time", limited(100, "2h"), limited(50, "1h0m0s"), "50 calls of 100; 1h0m0s of 2h0m0s"},
		{"tier", scope(func(s *authz.ScopeSpec) { s.Tier = authz.TierReversible }), scope(nil), "actions up to the tier READ"},
	} {
		if got := lessThan(c.asked, c.got); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
