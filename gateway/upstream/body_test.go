package upstream

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/whence-db/whence"
)

// slow gives n bytes, piece by piece, of no known length.
func slow(n int) io.ReadCloser {
	return io.NopCloser(io.LimitReader(endless{}, int64(n)))
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func TestRequestsAreBounded(t *testing.T) {
	t.Parallel()
	type arrival struct {
		size  int
		whole bool
	}
	arrived := make(chan arrival, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		arrived <- arrival{len(b), err == nil}
	}))
	defer srv.Close()
	u, f := define(t, srv.URL, func(d *Definition) { d.MaxRequestBytes = 1000 }), forwarder(t, Config{})
	for _, c := range []struct {
		size, length int
		reason       string
		sent         bool
	}{{1000, 1000, "", false}, {1000, -1, "", false}, {999, -1, "", false}, {1001, 1001, "REQUEST_TOO_LARGE", false}, {1001, -1, "REQUEST_TOO_LARGE", true}, {1 << 20, -1, "REQUEST_TOO_LARGE", true},
		{5, 6, "REQUEST_INVALID", true}} {
		body := slow(c.size)
		if c.size < c.length {
			body = io.NopCloser(io.MultiReader(body, broken{}))
		}
		res, err := ask(t, f, u, Asked{Target: Target{Method: "POST", Path: "/"}, Body: body, Length: int64(c.length)})
		if err == nil {
			_ = res.Body.Close()
		}
		if reason(err) != c.reason || Sent(err) != c.sent {
			t.Errorf("%d bytes said to be %d: %v sent %t, want %q sent %t", c.size, c.length, err, Sent(err), c.reason, c.sent)
		}
		if c.reason != "" && !c.sent {
			continue
		}
		select {
		case a := <-arrived:
			if a.whole != (c.reason == "") || a.whole && a.size != c.size {
				t.Errorf("%d bytes said to be %d: the upstream got %+v", c.size, c.length, a)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%d bytes said to be %d: the upstream got nothing", c.size, c.length)
		}
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// A reply that is more than is left of the budget, or than the upstream may say, or
// that breaks off, never looks whole to the caller.
func TestRepliesAreBounded(t *testing.T) {
	t.Parallel()
	known := func(n int) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", n, strings.Repeat("x", n))
	}
	chunked := func(n int) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", n, strings.Repeat("x", n))
	}
	for _, c := range []struct {
		name, reply string
		budget      int64
		limit       int64
		status      int    // that the caller sees
		body        int    // bytes of the upstream's that the caller sees
		says        string // in place of a reply
		whole       bool
	}{
		{"known", known(100), 100, 1000, 200, 100, "", true},
		{"unknown", chunked(100), 100, 1000, 200, 100, "", true},
		{"nothing", known(0), 0, 1000, 200, 0, "", true},
		{"unknown nothing", chunked(0)[:47] + "0\r\n\r\n", 0, 1000, 200, 0, "", true},
		{"known over the budget", known(101), 100, 1000, 502, 0, "BUDGET_EXHAUSTED", true},
		{"unknown over the budget", chunked(101), 100, 1000, 200, 100, "", false},
		{"large over the budget", chunked(100_000), 70_000, 1 << 20, 200, 70_000, "", false},
		{"no budget", chunked(1), 0, 1000, 200, 0, "", false},
		{"known over the limit", known(101), 1000, 100, 502, 0, "UPSTREAM_REPLY_TOO_LARGE sent true", true},
		{"unknown over the limit", chunked(101), 1000, 100, 200, 100, "", false},
		{"breaks off", known(100)[:120], 1000, 1000, 200, -1, "", false},
		{"chunks break off", chunked(100)[:130], 1000, 1000, 200, -1, "", false},
		{"no last chunk", strings.TrimSuffix(chunked(100), "0\r\n\r\n"), 1000, 1000, 200, 100, "", false},
	} {
		base := listen(t, func(_ int, conn net.Conn) {
			readRequest(bufio.NewReader(conn))
			_, _ = io.WriteString(conn, c.reply)
		})
		u := define(t, base, func(d *Definition) { d.MaxResponseBytes = c.limit })
		srv := httptest.NewServer(front(forwarder(t, Config{}), u, c.budget))
		res, err := http.Get(srv.URL + "/up/shop/a")
		if err != nil {
			if c.whole {
				t.Errorf("%s: %v", c.name, err)
			}
			srv.Close()
			continue
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		srv.Close()
		if res.StatusCode != c.status || (err == nil) != c.whole {
			t.Errorf("%s: %d, the end of the body: %v, whole %t", c.name, res.StatusCode, err, c.whole)
		}
		if n := strings.Count(string(body), "x"); c.says == "" && c.body >= 0 && n != c.body {
			t.Errorf("%s: %d bytes, want %d", c.name, n, c.body)
		}
		if !strings.Contains(string(body), c.says) {
			t.Errorf("%s: the caller is told %q", c.name, body)
		}
	}
}

// What a reply that was cut says is a reason that the door can record.
func TestRelaySaysWhy(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stall" {
			_, _ = io.WriteString(w, "x")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return
		}
		for range 100 {
			_, _ = io.WriteString(w, "0123456789")
			_ = http.NewResponseController(w).Flush()
		}
	}))
	defer srv.Close()
	f := forwarder(t, Config{})
	for _, c := range []struct {
		path          string
		budget, limit int64
		reason        string
		kind          error
		bytes         int64
	}{{"/", 1000, 1000, "", nil, 1000}, {"/", 5, 1000, "BUDGET_EXHAUSTED", whence.ErrExhausted, 5}, {"/", 1000, 15, ReasonReplyTooLarge, whence.ErrPrecondition, 15},
		{"/stall", 1000, 1000, ReasonTimeout, whence.ErrPrecondition, 1}} {
		u := define(t, srv.URL, func(d *Definition) { d.MaxResponseBytes, d.Timeout = c.limit, 300*time.Millisecond })
		res, err := ask(t, f, u, get(c.path)) //nolint:bodyclose // Relay does
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		done, err := Relay(w, res, c.budget)
		if reason(err) != c.reason || c.kind != nil && !errors.Is(err, c.kind) || done.Bytes != c.bytes || !done.Started || int64(w.Body.Len()) != c.bytes {
			t.Errorf("%s: %+v, %v", c.path, done, err)
		}
	}
}

// A reply to HEAD tells the length of what it does not bring.
func TestHeadKeepsItsLength(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "5000") }))
	defer srv.Close()
	entry := httptest.NewServer(front(forwarder(t, Config{}), define(t, srv.URL, func(d *Definition) { d.MaxResponseBytes = 10 }), 10))
	defer entry.Close()
	res, err := http.Head(entry.URL + "/up/shop/a")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK || res.ContentLength != 5000 {
		t.Errorf("%s, %d bytes", res.Status, res.ContentLength)
	}
}

// Events pass as they come: the second is sent only once the caller has the first.
func TestEventsPassAsTheyCome(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"text/event-stream; charset=utf-8", "application/x-ndjson"} {
		seen := make(chan struct{})
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", kind)
			c := http.NewResponseController(w)
			_, _ = io.WriteString(w, "data: 1\n\n")
			_ = c.Flush()
			select {
			case <-seen:
			case <-r.Context().Done():
				return
			}
			_, _ = io.WriteString(w, "data: 2\n\n")
		}))
		entry := httptest.NewServer(front(forwarder(t, Config{}), define(t, srv.URL, func(d *Definition) { d.Timeout = 3 * time.Second }), 1<<20))
		res, err := http.Get(entry.URL + "/up/shop/events")
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(res.Body)
		if line, err := r.ReadString('\n'); err != nil || line != "data: 1\n" {
			t.Errorf("%s: %q, %v", kind, line, err)
		}
		close(seen)
		if rest, err := io.ReadAll(r); err != nil || string(rest) != "\ndata: 2\n\n" {
			t.Errorf("%s: %q, %v", kind, rest, err)
		}
		_ = res.Body.Close()
		entry.Close()
		srv.Close()
	}
}

// A caller that goes while events come has the upstream stop.
func TestUpstreamStopsWithTheCaller(t *testing.T) {
	t.Parallel()
	stopped := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(stopped)
		_, _ = io.WriteString(w, "data: 1\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	defer srv.Close()
	entry := httptest.NewServer(front(forwarder(t, Config{}), define(t, srv.URL, nil), 1<<20))
	defer entry.Close()
	res, err := http.Get(entry.URL + "/up/shop/events")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(res.Body, make([]byte, 9)); err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	select {
	case <-stopped:
	case <-time.After(5 * time.Second):
		t.Error("the upstream goes on for nobody")
	}
}
