package ingest

import (
	"crypto/sha256"
	"encoding/binary"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/whence-db/whence"
)

// mark stands for a row's state: its columns, which of them are not known, and
// the definition it was rendered by. Equal states have equal marks.
type mark [16]byte

func markOf(t *capturedTable, values whence.Values) (m mark) {
	h := sha256.New()
	var b [5]byte
	binary.BigEndian.PutUint32(b[1:], uint32(t.Definition))
	_, _ = h.Write(b[:])
	for _, name := range t.columns {
		v, known := values[name]
		switch {
		case !known:
			_, _ = h.Write([]byte{'?'})
		case v == nil:
			_, _ = h.Write([]byte{'n'})
		default:
			b[0] = 'v'
			binary.BigEndian.PutUint32(b[1:], uint32(len(*v)))
			_, _ = h.Write(b[:])
			_, _ = h.Write([]byte(*v))
		}
	}
	var sum [sha256.Size]byte
	return mark(h.Sum(sum[:0])[:len(m)])
}

// row is a captured row in the form that it is stored in. It depends on the
// definition alone, so it is made before the index is asked.
type row struct {
	values     whence.Values
	mark       mark
	columns    []byte // JSON
	text       string
	digest     whence.Digest
	subject    *string
	event      time.Time // zero: not known
	attributes []byte    // JSON
	chunks     []whence.Chunk
	lacks      lacking // what could not be taken over
}

// newRow renders the values of a row. Where some columns are missing there is no text.
func newRow(t *capturedTable, values whence.Values, at moment, missing ...string) *row {
	r := &row{}
	r.values = r.lacks.columns(values)
	r.mark, r.columns = markOf(t, r.values), appendObject(nil, t.columns, r.values)
	r.describe(t, at)
	if len(missing) == 0 {
		r.text = r.lacks.text(t, r.values)
	}
	r.digest = whence.DigestOf(r.text)
	return r
}

// cut makes the chunks, once; only a head needs them.
func (r *row) cut(t *capturedTable, key whence.Key, at moment) error {
	if r.chunks != nil || r.text == "" {
		return nil
	}
	origin := whence.Origin{Source: t.Source, Table: t.name, Key: key, LSN: at.lsn, CommitTime: at.commit, Columns: t.text, EventTime: r.event}
	for _, s := range Split(r.text) {
		c, err := whence.NewChunk(origin, r.text, s.Start, s.End)
		if err != nil {
			return err
		}
		r.chunks = append(r.chunks, c)
	}
	r.attributes = r.lacks.attributes(r.attributes, len(r.chunks))
	return nil
}

// spans tells where the chunks of a text would begin and end; nil where the whole
// is one.
func (r *row) spans() []int32 {
	cuts := Split(r.text)
	if r.text == "" || len(cuts) == 1 && cuts[0] == (Span{0, len(r.text)}) {
		return nil
	}
	out := make([]int32, 0, 2*len(cuts))
	for _, s := range cuts {
		out = append(out, int32(s.Start), int32(s.End))
	}
	return out
}

// describe sets what a row is filtered and ranked by. The event time is the
// commit time where the time column is null or infinite; it stays unknown when
// the row was copied by a backfill, which cannot tell when it was committed.
func (r *row) describe(t *capturedTable, at moment) {
	if t.SubjectColumn != "" {
		r.subject = r.lacks.subject(r.values[t.SubjectColumn])
	}
	if len(t.AttributeColumns) > 0 {
		r.attributes = appendObject(nil, t.AttributeColumns, r.values)
	}
	r.event = at.commit
	if v := r.values[t.TimeColumn]; t.TimeColumn != "" && v != nil {
		if when, finite, err := parseTime(*v); err != nil {
			r.lacks.time()
		} else if finite {
			r.event = storable(when)
		}
	}
}

// storable keeps a time within what a timestamptz holds: a date may lie far beyond.
func storable(t time.Time) time.Time {
	first := time.Date(-4713, 12, 1, 0, 0, 0, 0, time.UTC)
	last := time.Date(294276, 12, 31, 0, 0, 0, 0, time.UTC)
	if t.Before(first) {
		return first
	}
	if t.After(last) {
		return last
	}
	return t
}

// appendObject writes those of the named values that are known as a JSON object.
func appendObject(b []byte, names []string, values whence.Values) []byte {
	b = append(b, '{')
	first := true
	for _, name := range names {
		v, known := values[name]
		if !known {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(appendString(b, name), ':')
		if v == nil {
			b = append(b, "null"...)
		} else {
			b = appendString(b, *v)
		}
	}
	return append(b, '}')
}

// appendString writes a JSON string; s is valid UTF-8.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	from := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, `\n`...)
		case '\t':
			b = append(b, `\t`...)
		case '\r':
			b = append(b, `\r`...)
		default:
			b = append(b, `\u00`...)
			b = append(b, hex[c>>4], hex[c&15])
		}
	}
	return append(append(b, s[from:]...), '"')
}

// clean makes values storable: sources declare an encoding, but not all of them
// keep to it.
func clean(values whence.Values) {
	for name, v := range values {
		if v != nil && !utf8.ValidString(*v) {
			s := strings.ToValidUTF8(*v, string(utf8.RuneError))
			values[name] = &s
		}
	}
}
