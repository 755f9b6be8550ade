package authz

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	// Clock paces the looks at the store; nil is time.Now.
	Clock func() time.Time
}

// keyStore holds the SQL of signing_keys.
type keyStore struct {
	pool      *pgxpool.Pool
	seal      seal.Key
	algorithm Algorithm
}

// LoadKeys reads the signing keys and makes the first one when there is none.
// Processes that start together end up with the same key.
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
	ks := &Keys{store: &keyStore{c.Pool, c.Seal, c.Algorithm}, clock: c.Clock}
	keys, err := ks.store.ensure(ctx)
	if err != nil {
		return nil, fmt.Errorf("signing keys: %w", err)
	}
	ks.set(keys)
	return ks, nil
}

// Rotate makes a new key, which signs from now on; older ones go on verifying
// until they are retired. Other processes verify with it at once and sign with it
// within a minute.
func (ks *Keys) Rotate(ctx context.Context) error {
	if ks.store == nil {
		return errors.New("rotate signing key: these keys are not stored")
	}
	keys, err := ks.store.rotate(ctx)
	if err != nil {
		return fmt.Errorf("rotate signing key: %w", err)
	}
	ks.set(keys)
	return nil
}

// Retire ends a key: tokens that it signed are refused here at once and by other
// processes within a minute. The last key cannot be retired: rotate first.
func (ks *Keys) Retire(ctx context.Context, kid string) error {
	if ks.store == nil {
		return errors.New("retire signing key: these keys are not stored")
	}
	keys, err := ks.store.retire(ctx, kid)
	if err != nil {
		return fmt.Errorf("retire signing key: %w", err)
	}
	ks.set(keys)
	return nil
}

// keysLock is the advisory lock under which the set of keys changes.
const keysLock int64 = 0x77686e6b6579 // "whnkey"

const lockKeysSQL = `select pg_advisory_xact_lock(@lock)`

// change runs fn alone among all processes and returns the keys as it left them.
func (s *keyStore) change(ctx context.Context, fn func(tx pgx.Tx, keys []*key) error) (keys []*key, err error) {
	err = pg.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, lockKeysSQL, pgx.NamedArgs{"lock": keysLock}); err != nil {
			return err
		}
		if keys, err = s.read(ctx, tx); err != nil {
			return err
		}
		if err = fn(tx, keys); err != nil {
			return err
		}
		keys, err = s.read(ctx, tx)
		return err
	})
	return keys, err
}

func (s *keyStore) ensure(ctx context.Context) ([]*key, error) {
	return s.change(ctx, func(tx pgx.Tx, keys []*key) error {
		if len(keys) > 0 {
			return nil
		}
		return s.insert(ctx, tx)
	})
}

func (s *keyStore) rotate(ctx context.Context) ([]*key, error) {
	return s.change(ctx, func(tx pgx.Tx, _ []*key) error { return s.insert(ctx, tx) })
}

const retireKeySQL = `
update whence.signing_keys set retired_at = clock_timestamp()
where kid = @kid and retired_at is null`

func (s *keyStore) retire(ctx context.Context, kid string) ([]*key, error) {
	return s.change(ctx, func(tx pgx.Tx, keys []*key) error {
		held := false
		for _, k := range keys {
			held = held || k.kid == kid
		}
		switch {
		case !held:
			return &whence.Error{Kind: whence.ErrNotFound, Reason: "KEY_NOT_FOUND",
				Message: "no signing key in use has this id; the JWKS lists those that are"}
		case len(keys) == 1:
			return &whence.Error{Kind: whence.ErrPrecondition, Reason: "LAST_KEY",
				Message: "this is the only signing key in use; rotate first, then retire it"}
		}
		_, err := tx.Exec(ctx, retireKeySQL, pgx.NamedArgs{"kid": kid})
		return err
	})
}

func (s *keyStore) list(ctx context.Context) ([]*key, error) {
	keys, err := s.read(ctx, s.pool)
	return keys, pg.Translate(err)
}

const listKeysSQL = `
select kid, private_sealed, created_at from whence.signing_keys
where retired_at is null`

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func (s *keyStore) read(ctx context.Context, db querier) ([]*key, error) {
	rows, err := db.Query(ctx, listKeysSQL)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (*key, error) {
		var kid string
		var sealed []byte
		var created time.Time
		if err := row.Scan(&kid, &sealed, &created); err != nil {
			return nil, err
		}
		der, err := s.seal.Open(sealPurpose(kid), sealed)
		if err != nil {
			return nil, err
		}
		k, err := parseKey(der)
		if err != nil {
			return nil, err
		}
		if k.kid != kid {
			return nil, fmt.Errorf("signing key %s holds another key", kid)
		}
		k.created = created
		return k, nil
	})
}

const insertKeySQL = `
insert into whence.signing_keys (kid, algorithm, private_sealed, public_jwk, created_at)
values (@kid, @algorithm, @sealed, @jwk, clock_timestamp())`

func (s *keyStore) insert(ctx context.Context, tx pgx.Tx) error {
	k, err := generateKey(s.algorithm)
	if err != nil {
		return err
	}
	der, err := k.marshal()
	if err != nil {
		return err
	}
	public, err := json.Marshal(k.jwk)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, insertKeySQL, pgx.NamedArgs{"kid": k.kid, "algorithm": string(k.algorithm),
		"sealed": s.seal.Seal(sealPurpose(k.kid), der), "jwk": public})
	return err
}

func sealPurpose(kid string) string { return "signing key " + kid }
