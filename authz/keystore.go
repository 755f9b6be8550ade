package authz

import (
	"cmp"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/seal"
)

// KeysConfig is where signing keys are kept.
type KeysConfig struct {
	Pool *pgxpool.Pool
	// Seal encrypts the private parts; it never enters the database.
	Seal seal.Key
	// Algorithm is for keys to be made; empty is EdDSA. Stored keys keep theirs.
	Algorithm Algorithm
	// File is the path of a PEM file with PKCS #8 private keys (Ed25519, or ECDSA on
	// P-256) that its owner alone may read; empty: keys are made and stored sealed.
	//
	// Only public parts of the file's keys are stored. The first key is the one to
	// sign with: the first key of an installation signs at once, and one that is new
	// is a rotation, begun by the first process that starts with it or by Rotate.
	// Until it signs, the key before it does, so that one has to follow in the file,
	// unless it is stored sealed. Where a starting process lacks it, the new key
	// signs at once. Processes without the file verify and do not sign.
	File string
	// Borrow is for who signs beside the servers: a new key in File is not taken
	// over, but for the first of an installation.
	Borrow bool
	// Clock says when keys begin to sign and retire, and paces the looks at the
	// store; nil is time.Now.
	Clock func() time.Time
}

// keyStore holds the SQL of signing_keys.
type keyStore struct {
	pool      *pgxpool.Pool
	seal      seal.Key
	algorithm Algorithm
	file      *keyFile // nil: keys are made here
	borrow    bool     // takes no key over
	clock     func() time.Time
}

// LoadKeys reads the signing keys and makes the first one when there is none.
// Processes that start together end up with the same key. With a file it may begin
// a rotation, which fails with KEY_PENDING while another has yet to end.
func LoadKeys(ctx context.Context, c KeysConfig) (*Keys, error) {
	if c.Algorithm == "" {
		c.Algorithm = EdDSA
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	switch {
	case c.Pool == nil:
		return nil, errors.New("signing keys: a pool is required")
	case c.Seal == seal.Key{}:
		return nil, errors.New("signing keys: a secret key is required")
	case c.Algorithm != EdDSA && c.Algorithm != ES256:
		return nil, fmt.Errorf("signing algorithm %q: want %s or %s", c.Algorithm, EdDSA, ES256)
	}
	ks := &Keys{store: &keyStore{borrow: c.Borrow, pool: c.Pool, seal: c.Seal, algorithm: c.Algorithm, clock: c.Clock}, clock: c.Clock}
	if c.File != "" {
		ks.store.file = &keyFile{path: c.File}
	}
	ring, err := ks.store.ensure(ctx)
	if err != nil {
		return nil, fmt.Errorf("signing keys: %w", err)
	}
	ks.set(ring)
	return ks, nil
}

// now is in microseconds, as Postgres keeps times.
func (s *keyStore) now() time.Time { return s.clock().UTC().Truncate(time.Microsecond) }

// keysLock is the advisory lock under which the set of keys changes.
const keysLock int64 = 0x77686e6b6579 // "whnkey"

const lockKeysSQL = `select pg_advisory_xact_lock(@lock)`

// change runs fn alone among all processes, with the keys that are live now, and
// returns the keys as it left them. What time has retired is wiped first.
func (s *keyStore) change(ctx context.Context, tx pgx.Tx, fn func(live keyring, now time.Time) error) (keyring, error) {
	if _, err := tx.Exec(ctx, lockKeysSQL, pgx.NamedArgs{"lock": keysLock}); err != nil {
		return nil, err
	}
	ring, err := s.read(ctx, tx)
	if err != nil {
		return nil, err
	}
	now := s.now()
	live := ring.live(now)
	for i, k := range ring[:len(ring)-len(live)] {
		if err := s.wipe(ctx, tx, k.kid, ring.retires(i)); err != nil {
			return nil, err
		}
	}
	if err := fn(live, now); err != nil {
		return nil, err
	}
	return s.read(ctx, tx)
}

func (s *keyStore) ensure(ctx context.Context) (ring keyring, err error) {
	err = pg.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		ring, err = s.change(ctx, tx, func(live keyring, now time.Time) error {
			switch {
			case s.file != nil && (len(live) == 0 || !s.borrow):
				_, err := s.adopt(ctx, tx, live, now)
				return err
			case len(live) > 0:
				return nil
			}
			return s.generate(ctx, tx, live, now, now)
		})
		return err
	})
	return ring, err
}

func (s *keyStore) rotate(ctx context.Context, tx pgx.Tx) (keyring, error) {
	return s.change(ctx, tx, func(live keyring, now time.Time) error {
		if s.file != nil {
			added, err := s.adopt(ctx, tx, live, now)
			if err == nil && !added {
				err = &whence.Error{Kind: whence.ErrPrecondition, Reason: "KEY_NOT_NEW",
					Message: "the first key of the signing key file is in use already; put a new one in front of it"}
			}
			return err
		}
		if err := noneIsPending(live, now); err != nil {
			return err
		}
		return s.generate(ctx, tx, live, now, now.Add(publication))
	})
}

func noneIsPending(live keyring, now time.Time) error {
	k := live.pending(now)
	if k == nil {
		return nil
	}
	begins := k.signsFrom.Format(time.RFC3339)
	return &whence.Error{Kind: whence.ErrPrecondition, Reason: "KEY_PENDING", RetryAfter: k.signsFrom.Sub(now),
		Message:  fmt.Sprintf("the key %s is published and begins to sign at %s; rotate again after that, or retire it", k.kid, begins),
		Metadata: map[string]string{"key": k.kid, "signsFrom": begins}}
}

const keyRetiredSQL = `select exists (select from whence.signing_keys where kid = @kid and retired_at is not null)`

// adopt takes the file's first key over when it is new.
func (s *keyStore) adopt(ctx context.Context, tx pgx.Tx, live keyring, now time.Time) (added bool, err error) {
	keys, err := s.file.keys()
	if err != nil {
		return false, err
	}
	k := keys[0]
	if live.find(k.kid) != nil {
		return false, nil
	}
	var retired bool
	if err := tx.QueryRow(ctx, keyRetiredSQL, pgx.NamedArgs{"kid": k.kid}).Scan(&retired); err != nil {
		return false, err
	}
	if retired {
		return false, &whence.Error{Kind: whence.ErrPrecondition, Reason: "KEY_RETIRED",
			Message: fmt.Sprintf("the first key of the signing key file, %s, has been retired; put the one to sign with in front of it", k.kid)}
	}
	if err := noneIsPending(live, now); err != nil {
		return false, err
	}
	from := now.Add(publication)
	if len(live) == 0 || live[live.signing(now)].private == nil {
		from = now // nobody else could sign here until then
	}
	return true, s.insert(ctx, tx, k, pgx.NamedArgs{"sealed": nil,
		"vouched": s.seal.Seal(vouchPurpose(k.kid), nil), "now": now, "from": live.after(from)})
}

func (s *keyStore) generate(ctx context.Context, tx pgx.Tx, live keyring, now, from time.Time) error {
	k, err := generateKey(s.algorithm)
	if err != nil {
		return err
	}
	der, err := k.marshal()
	if err != nil {
		return err
	}
	return s.insert(ctx, tx, k, pgx.NamedArgs{"sealed": s.seal.Seal(sealPurpose(k.kid), der),
		"vouched": nil, "now": now, "from": live.after(from)})
}

const insertKeySQL = `
insert into whence.signing_keys (kid, algorithm, private_sealed, vouched, public_jwk, created_at, signs_from)
values (@kid, @algorithm, @sealed, @vouched, @jwk, @now, @from)`

func (s *keyStore) insert(ctx context.Context, tx pgx.Tx, k *key, args pgx.NamedArgs) error {
	public, err := json.Marshal(k.jwk)
	if err != nil {
		return err
	}
	args["kid"], args["algorithm"], args["jwk"] = k.kid, string(k.algorithm), public
	_, err = tx.Exec(ctx, insertKeySQL, args)
	return err
}

const wipeKeySQL = `
update whence.signing_keys set retired_at = @at, private_sealed = null, vouched = null
where kid = @kid`

func (s *keyStore) wipe(ctx context.Context, tx pgx.Tx, kid string, at time.Time) error {
	_, err := tx.Exec(ctx, wipeKeySQL, pgx.NamedArgs{"kid": kid, "at": at})
	return err
}

const signNowSQL = `update whence.signing_keys set signs_from = @now where kid = @kid`

func (s *keyStore) retire(ctx context.Context, tx pgx.Tx, kid string) (keyring, error) {
	return s.change(ctx, tx, func(live keyring, now time.Time) error {
		i := live.index(kid)
		switch {
		case i < 0:
			return &whence.Error{Kind: whence.ErrNotFound, Reason: "KEY_NOT_FOUND",
				Message: "no signing key in use has this id; the JWKS lists those that are"}
		case len(live) == 1:
			return &whence.Error{Kind: whence.ErrPrecondition, Reason: "LAST_KEY",
				Message: "this is the only signing key in use; rotate first, then retire it"}
		}
		if next := live.pending(now); next != nil && i == live.signing(now) {
			if _, err := tx.Exec(ctx, signNowSQL, pgx.NamedArgs{"kid": next.kid, "now": now}); err != nil {
				return err
			}
		}
		return s.wipe(ctx, tx, kid, now)
	})
}

func (s *keyStore) look(ctx context.Context) (keyring, error) {
	ring, err := s.read(ctx, s.pool)
	return ring, pg.Translate(err)
}

const listKeysSQL = `
select kid, private_sealed, vouched, public_jwk, created_at, signs_from from whence.signing_keys
where retired_at is null`

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func (s *keyStore) read(ctx context.Context, db querier) (keyring, error) {
	inFile := s.file.signers()
	rows, err := db.Query(ctx, listKeysSQL)
	if err != nil {
		return nil, err
	}
	keys, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*key, error) {
		var r keyRow
		if err := row.Scan(&r.kid, &r.sealed, &r.vouched, &r.public, &r.created, &r.signsFrom); err != nil {
			return nil, err
		}
		return s.open(r, inFile)
	})
	return newKeyring(keys), err
}

type keyRow struct {
	kid                string
	sealed, vouched    []byte
	public             jwk
	created, signsFrom time.Time
}

// open believes a row only as far as a process with the secret key made it:
// whoever can merely write the table brings in no key.
func (s *keyStore) open(r keyRow, inFile map[string]crypto.Signer) (k *key, err error) {
	if r.sealed != nil {
		der, err := s.seal.Open(sealPurpose(r.kid), r.sealed)
		if err != nil {
			return nil, err
		}
		if k, err = parseKey(der); err != nil {
			return nil, err
		}
	} else {
		if _, err := s.seal.Open(vouchPurpose(r.kid), r.vouched); err != nil {
			return nil, err
		}
		public, err := r.public.public()
		if err != nil {
			return nil, fmt.Errorf("signing key %s: %w", r.kid, err)
		}
		if k, err = newPublicKey(public); err != nil {
			return nil, err
		}
		k.private = inFile[k.kid]
	}
	if k.kid != r.kid {
		return nil, fmt.Errorf("signing key %s holds another key", r.kid)
	}
	k.created, k.signsFrom = r.created, r.signsFrom
	return k, nil
}

const listRetiredSQL = `
select kid, algorithm, created_at, signs_from, retired_at from whence.signing_keys
where retired_at is not null`

func (s *keyStore) list(ctx context.Context) (infos []KeyInfo, err error) {
	err = pg.Snapshot(ctx, s.pool, func(tx pgx.Tx) error {
		ring, err := s.read(ctx, tx)
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, listRetiredSQL)
		if err != nil {
			return err
		}
		infos, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (KeyInfo, error) {
			k := KeyInfo{State: KeyRetired}
			err := row.Scan(&k.ID, &k.Algorithm, &k.Created, &k.SignsFrom, &k.RetiresAt)
			return k, err
		})
		infos = append(infos, ring.states(s.now())...)
		return err
	})
	slices.SortStableFunc(infos, func(a, b KeyInfo) int {
		return cmp.Or(a.SignsFrom.Compare(b.SignsFrom), a.Created.Compare(b.Created))
	})
	return infos, err
}

func sealPurpose(kid string) string  { return "signing key " + kid }
func vouchPurpose(kid string) string { return "signing key in a file, " + kid }
