package authz

import (
	"crypto"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// keyFile holds private keys that are given by reference. It is read again at each
// look at the stored keys, so that a key put into it is at hand without a restart.
type keyFile struct {
	path string

	mu   sync.Mutex
	last map[string]crypto.Signer // guarded by mu; what could be read last
}

const (
	maxKeyFile = 64 << 10
	// othersMayRead are the permissions that a file of private keys must not give.
	othersMayRead = 0o077
)

// keys returns the file's keys in order; there is at least one.
func (f *keyFile) keys() ([]*key, error) {
	b, err := readSecret(f.path)
	if err != nil {
		return nil, err
	}
	keys, err := parseKeys(b)
	if err != nil {
		return nil, fmt.Errorf("signing key file %s: %w", f.path, err)
	}
	last := make(map[string]crypto.Signer, len(keys))
	for _, k := range keys {
		last[k.kid] = k.private
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = last
	return keys, nil
}

// signers returns the private parts by key id. A file that cannot be read right
// now, because it is being replaced say, must not keep tokens from being verified:
// what was read before stays.
func (f *keyFile) signers() map[string]crypto.Signer {
	if f == nil {
		return nil
	}
	_, _ = f.keys()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// readSecret reads a file that nobody but its owner may.
func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("signing key file: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("signing key file: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("signing key file %s: not a file", path)
	case info.Mode().Perm()&othersMayRead != 0:
		return nil, fmt.Errorf("signing key file %s: others may read or write it (mode %04o): chmod 600 %s", path, info.Mode().Perm(), path)
	case info.Size() > maxKeyFile:
		return nil, fmt.Errorf("signing key file %s: larger than %d bytes", path, maxKeyFile)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, fmt.Errorf("signing key file: %w", err)
	}
	return b, nil
}

// parseKeys reads PEM blocks with PKCS #8 private keys.
func parseKeys(b []byte) (keys []*key, err error) {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "PRIVATE KEY" {
			return nil, fmt.Errorf("it has a block of %s; want PRIVATE KEY (PKCS #8, not encrypted), which openssl pkcs8 -topk8 -nocrypt writes", block.Type)
		}
		k, err := parseKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, errors.New("it has no private key in PEM; openssl genpkey -algorithm ed25519 makes one")
	}
	return keys, nil
}
