package main

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/whence-db/whence/authz/federation"
)

// A new key's public part is one that is accepted, its private part fits that, and
// no file is written over.
func TestNewAgentKey(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "agent.pem")
	jwks, err := newAgentKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := federation.ValidateJWKS(json.RawMessage(jwks)); err != nil {
		t.Error(err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(jwks), &set); err != nil || len(set.Keys) != 1 {
		t.Fatalf("%v in %s", err, jwks)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
		t.Fatalf("not one PKCS #8 block: %d bytes", len(b))
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	public := set.Keys[0].Key.(ed25519.PublicKey)
	if !public.Equal(key.(ed25519.PrivateKey).Public()) {
		t.Error("the public part is another key's")
	}
	if strings.Contains(jwks, `"d"`) || set.Keys[0].KeyID == "" {
		t.Errorf("%s", jwks)
	}
	if _, err := newAgentKey(path); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a file is written over: %v", err)
	}
	if again, err := os.ReadFile(path); err != nil || string(again) != string(b) {
		t.Errorf("the file has changed: %v", err)
	}
}
