package authz

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// jwk is the public part of a key as RFC 7517, 7518 and 8037 write it. It has no
// place for a private part, so that strict decoding refuses one.
type jwk struct {
	KeyType     string   `json:"kty"`
	Curve       string   `json:"crv,omitempty"`
	X           string   `json:"x,omitempty"`
	Y           string   `json:"y,omitempty"`
	N           string   `json:"n,omitempty"`
	E           string   `json:"e,omitempty"`
	KeyID       string   `json:"kid,omitempty"`
	Algorithm   string   `json:"alg,omitempty"`
	Use         string   `json:"use,omitempty"`
	Operations  []string `json:"key_ops,omitempty"`
	Extractable *bool    `json:"ext,omitempty"`
}

const (
	minModulus = 2048 / 8 // bytes
	maxModulus = 4096 / 8
	// exponent is 65537, which is what keys have in practice.
	exponent = "AQAB"
)

var errKey = errors.New("not a public key of a kind that is known here")

// newJWK writes a public key.
func newJWK(public crypto.PublicKey) (jwk, error) {
	b64 := base64.RawURLEncoding.EncodeToString
	switch public := public.(type) {
	case ed25519.PublicKey:
		return jwk{KeyType: "OKP", Curve: "Ed25519", X: b64(public)}, nil
	case *ecdsa.PublicKey:
		point, err := public.Bytes() // 4, X, Y
		if err != nil {
			return jwk{}, err
		}
		half := len(point)/2 + 1
		return jwk{KeyType: "EC", Curve: public.Curve.Params().Name, X: b64(point[1:half]), Y: b64(point[half:])}, nil
	}
	return jwk{}, fmt.Errorf("%T: %w", public, errKey)
}

// public reads the key. Each key has one spelling only, so that it has one thumbprint.
func (j jwk) public() (crypto.PublicKey, error) {
	switch {
	case j.KeyType == "OKP" && j.Curve == "Ed25519" && j.Y+j.N+j.E == "":
		x, err := j.member(j.X, ed25519.PublicKeySize, ed25519.PublicKeySize)
		return ed25519.PublicKey(x), err
	case j.KeyType == "EC" && j.Curve == "P-256" && j.N+j.E == "":
		return j.point(elliptic.P256(), 32)
	case j.KeyType == "EC" && j.Curve == "P-384" && j.N+j.E == "":
		return j.point(elliptic.P384(), 48)
	case j.KeyType == "RSA" && j.E == exponent && j.Curve+j.X+j.Y == "":
		n, err := j.member(j.N, minModulus, maxModulus)
		if err != nil || n[0] == 0 {
			return nil, errKey
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}, nil
	}
	return nil, errKey
}

func (j jwk) point(curve elliptic.Curve, size int) (crypto.PublicKey, error) {
	x, err := j.member(j.X, size, size)
	if err != nil {
		return nil, err
	}
	y, err := j.member(j.Y, size, size)
	if err != nil {
		return nil, err
	}
	return ecdsa.ParseUncompressedPublicKey(curve, append(append([]byte{4}, x...), y...))
}

func (j jwk) member(s string, least, most int) ([]byte, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || strings.ContainsAny(s, "\r\n") || len(b) < least || len(b) > most {
		return nil, errKey
	}
	return b, nil
}

// thumbprint is that of RFC 7638: the required members, sorted, without spaces.
func (j jwk) thumbprint() string {
	var canonical string
	switch j.KeyType {
	case "OKP":
		canonical = fmt.Sprintf(`{"crv":"%s","kty":"OKP","x":"%s"}`, j.Curve, j.X)
	case "EC":
		canonical = fmt.Sprintf(`{"crv":"%s","kty":"EC","x":"%s","y":"%s"}`, j.Curve, j.X, j.Y)
	default:
		canonical = fmt.Sprintf(`{"e":"%s","kty":"RSA","n":"%s"}`, j.E, j.N)
	}
	sum := sha256.Sum256([]byte(canonical))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// isThumbprint tells whether s is spelt as a SHA-256 in base64url.
func isThumbprint(s string) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return err == nil && len(b) == sha256.Size && !strings.ContainsAny(s, "\r\n")
}
