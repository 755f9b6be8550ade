// Package metrics tells Prometheus how the process, capture and embedding are.
//
// The governing idea: what one process did is counted in it, and what is stored
// is read when it is asked for, in one survey that counts no rows. Labels name
// sources and tables, nothing finer, so that no metric says anything of a row.
package metrics

import (
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/whence-db/whence/ingest"
)

// Metrics counts what the process does. It is an [ingest.Meter], and safe for
// concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	changes, transactions, streams, failures, comparisons *prometheus.CounterVec
	units                                                 *prometheus.HistogramVec
	texts, unembedded, requests                           prometheus.Counter
	tokens                                                *prometheus.CounterVec
	calls                                                 prometheus.Histogram
}

var _ ingest.Meter = (*Metrics)(nil)

// New returns metrics with everything at zero.
func New() *Metrics {
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &Metrics{
		registry:     prometheus.NewRegistry(),
		changes:      counters("whence_capture_changes_total", "Changes of rows that this process has applied.", "source"),
		transactions: counters("whence_capture_transactions_total", "Transactions of the source that this process has applied changes of.", "source"),
		streams: counters("whence_capture_streams_total",
			"Streams that this process has opened; each beyond the first is a reconnection.", "source"),
		failures: counters("whence_capture_failures_total", "Attempts to capture that failed in this process.", "source"),
		comparisons: counters("whence_capture_comparisons_total",
			"Times that rows were compared anew with the source's: of the whole source, or of one table.", "source", "of"),
		units: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "whence_capture_unit_seconds",
			Help:    "Time from the beginning of a unit, one transaction of the memory database, to its commit.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16)}, []string{"source"}),
		texts: prometheus.NewCounter(prometheus.CounterOpts{Name: "whence_embedding_texts_total",
			Help: "Texts that this process has sent to the embedding model."}),
		unembedded: prometheus.NewCounter(prometheus.CounterOpts{Name: "whence_embedding_failures_total",
			Help: "Texts that this process has sent to the embedding model and that got no vector."}),
		requests: prometheus.NewCounter(prometheus.CounterOpts{Name: "whence_embedding_requests_total",
			Help: "Requests that reached the embedding model's server, for texts and for questions, repeated ones too."}),
		tokens: counters("whence_embedding_tokens_total",
			"Tokens that those took: as the server reported, or as reckoned where it did not.", "by"),
		calls: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "whence_embedding_call_seconds",
			Help: "Time of each call of the embedding model.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 17)}),
	}
	m.registry.MustRegister(m.changes, m.transactions, m.streams, m.failures, m.comparisons, m.units, m.texts, m.unembedded, m.requests, m.tokens, m.calls,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Applied counts a unit.
func (m *Metrics) Applied(source string, changes, transactions int64, took time.Duration) {
	m.changes.WithLabelValues(source).Add(float64(changes))
	m.transactions.WithLabelValues(source).Add(float64(transactions))
	m.units.WithLabelValues(source).Observe(took.Seconds())
}

// Streaming counts a stream.
func (m *Metrics) Streaming(source string) { m.streams.WithLabelValues(source).Inc() }

// Failed counts a failed attempt.
func (m *Metrics) Failed(source string) { m.failures.WithLabelValues(source).Inc() }

// Compared counts a comparison.
func (m *Metrics) Compared(source string, whole bool) {
	of := "table"
	if whole {
		of = "source"
	}
	m.comparisons.WithLabelValues(source, of).Inc()
}

// Called counts a call of the embedding model.
func (m *Metrics) Called(texts, failed int, took time.Duration) {
	m.texts.Add(float64(texts))
	m.unembedded.Add(float64(failed))
	m.calls.Observe(took.Seconds())
}

// Used counts what a call of the embedding model cost; estimated is the part of
// tokens that the server did not report.
func (m *Metrics) Used(requests int, tokens, estimated int64) {
	m.requests.Add(float64(requests))
	m.tokens.WithLabelValues("report").Add(float64(tokens - estimated))
	m.tokens.WithLabelValues("estimate").Add(float64(estimated))
}

// Handler serves all of it in the text format, with what a registry knows of its
// sources and tables. It asks nobody for a credential. While the memory database
// does not answer, what is counted here is served all the same.
func (m *Metrics) Handler(r *ingest.Registry, log *slog.Logger) (http.Handler, error) {
	if r == nil || log == nil {
		return nil, errors.New("metrics: a registry and a log are needed")
	}
	if err := m.registry.Register(newState(r, log)); err != nil {
		return nil, err
	}
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), MaxRequestsInFlight: 4}), nil
}
