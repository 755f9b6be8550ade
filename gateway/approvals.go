package gateway

import (
	"context"
	"encoding/base64"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/internal/pg"
)

func (g *Gateway) noApproval(id string) error {
	return &whence.Error{Kind: whence.ErrNotFound, Reason: "APPROVAL_NOT_FOUND", Field: "id", Message: "there is no such approval; ListApprovals has those that there are",
		Metadata: map[string]string{"approval": id}}
}

// GetApproval returns an approval with all that a decision needs.
func (g *Gateway) GetApproval(ctx context.Context, p *authz.Principal, id string) (a Approval, err error) {
	of, err := uuid.Parse(id)
	if err != nil {
		return a, g.noApproval(id)
	}
	a, found, err := g.findApproval(ctx, g.pool, approvalSQL+oneApprovalSQL, pgx.NamedArgs{"tenant": p.Tenant, "id": of})
	if err != nil {
		return a, err
	}
	if !found {
		return a, g.noApproval(id)
	}
	a.Execution, _, err = findExecution(ctx, g.pool, executionByIDSQL, pgx.NamedArgs{"id": a.Execution.ID})
	return a, err
}

// ApprovalFilter chooses approvals; what is zero does not choose.
type ApprovalFilter struct {
	State         ApprovalState
	Action, Agent string
}

const (
	pendingSQL        = ` and a.state = 'PENDING' and a.expires_at > @now`
	approvedSQL       = ` and a.state = 'APPROVED' and (a.used_at is not null or a.expires_at > @now)`
	deniedSQL         = ` and a.state = 'DENIED'`
	expiredApprovals  = ` and a.state <> 'DENIED' and a.used_at is null and a.expires_at <= @now`
	ofActionSQL       = ` and x.action = @action`
	ofAgentSQL        = ` and x.agent = @agent`
	olderApprovalsSQL = ` and a.id < @before`
	approvalsOrderSQL = ` order by a.id desc limit @limit`
)

// ListApprovals returns approvals, newest first, and the token of the next page,
// which is empty after the last one.
func (g *Gateway) ListApprovals(ctx context.Context, p *authz.Principal, f ApprovalFilter, pageSize int, pageToken string) (list []Approval, next string, err error) {
	if pageSize <= 0 {
		pageSize = DefaultPage
	}
	pageSize = min(pageSize, MaxPage)
	sql := approvalSQL
	args := pgx.NamedArgs{"tenant": p.Tenant, "limit": pageSize + 1, "now": g.now()}
	switch f.State {
	case ApprovalPending:
		sql += pendingSQL
	case Approved:
		sql += approvedSQL
	case ApprovalDenied:
		sql += deniedSQL
	case ApprovalExpired:
		sql += expiredApprovals
	}
	if f.Action != "" {
		sql, args["action"] = sql+ofActionSQL, pg.Text(f.Action)
	}
	if f.Agent != "" {
		sql, args["agent"] = sql+ofAgentSQL, pg.Text(f.Agent)
	}
	if pageToken != "" {
		before, err := parseToken(pageToken)
		if err != nil {
			return nil, "", err
		}
		sql, args["before"] = sql+olderApprovalsSQL, before
	}
	rows, err := g.pool.Query(ctx, sql+approvalsOrderSQL, args)
	if err == nil {
		list, err = pgx.CollectRows(rows, g.scanApproval)
	}
	if err != nil {
		return nil, "", fmt.Errorf("list approvals: %w", pg.Translate(err))
	}
	if len(list) > pageSize {
		list = list[:pageSize]
		next = base64.RawURLEncoding.EncodeToString(list[pageSize-1].ID[:])
	}
	return list, next, g.withExecutions(ctx, list)
}

const executionsSQL = executionSQL + `where id = any(@ids)`

// withExecutions fills in what approvals are of.
func (g *Gateway) withExecutions(ctx context.Context, list []Approval) error {
	ids := make([]uuid.UUID, len(list))
	for i, a := range list {
		ids[i] = a.Execution.ID
	}
	rows, err := g.pool.Query(ctx, executionsSQL, pgx.NamedArgs{"ids": ids, "none": uuid.Nil})
	if err != nil {
		return fmt.Errorf("read executions: %w", pg.Translate(err))
	}
	found, err := pgx.CollectRows(rows, scanExecution)
	if err != nil {
		return fmt.Errorf("read executions: %w", pg.Translate(err))
	}
	of := make(map[uuid.UUID]Execution, len(found))
	for _, x := range found {
		of[x.ID] = x
	}
	for i := range list {
		list[i].Execution = of[list[i].Execution.ID]
	}
	return nil
}

const changedApprovalsSQL = ` and (a.id = any(@shown) or a.created_at > @since) order by a.id`

// ChangedApprovals returns approvals as they are now, oldest first: those of shown, and
// those that were asked for after since.
func (g *Gateway) ChangedApprovals(ctx context.Context, p *authz.Principal, shown []uuid.UUID, since time.Time) (list []Approval, err error) {
	rows, err := g.pool.Query(ctx, approvalSQL+changedApprovalsSQL, pgx.NamedArgs{"tenant": p.Tenant, "shown": shown, "since": since})
	if err == nil {
		list, err = pgx.CollectRows(rows, g.scanApproval)
	}
	if err != nil {
		return nil, fmt.Errorf("list approvals: %w", pg.Translate(err))
	}
	return list, g.withExecutions(ctx, list)
}
