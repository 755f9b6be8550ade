package openai

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/whence-db/whence/embedder"
)

const (
	firstBackoff  = 100 * time.Millisecond
	maxRetryAfter = time.Hour
	maxErrorBody  = 16 << 10
)

// failure is an Error with what this package itself makes of it.
type failure struct {
	*embedder.Error
	again     bool // trying again at once may help
	divisible bool // may be the fault of one text of the batch
}

// accuseNobody turns the rejection of a harmless text into what it means: the
// request as configured is wrong.
func (f *failure) accuseNobody() *failure {
	if f.Reason != embedder.Rejected {
		return f
	}
	e := *f.Error
	e.Reason, e.Temporary = embedder.Misconfigured, true
	return &failure{Error: &e}
}

// send makes one request with its retries. slots bounds how many are in flight.
// vectors[i] is nil exactly when bad[i] is set.
func (m *Model) send(ctx context.Context, slots chan struct{}, inputs []string, retries int) (vectors [][]float32, bad map[int]*embedder.Error, fail *failure) {
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return nil, nil, m.transport(ctx, ctx.Err())
	}
	for attempt := 0; ; attempt++ {
		if fail = m.waitForPause(ctx); fail != nil {
			return nil, nil, fail
		}
		vectors, bad, fail = m.exchange(ctx, inputs)
		if fail == nil || !fail.again || attempt >= retries || ctx.Err() != nil {
			return vectors, bad, fail
		}
		wait := fail.RetryAfter
		if wait == 0 {
			wait = time.Duration(float64(firstBackoff<<min(attempt, 10)) * (0.5 + 0.5*m.jitter()))
		}
		if wait > m.maxWait || m.sleep(ctx, wait) != nil {
			return nil, nil, fail
		}
	}
}

// waitForPause respects what the server told any earlier request.
func (m *Model) waitForPause(ctx context.Context) *failure {
	m.mu.Lock()
	wait := m.pause.Sub(m.now())
	m.mu.Unlock()
	if wait <= 0 {
		return nil
	}
	if wait <= m.maxWait && m.sleep(ctx, wait) == nil {
		return nil
	}
	return &failure{Error: &embedder.Error{
		Model: m.name, Reason: embedder.RateLimited, Temporary: true, RetryAfter: wait,
		Message: "the server asked to wait",
	}}
}

func (m *Model) pauseFor(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if until := m.now().Add(d); until.After(m.pause) {
		m.pause = until
	}
}

// exchange makes one HTTP request and checks its response.
func (m *Model) exchange(ctx context.Context, inputs []string) ([][]float32, map[int]*embedder.Error, *failure) {
	body := struct {
		Model          string   `json:"model"`
		Input          []string `json:"input"`
		EncodingFormat string   `json:"encoding_format"`
		Dimensions     int      `json:"dimensions,omitempty"`
	}{Model: m.model, Input: inputs, EncodingFormat: m.format}
	if m.askDimensions {
		body.Dimensions = m.Dimensions()
	}
	payload, err := json.Marshal(body)
	if err != nil {
		return nil, nil, m.transport(ctx, err)
	}
	limited, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(limited, http.MethodPost, m.endpoint, bytes.NewReader(payload))
	if err != nil {
		return nil, nil, m.transport(ctx, err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Accept", "application/json")
	m.authorize(request)
	response, err := m.client.Do(request)
	if err != nil {
		return nil, nil, m.transport(ctx, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, nil, m.refusal(response)
	}
	answer, err := readAtMost(response.Body, m.responseLimit(len(inputs)))
	switch {
	case errors.Is(err, errTooLong):
		return nil, nil, &failure{Error: m.badResponse(err)}
	case err != nil:
		return nil, nil, m.transport(ctx, err)
	}
	return m.check(answer, len(inputs))
}

// check turns a response body into vectors.
func (m *Model) check(answer []byte, count int) ([][]float32, map[int]*embedder.Error, *failure) {
	vectors, faults, err := decode(answer, count, m.Dimensions())
	if err != nil {
		return nil, nil, &failure{Error: m.badResponse(err), divisible: !errors.Is(err, errDimensions)}
	}
	bad := make(map[int]*embedder.Error, len(faults))
	for i, fault := range faults {
		bad[i] = m.badResponse(fault)
	}
	if len(bad) == count && m.Dimensions() == 0 {
		return nil, nil, &failure{Error: bad[0]} // nothing to learn the dimensions from
	}
	return vectors, bad, nil
}

func (m *Model) badResponse(err error) *embedder.Error {
	return &embedder.Error{Model: m.name, Reason: embedder.BadResponse, Temporary: true, Message: shorten(m.redact(err.Error()))}
}

// responseLimit is generous: 48 bytes for a number that takes about 20.
func (m *Model) responseLimit(count int) int64 {
	dimensions := m.Dimensions()
	if dimensions == 0 {
		dimensions = maxDimensions
	}
	return 64<<10 + int64(count)*int64(dimensions)*48
}

var errTooLong = errors.New("response larger than its vectors can be")

func readAtMost(r io.Reader, limit int64) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(body)) > limit {
		return nil, errTooLong
	}
	return body, err
}

// transport is a request that got no complete response.
func (m *Model) transport(ctx context.Context, err error) *failure {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err // without the address, which the operator knows
	}
	e := &embedder.Error{Model: m.name, Reason: embedder.Unavailable, Temporary: true}
	again := ctx.Err() == nil
	if timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err); ok && timeout.Timeout() {
		e.Reason, again = embedder.Timeout, false
		e.Message = fmt.Sprintf("no complete response within %s", m.timeout)
	}
	e.Err = redactedError{text: m.redact(err.Error()), cause: err}
	return &failure{Error: e, again: again}
}

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
			m.pauseFor(e.RetryAfter)
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
