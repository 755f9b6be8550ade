package pgtest

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// exitWithParent ends a test binary whose `go test` was killed: nobody reads
// its result any more, and its server would go on until the tests' timeout. A
// binary that something else started is left alone.
func exitWithParent(ctx context.Context) {
	parent := os.Getppid()
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", parent))
	if err != nil || strings.TrimSpace(string(name)) != "go" {
		return
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if os.Getppid() != parent {
				os.Exit(1) //nolint:forbidigo // no test may go on, and nobody is there to be told
			}
		}
	}
}
