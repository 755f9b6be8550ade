package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/whence-db/whence/internal/devissuer"
)

// enrol makes an agent known by a key of its own, grants it everything for user dev,
// and returns the flags by which it exchanges dev's sign-in for a task. A server
// without a development issuer is made to trust one that the test runs.
func (w *running) enrol(t *testing.T, agent string) []string {
	t.Helper()
	operator := []string{"--url", w.url, "--token", w.env["WHENCE_OPERATOR_TOKEN"]}
	issuer, client := w.env["WHENCE_LOGIN_ISSUER"], w.env["WHENCE_LOGIN_CLIENT"]
	if issuer == "" {
		issuer, client = startIssuer(t), loginClient
		command(t, append([]string{"issuer", "create", "company", issuer, "--audience", loginClient, "--algorithm", "ES256",
			"--all-tables", "--all-subjects", "--action", "memory:read"}, operator...)...).is(t, 0)
	}
	key := filepath.Join(t.TempDir(), agent+".pem")
	command(t, append([]string{"agent", "create", agent, "--new-key", key}, operator...)...).is(t, 0, agent)
	command(t, append([]string{"grant", "create", agent, "--user", "dev", "--all-tables", "--all-subjects", "--calls", "100000"}, operator...)...).is(t, 0)
	return []string{"--issuer", w.env["WHENCE_ISSUER"], "--key", key, "--login-issuer", issuer, "--login-client", client, "--as", "dev", "--url", w.url}
}

// startIssuer runs an identity provider until the test ends.
func startIssuer(t *testing.T) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := "http://" + listener.Addr().String() + "/company"
	provider, err := devissuer.New(devissuer.Config{URL: at, Clients: []string{loginClient}, Users: devUsers})
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: listener, Config: &http.Server{Handler: provider}}
	s.Start()
	t.Cleanup(s.Close)
	return at
}
