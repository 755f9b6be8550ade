package authz

import (
	"crypto/sha256"
	"testing"

	"github.com/whence-db/whence/authz/authztest/forge"
)

// A proof that was taken stands for itself with its own token only, and for nothing else.
func TestTakenProof(t *testing.T) {
	f := newForge(t)
	var bound, plain string
	for _, a := range attacks(t) {
		if a.Name == "bound to a key" {
			bound = f.Make(t, a)
		}
	}
	plain = f.Make(t, forge.Attack{})
	taken := &Taken{sha256.Sum256([]byte(bound))}
	for _, c := range []struct {
		name   string
		p      Presented
		reason string
	}{
		{"with its token", Presented{Token: bound, Bound: true, Taken: taken}, ""},
		{"with none", Presented{Token: bound, Bound: true}, "PROOF_MISSING"},
		{"of another token", Presented{Token: bound, Bound: true, Taken: &Taken{sha256.Sum256([]byte(plain))}}, "PROOF_MISSING"},
		{"made up", Presented{Token: bound, Bound: true, Taken: &Taken{}}, "PROOF_MISSING"},
		{"by another scheme", Presented{Token: bound, Taken: taken}, "PROOF_MISSING"},
		{"with a token that is not verified", Presented{Token: bound + "x", Bound: true, Taken: &Taken{sha256.Sum256([]byte(bound + "x"))}}, "TOKEN_MALFORMED"},
		{"with a bearer's token", Presented{Token: plain, Bound: true, Taken: &Taken{sha256.Sum256([]byte(plain))}}, "TOKEN_NOT_BOUND"},
	} {
		_, err := f.verifier.Authenticate(t.Context(), c.p)
		wantReason(t, c.name, err, c.reason)
	}
	// What is taken is never taken on the word of another taking.
	got, p, err := f.verifier.Take(t.Context(), Presented{Token: bound, Bound: true, Taken: taken})
	wantReason(t, "taking again", err, "PROOF_MISSING")
	if got != (Presented{}) || p == nil {
		t.Errorf("beside the refusal: %+v, %v", got, p)
	}
	if got, _, err = f.verifier.Take(t.Context(), Presented{Token: plain}); err != nil || !got.Taken.with(plain) || got.Taken.with(bound) {
		t.Errorf("%+v, %v", got, err)
	}
}
