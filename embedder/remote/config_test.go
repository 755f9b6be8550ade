package remote_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/embedder/cohere"
	"github.com/whence-db/whence/embedder/embeddertest"
	"github.com/whence-db/whence/embedder/openai"
	"github.com/whence-db/whence/embedder/remote"
)

func TestKeyIsNeverShown(t *testing.T) {
	t.Parallel()
	const key = "sk-very-secret-0123456789"
	for _, p := range providers {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, embeddertest.Config{})
			c := remote.Config{BaseURL: p.url(s), Model: "stand-in", APIKey: key, Retries: -1}
			m, err := p.new(c)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(m.Close)
			var shown strings.Builder
			log := slog.New(slog.NewJSONHandler(&shown, nil))
			log.Info("config", "config", c, "key", c.APIKey)
			slog.New(slog.NewTextHandler(&shown, nil)).Info("config", "config", c, "key", c.APIKey)
			fmt.Fprintf(&shown, "%v %+v %#v %s %q %x %v %+v", c, c, c, c.APIKey, c.APIKey, c.APIKey, m, m)
			for _, status := range []int{200, 302, 400, 401, 403, 404, 422, 429, 500, 503, 503, 503, 503, 503, 503} { // the last meet an open circuit
				for _, padding := range []int{0, 190} { // the second one straddles the cut of long messages
					s.SetFault(embeddertest.Fault{Kind: embeddertest.Status, Status: status, Message: strings.Repeat("x", padding) + key + " is wrong"})
					_, err := m.Embed(t.Context(), []string{"a text", "b"})
					fmt.Fprintf(&shown, "%v %#v\n", err, embedder.ByText(err)(0))
					_, err = m.EmbedQuery(t.Context(), "a question")
					fmt.Fprintf(&shown, "%v %#v\n", err, embedder.ByText(err)(0))
				}
			}
			if !strings.Contains(shown.String(), "is wrong") || !strings.Contains(shown.String(), "keeps failing") {
				t.Error("nothing was shown of the server's words")
			}
			for _, part := range []string{key, "sk-very"} {
				if strings.Contains(shown.String(), part) {
					t.Errorf("%q shows in %s", part, shown.String())
				}
			}
		})
	}
}

func TestProbeChecksDimensions(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{Dimensions: 32})
	m, _ := connect(t, s, nil)
	err := m.Probe(t.Context())
	if err == nil || !strings.Contains(err.Error(), "32") || !strings.Contains(err.Error(), "64") {
		t.Fatalf("got %v, want both numbers", err)
	}
}

func TestConfigIsValidated(t *testing.T) {
	t.Parallel()
	good := remote.Config{BaseURL: "http://127.0.0.1:1/v1", Model: "m"}
	if _, err := openai.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*remote.Config){
		"no address":        func(c *remote.Config) { c.BaseURL = "" },
		"other scheme":      func(c *remote.Config) { c.BaseURL = "ftp://host/v1" },
		"no host":           func(c *remote.Config) { c.BaseURL = "http:///v1" },
		"password in URL":   func(c *remote.Config) { c.BaseURL = "http://user:pass@host/v1" },
		"query in URL":      func(c *remote.Config) { c.BaseURL = "http://host/v1?key=1" },
		"no model":          func(c *remote.Config) { c.Model = " " },
		"line break in key": func(c *remote.Config) { c.APIKey = "a\nb" },
		"dimensions":        func(c *remote.Config) { c.Dimensions = 16001 },
		"unknown shortened": func(c *remote.Config) { c.AskDimensions = true },
		"negative":          func(c *remote.Config) { c.MaxBatch = -1 },
		"negative time":     func(c *remote.Config) { c.QueryTimeout = -1 },
	} {
		c := good
		change(&c)
		if _, err := openai.New(c); err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "pass@") || strings.Contains(err.Error(), "a\nb") {
			t.Errorf("%s: %v repeats a secret", name, err)
		}
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{})
	m, _ := connect(t, s, func(c *remote.Config) {
		c.HTTPClient = &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}
	})
	s.SetFault(embeddertest.Fault{Kind: embeddertest.Redirect})
	_, err := m.Embed(t.Context(), []string{"a text"})
	if e, ok := errors.AsType[*embedder.Error](err); !ok || e.Reason != embedder.Misconfigured || s.Requests() != 1 {
		t.Fatalf("got %v after %d requests", err, s.Requests())
	}
}

// The key goes to the configured address and nowhere else.
func TestKeyDoesNotFollowRedirects(t *testing.T) {
	t.Parallel()
	var led atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { led.Add(1) }))
	t.Cleanup(elsewhere.Close)
	for _, p := range providers {
		for _, own := range []bool{true, false} {
			s := serve(t, embeddertest.Config{APIKey: "sk-secret"})
			m, _ := p.connect(t, s, func(c *remote.Config) {
				c.APIKey = "sk-secret"
				if !own { // a client that would follow
					c.HTTPClient = &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}
				}
			})
			for _, location := range []string{elsewhere.URL, strings.Replace(elsewhere.URL, "127.0.0.1", "localhost", 1)} {
				s.SetFault(embeddertest.Fault{Kind: embeddertest.RedirectAway, Location: location})
				if _, err := m.EmbedQuery(t.Context(), "a question"); err == nil {
					t.Errorf("%s: a redirect is no answer", p.name)
				}
			}
			if s.Requests() != 2 {
				t.Errorf("%d requests", s.Requests())
			}
		}
	}
	if n := led.Load(); n != 0 {
		t.Errorf("%d requests were led away", n)
	}
}

// At the provider's own address a key is required; no request is made to find out.
func TestPublicAddresses(t *testing.T) {
	t.Parallel()
	for _, p := range providers {
		_, err := p.new(remote.Config{Model: "m"})
		if err == nil {
			t.Errorf("%s: neither address nor key, and accepted", p.name)
		}
		m, err := p.new(remote.Config{Model: "m", APIKey: "k"})
		if (err == nil) != (p.name != "openai") { // which stands for many servers
			t.Errorf("%s: with a key alone: %v", p.name, err)
		}
		if err == nil {
			m.Close()
		}
	}
	if _, err := cohere.New(remote.Config{Model: "m", BaseURL: "http://127.0.0.1:1", Base64: true}); err == nil {
		t.Error("cohere has no base64 here, and accepts it")
	}
}
