package upstream

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
)

// Store keeps definitions. Changes take the transaction that records the call;
// reads do not need one. It is safe for concurrent use.
type Store struct {
	pool *pgxpool.Pool

	mu   sync.Mutex
	read map[name]*known // guarded by mu; what Current returned last
}

type name struct{ tenant, name string }

// known is an upstream as it was read.
type known struct {
	upstream *Upstream
	at       time.Time // when that was the current version; zero: it is to be read again
}

// stale is how old Current's knowledge may be.
const stale = 500 * time.Millisecond

// NewStore checks the configuration.
func NewStore(pool *pgxpool.Pool) (*Store, error) {
	if pool == nil {
		return nil, errors.New("upstream: a pool is needed")
	}
	return &Store{pool: pool, read: map[name]*known{}}, nil
}

const (
	upstreamsSQL = `
select tenant, name, url, authorization_env, rules, timeout, private_ranges, max_request_bytes, max_response_bytes, version, created_at
from whence.upstreams`

	upstreamSQL = upstreamsSQL + ` where tenant = @tenant and name = @name`
	listSQL     = upstreamsSQL + ` where tenant = @tenant and name collate "C" > @after order by name collate "C" limit @limit`

	versionSQL = `select version from whence.upstreams where tenant = @tenant and name = @name`

	insertSQL = `
insert into whence.upstreams (tenant, name, url, authorization_env, rules, timeout, private_ranges, max_request_bytes, max_response_bytes, digest)
values (@tenant, @name, @url, @env, @rules, @timeout, @ranges, @maxRequest, @maxResponse, @digest)
returning version, created_at`

	updateSQL = `
update whence.upstreams set url = @url, authorization_env = @env, rules = @rules, timeout = @timeout, private_ranges = @ranges,
    max_request_bytes = @maxRequest, max_response_bytes = @maxResponse, digest = @digest, version = nextval('whence.upstream_versions')
where tenant = @tenant and name = @name
returning version, created_at`

	deleteSQL = `delete from whence.upstreams where tenant = @tenant and name = @name`
)

func (u *Upstream) args() (pgx.NamedArgs, error) {
	rules, err := json.Marshal(u.Rules)
	return pgx.NamedArgs{"tenant": u.Tenant, "name": u.Name, "url": u.URL, "env": u.AuthorizationEnv, "rules": string(rules), "timeout": u.Timeout,
		"ranges": u.PrivateRanges, "maxRequest": u.MaxRequestBytes, "maxResponse": u.MaxResponseBytes, "digest": u.Digest[:]}, err
}

func scan(row pgx.CollectableRow) (*Upstream, error) {
	var d Definition
	var rules []byte
	var version int64
	var created time.Time
	if err := row.Scan(&d.Tenant, &d.Name, &d.URL, &d.AuthorizationEnv, &rules, &d.Timeout, &d.PrivateRanges,
		&d.MaxRequestBytes, &d.MaxResponseBytes, &version, &created); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(rules, &d.Rules); err != nil {
		return nil, err
	}
	u, err := New(d)
	if err != nil {
		return nil, fmt.Errorf("upstream %q is stored in a form that this version does not take: %w", d.Name, err)
	}
	u.Version, u.Created = version, created.UTC()
	return u, nil
}

// Create stores a new upstream and tells its version.
func (s *Store) Create(ctx context.Context, tx pgx.Tx, u *Upstream) (*Upstream, error) {
	s.doubt(u.Tenant, u.Name)
	return put(ctx, tx, u, "create an upstream", insertSQL)
}

// Update replaces the upstream of the same name. Its version is a new one, also
// where nothing else is.
func (s *Store) Update(ctx context.Context, tx pgx.Tx, u *Upstream) (*Upstream, error) {
	s.doubt(u.Tenant, u.Name)
	return put(ctx, tx, u, "update an upstream", updateSQL)
}

// doubt has the next call of Current read an upstream that is about to change.
func (s *Store) doubt(tenant, upstream string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.read[name{tenant, upstream}]; k != nil {
		k.at = time.Time{}
	}
}

func put(ctx context.Context, tx pgx.Tx, u *Upstream, doing, statement string) (*Upstream, error) {
	args, err := u.args()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	kept := *u
	err = tx.QueryRow(ctx, statement, args).Scan(&kept.Version, &kept.Created)
	var e *pgconn.PgError
	switch {
	case errors.As(err, &e) && e.ConstraintName == "upstreams_pkey":
		return nil, &whence.Error{Kind: whence.ErrExists, Reason: "UPSTREAM_EXISTS",
			Message: fmt.Sprintf("there is an upstream %q already; choose another name, or update that one", u.Name), Metadata: map[string]string{"upstream": u.Name}}
	case errors.Is(err, pgx.ErrNoRows):
		return nil, missing(u.Name)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", doing, pg.Translate(err))
	}
	kept.Created = kept.Created.UTC()
	return &kept, nil
}

// Delete closes the way to an upstream.
func (s *Store) Delete(ctx context.Context, tx pgx.Tx, tenant, name string) error {
	s.doubt(tenant, name)
	tag, err := tx.Exec(ctx, deleteSQL, pgx.NamedArgs{"tenant": tenant, "name": name})
	switch {
	case err != nil:
		return fmt.Errorf("delete an upstream: %w", pg.Translate(err))
	case tag.RowsAffected() == 0:
		return missing(name)
	}
	return nil
}

// Get returns the upstream of a name.
func (s *Store) Get(ctx context.Context, tenant, name string) (*Upstream, error) {
	rows, err := s.pool.Query(ctx, upstreamSQL, pgx.NamedArgs{"tenant": tenant, "name": name})
	if err != nil {
		return nil, fmt.Errorf("read an upstream: %w", pg.Translate(err))
	}
	u, err := pgx.CollectExactlyOneRow(rows, scan)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, missing(name)
	case err != nil:
		return nil, fmt.Errorf("read an upstream: %w", pg.Translate(err))
	}
	return u, nil
}

// Current returns the upstream of a name as it is now, or was half a second ago: a
// change is seen by every server within that. It reads the version, and the rest only
// where that is another than last time.
func (s *Store) Current(ctx context.Context, tenant, upstream string) (*Upstream, error) {
	key := name{tenant, upstream}
	began := time.Now()
	s.mu.Lock()
	k := s.read[key]
	fresh := k != nil && began.Sub(k.at) < stale
	s.mu.Unlock()
	if fresh {
		return k.upstream, nil
	}
	var version int64
	err := s.pool.QueryRow(ctx, versionSQL, pgx.NamedArgs{"tenant": tenant, "name": upstream}).Scan(&version)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		s.mu.Lock()
		delete(s.read, key)
		s.mu.Unlock()
		return nil, missing(upstream)
	case err != nil:
		return nil, fmt.Errorf("read an upstream: %w", pg.Translate(err))
	}
	var u *Upstream
	if k != nil && k.upstream.Version == version {
		u = k.upstream
	} else if u, err = s.Get(ctx, tenant, upstream); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read[key] = &known{u, began}
	return u, nil
}

// List returns a page of a tenant's upstreams, by name, and the token of the next one.
func (s *Store) List(ctx context.Context, tenant string, size int, token string) ([]*Upstream, string, error) {
	after, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || token != "" && !nameForm.Match(after) {
		return nil, "", whence.Invalid("pageToken", "PAGE_TOKEN_INVALID", "the page token is not one that this call gave; start again without one")
	}
	rows, err := s.pool.Query(ctx, listSQL, pgx.NamedArgs{"tenant": tenant, "after": string(after), "limit": size + 1})
	if err != nil {
		return nil, "", fmt.Errorf("list upstreams: %w", pg.Translate(err))
	}
	all, err := pgx.CollectRows(rows, scan)
	if err != nil || len(all) <= size {
		return all, "", pg.Translate(err)
	}
	return all[:size], base64.RawURLEncoding.EncodeToString([]byte(all[size-1].Name)), nil
}

func missing(name string) error {
	return &whence.Error{Kind: whence.ErrNotFound, Reason: "UPSTREAM_NOT_FOUND",
		Message: fmt.Sprintf("there is no upstream %q; whence upstream list (ListUpstreams) shows those there are", name), Metadata: map[string]string{"upstream": name}}
}
