package query

import (
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/index"
)

// ScoreOf and Rank let the ranking's data files be played without a database.
func ScoreOf(r Ranking, now time.Time, c index.Candidate, t whence.Table, dense bool, asked Recency) Score {
	return r.score(now, c, t, dense, asked)
}

func Rank(hits []Hit) { rank(hits) }
