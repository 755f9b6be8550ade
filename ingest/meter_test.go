package ingest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
)

// tally is a Meter that adds up.
type tally struct {
	mu                                                sync.Mutex // guards what follows
	changes, transactions, units                      int64
	streams, failures, comparedSources, comparedTable int
}

func (m *tally) Applied(_ string, changes, transactions int64, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes, m.transactions = m.changes+changes, m.transactions+transactions
	if took > 0 {
		m.units++
	}
}

func (m *tally) Streaming(string) { m.mu.Lock(); m.streams++; m.mu.Unlock() }
func (m *tally) Failed(string)    { m.mu.Lock(); m.failures++; m.mu.Unlock() }

func (m *tally) Compared(_ string, whole bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if whole {
		m.comparedSources++
	} else {
		m.comparedTable++
	}
}

func (m *tally) read() tally {
	m.mu.Lock()
	defer m.mu.Unlock()
	return tally{changes: m.changes, transactions: m.transactions, units: m.units, streams: m.streams,
		failures: m.failures, comparedSources: m.comparedSources, comparedTable: m.comparedTable}
}

func TestMeterIsToldWhatHappens(t *testing.T) {
	w := newDocs(t)
	m := &tally{}
	w.meter = m
	w.register(docsSpec)
	w.run()
	info := w.live(docs)
	w.exec(w.source, `insert into docs (id, title) select i, 'title ' || i from generate_series(1, 2500) i`)
	w.exec(w.source, `update docs set title = 'x' where id < 3`)
	w.exec(w.source, `create table unregistered (id int); insert into unregistered values (1)`)
	w.caughtUp()
	w.until("what was applied is told", func() (bool, string) {
		got := m.read()
		return got.changes == 2502 && got.transactions == 2 && got.units >= 1 && got.units <= 2 && got.streams == 1 && got.failures == 0, fmt.Sprintf("%+v", &got)
	})
	w.query(w.source.Pool, `select pg_terminate_backend(pid)::text from pg_stat_activity
where datname = $1 and application_name = 'whence capture' and backend_type = 'walsender'`, w.source.Name)
	w.exec(w.source, `insert into docs (id, title) values (-1, 'after')`)
	w.caughtUp()
	w.until("the lost connection is counted", func() (bool, string) {
		got := m.read()
		return got.streams == 2 && got.failures >= 1, fmt.Sprintf("%+v", &got)
	})
	w.kill()
	s, err := w.r.GetSource(t.Context(), "app")
	if err != nil {
		t.Fatal(err)
	}
	sink := newSink(w.r, s, func() {})
	sink.meter = m
	if err := sink.CopyAgain(t.Context(), info.ID, info.Definition, 0, "for a test"); err != nil {
		t.Fatal(err)
	}
	w.until("nobody reads the slot", func() (bool, string) {
		n := w.query(w.source.Pool, `select slot_name::text from pg_replication_slots where slot_name = $1 and active`, s.Slot)
		return len(n) == 0, fmt.Sprint(n)
	})
	w.exec(w.source, `select pg_drop_replication_slot($1)`, s.Slot)
	w.run()
	w.live(docs)
	if got := m.read(); got.comparedTable != 1 || got.comparedSources != 1 {
		t.Errorf("told of %+v", &got)
	}
}

// The rate is told from what is durable: it does not begin anew with another
// process, falls while capture stands still, and comes back.
func TestApplyRate(t *testing.T) {
	w := newWorldWithoutSource(t)
	w.exec(w.memory, `insert into whence.sources (name, dsn_env, slot, publication) values ('app', 'X', 's', 'p')`)
	rate := func() (float64, *sink) {
		s, err := w.r.GetSource(t.Context(), "app")
		if err != nil {
			t.Fatal(err)
		}
		k := newSink(w.r, s, func() {})
		if _, _, err := k.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		return s.ApplyRate, k
	}
	_, k := rate()
	if err := k.Attach(t.Context(), 1, cdc.Cluster{System: "1", Timeline: 1}); err != nil {
		t.Fatal(err)
	}
	if r, _ := rate(); r >= 0 {
		t.Errorf("a rate of %v is told at once", r)
	}
	apply := func(changes int64, at whence.LSN) {
		_, k := rate()
		u, err := k.begin(context.Background(), whole)
		if err != nil {
			t.Fatal(err)
		}
		u.changes = changes
		if err := u.Commit(t.Context(), cdc.Progress{LSN: at}); err != nil {
			t.Fatal(err)
		}
	}
	// Time passes by moving what is stored into the past.
	pass := func(seconds int) {
		w.exec(w.memory, `update whence.checkpoints set mark_at = mark_at - $1 * interval '1 s', prior_at = prior_at - $1 * interval '1 s'`, seconds)
	}
	about := func(when string, want float64) {
		t.Helper()
		if r, _ := rate(); r < 0.5*want || r > 1.05*want { // the machine may be slow, and time passes meanwhile
			t.Errorf("%s: %v a second, want about %v", when, r, want)
		}
	}
	pass(8)
	apply(8000, 10)
	about("from the beginning on", 1000)
	pass(8)
	apply(8000, 20) // the mark moves
	about("before there are two marks", 1000)
	for i := range whence.LSN(6) {
		pass(8)
		apply(80, 30+i)
	}
	about("once the burst is long ago", 10)
	pass(1000)
	if r, _ := rate(); r > 1 {
		t.Errorf("capture has stood still for long and the rate is %v", r)
	}
}

func TestSurvey(t *testing.T) {
	w := newDocs(t)
	w.exec(w.source, `insert into docs (id, title, owner) values (1, 'one', repeat('a', 3000)), (2, 'two', 'ann'), (3, 'two', 'ann')`)
	w.register(docsSpec)
	w.run()
	info := w.live(docs)
	s, err := w.r.Survey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Sources) != 1 || len(s.Tables) != 1 || s.Tables[0].Status.RowsDone != 3 || s.SetAside[info.ID] != 1 || s.Pending[info.ID] != 2 {
		t.Errorf("surveyed %+v", s)
	}
}
