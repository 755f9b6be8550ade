package authz

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pgtest"
)

func pemOf(t *testing.T, private any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func mustGenerate(t *testing.T, a Algorithm) *key {
	t.Helper()
	k, err := generateKey(a)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// writeKeys replaces a key file.
func writeKeys(t *testing.T, path string, keys ...*key) string {
	t.Helper()
	var text string
	for _, k := range keys {
		text += pemOf(t, k.private)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// signs tells which key a process signs with, or the reason why it does not.
func (p *process) signs(t *testing.T) string {
	t.Helper()
	k, err := p.signer()
	var e *whence.Error
	switch {
	case err == nil:
		return k.kid
	case errors.As(err, &e):
		return e.Reason
	}
	t.Fatal(err)
	return ""
}

func wantSigns(t *testing.T, what string, p *process, want string) {
	t.Helper()
	if got := p.signs(t); got != want {
		t.Errorf("%s: signs with %s, want %s", what, got, want)
	}
}

func TestKeyFileGivesTheFirstKey(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []Algorithm{EdDSA, ES256} {
		db := pgtest.New(t)
		k := mustGenerate(t, algorithm)
		c := KeysConfig{Pool: db.Pool, Seal: secret(t), File: writeKeys(t, filepath.Join(t.TempDir(), "keys.pem"), k)}
		a, again := mustStart(t, c), mustStart(t, c)
		wantSigns(t, "a new installation", a, k.kid)
		wantSigns(t, "the second process", again, k.kid)
		wantStates(t, "a new installation", a.Keys, "SIGNING")
		token := a.token(t)

		c.File = ""
		without := mustStart(t, c)
		if _, err := without.Verify(t.Context(), token); err != nil {
			t.Errorf("without the file: %v", err)
		}
		_, _, err := without.IssueOperator("ada", RoleAdmin, MaxLifetime)
		wantReason(t, "signing without the file", err, "SIGNING_KEY_UNAVAILABLE")
		if !errors.Is(err, whence.ErrUnavailable) || !strings.Contains(err.Error(), k.kid) || !strings.Contains(err.Error(), "WHENCE_SIGNING_KEY_FILE") {
			t.Errorf("%v does not say which key is wanted, and how", err)
		}

		der, err := k.marshal()
		if err != nil {
			t.Fatal(err)
		}
		var row string
		if err := db.Pool.QueryRow(t.Context(), `select k::text || coalesce(encode(vouched, 'escape'), '') from whence.signing_keys k where private_sealed is null`).Scan(&row); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(row, `"d"`) || strings.Contains(row, string(der[len(der)-32:])) {
			t.Errorf("the private part is stored: %s", row)
		}
	}
}

// The new key goes in front of the old one.
func TestChangedKeyFileIsARotation(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	first, second, third := mustGenerate(t, EdDSA), mustGenerate(t, ES256), mustGenerate(t, EdDSA)
	path := filepath.Join(t.TempDir(), "keys.pem")
	c := KeysConfig{Pool: db.Pool, Seal: secret(t), File: writeKeys(t, path, first)}
	a := mustStart(t, c)
	wantReason(t, "rotate with the same file", a.Rotate(t.Context()), "KEY_NOT_NEW")

	writeKeys(t, path, second, first)
	b := mustStart(t, c)
	wantStates(t, "started with another", b.Keys, "SIGNING", "PENDING")
	if ids := jwksIDs(t, b.Keys); len(ids) != 2 {
		t.Errorf("the new key is not published: %v", ids)
	}
	wantSigns(t, "pending", b, first.kid)
	again := mustStart(t, c)
	wantStates(t, "started once more", again.Keys, "SIGNING", "PENDING")

	writeKeys(t, path, third, second, first)
	_, err := LoadKeys(t.Context(), KeysConfig{Pool: db.Pool, Seal: c.Seal, File: path, Clock: a.clock})
	wantReason(t, "a third before the second signs", err, "KEY_PENDING")

	for _, p := range []*process{a, b} {
		p.advance(publication)
		wantSigns(t, "begun", p, second.kid) // a too, which was not started anew
	}
	mustRotate(t, a)
	wantStates(t, "rotated", a.Keys, "VERIFYING", "SIGNING", "PENDING")
	a.advance(publication)
	wantSigns(t, "rotated", a, third.kid)

	writeKeys(t, path, second)
	if err := a.Retire(t.Context(), second.kid); err != nil {
		t.Fatal(err)
	}
	_, err = LoadKeys(t.Context(), c)
	wantReason(t, "a retired key in the file", err, "KEY_RETIRED")
}

// A file that has only the new key: nothing else could sign, so it does at once. A
// process that has not looked signs with the old one for a while, and those tokens
// are good to their end too.
func TestKeyFileWithoutTheOldKey(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	first, second := mustGenerate(t, EdDSA), mustGenerate(t, EdDSA)
	dir := t.TempDir()
	c := KeysConfig{Pool: db.Pool, Seal: secret(t), File: writeKeys(t, filepath.Join(dir, "old.pem"), first)}
	late := mustStart(t, c)
	c.File = writeKeys(t, filepath.Join(dir, "new.pem"), second)
	a := mustStart(t, c)
	a.advance(time.Microsecond) // both keys were made at one moment
	wantSigns(t, "a", a, second.kid)
	wantStates(t, "a", a.Keys, "VERIFYING", "SIGNING")
	late.advance(refreshAge - 1)
	a.advance(refreshAge - 1)
	token, expires := late.longToken(t)
	if tokenKey(t, token) != first.kid {
		t.Fatal("it has looked: this test proves nothing")
	}
	a.advance(expires.Add(clockSkew - 1).Sub(a.clock()))
	if _, err := a.Verify(t.Context(), token); err != nil {
		t.Errorf("at its end the late token is refused: %v", err)
	}
	late.advance(1)
	wantSigns(t, "once it has looked", late, "SIGNING_KEY_UNAVAILABLE")
}

// From keys that are made here to keys in a file, and back.
func TestKeyFileAfterSealedKeys(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	c := KeysConfig{Pool: db.Pool, Seal: secret(t)}
	sealed := mustStart(t, c)
	old := sealed.signs(t)
	k := mustGenerate(t, EdDSA)
	c.File = writeKeys(t, filepath.Join(t.TempDir(), "keys.pem"), k)
	a := mustStart(t, c)
	wantSigns(t, "the sealed key is at hand", a, old)
	a.advance(publication)
	wantSigns(t, "the file's time has come", a, k.kid)
	sealed.advance(publication)
	wantSigns(t, "without the file", sealed, "SIGNING_KEY_UNAVAILABLE")

	mustRotate(t, sealed)
	for _, p := range []*process{sealed, a} {
		p.advance(publication)
		if got := p.signs(t); got == k.kid || got == old || len(got) != len(old) {
			t.Errorf("back again: signs with %s", got)
		}
	}
}

func TestKeyFileThatGoesAway(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	path := filepath.Join(t.TempDir(), "keys.pem")
	k := mustGenerate(t, EdDSA)
	a := mustStart(t, KeysConfig{Pool: db.Pool, Seal: secret(t), File: writeKeys(t, path, k)})
	token := a.token(t)
	for _, spoil := range []func() error{
		func() error { return os.WriteFile(path, []byte("half-written"), 0o600) },
		func() error { return os.Remove(path) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		a.advance(refreshAge)
		if _, err := a.Verify(t.Context(), token); err != nil {
			t.Error(err)
		}
		wantSigns(t, "as it was read last", a, k.kid)
		if _, err := LoadKeys(t.Context(), a.config); err == nil {
			t.Error("started without the file that it is to have")
		}
	}
}

func TestKeyFileIsRefused(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	good := mustGenerate(t, EdDSA)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	agree, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(mustGenerate(t, ES256).private.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	text, sealed := pemOf(t, good.private), secret(t)
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		want string // in the error; empty: taken
	}{
		"good":             {text, 0o400, ""},
		"comments":         {"the key of the installation\n" + text + "\n", 0o600, ""},
		"group may read":   {text, 0o640, "chmod 600"},
		"others may read":  {text, 0o604, "chmod 600"},
		"others may write": {text, 0o602, "chmod 600"},
		"empty":            {"", 0o600, "no private key"},
		"not PEM":          {"hunter2", 0o600, "no private key"},
		"RSA":              {pemOf(t, other), 0o600, "not a public key of a kind"},
		"P-384":            {pemOf(t, p384), 0o600, "P-256"},
		"X25519":           {pemOf(t, agree), 0o600, "cannot sign"},
		"second one bad":   {text + pemOf(t, p384), 0o600, "P-256"},
		"SEC 1":            {string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})), 0o600, "openssl pkcs8 -topk8 -nocrypt"},
		"public":           {publicPEM(t, good.public), 0o600, "PUBLIC KEY"},
		"not DER":          {string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}})), 0o600, "signing key"},
		"huge":             {strings.Repeat("\n", maxKeyFile) + text, 0o600, "larger than"},
	} {
		path := filepath.Join(t.TempDir(), "keys.pem")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		_, err := LoadKeys(t.Context(), KeysConfig{Pool: db.Pool, Seal: sealed, File: path})
		if (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err != nil && (strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "MC4")) {
			t.Errorf("%s: the error shows what is in the file: %v", name, err)
		}
	}
	if _, err := LoadKeys(t.Context(), KeysConfig{Pool: db.Pool, Seal: sealed, File: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "not a file") {
		t.Errorf("a folder: %v", err)
	}
}

func publicPEM(t *testing.T, public crypto.PublicKey) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}
