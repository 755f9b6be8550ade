package authz

import (
	"testing"

	"github.com/whence-db/whence/authz/authztest/forge"
)

func BenchmarkVerify(b *testing.B) {
	f := newForge(b)
	token := f.Make(b, forge.Attack{})
	b.Run("first sight", func(b *testing.B) {
		for b.Loop() {
			if _, err := f.verifier.verify(b.Context(), token); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("remembered", func(b *testing.B) {
		for b.Loop() {
			if _, err := f.verifier.Verify(b.Context(), token); err != nil {
				b.Fatal(err)
			}
		}
	})
}
