package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"

	"github.com/jackc/pgx/v5"
)

// report is everything that a run found; -json prints it. What was not measured
// is left out.
type report struct {
	Environment environmentLine `json:"environment"`
	Drain       *drainResult    `json:"drain,omitempty"`
	Plain       *backfillResult `json:"backfill_without_embedding,omitempty"`
	Huge        *hugeResult     `json:"large_transaction,omitempty"`
	Steady      *steadyResult   `json:"steady_rate,omitempty"`
	Scale       *scaleResult    `json:"scale,omitempty"`
	Door        *doorResult     `json:"door,omitempty"`
	Through     *throughResult  `json:"through,omitempty"`

	Backfill     *backfillResult `json:"backfill,omitempty"`
	Data         *dataLine       `json:"data,omitempty"`
	Commit       float64         `json:"durable_commit_ms,omitempty"` // one insert, one client, p50
	Questions    int             `json:"questions,omitempty"`
	Rounds       int             `json:"rounds,omitempty"`
	RoundSeconds float64         `json:"round_seconds,omitempty"`
	Queries      []queryResult   `json:"queries,omitempty"`
	Shares       []share         `json:"sql_shares,omitempty"`
	Visible      *visibleResult  `json:"visible,omitempty"`

	Seconds float64 `json:"seconds"` // that the run took
}

// environmentLine is what the figures depend on.
type environmentLine struct {
	Cores      int    `json:"cores"`
	Platform   string `json:"platform"`
	Go         string `json:"go"`
	Postgres   string `json:"postgres"`
	Pgvector   string `json:"pgvector"`
	Load       string `json:"load,omitempty"` // the machine's load averages before the run, where the system tells
	Durability string `json:"durability"`
	Model      string `json:"model"`
	Dimensions int    `json:"dimensions"`
	Embedding  string `json:"embedding,omitempty"` // what a server of embeddings takes for a request; empty: the built-in model
}

// dataLine is what the queries are asked of.
type dataLine struct {
	Rows      int `json:"rows"`
	Chunks    int `json:"chunks"`
	TextBytes int `json:"mean_text_bytes"`
}

const (
	inspectSQL = `
select current_setting('server_version'), (select extversion from pg_extension where extname = 'vector'),
       'fsync ' || current_setting('fsync') || ', synchronous_commit ' || current_setting('synchronous_commit'), s.model, s.dimensions
from whence.spaces s where s.current`
	countChunks = `select count(*) from whence.chunks`
)

// loadAverages returns the load of the last 1, 5 and 15 minutes; empty where the
// system does not tell.
func loadAverages() string {
	b, err := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(b))
	if err != nil || len(fields) < 3 {
		return ""
	}
	return strings.Join(fields[:3], " ")
}

// inspect describes the machine and a memory database.
func inspect(ctx context.Context, memory string) (environmentLine, error) {
	e := environmentLine{Cores: runtime.NumCPU(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version()}
	conn, err := pgx.Connect(ctx, memory)
	if err != nil {
		return e, err
	}
	defer closeConn(ctx, conn)
	return e, conn.QueryRow(ctx, inspectSQL).Scan(&e.Postgres, &e.Pgvector, &e.Durability, &e.Model, &e.Dimensions)
}

func describe(ctx context.Context, s *server, rows []article) (*dataLine, error) {
	d := &dataLine{Rows: len(rows)}
	for _, a := range rows {
		d.TextBytes += len(a.title) + len(a.body)
	}
	d.TextBytes /= len(rows)
	conn, err := pgx.Connect(ctx, s.env["WHENCE_DATABASE_URL"])
	if err != nil {
		return nil, err
	}
	defer closeConn(ctx, conn)
	return d, conn.QueryRow(ctx, countChunks).Scan(&d.Chunks)
}

func (r *report) print(w io.Writer) error {
	e := r.Environment
	fmt.Fprintf(w, "machine  %d cores, %s, %s, PostgreSQL %s, pgvector %s\n", e.Cores, e.Platform, e.Go, e.Postgres, e.Pgvector)
	if e.Load != "" {
		fmt.Fprintf(w, "load     %s before the run (a busy machine spreads the figures)\n", e.Load)
	}
	fmt.Fprintf(w, "disk     %s", e.Durability)
	if r.Commit > 0 {
		fmt.Fprintf(w, "; one durable insert alone takes %.2f ms (p50)", r.Commit)
	}
	fmt.Fprintln(w)
	if e.Embedding != "" {
		fmt.Fprintf(w, "model    a server that takes %s for a request\n", e.Embedding)
	}
	for _, part := range []struct {
		measured bool
		print    func(io.Writer) error
	}{
		{r.Drain != nil, func(w io.Writer) error { return r.Drain.print(w) }},
		{r.Plain != nil || r.Backfill != nil, r.printBackfill},
		{r.Huge != nil, func(w io.Writer) error { return r.Huge.print(w) }},
		{r.Steady != nil, func(w io.Writer) error { return r.Steady.print(w) }},
		{r.Door != nil, func(w io.Writer) error { return r.Door.print(w) }},
		{r.Through != nil, func(w io.Writer) error { return r.Through.print(w) }},
		{r.Scale != nil, func(w io.Writer) error { return r.Scale.print(w) }},
		{len(r.Queries) > 0, r.printQueries},
		{len(r.Shares) > 0, r.printShares},
		{r.Visible != nil, r.printVisible},
	} {
		if !part.measured {
			continue
		}
		if err := part.print(w); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "\nthe run took %.0f s\n", r.Seconds)
	return err
}

func (r *report) printQueries(w io.Writer) error {
	fmt.Fprintf(w, "\nQuery: through the API, and the same SQL over pgx with one durable insert\n")
	fmt.Fprintf(w, "%d rows of %d bytes of text, %d chunks, %d dimensions (%s)\n",
		r.Data.Rows, r.Data.TextBytes, r.Data.Chunks, r.Environment.Dimensions, r.Environment.Model)
	fmt.Fprintf(w, "%d questions, %d rounds of %.1f s each way in turns; median of the rounds (lowest to highest)\n\n",
		r.Questions, r.Rounds, r.RoundSeconds)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "clients\t\tp50 ms\t\tp99 ms\t\tcalls/s\t\t")
	for _, q := range r.Queries {
		for _, line := range []struct {
			name   string
			of     loadResult
			digits int
		}{{"API", q.API, 1}, {"SQL", q.SQL, 1}, {"API ÷ SQL", q.Ratio, 2}} {
			fmt.Fprintf(t, "%d\t%s\t", q.Clients, line.name)
			for _, f := range []figure{line.of.P50, line.of.P99, line.of.Throughput} {
				m, s := f.text(line.digits)
				fmt.Fprintf(t, "%s\t%s\t", m, s)
			}
			fmt.Fprintln(t)
		}
	}
	return t.Flush()
}

func (r *report) printShares(w io.Writer) error {
	fmt.Fprintf(w, "\nWhere the SQL's time goes, one client, p50 over the questions\n\n")
	for i, s := range r.Shares {
		if i == 5 {
			break
		}
		fmt.Fprintf(w, "%8.2f ms  %s\n", s.P50, s.SQL)
	}
	return nil
}

func (r *report) printBackfill(w io.Writer) error {
	one := r.Backfill
	if one == nil {
		one = r.Plain
	}
	fmt.Fprintf(w, "\nBackfill: from RegisterTable on, and COPY (FORMAT binary) out of the source and into a table without an index\n")
	fmt.Fprintf(w, "%d rounds of %d rows in turns; median of the rounds (lowest to highest)\n\n", one.Rounds, one.Rows)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\trows/s\t\ttime ÷ COPY's\t\t")
	line := func(name string, rate figure, ratio *figure) {
		m, s := rate.text(0)
		fmt.Fprintf(t, "%s\t%s\t%s\t", name, m, s)
		if ratio != nil {
			m, s = ratio.text(1)
			fmt.Fprintf(t, "%s\t%s\t", m, s)
		}
		fmt.Fprintln(t)
	}
	if b := r.Plain; b != nil {
		line("without an embedder, until LIVE", b.Live, &b.LiveRatio)
		line("COPY", b.Copy, nil)
	}
	if b := r.Backfill; b != nil {
		line("with one, until LIVE", b.Live, &b.LiveRatio)
		line("until embedded", b.Embedded, &b.EmbeddedRatio)
		line("COPY", b.Copy, nil)
	}
	return t.Flush()
}

func (r *report) printVisible(w io.Writer) error {
	v := r.Visible
	fmt.Fprintf(w, "\nFrom a commit in the source to an answer, %d single updates at idle, the query included\n\n", v.Updates)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\tp50 ms\tp90 ms\tmax ms\t")
	fmt.Fprintf(t, "new text shown\t%.1f\t%.1f\t%.1f\t\n", v.Seen.P50, v.Seen.P90, v.Seen.Max)
	fmt.Fprintf(t, "shown as FRESH\t%.1f\t%.1f\t%.1f\t\n", v.Fresh.P50, v.Fresh.P90, v.Fresh.Max)
	return t.Flush()
}

// text writes the median and the extremes.
func (f figure) text(digits int) (median, extremes string) {
	return fmt.Sprintf("%.*f", digits, f.Median), fmt.Sprintf("(%.*f to %.*f)", digits, f.Low, digits, f.High)
}
