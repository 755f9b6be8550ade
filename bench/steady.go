package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	whencev1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// steadyResult is how long after its commit a change was somewhere, while
// others went on at a steady rate. Milliseconds.
type steadyResult struct {
	Rate        int     `json:"wanted_changes_per_second"`
	Achieved    float64 `json:"changes_per_second"` // that the source committed
	Transaction int     `json:"changes_a_transaction"`
	Seconds     float64 `json:"seconds"`
	Behind      int     `json:"changes_behind_at_the_end"` // committed and not applied when the last was committed

	Applied  spread  `json:"applied_ms"`  // the record's head is the new row: what was is known to be stale
	Embedded spread  `json:"embedded_ms"` // and its text has a vector
	Found    spread  `json:"found_ms"`    // by its word, through the API, the query included
	Look     float64 `json:"look_ms"`     // between two looks, median: how finely the first two are known
}

// spread is a distribution of delays.
type spread struct {
	Count  int     `json:"count"`
	Beyond int     `json:"not_seen"` // in time: within steadyLimit of the last commit, or visibleLimit of its own
	P50    float64 `json:"p50"`
	P95    float64 `json:"p95"`
	P99    float64 `json:"p99"`
	Max    float64 `json:"max"`
}

func spreadOf(took []time.Duration, beyond int) spread {
	slices.Sort(took)
	return spread{len(took), beyond, milliseconds(percentile(took, 0.5)), milliseconds(percentile(took, 0.95)), milliseconds(percentile(took, 0.99)), milliseconds(percentile(took, 1))}
}

const (
	steadyRows  = 20_000
	steadyTable = "steady"
	steadyLimit = 60 * time.Second
	steadyLook  = 5 * time.Millisecond
	steadyMost  = 200 // transactions asked for at one look, the oldest

	steadySQL = `
create table steady (id bigint primary key, title text not null, body text not null, author text not null,
    section text not null, views int not null, published_at timestamptz not null)`
	steadyFill = `
insert into steady select g, 'steady0x row ' || g, @body, 'author-' || g % 400, 'harbour', 0, '2026-01-01 00:00:00+00'
from generate_series(1, @rows::int) g`
	steadyUpdate = `update steady set title = 'steady' || @seq::int || 'x row ' || id, views = @seq::int where id between @first::bigint and @last::bigint`

	// A row that was updated again meanwhile counts as well: then the look was late.
	steadyLookSQL = `
select n.seq, exists (
    select from whence.chunks c join whence.vectors v on v.digest = c.digest and v.space_id = (select id from whence.spaces where current)
    where c.record_id = r.id and c.version = r.version and v.embedding is not null)
from unnest(@seqs::int[], @keys::text[]) as n(seq, key)
join whence.records r on r.table_id = @table and r.key = n.key
where (r.attributes ->> 'views')::int >= n.seq`
)

// mark is one transaction at the steady rate, by its first row.
type mark struct {
	seq       int
	key       whence.Key
	committed time.Time
	applied   bool
}

// measureSteady updates rows at a steady rate, each transaction other ones, and
// looks for the first of each in the memory database.
func measureSteady(ctx context.Context, s *server, c config) (r steadyResult, err error) {
	source, err := pgx.Connect(ctx, s.env["WHENCE_SOURCE_URL"])
	if err != nil {
		return r, err
	}
	defer closeConn(ctx, source)
	memory, err := pgx.Connect(ctx, s.env["WHENCE_DATABASE_URL"])
	if err != nil {
		return r, err
	}
	defer closeConn(ctx, memory)
	if err := prepareSteady(ctx, s, source, memory); err != nil {
		return r, err
	}
	var table int32
	if err := memory.QueryRow(ctx, `select id from whence.tables where relation = @relation`, pgx.NamedArgs{"relation": steadyTable}).Scan(&table); err != nil {
		return r, err
	}

	marks := make(chan mark, 1<<16)
	latest := make(chan int, 1) // the newest transaction, for whoever asks next
	l := looker{conn: memory, table: table}
	var found []time.Duration
	var unfound int
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(marks)
		defer close(latest)
		return updateSteadily(gctx, source, c, marks, latest, &r)
	})
	g.Go(func() error { return l.run(gctx, marks) })
	g.Go(func() (err error) { found, unfound, err = findSteadily(gctx, s, latest); return err })
	if err := g.Wait(); err != nil {
		return r, err
	}
	r.Applied, r.Embedded = spreadOf(l.applied, l.unapplied()), spreadOf(l.embedded, len(l.open))
	r.Found = spreadOf(found, unfound)
	r.Behind = l.behind * c.transaction
	slices.Sort(l.between)
	r.Look = milliseconds(percentile(l.between, 0.5))
	return r, nil
}

// prepareSteady fills the table and waits until all of it is embedded.
func prepareSteady(ctx context.Context, s *server, source, memory *pgx.Conn) error {
	if _, err := source.Exec(ctx, steadySQL); err != nil {
		return err
	}
	body := writeArticlesOf(7, 1, 20, 40)[0].body
	if _, err := source.Exec(ctx, steadyFill, pgx.NamedArgs{"rows": steadyRows, "body": body}); err != nil {
		return err
	}
	_, err := s.sources.RegisterTable(ctx, &whencev1.RegisterTableRequest{Source: "app", Table: "public." + steadyTable,
		TextColumns: []string{"title", "body"}, SubjectColumn: "author", TimeColumn: "published_at", AttributeColumns: []string{"section", "views"}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, backfillLimit)
	defer cancel()
	if err := poll(ctx, memory, `select coalesce((select whole from (`+stateSQL+`) as x (state, whole)), false)`, pgx.NamedArgs{"relation": steadyTable}); err != nil {
		return err
	}
	_, err = memory.Exec(ctx, "vacuum analyze")
	return err
}

// updateSteadily commits transactions in step with the clock; when it is late it
// does not wait, but neither does it leave any out.
func updateSteadily(ctx context.Context, source *pgx.Conn, c config, marks chan<- mark, latest chan int, r *steadyResult) error {
	each := time.Duration(float64(time.Second) * float64(c.transaction) / float64(c.rate))
	begun := time.Now()
	seq := 0
	for ; time.Since(begun) < c.steady; seq++ {
		if err := pause(ctx, time.Until(begun.Add(time.Duration(seq)*each))); err != nil {
			return err
		}
		first := int64(seq*c.transaction%(steadyRows-steadyRows%c.transaction)) + 1
		args := pgx.NamedArgs{"seq": seq + 1, "first": first, "last": first + int64(c.transaction) - 1}
		if _, err := source.Exec(ctx, steadyUpdate, args); err != nil {
			return err
		}
		id := fmt.Sprint(first)
		key, err := whence.NewKey([]string{"id"}, whence.Values{"id": &id})
		if err != nil {
			return err
		}
		select {
		case marks <- mark{seq: seq + 1, key: key, committed: time.Now()}:
		case <-ctx.Done():
			return ctx.Err()
		}
		select { // only the newest is kept
		case <-latest:
		default:
		}
		latest <- seq + 1
	}
	took := time.Since(begun).Seconds()
	*r = steadyResult{Rate: c.rate, Transaction: c.transaction, Seconds: took, Achieved: float64(seq*c.transaction) / took}
	return nil
}

// looker looks for marks until all have been seen embedded.
type looker struct {
	conn  *pgx.Conn
	table int32

	open              []mark
	applied, embedded []time.Duration
	between           []time.Duration
	behind            int // transactions not applied when the last was committed
}

func (l *looker) unapplied() (n int) {
	for _, m := range l.open {
		if !m.applied {
			n++
		}
	}
	return n
}

func (l *looker) run(ctx context.Context, marks <-chan mark) error {
	var deadline time.Time // zero: more may come
	for last := time.Now(); ; {
		for more := true; more && deadline.IsZero(); {
			select {
			case m, ok := <-marks:
				if ok {
					l.open = append(l.open, m)
				} else {
					deadline, l.behind = time.Now().Add(steadyLimit), l.unapplied()
				}
			default:
				more = false
			}
		}
		if !deadline.IsZero() && (len(l.open) == 0 || time.Now().After(deadline)) {
			return nil
		}
		if err := l.look(ctx); err != nil {
			return err
		}
		if err := pause(ctx, steadyLook); err != nil {
			return err
		}
		l.between = append(l.between, time.Since(last))
		last = time.Now()
	}
}

// look asks for the oldest marks that are not applied and the oldest that are
// not embedded.
func (l *looker) look(ctx context.Context) error {
	var seqs []int32
	var keys []string
	waiting, asked := 0, 0
	for _, m := range l.open {
		if !m.applied {
			waiting++
		}
		if asked < steadyMost || !m.applied && waiting <= steadyMost {
			asked++
			seqs, keys = append(seqs, int32(m.seq)), append(keys, string(m.key))
		}
	}
	if len(seqs) == 0 {
		return nil
	}
	rows, err := l.conn.Query(ctx, steadyLookSQL, pgx.NamedArgs{"seqs": seqs, "keys": keys, "table": l.table})
	if err != nil {
		return err
	}
	seen := map[int]bool{} // whether embedded too
	var seq int
	var whole bool
	if _, err := pgx.ForEachRow(rows, []any{&seq, &whole}, func() error { seen[seq] = whole; return nil }); err != nil {
		return err
	}
	l.saw(seen, time.Now())
	return nil
}

// saw takes over which marks are applied, and with true embedded too.
func (l *looker) saw(seen map[int]bool, now time.Time) {
	for i := range l.open {
		m := &l.open[i]
		if _, ok := seen[m.seq]; ok && !m.applied {
			m.applied = true
			l.applied = append(l.applied, now.Sub(m.committed))
		}
	}
	l.open = slices.DeleteFunc(l.open, func(m mark) bool {
		if seen[m.seq] {
			l.embedded = append(l.embedded, now.Sub(m.committed))
		}
		return seen[m.seq]
	})
}

// findSteadily asks for the newest transaction's word until it is found, and
// then for the newest one's by then. A word that is not found in time counts as
// such: its rows may have been updated again.
func findSteadily(ctx context.Context, s *server, latest <-chan int) (found []time.Duration, beyond int, err error) {
	for seq := range latest {
		word, start := fmt.Sprintf("steady%dx", seq), time.Now()
		seen, _, err := await(ctx, s, whence.NewTableName("app", "public", steadyTable), word, false)
		switch {
		case err == nil:
			found = append(found, seen)
		case ctx.Err() == nil && time.Since(start) > visibleLimit-time.Second: // the server may have given up first
			beyond++
		default:
			return nil, 0, err
		}
	}
	return found, beyond, nil
}
