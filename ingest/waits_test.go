package ingest

import (
	"strings"
	"testing"

	"github.com/whence-db/whence"
)

// A table that does not get on says why, and stops saying so when it does.
func TestWhatATableWaitsFor(t *testing.T) {
	w := newDocs(t)
	waits := func(words ...string) {
		t.Helper()
		w.until("the table waits for "+strings.Join(words, ", "), func() (bool, string) {
			info, err := w.r.GetTable(t.Context(), docs)
			if err != nil {
				t.Fatal(err)
			}
			said := info.Status.WaitsFor
			for _, word := range words {
				if !strings.Contains(said, word) {
					return false, said
				}
			}
			return info.State == whence.TablePending, string(info.State) + " " + said
		})
	}
	w.register(docsSpec)
	waits("CONNECTING", "role capture")
	if _, err := w.r.PauseSource(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	waits("PAUSED", "resume")
	if _, err := w.r.ResumeSource(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	w.run()
	w.live(docs)
	tx, err := w.source.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	var pid, xid string
	if err := tx.QueryRow(t.Context(), `select pg_backend_pid()::text, pg_current_xact_id()::text`).Scan(&pid, &xid); err != nil {
		t.Fatal(err)
	}
	if err := w.r.UnregisterTable(t.Context(), docs); err != nil {
		t.Fatal(err)
	}
	w.register(docsSpec)
	waits("transactions", "backend "+pid)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if said := w.live(docs).Status.WaitsFor; said != "" {
		t.Errorf("a LIVE table waits for %q", said)
	}
}
