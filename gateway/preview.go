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
	if err == nil {
		r, err = g.withParts(ctx, s.Principal, r)
	}
	if err != nil {
		return p, err
	}
	r.note(s)
	if err := g.holdMore(ctx, s, authz.Amounts{authz.Rows: r.worst[authz.Rows]}); err != nil {
		return p, err
	}
	bound, cancel := context.WithTimeout(ctx, r.def.RunTime())
	defer cancel()
	p = Preview{Action: r.Registered, NeedsKey: r.def.Tier != authz.TierRead, NeedsApproval: r.needs > 0}
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
	f, err := g.dry(bound, s.Principal, r, x)
	if err != nil {
		return p, err
	}
	s.Use(authz.Rows, int64(len(f.effects)))
	p.Shown, p.Requests, p.Rows, p.Digest = f.shown, f.requests, len(f.effects), r.previewDigest(f.effects, f.requests)
	return p, nil
}

// foreseen is what an execution would do.
type foreseen struct {
	effects  []action.Effect // whole rows
	shown    []action.Effect // what the actions show of them
	requests []Rendered
}

// dry tells what an execution would do to rows and send to upstreams.
func (g *Gateway) dry(ctx context.Context, p *authz.Principal, r run, x Execution) (f foreseen, err error) {
	switch {
	case r.def.Row != nil:
		out, err := g.rows.DryRun(ctx, r.request(p, x))
		return foreseen{effects: out.Effects, shown: r.shown(out.Effects)}, err
	case r.def.Memory != nil:
		return f, nil
	case r.def.HTTP != nil || r.raw != nil:
		var q action.HTTPRequest
		if r.def.HTTP != nil {
			q = r.def.HTTP.Request
		}
		o, err := g.outbound(ctx, p, r, x, q, nil)
		if err != nil {
			return f, err
		}
		return foreseen{requests: []Rendered{o.rendered()}}, nil
	}
	// Each step of a saga by itself, as things are now.
	for i, step := range r.def.Saga.Steps {
		own, err := g.partRun(ctx, p, r, x, part{of: x.ID, key: stepKey(i), step: step.Step})
		if err != nil {
			return f, err
		}
		if own.def.Tier == authz.TierRead && own.def.Row != nil {
			continue
		}
		one, err := g.dry(ctx, p, own, x)
		if err != nil {
			return f, err
		}
		f.effects, f.shown, f.requests = append(f.effects, one.effects...), append(f.shown, one.shown...), append(f.requests, one.requests...)
	}
	return f, nil
}
