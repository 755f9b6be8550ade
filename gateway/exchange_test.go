package gateway_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/federation"
	"github.com/whence-db/whence/authz/registry"
	"github.com/whence-db/whence/gateway"
	"github.com/whence-db/whence/gateway/gatewaytest"
)

func want() *authz.TaskRequest {
	return &authz.TaskRequest{Purpose: "a test", Scope: gatewaytest.Everything()}
}

// TestAgentsOfOtherTenants holds that an agent acts for users of its own tenant only,
// whoever vouches for it, and whatever is called as it is there.
func TestAgentsOfOtherTenants(t *testing.T) {
	t.Parallel()
	w := gatewaytest.NewWorld(t)
	platform := w.AddProvider("platform")
	abroad := w.AddProvider("abroad", func(i *federation.Issuer) { i.Tenant = "abroad" })
	w.AddAgent("worker", func(a *registry.Agent) { a.Tenant, a.Issuer, a.Subject = "abroad", "platform", "workload-7" })
	for _, tenant := range []string{authz.DefaultTenant, "abroad"} {
		if tenant == authz.DefaultTenant {
			w.AddAgent("other")
			w.AddGrant("other", "ada")
			continue
		}
		w.AddGrant("worker", "ada", func(g *registry.Grant) { g.Tenant = tenant })
	}
	actor := func() string { return platform.Token(t, map[string]any{"sub": "workload-7"}) }
	theirs := func() string { return abroad.Token(t, map[string]any{"sub": "ada"}) }
	for name, c := range map[string]struct {
		x    gateway.Exchange
		want string
	}{
		"its own tenant's user":                  {gateway.Exchange{Subject: theirs(), Actor: actor(), Want: want()}, ""},
		"its own tenant's user, by its key":      {gateway.Exchange{Subject: theirs(), Assertion: w.Assertion("worker"), Want: want()}, ""},
		"another tenant's user":                  {gateway.Exchange{Subject: w.UserToken("ada"), Actor: actor(), Want: want()}, "AGENT_NOT_FOUND"},
		"another tenant's user, by its key":      {gateway.Exchange{Subject: w.UserToken("ada"), Assertion: w.Assertion("worker"), Want: want()}, "TOKEN_SIGNATURE_INVALID"},
		"an operator's role from another tenant": {gateway.Exchange{Subject: abroad.Token(t, map[string]any{"sub": "ada", "groups": []string{"admins"}}), Role: authz.RoleViewer}, "ROLE_MISSING"},
	} {
		if _, err := w.Exchange(c.x); reason(err) != c.want {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestGrantsBoundTheirTasks holds that a task ends with the grant at the latest, and
// that a grant that is over gives nothing.
func TestGrantsBoundTheirTasks(t *testing.T) {
	t.Parallel()
	w := gatewaytest.NewWorld(t)
	w.AddAgent("worker")
	w.AddGrant("worker", "ada", func(g *registry.Grant) {
		g.Calls, g.Lifetime, g.Expires = 5, time.Hour, w.Now().Add(20*time.Minute)
	})
	got := w.Task("worker", "ada")
	if got.Granted.Calls != 5 || got.Granted.Lifetime > 20*time.Minute || got.Granted.Lifetime < 19*time.Minute {
		t.Errorf("granted %d calls for %s", got.Granted.Calls, got.Granted.Lifetime)
	}
	w.Advance(21 * time.Minute)
	if _, err := w.Exchange(gateway.Exchange{Subject: w.UserToken("ada"), Assertion: w.Assertion("worker"), Want: want()}); reason(err) != "GRANT_MISSING" {
		t.Errorf("after its end: %v", err)
	}
	// Groups' grants are tried when the user's own leave nothing.
	w.AddGrant("worker", "eve", func(g *registry.Grant) { g.Scope.Tables, g.Scope.AllTables = []whence.TableName{"app.public.a"}, false })
	w.AddGrant("worker", "", func(g *registry.Grant) {
		g.Group, g.Scope.Tables, g.Scope.AllTables = "staff", []whence.TableName{"app.public.b"}, false
	})
	ask := want()
	ask.Scope.AllTables, ask.Scope.Tables = false, []whence.TableName{"app.public.b"}
	if _, err := w.Exchange(gateway.Exchange{Subject: w.UserToken("eve"), Assertion: w.Assertion("worker"), Want: ask}); reason(err) != "SCOPE_NOT_GRANTED" {
		t.Errorf("by the user's own grant: %v", err)
	}
	if _, err := w.Exchange(gateway.Exchange{Subject: w.UserToken("eve", "staff"), Assertion: w.Assertion("worker"), Want: ask}); err != nil {
		t.Errorf("by the group's: %v", err)
	}
}

// TestWhoIsStoppedCannotSignIn holds that a revoked user gets nothing for themselves.
func TestWhoIsStoppedCannotSignIn(t *testing.T) {
	t.Parallel()
	w := gatewaytest.NewWorld(t)
	w.Revoke(authz.RevokedUser, authz.DefaultTenant, "ada")
	for _, role := range []authz.Role{authz.RoleUser, authz.RoleViewer} {
		if _, err := w.Exchange(gateway.Exchange{Subject: w.UserToken("ada", "admins"), Role: role}); reason(err) != "USER_REVOKED" {
			t.Errorf("as %s: %v", role, err)
		}
	}
	if _, err := w.Exchange(gateway.Exchange{Subject: w.UserToken("eve", "admins"), Role: authz.RoleViewer}); err != nil {
		t.Errorf("somebody else: %v", err)
	}
}

// TestWhatIsTakenBackStartsNothing exchanges all the while that the grant, or the
// agent, is taken away: no task is left that stands on either.
func TestWhatIsTakenBackStartsNothing(t *testing.T) {
	t.Parallel()
	for name, takeBack := range map[string]func(w *gatewaytest.World, s *gateway.Session, grant uuid.UUID){
		"the grant": func(w *gatewaytest.World, s *gateway.Session, grant uuid.UUID) { w.Gateway.DeleteGrant(s, grant) },
		"the agent": func(w *gatewaytest.World, s *gateway.Session, _ uuid.UUID) {
			w.Gateway.DeleteAgent(s, authz.DefaultTenant, "worker")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := gatewaytest.NewWorld(t)
			w.AddAgent("worker")
			grant := w.AddGrant("worker", "ada")
			operator := w.Operator("olga", authz.RoleAdmin)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var started, refused atomic.Int64
			var group errgroup.Group
			for range 6 {
				group.Go(func() error {
					for ctx.Err() == nil {
						_, err := w.Exchange(gateway.Exchange{Subject: w.UserToken("ada"), Assertion: w.Assertion("worker"), Want: want()})
						switch {
						case err == nil:
							started.Add(1)
						case errors.Is(err, whence.ErrDenied), errors.Is(err, whence.ErrUnauthenticated), errors.Is(err, whence.ErrAborted):
							refused.Add(1)
						default:
							return err
						}
					}
					return nil
				})
			}
			for started.Load() < 20 && t.Context().Err() == nil {
				time.Sleep(5 * time.Millisecond)
			}
			call := gateway.Call{Name: "whence.v1.AdminService/Delete", Presented: authz.Presented{Token: operator}, Role: authz.RoleAdmin}
			err := w.Gateway.Do(t.Context(), call, func(_ context.Context, s *gateway.Session) error {
				takeBack(w, s, grant)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			for before := refused.Load(); refused.Load() < before+10; {
				time.Sleep(5 * time.Millisecond)
			}
			stop()
			if err := group.Wait(); err != nil {
				t.Fatal(err)
			}
			var active int
			if err := w.Pool.QueryRow(t.Context(), `select count(*) from whence.tasks where state = 'ACTIVE'`).Scan(&active); err != nil || active != 0 {
				t.Errorf("%d tasks of %d are active, %v", active, started.Load(), err)
			}
		})
	}
}

// TestWhatChangesMeanwhile changes what an exchange stands on between its judgement
// and its task's start.
func TestWhatChangesMeanwhile(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]string{
		"the grant's calls":   `update whence.grants set calls = 1`,
		"the grant's scope":   `update whence.grants set scope = '{"type":"whence"}'`,
		"the grant's proof":   `update whence.grants set proof = true`,
		"the agent's ceiling": `update whence.agents set ceiling = '{"type":"whence"}'`,
		"the agent's keys":    `update whence.agents set jwks = null, issuer = 'company', subject = 'x'`,
		"the user's bounds":   `update whence.issuers set user_scope = '{"type":"whence"}'`,
		"the issuer":          `delete from whence.issuers`,
		"the agent":           `delete from whence.agents`,
		"nothing":             `select`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := gatewaytest.NewWorld(t)
			w.AddAgent("worker")
			w.AddGrant("worker", "ada")
			tx, err := w.Pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
			if err := w.Revocations.Lock(t.Context(), tx); err != nil { // starts wait for it
				t.Fatal(err)
			}
			done := make(chan error, 1)
			var group errgroup.Group
			group.Go(func() error {
				_, err := w.Exchange(gateway.Exchange{Subject: w.UserToken("ada"), Assertion: w.Assertion("worker"), Want: want()})
				done <- err
				return nil
			})
			for waiting := 0; waiting == 0; time.Sleep(5 * time.Millisecond) {
				if err := w.Pool.QueryRow(t.Context(), `select count(*) from pg_locks where locktype = 'advisory' and not granted
					and database = (select oid from pg_database where datname = current_database())`).Scan(&waiting); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := tx.Exec(t.Context(), change); err != nil {
				t.Fatal(err)
			}
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			err = <-done
			_ = group.Wait()
			if want := map[bool]string{true: "", false: "GRANT_CHANGED"}[name == "nothing"]; reason(err) != want {
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
}

// TestWorkloadsOfOtherTenants holds that where an issuer's tokens choose their tenant,
// they have to choose the agent's.
func TestWorkloadsOfOtherTenants(t *testing.T) {
	t.Parallel()
	w := gatewaytest.NewWorld(t)
	platform := w.AddProvider("platform", func(i *federation.Issuer) { i.TenantClaim = "tid" })
	w.AddAgent("worker", func(a *registry.Agent) { a.JWKS, a.Issuer, a.Subject = nil, "platform", "workload-7" })
	w.AddGrant("worker", "ada")
	for tenant, want := range map[string]string{authz.DefaultTenant: "", "other": "AGENT_NOT_FOUND"} {
		actor := platform.Token(t, map[string]any{"sub": "workload-7", "tid": tenant})
		_, err := w.Exchange(gateway.Exchange{Subject: w.UserToken("ada"), Actor: actor,
			Want: &authz.TaskRequest{Purpose: "a test", Scope: gatewaytest.Everything()}})
		if reason(err) != want {
			t.Errorf("of tenant %s: %v, want %q", tenant, err, want)
		}
	}
}

// TestACeilingThatComesMeanwhile narrows the named agent's ceiling between a
// delegation's request and its task's start.
func TestACeilingThatComesMeanwhile(t *testing.T) {
	t.Parallel()
	w := gatewaytest.NewWorld(t)
	w.AddAgent("worker")
	w.AddAgent("helper")
	w.AddGrant("worker", "ada")
	root := w.Task("worker", "ada")
	for _, c := range []struct{ change, want string }{
		{`select`, ""},
		{`update whence.agents set ceiling = '{"type":"whence","tables":["app.public.a"],"allSubjects":true,"actions":["memory:read"]}' where name = 'helper'`, "SCOPE_WIDENED"},
	} {
		tx, err := w.Pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Revocations.Lock(t.Context(), tx); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		var group errgroup.Group
		group.Go(func() error {
			_, err := delegate(t, w.Gateway, root.Token, authz.TaskRequest{Agent: "helper", Purpose: "a test", Calls: 1, Lifetime: time.Minute,
				Scope: authz.ScopeSpec{AllTables: true, AllSubjects: true, Actions: []authz.Action{authz.MemoryRead}}})
			done <- err
			return nil
		})
		for waiting := 0; waiting == 0; time.Sleep(5 * time.Millisecond) {
			if err := w.Pool.QueryRow(t.Context(), `select count(*) from pg_locks where locktype = 'advisory' and not granted
				and database = (select oid from pg_database where datname = current_database())`).Scan(&waiting); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := tx.Exec(t.Context(), c.change); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-done; reason(err) != c.want {
			t.Errorf("%v, want %q", err, c.want)
		}
		_ = group.Wait()
	}
}

// TestOldRevocationsAreForgotten holds that of revocations only those go that nothing
// can come up against any more.
func TestOldRevocationsAreForgotten(t *testing.T) {
	t.Parallel()
	w := gatewaytest.NewWorld(t)
	w.Revoke(authz.RevokedToken, "", "a-token")
	w.Revoke(authz.RevokedAgent, authz.DefaultTenant, "worker")
	for _, c := range []struct {
		ahead time.Duration
		want  int
	}{{0, 2}, {26 * time.Hour, 2}, {26 * time.Hour, 1}} {
		w.Advance(c.ahead)
		if err := w.Revocations.Drop(t.Context()); err != nil {
			t.Fatal(err)
		}
		left, _, err := w.Revocations.List(t.Context(), 10, "")
		if err != nil || len(left) != c.want {
			t.Errorf("%s later: %+v, %v", c.ahead, left, err)
		}
	}
}
