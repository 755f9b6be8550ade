package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
	"github.com/whence-db/whence/proto/gen/whence/v1/whencev1connect"
)

// testProtocols makes the same calls over every wire protocol.
func (w *running) testProtocols(t *testing.T) {
	t.Parallel()
	w.exec(t, `create table public.clocks (id int primary key, what text)`)
	w.exec(t, `insert into public.clocks values (7, 'a verge escapement')`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.clocks", TextColumns: []string{"what"}})
	cleartext := new(http.Protocols)
	cleartext.SetUnencryptedHTTP2(true)
	h2c := &http.Transport{Protocols: cleartext}
	t.Cleanup(h2c.CloseIdleConnections)
	overH2 := &http.Client{Transport: h2c}
	for _, p := range []struct {
		name      string
		transport connect.Transport
	}{
		{"Connect", connecthttp.NewTransport(w.http, w.url)},
		{"ConnectJSON", connecthttp.NewTransport(w.http, w.url, connecthttp.WithProtoJSON())},
		{"ConnectGet", connecthttp.NewTransport(w.http, w.url, connecthttp.WithHTTPGet())},
		{"ConnectOverHTTP2", connecthttp.NewTransport(overH2, w.url)},
		{"gRPC", connecthttp.NewTransport(overH2, w.url, connecthttp.WithGRPC())},
		{"gRPCWeb", connecthttp.NewTransport(w.http, w.url, connecthttp.WithGRPCWeb())},
	} {
		t.Run(p.name, func(t *testing.T) {
			memory := whencev1connect.NewMemoryServiceClient(connect.NewClient(p.transport, bearing(w.env["WHENCE_AGENT_TOKEN"])))
			res, err := memory.Query(t.Context(), &v1.QueryRequest{Text: "verge escapement", Tables: []string{"app.public.clocks"}})
			if err != nil || len(res.GetHits()) != 1 || res.GetAnswerId() == "" {
				t.Errorf("Query: %v, %v", res, err)
			}
			rec, err := memory.GetRecord(t.Context(), &v1.GetRecordRequest{Table: "app.public.clocks", Key: idKey("7")})
			if err != nil || rec.GetRecord().GetText() != "a verge escapement" {
				t.Errorf("GetRecord: %v, %v", rec, err)
			}
			_, err = memory.GetRecord(t.Context(), &v1.GetRecordRequest{Table: "app.public.clocks", Key: idKey("8")})
			checkDetails(t, err, connect.CodeNotFound, "RECORD_NOT_FOUND")

			nobody := whencev1connect.NewMemoryServiceClient(connect.NewClient(p.transport))
			_, err = nobody.Query(t.Context(), &v1.QueryRequest{Text: "verge escapement"})
			checkDetails(t, err, connect.CodeUnauthenticated, "TOKEN_MISSING")

			sources := whencev1connect.NewSourceServiceClient(connect.NewClient(p.transport, bearing(w.env["WHENCE_OPERATOR_TOKEN"])))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stream, err := sources.WatchTable(ctx, &v1.WatchTableRequest{Name: "app.public.clocks"})
			if err != nil {
				t.Fatalf("WatchTable: %v", err)
			}
			first, err := stream.Receive()
			if err != nil || first.GetStatus().GetState() != v1.TableState_TABLE_STATE_LIVE {
				t.Errorf("WatchTable: %v, %v", first, err)
			}
			cancel()
			_ = stream.Close()
		})
	}
}

func bearing(token string) func(connect.ClientFunc) connect.ClientFunc {
	return func(next connect.ClientFunc) connect.ClientFunc {
		return func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
			info, ok := connect.CallInfoForClientContext(ctx)
			if !ok {
				ctx, info = connect.NewClientContext(ctx)
			}
			info.RequestHeader().Set("Authorization", "Bearer "+token)
			return next(ctx, spec)
		}
	}
}

func checkDetails(t *testing.T, err error, code connect.Code, reason string) {
	t.Helper()
	var ce *connect.Error
	if !errors.As(err, &ce) || ce.Code() != code {
		t.Errorf("want %v, got %v", code, err)
		return
	}
	for _, d := range ce.Details() {
		m, err := connectproto.UnmarshalErrorDetail(d)
		if err != nil {
			t.Error(err)
		}
		if info, ok := m.(*errdetails.ErrorInfo); ok && info.GetReason() == reason {
			return
		}
	}
	t.Errorf("no ErrorInfo with %s in %v", reason, ce.Details())
}

// get makes a plain GET and returns status, content type and body.
func (c caller) get(t *testing.T, path string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(b)
}

// testPlainPaths looks at everything that is served without a credential, and
// at calls by GET.
func (w *running) testPlainPaths(t *testing.T) {
	t.Parallel()
	anyone := caller{http: w.http, url: w.url}
	for _, p := range []struct {
		path, kind string
		words      []string
	}{
		{"/healthz", "text/plain", []string{"ok"}},
		{"/readyz", "text/plain", []string{"ready"}},
		{"/openapi.yaml", "yaml", []string{"openapi:", "/whence.v1.MemoryService/Query"}},
		{"/.well-known/oauth-authorization-server", "application/json", []string{`"issuer":"` + w.env["WHENCE_ISSUER"] + `"`, "/oauth/token", "token-exchange"}},
		{"/.well-known/oauth-protected-resource", "application/json", []string{`"resource":"` + w.env["WHENCE_ISSUER"] + `"`}},
		{"/oauth/jwks", "json", []string{`"keys"`, `"kid"`}},
	} {
		status, header, body := anyone.get(t, p.path)
		if status != http.StatusOK || !strings.Contains(header.Get("Content-Type"), p.kind) {
			t.Errorf("GET %s: status %d, %s", p.path, status, header.Get("Content-Type"))
		}
		for _, word := range p.words {
			if !strings.Contains(body, word) {
				t.Errorf("GET %s lacks %s: %.300s", p.path, word, body)
			}
		}
		if strings.Contains(body, `"d"`) {
			t.Errorf("GET %s shows a private key", p.path)
		}
	}
	status, header, body := anyone.get(t, "/attic")
	var problem struct {
		Status int
		Title  string
		Detail string
	}
	if err := json.Unmarshal([]byte(body), &problem); err != nil || status != http.StatusNotFound || problem.Status != status ||
		problem.Detail == "" || header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("GET /attic: %d %s %s %v", status, header.Get("Content-Type"), body, err)
	}

	byGet := func(call, message string) string {
		return "/whence.v1." + call + "?" + url.Values{"connect": {"v1"}, "encoding": {"json"}, "message": {message}}.Encode()
	}
	status, _, body = w.agent().get(t, byGet("TaskService/GetTask", `{}`))
	if status != http.StatusOK || !strings.Contains(body, `"dev-agent"`) {
		t.Errorf("GetTask by GET: %d %s", status, body)
	}
	status, header, body = anyone.get(t, byGet("TaskService/GetTask", `{}`))
	if status != http.StatusUnauthorized || !strings.Contains(header.Get("WWW-Authenticate"), "resource_metadata") {
		t.Errorf("GetTask by GET without a token: %d %v %s", status, header, body)
	}
	status, _, body = w.agent().get(t, byGet("MemoryService/Query", `{"text":"a question"}`))
	if status == http.StatusOK {
		t.Errorf("Query, which stores its answer, went through by GET: %s", body)
	}
}

// testJSONShape holds the names of the JSON form, which other programs are
// written against.
func (w *running) testJSONShape(t *testing.T) {
	t.Parallel()
	w.exec(t, `create table public.shape (id bigint primary key, owner text, what text, note text)`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.shape", TextColumns: []string{"what"}, SubjectColumn: "owner", AttributeColumns: []string{"note", "owner"}})
	w.exec(t, `insert into public.shape values (9007199254740993, 'ann', 'an icosahedron in brass', null)`)
	ask := &v1.QueryRequest{Text: "brass icosahedron", Tables: []string{"app.public.shape"}}
	eventually(t, showLimit, "the row is fresh", func() error {
		hits := w.agent().query(t, ask).GetHits()
		if len(hits) != 1 || hits[0].GetFreshness().GetState() != fresh {
			return fmt.Errorf("%v", hits)
		}
		return nil
	})
	body, err := w.agent().post(t.Context(), "MemoryService/Query", []byte(`{"text":"brass icosahedron","tables":["app.public.shape"],"limit":3}`))
	if err != nil {
		t.Fatal(err)
	}
	var res struct {
		AnswerID  string `json:"answerId"`
		Degraded  *bool
		Watermark []struct{ Source, Lsn, CaughtUpAt, Lag string }
		Budget    struct {
			Calls struct{ Limit, Used, Remaining int }
		}
		Hits []struct {
			ChunkID     string  `json:"chunkId"`
			Text        string  `json:"text"`
			MatchedText *string `json:"matchedText"`
			Origin      struct {
				Source, Table, Lsn, Digest, CommitTime string
				Key                                    map[string]string
				Version                                int
				EventTime                              string
				Columns                                []string
			}
			Embedding  struct{ Model, EmbeddedAt string }
			Freshness  struct{ State, Behind string }
			Score      struct{ Final, Relevance, Recency, Dense, Lexical *float64 }
			Attributes map[string]*string
		}
	}
	if err := json.Unmarshal(body, &res); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	if res.AnswerID == "" || res.Degraded == nil || *res.Degraded || len(res.Hits) != 1 || len(res.Watermark) != 1 || res.Budget.Calls.Limit == 0 {
		t.Fatalf("the answer: %s", body)
	}
	h, mark := res.Hits[0], res.Watermark[0]
	if mark.Source != "app" || !strings.Contains(mark.Lsn, "/") || mark.CaughtUpAt == "" || !strings.HasSuffix(mark.Lag, "s") {
		t.Errorf("the watermark: %+v", mark)
	}
	if h.ChunkID == "" || h.Text != "an icosahedron in brass" || h.MatchedText != nil || h.Freshness.State != "FRESHNESS_STATE_FRESH" || h.Freshness.Behind == "" {
		t.Errorf("the hit: %s", body)
	}
	o := h.Origin
	if o.Source != "app" || o.Table != "app.public.shape" || o.Key["id"] != "9007199254740993" || o.Version != 1 || !strings.Contains(o.Lsn, "/") ||
		len(o.Digest) != 64 || o.EventTime == "" || o.CommitTime == "" || len(o.Columns) != 1 || o.Columns[0] != "what" {
		t.Errorf("the origin: %+v", o)
	}
	for name, part := range map[string]*float64{"final": h.Score.Final, "relevance": h.Score.Relevance, "recency": h.Score.Recency, "dense": h.Score.Dense, "lexical": h.Score.Lexical} {
		if part == nil || *part <= 0 || *part > 1 {
			t.Errorf("score.%s is not in (0,1]: %s", name, body)
		}
	}
	note, there := h.Attributes["note"]
	if !there || note != nil || h.Attributes["owner"] == nil || *h.Attributes["owner"] != "ann" {
		t.Errorf("attributes: %v", h.Attributes)
	}
	if h.Embedding.Model == "" || h.Embedding.EmbeddedAt == "" {
		t.Errorf("the embedding: %+v", h.Embedding)
	}
}
