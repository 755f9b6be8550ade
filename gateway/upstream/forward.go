package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	dialTimeout     = 10 * time.Second
	tlsTimeout      = 10 * time.Second
	idleTimeout     = 90 * time.Second
	pingAfter       = 15 * time.Second // an HTTP/2 connection that is silent for so long is asked whether it lives
	maxIdle         = 64
	maxReplyHeaders = 64 << 10
	// forgetAfter is when the connections of an upstream that nobody asks are let go.
	forgetAfter = 10 * time.Minute
)

// Config is what a Forwarder works with; nothing is required.
type Config struct {
	Getenv   func(string) string // default: os.Getenv
	Resolver *net.Resolver       // default: net.DefaultResolver
	RootCAs  *x509.CertPool      // default: the system's
	Clock    func() time.Time    // default: time.Now; for letting go of connections
}

// Forwarder sends requests to upstreams. It is safe for concurrent use.
type Forwarder struct {
	getenv   func(string) string
	resolver *net.Resolver
	roots    *x509.CertPool
	now      func() time.Time

	mu    sync.Mutex
	lines map[name]*line // guarded by mu
}

// line is the connections to one version of one upstream. They are never another's:
// what this upstream may reach, and what its connections were authorised for, is
// nobody else's business.
type line struct {
	transport *http.Transport
	digest    [32]byte
	version   int64
	used      time.Time
}

// NewForwarder fills in the defaults.
func NewForwarder(c Config) *Forwarder {
	f := &Forwarder{getenv: c.Getenv, resolver: c.Resolver, roots: c.RootCAs, now: c.Clock, lines: map[name]*line{}}
	if f.getenv == nil {
		f.getenv = os.Getenv
	}
	if f.now == nil {
		f.now = time.Now
	}
	return f
}

// Close ends the connections that serve no request.
func (f *Forwarder) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, l := range f.lines {
		l.transport.CloseIdleConnections()
		delete(f.lines, key)
	}
}

// transport returns the connections of an upstream. Those of another version of it
// end, and so do those that were not used for long.
func (f *Forwarder) transport(u *Upstream) *http.Transport {
	f.mu.Lock()
	defer f.mu.Unlock()
	key, now := name{u.Tenant, u.Name}, f.now()
	l := f.lines[key]
	if l != nil && l.version == u.Version && l.digest == u.Digest {
		l.used = now
		return l.transport
	}
	for k, old := range f.lines {
		if k == key || now.Sub(old.used) > forgetAfter {
			old.transport.CloseIdleConnections()
			delete(f.lines, k)
		}
	}
	l = &line{f.newTransport(u), u.Digest, u.Version, now}
	f.lines[key] = l
	return l.transport
}

// newTransport has no proxy, for a proxy would choose the address; does not follow
// redirects, for a transport never does; and leaves bodies as they come.
func (f *Forwarder) newTransport(u *Upstream) *http.Transport {
	check := control(u.private)
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second, Resolver: f.resolver,
		ControlContext: func(_ context.Context, network, address string, c syscall.RawConn) error {
			return check(network, address, c)
		}}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true) // over TLS alone
	return &http.Transport{
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: f.roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    tlsTimeout,
		ResponseHeaderTimeout:  u.Timeout,
		IdleConnTimeout:        idleTimeout,
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    maxIdle,
		MaxResponseHeaderBytes: maxReplyHeaders,
		DisableCompression:     true,
		Protocols:              protocols,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingAfter},
	}
}

// attempt is how far a request came. Its marks are set by net/http's goroutines.
type attempt struct{ connected, wrote atomic.Bool }

func (a *attempt) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GotConn:      func(httptrace.GotConnInfo) { a.connected.Store(true) },
		WroteHeaders: func() { a.wrote.Store(true) },
	}
}

// sent tells whether the upstream may have the request. What ended while it was about
// to be written may have been.
func (a *attempt) sent(ctx context.Context) bool {
	return a.wrote.Load() || a.connected.Load() && ctx.Err() != nil
}

// errOverdue is why a context ends that has run for the upstream's timeout.
var errOverdue = errors.New("the upstream's timeout has passed")

// Forward sends a request of [Forwarder.Outgoing], once, and returns the reply with
// its headers cleaned and its body bounded. A redirect is a reply like any other: it
// is returned as it is, Location and all, and never followed; what it names is
// reached, or not, by the caller's next request.
//
// Its errors, and those of the body, are [whence.Error]; [Sent] tells of them
// whether the upstream may have acted. The reply's body must be closed.
func (f *Forwarder) Forward(ctx context.Context, u *Upstream, req *http.Request) (*http.Response, error) {
	ctx, release := context.WithTimeoutCause(ctx, u.Timeout, errOverdue)
	a := &attempt{}
	res, err := f.transport(u).RoundTrip(req.WithContext(httptrace.WithClientTrace(ctx, a.trace())))
	if err != nil {
		defer release()
		return nil, explain(ctx, u, req, a.sent(ctx), err)
	}
	size := res.ContentLength
	if req.Method == http.MethodHead {
		size = 0
	}
	if res.StatusCode < 200 || size > u.MaxResponseBytes {
		release()
		_ = res.Body.Close()
		if size > u.MaxResponseBytes {
			return nil, replyTooLarge(u)
		}
		return nil, unknownFate(u, errors.New("the reply switches to another protocol, which was not asked for"))
	}
	// A reply of its own: net/http writes late trailers into the one that it made.
	reply := &http.Response{Status: res.Status, StatusCode: res.StatusCode, Proto: res.Proto, ProtoMajor: res.ProtoMajor, ProtoMinor: res.ProtoMinor,
		Header: copyHeader(res.Header, notReturned), ContentLength: res.ContentLength, Request: req}
	reply.Header.Del("Content-Length") // it is ContentLength
	reply.Body = &replyBody{ReadCloser: res.Body, left: u.MaxResponseBytes, release: release,
		over:    func() error { return replyTooLarge(u) },
		explain: func(err error) error { return explain(ctx, u, req, true, err) }}
	return reply, nil
}
