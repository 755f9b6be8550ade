// Package oauth is Whence's authorisation server as it looks from outside: it
// exchanges tokens for credentials (RFC 8693, with RFC 9396 authorization_details and
// RFC 9449 proofs), takes them back (RFC 7009), says what they are good for (RFC
// 7662), publishes the keys that they are signed with, and describes all that in
// metadata that clients can discover (RFC 8414, RFC 9728).
//
// The governing idea: this package reads and writes the wire form only. Who may have
// a credential is settled behind [Door], by the same door as every other call, and
// every answer that refuses says what to do instead.
package oauth

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
)

// Paths of the endpoints, beneath the issuer's URL.
const (
	TokenPath          = "/oauth/token" //nolint:gosec // G101: a path, not a credential
	RevocationPath     = "/oauth/revoke"
	IntrospectionPath  = "/oauth/introspect"
	JWKSPath           = "/oauth/jwks"
	ServerMetadataPath = "/.well-known/oauth-authorization-server"
	// ResourceMetadataPath is what a 401 elsewhere names in WWW-Authenticate's resource_metadata.
	ResourceMetadataPath = "/.well-known/oauth-protected-resource"

	// MCPPath is where the MCP endpoint is. Clients know it as a resource by itself and
	// compare names (RFC 9728, section 3.3), so it has metadata of its own.
	MCPPath         = "/mcp"
	MCPMetadataPath = ResourceMetadataPath + MCPPath
)

// Door decides. Each of its calls is one call on record, refusals included, and what
// it did is durable when it returns. Errors that the caller may see are *whence.Error.
type Door interface {
	Exchange(ctx context.Context, x gateway.Exchange) (gateway.Exchanged, error)
	// RefuseUnread records a request that could not be read. It returns the reason,
	// unless that could not be recorded.
	RefuseUnread(ctx context.Context, call string, reason error) error
	// RevokeToken ends a token; one that is none is no error.
	RevokeToken(ctx context.Context, token string) error
	Introspect(ctx context.Context, caller authz.Presented, token string) (gateway.Introspected, error)
}

// Keys are the public keys that are published.
type Keys interface {
	JWKS(ctx context.Context) (json.RawMessage, error)
}

// Config configures the endpoints.
type Config struct {
	Issuer string // URL without a trailing slash; also the name of the protected resource
	Door   Door
	Keys   Keys
	Log    *slog.Logger
	Clock  func() time.Time // nil is time.Now
}

type server struct{ Config }

// New returns a handler for the paths.
func New(c Config) (http.Handler, error) {
	if c.Clock == nil {
		c.Clock = time.Now
	}
	u, err := url.Parse(c.Issuer)
	switch {
	case err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" ||
		u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return nil, errors.New(`oauth: the issuer must be a URL such as "https://whence.example.com", without a path or a trailing slash`)
	case c.Door == nil || c.Keys == nil || c.Log == nil:
		return nil, errors.New("oauth: a door, keys and a log are required")
	}
	server, err := json.Marshal(describeServer(c.Issuer))
	if err != nil {
		return nil, err
	}
	resource, err := json.Marshal(describeResource(c.Issuer, ""))
	if err != nil {
		return nil, err
	}
	mcp, err := json.Marshal(describeResource(c.Issuer, MCPPath))
	if err != nil {
		return nil, err
	}
	return routes(c, server, resource, mcp), nil
}

func routes(c Config, serverMetadata, resourceMetadata, mcpMetadata []byte) http.Handler {
	s := &server{c}
	mux := http.NewServeMux()
	mux.HandleFunc(TokenPath, s.post(s.token))
	mux.HandleFunc(RevocationPath, s.post(s.revoke))
	mux.HandleFunc(IntrospectionPath, s.post(s.introspect))
	mux.HandleFunc(JWKSPath, s.public(func(ctx context.Context) ([]byte, error) { return c.Keys.JWKS(ctx) }))
	mux.HandleFunc(ServerMetadataPath, s.public(fixed(serverMetadata)))
	mux.HandleFunc(ResourceMetadataPath, s.public(fixed(resourceMetadata)))
	mux.HandleFunc(MCPMetadataPath, s.public(fixed(mcpMetadata)))
	return mux
}

func fixed(b []byte) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) { return b, nil }
}

// public serves a document that anyone may read from anywhere.
func (s *server) public(document func(context.Context) ([]byte, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			s.fail(w, r, notAllowed("GET, HEAD"))
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

// post lets only POST through: a token in a URL ends up in logs.
func (s *server) post(handle http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			s.fail(w, r, notAllowed(http.MethodPost))
			return
		}
		handle(w, r)
	}
}

// write sends JSON, or nothing, that is not to be kept.
func write(w http.ResponseWriter, status int, b []byte) {
	h := w.Header()
	if len(b) > 0 {
		h.Set("Content-Type", "application/json")
	}
	h.Set("X-Content-Type-Options", "nosniff")
	// Tokens must not be kept anywhere; keys and metadata are cheap to ask for again.
	h.Set("Cache-Control", "no-store")
	h.Set("Pragma", "no-cache")
	w.WriteHeader(status)
	_, _ = w.Write(b) // an error means that the client is gone
}
