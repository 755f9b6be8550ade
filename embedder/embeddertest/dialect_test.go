package embeddertest_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/whence-db/whence/embedder/embeddertest"
)

// The stand-in refuses what the provider would, so that a client which passes
// here speaks the protocol.
func TestDialectsAreStrict(t *testing.T) {
	t.Parallel()
	s, err := embeddertest.Start(embeddertest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	voyage, cohere := s.VoyageURL()+"/embeddings", s.CohereURL()+"/embed"
	for _, c := range []struct {
		url, body string
		want      int
		says      string
	}{
		{s.URL() + "/embeddings", `{"model":"m","input":["a"]}`, 200, `"total_tokens":1`},
		{s.URL() + "/embeddings", `{"model":"m","input":["a"],"input_type":"query"}`, 400, `{"error":{`},
		{s.URL() + "/embeddings", `{"model":"m","input":["a"],"dimensions":65}`, 400, `no 65 dimensions`},
		{voyage, `{"model":"m","input":["a"],"input_type":"query","truncation":false}`, 200, `"total_tokens":1`},
		{voyage, `{"model":"m","input":["a"],"input_type":"search_query","truncation":false}`, 400, `{"detail":`},
		{voyage, `{"model":"m","input":["a"],"input_type":"query"}`, 400, `be cut`},
		{voyage, `{"model":"m","input":[` + strings.Repeat(`"a",`, 1000) + `"a"],"input_type":"query","truncation":false}`, 400, `1001 texts`},
		{cohere, `{"model":"m","texts":["a"],"input_type":"search_query","embedding_types":["float"],"truncate":"NONE"}`, 200, `"input_tokens":1`},
		{cohere, `{"model":"m","texts":["a"],"input_type":"search_query","embedding_types":["float"],"truncate":"END"}`, 400, `{"id":"1","message":`},
		{cohere, `{"model":"m","texts":["a"],"embedding_types":["float"],"truncate":"NONE"}`, 400, `input_type`},
		{cohere, `{"model":"m","texts":["a"],"input_type":"search_query","truncate":"NONE"}`, 400, `embedding_types`},
		{cohere, `{"model":"m","texts":[` + strings.Repeat(`"a",`, 96) + `"a"],"input_type":"search_query","embedding_types":["float"],"truncate":"NONE"}`, 400, `97 texts`},
	} {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		r, err := client.Post(c.url, "application/json", strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if err != nil || r.StatusCode != c.want || !strings.Contains(string(body), c.says) {
			t.Errorf("%s %.100s: %d %.200s (%v), want %d and %s", c.url, c.body, r.StatusCode, body, err, c.want, c.says)
		}
	}
}

func TestLimitIsKeptAndTold(t *testing.T) {
	t.Parallel()
	s, err := embeddertest.Start(embeddertest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	s.SetLimit(embeddertest.Limit{Requests: 2, Tokens: 100, Window: time.Hour})
	for i, want := range []int{200, 200, 429} {
		if got, err := post(t, s, "a"); got != want {
			t.Errorf("request %d: %d (%v), want %d", i, got, err, want)
		}
	}
	s.SetLimit(embeddertest.Limit{Requests: 9, Tokens: 10, Window: time.Hour})
	if got, err := post(t, s, strings.Repeat("x", 60)); got != 429 {
		t.Errorf("too many tokens: %d (%v)", got, err)
	}
	if s.Refused() != 2 {
		t.Errorf("%d refused, want 2", s.Refused())
	}
	s.SetLimit(embeddertest.Limit{})
	if got, err := post(t, s, "a"); got != 200 {
		t.Errorf("without a limit: %d (%v)", got, err)
	}
}
