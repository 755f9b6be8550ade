package metrics_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/ingest"
	"github.com/whence-db/whence/internal/pgtest"
	"github.com/whence-db/whence/internal/seal"
	"github.com/whence-db/whence/metrics"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// scrape returns each sample's line under its name and labels.
func scrape(t *testing.T, h http.Handler) map[string]string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	body, err := io.ReadAll(w.Result().Body)
	if err != nil || w.Code != http.StatusOK {
		t.Fatalf("status %d, %v: %s", w.Code, err, body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	if _, err := parser.TextToMetricFamilies(strings.NewReader(string(body))); err != nil {
		t.Fatalf("%v in:\n%s", err, body)
	}
	out := map[string]string{}
	for l := range strings.Lines(string(body)) {
		if i := strings.LastIndexByte(l, ' '); i > 0 && l[0] != '#' {
			out[l[:i]] = strings.TrimSpace(l[i+1:])
		}
	}
	return out
}

// What the process counts is served also while the memory database is away, and
// then the scrape says so; what is not known is absent, not zero.
func TestScrape(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	if _, err := db.Pool.Exec(t.Context(), `
insert into whence.sources (name, dsn_env, slot, publication, paused) values ('app', 'X', 's', 'p', true), ('new', 'X', 's2', 'p2', false), ('old', 'X', 's3', 'p3', false);
insert into whence.checkpoints (source_id, lsn, lag_bytes, lag_at, retained_wal, safe_wal, health_at, caught_up_at, prior_at, applied)
select id, '0/10'::pg_lsn, 77, now(), 78, 79, now(), now() - interval '1 hour', now() - interval '100 s', 5000 from whence.sources where name = 'app'
union all select id, '0/10'::pg_lsn, 77, now() - interval '1 min', 78, 79, now() - interval '1 min', now(), now(), 0 from whence.sources where name = 'old';
insert into whence.tables (source_id, schema_name, relation, key_columns, text_columns, text_template, subject_column, time_column,
    attribute_columns, half_life, freshness_target, on_delete, state, rows_done, rows_total)
select id, 'public', 'a "b"', '{id}', '{body}', '', '', '', '{}', '30 days', '10 s', 'TOMBSTONE', 'BACKFILLING', 0, 9 from whence.sources where name = 'app';
insert into whence.backfills (table_id, part, file, blocks, rows) select id, 1, 1, '{[0,1)}', 7 from whence.tables`); err != nil {
		t.Fatal(err)
	}
	x, err := index.New(index.Config{Pool: db.Pool})
	if err != nil {
		t.Fatal(err)
	}
	key, err := seal.ParseKey(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	registry, err := ingest.NewRegistry(ingest.Config{Pool: db.Pool, Index: x, Seal: key})
	if err != nil {
		t.Fatal(err)
	}
	m := metrics.New()
	h, err := m.Handler(registry, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	m.Applied("app", 12, 3, time.Second)
	m.Compared("app", true)
	m.Called(64, 2, time.Millisecond)
	m.Used(3, 1000, 100)
	got := scrape(t, h)
	name := `table="app.public.\"a \"\"b\"\"\""`
	table := `source="app",` + name
	for name, want := range map[string]string{
		`whence_memory_database_up`:                        "1",
		`whence_source_state{source="app",state="PAUSED"}`: "1", `whence_source_state{source="app",state="STREAMING"}`: "0",
		`whence_source_state{source="new",state="CONNECTING"}`: "1", `whence_source_lag_bytes{source="app"}`: "77",
		`whence_source_tables{source="app"}`: "1", `whence_source_retained_wal_bytes{source="app"}`: "78", `whence_source_safe_wal_bytes{source="app"}`: "79",
		`whence_source_lag_bytes{source="old"}`: "", `whence_source_retained_wal_bytes{source="old"}`: "", `whence_source_safe_wal_bytes{source="old"}`: "",
		`whence_source_lag_bytes{source="new"}`: "", `whence_source_retained_wal_bytes{source="new"}`: "",
		`whence_source_last_commit_timestamp_seconds{source="app"}`: "", `whence_source_lag_seconds{source="new"}`: "",
		`whence_source_apply_rate{source="new"}`:                            "",
		`whence_table_state{source="app",state="BACKFILLING",` + name + `}`: "1", `whence_table_state{source="app",state="LIVE",` + name + `}`: "0",
		`whence_table_backfill_rows{` + table + `}`: "7", `whence_table_backfill_rows_expected{` + table + `}`: "9",
		`whence_table_set_aside_rows{` + table + `}`: "0", `whence_table_pending_texts{` + table + `}`: "0",
		`whence_capture_changes_total{source="app"}`: "12", `whence_capture_transactions_total{source="app"}`: "3",
		`whence_capture_unit_seconds_sum{source="app"}`: "1", `whence_capture_comparisons_total{of="source",source="app"}`: "1",
		`whence_embedding_texts_total`: "64", `whence_embedding_failures_total`: "2", `whence_embedding_call_seconds_count`: "1",
		`whence_embedding_requests_total`: "3", `whence_embedding_tokens_total{by="report"}`: "900", `whence_embedding_tokens_total{by="estimate"}`: "100",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	for name, want := range map[string]float64{`whence_source_lag_seconds{source="app"}`: 3600, `whence_source_apply_rate{source="app"}`: 50} {
		if v, err := strconv.ParseFloat(got[name], 64); err != nil || v < 0.5*want || v > 2*want { // time passes meanwhile
			t.Errorf("%s is %q, want about %v", name, got[name], want)
		}
	}

	db.Pool.Close()
	got = scrape(t, h)
	for name, want := range map[string]string{`whence_memory_database_up`: "0",
		`whence_source_lag_bytes{source="app"}`: "", `whence_capture_changes_total{source="app"}`: "12"} {
		if got[name] != want {
			t.Errorf("without the database %s is %q, want %q", name, got[name], want)
		}
	}
}
