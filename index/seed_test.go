package index_test

import (
	"context"
	"encoding/json"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest"
	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/pgtest"
)

// world is an index with rows that were put there state by state, so that a read
// test needs nothing of the path that writes.
type world struct {
	t      testing.TB
	db     *pgtest.DB
	x      *index.Index
	space  index.Space
	tables map[string]whence.Table
	spent  atomic.Int64 // tokens that fillers used
}

func newWorld(t testing.TB, tables ...string) *world {
	t.Helper()
	db := pgtest.New(t)
	x, err := index.New(index.Config{Pool: db.Pool})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, db: db, x: x, tables: map[string]whence.Table{}}
	m := lexical.Default()
	if w.space, err = x.EnsureSpace(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	var source int32
	w.scan([]any{&source}, `insert into whence.sources (name, dsn_env, slot, publication) values ('app', 'X', 's', 'p') returning id`)
	for _, name := range tables {
		tab := whence.Table{SourceID: source, Source: "app", Schema: "public", Relation: name, KeyColumns: []string{"id"},
			TextColumns: []string{"body"}, SubjectColumn: "owner", AttributeColumns: []string{"lang"}, Language: whence.DefaultLanguage,
			HalfLife: 720 * time.Hour, FreshnessTarget: 10 * time.Second, Definition: 1, State: whence.TableLive}
		w.scan([]any{&tab.ID}, `
insert into whence.tables (source_id, schema_name, relation, key_columns, text_columns, text_template, subject_column, time_column,
    attribute_columns, half_life, freshness_target, on_delete)
values ($1, 'public', $2, '{id}', '{body}', '', 'owner', '', '{lang}', '30 days', '10 s', 'TOMBSTONE') returning id`, source, name)
		w.tables[name] = tab
	}
	return w
}

func (w *world) scan(dest []any, sql string, args ...any) {
	w.t.Helper()
	if err := w.db.Pool.QueryRow(w.t.Context(), sql, args...).Scan(dest...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.db.Pool.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatal(err)
	}
}

type row struct {
	id, owner, lang, text string
}

func key(id string) whence.Key { return whence.Key(`{"id":"` + id + `"}`) }

// put makes a next version of a row with one chunk. Chunks of older versions stay.
func (w *world) put(table string, r row) (chunk int64) {
	w.t.Helper()
	tab := w.tables[table]
	columns, err := json.Marshal(map[string]string{"id": r.id, "owner": r.owner, "lang": r.lang, "body": r.text})
	if err != nil {
		w.t.Fatal(err)
	}
	d := whence.DigestOf(r.text)
	w.scan([]any{&chunk}, `
with rec as (
    insert into whence.records as r (table_id, key, version, lsn, commit_time, event_time, subject, attributes)
    values ($1, $2, 1, '0/10', now(), now(), $3, jsonb_build_object('lang', $4::text))
    on conflict (table_id, key) do update set version = r.version + 1, subject = excluded.subject, attributes = excluded.attributes
    returning *
), ver as (
    insert into whence.versions (record_id, version, lsn, commit_time, definition, columns, text, digest)
    select id, version, lsn, commit_time, 1, $5, $6, $7 from rec
)
insert into whence.chunks (record_id, table_id, version, ordinal, span_start, span_end, text, digest, subject, event_time, attributes)
select id, table_id, version, 0, 0, length($6), $6, $7, subject, event_time, attributes from rec
returning id`, tab.ID, key(r.id), r.owner, r.lang, columns, r.text, d[:])
	return chunk
}

// embed gives texts their vectors.
func (w *world) embed(texts ...string) {
	w.t.Helper()
	vectors, err := lexical.Default().Embed(w.t.Context(), texts)
	if err != nil {
		w.t.Fatal(err)
	}
	for i, text := range texts {
		d := whence.DigestOf(text)
		w.exec(`insert into whence.vectors (space_id, digest, table_id, embedding, seq, embedded_at)
values ($1, $2, 1, $3::real[]::halfvec, nextval('whence.vectors_seq'), now()) on conflict do nothing`, w.space.ID, d[:], vectors[i])
	}
}

// search asks all tables for a text, by both legs.
func (w *world) search(scope authz.Scope, r index.SearchRequest) []index.Candidate {
	w.t.Helper()
	if r.Tables == nil {
		for _, tab := range w.tables {
			r.Tables = append(r.Tables, tab)
		}
	}
	v, err := lexical.Default().EmbedQuery(w.t.Context(), r.Text)
	if err != nil {
		w.t.Fatal(err)
	}
	r.Vector, r.Space = v, w.space
	if r.Limit == 0 {
		r.Limit = 50
	}
	var out []index.Candidate
	err = pg.Snapshot(w.t.Context(), w.db.Pool, func(tx pgx.Tx) error {
		out, err = w.x.Search(w.t.Context(), tx, scope, r)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func everything(t testing.TB) authz.Scope {
	t.Helper()
	return authztest.Scope(t, authz.ScopeSpec{AllTables: true, AllSubjects: true, Actions: authz.Actions()})
}

func subjects(t testing.TB, names ...string) authz.Scope {
	t.Helper()
	return authztest.Scope(t, authz.ScopeSpec{AllTables: true, Subjects: names, Actions: authz.Actions()})
}

func snapshot(t testing.TB, w *world, fn func(context.Context, pgx.Tx) error) error {
	t.Helper()
	return pg.Snapshot(t.Context(), w.db.Pool, func(tx pgx.Tx) error { return fn(t.Context(), tx) })
}
