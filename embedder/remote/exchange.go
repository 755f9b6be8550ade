package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"

	"github.com/whence-db/whence/embedder"
)

// result is what came of one HTTP request.
type result struct {
	vectors [][]float32
	bad     map[int]*embedder.Error // texts without a good vector
	fail    *failure
	sent    bool    // the whole request went out
	status  int     // 0: no response
	tokens  int64   // as reported
	quotas  []Quota // as reported
}

// exchange makes one HTTP request and checks its response.
func (m *Model) exchange(ctx context.Context, e errand) (r result) {
	ask := Ask{Model: m.model, Inputs: e.inputs, Query: e.query, Base64: m.base64}
	if m.askDimensions {
		ask.Dimensions = m.Dimensions()
	}
	payload, err := json.Marshal(m.protocol.Encode(ask))
	if err != nil {
		r.fail = m.transport(ctx, err)
		return r
	}
	limited, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	var sent atomic.Bool
	traced := httptrace.WithClientTrace(limited, &httptrace.ClientTrace{
		WroteRequest: func(w httptrace.WroteRequestInfo) { sent.Store(w.Err == nil) }})
	defer func() { r.sent = r.status != 0 || sent.Load() }()
	request, err := http.NewRequestWithContext(traced, http.MethodPost, m.endpoint, bytes.NewReader(payload))
	if err != nil {
		r.fail = m.transport(ctx, err)
		return r
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Accept", "application/json")
	m.authorize(request)
	response, err := m.client.Do(request)
	if err != nil {
		r.fail = m.transport(ctx, err)
		return r
	}
	defer response.Body.Close()
	r.status, r.quotas = response.StatusCode, m.protocol.Quotas(response.Header)
	if response.StatusCode != http.StatusOK {
		r.fail = m.refusal(response)
		return r
	}
	m.read(ctx, response, len(e.inputs), &r)
	return r
}

// read takes in the body of a response with status 200.
func (m *Model) read(ctx context.Context, response *http.Response, count int, r *result) {
	answer, err := readAtMost(response.Body, m.responseLimit(count))
	switch {
	case errors.Is(err, errTooLong):
		r.fail = &failure{Error: m.badResponse(err)}
	case err != nil:
		r.fail = m.transport(ctx, err)
	case !readable(response.Header.Get("Content-Type")):
		r.fail = &failure{Error: m.badResponse(errNotJSON), divisible: true}
	default:
		m.check(answer, count, r)
	}
}

// check turns a response body into vectors.
func (m *Model) check(answer []byte, count int, r *result) {
	vectors, faults, tokens, err := m.protocol.Vectors(answer, count, m.Dimensions())
	r.tokens = tokens
	if err != nil {
		r.fail = &failure{Error: m.badResponse(err), divisible: !errors.Is(err, errDimensions)}
		return
	}
	bad := make(map[int]*embedder.Error, len(faults))
	for i, fault := range faults {
		bad[i] = m.badResponse(fault)
	}
	if len(bad) == count && m.Dimensions() == 0 {
		r.fail = &failure{Error: bad[0]} // nothing to learn the dimensions from
		return
	}
	r.vectors, r.bad = vectors, bad
}

func (m *Model) badResponse(err error) *embedder.Error {
	return &embedder.Error{Model: m.name, Reason: embedder.BadResponse, Temporary: true, Message: shorten(m.redact(err.Error()))}
}

var errNotJSON = errors.New("the response is not JSON, by its content type")

// readable says whether a content type may be that of JSON. Servers that know no
// better say plain text or nothing.
func readable(contentType string) bool {
	kind, _, err := mime.ParseMediaType(contentType)
	return contentType == "" || err == nil &&
		(kind == "application/json" || strings.HasSuffix(kind, "+json") || kind == "text/plain" || kind == "application/octet-stream")
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
		within := m.timeout
		if ctx.Err() != nil { // the deadline of a question; a caller's own is not told from here
			within = m.queryTimeout
		}
		e.Message = fmt.Sprintf("no complete response within %s", within)
	}
	e.Err = redactedError{text: m.redact(err.Error()), cause: err}
	return &failure{Error: e, again: again}
}
