package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// ownerWait covers the instant between a parent's death and the release
	// of what it held.
	ownerWait = 2 * time.Second
	// serverWait is how long the server of a parent that was killed may take
	// to end.
	serverWait = 30 * time.Second
)

// lockOwner makes this process the one that runs the cluster in dir. The lock
// is not inherited, so it tells a live parent from one that left a dying server.
func lockOwner(ctx context.Context, dir string) (*os.File, error) {
	f, err := lockFile(ctx, filepath.Join(dir, "owner.lock"), ownerWait)
	if errors.Is(err, errLocked) {
		pid, _ := os.ReadFile(filepath.Join(dir, "owner.lock")) // only for the message
		return nil, fmt.Errorf("the cluster in %s is being run by another process (pid %s)", dir, strings.TrimSpace(string(pid)))
	}
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := fmt.Fprintln(f, os.Getpid()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// lockServer waits until no server runs in dir. The server to be started
// inherits the file, and holds the lock until its last process is gone.
func lockServer(ctx context.Context, dir string) (*os.File, error) {
	f, err := lockFile(ctx, filepath.Join(dir, "server.lock"), serverWait)
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("an earlier server in %s has not ended after %v", dir, serverWait)
	}
	return f, err
}

var errLocked = errors.New("locked")

func lockFile(ctx context.Context, path string, wait time.Duration) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(wait)
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(errLocked, f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
