package oauth

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/reason"
)

// The errors of RFC 6749, section 5.2, and of its extensions.
const (
	invalidRequest     = "invalid_request"
	invalidClient      = "invalid_client"
	invalidScope       = "invalid_scope"
	invalidTarget      = "invalid_target"                // RFC 8707
	invalidDetails     = "invalid_authorization_details" // RFC 9396
	invalidProof       = "invalid_dpop_proof"            // RFC 9449
	unauthorizedClient = "unauthorized_client"
	unsupportedGrant   = "unsupported_grant_type"
	accessDenied       = "access_denied"
	unavailable        = "temporarily_unavailable"
	serverError        = "server_error"
)

// codes says what OAuth calls a refusal, by its reason or by what that begins with.
// RFC 8693 wants whatever is wrong with a subject token to be an invalid_request,
// which is also what all others are.
var codes = map[string]string{
	"GRANT_TYPE_UNSUPPORTED": unsupportedGrant,
	"AUDIENCE_WRONG":         invalidTarget,
	"PROOF_":                 invalidProof,
	"DETAILS_":               invalidDetails,
	"SCOPE_":                 invalidDetails,
	"BUDGET_":                invalidDetails,
	"LIFETIME_":              invalidDetails,
	"PURPOSE_":               invalidDetails,
	"DEPTH_":                 accessDenied,
	"ROLE_":                  accessDenied,
	"ACTION_OUT_OF_SCOPE":    accessDenied, // the task may not delegate
	"GRANT_MISSING":          unauthorizedClient,
	"ACTOR_WRONG":            unauthorizedClient,
	"AGENT_REVOKED":          unauthorizedClient,
}

// failure is an error response, with the stable reason that Whence's errors have
// everywhere.
type failure struct {
	status      int
	code        string // "error"
	description string
	reason      string
	field       string
	metadata    map[string]string
	header      http.Header
	cause       error // logged, never sent
}

// translate maps domain errors to OAuth's few codes.
func translate(err error) *failure {
	var e *whence.Error
	if !errors.As(err, &e) {
		return &failure{status: http.StatusInternalServerError, code: serverError, reason: "INTERNAL",
			description: "the server failed; its log says why", header: http.Header{"Retry-After": {"1"}}, cause: err}
	}
	f := &failure{status: http.StatusBadRequest, code: codeOf(e), description: e.Message,
		reason: e.Reason, field: e.Field, metadata: e.Metadata, header: http.Header{}, cause: e.Err}
	retry := e.RetryAfter
	switch {
	case f.code == unavailable:
		f.status, retry = http.StatusServiceUnavailable, max(retry, time.Second)
	case f.code == invalidClient:
		f.status = http.StatusUnauthorized
		f.header.Set("WWW-Authenticate", `Bearer realm="whence"`)
	case f.reason == "BODY_TOO_LARGE":
		f.status = http.StatusRequestEntityTooLarge
	case f.code == invalidRequest && errors.Is(e.Kind, whence.ErrUnauthenticated) && e.Field == "":
		f.description = "subject_token: " + e.Message
	}
	if retry > 0 {
		f.header.Set("Retry-After", strconv.Itoa(int(math.Ceil(retry.Seconds()))))
	}
	return f
}

func codeOf(e *whence.Error) string {
	switch {
	case errors.Is(e.Kind, whence.ErrUnavailable), errors.Is(e.Kind, whence.ErrAborted):
		return unavailable
	case errors.Is(e.Kind, whence.ErrUnauthenticated) && (e.Field == "client" || e.Field == "client_assertion" || e.Field == "actor_token"):
		return invalidClient
	}
	if code, ok := codes[e.Reason]; ok {
		return code
	}
	group, _, _ := strings.Cut(e.Reason, "_")
	if code, ok := codes[group+"_"]; ok {
		return code
	}
	return invalidRequest
}

// about names what is at fault as the request has it: a scope, if it sent one instead
// of authorization_details.
func (f *failure) about(form url.Values) *failure {
	if f.code != invalidDetails || form.Get("scope") == "" {
		return f
	}
	if f.code = invalidScope; f.field == "purpose" {
		f.code = invalidRequest
	}
	return f
}

func notAllowed(allow string) *failure {
	return &failure{status: http.StatusMethodNotAllowed, code: invalidRequest, reason: "METHOD_NOT_ALLOWED",
		description: "this path answers to " + allow + " only", header: http.Header{"Allow": {allow}}}
}

func (s *server) fail(w http.ResponseWriter, r *http.Request, f *failure) {
	if f.cause != nil {
		s.Log.WarnContext(r.Context(), "oauth call failed", "path", r.URL.Path, "reason", f.reason, "error", f.cause)
	}
	for name, values := range f.header {
		w.Header()[name] = values
	}
	b, err := json.Marshal(struct {
		Error       string            `json:"error"`
		Description string            `json:"error_description"`
		Reason      string            `json:"reason"`
		Next        reason.Next       `json:"next"`
		Metadata    map[string]string `json:"metadata"`
	}{f.code, printable(f.description), f.reason, reason.After(f.reason), reason.Details(f.reason, f.metadata)})
	if err != nil { // strings
		panic(err)
	}
	write(w, f.status, b)
}

// maxDescription bounds what an answer repeats of a request, in bytes.
const maxDescription = 2000

// printable keeps to the characters that RFC 6749 allows in error_description.
func printable(s string) string {
	if len(s) > maxDescription {
		s = s[:maxDescription] + "..."
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '"':
			return '\''
		case r < 0x20 || r > 0x7e || r == '\\':
			return '?'
		}
		return r
	}, s)
}
