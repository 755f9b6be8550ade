package main

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/whence-db/whence/embedder/embeddertest"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// The embedding model is changed as the documentation tells it, with a kill in
// between: questions find everything all the time, by the one model or the other.
func TestModelIsChangedWhileServing(t *testing.T) {
	t.Parallel()
	const rows = 60
	model, err := embeddertest.Start(embeddertest.Config{Model: "better"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(model.Close)
	dir := dataDir(t)
	start := func(flags ...string) (*child, *running) {
		t.Helper()
		c := spawn(t, nil, append([]string{"dev", "--data", dir, "--listen", "127.0.0.1:0"}, flags...)...)
		c.ready(t)
		return c, attach(t, dir)
	}
	served := func(prefix string) []string {
		return []string{prefix + "embedder", "openai", prefix + "embedder-url", model.URL(), prefix + "embedder-model", "better", prefix + "embedder-dimensions", "64"}
	}
	limit := uint32(100)
	by := func(w *running, name string, want int) {
		t.Helper()
		eventually(t, showLimit, "every row is found by "+name, func() error {
			a := w.agent().query(t, &v1.QueryRequest{Text: "heather entry", Limit: &limit})
			n := 0
			for _, h := range a.GetHits() {
				if strings.Contains(h.GetEmbedding().GetModel(), name) && h.GetFreshness().GetState() == v1.FreshnessState_FRESHNESS_STATE_FRESH {
					n++
				}
			}
			if n != want || a.GetDegraded() {
				return fmt.Errorf("%d of %d, degraded %t", n, want, a.GetDegraded())
			}
			return nil
		})
	}

	c, w := start()
	w.exec(t, `create table public.diary (id int primary key, what text not null)`)
	w.exec(t, `insert into public.diary select i, 'heather entry ' || i from generate_series(1, $1::int) i`, rows)
	w.register(t, &v1.RegisterTableRequest{Table: "public.diary", TextColumns: []string{"what"}})
	by(w, "lexical", rows)
	w.cli(t, "space", "create").is(t, 1, "every model of this server", "--next-embedder")
	c.kill()

	c, w = start(served("--next-")...)
	w.cli(t, "space", "create", "--dry-run").is(t, 0, fmt.Sprintf("%d texts to embed", rows))
	w.cli(t, "space", "list").is(t, 0, "lexical", "CURRENT")
	model.SwitchOff() // so that the kill comes before the end
	w.cli(t, "space", "create").is(t, 0, "STANDBY", fmt.Sprintf("0/%d", rows))
	w.cli(t, "space", "create", "better").is(t, 1, "there is a space")
	old, next := w.spaceOf(t, "lexical"), w.spaceOf(t, "better")
	w.cli(t, "space", "delete", old).is(t, 1, "switch to another")
	w.cli(t, "space", "switch", next).is(t, 1, "have none yet in space "+next)
	by(w, "lexical", rows)
	c.kill()
	if err := model.SwitchOn(); err != nil {
		t.Fatal(err)
	}

	c, w = start(served("--next-")...)
	w.exec(t, `insert into public.diary values ($1, 'heather entry of the day')`, rows+1)
	by(w, "lexical", rows+1)
	// What the killed process had claimed is lent to it for two minutes; they pass.
	if _, err := w.memory.Exec(t.Context(), `update whence.vectors set not_before = not_before - interval '2 minutes' where lease is not null`); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the new space is full", func() error {
		o := w.cli(t, "space", "list")
		if !strings.Contains(o.out, fmt.Sprintf("STANDBY  %d/%[1]d", rows+1)) {
			return fmt.Errorf("%s", o.out)
		}
		return nil
	})
	w.cli(t, "space", "switch", next).is(t, 0, "CURRENT")
	by(w, "better", rows+1)
	w.exec(t, `update public.diary set what = what || ', corrected' where id <= 5`)
	by(w, "better", rows+1)
	w.cli(t, "space", "delete", old).is(t, 0, "DELETING")
	eventually(t, showLimit, "the old space is gone", func() error {
		if o := w.cli(t, "space", "list"); strings.Contains(o.out, "lexical") {
			return fmt.Errorf("%s", o.out)
		}
		return nil
	})
	w.cli(t, "table", "reembed", "app.public.diary").is(t, 0, fmt.Sprintf("anew: %d", rows+1))
	eventually(t, showLimit, "all vectors were made anew", func() error {
		if o := w.cli(t, "table", "get", "app.public.diary"); strings.Contains(o.out, "anew") {
			return fmt.Errorf("%s", o.out)
		}
		return nil
	})
	if n := model.Embedded("heather entry 9"); n != 2 {
		t.Errorf("a text was embedded %d times by the new model, want 2", n)
	}
	c.kill()

	refused := spawn(t, nil, "dev", "--data", dir, "--listen", "127.0.0.1:0")
	<-refused.ended
	if said := refused.log.String(); !strings.Contains(said, "better") || !strings.Contains(said, "--next-embedder") {
		t.Errorf("the old model alone is not refused: %s", said)
	}
	_, w = start(served("--")...)
	by(w, "better", rows+1)
}

// spaceOf returns the ID of the space of a model, which need not be the next number.
func (w *running) spaceOf(t *testing.T, model string) string {
	t.Helper()
	var all v1.ListSpacesResponse
	w.operator().must(t, "AdminService/ListSpaces", &v1.ListSpacesRequest{}, &all)
	for _, s := range all.GetSpaces() {
		if strings.Contains(s.GetModel(), model) {
			return strconv.Itoa(int(s.GetId()))
		}
	}
	t.Fatalf("no space of %s: %v", model, &all)
	return ""
}
