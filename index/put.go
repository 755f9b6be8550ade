package index

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

// Mutation is one captured state of one row, ready to be stored.
type Mutation struct {
	Table      *whence.Table
	Key        whence.Key
	Deleted    bool
	Columns    []byte   // a JSON object; nil when deleted
	Missing    []string // columns whose values are not known yet; then there are no chunks
	Text       string   // as rendered; empty when deleted or missing
	Digest     whence.Digest
	Chunks     []whence.Chunk
	Spans      []int32 // where each chunk of the text would begin and end, where there are none; nil: it is one, the whole
	Subject    *string
	EventTime  time.Time // zero: not known
	Attributes []byte    // a JSON object
	// Inherit keeps the record's subject, event time and attributes: whom a
	// deleted row was about still decides who may know of it.
	Inherit    bool
	LSN        whence.LSN
	XID        *uint32   // nil for a backfilled row
	CommitTime time.Time // zero for a backfilled row
	State      []byte    // what Heads shall return as the head's; opaque
	Head       *Head     // as Heads returned it; nil when there is no record
	Purge      bool      // what was before is to be nowhere: the row was deleted, and is another by the same key
	Replace    bool      // the state takes the place of Head's version instead of following it
}

// Stored is what Put leaves to be done.
type Stored struct {
	// Unsettled are records that keep superseded chunks although no text of
	// their heads is still to be asked for: hand them to Settle.
	Unsettled []int64
	Saved     map[int32]int64 // by table, texts that need no call; hand them to CountSaved
	Purged    []whence.Gone   // what was removed with its history
}

// entry is what one Put does to one record.
type entry struct {
	last    *Mutation
	id      int64
	version int32
	purged  int32 // versions before this one go; zero: none
	known   bool  // the record was there before
	bridged bool  // it keeps superseded chunks
}

type rowKey struct {
	table int32
	key   whence.Key
}

// Put stores mutations, about 1,000 a call, as few set-based statements. A key
// may occur several times, in the order of its states: each becomes a version
// and the last the head. Heads must have been read, and so locked, in tx.
//
// A chunk whose text the record held before keeps its row, and so its identity.
// Superseded chunks stay while the new head still lacks vectors, so that vector
// search never loses the record in between; those without a vector serve nobody
// and go at once.
func (x *Index) Put(ctx context.Context, tx pgx.Tx, ms []Mutation) (Stored, error) {
	if len(ms) == 0 {
		return Stored{}, nil
	}
	p := newPlan(ms)
	s, err := p.store(ctx, tx, x)
	if err != nil {
		return Stored{}, fmt.Errorf("put: %w", err)
	}
	return s, nil
}

func (p *plan) store(ctx context.Context, tx pgx.Tx, x *Index) (Stored, error) {
	if err := p.readHeld(ctx, tx); err != nil {
		return Stored{}, err
	}
	if err := p.number(ctx, tx, x); err != nil {
		return Stored{}, err
	}
	if err := p.dateUndated(ctx, tx); err != nil {
		return Stored{}, err
	}
	if err := p.writeRecords(ctx, tx); err != nil {
		return Stored{}, err
	}
	if err := p.writeVersions(ctx, tx); err != nil {
		return Stored{}, err
	}
	gone, err := p.writeChunks(ctx, tx)
	if err != nil {
		return Stored{}, err
	}
	if err := drop(ctx, tx, gone); err != nil {
		return Stored{}, err
	}
	s, err := p.ask(ctx, tx)
	s.Purged = p.gone()
	return s, err
}

// gone tells of the versions that a purge has taken.
func (p *plan) gone() (out []whence.Gone) {
	for _, e := range p.entries {
		if e.purged > 0 && e.known {
			out = append(out, whence.Gone{Table: e.last.Table.Name(), Key: e.last.Key, RecordID: e.id, Below: e.purged})
		}
	}
	return out
}

type plan struct {
	ms       []Mutation
	entries  []*entry
	versions []int32 // of each mutation; 0: purged before it was stored
	of       []*entry
	known    []int64 // ids of the records that were there before
	held     map[int64][]held
	captured time.Time // when those mutations are captured that have no commit time; zero: all have one
}

func newPlan(ms []Mutation) *plan {
	p := &plan{ms: ms, versions: make([]int32, len(ms)), of: make([]*entry, len(ms)), held: map[int64][]held{}}
	entries := make(map[rowKey]*entry, len(ms))
	mine := map[*entry][]int{} // of tables that purge
	for i := range ms {
		m := &ms[i]
		k := rowKey{m.Table.ID, m.Key}
		e := entries[k]
		if e == nil {
			e = &entry{}
			if h := m.Head; h != nil {
				e.known, e.id, e.version = true, h.RecordID, h.Version
				if m.Replace {
					e.version--
				}
				p.known = append(p.known, h.RecordID)
			}
			entries[k] = e
			p.entries = append(p.entries, e)
		}
		e.version++
		e.last = m
		p.of[i], p.versions[i] = e, e.version
		if m.Table.OnDelete != whence.OnDeletePurge {
			continue
		}
		if m.Deleted || m.Purge {
			e.purged = e.version
			for _, j := range mine[e] {
				p.versions[j] = 0
			}
		}
		mine[e] = append(mine[e], i)
	}
	return p
}

// number gives the new records their ids.
func (p *plan) number(ctx context.Context, tx pgx.Tx, x *Index) error {
	for _, e := range p.entries {
		if e.known {
			continue
		}
		id, err := x.ids.next(ctx, tx)
		if err != nil {
			return err
		}
		e.id = id
	}
	return nil
}

// dateUndated asks the database for the time if a mutation has none: record and
// version are to name the same moment.
func (p *plan) dateUndated(ctx context.Context, tx pgx.Tx) error {
	if !slices.ContainsFunc(p.ms, func(m Mutation) bool { return m.CommitTime.IsZero() }) {
		return nil
	}
	return tx.QueryRow(ctx, `select clock_timestamp()`).Scan(&p.captured)
}

const (
	copyRecords = `
copy whence.records (id, table_id, key, version, lsn, xid, commit_time, event_time, subject, attributes, deleted, state, since)
from stdin (format binary)`

	updateRecords = `
update whence.records r
set version = n.version, lsn = n.lsn::pg_lsn, xid = n.xid, commit_time = n.commit_time, deleted = n.deleted, state = n.state, missing = null,
    since = coalesce(n.commit_time, @captured::timestamptz),
    event_time = case when n.inherit then r.event_time else n.event_time end,
    subject = case when n.inherit then r.subject else n.subject end,
    attributes = case when n.inherit then r.attributes else n.attributes::jsonb end
from unnest(@ids::bigint[], @versions::int[], @lsns::text[], @xids::bigint[], @commits::timestamptz[],
    @events::timestamptz[], @subjects::text[], @attributes::text[], @deleted::bool[], @states::bytea[], @inherit::bool[])
    as n(id, version, lsn, xid, commit_time, event_time, subject, attributes, deleted, state, inherit)
where r.id = n.id`

	oweColumns = `update whence.records set missing = @missing where id = @id`

	// replaceVersions clears the place of a version that is about to be stored
	// anew; what was cut from the old text counts as superseded from here on.
	replaceVersions = `
delete from whence.versions v using unnest(@ids::bigint[], @versions::int[]) as n(id, version)
where v.record_id = n.id and v.version = n.version`
	replaceChunks = `
update whence.chunks c set version = c.version - 1 from unnest(@ids::bigint[], @versions::int[]) as n(id, version)
where c.record_id = n.id and c.version = n.version`
)

// writeRecords stores the heads.
func (p *plan) writeRecords(ctx context.Context, tx pgx.Tx) error {
	var fresh copied
	var known recordArgs
	b := &pgx.Batch{}
	for _, e := range p.entries {
		if e.known {
			known.add(e)
		} else {
			fresh.record(e, p.captured)
		}
	}
	if len(known.ids) > 0 {
		b.Queue(updateRecords, known.named(p.captured))
	}
	for _, e := range p.entries {
		if len(e.last.Missing) > 0 {
			b.Queue(oweColumns, pgx.NamedArgs{"id": e.id, "missing": e.last.Missing})
		}
	}
	var ids []int64
	var versions []int32
	for i := range p.ms {
		if m := &p.ms[i]; m.Replace && m.Head != nil {
			ids, versions = append(ids, m.Head.RecordID), append(versions, m.Head.Version)
		}
	}
	if len(ids) > 0 {
		b.Queue(replaceVersions, pgx.NamedArgs{"ids": ids, "versions": versions})
		b.Queue(replaceChunks, pgx.NamedArgs{"ids": ids, "versions": versions})
	}
	if err := fresh.send(ctx, tx, copyRecords); err != nil || b.Len() == 0 {
		return err
	}
	return tx.SendBatch(ctx, b).Close()
}

func (c *copied) record(e *entry, captured time.Time) {
	m := e.last
	c.row(13)
	c.int8(e.id)
	c.int4(m.Table.ID)
	c.text(string(m.Key))
	c.int4(e.version)
	c.lsn(m.LSN)
	c.xid(m.XID)
	c.time(m.CommitTime)
	c.time(m.EventTime)
	c.textOrNull(m.Subject)
	c.jsonb(m.Attributes)
	c.bool(m.Deleted)
	c.bytea(m.State)
	if !m.CommitTime.IsZero() {
		captured = m.CommitTime
	}
	c.time(captured)
}

type recordArgs struct {
	ids              []int64
	versions         []int32
	lsns             []whence.LSN
	xids             []*uint32
	attributes       []string
	subjects         []*string
	commits, events  []*time.Time
	deleted, inherit []bool
	states           [][]byte
}

func (a *recordArgs) add(e *entry) {
	m := e.last
	a.ids = append(a.ids, e.id)
	a.versions = append(a.versions, e.version)
	a.lsns = append(a.lsns, m.LSN)
	a.xids = append(a.xids, m.XID)
	a.attributes = append(a.attributes, object(m.Attributes))
	a.subjects = append(a.subjects, m.Subject)
	a.commits = append(a.commits, timeOrNull(m.CommitTime))
	a.events = append(a.events, timeOrNull(m.EventTime))
	a.deleted = append(a.deleted, m.Deleted)
	a.inherit = append(a.inherit, m.Inherit)
	a.states = append(a.states, m.State)
}

func (a *recordArgs) named(captured time.Time) pgx.NamedArgs {
	return pgx.NamedArgs{"captured": timeOrNull(captured), "ids": a.ids, "versions": a.versions, "lsns": lsnStrings(a.lsns), "xids": a.xids, "attributes": a.attributes,
		"subjects": a.subjects, "commits": a.commits, "events": a.events, "deleted": a.deleted, "inherit": a.inherit, "states": a.states}
}

const (
	copyVersions = `
copy whence.versions (record_id, version, lsn, xid, commit_time, deleted, definition, columns, text, digest, event_time, spans) from stdin (format binary)`
	// Of rows without a commit time, which count from when they were captured.
	copyUndated = `
copy whence.versions (record_id, version, lsn, xid, commit_time, deleted, definition, columns, text, digest, event_time, spans, captured_at)
from stdin (format binary)`

	purgeVersions = `
delete from whence.versions v using unnest(@ids::bigint[], @versions::int[]) as n(id, version)
where v.record_id = n.id and v.version < n.version`
)

// writeVersions stores every state, but those that a later purge took with it.
func (p *plan) writeVersions(ctx context.Context, tx pgx.Tx) error {
	var ids []int64
	var before []int32
	for _, e := range p.entries {
		if e.purged > 0 && e.known {
			ids, before = append(ids, e.id), append(before, e.purged)
		}
	}
	if len(ids) > 0 {
		if _, err := tx.Exec(ctx, purgeVersions, pgx.NamedArgs{"ids": ids, "versions": before}); err != nil {
			return err
		}
	}
	var dated, undated copied
	for i := range p.ms {
		switch {
		case p.versions[i] == 0:
		case p.ms[i].CommitTime.IsZero():
			undated.row(13)
			undated.version(p, i)
			undated.time(p.captured)
		default:
			dated.row(12)
			dated.version(p, i)
		}
	}
	if err := undated.send(ctx, tx, copyUndated); err != nil {
		return err
	}
	return dated.send(ctx, tx, copyVersions)
}

func (c *copied) version(p *plan, i int) {
	m := &p.ms[i]
	c.int8(p.of[i].id)
	c.int4(p.versions[i])
	c.lsn(m.LSN)
	c.xid(m.XID)
	c.time(m.CommitTime)
	c.bool(m.Deleted)
	c.int4(m.Table.Definition)
	c.jsonb(m.Columns)
	c.text(m.Text)
	digest := m.Digest
	if m.Text == "" {
		digest = emptyDigest
	}
	c.bytea(digest[:])
	c.time(m.EventTime)
	c.int4s(m.spans())
}

// spans tells where the chunks of the text begin and end, as whence.versions keeps it.
func (m *Mutation) spans() []int32 {
	if len(m.Chunks) == 0 {
		return m.Spans
	}
	out := make([]int32, 0, 2*len(m.Chunks))
	for _, c := range m.Chunks {
		out = append(out, int32(c.Origin().Start), int32(c.Origin().End))
	}
	if len(out) == 2 && out[0] == 0 && int(out[1]) == len(m.Text) {
		return nil
	}
	return out
}

var emptyDigest = whence.DigestOf("")

func object(v []byte) string {
	if len(v) == 0 {
		return "{}"
	}
	return string(v)
}

func timeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// sorted returns the digests in order, each once.
func sorted(digests [][]byte) [][]byte {
	slices.SortFunc(digests, slices.Compare[[]byte])
	return slices.CompactFunc(digests, slices.Equal[[]byte])
}
