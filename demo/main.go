// Command demo tells what Whence does as a story on the terminal: it loads a real
// catalogue of packages into a database, lets Whence remember it, asks, changes
// what the answers came from, and follows the answers back to their rows.
//
// The governing idea: nothing is scripted. The demo decides what to ask and do;
// every state, score, count and reason that it prints comes back from the API of
// a server that it starts for itself, and a step that does not show what it
// should ends the demo with an error. Whatever it started ends with it, even when
// it is killed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/whence-db/whence/internal/pgcluster"
)

func main() { os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)) }

// run is main without the process; it returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr *os.File) int {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	whence := flags.String("whence", "bin/whence", "the whence program to show")
	kind := flags.String("catalogue", "auto", "what to load: apt (this machine's package catalogue), sample, or auto")
	limit := flags.Duration("timeout", 3*time.Minute, "give up after this long")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil || flags.NArg() > 0:
		return 2
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	bounded, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	err := tell(bounded, newScreen(stdout), *whence, *kind)
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "\ndemo: interrupted; everything that it started has ended")
		return 130
	case bounded.Err() != nil:
		fmt.Fprintf(stderr, "\ndemo: not done after %v: %v\n", *limit, err)
	default:
		fmt.Fprintf(stderr, "\ndemo: %v\n", err)
	}
	return 1
}

// tell runs the story from beginning to end in a folder of its own.
func tell(ctx context.Context, scr *screen, whence, kind string) (err error) {
	if whence, err = filepath.Abs(whence); err != nil {
		return err
	}
	if _, err := os.Stat(whence); err != nil {
		return fmt.Errorf("%w (build it with: go build -o bin/whence ./cmd/whence)", err)
	}
	// Postgres must be able to reach the folder, also where it runs as another user.
	dir, err := pgcluster.TempDir("whence-demo-")
	if err != nil {
		return err
	}
	s := &story{screen: scr, whence: whence, kind: kind, dir: dir, http: &http.Client{}, began: time.Now()}
	err = s.tell(ctx)
	if err != nil {
		if last := tail(s.log(), 12); last != "" && ctx.Err() == nil {
			err = fmt.Errorf("%w\n\nthe servers' log ends:\n%s", err, last)
		}
	}
	return errors.Join(err, s.close(), os.RemoveAll(dir))
}
