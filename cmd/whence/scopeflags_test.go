package main

import (
	"testing"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// The flags say the same to the API and to the token endpoint.
func TestScopeFlags(t *testing.T) {
	t.Parallel()
	read := []authz.Action{authz.MemoryRead}
	for _, c := range []struct {
		args    []string
		message *v1.Scope
		spec    authz.ScopeSpec
	}{
		{nil, nil, authz.ScopeSpec{Actions: read}},
		{[]string{"--all-tables", "--all-subjects"},
			&v1.Scope{AllTables: true, AllSubjects: true, Actions: []string{"memory:read"}}, authz.ScopeSpec{AllTables: true, AllSubjects: true, Actions: read}},
		{[]string{"--table", "a.b.c,a.b.d", "--table", "a.b.e", "--subject", "Smith, Ann", "--subject", "bob"},
			&v1.Scope{Tables: []string{"a.b.c", "a.b.d", "a.b.e"}, Subjects: []string{"Smith, Ann", "bob"}, Actions: []string{"memory:read"}},
			authz.ScopeSpec{Tables: []whence.TableName{"a.b.c", "a.b.d", "a.b.e"}, Subjects: []string{"Smith, Ann", "bob"}, Actions: read}},
		{[]string{"--all-tables", "--deny-table", "a.b.c", "--all-subjects", "--deny-subject", "Smith, Ann", "--filter", "k=x;y=z,w", "--filter", "l=",
			"--action", "memory:write,task:delegate", "--top-k", "7", "--tier", "reversible"},
			&v1.Scope{AllTables: true, DenyTables: []string{"a.b.c"}, AllSubjects: true, DenySubjects: []string{"Smith, Ann"},
				Filter: map[string]string{"k": "x;y=z,w", "l": ""}, Actions: []string{"memory:write", "task:delegate"}, TopK: 7, Tier: v1.Tier_TIER_REVERSIBLE},
			authz.ScopeSpec{AllTables: true, DenyTables: []whence.TableName{"a.b.c"}, AllSubjects: true, DenySubjects: []string{"Smith, Ann"},
				Filter: map[string]string{"k": "x;y=z,w", "l": ""}, Actions: []authz.Action{authz.MemoryWrite, authz.TaskDelegate}, TopK: 7, Tier: authz.TierReversible}},
		{[]string{"--action", "task:delegate"}, &v1.Scope{Actions: []string{"task:delegate"}}, authz.ScopeSpec{Actions: []authz.Action{authz.TaskDelegate}}},
		{[]string{"--tier", "irreversible"}, &v1.Scope{Actions: []string{"memory:read"}, Tier: v1.Tier_TIER_IRREVERSIBLE}, authz.ScopeSpec{Actions: read, Tier: authz.TierIrreversible}},
	} {
		var f scopeFlags
		parser, err := kong.New(&f)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parser.Parse(c.args); err != nil {
			t.Errorf("%v: %v", c.args, err)
			continue
		}
		if c.message != nil && c.message.GetTier() == v1.Tier_TIER_UNSPECIFIED {
			c.message.Tier = v1.Tier_TIER_READ
		}
		if c.spec.Type = authz.DetailType; c.spec.Tier == "" {
			c.spec.Tier = authz.TierRead
		}
		if got := f.message(); !proto.Equal(got, c.message) {
			t.Errorf("%v: message %v, want %v", c.args, got, c.message)
		}
		if diff := cmp.Diff(c.spec, f.spec()); diff != "" {
			t.Errorf("%v: spec %s", c.args, diff)
		}
		if err := f.spec().Validate(); err != nil {
			t.Errorf("%v: %v", c.args, err)
		}
	}
}
