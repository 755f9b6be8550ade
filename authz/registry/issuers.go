package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/federation"
	"github.com/whence-db/whence/internal/pg"
)

// Issuer is a trusted issuer with the time of its registration.
type Issuer struct {
	federation.Issuer
	Created time.Time
}

const (
	issuersSQL = `
select name, url, audience, jwks_url, algorithms, tenant, tenant_claim, subject_claim, groups_claim, operators, user_scope, created_at
from whence.issuers`

	issuerByNameSQL = issuersSQL + ` where name = @name`
	issuerByURLSQL  = issuersSQL + ` where url = @url`
	listIssuersSQL  = issuersSQL + ` where name > @after order by name limit @limit`

	insertIssuerSQL = `
insert into whence.issuers (name, url, audience, jwks_url, algorithms, tenant, tenant_claim, subject_claim, groups_claim, operators, user_scope)
values (@name, @url, @audience, @jwks, @algorithms, @tenant, @tenantClaim, @subjectClaim, @groupsClaim, @operators, @scope)`

	renewIssuerSQL = insertIssuerSQL + `
on conflict (name) do update set url = excluded.url, audience = excluded.audience, algorithms = excluded.algorithms,
    operators = excluded.operators, user_scope = excluded.user_scope`

	deleteIssuerSQL = `delete from whence.issuers where name = @name`
)

func scanIssuer(row pgx.CollectableRow) (i Issuer, err error) {
	var operators, scope []byte
	if err := row.Scan(&i.Name, &i.URL, &i.Audience, &i.JWKSURL, &i.Algorithms, &i.Tenant, &i.TenantClaim,
		&i.SubjectClaim, &i.GroupsClaim, &operators, &scope, &i.Created); err != nil {
		return i, err
	}
	i.Created = i.Created.UTC()
	if err := json.Unmarshal(operators, &i.Operators); err != nil {
		return i, err
	}
	return i, json.Unmarshal(scope, &i.UserScope)
}

// CreateIssuer trusts an issuer. Its URL and its name are each registered once.
func (r *Registry) CreateIssuer(ctx context.Context, tx pgx.Tx, i federation.Issuer) error {
	return putIssuer(ctx, tx, i, insertIssuerSQL)
}

// RenewIssuer trusts an issuer in place of the one that had its name: one that is
// reached at another address than before.
func (r *Registry) RenewIssuer(ctx context.Context, tx pgx.Tx, i federation.Issuer) error {
	return putIssuer(ctx, tx, i, renewIssuerSQL)
}

func putIssuer(ctx context.Context, tx pgx.Tx, i federation.Issuer, statement string) error {
	if err := i.Validate(); err != nil {
		return err
	}
	if i.Operators == nil {
		i.Operators = map[string]authz.Role{}
	}
	_, err := tx.Exec(ctx, statement, pgx.NamedArgs{"name": i.Name, "url": i.URL, "audience": i.Audience, "jwks": i.JWKSURL,
		"algorithms": i.Algorithms, "tenant": i.Tenant, "tenantClaim": i.TenantClaim, "subjectClaim": i.SubjectClaim,
		"groupsClaim": i.GroupsClaim, "operators": toJSON(i.Operators), "scope": toJSON(i.UserScope)})
	switch {
	case violates(err, "issuers_pkey"):
		return exists("issuer", i.Name)
	case violates(err, "issuers_url_key"):
		return exists("issuer", i.URL)
	case err != nil:
		return fmt.Errorf("create an issuer: %w", pg.Translate(err))
	}
	return nil
}

// DeleteIssuer ends the trust in an issuer: its users' and agents' tokens are not
// taken from then on. What was given on their word stays until it ends or is
// revoked. An issuer that vouches for a registered agent stays.
func (r *Registry) DeleteIssuer(ctx context.Context, tx pgx.Tx, name string) error {
	tag, err := tx.Exec(ctx, deleteIssuerSQL, pgx.NamedArgs{"name": name})
	switch {
	case violates(err, "agents_issuer_fkey"):
		return &whence.Error{Kind: whence.ErrPrecondition, Reason: "ISSUER_IN_USE",
			Message: "registered agents are known by this issuer; delete them first, or give them keys of their own", Metadata: map[string]string{"issuer": name}}
	case err != nil:
		return fmt.Errorf("delete an issuer: %w", pg.Translate(err))
	case tag.RowsAffected() == 0:
		return missing("issuer", name)
	}
	return nil
}

// Issuer returns the issuer of a name.
func (r *Registry) Issuer(ctx context.Context, name string) (Issuer, error) {
	return r.issuer(ctx, name, issuerByNameSQL, pgx.NamedArgs{"name": name})
}

// IssuerByURL returns the issuer whose tokens name this URL, to the letter.
func (r *Registry) IssuerByURL(ctx context.Context, url string) (federation.Issuer, error) {
	i, err := r.issuer(ctx, url, issuerByURLSQL, pgx.NamedArgs{"url": url})
	return i.Issuer, err
}

func (r *Registry) issuer(ctx context.Context, name, sql string, args pgx.NamedArgs) (Issuer, error) {
	i, found, err := one(ctx, r.pool, scanIssuer, sql, args)
	switch {
	case err != nil:
		return i, fmt.Errorf("read an issuer: %w", pg.Translate(err))
	case !found:
		return i, missing("issuer", name)
	}
	return i, nil
}

// Issuers returns a page of the issuers, by name, and the token of the next one.
func (r *Registry) Issuers(ctx context.Context, p Page) ([]Issuer, string, error) {
	all, next, err := page(ctx, r.pool, scanIssuer, func(i Issuer) string { return i.Name }, p, listIssuersSQL, pgx.NamedArgs{})
	return all, next, pg.Translate(err)
}
