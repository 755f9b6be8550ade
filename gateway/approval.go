package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway/action"
	"github.com/whence-db/whence/internal/pg"
)

// ApprovalState is where a decision stands.
type ApprovalState string

const (
	// ApprovalPending waits for a decision.
	ApprovalPending ApprovalState = "PENDING"
	// Approved lets the execution run, once.
	Approved ApprovalState = "APPROVED"
	// ApprovalDenied ends it.
	ApprovalDenied ApprovalState = "DENIED"
	// ApprovalExpired was not decided, or not used, in time. It is derived, never stored.
	ApprovalExpired ApprovalState = "EXPIRED"
)

// Rendered is a request as it would be sent to an upstream, without credentials.
type Rendered struct {
	Method string `json:"method"`
	URL    string `json:"url"`
	Body   string `json:"body,omitempty"`
	// Header is what goes out beside what the server sets.
	Header http.Header `json:"header,omitempty"`
}

// Approval is an operator's decision on one exact execution.
type Approval struct {
	ID         uuid.UUID
	State      ApprovalState
	Execution  Execution
	Purpose    string // of the task
	Shown      []action.Effect
	Requests   []Rendered
	Digest     whence.Digest // of all that is decided on
	Needed     int
	ApprovedBy []string
	DecidedBy  string // who decided last; empty while nobody did
	Comment    string
	Used       bool
	Created    time.Time
	Expires    time.Time
	Decided    time.Time // zero while it was not
}

const (
	insertApprovalSQL = `
insert into whence.approvals (id, execution_id, tenant, digest, shown, requests, needed, state, expires_at, created_at)
values (@id, @execution, @tenant, @digest, @shown, @requests, @needed, 'PENDING', @expires, @created)`

	approvalSQL = `
select a.id, a.execution_id, a.state, a.digest, a.shown, a.requests, a.needed, a.used_at is not null, a.expires_at, a.created_at,
    a.decided_at, a.comment, t.purpose,
    (select coalesce(array_agg(v.operator order by v.at), '{}') from whence.approval_votes v where v.approval_id = a.id and v.approves),
    coalesce((select v.operator from whence.approval_votes v where v.approval_id = a.id order by v.at desc limit 1), '')
from whence.approvals a join whence.executions x on x.id = a.execution_id join whence.tasks t on t.id = x.task_id
where a.tenant = @tenant`

	oneApprovalSQL   = ` and a.id = @id`
	lockApprovalSQL  = ` for no key update of a`
	useApprovalSQL   = `update whence.approvals set used_at = coalesce(used_at, @now) where id = @id`
	voteSQL          = `insert into whence.approval_votes (approval_id, operator, approves, comment, at) values (@id, @operator, @approves, @comment, @at)`
	decideSQL        = `update whence.approvals set state = @state, decided_at = @at, comment = @comment where id = @id`
	denyExecutionSQL = `
update whence.executions set state = 'DENIED', failure = @failure, ended_at = @at, attempt = attempt + 1
where id = @id and state = 'AWAITING_APPROVAL'`

	// What the task stands on: when any of it changes, what was approved is not what would run.
	policySQL = `
select coalesce((select to_jsonb(g) - 'created_at' from whence.grants g where g.id = t.grant_id), 'null'),
    coalesce((select to_jsonb(a) - 'created_at' - 'description' from whence.agents a where a.tenant = t.tenant and a.name = t.agent), 'null'),
    t.scope, t.limits
from whence.tasks t where t.id = @task`
)

// ask writes down what an execution would do, and that it waits for a decision.
func (g *Gateway) ask(ctx context.Context, s *Session, r run, x Execution) error {
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.def.RunTime())
	defer cancel()
	f, err := g.dry(bound, s.Principal, r, x)
	if err != nil {
		return g.fail(context.WithoutCancel(ctx), x, err)
	}
	if r.preview != "" && r.preview != r.previewDigest(f.effects, f.requests).String() {
		return g.fail(context.WithoutCancel(ctx), x, stalePreview())
	}
	now := g.now().UTC().Truncate(time.Microsecond)
	a := Approval{ID: uuid.Must(uuid.NewV7()), Needed: r.needs, Created: now, Expires: now.Add(r.def.ApprovalTime())}
	shown, err := json.Marshal(append([]action.Effect{}, f.shown...))
	if err != nil {
		return err
	}
	sent, err := json.Marshal(append([]Rendered{}, f.requests...))
	if err != nil {
		return err
	}
	x.State, x.Approval = Awaiting, a.ID
	err = pg.InTx(bound, g.pool, func(tx pgx.Tx) error {
		if err := g.still(bound, tx, s.Principal); err != nil {
			return err
		}
		if a.Digest, err = g.binding(bound, tx, s.Principal, r, x, a.Expires, f.effects, f.requests); err != nil {
			return err
		}
		_, err := tx.Exec(bound, insertApprovalSQL, pgx.NamedArgs{"id": a.ID, "execution": x.ID, "tenant": x.Tenant, "digest": a.Digest[:],
			"shown": string(pg.JSON(shown)), "requests": string(pg.JSON(sent)), "needed": a.Needed, "expires": a.Expires, "created": now})
		if err != nil {
			return err
		}
		if err := holdsRows(bound, tx, x.ID, f.effects); err != nil {
			return err
		}
		return g.store(bound, tx, x, Running)
	})
	if err != nil {
		return fmt.Errorf("ask for an approval: %w", err)
	}
	s.Note("approval", a.ID)
	return pendingApproval(x, a)
}

func pendingApproval(x Execution, a Approval) error {
	return &whence.Error{Kind: whence.ErrPrecondition, Reason: "APPROVAL_PENDING", RetryAfter: 5 * time.Second,
		Message: "an operator must approve this; nothing has been done. Go on with other work, and call again with the same idempotency key once it is decided",
		Metadata: map[string]string{"approval": a.ID.String(), "execution": x.ID.String(), "action": x.Action,
			"needed": fmt.Sprint(a.Needed), "expires": a.Expires.Format(time.RFC3339)}}
}

// binding is the digest of all that an approval is given for.
func (g *Gateway) binding(ctx context.Context, tx pgx.Tx, p *authz.Principal, r run, x Execution, expires time.Time, effects []action.Effect, requests []Rendered) (d whence.Digest, err error) {
	var grant, agent, scope json.RawMessage
	var limits []int64
	if err := tx.QueryRow(ctx, policySQL, pgx.NamedArgs{"task": x.Task}).Scan(&grant, &agent, &scope, &limits); err != nil {
		return d, fmt.Errorf("read what an approval stands on: %w", err)
	}
	current := r.Registered
	if r.raw == nil {
		if current, err = g.actions.Get(ctx, tx, x.Tenant, x.Action); err != nil {
			return d, err
		}
	}
	var to string
	if r.raw != nil {
		to = fmt.Sprintf("%x", r.raw.to.Digest)
	} else if r.def.HTTP != nil {
		u, err := g.upstreams.Current(ctx, x.Tenant, r.def.HTTP.Upstream)
		if err != nil {
			return d, err
		}
		to = fmt.Sprintf("%x", u.Digest)
	}
	policy := digestOf("policy", grant, agent, scope, limits, current.Version, current.Digest, to, r.parts)
	return digestOf("approval", x.Tenant, x.User, p.Actors, x.Task, x.Action, x.Version, r.Registered.Digest, r.args.JSON(),
		before(effects), append([]Rendered{}, requests...), policy, expires.Format(time.RFC3339Nano), x.Key), nil
}

// useApproval spends the approval that an execution needs, in the transaction after
// which it runs. Whatever is not as it was approved is refused.
func (g *Gateway) useApproval(ctx context.Context, tx pgx.Tx, p *authz.Principal, r run, x Execution, effects []action.Effect, requests []Rendered) error {
	if r.needs == 0 {
		return nil
	}
	a, found, err := g.findApproval(ctx, tx, approvalSQL+oneApprovalSQL+lockApprovalSQL, pgx.NamedArgs{"tenant": x.Tenant, "id": x.Approval})
	if err != nil {
		return err
	}
	switch {
	case !found || x.Approval == uuid.Nil || a.Execution.ID != x.ID:
		return fmt.Errorf("execution %s has no approval of its own", x.ID)
	case a.State == Approved && !g.now().Before(a.Expires):
		return staleApproval(x, "it has expired")
	case a.State != Approved:
		return staleApproval(x, "it is "+string(a.State))
	}
	now, err := g.binding(ctx, tx, p, r, x, a.Expires, effects, requests)
	if errors.Is(err, whence.ErrNotFound) {
		return staleApproval(x, "the action is not registered any more")
	}
	if err != nil {
		return err
	}
	if now != a.Digest {
		return staleApproval(x, "the rows, the action or what the task may do have changed since it was asked for")
	}
	// It is this execution's and no other's, which has one effect: where an attempt came
	// to nothing, the next one uses it again.
	_, err = tx.Exec(ctx, useApprovalSQL, pgx.NamedArgs{"id": a.ID, "now": g.now()})
	return err
}

func staleApproval(x Execution, why string) error {
	return &whence.Error{Kind: whence.ErrPrecondition, Reason: "APPROVAL_STALE",
		Message:  "the approval is not for what would run now, so nothing was done: " + why + ". Ask again with a new idempotency key",
		Metadata: map[string]string{"approval": x.Approval.String(), "execution": x.ID.String()}}
}

// denied says why an execution will never run.
func denied(x Execution) error {
	e := &whence.Error{Kind: whence.ErrPrecondition, Reason: "APPROVAL_DENIED", Message: "this will not run",
		Metadata: map[string]string{"approval": x.Approval.String(), "execution": x.ID.String()}}
	if x.Failure != nil {
		e.Reason, e.Message = x.Failure.Reason, x.Failure.Message
	}
	return e
}

// decided goes on with an execution that waited, as it was decided.
func (g *Gateway) decided(ctx context.Context, s *Session, r run, x Execution, done func(Execution) error) error {
	a, found, err := g.findApproval(ctx, g.pool, approvalSQL+oneApprovalSQL, pgx.NamedArgs{"tenant": x.Tenant, "id": x.Approval})
	switch {
	case err != nil:
		return err
	case !found:
		return fmt.Errorf("execution %s waits for an approval that there is not", x.ID)
	}
	s.Note("approval", a.ID)
	switch a.State {
	case ApprovalPending:
		s.replayed = true
		return pendingApproval(x, a)
	case ApprovalExpired:
		s.replayed = true
		x.Failure = &Failure{Kind: whence.ErrPrecondition.Error(), Reason: "APPROVAL_EXPIRED",
			Message: "nobody approved this in time, or it was not run in time after that; ask again with a new idempotency key, if it is still wanted"}
		if err := g.deny(ctx, g.pool, x); err != nil {
			return err
		}
		return denied(x)
	case Approved, ApprovalDenied: // a denial has ended the execution
	}
	if err := g.afford(ctx, s, r); err != nil {
		return err
	}
	return g.takeUp(ctx, s, r, x, done)
}

type execer interface {
	querier
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

func (g *Gateway) findApproval(ctx context.Context, db querier, sql string, args pgx.NamedArgs) (a Approval, found bool, err error) {
	rows, err := db.Query(ctx, sql, args)
	if err == nil {
		a, err = pgx.CollectExactlyOneRow(rows, g.scanApproval)
	}
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return a, false, nil
	case err != nil:
		return a, false, fmt.Errorf("find an approval: %w", pg.Translate(err))
	}
	return a, true, nil
}

func (g *Gateway) scanApproval(row pgx.CollectableRow) (a Approval, err error) {
	var digest, shown, requests []byte
	var decided *time.Time
	if err := row.Scan(&a.ID, &a.Execution.ID, &a.State, &digest, &shown, &requests, &a.Needed, &a.Used, &a.Expires, &a.Created,
		&decided, &a.Comment, &a.Purpose, &a.ApprovedBy, &a.DecidedBy); err != nil {
		return a, err
	}
	copy(a.Digest[:], digest)
	a.Created, a.Expires = a.Created.UTC(), a.Expires.UTC()
	if decided != nil {
		a.Decided = decided.UTC()
	}
	if a.State != ApprovalDenied && !a.Used && !g.now().Before(a.Expires) {
		a.State = ApprovalExpired
	}
	return a, errors.Join(json.Unmarshal(shown, &a.Shown), json.Unmarshal(requests, &a.Requests))
}

// Decide approves or denies what an execution would do, as an operator saw it by its
// digest, in the transaction that records the call.
func (g *Gateway) Decide(ctx context.Context, s *Session, id string, approve bool, digest, comment string, done func(Approval)) error {
	a, err := g.GetApproval(ctx, s.Principal, id)
	if err != nil {
		return err
	}
	s.Note("approval", a.ID)
	s.Note("execution", a.Execution.ID)
	s.Note("approves", approve)
	if comment != "" {
		s.Note("comment", comment)
	}
	s.Write(Write{Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
		args := pgx.NamedArgs{"tenant": s.Principal.Tenant, "id": a.ID}
		now, found, err := g.findApproval(ctx, tx, approvalSQL+oneApprovalSQL+lockApprovalSQL, args)
		if err != nil || !found {
			return nil, errors.Join(err, g.noApproval(id))
		}
		if now.Execution, _, err = findExecution(ctx, tx, executionByIDSQL, pgx.NamedArgs{"id": now.Execution.ID}); err != nil {
			return nil, err
		}
		if err := now.decidable(s.Principal, approve, digest); err != nil {
			return nil, err
		}
		at := g.now().UTC()
		args["operator"], args["approves"], args["comment"], args["at"] = s.Principal.User, approve, pg.Text(comment), at
		if _, err := tx.Exec(ctx, voteSQL, args); err != nil {
			return nil, fmt.Errorf("decide on an approval: %w", err)
		}
		now.DecidedBy = s.Principal.User
		state := ApprovalPending
		switch {
		case !approve:
			state = ApprovalDenied
			now.Execution.Failure = &Failure{Kind: whence.ErrPrecondition.Error(), Reason: "APPROVAL_DENIED",
				Message: "an operator denied this, so it will not run: " + orWithout(comment, "no reason was given")}
			if err := g.deny(ctx, tx, now.Execution); err != nil {
				return nil, err
			}
		default:
			if now.ApprovedBy = append(now.ApprovedBy, s.Principal.User); len(now.ApprovedBy) >= now.Needed {
				state = Approved
			}
		}
		if state != ApprovalPending {
			args["state"] = state
			if _, err := tx.Exec(ctx, decideSQL, args); err != nil {
				return nil, fmt.Errorf("decide on an approval: %w", err)
			}
			now.Decided = at
		}
		now.State, now.Comment = state, comment
		done(now)
		return nil, nil
	}})
	return nil
}

func orWithout(s, without string) string {
	if s == "" {
		return without
	}
	return s
}

// decidable refuses a decision that is not the caller's to take, or comes too late.
func (a Approval) decidable(p *authz.Principal, approve bool, digest string) error {
	refuse := func(kind error, reason, message string) error {
		return &whence.Error{Kind: kind, Reason: reason, Message: message, Metadata: map[string]string{"approval": a.ID.String(), "state": string(a.State)}}
	}
	switch {
	case a.State != ApprovalPending:
		return refuse(whence.ErrPrecondition, "APPROVAL_DECIDED", "this is "+string(a.State)+" already; read it again to see what was decided")
	case approve && (a.Execution.User == p.User || slices.Contains(a.Execution.Actors, p.User)):
		return refuse(whence.ErrDenied, "SELF_APPROVAL", "nobody approves what is done for them or by them; have another operator decide")
	case approve && digest != a.Digest.String():
		return refuse(whence.ErrPrecondition, "APPROVAL_DIGEST_MISMATCH", "the digest is not of what waits here; look at it again, and send the digest that it has")
	case slices.Contains(a.ApprovedBy, p.User):
		return refuse(whence.ErrPrecondition, "APPROVAL_SECOND_PERSON", "you have approved this already; another person has to")
	}
	return nil
}

// deny ends an execution that waits.
func (g *Gateway) deny(ctx context.Context, db execer, x Execution) error {
	b, err := json.Marshal(x.Failure)
	if err != nil {
		return err
	}
	_, err = db.Exec(ctx, denyExecutionSQL, pgx.NamedArgs{"id": x.ID, "failure": string(pg.JSON(b)), "at": g.now()})
	return pg.Translate(err)
}
