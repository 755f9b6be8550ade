// Bench measures what Whence costs over the Postgres beneath it. It starts
// `whence dev` with a durable database of its own, fills it with made-up
// articles, and compares:
//
//   - a query through the API with the same SQL sent over pgx and one durable
//     insert, which is the least that an answer with a record of it can cost;
//   - a backfill with COPY of the same columns from one database to the other.
//
// The governing idea: a figure of a machine says little about another, and two
// figures taken at different times little about each other. So every measurement
// has a rival in the same run, the two take turns, and what counts is the ratio
// of neighbours. The figures behind it are printed with their extremes.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

type config struct {
	rows      int
	clients   []int
	perSide   time.Duration // of queries, at one number of clients
	rounds    int           // that perSide is divided into
	backfills int
	questions int
	updates   int
	json      bool

	changes int // to read
	applied int // the first of them, to apply too
	drains  int // rounds
	applies int
	only    string
	profile string
}

// profileOf names the file of a part's profile; empty: none is wanted.
func (c config) profileOf(part string) string {
	if c.profile == "" {
		return ""
	}
	return c.profile + "." + part
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string, complaints io.Writer) (config, error) {
	c := config{rounds: 5, backfills: 3, questions: 50, updates: 50, drains: 3, applies: 3}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(complaints)
	flags.IntVar(&c.rows, "rows", 20_000, "rows of the table")
	clients := flags.String("clients", "1,8,32", "numbers of concurrent clients")
	seconds := flags.Float64("seconds", 8, "seconds of queries for each side, at each number of clients")
	flags.IntVar(&c.changes, "changes", 1_000_000, "changes to read from the log")
	flags.IntVar(&c.applied, "applied", 100_000, "the first changes, which are applied too")
	flags.StringVar(&c.only, "only", "", "run only this part")
	flags.StringVar(&c.profile, "cpuprofile", "", "write processor profiles of the drains to `FILE`.decode and FILE.capture")
	flags.BoolVar(&c.json, "json", false, "print JSON instead of a table")
	short := flags.Bool("short", false, "a quick run with little data; says less")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if *short {
		set := map[string]bool{}
		flags.Visit(func(f *flag.Flag) { set[f.Name] = true })
		c.rounds, c.backfills, c.questions, c.updates = 2, 1, 20, 10
		for name, v := range map[string]string{"rows": "2000", "clients": "1,8", "seconds": "2"} {
			if !set[name] {
				if err := flags.Set(name, v); err != nil {
					return c, err
				}
			}
		}
	}
	for part := range strings.SplitSeq(*clients, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || n < 1 || n > 90 {
			return c, fmt.Errorf("-clients %q: want numbers from 1 to 90, as in 1,8,32", *clients)
		}
		c.clients = append(c.clients, n)
	}
	if c.perSide = time.Duration(*seconds * float64(time.Second)); c.perSide <= 0 {
		return c, fmt.Errorf("-seconds %v: want more than 0", *seconds)
	}
	if c.rows < 100 {
		return c, fmt.Errorf("-rows %d: want at least 100", c.rows)
	}
	return c, nil
}

func run(ctx context.Context, args []string, out, progress io.Writer) (err error) {
	c, err := parse(args, progress)
	if err != nil {
		return err
	}
	begun, busy := time.Now(), loadAverages()
	say := func(format string, args ...any) {
		fmt.Fprintf(progress, "%5.1f s  %s\n", time.Since(begun).Seconds(), fmt.Sprintf(format, args...))
	}
	if c.only == "drain" {
		say("starting the servers")
		w, err := newWorld(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, w.stop(ctx)) }()
		r, err := measureDrain(ctx, w, c, say)
		if err != nil {
			return err
		}
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	most := 1
	for _, n := range c.clients {
		most = max(most, n)
	}
	say("building and starting whence dev")
	s, err := startServer(ctx, most)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()

	r, err := measure(ctx, c, s, most, say)
	if err != nil {
		return err
	}
	r.Environment.Load = busy
	r.Seconds = time.Since(begun).Seconds()
	if c.json {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	return r.print(out)
}

// measure runs everything; the server's end fails it.
func measure(ctx context.Context, c config, s *server, most int, say func(string, ...any)) (*report, error) {
	r := &report{Questions: c.questions, Rounds: c.rounds, RoundSeconds: c.perSide.Seconds() / float64(c.rounds)}
	g, ctx := errgroup.WithContext(ctx)
	ctx, done := context.WithCancel(ctx)
	g.Go(func() error {
		select {
		case <-s.ended:
			return fmt.Errorf("the server ended; it said:\n%s", s.lastWords())
		case <-ctx.Done():
			return nil
		}
	})
	g.Go(func() error {
		defer done()
		return r.fill(ctx, c, s, most, say)
	})
	return r, g.Wait()
}

func (r *report) fill(ctx context.Context, c config, s *server, most int, say func(string, ...any)) (err error) {
	say("backfill against COPY, up to %d rounds of %d rows", c.backfills, c.rows)
	var last []article
	r.Backfill, err = measureBackfill(ctx, s, c.backfills, func(round int) []article {
		last = writeArticles(uint64(round+1), c.rows)
		return last
	})
	if err != nil {
		return err
	}
	table := r.Backfill.Rounds - 1
	if r.Environment, err = inspect(ctx, s, last); err != nil {
		return err
	}
	say("warming up with %d questions", c.questions)
	ways, err := newSides(ctx, s, registeredName(table), questions(last, c.questions), most)
	if err != nil {
		return err
	}
	defer ways.pool.Close()
	r.Shares = ways.shares
	if r.Commit, err = part(ctx, 100, func(ctx context.Context, _ int) error { return insert(ctx, ways.pool, "alone") }); err != nil {
		return err
	}
	for _, n := range c.clients {
		say("queries, %d clients: %d rounds of %.1f s each way", n, c.rounds, r.RoundSeconds)
		q, err := measureQueries(ctx, ways, n, c.rounds, c.perSide/time.Duration(c.rounds))
		if err != nil {
			return fmt.Errorf("queries with %d clients: %w", n, err)
		}
		r.Queries = append(r.Queries, q)
	}
	say("from commit to answer, up to %d updates", c.updates)
	r.Visible, err = measureVisible(ctx, s, table, c.rows, c.updates)
	return err
}
