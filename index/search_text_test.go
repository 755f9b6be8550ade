package index_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/whence-db/whence/index"
)

// crowdOfTexts adds n rows of a subject: every text holds "common", half of them
// "even", one in twenty "scarce", the first 5,000 and a hundred towards the end "west", all after
// these "east", and the thousandth has a word of its own.
func (w *world) crowdOfTexts(subject string, n int, own string) {
	w.t.Helper()
	w.exec(`
with n as (
    select i, jsonb_build_object('id', $1::text || i)::text as key, concat_ws(' ', 'common', case when i % 2 = 0 then 'even' end,
        case when i % 20 = 5 then 'scarce' end,
        case when i <= 5000 or i between 11800 and 11899 then 'west' end, case when i > 5000 then 'east' end, case when i = 1000 then $3::text end, 'number', i) as text
    from generate_series(1, $2::int) i
), rec as (
    insert into whence.records (table_id, key, version, lsn, subject) select $4, key, 1, '0/10', $1 from n returning id, key
), ver as (
    insert into whence.versions (record_id, version, lsn, definition, columns, text, digest)
    select id, 1, '0/10', 1, '{}', text, sha256(text::bytea) from rec join n using (key)
)
insert into whence.chunks (record_id, table_id, version, ordinal, span_start, span_end, text, digest, subject)
select id, $4, 1, 0, 0, length(text), text, sha256(text::bytea), $1 from rec join n using (key) order by i`,
		subject, n, own, w.tables["articles"].ID)
}

// Within bounds that are too wide to count in, a sample tells common terms from
// rare ones: the rare are found for certain, and weigh more.
func TestTermsOfWideBounds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "articles")
	w.crowdOfTexts("ann", 12_000, "axolotl")
	w.exec(`analyze whence.chunks, whence.records`)
	best := func(question string) (texts []string, found []index.Candidate) {
		found = w.search(subjects(t, "ann"), index.SearchRequest{Text: question, Limit: 50})
		var top float64
		for _, c := range found {
			if c.Lexical == nil {
				continue
			}
			if *c.Lexical > top {
				top, texts = *c.Lexical, nil
			}
			if *c.Lexical == top {
				texts = append(texts, c.Text)
			}
		}
		return texts, found
	}
	holds := func(question string, words ...string) {
		t.Helper()
		texts, found := best(question)
		if len(found) < 50 {
			t.Errorf("%s: %d found", question, len(found))
		}
		for _, text := range texts {
			for _, word := range words {
				if !strings.Contains(text, word) {
					t.Errorf("%s: %q is best", question, text)
				}
			}
		}
	}
	holds("common axolotl", "axolotl")
	holds("axolotl even scarce", "axolotl", "even") // no text has all three
	holds("even common", "even", "common")
	holds("east west", "east", "west") // 100 of 12,000, beyond the thousands of either, and not the newest
	holds("common east west", "east", "west")
	holds("even scarce", "scarce") // one in twenty weighs more than every other
	texts, before := best("common number axolotl")
	if len(texts) != 1 {
		t.Errorf("%d texts are best", len(texts))
	}
	w.crowdOfTexts("bob", 12_000, "axolotl")
	w.exec(`update whence.chunks set text = text || ' axolotl' where subject = 'bob'; analyze whence.chunks`)
	if _, after := best("common number axolotl"); !cmp.Equal(before, after) {
		t.Errorf("another subject's rows changed the answer: %s", cmp.Diff(before, after))
	}
}
