package cdc

import (
	"cmp"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/whence-db/whence"
)

// held keeps the stream where it is until release; the copying goes on.
func (s *source) held() (waits <-chan struct{}, release func()) {
	reached, open := make(chan struct{}), make(chan struct{})
	var once, freed sync.Once
	s.sink.setFault(func(step string) error {
		if step != "begin" {
			return nil
		}
		once.Do(func() { close(reached) })
		<-open
		return errInjected // so that all is read again
	})
	release = func() {
		freed.Do(func() {
			s.sink.setFault(nil)
			close(open)
		})
	}
	s.t.Cleanup(release)
	return reached, release
}

// A table is registered as it is now, and the stream still is where it was another:
// what it brings from there is in the copy and fails nothing.
func TestRegisteredAgainAheadOfTheStream(t *testing.T) {
	const more = `alter table notes add lang text; alter table notes replica identity full`
	for _, tt := range []struct {
		name, first string
		ddl         []string // each a transaction, all before the table is registered again
		keys, texts []string
		after       string
	}{
		{name: "key widened",
			ddl: []string{`update notes set n = n + 1; delete from notes where id = 9;
				alter table notes drop constraint notes_pkey, add primary key (id, n); insert into notes values (1, 'twin', 100)`},
			keys: []string{"id", "n"}, after: `delete from notes where n = 100; update notes set body = 'y' where id = 2`},
		{name: "key over what was null", first: more,
			ddl: []string{`insert into notes values (50, 'x')`, `update notes set body = 'y' where id = 3`,
				`update notes set lang = 'en'`, `delete from notes where id = 9`, `alter table notes drop constraint notes_pkey, add primary key (id, lang)`,
				`insert into notes values (1, 'eins', 0, 'de')`},
			keys: []string{"id", "lang"}, after: `delete from notes where lang = 'de'`},
		{name: "column added",
			ddl:   []string{`insert into notes values (50, 'x'); delete from notes where id = 9`, `alter table notes add title text default 'none'`},
			texts: []string{"body", "title"}, after: `insert into notes values (51, 'y', 0, 'some')`},
		{name: "column renamed",
			ddl:   []string{`insert into notes values (50, 'x'); delete from notes where id = 9`, `alter table notes rename body to text`, `update notes set text = 'y' where id = 3`},
			texts: []string{"text"}, after: `insert into notes values (51, 'y')`},
		{name: "type changed",
			ddl:   []string{`insert into notes values (50, 'x')`, `alter table notes alter body type jsonb using to_jsonb(body)`, `insert into notes values (51, '{}')`},
			after: `insert into notes values (52, '[]')`},
		{name: "type changed, and nothing written since",
			ddl:   []string{`insert into notes values (50, 'x')`, `alter table notes alter body type jsonb using to_jsonb(body)`},
			after: `insert into notes values (52, '[]')`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			notes := table(1, "notes", "id")
			s := newSource(t, notesDDL+`; insert into notes select i, 'x', i from generate_series(1, 10) i; `+tt.first, notes)
			c, _ := s.start()
			s.settle()
			waits, release := s.held()
			for _, sql := range tt.ddl {
				s.exec(sql)
			}
			<-waits
			again := notes
			again.Definition, again.Snapshot = 2, s.flushed()
			if tt.keys != nil {
				again.KeyColumns = tt.keys
			}
			if tt.texts != nil {
				again.TextColumns = tt.texts
			}
			s.sink.register(again)
			c.Poke()
			release()
			goal := s.flushed()
			s.eventually("the stream has come to the new definition, and the copy is done", func() bool {
				state, _ := s.sink.state(1)
				_, p := s.sink.now()
				return failedState(state) || state == whence.TableLive && p.LSN >= goal
			})
			if state, message := s.sink.state(1); state != whence.TableLive {
				t.Fatalf("the table is %s: %s", state, message)
			}
			s.compare(again)
			s.exec(tt.after)
			s.settle()
			s.compare(again)
		})
	}
}

// What does not fit is left out up to the snapshot, and fails the table from there
// on, whatever the catalogue says.
func TestMisfitsFailFromTheSnapshotOn(t *testing.T) {
	const snapshot = 1000
	column := func(name string, key bool) relationColumn { return relationColumn{name: name, key: key, typeOID: 25} }
	two := tuple{textColumn("7"), textColumn("x")}
	for name, tt := range map[string]struct {
		columns []relationColumn
		op      Op
		row     tuple
		says    string
	}{
		"a column is missing":   {[]relationColumn{column("id", true), column("text", false)}, Insert, two, `the column "body"`},
		"the key is another":    {[]relationColumn{column("id", false), column("body", true)}, Delete, two, `the key column "id"`},
		"the key has no value":  {[]relationColumn{column("id", true), column("body", true)}, Insert, tuple{{kind: 'n'}, two[1]}, `no value in the key column "id"`},
		"the key had no value":  {[]relationColumn{column("id", true), column("body", true)}, Delete, tuple{{kind: 'n'}, two[1]}, `no value in the key column "id"`},
		"a table was truncated": {[]relationColumn{column("body", true)}, Truncate, nil, `the column "id"`},
	} {
		for _, state := range []whence.TableState{whence.TablePending, whence.TableBackfilling, whence.TableLive} {
			for at, fails := range map[whence.LSN]bool{snapshot - 1: false, snapshot: true} {
				t.Run(name+", "+string(state)+", "+at.String(), func(t *testing.T) {
					sink := newMemorySink(t, table(1, "notes", "id"))
					sink.tables[1].State, sink.tables[1].snapshot = state, snapshot
					a := captureOf(t, sink)
					a.begin = beginMessage{final: at}
					described := relationMessage{id: 1, schema: "public", name: "notes", columns: tt.columns}
					a.relations[1] = resolve(described, at, a.c.tables.Load(), nil)
					var err error
					if tt.op == Delete {
						err = a.row(t.Context(), 1, Delete, 'O', tt.row, nil)
					} else {
						err = a.row(t.Context(), 1, tt.op, 0, nil, tt.row)
					}
					if err != nil {
						t.Fatal(err)
					}
					now, message := sink.state(1)
					switch {
					case len(a.changes) != 0:
						t.Errorf("%+v was taken over", a.changes)
					case !fails && now != state:
						t.Errorf("the table is %s: %s", now, message)
					case fails && (now != whence.TableSchemaChanged || !strings.Contains(message, tt.says)):
						t.Errorf("the table is %s: %s; want that it says %s", now, message, tt.says)
					}
				})
			}
		}
	}
}

// A type that changed after the snapshot fails the table, also where the relation
// was described before it; one that changed earlier does not.
func TestRetypedFromTheSnapshotOn(t *testing.T) {
	const snapshot = 1000
	described := func(typ uint32) relationMessage {
		return relationMessage{id: 1, schema: "public", name: "notes", columns: []relationColumn{{name: "id", key: true, typeOID: 23}, {name: "body", typeOID: typ}}}
	}
	for used, fails := range map[whence.LSN]bool{snapshot - 1: false, snapshot: true} {
		sink := newMemorySink(t, table(1, "notes", "id"))
		sink.tables[1].State, sink.tables[1].snapshot = whence.TableLive, snapshot
		a := captureOf(t, sink)
		two := tuple{textColumn("7"), textColumn("x")}
		for _, step := range []struct {
			at  whence.LSN
			typ uint32 // described anew; 0: as before
		}{{snapshot - 2, 25}, {used, 0}, {snapshot + 1, 3802}} {
			a.begin = beginMessage{final: step.at}
			if step.typ != 0 {
				a.relations[1] = resolve(described(step.typ), step.at, a.c.tables.Load(), a.relations[1])
			}
			if err := a.row(t.Context(), 1, Insert, 0, nil, two); err != nil && !errors.Is(err, errAgain) {
				t.Fatal(err)
			}
		}
		if state, message := sink.state(1); failedState(state) != fails {
			t.Errorf("used at %s: the table is %s: %s", used, state, message)
		}
	}
}

// captureOf is an applier of what is in the sink, within a transaction.
func captureOf(t *testing.T, sink *memorySink) *applier {
	t.Helper()
	c, err := New(Config{Slot: "slot", Publication: "pub", Sink: sink})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.readTables(t.Context()); err != nil {
		t.Fatal(err)
	}
	a := newApplier(&session{c: c}, 0)
	a.inTx = true
	return a
}

// A row whose key has no value, which only the whole row identifies, fails its
// table and lets the others go on.
func TestKeyWithoutValue(t *testing.T) {
	notes, other := table(1, "notes", "id"), table(2, "other", "id")
	s := newSource(t, notesDDL+`; create table other (id int primary key, body text)`, notes, other)
	s.start()
	s.settle()
	s.exec(`alter table notes replica identity full; alter table notes drop constraint notes_pkey; alter table notes alter id drop not null;
		insert into notes values (null, 'nobody'); insert into other values (1, 'somebody')`)
	goal := s.flushed()
	s.eventually("the table has failed and the stream went on", func() bool {
		state, _ := s.sink.state(1)
		_, p := s.sink.now()
		return failedState(state) && p.LSN >= goal
	})
	s.exec(`update notes set body = 'still' where id is null; delete from notes; insert into other values (2, 'else')`)
	goal = s.flushed()
	s.eventually("the stream goes on", func() bool { _, p := s.sink.now(); return p.LSN >= goal })
	if _, message := s.sink.state(1); !strings.Contains(message, "PRIMARY KEY") {
		t.Errorf("the table says %q", message)
	}
	s.compare(other)
}

// A row spoils its table's shape only if the relation described right before it is a
// partition that the shape does not hold.
func TestLeavesTold(t *testing.T) {
	columns := []relationColumn{{name: "id", key: true, typeOID: 23}, {name: "body", typeOID: 25}}
	relation := func(id uint32, name string) message {
		return relationMessage{id: id, schema: "public", name: name, columns: columns}
	}
	row := func(id uint32) message { return insertMessage{id, tuple{textColumn("7"), textColumn("x")}} }
	const root, known, passed, other, nobody = 10, 11, 12, 20, 30
	for name, tt := range map[string]struct {
		told   []message
		at     whence.LSN
		spoils bool
	}{
		"one that it holds":             {told: []message{relation(root, "notes"), relation(known, "notes_1"), row(root)}},
		"one that it does not hold":     {told: []message{relation(root, "notes"), relation(passed, "notes_2"), row(root)}, spoils: true},
		"after another row":             {told: []message{relation(root, "notes"), relation(known, "notes_1"), row(root), relation(root, "notes"), relation(passed, "notes_2"), row(root)}, spoils: true},
		"before the snapshot":           {told: []message{relation(root, "notes"), relation(passed, "notes_2"), row(root)}, at: 99},
		"a table of its own":            {told: []message{relation(root, "notes"), relation(known, "notes_1"), row(root), relation(other, "other"), row(other), row(root)}},
		"a table that nobody asked for": {told: []message{relation(root, "notes"), relation(known, "notes_1"), row(root), relation(nobody, "nobody"), row(nobody), row(root)}},
		"tables that are truncated":     {told: []message{relation(root, "notes"), relation(other, "other"), truncateMessage{relations: []uint32{root, other}}, row(root)}},
	} {
		t.Run(name, func(t *testing.T) {
			notes, beside := table(1, "notes", "id"), table(2, "other", "id")
			notes.Snapshot, notes.Shape, beside.Shape = 100, `{"relation": 10, "named": "1", "leaves": {"11": "1 1"}}`, `{"relation": 20, "named": "1", "leaves": {"20": "1"}}`
			sink := newMemorySink(t, notes, beside)
			sink.tables[1].State, sink.tables[2].State = whence.TableLive, whence.TableLive
			a := captureOf(t, sink)
			a.begin.final = cmp.Or(tt.at, notes.Snapshot)
			var err error
			for _, m := range tt.told {
				if err = a.message(t.Context(), append(append([]byte{'w'}, make([]byte, 24)...), encode(m)...)); err != nil {
					break
				}
			}
			if spoilt := errors.Is(err, errAgain); spoilt != tt.spoils || err != nil && !spoilt {
				t.Errorf("%v, want that it is spoilt: %t", err, tt.spoils)
			}
			looks, err := parseShape(sink.tables[1].Shape)
			if _, is := looks.Leaves["12"]; err != nil || is != tt.spoils {
				t.Errorf("the shape is %s", sink.tables[1].Shape)
			}
		})
	}
}
