package oauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
)

const (
	grantTokenExchange = "urn:ietf:params:oauth:grant-type:token-exchange" //nolint:gosec // G101: a name, not a credential
	typeAccessToken    = "urn:ietf:params:oauth:token-type:access_token"   //nolint:gosec // G101: a name, not a credential

	maxBody         = 64 << 10
	defaultCalls    = 1000
	defaultLifetime = 15 * time.Minute
)

// detail is the one element of authorization_details: a scope, and what else a
// task needs.
type detail struct {
	authz.ScopeSpec
	Budget struct {
		Calls *int64 `json:"calls"` // left out: 1000
	} `json:"budget"`
	Purpose  string `json:"purpose"`
	Lifetime string `json:"lifetime"` // as "15m", which is also what leaving it out means
}

// exchanged is the answer of RFC 8693, section 2.2.1.
type exchanged struct {
	AccessToken string            `json:"access_token"`
	IssuedType  string            `json:"issued_token_type"`
	TokenType   string            `json:"token_type"`
	ExpiresIn   int64             `json:"expires_in"` // whole seconds
	Details     []json.RawMessage `json:"authorization_details"`
	TaskID      uuid.UUID         `json:"task_id"`
}

// token exchanges an operator's token for the token of a new task.
func (s *server) token(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		s.fail(w, r, notAllowed(http.MethodPost))
		return
	}
	form, f := readForm(w, r)
	var request authz.TaskRequest
	if f == nil {
		request, f = readRequest(form, s.Issuer)
	}
	bearer := form.Get("subject_token")
	if f != nil {
		why := &whence.Error{Kind: whence.ErrInvalid, Reason: f.reason, Message: f.description}
		// What is wrong with a form is no secret, so it is told whoever asks; but not
		// when the refusal could not be recorded.
		err := s.Tasks.RefuseTask(r.Context(), bearer, why)
		if err != nil && !errors.Is(err, why) && !errors.Is(err, whence.ErrUnauthenticated) && !errors.Is(err, whence.ErrDenied) {
			f = translate(err)
		}
		s.fail(w, r, f)
		return
	}
	token, expires, task, err := s.Tasks.StartTask(r.Context(), bearer, request)
	if err != nil {
		s.fail(w, r, translate(err))
		return
	}
	b, err := answer(request, token, expires.Sub(s.Clock()), task)
	if err != nil {
		s.fail(w, r, translate(err))
		return
	}
	write(w, http.StatusOK, b)
}

func answer(request authz.TaskRequest, token string, left time.Duration, task uuid.UUID) ([]byte, error) {
	granted := detail{ScopeSpec: request.Scope, Purpose: request.Purpose, Lifetime: request.Lifetime.String()}
	granted.Budget.Calls = &request.Calls
	raw, err := json.Marshal(granted)
	if err != nil {
		return nil, err
	}
	//nolint:gosec // G117: handing out the token is what this answer is for
	return json.Marshal(exchanged{AccessToken: token, IssuedType: typeAccessToken, TokenType: "Bearer",
		ExpiresIn: int64(left / time.Second), Details: []json.RawMessage{raw}, TaskID: task})
}

func invalid(code, reason, format string, args ...any) *failure {
	return &failure{status: http.StatusBadRequest, code: code, reason: reason, description: fmt.Sprintf(format, args...)}
}

// readForm reads the body's parameters, each at most once. A token in a URL ends
// up in logs, so nothing is taken from the query.
func readForm(w http.ResponseWriter, r *http.Request) (url.Values, *failure) {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case err != nil || kind != "application/x-www-form-urlencoded":
		return nil, invalid("invalid_request", "CONTENT_TYPE_WRONG", "send the parameters as application/x-www-form-urlencoded")
	case r.URL.RawQuery != "":
		return nil, invalid("invalid_request", "QUERY_NOT_ALLOWED", "send the parameters in the body, not in the URL")
	case r.Header.Get("Authorization") != "":
		return nil, &failure{status: http.StatusUnauthorized, code: "invalid_client", reason: "CLIENT_AUTHENTICATION_UNSUPPORTED",
			description: "leave out the Authorization header: the operator's token goes into subject_token, the agent's name into client_id",
			header:      http.Header{"Www-Authenticate": {`Bearer realm="whence"`}}}
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if err := r.ParseForm(); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			f := invalid("invalid_request", "BODY_TOO_LARGE", "the body is larger than %d bytes; name fewer tables and subjects", maxBody)
			f.status = http.StatusRequestEntityTooLarge
			return nil, f
		}
		return nil, invalid("invalid_request", "BODY_MALFORMED", "the body is not a form: escape each parameter's value")
	}
	for name, values := range r.PostForm {
		// Several resources or audiences are legitimate in RFC 8693; one is all there is here.
		if len(values) > 1 {
			return nil, invalid("invalid_request", "PARAMETER_REPEATED", "send %s once", name)
		}
	}
	return r.PostForm, nil
}

// readRequest reads what is asked for. Parameters that Whence does not know are
// ignored, as RFC 6749 wants; those that would change what the token means are refused.
func readRequest(form url.Values, issuer string) (authz.TaskRequest, *failure) {
	var none authz.TaskRequest
	switch {
	case form.Get("grant_type") != grantTokenExchange:
		return none, invalid("unsupported_grant_type", "GRANT_TYPE_UNSUPPORTED", "set grant_type to %s", grantTokenExchange)
	case form.Get("subject_token") == "":
		return none, invalid("invalid_request", "TOKEN_MISSING", "send the token of an operator with the role admin as subject_token")
	case form.Get("subject_token_type") != typeAccessToken:
		return none, invalid("invalid_request", "TOKEN_TYPE_UNSUPPORTED", "set subject_token_type to %s", typeAccessToken)
	case form.Get("requested_token_type") != "" && form.Get("requested_token_type") != typeAccessToken:
		return none, invalid("invalid_request", "TOKEN_TYPE_UNSUPPORTED", "leave out requested_token_type, or set it to %s", typeAccessToken)
	case form.Get("actor_token") != "" || form.Get("actor_token_type") != "":
		return none, invalid("invalid_request", "ACTOR_TOKEN_UNSUPPORTED", "leave out actor_token: the agent is named by client_id")
	case form.Get("scope") != "":
		return none, invalid("invalid_scope", "SCOPE_UNSUPPORTED", "leave out scope: what the task may touch goes into authorization_details")
	case form.Get("client_id") == "":
		return none, invalid("invalid_request", "AGENT_MISSING", "send the agent's name as client_id")
	}
	for _, name := range []string{"resource", "audience"} {
		if v := form.Get(name); v != "" && v != issuer && !strings.HasPrefix(v, issuer+"/") {
			return none, invalid("invalid_target", "AUDIENCE_WRONG", "leave out %s, or set it to %s: this server's tokens are for itself", name, issuer)
		}
	}
	d, err := readDetail(form.Get("authorization_details"))
	if err != nil {
		return none, err
	}
	request := authz.TaskRequest{Agent: form.Get("client_id"), Purpose: d.Purpose, Scope: d.ScopeSpec,
		Calls: defaultCalls, Lifetime: defaultLifetime}
	if d.Budget.Calls != nil {
		request.Calls = *d.Budget.Calls
	}
	if d.Lifetime != "" {
		life, err := time.ParseDuration(d.Lifetime)
		if err != nil {
			return none, invalid("invalid_authorization_details", "LIFETIME_INVALID", "write lifetime as a duration, for example 15m")
		}
		request.Lifetime = life
	}
	if err := request.Validate(); err != nil {
		return none, translate(err)
	}
	return request, nil
}

const example = `[{"type":"whence","tables":["app.public.articles"],"allSubjects":true,` +
	`"actions":["memory:read"],"budget":{"calls":100},"purpose":"answer a question","lifetime":"15m"}]`

func readDetail(raw string) (detail, *failure) {
	if raw == "" {
		return detail{}, invalid("invalid_authorization_details", "DETAILS_MISSING",
			"send authorization_details, for example %s", example)
	}
	var list []detail
	if err := authz.DecodeStrict([]byte(raw), &list); err != nil {
		return detail{}, invalid("invalid_authorization_details", "DETAILS_MALFORMED",
			"authorization_details: %s; an example that works: %s", explain(err), example)
	}
	if len(list) != 1 || list[0].Type != authz.DetailType {
		return detail{}, invalid("invalid_authorization_details", "DETAILS_MALFORMED",
			"authorization_details takes exactly one element, of type whence; for example %s", example)
	}
	return list[0], nil
}

// explain words a decoding error for someone who writes JSON, not Go.
func explain(err error) string {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return fmt.Sprintf("%s cannot be a %s", wrong.Field, wrong.Value)
	}
	return strings.TrimPrefix(err.Error(), "json: ")
}
