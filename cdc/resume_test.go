package cdc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The copying of a table is cut off in the middle. Before it goes on, rows that it
// has not read move into blocks that it has, values out of line and all; a new
// snapshot of the blocks that are left does not show them.
func TestBackfillGoesOn(t *testing.T) {
	const rows, batch, workers = 3000, 20, 3
	for name, between := range map[string][]string{
		"moved rows": {
			`delete from notes where id % 50 = 7`, `vacuum notes`,
			`update notes set n = 1 where id > 1500 and id % 5 = 0`,
			`update notes set id = id + 10000 where id > 1500 and id % 50 = 3`,
			`delete from notes where id > 1500 and id % 50 = 4`,
			`insert into notes select i, 'new', repeat('p', 300) from generate_series(20000, 20050) i`,
		},
		"rewritten": {`vacuum full notes`},
		"truncated": {`truncate notes`, `insert into notes values (1, 'one')`},
	} {
		t.Run(name, func(t *testing.T) {
			notes := table(1, "notes", "id")
			s := newSource(t, `create table notes (id int primary key, body text, pad text, n int default 0);
				alter table notes alter body set storage external, alter pad set storage plain`, notes)
			s.exec(`insert into notes select i, repeat(i::text, 800), repeat('p', 300) from generate_series(1, $1::int) i`, rows)
			s.cfg.BackfillBatch, s.cfg.Workers, s.cfg.RangeBlocks = batch, workers, 8
			var batches atomic.Int32
			enough := make(chan struct{})
			s.sink.setFault(func(step string) error {
				if step != "backfill-rows" {
					return nil
				}
				switch n := batches.Add(1); {
				case n == 40:
					close(enough)
				case n < 40:
					return nil
				}
				return errInjected
			})
			_, stop := s.start()
			<-enough
			if err := stop(); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			s.sink.setFault(nil)
			before := s.sink.copied(1)
			for _, statement := range between {
				s.exec(statement)
			}
			s.start()
			s.settle()
			s.compare(notes)
			again := s.sink.copied(1) - before
			if most := rows - before + 100 + workers*(batch+20); name == "moved rows" && again > most+rows/5 {
				t.Errorf("%d rows had been copied, and %d were afterwards; at most %d, and what moved, were due", before, again, most)
			}
		})
	}
}

func (s *memorySink) copied(id int32) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tables[id].rowsDone
}

// A value out of line that the stream did not repeat belongs to the row that was
// under the old key, not to the one that the snapshot shows under the new key.
func TestOwedValueOfAnotherKey(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, notesDDL+`; alter table notes alter body set storage external;
		insert into notes select i, repeat(i::text || ' ', 2000) from generate_series(1, 200) i`, notes)
	s.cfg.BackfillBatch, s.cfg.Workers = 10, 1
	var done atomic.Bool
	s.sink.setFault(func(step string) error {
		if step != "backfill-rows" || !done.CompareAndSwap(false, true) {
			return nil
		}
		s.exec(`delete from notes where id = 150; update notes set id = 150 where id = 160`)
		goal := s.flushed()
		s.eventually("the stream overtakes the copying", func() bool { _, p := s.sink.now(); return p.LSN >= goal })
		return nil
	})
	s.start()
	s.settle()
	s.compare(notes)
}

func TestLeft(t *testing.T) {
	a, b := Part{OID: 1, File: 10}, Part{OID: 2, File: 20}
	parts := []tablePart{{Part: a, blocks: 10}, {Part: b, blocks: 3}, {Part: Part{OID: 3, File: 30}}}
	for _, tt := range []struct {
		name string
		done []Blocks
		want []string
	}{
		{"nothing yet", nil, []string{"1 0-4", "1 4-8", "1 8-10", "2 0-3"}},
		{"some", []Blocks{{a, 6, 7}, {a, 0, 2}, {b, 1, 2}}, []string{"1 2-6", "1 7-10", "2 0-1", "2 2-3"}},
		{"all, and more than there is", []Blocks{{a, 0, 12}, {b, 0, 3}}, nil},
		{"overlapping", []Blocks{{a, 0, 5}, {a, 2, 9}}, []string{"1 9-10", "2 0-3"}},
		{"of another file", []Blocks{{Part{1, 11}, 0, 10}, {b, 0, 3}}, []string{"1 0-4", "1 4-8", "1 8-10"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, s := range left(parts, tt.done, 4) {
				got = append(got, fmt.Sprintf("%d %d-%d", s.OID, s.from, s.to))
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
	whole := []tablePart{{blocks: 1, whole: true}}
	if got := left(whole, []Blocks{{To: 1}}, 4); len(got) != 1 || !slices.Equal(got, []span{{tablePart: whole[0], to: 1}}) {
		t.Errorf("what cannot be read in ranges is read again: %v", got)
	}
}
