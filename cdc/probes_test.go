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
	expect := func(what string, applied whence.LSN, now float64, wantFor time.Duration, wantLag int64) {
		t.Helper()
		if gotFor, gotLag := p.progress(applied, at(now)); gotFor != wantFor || gotLag != wantLag {
			t.Errorf("%s: caught up for %v, lag %d; want %v, %d", what, gotFor, gotLag, wantFor, wantLag)
		}
	}
	expect("nothing asked yet", 500, 0, -1, 0)
	p.add(100, at(1))
	expect("not there yet", 99, 2, -1, 1)
	expect("just there", 100, 3, 2*time.Second, 0)
	p.add(100, at(4))
	expect("the log did not move", 100, 5, time.Second, 0)
	p.add(200, at(6))
	p.add(300, at(7))
	expect("fell behind", 150, 10, 6*time.Second, 150)
	expect("between two", 250, 10, 4*time.Second, 50)
	expect("beyond the last", 1000, 10, 3*time.Second, 0)
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
		now := start.Add(n * time.Second)
		got, _ := p.progress(applied, now)
		truth := now.Sub(start.Add(time.Duration(applied-1) * time.Second))
		if got != -1 && got < truth || applied >= n/2 && got > truth+n*time.Second/8 {
			t.Errorf("applied %d: caught up for %v, in truth %v", applied, got, truth)
		}
	}
}
