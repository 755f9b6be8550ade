package main

import (
	"context"
	"io"
	"os"
	"testing"

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
			os.Exit(3) //nolint:forbidigo // nobody is left to be told
		}()
		os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)) //nolint:forbidigo // this is main
	}
	os.Exit(pgtest.Main(m)) //nolint:forbidigo // this is main
}

// TestDevelopmentServer runs what one undisturbed `whence dev` can show. Each
// part has source tables, tasks and words of its own, so they run in parallel.
func TestDevelopmentServer(t *testing.T) {
	t.Parallel()
	w := startDev(t)
	for _, part := range []struct {
		name string
		test func(*testing.T, *running)
	}{
		{"ChangesShow", testChangesShow},
		{"NoGapNoLie", testNoGapNoLie},
		{"TenMegabyteRow", testTenMegabyteRow},
		{"Budget", testBudget},
		{"Refusals", testRefusals},
		{"SourceWithoutLogicalDecoding", testSourceWithoutLogicalDecoding},
		{"CommandLine", testCommandLine},
		{"WatchFromTheCommandLine", testWatchFromTheCommandLine},
		{"AnswersThenAndNow", testAnswersThenAndNow},
		{"SecondServer", testSecondServer},
		{"Protocols", testProtocols},
		{"PlainPaths", testPlainPaths},
		{"JSONShape", testJSONShape},
	} {
		t.Run(part.name, func(t *testing.T) {
			t.Parallel()
			part.test(t, w)
		})
	}
}
