package cdc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/whence-db/whence"
)

// The logical replication messages of pgoutput's protocol version 1, in the
// layout that PostgreSQL's manual gives under "Logical Replication Message
// Formats". Decoding does not copy: strings are made, column values point into
// the message. Bytes that do not fit the layout are an error, never a panic.

type message interface{ kind() byte }

type beginMessage struct {
	final      whence.LSN // position of the commit record
	commitTime time.Time
	xid        uint32
}

type commitMessage struct {
	commit, end whence.LSN // position of the commit record, and the one after it
	commitTime  time.Time
}

type relationMessage struct {
	id           uint32
	schema, name string
	identity     byte // as pg_class.relreplident
	columns      []relationColumn
}

type relationColumn struct {
	key      bool // part of the replica identity
	name     string
	typeOID  uint32
	modifier int32
}

type insertMessage struct {
	relation uint32
	new      tuple
}

type updateMessage struct {
	relation uint32
	oldKind  byte // 'K': only the key's columns are set; 'O': the whole old row; 0: none was sent
	old, new tuple
}

type deleteMessage struct {
	relation uint32
	oldKind  byte // 'K' or 'O'
	old      tuple
}

type truncateMessage struct {
	options   byte // 1: CASCADE, 2: RESTART IDENTITY
	relations []uint32
}

// otherMessage is one that says nothing of rows: origin, type, or a message
// that an application wrote to the log.
type otherMessage struct{ tag byte }

func (beginMessage) kind() byte    { return 'B' }
func (commitMessage) kind() byte   { return 'C' }
func (relationMessage) kind() byte { return 'R' }
func (insertMessage) kind() byte   { return 'I' }
func (updateMessage) kind() byte   { return 'U' }
func (deleteMessage) kind() byte   { return 'D' }
func (truncateMessage) kind() byte { return 'T' }
func (m otherMessage) kind() byte  { return m.tag }

// tuple is a row's columns, in the order of its relation message.
type tuple []column

// column is one value: 't' text in data, 'n' null, 'u' unchanged and not sent.
type column struct {
	kind byte
	data []byte // valid as long as the message
}

var errShort = errors.New("the message ends too early")

// decoder reads messages; the tuples it returns are valid until the next one.
type decoder struct {
	old, new tuple
}

func (d *decoder) decode(b []byte) (message, error) {
	if len(b) == 0 {
		return nil, errShort
	}
	r := cursor{b: b[1:]}
	m := d.body(b[0], &r)
	if r.err != nil {
		return nil, fmt.Errorf("decode pgoutput message %q: %w", b[0], r.err)
	}
	if _, other := m.(otherMessage); !other && len(r.b) != 0 {
		return nil, fmt.Errorf("decode pgoutput message %q: %d bytes too many", b[0], len(r.b))
	}
	return m, nil
}

func (d *decoder) body(tag byte, r *cursor) message {
	switch tag {
	case 'B':
		return beginMessage{final: r.lsn(), commitTime: r.time(), xid: r.uint32()}
	case 'C':
		r.flags()
		return commitMessage{commit: r.lsn(), end: r.lsn(), commitTime: r.time()}
	case 'R':
		return r.relation()
	case 'I':
		m := insertMessage{relation: r.uint32()}
		r.expect("N")
		d.new = r.tuple(d.new[:0])
		m.new = d.new
		return m
	case 'U':
		m := updateMessage{relation: r.uint32()}
		if t := r.expect("KON"); t != 'N' {
			d.old = r.tuple(d.old[:0])
			m.oldKind, m.old = t, d.old
			r.expect("N")
		}
		d.new = r.tuple(d.new[:0])
		m.new = d.new
		return m
	case 'D':
		m := deleteMessage{relation: r.uint32(), oldKind: r.expect("KO")}
		d.old = r.tuple(d.old[:0])
		m.old = d.old
		return m
	case 'T':
		n := r.uint32()
		m := truncateMessage{options: r.byte()}
		for ; n > 0 && r.err == nil; n-- {
			m.relations = append(m.relations, r.uint32())
		}
		return m
	case 'O', 'Y', 'M':
		return otherMessage{tag: tag}
	default:
		r.fail(errors.New("not a message of protocol version 1"))
		return nil
	}
}

// cursor reads fields off the front of b; after an error it returns zeros.
type cursor struct {
	b   []byte
	err error
}

func (r *cursor) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.b = nil
}

func (r *cursor) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.fail(errShort)
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *cursor) byte() byte {
	if v := r.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (r *cursor) uint16() uint16 {
	if v := r.take(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (r *cursor) uint32() uint32 {
	if v := r.take(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (r *cursor) uint64() uint64 {
	if v := r.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func (r *cursor) lsn() whence.LSN { return whence.LSN(r.uint64()) }

// epoch is where Postgres counts microseconds from.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func (r *cursor) time() time.Time {
	us := int64(r.uint64())
	return time.Unix(epoch.Unix()+floorDiv(us, 1e6), (us-floorDiv(us, 1e6)*1e6)*1000).UTC()
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

func (r *cursor) flags() {
	if f := r.byte(); f != 0 {
		r.fail(fmt.Errorf("flags are %d, not 0", f))
	}
}

func (r *cursor) string() string {
	for i, c := range r.b {
		if c == 0 {
			s := string(r.b[:i])
			r.b = r.b[i+1:]
			return s
		}
	}
	r.fail(errShort)
	return ""
}

// expect reads one byte that must be among the wanted ones.
func (r *cursor) expect(wanted string) byte {
	got := r.byte()
	for i := range len(wanted) {
		if wanted[i] == got {
			return got
		}
	}
	r.fail(fmt.Errorf("got %q where one of %q is due", got, wanted))
	return 0
}

func (r *cursor) relation() relationMessage {
	m := relationMessage{id: r.uint32(), schema: r.string(), name: r.string(), identity: r.byte()}
	for n := r.uint16(); n > 0 && r.err == nil; n-- {
		flags := r.byte()
		if flags > 1 {
			r.fail(fmt.Errorf("column flags are %d, not 0 or 1", flags))
		}
		m.columns = append(m.columns, relationColumn{
			key: flags == 1, name: r.string(), typeOID: r.uint32(), modifier: int32(r.uint32()),
		})
	}
	return m
}

func (r *cursor) tuple(into tuple) tuple {
	for n := r.uint16(); n > 0 && r.err == nil; n-- {
		c := column{kind: r.expect("tnu")}
		if c.kind == 't' {
			c.data = r.take(int(int32(r.uint32())))
		}
		into = append(into, c)
	}
	return into
}
