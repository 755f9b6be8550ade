package index

import (
	"cmp"
	"context"
	"maps"
	"math"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

// wording is the question in one language: its terms, as the tables whose texts are
// in that language hold them.
type wording struct {
	language string
	tables   []int32 // within the bounds, with chunks that are indexed in the language
	mixed    bool    // some of these also have chunks indexed in another

	asked  []lexeme // the question's, by where they stand in it
	total  float64  // chunks in the language within the bounds
	mean   float64  // length of a text, in distinct lexemes
	narrow bool     // everything was counted
	terms  []lexeme // those that some chunk holds, rarest first
}

// lexeme is a term of the question.
type lexeme struct {
	quoted    string  // as a tsquery literal
	positions []int16 // of its words in the question
	df        float64 // chunks that hold it
	weight    float64 // its share of what there is to be found
}

const lexemesSQL = `
select '''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''', positions
from unnest(whence.lexemes(@language, @text)) where lexeme <> ''
order by positions[1], lexeme limit @maxTerms`

// wordings takes the question apart in each language of the tables within the bounds.
func wordings(ctx context.Context, tx pgx.Tx, b bounds, tables []whence.Table, text string) ([]*wording, error) {
	in := map[string]*wording{}
	for _, t := range tables {
		if !slices.Contains(b.tables, t.ID) {
			continue
		}
		for _, language := range append([]string{t.Language}, t.FormerLanguages...) {
			w := in[language]
			if w == nil {
				w = &wording{language: language, mean: 1}
				in[language] = w
			}
			w.tables, w.mixed = append(w.tables, t.ID), w.mixed || len(t.FormerLanguages) > 0
		}
	}
	var out []*wording
	for _, language := range slices.Sorted(maps.Keys(in)) {
		w := in[language]
		rows, err := tx.Query(ctx, lexemesSQL, pgx.NamedArgs{"language": language, "text": text, "maxTerms": maxTerms})
		if err != nil {
			return nil, err
		}
		w.asked, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (l lexeme, err error) {
			err = row.Scan(&l.quoted, &l.positions)
			return l, err
		})
		if err != nil {
			return nil, err
		}
		out = append(out, w)
	}
	return out, nil
}

// in narrows bounds to the texts in the language.
func (w *wording) in(b bounds) bounds {
	b.tables = w.tables
	if w.mixed {
		b.language = &w.language
	}
	return b
}

// quoted returns the lexemes as tsquery literals.
func quoted(ls []lexeme) []string {
	out := make([]string, len(ls))
	for i, l := range ls {
		out[i] = l.quoted
	}
	return out
}

func weights(ls []lexeme) []float64 {
	out := make([]float64, len(ls))
	for i, l := range ls {
		out[i] = l.weight
	}
	return out
}

// weigh gives each term of each wording its share. A word that no chunk holds in any
// language is left out: it can be found nowhere. One that chunks in another language
// hold counts as something that those of this one lack.
func weigh(ws []*wording) {
	known := map[int16]bool{}
	for _, w := range ws {
		for _, l := range w.asked {
			for _, p := range l.positions {
				known[p] = known[p] || l.df > 0
			}
		}
	}
	for _, w := range ws {
		best := 0.0
		for i := range w.asked {
			if l := &w.asked[i]; slices.ContainsFunc(l.positions, func(p int16) bool { return known[p] }) {
				n := max(l.df, w.total)
				l.weight = math.Log(1 + (n-l.df+0.5)/(l.df+0.5))
				best += l.weight
			}
		}
		for i := range w.asked {
			w.asked[i].weight /= max(best, 1e-9)
		}
		w.terms = slices.DeleteFunc(slices.Clone(w.asked), func(l lexeme) bool { return l.df == 0 })
		slices.SortStableFunc(w.terms, func(a, b lexeme) int { return cmp.Compare(a.df, b.df) })
	}
}
