package gateway

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/audit"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway/upstream"
	"github.com/whence-db/whence/lineage"
	"github.com/whence-db/whence/query"
)

// Call says what is asked of the door.
type Call struct {
	Name string // as in "whence.v1.MemoryService/Query"
	// Presented is the caller's credential.
	Presented authz.Presented

	// Action set: for agents whose scope allows it. Role set: for operators of at
	// least that role. Both: for either. Neither: for any agent, about its own task.
	Action authz.Action
	Role   authz.Role

	// Charge is how many calls of its budget an agent pays: 0 for polling.
	Charge int64
	// Prepare decodes and checks the request and returns the SHA-256 of its
	// canonical form. It runs once the caller is known and before anything is
	// charged, so what it refuses costs nothing. Optional.
	Prepare func() (digest [32]byte, err error)
	// Worst is the most that the call may use beside calls, known once it is prepared.
	// It is held before the call runs, and what it uses of it is paid. Optional.
	Worst func() authz.Amounts
	// IdempotencyKey makes calls with the same one, of the same task,
	// write once; empty: each writes.
	IdempotencyKey string
	// Detail is recorded with the entry; it is not to hold secrets.
	Detail map[string]any

	as *authz.Principal // who makes a call that is part of another, which has authenticated them
}

// Session is one call that was let in. It belongs to the goroutine that runs it.
type Session struct {
	Principal *authz.Principal
	Started   time.Time

	call, key, token string   // as in Call
	write            *Write   // nil: the call writes nothing of its own
	after            []func() // run once the call is over
	spent            int64    // of money, as an upstream told
	effect           bool     // something was done that recording the call must not hide
	unpaid           error    // why the call may only tell what was told before; nil: it is paid
	replayed         bool     // it tells what was told before, and so costs nothing
	charged          *charge  // nil for an operator
	used             authz.Amounts
	embedded         int64        // requests to the embedding model
	size             func() int64 // of the reply
	digest           [32]byte
	answer           *lineage.Answer
	detail           map[string]any
}

// Budget is what the task has left, this call's charge taken off; zero for an operator.
func (s *Session) Budget() Budget {
	if s.charged == nil {
		return Budget{}
	}
	return s.charged.budget
}

// Use says what the call has used of a meter, within the worst that was held for it.
func (s *Session) Use(m authz.Meter, n int64) { s.used[m] += n }

// Measure has size asked for the bytes of the reply once the call has succeeded.
func (s *Session) Measure(size func() int64) { s.size = size }

// did says that the call has done what cannot be taken back by not recording it: it is
// paid whatever comes of the rest.
func (s *Session) did(used authz.Amounts) {
	s.effect = true
	s.used = s.used.Plus(used)
}

// Held is the most that the call may use of a meter.
func (s *Session) Held(m authz.Meter) int64 {
	if s.charged == nil {
		return authz.Unlimited
	}
	return s.charged.held[m]
}

// SetAnswer hands over the call's answer, which is stored if the call succeeds.
// Whose it is comes from the credential, whatever a says, and so does the time
// from the call; an id is made when a has none. It returns the id.
func (s *Session) SetAnswer(a lineage.Answer) uuid.UUID {
	if a.ID == uuid.Nil {
		a.ID = uuid.Must(uuid.NewV7())
	}
	p := s.Principal
	a.At, a.Tenant, a.Task, a.Agent, a.User = s.Started, p.Tenant, p.Task, p.Agent, p.User
	s.answer = &a
	return a.ID
}

// Write is what a call writes, beside its entry and its answer.
type Write struct {
	// Effect runs after the handler, in the transaction that records the call, so
	// that neither is without the other. It may run more than once until that
	// commits. It returns what Replay takes, without words of what is written. An
	// error that it returns is the call's.
	Effect func(context.Context, pgx.Tx) (reply []byte, err error)
	// Replay takes the place of Effect when a call with the same idempotency key has
	// written already.
	Replay func(ctx context.Context, tx pgx.Tx, reply []byte) error
	// After runs once that is committed; optional.
	After func(context.Context)
	// Refused is told when Effect failed, and so did not happen; optional.
	Refused func(context.Context, error)
	// Keyed says that Effect itself sees to it that one idempotency key has one effect.
	Keyed bool
}

// Write has the call write once its handler has succeeded.
func (s *Session) Write(w Write) { s.write = &w }

// Note adds a fact to the call's entry.
func (s *Session) Note(key string, value any) {
	if s.detail == nil {
		s.detail = map[string]any{}
	}
	s.detail[key] = value
}

// Do takes a call through the door: it authenticates, authorises, prepares the
// request, charges the task and every task above it, runs fn, and returns once
// the outcome is durable. Nothing that fn produced may go out before Do has
// returned nil. When the outcome cannot be recorded, Do fails with
// ErrUnavailable AUDIT_UNAVAILABLE, whatever fn did.
//
// Errors of fn come back as they are; a panic in fn becomes an error. A call that
// fails for no fault of the caller, or whose request is not valid, costs nothing.
func (g *Gateway) Do(ctx context.Context, c Call, fn func(context.Context, *Session) error) error {
	leave, err := g.enter()
	if err != nil {
		return err
	}
	defer leave()
	return g.do(ctx, c, fn)
}

// do is Do of a call that has entered.
func (g *Gateway) do(ctx context.Context, c Call, fn func(context.Context, *Session) error) (err error) {
	s := &Session{Started: g.now(), detail: maps.Clone(c.Detail), call: c.Name, key: c.IdempotencyKey, token: c.Presented.Token}
	defer func() {
		for _, f := range s.after {
			f()
		}
	}()
	err = g.admit(ctx, c, s)
	ran := err == nil
	if ran {
		measured, used := query.MeasureEmbedding(ctx)
		err = protect(measured, c, s, fn)
		s.embedded, s.used[authz.EmbeddingTokens] = used()
	}
	return g.record(ctx, c, s, ran, err)
}

// Refuse records a call that cannot reach a handler, because there is none for
// it, say. It returns the reason, or why the caller is not even known.
func (g *Gateway) Refuse(ctx context.Context, c Call, reason error) error {
	leave, err := g.enter()
	if err != nil {
		return err
	}
	defer leave()
	s := &Session{Started: g.now(), detail: maps.Clone(c.Detail)}
	if s.Principal, err = g.verifier.Authenticate(ctx, c.Presented); err != nil {
		reason = err
	}
	return g.record(ctx, c, s, false, reason)
}

// admit leads a call up to its handler.
func (g *Gateway) admit(ctx context.Context, c Call, s *Session) (err error) {
	if s.Principal = c.as; s.Principal == nil {
		if s.Principal, err = g.verifier.Authenticate(ctx, c.Presented); err != nil {
			return err
		}
	}
	if err := c.allow(s.Principal); err != nil {
		return err
	}
	if err := c.checkKey(); err != nil {
		return err
	}
	if !s.Principal.IsOperator() && c.as == nil {
		leave, err := g.turns.enter(ctx, s.Principal.Root.String())
		if err != nil {
			return err
		}
		s.after = append(s.after, leave)
	}
	if c.Prepare != nil {
		if s.digest, err = c.Prepare(); err != nil {
			return err
		}
	}
	if s.Principal.IsOperator() {
		return ctx.Err()
	}
	r := &reservation{task: s.Principal.Task, root: s.Principal.Root, need: c.worst(), now: g.now()}
	if err := g.charge(ctx, r); err != nil {
		// What was told before is told again, whatever is left.
		var known bool
		if errors.Is(err, whence.ErrExhausted) && s.key != "" {
			known, _ = g.keyKnown(ctx, s) // else the refusal stands
		}
		if !known {
			return err
		}
		s.unpaid = err
	}
	s.charged = &r.charge
	return ctx.Err()
}

// worst is all that the call may use.
func (c Call) worst() (a authz.Amounts) {
	if c.Charge == 0 { // polling is free
		return a
	}
	if c.Worst != nil {
		a = c.Worst()
	}
	a[authz.Calls], a[authz.Concurrency] = c.Charge, 1
	return a
}

func (c Call) allow(p *authz.Principal) error {
	if p.IsOperator() {
		switch {
		case c.Role == "":
			return wrongKind("this call is for agents; use the token of a task")
		case !p.Role.AtLeast(c.Role):
			return &whence.Error{Kind: whence.ErrDenied, Reason: "ROLE_INSUFFICIENT",
				Message:  fmt.Sprintf("this call needs the role %s and the token has the role %s", c.Role, p.Role),
				Metadata: map[string]string{"needed": string(c.Role), "role": string(p.Role)}}
		}
		return nil
	}
	switch {
	case c.Role != "" && c.Action == "":
		return wrongKind("this call is for operators; use an operator's token")
	case c.Action != "" && !p.Scope.Allows(c.Action):
		return &whence.Error{Kind: whence.ErrDenied, Reason: "ACTION_OUT_OF_SCOPE",
			Message:  fmt.Sprintf("the task's scope does not hold the action %s; work without it, or ask for a task that has it", c.Action),
			Metadata: map[string]string{"action": string(c.Action)}}
	}
	return nil
}

func wrongKind(message string) error {
	return &whence.Error{Kind: whence.ErrDenied, Reason: "WRONG_CREDENTIAL_KIND", Message: message}
}

// protect runs fn; a panic fails the call and not the server.
func protect(ctx context.Context, c Call, s *Session, fn func(context.Context, *Session) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s panicked: %v\n%s", c.Name, p, debug.Stack())
		}
	}()
	return fn(ctx, s)
}

// record makes the outcome durable and returns what the caller may be told.
func (g *Gateway) record(ctx context.Context, c Call, s *Session, ran bool, failure error) error {
	if failure == nil && s.write != nil {
		return g.effect(ctx, c, s)
	}
	r, failure := g.outcome(c, s, ran, failure)
	// The caller may have gone; what happened is recorded all the same.
	err := g.records.do(context.WithoutCancel(ctx), r)
	if s.charged != nil {
		g.blocks.returned(s.Principal.Task, s.charged.held, err == nil)
	}
	if err != nil {
		return withheld(errors.Join(err, failure))
	}
	if r.void != nil && failure == nil {
		return r.void
	}
	return failure
}

func withheld(err error) *whence.Error {
	return &whence.Error{Kind: whence.ErrUnavailable, Reason: "AUDIT_UNAVAILABLE", RetryAfter: time.Second,
		Message: "the call could not be recorded, so its result is withheld; try again", Err: err}
}

// outcome is what is to be recorded of a call, and how it ends: a reply that is
// larger than what was held for it does not go out.
func (g *Gateway) outcome(c Call, s *Session, ran bool, failure error) (*record, error) {
	if failure == nil && s.size != nil && c.Charge != 0 {
		if s.used[authz.Bytes] += s.size(); s.charged != nil && s.charged.budget.Remaining[authz.Bytes] != authz.Unlimited && s.used[authz.Bytes] > s.charged.held[authz.Bytes] && !s.effect {
			failure = tooLarge(s)
		}
	}
	if s.embedded != 0 {
		s.Note("embedding", map[string]int64{"calls": s.embedded, "tokens": s.used[authz.EmbeddingTokens]})
	}
	r := &record{entry: entry(c, s, failure), calls: s.embedded, started: s.Started, effect: s.effect}
	if s.Principal != nil {
		r.task = s.Principal.Task
	}
	r.entry.Latency = max(0, g.now().Sub(s.Started))
	if failure == nil && s.answer != nil {
		r.answer, r.entry.Answer = s.answer, s.answer.ID
	}
	if c.Charge != 0 && s.charged != nil {
		r.charge = s.charged
		r.used[authz.EmbeddingTokens] = s.used[authz.EmbeddingTokens] // it was asked, whatever became of the call
		if ran && (failure == nil || s.effect || payable(failure)) {
			r.used[authz.Calls], r.entry.CallsCharged = c.Charge, c.Charge
		}
		if s.replayed || s.unpaid != nil {
			r.used[authz.Calls], r.entry.CallsCharged = 0, 0
			if s.replayed {
				s.Note("replayed", true)
			}
			r.entry.Detail = s.detail
		} else if failure == nil || s.effect {
			paid := s.used
			paid[authz.Calls] = c.Charge
			r.used = paid
			r.entry.Detail = chargedDetail(r.entry.Detail, paid)
		}
	}
	return r, failure
}

// chargedDetail adds what a call was charged beside calls, if it was.
func chargedDetail(detail map[string]any, paid authz.Amounts) map[string]any {
	more := authz.Limits{}
	for _, m := range []authz.Meter{authz.Writes, authz.Rows, authz.Bytes, authz.Spend} {
		if paid[m] != 0 {
			more[m] = paid[m]
		}
	}
	if len(more) == 0 {
		return detail
	}
	out := maps.Clone(detail)
	if out == nil {
		out = map[string]any{}
	}
	out["charged"] = more
	return out
}

func tooLarge(s *Session) *whence.Error {
	return &whence.Error{Kind: whence.ErrExhausted, Reason: "BUDGET_EXHAUSTED",
		Message: fmt.Sprintf("the reply has %d bytes, and the task's budget leaves %d for it; ask for less", s.used[authz.Bytes], s.charged.held[authz.Bytes]),
		Metadata: map[string]string{"task": s.Principal.Task.String(), "meter": authz.Bytes.String(),
			"needed": fmt.Sprint(s.used[authz.Bytes]), "remaining": fmt.Sprint(s.charged.held[authz.Bytes])}}
}

func entry(c Call, s *Session, failure error) audit.Entry {
	e := audit.Entry{At: s.Started, Call: c.Name, RequestDigest: s.digest, Detail: s.detail}
	e.Decision, e.Reason = judge(failure)
	if p := s.Principal; p != nil {
		e.Tenant, e.User, e.Agent, e.Actors = p.Tenant, p.User, p.Agent, p.Actors
		e.Task, e.RootTask, e.TokenID = p.Task, p.Root, p.TokenID
	}
	return e
}

// judge says what the log calls an outcome: refused when the caller can see from
// the reason what to change, failed when it is not for them to change.
func judge(err error) (audit.Decision, string) {
	var e *whence.Error
	switch {
	case err == nil:
		return audit.Allowed, ""
	case errors.As(err, &e) && (errors.Is(e.Kind, whence.ErrUnavailable) || errors.Is(e.Kind, whence.ErrAborted)):
		return audit.Failed, e.Reason
	case errors.As(err, &e):
		return audit.Refused, e.Reason
	case errors.Is(err, context.Canceled):
		return audit.Failed, "CANCELED"
	case errors.Is(err, context.DeadlineExceeded):
		return audit.Failed, "DEADLINE_EXCEEDED"
	}
	return audit.Failed, "INTERNAL"
}

// payable tells whether a call that ran and failed is paid for. The server's own
// failures and requests that are not valid are free. All other refusals are paid,
// for they tell the caller something, and so is a call that the caller gave up.
func payable(err error) bool {
	var e *whence.Error
	if !errors.As(err, &e) {
		return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
	}
	if upstream.Sent(err) {
		return true
	}
	for _, free := range []error{whence.ErrUnavailable, whence.ErrAborted, whence.ErrInvalid, whence.ErrUnimplemented} {
		if errors.Is(e.Kind, free) {
			return false
		}
	}
	return true
}
