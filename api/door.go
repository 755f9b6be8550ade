package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
)

// door leads every call through gateway.Do. Authentication comes before the
// request is decoded; a unary reply is held until answer and audit entry are
// durable.
type door struct {
	gateway   *gateway.Gateway
	issuer    string // the installation's URL
	challenge string // WWW-Authenticate of a 401: where to learn how to get a token
	log       *slog.Logger
}

// unknownCall is what the log calls a call that there is not.
const unknownCall = "unknown"

type sessionKey struct{}

// session returns what the door learned about the caller; only handlers behind
// the door are called, so it is always there.
func session(ctx context.Context) *gateway.Session {
	return ctx.Value(sessionKey{}).(*gateway.Session)
}

func (d *door) intercept(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
		err := d.pass(ctx, spec, stream, next)
		out := toConnect(ctx, d.log, spec.Procedure, err)
		info, ok := connect.CallInfoForServerContext(ctx)
		if !ok || out == nil {
			return out
		}
		if connect.CodeOf(out) == connect.CodeUnauthenticated {
			info.ResponseHeader().Set("WWW-Authenticate", d.challenge)
		}
		var e *whence.Error
		if errors.As(err, &e) && e.RetryAfter > 0 {
			info.ResponseHeader().Set("Retry-After", wholeSeconds(e.RetryAfter))
		}
		return out
	}
}

func (d *door) pass(ctx context.Context, spec connect.Spec, stream connect.ServerStream, next connect.ServerFunc) error {
	call := gateway.Call{Name: strings.TrimPrefix(spec.Procedure, "/"), Presented: d.presented(ctx, spec.Procedure), IdempotencyKey: header(ctx, "Idempotency-Key")}
	r, known := policy[spec.Procedure]
	method, described := spec.Schema.(protoreflect.MethodDescriptor)
	if !known || !described {
		call.Name = unknownCall // what a stranger writes is not for the log
		return d.gateway.Refuse(ctx, call, &whence.Error{Kind: whence.ErrUnimplemented, Reason: "UNKNOWN_CALL",
			Message: "this is not a call of this server; /openapi.yaml lists them"})
	}
	typ, err := protoregistry.GlobalTypes.FindMessageByName(method.Input().FullName())
	if err != nil {
		return err
	}
	req := typ.New().Interface()
	call.Action, call.Role, call.Charge = r.action, r.role, r.charge
	call.Prepare = func() ([sha256.Size]byte, error) { return prepare(stream, req) }
	call.Worst = func() authz.Amounts { return worst(req) }

	held := &heldStream{ServerStream: stream, req: req, hold: spec.StreamType == connect.StreamTypeUnary}
	var opened *gateway.Session
	err = d.gateway.Do(ctx, call, func(ctx context.Context, s *gateway.Session) error {
		if !held.hold {
			opened = s
			return nil
		}
		tellBudget(ctx, s)
		err := next(context.WithValue(ctx, sessionKey{}, s), spec, held)
		s.Use(authz.Rows, rows(held.reply))
		s.Use(authz.Writes, writes(req))
		s.Measure(held.size)
		return err
	})
	switch {
	case err != nil:
		return err
	case held.hold:
		return held.release()
	}
	// A stream is recorded as it opens, and lasts no longer than its credential.
	ctx, cancel := context.WithDeadline(context.WithValue(ctx, sessionKey{}, opened), opened.Principal.Expires)
	defer cancel()
	return d.gateway.WhileGood(ctx, call.Presented.Token, func(ctx context.Context) error { return next(ctx, spec, held) })
}

// tellBudget puts what the task has left into the headers that HTTP has for it
// (RateLimit, draft-ietf-httpapi-ratelimit-headers); the messages have it whole.
func tellBudget(ctx context.Context, s *gateway.Session) {
	b := s.Budget()
	info, ok := connect.CallInfoForServerContext(ctx)
	if !ok || b.Deadline.IsZero() {
		return
	}
	info.ResponseHeader().Set("RateLimit-Policy", fmt.Sprintf(`"calls";q=%d`, b.Limit[authz.Calls]))
	info.ResponseHeader().Set("RateLimit", fmt.Sprintf(`"calls";r=%d;t=%d`, b.Remaining[authz.Calls], max(0, int64(time.Until(b.Deadline).Seconds()))))
}

// prepare decodes and validates the request and returns the digest of its
// canonical form.
func prepare(stream connect.ServerStream, req proto.Message) (digest [sha256.Size]byte, err error) {
	if err := stream.Receive(req); err != nil {
		return digest, undecodable(err)
	}
	if err := protovalidate.Validate(req); err != nil {
		return digest, violations(err)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	return sha256.Sum256(b), err
}

func undecodable(err error) error {
	var ce *connect.Error
	switch {
	case !errors.As(err, &ce):
		return err
	case ce.Code() == connect.CodeInvalidArgument, ce.Code() == connect.CodeUnknown, ce.Code() == connect.CodeInternal,
		ce.Code() == connect.CodeUnimplemented: // whatever a transport calls bytes that it cannot take apart
		return whence.Invalid("", "MALFORMED_REQUEST", ce.Message())
	case ce.Code() == connect.CodeResourceExhausted: // of the server's limits, not of a budget
		return whence.Invalid("", "REQUEST_TOO_LARGE", fmt.Sprintf("the request is larger than %d bytes; send less in one call", maxRequest))
	}
	return err
}

// presented is the credential of a call. A call's method is GET only where the
// transport says so; its URL is the one that the installation is known by. A call that
// came in a request to another URL has that request's credential.
func (d *door) presented(ctx context.Context, procedure string) authz.Presented {
	if p, ok := ctx.Value(presentedKey{}).(authz.Presented); ok {
		return p
	}
	p := authz.Presented{Proof: header(ctx, "DPoP"), Method: http.MethodPost, URL: d.issuer + procedure}
	if once(ctx, "Authorization") && once(ctx, "DPoP") {
		p.Token, p.Bound = authz.ReadAuthorization(header(ctx, "Authorization"))
	}
	if info, ok := connect.CallInfoForServerContext(ctx); ok {
		if over, ok := info.TransportInfo.(*connecthttp.ServerInfo); ok {
			p.Method = over.HTTPMethod()
		}
	}
	return p
}

// once tells whether a header is there at most once: of two, one would be ignored.
func once(ctx context.Context, name string) bool {
	info, ok := connect.CallInfoForServerContext(ctx)
	return !ok || len(info.RequestHeader().Values(name)) <= 1
}

func header(ctx context.Context, name string) string {
	info, ok := connect.CallInfoForServerContext(ctx)
	if !ok {
		return ""
	}
	return info.RequestHeader().Get(name)
}

// heldStream gives the handler the request that the door has read, and keeps a
// unary reply until it may go out.
type heldStream struct {
	connect.ServerStream
	req   proto.Message
	read  bool
	hold  bool
	reply any
}

func (h *heldStream) Receive(msg any) error {
	m, ok := msg.(proto.Message)
	if !ok || h.read {
		return io.EOF
	}
	h.read = true
	proto.Merge(m, h.req)
	return nil
}

func (h *heldStream) Send(msg any) error {
	if !h.hold {
		return h.ServerStream.Send(msg)
	}
	h.reply = msg
	return nil
}

// size is the reply's in bytes, as it is kept on the wire; 0 while there is none.
func (h *heldStream) size() int64 {
	if m, ok := h.reply.(proto.Message); ok {
		return int64(proto.Size(m))
	}
	return 0
}

func (h *heldStream) release() error {
	if h.reply == nil {
		return nil
	}
	return h.ServerStream.Send(h.reply)
}
