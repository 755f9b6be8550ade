package oauth

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
)

// exchanged is the answer of RFC 8693, section 2.2.1.
type exchanged struct {
	AccessToken string     `json:"access_token"`
	IssuedType  string     `json:"issued_token_type"`
	TokenType   string     `json:"token_type"`
	ExpiresIn   int64      `json:"expires_in"` // whole seconds
	Scope       string     `json:"scope"`
	Details     []detail   `json:"authorization_details,omitempty"`
	TaskID      string     `json:"task_id,omitempty"`
	Role        authz.Role `json:"role,omitempty"`
}

// token exchanges tokens for a credential.
func (s *server) token(w http.ResponseWriter, r *http.Request) {
	form, err := readForm(w, r)
	var x gateway.Exchange
	if err == nil {
		x, err = s.readExchange(r, form)
	}
	var got gateway.Exchanged
	if err != nil {
		err = s.Door.RefuseUnread(r.Context(), "oauth/token", err)
	} else {
		got, err = s.Door.Exchange(r.Context(), x)
	}
	if err != nil {
		s.fail(w, r, translate(err).about(form))
		return
	}
	b, err := json.Marshal(s.answer(got)) //nolint:gosec // G117: handing out the token is what this answer is for
	if err != nil {
		s.fail(w, r, translate(err))
		return
	}
	write(w, http.StatusOK, b)
}

func (s *server) answer(got gateway.Exchanged) exchanged {
	out := exchanged{AccessToken: got.Token, IssuedType: typeAccessToken, TokenType: tokenType(got.Bound),
		ExpiresIn: max(0, int64(got.Expires.Sub(s.Clock())/time.Second)), Scope: scopeOf(got.Role, got.Granted.Scope)}
	if got.Role.Operates() {
		out.Role = got.Role
	}
	if got.Task != uuid.Nil {
		out.TaskID, out.Details = got.Task.String(), granted(got.Granted)
	}
	return out
}

func tokenType(bound bool) string {
	if bound {
		return "DPoP"
	}
	return "Bearer"
}

// scopeOf says in a scope's words what a token is good for.
func scopeOf(role authz.Role, spec authz.ScopeSpec) string {
	switch {
	case role == authz.RoleUser:
		return scopeUser
	case role.Operates():
		return scopeOperator
	}
	words := make([]string, len(spec.Actions))
	for i, a := range spec.Actions {
		words[i] = string(a)
	}
	return strings.Join(words, " ")
}
