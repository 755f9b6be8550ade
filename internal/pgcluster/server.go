package pgcluster

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"
)

//go:embed watchdog.sh
var watchdogScript string

//go:embed sweeper.sh
var sweeperScript string

// server is one run of Postgres under its watchdog.
type server struct {
	orders *os.File // the watchdog's standard input; closing it ends the server
	log    *log
	done   chan struct{}
	err    error // how the watchdog ended; written before done is closed
}

// launch starts a server and waits until it is ready. On an error no server is
// left.
func (c *Cluster) launch(ctx context.Context) error {
	lock, err := lockServer(ctx, c.cfg.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := clearStalePID(c.data()); err != nil {
		return err
	}
	pwfile, err := c.writePasswordFile()
	if err != nil {
		return err
	}
	server, err := c.spawn(pwfile, lock)
	if err != nil {
		return err
	}
	c.server = server
	if err := c.server.awaitReady(ctx, c.data()); err != nil {
		return errors.Join(err, c.server.stop(context.WithoutCancel(ctx), "immediate"))
	}
	return nil
}

// writePasswordFile hands initdb the password; the watchdog removes the file.
func (c *Cluster) writePasswordFile() (string, error) {
	if c.password == "" || c.initialised() {
		return "", nil
	}
	const name = "initdb.password"
	path := filepath.Join(c.folder, name)
	if err := os.WriteFile(path, []byte(c.password+"\n"), 0o600); err != nil {
		return "", err
	}
	return name, c.give(path)
}

func (c *Cluster) spawn(pwfile string, lock *os.File) (_ *server, err error) {
	in, orders, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	out, logged, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, orders.Close())
	}
	defer logged.Close()

	args := append([]string{"-c", watchdogScript, "watchdog", c.bin, pwfile}, c.createArgs()...)
	args = append(args, "--")
	args = append(args, c.serverArgs()...)
	cmd := exec.Command("/bin/sh", args...) //nolint:noctx // it ends by order, not by a signal
	cmd.Dir = c.folder
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, logged, logged
	cmd.ExtraFiles = []*os.File{lock}
	if c.sweeper != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, c.sweeper.hold)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: c.cred}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, orders.Close(), out.Close())
	}
	s := &server{orders: orders, log: &log{to: c.cfg.Log}, done: make(chan struct{})}
	go func() { // ended by stop, which waits for done
		defer close(s.done)
		s.log.copy(out)
		s.err = cmd.Wait()
	}()
	return s, nil
}

// createArgs are the program that makes the data folder, and its arguments.
func (c *Cluster) createArgs() []string {
	if p := c.cfg.StandbyOf; p != nil {
		return []string{
			"pg_basebackup", "--host=127.0.0.1", "--port=" + strconv.Itoa(p.Port()), "--username=" + Superuser,
			"--write-recovery-conf", "--checkpoint=fast", "--no-sync",
		}
	}
	return append([]string{"initdb"}, c.initdbArgs()...)
}

func (c *Cluster) initdbArgs() []string {
	// A UTF-8 character type lets text search fold the case of every letter.
	locale := "C.UTF-8"
	if runtime.GOOS == "darwin" {
		locale = "en_US.UTF-8"
	}
	args := []string{
		"-U", Superuser, "--encoding=UTF8", "--locale=" + locale, "--lc-messages=C",
		"--text-search-config=simple", "--no-instructions",
	}
	if c.password != "" {
		args = append(args, "--auth=scram-sha-256")
	} else {
		args = append(args, "--auth=trust")
	}
	if c.cfg.Durable {
		return append(args, "--data-checksums")
	}
	return append(args, "--no-sync")
}

func (c *Cluster) serverArgs() []string {
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"port":                    strconv.Itoa(c.port),
		"unix_socket_directories": "",
		"wal_level":               "logical",
		"max_replication_slots":   "40",
		"max_wal_senders":         "40",
		"max_connections":         "200",
		"timezone":                "UTC",
		"log_timezone":            "UTC",
		"log_checkpoints":         "off",
		"jit":                     "off",
	}
	if !c.cfg.Durable {
		settings["fsync"] = "off"
		settings["full_page_writes"] = "off"
	}
	if p := c.cfg.StandbyOf; p != nil {
		settings["primary_conninfo"] = fmt.Sprintf("host=127.0.0.1 port=%d user=%s dbname=postgres", p.Port(), Superuser)
	}
	maps.Copy(settings, c.cfg.Settings)
	var args []string
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return args
}

func (s *server) awaitReady(ctx context.Context, data string) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return fmt.Errorf("the server ended before it was ready (%w); it wrote:\n%s", s.err, s.log.tail())
		case <-ctx.Done():
			return fmt.Errorf("wait for the server: %w", ctx.Err())
		case <-tick.C:
			if _, ready := readPIDFile(data); ready {
				return nil
			}
		}
	}
}

// order tells the watchdog what to do. A watchdog that is gone has nothing
// left to do, so a failure to write is none.
func (s *server) order(what string) {
	_, _ = s.orders.WriteString(what + "\n")
}

// stop ends the server by the given order, and by an immediate one when that
// takes too long or ctx ends.
func (s *server) stop(ctx context.Context, order string) error {
	if s == nil {
		return nil
	}
	s.order(order)
	select {
	case <-s.done:
	case <-ctx.Done():
	case <-time.After(fastLimit):
	}
	// The end of the orders is an order too: the immediate one.
	if err := s.orders.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	select {
	case <-s.done:
		return nil
	case <-time.After(immediateLimit):
		return fmt.Errorf("the server has not ended %v after an immediate stop", immediateLimit)
	}
}

// freePort picks a port below the range that systems hand out to outgoing
// connections, so that nobody is given it while the server restarts.
func freePort(ctx context.Context) (int, error) {
	var failed error
	for range 100 {
		port := 20000 + rand.IntN(12000) //nolint:gosec // nothing secret about a port
		l, err := new(net.ListenConfig).Listen(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			failed = err
			continue
		}
		return port, l.Close()
	}
	return 0, fmt.Errorf("find a free port: %w", failed)
}

// sweeper removes an ephemeral cluster's folder when nobody holds the pipe any
// more: neither this process nor a watchdog nor a server.
type sweeper struct {
	cmd  *exec.Cmd
	hold *os.File
}

func startSweeper(dir string, cred *syscall.Credential) (*sweeper, error) {
	in, hold, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	cmd := exec.Command("/bin/sh", "-c", sweeperScript, "sweeper", dir) //nolint:noctx // it ends when its pipe does
	cmd.Dir = "/"
	cmd.Stdin = in
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: cred}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, hold.Close())
	}
	return &sweeper{cmd: cmd, hold: hold}, nil
}

// finish waits until the folder is swept. What it could not remove is the
// caller's to remove.
func (s *sweeper) finish() error {
	err := s.hold.Close()
	_ = s.cmd.Wait()
	return err
}
