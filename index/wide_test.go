package index

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
)

// The sample decides where it is clear, and only in doubt are chunks counted.
func TestWideByTheSampleOrByCounting(t *testing.T) {
	b := newPutBench(t, whence.OnDeleteTombstone)
	within := bounds{tables: []int32{b.table.ID}}
	ask := func(drawn int64, want bool) {
		t.Helper()
		err := pg.Snapshot(t.Context(), b.db.Pool, func(tx pgx.Tx) error {
			args := within.args(pgx.NamedArgs{"most": exactMost + 1})
			got, err := wide(t.Context(), tx, drawn, args)
			if got != want {
				t.Errorf("wide with %d of the sample: %t", drawn, got)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	const most = exactMost / sampleEvery
	ask(0, false)
	ask(3*most, true) // though nothing is there to be counted
	ask(most, false)
	ask(2*most, false)
	b.exec(`insert into whence.chunks (record_id, table_id, version, ordinal, span_start, span_end, text, digest)
select i, $1, 1, 0, 0, 1, 't', sha256('t') from generate_series(1, $2::int) i`, b.table.ID, exactMost)
	ask(most, false)
	b.exec(`insert into whence.chunks (record_id, table_id, version, ordinal, span_start, span_end, text, digest)
values (0, $1, 1, 0, 0, 1, 't', sha256('t'))`, b.table.ID)
	ask(most, true)
	ask(most/2, true)
	ask(most/3, false) // though it would be
}
