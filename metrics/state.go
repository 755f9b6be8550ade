package metrics

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/ingest"
)

// surveyLimit is how long a scrape waits for the memory database.
const surveyLimit = 3 * time.Second

var (
	sourceStates = []ingest.SourceState{ingest.SourceConnecting, ingest.SourceStreaming, ingest.SourcePaused, ingest.SourceBroken, ingest.SourceDeleting}
	tableStates  = []whence.TableState{whence.TablePending, whence.TableBackfilling, whence.TableLive, whence.TableSchemaChanged, whence.TableBroken}
)

// state collects what the memory database says.
type state struct {
	registry *ingest.Registry
	log      *slog.Logger

	up                                                               *prometheus.Desc
	sourceState, lagBytes, lag, retained, safe, commit, rate, tables *prometheus.Desc
	tableState, rowsDone, rowsTotal, aside, pending                  *prometheus.Desc
}

func newState(r *ingest.Registry, log *slog.Logger) *state {
	source := func(name, help string, more ...string) *prometheus.Desc {
		return prometheus.NewDesc("whence_source_"+name, help, append([]string{"source"}, more...), nil)
	}
	table := func(name, help string, more ...string) *prometheus.Desc {
		return prometheus.NewDesc("whence_table_"+name, help, append([]string{"source", "table"}, more...), nil)
	}
	return &state{registry: r, log: log,
		up: prometheus.NewDesc("whence_memory_database_up", "1 when the memory database answered this scrape; else the gauges that come from it are absent.", nil, nil),

		sourceState: source("state", "1 for the state that capture of the source is in.", "state"),
		lagBytes:    source("lag_bytes", "Log that the source had written, when last asked, beyond what is applied; absent while that is not known."),
		lag:         source("lag_seconds", "Age of the moment up to which everything committed is applied; absent while that is not known."),
		retained:    source("retained_wal_bytes", "Log that the replication slot keeps on the source; absent while that is not known."),
		safe:        source("safe_wal_bytes", "Log that the source may yet write before it gives the slot up; 0 when the slot is lost; absent without a bound and while that is not known."),
		commit:      source("last_commit_timestamp_seconds", "Commit time of the last transaction applied, by the source's clock; absent when there is none."),
		rate:        source("apply_rate", "Changes of rows applied a second, over the last 10 to 20 seconds of capture, by whichever process captures; absent while not known."),
		tables:      source("tables", "Registered tables."),

		tableState: table("state", "1 for the state that the table is in.", "state"),
		rowsDone:   table("backfill_rows", "Rows that the running or last copy of the table has taken over."),
		rowsTotal:  table("backfill_rows_expected", "Rows that there are to copy; an estimate until the copy is complete."),
		aside:      table("set_aside_rows", "Rows that are not taken over whole; 10,000 over all tables are counted."),
		pending:    table("pending_texts", "Texts without a vector, by the table that asked for them first; 10,000 over all tables are counted."),
	}
}

// Describe sends every description.
func (s *state) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.up, s.sourceState, s.lagBytes, s.lag, s.retained, s.safe, s.commit, s.rate, s.tables,
		s.tableState, s.rowsDone, s.rowsTotal, s.aside, s.pending} {
		ch <- d
	}
}

// Collect surveys the memory database.
func (s *state) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), surveyLimit)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	found, err := s.registry.Survey(ctx)
	if err != nil {
		s.log.WarnContext(ctx, "metrics without what is in the memory database", "error", err)
		gauge(s.up, 0)
		return
	}
	gauge(s.up, 1)
	for _, src := range found.Sources {
		s.source(src, gauge)
	}
	for _, t := range found.Tables {
		labels := []string{t.Source, string(t.Name())}
		for _, st := range tableStates {
			gauge(s.tableState, is(st == t.State), append(labels, string(st))...)
		}
		gauge(s.rowsDone, float64(t.Status.RowsDone), labels...)
		gauge(s.rowsTotal, float64(t.Status.RowsTotal), labels...)
		gauge(s.aside, float64(found.SetAside[t.ID]), labels...)
		gauge(s.pending, float64(found.Pending[t.ID]), labels...)
	}
}

func (s *state) source(src ingest.Source, gauge func(*prometheus.Desc, float64, ...string)) {
	for _, st := range sourceStates {
		gauge(s.sourceState, is(st == src.State), src.Name, string(st))
	}
	gauge(s.tables, float64(src.Tables), src.Name)
	if src.Lag >= 0 {
		gauge(s.lag, src.Lag.Seconds(), src.Name)
	}
	if src.LagBytes >= 0 {
		gauge(s.lagBytes, float64(src.LagBytes), src.Name)
	}
	if src.RetainedWAL >= 0 {
		gauge(s.retained, float64(src.RetainedWAL), src.Name)
	}
	if src.SafeWAL >= 0 {
		gauge(s.safe, float64(src.SafeWAL), src.Name)
	}
	if !src.CommitTime.IsZero() {
		gauge(s.commit, float64(src.CommitTime.UnixMicro())/1e6, src.Name)
	}
	if src.ApplyRate >= 0 {
		gauge(s.rate, src.ApplyRate, src.Name)
	}
}

func is(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
