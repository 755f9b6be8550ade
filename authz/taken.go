package authz

import (
	"context"
	"crypto/sha256"
)

// Taken stands for a request's proof, which can be shown only once, when several
// calls come in one request. It is good with the token that the proof was shown
// with; only [Verifier.Take] makes one.
type Taken struct{ token [sha256.Size]byte }

// Take authenticates a request that calls come in. They present what it returns,
// which is the same credential with its proof taken: whose token it is, and whether it
// still stands, is verified for each of them again. Beside a refusal it may tell whose
// token it was, for the record alone.
func (v *Verifier) Take(ctx context.Context, c Presented) (Presented, *Principal, error) {
	c.Taken = nil
	p, err := v.Authenticate(ctx, c)
	if err != nil {
		return Presented{}, p, err
	}
	c.Taken = &Taken{sha256.Sum256([]byte(c.Token))}
	return c, p, nil
}

func (t *Taken) with(token string) bool { return t != nil && t.token == sha256.Sum256([]byte(token)) }
