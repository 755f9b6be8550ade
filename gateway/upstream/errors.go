package upstream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"time"

	"github.com/whence-db/whence"
)

// Reasons of the errors of forwarding.
const (
	// ReasonUnreachable: nothing was sent, for there was no connection to send it on.
	ReasonUnreachable = "UPSTREAM_UNREACHABLE"
	// ReasonAddressRefused: nothing was sent, for the address is not one to connect to.
	ReasonAddressRefused = "UPSTREAM_ADDRESS_REFUSED"
	// ReasonTimeout: it was sent, or may have been, and the reply did not come in time.
	ReasonTimeout = "UPSTREAM_TIMEOUT"
	// ReasonFateUnknown: it was sent, or may have been, and no whole reply came.
	ReasonFateUnknown = "UPSTREAM_FATE_UNKNOWN"
	// ReasonReplyTooLarge: it was answered by more than is passed on.
	ReasonReplyTooLarge = "UPSTREAM_REPLY_TOO_LARGE"
)

// sentKey is in the metadata of errors after which the upstream may have acted.
const sentKey = "sent"

// Sent tells of an error of [Forwarder.Outgoing], [Forwarder.Forward] or a reply's
// body whether the upstream may have the request, or a part of it. If not, nothing
// can have happened.
func Sent(err error) bool {
	var e *whence.Error
	return errors.As(err, &e) && e.Metadata[sentKey] == "maybe"
}

// explain says what an error of net/http means for the request.
func explain(ctx context.Context, u *Upstream, req *http.Request, sent bool, err error) error {
	var network net.Error
	var refused *refusedError
	timeout := errors.As(err, &network) && network.Timeout() || errors.Is(ctx.Err(), context.DeadlineExceeded)
	body, _ := req.Body.(*requestBody)
	switch {
	case body != nil && body.failure.Load() != nil: // of the caller's making
		e := *body.failure.Load()
		if sent {
			e.Metadata = map[string]string{"upstream": u.Name, sentKey: "maybe"}
			maps.Copy(e.Metadata, body.failure.Load().Metadata)
		}
		return &e
	case errors.As(err, &refused) && !sent:
		return &whence.Error{Kind: whence.ErrDenied, Reason: ReasonAddressRefused, Err: err,
			Message:  fmt.Sprintf("the host of the upstream %q has an address that is not public and not in its privateRanges; the operator has to name the range if it is meant", u.Name),
			Metadata: map[string]string{"upstream": u.Name}}
	case !sent && ctx.Err() != nil && !timeout: // the caller has gone
		return context.Canceled
	case !sent:
		return &whence.Error{Kind: whence.ErrUnavailable, Reason: ReasonUnreachable, RetryAfter: time.Second, Err: err,
			Message:  fmt.Sprintf("the upstream %q cannot be reached; nothing was sent to it; try again", u.Name),
			Metadata: map[string]string{"upstream": u.Name}}
	case timeout:
		return after(u, ReasonTimeout, err,
			"the upstream %q did not answer in time and may have done what was asked; look before you ask again")
	}
	return unknownFate(u, err)
}

func unknownFate(u *Upstream, err error) error {
	return after(u, ReasonFateUnknown, err,
		"the request may have reached the upstream %q, and no whole reply came; look whether it did what was asked before you ask again")
}

func replyTooLarge(u *Upstream) error {
	return after(u, ReasonReplyTooLarge, nil,
		fmt.Sprintf("the reply of the upstream %%q is larger than the %d bytes that are passed on; it has done what was asked; ask for less", u.MaxResponseBytes))
}

// after is an error after which the upstream may have acted, so that it has no time
// to try again.
func after(u *Upstream, reason string, err error, message string) error {
	return &whence.Error{Kind: whence.ErrPrecondition, Reason: reason, Err: err,
		Message: fmt.Sprintf(message, u.Name), Metadata: map[string]string{"upstream": u.Name, sentKey: "maybe"}}
}
