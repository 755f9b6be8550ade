// Package seal encrypts the few secrets that Whence stores (connection strings
// and signing keys) under one key that never enters the database.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
)

// Key seals with AES-256-GCM.
type Key struct{ aead cipher.AEAD }

// ParseKey reads 32 bytes in standard base64, as NewKey prints them.
func ParseKey(s string) (Key, error) {
	raw, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(raw) != 32 {
		return Key{}, errors.New("the secret key must be 32 random bytes in base64: make one with `head -c 32 /dev/urandom | base64`")
	}
	block, err := aes.NewCipher(raw)
	if err != nil {
		return Key{}, err
	}
	aead, err := cipher.NewGCM(block)
	return Key{aead}, err
}

// NewKey returns a new random key in base64.
func NewKey() string {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails: it ends the program instead
	return base64.StdEncoding.EncodeToString(raw)
}

// Seal encrypts; purpose binds the result to its place, so that one sealed
// value cannot stand in for another.
func (k Key) Seal(purpose string, plain []byte) []byte {
	nonce := make([]byte, k.aead.NonceSize())
	_, _ = rand.Read(nonce)
	return k.aead.Seal(nonce, nonce, plain, []byte(purpose))
}

// Open decrypts what Seal made with the same key and purpose.
func (k Key) Open(purpose string, sealed []byte) ([]byte, error) {
	n := k.aead.NonceSize()
	if len(sealed) < n {
		return nil, errors.New("sealed value is too short")
	}
	plain, err := k.aead.Open(nil, sealed[:n], sealed[n:], []byte(purpose))
	if err != nil {
		return nil, fmt.Errorf("cannot unseal %s: WHENCE_SECRET_KEY is not the key it was sealed with", purpose)
	}
	return plain, nil
}
