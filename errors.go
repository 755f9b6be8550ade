package whence

import (
	"errors"
	"time"
)

// The sentinels: what kind of failure it is. Every error that a caller may see
// is an [Error] of one of these kinds; any other error is internal.
var (
	ErrInvalid         = errors.New("invalid argument")
	ErrNotFound        = errors.New("not found")
	ErrExists          = errors.New("already exists")
	ErrPrecondition    = errors.New("failed precondition")
	ErrUnauthenticated = errors.New("unauthenticated")
	ErrDenied          = errors.New("permission denied")
	ErrExhausted       = errors.New("resource exhausted")
	ErrAborted         = errors.New("aborted")
	ErrUnavailable     = errors.New("unavailable")
	ErrUnimplemented   = errors.New("not implemented")
)

// Error is a failure that its caller can act on.
type Error struct {
	Kind       error             // one of the sentinels
	Reason     string            // stable, UPPER_SNAKE_CASE
	Message    string            // what is wrong and what to do about it
	Field      string            // the request field at fault, if one is
	RetryAfter time.Duration     // when trying again may help; zero: it will not
	Metadata   map[string]string // facts that a program can act on
	Err        error             // the cause; logged, never sent
}

// Error returns the message with its cause.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Message + ": " + e.Err.Error()
	}
	return e.Message
}

// Unwrap lets errors.Is see the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// Invalid is an ErrInvalid about one request field.
func Invalid(field, reason, message string) *Error {
	return &Error{Kind: ErrInvalid, Reason: reason, Field: field, Message: message}
}
