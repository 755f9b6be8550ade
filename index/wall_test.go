package index

import (
	"testing"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest"
)

func TestTheSecondWall(t *testing.T) {
	t.Parallel()
	tables := []whence.Table{{ID: 1, Source: "app", Schema: "public", Relation: "a"}, {ID: 2, Source: "app", Schema: "public", Relation: "b"}}
	ann, bob, de, en := "ann", "bob", "de", "en"
	scope := authztest.Scope(t, authz.ScopeSpec{Tables: []whence.TableName{"app.public.a"}, Subjects: []string{ann}, Filter: map[string]string{"lang": de}})
	every := authztest.Scope(t, authz.ScopeSpec{AllTables: true, DenyTables: []whence.TableName{"app.public.b"}, AllSubjects: true, DenySubjects: []string{bob}})
	for _, c := range []struct {
		name          string
		scope         authz.Scope
		table         int32
		subject, lang *string
		within        bool
	}{
		{"within", scope, 1, &ann, &de, true},
		{"another table", scope, 2, &ann, &de, false},
		{"a table that was not asked", scope, 3, &ann, &de, false},
		{"another subject", scope, 1, &bob, &de, false},
		{"no subject", scope, 1, nil, &de, false},
		{"another value", scope, 1, &ann, &en, false},
		{"no value", scope, 1, &ann, nil, false},
		{"everything, no subject", every, 1, nil, nil, true},
		{"everything, a denied subject", every, 1, &bob, nil, false},
		{"everything, a denied table", every, 2, &ann, nil, false},
		{"nothing", authz.Scope{}, 1, &ann, &de, false},
	} {
		found := Candidate{RecordID: 7, TableID: c.table, Subject: c.subject, Attributes: whence.Values{"lang": c.lang}}
		if err := found.within(c.scope, tables); (err == nil) != c.within {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
