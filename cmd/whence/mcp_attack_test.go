package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/whence-db/whence/authz"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

const listTools = `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`

// testMCPCredentials holds that who cannot show a credential learns only where to get
// one, whatever they send.
func (w *running) testMCPCredentials(t *testing.T) {
	good, task := w.errand(t, 5, "memory:read")
	past := func() time.Time { return time.Now().Add(-2 * time.Hour) }
	for _, c := range []struct {
		name, reason string
		header       http.Header
	}{
		{"none", "TOKEN_MISSING", nil},
		{"another scheme", "TOKEN_MISSING", http.Header{"Authorization": {"Basic " + good.token}}},
		{"two", "TOKEN_MISSING", http.Header{"Authorization": {"Bearer " + good.token, "Bearer " + good.token}}},
		{"two proofs", "TOKEN_MISSING", http.Header{"Authorization": {"Bearer " + good.token}, "Dpop": {"a", "b"}}},
		{"no token at all", "TOKEN_MALFORMED", http.Header{"Authorization": {"Bearer nonsense"}}},
		{"one of long ago", "TOKEN_EXPIRED", http.Header{"Authorization": {"Bearer " + signed(t, w, authz.RoleViewer, past, w.env["WHENCE_ISSUER"])}}},
		{"one of elsewhere", "TOKEN_ISSUER_UNKNOWN", http.Header{"Authorization": {"Bearer " + signed(t, w, authz.RoleViewer, time.Now, "https://elsewhere.example")}}},
		{"a bearer's as a bound one", "TOKEN_NOT_BOUND", http.Header{"Authorization": {"DPoP " + good.token}}},
	} {
		for _, body := range []string{listTools, toolCall("task", "{}"), "nonsense", ""} {
			before := w.lastEntry(t)
			got := w.mcp(t, http.MethodPost, body, c.header)
			challenge := got.header.Get("WWW-Authenticate")
			if got.status != http.StatusUnauthorized || got.reason() != c.reason || strings.Contains(got.body, "jsonrpc") ||
				!strings.Contains(challenge, fmt.Sprintf("Bearer resource_metadata=%q", w.env["WHENCE_ISSUER"]+"/.well-known/oauth-protected-resource/mcp")) {
				t.Errorf("%s: %+v, want %s", c.name, got, c.reason)
			}
			w.hasEntry(t, c.name, before, "mcp", c.reason)
		}
		if got := w.mcp(t, http.MethodGet, "", c.header); got.status != http.StatusUnauthorized {
			t.Errorf("%s by GET: %+v", c.name, got)
		}
	}

	// What the challenge names is about the very URL that was asked (RFC 9728, section 3.3).
	_, _, body := caller{http: w.http, url: w.url}.get(t, "/.well-known/oauth-protected-resource/mcp")
	var metadata struct {
		Resource string
		Servers  []string `json:"authorization_servers"`
	}
	if err := json.Unmarshal([]byte(body), &metadata); err != nil || metadata.Resource != w.env["WHENCE_ISSUER"]+"/mcp" || len(metadata.Servers) != 1 || metadata.Servers[0] != w.env["WHENCE_ISSUER"] {
		t.Errorf("%v: %s", err, body)
	}

	// Revoked while its client is connected.
	s := good.byMCP(t)
	use(t, s, "task", nil)
	w.operator().must(t, "AdminService/Revoke", &v1.RevokeRequest{Target: &v1.RevokeRequest_Token{Token: claim(t, good.token, "jti").(string)}}, &v1.RevokeResponse{})
	before := w.lastEntry(t)
	if _, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: "task"}); err == nil || !strings.Contains(err.Error(), "Unauthorized") {
		t.Errorf("a revoked token: %v", err)
	}
	if got := w.entriesAfter(t, before, task); len(got) != 1 || got[0].call != "mcp" || got[0].reason != "TOKEN_REVOKED" {
		t.Errorf("entries of the revoked token: %v", got)
	}

	// Operators are let in, and told that tools are not for them, as over Connect.
	before = w.lastEntry(t)
	f := use(t, w.operator().byMCP(t), "query", map[string]any{"text": "gravel"}).failure(t)
	if f.Code != "permission_denied" || f.Reason != "WRONG_CREDENTIAL_KIND" {
		t.Errorf("an operator: %+v", f)
	}
	w.hasEntry(t, "an operator", before, "whence.v1.MemoryService/Query", "WRONG_CREDENTIAL_KIND")
}

// testMCPProofs shows tokens that are bound to a key.
func (w *running) testMCPProofs(t *testing.T) {
	w.exec(t, `create table public.shelf (id int primary key, owner text, lang text, what text)`)
	w.exec(t, `create table public.safe (id int primary key, what text)`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.shelf", TextColumns: []string{"what"}, SubjectColumn: "owner", AttributeColumns: []string{"lang"}})
	w.register(t, &v1.RegisterTableRequest{Table: "public.safe", TextColumns: []string{"what"}})
	c := newCast(t, w)
	wanted := c.form(t, map[string]any{"subject_token": "$id:user", "client_assertion": "$assert:epsilon", "authorization_details": "$wish", "resource": w.env["WHENCE_ISSUER"] + "/mcp"})
	c.tokens["bound"] = w.form(t, "/oauth/token", c.say(t, "$proof:one POST /oauth/token"), wanted).token
	task := claim(t, c.tokens["bound"], "task").(map[string]any)["id"].(string)
	show := func(proof string) http.Header {
		h := http.Header{"Authorization": {"DPoP " + c.tokens["bound"]}}
		if proof != "" {
			h.Set("DPoP", proof)
		}
		return h
	}
	once := c.say(t, "$proof:one POST /mcp $bound")
	var own v1.GetTaskResponse
	w.mcp(t, http.MethodPost, toolCall("task", "{}"), show(once)).tool(t).into(t, &own)
	if own.GetTask().GetId() != task {
		t.Errorf("%v", &own)
	}
	if got := w.mcp(t, http.MethodPost, listTools, show(c.say(t, "$proof:one POST /mcp $bound"))); got.status != http.StatusOK {
		t.Errorf("%+v", got)
	}
	for _, bad := range []struct{ name, proof, reason string }{
		{"a second time", once, "PROOF_REPLAYED"},
		{"none", "", "PROOF_MISSING"},
		{"by another key", c.say(t, "$proof:two POST /mcp $bound"), "PROOF_KEY_WRONG"},
		{"for the call that the tool stands for", c.say(t, "$proof:one POST TaskService/GetTask $bound"), "PROOF_INVALID"},
		{"for another method", c.say(t, "$proof:one GET /mcp $bound"), "PROOF_INVALID"},
	} {
		for _, body := range []string{listTools, toolCall("task", "{}")} {
			before := w.lastEntry(t)
			if got := w.mcp(t, http.MethodPost, body, show(bad.proof)); got.status != http.StatusUnauthorized || got.reason() != bad.reason && bad.proof != "" {
				t.Errorf("%s: %+v, want %s", bad.name, got, bad.reason)
			}
			if got := w.entriesAfter(t, before, task); len(got) != 1 || got[0].call != "mcp" || got[0].decision != "REFUSED" {
				t.Errorf("%s: %v", bad.name, got)
			}
		}
	}
	// One proof is good for one request, however many calls that holds.
	before := w.lastEntry(t)
	both := "[" + toolCall("task", "{}") + "," + strings.Replace(toolCall("query", `{"text":"quinces"}`), `"id":1`, `"id":2`, 1) + "]"
	got := w.mcp(t, http.MethodPost, both, show(c.say(t, "$proof:one POST /mcp $bound")))
	if entries := w.entriesAfter(t, before, task); got.status != http.StatusOK || len(entries) != 2 || entries[0].decision != "ALLOWED" || entries[1].decision != "ALLOWED" {
		t.Errorf("two calls in one request: %+v, %v", got, entries)
	}
}

// testMCPHostile sends what no client would.
func (w *running) testMCPHostile(t *testing.T) {
	agent, task := w.errand(t, 30, "memory:read", "memory:write")
	allowed := http.Header{"Authorization": {"Bearer " + agent.token}}
	for _, c := range []struct{ tool, args, word string }{
		{"query", `{"text":7}`, "text"},
		{"query", `{"text":"x","limits":3}`, `"limits"`},
		{"query", `{"text":"x","answer_id":"1"}`, `"answer_id"`},
		{"query", `{"text":"x","text":"y"}`, "once"},
		{"query", `{"text":"x","recency":{"half":"1s"}}`, "half"},
		{"query", `{"text":"x","idempotencyKey":"k"}`, `"idempotencyKey"`},
		{"query", `["x"]`, "object"},
		{"query", `"x"`, "object"},
		{"query", `{"text":"\ud800"}`, "text"},
		{"record", `{"table":"app.public.barges","key":"7"}`, "key"},
		{"remember", `{"text":"x","idempotencyKey":7}`, "idempotencyKey"},
		{"remember", `{"text":"x","idempotencyKey":""}`, "idempotencyKey"},
		{"list_actions", `{"all":true}`, `"all"`},
		{"query", `{"text":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`, ""},
	} {
		before := w.lastEntry(t)
		got := w.mcp(t, http.MethodPost, toolCall(c.tool, c.args), allowed)
		if !strings.Contains(got.body, `"result"`) && c.word == "" {
			continue // the library would not read it
		}
		answer := got.tool(t)
		f := answer.failure(t)
		want := "MALFORMED_REQUEST"
		if c.tool == "list_actions" {
			want = "ACTION_OUT_OF_SCOPE" // who may not call is not told what is wrong
		} else if !strings.Contains(f.Message, c.word) {
			t.Errorf("%s %.80s: %q does not say %s", c.tool, c.args, f.Message, c.word)
		}
		if f.Reason != want {
			t.Errorf("%s %.80s: %+v", c.tool, c.args, f)
		}
		if entries := w.entriesAfter(t, before, task); len(entries) != 1 || entries[0].decision != "REFUSED" || entries[0].reason != want {
			t.Errorf("%s %.80s: %v", c.tool, c.args, entries)
		}
	}
	var own v1.GetTaskResponse
	w.mcp(t, http.MethodPost, toolCall("task", "null"), allowed).tool(t).into(t, &own)
	if used := own.GetTask().GetBudget().GetCalls().GetUsed(); used != 0 {
		t.Errorf("what is not valid cost %d calls", used)
	}

	with := func(name, value string) http.Header {
		h := allowed.Clone()
		h.Set(name, value)
		return h
	}
	for _, c := range []struct {
		name, method, body string
		header             http.Header
		status             int
		word               string
		call, reason       string // of the entry; empty: none
	}{
		{"no JSON", http.MethodPost, `{"jsonrpc":`, allowed, 400, "", "", ""},
		{"no message", http.MethodPost, `{"jsonrpc":"2.0"}`, allowed, 400, "", "", ""},
		{"nothing", http.MethodPost, ``, allowed, 400, "", "", ""},
		{"no such method", http.MethodPost, `{"jsonrpc":"2.0","id":1,"method":"tools/steal"}`, allowed, 400, "", "", ""},
		{"a call of nothing", http.MethodPost, `{"jsonrpc":"2.0","id":1,"method":"tools/call"}`, allowed, 400, "", "", ""},
		{"a call of null", http.MethodPost, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":null}`, allowed, 200, "-32600", "", ""},
		{"a call of a number", http.MethodPost, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":7}}`, allowed, 200, "-32602", "", ""},
		{"a call of no name", http.MethodPost, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{}}`, allowed, 200, "-32602", "unknown", "UNKNOWN_CALL"},
		{"no such tool", http.MethodPost, toolCall("steal", "{}"), allowed, 200, "-32602", "unknown", "UNKNOWN_CALL"},
		{"a stream", http.MethodGet, ``, allowed, 405, "", "", ""},
		{"a form", http.MethodPost, toolCall("task", "{}"), with("Content-Type", "application/x-www-form-urlencoded"), 415, "", "", ""},
		{"too large", http.MethodPost, toolCall("query", `{"text":"`+strings.Repeat("x", 5<<20)+`"}`), allowed, 413, "REQUEST_TOO_LARGE", "mcp", "REQUEST_TOO_LARGE"},
		{"another's page", http.MethodPost, toolCall("task", "{}"), with("Origin", "https://evil.example"), 403, "ORIGIN_NOT_ALLOWED", "mcp", "ORIGIN_NOT_ALLOWED"},
		{"a page of nowhere", http.MethodPost, toolCall("task", "{}"), with("Origin", "null"), 403, "ORIGIN_NOT_ALLOWED", "mcp", "ORIGIN_NOT_ALLOWED"},
		{"another port's page", http.MethodPost, toolCall("task", "{}"), with("Origin", "http://127.0.0.1"), 403, "ORIGIN_NOT_ALLOWED", "mcp", "ORIGIN_NOT_ALLOWED"},
		{"its own page", http.MethodPost, toolCall("task", "{}"), with("Origin", w.env["WHENCE_ISSUER"]), 200, task, "whence.v1.TaskService/GetTask", ""},
	} {
		before := w.lastEntry(t)
		got := w.mcp(t, c.method, c.body, c.header)
		if got.status != c.status || !strings.Contains(got.body, c.word) {
			t.Errorf("%s: %d %.300s, want %d %s", c.name, got.status, got.body, c.status, c.word)
		}
		if c.call != "" {
			w.hasEntry(t, c.name, before, c.call, c.reason)
		} else if entries := w.entriesAfter(t, before, task); len(entries) != 0 {
			t.Errorf("%s: %v", c.name, entries)
		}
	}
	// A stream would outlast its credential, so none is opened.
	listen := with("Mcp-Protocol-Version", "2026-07-28")
	listen.Set("Mcp-Method", "subscriptions/listen")
	hasty := *w
	hasty.http = &http.Client{Transport: w.http.Transport, Timeout: 5 * time.Second}
	got := hasty.mcp(t, http.MethodPost, `{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"notifications":{"toolsListChanged":true},"_meta":{
"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"test","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}}}`, listen)
	if !strings.Contains(got.body, `"notifications":{}`) || !strings.Contains(got.body, `"result"`) {
		t.Errorf("listening: %d %s", got.status, got.body)
	}
	// The name that a page's browser resolved to this server (DNS rebinding): to the
	// browser all is of one origin.
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/mcp", strings.NewReader(listTools))
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "rebound.example"
	r.Header = with("Origin", "http://rebound.example")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	res, err := w.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("DNS rebinding: %s", res.Status)
	}
}
