package authz

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence/internal/pg"
)

const (
	// publication is how long a key is in the key set before it signs: longer than
	// the age at which any process looks again, its clock and a slow look included.
	publication = 2 * time.Minute
	// keyOutlives is how long after its successor began to sign a key goes on
	// verifying: a process that had not looked signs with it for up to refreshAge
	// more, with a clock that may be slow, tokens that live for up to MaxLifetime.
	keyOutlives = MaxLifetime + refreshAge + clockSkew
)

// keyring holds the keys that were not retired by hand, in the order in which they
// sign. What each is good for follows from that order and the time alone; nothing
// of it is stored, so nothing has to be done when the time comes:
//
//	PENDING    published, its signsFrom is to come
//	SIGNING    the newest whose signsFrom has passed
//	VERIFYING  older, until keyOutlives after its successor's signsFrom
//	RETIRED    by then, or by hand
type keyring []*key

func newKeyring(keys []*key) keyring {
	slices.SortFunc(keys, func(a, b *key) int {
		return cmp.Or(a.signsFrom.Compare(b.signsFrom), a.created.Compare(b.created), cmp.Compare(a.kid, b.kid))
	})
	return keys
}

// live leaves out the keys that time has retired. The last one is never among them.
func (r keyring) live(now time.Time) keyring {
	for len(r) > 1 && !now.Before(r.retires(0)) {
		r = r[1:]
	}
	return r
}

// retires tells when time retires the key at i; zero while it has no successor.
func (r keyring) retires(i int) time.Time {
	if i+1 == len(r) {
		return time.Time{}
	}
	return r[i+1].signsFrom.Add(keyOutlives)
}

// signing is where the key is that signs. When none has begun, because this clock
// is behind that of the process which made the first one, it is the one that
// begins first.
func (r keyring) signing(now time.Time) int {
	i := len(r) - 1
	for i > 0 && now.Before(r[i].signsFrom) {
		i--
	}
	return i
}

// pending returns the key that is to sign next, or nil.
func (r keyring) pending(now time.Time) *key {
	if i := r.signing(now) + 1; i > 0 && i < len(r) {
		return r[i]
	}
	return nil
}

// after moves the time from which a new key signs behind that of every other, should
// the clock which made those be ahead.
func (r keyring) after(from time.Time) time.Time {
	if len(r) > 0 && !from.After(r[len(r)-1].signsFrom) {
		return r[len(r)-1].signsFrom.Add(time.Microsecond)
	}
	return from
}

func (r keyring) find(kid string) *key {
	if i := r.index(kid); i >= 0 {
		return r[i]
	}
	return nil
}

func (r keyring) index(kid string) int {
	return slices.IndexFunc(r, func(k *key) bool { return k.kid == kid })
}

// KeyState is what a signing key is good for.
type KeyState string

const (
	// KeyPending is published and does not sign yet.
	KeyPending KeyState = "PENDING"
	// KeySigning signs new tokens.
	KeySigning KeyState = "SIGNING"
	// KeyVerifying verifies tokens that it signed before.
	KeyVerifying KeyState = "VERIFYING"
	// KeyRetired is good for nothing any more.
	KeyRetired KeyState = "RETIRED"
)

// KeyInfo describes one signing key.
type KeyInfo struct {
	ID        string // RFC 7638 thumbprint
	Algorithm Algorithm
	Created   time.Time
	SignsFrom time.Time
	RetiresAt time.Time // when it was or will be retired; zero while it has no successor
	State     KeyState
}

// states describes the keys of a ring.
func (r keyring) states(now time.Time) []KeyInfo {
	live := r.live(now)
	first := len(r) - len(live)
	signing := first + live.signing(now)
	out := make([]KeyInfo, len(r))
	for i, k := range r {
		out[i] = KeyInfo{ID: k.kid, Algorithm: k.algorithm, Created: k.created, SignsFrom: k.signsFrom, RetiresAt: r.retires(i)}
		switch {
		case i < first:
			out[i].State = KeyRetired
		case i < signing:
			out[i].State = KeyVerifying
		case i == signing:
			out[i].State = KeySigning
		default:
			out[i].State = KeyPending
		}
	}
	return out
}

// List describes every key there is and was, in the order in which they sign, as
// the store has them now.
func (ks *Keys) List(ctx context.Context) ([]KeyInfo, error) {
	if ks.store == nil {
		ks.mu.RLock()
		defer ks.mu.RUnlock()
		return ks.ring.states(ks.clock()), nil
	}
	infos, err := ks.store.list(ctx)
	if err != nil {
		return nil, fmt.Errorf("list signing keys: %w", err)
	}
	return infos, nil
}

// Rotate makes a new key and publishes it at once, here and in other processes. It
// begins to sign two minutes later, when every process knows of it; a second
// rotation before that is refused (KEY_PENDING). The older keys go on verifying until
// the last token they signed has expired, and are then retired by themselves.
// With [KeysConfig.File] the new key is the file's first one.
func (ks *Keys) Rotate(ctx context.Context) error {
	return ks.change(ctx, "rotate signing key", func(ctx context.Context, tx pgx.Tx) (func(), error) {
		_, known, err := ks.RotateIn(ctx, tx)
		return known, err
	})
}

// RotateIn is Rotate in a caller's transaction, and tells which key was made; known is
// to be called once that is committed.
func (ks *Keys) RotateIn(ctx context.Context, tx pgx.Tx) (made KeyInfo, known func(), err error) {
	if ks.store == nil {
		return made, nil, errors.New("these keys are not stored")
	}
	ring, err := ks.store.rotate(ctx, tx)
	if err != nil {
		return made, nil, err
	}
	states := ring.states(ks.clock())
	return states[len(states)-1], func() { ks.set(ring) }, nil
}

// Retire ends a key that may have fallen into wrong hands: tokens that it signed
// are refused here at once and by other processes within a minute. If it is the
// one that signs, the pending key signs at once, or without one the key before it
// again. The last key cannot be retired: rotate first. A pending key may be
// retired too, which takes its rotation back.
func (ks *Keys) Retire(ctx context.Context, kid string) error {
	return ks.change(ctx, "retire signing key", func(ctx context.Context, tx pgx.Tx) (func(), error) { return ks.RetireIn(ctx, tx, kid) })
}

// RetireIn is Retire in a caller's transaction; known is to be called once that is
// committed.
func (ks *Keys) RetireIn(ctx context.Context, tx pgx.Tx, kid string) (known func(), err error) {
	if ks.store == nil {
		return nil, errors.New("these keys are not stored")
	}
	ring, err := ks.store.retire(ctx, tx, kid)
	return func() { ks.set(ring) }, err
}

func (ks *Keys) change(ctx context.Context, doing string, fn func(context.Context, pgx.Tx) (func(), error)) error {
	if ks.store == nil {
		return fmt.Errorf("%s: these keys are not stored", doing)
	}
	var known func()
	err := pg.InTx(ctx, ks.store.pool, func(tx pgx.Tx) (err error) {
		known, err = fn(ctx, tx)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	known()
	return nil
}
