package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"github.com/google/uuid"
	"github.com/gowebpki/jcs"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway/action"
)

// run is an action that is about to be run.
type run struct {
	action.Registered
	def     action.Definition
	args    action.Args
	preview string
	digest  whence.Digest // of action, version and arguments
	raw     *outbound     // a request as an agent wrote it, and no registered action
	needs   int           // how many people must approve it
	worst   authz.Amounts // the most that it may cost
	parts   []string      // digests of the actions that it runs
}

// resolve finds the action and reads the arguments; what the scope does not hold is refused.
func (g *Gateway) resolve(ctx context.Context, p *authz.Principal, a Asked) (r run, err error) {
	reg, err := g.actions.Get(ctx, g.pool, p.Tenant, a.Action)
	if err != nil {
		return r, err
	}
	return g.resolved(p, a, reg)
}

func (g *Gateway) resolved(p *authz.Principal, a Asked, reg action.Registered) (r run, err error) {
	if !reg.Tier.Within(p.Scope.Tier()) {
		return r, tierOutOfScope(reg, p)
	}
	r = run{Registered: reg, def: reg.Definition, preview: a.Preview}
	if r.args, err = action.Arguments(r.def, a.Arguments); err != nil {
		return r, err
	}
	r.digest = digestOf("action", r.Name, r.Version, r.Registered.Digest, r.args.JSON())
	r.needs, r.worst = r.def.NeededApprovals(), worstOf(r.def)
	return r, nil
}

// worstOf is the most that one action may cost by itself.
func worstOf(d action.Definition) authz.Amounts {
	a := authz.Amounts{authz.Spend: d.CostMicros, authz.Rows: 1}
	if d.Row != nil {
		a[authz.Rows] = int64(d.Row.Limit())
	}
	if d.Tier != authz.TierRead {
		a[authz.Writes] = 1
	}
	return a
}

// withParts adds what a saga's steps, and taking them back, need and may cost.
func (g *Gateway) withParts(ctx context.Context, p *authz.Principal, r run) (run, error) {
	var steps []action.Step
	if r.def.Saga != nil {
		for _, step := range r.def.Saga.Steps {
			steps = append(steps, step.Step)
			if step.Compensation != nil {
				steps = append(steps, *step.Compensation)
			}
		}
	}
	if r.def.Compensation != nil {
		steps = append(steps, *r.def.Compensation)
	}
	for _, step := range steps {
		of, err := g.actions.Get(ctx, g.pool, p.Tenant, step.Action)
		if err != nil {
			return r, err
		}
		if !of.Tier.Within(p.Scope.Tier()) {
			return r, tierOutOfScope(of, p)
		}
		r.needs = max(r.needs, of.Approvals)
		if of.NeededApprovals() > 0 && of.Compensation == nil && r.def.Saga != nil {
			r.needs = max(r.needs, 1)
		}
		r.worst = r.worst.Plus(worstOf(of.Definition))
		r.parts = append(r.parts, of.Digest.String())
	}
	return r, nil
}

func tierOutOfScope(of action.Registered, p *authz.Principal) error {
	return &whence.Error{Kind: whence.ErrDenied, Reason: "TIER_OUT_OF_SCOPE",
		Message:  fmt.Sprintf("the action %q is %s and the task's scope goes up to %s; work without it, or ask for a task with a higher tier", of.Name, of.Tier, p.Scope.Tier()),
		Metadata: map[string]string{"action": of.Name, "tier": string(of.Tier), "allowed": string(p.Scope.Tier())}}
}

func (r run) note(s *Session) {
	s.Note("action", r.Name)
	s.Note("actionVersion", r.Version)
	s.Note("tier", string(r.def.Tier))
}

func (r run) execution(g *Gateway, s *Session) Execution {
	p := s.Principal
	return Execution{ID: uuid.Must(uuid.NewV7()), Tenant: p.Tenant, User: p.User, Root: p.Root, Task: p.Task, Agent: p.Agent, Actors: p.Actors,
		Call: s.call, Key: s.key, Action: r.Name, Version: r.Version, Tier: r.def.Tier, Arguments: r.args.JSON(), Digest: r.digest,
		State: Running, Created: s.Started.UTC(), fingerprint: s.digest, holder: g.holder, attempt: 1}
}

// afford holds what the action may cost at the most, beyond what any execution does.
func (g *Gateway) afford(ctx context.Context, s *Session, r run) error {
	if s.unpaid != nil {
		return s.unpaid
	}
	return g.holdMore(ctx, s, r.worst)
}

func (r run) request(p *authz.Principal, x Execution) action.Request {
	return action.Request{Action: r.def, Args: r.args, Scope: p.Scope,
		Credential: action.Credential{User: p.User, Agent: p.Agent, Task: p.Task.String(), Execution: x.ID.String()}}
}

// paid is what an execution has used once it is done.
func (r run) paid(rows int64) authz.Amounts {
	a := authz.Amounts{authz.Rows: rows, authz.Spend: r.def.CostMicros}
	if r.def.Tier != authz.TierRead {
		a[authz.Writes] = 1
	}
	return a
}

func (r run) source() string {
	source, _, _, _ := r.def.Row.Table.Parts()
	return source
}

func (r run) shown(effects []action.Effect) []action.Effect {
	out := make([]action.Effect, len(effects))
	for i, e := range effects {
		out[i] = e.Shown(r.def)
	}
	return out
}

// previewDigest is of all that a preview shows and that is to be as previewed.
func (r run) previewDigest(effects []action.Effect, requests []Rendered) whence.Digest {
	return digestOf("preview", r.digest, before(effects), requests)
}

// before is what rows are as an action finds them.
func before(effects []action.Effect) []any {
	out := make([]any, len(effects))
	for i, e := range effects {
		row := map[string]any{"kind": e.Kind, "source": e.Source, "table": e.Table, "before": e.Before}
		if e.Kind != action.Insert { // the source may make another key each time
			row["key"] = e.Key
		}
		out[i] = row
	}
	return out
}

// digestOf is the SHA-256 of the canonical JSON (RFC 8785) of a list.
func digestOf(parts ...any) whence.Digest {
	for i, p := range parts {
		switch p := p.(type) {
		case []byte:
			parts[i] = json.RawMessage(p)
		case whence.Digest:
			parts[i] = p.String()
		}
	}
	b, err := json.Marshal(parts)
	if err == nil {
		b, err = jcs.Transform(b)
	}
	if err != nil { // only values that were made from JSON, and texts, come here
		panic(fmt.Sprintf("digest: %v", err))
	}
	return sha256.Sum256(b)
}

func stalePreview() *whence.Error {
	return &whence.Error{Kind: whence.ErrPrecondition, Reason: "PREVIEW_STALE",
		Message: "this would not do what was previewed, so nothing was done: preview again, and decide by that"}
}

// ListActions lists the actions that the caller's scope has room for, by name.
func (g *Gateway) ListActions(ctx context.Context, p *authz.Principal) ([]action.Registered, error) {
	var out []action.Registered
	for token := ""; ; {
		page, next, err := g.actions.List(ctx, g.pool, p.Tenant, MaxPage, token)
		if err != nil {
			return nil, err
		}
		for _, r := range page {
			if r.Tier.Within(p.Scope.Tier()) && (r.Row == nil || p.Scope.AllowsTable(r.Row.Table)) {
				out = append(out, r)
			}
		}
		if token = next; token == "" {
			return out, nil
		}
	}
}
