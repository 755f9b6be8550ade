// Package query answers agents' questions from the index: it resolves what may
// be asked, searches by vector and by text, fuses the two, and says of every hit
// where it came from and how far it can be relied on.
//
// The governing idea: an answer is of one moment. The watermark, the registry
// and every leg of the search are read in one snapshot, so that a hit's
// freshness is judged by exactly the state that it was found in.
package query

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/internal/pg"
)

// Registry tells what is registered, how far capture is, and which rows it could
// not take over whole, inside the caller's transaction.
type Registry interface {
	State(ctx context.Context, tx pgx.Tx) (whence.State, error)
	SetAside(ctx context.Context, tx pgx.Tx, t whence.Table, keys []whence.Key) (map[whence.Key]bool, error)
	// Live reads rows of one source from it; nil for one that is not there.
	Live(ctx context.Context, source string, rows []whence.RowsOf) ([][]*whence.LiveRow, error)
}

// Config says what the engine works with.
type Config struct {
	Index    *index.Index
	Registry Registry
	Pool     *pgxpool.Pool    // of the memory database, or of a replica
	Models   []embedder.Model // of which the current space's is asked; none: text search only, and every answer is degraded
	Ranking  Ranking          // the zero value: DefaultRanking

	EmbedTimeout time.Duration    // for the question's vector; default 800 ms
	WaitLimit    time.Duration    // for a consistency asked for; default 5 s
	Clock        func() time.Time // default time.Now
}

// Engine answers queries. It is safe for concurrent use.
type Engine struct {
	Config
	space atomic.Pointer[index.Space] // that was current when it was last seen
}

// New checks the configuration.
func New(c Config) (*Engine, error) {
	if c.Index == nil || c.Registry == nil || c.Pool == nil {
		return nil, errors.New("query: an index, a registry and a pool are needed")
	}
	if c.Ranking == (Ranking{}) {
		c.Ranking = DefaultRanking
	}
	if err := c.Ranking.validate(); err != nil {
		return nil, fmt.Errorf("query: %w", err)
	}
	if c.EmbedTimeout <= 0 {
		c.EmbedTimeout = 800 * time.Millisecond
	}
	if c.WaitLimit <= 0 {
		c.WaitLimit = 5 * time.Second
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	return &Engine{Config: c}, nil
}

// Answer is what a query found, best first.
type Answer struct {
	At        time.Time
	Hits      []Hit
	Watermark []whence.Watermark // of the sources that were asked, by name
	Explained *Explanation       // nil when it was not asked for
	Degraded  string             // which leg is missing and why, "REASON: words"; empty when none is
	// Incomplete says what may be missing of an answer as of a moment.
	Incomplete []Incomplete
}

// Hit is one chunk in an answer. Its text is the newest captured, or what was so
// at the moment asked about; Origin is that text's.
type Hit struct {
	ChunkID     int64
	RecordID    int64
	Text        string
	MatchedText string // the older text whose vector matched; empty when that is Text
	Origin      whence.Origin
	Subject     *string
	Attributes  whence.Values
	Embedding   *Embedding // of the text that matched; nil when it has none yet
	Freshness   whence.Freshness
	Note        *Note // nil when the hit is of a row
	Legs        index.Legs
	LiveText    *string // what the row reads now, where verifying found it changed
	Score       Score
}

// Embedding says what made a hit's vector, and when.
type Embedding struct {
	Model      string
	EmbeddedAt time.Time
}

// Query answers a request within a scope. Errors that the caller can act on are
// *whence.Error; nothing about them depends on what lies outside the scope.
func (e *Engine) Query(ctx context.Context, scope authz.Scope, r Request) (Answer, error) {
	if err := r.Validate(); err != nil {
		return Answer{}, err
	}
	r, err := r.within(scope.TopK())
	if err != nil {
		return Answer{}, err
	}
	q, err := e.embed(ctx, r.Text)
	if err != nil {
		return Answer{}, fmt.Errorf("query: %w", err)
	}
	a, err := e.answer(ctx, scope, r, q)
	var s switchedError
	if errors.As(err, &s) { // while the question was embedded
		e.space.Store(&s.to)
		if q, err = e.embed(ctx, r.Text); err == nil {
			q.again = true
			a, err = e.answer(ctx, scope, r, q)
		}
	}
	if err != nil {
		return Answer{}, fmt.Errorf("query: %w", err)
	}
	return a, nil
}

func (e *Engine) answer(ctx context.Context, scope authz.Scope, r Request, q question) (Answer, error) {
	var a Answer
	var tables []whence.Table
	var states map[int64][]byte
	err := e.when(ctx, func(tx pgx.Tx) error {
		a = Answer{At: e.Clock(), Degraded: q.degraded}
		state, err := e.Registry.State(ctx, tx)
		if err != nil {
			return err
		}
		if tables, err = resolve(state, scope, r); err != nil {
			return err
		}
		if err := current(ctx, tx, state, tables, r.Consistency); err != nil {
			return err
		}
		if a.Incomplete, err = coverage(state, tables, r.AsOf, a.At); err != nil {
			return err
		}
		a.Watermark = watermark(state, tables)
		states, err = e.search(ctx, tx, scope, r, state, tables, q, &a)
		return err
	})
	if err == nil && r.Consistency.Verify {
		a.Hits, err = e.verify(ctx, scope, r, tables, a.Hits, states)
	}
	return a, err
}

// search fills in the hits, and returns the states of their records' heads.
func (e *Engine) search(ctx context.Context, tx pgx.Tx, scope authz.Scope, r Request,
	state whence.State, tables []whence.Table, q question, a *Answer) (map[int64][]byte, error) {
	space, err := e.Index.CurrentSpace(ctx, tx)
	if err != nil {
		return nil, err
	}
	vector := q.vector
	switch {
	case space == q.space:
	case !q.again:
		return nil, switchedError{space}
	default:
		vector, a.Degraded = nil, "MODEL_MISMATCH: the embedding model was changed while the question was asked; answered by text search alone"
	}
	if r.FreshOnly {
		tables = slices.DeleteFunc(slices.Clone(tables), func(t whence.Table) bool {
			return judgeTable(t, state).State != whence.Fresh
		})
	}
	found, err := e.Index.Search(ctx, tx, scope, index.SearchRequest{
		Tables: tables, Subjects: r.Subjects, Filter: r.Filter, Text: r.Text,
		Vector: vector, Space: space, Limit: max(60, 3*r.limit()), FreshOnly: r.FreshOnly, AsOf: r.AsOf})
	if err != nil {
		return nil, err
	}
	byID := map[int32]whence.Table{}
	for _, t := range tables {
		byID[t.ID] = t
	}
	aside, err := e.setAside(ctx, tx, tables, found)
	if err != nil {
		return nil, err
	}
	notes, err := e.notes(ctx, tx, scope, state, found)
	if err != nil {
		return nil, err
	}
	states := map[int64][]byte{}
	moment := a.At
	if !r.AsOf.IsZero() {
		moment = r.AsOf
	}
	for _, c := range found {
		states[c.RecordID] = c.State
		h := hit(c, byID[c.TableID], state, space)
		if aside[c.RecordID] {
			h.Freshness = lacking(h.Freshness)
		}
		if n, ok := notes[c.RecordID]; ok {
			h.Note, h.Attributes, h.Freshness = noteOf(n.Columns), noteAttributes(n.Columns), rested(h.Freshness, n)
		}
		if r.FreshOnly && h.Freshness.State != whence.Fresh {
			continue
		}
		h.Score = e.Ranking.score(moment, c, byID[c.TableID], vector != nil, r.Recency)
		if h.Score.Relevance > 0 {
			a.Hits = append(a.Hits, h)
		}
	}
	rank(a.Hits)
	kept, repeats := collapse(a.Hits)
	a.Hits = kept[:min(len(kept), r.limit())]
	if r.Explain {
		a.Explained = e.explain(r, found, kept[len(a.Hits):], repeats)
	}
	return states, nil
}

// setAside finds the candidates whose rows are not taken over whole, by record.
// It asks only about tables that have such rows.
func (e *Engine) setAside(ctx context.Context, tx pgx.Tx, tables []whence.Table, found []index.Candidate) (map[int64]bool, error) {
	out := map[int64]bool{}
	for _, t := range tables {
		if !t.SetAside {
			continue
		}
		var keys []whence.Key
		for _, c := range found {
			if c.TableID == t.ID {
				keys = append(keys, c.Key)
			}
		}
		aside, err := e.Registry.SetAside(ctx, tx, t, keys)
		if err != nil {
			return nil, err
		}
		for _, c := range found {
			if c.TableID == t.ID && aside[c.Key] {
				out[c.RecordID] = true
			}
		}
	}
	return out, nil
}

func hit(c index.Candidate, t whence.Table, state whence.State, space index.Space) Hit {
	h := Hit{
		ChunkID: c.ChunkID, RecordID: c.RecordID, Text: c.Text, MatchedText: c.Matched,
		Subject: c.Subject, Attributes: c.Attributes, Freshness: judge(c, t, state), Legs: c.Legs,
		Origin: whence.Origin{Source: t.Source, Table: t.Name(), Key: c.Key, Version: c.Version, LSN: c.LSN,
			CommitTime: c.CommitTime, EventTime: c.EventTime, Columns: textColumns(t),
			Start: c.Start, End: c.End, Digest: c.Digest},
	}
	if !c.EmbeddedAt.IsZero() {
		h.Embedding = &Embedding{Model: space.Model, EmbeddedAt: c.EmbeddedAt}
	}
	return h
}

func textColumns(t whence.Table) []string {
	if t.TextTemplate == "" {
		return t.TextColumns
	}
	columns := whence.TemplateColumns(t.TextTemplate)
	slices.Sort(columns)
	return slices.Compact(columns)
}

func watermark(state whence.State, tables []whence.Table) []whence.Watermark {
	var out []whence.Watermark
	for _, name := range sources(tables) {
		w := state.Sources[name].Watermark
		w.Source = name
		out = append(out, w)
	}
	return out
}

// sources lists the tables' captured sources, each once, sorted.
func sources(tables []whence.Table) []string {
	var names []string
	for _, t := range tables {
		if t.ID != whence.NotesID {
			names = append(names, t.Source)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// inSnapshot runs fn in one read-only snapshot.
func (e *Engine) inSnapshot(ctx context.Context, fn func(pgx.Tx) error) error {
	return pg.Snapshot(ctx, e.Pool, fn)
}
