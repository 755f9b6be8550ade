package pgcluster

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(parentEnv) != "" {
		os.Exit(parentMain())
	}
	goleak.VerifyTestMain(m)
}

func start(t *testing.T, cfg Config) *Cluster {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = tempDir(t)
	}
	c, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

// tempDir is a folder that the server's user can reach, which t.TempDir's is
// not: its parent is closed to others.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pgcluster-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func query(t *testing.T, dsn, sql string) string {
	t.Helper()
	conn := connect(t, dsn)
	defer conn.Close(t.Context())
	var value string
	if err := conn.QueryRow(t.Context(), sql).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

func execute(t *testing.T, dsn, sql string) {
	t.Helper()
	conn := connect(t, dsn)
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func eventually(t *testing.T, what string, within time.Duration, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestEphemeralLifecycle(t *testing.T) {
	t.Parallel()
	c := start(t, Config{Ephemeral: true, Settings: map[string]string{"work_mem": "7MB"}})
	dsn := c.DSN("postgres")
	for setting, want := range map[string]string{
		"wal_level": "logical", "fsync": "off", "work_mem": "7MB", "listen_addresses": "127.0.0.1",
		"server_encoding": "UTF8", "unix_socket_directories": "",
	} {
		if got := query(t, dsn, "select current_setting('"+setting+"')"); got != want {
			t.Errorf("%s = %q, want %q", setting, got, want)
		}
	}
	if got := query(t, dsn, "select lower('ÄΩ')"); got != "äω" {
		t.Errorf("lower folds to %q: the character type is not Unicode's", got)
	}

	execute(t, dsn, "create table t as select 'kept' as v")
	pid := c.PID()
	done := c.Done()
	c.Kill()
	<-done
	if alive(pid) {
		t.Error("the server lives after Kill")
	}
	if err := c.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := query(t, dsn, "select v from t"); got != "kept" {
		t.Errorf("after a crash: %q", got)
	}
	if err := c.Restart(t.Context()); err != nil {
		t.Fatalf("restart of a running server: %v", err)
	}
	if got := query(t, dsn, "select v from t"); got != "kept" {
		t.Errorf("after a restart: %q", got)
	}

	pid = c.PID()
	for range 2 {
		if err := c.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if alive(pid) {
		t.Error("the server lives after Stop")
	}
	if _, err := os.Stat(c.cfg.Dir); !os.IsNotExist(err) {
		t.Errorf("the folder is still there: %v", err)
	}
	if err := c.Restart(t.Context()); err == nil {
		t.Error("a stopped cluster restarted")
	}
}

func TestDurableKeepsDataAndPassword(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	c := start(t, Config{Dir: dir, Durable: true})
	if got := query(t, c.DSN("postgres"), "select current_setting('fsync')"); got != "on" {
		t.Errorf("fsync = %s", got)
	}
	execute(t, c.DSN("postgres"), "create table t as select 'kept' as v")

	open, err := url.Parse(c.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	open.User = url.UserPassword(Superuser, "guess")
	if conn, err := pgx.Connect(t.Context(), open.String()); err == nil {
		_ = conn.Close(t.Context())
		t.Error("a wrong password was let in")
	}
	info, err := os.Stat(filepath.Join(dir, "pg.password"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("password file: %v, %v", info.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "pg", "*password*")); left != nil {
		t.Errorf("left behind: %v", left)
	}

	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := start(t, Config{Dir: dir, Durable: true})
	if got := query(t, again.DSN("postgres"), "select v from t"); got != "kept" {
		t.Errorf("after a second start: %q", got)
	}
}

func TestDoneWhenTheServerEndsItself(t *testing.T) {
	t.Parallel()
	c := start(t, Config{Ephemeral: true})
	if err := syscall.Kill(c.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("Done stays open")
	}
	if err := c.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := query(t, c.DSN("postgres"), "select 'up'"); got != "up" {
		t.Error(got)
	}
}

func TestInterruptedInitdbIsRedone(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	half := filepath.Join(dir, "pg", "data.tmp")
	if err := os.MkdirAll(half, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(half, "PG_VERSION"), []byte("15\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cred, err := unprivileged()
	if err != nil {
		t.Fatal(err)
	}
	if cred != nil {
		if err := os.Chown(half, int(cred.Uid), int(cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	c := start(t, Config{Dir: dir})
	if got := query(t, c.DSN("postgres"), "select 'up'"); got != "up" {
		t.Error(got)
	}
}

func TestStalePIDFileOfAnotherProcess(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	c := start(t, Config{Dir: dir})
	path := filepath.Join(c.data(), "postmaster.pid")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The id of a live server of another folder, run by the same user.
	other := start(t, Config{Ephemeral: true})
	stale := strings.Replace(string(text), strings.SplitN(string(text), "\n", 2)[0], itoa(other.PID()), 1)
	if err := os.WriteFile(path, []byte(stale), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.give(path); err != nil {
		t.Fatal(err)
	}
	again := start(t, Config{Dir: dir})
	if again.PID() == other.PID() {
		t.Error("the stale file was believed")
	}
}

func TestSecondParentIsRefused(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	start(t, Config{Dir: dir})
	_, err := Start(t.Context(), Config{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "another process") || !strings.Contains(err.Error(), itoa(os.Getpid())) {
		t.Errorf("second Start: %v", err)
	}
}

func TestStartErrors(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		cfg  Config
		want string
	}{
		"no folder":   {Config{}, "no folder"},
		"bad port":    {Config{Dir: tempDir(t), Port: 70000}, "out of range"},
		"bad setting": {Config{Dir: tempDir(t), Settings: map[string]string{"no_such_setting": "1"}}, "no_such_setting"},
		"no programs": {Config{Dir: tempDir(t), BinDir: tempDir(t)}, "initdb"},
	} {
		_, err := Start(t.Context(), test.cfg)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClosedParentFolder(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("the server runs as the caller, who may pass")
	}
	closed := tempDir(t) // made 0700, owned by root
	_, err := Start(t.Context(), Config{Dir: filepath.Join(closed, "cluster")})
	if err == nil || !strings.Contains(err.Error(), "may not pass through "+closed) || !strings.Contains(err.Error(), "chmod o+x") {
		t.Errorf("Start below a closed folder: %v", err)
	}
}

func TestStandby(t *testing.T) {
	t.Parallel()
	primary := start(t, Config{Ephemeral: true})
	execute(t, primary.DSN("postgres"), "create table t as select 'followed' as v")
	standby := start(t, Config{Ephemeral: true, StandbyOf: primary})
	dsn := standby.DSN("postgres")
	if got := query(t, dsn, "select pg_is_in_recovery()::text"); got != "true" {
		t.Error("it is no standby")
	}
	execute(t, primary.DSN("postgres"), "update t set v = 'and followed on'")
	eventually(t, "the standby follows", time.Minute, func() bool { return query(t, dsn, "select v from t") == "and followed on" })
	primary.Kill()
	execute(t, dsn, "select pg_promote()")
	execute(t, dsn, "update t set v = 'its own'")
	if err := standby.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := query(t, dsn, "select v from t"); got != "its own" {
		t.Errorf("after a restart: %q", got)
	}
	if _, err := Start(t.Context(), Config{Dir: tempDir(t), StandbyOf: primary}); err == nil || !strings.Contains(err.Error(), "ephemeral") {
		t.Errorf("a standby that is not ephemeral: %v", err)
	}
}
