package upstream

import (
	"bufio"
	"bytes"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"

	"github.com/whence-db/whence/authz"
)

var shopRules = []Rule{
	{Method: "GET", Path: "/secret/{id}", Tier: authz.TierIrreversible},
	{Method: "GET", Path: "/items/", Tier: authz.TierReversible},
	{Method: "DELETE", Path: "/items/{id}", Tier: authz.TierReversible, CostMicros: 7},
	{Path: "/items/{id}/undo", Tier: authz.TierReversible},
	{Method: "POST", Path: "/search", Tier: authz.TierRead},
	{Path: "/admin/**", Tier: authz.TierIrreversible, CostMicros: 9},
	{Path: "/caf%C3%A9/a+b@c", Tier: authz.TierReversible},
	{Method: "PUT", Path: "/**", Tier: authz.TierReversible},
}

func TestMatch(t *testing.T) {
	t.Parallel()
	u := define(t, "https://shop.example.com/v1", func(d *Definition) { d.Rules = shopRules })
	const read, back, final = authz.TierRead, authz.TierReversible, authz.TierIrreversible
	for _, c := range []struct {
		method, path string
		rule         int
		tier         authz.Tier
	}{
		{"GET", "/", -1, read},
		{"HEAD", "/x/y", -1, read},
		{"OPTIONS", "/", -1, final},
		{"POST", "/", -1, final},
		{"PURGE", "/x", -1, final},
		{"GET", "/secret/7", 0, final},
		{"HEAD", "/secret/7", 0, final},
		{"POST", "/secret/7", -1, final},
		{"GET", "/secret", -1, read},
		{"GET", "/secret/7/8", -1, read},
		{"GET", "/items/", 1, back},
		{"DELETE", "/items/7", 2, back},
		{"DELETE", "/items/a%20b", 2, back},
		{"DELETE", "/items/7/8", -1, final},
		{"PATCH", "/items/7/undo", 3, back},
		{"POST", "/search", 4, read},
		{"GET", "/admin", 5, final},
		{"GET", "/admin/", 5, final},
		{"PUT", "/admin/a/b/", 5, final},
		{"GET", "/Admin", -1, read},
		{"GET", "/caf%C3%A9/a+b@c", 6, back},
		{"GET", "/caf%C3%A9/a%2Bb%40c", 6, back}, // the same to all who decode it
		{"PUT", "/", 7, back},
		{"PUT", "/a/b", 7, back},
	} {
		v, err := u.Match(c.method, c.path)
		if err != nil || v.Index != c.rule || v.Tier != c.tier {
			t.Errorf("%s %s falls under %d %s, %v; want %d %s", c.method, c.path, v.Index, v.Tier, err, c.rule, c.tier)
		}
	}
	for _, c := range [][2]string{
		{"GET", "/secret/7/"}, {"DELETE", "/items/7/"}, {"GET", "/items"}, {"POST", "/search/"}, {"GET", "/items/7/undo/"},
		{"TRACE", "/"}, {"CONNECT", "/"}, {"get", "/"}, {"DELETE ", "/"}, {"", "/"}, {"PRI", "/"}, {"GE\nT", "/"},
	} {
		if v, err := u.Match(c[0], c[1]); reason(err) != "REQUEST_INVALID" {
			t.Errorf("%s %s falls under %d, %v; it should be refused", c[0], c[1], v.Index, err)
		}
	}
}

// tricks are paths that two servers may understand differently.
var tricks = []string{
	"", "admin", "//", "//admin", "/a//b", "/admin//x", "/./admin", "/a/../admin", "/a/..", "/.", "/..", "/a/.", "/../../etc/passwd",
	"/%2e%2e/admin", "/%2E%2E/admin", "/.%2E/admin", "/%2E/admin", "/a%2E", "/a%2Fb", "/a%2fb", "/a%5Cb", `/a\b`, `/..\admin`, "/a%5C..%5Cadmin",
	"/%252e%252e/admin", "/%252E%252E/admin", "/a%25", "/a%252F", "/admin;x=1", "/admin;/x", "/;/admin", "/admin%3Bx", "/..;/admin",
	"/%61dmin", "/%41dmin", "/admi%6E", "/a%7Eb", "/a%2Db", "/a%5Fb", "/caf%c3%a9", "/a%", "/a%2", "/a%zz", "/a%u002f", "/a%00", "/a%0A", "/a%0d%0aX", "/a%7F", "/a%09",
	"/a b", "/a\tb", "/a\x00", "/a\r\nX: y", "/a\x7f", "/caf\xc3\xa9", "/%FF", "/%C0%AE%C0%AE/admin", "/%C0%AFadmin", "/%ED%A0%80",
	"/a?b", "/a#b", "/{id}", `/a"b`, "/a<b>", "/a|b", "/a^b", "/a`b", "/[a]", "*", "http://other.example.com/a", "/a%20b?",
}

func TestPathTricksAreRefused(t *testing.T) {
	t.Parallel()
	u := define(t, "https://shop.example.com", func(d *Definition) { d.Rules = []Rule{{Path: "/**", Tier: authz.TierRead}} })
	for _, p := range tricks {
		if v, err := u.Match("GET", p); reason(err) != "REQUEST_INVALID" {
			t.Errorf("%q falls under %d, %v", p, v.Index, err)
		}
		if _, err := forwarder(t, Config{}).Outgoing(t.Context(), u, get(p), Identity{}); reason(err) != "REQUEST_INVALID" {
			t.Errorf("%q would be sent: %v", p, err)
		}
	}
	for _, in := range []Target{{"TRACE", "/a", ""}, {"GET /x HTTP/1.1\r\nX:", "/a", ""}, {"get", "/a", ""}, {"GET", "/a", "x HTTP/1.1\r\nX: y"}, {"POST", "/a", "_method=DELETE"}} {
		if _, err := forwarder(t, Config{}).Outgoing(t.Context(), u, Asked{Target: in}, Identity{}); reason(err) != "REQUEST_INVALID" {
			t.Errorf("%+v would be sent: %v", in, err)
		}
	}
	if _, err := u.Match("GET", "/"+strings.Repeat("a", maxTarget)); reason(err) != "REQUEST_INVALID" {
		t.Errorf("a path of any length: %v", err)
	}
}

func TestReadTarget(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		line, header string
		path, query  string // of what is let through
	}{
		{line: "GET /up/shop/a/b?x=1&y=%2F", path: "/a/b", query: "x=1&y=%2F"},
		{line: "GET /up/shop/", path: "/"},
		{line: "GET /up/shop/a?", path: "/a"},
		{line: "GET /up/shop/a?b?c=/../", path: "/a", query: "b?c=/../"},
		{line: "GET /up/shop"}, {line: "GET /up/shopping/a"}, {line: "GET /up/%73hop/a"}, {line: "GET //up/shop/a"}, {line: "GET /up/shop//a"},
		{line: "GET http://other.example.com/up/shop/a"}, {line: "OPTIONS *"}, {line: "GET /up/shop/a%2Fb"}, {line: "GET /up/shop/../../healthz"},
		{line: "TRACE /up/shop/a"}, {line: "get /up/shop/a"},
		{line: "GET /up/shop/a?x=%"}, {line: "GET /up/shop/a?x=%4"}, {line: "GET /up/shop/a?x=\xff"}, {line: "GET /up/shop/a?x=|"},
		{line: "POST /up/shop/a?_method=DELETE"}, {line: "POST /up/shop/a?x&%5Fmethod=DELETE"}, {line: "POST /up/shop/a?x;_METHOD=DELETE"},
		{line: "POST /up/shop/a?X-HTTP-Method-Override=DELETE"}, {line: "POST /up/shop/a?$httpMethod=DELETE"},
		{line: "POST /up/shop/a", header: "X-HTTP-Method-Override: DELETE"}, {line: "POST /up/shop/a", header: "x-http-method: DELETE"},
		{line: "POST /up/shop/a", header: "X-Method-Override:"},
	} {
		raw := c.line + " HTTP/1.1\r\nHost: whence\r\n"
		if c.header != "" {
			raw += c.header + "\r\n"
		}
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw + "\r\n")))
		if err != nil {
			if c.path != "" {
				t.Errorf("%s: %v", c.line, err)
			}
			continue // net/http refuses it before
		}
		got, err := ReadTarget(r, "/up/shop")
		switch {
		case c.path == "" && reason(err) != "REQUEST_INVALID":
			t.Errorf("%s %s is let through as %+v, %v", c.line, c.header, got, err)
		case c.path != "" && (err != nil || got.Path != c.path || got.RawQuery != c.query):
			t.Errorf("%s reads %+v, %v", c.line, got, err)
		}
	}
}

// FuzzWhatIsMatchedIsWhatIsServed holds that a server sees the segments that the
// rules were matched against, however it reads the path.
func FuzzWhatIsMatchedIsWhatIsServed(f *testing.F) {
	for _, p := range tricks {
		f.Add("GET", p, "")
	}
	for _, p := range []string{"/", "/a", "/a/", "/a/b", "/caf%C3%A9", "/a+b@c:d", "/a%20b", "/a%2Cb", "/...", "/.a", "/a'(b)!*"} {
		f.Add("POST", p, "x=1&y=%2F..%2F")
	}
	u := define(f, "http://shop.example.com/base/v1/", nil)
	fw := NewForwarder(Config{})
	f.Fuzz(func(t *testing.T, method, p, query string) {
		in := Asked{Target: Target{Method: method, Path: p, RawQuery: query}}
		_, refusal := u.Match(method, p)
		req, err := fw.Outgoing(t.Context(), u, in, Identity{})
		if err != nil {
			return
		}
		if refusal != nil {
			t.Fatalf("%s %q is sent though it matches nothing: %v", method, p, refusal)
		}
		segments, err := splitPath(p)
		if err != nil {
			t.Fatal(err)
		}
		var wire bytes.Buffer
		if err := req.Write(&wire); err != nil {
			t.Fatalf("%s %q: %v", method, p, err)
		}
		r := bufio.NewReader(&wire)
		got, err := http.ReadRequest(r)
		if err != nil {
			t.Fatalf("%s %q is not a request: %v", method, p, err)
		}
		if rest, _ := r.Peek(1); len(rest) > 0 {
			t.Fatalf("%s %q: there is a second request", method, p)
		}
		want := "/base/v1" + p
		if query != "" {
			want += "?" + query
		}
		decoded := "/base/v1/" + strings.Join(segments, "/")
		if got.Method != method || got.RequestURI != want || got.URL.Path != decoded || got.URL.RawQuery != query || got.Host != "shop.example.com" {
			t.Fatalf("%s %q?%q is served as %s %q, path %q", method, p, query, got.Method, got.RequestURI, got.URL.Path)
		}
		if clean := path.Clean(decoded); clean != strings.TrimSuffix(decoded, "/") {
			t.Fatalf("%q is %q once it is cleaned", decoded, clean)
		}
		if strings.ContainsAny(got.URL.Path, "\\;%") || strings.Count(decoded, "/") != strings.Count(p, "/")+2 {
			t.Fatalf("%q has more in it than was matched", decoded)
		}
		// A mux neither redirects it nor finds another handler.
		mux := http.NewServeMux()
		mux.HandleFunc("/base/v1/{rest...}", func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Rest", r.PathValue("rest")) })
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, got)
		if rec.Code != http.StatusOK || rec.Header().Get("Rest") != strings.Join(segments, "/") {
			t.Fatalf("a mux answers %q by %d, %q", decoded, rec.Code, rec.Header().Get("Rest"))
		}
	})
}
