package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence/internal/pg"
	whencev1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// scaleResult is what one table costs as it grows, in a database of its own.
type scaleResult struct {
	Questions    int         `json:"questions"`
	Rounds       int         `json:"rounds"`
	RoundSeconds float64     `json:"round_seconds"`
	Subjects     int         `json:"subjects"` // that the rows are spread over evenly
	Sizes        []sizeFound `json:"sizes"`
}

// sizeFound is what was found at one size.
type sizeFound struct {
	Rows     int           `json:"rows"`
	Added    int           `json:"added"`           // since the size before
	Captured float64       `json:"captured_per_s"`  // rows, until the last had its record
	Embedded float64       `json:"embedded_per_s"`  // rows, until the last had its vector
	Indexed  float64       `json:"indexed_seconds"` // from then on, until approximate indexes were built
	Queries  []queryResult `json:"queries"`
	Shares   []share       `json:"sql_shares"`
	Subject  subjectFound  `json:"one_subject"`
	Recall   []recallFound `json:"recall"`
}

// subjectFound is what questions within one subject of many cost, one client.
type subjectFound struct {
	Asked int     `json:"asked"`
	Short int     `json:"short"` // answers with fewer hits than were asked for and are there
	P50   float64 `json:"p50_ms"`
	P95   float64 `json:"p95_ms"`
}

const (
	scaleSubjects = 1000
	scaleBatch    = 10_000 // rows written at once
	settleLimit   = 45 * time.Minute
)

// scaled makes rows from a number on, of subjects that take turns.
func scaled(from, n int) []article {
	rows := writeArticles(uint64(1000+from), n)
	for i := range rows {
		rows[i].id = int64(from + i + 1)
		rows[i].author = subjectName(from + i)
	}
	return rows
}

func subjectName(i int) string { return fmt.Sprintf("subject-%03d", i%scaleSubjects) }

// measureScale lets one table grow and asks at every size.
func measureScale(ctx context.Context, s *server, c config, say func(string, ...any)) (r scaleResult, err error) {
	r = scaleResult{Questions: c.questions, Rounds: c.rounds, RoundSeconds: c.perSide.Seconds() / float64(c.rounds), Subjects: scaleSubjects}
	memory, err := pg.NewPool(ctx, s.env["WHENCE_DATABASE_URL"], 2)
	if err != nil {
		return r, err
	}
	defer memory.Close()
	source, err := pgx.Connect(ctx, s.env["WHENCE_SOURCE_URL"])
	if err != nil {
		return r, err
	}
	defer closeConn(ctx, source)
	if err := fillTable(ctx, source, tableName(0), nil); err != nil {
		return r, err
	}
	if err := s.site().register(ctx, 0); err != nil {
		return r, err
	}
	rows := 0
	for _, size := range c.sizes {
		say("growing to %d rows", size)
		f := sizeFound{Rows: size, Added: size - rows}
		if err := grow(ctx, source, memory, rows, size, &f); err != nil {
			return r, fmt.Errorf("grow to %d rows: %w", size, err)
		}
		rows = size
		say("captured %.0f rows/s, embedded %.0f rows/s, indexed after %.0f s more; asking", f.Captured, f.Embedded, f.Indexed)
		if err := r.ask(ctx, s, c, &f, say); err != nil {
			return r, fmt.Errorf("at %d rows: %w", size, err)
		}
		r.Sizes = append(r.Sizes, f)
	}
	return r, nil
}

// grow adds rows, and waits until all of them can be found by every way.
func grow(ctx context.Context, source *pgx.Conn, memory *pgxpool.Pool, have, want int, f *sizeFound) error {
	begin := time.Now()
	for at := have; at < want; at += scaleBatch {
		rows := scaled(at, min(scaleBatch, want-at))
		_, err := source.CopyFrom(ctx, pgx.Identifier{tableName(0)}, columns, pgx.CopyFromSlice(len(rows), func(i int) ([]any, error) {
			a := rows[i]
			return []any{a.id, a.title, a.body, a.author, a.section, a.published}, nil
		}))
		if err != nil {
			return err
		}
	}
	since := func(from time.Time) float64 { return time.Since(from).Seconds() }
	for _, step := range []struct {
		sql  string
		done func()
	}{
		{`select count(*) >= @want from whence.records`,
			func() { f.Captured = float64(want-have) / since(begin) }},
		{`select not exists (select from whence.vectors where embedding is null)
and (select count(*) from whence.chunks c where not exists (select from whence.vectors v where v.digest = c.digest)) = 0`,
			func() { f.Embedded = float64(want-have) / since(begin); begin = time.Now() }},
		{`select (select coalesce(max(seq), 0) from whence.vectors) - (select coalesce(max(high), 0) from whence.segments) < 10000`,
			func() { f.Indexed = since(begin) }},
	} {
		ctx, cancel := context.WithTimeout(ctx, settleLimit)
		defer cancel()
		for done := false; !done; {
			if err := memory.QueryRow(ctx, step.sql, pgx.NamedArgs{"want": want}).Scan(&done); err != nil {
				return err
			}
			if err := pause(ctx, 500*time.Millisecond); err != nil {
				return err
			}
		}
		step.done()
	}
	_, err := memory.Exec(ctx, "vacuum analyze")
	return err
}

// ask measures one size.
func (r *scaleResult) ask(ctx context.Context, s *server, c config, f *sizeFound, say func(string, ...any)) error {
	asked := questions(scaled(0, min(f.Rows, scaleBatch)), c.questions)
	ways, err := newSides(ctx, s, registeredName(0), asked, c.most())
	if err != nil {
		return err
	}
	defer ways.pool.Close()
	f.Shares = ways.shares
	for _, n := range c.clients {
		q, err := measureQueries(ctx, ways, n, c.rounds, c.perSide/time.Duration(c.rounds))
		if err != nil {
			return fmt.Errorf("queries with %d clients: %w", n, err)
		}
		say("%d clients: %.1f ms, %.2f of the SQL's", n, q.API.P50.Median, q.Ratio.P50.Median)
		f.Queries = append(f.Queries, q)
	}
	if f.Subject, err = askSubjects(ctx, s, asked, f.Rows); err != nil {
		return err
	}
	f.Recall, err = measureRecall(ctx, s, asked, f.Rows)
	return err
}

// askSubjects asks each question within several subjects.
func askSubjects(ctx context.Context, s *server, asked []string, rows int) (f subjectFound, err error) {
	const each, limit = 4, 10
	there := rows / scaleSubjects
	var took []time.Duration
	for i := range each * len(asked) {
		want := uint32(limit)
		begin := time.Now()
		a, err := s.memory.Query(ctx, &whencev1.QueryRequest{Text: asked[i%len(asked)], Limit: &want,
			Tables: []string{string(registeredName(0))}, Subjects: []string{subjectName(i*37 + i/len(asked))}})
		if err != nil {
			return f, err
		}
		took = append(took, time.Since(begin))
		for _, h := range a.GetHits() {
			if h.GetOrigin().GetTable() != string(registeredName(0)) {
				return f, errors.New("a hit of another table")
			}
		}
		if len(a.GetHits()) < min(limit, there) {
			f.Short++
		}
	}
	slices.Sort(took)
	f.Asked, f.P50, f.P95 = len(took), milliseconds(percentile(took, 0.5)), milliseconds(percentile(took, 0.95))
	return f, nil
}

func (r *scaleResult) print(w io.Writer) error {
	fmt.Fprintf(w, "\nOne table that grows, in a database of its own; %d subjects; %d questions, %d rounds of %.1f s each way in turns\n\n",
		r.Subjects, r.Questions, r.Rounds, r.RoundSeconds)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "rows\tadded\tcaptured/s\tembedded/s\tindexed after s\tone subject: p50 ms\tp95 ms\tanswers that were short\t")
	for _, f := range r.Sizes {
		fmt.Fprintf(t, "%d\t%d\t%.0f\t%.0f\t%.0f\t%.1f\t%.1f\t%d of %d\t\n", f.Rows, f.Added, f.Captured, f.Embedded, f.Indexed,
			f.Subject.P50, f.Subject.P95, f.Subject.Short, f.Subject.Asked)
	}
	fmt.Fprintln(t)
	fmt.Fprintln(t, "rows\tclients\tAPI p50 ms\tp99 ms\tcalls/s\tSQL p50 ms\tp99 ms\tcalls/s\tAPI ÷ SQL p50\tcalls/s\tp50 ÷ first size's\t")
	for _, f := range r.Sizes {
		for i, q := range f.Queries {
			fmt.Fprintf(t, "%d\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.2f\t%.2f\t%.2f\t\n", f.Rows, q.Clients,
				q.API.P50.Median, q.API.P99.Median, q.API.Throughput.Median, q.SQL.P50.Median, q.SQL.P99.Median, q.SQL.Throughput.Median,
				q.Ratio.P50.Median, q.Ratio.Throughput.Median, q.API.P50.Median/r.Sizes[0].Queries[i].API.P50.Median)
		}
	}
	fmt.Fprintln(t)
	fmt.Fprintln(t, "rows\twithin\trows within\trecall@10\tleast\tfull answers\tof all legs\t")
	for _, f := range r.Sizes {
		for _, x := range f.Recall {
			fmt.Fprintf(t, "%d\t%s\t%d\t%.3f\t%.1f\t%d of %d\t%.3f\t\n", f.Rows, x.Within, x.Rows, x.Mean, x.Least, x.Full, x.Asked, x.Ranked)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	last := r.Sizes[len(r.Sizes)-1]
	fmt.Fprintf(w, "\nWhere the SQL's time goes at %d rows, one client, p50 over the questions\n\n", last.Rows)
	for _, s := range last.Shares[:min(len(last.Shares), 8)] {
		fmt.Fprintf(w, "  %6.2f ms  %s\n", s.P50, s.SQL)
	}
	return nil
}
