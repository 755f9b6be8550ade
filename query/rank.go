package query

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/index"
)

// Ranking holds the parameters of fusion:
//
//	d         = clamp((cosine − DenseFloor) / (1 − DenseFloor))
//	relevance = (Dense·d + Lexical·l) / (Dense + Lexical)          in [0,1]
//	recency   = 2^(−age / halfLife)                                in (0,1]
//	score     = relevance · (1 − w + w·recency)
//
// so that age can cost at most w of the relevance. Scores are normalised, not
// ranks, so that the gap between two hits says how much better one is. Without
// the dense leg relevance is l alone. A chunk that has no vector yet is credited
// with l/2 for d: a changed row neither sinks nor leaps before it is embedded.
type Ranking struct {
	Dense, Lexical float64 // weights of the legs
	DenseFloor     float64 // similarity of texts that have nothing in common
	Recency        float64 // w, unless a request says otherwise
}

// DefaultRanking weighs both legs alike and lets age cost a seventh at most.
var DefaultRanking = Ranking{Dense: 1, Lexical: 1, DenseFloor: 0.05, Recency: 0.15}

func (r Ranking) validate() error {
	inside := func(v float64) bool { return v >= 0 && v <= 1 }
	if !inside(r.Dense) || !inside(r.Lexical) || r.Dense+r.Lexical == 0 ||
		!inside(r.Recency) || !(r.DenseFloor > -1 && r.DenseFloor < 1) {
		return errors.New("ranking: weights must be 0 to 1, one leg's above 0, and the floor between -1 and 1")
	}
	return nil
}

// Score is a hit's score and its parts, each in [0,1] but Dense.
type Score struct {
	Final, Relevance, Recency float64
	Dense                     *float64 // cosine similarity in [-1,1]; nil when there was none to compute
	Lexical                   *float64 // nil when the text has none of the question's terms
}

func (r Ranking) score(now time.Time, c index.Candidate, t whence.Table, dense bool, asked Recency) Score {
	s := Score{Dense: c.Dense, Lexical: c.Lexical, Relevance: r.relevance(c.Dense, c.Lexical, dense)}
	halfLife := asked.HalfLife
	if halfLife == 0 {
		halfLife = t.HalfLife
	}
	w := r.Recency
	if asked.Weight != nil {
		w = *asked.Weight
	}
	s.Recency = recency(seconds(eventTime(c), now), halfLife)
	s.Final = s.Relevance * (1 - w + w*s.Recency)
	return s
}

func (r Ranking) relevance(dense, lexical *float64, denseLeg bool) float64 {
	var l float64
	if lexical != nil {
		l = *lexical
	}
	if !denseLeg {
		return clamp(l)
	}
	d := l / 2
	if dense != nil {
		d = clamp((*dense - r.DenseFloor) / (1 - r.DenseFloor))
	}
	return clamp((r.Dense*d + r.Lexical*l) / (r.Dense + r.Lexical))
}

// eventTime is the best that is known of when it happened.
func eventTime(c index.Candidate) time.Time {
	if !c.EventTime.IsZero() {
		return c.EventTime
	}
	return c.CapturedAt
}

// seconds is how long after from to is; a [time.Duration] ends at 292 years.
func seconds(from, to time.Time) float64 {
	return float64(to.Unix()-from.Unix()) + float64(to.Nanosecond()-from.Nanosecond())/1e9
}

// recency is 1 for what is new or still to come, ½ at one half-life.
func recency(age float64, halfLife time.Duration) float64 {
	if age <= 0 || halfLife <= 0 {
		return 1
	}
	return math.Exp2(-age / halfLife.Seconds())
}

func clamp(v float64) float64 { return max(0, min(1, v)) }

// rank orders hits by score; equal ones by chunk, so that the order is stable.
func rank(hits []Hit) {
	slices.SortFunc(hits, func(a, b Hit) int {
		return cmp.Or(cmp.Compare(b.Score.Final, a.Score.Final), cmp.Compare(a.ChunkID, b.ChunkID))
	})
}
