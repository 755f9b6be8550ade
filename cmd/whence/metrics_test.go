package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/protobuf/proto"

	"github.com/whence-db/whence/authz"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// scrape reads the metrics as Prometheus does.
func (c caller) scrape(t *testing.T) (families map[string]*dto.MetricFamily, body string) {
	t.Helper()
	status, header, body := c.get(t, "/metrics")
	if status != http.StatusOK || !strings.HasPrefix(header.Get("Content-Type"), "text/plain") {
		t.Fatalf("GET /metrics: status %d, %s: %.300s", status, header.Get("Content-Type"), body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatalf("%v in:\n%s", err, body)
	}
	return families, body
}

// value returns what a metric shows under the given labels, "name=value" each.
func value(families map[string]*dto.MetricFamily, name string, labels ...string) (float64, bool) {
next:
	for _, m := range families[name].GetMetric() {
		have := map[string]bool{}
		for _, l := range m.GetLabel() {
			have[l.GetName()+"="+l.GetValue()] = true
		}
		for _, l := range labels {
			if !have[l] {
				continue next
			}
		}
		switch {
		case m.GetGauge() != nil:
			return m.GetGauge().GetValue(), true
		case m.GetCounter() != nil:
			return m.GetCounter().GetValue(), true
		case m.GetHistogram() != nil:
			return float64(m.GetHistogram().GetSampleCount()), true
		}
	}
	return 0, false
}

// Operators see the metrics; agents and strangers do not, and what they tried is
// on record.
func (w *running) testMetricsDoor(t *testing.T) {
	t.Parallel()
	tokens := credentials(t, w)
	for _, c := range []struct {
		as     string
		status int
		reason string
	}{
		{"none", http.StatusUnauthorized, "TOKEN_MISSING"},
		{"words", http.StatusUnauthorized, "TOKEN_MALFORMED"},
		{"garbled", http.StatusUnauthorized, "TOKEN_SIGNATURE_INVALID"},
		{"expired", http.StatusUnauthorized, "TOKEN_EXPIRED"},
		{"agent", http.StatusForbidden, "WRONG_CREDENTIAL_KIND"},
		{"narrow", http.StatusForbidden, "WRONG_CREDENTIAL_KIND"},
		{"viewer", http.StatusOK, ""},
		{"operator", http.StatusOK, ""},
	} {
		status, header, body := caller{w.http, w.url, tokens[c.as]}.get(t, "/metrics")
		if status != c.status || !strings.Contains(body, c.reason) {
			t.Errorf("as %s: status %d: %.200s", c.as, status, body)
		}
		if shown := strings.Contains(body, "whence_"); shown != (c.status == http.StatusOK) {
			t.Errorf("as %s: metrics shown is %v", c.as, shown)
		}
		if (header.Get("WWW-Authenticate") != "") != (status == http.StatusUnauthorized) {
			t.Errorf("as %s: WWW-Authenticate is %q", c.as, header.Get("WWW-Authenticate"))
		}
	}
	var allowed, refused int
	if err := w.memory.QueryRow(t.Context(), `select count(*) filter (where decision = 'ALLOWED'),
count(*) filter (where decision = 'REFUSED') from whence.entries where call = 'GET /metrics'`).Scan(&allowed, &refused); err != nil {
		t.Fatal(err)
	}
	if allowed != 0 || refused < 6 {
		t.Errorf("the log has %d scrapes that were let in and %d that were refused", allowed, refused)
	}
}

// The metrics say how capture and embedding are, and nothing of what rows hold.
func (w *running) testMetricsSay(t *testing.T) {
	t.Parallel()
	w.exec(t, `create table public.gauges (id int primary key, owner text, what text)`)
	w.exec(t, `insert into public.gauges select i, 'metricowner', 'metricword ' || i from generate_series(1, 40) i`)
	w.exec(t, `insert into public.gauges values (41, repeat('metricowner', 300), 'metricword')`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.gauges", TextColumns: []string{"what"}, SubjectColumn: "owner"})
	w.exec(t, `insert into public.gauges select i, 'metricowner', 'metricword ' || i from generate_series(100, 129) i`)
	const source, table = "source=app", "table=app.public.gauges"
	var body string
	eventually(t, startLimit, "the metrics show what was done", func() error {
		var f map[string]*dto.MetricFamily
		f, body = w.operator().scrape(t)
		for _, c := range []struct {
			name        string
			labels      []string
			least, most float64
		}{
			{"whence_memory_database_up", nil, 1, 1},
			{"whence_source_state", []string{source, "state=STREAMING"}, 1, 1},
			{"whence_source_state", []string{source, "state=BROKEN"}, 0, 0},
			{"whence_source_lag_bytes", []string{source}, 0, 1 << 30},
			{"whence_source_lag_seconds", []string{source}, 0, 600},
			{"whence_source_retained_wal_bytes", []string{source}, 1, 1 << 34},
			{"whence_source_last_commit_timestamp_seconds", []string{source}, 1.7e9, 1e10},
			{"whence_source_apply_rate", []string{source}, 0, 1e6},
			{"whence_source_tables", []string{source}, 1, 100},
			{"whence_capture_changes_total", []string{source}, 30, 1e9},
			{"whence_capture_transactions_total", []string{source}, 1, 1e9},
			{"whence_capture_unit_seconds", []string{source}, 1, 1e9},
			{"whence_capture_streams_total", []string{source}, 1, 1e3},
			{"whence_table_state", []string{source, table, "state=LIVE"}, 1, 1},
			{"whence_table_state", []string{source, table, "state=PENDING"}, 0, 0},
			{"whence_table_backfill_rows", []string{source, table}, 41, 41},
			{"whence_table_backfill_rows_expected", []string{source, table}, 41, 41},
			{"whence_table_set_aside_rows", []string{source, table}, 1, 1},
			{"whence_table_pending_texts", []string{source, table}, 0, 0},
			{"whence_embedding_texts_total", nil, 70, 1e9},
			{"whence_embedding_failures_total", nil, 0, 0},
			{"whence_embedding_call_seconds", nil, 1, 1e9},
			{"go_goroutines", nil, 1, 1e6},
			{"process_resident_memory_bytes", nil, 1, 1e12},
		} {
			if v, there := value(f, c.name, c.labels...); !there || v < c.least || v > c.most {
				return fmt.Errorf("%s %v is %v, there %v, want %v to %v", c.name, c.labels, v, there, c.least, c.most)
			}
		}
		return nil
	})
	if strings.Contains(body, "metricword") || strings.Contains(body, "metricowner") {
		t.Error("the metrics tell what a row holds")
	}
	var got v1.GetTableResponse
	w.operator().must(t, "SourceService/GetTable", &v1.GetTableRequest{Name: "app.public.gauges"}, &got)
	if a := got.GetStatus().GetSetAside(); a.GetRows() != 1 || a.GetKey() != `{"id":"41"}` || !strings.Contains(a.GetReason(), "subject") || a.GetTime() == nil {
		t.Errorf("the status says %v", a)
	}
	var hits []*v1.Hit
	eventually(t, showLimit, "every row is found", func() error {
		hits = w.agent().query(t, &v1.QueryRequest{Text: "metricword", Tables: []string{"app.public.gauges"}, Limit: proto.Uint32(200)}).GetHits()
		if len(hits) != 71 {
			return fmt.Errorf("%d hits", len(hits))
		}
		return nil
	})
	for _, h := range hits {
		aside := h.GetOrigin().GetKey().GetFields()["id"].GetStringValue() == "41"
		f := h.GetFreshness()
		if aside != (len(f.GetReasons()) > 0 && f.GetReasons()[len(f.GetReasons())-1] == v1.FreshnessReason_FRESHNESS_REASON_ROW_SET_ASIDE) ||
			aside && f.GetState() == v1.FreshnessState_FRESHNESS_STATE_FRESH {
			t.Errorf("%v is %v", h.GetOrigin().GetKey(), f)
		}
	}
	w.cli(t, "table", "get", "app.public.gauges").is(t, 0, "rows not taken over whole: 1", `{"id":"41"}`)
	w.cli(t, "source", "list").is(t, 0, "BEHIND", "KEPT", "APPLIED", "/s", "LAST COMMIT")
}

// A process that answers no calls tells how it is, to who has the metrics token.
func (w *running) testMetricsWithoutAPI(t *testing.T) {
	t.Parallel()
	const secret = "a token for metrics alone"
	c := spawn(t, w.env, "serve", "--listen", "127.0.0.1:0", "--roles", "embed", "--metrics-token", secret)
	url := c.ready(t)
	f, _ := caller{w.http, url, secret}.scrape(t)
	if v, there := value(f, "whence_source_state", "source=app", "state=STREAMING"); !there || v != 1 {
		t.Errorf("the source's state is %v, there %v", v, there)
	}
	for _, token := range []string{"", secret + "s", w.env["WHENCE_AGENT_TOKEN"]} {
		if status, _, _ := (caller{w.http, url, token}).get(t, "/metrics"); status != http.StatusUnauthorized && status != http.StatusForbidden {
			t.Errorf("%q: status %d", token, status)
		}
	}
	caller{w.http, url, signed(t, w, authz.RoleViewer, time.Now, w.env["WHENCE_ISSUER"])}.scrape(t)
	if status, _, _ := (caller{http: w.http, url: url}).get(t, "/healthz"); status != http.StatusOK {
		t.Errorf("/healthz: status %d", status)
	}
	if status, _, _ := (caller{w.http, url, w.env["WHENCE_OPERATOR_TOKEN"]}).get(t, "/whence.v1.SourceService/ListSources?message={}&encoding=json"); status != http.StatusNotFound {
		t.Errorf("a call is answered with status %d", status)
	}
	// The token opens nothing else.
	if _, err := (caller{w.http, w.url, secret}).post(t.Context(), "SourceService/ListSources", []byte("{}")); err == nil {
		t.Error("the metrics token lists sources")
	}
	w.cli(t, "serve", "--database-url", w.env["WHENCE_DATABASE_URL"], "--secret-key", w.env["WHENCE_SECRET_KEY"],
		"--listen", "127.0.0.1:0", "--metrics-token", "short").is(t, 1, "--metrics-token", "16")
}
