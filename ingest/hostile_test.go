package ingest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

// hostileNames are names that somebody could take for something else.
var hostileNames = []string{
	`a"b`, `a.b`, `"`, `.`, "new\nline\ttab\r", `%s%d%!`, `$1`, `@name`, `:id`, `back\slash\`, `x"; drop table docs; --`, `'; select pg_sleep(10); '`,
	`select`, `UPPER Case`, ` padded `, `ü日本語👩‍👩‍👧`, "\u202eright to left\u200b", strings.Repeat("n", 63), strings.Repeat("ü", 31), `{{title}}`, `{"a": 1}`, `null`, `é`, `<b>&amp;`,
	`--`, `/* */`, `a,b`, `(a)`, `[0]`, `*`, `0`, "\x01\x7f",
}

// A table, its schema and its columns may be called anything: they are
// inspected, published, copied, followed, reported on, given up and deleted.
func TestHostileNames(t *testing.T) {
	w := newWorld(t)
	w.create()
	quote := func(parts ...string) string { return pgx.Identifier(parts).Sanitize() }
	type hostile struct {
		schema, table, keyColumn, column string
		info                             TableInfo
	}
	var tables []*hostile
	for i, name := range hostileNames {
		at := func(n int) string { return hostileNames[(i+n)%len(hostileNames)] }
		h := &hostile{schema: at(1), table: name, keyColumn: at(2), column: at(3)}
		w.exec(w.source, `create schema if not exists `+quote(h.schema))
		w.exec(w.source, fmt.Sprintf(`create table %s (%s text primary key, %s text)`, quote(h.schema, h.table), quote(h.keyColumn), quote(h.column)))
		w.exec(w.source, fmt.Sprintf(`insert into %s values ($1, 'copied ' || $1), ('2', null)`, quote(h.schema, h.table)), name)
		tables = append(tables, h)
	}
	w.exec(w.source, `create table docs (id int)`) // nobody drops it
	w.run()
	for _, h := range tables {
		h.info = w.register(TableSpec{Table: whence.RelationName(h.schema, h.table), TextColumns: []string{h.column}, AttributeColumns: []string{h.keyColumn}})
	}
	for _, h := range tables {
		h.info = w.live(h.info.Name())
	}
	for _, h := range tables {
		w.exec(w.source, fmt.Sprintf(`insert into %s values ('3', 'streamed'), ('4', 'gone')`, quote(h.schema, h.table)))
		w.exec(w.source, fmt.Sprintf(`update %s set %s = %s || ' anew' where %s <> '2'`, quote(h.schema, h.table), quote(h.column), quote(h.column), quote(h.keyColumn)))
		w.exec(w.source, fmt.Sprintf(`update %s set %s = 'moved' where %s = '2'`, quote(h.schema, h.table), quote(h.keyColumn), quote(h.keyColumn)))
		w.exec(w.source, fmt.Sprintf(`delete from %s where %s = '4'`, quote(h.schema, h.table), quote(h.keyColumn)))
	}
	w.caughtUp()
	for _, h := range tables {
		w.equal(h.info)
	}
	for i, h := range tables { // each in one of the ways that a table can fail
		name, statement := quote(h.schema, h.table), ""
		switch i % 3 {
		case 0:
			statement = fmt.Sprintf(`alter table %s rename column %s to renamed`, name, quote(h.column))
		case 1:
			statement = fmt.Sprintf(`alter table %s rename to renamed`, name)
		case 2:
			statement = `drop table ` + name
		}
		w.exec(w.source, statement)
		var status TableStatus
		w.until("the table fails", func() (bool, string) {
			info, err := w.r.GetTable(t.Context(), h.info.Name())
			if err != nil {
				t.Fatal(err)
			}
			status = info.Status
			return status.State == whence.TableBroken || status.State == whence.TableSchemaChanged, string(status.State)
		})
		plain := strings.NewReplacer(name, "", quote(h.schema, "renamed"), "").Replace(status.Error)
		if plain == status.Error || strings.Contains(plain, "%!") {
			t.Errorf("of %q it says %s", h.table, status.Error)
		}
		if i%2 == 0 {
			if err := w.r.UnregisterTable(t.Context(), h.info.Name()); err != nil {
				t.Error(err)
			}
			if _, err := w.r.GetTable(t.Context(), h.info.Name()); reason(err) != "TABLE_NOT_REGISTERED" {
				t.Error(err)
			}
		}
	}
	if _, err := w.r.DeleteSource(t.Context(), "app", false); err != nil {
		t.Fatal(err)
	}
	w.want("what is left", w.query(w.memory.Pool, `select key from whence.records union all select relation from whence.tables`))
	w.exec(w.source, `select from docs`)
}

// What is not so, however it is written, is refused with its name in the words.
func TestHostileRequests(t *testing.T) {
	w := newWorld(t)
	w.exec(w.source, `create table docs (id int primary key, title text)`)
	w.create()
	for _, name := range append([]string{"nul\x00byte", "invalid \xff utf-8", strings.Repeat("long", 250)}, hostileNames...) {
		refused := func(what string, err error, reasons ...string) {
			t.Helper()
			got := reason(err)
			if !strings.Contains(" "+strings.Join(reasons, " ")+" ", " "+got+" ") {
				t.Errorf("%s %.40q: %.200s, want %v", what, name, got, reasons)
			}
			if err != nil && len(err.Error()) > 5000 {
				t.Errorf("%s %.40q: the refusal has %d bytes", what, name, len(err.Error()))
			}
		}
		_, err := w.r.CreateSource(t.Context(), name, w.source.DSN, "")
		if name != "select" && name != "null" && name != strings.Repeat("n", 63) {
			refused("source", err, "NAME_INVALID")
		}
		_, err = w.r.GetSource(t.Context(), "x "+name)
		refused("get source", err, "SOURCE_NOT_FOUND", "TEXT_INVALID")
		_, err = w.r.CreateSource(t.Context(), "other", "", name)
		refused("environment", err, "DSN_ENV_NOT_SET")
		_, err = w.r.CreateSource(t.Context(), "other", "host="+name+" connect_timeout=1", "")
		refused("dsn", err, "DSN_INVALID", "SOURCE_UNREACHABLE", "SOURCE_REFUSED")
		_, err = w.r.GetTable(t.Context(), whence.TableName(name))
		refused("get table", err, "TABLE_NOT_REGISTERED")
		refused("unregister", w.r.UnregisterTable(t.Context(), whence.NewTableName("app", "public", name)), "TABLE_NOT_REGISTERED")
		_, err = w.r.RegisterTable(t.Context(), TableSpec{Source: "app", Table: name, TextColumns: []string{"title"}})
		refused("raw table", err, "TABLE_NAME_INVALID", "TABLE_NOT_FOUND")
		_, err = w.r.RegisterTable(t.Context(), TableSpec{Source: "app", Table: whence.RelationName("public", name), TextColumns: []string{"title"}})
		refused("table", err, "TABLE_NAME_INVALID", "TABLE_NOT_FOUND")
		_, err = w.r.RegisterTable(t.Context(), TableSpec{Source: "app", Table: "public.docs", TextColumns: []string{name}})
		refused("column", err, "COLUMN_NOT_FOUND")
		_, err = w.r.RegisterTable(t.Context(), TableSpec{Source: "app", Table: "public.docs", TextTemplate: "{{" + name + "}}"})
		if name != `{{title}}` {
			refused("template", err, "COLUMN_NOT_FOUND", "TEMPLATE_INVALID")
		}
	}
}

// Where only the whole row identifies it, a key may have no value. That fails the
// table and holds nothing else up.
func TestKeyWithoutValue(t *testing.T) {
	w := newDocs(t)
	w.exec(w.source, `create table others (id int primary key, title text); alter table docs replica identity full; insert into docs (id, title) values (1, 'one')`)
	w.register(docsSpec)
	w.register(TableSpec{Table: "public.others", TextColumns: []string{"title"}})
	w.run()
	w.live(docs)
	others := w.live("app.public.others")
	w.exec(w.source, `alter table docs drop constraint docs_pkey, alter id drop not null; insert into docs (title) values ('nobody');
		insert into others values (1, 'somebody')`)
	w.caughtUp()
	w.until("the table says so", func() (bool, string) {
		info, err := w.r.GetTable(t.Context(), docs)
		return err == nil && info.State == whence.TableSchemaChanged, fmt.Sprint(info.State, info.Error)
	})
	w.exec(w.source, `update docs set title = 'still nobody' where id is null; delete from docs; insert into others values (2, 'else')`)
	w.caughtUp()
	w.equal(others)
}
