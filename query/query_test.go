package query_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest"
	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/embedder/embeddertest"
	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/embedder/openai"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/pgtest"
	"github.com/whence-db/whence/query"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// world is an index, an engine on it, and a registry whose state the test sets.
type world struct {
	t      *testing.T
	db     *pgtest.DB
	x      *index.Index
	e      *query.Engine
	filler *index.Filler
	lsn    whence.LSN

	mu      sync.Mutex
	state   whence.State
	lacking bool // row 1 is set aside
	live    map[whence.Key]*whence.LiveRow
	down    bool // the source cannot be read
}

// Live reads rows of a source that the test makes up.
func (w *world) Live(_ context.Context, source string, asked []whence.RowsOf) ([][]*whence.LiveRow, error) {
	if w.down {
		return nil, &whence.Error{Kind: whence.ErrUnavailable, Reason: "SOURCE_UNREACHABLE", Message: source}
	}
	out := make([][]*whence.LiveRow, len(asked))
	for i, a := range asked {
		for _, k := range a.Keys {
			out[i] = append(out[i], w.live[k])
		}
	}
	return out, nil
}

// source is a row as the made-up source holds it.
func source(r row) *whence.LiveRow {
	return &whence.LiveRow{State: []byte(r.id + r.owner + r.lang + r.text), Text: r.text, Subject: &r.owner,
		Attributes: whence.Values{"lang": &r.lang}}
}

func (w *world) SetAside(_ context.Context, _ pgx.Tx, t whence.Table, keys []whence.Key) (map[whence.Key]bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !t.SetAside || !w.lacking {
		return nil, nil
	}
	return map[whence.Key]bool{`{"id":"1"}`: slices.Contains(keys, `{"id":"1"}`)}, nil
}

func (w *world) State(context.Context, pgx.Tx) (whence.State, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := whence.State{Tables: append([]whence.Table(nil), w.state.Tables...), Sources: map[string]whence.SourceState{}}
	for k, v := range w.state.Sources {
		s.Sources[k] = v
	}
	return s, nil
}

// set changes the table or its source.
func (w *world) set(fn func(*whence.Table, *whence.SourceState)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.state.Sources["app"]
	fn(&w.state.Tables[0], &s)
	w.state.Sources["app"] = s
}

func newWorld(t *testing.T, models ...embedder.Model) *world {
	t.Helper()
	t.Parallel()
	w := &world{t: t, db: pgtest.New(t), lsn: 0x100}
	var err error
	if w.x, err = index.New(index.Config{Pool: w.db.Pool}); err != nil {
		t.Fatal(err)
	}
	tab := whence.Table{Source: "app", Schema: "public", Relation: "docs", KeyColumns: []string{"id"}, TextColumns: []string{"body"},
		SubjectColumn: "owner", AttributeColumns: []string{"lang"}, HalfLife: 720 * time.Hour, FreshnessTarget: 10 * time.Second, Language: whence.DefaultLanguage,
		OnDelete: whence.OnDeleteTombstone, Definition: 1, State: whence.TableLive}
	err = w.db.Pool.QueryRow(t.Context(), `
with s as (insert into whence.sources (name, dsn_env, slot, publication) values ('app', 'X', 's', 'p') returning id)
insert into whence.tables (source_id, schema_name, relation, key_columns, text_columns, text_template, subject_column, time_column,
    attribute_columns, half_life, freshness_target, on_delete)
select id, 'public', 'docs', '{id}', '{body}', '', 'owner', '', '{lang}', '30 days', '10 s', 'TOMBSTONE' from s returning id, source_id`).
		Scan(&tab.ID, &tab.SourceID)
	if err != nil {
		t.Fatal(err)
	}
	w.state = whence.State{Tables: []whence.Table{tab}, Sources: map[string]whence.SourceState{
		"app": {Watermark: whence.Watermark{Source: "app", LSN: 0x100, CaughtUpAt: now, Lag: time.Second}}}}
	w.e, err = query.New(query.Config{Index: w.x, Registry: w, Pool: w.db.Pool, Models: models,
		Clock: func() time.Time { return now }, EmbedTimeout: 500 * time.Millisecond, WaitLimit: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	var fill []index.Model
	for _, m := range models {
		fill = append(fill, m)
	}
	w.filler, err = index.NewFiller(index.FillerConfig{Index: w.x, Models: fill, Explain: query.ExplainEmbedding,
		Poll: 10 * time.Millisecond, Probe: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

type row struct {
	id, owner, lang, text string // each paragraph of the text is a chunk
	age                   time.Duration
}

func ref(id string) query.Ref {
	return query.Ref{Table: "app.public.docs", Key: whence.Values{"id": &id}}
}

// put stores the next state of rows; an empty text deletes.
func (w *world) put(rows ...row) {
	w.t.Helper()
	w.lsn += 0x10
	tab := w.state.Tables[0]
	err := pg.InTx(w.t.Context(), w.db.Pool, func(tx pgx.Tx) error {
		var ms []index.Mutation
		var keys []whence.Key
		for _, r := range rows {
			k, err := whence.NewKey([]string{"id"}, whence.Values{"id": &r.id})
			if err != nil {
				return err
			}
			at := now.Add(-r.age)
			m := index.Mutation{Table: &tab, Key: k, LSN: w.lsn, CommitTime: at, Deleted: r.text == "", Inherit: r.text == ""}
			if !m.Deleted {
				m.State = source(r).State
				m.Text, m.Digest, m.Subject, m.EventTime = r.text, whence.DigestOf(r.text), &r.owner, at
				m.Columns = object(w.t, whence.Values{"id": &r.id, "owner": &r.owner, "lang": &r.lang, "body": &r.text})
				m.Attributes = object(w.t, whence.Values{"lang": &r.lang})
				for from, rest := 0, r.text; rest != ""; {
					part, next, _ := strings.Cut(rest, "\n\n")
					c, err := whence.NewChunk(whence.Origin{Table: tab.Name(), Key: k}, r.text, from, from+len(part))
					if err != nil {
						return err
					}
					m.Chunks, rest, from = append(m.Chunks, c), next, from+len(part)+2
				}
			}
			for _, before := range ms { // in the same call; a deleted row stays whose it was
				if m.Deleted && before.Key == k && !before.Inherit {
					m.Inherit, m.Subject, m.EventTime, m.Attributes = false, before.Subject, before.EventTime, before.Attributes
				}
			}
			ms, keys = append(ms, m), append(keys, k)
		}
		heads, err := w.x.Heads(w.t.Context(), tx, tab.ID, keys)
		if err != nil {
			return err
		}
		for i := range ms {
			if h, ok := heads[ms[i].Key]; ok {
				ms[i].Head = h
			}
		}
		_, err = w.x.Put(w.t.Context(), tx, ms)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func object(t *testing.T, v whence.Values) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fill embeds all that is pending.
func (w *world) fill() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- w.filler.Run(ctx) }()
	for {
		var chunks, pending int
		err := w.db.Pool.QueryRow(ctx, `
select count(*), count(*) filter (where not exists (
    select from whence.vectors v where v.digest = c.digest and v.embedding is not null)) from whence.chunks c`).Scan(&chunks, &pending)
		if err != nil {
			w.t.Fatalf("the index does not fill: %v", err)
		}
		if pending == 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		w.t.Fatal(err)
	}
}

func (w *world) ask(scope authz.Scope, r query.Request) query.Answer {
	w.t.Helper()
	a, err := w.e.Query(w.t.Context(), scope, r)
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

func everything(t *testing.T) authz.Scope {
	t.Helper()
	return authztest.Scope(t, authz.ScopeSpec{AllTables: true, AllSubjects: true, Actions: authz.Actions()})
}

func ids(a query.Answer) []string {
	var out []string
	for _, h := range a.Hits {
		out = append(out, *h.Origin.Key.Values()["id"])
	}
	return out
}

func reason(err error) string {
	var e *whence.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return fmt.Sprint(err)
}

func TestQueryAnswersWithOriginAndFreshness(t *testing.T) {
	w := newWorld(t, lexical.Default())
	w.put(row{"1", "ann", "en", "How to reset a forgotten password", time.Hour}, row{"2", "ann", "en", "Lunch is served at noon", time.Hour})
	w.fill()
	a := w.ask(everything(t), query.Request{Text: "reset my password"})
	if len(a.Hits) == 0 || a.Degraded != "" || len(a.Watermark) != 1 || a.Watermark[0].Source != "app" || a.Watermark[0].LSN != 0x100 {
		t.Fatalf("answer: %+v", a)
	}
	h := a.Hits[0]
	text := "How to reset a forgotten password"
	want := whence.Origin{Source: "app", Table: "app.public.docs", Key: `{"id":"1"}`, Version: 1, LSN: 0x110,
		CommitTime: now.Add(-time.Hour), EventTime: now.Add(-time.Hour), Columns: []string{"body"}, End: len(text), Digest: whence.DigestOf(text)}
	if diff := cmp.Diff(want, h.Origin, cmpopts.EquateApproxTime(0)); diff != "" {
		t.Error(diff)
	}
	if h.Text != text || h.MatchedText != "" || h.Freshness.State != whence.Fresh || h.Freshness.Behind != time.Second ||
		h.Embedding == nil || h.Embedding.Model != lexical.Default().Name() || *h.Attributes["lang"] != "en" {
		t.Errorf("hit: %+v", h)
	}
	if s := h.Score; s.Dense == nil || s.Lexical == nil || s.Final <= 0 || s.Final > s.Relevance || s.Relevance > 1 || s.Recency >= 1 {
		t.Errorf("score: %+v", s)
	}
}

func TestAChangeIsStaleUntilItIsEmbedded(t *testing.T) {
	w := newWorld(t, lexical.Default())
	w.put(row{"1", "ann", "en", "The warehouse is in Rotterdam", 0})
	w.fill()
	w.put(row{"1", "ann", "en", "Goods are kept in Antwerp", 0})
	a := w.ask(everything(t), query.Request{Text: "warehouse in Rotterdam"})
	if len(a.Hits) != 1 {
		t.Fatalf("the record was lost while it changed: %+v", a)
	}
	h := a.Hits[0]
	if h.Text != "Goods are kept in Antwerp" || h.MatchedText != "The warehouse is in Rotterdam" || h.Origin.Version != 2 ||
		h.Freshness.State != whence.Stale || !cmp.Equal(h.Freshness.Reasons, []whence.FreshnessReason{whence.SourceChanged}) {
		t.Errorf("hit: %+v", h)
	}
	if a := w.ask(everything(t), query.Request{Text: "warehouse in Rotterdam", FreshOnly: true}); len(a.Hits) != 0 {
		t.Errorf("fresh only, yet %+v", a.Hits)
	}
	r, err := w.e.GetRecord(t.Context(), everything(t), ref("1"))
	if err != nil || r.Text != "Goods are kept in Antwerp" || r.Freshness.State != whence.Stale {
		t.Errorf("record before embedding: %+v %v", r, err)
	}
	w.fill()
	a = w.ask(everything(t), query.Request{Text: "goods in Antwerp", FreshOnly: true})
	if len(a.Hits) != 1 || a.Hits[0].Freshness.State != whence.Fresh || a.Hits[0].MatchedText != "" {
		t.Errorf("after embedding: %+v", a.Hits)
	}
	w.put(row{id: "1"})
	if a := w.ask(everything(t), query.Request{Text: "goods in Antwerp"}); len(a.Hits) != 0 {
		t.Errorf("a deleted row is found: %+v", a.Hits)
	}
	r, err = w.e.GetRecord(t.Context(), everything(t), ref("1"))
	if err != nil || !r.Deleted || !cmp.Equal(r.Freshness.Reasons, []whence.FreshnessReason{whence.SourceDeleted}) {
		t.Errorf("deleted record: %+v %v", r, err)
	}
	if v, _, err := w.e.ListVersions(t.Context(), everything(t), ref("1"), 10, ""); err != nil || len(v) != 3 || !v[0].Deleted || v[2].Version != 1 {
		t.Errorf("versions: %+v %v", v, err)
	}
}

func TestFreshnessFollowsCapture(t *testing.T) {
	w := newWorld(t, lexical.Default())
	w.put(row{"1", "ann", "en", "alpha", 0})
	w.fill()
	tab, src := w.state.Tables[0], w.state.Sources["app"]
	set := func(t *whence.Table, is bool) { t.SetAside, w.lacking = is, is }
	for _, c := range []struct {
		name    string
		change  func(*whence.Table, *whence.SourceState)
		state   whence.FreshnessState
		reasons []whence.FreshnessReason
	}{
		{"in time", func(*whence.Table, *whence.SourceState) {}, whence.Fresh, nil},
		{"at the target", func(t *whence.Table, s *whence.SourceState) { s.Lag = t.FreshnessTarget }, whence.Fresh, nil},
		{"lagging", func(t *whence.Table, s *whence.SourceState) { s.Lag = t.FreshnessTarget + 1 }, whence.Unknown, []whence.FreshnessReason{whence.CaptureLagging}},
		{"lag not known", func(_ *whence.Table, s *whence.SourceState) { s.Lag = -1 }, whence.Unknown, []whence.FreshnessReason{whence.CaptureLagging}},
		{"paused", func(_ *whence.Table, s *whence.SourceState) { s.Paused = true }, whence.Unknown, []whence.FreshnessReason{whence.CapturePaused}},
		{"broken", func(_ *whence.Table, s *whence.SourceState) { s.Error = "slot lost" }, whence.Unknown, []whence.FreshnessReason{whence.CaptureBroken}},
		{"trying again", func(_ *whence.Table, s *whence.SourceState) { s.Error, s.Retrying = "refused", true }, whence.Fresh, nil},
		{"backfilling", func(t *whence.Table, _ *whence.SourceState) { t.State = whence.TableBackfilling }, whence.Unknown, []whence.FreshnessReason{whence.CaptureLagging}},
		{"pending", func(t *whence.Table, _ *whence.SourceState) { t.State = whence.TablePending }, whence.Unknown, []whence.FreshnessReason{whence.CaptureLagging}},
		{"schema changed", func(t *whence.Table, _ *whence.SourceState) { t.State = whence.TableSchemaChanged }, whence.Unknown, []whence.FreshnessReason{whence.SchemaChanged}},
		{"table broken", func(t *whence.Table, _ *whence.SourceState) { t.State = whence.TableBroken }, whence.Unknown, []whence.FreshnessReason{whence.CaptureBroken}},
		{"definition changed", func(t *whence.Table, _ *whence.SourceState) { t.Definition = 2 }, whence.Stale, []whence.FreshnessReason{whence.DefinitionChanged}},
		{"row set aside", func(t *whence.Table, _ *whence.SourceState) { set(t, true) }, whence.Unknown, []whence.FreshnessReason{whence.RowSetAside}},
		{"set aside and stale", func(t *whence.Table, _ *whence.SourceState) { set(t, true); t.Definition = 2 }, whence.Stale,
			[]whence.FreshnessReason{whence.DefinitionChanged, whence.RowSetAside}},
		{"another row set aside", func(t *whence.Table, _ *whence.SourceState) { t.SetAside = true }, whence.Fresh, nil},
		{"stale beats unknown", func(t *whence.Table, s *whence.SourceState) { t.Definition, s.Paused = 2, true }, whence.Stale,
			[]whence.FreshnessReason{whence.DefinitionChanged, whence.CapturePaused}},
	} {
		w.set(func(t *whence.Table, s *whence.SourceState) { *t, *s, w.lacking = tab, src, false; c.change(t, s) })
		a := w.ask(everything(t), query.Request{Text: "alpha"})
		if len(a.Hits) != 1 {
			t.Fatalf("%s: %+v", c.name, a)
		}
		f := a.Hits[0].Freshness
		if diff := cmp.Diff(c.reasons, f.Reasons); f.State != c.state || diff != "" {
			t.Errorf("%s: %s %s", c.name, f.State, diff)
		}
		fresh := w.ask(everything(t), query.Request{Text: "alpha", FreshOnly: true})
		if (len(fresh.Hits) == 1) != (c.state == whence.Fresh) {
			t.Errorf("%s: fresh only gives %d hits", c.name, len(fresh.Hits))
		}
		r, err := w.e.GetRecord(t.Context(), everything(t), ref("1"))
		if err != nil {
			t.Fatal(err)
		}
		if r.Freshness.State != c.state || slices.Contains(r.Freshness.Reasons, whence.RowSetAside) != slices.Contains(c.reasons, whence.RowSetAside) {
			t.Errorf("%s: the record is %+v", c.name, r.Freshness)
		}
	}
}

func TestScopeDecidesWhatMayBeAsked(t *testing.T) {
	w := newWorld(t, lexical.Default())
	w.put(row{"1", "ann", "en", "alpha", 0}, row{"2", "bob", "en", "alpha", 0})
	docs := whence.TableName("app.public.docs")
	ann := authztest.Scope(t, authz.ScopeSpec{Tables: []whence.TableName{docs, "app.public.later"}, Subjects: []string{"ann"}, Actions: authz.Actions()})
	for _, c := range []struct {
		ask  query.Request
		want string
	}{
		{query.Request{Tables: []whence.TableName{"app.public.secret"}}, "TABLE_OUT_OF_SCOPE"},
		{query.Request{Tables: []whence.TableName{"no.such.table"}}, "TABLE_OUT_OF_SCOPE"},
		{query.Request{Tables: []whence.TableName{"app.public.later"}}, "TABLE_NOT_REGISTERED"},
		{query.Request{Subjects: []string{"ann", "bob"}}, "SUBJECT_OUT_OF_SCOPE"},
		{query.Request{Consistency: query.Consistency{AtLeast: "here"}}, "TOKEN_INVALID"},
		{query.Request{Consistency: query.Consistency{AtLeast: "other@0/1"}}, "TOKEN_INVALID"},
		{query.Request{Limit: 201}, "LIMIT_OUT_OF_RANGE"},
		{query.Request{Subjects: []string{"a\x00"}}, "SUBJECT_INVALID"},
	} {
		c.ask.Text = "alpha"
		if _, err := w.e.Query(t.Context(), ann, c.ask); reason(err) != c.want {
			t.Errorf("%+v: %v, want %s", c.ask, err, c.want)
		}
	}
	few := authztest.Scope(t, authz.ScopeSpec{AllTables: true, AllSubjects: true, Actions: authz.Actions(), TopK: 1})
	if _, err := w.e.Query(t.Context(), few, query.Request{Text: "alpha", Limit: 2}); reason(err) != "LIMIT_OUT_OF_SCOPE" {
		t.Errorf("two hits where one is allowed: %v", err)
	}
	if a := w.ask(few, query.Request{Text: "alpha"}); len(a.Hits) != 1 {
		t.Errorf("%d hits where one is allowed", len(a.Hits))
	}
	but := authztest.Scope(t, authz.ScopeSpec{AllTables: true, AllSubjects: true, DenySubjects: []string{"bob"}, Actions: authz.Actions()})
	if got := ids(w.ask(but, query.Request{Text: "alpha"})); !cmp.Equal(got, []string{"1"}) {
		t.Errorf("all but bob: %v", got)
	}
	if _, err := w.e.Query(t.Context(), but, query.Request{Text: "alpha", Subjects: []string{"bob"}}); reason(err) != "SUBJECT_OUT_OF_SCOPE" {
		t.Errorf("a denied subject: %v", err)
	}
	for text, want := range map[string]string{"": "TEXT_BLANK", " \n": "TEXT_BLANK", "a\x00": "TEXT_INVALID", "\xff": "TEXT_INVALID",
		strings.Repeat("a", 8193): "TEXT_TOO_LONG"} {
		if _, err := w.e.Query(t.Context(), ann, query.Request{Text: text}); reason(err) != want {
			t.Errorf("text %.10q: %v, want %s", text, err, want)
		}
	}
	if got := ids(w.ask(ann, query.Request{Text: "alpha", Tables: []whence.TableName{docs}})); !cmp.Equal(got, []string{"1"}) {
		t.Errorf("ann sees %v", got)
	}
	if a := w.ask(authz.Scope{}, query.Request{Text: "alpha"}); len(a.Hits) != 0 || len(a.Watermark) != 0 {
		t.Errorf("the zero scope sees %+v", a)
	}
	if _, err := w.e.GetRecord(t.Context(), ann, ref("2")); reason(err) != "RECORD_NOT_FOUND" {
		t.Errorf("another's record: %v", err)
	}
	if _, err := w.e.GetRecord(t.Context(), ann, query.Ref{Table: docs, Key: whence.Values{"nr": nil}}); reason(err) != "KEY_INVALID" {
		t.Errorf("a wrong key: %v", err)
	}
	got, err := w.e.GetRecords(t.Context(), ann, []query.Ref{ref("1"), ref("2"), ref("3")})
	if err != nil || got[0] == nil || got[1] != nil || got[2] != nil {
		t.Errorf("records: %v %v", got, err)
	}
}

// A caller's answer is the same, hit by hit and score by score, whatever others have.
func TestAnswersAreBlindToOthers(t *testing.T) {
	w := newWorld(t, lexical.Default())
	var mine, others []row
	for i := range 30 {
		mine = append(mine, row{fmt.Sprint(i), "ann", "en", fmt.Sprintf("invoice %d for %s services", i, []string{"cleaning", "legal", "hosting"}[i%3]), time.Hour})
	}
	for i := range 400 {
		others = append(others, row{fmt.Sprint("o", i), "bob", "en", fmt.Sprintf("invoice for hosting services %d", i), time.Minute})
	}
	w.put(mine...)
	w.fill()
	ann := authztest.Scope(t, authz.ScopeSpec{AllTables: true, Subjects: []string{"ann"}, Actions: authz.Actions()})
	ask := query.Request{Text: "invoice for hosting services", Limit: 20}
	before := w.ask(ann, ask)
	if len(before.Hits) != 20 {
		t.Fatalf("%d hits", len(before.Hits))
	}
	w.put(others...)
	w.fill()
	if diff := cmp.Diff(before, w.ask(ann, ask), cmpopts.IgnoreUnexported(query.Hit{})); diff != "" {
		t.Error(diff)
	}
}

func TestAnswersGoOnWithoutTheModel(t *testing.T) {
	server, err := embeddertest.Start(embeddertest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	model, err := openai.New(openai.Config{BaseURL: server.URL(), Model: "test", Dimensions: 64})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, model)
	w.put(row{"1", "ann", "en", "alpha", 0})
	w.fill()
	if a := w.ask(everything(t), query.Request{Text: "alpha"}); a.Degraded != "" || a.Hits[0].Score.Dense == nil {
		t.Fatalf("with the model: %+v", a)
	}
	server.SwitchOff()
	a := w.ask(everything(t), query.Request{Text: "alpha beta"})
	if !strings.HasPrefix(a.Degraded, "EMBEDDING_UNAVAILABLE: ") || len(a.Hits) != 1 || a.Hits[0].Score.Dense != nil ||
		a.Hits[0].Freshness.State != whence.Fresh {
		t.Errorf("without the model: %+v", a)
	}
}

func TestConsistencyWaits(t *testing.T) {
	w := newWorld(t, lexical.Default())
	w.put(row{"1", "ann", "en", "alpha", 0})
	ask := query.Request{Text: "alpha", Consistency: query.Consistency{AtLeast: "0/200"}}
	done := make(chan error, 1)
	go func() { _, err := w.e.Query(t.Context(), everything(t), ask); done <- err }()
	time.Sleep(60 * time.Millisecond)
	w.set(func(_ *whence.Table, s *whence.SourceState) { s.LSN = 0x200 })
	if err := <-done; err != nil {
		t.Errorf("the position was reached: %v", err)
	}
	ask.Consistency.AtLeast = "app@0/201"
	w.set(func(_ *whence.Table, s *whence.SourceState) { s.Paused = true })
	if _, err := w.e.Query(t.Context(), everything(t), ask); reason(err) != "NOT_CAUGHT_UP" || !errors.Is(err, whence.ErrUnavailable) {
		t.Errorf("a paused source: %v", err)
	}
	most := 500 * time.Millisecond
	ask.Consistency = query.Consistency{MaxStaleness: &most}
	if _, err := w.e.Query(t.Context(), everything(t), ask); reason(err) != "STALENESS_EXCEEDED" {
		t.Errorf("too stale: %v", err)
	}
	most = time.Second
	if _, err := w.e.Query(t.Context(), everything(t), ask); err != nil {
		t.Errorf("stale enough: %v", err)
	}
}
