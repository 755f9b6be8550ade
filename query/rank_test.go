package query_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/query"
)

// situation is one data file of testdata/ranking.
type situation struct {
	table  whence.Table
	asked  query.Recency
	dense  bool
	names  []string
	found  map[string]index.Candidate
	expect string
	scores map[string]string
}

func parseSituation(text string) (situation, error) {
	s := situation{dense: true, found: map[string]index.Candidate{}, scores: map[string]string{}}
	for n, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		var err error
		switch f[0] {
		case "weight":
			var w float64
			w, err = strconv.ParseFloat(f[1], 64)
			s.asked.Weight = &w
		case "half-life":
			s.table.HalfLife, err = time.ParseDuration(f[1])
		case "dense":
			s.dense = f[1] != "off"
		case "expect":
			s.expect = strings.Join(f[1:], " ")
		case "score":
			s.scores[f[1]] = f[2]
		default:
			s.names = append(s.names, f[0])
			s.found[f[0]], err = parseCandidate(f[1:], int64(len(s.names)))
		}
		if err != nil {
			return s, fmt.Errorf("line %d: %w", n+1, err)
		}
	}
	return s, nil
}

func parseCandidate(fields []string, id int64) (index.Candidate, error) {
	c := index.Candidate{ChunkID: id}
	for _, f := range fields {
		k, v, _ := strings.Cut(f, "=")
		if k == "age" {
			age, err := time.ParseDuration(v)
			if err != nil {
				return c, err
			}
			c.EventTime = now.Add(-age)
			continue
		}
		x, err := strconv.ParseFloat(v, 64)
		if err != nil {
			return c, err
		}
		switch k {
		case "dense":
			c.Dense = &x
		case "lexical":
			c.Lexical = &x
		default:
			return c, fmt.Errorf("what is %q?", k)
		}
	}
	return c, nil
}

func TestRankingSituations(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/ranking/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	played := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		s, err := parseSituation(string(text))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if s.expect == "" {
			continue // the explanation of the format
		}
		played++
		var hits []query.Hit
		for _, name := range s.names {
			c := s.found[name]
			score := query.ScoreOf(query.DefaultRanking, now, c, s.table, s.dense, s.asked)
			if want, ok := s.scores[name]; ok && fmt.Sprintf("%.3f", score.Final) != want {
				t.Errorf("%s: %s scores %.3f, want %s", file, name, score.Final, want)
			}
			if score.Relevance > 0 {
				hits = append(hits, query.Hit{ChunkID: c.ChunkID, Text: name, Score: score})
			}
		}
		query.Rank(hits)
		var got strings.Builder
		for i, h := range hits {
			if i > 0 && hits[i-1].Score.Final-h.Score.Final < 1e-9 {
				got.WriteString(" = ")
			} else if i > 0 {
				got.WriteString(" > ")
			}
			got.WriteString(h.Text)
		}
		if got.String() != s.expect {
			t.Errorf("%s: %s, want %s", file, got.String(), s.expect)
		}
	}
	if played < 7 {
		t.Errorf("only %d situations were played", played)
	}
}

// Age costs at most the weight, and never turns a score negative or above the relevance.
func TestAgeCostsAtMostTheWeight(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		unit := rapid.Float64Range(0, 1)
		dense, lexical, w := rapid.Float64Range(-1, 1).Draw(t, "dense"), unit.Draw(t, "lexical"), unit.Draw(t, "weight")
		age := time.Duration(rapid.Int64Range(-1e18, 1e18).Draw(t, "age"))
		c := index.Candidate{Dense: &dense, Lexical: &lexical, EventTime: now.Add(-age)}
		s := query.ScoreOf(query.DefaultRanking, now, c, whence.Table{HalfLife: time.Hour}, true, query.Recency{Weight: &w})
		if s.Relevance < 0 || s.Relevance > 1 || s.Final > s.Relevance || s.Final < s.Relevance*(1-w)-1e-12 {
			t.Fatalf("weight %v: %+v", w, s)
		}
	})
}

// Times that are farther apart than a Duration reaches still rank by age.
func TestAgesBeyondADuration(t *testing.T) {
	t.Parallel()
	one := 1.0
	at := func(year int) float64 {
		c := index.Candidate{Lexical: &one, EventTime: time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)}
		return query.ScoreOf(query.DefaultRanking, now, c, whence.Table{HalfLife: 100 * 365 * 24 * time.Hour}, false, query.Recency{}).Recency
	}
	if !(at(-43) < at(1000) && at(1000) < at(1600) && at(1600) < at(2000)) || at(-43) > 1e-5 {
		t.Errorf("recency falls from %v over %v and %v to %v", at(2000), at(1600), at(1000), at(-43))
	}
	if at(20000) != 1 || at(294276) != 1 {
		t.Errorf("what is still to come has the recency %v, %v", at(20000), at(294276))
	}
}
