// Quality measures how well Whence finds what answers a question, on any data set
// in BEIR's layout: corpus.jsonl (_id, title, text, and metadata.time or timestamp
// where there is one), queries.jsonl (_id, text) and qrels/*.tsv (query-id,
// corpus-id, score). It prints nDCG@10 and recall@10 and @100 of each leg alone,
// of both together with and without recency, and of plain BM25.
//
// The governing idea: what is measured is what is shipped. The corpus is a table of
// a private Postgres, captured, embedded and asked as any other; a leg alone is the
// engine's own ranking with the other's weight at zero.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/query"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "quality:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	c, err := parse(args, progress)
	if err != nil {
		return err
	}
	begun := time.Now()
	say := func(format string, args ...any) {
		fmt.Fprintf(progress, "%5.1f s  %s\n", time.Since(begun).Seconds(), fmt.Sprintf(format, args...))
	}
	r, err := evaluate(ctx, c, say, slog.New(slog.NewTextHandler(progress, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return err
	}
	r.Seconds = time.Since(begun).Seconds()
	if c.json {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	return r.print(out)
}

func evaluate(ctx context.Context, c config, say func(string, ...any), log *slog.Logger) (r *report, err error) {
	questions, err := readQuestions(c.data, c.split, c.questions)
	if err != nil {
		return nil, err
	}
	model, err := c.model.open(ctx)
	if err != nil {
		return nil, err
	}
	say("starting a source and a memory database")
	w, err := newWorld(ctx, model, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.stop(ctx)) }()
	if err := w.fill(ctx, c.data); err != nil {
		return nil, err
	}
	say("capturing and embedding %d documents", w.documents)
	if err := w.remember(ctx, c.halfLife, say); err != nil {
		return nil, err
	}
	r, err = w.describe(ctx, questions)
	if err != nil {
		return nil, err
	}
	r.Data, r.Model = filepath.Base(filepath.Clean(c.data)), model.Name()
	r.Ranking = describe(c.ranking)
	a, err := newAsker(ctx, w, questions, c)
	if err != nil {
		return nil, err
	}
	say("asking %d questions", len(questions))
	if r.Rankings, err = comparisons(ctx, a, c.ranking); err != nil {
		return nil, err
	}
	r.Kinds, r.Worst = kinds(questions, r.Rankings), worst(questions, r.Rankings, c.worst)
	if c.sweep {
		r.Sweep, r.Recency, err = sweep(ctx, a, c.ranking, say)
	}
	return r, err
}

func describe(r query.Ranking) string {
	return fmt.Sprintf("dense=%g,lexical=%g,floor=%g,recency=%g", r.Dense, r.Lexical, r.DenseFloor, r.Recency)
}

// describe counts what the questions are asked of. Judgments of documents that are
// all missing are those of another data set.
func (w *world) describe(ctx context.Context, questions []question) (*report, error) {
	r := &report{Documents: w.documents, Dated: !w.newest.IsZero(), Questions: len(questions)}
	var judged []string
	for _, q := range questions {
		for id, grade := range q.grades {
			if grade > 0 {
				judged = append(judged, id)
			}
		}
	}
	const absentSQL = `select count(*) from unnest($1::text[]) j(id) where not exists (select from documents d where d.id = j.id)`
	if err := w.app.QueryRow(ctx, absentSQL, judged).Scan(&r.Absent); err != nil {
		return nil, err
	}
	if r.Judgments = len(judged); r.Absent == r.Judgments {
		return nil, errors.New("no document that the qrels speak of is in corpus.jsonl")
	}
	t, err := w.registry.GetTable(ctx, whence.NewTableName("app", "public", "documents"))
	r.Chunks = t.Status.Chunks
	return r, err
}
