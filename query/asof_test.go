package query_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest"
	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/query"
)

// A history is what became of some rows, state by state, and the oracle of what was
// current when. Its moments are whole minutes; states come between them.
type history struct {
	began  time.Time
	states map[string][]state
}

type state struct {
	row
	at      time.Time
	version int
}

const minutes = 40

// makeHistory changes rows at random and puts each change in the world. Rows come
// and go, move between owners, change their texts, and some twice within one Put.
func makeHistory(w *world, r *rand.Rand, fillAll bool) *history {
	h := &history{began: now.Add(-minutes * time.Minute), states: map[string][]state{}}
	w.set(func(t *whence.Table, _ *whence.SourceState) { t.CoveredFrom = h.began })
	for i := range minutes {
		var changes []row
		for _, n := range r.Perm(12)[:1+r.IntN(3)] {
			id := fmt.Sprint(n)
			for again := range 1 + r.IntN(3)/2 {
				at := h.began.Add(time.Duration(i)*time.Minute + time.Duration(10+again)*time.Second)
				s := state{row: row{id: id, age: now.Sub(at)}, at: at, version: len(h.states[id]) + 1}
				last := h.last(id)
				if last == nil || last.text == "" || r.IntN(5) > 0 {
					s.row = randomRow(r, s.row, last)
				}
				changes, h.states[id] = append(changes, s.row), append(h.states[id], s)
			}
		}
		w.put(changes...)
		if i%7 == 3 {
			h.undate(w, changes[0].id)
		}
		if fillAll || r.IntN(4) == 0 {
			w.fill()
		}
	}
	if fillAll { // and nothing that was superseded is left to be counted
		h.settle(w)
	}
	return h
}

func (h *history) settle(w *world) {
	rows, err := w.db.Pool.Query(w.t.Context(), `select id from whence.records`)
	if err == nil {
		var ids []int64
		if ids, err = pgx.CollectRows(rows, pgx.RowTo[int64]); err == nil {
			err = w.x.Settle(w.t.Context(), ids)
		}
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func randomRow(r *rand.Rand, next row, last *state) row {
	words := strings.Fields("harbour quay crane tide anchor rope sail mast keel rudder")
	var parts []string
	for range 1 + r.IntN(3) {
		part := []string{"ledger"}
		for range 2 + r.IntN(6) {
			part = append(part, words[r.IntN(len(words))])
		}
		parts = append(parts, strings.Join(part, " "))
	}
	next.owner, next.lang, next.text = []string{"ann", "bob", "cid"}[r.IntN(3)], []string{"en", "de"}[r.IntN(2)], strings.Join(parts, "\n\n")
	if last != nil && last.text != "" && r.IntN(3) == 0 {
		next.text = last.text // only its owner or language changes
	}
	return next
}

// undate makes the newest state of a row one that a backfill brought: the time of
// its commit is not known, so the time of its capture counts.
func (h *history) undate(w *world, id string) {
	_, err := w.db.Pool.Exec(w.t.Context(), `
with r as (update whence.records set commit_time = null, event_time = null where key = $1 returning id, version, since)
update whence.versions v set commit_time = null, event_time = null, captured_at = r.since from r where v.record_id = r.id and v.version = r.version`,
		`{"id":"`+id+`"}`)
	if err != nil {
		w.t.Fatal(err)
	}
}

func (h *history) last(id string) *state {
	if n := len(h.states[id]); n > 0 {
		return &h.states[id][n-1]
	}
	return nil
}

// at returns what was current at a moment.
func (h *history) at(moment time.Time) (current []state) {
	for _, states := range h.states {
		var found *state
		for i := range states {
			if !states[i].at.After(moment) {
				found = &states[i]
			}
		}
		if found != nil && found.text != "" {
			current = append(current, *found)
		}
	}
	return current
}

// head is whose a row is now: of a deleted one, whose it was.
func (h *history) head(id string) state {
	states := h.states[id]
	for i := len(states) - 1; ; i-- {
		if states[i].text != "" || i == 0 {
			return states[i]
		}
	}
}

// seen describes what the oracle expects of the hits of one row.
func (h *history) seen(s state) string {
	freshness := "current"
	if last := h.last(s.id); last.version != s.version {
		freshness = "STALE SOURCE_CHANGED"
		if last.text == "" {
			freshness = "STALE SOURCE_DELETED"
		}
	}
	return fmt.Sprintf("%s v%d of %s in %s, %s", s.id, s.version, s.owner, s.lang, freshness)
}

func shown(a query.Answer) (out []string) {
	for _, h := range a.Hits {
		freshness := "current"
		if h.Freshness.State == whence.Stale && h.ChunkID < 0 {
			freshness = fmt.Sprintf("%s %s", h.Freshness.State, h.Freshness.Reasons[0])
		}
		out = append(out, fmt.Sprintf("%s v%d of %s in %s, %s", *h.Origin.Key.Values()["id"], h.Origin.Version, *h.Subject, *h.Attributes["lang"], freshness))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func TestAsOfAnswersFromWhatWasCurrent(t *testing.T) {
	scopes := map[string]authz.ScopeSpec{
		"everything": {AllTables: true, AllSubjects: true},
		"ann":        {AllTables: true, Subjects: []string{"ann"}},
		"ann, bob":   {AllTables: true, Subjects: []string{"ann", "bob"}},
		"english":    {AllTables: true, AllSubjects: true, Filter: map[string]string{"lang": "en"}},
		"bob in de":  {AllTables: true, Subjects: []string{"bob"}, Filter: map[string]string{"lang": "de"}},
		"but ann":    {AllTables: true, AllSubjects: true, DenySubjects: []string{"ann"}},
		"other":      {Tables: []whence.TableName{"app.public.other"}, AllSubjects: true},
	}
	requests := map[string]query.Request{
		"plain": {}, "about ann": {Subjects: []string{"ann"}}, "in de": {Filter: map[string]string{"lang": "de"}},
	}
	w := newWorld(t, lexical.Default())
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	h := makeHistory(w, rand.New(rand.NewPCG(seed, 1)), false)
	found := 0
	for name, spec := range scopes {
		spec.Actions = authz.Actions()
		scope := authztest.Scope(t, spec)
		for asked, r := range requests {
			if len(r.Subjects) > 0 && !scope.AllowsSubject("ann") || name == "other" && r.Filter != nil {
				continue // refused before anything is searched
			}
			for i := 0; i <= minutes; i += 2 {
				r.Text, r.AsOf, r.Limit = "ledger of the tide", h.began.Add(time.Duration(i)*time.Minute), query.MaxLimit
				var want []string
				for _, s := range h.at(r.AsOf) {
					within := func(s state) bool {
						return (spec.AllSubjects && !slices.Contains(spec.DenySubjects, s.owner) || slices.Contains(spec.Subjects, s.owner)) && (spec.Filter == nil || spec.Filter["lang"] == s.lang)
					}
					if name != "other" && within(s) && within(h.head(s.id)) &&
						(len(r.Subjects) == 0 || s.owner == "ann") && (r.Filter == nil || s.lang == "de") {
						want = append(want, h.seen(s))
					}
				}
				slices.Sort(want)
				found += len(want)
				a := w.ask(scope, r)
				if diff := cmp.Diff(want, shown(a), cmpopts.EquateEmpty()); diff != "" {
					t.Fatalf("%s asks %s as of minute %d (-want +got):\n%s", name, asked, i, diff)
				}
				h.checkTexts(t, a, r.AsOf)
			}
		}
	}
	if found < 500 {
		t.Errorf("only %d rows were to be found", found)
	}
}

// checkTexts compares what is shown with the states: text, span, digest, times.
func (h *history) checkTexts(t *testing.T, a query.Answer, moment time.Time) {
	t.Helper()
	for _, hit := range a.Hits {
		id, o := *hit.Origin.Key.Values()["id"], hit.Origin
		s := h.states[id][o.Version-1]
		if s.text[o.Start:o.End] != hit.Text || o.Digest != whence.DigestOf(hit.Text) || o.LSN == 0 {
			t.Fatalf("row %s: %+v is shown of %+v", id, hit, s)
		}
		if !o.CommitTime.IsZero() && !o.CommitTime.Equal(s.at) || o.CommitTime.After(moment) {
			t.Fatalf("row %s of %v committed %v", id, s.at, o.CommitTime)
		}
		if hit.ChunkID < 0 && hit.MatchedText != "" {
			t.Fatalf("row %s: an older text matched: %+v", id, hit)
		}
	}
}

// What a question finds as of a moment ranks as it would have then: like in an
// index that holds just that.
func TestAsOfRanksAsItWouldHaveThen(t *testing.T) {
	past := newWorld(t, lexical.Default())
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	h := makeHistory(past, rand.New(rand.NewPCG(seed, 2)), true)
	for _, minute := range []int{5, minutes / 2, minutes - 3} {
		moment := h.began.Add(time.Duration(minute) * time.Minute)
		t.Run(fmt.Sprint("minute ", minute), func(t *testing.T) {
			then := newWorld(t, lexical.Default())
			var rows []row
			for _, s := range h.at(moment) {
				s.age = now.Sub(s.at)
				rows = append(rows, s.row)
			}
			then.put(rows...)
			then.fill()
			found := 0
			for _, text := range []string{"ledger of the tide", "a crane at the quay", "keel and rudder and keel", "mast"} {
				r := query.Request{Text: text, Limit: query.MaxLimit}
				want := then.e.At(t, moment, everything(t), r)
				r.AsOf = moment
				got := past.e.At(t, now, everything(t), r)
				if diff := cmp.Diff(scores(want), scores(got), cmpopts.EquateApprox(0, 1e-5)); diff != "" {
					t.Errorf("%q (-then +as of):\n%s", text, diff)
				}
				found += len(got.Hits)
			}
			if found < 10 {
				t.Errorf("only %d hits", found)
			}
		})
	}
}

func scores(a query.Answer) map[string]query.Score {
	out := map[string]query.Score{}
	for _, h := range a.Hits {
		out[fmt.Sprint(h.Origin.Key, h.Origin.Start, h.Text)] = h.Score
	}
	return out
}

func TestAsOfSaysWhatItCannotKnow(t *testing.T) {
	w := newWorld(t, lexical.Default())
	w.put(row{"1", "ann", "en", "alpha", time.Hour})
	w.fill()
	ask := func(r query.Request, change func(*whence.Table, *whence.SourceState)) (query.Answer, error) {
		w.set(func(t *whence.Table, s *whence.SourceState) {
			t.CoveredFrom, t.PurgedUntil, t.PrunedBefore, t.OnDelete = now.Add(-2*time.Hour), time.Time{}, time.Time{}, whence.OnDeleteTombstone
			s.CaughtUpAt = now
			change(t, s)
		})
		r.Text = "alpha"
		return w.e.Query(t.Context(), everything(t), r)
	}
	ago := func(d time.Duration) query.Request { return query.Request{AsOf: now.Add(-d)} }
	nothing := func(*whence.Table, *whence.SourceState) {}
	for _, c := range []struct {
		name   string
		r      query.Request
		change func(*whence.Table, *whence.SourceState)
		reason string
		field  string
	}{
		{"before the first copy", ago(3 * time.Hour), nothing, "AS_OF_TOO_EARLY", "asOf"},
		{"never copied", ago(0), func(t *whence.Table, _ *whence.SourceState) { t.CoveredFrom = time.Time{} }, "AS_OF_TOO_EARLY", "asOf"},
		{"the future", ago(-time.Minute), nothing, "AS_OF_IN_FUTURE", "asOf"},
		{"fresh only", query.Request{AsOf: now, FreshOnly: true}, nothing, "AS_OF_CONFLICT", "freshOnly"},
		{"verified", query.Request{AsOf: now, Consistency: query.Consistency{Verify: true}}, nothing, "AS_OF_CONFLICT", "consistency.verify"},
	} {
		_, err := ask(c.r, c.change)
		var e *whence.Error
		if !errors.As(err, &e) || e.Reason != c.reason || e.Field != c.field {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.name == "before the first copy" && (e.Metadata["earliest"] != now.Add(-2*time.Hour).Format(time.RFC3339Nano) || e.Metadata["tables"] != "app.public.docs") {
			t.Errorf("%s: %v", c.name, e.Metadata)
		}
	}
	for _, c := range []struct {
		name   string
		change func(*whence.Table, *whence.SourceState)
		want   []query.Incomplete
	}{
		{"nothing missing", nothing, nil},
		{"purges", func(t *whence.Table, _ *whence.SourceState) { t.OnDelete = whence.OnDeletePurge }, []query.Incomplete{{Reason: query.RowsPurged}}},
		{"purged until later", func(t *whence.Table, _ *whence.SourceState) { t.PurgedUntil = now },
			[]query.Incomplete{{Reason: query.RowsPurged, Until: now}}},
		{"purged until before", func(t *whence.Table, _ *whence.SourceState) { t.PurgedUntil = now.Add(-time.Hour) }, nil},
		{"pruned", func(t *whence.Table, _ *whence.SourceState) { t.PrunedBefore = now }, []query.Incomplete{{Reason: query.VersionsRemoved, Until: now}}},
		{"behind", func(_ *whence.Table, s *whence.SourceState) { s.CaughtUpAt = now.Add(-time.Hour) }, []query.Incomplete{{Reason: query.NotCaughtUp}}},
	} {
		a, err := ask(ago(30*time.Minute), c.change)
		for i := range c.want {
			c.want[i].Table = "app.public.docs"
		}
		if diff := cmp.Diff(c.want, a.Incomplete); diff != "" || err != nil || len(a.Hits) != 1 {
			t.Errorf("%s: %v %d hits\n%s", c.name, err, len(a.Hits), diff)
		}
	}
}
