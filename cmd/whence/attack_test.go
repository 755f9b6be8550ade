package main

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest/forge"
	"github.com/whence-db/whence/internal/seal"
)

// answered is what came back, from whatever kind of path.
type answered struct {
	status    int
	errorCode string // of OAuth
	reason    string
	metadata  map[string]string
	token     string
	challenge string
}

// TestForgedTokens tries each wrong token on a server that listens, and holds that
// each leaves an entry.
func TestForgedTokens(t *testing.T) {
	t.Parallel()
	w := startDev(t)
	f := &forge.Forge{Issuer: w.url, Now: time.Now()}
	f.EdDSA = serverKey(t, w, "EdDSA")
	loadES256(t, w)
	f.ES256 = serverKey(t, w, "ES256")
	f.Stranger = newSigner(t)
	eventually(t, showLimit, "the server knows the second key", func() error {
		if got := w.call(t, "TaskService/GetTask", "Bearer "+f.Make(t, forge.Attack{Sign: "es256"}), "", nil); got.reason != "TASK_NOT_FOUND" {
			return errors.New(got.reason)
		}
		return nil
	})
	skipped := 0
	for _, a := range forge.Load(t, "../../authz/testdata/attacks.json") {
		token := f.Make(t, a)
		// What a header cannot carry does not arrive, or arrives as something else.
		if strings.ContainsFunc(token, unicode.IsControl) || strings.TrimSpace(token) != token || token == "" {
			skipped++
			continue
		}
		want, status := a.Want, http.StatusUnauthorized
		switch {
		case a.Name == "bound to a key": // and sent without a proof of it
			want = "PROOF_MISSING"
		case want == "": // it is good, but no such task was ever started
			want, status = "TASK_NOT_FOUND", http.StatusForbidden
		}
		before := w.lastEntry(t)
		got := w.call(t, "TaskService/GetTask", "Bearer "+token, "", map[string]any{})
		if got.status != status || got.reason != want {
			t.Errorf("%s: %d %s, want %s", a.Name, got.status, got.reason, want)
		}
		if status == http.StatusUnauthorized && !strings.Contains(got.challenge, "resource_metadata=") {
			t.Errorf("%s: WWW-Authenticate %q", a.Name, got.challenge)
		}
		w.hasEntry(t, a.Name, before, "whence.v1.TaskService/GetTask", want)
	}
	before := w.lastEntry(t)
	if got := w.call(t, "MemoryService/"+strings.Repeat("x", 5000), "", "", nil); got.reason != "UNKNOWN_CALL" && got.reason != "TOKEN_MISSING" {
		t.Errorf("a call that there is not: %+v", got)
	}
	w.hasEntry(t, "a call that there is not", before, "unknown", "TOKEN_MISSING")
	for name, header := range map[string]http.Header{
		"two tokens": {"Authorization": {"Bearer " + w.env["WHENCE_AGENT_TOKEN"], "Bearer x"}},
		"two proofs": {"Authorization": {"Bearer " + w.env["WHENCE_AGENT_TOKEN"]}, "Dpop": {"x", "y"}},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/whence.v1.TaskService/GetTask", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = header
		req.Header.Set("Content-Type", "application/json")
		var r *refusal
		if _, err := (caller{http: w.http}).do(req); !errors.As(err, &r) || r.reason() != "TOKEN_MISSING" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if skipped > 8 {
		t.Errorf("%d attacks were left out", skipped)
	}
}

// serverKey unseals a key that the server signs with, as only its operator could.
func serverKey(t *testing.T, w *running, algorithm string) forge.Signer {
	t.Helper()
	var kid string
	var sealed []byte
	if err := w.memory.QueryRow(t.Context(), `select kid, private_sealed from whence.signing_keys where algorithm = $1`, algorithm).Scan(&kid, &sealed); err != nil {
		t.Fatal(err)
	}
	secret, err := seal.ParseKey(w.env["WHENCE_SECRET_KEY"])
	if err != nil {
		t.Fatal(err)
	}
	der, err := secret.Open("signing key "+kid, sealed)
	if err != nil {
		t.Fatal(err)
	}
	return forge.Signer{ID: kid, Algorithm: algorithm, Key: parseKey(t, der)}
}

// loadES256 gives the installation a second key, of the other kind.
func loadES256(t *testing.T, w *running) {
	t.Helper()
	secret, err := seal.ParseKey(w.env["WHENCE_SECRET_KEY"])
	if err != nil {
		t.Fatal(err)
	}
	keys, err := authz.LoadKeys(t.Context(), authz.KeysConfig{Pool: w.memory, Seal: secret, Algorithm: authz.ES256})
	if err == nil {
		err = keys.Rotate(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// call makes a call of the API with headers as they are given.
func (w *running) call(t *testing.T, call, authorization, proof string, body map[string]any) (a answered) {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	if string(b) == "null" {
		b = []byte("{}")
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/whence.v1."+call, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", authorization)
	if proof != "" {
		req.Header.Set("DPoP", proof)
	}
	_, err = caller{http: w.http}.do(req)
	var r *refusal
	switch {
	case err == nil:
		a.status = http.StatusOK
	case errors.As(err, &r):
		a.status, a.reason = r.Status, r.reason()
		a.challenge = r.Header.Get("WWW-Authenticate")
	default:
		t.Fatal(err)
	}
	return a
}

// form posts to an OAuth endpoint.
func (w *running) form(t *testing.T, path, proof string, form url.Values) (a answered) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if proof != "" {
		req.Header.Set("DPoP", proof)
	}
	res, err := w.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var body struct {
		Token    string            `json:"access_token"`
		Error    string            `json:"error"`
		Reason   string            `json:"reason"`
		Metadata map[string]string `json:"metadata"`
	}
	if err := json.NewDecoder(res.Body).Decode(&body); err != nil {
		t.Fatalf("%s: %s: %v", path, res.Status, err)
	}
	return answered{res.StatusCode, body.Error, body.Reason, body.Metadata, body.Token, res.Header.Get("WWW-Authenticate")}
}

func (w *running) lastEntry(t *testing.T) (id int64) {
	t.Helper()
	if err := w.memory.QueryRow(t.Context(), `select coalesce(max(id), 0) from whence.entries`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

// hasEntry holds that one entry was written since, of the call, with the reason.
func (w *running) hasEntry(t *testing.T, name string, since int64, call, reason string) {
	t.Helper()
	decision := map[bool]string{true: "ALLOWED", false: "REFUSED"}[reason == ""]
	var n int
	if err := w.memory.QueryRow(t.Context(), `select count(*) from whence.entries where id > $1 and call = $2 and decision = $3 and reason = $4`,
		since, call, decision, reason).Scan(&n); err != nil {
		t.Fatal(err)
	}
	if n != 1 {
		t.Errorf("%s: %d entries of %s, %s %s", name, n, call, decision, reason)
	}
}

func parseKey(t *testing.T, der []byte) crypto.Signer {
	t.Helper()
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		t.Fatal(err)
	}
	return parsed.(crypto.Signer)
}

func readAuthority(t *testing.T) (cases []authorityCase) {
	t.Helper()
	b, err := os.ReadFile("testdata/authority.json")
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&cases); err != nil {
		t.Fatal(err)
	}
	return cases
}
