package cdc

import (
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

// progress says how long ago the moment lies up to which a stream that is
// applied up to applied is complete (negative: not known), and how far the log
// went on beyond it.
func (p *probes) progress(applied whence.LSN, now time.Time) (caughtUpFor time.Duration, lagBytes int64) {
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
	if p.proven.IsZero() {
		return -1, lagBytes
	}
	return max(0, now.Sub(p.proven)), lagBytes
}
