package index

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/internal/pg"
)

// Legs are the ways by which a chunk was found.
type Legs uint8

// The ways: by vector, by terms, and for being among the newest.
const (
	ByVector Legs = 1 << iota
	ByTerms
	ByTime
)

// SearchRequest says what to look for. Tables are the candidates, already found
// in the registry; the scope narrows them further.
type SearchRequest struct {
	Tables   []whence.Table
	Subjects []string          // only these; empty: all that the scope allows
	Filter   map[string]string // attributes that a row must have, each with this value
	Text     string
	Vector   []float32 // of the text, in the space; nil leaves the dense leg out
	Space    Space
	Limit    int // candidates a leg
	// FreshOnly takes only head chunks that have a vector in the space and were
	// rendered by their table's present definition.
	FreshOnly bool
	// AsOf searches what was current at that moment instead of now; the zero time
	// is now. It does not go with FreshOnly.
	AsOf time.Time
}

// Candidate is a chunk that matched, with the state of its record.
type Candidate struct {
	ChunkID  int64 // of the chunk that stands in the head: what is to be shown
	RecordID int64
	TableID  int32
	Key      whence.Key

	Text       string // the newest captured text
	Start, End int    // its span in the head's rendered text
	Digest     whence.Digest
	Version    int32 // that the text is of: the head, unless that still owes columns
	LSN        whence.LSN
	CommitTime time.Time // zero when not known
	EventTime  time.Time // zero when neither it nor the commit time is known
	CapturedAt time.Time
	Subject    *string
	Attributes whence.Values
	Definition int32
	State      []byte // as it was given with the head's mutation

	Matched    string // the text that matched, when an older one than the shown; else empty
	Superseded bool   // what matched is of an older version than the head
	// EmbeddedAt is when the text (or, when superseded, the matched one) got the
	// vector that was compared; zero when it has none in the space.
	EmbeddedAt time.Time
	Embedded   bool // the shown text has a vector in the space
	OtherSpace bool // it has none in the space, but one in another
	Past       bool // the shown text is of a version that was current at AsOf and is not the head
	Deleted    bool // and the row is gone since

	Legs    Legs     // that found the chunk that matched
	Dense   *float64 // cosine similarity in [-1,1]; nil without a vector on either side
	Lexical *float64 // in (0,1); nil when no term of the question is in the shown text
}

// bounds are the rows that a search may touch: the scope and the request's own
// wishes, both, in every statement.
type bounds struct {
	tables              []int32
	subjects            []string   // nil: all but the denied ones, rows without a subject included
	denied              []string   // subjects; nil: none
	scopeFilter, filter *string    // JSON objects that the attributes must contain; nil: none
	asOf                *time.Time // nil: now
	language            *string    // of the texts, for textInBounds; nil: any
}

// The bounds as conditions on a chunk c and on a record r. Parts that do not
// bound fold away, for each statement is planned with its values.
const (
	chunkInBounds = `
    c.table_id = any(@tables::int[])
    and (@subjects::text[] is null or c.subject = any(@subjects::text[]))
    and (@deniedSubjects::text[] is null or c.subject is null or c.subject <> all(@deniedSubjects::text[]))
    and (@scopeFilter::jsonb is null or c.attributes @> @scopeFilter::jsonb)
    and (@filter::jsonb is null or c.attributes @> @filter::jsonb)
    and (c.expires_at is null or c.expires_at > now())
    and (@asOf::timestamptz is null or exists (select from whence.records n where n.id = c.record_id and n.since <= @asOf::timestamptz))`

	textInBounds = chunkInBounds + ` and (@language::text is null or c.language = @language::text)`

	recordInBounds = `
    r.table_id = any(@tables::int[])
    and (@subjects::text[] is null or r.subject = any(@subjects::text[]))
    and (@deniedSubjects::text[] is null or r.subject is null or r.subject <> all(@deniedSubjects::text[]))
    and (@scopeFilter::jsonb is null or r.attributes @> @scopeFilter::jsonb)
    and (@filter::jsonb is null or r.attributes @> @filter::jsonb)
    and (r.expires_at is null or r.expires_at > now())`
)

// within works out the bounds; ok is false when nothing can lie within them.
func within(scope authz.Scope, tables []whence.Table, subjects []string, filter map[string]string) (b bounds, ok bool) {
	for _, t := range tables {
		if scope.AllowsTable(t.Name()) {
			b.tables = append(b.tables, t.ID)
		}
	}
	all, allowed, denied := scope.Subjects()
	b.denied = denied
	switch {
	case !all:
		b.subjects = append([]string{}, allowed...)
		if len(subjects) > 0 {
			b.subjects = slices.DeleteFunc(b.subjects, func(s string) bool { return !slices.Contains(subjects, s) })
		}
		if len(b.subjects) == 0 {
			return b, false
		}
	case len(subjects) > 0:
		b.subjects = slices.DeleteFunc(slices.Clone(subjects), func(s string) bool { return slices.Contains(denied, s) })
		if len(b.subjects) == 0 {
			return b, false
		}
	}
	b.scopeFilter, b.filter = attributes(scope.Filter()), attributes(filter)
	return b, len(b.tables) > 0
}

func (b bounds) args(more pgx.NamedArgs) pgx.NamedArgs {
	more["tables"], more["subjects"], more["deniedSubjects"] = b.tables, b.subjects, b.denied
	more["scopeFilter"], more["filter"], more["asOf"], more["language"] = b.scopeFilter, b.filter, b.asOf, b.language
	return more
}

// Search returns the chunks within the scope that answer the request best,
// unordered: at most Limit by meaning, Limit by words and a few of the newest. A
// chunk that one leg found is scored by all. Nothing outside the scope has any
// influence on what is returned: counts that weigh terms are taken within it.
//
// The space and the vector must fit. tx should be a snapshot, so that the
// statements see one moment.
func (x *Index) Search(ctx context.Context, tx pgx.Tx, scope authz.Scope, r SearchRequest) ([]Candidate, error) {
	b, ok := within(scope, r.Tables, r.Subjects, r.Filter)
	if !ok || r.Limit <= 0 {
		return nil, nil
	}
	if r.Vector != nil && (r.Space.ID == 0 || len(r.Vector) != r.Space.Dimensions) {
		return nil, fmt.Errorf("search: a vector of %d dimensions for a space of %d", len(r.Vector), r.Space.Dimensions)
	}
	if _, err := tx.Exec(ctx, settingsSQL); err != nil {
		return nil, fmt.Errorf("search: %w", pg.Translate(err))
	}
	fresh := freshness{r.FreshOnly, r.Space.ID, r.Tables}
	ws, err := wordings(ctx, tx, b, r.Tables, r.Text)
	if err != nil {
		return nil, fmt.Errorf("search: %w", pg.Translate(err))
	}
	var past past
	if !r.AsOf.IsZero() {
		b.asOf = &r.AsOf
		if past, err = readPast(ctx, tx, scope, b, r, ws); err != nil {
			return nil, err
		}
	}
	drawn, err := b.draw(ctx, tx)
	if err != nil {
		return nil, fmt.Errorf("search: %w", pg.Translate(err))
	}
	for _, w := range ws {
		if err := w.count(ctx, tx, b, drawn, past); err != nil {
			return nil, fmt.Errorf("search: %w", pg.Translate(err))
		}
	}
	weigh(ws)
	legs := map[int64]Legs{}
	found := func(by Legs, ids []int64) {
		for _, id := range ids {
			legs[id] |= by
		}
	}
	ids, err := lexicalLeg(ctx, tx, b, fresh, ws, r.Limit)
	if err != nil {
		return nil, fmt.Errorf("search texts: %w", pg.Translate(err))
	}
	found(ByTerms, ids)
	if r.Vector != nil {
		ids, err := x.denseLeg(ctx, tx, b, drawn, fresh, r)
		if err != nil {
			return nil, fmt.Errorf("search vectors: %w", pg.Translate(err))
		}
		found(ByVector, ids)
	}
	if ids, err = x.recentLeg(ctx, tx, b, fresh); err != nil {
		return nil, fmt.Errorf("search the newest: %w", pg.Translate(err))
	}
	found(ByTime, ids)
	out, err := x.score(ctx, tx, b, legs, ws, r)
	if err != nil {
		return nil, fmt.Errorf("score candidates: %w", pg.Translate(err))
	}
	were, err := past.best(ctx, tx, r)
	if err != nil {
		return nil, fmt.Errorf("read past versions: %w", pg.Translate(err))
	}
	out = append(collapse(out), were...)
	for i := range out {
		if err := out[i].within(scope, r.Tables); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// within holds a candidate against the scope once more, whatever the statements
// have let through. Which attributes a past note had is read with its other columns
// later, so there the statement's word stands.
func (c *Candidate) within(scope authz.Scope, tables []whence.Table) error {
	all, _, _ := scope.Subjects()
	ok := c.Subject == nil && all || c.Subject != nil && scope.AllowsSubject(*c.Subject)
	for name, want := range scope.Filter() {
		v := c.Attributes[name]
		ok = ok && (v != nil && *v == want || c.Past && c.TableID == whence.NotesID)
	}
	if !ok || !slices.ContainsFunc(tables, func(t whence.Table) bool { return t.ID == c.TableID && scope.AllowsTable(t.Name()) }) {
		return fmt.Errorf("search: record %d was found and lies outside the scope", c.RecordID)
	}
	return nil
}

// Candidates are held in memory, and compiling would take longer than running.
const settingsSQL = `select set_config('work_mem', '64MB', true), set_config('jit', 'off', true)`

// freshness carries the arguments of the FreshOnly condition.
type freshness struct {
	only   bool
	space  int16
	tables []whence.Table
}

func (f freshness) args(more pgx.NamedArgs) pgx.NamedArgs {
	ids, definitions := make([]int32, len(f.tables)), make([]int32, len(f.tables))
	for i, t := range f.tables {
		ids[i], definitions[i] = t.ID, t.Definition
	}
	more["freshOnly"], more["space"] = f.only, f.space
	more["defined"], more["definitions"] = ids, definitions
	return more
}

// freshOnly is the condition on a chunk c that SearchRequest.FreshOnly sets.
const freshOnly = `
    (not @freshOnly::bool or exists (
        select from whence.records r
        join whence.versions w on w.record_id = r.id and w.version = r.version
        join unnest(@defined::int[], @definitions::int[]) d(table_id, definition) on d.table_id = r.table_id
        join whence.vectors v on v.space_id = @space and v.digest = c.digest and v.embedding is not null
        where r.id = c.record_id and r.version = c.version and w.definition >= d.definition))`

// planned makes Postgres plan a statement for the values at hand: a generic plan
// knows neither how narrow the scope is nor how rare a term.
const planned = pgx.QueryExecModeCacheDescribe

// collapse keeps one candidate for each chunk that would be shown. A superseded
// chunk speaks for its successor only until that has a vector of its own.
func collapse(found []Candidate) []Candidate {
	at := map[int64]int{}
	var out []Candidate
	for _, c := range found {
		if c.Matched != "" && c.Embedded {
			continue
		}
		i, seen := at[c.ChunkID]
		if !seen {
			at[c.ChunkID] = len(out)
			out = append(out, c)
			continue
		}
		legs := out[i].Legs | c.Legs
		if better(c, out[i]) {
			out[i] = c
		}
		out[i].Legs = legs
	}
	return out
}

// better prefers the candidate with the higher similarity; lexical scores of the
// same shown text are equal.
func better(a, b Candidate) bool {
	if a.Dense == nil || b.Dense == nil {
		return a.Dense != nil
	}
	return *a.Dense > *b.Dense
}
