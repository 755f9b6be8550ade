package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/pgcluster"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// Limits of waiting; nothing is measured by them.
const (
	startLimit = 90 * time.Second
	showLimit  = 10 * time.Second
)

// running is a Whence that answers, as its dev.env describes it.
type running struct {
	url    string
	env    map[string]string
	http   *http.Client
	source *pgxpool.Pool
	memory *pgxpool.Pool
}

// startDev runs `whence dev` within the test's process until the test ends.
func startDev(t *testing.T, args ...string) *running {
	t.Helper()
	dir := dataDir(t)
	out, log := newJournal(), newJournal()
	ctx, cancel := context.WithCancel(context.Background())
	status := make(chan int, 1)
	go func() {
		status <- run(ctx, append([]string{"dev", "--data", dir, "--listen", "127.0.0.1:0", "--grace", "2s"}, args...), out, log)
	}()
	t.Cleanup(func() {
		cancel()
		if s := <-status; s != 0 {
			t.Errorf("whence dev ended with status %d", s)
		}
		if t.Failed() {
			t.Logf("whence dev wrote:\n%s", log.tail(60))
		}
		if left := processesOf(t, dir); len(left) > 0 {
			t.Errorf("whence dev left processes behind: %v", left)
		}
	})
	select {
	case <-out.ready:
	case s := <-status:
		status <- s
		t.Fatalf("whence dev ended with status %d before it was ready", s)
	case <-time.After(startLimit):
		t.Fatal("whence dev was not ready in time")
	}
	return attach(t, dir)
}

// attach connects to the development server whose data are in dir.
func attach(t *testing.T, dir string) *running {
	t.Helper()
	w := &running{env: readEnv(t, dir), http: newHTTPClient(t)}
	w.url = w.env["WHENCE_URL"]
	w.source = openPool(t, w.env["WHENCE_SOURCE_URL"])
	w.memory = openPool(t, w.env["WHENCE_DATABASE_URL"])
	return w
}

func openPool(t *testing.T, dsn string) *pgxpool.Pool {
	t.Helper()
	pool, err := pg.NewPool(t.Context(), dsn, 4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func newHTTPClient(t *testing.T) *http.Client {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		http.DefaultTransport.(*http.Transport).CloseIdleConnections() // the command line's
	})
	return &http.Client{Transport: transport, Timeout: 3 * time.Minute}
}

func (w *running) agent() caller    { return caller{w.http, w.url, w.env["WHENCE_AGENT_TOKEN"]} }
func (w *running) operator() caller { return caller{w.http, w.url, w.env["WHENCE_OPERATOR_TOKEN"]} }

// exec runs a statement in the source.
func (w *running) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := w.source.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// register registers a table of the source app and waits until all of it can be found.
func (w *running) register(t *testing.T, req *v1.RegisterTableRequest) {
	t.Helper()
	if req.GetSource() == "" {
		req.Source = "app"
	}
	var res v1.RegisterTableResponse
	w.operator().must(t, "SourceService/RegisterTable", req, &res)
	w.settled(t, res.GetTable().GetName())
}

// settled waits until a table is live and nothing of it waits for a vector.
func (w *running) settled(t *testing.T, name string) {
	t.Helper()
	var res v1.GetTableResponse
	eventually(t, startLimit, "live: "+name, func() error {
		w.operator().must(t, "SourceService/GetTable", &v1.GetTableRequest{Name: name}, &res)
		st := res.GetStatus()
		if st.GetState() == v1.TableState_TABLE_STATE_LIVE && st.GetPending() == 0 {
			return nil
		}
		return fmt.Errorf("%v", st)
	})
}

// dataDir makes a folder that the server's user can enter.
func dataDir(t *testing.T) string {
	t.Helper()
	dir, err := pgcluster.TempDir("whence-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func readEnv(t *testing.T, dir string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "dev.env"))
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for l := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(l), "=")
		env[name] = value
	}
	for _, name := range []string{"WHENCE_URL", "WHENCE_DATABASE_URL", "WHENCE_SOURCE_URL", "WHENCE_OPERATOR_TOKEN",
		"WHENCE_AGENT_TOKEN", "WHENCE_SECRET_KEY", "WHENCE_ISSUER"} {
		if env[name] == "" {
			t.Fatalf("dev.env lacks %s", name)
		}
	}
	return env
}

// child is a whence process.
type child struct {
	cmd   *exec.Cmd
	out   *journal
	log   *journal
	ended chan struct{}
}

// spawn starts a whence process, with env over the test's own environment. What
// is still running when the test ends is killed.
func spawn(t *testing.T, env map[string]string, args ...string) *child {
	t.Helper()
	c := &child{cmd: exec.Command(os.Args[0], args...), out: newJournal(), log: newJournal(), ended: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), asMain+"=1")
	for name, value := range env {
		c.cmd.Env = append(c.cmd.Env, name+"="+value)
	}
	c.cmd.Stdout, c.cmd.Stderr = c.out, c.log
	stdin, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.ended)
		_ = c.cmd.Wait()
	}()
	t.Cleanup(func() {
		c.kill()
		_ = stdin.Close()
		if t.Failed() {
			t.Logf("whence %s wrote:\n%s", strings.Join(args, " "), c.log.tail(40))
		}
	})
	return c
}

// kill ends the process with SIGKILL and waits until it is gone.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	<-c.ended
}

// ready returns the server's URL once it answers.
func (c *child) ready(t *testing.T) string {
	t.Helper()
	select {
	case url := <-c.out.ready:
		return url
	case <-c.ended:
		t.Fatalf("whence ended before it was ready: %v\n%s", c.cmd.ProcessState, c.log.tail(40))
	case <-time.After(startLimit):
		t.Fatalf("whence was not ready in time\n%s", c.log.tail(40))
	}
	return ""
}

// journal keeps what is written to it and tells when a line `ready URL` was.
type journal struct {
	mu    sync.Mutex
	buf   bytes.Buffer // guarded by mu
	told  bool         // guarded by mu
	ready chan string
}

func newJournal() *journal { return &journal{ready: make(chan string, 1)} }

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	n, err := j.buf.Write(p)
	if j.told {
		return n, err
	}
	for l := range strings.Lines(j.buf.String()) {
		if url, ok := strings.CutPrefix(l, "ready "); ok && strings.HasSuffix(url, "\n") {
			j.told = true
			j.ready <- strings.TrimSpace(url)
		}
	}
	return n, err
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

func (j *journal) tail(n int) string {
	lines := strings.Split(strings.TrimSpace(j.String()), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

var _ io.Writer = (*journal)(nil)

// processesOf lists the processes whose command line names a folder.
func processesOf(t *testing.T, dir string) (found []string) {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			continue // it has ended meanwhile
		}
		if bytes.Contains(b, []byte(dir)) {
			found = append(found, strings.Split(p, "/")[2]+": "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return found
}

// eventually waits until fn returns nil.
func eventually(t *testing.T, limit time.Duration, what string, fn func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := fn()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
