package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/whence-db/whence/embedder/embeddertest"
	"github.com/whence-db/whence/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

const shipped = "testdata/fennmark"

// ask runs the harness as main does.
func ask(t *testing.T, args ...string) *report {
	t.Helper()
	r := &report{}
	var out, progress bytes.Buffer
	if err := run(t.Context(), append([]string{"-json", "-embedder", "lexical"}, args...), &out, &progress); err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	if err := json.Unmarshal(out.Bytes(), r); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *report) of(t *testing.T, name string) measured {
	t.Helper()
	for _, m := range r.Rankings {
		if m.Name == name {
			return m
		}
	}
	t.Fatalf("nothing is said of %q", name)
	return measured{}
}

// tolerance is about one question of forty that slips from first to second.
const tolerance = 0.01

func TestShippedSet(t *testing.T) {
	t.Parallel()
	r := ask(t, "-data", shipped)
	if r.Documents != 120 || r.Chunks < 120 || r.Questions != 40 || r.Absent != 0 || !r.Dated {
		t.Fatalf("%+v", r)
	}
	plain, fused, timeless := r.of(t, "plain BM25"), r.of(t, "fused"), r.of(t, "fused, no recency")
	for _, m := range []measured{fused, timeless} {
		if m.NDCG10 < plain.NDCG10-tolerance || m.Recall10 < plain.Recall10-tolerance {
			t.Errorf("%s is worse than plain BM25: %+v, %+v", m.Name, m, plain)
		}
	}
	if lexical := r.of(t, "lexical only"); lexical.NDCG10 < plain.NDCG10-tolerance {
		t.Errorf("text search is worse than plain BM25: %+v, %+v", lexical, plain)
	}
	if dense := r.of(t, "dense only"); dense.NDCG10 < 0.5 || dense.NDCG10 == fused.NDCG10 {
		t.Errorf("the vectors alone: %+v", dense)
	}
	at := len(r.Rankings) - 1
	for _, k := range r.Kinds {
		now, before := k.NDCG10[at], k.NDCG10[at-1]
		switch {
		case k.Name == "newest" && now < before+0.05:
			t.Errorf("recency does not help where the newest is right: %.3f, without it %.3f", now, before)
		case k.Name != "newest" && now < before-tolerance:
			t.Errorf("recency costs %s questions: %.3f, without it %.3f", k.Name, now, before)
		}
	}
	for _, m := range r.Rankings[1:] {
		if c := m.Against; c == nil || c.Better+c.Worse+c.Equal != r.Questions {
			t.Errorf("%s: %+v", m.Name, c)
		}
	}
}

// A corpus without times and titles, numbers for ids, a text that is cut into
// several chunks, and a server of embeddings; printed as tables.
func TestForeignSet(t *testing.T) {
	t.Parallel()
	server, err := embeddertest.Start(embeddertest.Config{APIKey: "key", Model: "m"})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	long := strings.Repeat("The heron stood in the reeds and waited for a fish. ", 200)
	dir := folder(t, map[string]string{
		"corpus.jsonl": `{"_id": 1, "text": "` + long + `"}
{"_id": 2, "text": "Ducks sleep on one leg."}
{"_id": 3, "text": ""}`,
		"queries.jsonl":  `{"_id": 2, "text": "where did the heron wait"}`,
		"qrels/test.tsv": "query-id\tcorpus-id\tscore\n2\t1\t1\n2\t9\t1\n",
	})
	args := []string{"-data", dir, "-embedder", "openai", "-embedder-url", server.URL(), "-embedder-model", "m", "-embedder-api-key", "key"}
	r := ask(t, append(args, "-sweep")...)
	if r.Chunks < 3 || r.Dated || r.Absent != 1 || len(r.Sweep) != len(denseSteps) || len(r.Recency) != 1 {
		t.Errorf("%+v", r)
	}
	for _, m := range r.Rankings {
		if m.Recall10 != 0.5 || !near(m.NDCG10, 1/1.6309298) {
			t.Errorf("%s: %+v", m.Name, m)
		}
	}
	if n := server.Requests(); n == 0 {
		t.Error("nobody asked the server of embeddings")
	}
	var out strings.Builder
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"3 documents", "no document has a time", "1 of the judged documents", "plain BM25", "dense : lexical"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, &out)
		}
	}
}

func TestQrelsOfAnotherSet(t *testing.T) {
	t.Parallel()
	dir := folder(t, map[string]string{"corpus.jsonl": `{"_id": "a", "text": "b"}`, "queries.jsonl": `{"_id": "q", "text": "b"}`,
		"qrels/test.tsv": "q\tc\t1\n"})
	err := run(t.Context(), []string{"-data", dir}, io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "no document that the qrels speak of") {
		t.Error(err)
	}
}

// What a run leaves behind is nothing.
func TestRunLeavesNothing(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	for _, dir := range []string{filepath.Dir(temp), temp} { // the server's user passes through
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir := folder(t, map[string]string{"corpus.jsonl": "{", "queries.jsonl": `{"_id": "q", "text": "b"}`, "qrels/test.tsv": "q\tc\t1\n"})
	err := run(t.Context(), []string{"-data", dir}, io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "corpus.jsonl:1") {
		t.Error(err)
	}
	left, err := os.ReadDir(os.TempDir())
	if err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
}
