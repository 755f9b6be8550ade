package upstream

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// refusing speaks just as much HTTP/2 (RFC 9113) as it takes to refuse every stream,
// which allows a client to send the request again, and counts the requests.
func refusing(t *testing.T) (base string, roots *x509.CertPool, requests *atomic.Int32) {
	t.Helper()
	donor := httptest.NewTLSServer(nil)
	cert := donor.TLS.Certificates[0]
	roots = x509.NewCertPool()
	roots.AddCert(donor.Certificate())
	donor.Close()
	requests = &atomic.Int32{}
	base = listen(t, func(_ int, raw net.Conn) {
		c := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}})
		const preface, headers, reset, settings = 24, 1, 3, 4
		if _, err := io.CopyN(io.Discard, c, preface); err != nil {
			return
		}
		frame := func(kind, flags byte, stream uint32, payload ...byte) {
			out := append([]byte{0, 0, byte(len(payload)), kind, flags}, binary.BigEndian.AppendUint32(nil, stream)...)
			_, _ = c.Write(append(out, payload...))
		}
		frame(settings, 0, 0)
		head := make([]byte, 9)
		for {
			if _, err := io.ReadFull(c, head); err != nil {
				return
			}
			size := int64(head[0])<<16 | int64(head[1])<<8 | int64(head[2])
			if _, err := io.CopyN(io.Discard, c, size); err != nil {
				return
			}
			stream := binary.BigEndian.Uint32(head[5:])
			switch {
			case head[3] == settings && head[4] == 0:
				frame(settings, 1, 0) // acknowledged
			case head[3] == headers:
				requests.Add(1)
				frame(reset, 0, stream, 0, 0, 0, 7) // REFUSED_STREAM
			}
		}
	})
	return "https" + base[len("http"):], roots, requests
}

// Over HTTP/2, too, a request is written once.
func TestNothingIsSentTwiceOverHTTP2(t *testing.T) {
	t.Parallel()
	base, roots, requests := refusing(t)
	for i, in := range []Asked{get("/a"), {Target: Target{Method: http.MethodPost, Path: "/a"}}, post("/a", "x"), {Target: Target{Method: http.MethodDelete, Path: "/a"}}} {
		f := NewForwarder(Config{RootCAs: roots})
		_, err := ask(t, f, define(t, base, func(d *Definition) { d.Timeout = 3 * time.Second }), in) //nolint:bodyclose // there is none
		f.Close()
		if reason(err) != ReasonFateUnknown || !Sent(err) || int(requests.Load()) != i+1 {
			t.Errorf("%s: %v; %d requests in all, want %d", in.Method, err, requests.Load(), i+1)
		}
	}
}
