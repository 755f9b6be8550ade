package cdc

import (
	"context"
	"sync"
	"time"

	"github.com/whence-db/whence"
)

// probes are positions of the source's log with the moments they were asked for.
// The zero value is ready; its methods may be called at any time.
type probes struct {
	mu     sync.Mutex
	list   []observed // ascending in both
	last   whence.LSN // newest position seen
	proven time.Time  // zero: none yet
}

type observed struct {
	lsn whence.LSN
	at  time.Time
}

// maxProbes bounds the list when capture is hours behind: it is thinned then,
// which only makes the first answers after it coarser.
const maxProbes = 4096

// add records that the log had been flushed up to lsn at some moment after at.
func (p *probes) add(lsn whence.LSN, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = max(p.last, lsn)
	if n := len(p.list); n > 0 && p.list[n-1].lsn == lsn {
		p.list[n-1].at = at
		return
	}
	if len(p.list) == maxProbes {
		kept := p.list[:0]
		for i := 1; i < maxProbes; i += 2 {
			kept = append(kept, p.list[i])
		}
		p.list = kept
	}
	p.list = append(p.list, observed{lsn, at})
}

// progress says up to which moment a stream that is applied up to applied is
// complete (zero: not known), and how far the log went on beyond it.
func (p *probes) progress(applied whence.LSN) (caughtUpAt time.Time, lagBytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for ; n < len(p.list) && p.list[n].lsn <= applied; n++ {
		p.proven = p.list[n].at
	}
	if n > 0 {
		n-- // the newest proven one stays: the next probe may find the log unmoved
	}
	p.list = p.list[n:]
	if p.last > applied {
		lagBytes = int64(p.last - applied)
	}
	return p.proven, lagBytes
}

// nudgeEvery bounds how often the source is written to.
const nudgeEvery = time.Second

// nudgeSQL writes a few bytes that carry no transaction, which has the log's
// writer complete what it had flushed in part.
const nudgeSQL = `select pg_logical_emit_message(false, 'whence', '')`

// probe remembers where the source's log ended and when. Once everything up to
// there is applied, everything committed up to then is, and the catalogue, which
// the stream does not tell of, was as it was when the rows were copied.
//
// The flushed log may end within a record of a transaction that is open and
// pauses. The server cannot send up to there, and a source where nothing else
// happens would look as if capture lagged; so after a while it is nudged.
func (s *session) probe(ctx context.Context) error {
	tick := time.NewTicker(s.c.cfg.Probe)
	defer tick.Stop()
	var before, heardBefore whence.LSN
	nudged := s.c.cfg.Now()
	for {
		at := s.c.cfg.Now()
		flushed, _, err := position(ctx, s.asker)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
		whole, err := s.c.publishing(ctx, s.asker)
		if err != nil {
			return err
		}
		if !whole {
			return errAgain // a new session finds what is missing
		}
		same, err := s.c.unchanged(ctx, s.asker)
		if err != nil {
			return err
		}
		if same {
			s.probes.add(flushed, at)
		} else {
			s.c.Poke() // nothing is proven before it is known what that means
		}
		heard := whence.LSN(s.heard.Load())
		if flushed == before && heard == heardBefore && heard < flushed && at.Sub(nudged) >= nudgeEvery {
			if err := s.nudge(ctx); err != nil {
				return err
			}
			nudged = at
		}
		before, heardBefore = flushed, heard
		signal(s.ask)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// nudge is a courtesy: a source that forbids it is only shown as lagging more
// often than it does.
func (s *session) nudge(ctx context.Context) error {
	_, err := s.asker.Exec(ctx, nudgeSQL)
	if _, refused := permanent(err); refused {
		return nil
	}
	return err
}
