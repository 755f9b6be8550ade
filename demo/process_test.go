package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// launch starts a shell script as if it were whence.
func launch(t *testing.T, folder, script string) (*program, string, error) {
	t.Helper()
	p, url, err := start(t.Context(), folder, filepath.Join(t.TempDir(), "log"), os.Environ(), "/bin/sh", "-c", script)
	t.Cleanup(func() { _ = p.stop() })
	return p, url, err
}

func TestStoppingEndsTheProgramAndRemovesItsFolder(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "data")
	if err := os.MkdirAll(filepath.Join(folder, "below"), 0o700); err != nil {
		t.Fatal(err)
	}
	mark := filepath.Join(t.TempDir(), "mark")
	p, url, err := launch(t, folder,
		`trap 'echo orderly >`+mark+`; exit 0' TERM; echo ready http://127.0.0.1:1; echo more; while :; do sleep 0.02; done`)
	if err != nil {
		t.Fatal(err)
	}
	if url != "http://127.0.0.1:1" {
		t.Errorf("url %q", url)
	}
	for range 2 {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	}
	if b, err := os.ReadFile(mark); err != nil || string(b) != "orderly\n" {
		t.Errorf("the program was not told to end: %q, %v", b, err)
	}
	if _, err := os.Stat(folder); !os.IsNotExist(err) {
		t.Errorf("the folder is still there: %v", err)
	}
}

func TestAProgramThatFails(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ script, want string }{
		"at once":          {"exit 3", "ended before it was ready"},
		"with other words": {"echo hello; exit 1", `printed "hello"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, _, err := launch(t, "", tt.script); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	p, _, err := launch(t, "", "echo ready x; exit 7")
	if err != nil {
		t.Fatal(err)
	}
	<-p.ended
	if err := p.stop(); err == nil || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("error %v, want the exit status", err)
	}
}

func TestEnvironmentLeavesOutOtherSettings(t *testing.T) {
	t.Setenv("WHENCE_LISTEN", "127.0.0.1:1")
	t.Setenv("WHENCE_PG_BIN", "/pg")
	t.Setenv("WHENCE_ISSUER", "http://elsewhere")
	got := " " + strings.Join(environment(map[string]string{"WHENCE_ISSUER": "http://here"}), " ") + " "
	for want, there := range map[string]bool{
		" WHENCE_PG_BIN=/pg ": true, " WHENCE_ISSUER=http://here ": true,
		"WHENCE_LISTEN": false, "http://elsewhere": false,
	} {
		if strings.Contains(got, want) != there {
			t.Errorf("%q: want %v in %s", want, there, got)
		}
	}
}
