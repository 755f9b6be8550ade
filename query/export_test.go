package query

import (
	"testing"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/index"
)

// ScoreOf and Rank let the ranking's data files be played without a database.
func ScoreOf(r Ranking, now time.Time, c index.Candidate, t whence.Table, dense bool, asked Recency) Score {
	return r.score(now, c, t, dense, asked)
}

func Rank(hits []Hit) { rank(hits) }

// At answers as an engine whose clock stands still.
func (e *Engine) At(t *testing.T, moment time.Time, scope authz.Scope, r Request) Answer {
	t.Helper()
	c := e.Config
	c.Clock = func() time.Time { return moment }
	a, err := (&Engine{Config: c}).Query(t.Context(), scope, r)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
