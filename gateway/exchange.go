package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/federation"
	"github.com/whence-db/whence/authz/registry"
)

// exchangeCall is what the log calls an exchange, of whatever kind.
const exchangeCall = "oauth/token"

// maxOperatorLifetime is the longest that a token of an operator or a user is good
// for; they sign in again.
const maxOperatorLifetime = time.Hour

// Exchange asks for a credential on the strength of others (RFC 8693).
type Exchange struct {
	// Subject is for whom: a user's token by a trusted issuer, or the token of a task.
	Subject string
	// The agent that is to act proves who it is by Assertion (private_key_jwt), or by
	// the word of an issuer, Actor. Client is its name, if the request says it.
	Assertion, Actor, Client string
	// Audiences are what an assertion may be for: this server, in each of its names.
	Audiences []string
	// Proof is the header DPoP, for the request with this method and URL.
	Proof, Method, URL string

	// Role asks for a token for the user's own use instead of an agent's: RoleUser,
	// or RoleViewer for whatever operator's role they have.
	Role authz.Role
	// Want is the task that is asked for; nil asks for another token of the task
	// whose token Subject is. Calls 0 and Lifetime 0: as many and as long as granted.
	Want *authz.TaskRequest
}

// Exchanged is the credential.
type Exchanged struct {
	Token   string
	Expires time.Time
	Bound   bool      // to a key: it is presented with proofs of that
	Task    uuid.UUID // zero when it is not a task's
	Role    authz.Role
	Granted authz.TaskRequest // what the task may; of a task only
}

// Exchange issues a credential. It is a call of its own, with its own entry,
// whatever comes of it: who asked is recorded as far as it could be verified.
// Refusals are whence.Errors, of kind ErrUnauthenticated when a token or a proof is
// not good, ErrDenied when they are and do not suffice.
func (g *Gateway) Exchange(ctx context.Context, x Exchange) (out Exchanged, err error) {
	leave, err := g.enter()
	if err != nil {
		return out, err
	}
	defer leave()
	c := Call{Name: exchangeCall}
	s := &Session{Started: g.now(), Principal: &authz.Principal{}}
	err = protect(ctx, c, s, func(ctx context.Context, s *Session) error {
		return g.exchange(ctx, x, s, &out)
	})
	if err = g.record(ctx, c, s, false, err); err != nil {
		return Exchanged{}, err
	}
	return out, nil
}

// exchange settles what is given. What is written is left to the transaction that
// records the call.
func (g *Gateway) exchange(ctx context.Context, x Exchange, s *Session, out *Exchanged) error {
	if g.verifier.Mine(x.Subject) {
		return g.exchangeOwn(ctx, x, s, out)
	}
	user, err := g.foreign.User(ctx, x.Subject)
	if err != nil {
		return err
	}
	s.Principal.Tenant, s.Principal.User, s.Principal.IssuedAt = user.Tenant, user.Subject, user.IssuedAt
	s.Note("issuer", user.Issuer.Name)
	if x.Role != "" {
		*out, err = g.signIn(ctx, x, user, s)
		return err
	}
	if x.Want == nil {
		return whence.Invalid("authorization_details", "DETAILS_MISSING", "say what the task may touch and what it is for")
	}
	agent, err := g.authenticate(ctx, x, user.Tenant, s)
	if err != nil {
		return err
	}
	x.Want.Agent = agent.Name
	s.Note("asked", summary(x.Want.Scope))
	if err := g.stops.Check(ctx, s.Principal, ""); err != nil { // a token of before a revocation, too
		return err
	}
	thumbprint, err := g.verifier.Proof(x.Proof, x.Method, x.URL)
	if err != nil {
		return err
	}
	t, grant, err := g.grantTask(ctx, *x.Want, user, agent, thumbprint)
	if err != nil {
		return err
	}
	started, err := g.issue(t, MaxTokenLifetime)
	if err != nil {
		return err
	}
	s.noteTask(t)
	s.Note("grant", t.Grant)
	s.Write(Write{Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
		return nil, g.insertGranted(ctx, tx, t, grant, agent, user.Issuer)
	}})
	*out = started.exchanged()
	return nil
}

// signIn gives a user a token for their own use.
func (g *Gateway) signIn(ctx context.Context, x Exchange, user federation.Identity, s *Session) (out Exchanged, err error) {
	if err := g.stops.Check(ctx, s.Principal, ""); err != nil {
		return out, err
	}
	out.Role = authz.RoleUser
	if x.Role == authz.RoleUser {
		out.Token, out.Expires, err = g.issuer.IssueUser(user.Tenant, user.Subject, user.Issuer.UserScope, maxOperatorLifetime)
	} else {
		out.Role = user.Role
		if !user.Role.Operates() {
			return out, &whence.Error{Kind: whence.ErrDenied, Reason: "ROLE_MISSING",
				Message: fmt.Sprintf("user %q is in no group that operates this installation; have an admin map one of their groups to a role, or sign in as a user", user.Subject)}
		}
		out.Token, out.Expires, err = g.issuer.IssueOperator(user.Subject, user.Role, maxOperatorLifetime)
	}
	s.Note("role", out.Role)
	return out, err
}

// authenticate settles which agent asks.
func (g *Gateway) authenticate(ctx context.Context, x Exchange, tenant string, s *Session) (a registry.Agent, err error) {
	switch {
	case x.Assertion != "" && x.Actor != "":
		return a, whence.Invalid("actor_token", "AGENT_AMBIGUOUS", "send client_assertion or actor_token, not both")
	case x.Assertion != "":
		a, err = g.asserted(ctx, x, tenant)
	case x.Actor != "":
		a, err = g.vouched(ctx, x, tenant)
	default:
		return a, unknownAgent("AGENT_UNAUTHENTICATED", "the agent must prove who it is: send client_assertion (private_key_jwt), or actor_token by an issuer that knows it")
	}
	if err != nil {
		return a, err
	}
	s.Principal.Agent, s.Principal.Actors = a.Name, []string{a.Name}
	if x.Client != "" && x.Client != a.Name {
		return a, unknownAgent("AGENT_WRONG", "client_id names another agent than the one that has proved who it is; leave it out, or correct it")
	}
	return a, nil
}

func (g *Gateway) asserted(ctx context.Context, x Exchange, tenant string) (a registry.Agent, err error) {
	found, err := g.foreign.Assertion(ctx, x.Assertion, func(ctx context.Context, name string) (json.RawMessage, error) {
		a, err = g.known.Agent(ctx, tenant, name)
		if err == nil && a.JWKS == nil {
			err = &whence.Error{Kind: whence.ErrNotFound, Reason: "AGENT_NOT_FOUND", Message: "the agent has no keys; have an operator register them, or send actor_token by an issuer that knows it"}
		}
		return a.JWKS, err
	}, x.Audiences)
	if err != nil {
		return a, err
	}
	return a, g.known.SpendAssertion(ctx, tenant, found)
}

func (g *Gateway) vouched(ctx context.Context, x Exchange, tenant string) (a registry.Agent, err error) {
	id, err := g.foreign.Agent(ctx, x.Actor)
	if err != nil {
		return a, err
	}
	a, err = g.known.AgentBySubject(ctx, id.Issuer.Name, id.Subject)
	// An issuer whose tokens choose their tenant must have chosen the agent's.
	if errors.Is(err, whence.ErrNotFound) || err == nil && (a.Tenant != tenant || id.Issuer.TenantClaim != "" && id.Tenant != tenant) {
		return a, unknownAgent("AGENT_NOT_FOUND", "no agent of the user's tenant is known by this actor_token; have an operator register it with this issuer and subject")
	}
	return a, err
}

func unknownAgent(reason, message string) error {
	return &whence.Error{Kind: whence.ErrUnauthenticated, Reason: reason, Message: message, Field: "client"}
}

// grantTask works out the task that the grants allow.
func (g *Gateway) grantTask(ctx context.Context, want authz.TaskRequest, user federation.Identity, agent registry.Agent, thumbprint string) (t Task, grant registry.Grant, err error) {
	now := g.now()
	grants, err := g.known.GrantsFor(ctx, user.Tenant, agent.Name, user.Subject, user.Groups, now)
	if err != nil {
		return t, grant, err
	}
	if len(grants) == 0 {
		return t, grant, noGrant(agent.Name, user.Subject)
	}
	var first error
	for _, grant = range grants {
		if t, err = g.under(grant, now, want, user, agent, thumbprint); err == nil {
			return t, grant, nil
		}
		if !errors.Is(err, whence.ErrDenied) {
			return t, grant, err
		}
		if first == nil {
			first = err
		}
	}
	return t, grant, first
}

func noGrant(agent, user string) error {
	return &whence.Error{Kind: whence.ErrDenied, Reason: "GRANT_MISSING",
		Message:  fmt.Sprintf("agent %q has no grant to act for user %q; have an operator, or the user, give one", agent, user),
		Metadata: map[string]string{"agent": agent, "user": user}}
}

// under is the task that one grant allows.
func (g *Gateway) under(grant registry.Grant, now time.Time, want authz.TaskRequest, user federation.Identity, agent registry.Agent, thumbprint string) (t Task, err error) {
	bounds := []authz.Bound{{Name: "the user", Spec: user.Issuer.UserScope}, {Name: "the grant", Spec: grant.Scope}}
	if agent.Ceiling != nil {
		bounds = append(bounds, authz.Bound{Name: "the agent's ceiling", Spec: *agent.Ceiling})
	}
	scope, err := authz.Effective(want.Scope, bounds)
	if err != nil {
		return t, err
	}
	if grant.Proof && thumbprint == "" {
		return t, &whence.Error{Kind: whence.ErrDenied, Reason: "PROOF_REQUIRED", Metadata: map[string]string{"grant": grant.ID.String()},
			Message: "the grant gives tokens only to the holder of a key; send a proof of yours in the header DPoP (RFC 9449)"}
	}
	want.Scope = scope
	want.Calls, want.Limits = leastOf(want.Calls, grant.Calls), want.Limits.Least(grant.Limits)
	want.Lifetime = leastOf(want.Lifetime, grant.Lifetime)
	if !grant.Expires.IsZero() {
		want.Lifetime = min(want.Lifetime, grant.Expires.Sub(now).Truncate(time.Second))
	}
	if want.Lifetime < time.Second {
		return t, noGrant(agent.Name, user.Subject)
	}
	if err := want.Validate(); err != nil {
		return t, err
	}
	t = newTask(now, user.Tenant, user.Subject, want)
	t.Root, t.Grant, t.MaxDepth, t.Thumbprint = t.ID, grant.ID, grant.MaxDepth, thumbprint
	return t, nil
}

// leastOf is what is asked for, as far as it is granted; 0 asks for all of it.
func leastOf[T int64 | time.Duration](asked, granted T) T {
	if asked == 0 {
		return granted
	}
	return min(asked, granted)
}

// insertGranted starts the task unless somebody was stopped in the meantime, or what
// the task stands on was taken back or changed.
func (g *Gateway) insertGranted(ctx context.Context, tx pgx.Tx, t Task, grant registry.Grant, agent registry.Agent, issuer federation.Issuer) error {
	if err := g.stops.Hold(ctx, tx, t.Tenant, t.User, t.Actors); err != nil {
		return err
	}
	same, err := g.known.Hold(ctx, tx, grant, agent, issuer)
	switch {
	case err != nil:
		return err
	case !same:
		return &whence.Error{Kind: whence.ErrAborted, Reason: "GRANT_CHANGED", RetryAfter: 100 * time.Millisecond,
			Message: "the grant, the agent or the issuer was changed just now; try again"}
	}
	return insertTask(ctx, tx, t, []uuid.UUID{t.ID})
}

// exchangeOwn exchanges a task's token: for another one of the same task, or for one
// of a task below it.
func (g *Gateway) exchangeOwn(ctx context.Context, x Exchange, s *Session, out *Exchanged) error {
	p, err := g.verifier.Verify(ctx, x.Subject)
	s.Principal = p
	if err != nil {
		return err
	}
	if p.IsOperator() || x.Role != "" {
		return &whence.Error{Kind: whence.ErrDenied, Reason: "WRONG_CREDENTIAL_KIND",
			Message: "a token that this server gave an operator or a user stands for nobody else; send the token of the user's own issuer"}
	}
	by := &Session{Principal: &authz.Principal{}}
	agent, err := g.authenticate(ctx, x, p.Tenant, by)
	if err != nil {
		return err
	}
	if err := g.holds(x, p); err != nil {
		return err
	}
	if x.Want == nil {
		*out, err = g.renew(ctx, p, agent, s)
		return err
	}
	s.Note("asked", summary(x.Want.Scope))
	s.Note("asker", agent.Name)
	if err := (Call{Action: authz.TaskDelegate}).allow(p); err != nil {
		return err
	}
	x.Want.Agent = agent.Name
	s.Write(Write{Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
		started, err := g.startBelow(ctx, tx, p, *x.Want)
		if err == nil {
			*out = started.exchanged()
			s.noteTask(started.Task)
		}
		return nil, err
	}})
	return nil
}

// holds makes sure that whoever sends a bound token of a task has its key.
func (g *Gateway) holds(x Exchange, p *authz.Principal) error {
	thumbprint, err := g.verifier.Proof(x.Proof, x.Method, x.URL)
	switch {
	case err != nil:
		return err
	case p.Thumbprint != "" && thumbprint != p.Thumbprint:
		return &whence.Error{Kind: whence.ErrUnauthenticated, Reason: "PROOF_KEY_WRONG",
			Message: "the task's token is bound to a key; send a proof of that one in the header DPoP (RFC 9449)"}
	}
	return nil
}

// renew gives the agent of a task another token of the same task, as the task is.
func (g *Gateway) renew(ctx context.Context, p *authz.Principal, agent registry.Agent, s *Session) (out Exchanged, err error) {
	if agent.Name != p.Agent {
		return out, &whence.Error{Kind: whence.ErrDenied, Reason: "ACTOR_WRONG",
			Message: fmt.Sprintf("this is a token of agent %q; to act below its task, send authorization_details", p.Agent)}
	}
	if err := g.alive(ctx, p.Task); err != nil {
		return out, err
	}
	started, err := g.again(ctx, g.pool, p.Task)
	if err != nil {
		return out, err
	}
	s.Note("renewed", true)
	return started.exchanged(), nil
}

// Stands tells whether a credential that was let in would still be: it has not
// expired or been revoked, and its task goes on.
func (g *Gateway) Stands(ctx context.Context, token string) error {
	p, err := g.verifier.Verify(ctx, token)
	if err != nil || p.IsOperator() {
		return err
	}
	return g.alive(ctx, p.Task)
}

// standingPause is how often a stream's credential is looked at again.
const standingPause = 400 * time.Millisecond

// WhileGood runs a stream until its credential is revoked, has expired with its task,
// or can no longer be vouched for: then the stream's context ends.
func (g *Gateway) WhileGood(ctx context.Context, token string, stream func(context.Context) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var watch errgroup.Group
	watch.Go(func() error {
		t := time.NewTicker(standingPause)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-t.C:
				if err := g.Stands(ctx, token); err != nil && ctx.Err() == nil {
					stop()
					return err
				}
			}
		}
	})
	err := stream(ctx)
	stop()
	if revoked := watch.Wait(); revoked != nil {
		return revoked
	}
	return err
}

// alive refuses a task that may not go on, or one above which does not.
func (g *Gateway) alive(ctx context.Context, task uuid.UUID) error {
	r := &reservation{task: task, root: task, now: g.now()}
	if err := g.reservations.do(ctx, r); err != nil {
		return err
	}
	return r.refused
}

func (s Started) exchanged() Exchanged {
	t := s.Task
	return Exchanged{Token: s.Token, Expires: s.Expires, Bound: t.Thumbprint != "", Task: t.ID,
		Granted: authz.TaskRequest{Agent: t.Agent, Purpose: t.Purpose, Scope: t.Scope, Calls: t.Budget.Limit[authz.Calls],
			Limits: authz.LimitsOf(t.Budget.Limit), Lifetime: t.Budget.Deadline.Sub(t.Created)}}
}

// summary is a wish as the log keeps it: a long list is cut, for whoever asks may have
// been granted nothing.
func summary(s authz.ScopeSpec) map[string]any {
	const most = 20
	cut := func(n int) int { return min(n, most) }
	out := map[string]any{"actions": s.Actions[:cut(len(s.Actions))], "tables": s.Tables[:cut(len(s.Tables))], "subjects": s.Subjects[:cut(len(s.Subjects))],
		"allTables": s.AllTables, "allSubjects": s.AllSubjects, "filters": len(s.Filter)}
	if n := len(s.Tables) + len(s.Subjects) + len(s.DenyTables) + len(s.DenySubjects); n > most {
		out["names"] = n
	}
	return out
}
