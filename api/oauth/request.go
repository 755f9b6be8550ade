package oauth

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
)

const (
	grantTokenExchange = "urn:ietf:params:oauth:grant-type:token-exchange"        //nolint:gosec // G101: a name, not a credential
	assertionType      = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" //nolint:gosec // G101: a name, not a credential
	tokenTypes         = "urn:ietf:params:oauth:token-type:"                      //nolint:gosec // G101: a name, not a credential
	typeAccessToken    = tokenTypes + "access_token"

	scopeOperator = "operator" // an operator's token, for their own use
	scopeUser     = "user"     // a user's

	maxScope = 1024 // bytes
)

// readExchange reads what is asked for. Parameters that Whence does not know are
// ignored, as RFC 6749 wants; those that would change what the token means are refused.
func (s *server) readExchange(r *http.Request, form url.Values) (x gateway.Exchange, err error) {
	proofs := r.Header.Values("DPoP")
	switch {
	case r.Header.Get("Authorization") != "" || form.Get("client_secret") != "":
		return x, &whence.Error{Kind: whence.ErrUnauthenticated, Reason: "CLIENT_AUTHENTICATION_UNSUPPORTED", Field: "client",
			Message: "there are no shared secrets here: leave out the Authorization header and client_secret; an agent proves who it is by client_assertion (private_key_jwt) or actor_token, and for whom it acts by subject_token"}
	case form.Get("grant_type") != grantTokenExchange:
		return x, whence.Invalid("grant_type", "GRANT_TYPE_UNSUPPORTED", "set grant_type to "+grantTokenExchange)
	case form.Get("requested_token_type") != "" && form.Get("requested_token_type") != typeAccessToken:
		return x, whence.Invalid("requested_token_type", "TOKEN_TYPE_UNSUPPORTED", "leave out requested_token_type, or set it to "+typeAccessToken)
	case form.Get("subject_token") == "":
		return x, whence.Invalid("subject_token", "TOKEN_MISSING", "send as subject_token for whom the agent is to act: a token of the user by a trusted issuer, or the token of a task")
	case len(proofs) > 1:
		return x, whence.Invalid("DPoP", "PROOF_INVALID", "send the header DPoP once")
	}
	if err := readTypes(form); err != nil {
		return x, err
	}
	for _, name := range []string{"resource", "audience"} {
		if v := form.Get(name); v != "" && v != s.Issuer && (!strings.HasPrefix(v, s.Issuer+"/") || strings.Contains(v, "#")) {
			return x, whence.Invalid(name, "AUDIENCE_WRONG", "leave out "+name+", or set it to "+s.Issuer+": this server's tokens are for itself")
		}
	}
	x = gateway.Exchange{Subject: form.Get("subject_token"), Assertion: form.Get("client_assertion"), Actor: form.Get("actor_token"),
		Client: form.Get("client_id"), Audiences: []string{s.Issuer, s.Issuer + TokenPath},
		Proof: r.Header.Get("DPoP"), Method: http.MethodPost, URL: s.Issuer + TokenPath}
	return x, readWish(form, &x)
}

// readTypes makes sure that each token comes with a type that it can be of.
func readTypes(form url.Values) error {
	for _, name := range []string{"subject_token", "actor_token"} {
		typ := form.Get(name + "_type")
		switch {
		case form.Get(name) == "" && typ == "":
			continue
		case form.Get(name) == "":
			return whence.Invalid(name, "TOKEN_MISSING", "send "+name+", or leave out its type")
		case typ != typeAccessToken && typ != tokenTypes+"id_token" && typ != tokenTypes+"jwt":
			return whence.Invalid(name+"_type", "TOKEN_TYPE_UNSUPPORTED", "set "+name+"_type to "+typeAccessToken+", or to the same with id_token or jwt at its end")
		}
	}
	assertion, typ := form.Get("client_assertion"), form.Get("client_assertion_type")
	switch {
	case (assertion == "") != (typ == ""):
		return whence.Invalid("client_assertion", "ASSERTION_INCOMPLETE", "send both client_assertion and client_assertion_type, or neither")
	case typ != "" && typ != assertionType:
		return &whence.Error{Kind: whence.ErrUnauthenticated, Reason: "ASSERTION_TYPE_UNSUPPORTED", Field: "client_assertion",
			Message: "set client_assertion_type to " + assertionType}
	}
	return nil
}

// readWish reads what the token is to be good for: a task, in authorization_details or
// in scope; a user's own use; or, when nothing is said, the same task again.
func readWish(form url.Values, x *gateway.Exchange) error {
	details, scope := form.Get("authorization_details"), form.Get("scope")
	switch {
	case details != "" && scope != "":
		return whence.Invalid("scope", "SCOPE_AMBIGUOUS", "send authorization_details or scope, not both")
	case details != "":
		want, err := readDetails(details)
		x.Want = &want
		return err
	case scope == scopeOperator || scope == scopeUser:
		if x.Assertion != "" || x.Actor != "" {
			return whence.Invalid("scope", "AGENT_UNEXPECTED", "the scope "+scope+" is for people; an agent says what its task may touch in authorization_details, and people leave out client_assertion and actor_token")
		}
		if x.Role = authz.RoleViewer; scope == scopeUser {
			x.Role = authz.RoleUser
		}
		return nil
	case scope != "":
		want, err := readScope(scope, form.Get("purpose"))
		x.Want = &want
		return err
	}
	return nil
}

// readScope reads actions, on all that is granted.
func readScope(scope, purpose string) (want authz.TaskRequest, err error) {
	if len(scope) > maxScope {
		return want, whence.Invalid("scope", "SCOPE_INVALID", "the scope is too long; name each action once")
	}
	if purpose == "" {
		return want, whence.Invalid("purpose", "PURPOSE_INVALID", "send beside scope the parameter purpose: in a few words, what the task is for")
	}
	want = authz.TaskRequest{Purpose: purpose, Scope: authz.ScopeSpec{Type: authz.DetailType, AllTables: true, AllSubjects: true}}
	for action := range strings.SplitSeq(scope, " ") {
		want.Scope.Actions = append(want.Scope.Actions, authz.Action(action))
	}
	if err := want.Scope.Validate(); err != nil {
		return want, whence.Invalid("scope", "SCOPE_INVALID", "scope takes actions with a space between them, of "+strings.Join(actions(), ", ")+"; or "+scopeOperator+" or "+scopeUser+" alone")
	}
	return want, checkWant(want)
}
