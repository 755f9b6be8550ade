// Package oauth is Whence's small authorisation server: it exchanges an
// operator's token for a task's (RFC 8693, with RFC 9396 authorization_details),
// publishes the keys that tokens are signed with, and describes both in metadata
// that clients can discover (RFC 8414, RFC 9728).
//
// The governing idea: this package reads and writes the wire form only. Who may
// start a task is settled behind [Tasks], by the same door as every other call,
// and every answer that refuses says what to do instead.
package oauth

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/whence-db/whence/authz"
)

// Paths of the endpoints, beneath the issuer's URL.
const (
	TokenPath          = "/oauth/token" //nolint:gosec // G101: a path, not a credential
	JWKSPath           = "/oauth/jwks"
	ServerMetadataPath = "/.well-known/oauth-authorization-server"
	// ResourceMetadataPath is what a 401 elsewhere names in WWW-Authenticate's resource_metadata.
	ResourceMetadataPath = "/.well-known/oauth-protected-resource"
)

// Tasks starts tasks.
type Tasks interface {
	// StartTask authenticates the operator whose token bearer is, checks that they
	// may start tasks, and starts one on their behalf; the request is valid. When
	// it returns, the task and the record of the call are durable, refusals
	// included. Errors that the caller may see are *whence.Error.
	StartTask(ctx context.Context, bearer string, r authz.TaskRequest) (token string, expires time.Time, task uuid.UUID, err error)
	// RefuseTask records a request that cannot be passed on. It returns nil, the
	// reason given, or the refusal that the token meets; any other error means that
	// the record could not be written.
	RefuseTask(ctx context.Context, bearer string, reason error) error
}

// Keys are the public keys that are published.
type Keys interface {
	JWKS(ctx context.Context) (json.RawMessage, error)
}

// Config configures the endpoints.
type Config struct {
	Issuer string // URL without a trailing slash; also the name of the protected resource
	Tasks  Tasks
	Keys   Keys
	Log    *slog.Logger
	Clock  func() time.Time // nil is time.Now
}

type server struct {
	Config
	serverMetadata, resourceMetadata []byte
}

// New returns a handler for the four paths.
func New(c Config) (http.Handler, error) {
	if c.Clock == nil {
		c.Clock = time.Now
	}
	u, err := url.Parse(c.Issuer)
	switch {
	case err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" ||
		u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return nil, errors.New(`oauth: the issuer must be a URL such as "https://whence.example.com", without a path or a trailing slash`)
	case c.Tasks == nil || c.Keys == nil || c.Log == nil:
		return nil, errors.New("oauth: tasks, keys and a log are required")
	}
	s := &server{Config: c}
	if s.serverMetadata, err = json.Marshal(serverMetadata(c.Issuer)); err != nil {
		return nil, err
	}
	if s.resourceMetadata, err = json.Marshal(resourceMetadata(c.Issuer)); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc(TokenPath, s.token)
	mux.HandleFunc(JWKSPath, s.public(func(ctx context.Context) ([]byte, error) { return c.Keys.JWKS(ctx) }))
	mux.HandleFunc(ServerMetadataPath, s.public(fixed(s.serverMetadata)))
	mux.HandleFunc(ResourceMetadataPath, s.public(fixed(s.resourceMetadata)))
	return mux, nil
}

// serverMetadata is the document of RFC 8414.
func serverMetadata(issuer string) any {
	return struct {
		Issuer        string   `json:"issuer"`
		Token         string   `json:"token_endpoint"`
		JWKS          string   `json:"jwks_uri"`
		GrantTypes    []string `json:"grant_types_supported"`
		AuthMethods   []string `json:"token_endpoint_auth_methods_supported"`
		ResponseTypes []string `json:"response_types_supported"` // required, though there is no authorisation endpoint
		DetailTypes   []string `json:"authorization_details_types_supported"`
	}{issuer, issuer + TokenPath, issuer + JWKSPath, []string{grantTokenExchange}, []string{"none"}, []string{}, []string{authz.DetailType}}
}

// resourceMetadata is the document of RFC 9728.
func resourceMetadata(issuer string) any {
	return struct {
		Resource    string   `json:"resource"`
		Servers     []string `json:"authorization_servers"`
		Bearer      []string `json:"bearer_methods_supported"`
		DetailTypes []string `json:"authorization_details_types_supported"`
		Name        string   `json:"resource_name"`
	}{issuer, []string{issuer}, []string{"header"}, []string{authz.DetailType}, "Whence"}
}

func fixed(b []byte) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) { return b, nil }
}

// public serves a document that anyone may read from anywhere.
func (s *server) public(document func(context.Context) ([]byte, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			s.fail(w, r, notAllowed(http.MethodGet, http.MethodHead))
			return
		}
		b, err := document(r.Context())
		if err != nil {
			s.fail(w, r, translate(err))
			return
		}
		// Pages of any origin may read it: it holds nothing secret and needs no credential.
		w.Header().Set("Access-Control-Allow-Origin", "*")
		write(w, http.StatusOK, b)
	}
}

func write(w http.ResponseWriter, status int, b []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	// Tokens must not be kept anywhere; keys and metadata are cheap to ask for again.
	h.Set("Cache-Control", "no-store")
	h.Set("Pragma", "no-cache")
	w.WriteHeader(status)
	_, _ = w.Write(b) //nolint:gosec // G705: JSON, and marked as such; an error means that the client is gone
}

func notAllowed(methods ...string) *failure {
	allow := strings.Join(methods, ", ")
	return &failure{status: http.StatusMethodNotAllowed, code: "invalid_request",
		description: "this path answers to " + allow + " only", header: http.Header{"Allow": {allow}}}
}
