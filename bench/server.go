package main

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/whence-db/whence/proto/gen/whence/v1/whencev1connect"
)

//go:embed keeper.sh
var keeper string

const (
	startLimit = 2 * time.Minute
	stopLimit  = time.Minute
)

// server is `whence dev` as its users start it: a process of its own, with a
// durable Postgres of its own, in a folder that goes when it ends.
type server struct {
	cmd    *exec.Cmd
	pipe   *os.File // closing it ends the server
	ended  chan struct{}
	err    error // how it ended; written before ended is closed
	folder string
	log    *os.File          // what it logs; to be read also once the folder is gone
	env    map[string]string // dev.env

	memory  whencev1connect.MemoryServiceClient
	sources whencev1connect.SourceServiceClient
}

// startServer builds and starts the server, and returns once it answers.
func startServer(ctx context.Context, clients int) (*server, error) {
	folder, err := os.MkdirTemp("", "whence-bench-")
	if err != nil {
		return nil, err
	}
	s := &server{folder: folder, ended: make(chan struct{})}
	if err := s.launch(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	if err := s.connect(ctx, clients); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

func (s *server) launch(ctx context.Context) error {
	if err := os.Chmod(s.folder, 0o711); err != nil { //nolint:gosec // Postgres's user passes through
		return err
	}
	binary := filepath.Join(s.folder, "whence")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "github.com/whence-db/whence/cmd/whence")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	var err error
	if s.log, err = os.Create(filepath.Join(s.folder, "whence.log")); err != nil {
		return err
	}
	in, pipe, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	s.pipe = pipe
	s.cmd = exec.Command("/bin/sh", "-c", keeper, "keeper", s.folder, //nolint:noctx // it ends with its pipe, in good order
		binary, "dev", "--data", filepath.Join(s.folder, "data"), "--listen", "127.0.0.1:0")
	s.cmd.Stdin, s.cmd.Stderr, s.cmd.Env = in, s.log, environment()
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a terminal's Ctrl-C is for the benchmark, which stops in order
	if s.cmd.Stdout, err = os.Create(s.ready()); err != nil {
		return errors.Join(err, pipe.Close())
	}
	if err := s.cmd.Start(); err != nil {
		return errors.Join(err, pipe.Close())
	}
	go func() { // waited for by stop
		defer close(s.ended)
		s.err = s.cmd.Wait()
	}()
	return nil
}

func (s *server) ready() string { return filepath.Join(s.folder, "ready") }

// connect waits for the server's line "ready URL" and reads its credentials.
func (s *server) connect(ctx context.Context, clients int) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		b, err := os.ReadFile(s.ready())
		if line, _, whole := strings.Cut(string(b), "\n"); err == nil && whole {
			if !strings.HasPrefix(line, "ready ") {
				return fmt.Errorf("the server said %q and not that it is ready", line)
			}
			break
		}
		select {
		case <-s.ended:
			return fmt.Errorf("the server ended before it was ready; it said:\n%s", s.lastWords())
		case <-ctx.Done():
			return fmt.Errorf("wait for the server: %w", ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
	var err error
	if s.env, err = readEnv(filepath.Join(s.folder, "data", "dev.env")); err != nil {
		return err
	}
	transport := &http.Transport{MaxIdleConnsPerHost: clients, MaxIdleConns: clients}
	dial := func(token string) *connect.Client {
		authorize := func(next connect.ClientFunc) connect.ClientFunc {
			return func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
				ctx, info := connect.NewClientContext(ctx)
				info.RequestHeader().Set("Authorization", "Bearer "+token)
				return next(ctx, spec)
			}
		}
		return connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: transport}, s.env["WHENCE_URL"]), authorize)
	}
	s.memory = whencev1connect.NewMemoryServiceClient(dial(s.env["WHENCE_AGENT_TOKEN"]))
	s.sources = whencev1connect.NewSourceServiceClient(dial(s.env["WHENCE_OPERATOR_TOKEN"]))
	return nil
}

// stop ends the server and its database and waits until both are gone.
func (s *server) stop() error {
	if err := s.pipe.Close(); err != nil {
		return err
	}
	select {
	case <-s.ended:
		if s.err != nil {
			return fmt.Errorf("the server did not end cleanly: %w", s.err)
		}
		return nil
	case <-time.After(stopLimit):
		return fmt.Errorf("the server has not ended %v after it was told to (its keeper is process %d)", stopLimit, s.cmd.Process.Pid)
	}
}

// lastWords is the end of the server's log.
func (s *server) lastWords() string {
	b, err := io.ReadAll(io.NewSectionReader(s.log, 0, 1<<20))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// environment leaves out what would configure the server otherwise.
func environment() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "WHENCE_") || strings.HasPrefix(kv, "WHENCE_PG_BIN=") {
			env = append(env, kv)
		}
	}
	return env
}

func readEnv(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseEnv(f)
}

func parseEnv(r io.Reader) (map[string]string, error) {
	env := map[string]string{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if name, value, ok := strings.Cut(lines.Text(), "="); ok {
			env[name] = value
		}
	}
	return env, lines.Err()
}
