// Bench measures what Whence costs over the Postgres beneath it. It starts
// private, durable databases and whence as a process of its own, fills them with
// made-up articles, and compares:
//
//   - a query through the API with the same SQL sent over pgx and one durable
//     insert, which is the least that an answer with a record of it can cost;
//   - a backfill with COPY of the same columns from one database to the other;
//   - a call through the door with the same handler without one;
//   - a request through to an upstream with HAProxy that verifies a token, and with
//     a bare reverse proxy;
//   - the reading of the source's log with pg_recvlogical, and its applying with
//     Postgres's own subscription and with the same rows written as plain SQL.
//
// Besides it takes the delays at a steady rate of changes, and the memory that
// one large transaction needs; these have no rival.
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
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == proxyArgument {
		if err := beProxy(os.Args[2], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
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

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	c, err := parse(args, progress)
	if err != nil {
		return err
	}
	begun, busy := time.Now(), loadAverages()
	say := func(format string, args ...any) {
		fmt.Fprintf(progress, "%5.1f s  %s\n", time.Since(begun).Seconds(), fmt.Sprintf(format, args...))
	}
	ctx, cancel := context.WithTimeout(ctx, c.limit())
	defer cancel()
	r := &report{}
	err = r.measure(ctx, c, say)
	r.Environment.Load = busy
	if c.embedding > 0 {
		r.Environment.Embedding = c.embedding.String()
	}
	r.Seconds = time.Since(begun).Seconds()
	// What was measured before a failure is shown all the same.
	if c.json {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return errors.Join(err, e.Encode(r))
	}
	return errors.Join(err, r.print(out))
}

func (r *report) measure(ctx context.Context, c config, say func(string, ...any)) error {
	if c.runs(partDrain, partBackfill, partHuge) {
		if err := r.apart(ctx, c, say); err != nil {
			return err
		}
	}
	if c.runs(partDoor) {
		if err := r.door(ctx, c, say); err != nil {
			return err
		}
	}
	if c.runs(partThrough) {
		if err := r.through(ctx, c, say); err != nil {
			return err
		}
	}
	if c.runs(partScale) {
		if err := r.growing(ctx, c, say); err != nil {
			return err
		}
	}
	if c.runs(partQuery, partBackfill, partSteady) {
		return r.together(ctx, c, say)
	}
	return nil
}

// door measures what a call pays for coming through the door.
func (r *report) door(ctx context.Context, c config, say func(string, ...any)) (err error) {
	say("starting a memory database")
	w, err := newWorld(ctx, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.stop(ctx)) }()
	dsn := w.memory.DSN(memoryName)
	if r.Environment, err = inspect(ctx, dsn); err != nil {
		return err
	}
	r.Door, err = measureDoor(ctx, dsn, w.key, c, say)
	return err
}

// through measures what a request pays on its way to an upstream.
func (r *report) through(ctx context.Context, c config, say func(string, ...any)) (err error) {
	say("building and starting whence dev")
	s, err := startServer(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	return while(ctx, s.program, func(ctx context.Context) (err error) {
		if r.Environment, err = inspect(ctx, s.env["WHENCE_DATABASE_URL"]); err != nil {
			return err
		}
		r.Through, err = measureThrough(ctx, s, c, say)
		return err
	})
}

// apart measures capture with source and memory database on servers of their
// own, and without an embedder.
func (r *report) apart(ctx context.Context, c config, say func(string, ...any)) (err error) {
	say("starting a source and a memory database")
	w, err := newWorld(ctx, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.stop(ctx)) }()
	if r.Environment, err = inspect(ctx, w.memory.DSN(memoryName)); err != nil {
		return err
	}
	if c.runs(partDrain) {
		d, err := measureDrain(ctx, w, c, say)
		if err != nil {
			return fmt.Errorf("drain: %w", err)
		}
		r.Drain = &d
	}
	if !c.runs(partBackfill, partHuge) {
		return nil
	}
	say("building and starting whence serve with the roles api and capture")
	s, err := w.serve(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	return while(ctx, s.program, func(ctx context.Context) error { return r.captureAlone(ctx, c, s, say) })
}

func (r *report) captureAlone(ctx context.Context, c config, s *served, say func(string, ...any)) error {
	if c.runs(partBackfill) {
		say("backfill without embedding against COPY, up to %d rounds of %d rows", c.backfills, c.rows)
		b, err := measureBackfill(ctx, s.site(), c.backfills, func(round int) []article { return writeArticles(uint64(round+1), c.rows) })
		if err != nil {
			return err
		}
		r.Plain = &b
	}
	if c.runs(partHuge) {
		h, err := measureHuge(ctx, s, c, say)
		if err != nil {
			return fmt.Errorf("a large transaction: %w", err)
		}
		r.Huge = &h
	}
	return nil
}

// growing measures whence dev as one table grows.
func (r *report) growing(ctx context.Context, c config, say func(string, ...any)) (err error) {
	say("building and starting whence dev")
	s, err := startServer(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	return while(ctx, s.program, func(ctx context.Context) (err error) {
		if r.Environment, err = inspect(ctx, s.env["WHENCE_DATABASE_URL"]); err != nil {
			return err
		}
		found, err := measureScale(ctx, s, c, say)
		if len(found.Sizes) > 0 {
			r.Scale = &found
		}
		return err
	})
}

// together measures whence dev, which does everything in one process.
func (r *report) together(ctx context.Context, c config, say func(string, ...any)) (err error) {
	say("building and starting whence dev")
	s, err := startServer(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	return while(ctx, s.program, func(ctx context.Context) error { return r.serving(ctx, c, s, say) })
}

func (r *report) serving(ctx context.Context, c config, s *server, say func(string, ...any)) (err error) {
	if r.Environment, err = inspect(ctx, s.env["WHENCE_DATABASE_URL"]); err != nil {
		return err
	}
	if c.runs(partQuery, partBackfill) {
		say("backfill against COPY, up to %d rounds of %d rows", c.backfills, c.rows)
		var last []article
		b, err := measureBackfill(ctx, s.site(), c.backfills, func(round int) []article {
			last = writeArticles(uint64(round+1), c.rows)
			return last
		})
		if err != nil {
			return err
		}
		r.Backfill = &b
		if c.runs(partQuery) {
			if err := r.asking(ctx, c, s, last, say); err != nil {
				return err
			}
		}
	}
	if c.runs(partSteady) {
		say("%d changes a second for %v", c.rate, c.steady)
		t, err := measureSteady(ctx, s, c)
		if err != nil {
			return fmt.Errorf("steady rate: %w", err)
		}
		r.Steady = &t
	}
	return nil
}

// asking measures queries over the last round's table, and what is needed to
// see a change in one.
func (r *report) asking(ctx context.Context, c config, s *server, last []article, say func(string, ...any)) (err error) {
	r.Questions, r.Rounds, r.RoundSeconds = c.questions, c.rounds, c.perSide.Seconds()/float64(c.rounds)
	table := r.Backfill.Rounds - 1
	if r.Data, err = describe(ctx, s, last); err != nil {
		return err
	}
	say("warming up with %d questions", c.questions)
	ways, err := newSides(ctx, s, registeredName(table), questions(last, c.questions), c.most())
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
	v, err := measureVisible(ctx, s, table, c.rows, c.updates)
	r.Visible = &v
	return err
}

// while runs fn for as long as the program lives; its end fails fn.
func while(ctx context.Context, p *program, fn func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	ctx, done := context.WithCancel(ctx)
	g.Go(func() error {
		select {
		case <-p.ended:
			return fmt.Errorf("the server ended; it said:\n%s", p.lastWords())
		case <-ctx.Done():
			return nil
		}
	})
	g.Go(func() error {
		defer done()
		return fn(ctx)
	})
	return g.Wait()
}
