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

// report is everything that a run found; -json prints it.
type report struct {
	Environment  environmentLine `json:"environment"`
	Commit       float64         `json:"durable_commit_ms"` // one insert, one client, p50
	Questions    int             `json:"questions"`
	Rounds       int             `json:"rounds"`
	RoundSeconds float64         `json:"round_seconds"`
	Queries      []queryResult   `json:"queries"`
	Shares       []share         `json:"sql_shares"`
	Backfill     backfillResult  `json:"backfill"`
	Visible      visibleResult   `json:"visible"`
	Seconds      float64         `json:"seconds"` // that the run took
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
	Rows       int    `json:"rows"`
	Chunks     int    `json:"chunks"`
	TextBytes  int    `json:"mean_text_bytes"`
	Model      string `json:"model"`
	Dimensions int    `json:"dimensions"`
}

const inspectSQL = `
select current_setting('server_version'), (select extversion from pg_extension where extname = 'vector'),
       'fsync ' || current_setting('fsync') || ', synchronous_commit ' || current_setting('synchronous_commit'),
       (select count(*) from whence.chunks), s.model, s.dimensions
from whence.spaces s where s.current`

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

func inspect(ctx context.Context, s *server, rows []article) (environmentLine, error) {
	e := environmentLine{Cores: runtime.NumCPU(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version(), Rows: len(rows)}
	for _, a := range rows {
		e.TextBytes += len(a.title) + len(a.body)
	}
	e.TextBytes /= len(rows)
	conn, err := pgx.Connect(ctx, s.env["WHENCE_DATABASE_URL"])
	if err != nil {
		return e, err
	}
	defer conn.Close(ctx)
	return e, conn.QueryRow(ctx, inspectSQL).Scan(&e.Postgres, &e.Pgvector, &e.Durability, &e.Chunks, &e.Model, &e.Dimensions)
}

func (r *report) print(w io.Writer) error {
	e := r.Environment
	fmt.Fprintf(w, "machine  %d cores, %s, %s, PostgreSQL %s, pgvector %s\n", e.Cores, e.Platform, e.Go, e.Postgres, e.Pgvector)
	if e.Load != "" {
		fmt.Fprintf(w, "load     %s before the run (a busy machine spreads the figures)\n", e.Load)
	}
	fmt.Fprintf(w, "disk     %s; one durable insert alone takes %.2f ms (p50)\n", e.Durability, r.Commit)
	fmt.Fprintf(w, "data     %d rows of %d bytes of text, %d chunks, %d dimensions (%s)\n",
		e.Rows, e.TextBytes, e.Chunks, e.Dimensions, e.Model)
	for _, part := range []func(io.Writer) error{r.printQueries, r.printShares, r.printBackfill, r.printVisible} {
		if err := part(w); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "\nthe run took %.0f s\n", r.Seconds)
	return err
}

func (r *report) printQueries(w io.Writer) error {
	fmt.Fprintf(w, "\nQuery: through the API, and the same SQL over pgx with one durable insert\n")
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
	fmt.Fprintf(w, "\nBackfill: from RegisterTable on, and COPY out of the source and into the memory database\n")
	fmt.Fprintf(w, "%d rounds of %d rows in turns; median of the rounds (lowest to highest)\n\n", r.Backfill.Rounds, r.Backfill.Rows)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\trows/s\t\ttime ÷ COPY's\t\t")
	for _, line := range []struct {
		name  string
		rate  figure
		ratio *figure
	}{
		{"until LIVE", r.Backfill.Live, &r.Backfill.LiveRatio},
		{"until embedded", r.Backfill.Embedded, &r.Backfill.EmbeddedRatio},
		{"COPY", r.Backfill.Copy, nil},
	} {
		m, s := line.rate.text(0)
		fmt.Fprintf(t, "%s\t%s\t%s\t", line.name, m, s)
		if line.ratio != nil {
			m, s = line.ratio.text(1)
			fmt.Fprintf(t, "%s\t%s\t", m, s)
		}
		fmt.Fprintln(t)
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
