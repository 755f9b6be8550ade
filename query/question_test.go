package query_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/query"
)

// asking lets something happen while the first question is at the model.
type asking struct {
	embedder.Model
	once sync.Once
	do   func()
}

func (m *asking) EmbedQuery(ctx context.Context, text string) ([]float32, error) {
	m.once.Do(m.do)
	return m.Model.EmbedQuery(ctx, text)
}

// A question that is under way when the model is changed is answered by the new
// model's vectors, like all that come after.
func TestQueryFollowsTheModel(t *testing.T) {
	next, err := lexical.New(lexical.Config{Dimensions: 256})
	if err != nil {
		t.Fatal(err)
	}
	first := &asking{Model: lexical.Default()}
	w := newWorld(t, first, next)
	w.put(row{"1", "ann", "en", "How to reset a forgotten password", time.Hour}, row{"2", "ann", "en", "Lunch is served at noon", time.Hour})
	w.fill()
	made, err := w.x.CreateSpace(t.Context(), next)
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.filler.Run(ctx) }()
	first.do = func() {
		for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
			err := w.x.SwitchSpace(t.Context(), made.ID, false)
			if err == nil || time.Since(began) > time.Minute {
				return
			}
		}
	}
	r := query.Request{Text: "reset my password"}
	w.e.EmbedTimeout = time.Minute
	for _, when := range []string{"during the switch", "after it"} {
		a := w.ask(everything(t), r)
		if a.Degraded != "" || len(a.Hits) == 0 || a.Hits[0].Embedding == nil || a.Hits[0].Embedding.Model != next.Name() || a.Hits[0].Score.Dense == nil {
			t.Errorf("%s: %q %+v", when, a.Degraded, a.Hits)
		}
	}
	end()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}

	// A server that has the old model alone can still search by text.
	only, err := query.New(query.Config{Index: w.x, Registry: w, Pool: w.db.Pool, Models: []embedder.Model{lexical.Default()}})
	if err != nil {
		t.Fatal(err)
	}
	a, err := only.Query(t.Context(), everything(t), r)
	if err != nil || !strings.HasPrefix(a.Degraded, "MODEL_MISMATCH: ") || len(a.Hits) == 0 || *a.Hits[0].Origin.Key.Values()["id"] != "1" {
		t.Errorf("with another model: %v %q %+v", err, a.Degraded, a.Hits)
	}
}
