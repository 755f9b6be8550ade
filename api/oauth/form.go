package oauth

import (
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/whence-db/whence"
)

// maxForm is the largest body that is read, in bytes.
const maxForm = 1 << 20

// readForm reads the body's parameters, each at most once. A token in a URL ends up
// in logs, so nothing is taken from the query.
func readForm(w http.ResponseWriter, r *http.Request) (url.Values, error) {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case err != nil || kind != "application/x-www-form-urlencoded" || len(r.Header.Values("Content-Type")) > 1:
		return nil, whence.Invalid("", "CONTENT_TYPE_WRONG", "send the parameters as application/x-www-form-urlencoded")
	case r.URL.RawQuery != "":
		return nil, whence.Invalid("", "QUERY_NOT_ALLOWED", "send the parameters in the body, not in the URL")
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, whence.Invalid("", "BODY_TOO_LARGE", fmt.Sprintf("the body is larger than %d bytes; name fewer tables and subjects", maxForm))
		}
		return nil, whence.Invalid("", "BODY_MALFORMED", "the body is not a form: escape each parameter's value")
	}
	for name, values := range r.PostForm {
		// Several resources or audiences are legitimate in RFC 8693; one is all there is here.
		if len(values) > 1 {
			return nil, whence.Invalid("", "PARAMETER_REPEATED", fmt.Sprintf("send %.64s once", name))
		}
		if !readable(name) || !readable(values[0]) {
			return nil, whence.Invalid("", "PARAMETER_MALFORMED", fmt.Sprintf("send %.64s as UTF-8 text without NUL", name))
		}
	}
	return r.PostForm, nil
}

func readable(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }
