package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/federation"
	"github.com/whence-db/whence/internal/pg"
)

// Agent is a program that acts for users. It proves who it is by a key of its own,
// or by the word of an issuer.
type Agent struct {
	Tenant, Name, Description string
	Issuer, Subject           string           // who vouches for it, and as whom; empty: nobody
	JWKS                      json.RawMessage  // its public keys; nil: none
	Ceiling                   *authz.ScopeSpec // what it may touch at most; nil: no bound of its own
	Revoked                   bool             // no call of it is let in
	Created                   time.Time
}

var agentName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}$`)

// Validate tells what is wrong with an agent, as an ErrInvalid about one field.
func (a Agent) Validate() error {
	switch {
	case !agentName.MatchString(a.Name):
		return whence.Invalid("name", "AGENT_INVALID", `an agent's name is a letter or digit, then letters, digits, ".", "_", ":", "/", "@" or "-"; at most 255`)
	case (a.Issuer == "") != (a.Subject == ""):
		return whence.Invalid("subject", "AGENT_INVALID", "say both who vouches for the agent (issuer) and as whom (subject), or neither")
	}
	if a.JWKS != nil {
		if err := federation.ValidateJWKS(a.JWKS); err != nil {
			return err
		}
	}
	if a.Ceiling != nil {
		return a.Ceiling.Validate()
	}
	return nil
}

const (
	agentsSQL = `
select a.tenant, a.name, a.description, coalesce(a.issuer, ''), coalesce(a.subject, ''), a.jwks, a.ceiling, a.created_at,
       exists (select from whence.revocations v where v.kind = 'AGENT' and v.tenant = a.tenant and v.target = a.name and v.reinstated_at is null)
from whence.agents a`

	agentSQL          = agentsSQL + ` where a.tenant = @tenant and a.name = @name`
	lockAgentSQL      = agentSQL + ` for no key update of a`
	holdAgentSQL      = agentSQL + ` for share of a`
	agentBySubjectSQL = agentsSQL + ` where a.issuer = @issuer and a.subject = @subject`
	listAgentsSQL     = agentsSQL + ` where (@tenant = '' or a.tenant = @tenant) and a.tenant || chr(1) || a.name > @after
order by a.tenant || chr(1) || a.name limit @limit`

	insertAgentSQL = `
insert into whence.agents (tenant, name, description, issuer, subject, jwks, ceiling)
values (@tenant, @name, @description, @issuer, @subject, @jwks, @ceiling)`

	updateAgentSQL = `
update whence.agents set description = @description, issuer = @issuer, subject = @subject, jwks = @jwks, ceiling = @ceiling
where tenant = @tenant and name = @name`

	deleteAgentSQL = `delete from whence.agents where tenant = @tenant and name = @name`
)

func scanAgent(row pgx.CollectableRow) (a Agent, err error) {
	var ceiling []byte
	if err := row.Scan(&a.Tenant, &a.Name, &a.Description, &a.Issuer, &a.Subject, &a.JWKS, &ceiling, &a.Created, &a.Revoked); err != nil {
		return a, err
	}
	a.Created = a.Created.UTC()
	if ceiling == nil {
		return a, nil
	}
	a.Ceiling = new(authz.ScopeSpec)
	return a, json.Unmarshal(ceiling, a.Ceiling)
}

func (a Agent) args() pgx.NamedArgs {
	args := pgx.NamedArgs{"tenant": a.Tenant, "name": a.Name, "description": pg.Text(a.Description),
		"issuer": optional(a.Issuer), "subject": optional(a.Subject), "jwks": nil, "ceiling": nil}
	if a.JWKS != nil {
		args["jwks"] = string(a.JWKS)
	}
	if a.Ceiling != nil {
		args["ceiling"] = toJSON(a.Ceiling)
	}
	return args
}

// CreateAgent makes an agent known.
func (r *Registry) CreateAgent(ctx context.Context, tx pgx.Tx, a Agent) error {
	if err := a.Validate(); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, insertAgentSQL, a.args())
	if violates(err, "agents_pkey") {
		return exists("agent", a.Name)
	}
	return agentError("create an agent", a, err)
}

// ChangeAgent lets change have its way with an agent and stores it.
func (r *Registry) ChangeAgent(ctx context.Context, tx pgx.Tx, tenant, name string, change func(*Agent)) (Agent, error) {
	a, found, err := one(ctx, tx, scanAgent, lockAgentSQL, pgx.NamedArgs{"tenant": tenant, "name": name})
	switch {
	case err != nil:
		return a, fmt.Errorf("change an agent: %w", pg.Translate(err))
	case !found:
		return a, missing("agent", name)
	}
	change(&a)
	if err := a.Validate(); err != nil {
		return a, err
	}
	_, err = tx.Exec(ctx, updateAgentSQL, a.args())
	return a, agentError("change an agent", a, err)
}

func agentError(doing string, a Agent, err error) error {
	switch {
	case violates(err, "agents_issuer_fkey"):
		return whence.Invalid("issuer", "ISSUER_NOT_FOUND", fmt.Sprintf("no issuer %q is registered; register it first", a.Issuer))
	case violates(err, "agents_issuer_subject_key"):
		return &whence.Error{Kind: whence.ErrExists, Reason: "AGENT_EXISTS", Message: "another agent is known by this issuer and subject; use that one, or give this one a subject of its own", Field: "subject"}
	case err != nil:
		return fmt.Errorf("%s: %w", doing, pg.Translate(err))
	}
	return nil
}

// DeleteAgent removes an agent with its grants.
func (r *Registry) DeleteAgent(ctx context.Context, tx pgx.Tx, tenant, name string) error {
	tag, err := tx.Exec(ctx, deleteAgentSQL, pgx.NamedArgs{"tenant": tenant, "name": name})
	switch {
	case err != nil:
		return fmt.Errorf("delete an agent: %w", pg.Translate(err))
	case tag.RowsAffected() == 0:
		return missing("agent", name)
	}
	return nil
}

// Agent returns the agent of a name.
func (r *Registry) Agent(ctx context.Context, tenant, name string) (Agent, error) {
	return r.agent(ctx, name, agentSQL, pgx.NamedArgs{"tenant": tenant, "name": name})
}

// HoldAgent reads an agent and keeps it as it is until tx ends.
func (r *Registry) HoldAgent(ctx context.Context, tx pgx.Tx, tenant, name string) (a Agent, found bool, err error) {
	a, found, err = one(ctx, tx, scanAgent, holdAgentSQL, pgx.NamedArgs{"tenant": tenant, "name": name})
	return a, found, pg.Translate(err)
}

// AgentBySubject returns the agent that an issuer knows as subject.
func (r *Registry) AgentBySubject(ctx context.Context, issuer, subject string) (Agent, error) {
	return r.agent(ctx, subject, agentBySubjectSQL, pgx.NamedArgs{"issuer": issuer, "subject": subject})
}

func (r *Registry) agent(ctx context.Context, name, sql string, args pgx.NamedArgs) (Agent, error) {
	a, found, err := one(ctx, r.pool, scanAgent, sql, args)
	switch {
	case err != nil:
		return a, fmt.Errorf("read an agent: %w", pg.Translate(err))
	case !found:
		return a, missing("agent", name)
	}
	return a, nil
}

// Agents returns a page of the agents, by tenant and name, and the token of the
// next one. An empty tenant is any.
func (r *Registry) Agents(ctx context.Context, tenant string, p Page) ([]Agent, string, error) {
	all, next, err := page(ctx, r.pool, scanAgent, func(a Agent) string { return a.Tenant + "\x01" + a.Name }, p,
		listAgentsSQL, pgx.NamedArgs{"tenant": tenant})
	return all, next, pg.Translate(err)
}

const spendAssertionSQL = `
insert into whence.assertions (agent, token_id, expires_at) values (@agent, @id, @expires) on conflict do nothing`

const dropAssertionsSQL = `delete from whence.assertions where expires_at < now()`

// SpendAssertion takes an agent's assertion, which is good for one exchange,
// whatever process it reaches and whatever comes of it.
func (r *Registry) SpendAssertion(ctx context.Context, tenant string, a federation.AssertedAgent) error {
	tag, err := r.pool.Exec(ctx, spendAssertionSQL, pgx.NamedArgs{"agent": tenant + " " + a.Agent, "id": a.TokenID, "expires": a.Expires})
	switch {
	case err != nil:
		return fmt.Errorf("spend an assertion: %w", pg.Translate(err))
	case tag.RowsAffected() == 0:
		return &whence.Error{Kind: whence.ErrUnauthenticated, Reason: "ASSERTION_REPLAYED", Field: "client_assertion",
			Message: "the client_assertion was used before; sign a new one, with a jti of its own, for each request"}
	}
	return nil
}

// DropAssertions forgets assertions that have expired.
func (r *Registry) DropAssertions(ctx context.Context) error {
	_, err := r.pool.Exec(ctx, dropAssertionsSQL)
	return pg.Translate(err)
}
