package remote

import (
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/whence-db/whence/embedder"
)

const (
	maxRetryAfter = time.Hour
	maxErrorBody  = 16 << 10
)

// redactedError prints without credentials and still unwraps to its cause.
type redactedError struct {
	text  string
	cause error
}

func (e redactedError) Error() string { return e.text }
func (e redactedError) Unwrap() error { return e.cause }

// refusal sorts a response with a status other than 200.
func (m *Model) refusal(r *http.Response) *failure {
	body, _ := io.ReadAll(io.LimitReader(r.Body, maxErrorBody)) // what there is of it
	e := &embedder.Error{Model: m.name, Status: r.StatusCode, Temporary: true, Message: shorten(m.redact(serverMessage(body)))}
	f := &failure{Error: e}
	switch s := r.StatusCode; {
	case s == http.StatusBadRequest, s == http.StatusRequestEntityTooLarge, s == http.StatusUnprocessableEntity:
		e.Reason, e.Temporary, f.divisible = embedder.Rejected, false, true
	case s == http.StatusTooManyRequests, s == http.StatusTooEarly:
		e.Reason, f.again = embedder.RateLimited, true
	case s == http.StatusRequestTimeout:
		e.Reason, f.again = embedder.Timeout, true
	case s >= 500:
		e.Reason, f.again, f.divisible = embedder.Unavailable, true, s == http.StatusInternalServerError
	case s >= 200 && s < 300:
		e.Reason = embedder.BadResponse
	case s == http.StatusUnauthorized, s == http.StatusForbidden:
		// The server's words may quote parts of the key.
		e.Reason, e.Message = embedder.Misconfigured, "the server refuses the API key"
	case s == http.StatusNotFound:
		e.Reason, e.Message = embedder.Misconfigured, "no such model or address: "+e.Message
	default:
		e.Reason = embedder.Misconfigured
	}
	if f.again {
		e.RetryAfter = retryAfter(r.Header, m.now())
		if e.RetryAfter > 0 {
			m.pace.hold(m.now(), e.RetryAfter)
		}
	}
	return f
}

// retryAfter reads the standard header, in seconds or as a date, and the
// millisecond form that some servers add.
func retryAfter(h http.Header, now time.Time) time.Duration {
	var wait time.Duration
	if ms, err := strconv.ParseFloat(h.Get("Retry-After-Ms"), 64); err == nil {
		wait = scaled(ms, time.Millisecond)
	} else if s, err := strconv.ParseFloat(h.Get("Retry-After"), 64); err == nil {
		wait = scaled(s, time.Second)
	} else if at, err := http.ParseTime(h.Get("Retry-After")); err == nil {
		wait = at.Sub(now)
	}
	return min(max(wait, 0), maxRetryAfter)
}

// scaled bounds n before the conversion, which has no result for large or
// undefined numbers.
func scaled(n float64, unit time.Duration) time.Duration {
	if !(n > 0) {
		return 0
	}
	return time.Duration(min(n, float64(maxRetryAfter/unit)) * float64(unit))
}

// Quotas reads the headers x-ratelimit-{limit,remaining,reset}-{requests,tokens},
// which OpenAI defined and others took over. A limit refills all the time;
// reset says when it is full. What is absent, negative or unreadable says nothing.
func Quotas(h http.Header) (told []Quota) {
	for _, of := range []string{"Requests", "Tokens"} {
		remaining, ok := Count(h, "X-Ratelimit-Remaining-"+of)
		if !ok {
			continue
		}
		reset, ok := untilReset(h.Get("X-Ratelimit-Reset-" + of))
		if !ok {
			continue
		}
		q := Quota{Tokens: of == "Tokens", Remaining: remaining, Reset: reset, Steady: true}
		if limit, ok := Count(h, "X-Ratelimit-Limit-"+of); ok && limit >= remaining {
			q.Limit = limit
		}
		told = append(told, q)
	}
	return told
}

// Count reads a header that counts something. What is no count is not ok.
func Count(h http.Header, name string) (n float64, ok bool) {
	n, err := strconv.ParseFloat(h.Get(name), 64)
	return n, err == nil && n >= 0 && n < 1e12
}

// untilReset reads "6m0s", "12ms", or a number of seconds. More than a day of
// them is taken for a time of the clock, which nobody agrees on.
func untilReset(text string) (time.Duration, bool) {
	if s, err := strconv.ParseFloat(text, 64); err == nil {
		return scaled(s, time.Second), s >= 0 && s <= 86400
	}
	d, err := time.ParseDuration(text)
	return min(max(d, 0), maxRetryAfter), err == nil
}
