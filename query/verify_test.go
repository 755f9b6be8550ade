package query_test

import (
	"slices"
	"testing"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest"
	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/query"
)

func TestVerifyComparesWithTheSource(t *testing.T) {
	w := newWorld(t, lexical.Default())
	same := row{id: "1", owner: "ann", lang: "en", text: "alpha one"}
	changed := row{id: "2", owner: "ann", lang: "en", text: "alpha two"}
	deleted := row{id: "3", owner: "ann", lang: "en", text: "alpha three"}
	moved := row{id: "4", owner: "ann", lang: "en", text: "alpha four"}
	translated := row{id: "5", owner: "ann", lang: "en", text: "alpha five"}
	w.put(same, changed, deleted, moved, translated)
	now2, now4, now5 := changed, moved, translated
	now2.text, now4.owner, now5.lang = "alpha two, corrected", "bob", "de"
	w.live = map[whence.Key]*whence.LiveRow{
		`{"id":"1"}`: source(same), `{"id":"2"}`: source(now2), `{"id":"4"}`: source(now4), `{"id":"5"}`: source(now5)}
	w.set(func(_ *whence.Table, s *whence.SourceState) { s.Paused = true }) // nothing can be FRESH
	ann := authztest.Scope(t, authz.ScopeSpec{AllTables: true, Subjects: []string{"ann"}, Filter: map[string]string{"lang": "en"}})
	ask := query.Request{Text: "alpha", Consistency: query.Consistency{Verify: true}}
	a, err := w.e.Query(t.Context(), ann, ask)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Hits) != 5 {
		t.Fatalf("%d hits, want 5", len(a.Hits))
	}
	for _, h := range a.Hits {
		id, f, text := *h.Origin.Key.Values()["id"], h.Freshness, ""
		if h.LiveText != nil {
			text = *h.LiveText
		}
		want := map[string]struct {
			state  whence.FreshnessState
			reason whence.FreshnessReason
			text   string
		}{
			"1": {whence.Verified, "", ""},
			"2": {whence.Stale, whence.SourceChanged, "alpha two, corrected"},
			"3": {whence.Stale, whence.SourceDeleted, ""},
			"4": {whence.Stale, whence.SourceChanged, ""}, // bob's by now
			"5": {whence.Stale, whence.SourceChanged, ""}, // outside the filter by now
		}[id]
		if f.State != want.state || text != want.text || want.reason != "" && !slices.Contains(f.Reasons, want.reason) || want.reason == "" && len(f.Reasons) > 0 {
			t.Errorf("row %s is %+v and reads %q now, want %+v", id, f, text, want)
		}
	}

	w.set(func(_ *whence.Table, s *whence.SourceState) { s.Paused = false })
	w.set(func(tab *whence.Table, _ *whence.SourceState) { tab.SetAside = true })
	w.lacking = true
	a, err = w.e.Query(t.Context(), ann, ask)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range a.Hits {
		if h.Freshness.State == whence.Verified {
			t.Errorf("row %s was not taken over whole, yet it is %+v", h.Origin.Key, h.Freshness)
		}
	}
	w.lacking = false
	w.down = true
	if _, err := w.e.Query(t.Context(), ann, ask); reason(err) != "SOURCE_UNREACHABLE" {
		t.Errorf("the source is down: %v", err)
	}
}
