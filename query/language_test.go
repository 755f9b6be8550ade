package query_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/query"
)

// inGerman adds a table of German texts.
func (w *world) inGerman() {
	w.t.Helper()
	german := w.state.Tables[0]
	german.Relation, german.Language = "berichte", "german"
	err := w.db.Pool.QueryRow(w.t.Context(), `
insert into whence.tables (source_id, schema_name, relation, key_columns, text_columns, text_template, subject_column, time_column,
    attribute_columns, half_life, freshness_target, on_delete, language)
select source_id, schema_name, 'berichte', key_columns, text_columns, text_template, subject_column, time_column,
    attribute_columns, half_life, freshness_target, on_delete, 'german' from whence.tables returning id`).Scan(&german.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	w.state.Tables = append(w.state.Tables, german)
}

// putGerman stores the next state of rows of that table.
func (w *world) putGerman(rows ...row) {
	w.t.Helper()
	slices.Reverse(w.state.Tables)
	defer slices.Reverse(w.state.Tables)
	w.put(rows...)
}

// The past is stemmed by its table's language too, and counted with the present of
// that language: scores are what they were then.
func TestAsOfInSeveralLanguages(t *testing.T) {
	past := newWorld(t, lexical.Default())
	t.Run("then", func(t *testing.T) { // two worlds in one test would both make it parallel
		compareInSeveralLanguages(t, past, newWorld(t, lexical.Default()))
	})
}

func compareInSeveralLanguages(t *testing.T, past, then *world) {
	t.Helper()
	english := []row{
		{"1", "ann", "en", "the houses at the harbour\n\na die is cast", 5 * time.Hour},
		{"2", "ann", "en", "Haus of cards", 5 * time.Hour},
		{"3", "ann", "en", "running along the quay", 5 * time.Hour},
	}
	german := []row{
		{"11", "ann", "de", "das Haus am Hafen\n\ndie Hunde laufen", 5 * time.Hour},
		{"12", "ann", "de", "viele Häuser und kein Hund", 5 * time.Hour},
		{"13", "ann", "de", "ein Schiff", 5 * time.Hour},
	}
	for _, w := range []*world{past, then} {
		w.inGerman()
		w.put(english...)
		w.putGerman(german...)
		w.fill()
	}
	past.put(row{"1", "ann", "en", "nothing of the kind", time.Hour}, row{"2", "ann", "en", "", time.Hour}, row{"4", "ann", "en", "houses that were not there", time.Hour})
	past.putGerman(row{"11", "ann", "de", "die Häuser sind weg", time.Hour}, row{"12", "ann", "de", "", time.Hour}, row{"14", "ann", "de", "neue Häuser", time.Hour})
	past.fill()
	moment := now.Add(-2 * time.Hour)
	past.set(func(t *whence.Table, _ *whence.SourceState) { t.CoveredFrom = now.Add(-10 * time.Hour) })
	past.state.Tables[1].CoveredFrom = now.Add(-10 * time.Hour)
	for _, text := range []string{"Haus", "Häuser am Hafen", "houses", "die running dogs", "Hund laufen house"} {
		r := query.Request{Text: text, Limit: query.MaxLimit}
		want := then.e.At(t, moment, everything(t), r)
		r.AsOf = moment
		got := past.e.At(t, now, everything(t), r)
		if diff := cmp.Diff(scores(want), scores(got), cmpopts.EquateApprox(0, 1e-5)); diff != "" {
			t.Errorf("%q (-then +as of):\n%s", text, diff)
		}
		found := 0
		for _, h := range got.Hits {
			if h.Score.Lexical != nil {
				found++
			}
		}
		if found == 0 {
			t.Errorf("%q finds nothing by its words", text)
		}
	}
}
