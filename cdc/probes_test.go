package cdc

import (
	"testing"
	"time"

	"github.com/whence-db/whence"
)

func TestProbes(t *testing.T) {
	start := time.Now()
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	var p probes
	expect := func(what string, applied whence.LSN, want time.Time, wantLag int64) {
		t.Helper()
		if got, gotLag := p.progress(applied); !got.Equal(want) || gotLag != wantLag {
			t.Errorf("%s: caught up to %v, lag %d; want %v, %d", what, got, gotLag, want, wantLag)
		}
	}
	expect("nothing asked yet", 500, time.Time{}, 0)
	p.add(100, at(1))
	expect("not there yet", 99, time.Time{}, 1)
	expect("just there", 100, at(1), 0)
	p.add(100, at(4))
	expect("the log did not move", 100, at(4), 0)
	p.add(200, at(6))
	p.add(300, at(7))
	expect("fell behind", 150, at(4), 150)
	expect("between two", 250, at(6), 50)
	expect("beyond the last", 1000, at(7), 0)
}

// Far behind, the list stays small and never claims more than was seen.
func TestProbesAreThinned(t *testing.T) {
	start := time.Now()
	var p probes
	const n = 100_000
	for i := range n {
		p.add(whence.LSN(i+1), start.Add(time.Duration(i)*time.Second))
	}
	if len(p.list) > maxProbes {
		t.Errorf("%d probes are kept", len(p.list))
	}
	for _, applied := range []whence.LSN{n / 4, n / 2, n - 1, n} {
		got, _ := p.progress(applied)
		truth := start.Add(time.Duration(applied-1) * time.Second)
		if got.After(truth) || applied >= n/2 && !got.IsZero() && got.Before(truth.Add(-n*time.Second/8)) {
			t.Errorf("applied %d: caught up to %v, in truth %v", applied, got, truth)
		}
	}
}
