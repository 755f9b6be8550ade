package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/whence-db/whence/query"
)

// document is a line of corpus.jsonl.
type document struct {
	id, title, text string
	at              *time.Time // nil when the line has none
}

// question is a line of queries.jsonl that has an answer, with its judgments.
type question struct {
	id, text, kind string // kind may be empty
	grades         grades
}

// line is what the two files have in common.
type line struct {
	ID        identifier `json:"_id"`
	Title     *string    `json:"title"`
	Text      string     `json:"text"`
	Timestamp moment     `json:"timestamp"`
	Metadata  struct {
		Time moment `json:"time"`
		Kind string `json:"kind"`
	} `json:"metadata"`
}

// identifier is a string; some data sets write numbers.
type identifier string

func (v *identifier) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		return json.Unmarshal(b, (*string)(v))
	}
	var n json.Number
	if err := json.Unmarshal(b, &n); err != nil {
		return errors.New("_id must be a string or a number")
	}
	*v = identifier(n)
	return nil
}

// moment is a date, a date with a time, or seconds since 1970; absent when nil.
type moment struct{ at *time.Time }

func (m *moment) UnmarshalJSON(b []byte) error {
	s := strings.Trim(string(b), `"`)
	if s == "" || s == "null" {
		return nil
	}
	if n, err := strconv.ParseFloat(s, 64); err == nil {
		at := time.UnixMilli(int64(n * 1000)).UTC()
		m.at = &at
		return nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", time.DateTime, time.DateOnly} {
		if at, err := time.Parse(layout, s); err == nil {
			m.at = &at
			return nil
		}
	}
	return fmt.Errorf("%s is no time that is understood: write RFC 3339, a date, or seconds since 1970", b)
}

// lines reads a file of JSON, one value a line, without holding more than one.
type lines struct {
	file *os.File
	r    *bufio.Reader
	n    int
}

func openLines(path string) (*lines, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &lines{file: f, r: bufio.NewReaderSize(f, 1<<20)}, nil
}

func (l *lines) close() { _ = l.file.Close() }

// next returns io.EOF after the last line. Blank lines are passed over.
func (l *lines) next() (v line, err error) {
	for {
		b, err := l.r.ReadBytes('\n')
		if b = bytes.TrimSpace(b); len(b) == 0 {
			if err != nil {
				return v, err
			}
			l.n++
			continue
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return v, err
		}
		l.n++
		if err := json.Unmarshal(b, &v); err != nil {
			return v, fmt.Errorf("%s:%d: %w", l.file.Name(), l.n, err)
		}
		if v.ID == "" {
			return v, fmt.Errorf("%s:%d: _id is missing", l.file.Name(), l.n)
		}
		return v, nil
	}
}

// document is the line as one; Postgres's texts hold no null characters.
func (v line) document() document {
	d := document{id: clean(string(v.ID)), text: clean(v.Text), at: v.Metadata.Time.at}
	if v.Title != nil {
		d.title = clean(*v.Title)
	}
	if d.at == nil {
		d.at = v.Timestamp.at
	}
	return d
}

func clean(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", " ")
}

// readQuestions returns the questions that the split's judgments have an answer
// to, in the order of the file, at most most of them unless that is 0.
func readQuestions(dir, split string, most int) ([]question, error) {
	judged, err := readJudgments(dir, split)
	if err != nil {
		return nil, err
	}
	l, err := openLines(filepath.Join(dir, "queries.jsonl"))
	if err != nil {
		return nil, err
	}
	defer l.close()
	var out []question
	for most == 0 || len(out) < most {
		v, err := l.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		g := judged[string(v.ID)]
		text := []rune(strings.TrimSpace(clean(v.Text)))
		if g.relevant() == 0 || len(text) == 0 {
			continue
		}
		out = append(out, question{string(v.ID), string(text[:min(len(text), query.MaxText)]), v.Metadata.Kind, g})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: no question in queries.jsonl has a document that answers it in qrels", dir)
	}
	return out, nil
}

// readJudgments reads qrels/SPLIT.tsv, by question.
func readJudgments(dir, split string) (map[string]grades, error) {
	files, err := filepath.Glob(filepath.Join(dir, "qrels", "*.tsv"))
	if err != nil {
		return nil, err
	}
	wanted := slices.DeleteFunc(slices.Clone(files), func(f string) bool { return filepath.Base(f) != split+".tsv" })
	switch {
	case split == everySplit:
		wanted = files
	case len(wanted) == 0 && len(files) == 1:
		wanted = files
	}
	if len(wanted) == 0 {
		return nil, fmt.Errorf("%s: there is no qrels/%s.tsv; -split names another file, or %s", dir, split, everySplit)
	}
	out := map[string]grades{}
	for _, f := range wanted {
		if err := readTSV(f, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// everySplit stands for all files of qrels.
const everySplit = "all"

// readTSV reads question, document and grade from each line; a first line whose
// grade is no number is the header.
func readTSV(path string, into map[string]grades) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	s := bufio.NewScanner(f)
	for n := 1; s.Scan(); n++ {
		if strings.TrimSpace(s.Text()) == "" {
			continue
		}
		parts := strings.Split(strings.TrimRight(s.Text(), "\r"), "\t")
		if len(parts) != 3 {
			return fmt.Errorf("%s:%d: %d columns, want query-id, corpus-id and score", path, n, len(parts))
		}
		grade, err := strconv.ParseFloat(strings.TrimSpace(parts[2]), 64)
		if err != nil {
			if n == 1 {
				continue
			}
			return fmt.Errorf("%s:%d: the score %q is no number", path, n, parts[2])
		}
		if into[parts[0]] == nil {
			into[parts[0]] = grades{}
		}
		into[parts[0]][parts[1]] = grade
	}
	return s.Err()
}
