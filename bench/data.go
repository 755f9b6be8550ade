package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// article is one synthetic row.
type article struct {
	id                           int64
	title, body, author, section string
	published                    time.Time
}

// The words are made up of syllables, so that nobody's text is copied. They are
// drawn by Zipf's law, which is what makes some terms common and most rare; an
// article takes a third of its words from its topic, which is what makes some
// articles resemble one another.
const (
	vocabulary = 20_000
	topics     = 250
	topicWords = 60
	authors    = 400
)

var (
	glue     = strings.Fields("the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which")
	onsets   = strings.Fields("b br c cl d dr f fl g gr h j k l m n p pl qu r s sh sl st t th tr v w z")
	nuclei   = strings.Fields("a e i o u ai ea ou")
	codas    = strings.Fields("n r l m st nd ck sh x rt")
	sections = strings.Fields("harbour ledger orchard foundry railway theatre clinic archive")
)

// words returns the vocabulary, most frequent first, the same every time.
func words() []string {
	r := rand.New(rand.NewPCG(7, 7)) //nolint:gosec // repeatable on purpose
	seen := map[string]bool{}
	out := append([]string{}, glue...)
	for len(out) < vocabulary {
		var b strings.Builder
		for range 1 + len(out)*3/vocabulary + r.IntN(2) {
			b.WriteString(onsets[r.IntN(len(onsets))] + nuclei[r.IntN(len(nuclei))])
		}
		b.WriteString(codas[r.IntN(len(codas))])
		if w := b.String(); !seen[w] {
			seen[w] = true
			out = append(out, w)
		}
	}
	return out
}

// writeArticles makes n articles of 60 to 100 words; seeds give different texts.
func writeArticles(seed uint64, n int) []article { return writeArticlesOf(seed, n, 60, 100) }

// writeArticlesOf makes articles of least to most words.
func writeArticlesOf(seed uint64, n, least, most int) []article {
	r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // repeatable on purpose
	all := words()
	zipf := rand.NewZipf(r, 1.1, 8, vocabulary-1)
	inTopic := rand.NewZipf(r, 1.3, 4, topicWords-1)
	newest := time.Date(2026, time.June, 1, 0, 0, 0, 0, time.UTC)
	out := make([]article, n)
	for i := range out {
		topic := r.IntN(topics)
		text := func(count int) string {
			var b strings.Builder
			for j := range count {
				if j > 0 {
					b.WriteByte(' ')
				}
				w := all[zipf.Uint64()]
				if r.IntN(3) == 0 {
					w = all[topicWord(topic, int(inTopic.Uint64()))]
				}
				b.WriteString(w)
				if j%13 == 12 {
					b.WriteByte('.')
				}
			}
			return b.String()
		}
		out[i] = article{
			id: int64(i + 1), title: text(4 + r.IntN(4)), body: text(least + r.IntN(most-least+1)),
			author: fmt.Sprintf("author-%03d", r.IntN(authors)), section: sections[r.IntN(len(sections))],
			published: newest.Add(-time.Duration(r.IntN(730*24)) * time.Hour),
		}
	}
	return out
}

// topicWord is the place in the vocabulary of a topic's word.
func topicWord(topic, i int) int {
	return len(glue) + 200 + (topic*topicWords+i)%(vocabulary-len(glue)-200)
}

// questions makes n questions of three to six words that each stand in one of
// the articles and are not glue.
func questions(from []article, n int) []string {
	r := rand.New(rand.NewPCG(11, 11)) //nolint:gosec // repeatable on purpose
	common := map[string]bool{}
	for _, w := range glue {
		common[w] = true
	}
	out := make([]string, n)
	for i := range out {
		body := strings.Fields(strings.ReplaceAll(from[r.IntN(len(from))].body, ".", ""))
		var q []string
		for want := 3 + r.IntN(4); len(q) < want; {
			if w := body[r.IntN(len(body))]; !common[w] {
				q = append(q, w)
			}
		}
		out[i] = strings.Join(q, " ")
	}
	return out
}

// columns are what the tables hold, and all of it is registered.
var columns = []string{"id", "title", "body", "author", "section", "published_at"}

// fillTable makes a source table with the articles of a seed.
func fillTable(ctx context.Context, source *pgx.Conn, name string, rows []article) error {
	table := pgx.Identifier{name}
	_, err := source.Exec(ctx, "create table "+table.Sanitize()+` (id bigint primary key, title text not null,
body text not null, author text not null, section text not null, published_at timestamptz not null)`)
	if err != nil {
		return err
	}
	_, err = source.CopyFrom(ctx, table, columns, pgx.CopyFromSlice(len(rows), func(i int) ([]any, error) {
		a := rows[i]
		return []any{a.id, a.title, a.body, a.author, a.section, a.published}, nil
	}))
	if err != nil {
		return err
	}
	_, err = source.Exec(ctx, "vacuum analyze "+table.Sanitize())
	return err
}
