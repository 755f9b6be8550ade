package oauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/uuid"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
)

// introspected is the answer of RFC 7662, section 2.2, with the names that the
// token's own claims have.
type introspected struct {
	Active    bool              `json:"active"`
	Issuer    string            `json:"iss"`
	Subject   string            `json:"sub"`
	Client    string            `json:"client_id"`
	Actor     *actor            `json:"act,omitempty"`
	Audience  string            `json:"aud"`
	Expires   int64             `json:"exp"`
	IssuedAt  int64             `json:"iat"`
	ID        string            `json:"jti"`
	TokenType string            `json:"token_type"`
	Scope     string            `json:"scope"`
	Details   []authz.ScopeSpec `json:"authorization_details,omitempty"`
	Tenant    string            `json:"tenant"`
	Task      *task             `json:"task,omitempty"`
	Role      authz.Role        `json:"role,omitempty"`
	Confirm   *confirm          `json:"cnf,omitempty"`
}

type actor struct {
	Subject string `json:"sub"`
	Actor   *actor `json:"act,omitempty"`
}

type task struct {
	ID     uuid.UUID  `json:"id"`
	Root   uuid.UUID  `json:"root"`
	Parent *uuid.UUID `json:"parent,omitempty"`
	Depth  int        `json:"depth"`
}

type confirm struct {
	Thumbprint string `json:"jkt"`
}

// introspect tells what a token is good for (RFC 7662).
func (s *server) introspect(w http.ResponseWriter, r *http.Request) {
	form, err := readForm(w, r)
	switch {
	case err != nil:
	case form.Get("token") == "":
		err = whence.Invalid("token", "TOKEN_MISSING", "send the token that you ask about as token")
	case len(r.Header.Values("Authorization")) > 1 || len(r.Header.Values("DPoP")) > 1:
		err = whence.Invalid("", "HEADER_REPEATED", "send the headers Authorization and DPoP once each")
	}
	var got gateway.Introspected
	if err != nil {
		err = s.Door.RefuseUnread(r.Context(), "oauth/introspect", err)
	} else {
		caller := authz.Presented{Proof: r.Header.Get("DPoP"), Method: http.MethodPost, URL: s.Issuer + IntrospectionPath}
		caller.Token, caller.Bound = authz.ReadAuthorization(r.Header.Get("Authorization"))
		got, err = s.Door.Introspect(r.Context(), caller, form.Get("token"))
	}
	if err != nil {
		s.fail(w, r, s.challenge(err))
		return
	}
	var b []byte
	if got.Active {
		b, err = json.Marshal(s.describe(got.Principal))
	} else {
		b, err = json.Marshal(struct {
			Active bool `json:"active"`
		}{})
	}
	if err != nil {
		s.fail(w, r, translate(err))
		return
	}
	write(w, http.StatusOK, b)
}

func (s *server) describe(p *authz.Principal) introspected {
	out := introspected{Active: true, Issuer: s.Issuer, Subject: p.User, Client: p.User, Audience: s.Issuer,
		Expires: p.Expires.Unix(), IssuedAt: p.IssuedAt.Unix(), ID: p.TokenID, TokenType: tokenType(p.Thumbprint != ""),
		Scope: scopeOf(p.Role, p.Scope.Spec()), Tenant: p.Tenant, Role: p.Role}
	if !p.Role.Operates() {
		out.Details = []authz.ScopeSpec{p.Scope.Spec()}
	}
	if p.Thumbprint != "" {
		out.Confirm = &confirm{p.Thumbprint}
	}
	if p.IsOperator() {
		return out
	}
	out.Client, out.Task = p.Agent, &task{ID: p.Task, Root: p.Root, Depth: p.Depth}
	if p.Parent != uuid.Nil {
		out.Task.Parent = &p.Parent
	}
	for i := len(p.Actors) - 1; i >= 0; i-- { // the outermost acts now
		out.Actor = &actor{p.Actors[i], out.Actor}
	}
	return out
}

// challenge words a refusal as RFC 6750 and RFC 9449 do where a token is presented.
func (s *server) challenge(err error) *failure {
	f := translate(err)
	var e *whence.Error
	switch {
	case !errors.As(err, &e):
	case errors.Is(e.Kind, whence.ErrDenied):
		f.status, f.code = http.StatusForbidden, "insufficient_scope"
	case errors.Is(e.Kind, whence.ErrUnauthenticated):
		if f.status, f.description = http.StatusUnauthorized, e.Message; f.code != invalidProof {
			f.code = "invalid_token"
		}
		scheme, where := "Bearer", fmt.Sprintf("resource_metadata=%q", s.Issuer+ResourceMetadataPath)
		if f.code == invalidProof {
			scheme = "DPoP"
		}
		if e.Reason == "TOKEN_MISSING" { // RFC 6750, section 3.1: no error when nothing was sent
			f.header.Set("WWW-Authenticate", scheme+" "+where)
		} else {
			f.header.Set("WWW-Authenticate", fmt.Sprintf("%s error=%q, error_description=%q, %s", scheme, f.code, printable(f.description), where))
		}
	}
	return f
}
