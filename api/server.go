// Package api is the public surface: thin handlers that turn the contract's
// messages into calls of the packages below and their results and errors back.
//
// The governing idea: there is one way in. Every RPC passes the door, which
// authenticates before it decodes and lets no reply out before it is recorded;
// handlers hold no policy of their own.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"
	"connectrpc.com/grpcreflect/v2"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/api/mcp"
	"github.com/whence-db/whence/api/oauth"
	"github.com/whence-db/whence/audit"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/registry"
	"github.com/whence-db/whence/gateway"
	"github.com/whence-db/whence/gateway/action"
	"github.com/whence-db/whence/gateway/upstream"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/ingest"
	"github.com/whence-db/whence/lineage"
	"github.com/whence-db/whence/notes"
	"github.com/whence-db/whence/proto/gen/openapi"
	"github.com/whence-db/whence/proto/gen/whence/v1/whencev1connect"
	"github.com/whence-db/whence/query"
	"github.com/whence-db/whence/reason"
)

// maxRequest bounds a request message, in bytes. The largest field is a text of
// 8,192 characters; lists of subjects make up the rest.
const maxRequest = 4 << 20

// Config is what the API answers from; every field is required.
type Config struct {
	Gateway  *gateway.Gateway
	Query    *query.Engine
	Registry *ingest.Registry
	Audit    *audit.Log
	Lineage  *lineage.Store
	Notes    *notes.Store
	Index    *index.Index
	Pool     *pgxpool.Pool  // of the memory database
	Actions  *action.Runner // on rows of the sources
	// Authority, Revocations and Keys are for operators who settle and stop who may do what.
	Authority   *registry.Registry
	Revocations *authz.Revocations
	Keys        *authz.Keys
	Upstreams   *upstream.Store
	Models      []index.Model               // that this process embeds with
	Wrote       func()                      // told when a note was written: there may be texts to embed
	Issuer      string                      // URL of this installation
	OAuth       http.Handler                // /oauth/* and /.well-known/*
	Ready       func(context.Context) error // whether calls can be answered now
	Metrics     http.Handler                // for who may see them; nil: none are served
	// MetricsToken lets who shows it as a bearer token see the metrics, and nothing
	// else; empty: only operators see them.
	MetricsToken string
	Log          *slog.Logger
}

// challenge is the WWW-Authenticate of a 401: where to learn how to get a token.
func (c Config) challenge(metadata string) string {
	where := c.Issuer + metadata
	return fmt.Sprintf("Bearer resource_metadata=%q, DPoP algs=%q, resource_metadata=%q", where, strings.Join(authz.ProofAlgorithms(), " "), where)
}

// NewHandler returns the handler of the one listener.
func NewHandler(c Config) http.Handler {
	d := &door{gateway: c.Gateway, log: c.Log, issuer: c.Issuer, challenge: c.challenge(oauth.ResourceMetadataPath)}
	server := connect.NewServer(d.intercept)
	whencev1connect.RegisterSourceServiceHandler(server, &sources{registry: c.Registry})
	whencev1connect.RegisterMemoryServiceHandler(server, &memory{query: c.Query, notes: c.Notes, wrote: c.Wrote})
	whencev1connect.RegisterTaskServiceHandler(server, &tasks{gateway: c.Gateway})
	whencev1connect.RegisterActionServiceHandler(server, &actions{gateway: c.Gateway})
	whencev1connect.RegisterAdminServiceHandler(server, &admin{gateway: c.Gateway, index: c.Index, models: c.Models,
		registry: c.Authority, revocations: c.Revocations, keys: c.Keys, pool: c.Pool, runner: c.Actions, upstreams: c.Upstreams})
	whencev1connect.RegisterApprovalServiceHandler(server, &approvals{gateway: c.Gateway})
	whencev1connect.RegisterAuditServiceHandler(server, &auditor{log: c.Audit, lineage: c.Lineage, query: c.Query})
	server.SetUnknownHandler(d.intercept(nil))

	// Strict in what it takes, so that a misspelt field is an error and not a
	// wider question; explicit in what it gives.
	text := connectproto.NewJSONCodec()
	text.UnmarshalOptions.DiscardUnknown = false
	text.MarshalOptions.EmitDefaultValues = true

	mux := http.NewServeMux()
	connecthttp.Mount(mux, server,
		connecthttp.WithCodecs(connectproto.NewBinaryCodec(), text),
		connecthttp.WithReadMaxBytes(maxRequest))
	reflection := connect.NewServer() // the contract is public, so it is outside the door
	grpcreflect.Register(reflection, grpcreflect.WithNamer(grpcreflect.NamerFunc(func() []string {
		return []string{whencev1connect.SourceServiceName, whencev1connect.MemoryServiceName,
			whencev1connect.TaskServiceName, whencev1connect.ActionServiceName, whencev1connect.AdminServiceName,
			whencev1connect.ApprovalServiceName, whencev1connect.AuditServiceName}
	})))
	connecthttp.Mount(mux, reflection)
	endpoint, err := mcp.New(mcp.Config{Calls: server, Log: c.Log})
	if err != nil {
		panic(err) // the contract that is built in lacks a call: no configuration does that
	}
	mux.Handle(oauth.MCPPath, &mcpDoor{c, endpoint})
	mount(mux, c)
	through := &up{c}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.RequestURI, upPath) { // past the multiplexer, which would tidy the path up
			through.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// NewStatusHandler returns what a process serves that answers no calls: whether
// it lives, and its metrics.
func NewStatusHandler(c Config) http.Handler {
	mux := http.NewServeMux()
	mountStatus(mux, c)
	return mux
}

func mount(mux *http.ServeMux, c Config) {
	mux.Handle("/oauth/", c.OAuth)
	mux.Handle("/.well-known/", c.OAuth)
	mux.HandleFunc("GET /openapi.yaml", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/yaml")
		_, _ = w.Write(openapi.YAML)
	})
	mountStatus(mux, c)
}

func mountStatus(mux *http.ServeMux, c Config) {
	if c.Metrics != nil {
		mux.Handle("GET /metrics", &metricsDoor{c})
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		if err := c.Ready(ctx); err != nil {
			c.Log.WarnContext(ctx, "not ready", "error", err)
			http.Error(w, "not ready: the memory database does not answer", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ready\n"))
	})
	mux.HandleFunc("/", notFound)
}

func notFound(w http.ResponseWriter, r *http.Request) {
	problem(w, http.StatusNotFound, &whence.Error{Reason: "PATH_NOT_FOUND"}, r.URL.Path+" is not served here; GET /openapi.yaml lists every call")
}

var statuses = []struct {
	kind   error
	status int
}{
	{whence.ErrInvalid, http.StatusBadRequest},
	{whence.ErrNotFound, http.StatusNotFound},
	{whence.ErrExists, http.StatusConflict},
	{whence.ErrPrecondition, http.StatusConflict},
	{whence.ErrUnauthenticated, http.StatusUnauthorized},
	{whence.ErrDenied, http.StatusForbidden},
	{whence.ErrExhausted, http.StatusTooManyRequests},
	{whence.ErrAborted, http.StatusConflict},
	{whence.ErrUnavailable, http.StatusServiceUnavailable},
	{whence.ErrUnimplemented, http.StatusNotImplemented},
}

// refuse answers plain HTTP paths with an error as the caller may see it.
func refuse(w http.ResponseWriter, r *http.Request, log *slog.Logger, challenge string, err error) {
	var e *whence.Error
	if !errors.As(err, &e) {
		log.ErrorContext(r.Context(), "cannot let a request in", "path", r.URL.Path, "error", err)
		problem(w, http.StatusInternalServerError, &whence.Error{Reason: "INTERNAL", RetryAfter: time.Second}, "the server failed; its log says why")
		return
	}
	status := http.StatusInternalServerError
	for _, s := range statuses {
		if errors.Is(e.Kind, s.kind) {
			status = s.status
		}
	}
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", challenge)
	}
	switch e.Reason {
	case "REQUEST_TOO_LARGE":
		status = http.StatusRequestEntityTooLarge
	case upstream.ReasonTimeout:
		status = http.StatusGatewayTimeout
	case upstream.ReasonFateUnknown, upstream.ReasonReplyTooLarge:
		status = http.StatusBadGateway
	}
	if e.Err != nil {
		log.WarnContext(r.Context(), "request failed", "path", r.URL.Path, "reason", e.Reason, "error", e.Err)
	}
	problem(w, status, e, e.Message)
}

// problem answers plain HTTP paths with RFC 9457 problem details, and with the same
// reason, metadata and next step that a call's error would have.
func problem(w http.ResponseWriter, status int, e *whence.Error, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	body := map[string]any{"type": "about:blank", "title": http.StatusText(status), "status": status,
		"detail": detail, "reason": e.Reason, "next": reason.After(e.Reason), "metadata": reason.Details(e.Reason, e.Metadata)}
	if e.RetryAfter > 0 {
		body["retryAfter"] = e.RetryAfter.Seconds()
		w.Header().Set("Retry-After", wholeSeconds(e.RetryAfter))
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// wholeSeconds is a time to wait as the header Retry-After has it, rounded up.
func wholeSeconds(d time.Duration) string { return strconv.Itoa(int(math.Ceil(d.Seconds()))) }
