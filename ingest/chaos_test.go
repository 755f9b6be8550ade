package ingest

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/seal"
)

// Environment of the long form: how many schedules, how many at a time, and one
// seed to try again.
const (
	chaosCount = "WHENCE_CHAOS"
	chaosLanes = "WHENCE_CHAOS_LANES"
	chaosSeed  = "WHENCE_CHAOS_SEED"
)

// Writers change a source in every way, while the processes that capture it are
// killed and frozen, servers crash, networks fail and the owner alters what is
// captured. Once Whence says that it has caught up, the index is the source, row
// by row. What a schedule does follows from its seed, which is its name.
func TestChaosSchedules(t *testing.T) {
	t.Parallel()
	seeds := make([]uint64, 3)
	if testing.Short() {
		seeds = seeds[:1]
	}
	if n, err := strconv.Atoi(os.Getenv(chaosCount)); err == nil {
		seeds = make([]uint64, n)
	}
	for i := range seeds {
		seeds[i] = uint64(rand.Uint32())
	}
	if seed, err := strconv.ParseUint(os.Getenv(chaosSeed), 10, 64); err == nil {
		seeds = []uint64{seed}
	}
	lanes := 1
	if n, err := strconv.Atoi(os.Getenv(chaosLanes)); err == nil && n > 0 {
		lanes = n
	}
	next := make(chan uint64, len(seeds))
	for _, seed := range seeds {
		next <- seed
	}
	close(next)
	for n := range lanes {
		t.Run(fmt.Sprint("lane", n), func(t *testing.T) {
			t.Parallel()
			l := newLane(t)
			for seed := range next {
				if !t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { runChaos(t, l, seed) }) {
					t.Logf("try again with %s=%d", chaosSeed, seed)
				}
			}
		})
	}
}

// chaos is one schedule. Its goroutine alone uses it.
type chaos struct {
	t      *testing.T
	lane   *lane
	random *rand.Rand

	sourceDSN, memoryDSN string // direct
	cfg                  childConfig
	r                    *Registry // the operator's, direct
	slot                 string    // and publication
	children             []*child
	all                  []*child
	tables               []*chaosTable
	registered           map[*chaosTable]bool
	mayFail              map[*chaosTable]bool
	writing              bool
	began                time.Time
	journal              []string
}

func runChaos(t *testing.T, l *lane, seed uint64) {
	t.Helper()
	s := newChaos(t, l, seed)
	defer s.tell()
	s.populate()
	s.createSource()
	for _, table := range s.tables {
		s.register(table, false)
	}
	s.spawn()
	if s.random.IntN(2) == 0 { // else the first copy is disturbed too
		s.settle()
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var g errgroup.Group
	writers := make([]*chaosWriter, 2+s.random.IntN(2))
	for i := range writers {
		writers[i] = &chaosWriter{name: fmt.Sprint("w", i), random: rand.New(rand.NewPCG(seed, uint64(i+1))), dsn: s.sourceDSN, tables: s.tables}
		g.Go(func() error { return writers[i].run(ctx) })
	}
	watch := s.watch(ctx, &g)
	s.writing = true
	s.wait(400)
	for range 3 + s.random.IntN(6) {
		e := s.draw()
		s.note("%s", e.name)
		e.run(s)
		s.wait(250)
	}
	stop()
	err := g.Wait()
	s.writing = false
	if err != nil {
		t.Fatal(err)
	}
	committed, lost := 0, 0
	for _, w := range writers {
		committed, lost = committed+w.done, lost+w.lost
	}
	s.note("%d transactions committed, %d lost; %d fresh readings", committed, lost, watch.fresh)
	s.finish()
	if committed < 5 {
		t.Errorf("only %d transactions committed", committed)
	}
}

func newChaos(t *testing.T, l *lane, seed uint64) *chaos {
	t.Helper()
	name := l.databases(t)
	s := &chaos{t: t, lane: l, random: rand.New(rand.NewPCG(seed, 0)), sourceDSN: l.source.DSN(name), memoryDSN: l.memory.DSN(name),
		registered: map[*chaosTable]bool{}, mayFail: map[*chaosTable]bool{}, began: time.Now()}
	s.cfg = childConfig{Memory: through(l.toMemory, s.memoryDSN), Key: seal.NewKey(), Embed: s.random.IntN(4) > 0, Pace: quickly}
	if s.random.IntN(6) == 0 {
		s.cfg.Pace = pace{}
	}
	pool, err := pg.NewPool(t.Context(), s.memoryDSN, 4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	x, err := index.New(index.Config{Pool: pool})
	if err != nil {
		t.Fatal(err)
	}
	key, err := seal.ParseKey(s.cfg.Key)
	if err != nil {
		t.Fatal(err)
	}
	if s.r, err = NewRegistry(Config{Pool: pool, Index: x, Seal: key, Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `insert into whence.spaces (model, dimensions, current) values ($1, $2, true)`, lexicalName, lexicalDimensions); err != nil {
		t.Fatal(err)
	}
	every := chaosTables()
	s.random.Shuffle(len(every), func(i, j int) { every[i], every[j] = every[j], every[i] })
	s.tables = every[:2+s.random.IntN(3)]
	return s
}

// note keeps what happened, for whoever reads a failure.
func (s *chaos) note(format string, args ...any) {
	s.journal = append(s.journal, fmt.Sprintf("%6.2fs %s", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...)))
}

func (s *chaos) tell() {
	if s.t.Failed() || testing.Verbose() {
		s.t.Logf("what happened:\n%s", strings.Join(s.journal, "\n"))
	}
	if !s.t.Failed() && os.Getenv(chaosSeed) == "" {
		return
	}
	for i, c := range s.all {
		lines := strings.Split(strings.TrimSpace(c.log.String()), "\n")
		s.t.Logf("child %d wrote:\n%s", i, strings.Join(lines[max(0, len(lines)-60):], "\n"))
	}
}

// populate makes the tables and their first rows.
func (s *chaos) populate() {
	conn := connectTo(s.t, s.sourceDSN)
	exec := func(sql string, args ...any) {
		if _, err := conn.Exec(s.t.Context(), sql, args...); err != nil {
			s.t.Fatalf("%s: %v", sql, err)
		}
	}
	exec(`create sequence revs`)
	for _, t := range s.tables {
		for _, sql := range t.create {
			exec(sql)
		}
		w := &chaosWriter{random: rand.New(rand.NewPCG(s.random.Uint64(), 0)), tables: []*chaosTable{t}}
		err := pgx.BeginFunc(s.t.Context(), conn, func(tx pgx.Tx) error {
			// These keep copies busy before they come to what is written to.
			b := &pgx.Batch{}
			queueRows(b, t, 10_000, s.random.IntN(1200), "always there ")
			if err := tx.SendBatch(s.t.Context(), b).Close(); err != nil {
				return err
			}
			for range 40 + s.random.IntN(60) {
				if err := w.change(s.t.Context(), tx, false); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *chaos) createSource() {
	s.persist("create the source", func(ctx context.Context) error {
		_, err := s.r.CreateSource(ctx, "app", through(s.lane.toSource, s.sourceDSN), "")
		if isReason(err, "SOURCE_EXISTS") {
			err = nil
		}
		if err != nil {
			return err
		}
		source, err := s.r.GetSource(ctx, "app")
		s.slot = source.Slot
		return err
	})
}

// register registers a table, perhaps otherwise than before.
func (s *chaos) register(t *chaosTable, otherwise bool) {
	spec := t.specs[0]
	if otherwise {
		spec = t.specs[s.random.IntN(len(t.specs))]
	}
	if t.purge {
		spec.OnDelete = whence.OnDeletePurge
	}
	spec.FreshnessTarget = time.Second
	if s.random.IntN(4) == 0 {
		spec.FreshnessTarget = 2 * time.Second
	}
	s.persist("register "+t.name, func(ctx context.Context) error {
		_, err := s.r.RegisterTable(ctx, spec)
		return err
	})
	s.registered[t] = true
}

// persist does what an operator would do again after an outage.
func (s *chaos) persist(what string, fn func(ctx context.Context) error) {
	deadline := time.Now().Add(waitLimit)
	for {
		err := fn(s.t.Context())
		if err == nil {
			s.note("  %s", what)
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (s *chaos) spawn() {
	c := spawn(s.t, s.cfg)
	s.children, s.all = append(s.children, c), append(s.all, c)
}

// mend brings back what an alteration may have left half done.
func (s *chaos) mend(t *chaosTable) {
	for _, sql := range t.mend {
		_ = s.admin(s.sourceDSN, sql) // most of it is not needed
	}
}

func (s *chaos) mayFailAll() {
	for _, t := range s.tables {
		s.mayFail[t] = true
	}
}

func tableName(t *chaosTable) whence.TableName { return whence.TableName("app." + t.name) }
