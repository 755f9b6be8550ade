package embeddertest_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/whence-db/whence/embedder/embeddertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func post(t *testing.T, s *embeddertest.Server, texts ...string) (status int, err error) {
	t.Helper()
	body, err := json.Marshal(map[string]any{"model": "m", "input": texts})
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	r, err := client.Post(s.URL()+"/embeddings", "application/json", bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	return r.StatusCode, nil
}

func TestSwitchingOffAndOn(t *testing.T) {
	t.Parallel()
	s, err := embeddertest.Start(embeddertest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	url := s.URL()
	for range 3 {
		if status, err := post(t, s, "a"); status != 200 {
			t.Fatalf("on: %d, %v", status, err)
		}
		s.SwitchOff()
		s.SwitchOff()
		if _, err := post(t, s, "a"); err == nil {
			t.Fatal("off, yet it answers")
		}
		if err := s.SwitchOn(); err != nil {
			t.Fatal(err)
		}
	}
	if s.URL() != url || s.Embedded("a") != 3 {
		t.Errorf("%s became %s, embedded %d", url, s.URL(), s.Embedded("a"))
	}
}

func TestSwitchingOffEndsStalledRequests(t *testing.T) {
	t.Parallel()
	s, err := embeddertest.Start(embeddertest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	s.SetFault(embeddertest.Fault{Kind: embeddertest.Stall})
	done := make(chan error, 1)
	go func() {
		_, err := post(t, s, "a")
		done <- err
	}()
	for s.Requests() == 0 {
		time.Sleep(time.Millisecond)
	}
	s.SwitchOff()
	if err := <-done; err == nil {
		t.Error("the stalled request was answered")
	}
	if s.Requested("a") != 1 || s.Embedded("a") != 0 {
		t.Errorf("requested %d, embedded %d", s.Requested("a"), s.Embedded("a"))
	}
}

func TestFaultsAreLimited(t *testing.T) {
	t.Parallel()
	s, err := embeddertest.Start(embeddertest.Config{MaxTextBytes: 10, MaxBatch: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	s.SetFault(embeddertest.Fault{Kind: embeddertest.Status, Status: 503, Match: "x", Times: 2})
	for _, c := range []struct {
		want  int
		texts []string
	}{{200, []string{"a"}}, {503, []string{"a", "x"}}, {200, []string{"b"}}, {503, []string{"x"}}, {200, []string{"x"}},
		{400, []string{"much too long"}}, {422, []string{"a", "b", "c"}}} {
		if got, err := post(t, s, c.texts...); got != c.want {
			t.Errorf("%q: %d (%v), want %d", c.texts, got, err, c.want)
		}
	}
	if all := s.AllEmbedded(); all["a"] != 1 || all["b"] != 1 || all["x"] != 1 || len(all) != 3 {
		t.Errorf("embedded %v", all)
	}
	s.Forget()
	if s.Requests() != 0 || len(s.AllEmbedded()) != 0 {
		t.Error("not forgotten")
	}
}
