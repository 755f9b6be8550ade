package pgcluster

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// parentEnv makes the test binary act as a program that starts a cluster:
// "DIR ephemeral" or "DIR durable". It prints the server's process id and DSN
// and waits to be killed.
const parentEnv = "PGCLUSTER_TEST_PARENT"

func parentMain() int {
	dir, kind, _ := strings.Cut(os.Getenv(parentEnv), " ")
	c, err := Start(context.Background(), Config{Dir: dir, Ephemeral: kind == "ephemeral", Durable: kind == "durable"})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(c.PID(), c.DSN("postgres"))
	select {}
}

// startParent returns a process that runs a cluster in dir, and its server.
func startParent(t *testing.T, dir, kind string) (parent *exec.Cmd, pid int, dsn string) {
	t.Helper()
	parent = exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), parentEnv+"="+dir+" "+kind)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = parent.Process.Kill(); _ = parent.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	first, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	pid, err = strconv.Atoi(first)
	if err != nil {
		t.Fatalf("the parent says: %s", line)
	}
	return parent, pid, rest
}

func kill(t *testing.T, parent *exec.Cmd) {
	t.Helper()
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // it was killed
}

func TestKilledParentTakesEphemeralClusterAlong(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	parent, pid, _ := startParent(t, dir, "ephemeral")
	kill(t, parent)
	eventually(t, "server gone", 10*time.Second, func() bool { return !alive(pid) })
	eventually(t, "folder gone", 10*time.Second, func() bool {
		_, err := os.Stat(dir)
		return os.IsNotExist(err)
	})
}

// A parent killed at any instant of the first start leaves nothing either.
func TestParentKilledDuringInitdb(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), parentEnv+"="+dir+" ephemeral")
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = parent.Process.Kill(); _ = parent.Wait() })
	eventually(t, "initdb runs", 20*time.Second, func() bool {
		_, err := os.Stat(dir + "/pg/data.tmp")
		return err == nil
	})
	kill(t, parent)
	eventually(t, "folder gone", 20*time.Second, func() bool {
		_, err := os.Stat(dir)
		return os.IsNotExist(err)
	})
}

func TestStartRightAfterKillKeepsData(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	for _, word := range []string{"one", "two"} {
		parent, pid, dsn := startParent(t, dir, "durable")
		execute(t, dsn, "create table if not exists t (v text)")
		execute(t, dsn, "insert into t values ('"+word+"')")
		kill(t, parent)
		// The next start finds the old server still on its way out.
		c, err := Start(t.Context(), Config{Dir: dir, Durable: true})
		if err != nil {
			t.Fatal(err)
		}
		if alive(pid) {
			t.Error("two servers in one folder")
		}
		if got := query(t, c.DSN("postgres"), "select max(v) from t"); got != word {
			t.Errorf("kept %q, want %q", got, word)
		}
		if err := c.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// Nothing of a cluster may hold the parent's output open: whoever reads it to
// its end would hang.
func TestParentOutputIsNotKept(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), parentEnv+"="+dir+" durable")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = parent.Process.Kill(); _ = parent.Wait() })
	r := bufio.NewReader(out)
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.Fields(line)[0])
	if err != nil {
		t.Fatalf("the parent says: %s", line)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if rest, err := r.ReadString('\n'); err == nil {
		t.Errorf("unexpected output %q", rest)
	}
	_ = parent.Wait() // it was killed
	eventually(t, "server gone", 10*time.Second, func() bool { return !alive(pid) })
}

func itoa(n int) string { return strconv.Itoa(n) }
