package embeddertest

import (
	"strings"
	"time"
)

// Kind is a way to misbehave.
type Kind string

const (
	None            Kind = ""
	Status          Kind = "status"           // an error response with Fault.Status
	WrongDimensions Kind = "wrong dimensions" // one component too few
	OneWrong        Kind = "one wrong"        // only the last vector has one component too few
	NullComponent   Kind = "null component"   // null inside the matching vectors
	NullVector      Kind = "null vector"      // null in place of the matching vectors
	Overflow        Kind = "overflow"         // a number no float32 can hold in the matching vectors
	ZeroVector      Kind = "zero vector"      // all components 0 in the matching vectors
	TooFew          Kind = "too few"          // the last vector is missing
	TooMany         Kind = "too many"         // one vector more than texts
	RepeatedIndex   Kind = "repeated index"   // every index is 0
	Unordered       Kind = "unordered"        // in reverse, with right indexes: not an error
	NoIndexes       Kind = "no indexes"       // in order, without indexes: not an error
	LiteralNaN      Kind = "literal NaN"      // NaN inside a vector, which is not JSON
	Malformed       Kind = "malformed"        // JSON that breaks off
	NotJSON         Kind = "not JSON"         // a page of HTML with status 200
	ErrorBody       Kind = "error body"       // an error object with status 200
	Cut             Kind = "cut"              // the connection breaks in the middle of the body
	HangUp          Kind = "hang up"          // the connection closes without a response
	Endless         Kind = "endless"          // a body without end
	Drip            Kind = "drip"             // the body a byte at a time, Fault.Delay apart
	Stall           Kind = "stall"            // no response before the client gives up
	Redirect        Kind = "redirect"         // 307 to the same address
	Unscaled        Kind = "unscaled"         // vectors of length 1000: not an error
	Infinite        Kind = "infinite"         // minus infinity in the matching vectors, in base64
	WrongType       Kind = "wrong type"       // good vectors that are called HTML
	RedirectAway    Kind = "redirect away"    // 307 to Fault.Location
	Bomb            Kind = "bomb"             // a small body that unpacks to 64 MB
	NoUsage         Kind = "no usage"         // no tokens reported: not an error
	AbsurdUsage     Kind = "absurd usage"     // more tokens reported than the texts have bytes: not an error
)

// Kinds lists every kind that misbehaves or surprises.
func Kinds() []Kind {
	return []Kind{Status, WrongDimensions, OneWrong, NullComponent, NullVector, Overflow, ZeroVector,
		TooFew, TooMany, RepeatedIndex, Unordered, NoIndexes, LiteralNaN, Malformed, NotJSON, ErrorBody,
		Cut, HangUp, Endless, Drip, Stall, Redirect, Unscaled, Infinite, WrongType, RedirectAway, Bomb, NoUsage, AbsurdUsage}
}

// sound says whether every vector comes out good in the end.
func (f Fault) sound() bool {
	switch f.Kind {
	case None, Unordered, NoIndexes, Unscaled, Drip, NoUsage, AbsurdUsage:
		return true
	default:
		return false
	}
}

// Fault says how, for which requests and how often the server misbehaves.
type Fault struct {
	Kind       Kind
	Match      string        // only requests with a text that contains it; empty: all
	Times      int           // so many requests; 0: until the next SetFault
	Status     int           // for Status; 500 when 0
	RetryAfter time.Duration // sent with Status, in whole seconds; 0: not sent
	Message    string        // the error's words
	Location   string        // for RedirectAway
	Delay      time.Duration // before the response; between bytes for Drip
}

// matches says whether the fault is about text.
func (f Fault) matches(text string) bool { return strings.Contains(text, f.Match) }

// SetFault replaces the current fault; the zero Fault ends it.
func (s *Server) SetFault(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault, s.faultLeft = f, f.Times
	if f.Times == 0 {
		s.faultLeft = -1
	}
}

// receive counts a request and returns the fault that applies to it.
func (s *Server) receive(texts []string) Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	hit := false
	for _, text := range texts {
		s.requested[text]++
		hit = hit || s.fault.matches(text)
	}
	if !hit || s.faultLeft == 0 {
		return Fault{}
	}
	if s.faultLeft > 0 {
		s.faultLeft--
	}
	return s.fault
}
