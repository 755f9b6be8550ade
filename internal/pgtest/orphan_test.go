package pgtest_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/whence-db/whence/internal/pgtest"
)

// orphanEnv names the file into which TestHang writes whom it started.
const orphanEnv = "PGTEST_ORPHAN_FILE"

func TestHang(t *testing.T) {
	file := os.Getenv(orphanEnv)
	if file == "" {
		t.Skip("a part of TestKilledGoTestLeavesNothing")
	}
	pgtest.New(t)
	ids := fmt.Sprintln(os.Getpid(), pgtest.Cluster(t).PID())
	if err := os.WriteFile(file+".part", []byte(ids), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".part", file); err != nil {
		t.Fatal(err)
	}
	select {}
}

func TestKilledGoTestLeavesNothing(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("the parent's name is read from /proc")
	}
	if os.Getenv(orphanEnv) != "" {
		t.Skip("inside itself")
	}
	file := filepath.Join(t.TempDir(), "ids")
	cmd := exec.Command("go", "test", "-count=1", "-timeout=2m", "-run", "^TestHang$", ".")
	cmd.Env = append(os.Environ(), orphanEnv+"="+file, "GOTMPDIR="+t.TempDir()) // killed, it cannot clean up what it built
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })

	var binary, server int
	waitFor(t, "the inner test", 90*time.Second, func() bool {
		text, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		_, err = fmt.Sscan(string(text), &binary, &server)
		return err == nil
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	for what, pid := range map[string]int{"test binary": binary, "server": server} {
		waitFor(t, what+" gone", 15*time.Second, func() bool { return ended(pid) })
	}
}

// ended also takes a process for gone that waits for its new parent to notice.
func ended(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return true
	}
	var state string
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	if _, err := fmt.Sscanf(string(text), "%d %s %s", new(int), new(string), &state); err != nil {
		return false
	}
	return state == "Z"
}

func waitFor(t *testing.T, what string, within time.Duration, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
