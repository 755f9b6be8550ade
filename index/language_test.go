package index_test

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/index"
)

// speak gives a table a language; chunks that it has already keep theirs.
func (w *world) speak(table, language string, former ...string) {
	w.t.Helper()
	tab := w.tables[table]
	tab.Language, tab.FormerLanguages = language, former
	w.tables[table] = tab
}

// say puts rows whose texts are in the table's language.
func (w *world) say(table string, texts ...string) {
	w.t.Helper()
	for _, text := range texts {
		w.put(table, row{text, "ann", "xx", text})
	}
	w.exec(`update whence.chunks set language = $2 where table_id = $1`, w.tables[table].ID, w.tables[table].Language)
}

// lexical returns the scores of the texts that text search finds, without the words
// of another.
func (w *world) lexical(question string, tables ...string) map[string]float64 {
	w.t.Helper()
	r := index.SearchRequest{Text: question, Limit: 200}
	for _, name := range tables {
		r.Tables = append(r.Tables, w.tables[name])
	}
	return byWords(w.search(everything(w.t), r))
}

func byWords(found []index.Candidate) map[string]float64 {
	out := map[string]float64{}
	for _, c := range found {
		if c.Lexical != nil {
			out[c.Text] = *c.Lexical
		}
	}
	return out
}

func (w *world) finds(question string, want ...string) {
	w.t.Helper()
	r := index.SearchRequest{Text: question}
	found := byWords(w.search(everything(w.t), r))
	got := make([]string, 0, len(found))
	for text := range found {
		got = append(got, text)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		w.t.Errorf("%q finds %q, want %q", question, got, want)
	}
}

func TestEachTableIsStemmedByItsLanguage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "berichte", "articles", "codes")
	w.speak("berichte", "german")
	w.speak("codes", "simple")
	w.say("berichte", "ein Haus am See", "die Hunde laufen", "gran house prices")
	w.say("articles", "they are running houses", "Haus of fashion", "Häuser is a surname", "the die is cast")
	w.say("codes", "running the HOUSE", "the")
	w.embed("ein Haus am See")

	w.finds("Häuser", "ein Haus am See", "Häuser is a surname") // "Haus" of the English table is another word
	w.finds("house", "they are running houses", "running the HOUSE", "gran house prices")
	w.finds("houses", "they are running houses", "gran house prices") // without the table that knows no plural
	w.finds("die", "the die is cast")                                 // no word in German
	w.finds("the", "running the HOUSE", "the")                        // no word in English, and none of these German texts'
	w.finds("Hund running", "die Hunde laufen", "they are running houses", "running the HOUSE")
	if found := w.search(everything(t), index.SearchRequest{Text: "Häuser", Tables: []whence.Table{w.tables["articles"]}}); len(byWords(found)) != 1 {
		t.Errorf("%v", byWords(found))
	}
}

// Every language that a table may have is one that the database stems by, and there
// is no other.
func TestLanguagesAreTheDatabases(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, language := range whence.Languages() {
		var same *bool
		w.scan([]any{&same}, `select whence.lexemes($1, s) = to_tsvector(('pg_catalog.' || $1)::regconfig, s) from (values ('the houses Häuser die maisons')) v(s)`, language)
		if same == nil || !*same {
			t.Errorf("%s is not known, or another", language)
		}
	}
	var none bool
	w.scan([]any{&none}, `select whence.lexemes('klingon', 'a') is null`)
	var missing []string
	w.scan([]any{&missing}, `select coalesce(array_agg(cfgname::text), '{}') from pg_ts_config where cfgnamespace = 'pg_catalog'::regnamespace and cfgname::text <> all($1::text[])
and current_setting('server_version_num')::int < 180000`, whence.Languages())
	if !none || len(missing) > 0 {
		t.Errorf("unknown is null: %v; missing: %v", none, missing)
	}
}

// bm25 scores texts by the formula, one by one, with the lexemes that the database
// makes of them: what the index should say of each.
func (w *world) bm25(question string, texts map[string][]string) map[string]float64 {
	w.t.Helper()
	known := map[int]bool{} // positions of words that some text holds in its language
	type term struct {
		lexeme    string
		positions []int
		df        float64
	}
	type doc struct {
		length float64
		counts map[string]int
	}
	asked, docs := map[string][]*term{}, map[string]map[string]doc{}
	for language, texts := range texts {
		rows, err := w.db.Pool.Query(w.t.Context(), `select lexeme, positions::int[] from unnest(to_tsvector(('pg_catalog.' || $1)::regconfig, $2))`, language, question)
		if err == nil {
			asked[language], err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*term, error) {
				t := &term{}
				return t, row.Scan(&t.lexeme, &t.positions)
			})
		}
		if err != nil {
			w.t.Fatal(err)
		}
		docs[language] = map[string]doc{}
		for _, text := range texts {
			d := doc{counts: map[string]int{}}
			var lexemes []string
			var counts []int
			w.scan([]any{&lexemes, &counts}, `select coalesce(array_agg(lexeme), '{}'), coalesce(array_agg(cardinality(positions)), '{}')
from unnest(to_tsvector(('pg_catalog.' || $1)::regconfig, $2))`, language, text)
			for i, l := range lexemes {
				d.counts[l] = counts[i]
			}
			d.length = float64(len(lexemes))
			docs[language][text] = d
		}
		for _, t := range asked[language] {
			for _, d := range docs[language] {
				if d.counts[t.lexeme] > 0 {
					t.df++
				}
			}
			for _, p := range t.positions {
				known[p] = known[p] || t.df > 0
			}
		}
	}
	out := map[string]float64{}
	for language, docs := range docs {
		n, mean, best := float64(len(docs)), 0.0, 0.0
		idf := func(t *term) float64 { return math.Log(1 + (n-t.df+0.5)/(t.df+0.5)) }
		for _, d := range docs {
			mean += d.length / n
		}
		for _, t := range asked[language] {
			if slices.ContainsFunc(t.positions, func(p int) bool { return known[p] }) {
				best += idf(t)
			}
		}
		for text, d := range docs {
			score := 0.0
			for _, t := range asked[language] {
				if f := d.counts[t.lexeme]; f > 0 {
					s := 0.0
					for j := range f {
						s += 6 / (math.Pi * math.Pi) / float64((j+1)*(j+1))
					}
					score += idf(t) * s / (s + (1-s)*(0.4+0.6*d.length/max(mean, 1)))
				}
			}
			if score > 0 {
				out[text] = score / best
			}
		}
	}
	return out
}

func randomTexts(r *rand.Rand, n int, words string) (texts []string) {
	vocabulary := strings.Fields(words)
	for i := range n {
		text := []string{fmt.Sprintf("n%d", i)}
		for range 2 + r.IntN(12) {
			text = append(text, vocabulary[min(r.IntN(len(vocabulary)), r.IntN(len(vocabulary)))])
		}
		texts = append(texts, strings.Join(text, " "))
	}
	return texts
}

func differ(got, want map[string]float64) (out []string) {
	for text, score := range want {
		if math.Abs(got[text]-score) > 1e-5 { // ts_rank is a float4
			out = append(out, fmt.Sprintf("%q scores %v, want %v", text, got[text], score))
		}
	}
	for text, score := range got {
		if want[text] == 0 {
			out = append(out, fmt.Sprintf("%q scores %v, want nothing", text, score))
		}
	}
	return out
}

// Scores are those of the formula, counted in each language by itself; and the texts
// in one language keep their order whatever else is asked.
func TestScoresInSeveralLanguages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "berichte", "articles", "codes")
	w.speak("berichte", "german")
	w.speak("codes", "simple")
	r := rand.New(rand.NewPCG(7, 7))
	shared := " Berlin server index Haus die was in"
	texts := map[string][]string{
		"german":  randomTexts(r, 14, "Haus Häuser Hauses Hund Hunde laufen läuft Katze Katzen der die und Straße Straßen"+shared),
		"english": randomTexts(r, 40, "house houses housing dog dogs run running the cat cats and of street streets"+shared),
		"simple":  randomTexts(r, 9, "house HOUSES run Running the ERR42 server"+shared),
	}
	for table, language := range map[string]string{"berichte": "german", "articles": "english", "codes": "simple"} {
		w.say(table, texts[language]...)
	}
	for _, question := range []string{"Häuser", "Haus Häuser Straße", "Häuser Haus house", "running dogs in the houses", "was die Katze in Berlin",
		"the server index of Berlin", "ERR42", "the", "nowhere at all Katze", "und", "housing Hunde zebra"} {
		got := w.lexical(question, "berichte", "articles", "codes")
		for _, d := range differ(got, w.bm25(question, texts)) {
			t.Errorf("%q: %s", question, d)
		}
		for table, language := range map[string]string{"berichte": "german", "articles": "english", "codes": "simple"} {
			alone := w.lexical(question, table)
			for _, d := range differ(alone, w.bm25(question, map[string][]string{language: texts[language]})) {
				t.Errorf("%q of %s: %s", question, table, d)
			}
			order := func(a, b string) int { return cmp.Compare(alone[a], alone[b]) }
			for _, a := range texts[language] {
				for _, b := range texts[language] {
					if order(a, b) < 0 && got[a] > got[b]+1e-9 {
						t.Errorf("%q: %q and %q have changed places", question, a, b)
					}
				}
			}
		}
	}
}

// While a table changes its language, chunks are found by the words of the one they
// are indexed in.
func TestChangingALanguage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "berichte", "articles")
	var texts []string
	for i := range 30 {
		texts = append(texts, fmt.Sprintf("Häuser Nummer %d", i))
	}
	w.say("berichte", texts...)
	w.say("articles", "Haus of fashion")
	w.embed(texts...)
	vectors := func() (n int) { w.scan([]any{&n}, `select count(*) from whence.vectors`); return n }
	before := vectors()
	w.speak("berichte", "german", "english")
	change := func(after string) (to string, changed int, done bool) {
		t.Helper()
		err := pgx.BeginFunc(t.Context(), w.db.Pool, func(tx pgx.Tx) (err error) {
			if _, err := tx.Exec(t.Context(), `set local lock_timeout = '30s'`); err != nil { // rather than to wait for the record that is held
				return err
			}
			to, changed, done, err = w.x.ChangeLanguage(t.Context(), tx, w.tables["berichte"].ID, "german", after, 12)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return to, changed, done
	}
	other := func() (is bool) {
		t.Helper()
		err := pgx.BeginFunc(t.Context(), w.db.Pool, func(tx pgx.Tx) (err error) {
			is, err = w.x.OtherLanguage(t.Context(), tx, w.tables["berichte"].ID, "german")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return is
	}
	parts := func() map[string][]string { // by what they are indexed in
		out := map[string][]string{"english": {"Haus of fashion"}}
		rows, err := w.db.Pool.Query(t.Context(), `select language, text from whence.chunks where table_id = $1`, w.tables["berichte"].ID)
		if err != nil {
			t.Fatal(err)
		}
		var language, text string
		if _, err := pgx.ForEachRow(rows, []any{&language, &text}, func() error { out[language] = append(out[language], text); return nil }); err != nil {
			t.Fatal(err)
		}
		return out
	}
	// Another writer holds a record, which the first walk leaves.
	held, err := w.db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Rollback(t.Context()) }()
	if _, err := held.Exec(t.Context(), `select from whence.records where key = $1 for update`, key("Häuser Nummer 7")); err != nil {
		t.Fatal(err)
	}
	total := 0
	for after, done := "", false; !done; {
		var changed int
		after, changed, done = change(after)
		total += changed
		for _, question := range []string{"Häuser", "Haus", "Haus Nummer 7 fashion"} {
			for _, d := range differ(w.lexical(question, "berichte", "articles"), w.bm25(question, parts())) {
				t.Errorf("after %d, %q: %s", total, question, d)
			}
		}
	}
	if total != 29 || !other() {
		t.Errorf("%d chunks changed while one was held; is one left: %v", total, other())
	}
	if err := held.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	for after, done := "", false; !done; {
		var changed int
		after, changed, done = change(after)
		total += changed
	}
	w.speak("berichte", "german")
	if total != 30 || other() || vectors() != before {
		t.Errorf("%d chunks changed; is one left: %v; %d vectors of %d", total, other(), vectors(), before)
	}
	w.finds("Haus", append([]string{"Haus of fashion"}, texts...)...)
}

// A sample of wide bounds is of one language, and rare words in another are found.
func TestWideBoundsInSeveralLanguages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "berichte", "articles")
	w.crowdOfTexts("ann", 12_000, "axolotl")
	w.speak("berichte", "german")
	w.say("berichte", "common Häuser", "ein Axolotl im Haus", "nichts davon")
	w.exec(`analyze whence.chunks, whence.records`)
	for _, question := range []string{"common axolotl Haus", "east west Häuser", "even scarce"} {
		got, alone := w.lexical(question, "berichte", "articles"), w.lexical(question, "articles")
		german := w.lexical(question, "berichte")
		if len(alone) < 200 || len(got) < 200 {
			t.Errorf("%q: %d found, alone %d", question, len(got), len(alone))
		}
		for text := range german {
			if got[text] == 0 {
				t.Errorf("%q does not find %q", question, text)
			}
		}
		share := 0.0 // of what there is to be found, that the English texts can hold
		for text, score := range alone {
			if got[text] == 0 {
				continue
			}
			if share == 0 {
				share = got[text] / score
			}
			if math.Abs(got[text]/score-share) > 1e-6 {
				t.Errorf("%q: %q scores %v instead of %v, others %v of that", question, text, got[text], score, share)
			}
		}
	}
}
