package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence/cdc"
)

// RunnerConfig says what a runner works on.
type RunnerConfig struct {
	Registry *Registry
	Wake     func()        // told after each commit that texts may wait to be embedded; may be nil
	Meter    Meter         // told what is captured; may be nil
	Log      *slog.Logger  // default: discards
	Poll     time.Duration // between looks at the registry without an announcement; default 1 s
}

// Runner captures every source that no other process captures. When a process
// dies, its connections and with them its locks end, and another takes over.
type Runner struct {
	RunnerConfig

	pace      func(*cdc.Config) // changes how captures are paced; nil but in tests
	nextSweep time.Time         // supervise's alone
	written   chan struct{}     // buffered, one: new terms may wait to be merged

	mu       sync.Mutex // guards what follows
	captures map[int32]*capture
}

// capture is a source that this process captures, or waits to.
type capture struct {
	cancel   context.CancelFunc
	dropping bool   // the source is being removed instead
	poke     func() // nil until the capture runs
}

// NewRunner checks the configuration.
func NewRunner(c RunnerConfig) (*Runner, error) {
	if c.Registry == nil {
		return nil, errors.New("runner: a registry is needed")
	}
	if c.Wake == nil {
		c.Wake = func() {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Meter == nil {
		c.Meter = noMeter{}
	}
	if c.Poll <= 0 {
		c.Poll = time.Second
	}
	return &Runner{RunnerConfig: c, captures: map[int32]*capture{}, written: make(chan struct{}, 1)}, nil
}

// Run captures until ctx ends, and returns ctx's error once every capture has
// stopped. Trouble with one source, or with the memory database, is recorded or
// logged, and tried again.
func (r *Runner) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	changed := make(chan struct{}, 1)
	g.Go(func() error { return r.listen(ctx, changed) })
	g.Go(func() error { return r.supervise(ctx, g, changed) })
	g.Go(func() error { return r.tidy(ctx) })
	g.Go(func() error { return r.watchSlots(ctx) })
	g.Go(func() error { return r.prune(ctx) })
	g.Go(func() error { return r.changeLanguages(ctx) })
	return g.Wait()
}

// wrote is told after each commit of a sink's.
func (r *Runner) wrote() {
	r.Wake()
	select {
	case r.written <- struct{}{}:
	default:
	}
}

// tidy merges new terms into the text index while capture writes the next: else
// the commit whose terms are one too many would take that time.
func (r *Runner) tidy(ctx context.Context) error {
	const pause = 200 * time.Millisecond
	quiet := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.written:
		}
		if err := r.Registry.index.MergeTerms(ctx); err != nil && ctx.Err() == nil && !quiet {
			quiet = true // capture does it then, a little later
			r.Log.WarnContext(ctx, "cannot merge terms into the text index beside capture", "error", err)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// supervise keeps the running captures equal to the wanted ones.
func (r *Runner) supervise(ctx context.Context, g *errgroup.Group, changed <-chan struct{}) error {
	tick := time.NewTicker(r.Poll)
	defer tick.Stop()
	var t trouble
	for {
		if err := r.reconcile(ctx, g); t.is(ctx, err) {
			r.Log.WarnContext(ctx, "cannot look after the sources, trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-changed:
			r.pokeAll()
		}
	}
}

// trouble is what was logged last.
type trouble string

// is tells whether err is worth logging: not once ctx has ended, and not again while
// it stays the same.
func (t *trouble) is(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	now := trouble("")
	if err != nil {
		now = trouble(err.Error())
	}
	fresh := now != "" && now != *t
	*t = now
	return fresh
}

func (r *Runner) reconcile(ctx context.Context, g *errgroup.Group) error {
	sources, err := r.Registry.ListSources(ctx)
	if err != nil {
		return err
	}
	wanted := map[int32]bool{}
	for _, s := range sources {
		switch s.State {
		case SourceConnecting, SourceStreaming:
			wanted[s.ID] = true
			r.start(ctx, g, s, false)
		case SourceDeleting:
			if !r.capturing(s.ID) { // a capture of it is cancelled first
				wanted[s.ID] = true
				r.start(ctx, g, s, true)
			}
		case SourcePaused, SourceBroken:
		}
	}
	r.mu.Lock()
	for id, c := range r.captures {
		if !wanted[id] {
			c.cancel()
		}
	}
	r.mu.Unlock()
	if time.Now().Before(r.nextSweep) {
		return nil
	}
	r.nextSweep = time.Now().Add(time.Minute)
	return r.Registry.sweep(ctx)
}

// start captures or removes a source unless something runs for it already.
func (r *Runner) start(ctx context.Context, g *errgroup.Group, s Source, dropping bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.captures[s.ID] != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &capture{cancel: cancel, dropping: dropping}
	fn := r.capture
	if dropping {
		fn = r.drop
	}
	r.captures[s.ID] = c
	g.Go(func() error {
		defer cancel()
		fn(ctx, s, c)
		r.mu.Lock()
		delete(r.captures, s.ID)
		r.mu.Unlock()
		return nil
	})
}

func (r *Runner) capturing(id int32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.captures[id]
	return c != nil && !c.dropping
}

func (r *Runner) pokeAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.captures {
		if c.poke != nil {
			c.poke()
		}
	}
}

// drop finishes a deletion that its caller did not see through.
func (r *Runner) drop(ctx context.Context, s Source, _ *capture) {
	const pause = 5 * time.Second
	if sleep(ctx, pause) != nil { // whoever asked for it is at it
		return
	}
	left, err := r.Registry.dropSource(ctx, s, false)
	if err == nil {
		r.Log.InfoContext(ctx, "the source is deleted", "source", s.Name, "left", left)
		return
	}
	if !errors.Is(err, errCaptured) && ctx.Err() == nil {
		r.Log.WarnContext(ctx, "cannot delete the source, trying again", "source", s.Name, "error", err)
	}
}

// capture waits for the source's lock and then captures until ctx or the lock ends.
func (r *Runner) capture(ctx context.Context, s Source, c *capture) {
	// taken is how soon another's end is noticed.
	const taken = 300 * time.Millisecond
	pause := time.Second
	for ctx.Err() == nil {
		began := time.Now()
		err := r.captureOnce(ctx, s, c)
		var broken *cdc.BrokenError
		switch {
		case ctx.Err() != nil:
			return
		case errors.As(err, &broken):
			r.Log.ErrorContext(ctx, "capture is broken", "source", s.Name, "error", err)
			r.note(ctx, s, broken.Message, false, broken.Foreign)
			return
		case errors.Is(err, errCaptured):
			pause = time.Second
			if sleep(ctx, taken) != nil {
				return
			}
			continue
		case err != nil:
			r.Log.WarnContext(ctx, "capture failed, trying again", "source", s.Name, "in", pause, "error", err)
			r.note(ctx, s, err.Error(), true, false)
			s.Error = err.Error()
		}
		if time.Since(began) > time.Minute {
			pause = time.Second
		}
		if sleep(ctx, pause) != nil {
			return
		}
		pause = min(2*pause, 30*time.Second)
	}
}

// captureOnce captures as long as this process holds the source's lock.
func (r *Runner) captureOnce(ctx context.Context, s Source, c *capture) error {
	lock, err := lockSource(ctx, r.Registry.pool, s.ID)
	if err != nil {
		return err
	}
	if lock == nil {
		return errCaptured
	}
	defer closeConn(ctx, lock)
	dsn, err := r.Registry.dsn(s.Name, s.secrets)
	if err != nil {
		return err
	}
	sink := newSink(r.Registry, s, r.wrote)
	sink.meter = r.Meter
	failing := s.Error != "" // what the registry says; only Status, called in turn, changes it
	cfg := cdc.Config{
		ConnString: dsn, Slot: s.Slot, Publication: s.Publication, Sink: sink, Log: r.Log.With("source", s.Name),
		Health: r.healthNoter(ctx, s),
		Status: func(err error) {
			if err == nil {
				r.Meter.Streaming(s.Name)
			} else if ctx.Err() == nil {
				r.Meter.Failed(s.Name)
			}
			switch {
			case ctx.Err() != nil:
			case err != nil:
				failing = true
				r.note(ctx, s, err.Error(), true, false)
			case failing:
				failing = !r.note(ctx, s, "", false, false)
			}
		},
	}
	if r.pace != nil {
		r.pace(&cfg)
	}
	capture, err := cdc.New(cfg)
	if err != nil {
		return err
	}
	r.mu.Lock()
	c.poke = capture.Poke
	r.mu.Unlock()
	r.Log.InfoContext(ctx, "capture begins", "source", s.Name)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return capture.Run(gctx) })
	g.Go(func() error { return holdLock(gctx, lock) })
	err = g.Wait()
	r.mu.Lock()
	c.poke = nil
	r.mu.Unlock()
	return err
}

// holdLock watches the connection that the lock hangs on.
func holdLock(ctx context.Context, lock *pgx.Conn) error {
	const beat, limit = 2 * time.Second, 5 * time.Second
	for {
		waiting, cancel := context.WithTimeout(ctx, beat)
		_, err := lock.WaitForNotification(waiting) // returns at once when the connection breaks
		late := waiting.Err() != nil
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !late:
			return fmt.Errorf("the lock on the source was lost: %w", err)
		}
		asking, cancel := context.WithTimeout(ctx, limit)
		err = lock.Ping(asking)
		cancel()
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("the lock on the source was lost: %w", err)
		}
	}
}

// note writes why a source is in trouble, or that it is not; elsewhere is as in
// cdc.BrokenError. It tells whether it could.
func (r *Runner) note(ctx context.Context, s Source, message string, retrying, elsewhere bool) bool {
	_, err := r.Registry.pool.Exec(ctx, noteError, pgx.NamedArgs{"id": s.ID, "error": message, "retrying": retrying, "elsewhere": elsewhere})
	if err != nil && ctx.Err() == nil {
		r.Log.WarnContext(ctx, "cannot record the state of the source", "source", s.Name, "error", err)
	}
	return err == nil
}

// listen turns announcements into signals. Without it changes are still seen
// at the next poll.
func (r *Runner) listen(ctx context.Context, changed chan<- struct{}) error {
	for {
		err := r.listenOnce(ctx, changed)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.Log.DebugContext(ctx, "cannot listen for changes of the registry, trying again", "error", err)
		if err := sleep(ctx, r.Poll); err != nil {
			return err
		}
	}
}

func (r *Runner) listenOnce(ctx context.Context, changed chan<- struct{}) error {
	conn, err := pgx.ConnectConfig(ctx, r.Registry.pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	if _, err := conn.Exec(ctx, `listen `+channel); err != nil {
		return err
	}
	for {
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return err
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}
