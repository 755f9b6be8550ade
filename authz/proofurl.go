package authz

import (
	"errors"
	"net/url"
	"strings"
)

var errURL = errors.New("not an absolute http or https URL")

// comparableURL writes a URL in the one way that RFC 3986, section 6.2, leaves of
// its spellings: scheme and host in lower case, no default port, no dot segments,
// only what needs it escaped. Query and fragment are left out (RFC 9449, section 4.3).
func comparableURL(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", errURL
	}
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	defaultPort, ok := map[string]string{"http": ":80", "https": ":443"}[scheme]
	if !ok || u.Hostname() == "" || u.Opaque != "" || u.User != nil {
		return "", errURL
	}
	host = strings.TrimSuffix(strings.TrimSuffix(host, defaultPort), ":") // an empty port is none
	path := withoutDots(unescaped(u.EscapedPath()))
	return scheme + "://" + host + path, nil
}

// unescaped undoes the escapes of characters that need none and writes the others in
// upper case.
func unescaped(path string) string {
	const hexadecimal = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] != '%' || i+2 >= len(path) {
			b.WriteByte(path[i])
			continue
		}
		high := strings.IndexByte(hexadecimal, upper(path[i+1]))
		low := strings.IndexByte(hexadecimal, upper(path[i+2]))
		if c := byte(high<<4 | low); unreserved(c) {
			b.WriteByte(c)
		} else {
			b.WriteString(strings.ToUpper(path[i : i+3]))
		}
		i += 2
	}
	return b.String()
}

func upper(c byte) byte {
	if 'a' <= c && c <= 'z' {
		return c - 'a' + 'A'
	}
	return c
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

// withoutDots resolves "." and ".." as RFC 3986, section 5.2.4, does: path.Clean
// would take double and trailing slashes away as well.
func withoutDots(path string) string {
	if path == "" {
		return "/"
	}
	var out []string
	segments := strings.Split(path[1:], "/")
	for i, s := range segments {
		last := i == len(segments)-1
		switch s {
		case "..":
			out = out[:max(len(out)-1, 0)]
		case ".":
		default:
			out = append(out, s)
			continue
		}
		if last {
			out = append(out, "")
		}
	}
	return "/" + strings.Join(out, "/")
}
