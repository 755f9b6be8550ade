// Package whence holds the vocabulary of a provenance-first memory database:
// the nouns that capture, index, query and audit share, and the sentinels that
// they fail with. It imports the standard library only, so that every other
// package can import it and none is imported by it.
//
// The governing idea: a memory is never separated from where it came from. A
// [Chunk] is made only from an [Origin], and whether a chunk is fresh is
// derived from versions and digests, never stored as a flag.
package whence

import (
	"crypto/sha256"
	"database/sql/driver"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// LSN is a position in a Postgres write-ahead log, in bytes.
type LSN uint64

// ParseLSN reads Postgres's text form, such as "16/B374D848".
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	h, err1 := strconv.ParseUint(hi, 16, 32)
	l, err2 := strconv.ParseUint(lo, 16, 32)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("%q is not an LSN: want two hexadecimal numbers as in 16/B374D848", s)
	}
	return LSN(h<<32 | l), nil
}

// String returns Postgres's text form.
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// Value stores the LSN as pg_lsn.
func (l LSN) Value() (driver.Value, error) { return l.String(), nil }

// Scan reads a pg_lsn; SQL null becomes zero.
func (l *LSN) Scan(src any) (err error) {
	switch v := src.(type) {
	case nil:
		*l = 0
	case string:
		*l, err = ParseLSN(v)
	case []byte:
		*l, err = ParseLSN(string(v))
	default:
		err = fmt.Errorf("cannot scan %T into an LSN", src)
	}
	return err
}

// MarshalText and UnmarshalText let an LSN stand in JSON in its text form.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (l *LSN) UnmarshalText(b []byte) (err error) {
	*l, err = ParseLSN(string(b))
	return err
}

// Values are column values in Postgres's text form, by column name; nil is SQL null.
type Values map[string]*string

// Size is how many bytes the values have.
func (v Values) Size() (bytes int) {
	for _, s := range v {
		if s != nil {
			bytes += len(*s)
		}
	}
	return bytes
}

// Key names one row of a table: a JSON object from key column to value in
// Postgres's text form, column names sorted, so that equal keys are equal strings.
type Key string

// NewKey takes the key columns' values out of a row. A missing or null key
// column is an error, for such a row could not be found again.
func NewKey(columns []string, row Values) (Key, error) {
	if len(columns) == 0 {
		return "", fmt.Errorf("a key needs at least one column")
	}
	m := make(map[string]string, len(columns))
	for _, c := range columns {
		v := row[c]
		if v == nil {
			return "", fmt.Errorf("key column %q has no value", c)
		}
		m[c] = *v
	}
	b, err := marshal(m)
	return Key(b), err
}

// Values returns the key's columns; a malformed key yields nil.
func (k Key) Values() Values {
	var v Values
	if json.Unmarshal([]byte(k), &v) != nil {
		return nil
	}
	return v
}

// marshal is json.Marshal without the escaping of <, > and &, which would make
// the stored key differ from what a person reads.
func marshal(v any) (string, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// Digest is the SHA-256 of a text: what vectors are addressed by.
type Digest [sha256.Size]byte

// DigestOf hashes a text.
func DigestOf(text string) Digest { return sha256.Sum256([]byte(text)) }

// String returns lower-case hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// TableName is a registered table's full name, "source.schema.name"; parts that
// hold a dot or a double quote are quoted as SQL identifiers are.
type TableName string

// NewTableName joins the parts.
func NewTableName(source, schema, name string) TableName {
	return TableName(source + "." + RelationName(schema, name))
}

// RelationName writes "schema.name" as [ParseRelation] reads it.
func RelationName(schema, name string) string { return quotePart(schema) + "." + quotePart(name) }

// Parts splits the name; ok is false when it is not of three parts.
func (n TableName) Parts() (source, schema, name string, ok bool) {
	p, err := splitParts(string(n))
	if err != nil || len(p) != 3 {
		return "", "", "", false
	}
	return p[0], p[1], p[2], true
}

// ParseRelation reads "schema.name" as callers write it.
func ParseRelation(s string) (schema, name string, err error) {
	p, err := splitParts(s)
	if err != nil || len(p) != 2 {
		return "", "", fmt.Errorf(`%q is not a table name: write "schema.name", for example public.articles`, s)
	}
	return p[0], p[1], nil
}

func quotePart(s string) string {
	if strings.ContainsAny(s, `."`) {
		return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`
	}
	return s
}

func splitParts(s string) ([]string, error) {
	var parts []string
	for {
		var part string
		if strings.HasPrefix(s, `"`) {
			i := 1
			var b strings.Builder
			for ; i < len(s); i++ {
				if s[i] != '"' {
					b.WriteByte(s[i])
					continue
				}
				if i+1 < len(s) && s[i+1] == '"' {
					b.WriteByte('"')
					i++
					continue
				}
				break
			}
			if i >= len(s) {
				return nil, fmt.Errorf("unterminated quote")
			}
			part, s = b.String(), s[i+1:]
			if s != "" && s[0] != '.' {
				return nil, fmt.Errorf("text after a closing quote")
			}
		} else {
			i := strings.IndexByte(s, '.')
			if i < 0 {
				i = len(s)
			}
			part, s = s[:i], s[i:]
		}
		if part == "" {
			return nil, fmt.Errorf("empty part")
		}
		parts = append(parts, part)
		if s == "" {
			return parts, nil
		}
		s = s[1:]
	}
}

// OnDelete says what a deleted row leaves behind.
type OnDelete string

const (
	// OnDeleteTombstone keeps the record's versions; it is no longer found.
	OnDeleteTombstone OnDelete = "TOMBSTONE"
	// OnDeletePurge removes every text, value and vector of the record.
	OnDeletePurge OnDelete = "PURGE"
)

// TableState is where a registered table stands in its capture.
type TableState string

const (
	// TablePending waits for its backfill to start.
	TablePending TableState = "PENDING"
	// TableBackfilling copies the rows that were there at registration.
	TableBackfilling TableState = "BACKFILLING"
	// TableLive holds every row and follows the stream.
	TableLive TableState = "LIVE"
	// TableSchemaChanged lost a registered column; what it holds cannot be vouched for.
	TableSchemaChanged TableState = "SCHEMA_CHANGED"
	// TableBroken cannot be captured; its error says why.
	TableBroken TableState = "BROKEN"
)

// Table is a registered table of a source.
type Table struct {
	ID               int32
	SourceID         int32
	Source           string
	Schema, Relation string
	KeyColumns       []string // primary key, in constraint order
	TextColumns      []string // rendered one a paragraph, when TextTemplate is empty
	TextTemplate     string   // "{{title}}: {{body}}"
	SubjectColumn    string   // may be empty
	TimeColumn       string   // the event time; empty: the commit time
	AttributeColumns []string
	HalfLife         time.Duration // of recency
	FreshnessTarget  time.Duration // the largest capture lag at which a hit is FRESH
	Language         string        // of its texts, by which words are compared: one of Languages
	FormerLanguages  []string      // that some of its chunks are still indexed in
	OnDelete         OnDelete
	Definition       int32 // grows when rendering changes
	State            TableState
	Error            string // why State is BROKEN or SCHEMA_CHANGED, or why the rows are copied again
	Snapshot         LSN    // BACKFILLING and LIVE: that the first rows were copied at; PENDING: the earliest that they may be
	Copied           LSN    // the snapshot that rows were copied from last, in any state; zero: none yet
	Shape            string // how capture found the relation when it began to copy; only cdc reads it
	SetAside         bool   // some of its rows are not taken over whole
	CreateTime       time.Time

	VersionRetention time.Duration // how long a version is kept after the next; zero: for ever
	CoveredFrom      time.Time     // the rows had been copied for the first time; zero: not yet
	PurgedUntil      time.Time     // rows deleted before have left nothing behind; zero: none has
	PrunedBefore     time.Time     // versions that had a next one by then may be gone; zero: none is
}

// Name returns the registered name.
func (t Table) Name() TableName {
	if t.ID == NotesID {
		return NotesTable
	}
	return NewTableName(t.Source, t.Schema, t.Relation)
}

// Columns returns every column that capture stores, each once, key first.
func (t Table) Columns() []string {
	var out []string
	seen := map[string]bool{}
	add := func(cs ...string) {
		for _, c := range cs {
			if c != "" && !seen[c] {
				seen[c] = true
				out = append(out, c)
			}
		}
	}
	add(t.KeyColumns...)
	add(t.TextColumns...)
	add(TemplateColumns(t.TextTemplate)...)
	add(t.SubjectColumn, t.TimeColumn)
	add(t.AttributeColumns...)
	return out
}

// TemplateColumns lists the columns that a text template names, in order.
func TemplateColumns(template string) []string {
	var out []string
	for {
		_, rest, ok := strings.Cut(template, "{{")
		if !ok {
			return out
		}
		name, after, ok := strings.Cut(rest, "}}")
		if !ok {
			return out
		}
		out = append(out, strings.TrimSpace(name))
		template = after
	}
}

// Origin is where a chunk came from.
type Origin struct {
	Source     string
	Table      TableName
	Key        Key
	Version    int32 // counts a record's versions from 1
	LSN        LSN
	CommitTime time.Time
	EventTime  time.Time
	Columns    []string // the columns that the text was rendered from
	Start, End int      // byte span in the version's rendered text
	Digest     Digest   // of the chunk's text
}

// Chunk is a span of a version's rendered text. Only [NewChunk] makes one.
type Chunk struct {
	origin Origin
	text   string
}

// NewChunk cuts a chunk from a version's rendered text. The origin's span and
// digest are set here; a chunk whose origin does not name its row is refused.
func NewChunk(o Origin, rendered string, start, end int) (Chunk, error) {
	switch {
	case o.Table == "" || o.Key == "":
		return Chunk{}, fmt.Errorf("a chunk needs an origin that names its table and key")
	case start < 0 || end > len(rendered) || start >= end:
		return Chunk{}, fmt.Errorf("span %d to %d is not within a text of %d bytes", start, end, len(rendered))
	}
	text := rendered[start:end]
	o.Start, o.End, o.Digest = start, end, DigestOf(text)
	return Chunk{origin: o, text: text}, nil
}

// Origin returns where the chunk came from.
func (c Chunk) Origin() Origin { return c.origin }

// Text returns the chunk's text.
func (c Chunk) Text() string { return c.text }

// FreshnessState says how far a hit can be relied on.
type FreshnessState string

const (
	// Fresh is current text and current vector, capture lag within the target.
	Fresh FreshnessState = "FRESH"
	// Stale means that Whence knows of something newer.
	Stale FreshnessState = "STALE"
	// Unknown means that Whence cannot vouch for the hit.
	Unknown FreshnessState = "UNKNOWN"
	// Verified was compared with the live source row during the query.
	Verified FreshnessState = "VERIFIED"
)

// FreshnessReason says why a hit is not fresh.
type FreshnessReason string

const (
	// SourceChanged means the row is newer than what was embedded.
	SourceChanged FreshnessReason = "SOURCE_CHANGED"
	// SourceDeleted means the row is gone.
	SourceDeleted FreshnessReason = "SOURCE_DELETED"
	// ModelChanged means the vector is of another space than the current one.
	ModelChanged FreshnessReason = "MODEL_CHANGED"
	// DefinitionChanged means the table is rendered otherwise by now.
	DefinitionChanged FreshnessReason = "DEFINITION_CHANGED"
	// CaptureLagging means capture is further behind than the table's target, or
	// the table's rows are still being copied or compared.
	CaptureLagging FreshnessReason = "CAPTURE_LAGGING"
	// CapturePaused means an operator paused the source, or is deleting it.
	CapturePaused FreshnessReason = "CAPTURE_PAUSED"
	// CaptureBroken means capture cannot go on by itself.
	CaptureBroken FreshnessReason = "CAPTURE_BROKEN"
	// SchemaChanged means a registered column changed in the source.
	SchemaChanged FreshnessReason = "SCHEMA_CHANGED"
	// RowSetAside means that the row could not be taken over whole.
	RowSetAside FreshnessReason = "ROW_SET_ASIDE"
	// EvidenceChanged means that something a note was concluded from is not as it
	// was shown to the note's author any more.
	EvidenceChanged FreshnessReason = "EVIDENCE_CHANGED"
	// EvidenceOutOfScope means that some of it cannot be judged within the scope.
	EvidenceOutOfScope FreshnessReason = "EVIDENCE_OUT_OF_SCOPE"
)

// Freshness is a hit's state, why, and how far behind the source it may be.
type Freshness struct {
	State   FreshnessState
	Reasons []FreshnessReason
	Behind  time.Duration // age of the moment up to which capture is known to be complete
}

// Watermark is how far capture had applied a source when an answer was made.
type Watermark struct {
	Source     string
	LSN        LSN
	CommitTime time.Time     // of the last transaction applied; zero when none was
	CaughtUpAt time.Time     // every commit up to this moment had been applied; zero when not known
	Lag        time.Duration // now minus CaughtUpAt; negative when not known
}
