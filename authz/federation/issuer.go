package federation

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/internal/strict"
)

// Issuer is an identity provider that is trusted, as an operator registered it.
type Issuer struct {
	Name string
	// URL is the iss of its tokens, to the letter. For a SPIFFE trust domain it is
	// "spiffe://trust-domain".
	URL      string
	Audience string // what its tokens must be for
	// JWKSURL is where its keys are; empty: where URL/.well-known/openid-configuration
	// says. A SPIFFE trust domain must have one.
	JWKSURL    string
	Algorithms []string // that it may sign with; see [Algorithms]
	// Tenant is the tenant of all its users, or TenantClaim the claim that holds
	// it. With neither, it is [authz.DefaultTenant].
	Tenant, TenantClaim string
	// SubjectClaim names the claim that tells who it is; empty is sub. When it is
	// email, email_verified must be true.
	SubjectClaim string
	GroupsClaim  string                // empty is groups
	Operators    map[string]authz.Role // group -> role
	UserScope    authz.ScopeSpec       // what its users may touch at most
}

const (
	spiffeScheme  = "spiffe"
	maxURL        = 2048
	maxOperators  = 1000
	issuerInvalid = "ISSUER_INVALID"
)

// Validate tells what is wrong with a registration, as an ErrInvalid about one field.
func (i Issuer) Validate() error {
	invalid := func(field, message string) error { return whence.Invalid(field, issuerInvalid, message) }
	if !strict.Plain(i.Name) {
		return invalid("name", "name the issuer, in plain text of at most 512 bytes")
	}
	if i.isSPIFFE() {
		if domain, path, err := parseSPIFFE(i.URL); err != nil || domain == "" || path != "" {
			return invalid("url", `write a trust domain as "spiffe://example.org", without a path`)
		}
		if i.JWKSURL == "" {
			return invalid("jwksUrl", "a trust domain has no discovery; say where its bundle is")
		}
		if i.SubjectClaim != "" && i.SubjectClaim != "sub" {
			return invalid("subjectClaim", "the subject of a SPIFFE token is its sub; leave this out")
		}
	} else if err := checkURL(i.URL, strict.MaxName, false); err != nil {
		return invalid("url", "the issuer's URL: "+err.Error())
	}
	if i.JWKSURL != "" {
		if err := checkURL(i.JWKSURL, maxURL, true); err != nil {
			return invalid("jwksUrl", "the key set's URL: "+err.Error())
		}
	}
	if !strict.Plain(i.Audience) {
		return invalid("audience", "say what its tokens must be for (aud): the client id or the resource that is registered there for Whence")
	}
	if len(i.Algorithms) == 0 {
		return invalid("algorithms", "name the algorithms that it signs with, of "+strings.Join(Algorithms(), ", "))
	}
	for _, a := range i.Algorithms {
		if !slices.Contains(Algorithms(), a) {
			return invalid("algorithms", fmt.Sprintf("%q is not one of %s", a, strings.Join(Algorithms(), ", ")))
		}
	}
	switch {
	case i.Tenant != "" && i.TenantClaim != "":
		return invalid("tenantClaim", "set tenant or tenantClaim, not both")
	case i.Tenant != "" && !strict.Plain(i.Tenant):
		return invalid("tenant", "a tenant is plain text of at most 512 bytes")
	}
	for field, claim := range map[string]string{
		"tenantClaim": i.TenantClaim, "subjectClaim": i.SubjectClaim, "groupsClaim": i.GroupsClaim} {
		if claim != "" && !strict.Plain(claim) {
			return invalid(field, "a claim's name is plain text of at most 512 bytes")
		}
	}
	if len(i.Operators) > maxOperators {
		return invalid("operators", fmt.Sprintf("at most %d groups may be operators", maxOperators))
	}
	if len(i.Operators) > 0 && i.TenantClaim != "" {
		return invalid("operators", "an issuer whose tokens choose their tenant makes no operators, for any of them could choose the installation's own; set tenant, or register the operators' issuer apart")
	}
	for group, role := range i.Operators {
		if !strict.Plain(group) || !role.Valid() {
			return invalid("operators", "map groups, in plain text, to viewer, approver or admin")
		}
	}
	return i.checkScope()
}

func (i Issuer) checkScope() error {
	err := i.UserScope.Validate()
	var e *whence.Error
	if !errors.As(err, &e) {
		return err
	}
	within := *e
	within.Field = strings.TrimSuffix("userScope."+e.Field, ".")
	return &within
}

func (i Issuer) isSPIFFE() bool { return strings.HasPrefix(i.URL, spiffeScheme+"://") }

// keyUse is what the keys of a set must be for, when it is said: RFC 7517, and
// for SPIFFE the trust domain's bundle format, where it must be said.
func (i Issuer) keyUse() (use string, required bool) {
	if i.isSPIFFE() {
		return "jwt-svid", true
	}
	return "sig", false
}

// checkURL tells whether documents may be fetched from a URL: nobody on the way
// can change them, or there is no way. An issuer's own has no query.
func checkURL(s string, most int, query bool) error {
	if len(s) > most || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("want ASCII of at most %d bytes, without spaces", most)
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Hostname() == "" || u.Opaque != "":
		return errors.New(`want a URL such as "https://id.example.org"`)
	case u.User != nil:
		return errors.New("take the user name and password out")
	case u.Fragment != "" || strings.Contains(s, "#"):
		return errors.New("take the fragment out")
	case !query && strings.Contains(s, "?"):
		return errors.New("take the query out")
	case u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())):
		return errors.New("want https (http only for addresses of this machine)")
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
