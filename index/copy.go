package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

// copied gathers rows in the binary form of COPY, as PostgreSQL's manual gives
// it under "COPY, Binary Format". Of all ways to write a row it costs both sides
// least: no array is built, none is taken apart, no statement is planned.
type copied struct {
	b    []byte
	rows int
}

// copySignature begins the stream: no flags, no extension.
const copySignature = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// row begins a row of n fields; they follow in the order of the statement.
func (c *copied) row(n int) {
	if c.rows == 0 {
		c.b = append(c.b, copySignature...)
	}
	c.rows++
	c.b = binary.BigEndian.AppendUint16(c.b, uint16(n))
}

func (c *copied) null()            { c.b = append(c.b, 0xff, 0xff, 0xff, 0xff) }
func (c *copied) length(n int)     { c.b = binary.BigEndian.AppendUint32(c.b, uint32(n)) }
func (c *copied) int4(v int32)     { c.length(4); c.b = binary.BigEndian.AppendUint32(c.b, uint32(v)) }
func (c *copied) int8(v int64)     { c.length(8); c.b = binary.BigEndian.AppendUint64(c.b, uint64(v)) }
func (c *copied) lsn(v whence.LSN) { c.int8(int64(v)) }
func (c *copied) text(v string)    { c.length(len(v)); c.b = append(c.b, v...) }

func (c *copied) bytea(v []byte) {
	if v == nil {
		c.null()
		return
	}
	c.length(len(v))
	c.b = append(c.b, v...)
}

func (c *copied) bool(v bool) {
	c.length(1)
	if v {
		c.b = append(c.b, 1)
	} else {
		c.b = append(c.b, 0)
	}
}

func (c *copied) textOrNull(v *string) {
	if v == nil {
		c.null()
		return
	}
	c.text(*v)
}

// jsonb takes an object; none is the empty one.
func (c *copied) jsonb(v []byte) {
	if len(v) == 0 {
		v = emptyObject
	}
	c.length(1 + len(v))
	c.b = append(append(c.b, 1), v...)
}

// int4s takes an array of one dimension; nil is null.
func (c *copied) int4s(v []int32) {
	if v == nil {
		c.null()
		return
	}
	const oid = 23
	head := []uint32{1, 0, oid, uint32(len(v)), 1} // dimensions, nulls, of what, how many, from
	if len(v) == 0 {
		head = []uint32{0, 0, oid}
	}
	c.length(4*len(head) + 8*len(v))
	for _, n := range head {
		c.b = binary.BigEndian.AppendUint32(c.b, n)
	}
	for _, n := range v {
		c.int4(n)
	}
}

var emptyObject = []byte("{}")

func (c *copied) xid(v *uint32) {
	if v == nil {
		c.null()
		return
	}
	c.int8(int64(*v))
}

// time writes a timestamptz; the zero time is null.
func (c *copied) time(v time.Time) {
	if v.IsZero() {
		c.null()
		return
	}
	const epoch = 946684800 // 2000-01-01 in Unix time
	c.int8((v.Unix()-epoch)*1e6 + int64(v.Nanosecond()/1000))
}

// send runs the statement, which names the fields in the order of the rows.
func (c *copied) send(ctx context.Context, tx pgx.Tx, statement string) error {
	if c.rows == 0 {
		return nil
	}
	c.b = append(c.b, 0xff, 0xff)
	tag, err := tx.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(c.b), statement)
	if err == nil && tag.RowsAffected() != int64(c.rows) {
		err = fmt.Errorf("copy: %d of %d rows were written", tag.RowsAffected(), c.rows)
	}
	return err
}
