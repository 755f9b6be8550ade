package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/whence-db/whence"
)

// requestBody is what is sent: at most left bytes, and nothing after it was closed,
// for net/http may go on to read when a reply has come early.
type requestBody struct {
	io.Reader
	io.Closer           // nil: nothing to close
	upstream  *Upstream // nil: of no bytes
	left      int64     // belongs to the goroutine that reads
	closed    atomic.Bool
	failure   atomic.Pointer[whence.Error] // why it could not be read to its end
}

func (b *requestBody) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	// One byte more than may be sent tells a body that fits from one that does not.
	if b.upstream != nil && int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.Reader.Read(p)
	if b.upstream == nil {
		return n, err
	}
	if int64(n) > b.left {
		e := tooLarge(b.upstream)
		b.failure.Store(e)
		return int(b.left), e
	}
	b.left -= int64(n)
	if err != nil && !errors.Is(err, io.EOF) && !b.closed.Load() {
		e := badRequest("the request's body could not be read to its end; send it again")
		e.Err = err
		b.failure.Store(e)
		return n, e
	}
	return n, err
}

func (b *requestBody) Close() error {
	b.closed.Store(true)
	if b.Closer == nil {
		return nil
	}
	return b.Closer.Close()
}

// replyBody is a reply as it comes in. Its errors are the forward's; at its end, or
// once closed, the time of the request is over.
type replyBody struct {
	io.ReadCloser
	left    int64
	over    func() error
	explain func(error) error
	release context.CancelFunc
}

func (b *replyBody) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	if int64(n) > b.left {
		return int(b.left), b.over()
	}
	b.left -= int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.explain(err)
	}
	return n, err
}

func (b *replyBody) Close() error {
	b.release() // what is not read to its end is broken off, so that the upstream does not go on to send
	return b.ReadCloser.Close()
}

// Relayed tells what became of a reply.
type Relayed struct {
	Bytes   int64 // of the body, that were passed on
	Started bool  // the caller has seen the status
}

// Relay passes a reply of [Forwarder.Forward] on, byte for byte and as it comes: a
// stream is flushed with each piece. The body has at most budget bytes; beyond that
// it fails with ErrExhausted BUDGET_EXHAUSTED. It closes the reply.
//
// After an error with Started set, the caller holds a part that must not look like a
// whole: the handler has to panic with [http.ErrAbortHandler] once it has recorded
// what happened, which breaks the connection off. Before that it can still answer.
func Relay(w http.ResponseWriter, res *http.Response, budget int64) (done Relayed, err error) {
	defer func() { _ = res.Body.Close() }() // it was read, or is given up
	bodiless := res.Request != nil && res.Request.Method == http.MethodHead
	if !bodiless && res.ContentLength > budget {
		return done, exhausted(budget)
	}
	for name, values := range res.Header {
		w.Header()[name] = values
	}
	if res.ContentLength >= 0 && res.StatusCode != http.StatusNoContent && res.StatusCode != http.StatusNotModified {
		w.Header().Set("Content-Length", strconv.FormatInt(res.ContentLength, 10))
	}
	w.WriteHeader(res.StatusCode)
	done.Started = true
	flush := func() error { return nil }
	if streamed(res) {
		flush = http.NewResponseController(w).Flush
	}
	if err := flush(); err != nil {
		return done, fmt.Errorf("pass a reply on: %w", err)
	}
	pooled := buffers.Get().(*[]byte)
	defer buffers.Put(pooled)
	buf := *pooled
	for {
		n, readErr := res.Body.Read(buf)
		over := int64(n) > budget-done.Bytes
		if over {
			n = int(budget - done.Bytes)
		}
		if n > 0 {
			written, err := w.Write(buf[:n])
			done.Bytes += int64(written)
			if err == nil {
				err = flush()
			}
			if err != nil {
				return done, fmt.Errorf("pass a reply on: %w", err)
			}
		}
		switch {
		case over:
			return done, exhausted(budget)
		case errors.Is(readErr, io.EOF):
			return done, nil
		case readErr != nil:
			return done, readErr
		}
	}
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// streamed tells replies whose pieces are worth something by themselves.
func streamed(res *http.Response) bool {
	kind, _, _ := strings.Cut(res.Header.Get("Content-Type"), ";")
	return res.ContentLength < 0 || strings.EqualFold(strings.TrimSpace(kind), "text/event-stream")
}

func exhausted(budget int64) error {
	return &whence.Error{Kind: whence.ErrExhausted, Reason: "BUDGET_EXHAUSTED",
		Message:  fmt.Sprintf("the reply is larger than the %d bytes that are left of the task's budget; ask for less, or for a larger budget", max(0, budget)),
		Metadata: map[string]string{"meter": "bytes", "remaining": strconv.FormatInt(max(0, budget), 10)}}
}
