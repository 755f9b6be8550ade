package main

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"connectrpc.com/connect/v2"
	"github.com/go-jose/go-jose/v4"
)

// newAgentKey makes an Ed25519 key, writes its private part to a new file that only
// its owner may read, and returns the public part as a JSON Web Key Set. The key's
// id is its RFC 7638 thumbprint.
func newAgentKey(path string) (jwks string, err error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return "", err
	}
	key := jose.JSONWebKey{Key: public, Algorithm: string(jose.EdDSA), Use: "sig"}
	thumbprint, err := key.Thumbprint(crypto.SHA256)
	if err != nil {
		return "", err
	}
	key.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key}})
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case errors.Is(err, os.ErrExist):
		return "", fmt.Errorf("%s is there already; it may hold a key that is in use, so it is left alone: name another file", path)
	case err != nil:
		return "", err
	}
	err = errors.Join(pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der}), f.Sync(), f.Close())
	if err != nil {
		_ = os.Remove(path)
		return "", fmt.Errorf("write the private key: %w", err)
	}
	return string(set), nil
}

// certainly tells whether a call that failed has changed nothing: the server says
// what was wrong with it.
func certainly(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeAlreadyExists, connect.CodeFailedPrecondition,
		connect.CodePermissionDenied, connect.CodeUnauthenticated, connect.CodeUnimplemented:
		return true
	default:
		return false
	}
}
