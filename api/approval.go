package api

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
	"github.com/whence-db/whence/proto/gen/whence/v1/whencev1connect"
)

type approvals struct{ gateway *gateway.Gateway }

// ListApprovals lists approvals, newest first.
func (a *approvals) ListApprovals(ctx context.Context, req *v1.ListApprovalsRequest) (*v1.ListApprovalsResponse, error) {
	f := gateway.ApprovalFilter{Action: req.GetAction(), Agent: req.GetAgent()}
	if state := req.GetState(); state != v1.ApprovalState_APPROVAL_STATE_UNSPECIFIED {
		f.State = gateway.ApprovalState(strings.TrimPrefix(state.String(), "APPROVAL_STATE_"))
	}
	list, next, err := a.gateway.ListApprovals(ctx, session(ctx).Principal, f, int(req.GetPageSize()), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	out := &v1.ListApprovalsResponse{NextPageToken: next}
	for _, one := range list {
		m, err := approval(one)
		if err != nil {
			return nil, err
		}
		out.Approvals = append(out.Approvals, m)
	}
	return out, nil
}

// GetApproval returns one approval.
func (a *approvals) GetApproval(ctx context.Context, req *v1.GetApprovalRequest) (*v1.GetApprovalResponse, error) {
	one, err := a.gateway.GetApproval(ctx, session(ctx).Principal, req.GetId())
	if err != nil {
		return nil, err
	}
	m, err := approval(one)
	return &v1.GetApprovalResponse{Approval: m}, err
}

// Approve lets an execution run.
func (a *approvals) Approve(ctx context.Context, req *v1.ApproveRequest) (*v1.ApproveResponse, error) {
	out := &v1.ApproveResponse{}
	err := a.gateway.Decide(ctx, session(ctx), req.GetId(), true, req.GetDigest(), req.GetComment(), told(&out.Approval))
	return out, err
}

// Deny ends an execution that waits.
func (a *approvals) Deny(ctx context.Context, req *v1.DenyRequest) (*v1.DenyResponse, error) {
	out := &v1.DenyResponse{}
	err := a.gateway.Decide(ctx, session(ctx), req.GetId(), false, "", req.GetComment(), told(&out.Approval))
	return out, err
}

func told(to **v1.Approval) func(gateway.Approval) {
	return func(a gateway.Approval) {
		if m, err := approval(a); err == nil { // it was read from the database before
			*to = m
		}
	}
}

// watchPause is how often a watched list is looked at again.
const watchPause = 500 * time.Millisecond

// clocks is how far those of servers may differ.
const clocks = time.Minute

// WatchApprovals sends what is pending, and then each that is made or decided.
func (a *approvals) WatchApprovals(ctx context.Context, _ *v1.WatchApprovalsRequest, stream whencev1connect.ApprovalServiceWatchApprovalsServerStream) error {
	p := session(ctx).Principal
	since := time.Now().Add(-clocks)
	list, err := a.pending(ctx, p)
	if err != nil {
		return err
	}
	shown := map[uuid.UUID]string{} // as they were sent last: those that wait, and those made lately
	for _, old := range list {
		shown[old.ID] = ""
	}
	lately, err := a.gateway.ChangedApprovals(ctx, p, nil, since)
	if err != nil {
		return err
	}
	for _, old := range lately { // what was decided before is not told
		if _, waits := shown[old.ID]; !waits {
			shown[old.ID] = mark(old)
		}
	}
	t := time.NewTicker(watchPause)
	defer t.Stop()
	for {
		for _, one := range list {
			if is := mark(one); shown[one.ID] != is {
				m, err := approval(one)
				if err != nil {
					return err
				}
				if err := stream.Send(&v1.WatchApprovalsResponse{Approval: m}); err != nil {
					return err
				}
				shown[one.ID] = is
			}
			if one.State != gateway.ApprovalPending && one.Created.Before(since) {
				delete(shown, one.ID)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		began := time.Now()
		if list, err = a.gateway.ChangedApprovals(ctx, p, slices.Collect(maps.Keys(shown)), since); err != nil {
			return err
		}
		since = began.Add(-clocks)
	}
}

// pending lists all that waits, oldest first.
func (a *approvals) pending(ctx context.Context, p *authz.Principal) (all []gateway.Approval, err error) {
	for token := ""; ; {
		var page []gateway.Approval
		if page, token, err = a.gateway.ListApprovals(ctx, p, gateway.ApprovalFilter{State: gateway.ApprovalPending}, gateway.MaxPage, token); err != nil {
			return nil, err
		}
		if all = append(all, page...); token == "" {
			slices.Reverse(all)
			return all, nil
		}
	}
}

// mark is what changes of an approval.
func mark(a gateway.Approval) string {
	return string(a.State) + " " + strings.Join(a.ApprovedBy, ",")
}

func approval(a gateway.Approval) (*v1.Approval, error) {
	x := a.Execution
	out := &v1.Approval{Id: a.ID.String(), State: v1.ApprovalState(v1.ApprovalState_value["APPROVAL_STATE_"+string(a.State)]), ExecutionId: x.ID.String(),
		Action: x.Action, Tier: tier(x.Tier), Effects: effects(a.Shown), Digest: a.Digest.String(), Task: x.Task.String(), Purpose: a.Purpose,
		Agent: x.Agent, User: x.User, CreateTime: timestamp(a.Created), ExpireTime: timestamp(a.Expires), DecidedBy: a.DecidedBy,
		DecideTime: timestamp(a.Decided), Comment: a.Comment, Needed: count(int64(a.Needed)), ApprovedBy: a.ApprovedBy, Used: a.Used,
		ActionVersion: uint32(x.Version), Actors: x.Actors, Requests: requests(a.Requests), Tenant: x.Tenant}
	var err error
	out.Arguments, err = object(x.Arguments)
	return out, err
}
