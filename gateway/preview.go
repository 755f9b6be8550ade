package gateway

import (
	"context"
	"encoding/json"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway/action"
)

// Preview is what an execution would do.
type Preview struct {
	Action        action.Registered
	Shown         []action.Effect
	Requests      []Rendered
	Rows          int
	Result        json.RawMessage // of an action that only reads
	NeedsKey      bool
	NeedsApproval bool
	Digest        whence.Digest
}

// Preview does what Execute would do and takes it back: the same scope, the same
// constraints, and nothing of it seen by anybody.
func (g *Gateway) Preview(ctx context.Context, s *Session, a Asked) (p Preview, err error) {
	r, err := g.resolve(ctx, s.Principal, a)
	if err != nil {
		return p, err
	}
	r.note(s)
	more := authz.Amounts{authz.Rows: 1}
	if r.def.Row != nil {
		more[authz.Rows] = int64(r.def.Row.Limit())
	}
	if err := g.holdMore(ctx, s, more); err != nil {
		return p, err
	}
	bound, cancel := context.WithTimeout(ctx, r.def.RunTime())
	defer cancel()
	p = Preview{Action: r.Registered, NeedsKey: r.def.Tier != authz.TierRead, NeedsApproval: r.def.NeededApprovals() > 0}
	x := r.execution(g, s)
	if r.def.Tier == authz.TierRead && r.def.Row != nil {
		out, err := g.rows.DryRun(bound, r.request(s.Principal, x))
		if err != nil {
			return p, err
		}
		s.Use(authz.Rows, int64(out.Rows))
		p.Rows, p.Digest = out.Rows, r.previewDigest(nil, nil)
		p.Result, err = json.Marshal(map[string]any{"rows": out.Rows, "shown": out.Shown})
		return p, err
	}
	effects, requests, err := g.dry(bound, s.Principal, r, x)
	if err != nil {
		return p, err
	}
	s.Use(authz.Rows, int64(len(effects)))
	p.Shown, p.Requests, p.Rows, p.Digest = r.shown(effects), requests, len(effects), r.previewDigest(effects, requests)
	return p, nil
}

// dry tells what an execution would do to rows and send to upstreams.
func (g *Gateway) dry(ctx context.Context, p *authz.Principal, r run, x Execution) ([]action.Effect, []Rendered, error) {
	switch {
	case r.def.Row != nil:
		out, err := g.rows.DryRun(ctx, r.request(p, x))
		return out.Effects, nil, err
	case r.def.Memory != nil:
		return nil, nil, nil
	}
	return nil, nil, notYet()
}

func notYet() error {
	return &whence.Error{Kind: whence.ErrUnimplemented, Reason: "NOT_IMPLEMENTED", Message: "actions of this kind are not run yet; do without it, or by another action"}
}
