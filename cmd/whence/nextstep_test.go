package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/demo/nextstep"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
	"github.com/whence-db/whence/reason"
)

// try is one call as an agent sends it.
type try struct {
	as         caller
	call, body string
	key        string
}

func (y try) send(ctx context.Context) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, y.as.url+"/whence.v1."+y.call, bytes.NewReader([]byte(y.body)))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if y.key != "" {
		req.Header.Set("Idempotency-Key", y.key)
	}
	return y.as.do(req)
}

// predicament is an error that an agent gets, and what resolves it.
type predicament struct {
	reason string
	next   reason.Next
	first  try
	// before brings it about.
	before func(t *testing.T)
	// until lets what the error speaks of come about, after it.
	until func(t *testing.T, r *refusal)
	// other is the request that is sent instead, where the step is to send another one.
	other func(t *testing.T, r *refusal) try
	// as is the other credential, where the step is to get one.
	as caller
	// field is the one at fault.
	field string
	// leads is the reason of the error that the step leads to, if it is one.
	leads string
}

// run gets the error, has nextstep decide by its details, does that and nothing else,
// and holds that it resolves the matter; where the step is to send nothing, that
// sending it again would have been in vain.
func (p predicament) run(t *testing.T) {
	t.Helper()
	if p.before != nil {
		p.before(t)
	}
	r := p.refused(t, p.first)
	step := nextstep.After(r.Details)
	if step.Next != string(p.next) {
		t.Fatalf("%v: the next step is %q, want %s", r, step.Next, p.next)
	}
	if p.field != "" && !slices.Contains(step.Fields, p.field) {
		t.Errorf("%v: the fields at fault are %v, want %s", r, step.Fields, p.field)
	}
	if p.until != nil {
		p.until(t, r)
	}
	again := p.first
	switch step.Send {
	case nextstep.Nothing:
		if later := p.refused(t, again); nextstep.After(later.Details).Send != nextstep.Nothing {
			t.Errorf("sent again: %v", later)
		}
		return
	case nextstep.Other:
		again = p.other(t, r)
	case nextstep.Same:
	}
	if step.Credential {
		again.as = p.as
	}
	if again.key != "" && !step.SameKey && again.key == p.first.key {
		again.key += "-new"
	}
	deadline := time.Now().Add(showLimit)
	for {
		time.Sleep(step.Wait)
		b, err := again.send(t.Context())
		if err == nil {
			return
		}
		var more *refusal
		if errors.As(err, &more) && p.leads != "" && more.reason() == p.leads {
			return
		}
		if !errors.As(err, &more) || nextstep.After(more.Details).Next != step.Next || step.Wait == 0 || time.Now().After(deadline) {
			t.Fatalf("after %s: %v %s", step.Next, err, b)
		}
	}
}

func (p predicament) refused(t *testing.T, y try) *refusal {
	t.Helper()
	b, err := y.send(t.Context())
	var r *refusal
	if !errors.As(err, &r) || r.reason() != p.reason {
		t.Fatalf("want %s, got %.300s, %v", p.reason, b, err)
	}
	return r
}

// TestNextSteps brings an agent into every predicament that follows, with a server of
// its own, and has it go on by the details of the errors alone.
func TestNextSteps(t *testing.T) {
	t.Parallel()
	w := startDev(t)
	w.exec(t, `create table public.stock (id int primary key, owner text, what text, n int check (n >= 0))`)
	w.exec(t, `insert into public.stock select i, 'ann', 'a crate of quinces ' || i, 5 from generate_series(1, 30) i`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.stock", TextColumns: []string{"what"}, SubjectColumn: "owner"})
	for _, def := range []string{
		`{"name": "stock.set", "description": "sets how many there are", "tier": "TIER_REVERSIBLE",
		  "parameters": [{"name": "id", "type": "PARAMETER_TYPE_INTEGER", "required": true}, {"name": "n", "type": "PARAMETER_TYPE_INTEGER", "required": true}],
		  "row": {"table": "app.public.stock", "operation": "ROW_OPERATION_UPDATE", "where": {"id": {"parameter": "id"}}, "set": {"n": {"parameter": "n"}}}}`,
		`{"name": "stock.burn", "description": "burns a crate", "tier": "TIER_IRREVERSIBLE", "irreversibleBecause": "ashes",
		  "parameters": [{"name": "id", "type": "PARAMETER_TYPE_INTEGER", "required": true}],
		  "row": {"table": "app.public.stock", "operation": "ROW_OPERATION_DELETE", "where": {"id": {"parameter": "id"}}}}`,
	} {
		if b, err := w.operator().post(t.Context(), "AdminService/RegisterAction", []byte(`{"action": `+def+`}`)); err != nil {
			t.Fatalf("%s, %v", b, err)
		}
	}
	tried := map[string]bool{}
	for _, group := range []func(*testing.T) []predicament{w.faults, w.credentialTroubles, w.writeTroubles, w.approvalTroubles, w.outcomes, w.crowds, w.behind} {
		for _, p := range group(t) {
			t.Run(p.reason, p.run)
			tried[p.reason] = true
		}
	}
	if len(tried) < 40 {
		t.Errorf("only %d reasons were tried", len(tried))
	}
}

const (
	queryCall = "MemoryService/Query"
	executing = "ActionService/Execute"
	undoing   = "ActionService/Undo"
	goodQuery = `{"text": "quinces"}`
)

func setStock(id, n int) string {
	return fmt.Sprintf(`{"action": "stock.set", "arguments": {"id": %d, "n": %d}}`, id, n)
}

func burn(id int) string {
	return fmt.Sprintf(`{"action": "stock.burn", "arguments": {"id": %d}}`, id)
}

// faults are requests that are at fault, or name what is not there.
func (w *running) faults(*testing.T) []predicament {
	agent := w.agent()
	fix := func(why string, next reason.Next, call, bad, good, field string) predicament {
		return predicament{reason: why, next: next, first: try{as: agent, call: call, body: bad}, field: field,
			other: func(*testing.T, *refusal) try { return try{as: agent, call: call, body: good} }}
	}
	const remember, record = "MemoryService/Remember", "MemoryService/GetRecord"
	out := []predicament{
		fix("INVALID_FIELD", reason.FixRequest, queryCall, `{"text": ""}`, goodQuery, "text"),
		fix("MALFORMED_REQUEST", reason.FixRequest, queryCall, `{"txt": "quinces"}`, goodQuery, ""),
		fix("REQUEST_TOO_LARGE", reason.FixRequest, queryCall, `{"text": "`+strings.Repeat("x", 10<<20)+`"}`, goodQuery, ""),
		fix("FILTER_UNKNOWN", reason.FixRequest, queryCall, `{"text": "quinces", "tables": ["app.public.stock"], "filter": {"colour": "red"}}`, goodQuery, "filter"),
		fix("AS_OF_IN_FUTURE", reason.FixRequest, queryCall, `{"text": "quinces", "asOf": "2999-01-01T00:00:00Z"}`, goodQuery, "asOf"),
		fix("TABLE_NOT_REGISTERED", reason.LookUp, queryCall, `{"text": "quinces", "tables": ["app.public.stocks"]}`, `{"text": "quinces", "tables": ["app.public.stock"]}`, ""),
		fix("RECORD_NOT_FOUND", reason.LookUp, record, `{"table": "app.public.stock", "key": {"id": "99"}}`, `{"table": "app.public.stock", "key": {"id": "1"}}`, ""),
		fix("KEY_INVALID", reason.FixRequest, record, `{"table": "app.public.stock", "key": {"name": "1"}}`, `{"table": "app.public.stock", "key": {"id": "1"}}`, "key"),
		fix("EVIDENCE_UNKNOWN", reason.FixRequest, remember, `{"text": "x y", "derivedFrom": ["123456789"]}`, `{"text": "x y"}`, "derivedFrom"),
		fix("ATTRIBUTE_RESERVED", reason.FixRequest, remember, `{"text": "x y", "attributes": {"agent": "1"}}`, `{"text": "x y", "attributes": {"chore": "1"}}`, ""),
		fix("ACTION_NOT_FOUND", reason.LookUp, "ActionService/Preview", `{"action": "stock.sett"}`, setStock(1, 6), ""),
		fix("ARGUMENTS_INVALID", reason.FixRequest, "ActionService/Preview", `{"action": "stock.set", "arguments": {"id": "one", "n": 1}}`, setStock(1, 6), "arguments.id"),
		fix("UNKNOWN_CALL", reason.Stop, "MemoryService/Ask", `{}`, "", ""),
	}
	exists := fix("SOURCE_EXISTS", reason.LookUp, "SourceService/CreateSource", `{"name": "app", "dsn": "postgres://127.0.0.1:1/app"}`, "", "")
	exists.first.as = w.operator()
	exists.other = func(*testing.T, *refusal) try {
		return try{as: w.operator(), call: "SourceService/GetSource", body: `{"name": "app"}`}
	}
	return append(out, exists)
}

// credentialTroubles are those of tokens, tasks and scopes.
func (w *running) credentialTroubles(t *testing.T) []predicament {
	t.Helper()
	agent := w.agent()
	tokens := credentials(t, w)
	ask := func(token string) try { return try{as: caller{w.http, w.url, token}, call: queryCall, body: goodQuery} }
	reads := &v1.Scope{AllTables: true, AllSubjects: true, Actions: []string{string(authz.MemoryRead)}}
	short, _ := agent.delegate(t, &v1.DelegateRequest{Agent: "short", Purpose: "end soon", Scope: reads, Lifetime: durationOf(time.Second)})
	revoked, task := agent.delegate(t, &v1.DelegateRequest{Agent: "revoked", Purpose: "be revoked", Scope: reads})
	w.operator().must(t, "AdminService/Revoke", &v1.RevokeRequest{Target: &v1.RevokeRequest_Task{Task: task.GetId()}}, &v1.RevokeResponse{})
	viewer := caller{w.http, w.url, tokens["viewer"]}
	out := []predicament{
		{reason: "TOKEN_MISSING", next: reason.GetToken, first: ask(""), as: agent},
		{reason: "TOKEN_MALFORMED", next: reason.GetToken, first: ask("open sesame"), as: agent},
		{reason: "TOKEN_SIGNATURE_INVALID", next: reason.GetToken, first: ask(tokens["garbled"]), as: agent},
		{reason: "TOKEN_ISSUER_UNKNOWN", next: reason.GetToken, first: ask(tokens["foreign"]), as: agent},
		{reason: "TOKEN_EXPIRED", next: reason.GetToken, first: ask(tokens["expired"]), as: agent},
		{reason: "WRONG_CREDENTIAL_KIND", next: reason.GetToken, first: try{as: agent, call: "SourceService/ListSources", body: `{}`}, as: w.operator()},
		{reason: "ROLE_INSUFFICIENT", next: reason.AskForScope, first: try{as: viewer, call: "SourceService/PauseSource", body: `{"name": "app"}`}},
		{reason: "TASK_ENDED", next: reason.StartTask, first: ask(tokens["ended"]), as: agent},
		{reason: "TASK_REVOKED", next: reason.Stop, first: ask(revoked.token)},
		{reason: "TABLE_OUT_OF_SCOPE", next: reason.AskForScope, first: try{as: caller{w.http, w.url, tokens["narrow"]}, call: queryCall, body: `{"text": "quinces", "tables": ["app.public.stock"]}`}},
		{reason: "TASK_EXPIRED", next: reason.StartTask, first: ask(short.token), as: agent},
	}
	time.Sleep(1100 * time.Millisecond)
	return out
}

// writeTroubles are those of writes and budgets.
func (w *running) writeTroubles(t *testing.T) []predicament {
	t.Helper()
	agent := w.agent()
	write := func(key, body string) try { return try{as: agent, call: executing, body: body, key: key} }
	one := uint32(1)
	all := &v1.Scope{AllTables: true, AllSubjects: true, Actions: []string{string(authz.MemoryRead)}}
	poor, _ := agent.delegate(t, &v1.DelegateRequest{Agent: "poor", Purpose: "ask once", Scope: all, Budget: &v1.BudgetLimits{Calls: &one}})
	poor.query(t, &v1.QueryRequest{Text: "quinces"})
	reader, _ := agent.delegate(t, &v1.DelegateRequest{Agent: "reader", Purpose: "read only", Scope: &v1.Scope{AllTables: true, AllSubjects: true, Actions: actionNames(), Tier: v1.Tier_TIER_READ}})
	mustSend(t, write("reused", setStock(1, 7)))
	stale := digestOf(t, agent, setStock(2, 8))
	w.exec(t, `update public.stock set n = 6 where id = 2`)
	withDigest := func(digest string) string {
		return fmt.Sprintf(`{"action": "stock.set", "arguments": {"id": 2, "n": 8}, "digest": %q}`, digest)
	}
	locked, err := w.source.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = locked.Rollback(context.WithoutCancel(t.Context())) })
	if _, err := locked.Exec(t.Context(), `update public.stock set n = n where id = 3`); err != nil {
		t.Fatal(err)
	}
	return []predicament{
		{reason: "IDEMPOTENCY_KEY_REUSED", next: reason.NewKey, first: write("reused", setStock(1, 8))},
		{reason: "IDEMPOTENCY_KEY_REQUIRED", next: reason.FixRequest, first: write("", setStock(1, 9)),
			other: func(_ *testing.T, r *refusal) try { return write("with-a-key", setStock(1, 9)) }},
		{reason: "CONSTRAINT_VIOLATED", next: reason.FixRequest, first: write("violates", setStock(1, -1)),
			other: func(*testing.T, *refusal) try { return write("violates", setStock(1, 1)) }},
		{reason: "PREVIEW_STALE", next: reason.PreviewAgain, first: write("stale", withDigest(stale)),
			other: func(t *testing.T, _ *refusal) try {
				t.Helper()
				return write("stale", withDigest(digestOf(t, agent, setStock(2, 8))))
			}},
		{reason: "ROW_LOCKED", next: reason.Retry, first: write("locked", setStock(3, 1)),
			until: func(t *testing.T, _ *refusal) {
				t.Helper()
				if err := locked.Rollback(t.Context()); err != nil {
					t.Fatal(err)
				}
			}},
		{reason: "BUDGET_EXHAUSTED", next: reason.SpendLess, first: try{as: poor, call: queryCall, body: goodQuery},
			other: func(*testing.T, *refusal) try { return try{as: agent, call: queryCall, body: goodQuery} }}, // handed back
		{reason: "ACTION_OUT_OF_SCOPE", next: reason.AskForScope, first: try{as: poor, call: "MemoryService/Remember", body: `{"text": "x y"}`}},
		{reason: "TIER_OUT_OF_SCOPE", next: reason.AskForScope, first: try{as: reader, call: executing, body: setStock(1, 3), key: "tier"}},
	}
}

// approvalTroubles are those of what an operator decides on.
func (w *running) approvalTroubles(t *testing.T) []predicament {
	t.Helper()
	agent := w.agent()
	operator := caller{w.http, w.url, signed(t, w, authz.RoleAdmin, time.Now, w.env["WHENCE_ISSUER"])}
	get := func(t *testing.T, id string) *v1.Approval {
		t.Helper()
		var res v1.GetApprovalResponse
		operator.must(t, "ApprovalService/GetApproval", &v1.GetApprovalRequest{Id: id}, &res)
		return res.GetApproval()
	}
	approve := func(t *testing.T, r *refusal) {
		t.Helper()
		a := get(t, metadata(r, "approval"))
		operator.must(t, "ApprovalService/Approve", &v1.ApproveRequest{Id: a.GetId(), Digest: a.GetDigest()}, &v1.ApproveResponse{})
	}
	pend := func(id int) (y try, approval string) {
		y = try{as: agent, call: executing, body: burn(id), key: fmt.Sprint("burn-", id)}
		r := predicament{reason: "APPROVAL_PENDING"}.refused(t, y)
		return y, metadata(r, "approval")
	}
	denied, id := pend(11)
	operator.must(t, "ApprovalService/Deny", &v1.DenyRequest{Id: id, Comment: "keep it"}, &v1.DenyResponse{})
	stale, id := pend(12)
	operator.must(t, "ApprovalService/Approve", &v1.ApproveRequest{Id: id, Digest: get(t, id).GetDigest()}, &v1.ApproveResponse{})
	w.exec(t, `update public.stock set n = 1 where id = 12`)
	_, open := pend(13)
	decided := metadata(predicament{reason: "APPROVAL_DENIED"}.refused(t, denied), "approval")
	decide := func(id, digest string) try {
		return try{as: operator, call: "ApprovalService/Approve", body: fmt.Sprintf(`{"id": %q, "digest": %q}`, id, digest)}
	}
	return []predicament{
		{reason: "APPROVAL_PENDING", next: reason.WaitForApproval, first: try{as: agent, call: executing, body: burn(10), key: "burn-10"}, until: approve},
		{reason: "APPROVAL_DENIED", next: reason.Stop, first: denied},
		{reason: "APPROVAL_DIGEST_MISMATCH", next: reason.LookUp, first: decide(open, strings.Repeat("0", 64)),
			other: func(t *testing.T, r *refusal) try {
				t.Helper()
				return decide(open, get(t, metadata(r, "approval")).GetDigest())
			}},
		{reason: "APPROVAL_DECIDED", next: reason.LookAtOutcome, first: decide(decided, strings.Repeat("0", 64)),
			other: func(_ *testing.T, r *refusal) try {
				return try{as: operator, call: "ApprovalService/GetApproval", body: fmt.Sprintf(`{"id": %q}`, metadata(r, "approval"))}
			}},
		{reason: "APPROVAL_NOT_FOUND", next: reason.LookUp, first: decide("01980000-0000-7000-8000-000000000000", strings.Repeat("0", 64)),
			other: func(*testing.T, *refusal) try {
				return try{as: operator, call: "ApprovalService/ListApprovals", body: `{}`}
			}},
		{reason: "APPROVAL_STALE", next: reason.NewKey, first: stale, leads: "APPROVAL_PENDING"},
	}
}
