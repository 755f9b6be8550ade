package pgcluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// readPIDFile reads the file that a running server keeps in its data folder:
// its process id in the first line, its state in the eighth. A standby is ready
// once it answers.
func readPIDFile(data string) (pid int, ready bool) {
	text, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return 0, false
	}
	lines := strings.Split(string(text), "\n")
	pid, err = strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil || pid <= 0 {
		return 0, false
	}
	if len(lines) <= 7 {
		return pid, false
	}
	state := strings.TrimSpace(lines[7])
	return pid, state == "ready" || state == "standby"
}

// clearStalePID removes what a server that was killed left behind. Postgres
// does so itself, unless its process id belongs to somebody else by now. The
// caller holds the lock that all our servers hold, so a server that is really
// there was started by hand.
func clearStalePID(data string) error {
	pid, _ := readPIDFile(data)
	if pid == 0 {
		return nil
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		switch {
		case errors.Is(err, os.ErrNotExist):
			return nil // no /proc to ask, or gone this instant: Postgres decides
		case err == nil && cwd == resolved(data):
			return fmt.Errorf("process %d runs a server in %s that was started by other means: stop it first", pid, data)
		}
	}
	err := os.Remove(filepath.Join(data, "postmaster.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func resolved(path string) string {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		return target
	}
	return path
}
