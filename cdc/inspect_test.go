package cdc

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pgtest"
)

func TestInspectTable(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	const ddl = `
create schema "Sales.eu";
create table "Sales.eu"."Big Orders" (a int, "b ""q""" text not null, c varchar(20), d int generated always as (a + 1) stored,
  gone int, primary key ("b ""q""", a));
alter table "Sales.eu"."Big Orders" drop column gone;
insert into "Sales.eu"."Big Orders" select i, 'x' from generate_series(1, 1000) i;
analyze "Sales.eu"."Big Orders";
create table keyless (a int);
create table full_keyless (a int);
alter table full_keyless replica identity full;
create table mute (id int primary key);
alter table mute replica identity nothing;
create table by_index (id int primary key, tenant int not null, code text not null);
create unique index by_index_code on by_index (tenant, code) include (id);
alter table by_index replica identity using index by_index_code;
create table lost_index (id int primary key, n int not null unique);
alter table lost_index replica identity using index lost_index_n_key;
alter table lost_index drop constraint lost_index_n_key;
create table lost_all (id int, n int not null unique);
alter table lost_all replica identity using index lost_all_n_key;
alter table lost_all drop constraint lost_all_n_key;
create table keyless_parted (n int not null) partition by range (n);
create unique index keyless_parted_n on keyless_parted (n);
alter table keyless_parted replica identity using index keyless_parted_n;
create table keyless_parted_1 partition of keyless_parted for values from (1) to (10);
create table deferred (id int primary key deferrable);
create unlogged table forgetful (id int primary key);
create view seen as select 1 as id;
create table parted (id int primary key) partition by range (id);
create table parted_1 partition of parted for values from (1) to (10);
create table mute_parted (id int primary key) partition by range (id);
create table mute_parted_1 partition of mute_parted for values from (1) to (10);
alter table mute_parted_1 replica identity nothing;`
	if _, err := db.Pool.Exec(t.Context(), ddl); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if err := CheckServer(t.Context(), conn); err != nil {
		t.Errorf("CheckServer: %v", err)
	}

	got, err := InspectTable(t.Context(), conn, "Sales.eu", "Big Orders")
	want := Inspection{Schema: "Sales.eu", Relation: "Big Orders", Kind: KindTable, ReplicaIdentity: "DEFAULT", EstimatedRows: 1000, Owned: true,
		KeyColumns: []string{`b "q"`, "a"},
		Columns:    []Column{{"a", "integer", true, false}, {`b "q"`, "text", true, false}, {"c", "character varying(20)", false, false}, {"d", "integer", false, true}}}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v\n%s", err, d)
	}
	for _, tt := range []struct{ table, keys, identity, reason, says string }{
		{"by_index", "tenant code", "INDEX", "", ""},
		{"parted", "id", "DEFAULT", "", ""},
		{"absent", "", "", "TABLE_NOT_FOUND", `"public"."absent"`},
		{"keyless", "", "", "NO_PRIMARY_KEY", "ADD PRIMARY KEY"},
		{"full_keyless", "", "", "NO_PRIMARY_KEY", "ADD PRIMARY KEY"},
		{"deferred", "", "", "NO_PRIMARY_KEY", "deferrable"},
		{"mute", "", "", "REPLICA_IDENTITY_NOTHING", `ALTER TABLE "public"."mute" REPLICA IDENTITY DEFAULT`},
		{"mute_parted", "", "", "REPLICA_IDENTITY_NOTHING", `"mute_parted_1"`},
		{"lost_index", "", "", "REPLICA_IDENTITY_NOTHING", `ALTER TABLE "public"."lost_index" REPLICA IDENTITY DEFAULT`},
		{"lost_all", "", "", "REPLICA_IDENTITY_NOTHING", `ALTER TABLE "public"."lost_all" REPLICA IDENTITY USING INDEX`},
		{"keyless_parted", "", "", "NO_PRIMARY_KEY", `ALTER TABLE "public"."keyless_parted_1" ADD PRIMARY KEY`},
		{"forgetful", "", "", "TABLE_NOT_LOGGED", "SET LOGGED"},
		{"seen", "", "", "NOT_A_TABLE", "a view"},
	} {
		in, err := InspectTable(t.Context(), conn, "public", tt.table)
		if tt.reason == "" {
			if err != nil || strings.Join(in.KeyColumns, " ") != tt.keys || in.ReplicaIdentity != tt.identity {
				t.Errorf("%s: %v, keys %q by %s; want %q by %s", tt.table, err, in.KeyColumns, in.ReplicaIdentity, tt.keys, tt.identity)
			}
			continue
		}
		var refusal *whence.Error
		if !errors.As(err, &refusal) || refusal.Reason != tt.reason || !strings.Contains(refusal.Message, tt.says) {
			t.Errorf("%s: %v, want %s and %q", tt.table, err, tt.reason, tt.says)
		}
	}
}

func (s *source) inspect(schema, relation string) (Inspection, error) {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), s.db.DSN)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = conn.Close(s.t.Context()) }()
	return InspectTable(s.t.Context(), conn, schema, relation)
}
