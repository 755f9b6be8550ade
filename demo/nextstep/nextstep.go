// Package nextstep shows how a program goes on after an error of Whence, whatever it was,
// by the error's details alone.
//
// It holds no list of reasons and reads no message: each error says what comes next, in
// the metadata of its google.rpc.ErrorInfo, and RetryInfo and BadRequest say when and
// where. A reason that is new to it is none the less one that it can go on after.
package nextstep

import (
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
)

// Send says what is to be sent after an error, if anything is.
type Send int

const (
	// Nothing: the call will not work, or not before a person has done something.
	Nothing Send = iota
	// Same: the request as it was.
	Same
	// Other: a request that differs, as the step says.
	Other
)

// Step is what to do after an error.
type Step struct {
	Next string // as the error says it
	Send Send
	// SameKey: under the same idempotency key. Otherwise a write takes a new one.
	SameKey bool
	// Credential: with another token, or another proof of the same one.
	Credential bool
	// Wait before sending.
	Wait time.Duration
	// Fields are those at fault.
	Fields []string
}

// patience is how long to wait where an error does not say.
const patience = time.Second

// After decides on the details of an error.
func After(details []proto.Message) Step {
	var s Step
	for _, d := range details {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			s.Next = d.GetMetadata()["next"]
		case *errdetails.RetryInfo:
			s.Wait = d.GetRetryDelay().AsDuration()
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				s.Fields = append(s.Fields, v.GetField())
			}
		}
	}
	switch s.Next {
	case "RETRY", "WAIT_FOR_APPROVAL":
		s.Send, s.SameKey = Same, true
		if s.Wait == 0 {
			s.Wait = patience
		}
	case "GET_TOKEN", "SEND_PROOF":
		s.Send, s.SameKey, s.Credential = Same, true, true
	case "START_TASK":
		s.Send, s.Credential = Same, true
	case "NEW_KEY":
		s.Send = Same
	case "FIX_REQUEST", "LOOK_UP", "PREVIEW_AGAIN", "LOOK_AT_OUTCOME", "SPEND_LESS":
		s.Send = Other
	default: // ASK_FOR_SCOPE, ASK_OPERATOR, STOP, and whatever may come to be
	}
	return s
}
