package federation

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/whence-db/whence"
)

const (
	// keysAge is how old keys may be before they are fetched again.
	keysAge = 5 * time.Minute
	// keysLast is how long keys serve that cannot be fetched again.
	keysLast = time.Hour
	// fetchPause is the least time between two fetches, however many unknown key
	// ids arrive: strangers' tokens must not become a flood at the issuer.
	fetchPause = 10 * time.Second
)

// keySet holds the keys of one issuer. Whoever needs newer ones fetches them, one
// caller at a time; callers that can do with those at hand do not wait for it.
type keySet struct {
	client *http.Client
	clock  func() time.Time
	log    *slog.Logger
	issuer Issuer

	turn chan struct{} // holds one element while a caller fetches

	mu      sync.Mutex
	held    []key     // guarded by mu; replaced whole
	fetched time.Time // guarded by mu; when held was last what the issuer published
	tried   time.Time // guarded by mu; when the last fetch ended
	failure error     // guarded by mu; how it failed
}

// find returns the keys that pick chooses of the set. None means that the issuer
// has no such key; that it cannot be known is an ErrUnavailable.
func (s *keySet) find(ctx context.Context, pick func([]key) []key) ([]key, error) {
	keys, due, err := s.look(pick)
	if !due {
		return keys, err
	}
	if len(keys) > 0 {
		select {
		case s.turn <- struct{}{}:
		default: // another caller is at it
			return keys, nil
		}
	} else {
		select {
		case s.turn <- struct{}{}:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for an issuer's keys: %w", ctx.Err())
		}
	}
	defer func() { <-s.turn }()
	if keys, due, err = s.look(pick); !due { // another caller was faster
		return keys, err
	}
	s.fetch(ctx)
	keys, _, err = s.look(pick)
	return keys, err
}

// look picks of the keys at hand and says whether they must be fetched first:
// they are old, or none is picked, and the last fetch is long enough ago.
func (s *keySet) look(pick func([]key) []key) (keys []key, due bool, err error) {
	s.mu.Lock()
	held, fetched, tried, failure := s.held, s.fetched, s.tried, s.failure
	s.mu.Unlock()
	now := s.clock()
	if within(now, fetched, keysLast) {
		keys = pick(held)
	}
	throttled := within(now, tried, fetchPause)
	switch {
	case len(keys) > 0:
		return keys, !throttled && !within(now, fetched, keysAge), nil
	case !throttled:
		return nil, true, nil
	case failure != nil:
		// Not known is not the same as forged.
		return nil, false, unreachable(fetchPause-now.Sub(tried), failure)
	}
	return nil, false, nil
}

// within tells whether less than d has gone by since then. A clock that was set
// back does not keep keys alive.
func within(now, then time.Time, d time.Duration) bool {
	age := now.Sub(then)
	return age >= 0 && age < d
}

// fetch brings the keys up to date or notes why it could not.
func (s *keySet) fetch(ctx context.Context) {
	// What is learned is for all callers, so one caller's end must not end it.
	keys, err := fetchKeys(context.WithoutCancel(ctx), s.client, s.issuer)
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.failure
	s.tried, s.failure = s.clock(), err
	switch {
	case err == nil:
		s.held, s.fetched = keys, s.tried
		if before != nil {
			s.log.InfoContext(ctx, "issuer's keys can be fetched again", "issuer", s.issuer.URL)
		}
	case before == nil && s.held != nil: // otherwise the callers are told
		s.log.WarnContext(ctx, "fetching an issuer's keys failed; those at hand serve for up to an hour",
			"issuer", s.issuer.URL, "error", err)
	}
}

func unreachable(retry time.Duration, cause error) error {
	return &whence.Error{Kind: whence.ErrUnavailable, Reason: "ISSUER_UNREACHABLE", RetryAfter: max(retry, time.Second), Err: cause,
		Message: "the keys of the token's issuer cannot be fetched, so it cannot be verified; try again later"}
}
