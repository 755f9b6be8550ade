package authz_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest"
)

func TestTaskTokenRoundTrip(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 5, 6, 7, 8, 9, 500, time.UTC)
	issuer, verifier := authztest.Pair(t, func() time.Time { return now })
	spec := authz.ScopeSpec{Tables: []whence.TableName{"shop.public.orders", "whence.notes"}, Subjects: []string{"b", "a"},
		Filter: map[string]string{"region": "eu"}, Actions: []authz.Action{authz.MemoryRead}}
	want := authz.Principal{Tenant: "acme", User: "ada", Agent: "writer", Actors: []string{"writer", "planner"},
		Task: uuid.New(), Root: uuid.New(), Parent: uuid.New(), Depth: 1, Thumbprint: "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
		IssuedAt: now.Truncate(time.Second), Expires: now.Truncate(time.Second).Add(time.Hour)}
	token, expires, err := issuer.IssueTask(authz.TaskClaims{User: want.User, Agent: want.Agent, Actors: want.Actors,
		Tenant: want.Tenant, Task: want.Task, Root: want.Root, Parent: want.Parent, Depth: want.Depth,
		Scope: spec, Lifetime: time.Hour + 300*time.Millisecond, Thumbprint: want.Thumbprint})
	if err != nil {
		t.Fatal(err)
	}
	if !expires.Equal(want.Expires) {
		t.Errorf("expires %s, want %s", expires, want.Expires)
	}
	for _, read := range []string{"first", "from the cache"} {
		got, err := verifier.Verify(t.Context(), token)
		if err != nil {
			t.Fatal(read, err)
		}
		wantSpec := spec
		wantSpec.Type, wantSpec.Subjects, wantSpec.Tier = "whence", []string{"a", "b"}, authz.TierRead
		if diff := cmp.Diff(wantSpec, got.Scope.Spec()); diff != "" {
			t.Errorf("%s: scope (-want +got):\n%s", read, diff)
		}
		if got.TokenID == "" {
			t.Errorf("%s: no token id", read)
		}
		got.TokenID = ""
		if diff := cmp.Diff(want, *got, cmpopts.IgnoreFields(authz.Principal{}, "Scope")); diff != "" {
			t.Errorf("%s: principal (-want +got):\n%s", read, diff)
		}
		got.Actors[0] = "mallory" // must not reach the next caller
	}
}

// The claims of a task's token, as anyone can read them.
func TestTaskTokenClaims(t *testing.T) {
	t.Parallel()
	issuer, _ := authztest.Pair(t, nil)
	root, child := uuid.New(), uuid.New()
	token, _, err := issuer.IssueTask(authz.TaskClaims{User: "ada", Agent: "writer", Actors: []string{"writer", "planner"}, Tenant: "acme",
		Task: child, Root: root, Parent: root, Depth: 1, Lifetime: time.Minute,
		Scope: authz.ScopeSpec{AllTables: true, AllSubjects: true, Actions: []authz.Action{authz.MemoryWrite, authz.MemoryRead}}})
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(token, ".")
	var header, claims map[string]any
	for i, into := range []*map[string]any{&header, &claims} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err == nil {
			err = json.Unmarshal(b, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"exp", "iat", "nbf", "jti"} {
		if claims[name] == nil {
			t.Errorf("no claim %s", name)
		}
		delete(claims, name)
	}
	want := map[string]any{"iss": authztest.IssuerName, "aud": authztest.IssuerName, "sub": "ada", "client_id": "writer", "tenant": "acme",
		"act":   map[string]any{"sub": "writer", "act": map[string]any{"sub": "planner"}},
		"scope": "memory:read memory:write",
		"task":  map[string]any{"id": child.String(), "root": root.String(), "parent": root.String(), "depth": 1.0},
		"authorization_details": []any{map[string]any{"type": "whence", "allTables": true, "allSubjects": true,
			"actions": []any{"memory:read", "memory:write"}, "tier": "READ"}}}
	if diff := cmp.Diff(want, claims); diff != "" || header["typ"] != "at+jwt" || header["alg"] != "EdDSA" {
		t.Errorf("header %v, claims (-want +got):\n%s", header, diff)
	}
}

func TestOperatorTokenRoundTrip(t *testing.T) {
	t.Parallel()
	p := authztest.Operator(t, authz.RoleApprover)
	if !p.IsOperator() || p.Role != authz.RoleApprover || p.User != "operator-1" || p.Tenant != authz.DefaultTenant ||
		p.Agent != "" || p.Thumbprint != "" || p.Task != uuid.Nil || !readsOnly(p.Scope) {
		t.Errorf("got %+v", p)
	}
}

func TestRoleOrder(t *testing.T) {
	t.Parallel()
	order := []authz.Role{authz.RoleViewer, authz.RoleApprover, authz.RoleAdmin}
	for i, r := range order {
		for j, least := range order {
			if got := r.AtLeast(least); got != (i >= j) {
				t.Errorf("%s at least %s: %t", r, least, got)
			}
		}
		for _, odd := range []authz.Role{"", "root"} {
			if odd.AtLeast(r) || r.AtLeast(odd) || odd.AtLeast(odd) {
				t.Errorf("role %q takes part in the order", odd)
			}
		}
	}
}

func TestTokenTimes(t *testing.T) {
	t.Parallel()
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	now := start
	issuer, verifier := authztest.Pair(t, func() time.Time { return now })
	token, _, err := issuer.IssueOperator("ada", authz.RoleViewer, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []struct {
		after  time.Duration
		reason string
	}{ // five seconds of skew are allowed at both ends; the order makes the cache answer too
		{-5*time.Second - 1, "TOKEN_NOT_YET_VALID"}, {-5 * time.Second, ""}, {0, ""},
		{65*time.Second - 1, ""}, {65 * time.Second, "TOKEN_EXPIRED"}, {0, ""}, {-6 * time.Second, "TOKEN_NOT_YET_VALID"},
	} {
		now = start.Add(at.after)
		_, err := verifier.Verify(t.Context(), token)
		if got := reason(err); got != at.reason {
			t.Errorf("%s after issue: %q, want %q (%v)", at.after, got, at.reason, err)
		}
	}
}

func TestIssuerRefuses(t *testing.T) {
	t.Parallel()
	issuer, _ := authztest.Pair(t, nil)
	task, other := uuid.New(), uuid.New()
	good := authz.TaskClaims{User: "u", Agent: "a", Task: task, Root: task, Lifetime: time.Minute}
	if _, _, err := issuer.IssueTask(good); err != nil {
		t.Fatal(err)
	}
	var many []string
	for range 1000 {
		many = append(many, uuid.NewString())
	}
	for name, change := range map[string]func(*authz.TaskClaims){
		"no user":             func(c *authz.TaskClaims) { c.User = "" },
		"control character":   func(c *authz.TaskClaims) { c.User = "a\x00b" },
		"no agent":            func(c *authz.TaskClaims) { c.Agent = "" },
		"chain of others":     func(c *authz.TaskClaims) { c.Actors = []string{"b", "a"} },
		"endless chain":       func(c *authz.TaskClaims) { c.Actors = append([]string{"a"}, many[:16]...) },
		"no task":             func(c *authz.TaskClaims) { c.Task, c.Root = uuid.Nil, uuid.Nil },
		"root with a parent":  func(c *authz.TaskClaims) { c.Parent = other },
		"child of none":       func(c *authz.TaskClaims) { c.Root, c.Depth = other, 1 },
		"own parent":          func(c *authz.TaskClaims) { c.Root, c.Parent, c.Depth = other, task, 1 },
		"no lifetime":         func(c *authz.TaskClaims) { c.Lifetime = 0 },
		"under a second":      func(c *authz.TaskClaims) { c.Lifetime = time.Second - 1 },
		"more than a day":     func(c *authz.TaskClaims) { c.Lifetime = 24*time.Hour + time.Second },
		"invalid scope":       func(c *authz.TaskClaims) { c.Scope.Actions = []authz.Action{"everything"} },
		"no thumbprint":       func(c *authz.TaskClaims) { c.Thumbprint = "AAAA" },
		"scope over the size": func(c *authz.TaskClaims) { c.Scope.Subjects = many },
	} {
		c := good
		change(&c)
		if token, _, err := issuer.IssueTask(c); err == nil || token != "" {
			t.Errorf("%s: issued a token", name)
		}
	}
	if _, _, err := issuer.IssueOperator("ada", "root", time.Minute); err == nil {
		t.Error("issued a token for a role that does not exist")
	}
}

func TestReadAuthorization(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]string{
		"Bearer abc": "abc", "bearer  abc": "abc", "": "", "Bearer": "", "Basic abc": "", "abc": "", "Bearer a b": "a b", "DPoP abc": "abc", "dpop abc": "abc",
	} {
		if got, bound := authz.ReadAuthorization(header); got != want || bound != strings.HasPrefix(strings.ToLower(header), "dpop") {
			t.Errorf("%q: %q, want %q", header, got, want)
		}
	}
}

// reason returns the stable reason of an error, "" for none, and the text of an
// error that has no reason.
func reason(err error) string {
	var e *whence.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Reason
	}
	return err.Error()
}

// readsOnly tells whether a scope reads everything and does nothing else.
func readsOnly(s authz.Scope) bool {
	allTables, _, _ := s.Tables()
	allSubjects, _, _ := s.Subjects()
	return allTables && allSubjects && s.Allows(authz.MemoryRead) && len(s.Spec().Actions) == 1
}
