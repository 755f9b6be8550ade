package upstream

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// wire serves one request a connection and hands over its bytes, all of them, as the
// upstream gets them.
func wire(t *testing.T) (base string, next func() string) {
	t.Helper()
	got := make(chan string, 16)
	base = listen(t, func(_ int, c net.Conn) {
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		var text strings.Builder
		r, err := http.ReadRequest(bufio.NewReader(io.TeeReader(c, &text)))
		if err == nil {
			_, _ = io.Copy(io.Discard, r.Body)
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		// What else is there would be a second request.
		_ = c.(*net.TCPConn).CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		rest, _ := io.ReadAll(c)
		got <- text.String() + string(rest)
	})
	return base, func() string {
		select {
		case s := <-got:
			return s
		case <-time.After(10 * time.Second):
			t.Fatal("the upstream got nothing")
			return ""
		}
	}
}

// lines are the header lines of a request on the wire, sorted, without their values'
// random part.
func lines(text string) (first string, header []string, body string) {
	head, body, _ := strings.Cut(text, "\r\n\r\n")
	all := strings.Split(head, "\r\n")
	header = all[1:]
	slices.Sort(header)
	return all[0], header, body
}

var spanID = regexp.MustCompile(`(00-[0-9a-f]{32}-)[0-9a-f]{16}`)

// What reaches the upstream is these lines and no other, whatever came in.
func TestOnlyWhatIsNamedPasses(t *testing.T) {
	t.Parallel()
	base, next := wire(t)
	u := define(t, base+"/v1/", func(d *Definition) { d.AuthorizationEnv = "SHOP_KEY" })
	f := forwarder(t, Config{Getenv: func(name string) string { return map[string]string{"SHOP_KEY": "Bearer shop"}[name] }})
	in := post("/a%20b/c", "hello")
	in.RawQuery = "x=1&y=%2F"
	in.Header = http.Header{
		"Accept": {"text/plain", "text/html"}, "Content-Type": {"text/plain"}, "X-Api-Version": {"2"}, "Accept-Encoding": {"gzip"}, "If-Match": {`"7"`},
		"Authorization": {"Bearer caller"}, "Cookie": {"a=b"}, "Cookie2": {"a"}, "Dpop": {"proof"}, "Proxy-Authorization": {"Basic x"}, "Idempotency-Key": {"k"},
		"Connection": {"X-Hop, close", "X-Other-Hop"}, "X-Hop": {"1"}, "X-Other-Hop": {"1"}, "Keep-Alive": {"5"}, "Proxy-Connection": {"close"}, "Te": {"trailers"}, "Trailer": {"X"},
		"Transfer-Encoding": {"chunked"}, "Upgrade": {"websocket"}, "Content-Length": {"99"}, "Expect": {"100-continue"}, "Http2-Settings": {"x"},
		"Forwarded": {"for=1"}, "X-Forwarded-For": {"1.2.3.4"}, "X-Forwarded-Host": {"evil"}, "X-Forwarded": {"x"}, "X-Real-Ip": {"1.2.3.4"}, "Via": {"1.1 x"}, "True-Client-Ip": {"1"},
		"X-Original-Url": {"/admin"}, "X-Rewrite-Url": {"/admin"}, "X-Original-Host": {"evil"}, "Host": {"evil"}, "X-Host": {"evil"},
		"Whence-Task-Id": {"forged"}, "Whence-User": {"root"}, "whence-agent": {"forged"}, "Traceparent": {"00-1"}, "Tracestate": {"a=b"}, "Baggage": {"whence.user=root"},
		"X-Http-Method-Override": {"DELETE"}, "X-Method-Override": {"DELETE"}, "X_Forwarded_For": {"1"}, "Whence_Task_Id": {"forged"}, "User.Name": {"x"}, "User-Agent": {"curl"},
		"Origin": {"https://evil"}, "Referer": {"https://evil"}, "Sec-Fetch-Site": {"none"}, "X-Remote-User": {"root"},
	}
	id := Identity{Task: "018f0000-0000-7000-8000-000000000001", Root: "018f0000-0000-7000-8000-000000000002", Agent: "clerk", User: `ann, "x"=1;ü`, Tenant: "default"}
	send := func() {
		t.Helper()
		req, err := f.Outgoing(t.Context(), u, in, id)
		if err != nil {
			t.Fatal(err)
		}
		res, err := f.Forward(t.Context(), u, req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
	}
	send()
	first, header, body := lines(next())
	want := []string{
		"Accept-Encoding: gzip", "Accept: text/html", "Accept: text/plain", "Authorization: Bearer shop",
		"Baggage: whence.task=018f0000-0000-7000-8000-000000000001,whence.agent=clerk,whence.user=ann%2C%20%22x%22%3D1%3B%C3%BC",
		"Content-Length: 5", "Content-Type: text/plain", "Host: " + strings.TrimPrefix(base, "http://"), `If-Match: "7"`,
		"Traceparent: 00-018f0000000070008000000000000002-SPAN-01", "User-Agent: whence", "Whence-Task-Id: 018f0000-0000-7000-8000-000000000001", "X-Api-Version: 2",
	}
	slices.Sort(want)
	for i := range header {
		header[i] = spanID.ReplaceAllString(header[i], "${1}SPAN")
	}
	if first != "POST /v1/a%20b/c?x=1&y=%2F HTTP/1.1" || body != "hello" {
		t.Errorf("the upstream got %q with %q", first, body)
	}
	if !slices.Equal(header, want) {
		t.Errorf("the upstream got\n%s\nwant\n%s", strings.Join(header, "\n"), strings.Join(want, "\n"))
	}

	in.PassKey, in.Header, in.Length = true, http.Header{"Idempotency-Key": {"k"}}, -1
	in.Body = io.NopCloser(strings.NewReader("hello"))
	id.Trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
	send()
	_, header, body = lines(next())
	text := strings.Join(header, "\n")
	if !strings.Contains(text, "idempotency-key: k") || !strings.Contains(text, "Transfer-Encoding: chunked") || strings.Contains(strings.ToLower(text), "content-length") || body != "5\r\nhello\r\n0\r\n\r\n" {
		t.Errorf("of unknown length: %s\n\n%s", text, body)
	}
	if !strings.Contains(text, "Traceparent: 00-0af7651916cd43dd8448eb211c80319c-") || strings.Contains(text, "b7ad6b7169203331") {
		t.Errorf("the trace is not gone on with by a span of its own: %s", text)
	}
	id.Trace, id.Root = "00-00000000000000000000000000000000-b7ad6b7169203331-00", "none"
	in.Body, in.Length = nil, 0
	send()
	if text := next(); !regexp.MustCompile(`Traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-01\r\n`).MatchString(text) || strings.Contains(text, strings.Repeat("0", 32)) {
		t.Errorf("a trace of nothing: %s", text)
	}
}

// A request without a body says so in the way that its method is expected to.
func TestBodiless(t *testing.T) {
	t.Parallel()
	base, next := wire(t)
	u, f := define(t, base, nil), forwarder(t, Config{})
	for method, length := range map[string]string{"GET": "", "HEAD": "", "DELETE": "", "OPTIONS": "", "POST": "content-length: 0", "PUT": "content-length: 0", "PATCH": "content-length: 0"} {
		answered(t, f, u, Asked{Target: Target{Method: method, Path: "/"}})
		_, header, body := lines(next())
		got := ""
		for _, h := range header {
			if strings.HasPrefix(h, "Accept-Encoding") { // a reply that net/http unpacks is not what the upstream said
				t.Errorf("%s asks for %s, which the caller did not", method, h)
			}
			if l := strings.ToLower(h); strings.HasPrefix(l, "content-length") || strings.HasPrefix(l, "transfer-encoding") {
				got += h
			}
		}
		if got != length || body != "" {
			t.Errorf("%s: %q with %q, want %q", method, got, body, length)
		}
	}
}

func TestAuthorizationIsThere(t *testing.T) {
	t.Parallel()
	values := map[string]string{"EMPTY": "", "LINES": "Bearer a\r\nX: y", "SPACE": "Bearer a ", "GOOD": "Bearer a"}
	f := forwarder(t, Config{Getenv: func(name string) string { return values[name] }})
	for name, want := range map[string]string{"EMPTY": "UPSTREAM_NOT_CONFIGURED", "MISSING": "UPSTREAM_NOT_CONFIGURED", "LINES": "UPSTREAM_NOT_CONFIGURED", "SPACE": "UPSTREAM_NOT_CONFIGURED", "GOOD": ""} {
		u := define(t, "https://shop.example.com", func(d *Definition) { d.AuthorizationEnv = name })
		_, err := f.Outgoing(t.Context(), u, get("/"), Identity{})
		if reason(err) != want {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "Bearer") {
			t.Errorf("%s: the error tells the secret: %v", name, err)
		}
	}
}

// Requests that are framed in two ways, or carry another, end at the front: what the
// upstream gets is one request, framed once. The front is net/http with our target
// and header rules, as the server has it.
func TestRequestsAreNotSmuggled(t *testing.T) {
	t.Parallel()
	base, next := wire(t)
	u, f := define(t, base, nil), forwarder(t, Config{})
	front := serveFront(t, f, u)
	for _, c := range []struct {
		name, raw string
		passes    string // what the upstream gets as body; "-": nothing passes
	}{
		{"plain", "POST /up/shop/a HTTP/1.1\r\nHost: w\r\nContent-Length: 5\r\n\r\nhello", "hello"},
		{"chunked", "POST /up/shop/a HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"},
		{"two lengths", "POST /up/shop/a HTTP/1.1\r\nHost: w\r\nContent-Length: 5\r\nContent-Length: 0\r\n\r\nhello", "-"},
		{"list of lengths", "POST /up/shop/a HTTP/1.1\r\nHost: w\r\nContent-Length: 5, 0\r\n\r\nhello", "-"},
		{"signed length", "POST /up/shop/a HTTP/1.1\r\nHost: w\r\nContent-Length: +5\r\n\r\nhello", "-"},
		{"length and chunks", "POST /up/shop/a HTTP/1.1\r\nHost: w\r\nContent-Length: 44\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: w\r\n\r\n", "0\r\n\r\n"},
		{"two encodings", "POST /up/shop/a HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", "-"},
		{"odd encoding", "POST /up/shop/a HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "-"},
		{"space before colon", "POST /up/shop/a HTTP/1.1\r\nHost: w\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "-"},
		{"folded", "POST /up/shop/a HTTP/1.1\r\nHost: w\r\nX: a\r\n Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello", "hello"},
		{"two hosts", "GET /up/shop/a HTTP/1.1\r\nHost: w\r\nHost: x\r\n\r\n", "-"},
		{"bare CR", "GET /up/shop/a HTTP/1.1\r\nHost: w\r\nX: a\rY: b\r\n\r\n", "-"},
		{"NUL", "GET /up/shop/a HTTP/1.1\r\nHost: w\r\nX: a\x00\r\n\r\n", "-"},
		{"space in target", "GET /up/shop/a b HTTP/1.1\r\nHost: w\r\n\r\n", "-"},
		{"line in target", "GET /up/shop/a%0d%0aHost:%20evil HTTP/1.1\r\nHost: w\r\n\r\n", "-"},
		{"absolute", "GET http://evil/up/shop/a HTTP/1.1\r\nHost: w\r\n\r\n", "-"},
		{"length in connection", "POST /up/shop/a HTTP/1.1\r\nHost: w\r\nConnection: Content-Length\r\nContent-Length: 5\r\n\r\nhello", "hello"},
	} {
		conn, err := net.Dial("tcp", front)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, c.raw)
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			_ = conn.Close()
			continue
		}
		_ = res.Body.Close()
		_ = conn.Close()
		if c.passes == "-" {
			if res.StatusCode < 400 {
				t.Errorf("%s: passes as %q", c.name, next())
			}
			continue
		}
		if res.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", c.name, res.Status)
			continue
		}
		text := next()
		_, header, body := lines(text)
		framed := 0
		for _, h := range header {
			if l := strings.ToLower(h); strings.HasPrefix(l, "content-length:") || strings.HasPrefix(l, "transfer-encoding:") {
				framed++
			}
		}
		if body != c.passes || framed != 1 || strings.Count(text, " HTTP/1.1\r\n") != 1 {
			t.Errorf("%s: the upstream got\n%s", c.name, text)
		}
	}
}

// serveFront is a server that forwards as the door will, without asking who it is.
func serveFront(t testing.TB, f *Forwarder, u *Upstream) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: front(f, u, 1<<30)}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return l.Addr().String()
}

func front(f *Forwarder, u *Upstream, budget int64) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		answer := func(err error) { http.Error(w, fmt.Sprint(reason(err), " sent ", Sent(err)), http.StatusBadGateway) }
		target, err := ReadTarget(r, "/up/shop")
		if err != nil {
			answer(err)
			return
		}
		req, err := f.Outgoing(r.Context(), u, Asked{Target: target, Header: r.Header, Body: r.Body, Length: r.ContentLength}, Identity{Task: "t"})
		if err != nil {
			answer(err)
			return
		}
		res, err := f.Forward(r.Context(), u, req) //nolint:bodyclose // Relay does
		if err != nil {
			answer(err)
			return
		}
		done, err := Relay(w, res, budget)
		switch {
		case err == nil:
		case done.Started:
			panic(http.ErrAbortHandler)
		default:
			answer(err)
		}
	}
}
