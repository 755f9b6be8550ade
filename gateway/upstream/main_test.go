package upstream

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"testing"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

const loopback = "127.0.0.0/8"

// define is an upstream of the test's own server, unless d says where else.
func define(t testing.TB, base string, change func(*Definition)) *Upstream {
	t.Helper()
	d := Definition{Tenant: "default", Name: "shop", URL: base, PrivateRanges: []string{loopback, "::1/128"}}
	if change != nil {
		change(&d)
	}
	u, err := New(d)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func forwarder(t testing.TB, c Config) *Forwarder {
	t.Helper()
	f := NewForwarder(c)
	t.Cleanup(f.Close)
	return f
}

func get(path string) Asked { return Asked{Target: Target{Method: http.MethodGet, Path: path}} }

func post(path, body string) Asked {
	return Asked{Target: Target{Method: http.MethodPost, Path: path}, Body: io.NopCloser(bytes.NewReader([]byte(body))), Length: int64(len(body))}
}

// ask builds a request and forwards it.
func ask(t testing.TB, f *Forwarder, u *Upstream, in Asked) (*http.Response, error) {
	t.Helper()
	req, err := f.Outgoing(t.Context(), u, in, Identity{Task: "t"})
	if err != nil {
		return nil, err
	}
	return f.Forward(t.Context(), u, req)
}

// answer is a reply that was read to its end.
type answer struct {
	status          int
	header, trailer http.Header
	body            string
}

// answered reads the reply of a request that must have one.
func answered(t testing.TB, f *Forwarder, u *Upstream, in Asked) answer {
	t.Helper()
	res, err := ask(t, f, u, in)
	if err != nil {
		t.Fatalf("%s %s: %v", in.Method, in.Path, err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, res.Trailer, string(body)}
}

// reason is what a caller is told; "" is no error, and the text of an error that is not for callers.
func reason(err error) string {
	var e *whence.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Reason
	}
	return err.Error()
}

// listen is a server that speaks bytes: serve gets each connection.
func listen(t testing.TB, serve func(n int, c net.Conn)) (base string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(n, c)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return "http://" + l.Addr().String()
}

func fieldOf(err error) string {
	var e *whence.Error
	if errors.As(err, &e) {
		return e.Field
	}
	return ""
}
