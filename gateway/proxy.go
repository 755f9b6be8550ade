package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/audit"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway/action"
	"github.com/whence-db/whence/gateway/upstream"
)

// Passed is a request that an agent sends through to an upstream.
type Passed struct {
	Upstream  string
	Prefix    string // of the request's path, up to the upstream's own
	Request   *http.Request
	Presented authz.Presented
	Key       string // the idempotency key
}

// smallReply is how large a reply may be that is read whole, recorded and then sent.
// A larger one, or one of unknown size, is recorded as it begins.
const smallReply = 256 << 10

// Pass sends a request through to an upstream and its reply to w, as the rule that it
// falls under says: what reads goes through; what writes is an execution like any
// other, with its idempotency key and approval, and its reply is kept for that key.
//
// An error comes back before anything was written to w; a reply that breaks off
// panics with http.ErrAbortHandler.
func (g *Gateway) Pass(ctx context.Context, in Passed, w http.ResponseWriter) error {
	call := Call{Name: "up/" + in.Upstream, Presented: in.Presented, Action: authz.ActionExecute, Charge: 1, IdempotencyKey: in.Key}
	if !upstream.ValidName(in.Upstream) {
		call.Name = "up"
	}
	var o outbound
	var send func() error
	worst := authz.Amounts{}
	call.Prepare = func() (digest [32]byte, err error) {
		o, err = g.aim(ctx, call, in)
		if err != nil {
			return digest, err
		}
		worst[authz.Bytes], worst[authz.Spend] = o.to.MaxRequestBytes+o.to.MaxResponseBytes, o.rule.CostMicros
		return o.fingerprint(), nil
	}
	call.Worst = func() authz.Amounts { return worst }
	err := g.Do(ctx, call, func(ctx context.Context, s *Session) (err error) {
		s.Note("method", o.target.Method)
		s.Note("path", o.target.Path)
		s.Note("tier", string(o.rule.Tier))
		if !o.rule.Tier.Within(s.Principal.Scope.Tier()) {
			return &whence.Error{Kind: whence.ErrDenied, Reason: "TIER_OUT_OF_SCOPE",
				Message:  fmt.Sprintf("%s %s of the upstream %q is %s, and the task's scope goes up to %s; work without it, or ask for a task with a higher tier", o.target.Method, o.target.Path, in.Upstream, o.rule.Tier, s.Principal.Scope.Tier()),
				Metadata: map[string]string{"upstream": in.Upstream, "tier": string(o.rule.Tier), "allowed": string(s.Principal.Scope.Tier())}}
		}
		if o.rule.Tier == authz.TierRead {
			send, err = g.passRead(ctx, s, in, o, w)
			return err
		}
		send, err = g.passWrite(ctx, s, o, w)
		return err
	})
	if err != nil {
		return err
	}
	return send()
}

// aim finds the upstream and the rule. It runs once the caller is known.
func (g *Gateway) aim(ctx context.Context, c Call, in Passed) (o outbound, err error) {
	p, err := g.verifier.Verify(ctx, c.Presented.Token)
	if err != nil {
		return o, err
	}
	if o.target, err = upstream.ReadTarget(in.Request, in.Prefix); err != nil {
		return o, err
	}
	if o.to, err = g.upstreams.Current(ctx, p.Tenant, in.Upstream); err != nil {
		return o, err
	}
	v, err := o.to.Match(o.target.Method, o.target.Path)
	if err != nil {
		return o, err
	}
	o.rule, o.header = v.Rule, in.Request.Header
	if o.rule.Tier == authz.TierRead {
		return o, nil
	}
	o.header = written(in.Request.Header)
	if o.body, err = io.ReadAll(io.LimitReader(in.Request.Body, o.to.MaxRequestBytes+1)); err != nil {
		return o, whence.Invalid("", "MALFORMED_REQUEST", "the request's body could not be read whole; send it again")
	}
	if int64(len(o.body)) > o.to.MaxRequestBytes {
		return o, whence.Invalid("", "REQUEST_TOO_LARGE", fmt.Sprintf("the request's body is larger than the %d bytes that the upstream takes", o.to.MaxRequestBytes))
	}
	return o, nil
}

// writeHeaders are what a request that writes may say beside its body. All of it is
// part of what is approved, and of what a key stands for.
var writeHeaders = []string{"Accept", "Accept-Language", "Content-Encoding", "Content-Language", "Content-Type", "If-Match", "If-None-Match", "If-Unmodified-Since", "Prefer"}

// written is the headers of a request that writes.
func written(h http.Header) http.Header {
	out := http.Header{}
	for _, name := range writeHeaders {
		if v := h.Values(name); len(v) > 0 {
			out[name] = v
		}
	}
	return out
}

// fingerprint is of all that makes the request what it is.
func (o outbound) fingerprint() [32]byte {
	if o.rule.Tier == authz.TierRead {
		return digestOf("request", o.to.Name, o.target.Method, o.target.Path, o.target.RawQuery)
	}
	return digestOf("request", o.to.Name, o.target.Method, o.target.Path, o.target.RawQuery, o.header, whence.Digest(sha256.Sum256(o.body)))
}

// passRead forwards a request that only reads. A small reply waits until it is
// recorded; of a larger one the beginning is recorded before it goes out, with all
// that was held for it, and what it was in the end afterwards.
func (g *Gateway) passRead(ctx context.Context, s *Session, in Passed, o outbound, w http.ResponseWriter) (send func() error, err error) {
	if s.unpaid != nil {
		return nil, s.unpaid
	}
	asked := upstream.Asked{Target: o.target, Header: o.header, Length: in.Request.ContentLength, PassKey: true}
	body := &counted{ReadCloser: in.Request.Body}
	if in.Request.ContentLength != 0 {
		asked.Body = body
	}
	req, err := g.forwarder.Outgoing(ctx, o.to, asked, identity(s.Principal))
	if err != nil {
		return nil, err
	}
	s.did(authz.Amounts{}) // from here on it may have been sent, and is paid
	running, stop := context.WithCancel(ctx)
	res, err := g.forwarder.Forward(running, o.to, req) //nolint:bodyclose // it is closed where it is passed on
	if err != nil {
		stop()
		if !upstream.Sent(err) {
			s.effect = false
			return nil, err
		}
		s.Use(authz.Bytes, body.n)
		s.Use(authz.Spend, o.rule.CostMicros)
		return nil, err
	}
	s.Note("status", res.StatusCode)
	spent := upstream.Spend(o.rule, res.Header)
	s.Use(authz.Spend, spent)
	budget := s.Held(authz.Bytes)
	if res.ContentLength >= 0 && res.ContentLength <= smallReply {
		whole, err := io.ReadAll(res.Body)
		_ = res.Body.Close() // it was read
		stop()
		if err != nil {
			return nil, err
		}
		s.Use(authz.Bytes, body.n+int64(len(whole)))
		res.Body = io.NopCloser(bytes.NewReader(whole))
		return func() error { _, err := upstream.Relay(w, res, budget); return broken(err) }, nil
	}
	bounded := s.charged.budget.Remaining[authz.Bytes] != authz.Unlimited
	held := int64(0)
	if bounded {
		held = budget
	}
	s.Use(authz.Bytes, held)
	p, started := s.Principal, s.Started
	token := in.Presented.Token
	return func() error {
		defer stop()
		var done upstream.Relayed
		err := g.WhileGood(ctx, token, func(good context.Context) (err error) {
			defer context.AfterFunc(good, stop)()
			done, err = upstream.Relay(w, res, budget-body.n)
			return err
		})
		g.ended(ctx, p, audit.Entry{At: started, Call: "up/" + in.Upstream + "/end", RequestDigest: o.fingerprint()}, body.n+done.Bytes-held, done.Bytes, err)
		if err != nil && !done.Started {
			return err
		}
		return broken(err)
	}, nil
}

// broken breaks the connection off where a part must not look like a whole.
func broken(err error) error {
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}

// ended records what a streamed reply was in the end, and settles the difference to
// what was charged as it began.
func (g *Gateway) ended(ctx context.Context, p *authz.Principal, e audit.Entry, more, bytes int64, err error) {
	s := &Session{Principal: p, Started: e.At, digest: e.RequestDigest, detail: map[string]any{"bytes": bytes}}
	r := &record{entry: entry(Call{Name: e.Call}, s, err), task: p.Task, started: g.now(), charge: &charge{}}
	r.used[authz.Bytes] = more
	r.entry.Latency = g.now().Sub(e.At)
	if err := g.records.do(context.WithoutCancel(ctx), r); err != nil {
		g.log.WarnContext(ctx, "cannot record how a reply ended", "call", e.Call, "error", err)
	}
}

type counted struct {
	io.ReadCloser
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n += int64(n)
	return n, err
}

// passWrite runs a request that writes as an execution.
func (g *Gateway) passWrite(ctx context.Context, s *Session, o outbound, w http.ResponseWriter) (send func() error, err error) {
	r := o.asRun()
	var done Execution
	var got reply
	told := func(x Execution) error {
		done = x
		return json.Unmarshal(x.Result, &got)
	}
	if err := g.executeRaw(ctx, s, r, told); err != nil {
		return nil, err
	}
	return func() error {
		w.Header().Set("Whence-Execution-Id", done.ID.String())
		if done.Replayed {
			w.Header().Set("Idempotency-Replayed", "true")
		}
		if got.Cut {
			return &whence.Error{Kind: whence.ErrPrecondition, Reason: upstream.ReasonReplyTooLarge,
				Message: fmt.Sprintf("the upstream did it, with status %d, and its reply is larger than the %d bytes that are kept of one", got.Status, mostKept)}
		}
		for name, values := range got.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(got.Status)
		if _, err := w.Write(got.Body); err != nil {
			return broken(err)
		}
		return nil
	}, nil
}

// rawPrefix stands before the upstream's name where executions name their action.
const rawPrefix = "whence.up."

// asRun makes an action of a request as an agent wrote it.
func (o outbound) asRun() run {
	d := action.Definition{Name: rawPrefix + o.to.Name, Tier: o.rule.Tier, CostMicros: 0}
	r := run{Registered: action.Registered{Definition: d, Tenant: o.to.Tenant, Version: int32(min(o.to.Version, 1<<31-1)), Digest: o.to.Digest}, def: d, raw: &o}
	args := map[string]any{"method": o.target.Method, "path": o.target.Path, "query": o.target.RawQuery, "body": whence.DigestOf(string(o.body)).String()}
	r.args = action.Canonical(args)
	r.needs, r.worst = d.NeededApprovals(), authz.Amounts{authz.Writes: 1}
	r.digest = digestOf("action", r.Name, r.Version, r.Registered.Digest, r.args.JSON())
	return r
}

// executeRaw is Execute of a request that is no registered action.
func (g *Gateway) executeRaw(ctx context.Context, s *Session, r run, done func(Execution) error) error {
	if s.key == "" {
		return errKeyRequired()
	}
	s.Note("actionVersion", r.Version)
	for {
		x, found, err := findExecution(ctx, g.pool, executionByKeySQL, keyArgs(s))
		if err != nil {
			return err
		}
		if found {
			return g.goOn(ctx, s, x, done, func(Execution) (run, error) { return r, nil })
		}
		x = r.execution(g, s)
		if err := g.afford(ctx, s, r); err != nil {
			return err
		}
		inserted, err := g.claim(ctx, x)
		if err != nil {
			return err
		}
		if inserted {
			return g.perform(ctx, s, r, x, done)
		}
	}
}

func errKeyRequired() error {
	return &whence.Error{Kind: whence.ErrInvalid, Reason: "IDEMPOTENCY_KEY_REQUIRED", Metadata: map[string]string{"header": "Idempotency-Key"},
		Message: "this writes: send a header Idempotency-Key of your own making, and the same one when you try again"}
}

func keyArgs(s *Session) pgx.NamedArgs {
	p := s.Principal
	return pgx.NamedArgs{"tenant": p.Tenant, "user": p.User, "root": p.Root, "call": s.call, "key": s.key}
}
