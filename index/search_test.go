package index_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest"
	"github.com/whence-db/whence/index"
)

func keys(found []index.Candidate) []string {
	var out []string
	for _, c := range found {
		out = append(out, *c.Key.Values()["id"])
	}
	slices.Sort(out)
	return out
}

// find returns the candidate of a row.
func find(t *testing.T, found []index.Candidate, id string) index.Candidate {
	t.Helper()
	for _, c := range found {
		if c.Key == key(id) {
			return c
		}
	}
	t.Fatalf("row %s was not found among %v", id, keys(found))
	return index.Candidate{}
}

func TestSearchFindsByBothLegs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "articles")
	w.put("articles", row{"1", "ann", "en", "How to reset a forgotten password"})
	w.put("articles", row{"2", "ann", "en", "The cafeteria opens at noon"})
	w.put("articles", row{"3", "bob", "de", "Passwords expire after ninety days"})
	w.embed("How to reset a forgotten password", "The cafeteria opens at noon")

	found := w.search(everything(t), index.SearchRequest{Text: "reset password"})
	one, three := find(t, found, "1"), find(t, found, "3")
	if one.Dense == nil || one.Lexical == nil || !one.Embedded || one.EmbeddedAt.IsZero() {
		t.Errorf("row 1 was not scored by both legs: %+v", one)
	}
	if three.Dense != nil || three.Lexical == nil || three.Embedded {
		t.Errorf("row 3 has no vector, yet: %+v", three)
	}
	if *one.Lexical <= *three.Lexical || *one.Lexical >= 1 {
		t.Errorf("lexical scores: both terms %v, one term %v", *one.Lexical, *three.Lexical)
	}
	if two := find(t, found, "2"); two.Lexical != nil || *two.Dense >= *one.Dense {
		t.Errorf("row 2 shares no term: %+v", two)
	}
	if one.LSN != 0x10 || one.Version != 1 || *one.Subject != "ann" || *one.Attributes["lang"] != "en" ||
		one.Digest != whence.DigestOf(one.Text) || one.CommitTime.IsZero() || one.End != len(one.Text) {
		t.Errorf("what is known of row 1: %+v", one)
	}
}

func TestSearchStaysWithinScope(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "articles", "tickets")
	for _, r := range []row{{"1", "ann", "en", "alpha"}, {"2", "bob", "en", "alpha"}, {"3", "bob", "de", "alpha"}, {"4", "", "fr", "alpha"}} {
		w.put("articles", r)
		r.id = "t" + r.id
		w.put("tickets", r)
	}
	w.embed("alpha")
	for _, c := range []struct {
		name  string
		scope authz.ScopeSpec
		ask   index.SearchRequest
		want  []string
	}{
		{"all", authz.ScopeSpec{AllTables: true, AllSubjects: true}, index.SearchRequest{}, []string{"1", "2", "3", "4", "t1", "t2", "t3", "t4"}},
		{"zero scope", authz.ScopeSpec{}, index.SearchRequest{}, nil},
		{"no subjects", authz.ScopeSpec{AllTables: true}, index.SearchRequest{}, nil},
		{"no tables", authz.ScopeSpec{AllSubjects: true}, index.SearchRequest{}, nil},
		{"one table", authz.ScopeSpec{Tables: []whence.TableName{"app.public.tickets"}, AllSubjects: true}, index.SearchRequest{}, []string{"t1", "t2", "t3", "t4"}},
		{"one subject", authz.ScopeSpec{AllTables: true, Subjects: []string{"ann"}}, index.SearchRequest{}, []string{"1", "t1"}},
		{"subject asked for", authz.ScopeSpec{AllTables: true, AllSubjects: true}, index.SearchRequest{Subjects: []string{"ann"}}, []string{"1", "t1"}},
		{"subject outside", authz.ScopeSpec{AllTables: true, Subjects: []string{"ann"}}, index.SearchRequest{Subjects: []string{"bob"}}, nil},
		{"subjects overlap", authz.ScopeSpec{AllTables: true, Subjects: []string{"ann", "bob"}}, index.SearchRequest{Subjects: []string{"bob", "eve"}}, []string{"2", "3", "t2", "t3"}},
		{"scope filter", authz.ScopeSpec{AllTables: true, AllSubjects: true, Filter: map[string]string{"lang": "de"}}, index.SearchRequest{}, []string{"3", "t3"}},
		{"filter asked for", authz.ScopeSpec{AllTables: true, AllSubjects: true}, index.SearchRequest{Filter: map[string]string{"lang": "de"}}, []string{"3", "t3"}},
		{"a table denied", authz.ScopeSpec{AllTables: true, DenyTables: []whence.TableName{"app.public.tickets"}, AllSubjects: true}, index.SearchRequest{}, []string{"1", "2", "3", "4"}},
		{"a subject denied", authz.ScopeSpec{AllTables: true, AllSubjects: true, DenySubjects: []string{"bob"}}, index.SearchRequest{}, []string{"1", "4", "t1", "t4"}},
		{"a denied subject asked for", authz.ScopeSpec{AllTables: true, AllSubjects: true, DenySubjects: []string{"bob"}}, index.SearchRequest{Subjects: []string{"bob"}}, nil},
		{"filters disagree", authz.ScopeSpec{AllTables: true, AllSubjects: true, Filter: map[string]string{"lang": "de"}}, index.SearchRequest{Filter: map[string]string{"lang": "en"}}, nil},
	} {
		c.ask.Text = "alpha"
		if diff := cmp.Diff(c.want, keys(w.search(authztest.Scope(t, c.scope), c.ask))); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

// Rows of others, however many and however like, change nothing.
func TestSearchIsBlindToOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "articles")
	var texts []string
	for i := range 40 {
		text := fmt.Sprintf("quarterly report %d on churn and %s", i, []string{"revenue", "hiring", "churn"}[i%3])
		w.put("articles", row{fmt.Sprint(i), "ann", "en", text})
		texts = append(texts, text)
	}
	w.embed(texts...)
	ask := index.SearchRequest{Text: "quarterly churn report on hiring", Limit: 10}
	before := w.search(subjects(t, "ann"), ask)
	if len(before) < 10 {
		t.Fatalf("only %d candidates", len(before))
	}
	for i := range 300 {
		text := fmt.Sprintf("quarterly churn report on hiring %d", i)
		w.put("articles", row{fmt.Sprint("other", i), "bob", "en", text})
		texts = append(texts, text)
	}
	w.embed(texts...)
	w.exec("vacuum analyze")
	if diff := cmp.Diff(before, w.search(subjects(t, "ann"), ask)); diff != "" {
		t.Errorf("another subject's rows changed the answer: %s", diff)
	}
}

func TestSearchShowsTheNewestText(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "articles")
	w.put("articles", row{"1", "ann", "en", "The warehouse is in Rotterdam"})
	w.embed("The warehouse is in Rotterdam")
	w.put("articles", row{"1", "ann", "en", "Goods are kept in Antwerp"})

	ask := index.SearchRequest{Text: "warehouse Rotterdam"}
	found := w.search(everything(t), ask)
	c := find(t, found, "1")
	if len(found) != 1 || !c.Superseded || c.Embedded || c.Text != "Goods are kept in Antwerp" ||
		c.Matched != "The warehouse is in Rotterdam" || c.Version != 2 || c.Dense == nil || c.Lexical != nil {
		t.Fatalf("the older text's vector should have led to the newer text: %+v", found)
	}
	if now := find(t, w.search(everything(t), index.SearchRequest{Text: "Antwerp"}), "1"); now.Lexical == nil {
		t.Errorf("text search does not see the change: %+v", now)
	}
	if found := w.search(everything(t), index.SearchRequest{Text: "warehouse Rotterdam", FreshOnly: true}); len(found) != 0 {
		t.Errorf("fresh only, yet %+v", found)
	}
	w.embed("Goods are kept in Antwerp")
	c = find(t, w.search(everything(t), ask), "1")
	if c.Superseded || c.Matched != "" || !c.Embedded {
		t.Errorf("the older text still speaks for the newer one, which has a vector: %+v", c)
	}
	if found := w.search(everything(t), index.SearchRequest{Text: "Antwerp", FreshOnly: true}); len(found) != 1 {
		t.Errorf("a fresh row is not found: %+v", found)
	}
}

// A row that moved to another subject must not be reached through its past.
func TestSearchFollowsTheSubject(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "articles")
	w.put("articles", row{"1", "ann", "en", "salary of the night shift"})
	w.embed("salary of the night shift")
	w.put("articles", row{"1", "bob", "de", "bonus of the day shift"})
	for _, subject := range []string{"ann", "bob"} {
		for _, c := range w.search(subjects(t, subject), index.SearchRequest{Text: "salary of the night shift"}) {
			if subject == "ann" || c.Matched != "" {
				t.Errorf("%s is shown %+v", subject, c)
			}
		}
	}
}

func TestRareTermsWeighMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "articles")
	for i := range 50 {
		w.put("articles", row{fmt.Sprint(i), "ann", "en", fmt.Sprintf("common words number %d", i)})
	}
	w.put("articles", row{"rare", "ann", "en", "the axolotl number"})
	found := w.search(everything(t), index.SearchRequest{Text: "common axolotl"})
	rare := *find(t, found, "rare").Lexical
	for _, c := range found {
		if c.Key != key("rare") && c.Lexical != nil && *c.Lexical >= rare {
			t.Errorf("%q scores %v, no less than the rare term's %v", c.Text, *c.Lexical, rare)
		}
	}
}

// Whatever a question holds, it is a text and not a query language.
func TestQuestionsAreText(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "articles")
	w.put("articles", row{"1", "ann", "en", `it's a C:\temp & 'quoted' | (odd) text:* !here <-> now`})
	for _, q := range []string{`it's`, `'`, `\`, `C:\temp`, `& | ! ( )`, `a:*`, `<->`, `''quoted''`, "%s", "the of", "日本語", `\' or`} {
		w.search(everything(t), index.SearchRequest{Text: q})
	}
	if c := find(t, w.search(everything(t), index.SearchRequest{Text: `C:\temp 'quoted'`}), "1"); c.Lexical == nil {
		t.Error("the text is not found by its own words")
	}
}

// While a backfill still owes a head its columns, the text before it stays.
func TestSearchKeepsTheTextBeforeAnUnfinishedHead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "articles")
	w.put("articles", row{"1", "ann", "en", "ferry timetable"})
	w.embed("ferry timetable")
	w.exec(`with r as (update whence.records set version = 2, missing = '{body}' returning id)
insert into whence.versions (record_id, version, lsn, definition, columns, text, digest) select id, 2, '0/20', 1, '{}', '', sha256('') from r`)
	c := find(t, w.search(everything(t), index.SearchRequest{Text: "ferry"}), "1")
	if !c.Superseded || c.Text != "ferry timetable" || c.Matched != "" || c.Version != 1 || c.Lexical == nil || c.Dense == nil {
		t.Errorf("%+v", c)
	}
}
