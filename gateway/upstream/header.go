package upstream

import (
	"net/http"
	"slices"
	"strings"
)

// notSent are headers of a caller's request that the upstream never sees: what
// belongs to one connection, what would say who is asking or from where, and what
// would make another request of it. A name that ends with "-" stands for all that
// start so. All are in lower case.
var notSent = []string{
	// of one connection (RFC 9110, 7.6.1), or of how the body is framed
	"connection", "keep-alive", "proxy-", "te", "trailer", "transfer-encoding", "upgrade", "content-length", "expect", "http2-settings",
	// credentials, which are for this server
	"authorization", "cookie", "cookie2", "dpop",
	// who asks, and by which way
	"forwarded", "via", "from", "x-forwarded", "x-forwarded-", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip", "cf-connecting-ip",
	"x-remote-user", "remote-user", "x-auth-request-", "origin", "referer", "sec-", "access-control-", "whence-", "x-whence-",
	"traceparent", "tracestate", "baggage", "b3", "x-b3-",
	// another target or method
	"host", "x-host", "x-http-host-override", "x-original-", "x-rewrite-", "x-http-method", "x-http-method-override", "x-method-override",
	// what only the server says
	"user-agent",
}

// notReturned are headers of a reply that do not reach the caller. They belong to one
// connection, or speak for the server's own origin: no cookie is ever sent back, and
// what other origins may do here is not the upstream's to say.
var notReturned = []string{
	"connection", "keep-alive", "proxy-", "te", "trailer", "transfer-encoding", "upgrade",
	"set-cookie", "set-cookie2", "alt-svc", "strict-transport-security", "public-key-pins", "public-key-pins-report-only", "expect-ct", "clear-site-data",
	"access-control-", "service-worker-allowed", "report-to", "reporting-endpoints", "nel", "refresh", "whence-", "x-whence-",
}

// copyHeader returns what of h is neither dropped by name nor named by its
// Connection header. Names with other characters than letters, digits and "-" go
// too: some servers take "X_Y" for "X-Y".
func copyHeader(h http.Header, drop []string) http.Header {
	var named []string
	for _, v := range h.Values("Connection") {
		for name := range strings.SplitSeq(v, ",") {
			named = append(named, strings.ToLower(strings.Trim(name, " \t")))
		}
	}
	out := http.Header{}
	for name, values := range h {
		lower := strings.ToLower(name)
		if plain(lower) && !slices.Contains(named, lower) && !listed(drop, lower) {
			out[http.CanonicalHeaderKey(name)] = append(out[http.CanonicalHeaderKey(name)], values...)
		}
	}
	return out
}

func listed(list []string, lower string) bool {
	return slices.ContainsFunc(list, func(n string) bool {
		return n == lower || strings.HasSuffix(n, "-") && strings.HasPrefix(lower, n)
	})
}

func plain(lower string) bool {
	for i := range len(lower) {
		if c := lower[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return lower != ""
}

// sendable tells whether a value may stand in a header.
func sendable(v string) bool {
	for i := range len(v) {
		if c := v[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return v != "" && strings.TrimSpace(v) == v
}
