package ingest

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence/internal/pg"
)

// Meter is told what capture does in this process. Its methods are called by
// several goroutines at once and return at once.
type Meter interface {
	// Applied tells of a unit that is durable: changes of rows, the source
	// transactions they were of, and the time from its beginning to its commit.
	Applied(source string, changes, transactions int64, took time.Duration)
	// Streaming tells that a stream was opened; more than one means that an
	// earlier one ended.
	Streaming(source string)
	// Failed tells that an attempt to capture failed.
	Failed(source string)
	// Compared tells that a whole source, or a table of it, is compared anew.
	Compared(source string, whole bool)
}

type noMeter struct{}

func (noMeter) Applied(string, int64, int64, time.Duration) {}
func (noMeter) Streaming(string)                            {}
func (noMeter) Failed(string)                               {}
func (noMeter) Compared(string, bool)                       {}

// The rate of changes is told from two earlier readings in the checkpoint's row,
// both durable with what they count: the mark is 0 to 10 seconds old and the one
// before it 10 to 20, and older only while nothing is written.
const countApplied = `applied = applied + @changes::bigint,
    prior_applied = case when mark_at < clock_timestamp() - interval '10 s' then mark_applied else prior_applied end,
    prior_at = case when mark_at < clock_timestamp() - interval '10 s' then mark_at else prior_at end,
    mark_applied = case when mark_at < clock_timestamp() - interval '10 s' then applied + @changes::bigint else mark_applied end,
    mark_at = case when mark_at < clock_timestamp() - interval '10 s' then clock_timestamp() else mark_at end`

// applyRate is null in the first second, when it would say nothing.
const applyRate = `
    case when c.prior_at < clock_timestamp() - interval '1 s'
        then (c.applied - c.prior_applied) / extract(epoch from clock_timestamp() - c.prior_at) end::float8`

// Survey is what may be told of every source and table without counting rows.
type Survey struct {
	Sources  []Source
	Tables   []TableInfo     // Status without what is counted
	SetAside map[int32]int64 // rows by table, up to SurveyLimit over all
	Pending  map[int32]int64 // texts without a vector by table, up to SurveyLimit over all
}

// SurveyLimit is how far a survey counts.
const SurveyLimit = 10_000

const surveyAside = `
select table_id, count(*) from (select table_id from whence.set_aside limit @limit) a group by table_id`

// Survey reads it in one snapshot, in a few milliseconds however much is stored.
func (r *Registry) Survey(ctx context.Context) (s Survey, err error) {
	err = pg.Snapshot(ctx, r.pool, func(tx pgx.Tx) error {
		if s.Sources, err = readSources(ctx, tx, ""); err != nil {
			return err
		}
		if s.Tables, err = readTables(ctx, tx, ""); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, surveyAside, pgx.NamedArgs{"limit": SurveyLimit})
		if err != nil {
			return err
		}
		s.SetAside = map[int32]int64{}
		var table int32
		var n int64
		if _, err := pgx.ForEachRow(rows, []any{&table, &n}, func() error { s.SetAside[table] = n; return nil }); err != nil {
			return err
		}
		s.Pending, err = r.index.Pending(ctx, tx, SurveyLimit)
		return err
	})
	if err != nil {
		return Survey{}, fmt.Errorf("survey: %w", err)
	}
	return s, nil
}
