package cdc

import (
	"context"
	"encoding/binary"
	"log/slog"
	"slices"
	"testing"
)

func FuzzParseTimelineHistory(f *testing.F) {
	f.Add([]byte("# as initdb wrote it\n1\t0/3000148\tno recovery target specified\n\n2\t1/A0\tbefore 2026-01-01\n"), int32(2))
	f.Add([]byte("1\n"), int32(1))
	f.Fuzz(func(t *testing.T, content []byte, timeline int32) {
		lsn, err := parseTimelineHistory(content, timeline)
		if err != nil && lsn != 0 {
			t.Errorf("a position, %s, and an error: %v", lsn, err)
		}
	})
}

// frame is a message of the copy stream: log data, or a keepalive when m is nil.
func frame(m []byte, at uint64) []byte {
	if m == nil {
		b := binary.BigEndian.AppendUint64([]byte{'k'}, at)
		return append(b, make([]byte, 9)...)
	}
	b := binary.BigEndian.AppendUint64([]byte{'w'}, at)
	return append(append(b, make([]byte, 16)...), m...)
}

func frames(list ...[]byte) (out []byte) {
	for _, b := range list {
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(b))), b...)
	}
	return out
}

// Whatever comes in the stream, nothing panics, the position never goes back and
// does not move within a transaction, and what is taken over lies in one.
func FuzzStream(f *testing.F) {
	const commit, end = 0x100, 0x110
	begin := frame(encode(beginMessage{final: commit, xid: 7}), 1)
	relation := frame(encode(relationMessage{id: 1, schema: "public", name: "notes", identity: 'd', columns: []relationColumn{
		{key: true, name: "id", typeOID: 20, modifier: -1}, {name: "body", typeOID: 25, modifier: -1}}}), 1)
	row := tuple{textColumn("7"), {kind: 'u'}}
	insert := frame(encode(insertMessage{relation: 1, new: row}), 1)
	done := frame(encode(commitMessage{commit: commit, end: end}), 1)
	f.Add(frames(begin, relation, insert, frame(encode(updateMessage{relation: 1, oldKind: 'K', old: row, new: row}), 1),
		frame(encode(deleteMessage{relation: 1, oldKind: 'O', old: row}), 1), frame(encode(truncateMessage{relations: []uint32{1}}), 1), done, frame(nil, 0x200)))
	f.Add(frames(begin, frame(nil, 0x200), begin))
	f.Add(frames(insert, done))
	f.Add(frames(begin, insert))
	f.Fuzz(func(t *testing.T, b []byte) {
		sink := newMemorySink(t, table(1, "notes", "id"))
		c, err := New(Config{ConnString: "host=x", Slot: "s", Publication: "p", Sink: sink, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		if _, err := c.readTables(ctx); err != nil {
			t.Fatal(err)
		}
		a := newApplier(&session{c: c}, 0x50)
		for len(b) >= 2 {
			n := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
			before, within, gathered := a.position, a.inTx, len(a.changes)
			err := a.message(ctx, b[2:2+n])
			b = b[2+n:]
			if a.position < before || within && a.inTx && a.position != before {
				t.Errorf("from %s to %s, within a transaction: %t", before, a.position, within)
			}
			if len(a.changes) > gathered && !within {
				t.Error("changes outside a transaction")
			}
			if err != nil {
				break
			}
		}
		for _, ch := range a.changes {
			if ch.Table != 1 || (ch.Op == Delete) != (ch.Row == nil && ch.OldKey != nil) && ch.Op != Truncate || slices.Contains(ch.Unchanged, "id") {
				t.Errorf("taken over: %+v", ch)
			}
		}
	})
}
