package remote

import (
	"math"
	"net/http"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// simulated is a server's limit in virtual time.
type simulated struct {
	limit, left float64
	window      time.Duration
	at          time.Time
}

// use takes n, and returns what its headers then say.
func (s *simulated) use(now time.Time, n float64) (Quota, bool) {
	s.left = min(s.limit, s.left+s.limit*now.Sub(s.at).Seconds()/s.window.Seconds())
	s.at = now
	if s.left < n {
		return Quota{}, false
	}
	s.left -= n
	left := math.Floor(s.left)
	return Quota{Limit: s.limit, Remaining: left, Steady: true,
		Reset: time.Duration((s.limit - left) / s.limit * float64(s.window))}, true
}

// However requests overlap and overtake one another, none is more than what the
// server has left, and none waits for longer than the server's window.
func TestPaceNeverOversteps(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1e9, 0)
		server := &simulated{limit: rapid.Float64Range(10, 100).Draw(t, "limit"), at: now,
			window: time.Duration(rapid.IntRange(1, 60).Draw(t, "window")) * time.Second}
		server.left = server.limit
		var p pace
		type request struct {
			ticket
			told    []Quota
			arrived bool
		}
		var flying []*request
		first := true
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 100).Draw(t, "later")) * time.Millisecond)
			switch i := rapid.IntRange(-2, len(flying)-1).Draw(t, "what"); {
			case i < 0:
				if len(flying) >= 4 || first && len(flying) > 0 {
					continue // the first one tells of the limit
				}
				took, wait := p.take(now, 0, rapid.Bool().Draw(t, "documents"))
				if wait > server.window+time.Second {
					t.Fatalf("a wait of %v in a window of %v", wait, server.window)
				}
				if wait == 0 {
					flying = append(flying, &request{ticket: took})
				}
			case !flying[i].arrived:
				q, ok := server.use(now, 1)
				if !ok {
					t.Fatalf("a request too many: %v left", server.left)
				}
				flying[i].told, flying[i].arrived = []Quota{q}, true
			default:
				p.settle(flying[i].ticket, now, flying[i].told)
				flying = append(flying[:i], flying[i+1:]...)
				first = false
			}
		}
	})
}

// A request larger than the limit goes out when the limit is full, and is not
// held back for ever.
func TestPaceLetsLargeRequestsThrough(t *testing.T) {
	t.Parallel()
	var p pace
	now := time.Unix(1e9, 0)
	tk, _ := p.take(now, 10, true)
	p.settle(tk, now, []Quota{{Tokens: true, Limit: 100, Remaining: 90, Reset: 6 * time.Second, Steady: true}})
	_, wait := p.take(now, 500, true)
	if wait <= 0 || wait > 6*time.Second {
		t.Fatalf("waits %v, want until it is full", wait)
	}
	if _, wait = p.take(now.Add(wait), 500, true); wait != 0 {
		t.Errorf("waits %v more", wait)
	}
}

func TestQuotaHeaders(t *testing.T) {
	t.Parallel()
	type pair struct{ remaining, reset string }
	for p, want := range map[pair]time.Duration{
		{"7", "6m0s"}: 6 * time.Minute, {"7", "12ms"}: 12 * time.Millisecond, {"7", "1.5"}: 1500 * time.Millisecond,
		{"0", "0"}: 0, {"7", "9999h"}: time.Hour, {"7", "86400"}: time.Hour, {"7", "1772366400"}: -1, {"7", "1e300"}: -1, {"7", "-3s"}: 0,
		{"-1", "0"}: -1, {"", "1s"}: -1, {"7", ""}: -1, {"x", "1s"}: -1, {"NaN", "1s"}: -1, {"Inf", "1s"}: -1, {"1e300", "1s"}: -1, {"7", "NaN"}: -1, {"7", "soon"}: -1, {"7", "-1"}: -1,
	} {
		h := http.Header{}
		h.Set("x-ratelimit-remaining-tokens", p.remaining)
		h.Set("x-ratelimit-reset-tokens", p.reset)
		h.Set("x-ratelimit-limit-tokens", "100")
		told := Quotas(h)
		switch {
		case want < 0 && len(told) > 0:
			t.Errorf("%v: %+v", p, told)
		case want >= 0 && (len(told) != 1 || told[0].Reset != want || !told[0].Tokens || told[0].Limit != 100):
			t.Errorf("%v: %+v, want a reset of %v", p, told, want)
		}
	}
}

// Whatever headers say, nothing waits for longer than an hour, or panics.
func FuzzQuotas(f *testing.F) {
	f.Add("100", "7", "6m0s", "Inf", "0", "1e-300")
	f.Add("-1", "NaN", "0", "1e308", "1e308", "1")
	f.Fuzz(func(t *testing.T, limit1, left1, reset1, limit2, left2, reset2 string) {
		var p pace
		now := time.Unix(1e9, 0)
		for _, v := range [][3]string{{limit1, left1, reset1}, {limit2, left2, reset2}, {limit1, left2, reset1}} {
			tk, wait := p.take(now, 1000, true)
			if wait < 0 || wait > time.Hour+time.Minute {
				t.Fatalf("a wait of %v", wait)
			}
			if wait > 0 {
				now = now.Add(wait)
				continue
			}
			h := http.Header{}
			for _, of := range []string{"Requests", "Tokens"} {
				h.Set("X-Ratelimit-Limit-"+of, v[0])
				h.Set("X-Ratelimit-Remaining-"+of, v[1])
				h.Set("X-Ratelimit-Reset-"+of, v[2])
			}
			p.settle(tk, now, Quotas(h))
		}
	})
}
