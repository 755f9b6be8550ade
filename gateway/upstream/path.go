package upstream

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/whence-db/whence"
)

const (
	maxTarget  = 8 << 10 // bytes of path and query
	upperHex   = "0123456789ABCDEF"
	unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	// reserved may stand in a segment as they are (RFC 3986, pchar), but for ";":
	// some servers take off what follows it before they look where a path leads.
	reserved = "!$&'()*+,=:@"
)

// Target is what a request names below an upstream's URL, as it was written. What
// [Target.check] lets through has one meaning: whoever decodes it once, or looks for
// ways up in it, or takes parameters off its segments, sees the same segments.
type Target struct {
	Method   string
	Path     string // escaped, from its first slash on
	RawQuery string
}

// ReadTarget reads the target of a request that came in under prefix, which has no
// slash at its end. It refuses what does not mean the same to every server.
func ReadTarget(r *http.Request, prefix string) (Target, error) {
	path, query, _ := strings.Cut(r.RequestURI, "?")
	below, ok := strings.CutPrefix(path, prefix)
	if !ok { // the absolute form, "*", or another spelling of the prefix
		return Target{}, badRequest("the request's target is not a path below " + prefix + "/; send it as one")
	}
	if i := slices.IndexFunc(overrides, func(name string) bool { return r.Header.Values(name) != nil }); i >= 0 {
		return Target{}, badRequest("the header " + overrides[i] + " would make another method of this one; send that method itself")
	}
	t := Target{Method: r.Method, Path: below, RawQuery: query}
	return t, t.check()
}

// overrides are headers, and parameters of a query, that some servers take the
// method from.
var (
	overrides          = []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override"}
	overrideParameters = []string{"_method", "_httpmethod", "$httpmethod", "x-http-method-override", "x-http-method", "x-method-override"}
)

var methodForm = regexp.MustCompile(`^[A-Z][A-Z0-9_-]{0,31}$`)

func (t Target) check() error {
	switch {
	case !methodForm.MatchString(t.Method):
		return badRequest("the method is a word in capital letters")
	case slices.Contains([]string{http.MethodConnect, http.MethodTrace, "TRACK", "PRI"}, t.Method):
		return badRequest("the method " + t.Method + " is not passed on")
	case len(t.Path)+len(t.RawQuery) > maxTarget:
		return badRequest(fmt.Sprintf("path and query have at most %d bytes together", maxTarget))
	}
	if _, err := splitPath(t.Path); err != nil {
		return badRequest(err.Error())
	}
	return checkQuery(t.RawQuery)
}

// splitPath decodes the segments of a path. The last is empty where the path ends
// with a slash; no other is.
func splitPath(path string) ([]string, error) {
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return nil, errors.New("the path does not start with a slash")
	}
	parts := strings.Split(rest, "/")
	for i, part := range parts {
		s, err := decodeSegment(part)
		switch {
		case err != nil:
			return nil, err
		case s == "" && i < len(parts)-1:
			return nil, errors.New("the path has an empty segment (//); leave it out")
		case s == "." || s == "..":
			return nil, errors.New("the path has a segment . or ..; write where it leads to")
		}
		parts[i] = s
	}
	return parts, nil
}

func decodeSegment(part string) (string, error) {
	var out strings.Builder
	for i := 0; i < len(part); i++ {
		c := part[i]
		switch {
		case c == '%':
			d, err := decodeByte(part[i:])
			if err != nil {
				return "", err
			}
			out.WriteByte(d)
			i += 2
		case strings.IndexByte(unreserved, c) < 0 && strings.IndexByte(reserved, c) < 0:
			return "", fmt.Errorf("the path has the character %q, which is not passed on there", c)
		default:
			out.WriteByte(c)
		}
	}
	if s := out.String(); utf8.ValidString(s) {
		return s, nil
	}
	return "", errors.New("the path is not UTF-8 once it is decoded")
}

// decodeByte reads the escape at the start of s.
func decodeByte(s string) (byte, error) {
	if len(s) < 3 || !isHex(s[1]) || !isHex(s[2]) {
		return 0, errors.New("the path has a % that starts no escape")
	}
	escape, hi, lo := s[:3], strings.IndexByte(upperHex, s[1]), strings.IndexByte(upperHex, s[2])
	if hi < 0 || lo < 0 {
		return 0, fmt.Errorf("the path has the escape %s; write its digits in capitals", escape)
	}
	c := byte(hi<<4 | lo)
	switch {
	case c < ' ' || c == 0x7f:
		return 0, fmt.Errorf("the path has the control character %s", escape)
	case c == '.', strings.IndexByte(`/\%;`, c) >= 0:
		return 0, fmt.Errorf("the path has the escape %s, which servers take in different ways; it is not passed on", escape)
	case strings.IndexByte(unreserved, c) >= 0:
		return 0, fmt.Errorf("the path has the escape %s; write the character itself", escape)
	}
	return c, nil
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func checkQuery(query string) error {
	for i := range len(query) {
		switch c := query[i]; {
		case c <= ' ' || c >= 0x7f || strings.IndexByte("\"#<>\\^`{|}", c) >= 0:
			return badRequest(fmt.Sprintf("the query has the character %q; escape it", c))
		case c == '%' && (len(query)-i < 3 || !isHex(query[i+1]) || !isHex(query[i+2])):
			return badRequest("the query has a % that starts no escape")
		}
	}
	for _, pair := range strings.FieldsFunc(query, func(r rune) bool { return r == '&' || r == ';' }) {
		name, _, _ := strings.Cut(pair, "=")
		if decoded, err := url.QueryUnescape(name); err == nil && slices.Contains(overrideParameters, strings.ToLower(strings.TrimSpace(decoded))) {
			return badRequest("the parameter " + decoded + " would make another method of this one; send that method itself")
		}
	}
	return nil
}

func badRequest(message string) *whence.Error {
	return whence.Invalid("", "REQUEST_INVALID", message)
}
