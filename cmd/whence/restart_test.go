package main

import (
	"fmt"
	"testing"
	"time"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// A development server that is killed outright starts again at once in the same
// folder, has everything, and leaves no Postgres behind.
func TestKilledDevServerStartsAgain(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	args := []string{"dev", "--data", dir, "--listen", "127.0.0.1:0"}
	c := spawn(t, nil, args...)
	c.ready(t)
	w := attach(t, dir)
	w.exec(t, `create table public.ledger (id int primary key, what text not null)`)
	w.exec(t, `insert into public.ledger select i, 'juniper entry ' || i from generate_series(1, 30) i`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.ledger", TextColumns: []string{"what"}})
	limit := uint32(100)
	ask := &v1.QueryRequest{Text: "juniper entry", Limit: &limit}
	first := w.agent().query(t, ask)
	if len(first.GetHits()) != 30 {
		t.Fatalf("%d hits before", len(first.GetHits()))
	}
	// Committed an instant before the kill, so not captured yet.
	w.exec(t, `update public.ledger set what = what || ' corrected' where id <= 10`)
	c.kill()

	c = spawn(t, nil, args...)
	c.ready(t)
	w = attach(t, dir)
	eventually(t, showLimit, "the last change shows", func() error {
		corrected := 0
		hits := w.agent().query(t, ask).GetHits()
		for _, h := range hits {
			if id := h.GetOrigin().GetKey().GetFields()["id"].GetStringValue(); h.GetText() == "juniper entry "+id+" corrected" {
				corrected++
			}
		}
		if len(hits) != 30 || corrected != 10 {
			return fmt.Errorf("%d hits, %d corrected", len(hits), corrected)
		}
		return nil
	})
	var kept v1.GetAnswerResponse
	w.operator().must(t, "AuditService/GetAnswer", &v1.GetAnswerRequest{AnswerId: first.GetAnswerId()}, &kept)
	if n := len(kept.GetAnswer().GetHits()); n != 30 {
		t.Errorf("the answer of before has %d hits", n)
	}
	c.kill()
	eventually(t, 30*time.Second, "no process of the folder left", func() error {
		if left := processesOf(t, dir); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
}
