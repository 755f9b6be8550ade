package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
	"github.com/whence-db/whence/internal/pg"
)

func revoke(t testing.TB, g *gateway.Gateway, operator string, v authz.Revocation) (out gateway.Revoked, err error) {
	t.Helper()
	call := gateway.Call{Name: "whence.v1.AdminService/Revoke", Presented: authz.Presented{Token: operator}, Role: authz.RoleUser}
	err = g.Do(t.Context(), call, func(ctx context.Context, s *gateway.Session) error {
		return g.Revoke(ctx, s, v, func(r gateway.Revoked) { out = r })
	})
	return out, err
}

func reinstate(t *testing.T, g *gateway.Gateway, operator string, kind authz.RevocationKind, tenant, target string) error {
	t.Helper()
	call := gateway.Call{Name: "whence.v1.AdminService/Reinstate", Presented: authz.Presented{Token: operator}, Role: authz.RoleAdmin}
	return g.Do(t.Context(), call, func(_ context.Context, s *gateway.Session) error {
		g.Reinstate(s, kind, tenant, target, func(time.Time) {})
		return nil
	})
}

// tree is olga's root task of "worker", with tasks of others below it:
// worker -> middle -> leaf, and worker -> sibling; and a task of max's.
type tree struct{ worker, middle, leaf, sibling, maxs gateway.Started }

func (w *world) grow(t *testing.T, g *gateway.Gateway) (tr tree) {
	t.Helper()
	var err error
	if tr.worker, err = g.StartOwn(t.Context(), "olga", request(100)); err != nil {
		t.Fatal(err)
	}
	if tr.maxs, err = g.StartOwn(t.Context(), "max", request(100)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		agent string
		under *gateway.Started
		depth int
		out   *gateway.Started
	}{{"middle", &tr.worker, 1, &tr.middle}, {"leaf", &tr.middle, 2, &tr.leaf}, {"sibling", &tr.worker, 1, &tr.sibling}} {
		r := below(request(10), c.depth)
		r.Agent = c.agent
		if *c.out, err = delegate(t, g, c.under.Token, r); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

// TestRevoke stops each kind of thing and sees what works afterwards, in this
// process at once and in another within a second.
func TestRevoke(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		target func(w *world, tr tree) authz.Revocation
		tasks  int64
		// The reasons that leaf, middle, sibling, worker and max's task meet; empty: none.
		want [5]string
	}{
		{"one task and those below it", func(_ *world, tr tree) authz.Revocation {
			return authz.Revocation{Kind: authz.RevokedTask, Target: tr.middle.Task.ID.String()}
		}, 2, [5]string{"TASK_REVOKED", "TASK_REVOKED"}},
		{"an agent in the middle", func(*world, tree) authz.Revocation {
			return authz.Revocation{Kind: authz.RevokedAgent, Tenant: "default", Target: "middle"}
		}, 2, [5]string{"AGENT_REVOKED", "AGENT_REVOKED"}},
		{"an agent of another tenant", func(*world, tree) authz.Revocation {
			return authz.Revocation{Kind: authz.RevokedAgent, Tenant: "other", Target: "middle"}
		}, 0, [5]string{}},
		{"a user", func(*world, tree) authz.Revocation {
			return authz.Revocation{Kind: authz.RevokedUser, Tenant: "default", Target: "max"}
		}, 1, [5]string{4: "USER_REVOKED"}},
		{"one token", func(w *world, tr tree) authz.Revocation {
			p, err := w.verifier.Verify(context.Background(), tr.middle.Token)
			if err != nil {
				panic(err)
			}
			return authz.Revocation{Kind: authz.RevokedToken, Target: p.TokenID}
		}, 0, [5]string{1: "TOKEN_REVOKED"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w, g := open(t)
			w2 := w.another(t)
			g2, _ := w2.gateway(t, w.pool)
			tr := w.grow(t, g)
			operator := w.operator(t, authz.RoleAdmin)
			all := []string{tr.leaf.Token, tr.middle.Token, tr.sibling.Token, tr.worker.Token, tr.maxs.Token}
			for i, token := range all { // both processes have seen them
				if err := errors.Join(g.Do(t.Context(), read(token), nothing), g2.Do(t.Context(), read(token), nothing)); err != nil {
					t.Fatal(i, err)
				}
			}
			v := c.target(w, tr)
			v.Reason = "a test"
			out, err := revoke(t, g, operator, v)
			if err != nil || out.Tasks != c.tasks || out.At.IsZero() {
				t.Fatalf("revoked %+v, %v; want %d tasks", out, err, c.tasks)
			}
			for i, token := range all {
				if err := g.Do(t.Context(), read(token), nothing); reason(err) != c.want[i] {
					t.Errorf("token %d here: %v, want %q", i, err, c.want[i])
				}
			}
			time.Sleep(time.Until(out.At.Add(time.Second))) // the promise
			for i, token := range all {
				if err := g2.Do(t.Context(), read(token), nothing); reason(err) != c.want[i] {
					t.Errorf("token %d in another process: %v, want %q", i, err, c.want[i])
				}
			}
			if n := w.number(t, "select count(*) from whence.entries where call = 'whence.v1.AdminService/Revoke' and decision = 'ALLOWED' and detail ->> 'target' = $1", v.Target); n != 1 {
				t.Errorf("%d entries", n)
			}
		})
	}
}

func TestRevokeTenantAndKey(t *testing.T) {
	t.Parallel()
	w, g := open(t)
	tr := w.grow(t, g)
	token, _, err := w.issuer.IssueUser("other", "ute", everything, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	asUser := gateway.Call{Name: query, Presented: authz.Presented{Token: token}, Role: authz.RoleUser}
	if err := g.Do(t.Context(), asUser, nothing); err != nil {
		t.Fatal(err)
	}
	if _, err := revoke(t, g, w.operator(t, authz.RoleAdmin), authz.Revocation{Kind: authz.RevokedTenant, Target: "other"}); err != nil {
		t.Fatal(err)
	}
	if err := g.Do(t.Context(), asUser, nothing); reason(err) != "TENANT_REVOKED" {
		t.Errorf("a user of the tenant: %v", err)
	}
	if err := g.Do(t.Context(), read(tr.leaf.Token), nothing); err != nil {
		t.Errorf("an agent of another tenant: %v", err)
	}

	// The only key cannot be taken away; with another one it can, and what it signed ends.
	old, err := w.keys.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key := authz.Revocation{Kind: authz.RevokedKey, Target: old[0].ID}
	if _, err := revoke(t, g, w.operator(t, authz.RoleAdmin), key); reason(err) != "LAST_KEY" {
		t.Errorf("the only key: %v", err)
	}
	if err := w.keys.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	operator := w.operator(t, authz.RoleAdmin)
	if _, err := revoke(t, g, operator, key); err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{"agent": tr.leaf.Token, "operator": operator} {
		if err := g.Do(t.Context(), read(token), nothing); !errors.Is(err, whence.ErrUnauthenticated) {
			t.Errorf("an %s's token by the key: %v", name, err)
		}
	}
	if err := g.Do(t.Context(), gateway.Call{Name: query, Presented: authz.Presented{Token: w.operator(t, authz.RoleAdmin)}, Role: authz.RoleViewer}, nothing); err != nil {
		t.Errorf("a token by the new key: %v", err)
	}
}

func TestReinstate(t *testing.T) {
	t.Parallel()
	w, g := open(t)
	tr := w.grow(t, g)
	operator := w.operator(t, authz.RoleAdmin)
	r := below(request(5), 1)
	r.Agent = "middle"
	if err := reinstate(t, g, operator, authz.RevokedAgent, "default", "middle"); reason(err) != "NOT_REVOKED" {
		t.Errorf("who was not revoked: %v", err)
	}
	if _, err := revoke(t, g, operator, authz.Revocation{Kind: authz.RevokedAgent, Tenant: "default", Target: "middle"}); err != nil {
		t.Fatal(err)
	}
	if _, err := delegate(t, g, tr.worker.Token, r); reason(err) != "AGENT_REVOKED" {
		t.Errorf("a new task of a revoked agent: %v", err)
	}
	if err := reinstate(t, g, operator, authz.RevokedAgent, "default", "middle"); err != nil {
		t.Fatal(err)
	}
	again, err := delegate(t, g, tr.worker.Token, r)
	if err == nil {
		err = g.Do(t.Context(), read(again.Token), nothing)
	}
	if err != nil {
		t.Errorf("a new task of a reinstated agent: %v", err)
	}
	if err := g.Do(t.Context(), read(tr.middle.Token), nothing); err == nil {
		t.Error("the agent's task of before lives again")
	}
}

// TestUsersStopTheirOwn holds that a user stops what acts for them and nothing else.
func TestUsersStopTheirOwn(t *testing.T) {
	t.Parallel()
	w, g := open(t)
	tr := w.grow(t, g)
	user, _, err := w.issuer.IssueUser(authz.DefaultTenant, "max", everything, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	task := func(s gateway.Started) authz.Revocation {
		return authz.Revocation{Kind: authz.RevokedTask, Target: s.Task.ID.String()}
	}
	for name, c := range map[string]struct {
		v    authz.Revocation
		want string
	}{
		"another's task":   {task(tr.worker), "TASK_NOT_FOUND"},
		"another":          {authz.Revocation{Kind: authz.RevokedUser, Tenant: "default", Target: "olga"}, "ROLE_INSUFFICIENT"},
		"an agent":         {authz.Revocation{Kind: authz.RevokedAgent, Tenant: "default", Target: "worker"}, "ROLE_INSUFFICIENT"},
		"a blank task":     {authz.Revocation{Kind: authz.RevokedTask, Target: " "}, "TASK_INVALID"},
		"no task at all":   {authz.Revocation{Kind: authz.RevokedTask, Target: "everything"}, "TASK_INVALID"},
		"their own task":   {task(tr.maxs), ""},
		"it a second time": {task(tr.maxs), ""},
	} {
		if _, err := revoke(t, g, user, c.v); reason(err) != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	if err := g.Do(t.Context(), read(tr.maxs.Token), nothing); reason(err) != "TASK_REVOKED" {
		t.Errorf("their own task: %v", err)
	}
	if err := g.Do(t.Context(), read(tr.worker.Token), nothing); err != nil {
		t.Errorf("another's task: %v", err)
	}
}

// TestARevocationIsNotOutrun delegates from several processes all the while that an
// agent is revoked: whatever was handed out in the meantime is worth nothing.
func TestARevocationIsNotOutrun(t *testing.T) {
	t.Parallel()
	w, g := open(t)
	g2, _ := w.another(t).gateway(t, w.pool)
	rich := request(1_000_000)
	root, err := g.StartOwn(t.Context(), "olga", rich)
	if err != nil {
		t.Fatal(err)
	}
	r := below(request(1), 1)
	r.Agent = "runner"
	runner, err := delegate(t, g, root.Token, r)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	tokens := []string{runner.Token}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var group errgroup.Group
	for i := range 8 {
		group.Go(func() error {
			for ctx.Err() == nil {
				// Half are the agent's, given by the root; half the agent gives others.
				gate, bearer, r := []*gateway.Gateway{g, g2}[i%2], root.Token, below(request(1), 1)
				if r.Agent = "runner"; i%4 < 2 {
					bearer, r = runner.Token, below(request(1), 2)
					r.Agent, r.Calls = "helper", 0
				}
				out, err := delegate(t, gate, bearer, r)
				switch {
				case err == nil:
					mu.Lock()
					tokens = append(tokens, out.Token)
					mu.Unlock()
				case ctx.Err() == nil && !errors.Is(err, whence.ErrUnauthenticated) && !errors.Is(err, whence.ErrDenied) && !errors.Is(err, whence.ErrExhausted):
					return fmt.Errorf("delegate: %w", err)
				}
			}
			return nil
		})
	}
	time.Sleep(300 * time.Millisecond)
	if _, err := revoke(t, g, w.operator(t, authz.RoleAdmin), authz.Revocation{Kind: authz.RevokedAgent, Tenant: "default", Target: "runner"}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	mu.Lock()
	late := len(tokens)
	mu.Unlock()
	time.Sleep(200 * time.Millisecond)
	stop()
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(tokens) != late {
		t.Errorf("%d tokens were handed out more than a second later", len(tokens)-late)
	}
	if late < 10 {
		t.Errorf("only %d tokens were handed out: nothing was raced", late)
	}
	for _, token := range tokens {
		for _, gate := range []*gateway.Gateway{g, g2} {
			if err := gate.Do(t.Context(), read(token), nothing); err == nil {
				t.Fatal("a token that was handed out meanwhile works")
			}
		}
	}
	if n := w.number(t, `select count(*) from whence.tasks t where state = 'ACTIVE' and agent in ('runner', 'helper')`); n != 0 {
		t.Errorf("%d of its tasks are active", n)
	}
}

// TestWhoCannotKnowRefuses cuts a process off from the database: it lets in what it
// has just vouched for, half a second long, and then nobody.
func TestWhoCannotKnowRefuses(t *testing.T) {
	t.Parallel()
	w, g := open(t)
	token := w.operator(t, authz.RoleViewer)
	cut, err := pg.NewPool(t.Context(), w.pool.Config().ConnString(), 2)
	if err != nil {
		t.Fatal(err)
	}
	stops, err := authz.NewRevocations(cut, w.now)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := authz.NewVerifier(authz.VerifierConfig{Issuer: w.issuer.Name(), Keys: w.keys, Revocations: stops, Clock: w.now})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verifier.Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	cut.Close()
	if _, err := revoke(t, g, w.operator(t, authz.RoleAdmin), authz.Revocation{Kind: authz.RevokedUser, Tenant: "default", Target: "olga"}); err != nil {
		t.Fatal(err)
	}
	w.ahead.Add(int64(600 * time.Millisecond))
	for range 3 {
		if _, err := verifier.Verify(t.Context(), token); reason(err) != "REVOCATIONS_UNKNOWN" || !errors.Is(err, whence.ErrUnavailable) {
			t.Errorf("a process that is cut off: %v", err)
		}
	}
}

// TestRevokedNamesAreAsTokensCarryThem holds that who cannot be meant is refused
// instead of being stopped in vain.
func TestRevokedNamesAreAsTokensCarryThem(t *testing.T) {
	t.Parallel()
	w, g := open(t)
	for name, want := range map[string]string{"jos\u00e9": "", "jose\u0301": "REVOCATION_INVALID", " ": "REVOCATION_INVALID",
		"ann ": "REVOCATION_INVALID", "ann\u200b": "REVOCATION_INVALID"} {
		v := authz.Revocation{Kind: authz.RevokedUser, Tenant: authz.DefaultTenant, Target: name}
		if _, err := revoke(t, g, w.operator(t, authz.RoleAdmin), v); reason(err) != want {
			t.Errorf("%q: %v, want %q", name, err, want)
		}
	}
}
