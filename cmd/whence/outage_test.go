package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/whence-db/whence/embedder/embeddertest"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// While the embedding server is away, questions are answered without vectors and
// what changes is stale; once it is back everything becomes fresh, and no text
// was embedded twice.
func TestEmbeddingServerAway(t *testing.T) {
	t.Parallel()
	for name, url := range stands {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			model, err := embeddertest.Start(embeddertest.Config{Model: "test-model"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(model.Close)
			w := startDev(t, "--embedder", name, "--embedder-url", url(model), "--embedder-model", "test-model",
				"--embedder-dimensions", "64", "--embedder-timeout", "2s")
			const rows = 20
			w.exec(t, `create table public.garden (id int primary key, what text not null)`)
			w.exec(t, `insert into public.garden select i, 'marigold bed ' || i from generate_series(1, $1) i`, rows)
			w.register(t, &v1.RegisterTableRequest{Table: "public.garden", TextColumns: []string{"what"}})

			limit, asked := uint32(100), 0
			ask := func() *v1.QueryResponse {
				asked++ // a question of its own each time, or its vector would be remembered
				return w.agent().query(t, &v1.QueryRequest{Text: fmt.Sprintf("marigold question %d", asked), Limit: &limit})
			}
			states := func(res *v1.QueryResponse) map[string]string {
				m := map[string]string{}
				for _, h := range res.GetHits() {
					m[h.GetText()] = freshnessText(h.GetFreshness())
				}
				return m
			}
			want := func(changed string) map[string]string {
				m := map[string]string{}
				for i := 1; i <= rows; i++ {
					switch {
					case i == 1: // deleted
					case i <= 6:
						m[fmt.Sprintf("marigold bed %d, replanted", i)] = changed
					default:
						m[fmt.Sprintf("marigold bed %d", i)] = "FRESH"
					}
				}
				m["marigold bed 21"] = changed
				return m
			}
			res := ask()
			if len(res.GetHits()) != rows || res.GetDegraded() {
				t.Fatalf("before: %d hits, degraded %q", len(res.GetHits()), res.GetDegradedReason())
			}

			used := w.usage(t)
			if used.GetEmbeddingCalls() != 1 || used.GetEmbeddingTokens() == 0 {
				t.Errorf("the first question used %v", used)
			}
			asked-- // the same question again costs nothing
			if ask(); w.usage(t).GetEmbeddingCalls() != 1 {
				t.Errorf("a question whose vector was remembered used %v", w.usage(t))
			}

			model.SwitchOff()
			w.exec(t, `update public.garden set what = what || ', replanted' where id between 2 and 6`)
			w.exec(t, `insert into public.garden values (21, 'marigold bed 21')`)
			w.exec(t, `delete from public.garden where id = 1`)
			eventually(t, showLimit, "changes show without vectors", func() error { return same(states(ask()), want("STALE SOURCE_CHANGED")) })
			for range 5 { // and stay so
				res := ask()
				if err := same(states(res), want("STALE SOURCE_CHANGED")); err != nil {
					t.Fatal(err)
				}
				if !res.GetDegraded() || res.GetDegradedReason() == "" {
					t.Fatalf("an answer without vectors does not say so: %v", res)
				}
				time.Sleep(100 * time.Millisecond)
			}

			if err := model.SwitchOn(); err != nil {
				t.Fatal(err)
			}
			back := time.Now()
			eventually(t, 30*time.Second, "all fresh", func() error { return same(states(ask()), want("FRESH")) })
			t.Logf("all fresh %v after the server came back", time.Since(back).Round(time.Millisecond))
			eventually(t, showLimit, "not degraded", func() error {
				if res := ask(); res.GetDegraded() {
					return fmt.Errorf("still degraded: %s", res.GetDegradedReason())
				}
				return nil
			})
			for text, n := range model.AllEmbedded() {
				if n > 1 && !strings.Contains(text, "question") {
					t.Errorf("%q was embedded %d times", text, n)
				}
			}
			for text := range want("FRESH") {
				if n := model.Embedded(text); n != 1 {
					t.Errorf("%q was embedded %d times, want once", text, n)
				}
			}
		})
	}
}

func same(got, want map[string]string) error {
	for k, v := range want {
		if got[k] != v {
			return fmt.Errorf("%q is %q, want %q", k, got[k], v)
		}
	}
	for k, v := range got {
		if _, ok := want[k]; !ok {
			return fmt.Errorf("%q shows as %q", k, v)
		}
	}
	return nil
}

// usage is what the agent's task has used so far.
func (w *running) usage(t *testing.T) *v1.Usage {
	t.Helper()
	var res v1.GetTaskResponse
	w.agent().must(t, "TaskService/GetTask", &v1.GetTaskRequest{}, &res)
	return res.GetTask().GetUsage()
}
