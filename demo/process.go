package main

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

//go:embed keeper.sh
var keeper string

// stopLimit is how long a program may take to end; the server gives its calls 10
// seconds and its database as long again.
const stopLimit = 45 * time.Second

// program is a running whence, under a keeper that ends it with this process.
type program struct {
	cmd   *exec.Cmd
	pipe  *os.File      // the keeper's standard input; closing it ends the program
	lines chan string   // what it prints, closed when it has ended
	ended chan struct{} // closed once it is waited for
	err   error         // how it ended; written before ended is closed
}

// start runs a command with its log in a file, and returns the URL of its line
// "ready URL". The folder, if any, is removed when the command has ended.
func start(ctx context.Context, folder, logPath string, env []string, command ...string) (*program, string, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, "", err
	}
	defer log.Close()
	in, pipe, err := os.Pipe()
	if err != nil {
		return nil, "", err
	}
	defer in.Close()
	args := append([]string{"-c", keeper, "keeper", folder}, command...)
	cmd := exec.Command("/bin/sh", args...) //nolint:noctx // it ends with its pipe, in good order
	cmd.Stdin, cmd.Stderr, cmd.Env = in, log, env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a terminal's Ctrl-C is for the demo, which stops in order
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, "", errors.Join(err, pipe.Close())
	}
	if err := cmd.Start(); err != nil {
		return nil, "", errors.Join(err, pipe.Close())
	}
	p := &program{cmd: cmd, pipe: pipe, lines: make(chan string, 1), ended: make(chan struct{})}
	go p.follow(out) // ended by stop, which waits for ended
	url, err := p.awaitReady(ctx)
	if err != nil {
		return nil, "", errors.Join(err, p.stop())
	}
	return p, url, nil
}

// follow reads what the program prints until it has ended. Only the first line
// is waited for; later ones are dropped.
func (p *program) follow(out io.Reader) {
	defer close(p.ended)
	defer close(p.lines)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		select {
		case p.lines <- lines.Text():
		default:
		}
	}
	p.err = p.cmd.Wait()
}

func (p *program) awaitReady(ctx context.Context) (string, error) {
	select {
	case line, ok := <-p.lines:
		if !ok {
			return "", errors.New("whence ended before it was ready")
		}
		url, found := strings.CutPrefix(line, "ready ")
		if !found {
			return "", fmt.Errorf("whence printed %q, not that it is ready", line)
		}
		return url, nil
	case <-ctx.Done():
		return "", fmt.Errorf("wait for whence: %w", ctx.Err())
	}
}

// stop ends the program and waits for it. Stopping nothing, or twice, is harmless.
func (p *program) stop() error {
	if p == nil {
		return nil
	}
	if err := p.pipe.Close(); err != nil {
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		return err
	}
	select {
	case <-p.ended:
		if p.err != nil {
			return fmt.Errorf("whence did not end cleanly: %w", p.err)
		}
		return nil
	case <-time.After(stopLimit):
		return fmt.Errorf("whence has not ended %v after it was told to (its keeper is process %d)", stopLimit, p.cmd.Process.Pid)
	}
}

// environment is this process's, without what would configure whence otherwise
// than the demo does, and with more.
func environment(more map[string]string) []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "WHENCE_") && name != "WHENCE_PG_BIN" && !strings.HasPrefix(name, "WHENCE_EMBEDDER") {
			continue
		}
		env = append(env, kv)
	}
	for name, value := range more {
		env = append(env, name+"="+value)
	}
	return env
}

// readEnv reads the dev.env that whence dev writes.
func readEnv(path string) (map[string]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	env := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			env[name] = value
		}
	}
	for _, name := range []string{"WHENCE_SOURCE_URL", "WHENCE_OPERATOR_TOKEN", "WHENCE_AGENT_TOKEN"} {
		if env[name] == "" {
			return nil, fmt.Errorf("%s lacks %s", path, name)
		}
	}
	return env, nil
}

// tail returns a file's last lines, for saying what went wrong.
func tail(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
