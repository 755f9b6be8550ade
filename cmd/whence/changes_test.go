package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

const fresh = v1.FreshnessState_FRESHNESS_STATE_FRESH

// testChangesShow follows one row through every kind of change.
func (w *running) testChangesShow(t *testing.T) {
	t.Parallel()
	w.exec(t, `create table public.fleet (id int primary key, what text not null, colour text)`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.fleet", TextColumns: []string{"what"}, AttributeColumns: []string{"colour"}})
	ask := &v1.QueryRequest{Text: "pelican freighter", Tables: []string{"app.public.fleet"}}
	one := func(id, text string) func([]*v1.Hit) error {
		return func(hits []*v1.Hit) error {
			if len(hits) != 1 || hits[0].GetText() != text || hits[0].GetOrigin().GetKey().GetFields()["id"].GetStringValue() != id ||
				hits[0].GetFreshness().GetState() != fresh {
				return fmt.Errorf("want row %s, fresh, with %q; got %v", id, text, hits)
			}
			return nil
		}
	}
	none := func(hits []*v1.Hit) error {
		if len(hits) > 0 {
			return fmt.Errorf("want nothing, got %v", hits)
		}
		return nil
	}
	for _, step := range []struct {
		name, sql string
		shows     func([]*v1.Hit) error
	}{
		{"insert", `insert into public.fleet values (1, 'the pelican freighter carries cobalt', 'grey')`, one("1", "the pelican freighter carries cobalt")},
		{"update", `update public.fleet set what = 'the pelican freighter carries tin' where id = 1`, one("1", "the pelican freighter carries tin")},
		{"change of the key", `update public.fleet set id = 2 where id = 1`, one("2", "the pelican freighter carries tin")},
		{"change of an attribute", `update public.fleet set colour = 'blue' where id = 2`, func(hits []*v1.Hit) error {
			if len(hits) != 1 || hits[0].GetAttributes().GetFields()["colour"].GetStringValue() != "blue" {
				return fmt.Errorf("want a blue one, got %v", hits)
			}
			return nil
		}},
		{"delete", `delete from public.fleet where id = 2`, none},
		{"insert again", `insert into public.fleet values (2, 'the pelican freighter is back', 'red')`, one("2", "the pelican freighter is back")},
		{"truncate", `truncate public.fleet`, none},
	} {
		w.exec(t, step.sql)
		start := time.Now()
		eventually(t, showLimit, step.name, func() error { return step.shows(w.agent().query(t, ask).GetHits()) })
		t.Logf("%s shows after %v", step.name, time.Since(start).Round(time.Millisecond))
		if time.Since(start) > 2*time.Second {
			t.Logf("%s took longer than the two seconds that are promised", step.name)
		}
	}
}

// testPreviewAndVerify is a data team's first look, and an agent that wants to be sure.
func (w *running) testPreviewAndVerify(t *testing.T) {
	t.Parallel()
	w.exec(t, `create table public.harbour (id int primary key, what text not null)`)
	w.exec(t, `insert into public.harbour values (1, 'the ochre crane lifts nine tons'), (2, 'the ochre crane is being painted')`)
	preview := w.cli(t, "table", "preview", "app", "public.harbour", "--text", "what")
	preview.is(t, 0, `{"id":"1"}`, "the ochre crane lifts nine tons", "about 2 rows: 2 chunks, 2 texts to embed")
	w.cli(t, "table", "preview", "app", "public.harbour", "--text", "where").is(t, 0, "cannot be registered", "where")
	w.register(t, &v1.RegisterTableRequest{Table: "public.harbour", TextColumns: []string{"what"}})

	ask := &v1.QueryRequest{Text: "ochre crane", Tables: []string{"app.public.harbour"}, Explain: true, Consistency: &v1.Consistency{Verify: true}}
	answer := w.agent().query(t, ask)
	if len(answer.GetHits()) != 2 || answer.GetExplanation().GetLexicalCandidates() != 2 {
		t.Fatalf("%v", answer)
	}
	for _, h := range answer.GetHits() {
		if h.GetFreshness().GetState() != v1.FreshnessState_FRESHNESS_STATE_VERIFIED || len(h.GetLegs()) < 2 || h.LiveText != nil {
			t.Errorf("%v", h)
		}
	}
	w.cli(t, "query", "ochre crane", "--table", "app.public.harbour", "--verify", "--explain").is(t, 0, "VERIFIED", "FOUND BY", "dense+lexical")
}

// edition is one committed text of a row, as the writer knows it.
type edition struct {
	number int
	before whence.LSN // a position after which it committed
	after  whence.LSN // a position before which it had committed
	acked  time.Time  // when the writer knew that it had committed
}

// chronicle is what the writer did to each row, in order.
type chronicle struct {
	mu   sync.Mutex
	rows map[int][]edition // guarded by mu
}

func (c *chronicle) add(row int, e edition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rows[row] = append(c.rows[row], e)
}

// least is the oldest edition of a row that an answer with this watermark may
// show, and why: it had committed by that position, or by that moment.
func (c *chronicle) least(row int, lsn whence.LSN, caughtUp time.Time) (n int, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.rows[row] {
		switch {
		case e.after <= lsn:
			n, why = e.number, fmt.Sprintf("had committed by %v and the watermark says %v", e.after, lsn)
		case e.acked.Before(caughtUp):
			n, why = e.number, fmt.Sprintf("had committed at %v and the watermark says %v (between %v and %v, watermark %v)",
				e.acked.UTC(), caughtUp.UTC(), e.before, e.after, lsn)
		}
	}
	return n, why
}

const phrase = "heliotrope lantern"

func editionText(row, number int) string {
	one := fmt.Sprintf("The %s of house %d, edition %d.", phrase, row, number)
	if row > 1 {
		return one
	}
	// The first row is long, so that it is cut into several chunks.
	return strings.TrimSpace(strings.Repeat(one+" "+strings.Repeat("It stands by the window and is lit at dusk. ", 30)+"\n\n", 4))
}

var editionPattern = regexp.MustCompile(`edition (\d+)\.`)

// testNoGapNoLie asks, while rows change all the time, a question that the old
// and the new text of each row answer: every answer must have every row, and
// nothing older than the watermark says.
func (w *running) testNoGapNoLie(t *testing.T) {
	t.Parallel()
	const rows, lasts = 6, 6 * time.Second
	w.exec(t, `create table public.houses (id int primary key, what text not null)`)
	c := &chronicle{rows: map[int][]edition{}}
	for row := 1; row <= rows; row++ {
		w.exec(t, `insert into public.houses values ($1, $2)`, row, editionText(row, 1))
	}
	w.register(t, &v1.RegisterTableRequest{Table: "public.houses", TextColumns: []string{"what"}})
	for row := 1; row <= rows; row++ {
		c.add(row, edition{number: 1, acked: time.Now()})
	}
	ctx, cancel := context.WithTimeout(t.Context(), lasts)
	defer cancel()
	g, gctx := errgroup.WithContext(t.Context())
	var writes int
	g.Go(func() (err error) { writes, err = rewrite(ctx, w, c, rows); return err })
	seen := make([]tally, 2)
	for i := range seen {
		g.Go(func() error { return seen[i].poll(ctx, gctx, w, c, rows) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, s := range seen {
		t.Logf("%d answers while %d updates: %d fresh hits, %d stale, %d unknown%s", s.answers, writes, s.fresh, s.stale, s.unknown, s.why)
		if s.answers == 0 || s.fresh == 0 || writes < rows {
			t.Error("nothing was proved")
		}
	}
}

// rewrite gives random rows new editions until ctx ends.
func rewrite(ctx context.Context, w *running, c *chronicle, rows int) (n int, err error) {
	conn, err := w.source.Acquire(context.WithoutCancel(ctx))
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	next := map[int]int{}
	for ; ctx.Err() == nil; n++ {
		row := 1 + rand.IntN(rows)
		next[row]++
		e := edition{number: 1 + next[row]}
		detached := context.WithoutCancel(ctx)
		if err := conn.QueryRow(detached, `select pg_current_wal_insert_lsn()::text`).Scan(&e.before); err != nil {
			return n, err
		}
		if _, err := conn.Exec(detached, `update public.houses set what = $2 where id = $1`, row, editionText(row, e.number)); err != nil {
			return n, err
		}
		e.acked = time.Now()
		if err := conn.QueryRow(detached, `select pg_current_wal_insert_lsn()::text`).Scan(&e.after); err != nil {
			return n, err
		}
		c.add(row, e)
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(rand.IntN(30)) * time.Millisecond):
		}
	}
	return n, nil
}

// tally is what one poller saw.
type tally struct {
	answers, fresh, stale, unknown int
	newest                         map[int]int
	why                            string // of the last unknown hit
}

func (s *tally) poll(until, ctx context.Context, w *running, c *chronicle, rows int) error {
	s.newest = map[int]int{}
	limit := uint32(50)
	ask := &v1.QueryRequest{Text: phrase, Tables: []string{"app.public.houses"}, Limit: &limit}
	for ; until.Err() == nil; s.answers++ {
		var res v1.QueryResponse
		if err := w.agent().call(ctx, "MemoryService/Query", ask, &res); err != nil {
			return err
		}
		if err := s.check(&res, c, rows); err != nil {
			return fmt.Errorf("answer %s: %w", res.GetAnswerId(), err)
		}
	}
	return nil
}

func (s *tally) check(res *v1.QueryResponse, c *chronicle, rows int) error {
	if len(res.GetWatermark()) != 1 {
		return fmt.Errorf("want one watermark, got %v", res.GetWatermark())
	}
	mark := res.GetWatermark()[0]
	lsn, err := whence.ParseLSN(mark.GetLsn())
	if err != nil {
		return err
	}
	shown := map[int]int{}
	for _, h := range res.GetHits() {
		row, err := strconv.Atoi(h.GetOrigin().GetKey().GetFields()["id"].GetStringValue())
		if err != nil {
			return err
		}
		m := editionPattern.FindStringSubmatch(h.GetText())
		if m == nil {
			continue // a chunk of the long row's filling
		}
		number, err := strconv.Atoi(m[1])
		if err != nil {
			return err
		}
		shown[row] = max(shown[row], number)
		var caughtUp time.Time
		switch h.GetFreshness().GetState() {
		case fresh:
			s.fresh++
			caughtUp = mark.GetCaughtUpAt().AsTime()
			if mark.CaughtUpAt == nil {
				return fmt.Errorf("a fresh hit without a known lag: %v", h)
			}
			if h.MatchedText != nil {
				return fmt.Errorf("a fresh hit that matched another text: %v", h)
			}
		case v1.FreshnessState_FRESHNESS_STATE_STALE:
			s.stale++
		default:
			s.unknown++
			s.why = fmt.Sprintf(" (answer %d: %s, behind %v)", s.answers+1, freshnessText(h.GetFreshness()), h.GetFreshness().GetBehind().AsDuration())
		}
		if least, why := c.least(row, lsn, caughtUp); number < least {
			return fmt.Errorf("row %d shows edition %d (%v) although edition %d %s", row, number, h.GetFreshness(), least, why)
		}
	}
	for row := 1; row <= rows; row++ {
		if shown[row] == 0 {
			return fmt.Errorf("row %d is not among %d hits", row, len(res.GetHits()))
		}
		if shown[row] < s.newest[row] {
			return fmt.Errorf("row %d went back from edition %d to %d", row, s.newest[row], shown[row])
		}
		s.newest[row] = shown[row]
	}
	return nil
}
