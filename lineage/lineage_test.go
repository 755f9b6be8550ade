package lineage_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/pgtest"
	"github.com/whence-db/whence/lineage"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

var noon = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)

func open(t *testing.T) (*lineage.Store, *pgtest.DB) {
	t.Helper()
	db := pgtest.New(t)
	s, err := lineage.New(lineage.Config{Pool: db.Pool})
	if err != nil {
		t.Fatal(err)
	}
	return s, db
}

func insert(t *testing.T, s *lineage.Store, db *pgtest.DB, answers ...lineage.Answer) {
	t.Helper()
	err := pg.InTx(t.Context(), db.Pool, func(tx pgx.Tx) error { return s.Insert(t.Context(), tx, answers) })
	if err != nil {
		t.Fatal(err)
	}
}

func newID(t *testing.T) uuid.UUID {
	t.Helper()
	id, err := uuid.NewV7()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// sameJSON compares documents by meaning: jsonb keeps neither order nor spacing.
var sameJSON = cmp.Transformer("json", func(b json.RawMessage) (v any) {
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(&v); err != nil {
		return err.Error()
	}
	return v
})

func TestAnAnswerIsReadAsItWasGiven(t *testing.T) {
	t.Parallel()
	s, db := open(t)
	subject := "acme"
	full := lineage.Answer{
		ID: newID(t), At: noon, Tenant: "t", Task: uuid.New(), Agent: "a", User: "u",
		Request: json.RawMessage(`{"text":"why \"x\" <y>?","limit":3}`),
		Watermark: []whence.Watermark{
			{Source: "app", LSN: 0x16B374D848, CommitTime: noon, CaughtUpAt: noon.Add(time.Second), Lag: 250 * time.Millisecond},
			{Source: "new", Lag: -1},
		},
		Degraded: "EMBEDDING_UNAVAILABLE",
		Hits: []lineage.Hit{
			{RecordID: 7, Table: "app.public.docs", Key: `{"id":"7"}`, Version: 2, Subject: &subject, Shown: json.RawMessage(`{"text":"seven","score":0.1}`)},
			{RecordID: 7, Table: "app.public.docs", Key: `{"id":"7"}`, Version: 1, Subject: &subject, Shown: json.RawMessage(`{"text":"old"}`)},
			{RecordID: 3, Table: "app.public.docs", Key: `{"id":"3"}`, Version: 1, Shown: json.RawMessage(`{"text":"three"}`)},
		},
	}
	bare := lineage.Answer{ID: newID(t), At: noon, Request: json.RawMessage("null"), Hits: []lineage.Hit{}}
	insert(t, s, db, full, bare)
	for _, want := range []lineage.Answer{full, bare} {
		got, err := s.Get(t.Context(), everything(t), want.ID)
		if err != nil {
			t.Fatal(err)
		}
		want.HitCount = int64(len(want.Hits))
		if diff := cmp.Diff(want, got, sameJSON); diff != "" {
			t.Error(diff)
		}
	}
	if _, err := s.Get(t.Context(), everything(t), newID(t)); !errors.Is(err, whence.ErrNotFound) {
		t.Errorf("an unknown answer: %v", err)
	}
}

func TestListByPage(t *testing.T) {
	t.Parallel()
	s, db := open(t)
	var all []lineage.Answer
	for i := range 25 {
		all = append(all, lineage.Answer{ID: newID(t), At: noon.Add(time.Duration(i/3) * time.Minute), Agent: fmt.Sprint("a", i%2), User: "u"})
	}
	insert(t, s, db, all...)
	var got []uuid.UUID
	page := lineage.Page{Size: 10}
	for {
		as, next, err := s.List(t.Context(), everything(t), lineage.Filter{User: "u"}, page)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range as {
			got = append(got, a.ID)
		}
		if next == "" {
			break
		}
		page.Token = next
		insert(t, s, db, lineage.Answer{ID: newID(t), At: noon.Add(time.Hour), User: "u"}) // must not shift the pages
	}
	var want []uuid.UUID
	for i := range all {
		want = append(want, all[len(all)-1-i].ID)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	as, _, err := s.List(t.Context(), everything(t), lineage.Filter{Agent: "a1", Since: noon, Until: noon.Add(time.Minute)}, lineage.Page{})
	if err != nil || len(as) != 1 || as[0].ID != all[1].ID {
		t.Errorf("by agent and time: %v, %v", as, err)
	}
	var e *whence.Error
	if _, _, err := s.List(t.Context(), everything(t), lineage.Filter{}, lineage.Page{Token: "nonsense"}); !errors.As(err, &e) || e.Field != "pageToken" {
		t.Errorf("a made-up token: %v", err)
	}
}

func TestTrace(t *testing.T) {
	t.Parallel()
	s, db := open(t)
	const table, key = whence.TableName("app.public.docs"), whence.Key(`{"id":"7"}`)
	hit := func(k whence.Key, version int32) lineage.Hit {
		return lineage.Hit{RecordID: 7, Table: table, Key: k, Version: version}
	}
	var ids []uuid.UUID
	for i := range 5 {
		a := lineage.Answer{ID: newID(t), At: noon, Hits: []lineage.Hit{
			hit(`{"id":"70"}`, 1), hit(key, int32(i)), hit(key, 100)}}
		ids = append(ids, a.ID)
		insert(t, s, db, a)
	}
	insert(t, s, db, lineage.Answer{ID: newID(t), At: noon, Hits: []lineage.Hit{hit(`{"id":"70"}`, 1)}})

	var got []string
	page := lineage.Page{Size: 2}
	for {
		n, uses, next, err := s.Trace(t.Context(), everything(t), table, key, page)
		if err != nil {
			t.Fatal(err)
		}
		if want := (lineage.Counts{Answers: 5, Hits: 10}); n != want {
			t.Errorf("counts %+v, want %+v", n, want)
		}
		for _, u := range uses {
			got = append(got, fmt.Sprint(u.Answer.ID, u.Rank, u.Version))
		}
		if next == "" {
			break
		}
		page.Token = next
	}
	var want []string
	for i := range ids {
		want = append(want, fmt.Sprint(ids[4-i], 2, 4-i)) // the best rank of each, newest answer first
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	n, uses, _, err := s.Trace(t.Context(), everything(t), "app.public.other", key, lineage.Page{})
	if err != nil || n != (lineage.Counts{}) || len(uses) != 0 {
		t.Errorf("a record that no answer showed: %+v %v %v", n, uses, err)
	}
}

func TestInsertRefusesAHitWithoutOrigin(t *testing.T) {
	t.Parallel()
	s, db := open(t)
	err := pg.InTx(t.Context(), db.Pool, func(tx pgx.Tx) error {
		return s.Insert(t.Context(), tx, []lineage.Answer{{ID: newID(t), At: noon, Hits: []lineage.Hit{{RecordID: 1}}}})
	})
	if err == nil {
		t.Error("a hit that names no row was stored")
	}
}

func everything(t *testing.T) authz.Scope {
	t.Helper()
	return authztest.Scope(t, authz.ScopeSpec{AllTables: true, AllSubjects: true, Actions: []authz.Action{authz.MemoryRead}})
}

func TestAnAnswerOutsideTheScopeIsNotThere(t *testing.T) {
	t.Parallel()
	s, db := open(t)
	acme, other := "acme", "other"
	key, table := whence.Key(`{"id":"1"}`), whence.TableName("app.public.docs")
	hit := func(subject *string) lineage.Hit {
		return lineage.Hit{RecordID: 1, Table: table, Key: key, Version: 1, Subject: subject, Shown: json.RawMessage(`{}`)}
	}
	answer := func(hits ...lineage.Hit) lineage.Answer {
		return lineage.Answer{ID: newID(t), At: time.Now().UTC(), Tenant: "t", Agent: "a", User: "u",
			Request: json.RawMessage(`{}`), Hits: hits}
	}
	own, mixed, nobodys := answer(hit(&acme)), answer(hit(&acme), hit(&other)), answer(hit(nil))
	insert(t, s, db, own, mixed, nobodys)
	read := []authz.Action{authz.MemoryRead}
	for name, c := range map[string]struct {
		spec authz.ScopeSpec
		want int
	}{
		"everything":       {authz.ScopeSpec{AllTables: true, AllSubjects: true, Actions: read}, 3},
		"one subject":      {authz.ScopeSpec{AllTables: true, Subjects: []string{acme}, Actions: read}, 1},
		"another table":    {authz.ScopeSpec{Tables: []whence.TableName{"app.public.x"}, AllSubjects: true, Actions: read}, 0},
		"with a filter":    {authz.ScopeSpec{AllTables: true, AllSubjects: true, Filter: map[string]string{"a": "b"}, Actions: read}, 0},
		"a table denied":   {authz.ScopeSpec{AllTables: true, DenyTables: []whence.TableName{table}, AllSubjects: true, Actions: read}, 0},
		"a subject denied": {authz.ScopeSpec{AllTables: true, AllSubjects: true, DenySubjects: []string{other}, Actions: read}, 2},
		"without reading":  {authz.ScopeSpec{AllTables: true, AllSubjects: true, Actions: []authz.Action{authz.TaskDelegate}}, 0},
	} {
		scope := authztest.Scope(t, c.spec)
		as, _, err := s.List(t.Context(), scope, lineage.Filter{}, lineage.Page{})
		n, uses, _, terr := s.Trace(t.Context(), scope, table, key, lineage.Page{})
		if err != nil || terr != nil || len(as) != c.want || len(uses) != c.want || n.Answers != int64(c.want) {
			t.Errorf("%s: listed %d, traced %d of %d, want %d (%v, %v)", name, len(as), len(uses), n.Answers, c.want, err, terr)
		}
		if _, err := s.Get(t.Context(), scope, mixed.ID); (err == nil) != (c.want == 3) {
			t.Errorf("%s: the mixed answer: %v", name, err)
		}
	}
}
