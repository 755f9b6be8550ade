package federation

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha512" // of the algorithms that end in 384 and 512
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"

	"github.com/whence-db/whence/authz/internal/strict"
)

const (
	minRSABits = 2048
	maxRSABits = 8192 // what more would cost, a stranger's token could make us pay
)

// algorithms are the ways to sign that are accepted (RFC 7518, RFC 8037); for
// elliptic curves the only curve that each goes with.
var algorithms = []struct {
	name, keyType, curve string
	method               jwt.SigningMethod
}{
	{"EdDSA", "OKP", "Ed25519", jwt.SigningMethodEdDSA},
	{"ES256", "EC", "P-256", jwt.SigningMethodES256},
	{"ES384", "EC", "P-384", jwt.SigningMethodES384},
	{"ES512", "EC", "P-521", jwt.SigningMethodES512},
	{"PS256", "RSA", "", jwt.SigningMethodPS256},
	{"PS384", "RSA", "", jwt.SigningMethodPS384},
	{"PS512", "RSA", "", jwt.SigningMethodPS512},
	{"RS256", "RSA", "", jwt.SigningMethodRS256},
	{"RS384", "RSA", "", jwt.SigningMethodRS384},
	{"RS512", "RSA", "", jwt.SigningMethodRS512},
}

// Algorithms lists the algorithms that are accepted: each has a public key.
func Algorithms() []string {
	var names []string
	for _, a := range algorithms {
		names = append(names, a.name)
	}
	return names
}

func method(algorithm string) jwt.SigningMethod {
	for _, a := range algorithms {
		if a.name == algorithm {
			return a.method
		}
	}
	return nil
}

// key is one public key of a set.
type key struct {
	id         string   // empty when it has none
	algorithms []string // that it fits: one, or several of an RSA key that does not say
	public     crypto.PublicKey
}

var errPrivate = errors.New("it is private or secret: publish the public part only, and replace this key, for it has been shown")

// secret are the members that only private and symmetric keys have.
var secret = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"}

// parseKey reads a public key that signatures can be verified with. Its use must
// be the given one, or left out unless that is required. Certificates that come
// with a key are not looked at. Errors say what is wrong, without the key.
func parseKey(raw json.RawMessage, use string, useRequired bool) (key, error) {
	members, err := strict.Members(raw)
	if err != nil {
		return key{}, errors.New("it is not a JSON object with each member once")
	}
	for _, name := range secret {
		if _, ok := members[name]; ok {
			return key{}, errPrivate
		}
	}
	var meta struct {
		Type, Curve, ID, Algorithm, Use *string
		Operations                      []string
	}
	for name, target := range map[string]any{"kty": &meta.Type, "crv": &meta.Curve, "kid": &meta.ID, "alg": &meta.Algorithm,
		"use": &meta.Use, "key_ops": &meta.Operations} {
		if raw, ok := members[name]; ok && json.Unmarshal(raw, target) != nil {
			return key{}, fmt.Errorf("its %s is not what it should be", name)
		}
	}
	switch {
	case meta.Type == nil:
		return key{}, errors.New("it has no kty")
	case meta.ID != nil && !strict.Plain(*meta.ID):
		return key{}, errors.New("its kid is not plain text of 1 to 512 bytes")
	case meta.Use == nil && useRequired || meta.Use != nil && *meta.Use != use:
		return key{}, fmt.Errorf("its use is not %q", use)
	case meta.Operations != nil && !slices.Contains(meta.Operations, "verify"):
		return key{}, errors.New("its key_ops do not hold verify")
	}
	k := key{}
	if meta.ID != nil {
		k.id = *meta.ID
	}
	for _, a := range algorithms {
		if a.keyType == *meta.Type && (a.curve == "" || meta.Curve != nil && a.curve == *meta.Curve) &&
			(meta.Algorithm == nil || *meta.Algorithm == a.name) {
			k.algorithms = append(k.algorithms, a.name)
		}
	}
	if len(k.algorithms) == 0 {
		return key{}, errors.New("its kty, crv and alg do not make an algorithm that is accepted here")
	}
	if k.public, err = parsePublic(members); err != nil {
		return key{}, err
	}
	return k, nil
}

// parsePublic hands on only what makes the key itself.
func parsePublic(members map[string]json.RawMessage) (crypto.PublicKey, error) {
	bare := map[string]json.RawMessage{}
	for _, name := range []string{"kty", "crv", "x", "y", "n", "e"} {
		if raw, ok := members[name]; ok {
			bare[name] = raw
		}
	}
	b, err := json.Marshal(bare)
	if err != nil {
		return nil, errors.New("its numbers cannot be read")
	}
	var parsed jose.JSONWebKey
	if err := parsed.UnmarshalJSON(b); err != nil || !parsed.Valid() {
		return nil, errors.New("its numbers do not make a key of its type")
	}
	switch public := parsed.Key.(type) {
	case ed25519.PublicKey, *ecdsa.PublicKey:
		return public, nil
	case *rsa.PublicKey:
		if bits := public.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return nil, fmt.Errorf("it has %d bits; an RSA key needs %d to %d", bits, minRSABits, maxRSABits)
		}
		if public.E < 3 || public.E%2 == 0 || public.N.Bit(0) == 0 {
			return nil, errors.New("its numbers do not make an RSA key")
		}
		return public, nil
	}
	return nil, errors.New("it is not a public key")
}

// parseKeySet leaves the keys of a set (RFC 7517) for parseKey.
func parseKeySet(b []byte, most int) ([]json.RawMessage, error) {
	members, err := strict.Members(b)
	if err != nil {
		return nil, errors.New("it is not a JSON object with each member once")
	}
	var raw []json.RawMessage
	if err := json.Unmarshal(members["keys"], &raw); err != nil || raw == nil {
		return nil, errors.New(`it has no list "keys"`)
	}
	if len(raw) > most {
		return nil, fmt.Errorf("it holds %d keys of at most %d", len(raw), most)
	}
	return raw, nil
}
