// Package pgcluster runs a private Postgres server in a folder of its own, for
// tests and for the development server, so that neither ever needs, or can
// harm, a Postgres that somebody else cares about.
//
// The governing idea is that the server cannot outlive its parent, however the
// parent ends. A small shell process in a session of its own starts the server
// as its child and reads a pipe that only the parent holds open: when the pipe
// ends, so does the server. Signals tied to the parent's death would not do,
// because they follow the thread that forked, not the process.
//
// The layout of the folder: pg/data is the cluster, pg.password the password
// of the superuser (not for ephemeral clusters), owner.lock and server.lock
// keep out a second process. Postgres refuses to run as root, so root's
// servers run as the user postgres, or else nobody, who owns pg.
package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Superuser is the role that DSNs name and that owns every cluster.
const Superuser = "whence"

const (
	fastLimit      = 10 * time.Second // for a fast stop, before an immediate one
	immediateLimit = 20 * time.Second // Postgres kills its own stragglers after 5 s
	portAttempts   = 5
)

// Config says which cluster to run and how.
type Config struct {
	// Dir is the folder of the cluster; it is created when missing. Required.
	Dir string
	// BinDir holds initdb and postgres. Empty means FindBin's choice.
	BinDir string
	// Port on 127.0.0.1; 0 means a free one, which stays the same over
	// restarts.
	Port int
	// Ephemeral clusters trust every local connection, and Dir is removed when
	// they stop or when the parent is gone. The others ask for a password.
	Ephemeral bool
	// Durable clusters write through to the disk at every commit. The others
	// survive a crash of Postgres, but not one of the machine.
	Durable bool
	// StandbyOf is a running cluster that a new one follows as its standby, until
	// it is promoted; both are ephemeral. Settings say how it follows, beyond the
	// address.
	StandbyOf *Cluster
	// Settings are added to the server's configuration, and win over what this
	// package sets.
	Settings map[string]string
	// Log receives what the server writes. Optional.
	Log io.Writer
}

// Cluster is a running server. Its methods may be called concurrently.
type Cluster struct {
	cfg      Config
	bin      string
	cred     *syscall.Credential // nil: the server runs as the caller
	folder   string              // Dir/pg
	password string              // empty: connections are trusted

	owner   *os.File
	sweeper *sweeper // nil unless Ephemeral

	mu      sync.Mutex // serialises starting and stopping; owns the fields below
	port    int
	server  *server
	stopped bool
}

// Start creates the cluster if Dir holds none, starts its server, and returns
// once it accepts connections. When a server of a parent that was killed is
// still on its way out of Dir, Start waits for it, up to 30 seconds.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	c, err := prepare(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("start a Postgres cluster: %w", err)
	}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start a Postgres cluster: %w", err), c.release())
	}
	return c, nil
}

// prepare does all that needs no server: folders, locks, password.
func prepare(ctx context.Context, cfg Config) (_ *Cluster, err error) {
	if cfg.Dir == "" {
		return nil, errors.New("no folder given")
	}
	if cfg.Port < 0 || cfg.Port > 65535 {
		return nil, fmt.Errorf("port %d is out of range", cfg.Port)
	}
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, err
	}
	if p := cfg.StandbyOf; p != nil && (!cfg.Ephemeral || !p.cfg.Ephemeral) {
		return nil, errors.New("a standby and its primary must be ephemeral")
	}
	c := &Cluster{cfg: cfg, bin: cfg.BinDir, port: cfg.Port, folder: filepath.Join(cfg.Dir, "pg")}
	if c.bin == "" {
		if c.bin, err = FindBin(); err != nil {
			return nil, err
		}
	}
	if c.cred, err = unprivileged(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil { //nolint:gosec // the server's user passes through
		return nil, err
	}
	if c.cred != nil {
		if err := openPath(cfg.Dir, c.cred); err != nil {
			return nil, err
		}
	}
	if c.owner, err = lockOwner(ctx, cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.release())
		}
	}()
	if cfg.Ephemeral {
		if err := c.give(cfg.Dir); err != nil {
			return nil, err
		}
		if c.sweeper, err = startSweeper(cfg.Dir, c.cred); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(c.folder, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	if err := c.give(c.folder); err != nil {
		return nil, err
	}
	if !cfg.Ephemeral {
		if c.password, err = loadPassword(cfg.Dir, c.initialised()); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// give makes the server's user the owner of path.
func (c *Cluster) give(path string) error {
	if c.cred == nil {
		return nil
	}
	return os.Chown(path, int(c.cred.Uid), int(c.cred.Gid))
}

func (c *Cluster) data() string { return filepath.Join(c.folder, "data") }

func (c *Cluster) initialised() bool {
	_, err := os.Stat(filepath.Join(c.data(), "PG_VERSION"))
	return err == nil
}

// Port returns the server's port on 127.0.0.1.
func (c *Cluster) Port() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.port
}

// DSN returns the connection string for a database of the cluster, as its
// superuser. It stays the same over restarts.
func (c *Cluster) DSN(database string) string {
	user := url.User(Superuser)
	if c.password != "" {
		user = url.UserPassword(Superuser, c.password)
	}
	u := url.URL{
		Scheme:   "postgres",
		User:     user,
		Host:     "127.0.0.1:" + strconv.Itoa(c.Port()),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Done is closed once the server has ended, of itself or because it was told
// to. Restart makes a new channel.
func (c *Cluster) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.server.done
}

// PID returns the process id of the server (the postmaster), or 0 when it is
// not running.
func (c *Cluster) PID() int {
	pid, _ := readPIDFile(c.data())
	return pid
}

// Kill stops the server immediately, as a crash would: the next start goes
// through recovery. The folder stays, also that of an ephemeral cluster. It
// returns once the server has ended.
func (c *Cluster) Kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.server.order("immediate")
	<-c.server.done
}

// Restart starts the server again on the same port, after stopping it (fast)
// if it still runs.
func (c *Cluster) Restart(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return errors.New("restart a Postgres cluster: it was stopped for good")
	}
	if err := c.server.stop(ctx, "stop"); err != nil {
		return fmt.Errorf("restart a Postgres cluster: %w", err)
	}
	if err := c.startLocked(ctx); err != nil {
		return fmt.Errorf("restart a Postgres cluster: %w", err)
	}
	return nil
}

// Stop ends the server and gives the folder up, removing it if the cluster is
// ephemeral. Durable data is flushed by a fast shutdown, which becomes an
// immediate one when it takes too long or ctx ends. Stopping twice is harmless.
func (c *Cluster) Stop(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return nil
	}
	c.stopped = true
	order := "stop"
	if c.cfg.Ephemeral {
		order = "immediate"
	}
	err := errors.Join(c.server.stop(ctx, order), c.release())
	if err != nil {
		return fmt.Errorf("stop the Postgres cluster: %w", err)
	}
	return nil
}

// release gives up what prepare took.
func (c *Cluster) release() error {
	var errs []error
	if c.sweeper != nil {
		errs = append(errs, c.sweeper.finish())
		// The server's user may not be allowed to remove the folder itself.
		errs = append(errs, os.RemoveAll(c.cfg.Dir))
	}
	return errors.Join(append(errs, c.owner.Close())...)
}

func (c *Cluster) start(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.startLocked(ctx)
}

func (c *Cluster) startLocked(ctx context.Context) error {
	chosen := c.port != 0
	for attempt := 1; ; attempt++ {
		if !chosen {
			port, err := freePort(ctx)
			if err != nil {
				return err
			}
			c.port = port
		}
		fresh := !c.initialised()
		err := c.launch(ctx)
		if err == nil {
			if fresh && c.cfg.Durable {
				return syncFolder(c.folder)
			}
			return nil
		}
		taken := c.server != nil && strings.Contains(c.server.log.tail(), "Address already in use")
		if chosen || !taken || attempt == portAttempts {
			return err
		}
	}
}

// syncFolder makes the name of a new cluster as durable as its contents.
func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
