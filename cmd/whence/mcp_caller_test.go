package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// bearer sends a token with every request of a client.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

// byMCP connects the protocol's own client with a credential.
func (c caller) byMCP(t *testing.T) *sdk.ClientSession {
	t.Helper()
	client := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, nil)
	s, err := client.Connect(t.Context(), &sdk.StreamableClientTransport{Endpoint: c.url + "/mcp", MaxRetries: -1,
		HTTPClient: &http.Client{Transport: bearer{c.token, c.http.Transport}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// told is what a tool answered.
type told struct {
	failed     bool
	text       string
	structured []byte
}

// toolFailure is the structured content of a tool that failed.
type toolFailure struct {
	Code, Reason, Message string
	RetryAfter            float64
	FieldViolations       []struct{ Field, Description string }
	Quota                 []struct{ Subject, Description string }
	Metadata              map[string]string
}

func (a told) failure(t *testing.T) (f toolFailure) {
	t.Helper()
	if !a.failed {
		t.Fatalf("it did not fail: %s", a.text)
	}
	if err := json.Unmarshal(a.structured, &f); err != nil {
		t.Fatal(err)
	}
	return f
}

// into reads the structured content as the API's reply, with nothing besides.
func (a told) into(t *testing.T, m proto.Message) {
	t.Helper()
	if a.failed {
		t.Fatalf("the tool failed: %s", a.text)
	}
	if err := protojson.Unmarshal(a.structured, m); err != nil {
		t.Fatalf("%v: %s", err, a.structured)
	}
}

// says holds words of the text.
func (a told) says(t *testing.T, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(a.text, word) {
			t.Errorf("%q is not in:\n%s", word, a.text)
		}
	}
}

// use calls a tool.
func use(t *testing.T, s *sdk.ClientSession, tool string, args map[string]any) told {
	t.Helper()
	res, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: tool, Arguments: args})
	if err != nil {
		t.Fatalf("%s: %v", tool, err)
	}
	return toldBy(t, res)
}

func toldBy(t *testing.T, res *sdk.CallToolResult) told {
	t.Helper()
	b, err := json.Marshal(res.StructuredContent)
	if err != nil || len(res.Content) != 1 {
		t.Fatalf("%+v: %v", res, err)
	}
	text, ok := res.Content[0].(*sdk.TextContent)
	if !ok || text.Text == "" {
		t.Fatalf("no text: %+v", res.Content)
	}
	return told{res.IsError, text.Text, b}
}

// posted is what came back for a body that was sent to the MCP endpoint as it is.
type posted struct {
	status int
	header http.Header
	body   string
}

// reason is the one of problem details.
func (p posted) reason() string {
	var d struct{ Reason string }
	_ = json.Unmarshal([]byte(p.body), &d)
	return d.Reason
}

func (w *running) mcp(t *testing.T, method, body string, header http.Header) posted {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, w.url+"/mcp", bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json, text/event-stream")
	maps.Copy(r.Header, header)
	res, err := w.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return posted{res.StatusCode, res.Header, string(b)}
}

// toolCall is the message that calls a tool; args is JSON.
func toolCall(tool, args string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":%q,"arguments":%s}}`, tool, args)
}

// tool reads the answer to one call.
func (p posted) tool(t *testing.T) told {
	t.Helper()
	var message struct{ Result *sdk.CallToolResult }
	if err := json.Unmarshal([]byte(p.body), &message); err != nil || message.Result == nil {
		t.Fatalf("%d %s: %v", p.status, p.body, err)
	}
	return toldBy(t, message.Result)
}

// entry is what an entry says of a call.
type entry struct {
	call, decision, reason string
	digest                 string // of the request
}

// entriesAfter lists what was recorded of a task, the oldest first; empty: of all who
// could not be told.
func (w *running) entriesAfter(t *testing.T, since int64, task string) (out []entry) {
	t.Helper()
	rows, err := w.memory.Query(t.Context(), `select call, decision, reason, encode(request_digest, 'hex') from whence.entries
where id > $1 and coalesce(task_id::text, '') = $2 order by id`, since, task)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var e entry
		if err := rows.Scan(&e.call, &e.decision, &e.reason, &e.digest); err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// errand starts a task for a test of the MCP endpoint.
func (w *running) errand(t *testing.T, calls uint32, actions ...string) (caller, string) {
	t.Helper()
	agent, task := w.agent().delegate(t, &v1.DelegateRequest{Agent: "errand-runner", Purpose: "run an errand", Budget: &v1.BudgetLimits{Calls: &calls},
		Scope: &v1.Scope{AllTables: true, AllSubjects: true, Actions: actions}})
	return agent, task.GetId()
}
