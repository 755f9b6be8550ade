package oauth

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/whence-db/whence"
)

// failure is an error response of RFC 6749, section 5.2, with the stable reason
// that Whence's errors have everywhere.
type failure struct {
	status      int
	code        string // "error"
	description string
	reason      string
	header      http.Header
	cause       error // logged, never sent
}

func (s *server) fail(w http.ResponseWriter, r *http.Request, f *failure) {
	if f.cause != nil {
		s.Log.WarnContext(r.Context(), "oauth call failed", "path", r.URL.Path, "reason", f.reason, "error", f.cause)
	}
	for name, values := range f.header {
		w.Header()[name] = values
	}
	b, err := json.Marshal(struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
		Reason      string `json:"reason,omitempty"`
	}{f.code, printable(f.description), f.reason})
	if err != nil { // three strings
		panic(err)
	}
	write(w, f.status, b)
}

// translate maps domain errors to OAuth's few codes. RFC 8693 wants a bad or
// unacceptable subject token to be an invalid_request.
func translate(err error) *failure {
	var e *whence.Error
	if !errors.As(err, &e) {
		return &failure{status: http.StatusInternalServerError, code: "server_error", reason: "INTERNAL",
			description: "the server failed; its log says why", cause: err}
	}
	f := &failure{status: http.StatusBadRequest, code: "invalid_request",
		reason: e.Reason, description: e.Message, header: http.Header{}, cause: e.Err}
	switch {
	case errors.Is(e.Kind, whence.ErrInvalid) && e.Field == "agent":
		f.description = "client_id: " + e.Message
	case errors.Is(e.Kind, whence.ErrInvalid):
		f.code = "invalid_authorization_details"
	case errors.Is(e.Kind, whence.ErrUnauthenticated), errors.Is(e.Kind, whence.ErrDenied):
		f.description = "subject_token: " + e.Message
	case errors.Is(e.Kind, whence.ErrExhausted):
		f.status = http.StatusTooManyRequests
	case errors.Is(e.Kind, whence.ErrUnavailable), errors.Is(e.Kind, whence.ErrAborted):
		f.status, f.code = http.StatusServiceUnavailable, "temporarily_unavailable"
	}
	if e.RetryAfter > 0 {
		whole := int(math.Ceil(float64(e.RetryAfter) / float64(time.Second)))
		f.header.Set("Retry-After", strconv.Itoa(whole))
	}
	return f
}

// printable keeps to the characters that RFC 6749 allows in error_description.
func printable(s string) string {
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
