package main

import (
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/whence-db/whence/query"
)

// folder writes files, by their names.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestReadCorpus(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("long ", 1<<19) // more than the buffer holds
	dir := folder(t, map[string]string{"corpus.jsonl": `{"_id": "a", "title": "A", "text": "one", "metadata": {"time": "2024-05-06T07:08:09Z", "url": "u"}}

{"_id": 7, "text": "no\u0000 title", "timestamp": 86400}
{"_id": "c", "title": null, "text": "` + long + `", "metadata": {}}
{"_id": "d", "text": "", "timestamp": "2024-02-29"}`})
	l, err := openLines(filepath.Join(dir, "corpus.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	at := func(s string) *time.Time {
		v, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return &v
	}
	for _, want := range []document{
		{"a", "A", "one", at("2024-05-06T07:08:09Z")}, {"7", "", "no  title", at("1970-01-02T00:00:00Z")},
		{"c", "", long, nil}, {"d", "", "", at("2024-02-29T00:00:00Z")},
	} {
		v, err := l.next()
		if err != nil {
			t.Fatal(err)
		}
		got := v.document()
		if got.id != want.id || got.title != want.title || got.text != want.text || (got.at == nil) != (want.at == nil) ||
			got.at != nil && !got.at.Equal(*want.at) {
			t.Errorf("%.80v, want %.80v", got, want)
		}
	}
	if _, err := l.next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last line: %v", err)
	}
}

func TestReadQuestions(t *testing.T) {
	t.Parallel()
	dir := folder(t, map[string]string{
		"queries.jsonl": `{"_id": "q1", "text": "one?", "metadata": {"kind": "words"}}
{"_id": "q2", "text": "nobody judged this"}
{"_id": "q3", "text": "three?"}
{"_id": "q4", "text": "judged bad alone"}`,
		"qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\ta\t2\r\nq1\tb\t0\nq3\tc\t0.5\n\nq4\td\t0\n",
		"qrels/dev.tsv":  "q2\td\t1\nq1\tb\t1\n", // without a header
	})
	for _, test := range []struct {
		split string
		most  int
		want  map[string]grades
	}{
		{"test", 0, map[string]grades{"q1": {"a": 2, "b": 0}, "q3": {"c": 0.5}}},
		{"test", 1, map[string]grades{"q1": {"a": 2, "b": 0}}},
		{"dev", 0, map[string]grades{"q1": {"b": 1}, "q2": {"d": 1}}},
	} {
		questions, err := readQuestions(dir, test.split, test.most)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]grades{}
		for _, q := range questions {
			got[q.id] = q.grades
		}
		if !maps.EqualFunc(got, test.want, maps.Equal[grades]) {
			t.Errorf("%s: %v, want %v", test.split, got, test.want)
		}
	}
	all, err := readQuestions(dir, everySplit, 0)
	if err != nil || len(all) != 3 || all[0].kind != "words" {
		t.Errorf("%v, %v", all, err)
	}
}

func TestDataIsRefused(t *testing.T) {
	t.Parallel()
	const asked = `{"_id": "q", "text": "?"}`
	for _, test := range []struct {
		files map[string]string
		want  string
	}{
		{map[string]string{"queries.jsonl": asked}, "there is no qrels/test.tsv"},
		{map[string]string{"queries.jsonl": asked, "qrels/test.tsv": "q\td\n"}, "test.tsv:1: 2 columns"},
		{map[string]string{"queries.jsonl": asked, "qrels/test.tsv": "a\tb\tc\nq\td\tgood\n"}, "test.tsv:2: the score"},
		{map[string]string{"queries.jsonl": asked, "qrels/test.tsv": "r\td\t1\n"}, "no question"},
		{map[string]string{"queries.jsonl": asked + "\n{", "qrels/test.tsv": "q\td\t1\n"}, "queries.jsonl:2: "},
		{map[string]string{"queries.jsonl": `{"text": "?"}`, "qrels/test.tsv": "q\td\t1\n"}, "_id is missing"},
		{map[string]string{"queries.jsonl": `{"_id": "q", "text": "?", "timestamp": "soon"}`, "qrels/test.tsv": "q\td\t1\n"}, "no time"},
	} {
		if _, err := readQuestions(folder(t, test.files), "test", 0); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: %v, want %q", test.files, err, test.want)
		}
	}
}

func TestParse(t *testing.T) {
	t.Setenv("WHENCE_EMBEDDER", "openai")
	t.Setenv("WHENCE_EMBEDDER_MODEL", "of the environment")
	c, err := parse([]string{"-data", "x", "-ranking", "dense=0.5,floor=0.3", "--embedder-model", "m"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	want := query.Ranking{Dense: 0.5, Lexical: query.DefaultRanking.Lexical, DenseFloor: 0.3, Recency: query.DefaultRanking.Recency}
	if c.ranking != want || c.model.protocol != "openai" || c.model.server.Model != "m" {
		t.Errorf("%+v", c)
	}
	for _, args := range [][]string{{}, {"-data", "x", "y"}, {"-data", "x", "-ranking", "sparse=1"}, {"-data", "x", "-ranking", "dense"},
		{"-data", "x", "-questions", "-1"}, {"-data", "x", "-limit", "201"}, {"-data", "x", "-limit", "0"}} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%q was taken", slices.Clip(args))
		}
	}
}
