package upstream

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"

	"github.com/whence-db/whence/authz"
)

// BenchmarkForward puts a front of ours beside httputil.ReverseProxy, which checks
// nothing: the same upstream, the same client, a reply of 4 KiB.
func BenchmarkForward(b *testing.B) {
	reply := bytes.Repeat([]byte("x"), 4<<10)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(reply) }))
	defer srv.Close()
	to, err := url.Parse(srv.URL)
	if err != nil {
		b.Fatal(err)
	}
	u := define(b, srv.URL, func(d *Definition) { d.Rules = append(shopRules, Rule{Path: "/a/{id}", Tier: authz.TierRead}) })
	transport := &http.Transport{MaxIdleConnsPerHost: maxIdle, DisableCompression: true}
	defer transport.CloseIdleConnections()
	for name, handler := range map[string]http.Handler{
		"forward":      front(forwarder(b, Config{}), u, 1<<30),
		"reverseproxy": &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }},
	} {
		b.Run(name, func(b *testing.B) {
			entry := httptest.NewServer(handler)
			defer entry.Close()
			b.ReportAllocs()
			for b.Loop() {
				res, err := entry.Client().Get(entry.URL + "/up/shop/a/7")
				if err != nil {
					b.Fatal(err)
				}
				if n, _ := io.Copy(io.Discard, res.Body); n != int64(len(reply)) {
					b.Fatalf("%d bytes", n)
				}
				_ = res.Body.Close()
			}
		})
	}
	b.Run("match", func(b *testing.B) {
		for b.Loop() {
			if _, err := u.Match("GET", "/a/7"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
