package action

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/pgtest"
)

var steps = []string{"begun", "checked", "locked", "written", "flushed", "prepared", "committed"}

// killAt ends the runner's connections to the source once it has done a step.
func (w *world) killAt(step string) {
	w.runner.step = func(done string) {
		if done != step {
			return
		}
		w.runner.step = func(string) {}
		w.exec(`select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database() and application_name = 'whence action'`)
	}
}

// Wherever the source ends the connection, what is told of the run, the fate of its
// transaction and the table agree.
func TestKilledBetweenSteps(t *testing.T) {
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			w := open(t, tickets)
			w.register(ticketSpec)
			before := w.rows("tickets")
			d := onRows(Update, ticketTable, []string{"id"}, []string{"title"})
			args, err := Arguments(d, d.arguments(map[string]string{"id": "1"}, map[string]string{"title": "new"}))
			w.check(err)
			w.killAt(step)
			var k kept
			res, err := w.runner.Run(t.Context(), Request{Action: d, Args: args, Scope: everything(t)}, k.prepare)
			changed := cmp.Diff(before, w.rows("tickets")) != ""
			if step == "committed" {
				if err != nil || res.Token != "" || !changed {
					t.Errorf("killed after the commit: %v, token %q, changed %v", err, res.Token, changed)
				}
			} else if err == nil || changed {
				t.Errorf("killed before the commit: %v, changed %v", err, changed)
			}
			if step == "prepared" && !errors.Is(err, ErrUncertain) {
				t.Errorf("a commit without an answer: %v", err)
			}
			if step != "flushed" && step != "prepared" && errors.Is(err, ErrUncertain) {
				t.Errorf("uncertain before anything was committed: %v", err)
			}
			if refusal(err) != "" && refusal(err) != "SOURCE_UNREACHABLE" && refusal(err) != "EXECUTION_UNCERTAIN" {
				t.Errorf("the reason is %q", refusal(err))
			}
			if k.out.XID == "" { // nothing was written down, and nothing is there
				return
			}
			want := Aborted
			if changed {
				want = Committed
			}
			if fate, err := w.runner.Fate(t.Context(), "app", k.out.XID, k.out.SystemID, k.out.Timeline); fate != want || err != nil {
				t.Errorf("the fate is %s, %v, and changed is %v", fate, err, changed)
			}
			// The next run goes on as if nothing had been.
			if _, err := w.run(d, d.arguments(map[string]string{"id": "1"}, map[string]string{"title": "again"}), everything(t)); err != nil {
				t.Errorf("the run after: %v", err)
			}
		})
	}
}

func TestUndoKilledBetweenSteps(t *testing.T) {
	for _, step := range []string{"checked", "reverted", "prepared"} {
		t.Run(step, func(t *testing.T) {
			w := open(t, tickets)
			w.register(ticketSpec)
			d := onRows(Delete, ticketTable, []string{"team"}, nil)
			d.Row.MaxRows = 2
			before := w.rows("tickets")
			out, err := w.run(d, d.arguments(map[string]string{"team": "red"}, nil), everything(t))
			w.check(err)
			gone := w.rows("tickets")
			w.killAt(step)
			if err := w.undo(d, out.Effects, everything(t)); err == nil {
				t.Error("an undo that was killed succeeded")
			}
			if diff := cmp.Diff(gone, w.rows("tickets")); diff != "" {
				t.Errorf("half an undo: %s", diff)
			}
			w.check(w.undo(d, out.Effects, everything(t)))
			if diff := cmp.Diff(before, w.rows("tickets")); diff != "" {
				t.Errorf("after the undo: %s", diff)
			}
		})
	}
}

// deaf passes bytes on to a server and, once it is deaf, no answers back.
type deaf struct {
	l    net.Listener
	to   string
	on   atomic.Bool
	wait sync.WaitGroup
}

func newDeaf(t *testing.T, to string) *deaf {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &deaf{l: l, to: to}
	d.wait.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			d.wait.Go(func() { d.serve(near) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); d.wait.Wait() })
	return d
}

func (d *deaf) serve(near net.Conn) {
	defer func() { _ = near.Close() }()
	far, err := net.Dial("tcp", d.to)
	if err != nil {
		return
	}
	d.wait.Go(func() {
		_, _ = io.Copy(far, near)
		_ = far.Close()
	})
	b := make([]byte, 1<<16)
	for {
		n, err := far.Read(b)
		if err != nil || d.on.Load() {
			return
		}
		if _, err := near.Write(b[:n]); err != nil {
			return
		}
	}
}

// A commit whose answer is lost took effect, and its fate says so.
func TestLostAnswerOfACommit(t *testing.T) {
	t.Parallel()
	source := pgtest.Empty(t)
	u, err := url.Parse(source.DSN)
	if err != nil {
		t.Fatal(err)
	}
	way := newDeaf(t, u.Host)
	u.Host = way.l.Addr().String()
	w := openAt(t, source, u.String(), tickets)
	t.Cleanup(w.registry.Close) // before the way to the source goes
	w.register(ticketSpec)
	d := onRows(Update, ticketTable, []string{"id"}, []string{"title"})
	args, err := Arguments(d, d.arguments(map[string]string{"id": "1"}, map[string]string{"title": "new"}))
	w.check(err)
	w.runner.step = func(s string) { way.on.Store(s == "prepared") }
	var k kept
	_, err = w.runner.Run(t.Context(), Request{Action: d, Args: args, Scope: everything(t)}, k.prepare)
	if !errors.Is(err, ErrUncertain) || refusal(err) != "EXECUTION_UNCERTAIN" {
		t.Fatalf("a commit whose answer is lost: %v", err)
	}
	way.on.Store(false)
	w.runner.step = func(string) {}
	var fate Fate
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		fate, err = w.runner.Fate(t.Context(), "app", k.out.XID, k.out.SystemID, k.out.Timeline)
		if err == nil && fate != InProgress {
			break
		}
	}
	if fate != Committed || err != nil {
		t.Errorf("its fate is %s, %v", fate, err)
	}
	w.check(w.undo(d, k.out.Effects, everything(t)))
}

func TestFateThatIsNotKnown(t *testing.T) {
	w := open(t, tickets)
	w.register(ticketSpec)
	d := onRows(Update, ticketTable, []string{"id"}, []string{"title"})
	out, err := w.run(d, d.arguments(map[string]string{"id": "1"}, map[string]string{"title": "new"}), everything(t))
	w.check(err)
	for name, c := range map[string]struct {
		xid, system string
		timeline    int32
		want        Fate
	}{
		"itself":           {out.XID, out.SystemID, out.Timeline, Committed},
		"another cluster":  {out.XID, "1" + out.SystemID, out.Timeline, Unknown},
		"another timeline": {out.XID, out.SystemID, out.Timeline + 1, Unknown},
		"no cluster":       {out.XID, "", out.Timeline, Unknown},
		"the future":       {"4000000000", out.SystemID, out.Timeline, Unknown},
	} {
		if fate, err := w.runner.Fate(t.Context(), "app", c.xid, c.system, c.timeline); fate != c.want || err != nil {
			t.Errorf("%s: %s, %v", name, fate, err)
		}
	}
	if _, err := w.runner.Fate(t.Context(), "app", "1; drop table tickets", out.SystemID, out.Timeline); err == nil {
		t.Error("what is no transaction id was asked for")
	}
	var inProgress Fate
	w.runner.step = func(s string) {
		if s == "prepared" {
			var xid string
			w.check(w.source.Pool.QueryRow(context.Background(), `select (backend_xid::text) from pg_stat_activity where application_name = 'whence action' and datname = current_database() and backend_xid is not null`).Scan(&xid))
			inProgress, err = w.runner.Fate(context.Background(), "app", xid, out.SystemID, out.Timeline)
			w.check(err)
		}
	}
	if _, err := w.run(d, d.arguments(map[string]string{"id": "2"}, map[string]string{"title": "new"}), everything(t)); err != nil || inProgress != InProgress {
		t.Errorf("before the commit its fate was %s, %v", inProgress, err)
	}
}

// After a crash of the source, the id of a transaction that was written down is not
// given to another one, whose fate would be taken for its own.
func TestCrashDoesNotGiveTheIDAway(t *testing.T) {
	t.Parallel()
	cluster := pgtest.OwnCluster(t, map[string]string{"wal_writer_delay": "10s", "fsync": "on", "autovacuum": "off"})
	pool, err := pg.NewPool(t.Context(), cluster.DSN("postgres"), 4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	w := openAt(t, &pgtest.DB{Pool: pool, DSN: cluster.DSN("postgres"), Name: "postgres"}, cluster.DSN("postgres"), tickets, `checkpoint`)
	w.register(ticketSpec)
	before := w.rows("tickets")
	d := onRows(Update, ticketTable, []string{"id"}, []string{"title"})
	args, err := Arguments(d, d.arguments(map[string]string{"id": "1"}, map[string]string{"title": "new"}))
	w.check(err)
	w.runner.step = func(s string) {
		if s == "prepared" {
			cluster.Kill()
			<-cluster.Done()
		}
	}
	var k kept
	if _, err := w.runner.Run(t.Context(), Request{Action: d, Args: args, Scope: everything(t)}, k.prepare); !errors.Is(err, ErrUncertain) {
		t.Fatalf("a crash before the commit: %v", err)
	}
	w.check(cluster.Restart(t.Context()))
	w.registry.Close()
	for i := range 50 { // others take ids
		if _, err := pool.Exec(t.Context(), fmt.Sprintf(`create table others%d ()`, i)); err != nil && i > 5 {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(before, w.rows("tickets")); diff != "" {
		t.Fatalf("the run took effect: %s", diff)
	}
	if fate, err := w.runner.Fate(t.Context(), "app", k.out.XID, k.out.SystemID, k.out.Timeline); fate != Aborted || err != nil {
		t.Errorf("its fate is %s, %v", fate, err)
	}
}

// Only the cluster that is captured is written to; what became of a transaction is
// asked of whichever is there.
func TestAnotherClusterIsNotWrittenTo(t *testing.T) {
	w := open(t, tickets)
	w.register(ticketSpec)
	d := onRows(Update, ticketTable, []string{"id"}, []string{"title"})
	raw := d.arguments(map[string]string{"id": "1"}, map[string]string{"title": "new"})
	out, err := w.run(d, raw, everything(t))
	w.check(err)
	captured := func(system string, timeline int32) {
		_, err := w.memory.Pool.Exec(t.Context(), `update whence.sources set system_id = $1, timeline = $2`, system, timeline)
		w.check(err)
	}
	args, err := Arguments(d, raw)
	w.check(err)
	for name, c := range map[string]struct {
		system   string
		timeline int32
		reason   string
	}{
		"this one":         {out.SystemID, out.Timeline, ""},
		"another":          {"7000000000000000000", out.Timeline, "SOURCE_UNREACHABLE"},
		"another timeline": {out.SystemID, out.Timeline + 1, "SOURCE_UNREACHABLE"},
	} {
		captured(c.system, c.timeline)
		var k kept
		if _, err := w.runner.Run(t.Context(), Request{Action: d, Args: args, Scope: everything(t)}, k.prepare); refusal(err) != c.reason {
			t.Errorf("%s: %v", name, err)
		}
		if fate, err := w.runner.Fate(t.Context(), "app", out.XID, out.SystemID, out.Timeline); fate != Committed || err != nil {
			t.Errorf("%s: the fate is %s, %v", name, fate, err)
		}
	}
}

// A source that refuses the server says so, without what its connection string holds.
func TestSourceThatLetsNobodyIn(t *testing.T) {
	t.Parallel()
	source := pgtest.Empty(t)
	const role, password = "locked_out_later", "hush-hush"
	exec := func(sql string) {
		t.Helper()
		if _, err := source.Pool.Exec(context.Background(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(`create role ` + role + ` superuser login password '` + password + `'`)
	t.Cleanup(func() {
		exec(`drop owned by ` + role)
		exec(`drop role ` + role)
	})
	u, err := url.Parse(source.DSN)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, password)
	w := openAt(t, source, u.String(), tickets)
	w.register(ticketSpec)
	d := onRows(Update, ticketTable, []string{"id"}, []string{"title"})
	w.check(w.runner.Check(t.Context(), d))
	exec(`alter role ` + role + ` nologin`)
	w.registry.Close()
	err = w.runner.Check(t.Context(), d)
	if refusal(err) != "SOURCE_REFUSED" || meta(err, "source") != "app" {
		t.Errorf("a source that refuses: %v", err)
	}
	for _, secret := range []string{u.Host, role, password} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the caller is told %q: %v", secret, err)
		}
	}
}
