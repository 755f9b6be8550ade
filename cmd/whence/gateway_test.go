package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// keyed makes a call under an idempotency key.
func (c caller) keyed(ctx context.Context, key, name string, req, res proto.Message) ([]byte, error) {
	body, err := protojson.Marshal(req)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/whence.v1."+name, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	b, err := c.do(r)
	if err != nil {
		return nil, err
	}
	return b, protojson.Unmarshal(b, res)
}

// shop is a service as agents call it: orders are made, cancelled and paid.
type shop struct {
	*httptest.Server
	mu     sync.Mutex
	seen   []*http.Request
	bodies []string
	orders atomic.Int64
	fail   atomic.Value // status to answer with
}

func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{}
	s.fail.Store(0)
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	s.seen, s.bodies = append(s.seen, r), append(s.bodies, string(body))
	s.mu.Unlock()
	if status, _ := s.fail.Load().(int); status != 0 {
		if status < 0 {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(status)
		return
	}
	switch {
	case r.URL.Path == "/base/stream":
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			_ = http.NewResponseController(w).Flush()
		}
	case r.URL.Path == "/base/endless":
		w.Header().Set("Content-Type", "text/event-stream")
		for r.Context().Err() == nil {
			fmt.Fprint(w, "data: still here\n\n")
			_ = http.NewResponseController(w).Flush()
			time.Sleep(20 * time.Millisecond)
		}
	case r.Method == http.MethodPost && r.URL.Path == "/base/orders":
		w.Header().Set("X-Cost", "0.25")
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"order":{"id":"o%d","number":9007199254740993}}`, s.orders.Add(1))
	case r.Method == http.MethodDelete:
		s.orders.Add(-1)
	default:
		w.Header().Set("X-Cost", "0.5")
		fmt.Fprintf(w, `{"you asked":%q}`, r.URL.RequestURI())
	}
}

func (s *shop) last() (*http.Request, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[len(s.seen)-1], s.bodies[len(s.bodies)-1]
}

const shopActions = `
version: 1
actions:
  - name: shop.order
    description: orders something
    tier: TIER_REVERSIBLE
    parameters: [{name: what, type: PARAMETER_TYPE_TEXT, required: true}]
    http:
      upstream: shop
      request: {method: POST, path: /orders, body: {what: {parameter: what}, for: {credential: user}}}
      inverse: {method: DELETE, path: "/orders/{id}", pathOperands: {id: {result: /order/id}}}
  - name: shop.number
    description: orders something, and takes it back by its number
    tier: TIER_REVERSIBLE
    http:
      upstream: shop
      request: {method: POST, path: /orders}
      inverse: {method: DELETE, path: "/orders/{id}", pathOperands: {id: {result: /order/number}}}
  - name: shop.look
    description: looks at an order
    tier: TIER_READ
    parameters: [{name: id, type: PARAMETER_TYPE_TEXT, required: true}]
    http: {upstream: shop, request: {method: GET, path: "/orders/{id}", query: {by: {credential: agent}}}}
  - name: shelf.move
    description: moves a thing
    tier: TIER_REVERSIBLE
    parameters: [{name: id, type: PARAMETER_TYPE_INTEGER, required: true}, {name: note, type: PARAMETER_TYPE_TEXT, required: true}]
    row: {table: app.public.things, operation: ROW_OPERATION_UPDATE, where: {id: {parameter: id}}, set: {note: {parameter: note}}, columns: [note]}
`

func (w *running) testGateway(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	w.exec(t, `create table public.things (id int primary key, note text)`)
	w.exec(t, `insert into public.things values (1, 'a quiet lantern'), (2, 'a loud drum')`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.things", TextColumns: []string{"note"}})
	w.operator().must(t, "AdminService/CreateUpstream", &v1.CreateUpstreamRequest{Upstream: &v1.Upstream{Name: "shop", Url: s.URL + "/base",
		PrivateRanges: []string{"127.0.0.1/32"}, Rules: []*v1.UpstreamRule{
			{Method: "POST", Path: "/orders", Tier: v1.Tier_TIER_REVERSIBLE, CostMicros: 900_000, SpendHeader: "X-Cost", SpendUnitMicros: 1_000_000},
			{Method: "GET", Path: "/**", Tier: v1.Tier_TIER_READ, CostMicros: 700_000, SpendHeader: "X-Cost", SpendUnitMicros: 1_000_000}}}}, &v1.CreateUpstreamResponse{})
	w.registerActions(t, shopActions)
	t.Run("Rows", w.testRowsReadBack)
	t.Run("Requests", func(t *testing.T) { w.testRequests(t, s) })
	t.Run("RevokedThrough", w.testRevokedThrough)
	t.Run("Through", func(t *testing.T) { w.testThrough(t, s) })
}

func (w *running) registerActions(t *testing.T, yaml string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "actions.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	w.cli(t, "action", "register", file).is(t, 0)
}

// spender starts a task that may spend this much money.
func (w *running) spender(t *testing.T, micros int64) (caller, *v1.Task) {
	t.Helper()
	scope := &v1.Scope{AllTables: true, AllSubjects: true, Actions: []string{"memory:read", "action:execute"}, Tier: v1.Tier_TIER_IRREVERSIBLE}
	var res v1.DelegateResponse
	w.agent().must(t, "TaskService/Delegate", &v1.DelegateRequest{Agent: "shopper", Purpose: "shop", Scope: scope,
		Budget: &v1.BudgetLimits{SpendMicros: &micros, Calls: proto.Uint32(1000)}}, &res)
	return caller{w.http, w.url, res.GetToken()}, res.GetTask()
}

// A row that was written through the gateway is found, with its token, at once.
func (w *running) testRowsReadBack(t *testing.T) {
	agent, _ := w.spender(t, 0)
	args := object(t, `{"id": 2, "note": "a muffled kettledrum"}`)
	var preview v1.PreviewResponse
	agent.must(t, "ActionService/Preview", &v1.PreviewRequest{Action: "shelf.move", Arguments: args}, &preview)
	if preview.GetEffects()[0].GetAfter().AsMap()["note"] != "a muffled kettledrum" || !preview.GetIdempotencyKeyRequired() {
		t.Errorf("preview %v", &preview)
	}
	var done v1.ExecuteResponse
	if _, err := agent.keyed(t.Context(), "k1", "ActionService/Execute", &v1.ExecuteRequest{Action: "shelf.move", Arguments: args, Digest: preview.GetDigest()}, &done); err != nil {
		t.Fatal(err)
	}
	hits := agent.query(t, &v1.QueryRequest{Text: "kettledrum", Tables: []string{"app.public.things"},
		Consistency: &v1.Consistency{AtLeast: done.GetExecution().GetToken()}}).GetHits()
	if len(hits) == 0 || hits[0].GetText() != "a muffled kettledrum" || hits[0].GetOrigin().GetKey().AsMap()["id"] != "2" {
		t.Errorf("a query that waits for the write finds %v", hits)
	}
	var undone v1.UndoResponse
	agent.must(t, "ActionService/Undo", &v1.UndoRequest{Id: done.GetExecution().GetId()}, &undone)
	if undone.GetExecution().GetState() != v1.ExecutionState_EXECUTION_STATE_UNDONE {
		t.Errorf("undone as %v", &undone)
	}
}

// Registered requests: once, taken back, and never sent again when nobody knows.
func (w *running) testRequests(t *testing.T, s *shop) {
	t.Helper()
	agent, task := w.spender(t, 10_000_000)
	order := &v1.ExecuteRequest{Action: "shop.order", Arguments: object(t, `{"what": "tea"}`)}
	var preview v1.PreviewResponse
	before := len(s.bodies)
	agent.must(t, "ActionService/Preview", &v1.PreviewRequest{Action: order.Action, Arguments: order.Arguments}, &preview)
	if r := preview.GetRequests(); len(r) != 1 || r[0].GetMethod() != "POST" || r[0].GetUrl() != s.URL+"/base/orders" || !strings.Contains(r[0].GetBody(), `"what":"tea"`) || len(s.bodies) != before {
		t.Errorf("preview %v", &preview)
	}
	var first, again v1.ExecuteResponse
	if _, err := agent.keyed(t.Context(), "o1", "ActionService/Execute", order, &first); err != nil {
		t.Fatal(err)
	}
	req, body := s.last()
	if body != `{"for":"dev","what":"tea"}` || req.Header.Get("Whence-Task-Id") != task.GetId() || req.Header.Get("Authorization") != "" {
		t.Errorf("sent %s with %v", body, req.Header)
	}
	if _, err := agent.keyed(t.Context(), "o1", "ActionService/Execute", order, &again); err != nil || !again.GetExecution().GetReplayed() || s.orders.Load() != 1 {
		t.Errorf("again: %v, %v; %d orders", &again, err, s.orders.Load())
	}
	if !proto.Equal(first.GetExecution().GetResult(), again.GetExecution().GetResult()) {
		t.Errorf("%v, then %v", first.GetExecution().GetResult(), again.GetExecution().GetResult())
	}
	var undone v1.UndoResponse
	agent.must(t, "ActionService/Undo", &v1.UndoRequest{Id: first.GetExecution().GetId()}, &undone)
	if req, _ := s.last(); req.Method != http.MethodDelete || req.URL.Path != "/base/orders/o1" || s.orders.Load() != 0 {
		t.Errorf("undone by %s %s", req.Method, req.URL)
	}
	var numbered v1.ExecuteResponse
	if _, err := agent.keyed(t.Context(), "n1", "ActionService/Execute", &v1.ExecuteRequest{Action: "shop.number"}, &numbered); err != nil {
		t.Fatal(err)
	}
	agent.must(t, "ActionService/Undo", &v1.UndoRequest{Id: numbered.GetExecution().GetId()}, &undone)
	if req, _ := s.last(); req.URL.Path != "/base/orders/9007199254740993" {
		t.Errorf("undone at %s", req.URL)
	}
	var looked v1.ExecuteResponse
	agent.must(t, "ActionService/Execute", &v1.ExecuteRequest{Action: "shop.look", Arguments: object(t, `{"id": "b ?c"}`)}, &looked)
	if req, _ := s.last(); req.URL.RequestURI() != "/base/orders/b%20%3Fc?by=shopper" {
		t.Errorf("looked at %s: %v", req.URL.RequestURI(), &looked)
	}
	if err := agent.call(t.Context(), "ActionService/Execute", &v1.ExecuteRequest{Action: "shop.look", Arguments: object(t, `{"id": "../x"}`)}, &looked); reasonOf(err) != "REQUEST_INVALID" {
		t.Errorf("a way up: %v", err)
	}
	for status, want := range map[int]string{400: "UPSTREAM_REFUSED", 503: "OUTCOME_UNKNOWN", -1: "OUTCOME_UNKNOWN"} {
		s.fail.Store(status)
		key := fmt.Sprint("f", status)
		if _, err := agent.keyed(t.Context(), key, "ActionService/Execute", order, &again); reasonOf(err) != want {
			t.Errorf("status %d: %v", status, err)
		}
		n := len(s.bodies)
		s.fail.Store(0)
		_, err := agent.keyed(t.Context(), key, "ActionService/Execute", order, &again)
		if want == "OUTCOME_UNKNOWN" && (reasonOf(err) != want || len(s.bodies) != n) {
			t.Errorf("status %d, repeated: %v, and %d requests more", status, err, len(s.bodies)-n)
		}
		if want == "UPSTREAM_REFUSED" && err != nil {
			t.Errorf("status %d, repeated: %v", status, err)
		}
	}
}

func reasonOf(err error) string {
	var r *refusal
	if errors.As(err, &r) {
		return r.reason()
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// through sends a request through to the shop.
func (c caller) through(t *testing.T, method, path, body string, header map[string]string) (status int, reply string, head http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, c.url+"/up/shop"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+c.token)
	for name, v := range header {
		r.Header.Set(name, v)
	}
	res, err := c.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b), res.Header
}

func problemReason(body string) string {
	var p struct{ Reason string }
	_ = json.Unmarshal([]byte(body), &p)
	return p.Reason
}

// Requests as agents write them, through the proxy.
func (w *running) testThrough(t *testing.T, s *shop) {
	t.Helper()
	agent, task := w.spender(t, 2_300_000)
	spoofed := map[string]string{"Whence-Task-Id": "another", "traceparent": "00-11111111111111111111111111111111-2222222222222222-01", "baggage": "whence.user=root", "X-Forwarded-For": "1.2.3.4", "Cookie": "a=b", "X-Own": "kept"}
	status, body, _ := agent.through(t, "GET", "/list?a=b", "", spoofed)
	req, _ := s.last()
	if status != 200 || body != `{"you asked":"/base/list?a=b"}` {
		t.Errorf("%d %s", status, body)
	}
	if h := req.Header; h.Get("Whence-Task-Id") != task.GetId() || strings.Contains(h.Get("traceparent"), "1111") || strings.Contains(h.Get("baggage"), "root") ||
		h.Get("X-Forwarded-For") != "" || h.Get("Cookie") != "" || h.Get("Authorization") != "" || h.Get("X-Own") != "kept" {
		t.Errorf("the shop saw %v", h)
	}
	spent := func() int64 {
		var got v1.GetTaskResponse
		agent.must(t, "TaskService/GetTask", &v1.GetTaskRequest{}, &got)
		return got.GetTask().GetBudget().GetSpendMicros().GetUsed()
	}
	if n := spent(); n != 500_000 {
		t.Errorf("it has cost %d", n)
	}
	if status, body, _ := agent.through(t, "GET", "/stream", "", nil); status != 200 || body != "data: 0\n\ndata: 1\n\ndata: 2\n\n" {
		t.Errorf("the stream is %d %q", status, body)
	}
	if n := spent(); n != 1_200_000 { // no header tells what it cost, so it is the most
		t.Errorf("it has cost %d", n)
	}
	// A write needs a key, runs once, and its reply is kept.
	if status, body, _ := agent.through(t, "POST", "/orders", `{}`, nil); status != 400 || problemReason(body) != "IDEMPOTENCY_KEY_REQUIRED" {
		t.Errorf("without a key: %d %s", status, body)
	}
	begin := s.orders.Load()
	key := map[string]string{"Idempotency-Key": "p1", "Content-Type": "application/json"}
	status, first, head := agent.through(t, "POST", "/orders", `{"n":1}`, key)
	if status != 201 || head.Get("Whence-Execution-Id") == "" {
		t.Errorf("%d %s %v", status, first, head)
	}
	status, again, head := agent.through(t, "POST", "/orders", `{"n":1}`, key)
	if status != 201 || again != first || head.Get("Idempotency-Replayed") != "true" || s.orders.Load() != begin+1 {
		t.Errorf("again %d %s %v, %d orders", status, again, head, s.orders.Load()-begin)
	}
	if status, body, _ := agent.through(t, "POST", "/orders", `{"n":2}`, key); status != 400 || problemReason(body) != "IDEMPOTENCY_KEY_REUSED" {
		t.Errorf("another body: %d %s", status, body)
	}
	if n := spent(); n != 1_450_000 {
		t.Errorf("it has cost %d", n)
	}
	if status, body, _ := agent.through(t, "POST", "/orders", `{}`, map[string]string{"Idempotency-Key": "p2"}); status != 429 || problemReason(body) != "BUDGET_EXHAUSTED" {
		t.Errorf("with too little left: %d %s", status, body)
	}
	key["Content-Type"] = "text/plain"
	if status, body, _ := agent.through(t, "POST", "/orders", `{"n":1}`, key); status != 400 || problemReason(body) != "IDEMPOTENCY_KEY_REUSED" {
		t.Errorf("another type: %d %s", status, body)
	}
	key["Content-Type"] = "application/json"
	key["X-Account"] = "another"
	if status, body, _ := agent.through(t, "POST", "/orders", `{"n":1}`, key); status != 201 || body != first {
		t.Errorf("with a header that does not go out: %d %s", status, body)
	}
	w.testSpent(t, s)
	// What no rule names is irreversible: somebody has to approve it.
	rich, _ := w.spender(t, 2_000_000)
	drop := map[string]string{"Idempotency-Key": "d1"}
	status, body, _ = rich.through(t, "DELETE", "/orders/o9", "", drop)
	if status != 409 || problemReason(body) != "APPROVAL_PENDING" {
		t.Fatalf("%d %s", status, body)
	}
	var pending v1.ListApprovalsResponse
	w.operator().must(t, "ApprovalService/ListApprovals", &v1.ListApprovalsRequest{State: v1.ApprovalState_APPROVAL_STATE_PENDING, Agent: "shopper"}, &pending)
	a := pending.GetApprovals()[0]
	if r := a.GetRequests(); len(r) != 1 || r[0].GetMethod() != "DELETE" || r[0].GetUrl() != s.URL+"/base/orders/o9" {
		t.Errorf("the approval says %v", a)
	}
	w.operator().must(t, "ApprovalService/Approve", &v1.ApproveRequest{Id: a.GetId(), Digest: a.GetDigest()}, &v1.ApproveResponse{})
	// The upstream is another by now: what was approved is not what would run.
	w.operator().must(t, "AdminService/UpdateUpstream", &v1.UpdateUpstreamRequest{Upstream: &v1.Upstream{Name: "shop", Url: s.URL + "/base",
		PrivateRanges: []string{"127.0.0.1/32"}}}, &v1.UpdateUpstreamResponse{})
	if status, body, _ := rich.through(t, "DELETE", "/orders/o9", "", drop); status != 409 || problemReason(body) != "APPROVAL_STALE" {
		t.Errorf("to another upstream: %d %s", status, body)
	}
	drop["Idempotency-Key"] = "d2"
	rich.through(t, "DELETE", "/orders/o9", "", drop)
	w.operator().must(t, "ApprovalService/ListApprovals", &v1.ListApprovalsRequest{State: v1.ApprovalState_APPROVAL_STATE_PENDING, Agent: "shopper"}, &pending)
	a = pending.GetApprovals()[0]
	w.operator().must(t, "ApprovalService/Approve", &v1.ApproveRequest{Id: a.GetId(), Digest: a.GetDigest()}, &v1.ApproveResponse{})
	for range 2 {
		if status, body, _ := rich.through(t, "DELETE", "/orders/o9", "", drop); status != 200 {
			t.Errorf("approved: %d %s", status, body)
		}
	}
	if status, body, _ := agent.through(t, "POST", "/orders", `{"n":1}`, key); status != 201 || body != first {
		t.Errorf("again, with too little left: %d %s", status, body)
	}
	if n := s.orders.Load(); n != begin {
		t.Errorf("%d orders, and there were %d", n, begin)
	}
	// Nobody gets through without a credential, to nowhere else, or by tricks.
	for name, c := range map[string]struct {
		token, method, path string
		status              int
		reason              string
	}{
		"no credential": {"", "GET", "/list", 401, "TOKEN_MISSING"},
		"dots":          {rich.token, "GET", "/../x", 400, "REQUEST_INVALID"},
		"an escape":     {rich.token, "GET", "/a%2f..%2fb", 400, "REQUEST_INVALID"},
		"an operator":   {w.operator().token, "GET", "/list", 403, "WRONG_CREDENTIAL_KIND"},
	} {
		seen := len(s.bodies)
		status, body, _ := caller{w.http, w.url, c.token}.through(t, c.method, c.path, "", nil)
		if status != c.status || problemReason(body) != c.reason || len(s.bodies) != seen {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
}

// A task that has nothing left sees what it was told, and nothing else; what was done
// is paid, whatever comes after; polling is free with any budget.
func (w *running) testSpent(t *testing.T, s *shop) {
	t.Helper()
	scope := &v1.Scope{AllTables: true, AllSubjects: true, Actions: []string{"memory:read", "action:execute"}, Tier: v1.Tier_TIER_REVERSIBLE}
	var res v1.DelegateResponse
	w.agent().must(t, "TaskService/Delegate", &v1.DelegateRequest{Agent: "poor", Purpose: "spend", Scope: scope,
		Budget: &v1.BudgetLimits{Calls: proto.Uint32(3), Bytes: proto.Int64(100_000), Writes: proto.Uint32(2)}}, &res)
	poor := caller{w.http, w.url, res.GetToken()}
	key := map[string]string{"Idempotency-Key": "s1"}
	status, first, _ := poor.through(t, "POST", "/orders", `{}`, key)
	if status != 201 {
		t.Fatalf("%d %s", status, first)
	}
	// The upstream fails, and is paid all the same.
	s.fail.Store(-1)
	if status, body, _ := poor.through(t, "POST", "/orders", `{}`, map[string]string{"Idempotency-Key": "s2"}); problemReason(body) != "OUTCOME_UNKNOWN" {
		t.Errorf("nobody knows: %d %s", status, body)
	}
	s.fail.Store(0)
	var task v1.GetTaskResponse
	for range 3 {
		poor.must(t, "TaskService/GetTask", &v1.GetTaskRequest{}, &task)
	}
	if b := task.GetTask().GetBudget(); b.GetCalls().GetUsed() != 2 || b.GetWrites().GetUsed() != 2 || b.GetBytes().GetUsed() == 0 {
		t.Errorf("paid %v", b)
	}
	if status, body, _ := poor.through(t, "GET", "/list", "", nil); status != 200 {
		t.Errorf("the last call: %d %s", status, body)
	}
	seen := len(s.bodies)
	for _, method := range []string{"GET", "HEAD"} {
		if status, _, _ := poor.through(t, method, "/list", "", key); status != 429 || len(s.bodies) != seen {
			t.Errorf("%s with nothing left, under a key that is known: %d", method, status)
		}
	}
	if status, again, _ := poor.through(t, "POST", "/orders", `{}`, key); status != 201 || again != first {
		t.Errorf("what it was told: %d %s", status, again)
	}
	s.orders.Add(-1) // its own
}

func object(t *testing.T, text string) *structpb.Struct {
	t.Helper()
	out := &structpb.Struct{}
	if err := protojson.Unmarshal([]byte(text), out); err != nil {
		t.Fatal(err)
	}
	return out
}
