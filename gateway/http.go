package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway/action"
	"github.com/whence-db/whence/gateway/upstream"
	"github.com/whence-db/whence/internal/pg"
)

// outbound is a request that an execution makes, before it is made anew for the wire.
type outbound struct {
	to     *upstream.Upstream
	rule   upstream.Rule // what it falls under; zero for a registered action
	target upstream.Target
	header http.Header
	body   []byte
}

// rendered is the request as people may see it. What is no text is told by its size.
func (o outbound) rendered() Rendered {
	r := Rendered{Method: o.target.Method, URL: strings.TrimSuffix(o.to.URL, "/") + o.target.Path, Body: string(o.body), Header: o.header}
	if o.target.RawQuery != "" {
		r.URL += "?" + o.target.RawQuery
	}
	if !utf8.Valid(o.body) || strings.ContainsRune(r.Body, 0) {
		r.Body = fmt.Sprintf("%d bytes, SHA-256 %s", len(o.body), whence.DigestOf(string(o.body)))
	}
	return r
}

// outbound renders the request of an HTTP action; reply is what an inverse takes
// values from.
func (g *Gateway) outbound(ctx context.Context, p *authz.Principal, r run, x Execution, q action.HTTPRequest, reply any) (o outbound, err error) {
	if r.raw != nil {
		return *r.raw, nil
	}
	if o.to, err = g.upstreams.Current(ctx, p.Tenant, r.def.HTTP.Upstream); err != nil {
		return o, err
	}
	args := r.request(p, x)
	value := func(operand action.Operand) (json.RawMessage, bool, error) {
		if operand.Result != nil {
			return pointer(reply, *operand.Result)
		}
		return operand.JSON(args.Args, args.Credential)
	}
	o.target.Method = q.Method
	if o.target.Path, err = fill(q, value); err != nil {
		return o, err
	}
	query := url.Values{}
	for name, operand := range q.Query {
		v, given, err := value(operand)
		if err != nil {
			return o, err
		}
		if given {
			query.Set(name, plainText(v))
		}
	}
	o.target.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20")
	if len(q.Body) > 0 {
		body := map[string]json.RawMessage{}
		for name, operand := range q.Body {
			v, given, err := value(operand)
			if err != nil {
				return o, err
			}
			if given {
				body[name] = v
			}
		}
		if o.body, err = json.Marshal(body); err != nil {
			return o, err
		}
		o.header = http.Header{"Content-Type": {"application/json"}}
	}
	return o, nil
}

// fill puts values into the path's braces, each as one segment's part.
func fill(q action.HTTPRequest, value func(action.Operand) (json.RawMessage, bool, error)) (string, error) {
	var out strings.Builder
	for rest := q.Path; ; {
		before, after, found := strings.Cut(rest, "{")
		out.WriteString(before)
		if !found {
			return out.String(), nil
		}
		name, next, _ := strings.Cut(after, "}")
		operand, ok := q.PathOperands[name]
		if !ok {
			operand = action.Operand{Parameter: name}
		}
		v, given, err := value(operand)
		if err != nil {
			return "", err
		}
		text := plainText(v)
		if !given || text == "" || text == "." || text == ".." {
			return "", whence.Invalid("arguments."+name, "ARGUMENTS_INVALID", fmt.Sprintf("%q stands in the path of the request, so it needs a value other than \".\" and \"..\"", name))
		}
		out.WriteString(strings.ReplaceAll(url.QueryEscape(text), "+", "%20"))
		rest = next
	}
}

// plainText is a JSON value as it stands in a path or a query.
func plainText(v json.RawMessage) string {
	var s string
	if json.Unmarshal(v, &s) == nil {
		return s
	}
	return string(v)
}

// pointer finds a value by its JSON Pointer (RFC 6901).
func pointer(in any, path string) (json.RawMessage, bool, error) {
	for _, step := range strings.Split(path, "/")[1:] {
		step = strings.NewReplacer("~1", "/", "~0", "~").Replace(step)
		switch at := in.(type) {
		case map[string]any:
			in = at[step]
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i < 0 || i >= len(at) {
				return nil, false, noValue(path)
			}
			in = at[i]
		default:
			return nil, false, noValue(path)
		}
	}
	if in == nil {
		return nil, false, noValue(path)
	}
	b, err := json.Marshal(in)
	return b, true, err
}

func noValue(path string) error {
	return &whence.Error{Kind: whence.ErrPrecondition, Reason: "UNDO_CONFLICT", Metadata: map[string]string{"pointer": path},
		Message: fmt.Sprintf("it cannot be undone, and nothing was: the upstream's reply has nothing at %q, which undoing needs", path)}
}

// reply is what an upstream answered, as it is kept.
type reply struct {
	Status int         `json:"status"`
	Header http.Header `json:"header,omitempty"`
	JSON   any         `json:"json,omitempty"` // the body, where it is JSON
	Body   []byte      `json:"body,omitempty"` // else
	Cut    bool        `json:"cut,omitempty"`  // it was too large to keep
}

// mostKept is how much of a reply to a write is kept, so that the same key gets it again.
const mostKept = 1 << 20

// dispatchHTTP sends a request, once it is written down that it will be.
func (g *Gateway) dispatchHTTP(ctx context.Context, s *Session, r run, x *Execution) error {
	var q action.HTTPRequest
	if r.def.HTTP != nil {
		q = r.def.HTTP.Request
	}
	o, err := g.outbound(ctx, s.Principal, r, *x, q, nil)
	if err != nil {
		return err
	}
	requests := []Rendered{o.rendered()}
	if r.preview != "" && r.preview != r.previewDigest(nil, requests).String() {
		return stalePreview()
	}
	if r.def.Tier != authz.TierRead {
		if _, err := g.verifier.Verify(ctx, s.token); err != nil {
			return err
		}
		x.sent = true
		err = pg.InTx(ctx, g.pool, func(tx pgx.Tx) error {
			if err := g.still(ctx, tx, s.Principal); err != nil {
				return err
			}
			if err := g.useApproval(ctx, tx, s.Principal, r, *x, nil, requests); err != nil {
				return err
			}
			return g.store(ctx, tx, *x, Running)
		})
		if err != nil {
			x.sent = false
			return err
		}
		g.step("written down")
	}
	got, err := g.send(ctx, s, r, o, x.ID.String())
	if err != nil && upstream.Sent(err) {
		s.spent = o.rule.CostMicros // what it did cost, nobody tells
	}
	if err == nil || upstream.Sent(err) {
		used := r.paid(0)
		if r.raw == nil {
			used[authz.Rows] = 1
		}
		used[authz.Spend] += s.spent
		s.spent = 0
		s.did(used)
	}
	if err != nil {
		return err
	}
	g.step("committed")
	if x.Result, err = json.Marshal(got); err != nil {
		return err
	}
	if r.raw == nil && got.Status >= 300 { // the upstream says that it did nothing, or nobody can say
		e := &whence.Error{Kind: whence.ErrPrecondition, Reason: "UPSTREAM_REFUSED", Metadata: map[string]string{"upstream": o.to.Name, "status": strconv.Itoa(got.Status)},
			Message: fmt.Sprintf("the upstream %q answered with status %d and did not do it; correct the arguments, or ask its operator", o.to.Name, got.Status)}
		if got.Status >= 500 {
			e.Reason, e.Message = upstream.ReasonFateUnknown, fmt.Sprintf("the upstream %q failed with status %d", o.to.Name, got.Status)
			e.Metadata["sent"] = "maybe"
		}
		return e
	}
	return nil
}

// send makes one request and reads the reply whole.
func (g *Gateway) send(ctx context.Context, s *Session, r run, o outbound, key string) (got reply, err error) {
	in := upstream.Asked{Target: o.target, Header: o.header.Clone(), Length: int64(len(o.body))}
	if len(o.body) > 0 {
		in.Body = io.NopCloser(bytes.NewReader(o.body))
	}
	if r.def.HTTP != nil && r.def.HTTP.IdempotencyHeader != "" {
		if in.Header == nil {
			in.Header = http.Header{}
		}
		in.Header.Set(r.def.HTTP.IdempotencyHeader, key)
		in.PassKey = true
	}
	req, err := g.forwarder.Outgoing(ctx, o.to, in, identity(s.Principal))
	if err != nil {
		return got, err
	}
	res, err := g.forwarder.Forward(ctx, o.to, req)
	if err != nil {
		return got, err
	}
	defer func() { _ = res.Body.Close() }() // it was read
	body, err := io.ReadAll(io.LimitReader(res.Body, mostKept+1))
	if err != nil {
		return got, err
	}
	got = reply{Status: res.StatusCode, Header: res.Header}
	s.Use(authz.Bytes, int64(len(o.body)+len(body)))
	s.spent += upstream.Spend(o.rule, res.Header)
	switch {
	case len(body) > mostKept:
		got.Cut = true
	case json.Valid(body) && utf8.Valid(body) && !bytes.Contains(body, []byte(`\u0000`)) && r.raw == nil:
		d := json.NewDecoder(bytes.NewReader(body))
		d.UseNumber()
		err = d.Decode(&got.JSON)
	default:
		got.Body = body
	}
	if r.raw == nil {
		got.Header = nil
	}
	return got, err
}

func identity(p *authz.Principal) upstream.Identity {
	return upstream.Identity{Task: p.Task.String(), Root: p.Root.String(), Agent: p.Agent, User: p.User, Tenant: p.Tenant}
}

// takeBackHTTP sends the request that takes an execution back.
func (g *Gateway) takeBackHTTP(ctx context.Context, s *Session, r run, x *Execution) error {
	var was struct {
		JSON json.RawMessage `json:"json"`
	}
	if err := json.Unmarshal(x.Result, &was); err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	answered, err := exact(was.JSON)
	if err != nil && was.JSON != nil {
		return fmt.Errorf("undo: %w", err)
	}
	raw := map[string]any{}
	if err := json.Unmarshal(x.Arguments, &raw); err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	if r.args, err = action.Arguments(r.def, raw); err != nil {
		return err
	}
	o, err := g.outbound(ctx, s.Principal, r, *x, *r.def.HTTP.Inverse, answered)
	if err != nil {
		return err
	}
	x.sent = true
	err = pg.InTx(ctx, g.pool, func(tx pgx.Tx) error {
		if err := g.still(ctx, tx, s.Principal); err != nil {
			return err
		}
		return g.store(ctx, tx, *x, Undoing)
	})
	if err != nil {
		return err
	}
	got, err := g.send(ctx, s, r, o, x.ID.String()+"-undo")
	switch {
	case err != nil && upstream.Sent(err), err == nil && got.Status >= 500:
		return g.lost(context.WithoutCancel(ctx), *x)
	case err != nil:
		return err
	case got.Status >= 300:
		return &whence.Error{Kind: whence.ErrPrecondition, Reason: "UNDO_CONFLICT", Metadata: map[string]string{"upstream": o.to.Name, "status": strconv.Itoa(got.Status)},
			Message: fmt.Sprintf("it cannot be undone, and nothing was: the upstream %q answered with status %d", o.to.Name, got.Status)}
	}
	return nil
}

// exact reads JSON with its numbers as they are written.
func exact(raw json.RawMessage) (v any, err error) {
	if len(raw) == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	return v, d.Decode(&v)
}

// unsure tells whether an upstream may have acted though the execution failed.
func (r run) unsure(err error) bool {
	return upstream.Sent(err) && (r.def.HTTP == nil || r.def.HTTP.IdempotencyHeader == "")
}
