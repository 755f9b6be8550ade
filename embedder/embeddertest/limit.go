package embeddertest

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"
)

// Limit is a rate limit: so many requests and tokens a window, refilled all the
// time. A text has a token for every four bytes, and one more.
type Limit struct {
	Requests, Tokens int // at least 1
	Window           time.Duration
	Silent           bool // no headers tell of it before a request is refused
}

// limiter is what is left of a Limit. Server.mu guards it.
type limiter struct {
	Limit
	requests, tokens float64
	at               time.Time
}

// SetLimit starts to keep l; the zero Limit ends it.
func (s *Server) SetLimit(l Limit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limiter = nil
	if l != (Limit{}) {
		s.limiter = &limiter{Limit: l, requests: float64(l.Requests), tokens: float64(l.Tokens), at: time.Now()}
	}
}

func tokens(texts ...string) (n int) {
	for _, text := range texts {
		n += len(text)/4 + 1
	}
	return n
}

// admit says whether a request is within the limit, and tells what is left.
func (s *Server) admit(w http.ResponseWriter, d dialect, n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.limiter
	if l == nil {
		return true
	}
	now := time.Now()
	windows := now.Sub(l.at).Seconds() / l.Window.Seconds()
	l.at = now
	l.requests = min(float64(l.Requests), l.requests+windows*float64(l.Requests))
	l.tokens = min(float64(l.Tokens), l.tokens+windows*float64(l.Tokens))
	admitted := l.requests >= 1 && l.tokens >= float64(n)
	if admitted {
		l.requests, l.tokens = l.requests-1, l.tokens-float64(n)
	} else {
		s.refused++
		part := max((1-l.requests)/float64(l.Requests), (float64(n)-l.tokens)/float64(l.Tokens))
		w.Header().Set("Retry-After-Ms", strconv.Itoa(int(math.Ceil(part*l.Window.Seconds()*1000))))
	}
	switch {
	case l.Silent:
	case d.trial && admitted:
		w.Header().Set("X-Trial-Endpoint-Call-Limit", strconv.Itoa(l.Requests))
		w.Header().Set("X-Trial-Endpoint-Call-Remaining", strconv.Itoa(int(l.requests)))
	case !d.trial:
		l.tell(w.Header(), "Requests", l.requests, l.Requests)
		l.tell(w.Header(), "Tokens", l.tokens, l.Tokens)
	}
	return admitted
}

func (l *limiter) tell(h http.Header, of string, left float64, most int) {
	h.Set("X-Ratelimit-Limit-"+of, strconv.Itoa(most))
	h.Set("X-Ratelimit-Remaining-"+of, strconv.Itoa(int(left)))
	reset := time.Duration((float64(most) - math.Floor(left)) / float64(most) * float64(l.Window))
	h.Set("X-Ratelimit-Reset-"+of, fmt.Sprint(reset.Round(time.Microsecond)))
}
