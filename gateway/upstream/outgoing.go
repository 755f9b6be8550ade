package upstream

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/google/uuid"

	"github.com/whence-db/whence"
)

// Asked is what an agent asks of an upstream.
type Asked struct {
	Target
	Header http.Header
	Body   io.ReadCloser // nil: none
	Length int64         // of Body; -1: not known
	// PassKey sends the caller's Idempotency-Key on.
	PassKey bool
}

// Identity says for whom a request goes out. It comes from the credential.
type Identity struct {
	Task, Root, Agent, User, Tenant string
	// Trace is a traceparent that the request continues; empty: its trace is the one
	// of the task's tree.
	Trace string
}

// Outgoing builds the request that goes out. Nothing of what was asked passes that
// is not named here. A variable that holds no Authorization is
// ErrPrecondition UPSTREAM_NOT_CONFIGURED, a body that is known to be too large
// ErrInvalid REQUEST_TOO_LARGE.
func (f *Forwarder) Outgoing(ctx context.Context, u *Upstream, in Asked, id Identity) (*http.Request, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	segments, err := splitPath(in.Path)
	if err != nil {
		return nil, badRequest(err.Error())
	}
	header := copyHeader(in.Header, notSent)
	key := header.Values("Idempotency-Key")
	header.Del("Idempotency-Key")
	if in.PassKey && len(key) > 0 {
		// Under its usual name the key would have net/http send the request again
		// after a lost connection.
		header["idempotency-key"] = key[:1]
	}
	if header, err = f.identify(u, header, id); err != nil {
		return nil, err
	}
	to := *u.base
	to.Path += "/" + strings.Join(segments, "/")
	to.RawPath += in.Path
	to.RawQuery = in.RawQuery
	req := (&http.Request{Method: in.Method, URL: &to, Host: u.base.Host, Header: header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}).WithContext(ctx)
	return req, setBody(req, u, in)
}

func (f *Forwarder) identify(u *Upstream, header http.Header, id Identity) (http.Header, error) {
	if u.AuthorizationEnv != "" {
		value := f.getenv(u.AuthorizationEnv)
		if !sendable(value) {
			return nil, configuration(u.Name, fmt.Sprintf("the server's environment variable %s holds no Authorization header for the upstream %q; the operator has to set it, on one line, and start the server again", u.AuthorizationEnv, u.Name))
		}
		header.Set("Authorization", value)
	}
	header.Set("User-Agent", "whence")
	if id.Task != "" {
		header.Set("Whence-Task-Id", escape(id.Task))
	}
	trace, err := traceparent(id)
	if err != nil {
		return nil, err
	}
	header.Set("Traceparent", trace)
	var baggage []string
	for _, m := range [][2]string{{"whence.task", id.Task}, {"whence.agent", id.Agent}, {"whence.user", id.User}} {
		if m[1] != "" {
			baggage = append(baggage, m[0]+"="+escape(m[1]))
		}
	}
	if len(baggage) > 0 {
		header.Set("Baggage", strings.Join(baggage, ","))
	}
	return header, nil
}

// escape percent-encodes all but unreserved characters, which fits W3C Baggage.
func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

var traceForm = regexp.MustCompile(`^00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$`)

// traceparent names a new span (W3C Trace Context). Of the trace that the identity
// has, it is a part; without one, the id of the root task serves, so that all that a
// task and those below it ask is one trace.
func traceparent(id Identity) (string, error) {
	trace, flags := "", "01"
	if m := traceForm.FindStringSubmatch(id.Trace); m != nil && strings.Trim(m[1], "0") != "" && strings.Trim(m[2], "0") != "" {
		trace, flags = m[1], m[3]
	} else if root, err := uuid.Parse(id.Root); err == nil && root != uuid.Nil {
		trace = hex.EncodeToString(root[:])
	}
	var b [24]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("name a span: %w", err)
	}
	b[0], b[16] = b[0]|1, b[16]|1 // neither is all zeros
	if trace == "" {
		trace = hex.EncodeToString(b[:16])
	}
	return "00-" + trace + "-" + hex.EncodeToString(b[16:]) + "-" + flags, nil
}

// setBody gives a request its body in a form that net/http can send only once.
func setBody(req *http.Request, u *Upstream, in Asked) error {
	switch {
	case in.Length > u.MaxRequestBytes:
		return tooLarge(u)
	case in.Body == nil || in.Body == http.NoBody || in.Length == 0:
		// net/http sends a request without a body again when a connection that was
		// open turns out to be dead, whether or not the upstream saw the first. A body
		// that it cannot rewind keeps it from that; this one has no bytes, and
		// "identity" has it written without any framing.
		req.Body, req.TransferEncoding = &requestBody{Reader: strings.NewReader("")}, []string{"identity"}
		if req.Method == http.MethodPost || req.Method == http.MethodPut || req.Method == http.MethodPatch {
			req.Header["content-length"] = []string{"0"} // net/http would leave out its own; many servers insist
		}
	default:
		req.ContentLength = max(in.Length, -1)
		req.Body = &requestBody{Reader: in.Body, Closer: in.Body, upstream: u, left: u.MaxRequestBytes}
	}
	return nil
}

func tooLarge(u *Upstream) *whence.Error {
	e := whence.Invalid("", "REQUEST_TOO_LARGE", fmt.Sprintf("the request's body is larger than the %d bytes that the upstream %q takes; send less at once", u.MaxRequestBytes, u.Name))
	e.Metadata = map[string]string{"limit": fmt.Sprint(u.MaxRequestBytes)}
	return e
}
