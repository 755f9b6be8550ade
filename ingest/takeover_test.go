package ingest

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/pgtest"
	"github.com/whence-db/whence/internal/seal"
)

const (
	runnerMemory = "INGEST_RUNNER_MEMORY" // the memory database of TestRunnerToBeKilled
	runnerKey    = "INGEST_RUNNER_KEY"
)

// TestRunnerToBeKilled captures in a process of its own until it is killed.
func TestRunnerToBeKilled(t *testing.T) {
	dsn := os.Getenv(runnerMemory)
	if dsn == "" {
		t.Skip("a part of TestTakeover")
	}
	pool, err := pg.NewPool(t.Context(), dsn, 10)
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.New(index.Config{Pool: pool})
	if err != nil {
		t.Fatal(err)
	}
	key, err := seal.ParseKey(os.Getenv(runnerKey))
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewRegistry(Config{Pool: pool, Index: x, Seal: key})
	if err != nil {
		t.Fatal(err)
	}
	runner, err := NewRunner(RunnerConfig{Registry: r, Log: slog.New(slog.NewTextHandler(os.Stdout, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { // a parent that died leaves nobody behind
		_, _ = os.Stdin.Read(make([]byte, 1))
		cancel()
	}()
	t.Error(runner.Run(ctx))
}

// A process that captures is killed, and the other one takes the source over
// within moments.
func TestTakeover(t *testing.T) {
	w := newDocs(t)
	w.register(docsSpec)
	sealing := seal.NewKey()
	key, err := seal.ParseKey(sealing)
	if err != nil {
		t.Fatal(err)
	}
	w.r.seal = key
	w.exec(w.memory, `update whence.sources set dsn_sealed = $1`, key.Seal(sealPurpose+" app", []byte(w.source.DSN)))
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestRunnerToBeKilled$")
	child.Env = append(os.Environ(), runnerMemory+"="+w.memory.DSN, runnerKey+"="+sealing)
	child.Stdout, child.Stderr = testWriter{t}, testWriter{t}
	if _, err := child.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = child.Process.Kill(); _ = child.Wait() })
	info := w.live(docs)
	w.run() // waits its turn
	for i := range 20 {
		w.exec(w.source, `insert into docs (id, title) values ($1, 'x')`, i)
		w.caughtUp()
	}
	if readers := w.query(w.source.Pool, `select count(*)::text from pg_stat_replication`)[0]; readers == "0" {
		t.Fatal("nobody reads the slot")
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	died := time.Now()
	w.exec(w.source, `insert into docs (id, title) values (1000, 'after its death')`)
	w.caughtUp()
	took := time.Since(died)
	t.Logf("taken over, and caught up, %v after the death", took)
	if took > 20*time.Second { // five are the promise; the machine may be busy
		t.Errorf("it took %v", took)
	}
	w.equal(info)
}

// hole forwards connections until it is told to swallow: from then on what was
// open goes silent, and new ones are accepted and never answered.
type hole struct {
	net.Listener
	to string

	group sync.WaitGroup
	mu    sync.Mutex // guards what follows
	quiet bool
	conns []net.Conn
}

func newHole(t *testing.T, to string) *hole {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hole{Listener: l, to: to}
	h.group.Go(h.serve)
	t.Cleanup(func() {
		_ = l.Close()
		h.mu.Lock()
		for _, c := range h.conns {
			_ = c.Close()
		}
		h.mu.Unlock()
		h.group.Wait()
	})
	return h
}

func (h *hole) serve() {
	for {
		in, err := h.Accept()
		if err != nil {
			return
		}
		out, err := new(net.Dialer).DialContext(context.Background(), "tcp", h.to)
		if err != nil {
			_ = in.Close()
			continue
		}
		h.mu.Lock()
		h.conns = append(h.conns, in, out)
		h.mu.Unlock()
		h.group.Go(func() { h.copy(out, in) })
		h.group.Go(func() { h.copy(in, out) })
	}
}

func (h *hole) copy(to, from net.Conn) {
	b := make([]byte, 1<<16)
	for {
		n, err := from.Read(b)
		h.mu.Lock()
		quiet := h.quiet
		h.mu.Unlock()
		if err == nil && !quiet {
			_, err = to.Write(b[:n])
		}
		if err != nil && !quiet {
			_ = to.Close()
		}
		if err != nil {
			return
		}
	}
}

func (h *hole) swallow() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.quiet = true
}

// A source that does not answer delays no other one, while it is followed, when
// it is connected to anew, and when somebody asks something of it.
func TestSilentSourceDelaysNoOther(t *testing.T) {
	w := newDocs(t)
	silent := pgtest.Empty(t)
	w.exec(silent, createDocs)
	server, err := url.Parse(silent.DSN)
	if err != nil {
		t.Fatal(err)
	}
	h := newHole(t, server.Host)
	server.Host = h.Addr().String()
	server.RawQuery += "&connect_timeout=2"
	if _, err := w.r.CreateSource(t.Context(), "silent", server.String(), ""); err != nil {
		t.Fatal(err)
	}
	w.run()
	spec := docsSpec
	spec.Source = "silent"
	if _, err := w.r.RegisterTable(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	w.live("silent.public.docs")
	h.swallow()
	asked := time.Now()
	spec.Table = "public.other"
	if _, err := w.r.RegisterTable(t.Context(), spec); reason(err) != "SOURCE_UNREACHABLE" {
		t.Errorf("after %v: %v", time.Since(asked), err)
	}
	w.register(docsSpec)
	info := w.live(docs)
	for i := range 10 {
		w.exec(w.source, `insert into docs (id, title) values ($1, 'x')`, i)
		w.caughtUp()
	}
	w.equal(info)
	w.kill()
	w.run()
	w.exec(w.source, `insert into docs (id, title) values (100, 'x')`)
	w.caughtUp()
	w.equal(info)
	w.until("the silent source says so", func() (bool, string) {
		s, err := w.r.GetSource(t.Context(), "silent")
		if err != nil {
			t.Fatal(err)
		}
		return s.State == SourceConnecting && s.Error != "", fmt.Sprintf("%s %q", s.State, s.Error)
	})
}
