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
	"strconv"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/whence-db/whence/embedder/embeddertest"
	"github.com/whence-db/whence/proto/gen/whence/v1/whencev1connect"
)

//go:embed keeper.sh
var keeper string

const (
	startLimit = 2 * time.Minute
	stopLimit  = time.Minute
)

// program is whence as its users start it: a process of its own, with a folder
// that goes when it ends.
type program struct {
	cmd    *exec.Cmd
	pipe   *os.File // closing it ends the process
	ended  chan struct{}
	err    error // how it ended; written before ended is closed
	folder string
	log    *os.File // what it logs; to be read also once the folder is gone
}

// startProgram builds whence and starts it with arguments that may name its
// folder, and returns once it answers. env is added to the environment.
func startProgram(ctx context.Context, arguments func(folder string) []string, env ...string) (*program, error) {
	folder, err := os.MkdirTemp("", "whence-bench-")
	if err != nil {
		return nil, err
	}
	p := &program{folder: folder, ended: make(chan struct{})}
	if err := p.launch(ctx, arguments(folder), env); err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	if err := p.await(ctx); err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

func (p *program) launch(ctx context.Context, arguments, env []string) error {
	if err := os.Chmod(p.folder, 0o711); err != nil { //nolint:gosec // Postgres's user passes through
		return err
	}
	binary := filepath.Join(p.folder, "whence")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "github.com/whence-db/whence/cmd/whence") //nolint:gosec // a name of ours
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	var err error
	if p.log, err = os.Create(filepath.Join(p.folder, "whence.log")); err != nil {
		return err
	}
	in, pipe, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	p.pipe = pipe
	p.cmd = exec.Command("/bin/sh", append([]string{"-c", keeper, "keeper", p.folder, binary}, arguments...)...) //nolint:noctx // it ends with its pipe, in good order
	p.cmd.Stdin, p.cmd.Stderr, p.cmd.Env = in, p.log, append(environment(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a terminal's Ctrl-C is for the benchmark, which stops in order
	if p.cmd.Stdout, err = os.Create(p.ready()); err != nil {
		return errors.Join(err, pipe.Close())
	}
	if err := p.cmd.Start(); err != nil {
		return errors.Join(err, pipe.Close())
	}
	go func() { // waited for by stop
		defer close(p.ended)
		p.err = p.cmd.Wait()
	}()
	return nil
}

func (p *program) ready() string { return filepath.Join(p.folder, "ready") }

// await waits for the line "ready URL".
func (p *program) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		b, err := os.ReadFile(p.ready())
		if line, _, whole := strings.Cut(string(b), "\n"); err == nil && whole {
			if !strings.HasPrefix(line, "ready ") {
				return fmt.Errorf("the server said %q and not that it is ready", line)
			}
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("the server ended before it was ready; it said:\n%s", p.lastWords())
		case <-ctx.Done():
			return fmt.Errorf("wait for the server: %w", ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// pid is the process id of whence itself, not of its keeper.
func (p *program) pid() (int, error) {
	b, err := os.ReadFile(filepath.Join(p.folder, "pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// stop ends the server and its database and waits until both are gone.
func (p *program) stop() error {
	if err := p.pipe.Close(); err != nil {
		return err
	}
	select {
	case <-p.ended:
		if p.err != nil {
			return fmt.Errorf("the server did not end cleanly: %w", p.err)
		}
		return nil
	case <-time.After(stopLimit):
		return fmt.Errorf("the server has not ended %v after it was told to (its keeper is process %d)", stopLimit, p.cmd.Process.Pid)
	}
}

// lastWords is the end of the server's log.
func (p *program) lastWords() string {
	b, err := io.ReadAll(io.NewSectionReader(p.log, 0, 1<<20))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// server is `whence dev`, with a durable Postgres of its own.
type server struct {
	*program
	env        map[string]string    // dev.env
	embeddings *embeddertest.Server // nil: the built-in model embeds

	memory  whencev1connect.MemoryServiceClient
	sources whencev1connect.SourceServiceClient
}

// startServer starts whence dev, and a server of embeddings if it is to have one.
func startServer(ctx context.Context, c config) (_ *server, err error) {
	s := &server{}
	var flags []string
	if c.embedding > 0 {
		if s.embeddings, err = embeddertest.Start(embeddertest.Config{Dimensions: 512}); err != nil {
			return nil, err
		}
		s.embeddings.SetFault(embeddertest.Fault{Kind: embeddertest.NoUsage, Delay: c.embedding})
		flags = []string{"--embedder", "openai", "--embedder-url", s.embeddings.URL(), "--embedder-model", "served", "--embedder-dimensions", "512"}
	}
	s.program, err = startProgram(ctx, func(folder string) []string {
		return append([]string{"dev", "--data", filepath.Join(folder, "data"), "--listen", "127.0.0.1:0"}, flags...)
	})
	if err != nil {
		s.closeEmbeddings()
		return nil, err
	}
	if err := s.connect(c.most()); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

func (s *server) closeEmbeddings() {
	if s.embeddings != nil {
		s.embeddings.Close()
	}
}

func (s *server) stop() error {
	defer s.closeEmbeddings()
	return s.program.stop()
}

// connect reads the server's credentials.
func (s *server) connect(clients int) error {
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
