package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/internal/seal"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
	"github.com/whence-db/whence/proto/gen/whence/v1/whencev1connect"
)

// testAuthority settles who may act for whom as the documentation tells it.
func (w *running) testAuthority(t *testing.T) {
	t.Parallel()
	key := filepath.Join(t.TempDir(), "scrivener.pem")
	w.cli(t, "issuer", "create", "scriptorium", "https://id.example.org", "--audience", "whence", "--algorithm", "ES256,EdDSA",
		"--jwks-url", "https://id.example.org/keys", "--operator", "abbots=admin", "--all-tables", "--all-subjects").
		is(t, 0, "scriptorium", "https://id.example.org", "audience: whence", "keys: https://id.example.org/keys", "groups by groups", "ES256 EdDSA", "abbots=admin", "all tables; all subjects; memory:read")
	w.cli(t, "agent", "create", "scrivener", "--issuer", "nobody", "--subject", "s-1", "--new-key", key).is(t, 1, "ISSUER_NOT_FOUND")
	if _, err := os.Stat(key); !os.IsNotExist(err) {
		t.Errorf("a key that was not registered is left behind: %v", err)
	}
	w.cli(t, "agent", "create", "scrivener", "--description", "copies", "--issuer", "scriptorium", "--subject", "s-1", "--new-key", key,
		"--ceiling-all-tables", "--ceiling-all-subjects", "--ceiling-deny-subject", "heresy").is(t, 0, "scrivener", "its keys, issuer scriptorium", "but heresy", key)
	before, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	w.cli(t, "agent", "create", "scrivener2", "--new-key", key).is(t, 1, "already")
	w.cli(t, "agent", "update", "scrivener", "--new-key", key).is(t, 1, "already")
	if after, err := os.ReadFile(key); err != nil || string(after) != string(before) {
		t.Errorf("the private key was written over: %v", err)
	}
	w.cli(t, "agent", "create", "scrivener").is(t, 1, "there is an agent", "AGENT_EXISTS")
	w.cli(t, "agent", "update", "scrivener", "--description", "copies and binds").is(t, 0, "copies and binds", "its keys, issuer scriptorium", "but heresy")
	for _, part := range [][]string{{"--ceiling-top-k", "5"}, {"--ceiling-all-tables"}, {"--ceiling-subject", "ann"}, {"--ceiling-action", "memory:write"}} {
		unused := filepath.Join(t.TempDir(), "unused.pem")
		w.cli(t, append([]string{"agent", "update", "scrivener", "--new-key", unused}, part...)...).is(t, 1, "replaced whole", "give all of it")
		if _, err := os.Stat(unused); !os.IsNotExist(err) {
			t.Errorf("%v: a key is made for nothing: %v", part, err)
		}
	}
	w.cli(t, "agent", "get", "scrivener").is(t, 0, "copies and binds", "all tables; all subjects but heresy")
	w.cli(t, "agent", "update", "scrivener", "--ceiling-all-tables", "--ceiling-all-subjects", "--ceiling-top-k", "5").is(t, 0, "all tables; all subjects;", "at most 5 hits")
	w.cli(t, "agent", "get", "scrivener").is(t, 0, "at most 5 hits")
	w.cli(t, "agent", "create", "scrivener", "--tenant", "abbey").is(t, 0, "abbey", "no bound")
	w.cli(t, "agent", "list", "--tenant", "abbey").is(t, 0, "scrivener")
	w.cli(t, "issuer", "delete", "scriptorium").is(t, 1, "ISSUER_IN_USE")

	w.cli(t, "grant", "create", "nobody", "--user", "anselm", "--all-tables", "--all-subjects").is(t, 1, "AGENT_NOT_FOUND")
	w.cli(t, "grant", "create", "scrivener", "--user", "anselm", "--group", "monks").is(t, 2)
	var made v1.CreateGrantResponse
	w.cli(t, "grant", "create", "scrivener", "--user", "anselm", "--table", "app.public.psalter", "--subject", "Anselm, of Bec", "--top-k", "9", "--action", "memory:read,task:delegate",
		"--calls", "40", "--lifetime", "10m", "--max-depth", "1", "--proof", "--expires", time.Now().Add(time.Hour).UTC().Format(time.RFC3339), "--json").message(t, &made)
	g := made.GetGrant()
	if g.GetBudget().GetCalls() != 40 || g.GetTaskLifetime().AsDuration() != 10*time.Minute || g.GetMaxDepth() != 1 || !g.GetProofOfPossession() ||
		g.ExpireTime == nil || g.GetScope().GetSubjects()[0] != "Anselm, of Bec" || len(g.GetScope().GetActions()) != 2 {
		t.Errorf("%v", g)
	}
	w.cli(t, "grant", "create", "scrivener", "--group", "monks", "--tenant", "abbey", "--all-tables", "--all-subjects").is(t, 0, "group monks", "abbey", "1000", "1h0m0s", "never")
	w.cli(t, "grant", "list", "--user", "anselm").is(t, 0, g.GetId(), "user anselm")
	w.cli(t, "grant", "get", g.GetId()).is(t, 0, "DEPTH", "PROOF", "10m0s       1      DPoP", "app.public.psalter", "Anselm, of Bec", "at most 9 hits")
	w.cli(t, "audit", "list", "--call", "whence.v1.AdminService/CreateGrant").is(t, 0, "ABOUT", "grant "+g.GetId(), "agent scrivener", "user anselm")
	w.cli(t, "grant", "create", "scrivener", "--user", "anselm", "--expires", "tomorrow").is(t, 2, "--expires", "2006-01-02T15:04:05Z")
	w.cli(t, "grant", "create", "scrivener", "--user", "anselm", "--lifetime", "30").is(t, 2, "--lifetime", "30m")
	w.cli(t, "grant", "delete", g.GetId()).is(t, 0, "taken back")
	w.cli(t, "grant", "get", g.GetId()).is(t, 1, "GRANT_NOT_FOUND", "whence grant list")
	for _, of := range []string{"issuer", "agent", "grant", "key"} {
		w.cli(t, of, "list", "--json").is(t, 0, "{")
		w.cli(t, of).is(t, 0, strings.ToUpper(of))
	}
	w.cli(t, "agent", "delete", "scrivener", "--tenant", "abbey").is(t, 0, "deleted")
	w.cli(t, "agent", "get", "scrivener", "--tenant", "abbey").is(t, 1, "AGENT_NOT_FOUND", "there is no agent", "whence agent list")
	w.cli(t, "grant", "list", "--tenant", "abbey", "--json").is(t, 0, `"grants":`, "[]")
	w.cli(t, "agent", "delete", "scrivener").is(t, 0, "deleted")
	w.cli(t, "issuer", "delete", "scriptorium").is(t, 0)
	w.cli(t, "issuer", "get", "scriptorium").is(t, 1, "ISSUER_NOT_FOUND", "whence issuer list")
}

// user is a caller with a user's own credential, signed by the server's key.
func (w *running) user(t *testing.T, tenant, name string, scope authz.ScopeSpec) caller {
	t.Helper()
	secret, err := seal.ParseKey(w.env["WHENCE_SECRET_KEY"])
	if err != nil {
		t.Fatal(err)
	}
	keys, err := authz.LoadKeys(t.Context(), authz.KeysConfig{Pool: w.memory, Seal: secret})
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := authz.NewIssuer(authz.IssuerConfig{Name: w.env["WHENCE_ISSUER"], Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := issuer.IssueUser(tenant, name, scope, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return caller{w.http, w.url, token}
}

// testUsersFromTheCommandLine has a user give a grant to act for themselves, see it,
// and take it back, and nothing beyond that.
func (w *running) testUsersFromTheCommandLine(t *testing.T) {
	t.Parallel()
	w.cli(t, "agent", "create", "almoner", "--tenant", "priory").is(t, 0)
	scope := authz.ScopeSpec{AllTables: true, Subjects: []string{"bede"}, Actions: []authz.Action{authz.MemoryRead}}
	bede, cuthbert := w.user(t, "priory", "bede", scope), w.user(t, "priory", "cuthbert", scope)
	as := func(c caller, args ...string) outcome {
		t.Helper()
		return command(t, append(args, "--url", w.url, "--token", c.token)...)
	}
	var made v1.CreateGrantResponse
	as(bede, "grant", "create", "almoner", "--all-tables", "--subject", "bede", "--json").message(t, &made)
	id := made.GetGrant().GetId()
	as(bede, "grant", "create", "almoner", "--all-tables", "--all-subjects").is(t, 1, "SCOPE_WIDENED", "subjects")
	as(bede, "grant", "create", "almoner", "--user", "cuthbert").is(t, 1, "GRANT_NOT_YOURS")
	as(bede, "grant", "list").is(t, 0, id)
	if o := as(cuthbert, "grant", "list", "--user", "bede"); o.status != 0 || strings.Contains(o.out, id) {
		t.Errorf("another user's grant shows: %+v", o)
	}
	as(cuthbert, "grant", "delete", id).is(t, 1, "GRANT_NOT_FOUND")
	as(bede, "task", "list").is(t, 0, "TASK")
	if o := as(bede, "task", "list", "--json"); strings.Contains(o.out, "dev-agent") {
		t.Errorf("a user sees others' tasks: %s", o.out)
	}
	for _, args := range [][]string{{"agent", "list"}, {"issuer", "list"}, {"source", "list"}, {"audit", "list"}, {"answer", "list"}, {"key", "rotate"},
		{"revoke", "list"}, {"revoke", "user", "cuthbert"}, {"reinstate", "user", "bede"}, {"agent", "create", "other"}} {
		as(bede, args...).is(t, 1, "ROLE_INSUFFICIENT")
	}
	as(bede, "grant", "delete", id).is(t, 0, "taken back")
	w.cli(t, "agent", "delete", "almoner", "--tenant", "priory").is(t, 0)
}

// testStopButton stops a task, an agent, a token and a key: each is refused from the
// command's return on.
func (w *running) testStopButton(t *testing.T) {
	t.Parallel()
	start := func(agent string) (caller, string) {
		t.Helper()
		c, task := w.agent().delegate(t, &v1.DelegateRequest{Agent: agent, Purpose: "to be stopped",
			Scope: &v1.Scope{AllTables: true, AllSubjects: true, Actions: []string{"memory:read", "task:delegate"}}})
		return c, task.GetId()
	}
	gone := func(c caller, reason string) {
		t.Helper()
		if r := c.refused(t, "TaskService/GetTask", &v1.GetTaskRequest{}); r.reason() != reason {
			t.Errorf("%v, want %s", r, reason)
		}
	}
	first, task := start("runner-1")
	below, _ := first.delegate(t, &v1.DelegateRequest{Agent: "runner-2", Purpose: "below it", Scope: &v1.Scope{AllTables: true, AllSubjects: true, Actions: []string{"memory:read"}}})
	w.cli(t, "revoke", "task", task, "--reason", "went astray").is(t, 0, "active tasks that it ended: 2")
	gone(first, "TASK_REVOKED")
	gone(below, "TASK_REVOKED")

	second, _ := start("runner-3")
	w.cli(t, "revoke", "agent", "runner-3", "--reason", "hijacked").is(t, 0, "active tasks that it ended: 1")
	gone(second, "AGENT_REVOKED")
	if r := w.agent().refused(t, "TaskService/Delegate", &v1.DelegateRequest{Agent: "runner-3", Purpose: "again",
		Scope: &v1.Scope{AllTables: true, AllSubjects: true, Actions: []string{"memory:read"}}}); r.reason() != "AGENT_REVOKED" {
		t.Errorf("a revoked agent gets a task: %v", r)
	}
	w.cli(t, "audit", "list", "--call", "whence.v1.AdminService/Revoke").is(t, 0, "AGENT runner-3", "TASK "+task)
	w.cli(t, "revoke", "list").is(t, 0, "runner-3", "AGENT", "hijacked", task, "went astray")
	w.cli(t, "reinstate", "agent", "runner-3").is(t, 0, "let in again")
	w.cli(t, "reinstate", "agent", "runner-3").is(t, 1, "NOT_REVOKED")
	third, _ := start("runner-3")
	third.must(t, "TaskService/GetTask", &v1.GetTaskRequest{}, &v1.GetTaskResponse{})

	w.cli(t, "revoke", "tenant", "default").is(t, 1, "TENANT_OPERATES")
	w.cli(t, "key", "list").is(t, 0, "SIGNING", "EdDSA")
	var made v1.RotateKeyResponse
	w.cli(t, "key", "rotate", "--json").message(t, &made)
	w.cli(t, "key", "rotate").is(t, 1, "KEY_PENDING")
	w.cli(t, "revoke", "key", made.GetKey().GetId(), "--reason", "taken back").is(t, 0, "revoked at")
	w.cli(t, "key", "list").is(t, 0, "RETIRED")
	third.must(t, "TaskService/GetTask", &v1.GetTaskRequest{}, &v1.GetTaskResponse{})
}

// testRevokedStream holds that a stream ends when its credential is stopped.
func (w *running) testRevokedStream(t *testing.T) {
	t.Parallel()
	w.exec(t, `create table public.brook (id int primary key, what text)`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.brook", TextColumns: []string{"what"}})
	token := signed(t, w, authz.RoleViewer, time.Now, w.env["WHENCE_ISSUER"])
	client, err := dial(w.url, token, "", "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), showLimit)
	defer cancel()
	stream, err := whencev1connect.NewSourceServiceClient(client).WatchTable(ctx, &v1.WatchTableRequest{Name: "app.public.brook"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	w.cli(t, "revoke", "token", claim(t, token, "jti").(string)).is(t, 0)
	stopped := time.Now()
	for err == nil {
		_, err = stream.Receive()
	}
	if r := failureOf(err).Reason; r != "TOKEN_REVOKED" {
		t.Errorf("the stream ended with %v", err)
	}
	t.Logf("the stream ended %v after the revocation", time.Since(stopped).Round(time.Millisecond))
}
