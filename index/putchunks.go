package index

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

const (
	selectHeld = `
select c.record_id, c.id, c.table_id, c.digest, v.embedding is not null
from whence.chunks c
left join whence.vectors v on v.space_id = (select id from whence.spaces where current) and v.digest = c.digest
where c.record_id = any(@ids)
order by c.record_id, c.version desc, c.ordinal`

	copyChunks = `
copy whence.chunks (record_id, table_id, version, ordinal, span_start, span_end, text, digest, subject, event_time, attributes, language)
from stdin (format binary)`

	keepChunks = `
update whence.chunks c
set version = n.version, ordinal = n.ordinal, span_start = n.span_start, span_end = n.span_end,
    subject = n.subject, event_time = n.event_time, attributes = n.attributes::jsonb
from unnest(@ids::bigint[], @versions::int[], @ordinals::int[], @starts::int[], @ends::int[],
    @subjects::text[], @events::timestamptz[], @attributes::text[])
    as n(id, version, ordinal, span_start, span_end, subject, event_time, attributes)
where c.id = n.id`

	// A text without a row is asked for, in every space; told are those asked for in
	// the current one. Ordered, so that two writers that ask for the same texts at
	// once cannot wait for each other in a circle.
	askVectors = `
with asked as (
    insert into whence.vectors (space_id, digest, table_id)
    select s.id, w.digest, w.table_id
    from unnest(@digests::bytea[], @tables::int[]) as w(digest, table_id)
    cross join (select id from whence.spaces where retired_at is null for key share) s
    order by w.digest, s.id
    on conflict do nothing
    returning space_id, digest
)
select coalesce((select array_agg(a.digest) from asked a join whence.spaces s on s.current and s.id = a.space_id), '{}'),
    exists (select from whence.spaces where current)`

	countSaved = `
insert into whence.embedding_calls as e (table_id, saved)
select n.table_id, n.saved from unnest(@tables::int[], @saved::bigint[]) as n(table_id, saved) order by 1
on conflict (table_id) do update set saved = e.saved + excluded.saved`
)

// readHeld reads which chunks the known records hold, newest first.
func (p *plan) readHeld(ctx context.Context, tx pgx.Tx) error {
	if len(p.known) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, selectHeld, pgx.NamedArgs{"ids": p.known})
	if err != nil {
		return err
	}
	var record int64
	var digest []byte
	var c held
	_, err = pgx.ForEachRow(rows, []any{&record, &c.id, &c.table, &digest, &c.embedded}, func() error {
		c.digest = whence.Digest(digest)
		p.held[record] = append(p.held[record], c)
		return nil
	})
	return err
}

// take returns a chunk of the record's that holds the text and is not taken yet.
func (p *plan) take(record int64, d whence.Digest) (held, bool) {
	for i, c := range p.held[record] {
		if c.id != 0 && c.digest == d {
			p.held[record][i].id = 0
			return c, true
		}
	}
	return held{}, false
}

// writeChunks writes the heads' chunks: those that the record holds keep their
// rows, the others are new. It returns what serves nobody any more.
func (p *plan) writeChunks(ctx context.Context, tx pgx.Tx) (gone []held, err error) {
	var fresh copied
	var kept keptArgs
	for _, e := range p.entries {
		m := e.last
		complete := len(m.Missing) == 0 // and every text of the head has its vector
		for i, c := range m.Chunks {
			if h, ok := p.take(e.id, c.Origin().Digest); ok {
				kept.add(h.id, e, i)
				complete = complete && h.embedded
			} else {
				fresh.chunk(e, i)
				complete = false
			}
		}
		for _, h := range p.held[e.id] {
			switch {
			case h.id == 0:
			case m.Deleted || m.Purge || complete || !h.embedded:
				gone = append(gone, h)
			default:
				e.bridged = true
			}
		}
	}
	if len(kept.ids) > 0 {
		if _, err := tx.Exec(ctx, keepChunks, kept.named()); err != nil {
			return nil, err
		}
	}
	return gone, fresh.send(ctx, tx, copyChunks)
}

func (c *copied) chunk(e *entry, ordinal int) {
	m := e.last
	o := m.Chunks[ordinal].Origin()
	c.row(12)
	c.int8(e.id)
	c.int4(m.Table.ID)
	c.int4(e.version)
	c.int4(int32(ordinal))
	c.int4(int32(o.Start))
	c.int4(int32(o.End))
	c.text(m.Chunks[ordinal].Text())
	c.bytea(o.Digest[:])
	c.textOrNull(m.Subject)
	c.time(m.EventTime)
	c.jsonb(m.Attributes)
	c.text(m.Table.Language)
}

type keptArgs struct {
	ids                              []int64
	versions, ordinals, starts, ends []int32
	attributes                       []string
	subjects                         []*string
	events                           []*time.Time
}

func (a *keptArgs) add(id int64, e *entry, ordinal int) {
	m := e.last
	o := m.Chunks[ordinal].Origin()
	a.ids = append(a.ids, id)
	a.versions = append(a.versions, e.version)
	a.ordinals = append(a.ordinals, int32(ordinal))
	a.starts = append(a.starts, int32(o.Start))
	a.ends = append(a.ends, int32(o.End))
	a.subjects = append(a.subjects, m.Subject)
	a.events = append(a.events, timeOrNull(m.EventTime))
	a.attributes = append(a.attributes, object(m.Attributes))
}

func (a *keptArgs) named() pgx.NamedArgs {
	return pgx.NamedArgs{"ids": a.ids, "versions": a.versions, "ordinals": a.ordinals, "starts": a.starts, "ends": a.ends,
		"subjects": a.subjects, "events": a.events, "attributes": a.attributes}
}

// ask asks for the vectors of the heads' texts. One that has a row, with its
// vector or on the way to it, is a call saved. A record whose texts were all
// asked for before may have been embedded since its chunks were read; whoever
// embeds what is asked for here finds the record by itself.
func (p *plan) ask(ctx context.Context, tx pgx.Tx) (s Stored, err error) {
	tables := map[whence.Digest]int32{}
	var digests [][]byte
	for _, e := range p.entries {
		for _, c := range e.last.Chunks {
			d := c.Origin().Digest
			if _, seen := tables[d]; !seen {
				tables[d] = e.last.Table.ID
				digests = append(digests, d[:])
			}
		}
	}
	if len(digests) == 0 {
		return s, nil
	}
	digests = sorted(digests)
	asking := make([]int32, len(digests))
	for i, d := range digests {
		asking[i] = tables[whence.Digest(d)]
	}
	var asked [][]byte
	var space bool
	if err := tx.QueryRow(ctx, askVectors, pgx.NamedArgs{"digests": digests, "tables": asking}).Scan(&asked, &space); err != nil || !space {
		return s, err
	}
	fresh := make(map[whence.Digest]bool, len(asked))
	for _, d := range asked {
		fresh[whence.Digest(d)] = true
	}
	return p.settled(fresh), nil
}

// settled tells what remains, given the texts that were asked for just now.
func (p *plan) settled(fresh map[whence.Digest]bool) Stored {
	s := Stored{Saved: map[int32]int64{}}
	counted := map[whence.Digest]bool{}
	for _, e := range p.entries {
		waits := false
		for _, c := range e.last.Chunks {
			d := c.Origin().Digest
			waits = waits || fresh[d]
			if !fresh[d] || counted[d] {
				s.Saved[e.last.Table.ID]++
			}
			counted[d] = true
		}
		if e.bridged && !waits {
			s.Unsettled = append(s.Unsettled, e.id)
		}
	}
	return s
}

// CountSaved adds to what GetTable shows. Call it last in a transaction: writers
// of one table wait here for each other.
func (x *Index) CountSaved(ctx context.Context, tx pgx.Tx, saved map[int32]int64) error {
	if len(saved) == 0 {
		return nil
	}
	var tables []int32
	var counts []int64
	for t, n := range saved {
		tables, counts = append(tables, t), append(counts, n)
	}
	_, err := tx.Exec(ctx, countSaved, pgx.NamedArgs{"tables": tables, "saved": counts})
	return err
}
