package index

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/pgtest"
)

// putBench is a table to put rows into.
type putBench struct {
	t     *testing.T
	db    *pgtest.DB
	x     *Index
	table whence.Table
	lsn   whence.LSN
}

func newPutBench(t *testing.T, onDelete whence.OnDelete) *putBench {
	t.Helper()
	t.Parallel()
	db := pgtest.New(t)
	x, err := New(Config{Pool: db.Pool})
	if err != nil {
		t.Fatal(err)
	}
	b := &putBench{t: t, db: db, x: x, lsn: 100, table: whence.Table{Source: "app", Schema: "public", Relation: "docs",
		KeyColumns: []string{"id"}, TextColumns: []string{"body"}, OnDelete: onDelete, Definition: 1, Language: whence.DefaultLanguage}}
	b.exec(`insert into whence.spaces (model, dimensions, current) values ('test', 2, true)`)
	b.exec(`insert into whence.sources (name, dsn_env, slot, publication) values ('app', 'X', 's', 'p')`)
	err = db.Pool.QueryRow(t.Context(), `
insert into whence.tables (source_id, schema_name, relation, key_columns, text_columns, text_template, subject_column, time_column,
    attribute_columns, half_life, freshness_target, on_delete)
select id, 'public', 'docs', '{id}', '{body}', '', '', '', '{}', '30 days', '10 s', $1 from whence.sources returning id, source_id`,
		string(onDelete)).Scan(&b.table.ID, &b.table.SourceID)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *putBench) exec(sql string, args ...any) {
	b.t.Helper()
	if _, err := b.db.Pool.Exec(b.t.Context(), sql, args...); err != nil {
		b.t.Fatal(err)
	}
}

// state is one state of a row: its paragraphs, or deleted when there are none.
func (b *putBench) state(id int, paragraphs ...string) Mutation {
	b.t.Helper()
	b.lsn += 10
	s := strconv.Itoa(id)
	key, err := whence.NewKey([]string{"id"}, whence.Values{"id": &s})
	if err != nil {
		b.t.Fatal(err)
	}
	xid := uint32(b.lsn)
	m := Mutation{Table: &b.table, Key: key, LSN: b.lsn, XID: &xid, CommitTime: time.Unix(int64(b.lsn), 0).UTC()}
	if len(paragraphs) == 0 {
		m.Deleted = true
		return m
	}
	m.Text = strings.Join(paragraphs, "\n")
	m.Digest = whence.DigestOf(m.Text)
	columns, err := json.Marshal(whence.Values{"id": &s, "body": &m.Text})
	if err != nil {
		b.t.Fatal(err)
	}
	m.Columns = columns
	at := 0
	for _, p := range paragraphs {
		c, err := whence.NewChunk(whence.Origin{Table: b.table.Name(), Key: key}, m.Text, at, at+len(p))
		if err != nil {
			b.t.Fatal(err)
		}
		m.Chunks = append(m.Chunks, c)
		at += len(p) + 1
	}
	return m
}

func (b *putBench) put(ms ...Mutation) (unsettled []int64) {
	b.t.Helper()
	err := pg.InTx(b.t.Context(), b.db.Pool, func(tx pgx.Tx) error {
		var keys []whence.Key
		for _, m := range ms {
			keys = append(keys, m.Key)
		}
		heads, err := b.x.Heads(b.t.Context(), tx, b.table.ID, keys)
		if err != nil {
			return err
		}
		for i := range ms {
			if h, ok := heads[ms[i].Key]; ok {
				ms[i].Head = h
			}
		}
		stored, err := b.x.Put(b.t.Context(), tx, ms)
		if err != nil {
			return err
		}
		unsettled = stored.Unsettled
		return b.x.CountSaved(b.t.Context(), tx, stored.Saved)
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return unsettled
}

func (b *putBench) embed(texts ...string) {
	b.t.Helper()
	for _, s := range texts {
		d := whence.DigestOf(s)
		b.exec(`update whence.vectors set embedding = '[1,0]', seq = nextval('whence.vectors_seq'), embedded_at = now() where digest = $1`, d[:])
	}
}

// chunks lists what the index holds: "version text" by row id, "*" on superseded ones.
func (b *putBench) chunks() []string {
	b.t.Helper()
	return b.strings(`select c.version || ' ' || c.text || case when c.version < r.version then '*' else '' end
from whence.chunks c join whence.records r on r.id = c.record_id order by c.id`)
}

func (b *putBench) versions() []string {
	b.t.Helper()
	return b.strings(`select version || ' ' || case when deleted then '-' else text end || ' ' || columns::text
from whence.versions order by record_id, version`)
}

func (b *putBench) vectors() []string {
	b.t.Helper()
	return b.strings(`select count(*) || ' of which ' || count(embedding) from whence.vectors`)
}

func (b *putBench) strings(sql string) []string {
	b.t.Helper()
	rows, err := b.db.Pool.Query(b.t.Context(), sql)
	if err != nil {
		b.t.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

func (b *putBench) want(what string, got []string, want ...string) {
	b.t.Helper()
	if d := cmp.Diff(append([]string{}, want...), got); d != "" {
		b.t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestUpdateKeepsChunksOfUnchangedText(t *testing.T) {
	b := newPutBench(t, whence.OnDeleteTombstone)
	b.put(b.state(1, "alpha", "beta", "alpha"))
	b.want("inserted", b.chunks(), "1 alpha", "1 beta", "1 alpha")
	b.embed("alpha", "beta")

	if left := b.put(b.state(1, "alpha", "gamma", "alpha")); len(left) != 0 {
		t.Errorf("whoever embeds gamma finds the record by itself; Put named %v", left)
	}
	b.want("beta stays searchable", b.chunks(), "2 alpha", "1 beta*", "2 alpha", "2 gamma")

	b.embed("gamma")
	err := pg.InTx(t.Context(), b.db.Pool, func(tx pgx.Tx) error { return b.x.reap(t.Context(), tx, []int64{1}) })
	if err != nil {
		t.Fatal(err)
	}
	b.want("reaped", b.chunks(), "2 alpha", "2 alpha", "2 gamma")

	if err := b.x.Settle(t.Context(), b.put(b.state(1, "beta", "alpha"))); err != nil {
		t.Fatal(err)
	}
	b.want("beta's vector was kept, so nothing waits", b.chunks(), "3 alpha", "3 beta")
	s, err := b.x.Status(t.Context(), b.table.ID)
	if err != nil {
		t.Fatal(err)
	}
	// Saved: the second alpha; both alphas; beta and alpha.
	if want := (Status{Records: 1, Chunks: 2, Pending: 0, Saved: 5}); s != want {
		t.Errorf("status is %+v, want %+v", s, want)
	}
}

func TestSupersededChunkWithoutVectorGoesAtOnce(t *testing.T) {
	b := newPutBench(t, whence.OnDeleteTombstone)
	b.put(b.state(1, "alpha"))
	b.put(b.state(1, "beta"))
	b.want("alpha served nobody", b.chunks(), "2 beta")
	b.embed("beta")
	b.put(b.state(1, "gamma"))
	b.put(b.state(1, "delta"))
	b.want("the last embedded text stays", b.chunks(), "2 beta*", "4 delta")
}

// An embedding that commits while a Put is open is seen by neither of the two
// alone; Settle is what closes the gap.
func TestSettle(t *testing.T) {
	b := newPutBench(t, whence.OnDeleteTombstone)
	b.put(b.state(1, "alpha"))
	b.embed("alpha")
	b.put(b.state(2, "beta"))
	left := b.put(b.state(1, "beta"))
	if len(left) != 1 {
		t.Errorf("beta may be embedded before it is seen that record 1 has it too; Put named %v", left)
	}
	b.want("beta has no vector yet", b.chunks(), "1 alpha*", "1 beta", "2 beta")
	b.embed("beta")
	if err := b.x.Settle(context.Background(), left); err != nil {
		t.Fatal(err)
	}
	b.want("settled", b.chunks(), "1 beta", "2 beta")
}

func TestTombstoneKeepsVersions(t *testing.T) {
	b := newPutBench(t, whence.OnDeleteTombstone)
	b.put(b.state(1, "alpha"))
	b.embed("alpha")
	b.put(b.state(1))
	b.want("chunks", b.chunks())
	b.want("versions", b.versions(), `1 alpha {"id": "1", "body": "alpha"}`, `2 - {}`)
	b.want("vectors", b.vectors(), "1 of which 1")
	b.put(b.state(1, "alpha"))
	b.want("revived, nothing to embed", b.chunks(), "3 alpha")
}

func TestPurgeLeavesNoText(t *testing.T) {
	b := newPutBench(t, whence.OnDeletePurge)
	b.put(b.state(1, "alpha", "shared"), b.state(2, "shared"))
	b.embed("alpha", "shared")
	b.put(b.state(1, "beta", "shared"))
	b.embed("beta")
	b.put(b.state(1, "gamma"), b.state(1), b.state(3, "short-lived"), b.state(3))
	b.want("chunks", b.chunks(), "1 shared")
	b.want("versions", b.versions(), `4 - {}`, `1 shared {"id": "2", "body": "shared"}`, `2 - {}`)
	b.want("only the shared text keeps its vector", b.vectors(), "1 of which 1")
	b.put(b.state(1, "delta"))
	b.want("revived", b.versions(), `4 - {}`, `5 delta {"id": "1", "body": "delta"}`, `1 shared {"id": "2", "body": "shared"}`, `2 - {}`)
}

func TestEveryStateBecomesAVersion(t *testing.T) {
	b := newPutBench(t, whence.OnDeleteTombstone)
	b.put(b.state(1, "a"), b.state(2, "x"), b.state(1, "b"), b.state(2), b.state(1, "c"), b.state(2, "y"))
	b.want("versions", b.versions(),
		`1 a {"id": "1", "body": "a"}`, `2 b {"id": "1", "body": "b"}`, `3 c {"id": "1", "body": "c"}`,
		`1 x {"id": "2", "body": "x"}`, `2 - {}`, `3 y {"id": "2", "body": "y"}`)
	b.want("only the last is cut", b.chunks(), "3 c", "3 y")
	b.want("and asked for", b.vectors(), "2 of which 0")
}

func TestReplaceRewritesTheVersion(t *testing.T) {
	b := newPutBench(t, whence.OnDeleteTombstone)
	b.put(b.state(1, "a"))
	b.embed("a")
	m := b.state(1, "a", "b")
	m.Replace = true
	b.put(m)
	b.want("versions", b.versions(), "1 a\nb {\"id\": \"1\", \"body\": \"a\\nb\"}")
	b.want("chunks", b.chunks(), "1 a", "1 b")
	m = b.state(1, "c")
	m.Replace = true
	b.put(m)
	b.want("the embedded text of the replaced version bridges", b.chunks(), "0 a*", "1 c")
}

func TestHeadThatOwesColumnsReplacesNothing(t *testing.T) {
	b := newPutBench(t, whence.OnDeleteTombstone)
	b.put(b.state(1, "a"))
	b.embed("a")
	m := b.state(1, "b")
	m.Text, m.Chunks, m.Missing = "", nil, []string{"body", "title"}
	b.put(m)
	b.want("chunks", b.chunks(), "1 a*")
	var owed []whence.Key
	var head *Head
	err := pg.InTx(t.Context(), b.db.Pool, func(tx pgx.Tx) (err error) {
		if owed, err = b.x.Owed(t.Context(), tx, b.table.ID, 10); err != nil {
			return err
		}
		heads, err := b.x.Heads(t.Context(), tx, b.table.ID, []whence.Key{m.Key})
		head = heads[m.Key]
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(owed) != 1 || owed[0] != m.Key || len(head.Missing) != 2 || head.LSN != m.LSN || *head.XID != *m.XID || !head.CommitTime.Equal(m.CommitTime) {
		t.Errorf("owed %v, head %+v", owed, head)
	}
}

func TestDeleteOlderAndDrop(t *testing.T) {
	for _, onDelete := range []whence.OnDelete{whence.OnDeleteTombstone, whence.OnDeletePurge} {
		t.Run(string(onDelete), func(t *testing.T) {
			b := newPutBench(t, onDelete)
			b.put(b.state(1, "a"), b.state(2, "b"))
			b.embed("a", "b")
			at := b.lsn + 1
			b.put(b.state(3, "c"))
			err := pg.InTx(t.Context(), b.db.Pool, func(tx pgx.Tx) error {
				return b.x.DeleteOlder(t.Context(), tx, b.table, at, Commit{LSN: at})
			})
			if err != nil {
				t.Fatal(err)
			}
			b.want("chunks", b.chunks(), "1 c")
			if onDelete == whence.OnDeletePurge {
				b.want("versions", b.versions(), `2 - {}`, `2 - {}`, `1 c {"id": "3", "body": "c"}`)
				b.want("vectors", b.vectors(), "1 of which 0")
			} else {
				b.want("versions", b.versions(), `1 a {"id": "1", "body": "a"}`, `2 - {}`,
					`1 b {"id": "2", "body": "b"}`, `2 - {}`, `1 c {"id": "3", "body": "c"}`)
			}
			err = pg.InTx(t.Context(), b.db.Pool, func(tx pgx.Tx) error { return b.x.DropTable(t.Context(), tx, b.table.ID) })
			if err != nil {
				t.Fatal(err)
			}
			b.want("records", b.strings(`select key from whence.records`))
			b.want("versions", b.versions())
		})
	}
}

// A transaction that writes a row and then truncates the table leaves one state of it.
func TestDeleteOlderReplacesItsOwn(t *testing.T) {
	b := newPutBench(t, whence.OnDeleteTombstone)
	b.put(b.state(1, "a"))
	own := b.state(1, "b")
	fresh := b.state(2, "c")
	fresh.LSN, fresh.XID = own.LSN, own.XID
	b.put(own, fresh)
	err := pg.InTx(t.Context(), b.db.Pool, func(tx pgx.Tx) error {
		return b.x.DeleteOlder(t.Context(), tx, b.table, own.LSN+1, Commit{LSN: own.LSN, XID: own.XID})
	})
	if err != nil {
		t.Fatal(err)
	}
	b.want("versions", b.versions(), `1 a {"id": "1", "body": "a"}`, `2 - {}`, `1 - {}`)
	b.want("chunks", b.chunks())
}
