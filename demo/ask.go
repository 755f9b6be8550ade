package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// question is asked first, and again after each change.
const question = "play chess against the computer"

func (s *story) ask(ctx context.Context) error {
	for i, q := range []*v1.QueryRequest{
		theQuestion(4),
		{Text: "convert pictures to another format", Limit: limit(3), Subjects: []string{"graphics"}},
		{Text: "which process is using the network", Limit: limit(3), Filter: map[string]string{"section": "net"}},
	} {
		res, err := s.query(ctx, s.agent, q)
		if err != nil {
			return err
		}
		if len(res.GetHits()) < 2 {
			return fmt.Errorf("%q has %d hits, too few to go on", q.GetText(), len(res.GetHits()))
		}
		for _, h := range res.GetHits() {
			if got := h.GetFreshness().GetState(); got != v1.FreshnessState_FRESHNESS_STATE_FRESH {
				return fmt.Errorf("%s is %s before anything changed", nameOf(h.GetOrigin().GetKey()), freshness(h.GetFreshness()))
			}
		}
		if i == 0 {
			s.first = res
			s.changed, s.gone = nameOf(res.GetHits()[0].GetOrigin().GetKey()), nameOf(res.GetHits()[1].GetOrigin().GetKey())
		}
	}
	return nil
}

// theQuestion asks it, for n hits.
func theQuestion(n uint32) *v1.QueryRequest {
	return &v1.QueryRequest{Text: question, Limit: limit(n)}
}

func limit(n uint32) *uint32 { return &n }

// query asks and shows the whole answer.
func (s *story) query(ctx context.Context, a agent, q *v1.QueryRequest) (*v1.QueryResponse, error) {
	s.announce(q)
	at := time.Now()
	res, err := a.memory.Query(ctx, q)
	if err != nil {
		return nil, err
	}
	spent := time.Since(at)
	for i, h := range res.GetHits() {
		s.hit(i+1, h)
	}
	s.footer(res, spent)
	return res, nil
}

func (s *story) announce(q *v1.QueryRequest) {
	within := ""
	if len(q.GetSubjects()) > 0 {
		within += "  subject " + strings.Join(q.GetSubjects(), ", ")
	}
	for name, value := range q.GetFilter() {
		within += "  where " + name + " = " + value
	}
	s.screen.line("\n   %s%s", s.screen.paint(bold, "? "+q.GetText()), s.screen.paint(dim, within))
}

func (s *story) footer(res *v1.QueryResponse, spent time.Duration) {
	marks := make([]string, len(res.GetWatermark()))
	for i, w := range res.GetWatermark() {
		marks[i] = w.GetSource() + " at " + w.GetLsn()
		if w.Lag != nil {
			marks[i] += ", its log as of " + took(w.GetLag().AsDuration()) + " ago"
		}
	}
	s.screen.line("   %s", s.screen.paint(dim, fmt.Sprintf("answer %s in %s; %s", res.GetAnswerId(), took(spent), strings.Join(marks, "; "))))
	if res.GetDegraded() {
		s.screen.line("   %s", s.screen.paint(yellow, "degraded: "+res.GetDegradedReason()))
	}
}

// hit shows one hit: what it says, where it came from, what its score is made of.
func (s *story) hit(rank int, h *v1.Hit) {
	o, sc := h.GetOrigin(), h.GetScore()
	state := freshness(h.GetFreshness())
	room := width - 15 - max(len([]rune(state)), 5)
	s.screen.line("   %d. %.3f  %s  %s", rank, sc.GetFinal(), s.screen.state(fmt.Sprintf("%-5s", state)), cut(h.GetText(), room))
	if h.MatchedText != nil {
		s.screen.line("             %s", s.screen.paint(dim, cut("found by its old text: "+h.GetMatchedText(), width-13)))
	}
	for _, l := range []string{
		fmt.Sprintf("from %s name=%s, version %d at %s", o.GetTable(), nameOf(o.GetKey()), o.GetVersion(), o.GetLsn()),
		fmt.Sprintf("relevance %.2f (%s), recency %.2f", sc.GetRelevance(), legs(sc), sc.GetRecency()),
	} {
		s.screen.line("             %s", s.screen.paint(dim, cut(l, width-13)))
	}
}

// legs says which legs found a hit, and how well.
func legs(sc *v1.Score) string {
	var parts []string
	if sc.Dense != nil {
		parts = append(parts, fmt.Sprintf("dense %.2f", sc.GetDense()))
	}
	if sc.Lexical != nil {
		parts = append(parts, fmt.Sprintf("lexical %.2f", sc.GetLexical()))
	}
	return strings.Join(parts, ", ")
}

func freshness(f *v1.Freshness) string {
	s := plain(f.GetState())
	for _, r := range f.GetReasons() {
		s += " " + plain(r)
	}
	return s
}

// find returns the hit that came from the row of that name.
func find(hits []*v1.Hit, name string) (rank int, _ *v1.Hit) {
	i := slices.IndexFunc(hits, func(h *v1.Hit) bool { return nameOf(h.GetOrigin().GetKey()) == name })
	if i < 0 {
		return 0, nil
	}
	return i + 1, hits[i]
}

// until calls ready every now and then until it says so, at most for some
// seconds, and returns how long that took.
func until(ctx context.Context, what string, ready func(context.Context) (bool, error)) (time.Duration, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("20 s were not enough"))
	defer cancel()
	for {
		ok, err := ready(ctx)
		switch {
		case ctx.Err() != nil:
			return 0, fmt.Errorf("wait until %s: %w", what, context.Cause(ctx))
		case err != nil:
			return 0, fmt.Errorf("wait until %s: %w", what, err)
		case ok:
			return time.Since(began), nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}
