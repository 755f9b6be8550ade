package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/internal/strict"
)

// User verifies an ID token or a JWT access token (RFC 9068 or plain) of a user
// by a trusted issuer. A refusal is a *whence.Error of kind ErrUnauthenticated
// whose message never repeats the token; ErrUnavailable means that the issuer's
// keys could not be had.
func (v *Verifier) User(ctx context.Context, text string) (Identity, error) {
	t, err := subjectToken.parse(text)
	if err != nil {
		return Identity{}, err
	}
	i, err := v.issuer(ctx, t, t.issuer)
	if err != nil {
		return Identity{}, err
	}
	if i.isSPIFFE() {
		return Identity{}, t.wrongType("is a workload's, not a user's")
	}
	id, err := v.identify(ctx, t, i)
	if err != nil {
		return Identity{}, err
	}
	if id.Tenant == authz.DefaultTenant {
		for _, group := range id.Groups {
			if r := i.Operators[group]; r.Valid() && (id.Role == "" || r.AtLeast(id.Role)) {
				id.Role = r
			}
		}
	}
	return id, nil
}

// Agent verifies an agent's token: a JWT by a trusted issuer, or a SPIFFE
// JWT-SVID. One that names no issuer is of the trust domain of its subject; one
// that names an issuer is that issuer's, whatever its subject looks like.
// Errors are those of [Verifier.User].
func (v *Verifier) Agent(ctx context.Context, text string) (Identity, error) {
	t, err := actorToken.parse(text)
	if err != nil {
		return Identity{}, err
	}
	at := t.issuer
	if at == "" {
		if domain, path, err := parseSPIFFE(t.subject); err == nil && path != "" {
			at = spiffeScheme + "://" + domain
		}
	}
	i, err := v.issuer(ctx, t, at)
	if err != nil {
		return Identity{}, err
	}
	return v.identify(ctx, t, i)
}

// issuer finds the registration of a token's issuer. It says whose keys to try,
// so it comes before the signature; nothing else of the claims does.
func (v *Verifier) issuer(ctx context.Context, t *token, at string) (Issuer, error) {
	unknown := func(cause error) error {
		return t.role.refuse("TOKEN_ISSUER_UNKNOWN", "was issued by somebody who is not trusted here; ask an operator to register its issuer", cause)
	}
	if !strict.Plain(at) {
		return Issuer{}, unknown(nil)
	}
	i, err := v.c.Issuers(ctx, at)
	switch {
	case errors.Is(err, whence.ErrNotFound):
		return Issuer{}, unknown(err)
	case err != nil:
		return Issuer{}, fmt.Errorf("find issuer of a token: %w", err)
	case i.URL != at: // a look-up that does not mind case or a slash
		return Issuer{}, unknown(nil)
	}
	if err := i.Validate(); err != nil {
		return Issuer{}, fmt.Errorf("registration of issuer %q: %s", i.Name, err.Error()) // not the caller's mistake
	}
	return i, nil
}

// identify verifies all that the registration decides.
func (v *Verifier) identify(ctx context.Context, t *token, i Issuer) (Identity, error) {
	if !slices.Contains(i.Algorithms, t.algorithm) {
		return Identity{}, t.role.badSignature(errors.New("the algorithm is not registered for the issuer"))
	}
	signers, err := v.keySet(i).find(ctx, t.signers)
	if err != nil {
		return Identity{}, err
	}
	if err := t.checkSignature(signers); err != nil {
		return Identity{}, err
	}
	// OpenID Connect Core, section 3.1.3.7: of several audiences azp is the one
	// that the token was given to.
	if !slices.Contains(t.audience, i.Audience) || len(t.audience) > 1 && t.party != nil && *t.party != i.Audience {
		return Identity{}, t.role.wrongAudience()
	}
	now := v.c.Clock()
	if err := t.checkLifetime(now, !i.isSPIFFE()); err != nil {
		return Identity{}, err
	}
	if err := t.checkTime(now); err != nil {
		return Identity{}, err
	}
	return t.identity(i)
}

// identity reads whom a verified token speaks of.
func (t *token) identity(i Issuer) (id Identity, err error) {
	id = Identity{Issuer: i, TokenID: t.id, Tenant: i.Tenant, Expires: t.expires.Time()}
	if t.issued != nil {
		id.IssuedAt = t.issued.Time()
	}
	if id.Subject, err = t.name(i.SubjectClaim, "sub"); err != nil {
		return Identity{}, err
	}
	if i.SubjectClaim == "email" && !t.emailVerified() {
		return Identity{}, t.role.malformed("its issuer has not verified the email address (email_verified)")
	}
	if i.isSPIFFE() {
		domain, path, err := parseSPIFFE(id.Subject)
		if err != nil || path == "" || spiffeScheme+"://"+domain != i.URL {
			return Identity{}, t.role.malformed("its sub is not a SPIFFE ID of the trust domain")
		}
	}
	switch {
	case i.TenantClaim != "":
		if id.Tenant, err = t.name(i.TenantClaim, ""); err != nil {
			return Identity{}, err
		}
	case i.Tenant == "":
		id.Tenant = authz.DefaultTenant
	}
	id.Groups, err = t.groups(i.GroupsClaim)
	if err != nil {
		return Identity{}, err
	}
	return id, nil
}

// name reads a claim that must be a name.
func (t *token) name(claim, usual string) (string, error) {
	if claim == "" {
		claim = usual
	}
	var s string
	if json.Unmarshal(t.members[claim], &s) != nil || !strict.Plain(s) {
		return "", t.role.malformed("its claim " + claim + " is missing or not plain text of at most 512 bytes")
	}
	return s, nil
}

// groups reads a list of names, or one name. No claim is no group.
func (t *token) groups(claim string) ([]string, error) {
	if claim == "" {
		claim = "groups"
	}
	var groups strict.Audience // one or several
	if raw, ok := t.members[claim]; ok && json.Unmarshal(raw, &groups) != nil ||
		slices.ContainsFunc(groups, func(g string) bool { return !strict.Plain(g) }) {
		return nil, t.role.malformed("its claim " + claim + " is not a list of names")
	}
	return groups, nil
}

// emailVerified reads a claim that some issuers write as a string.
func (t *token) emailVerified() bool {
	raw := string(t.members["email_verified"])
	return raw == "true" || raw == `"true"`
}
