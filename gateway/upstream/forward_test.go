package upstream

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/whence-db/whence"
)

const okReply = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// readRequest reads one request, or tells that there is none.
func readRequest(r *bufio.Reader) bool {
	req, err := http.ReadRequest(r)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, req.Body)
	return err == nil
}

// The error tells whether the upstream may have acted, and why there is no reply.
func TestFates(t *testing.T) {
	t.Parallel()
	hangUp := func(_ int, c net.Conn) { readRequest(bufio.NewReader(c)) }
	say := func(text string) func(int, net.Conn) {
		return func(_ int, c net.Conn) {
			readRequest(bufio.NewReader(c))
			_, _ = io.WriteString(c, text)
		}
	}
	wait := func(_ int, c net.Conn) {
		readRequest(bufio.NewReader(c))
		_, _ = c.Read(make([]byte, 1)) // until the other side hangs up
	}
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = gone.Close()
	for _, c := range []struct {
		name   string
		base   string
		serve  func(int, net.Conn)
		change func(*Definition)
		reason string
		kind   error
		sent   bool
		retry  bool
	}{
		{name: "answered", serve: say(okReply)},
		{name: "nobody listens", base: "http://" + gone.Addr().String(), reason: ReasonUnreachable, kind: whence.ErrUnavailable, retry: true},
		{name: "no such name", base: "http://nobody.invalid", reason: ReasonUnreachable, kind: whence.ErrUnavailable, retry: true},
		{name: "not TLS", base: "https", serve: func(_ int, c net.Conn) { _, _ = io.WriteString(c, "SSH-2.0-x\r\n") }, reason: ReasonUnreachable, kind: whence.ErrUnavailable, retry: true},
		{name: "refused", serve: say(okReply), change: func(d *Definition) {
			d.URL, d.PrivateRanges = strings.Replace(d.URL, "127.0.0.1", "localhost", 1), nil
		}, reason: ReasonAddressRefused, kind: whence.ErrDenied},
		{name: "hangs up", serve: hangUp, reason: ReasonFateUnknown, kind: whence.ErrPrecondition, sent: true},
		{name: "speaks nonsense", serve: say("SSH-2.0-x\r\n\r\n"), reason: ReasonFateUnknown, kind: whence.ErrPrecondition, sent: true},
		{name: "speaks half", serve: say("HTTP/1.1 200 OK\r\nContent-Le"), reason: ReasonFateUnknown, kind: whence.ErrPrecondition, sent: true},
		{name: "headers without end", serve: say("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 1<<20)), reason: ReasonFateUnknown, kind: whence.ErrPrecondition, sent: true},
		{name: "switches protocols", serve: say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"), reason: ReasonFateUnknown, kind: whence.ErrPrecondition, sent: true},
		{name: "two lengths", serve: say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\nokokok"), reason: ReasonFateUnknown, kind: whence.ErrPrecondition, sent: true},
		{name: "is silent", serve: wait, change: func(d *Definition) { d.Timeout = 100 * time.Millisecond }, reason: ReasonTimeout, kind: whence.ErrPrecondition, sent: true},
		{name: "too much", serve: say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"), change: func(d *Definition) { d.MaxResponseBytes = 4 }, reason: ReasonReplyTooLarge, kind: whence.ErrPrecondition, sent: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			base := c.base
			if c.serve != nil {
				base = listen(t, c.serve)
			}
			if c.base == "https" {
				base = "https" + strings.TrimPrefix(base, "http")
			}
			u := define(t, base, func(d *Definition) {
				if c.change != nil {
					c.change(d)
				}
			})
			f := forwarder(t, Config{})
			for _, in := range []Asked{get("/a"), post("/a", "x"), {Target: Target{Method: "POST", Path: "/a"}}} {
				res, err := ask(t, f, u, in)
				if err == nil {
					_ = res.Body.Close()
				}
				if reason(err) != c.reason || c.kind != nil && !errors.Is(err, c.kind) || Sent(err) != c.sent {
					t.Errorf("%s of %d bytes: %v, %q sent %t; want %q sent %t", in.Method, in.Length, err, reason(err), Sent(err), c.reason, c.sent)
				}
				var e *whence.Error
				if errors.As(err, &e) && (e.RetryAfter > 0) != c.retry {
					t.Errorf("try again after %v", e.RetryAfter)
				}
			}
		})
	}
}

// A caller that goes away is told nothing new, but what may have been sent is.
func TestCallerGoes(t *testing.T) {
	t.Parallel()
	var arrived atomic.Int32
	base := listen(t, func(_ int, c net.Conn) {
		readRequest(bufio.NewReader(c))
		arrived.Add(1)
		_, _ = c.Read(make([]byte, 1))
	})
	u, f := define(t, base, nil), forwarder(t, Config{})
	before, cancel := context.WithCancel(t.Context())
	cancel()
	req, err := f.Outgoing(before, u, get("/"), Identity{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Forward(before, u, req); !errors.Is(err, context.Canceled) || Sent(err) { //nolint:bodyclose // there is none
		t.Errorf("before it was sent: %v", err)
	}
	during, cancel := context.WithCancel(t.Context())
	defer cancel()
	if req, err = f.Outgoing(during, u, get("/"), Identity{}); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, cancel)
	if _, err := f.Forward(during, u, req); reason(err) != ReasonFateUnknown || !Sent(err) { //nolint:bodyclose // there is none
		t.Errorf("while it waited: %v", err)
	}
	if arrived.Load() != 1 {
		t.Errorf("%d arrived", arrived.Load())
	}
}

// A request is written once, also where net/http by itself would write it again: on a
// connection that was open and turns out to be dead.
func TestNothingIsSentTwice(t *testing.T) {
	t.Parallel()
	for _, in := range []Asked{
		get("/a"), {Target: Target{Method: "HEAD", Path: "/a"}}, {Target: Target{Method: "OPTIONS", Path: "/a"}}, {Target: Target{Method: "DELETE", Path: "/a"}},
		{Target: Target{Method: "POST", Path: "/a"}, Header: http.Header{"Idempotency-Key": {"k"}}, PassKey: true},
		{Target: Target{Method: "PUT", Path: "/a"}, Header: http.Header{"X-Idempotency-Key": {"k"}}},
		post("/a", "x"),
	} {
		t.Run(fmt.Sprint(in.Method, in.Length), func(t *testing.T) {
			t.Parallel()
			var requests, connections atomic.Int32
			base := listen(t, func(n int, c net.Conn) {
				connections.Add(1)
				r := bufio.NewReader(c)
				for i := range 2 {
					if !readRequest(r) {
						return
					}
					requests.Add(1)
					if n == 0 && i == 1 {
						return // it has read the second, and hangs up
					}
					_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
				}
			})
			u, f := define(t, base, nil), forwarder(t, Config{})
			answered(t, f, u, get("/first"))
			_, err := ask(t, f, u, in) //nolint:bodyclose // there is none
			if reason(err) != ReasonFateUnknown || !Sent(err) {
				t.Errorf("the second: %v", err)
			}
			if r, c := requests.Load(), connections.Load(); r != 2 || c != 1 {
				t.Errorf("%d requests on %d connections; the second was to be on the first's, and once", r, c)
			}
		})
	}
}

// A redirect comes back as it is, and nobody goes where it points.
func TestRedirectsAreReturned(t *testing.T) {
	t.Parallel()
	var followed atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed.Add(1) }))
	defer other.Close()
	for _, status := range []int{300, 301, 302, 303, 307, 308} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", other.URL+"/latest/meta-data")
			w.WriteHeader(status)
		}))
		res := answered(t, forwarder(t, Config{}), define(t, srv.URL, nil), get("/"))
		if res.status != status || res.header.Get("Location") != other.URL+"/latest/meta-data" {
			t.Errorf("%d comes back as %d to %q", status, res.status, res.header.Get("Location"))
		}
		srv.Close()
	}
	if followed.Load() != 0 {
		t.Error("a redirect was followed")
	}
}

func TestRepliesAreCleaned(t *testing.T) {
	t.Parallel()
	base := listen(t, func(_ int, c net.Conn) {
		readRequest(bufio.NewReader(c))
		_, _ = io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nContent-Type: text/plain\r\nWWW-Authenticate: Basic realm=\"x\"\r\nX-Cost: 5\r\nETag: \"7\"\r\n"+
			"Set-Cookie: a=b\r\nSet-Cookie2: a\r\nAlt-Svc: h2=\"evil:443\"\r\nStrict-Transport-Security: max-age=1\r\nWhence-Task-Id: forged\r\nClear-Site-Data: \"*\"\r\n"+
			"Access-Control-Allow-Origin: *\r\nProxy-Authenticate: Basic\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\nTrailer: X-T\r\n"+
			"Transfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\nX-T: late\r\n\r\n")
	})
	res := answered(t, forwarder(t, Config{}), define(t, base, nil), get("/"))
	var left []string
	for name := range res.header {
		left = append(left, name)
	}
	if len(left) != 4 || res.header.Get("Www-Authenticate") == "" || res.header.Get("X-Cost") != "5" || res.header.Get("Etag") == "" || res.header.Get("Content-Type") == "" {
		t.Errorf("left are %q", left)
	}
	if res.body != "no" || res.trailer.Get("X-T") != "" {
		t.Errorf("the body is %q, the trailer %v", res.body, res.trailer)
	}
}

// The proxy of the environment is no way round the check of addresses.
func TestNoProxy(t *testing.T) {
	t.Parallel()
	if tr := NewForwarder(Config{}).transport(define(t, "http://shop.example.com", nil)); tr.Proxy != nil {
		t.Error("there is a proxy")
	}
}

func TestConnectionsAreAnUpstreamsOwn(t *testing.T) {
	t.Parallel()
	var connections atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	clock := time.Now()
	f := forwarder(t, Config{Clock: func() time.Time { return clock }})
	wide := define(t, srv.URL, nil)
	named := strings.Replace(srv.URL, "127.0.0.1", "localhost", 1)
	open := define(t, named, func(d *Definition) { d.Name = "other" })
	closed := define(t, named, func(d *Definition) { d.Name, d.PrivateRanges = "other", []string{"10.0.0.0/8"} })
	for range 3 {
		answered(t, f, wide, get("/"))
	}
	if connections.Load() != 1 {
		t.Errorf("%d connections for three requests", connections.Load())
	}
	answered(t, f, open, get("/"))
	answered(t, f, wide, get("/"))
	answered(t, f, open, get("/"))
	if connections.Load() != 2 {
		t.Errorf("%d connections for two upstreams, each asked in turn", connections.Load())
	}
	// Once the range is taken away, the open connection does not serve on.
	if _, err := ask(t, f, closed, get("/")); reason(err) != ReasonAddressRefused { //nolint:bodyclose // there is none
		t.Errorf("by a connection of before: %v", err)
	}
	clock = clock.Add(forgetAfter + 1)
	answered(t, f, open, get("/"))
	if len(f.lines) != 1 {
		t.Errorf("%d upstreams are remembered", len(f.lines))
	}
}

// Over TLS the certificate is checked, and HTTP/2 is spoken where the upstream does.
func TestTLS(t *testing.T) {
	t.Parallel()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		for name := range r.Header {
			if strings.EqualFold(name, "content-length") && len(body) == 0 && r.Header.Get(name) != "0" {
				t.Errorf("%s: %q", name, r.Header.Get(name))
			}
		}
		fmt.Fprint(w, r.Proto, " ", r.Method, " ", string(body))
	}))
	srv.EnableHTTP2, srv.Config.ErrorLog = true, log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	u := define(t, srv.URL, nil)
	if _, err := ask(t, forwarder(t, Config{}), u, get("/")); reason(err) != ReasonUnreachable || Sent(err) { //nolint:bodyclose // there is none
		t.Errorf("a certificate of nobody: %v", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	f := forwarder(t, Config{RootCAs: roots})
	bare := post("/", "")
	bare.Header, bare.PassKey = http.Header{"Idempotency-Key": {"k"}}, true
	for want, in := range map[string]Asked{"HTTP/2.0 GET ": get("/"), "HTTP/2.0 POST hello": post("/", "hello"), "HTTP/2.0 POST ": bare} {
		if got := answered(t, f, u, in).body; got != want {
			t.Errorf("the upstream got %q, want %q", got, want)
		}
	}
}
