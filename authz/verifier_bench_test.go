package authz

import "testing"

func BenchmarkVerify(b *testing.B) {
	f := newForge(b)
	token := f.make(b, attack{})
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
