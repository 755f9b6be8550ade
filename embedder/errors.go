package embedder

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Reason says what kind of failure an Error is. The set is closed.
type Reason string

const (
	// Unavailable: the server cannot be reached or failed. Waiting helps.
	Unavailable Reason = "unavailable"
	// RateLimited: the server asked for fewer requests. RetryAfter may say when.
	RateLimited Reason = "rate_limited"
	// Timeout: no complete answer within the model's own limit.
	Timeout Reason = "timeout"
	// Misconfigured: credential, address or model name is wrong. No text is to
	// blame, so the texts stay queued until an operator has put it right.
	Misconfigured Reason = "misconfigured"
	// BadResponse: the server answered with something that is not the vectors
	// asked for. Nothing of it is used.
	BadResponse Reason = "bad_response"
	// Rejected: the model refuses this text (too long, empty, filtered). The
	// only permanent reason.
	Rejected Reason = "rejected"
)

// Error is why texts have no vector.
type Error struct {
	Model      string        // the Model's name
	Reason     Reason        // what kind of failure
	Temporary  bool          // true: queue the text again; false: this text can never be embedded
	RetryAfter time.Duration // how long the server asked to wait; 0 when it did not say
	Status     int           // HTTP status, 0 when there was no response
	Message    string        // the server's words, shortened, without credentials
	Err        error         // the cause, if there is one
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "embedding model %q: %s", e.Model, e.Reason)
	if e.Status != 0 {
		fmt.Fprintf(&b, " (HTTP %d)", e.Status)
	}
	if e.Message != "" {
		b.WriteString(": " + e.Message)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	if e.RetryAfter > 0 {
		fmt.Fprintf(&b, " (retry after %s)", e.RetryAfter)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// BatchError is returned by Embed when some texts of a batch have no vector.
// Failed maps the index of each such text to its reason and is never empty.
type BatchError struct {
	Failed map[int]*Error
	Total  int // texts in the batch
}

func (e *BatchError) Error() string {
	indexes := e.Indexes()
	return fmt.Sprintf("%d of %d texts not embedded; text %d: %v",
		len(indexes), e.Total, indexes[0], e.Failed[indexes[0]])
}

// Indexes returns the failed indexes in ascending order.
func (e *BatchError) Indexes() []int { return slices.Sorted(maps.Keys(e.Failed)) }

// ByText returns a function that gives the failure of the text at an index, or
// nil when that text has a vector. It accepts whatever Embed returned: a failure
// of the whole batch is the failure of each of its texts, and an error that is
// no *Error (a cancelled context) counts as temporary.
func ByText(err error) func(index int) *Error {
	if err == nil {
		return func(int) *Error { return nil }
	}
	if batch, ok := errors.AsType[*BatchError](err); ok {
		return func(i int) *Error { return batch.Failed[i] }
	}
	whole, ok := errors.AsType[*Error](err)
	if !ok {
		whole = &Error{Reason: Unavailable, Temporary: true, Err: err}
	}
	return func(int) *Error { return whole }
}
