package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence/cdc"
	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/seal"
)

// chaosChildEnv makes the test binary a process that captures and embeds, as
// `whence serve --roles capture,embed` does; it holds the childConfig.
const chaosChildEnv = "WHENCE_CHAOS_CHILD"

type childConfig struct {
	Memory string // dsn
	Key    string // that connection strings are sealed with
	Embed  bool
	Pace   pace
}

// pace is how captures are paced; zero fields are cdc's defaults.
type pace struct {
	BackfillBatch                                                       int
	Look, Probe, IdleCheckpoint, MaximumBackoff, Predecessor, DeadAfter time.Duration
}

// quickly makes what usually takes seconds happen several times in a schedule.
var quickly = pace{BackfillBatch: 60, Look: 200 * time.Millisecond, Probe: 100 * time.Millisecond, IdleCheckpoint: 300 * time.Millisecond,
	MaximumBackoff: 500 * time.Millisecond, Predecessor: 500 * time.Millisecond, DeadAfter: 3 * time.Second}

func chaosChildMain(text string) int {
	// The input stays open as long as the parent lives. A stopped child reads
	// nothing, but is of a process group of its own, which the system wakes and
	// hangs up on when its parent ends.
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var cfg childConfig
	err := json.Unmarshal([]byte(text), &cfg)
	if err == nil {
		err = chaosChild(ctx, cfg)
	}
	if errors.Is(err, context.Canceled) {
		return 0
	}
	_, _ = fmt.Fprintln(os.Stderr, "the child ends:", err)
	return 1
}

func chaosChild(ctx context.Context, cfg childConfig) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	key, err := seal.ParseKey(cfg.Key)
	if err != nil {
		return err
	}
	pool, err := pg.NewPool(ctx, cfg.Memory, 8)
	if err != nil {
		return err
	}
	defer pool.Close()
	x, err := index.New(index.Config{Pool: pool, Log: log})
	if err != nil {
		return err
	}
	r, err := NewRegistry(Config{Pool: pool, Index: x, Seal: key, Log: log})
	if err != nil {
		return err
	}
	// A lease outlives the child that took it; the next is not to wait minutes.
	filler, err := index.NewFiller(index.FillerConfig{Index: x, Models: []index.Model{lexical.Default()}, Log: log,
		Lease: 2 * time.Second, Poll: 250 * time.Millisecond, Heal: 2 * time.Second})
	if err != nil {
		return err
	}
	runner, err := NewRunner(RunnerConfig{Registry: r, Wake: filler.Wake, Log: log, Poll: 200 * time.Millisecond})
	if err != nil {
		return err
	}
	runner.pace = func(c *cdc.Config) {
		p := cfg.Pace
		c.BackfillBatch, c.Look, c.Probe, c.IdleCheckpoint = p.BackfillBatch, p.Look, p.Probe, p.IdleCheckpoint
		c.MaximumBackoff, c.Predecessor, c.DeadAfter = p.MaximumBackoff, p.Predecessor, p.DeadAfter
		status := c.Status
		c.Status = func(err error) {
			if err != nil {
				log.InfoContext(ctx, "the stream ended", "error", err)
			}
			status(err)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return runner.Run(ctx) })
	if cfg.Embed {
		g.Go(func() error { return filler.Run(ctx) })
	}
	return g.Wait()
}

// child is a capturing process.
type child struct {
	cmd     *exec.Cmd
	log     lockedBuffer
	ended   chan struct{}
	stopped bool // by SIGSTOP; the schedule's goroutine's alone
}

// spawn starts a child, which is killed when the test ends.
func spawn(t *testing.T, cfg childConfig) *child {
	t.Helper()
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: exec.Command(os.Args[0]), ended: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), chaosChildEnv+"="+string(text))
	c.cmd.Stderr = &c.log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
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
	})
	return c
}

// kill ends the child at once, also while it is stopped, and waits for its end.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	<-c.ended
}

func (c *child) signal(s syscall.Signal) { _ = c.cmd.Process.Signal(s) }

func (c *child) running() bool {
	select {
	case <-c.ended:
		return false
	default:
		return !c.stopped
	}
}

// lockedBuffer keeps what a process writes.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder // guarded by mu
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
