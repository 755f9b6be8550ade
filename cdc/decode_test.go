package cdc

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/whence-db/whence"
)

// encode is decode's inverse for the messages that say something of rows.
func encode(m message) []byte {
	b := []byte{m.kind()}
	u32 := func(v uint32) { b = binary.BigEndian.AppendUint32(b, v) }
	u64 := func(v uint64) { b = binary.BigEndian.AppendUint64(b, v) }
	micros := func(t time.Time) { u64(uint64((t.Unix()-epoch.Unix())*1e6 + int64(t.Nanosecond())/1000)) }
	text := func(s string) { b = append(append(b, s...), 0) }
	row := func(kind byte, t tuple) {
		b = append(b, kind)
		b = binary.BigEndian.AppendUint16(b, uint16(len(t)))
		for _, c := range t {
			b = append(b, c.kind)
			if c.kind == 't' {
				u32(uint32(len(c.data)))
				b = append(b, c.data...)
			}
		}
	}
	switch m := m.(type) {
	case beginMessage:
		u64(uint64(m.final))
		micros(m.commitTime)
		u32(m.xid)
	case commitMessage:
		b = append(b, 0)
		u64(uint64(m.commit))
		u64(uint64(m.end))
		micros(m.commitTime)
	case relationMessage:
		u32(m.id)
		text(m.schema)
		text(m.name)
		b = append(b, m.identity)
		b = binary.BigEndian.AppendUint16(b, uint16(len(m.columns)))
		for _, c := range m.columns {
			flags := byte(0)
			if c.key {
				flags = 1
			}
			b = append(b, flags)
			text(c.name)
			u32(c.typeOID)
			u32(uint32(c.modifier))
		}
	case insertMessage:
		u32(m.relation)
		row('N', m.new)
	case updateMessage:
		u32(m.relation)
		if m.oldKind != 0 {
			row(m.oldKind, m.old)
		}
		row('N', m.new)
	case deleteMessage:
		u32(m.relation)
		row(m.oldKind, m.old)
	case truncateMessage:
		u32(uint32(len(m.relations)))
		b = append(b, m.options)
		for _, id := range m.relations {
			u32(id)
		}
	}
	return b
}

func textColumn(s string) column { return column{kind: 't', data: []byte(s)} }

var sampleMessages = []message{
	beginMessage{final: 0x16B374D848, commitTime: time.Date(2026, 3, 4, 5, 6, 7, 891000, time.UTC), xid: 742},
	beginMessage{commitTime: time.Date(1999, 12, 31, 23, 59, 59, 999999000, time.UTC)},
	commitMessage{commit: 1, end: 2, commitTime: epoch},
	relationMessage{id: 16385, schema: "public", name: "notes", identity: 'd', columns: []relationColumn{
		{key: true, name: "id", typeOID: 20, modifier: -1}, {name: "body", typeOID: 25, modifier: -1}}},
	insertMessage{relation: 1, new: tuple{textColumn("7"), {kind: 'n'}, textColumn(""), {kind: 'u'}}},
	updateMessage{relation: 1, new: tuple{textColumn("7")}},
	updateMessage{relation: 1, oldKind: 'K', old: tuple{textColumn("6"), {kind: 'n'}}, new: tuple{textColumn("7"), {kind: 'u'}}},
	updateMessage{relation: 1, oldKind: 'O', old: tuple{textColumn("6")}, new: tuple{textColumn("7")}},
	deleteMessage{relation: 1, oldKind: 'K', old: tuple{textColumn("6")}},
	truncateMessage{options: 3, relations: []uint32{1, 2}},
}

func TestDecodeIsTheInverseOfEncode(t *testing.T) {
	allow := cmp.AllowUnexported(beginMessage{}, commitMessage{}, relationMessage{}, relationColumn{}, insertMessage{},
		updateMessage{}, deleteMessage{}, truncateMessage{}, column{})
	for _, want := range sampleMessages {
		b := encode(want)
		got, err := new(decoder).decode(b)
		if err != nil {
			t.Errorf("%+v: %v", want, err)
			continue
		}
		if d := cmp.Diff(want, got, allow); d != "" {
			t.Errorf("%T: %s", want, d)
		}
		for n := range b {
			if _, err := new(decoder).decode(b[:n]); err == nil {
				t.Errorf("%T cut to %d of %d bytes was accepted", want, n, len(b))
			}
		}
		if _, err := new(decoder).decode(append(bytes.Clone(b), 0)); err == nil {
			t.Errorf("%T with a byte too many was accepted", want)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, b := range map[string][]byte{
		"an unknown message":           []byte("S\x00\x00\x00\x01\x01"),
		"a row that claims 65535":      []byte("I\x00\x00\x00\x01N\xff\xff"),
		"a value of negative length":   []byte("I\x00\x00\x00\x01N\x00\x01t\xff\xff\xff\xff"),
		"a truncate that claims 4G":    []byte("T\xff\xff\xff\xff\x00"),
		"a column of an unknown kind":  []byte("I\x00\x00\x00\x01N\x00\x01b\x00\x00\x00\x00"),
		"an insert with an old row":    []byte("I\x00\x00\x00\x01O\x00\x00"),
		"a delete with a new row":      []byte("D\x00\x00\x00\x01N\x00\x00"),
		"a relation without an ending": []byte("R\x00\x00\x00\x01public"),
	} {
		if m, err := new(decoder).decode(b); err == nil {
			t.Errorf("%s was accepted as %+v", name, m)
		}
	}
}

// Rows that do not fit what was described of their relation are refused.
func TestRowsOfTheWrongWidth(t *testing.T) {
	set := &tableSet{byName: map[relationName]whence.Table{{"public", "notes"}: table(1, "notes", "id")}}
	r := resolve(sampleMessages[3].(relationMessage), 0, set, nil)
	two := tuple{textColumn("7"), textColumn("x")}
	for name, tt := range map[string]struct {
		op       Op
		kind     byte
		old, new tuple
	}{
		"insert of none": {Insert, 0, nil, nil}, "insert of one": {Insert, 0, nil, two[:1]},
		"update of none": {Update, 0, nil, nil}, "update with an empty old row": {Update, 'K', nil, two},
		"delete of none": {Delete, 'K', nil, nil}, "delete of three": {Delete, 'O', append(two[:2:2], two[0]), nil},
	} {
		if _, err := r.fill(&Change{Op: tt.op}, tt.kind, tt.old, tt.new); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if _, err := r.fill(&Change{Op: Update}, 'K', two, two); err != nil {
		t.Error(err)
	}
}

// Whatever the bytes are, decoding does not panic, and what it accepts it has
// understood whole: encoding it again gives the same bytes.
func FuzzDecode(f *testing.F) {
	for _, m := range sampleMessages {
		f.Add(encode(m))
	}
	f.Add([]byte("Y\x00\x00\x00\x01public\x00mood\x00"))
	f.Add([]byte("M\x00"))
	var d decoder
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := d.decode(b)
		if err != nil {
			return
		}
		if _, other := m.(otherMessage); other {
			return
		}
		if got := encode(m); !bytes.Equal(got, b) {
			t.Errorf("%x was read as %+v, which is %x", b, m, got)
		}
	})
}
