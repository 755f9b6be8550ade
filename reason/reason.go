// Package reason is the catalogue of every reason that an error of Whence can have:
// when it comes, what details it carries, and what whoever gets it does next.
//
// A caller needs no copy of it. The next step goes over the wire with each error, from
// a small closed set, so that a program can go on by the details alone and never reads
// a message. docs/errors.md is made of it.
package reason

import (
	"fmt"
	"slices"
	"strings"
)

// Key names the next step in an error's metadata.
const Key = "next"

// Entry is one reason.
type Entry struct {
	Reason string
	// Codes are the Connect codes that it comes with, as they are written in JSON.
	Codes   []string
	Next    Next
	Meaning string
	// Do says what to do where the next step alone does not; see [Entry.Advice].
	Do string
	// Metadata are the keys of ErrorInfo's metadata that it may carry beside "next".
	Metadata []string
	// Field is true when it names the field at fault.
	Field bool
	// Retry is true when it may say, by RetryInfo or Retry-After, when to try again.
	Retry bool
}

// AnyField in an entry's metadata stands for keys that are names of fields.
const AnyField = "*"

// Advice is what to do about it, in a sentence or two.
func (e Entry) Advice() string {
	if e.Do != "" {
		return e.Do
	}
	return e.Next.Advice()
}

var byReason = index(invalid, access, absent, precondition, passing)

func index(groups ...[]Entry) map[string]Entry {
	out := map[string]Entry{}
	for _, e := range slices.Concat(groups...) {
		if _, ok := out[e.Reason]; ok {
			panic(fmt.Sprintf("reason %s is in the catalogue twice", e.Reason))
		}
		out[e.Reason] = e
	}
	return out
}

// All returns the catalogue, by reason.
func All() []Entry {
	out := make([]Entry, 0, len(byReason))
	for _, e := range byReason {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Reason, b.Reason) })
	return out
}

// Of finds a reason.
func Of(reason string) (Entry, bool) {
	e, ok := byReason[reason]
	return e, ok
}

// After is the next step after an error; a reason that is not known is to be reported.
func After(reason string) Next {
	if e, ok := byReason[reason]; ok {
		return e.Next
	}
	return AskOperator
}

// Details returns an error's metadata with its next step in it; what it is given stays
// as it is.
func Details(reason string, metadata map[string]string) map[string]string {
	out := make(map[string]string, len(metadata)+1)
	for k, v := range metadata {
		out[k] = v
	}
	out[Key] = string(After(reason))
	return out
}
