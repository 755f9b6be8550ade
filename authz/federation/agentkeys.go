package federation

import (
	"encoding/json"
	"fmt"

	"github.com/whence-db/whence"
)

const (
	maxAgentKeys   = 8
	maxAgentKeySet = 64 << 10 // bytes
)

// ValidateJWKS tells whether a document is a usable set of public keys for an
// agent: one to eight, all of them public and of algorithms that are accepted,
// RSA keys with their alg, each with its own kid when there are several. What is
// wrong is a whence.ErrInvalid about the field jwks.
func ValidateJWKS(document json.RawMessage) error {
	_, err := parseAgentKeys(document)
	return err
}

func parseAgentKeys(document json.RawMessage) ([]key, error) {
	invalid := func(format string, args ...any) ([]key, error) {
		return nil, whence.Invalid("jwks", "JWKS_INVALID", fmt.Sprintf(format, args...))
	}
	if len(document) > maxAgentKeySet {
		return invalid("the key set takes %d bytes of at most %d", len(document), maxAgentKeySet)
	}
	raw, err := parseKeySet(document, maxAgentKeys)
	if err != nil {
		return invalid(`the key set cannot be used: %s; send {"keys": [...]} as RFC 7517 has it`, err)
	}
	if len(raw) == 0 {
		return invalid("the key set is empty; send at least one public key")
	}
	var keys []key
	ids := map[string]bool{}
	for n, one := range raw {
		k, err := parseKey(one, "sig", false)
		switch {
		case err != nil:
			return invalid("key %d cannot be used: %s", n+1, err)
		case len(k.algorithms) > 1:
			return invalid("key %d does not say its alg; name the one that it signs with", n+1)
		case len(raw) > 1 && (k.id == "" || ids[k.id]):
			return invalid("key %d has no kid of its own, which keys need where there are several", n+1)
		}
		ids[k.id] = true
		keys = append(keys, k)
	}
	return keys, nil
}
