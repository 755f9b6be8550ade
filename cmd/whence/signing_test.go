package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/whence-db/whence/internal/pgtest"
	"github.com/whence-db/whence/internal/seal"
)

func TestSigningFlags(t *testing.T) {
	t.Parallel()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "signing.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		flags     []string
		algorithm string
		stored    bool // the private part
	}{
		{nil, "EdDSA", true},
		{[]string{"--signing-algorithm", "ES256"}, "ES256", true},
		{[]string{"--signing-algorithm", "ES256", "--signing-key-file", file}, "EdDSA", false},
	} {
		db := pgtest.New(t)
		operator := append([]string{"token", "operator", "ops", "--database-url", db.DSN, "--secret-key", seal.NewKey(), "--issuer", "http://whence.test"}, c.flags...)
		if o := command(t, operator...); o.status != 0 || strings.Count(o.out, ".") != 2 {
			t.Errorf("%v: %+v", c.flags, o)
		}
		var algorithm string
		var stored bool
		if err := db.Pool.QueryRow(t.Context(), `select algorithm, private_sealed is not null from whence.signing_keys`).Scan(&algorithm, &stored); err != nil || algorithm != c.algorithm || stored != c.stored {
			t.Errorf("%v: %s, stored %t, %v", c.flags, algorithm, stored, err)
		}
	}
	if o := command(t, "serve", "--signing-algorithm", "HS256"); o.status != 2 || !strings.Contains(o.err, "ES256") {
		t.Errorf("an unknown algorithm: %+v", o)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	db := pgtest.New(t)
	if o := command(t, "serve", "--database-url", db.DSN, "--secret-key", seal.NewKey(), "--listen", "127.0.0.1:0", "--signing-key-file", file); o.status != 1 || !strings.Contains(o.err, "chmod 600") {
		t.Errorf("a file that others may read: %+v", o)
	}
}
