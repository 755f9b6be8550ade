package index

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence/internal/pg"
)

// segment is a run of a space's vectors that has an approximate index (HNSW).
type segment struct{ low, high int64 } // low < seq <= high

func (s segment) size() int64 { return s.high - s.low }

const (
	// segmentLeast vectors are worth an index: comparing that many one by one takes
	// about as long as searching one segment more.
	segmentLeast = 10_000
	// segmentBusy vectors are indexed even while more are coming.
	segmentBusy = 50_000
	// segmentLock keeps two processes from building at once.
	segmentLock = 0x7768656e63650001
	// maximumIndexed is how many dimensions pgvector indexes.
	maximumIndexed = 4000
)

const selectSegments = `select low, high from whence.segments where space_id = @space order by low`

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func segments(ctx context.Context, q querier, space int16) ([]segment, error) {
	rows, err := q.Query(ctx, selectSegments, pgx.NamedArgs{"space": space})
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (s segment, err error) {
		err = row.Scan(&s.low, &s.high)
		return s, err
	})
}

// nextSegment says what to build, if anything, when the newest vector has the
// number last and had before when this was asked before: the vectors without an
// index, together with the newest segments that are not more than twice as large.
// So there are few segments, and each vector is indexed few times.
func nextSegment(have []segment, last, before int64) (next segment, replaced []segment, ok bool) {
	next.high = last
	if n := len(have); n > 0 {
		next.low = have[n-1].high
	}
	if fresh := next.size(); fresh < segmentLeast || last != before && fresh < max(segmentBusy, next.low/2) {
		return next, nil, false
	}
	for _, s := range slices.Backward(have) {
		if s.size() > 2*next.size() {
			break
		}
		next.low = s.low
		replaced = append(replaced, s)
	}
	return next, replaced, true
}

func (s segment) index(space Space) string {
	return fmt.Sprintf("vectors_%d_%d_%d", space.ID, s.low, s.high)
}

// distance is what a segment's index is over; the type has to say its dimensions.
func distance(space Space, column string) string {
	return fmt.Sprintf("(%s.embedding::halfvec(%d)) <=> @vector::halfvec(%[2]d)", column, space.Dimensions)
}

func (s segment) within(space Space) string {
	return fmt.Sprintf("space_id = %d and seq > %d and seq <= %d", space.ID, s.low, s.high)
}

// segmenter builds the segments of a space, one look at a time.
type segmenter struct {
	*Index
	space  Space
	before int64 // the newest vector's number at the last look
}

const (
	newestVector = `select coalesce(max(seq), 0) from whence.vectors where space_id = @space and seq is not null`
	// Of builds that were cut short, and of segments that were replaced; none that
	// somebody else made.
	strayIndexes = `
select c.relname::text from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am a on a.oid = c.relam
where i.indrelid = 'whence.vectors'::regclass and a.amname = 'hnsw' and c.relname ~ '^vectors_[0-9]+_[0-9]+_[0-9]+$'
  and c.relname not in (select format('vectors_%s_%s_%s', space_id, low, high) from whence.segments)`
	insertSegment  = `insert into whence.segments (space_id, low, high) values (@space, @low, @high)`
	deleteSegments = `delete from whence.segments where space_id = @space and low >= @low and high <= @high`
)

// look builds at most one segment, beside the writers. It does nothing while
// another process does.
func (g *segmenter) look(ctx context.Context) (built bool, err error) {
	if g.space.Dimensions > maximumIndexed {
		return false, nil
	}
	conn, err := g.pool.Acquire(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Release()
	var mine bool
	if err := conn.QueryRow(ctx, `select pg_try_advisory_lock(@lock)`, pgx.NamedArgs{"lock": int64(segmentLock)}).Scan(&mine); err != nil || !mine {
		return false, err
	}
	defer func() {
		// Nobody else gets a connection that still holds the lock.
		if _, unlocked := conn.Exec(context.WithoutCancel(ctx), `select pg_advisory_unlock(@lock)`, pgx.NamedArgs{"lock": int64(segmentLock)}); unlocked != nil {
			_ = conn.Conn().Close(context.WithoutCancel(ctx))
		}
	}()
	return g.build(ctx, conn)
}

func (g *segmenter) build(ctx context.Context, conn *pgxpool.Conn) (bool, error) {
	if err := dropStray(ctx, conn); err != nil {
		return false, err
	}
	have, err := segments(ctx, conn, g.space.ID)
	if err != nil {
		return false, err
	}
	var last int64
	if err := conn.QueryRow(ctx, newestVector, pgx.NamedArgs{"space": g.space.ID}).Scan(&last); err != nil {
		return false, err
	}
	next, replaced, ok := nextSegment(have, last, g.before)
	g.before = last
	if !ok {
		return false, nil
	}
	if err := g.create(ctx, conn, next); err != nil {
		return false, err
	}
	args := pgx.NamedArgs{"space": g.space.ID, "low": next.low, "high": next.high}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, deleteSegments, args); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, insertSegment, args)
		return err
	})
	if err != nil {
		return false, err
	}
	if len(replaced) > 0 {
		return true, dropStray(ctx, conn)
	}
	return true, nil
}

// create builds a segment's index. It fits in memory, which makes it several
// times faster, up to a gigabyte.
func (g *segmenter) create(ctx context.Context, conn *pgxpool.Conn, s segment) error {
	need := float64(s.size()) * float64(2*g.space.Dimensions+600) / (1 << 20)
	settings := fmt.Sprintf(`set maintenance_work_mem = '%dMB'`, int(math.Min(1024, 64+1.2*need)))
	if _, err := conn.Exec(ctx, settings); err != nil {
		return err
	}
	defer func() { _, _ = conn.Exec(context.WithoutCancel(ctx), `reset maintenance_work_mem`) }()
	_, err := conn.Exec(ctx, fmt.Sprintf(
		`create index concurrently %s on whence.vectors using hnsw ((embedding::halfvec(%d)) halfvec_cosine_ops) with (ef_construction = 128) where %s`,
		s.index(g.space), g.space.Dimensions, s.within(g.space)))
	return err
}

func dropStray(ctx context.Context, conn *pgxpool.Conn) error {
	rows, err := conn.Query(ctx, strayIndexes)
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, err := conn.Exec(ctx, `drop index concurrently if exists whence.`+pgx.Identifier{name}.Sanitize()); err != nil {
			return err
		}
	}
	return nil
}

// Segment gives the newest vectors of a space an approximate index, once there are
// enough of them and no more are coming, and tells whether it did. It is safe to
// call from several processes; [Filler.Run] does so now and then.
func (x *Index) Segment(ctx context.Context, space Space) (bool, error) {
	g := &segmenter{Index: x, space: space}
	var built bool
	for range 2 { // at the second look it is known whether more are coming
		var err error
		if built, err = g.look(ctx); err != nil {
			return false, fmt.Errorf("build a segment: %w", pg.Translate(err))
		}
		if built {
			break
		}
	}
	return built, nil
}
