package main

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/whence-db/whence/internal/pgcluster"
	"github.com/whence-db/whence/internal/pgtest"
)

// asMain makes the test binary the whence command, for tests that need a
// process of its own to kill.
const asMain = "WHENCE_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) == "1" {
		// The child's input stays open for as long as the tests live, so that a
		// test run that is killed leaves no server behind.
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(3)
		}()
		os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	// Flags fall back on the environment, and a developer's is no part of the test.
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case pgcluster.BinEnv, "WHENCE_CHAOS", "WHENCE_CHAOS_SEED":
		default:
			if strings.HasPrefix(name, "WHENCE_") {
				_ = os.Unsetenv(name)
			}
		}
	}
	os.Exit(pgtest.Main(m))
}

// TestDevelopmentServer runs what one undisturbed `whence dev` can show. Each
// part has source tables, tasks and words of its own, so they run in parallel.
func TestDevelopmentServer(t *testing.T) {
	t.Parallel()
	w := startDev(t)
	t.Run("Together", func(t *testing.T) {
		t.Run("ChangesShow", w.testChangesShow)
		t.Run("PreviewAndVerify", w.testPreviewAndVerify)
		t.Run("NoGapNoLie", w.testNoGapNoLie)
		t.Run("Notes", w.testNotes)
		t.Run("NotesOnce", w.testNotesOnce)
		t.Run("NotesRestOn", w.testNotesRestOn)
		t.Run("AnothersDeletion", w.testAnothersDeletion)
		t.Run("NotesEnd", w.testNotesEnd)
		t.Run("NotesOfThePast", w.testNotesOfThePast)
		t.Run("Budget", w.testBudget)
		t.Run("Refusals", w.testRefusals)
		t.Run("SourceWithoutLogicalDecoding", w.testSourceWithoutLogicalDecoding)
		t.Run("CommandLine", w.testCommandLine)
		t.Run("Authority", w.testAuthority)
		t.Run("Actions", w.testActions)
		t.Run("Gateway", w.testGateway)
		t.Run("WatchedApprovals", w.testWatchedApprovals)
		t.Run("UsersFromTheCommandLine", w.testUsersFromTheCommandLine)
		t.Run("UpstreamsFromTheCommandLine", w.testUpstreamsFromTheCommandLine)
		t.Run("StopButton", w.testStopButton)
		t.Run("RevokedStream", w.testRevokedStream)
		t.Run("WatchFromTheCommandLine", w.testWatchFromTheCommandLine)
		t.Run("AnswersThenAndNow", w.testAnswersThenAndNow)
		t.Run("SecondServer", w.testSecondServer)
		t.Run("Protocols", w.testProtocols)
		t.Run("PlainPaths", w.testPlainPaths)
		t.Run("MetricsDoor", w.testMetricsDoor)
		t.Run("MetricsSay", w.testMetricsSay)
		t.Run("MetricsWithoutAPI", w.testMetricsWithoutAPI)
		t.Run("JSONShape", w.testJSONShape)
		t.Run("TimesBeyondTheContract", w.testTimesBeyondTheContract)
		t.Run("ThePast", w.testThePast)
	})
	// Afterwards, for it has doctor find fault.
	t.Run("Apart", func(t *testing.T) {
		t.Run("Operate", w.testOperate)
	})
	// Afterwards, for its tens of thousands of chunks go before others' to be embedded.
	t.Run("TenMegabyteRow", w.testTenMegabyteRow)
}
