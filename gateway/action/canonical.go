package action

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"github.com/gowebpki/jcs"

	"github.com/whence-db/whence"
)

// Canonical writes the definition as canonical JSON (RFC 8785).
func (d Definition) Canonical() ([]byte, error) {
	b, err := canonical(d)
	if err != nil {
		return nil, fmt.Errorf("write the action %q: %w", d.Name, err)
	}
	return b, nil
}

// Digest is the SHA-256 of the canonical form.
func (d Definition) Digest() (whence.Digest, error) {
	b, err := d.Canonical()
	return sha256.Sum256(b), err
}

func canonical(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return jcs.Transform(b)
}
