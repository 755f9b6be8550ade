package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
	"github.com/whence-db/whence/internal/pg"
)

// Preview is what registering a table would give.
type Preview struct {
	Table     whence.Table
	Rows      []RenderedRow
	RowsTotal int64    // as the source estimates them
	Problems  []string // that would keep it from being registered
	Estimate  *Estimate
}

// RenderedRow is what one row would become.
type RenderedRow struct {
	Key        whence.Key
	Text       string
	Chunks     []Span
	Subject    *string
	EventTime  time.Time // zero: the commit time would be it
	Attributes whence.Values
	Tokens     int
}

// Estimate is about what a whole table would cost.
type Estimate struct {
	Sampled                      int // rows
	Chunks, Calls, Tokens, Bytes float64
}

const (
	// previewSample rows are looked at for the estimate.
	previewSample = 1000
	// What a row and a chunk take in the memory database beside their text, and how
	// often the text is there, by measuring filled ones.
	bytesARow, bytesAChunk, timesText = 700, 1800, 3.0
)

// PreviewTable renders some rows as RegisterTable would, and estimates the whole
// table's cost. What would keep the table from being registered is returned among
// the problems, not as an error.
func (r *Registry) PreviewTable(ctx context.Context, spec TableSpec, rows int) (p Preview, err error) {
	if p.Table, err = spec.table(); err != nil {
		return p, problem(&p, err)
	}
	s, err := r.GetSource(ctx, spec.Source)
	if err != nil {
		return p, err
	}
	dsn, err := r.dsn(s.Name, s.secrets)
	if err != nil {
		return p, err
	}
	conn, err := connect(ctx, s.Name, dsn)
	if err != nil {
		return p, err
	}
	defer closeConn(ctx, conn)
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	in, err := cdc.InspectTable(ctx, conn, p.Table.Schema, p.Table.Relation)
	if err != nil {
		return p, problem(&p, err)
	}
	p.RowsTotal = in.EstimatedRows
	if err := fit(&p.Table, in); err != nil {
		return p, problem(&p, err)
	}
	from, err := r.reader(s)
	if err != nil {
		return p, err
	}
	sample, all, err := from.Sample(ctx, p.Table, in, previewSample)
	if err != nil {
		return p, problem(&p, &whence.Error{Kind: whence.ErrPrecondition, Message: fmt.Sprintf("its rows cannot be read: %v", err)})
	}
	if p.RowsTotal = max(p.RowsTotal, int64(len(sample))); all {
		p.RowsTotal = int64(len(sample))
	}
	return p, r.fill(ctx, &p, sample, rows)
}

// problem makes a refusal part of the preview; other errors stay what they are.
func problem(p *Preview, err error) error {
	var refused *whence.Error
	if !errors.As(err, &refused) || errors.Is(err, whence.ErrUnavailable) {
		return err
	}
	p.Problems = append(p.Problems, refused.Message)
	return nil
}

func (r *Registry) fill(ctx context.Context, p *Preview, sample []whence.Values, rows int) error {
	dimensions := 0
	err := pg.Snapshot(ctx, r.pool, func(tx pgx.Tx) error {
		space, err := r.index.CurrentSpace(ctx, tx)
		dimensions = space.Dimensions
		return err
	})
	if err != nil {
		return err
	}
	t, e := capturing(p.Table), &Estimate{Sampled: len(sample)}
	seen := map[whence.Digest]bool{}
	for _, v := range sample {
		clean(v)
		key, err := whence.NewKey(t.KeyColumns, v)
		if err != nil {
			return err
		}
		row := newRow(t, v, moment{})
		shown := RenderedRow{Key: key, Text: row.text, Chunks: Split(row.text), Subject: row.subject, EventTime: row.event, Attributes: whence.Values{}}
		if err := json.Unmarshal(orEmpty(row.attributes), &shown.Attributes); err != nil {
			return err
		}
		e.Bytes += bytesARow + float64(len(row.columns)) + timesText*float64(len(row.text))
		for _, c := range shown.Chunks {
			text := row.text[c.Start:c.End]
			shown.Tokens += tokens(text)
			e.Chunks++
			e.Bytes += bytesAChunk
			if d := whence.DigestOf(text); !seen[d] {
				seen[d] = true
				e.Calls++
				e.Tokens += float64(tokens(text))
				e.Bytes += 4 * float64(dimensions) // the vector, and once more in its index
			}
		}
		if len(p.Rows) < rows {
			p.Rows = append(p.Rows, shown)
		}
	}
	scale := float64(p.RowsTotal) / float64(max(len(sample), 1))
	e.Chunks, e.Calls, e.Tokens, e.Bytes = e.Chunks*scale, e.Calls*scale, e.Tokens*scale, e.Bytes*scale
	p.Estimate = e
	return nil
}

func orEmpty(object []byte) []byte {
	if len(object) == 0 {
		return []byte("{}")
	}
	return object
}

// tokens is about how many a model makes of a text.
func tokens(text string) int { return max((len(text)+3)/4, len(strings.Fields(text))) }
