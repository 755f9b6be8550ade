package query_test

import (
	"fmt"
	"testing"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest"
	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/query"
)

func TestExplainSaysWhatCameClose(t *testing.T) {
	w := newWorld(t, lexical.Default())
	for i := range 6 {
		w.put(row{id: fmt.Sprint(i), owner: "ann", lang: "en", text: fmt.Sprintf("alpha in sentence number %d", i)})
	}
	w.put(row{id: "new", owner: "ann", lang: "en", text: "nothing of the kind"}, row{id: "bob", owner: "bob", lang: "en", text: "alpha alpha"})
	w.fill()
	ann := authztest.Scope(t, authz.ScopeSpec{AllTables: true, Subjects: []string{"ann"}})
	weight := 0.25
	a, err := w.e.Query(t.Context(), ann, query.Request{Text: "alpha", Limit: 2, Explain: true, Recency: query.Recency{Weight: &weight}})
	if err != nil {
		t.Fatal(err)
	}
	x := a.Explained
	if x == nil || len(a.Hits) != 2 || x.RecencyWeight != weight || x.ByTerms != 6 || x.ByVector != 7 || x.ByRecency != 7 {
		t.Fatalf("%d hits, %+v", len(a.Hits), x)
	}
	if a.Hits[0].Legs != index.ByTerms|index.ByVector|index.ByTime {
		t.Errorf("the best hit was found by %b", a.Hits[0].Legs)
	}
	last := a.Hits[1].Score.Final
	if len(x.LeftOut) < 4 || len(x.LeftOut) > 5 {
		t.Errorf("%d are left out", len(x.LeftOut))
	}
	for _, l := range x.LeftOut {
		if l.Repeats || l.Score.Final > last || *l.Subject != "ann" {
			t.Errorf("%+v is left out after one of %v", l, last)
		}
		last = l.Score.Final
	}
	if a, err = w.e.Query(t.Context(), ann, query.Request{Text: "alpha", Limit: 2}); err != nil || a.Explained != nil {
		t.Errorf("explained without being asked: %+v, %v", a.Explained, err)
	}
}
