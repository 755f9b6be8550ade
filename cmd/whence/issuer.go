package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

type issuerCmd struct {
	Create issuerCreate `cmd:"" help:"Trust an identity provider to say who users and agents are."`
	List   issuerList   `cmd:"" default:"withargs" help:"List trusted issuers."`
	Get    issuerGet    `cmd:"" help:"Show one issuer."`
	Delete issuerDelete `cmd:"" help:"Stop trusting an issuer."`
}

type issuerCreate struct {
	operatorFlags `embed:""`
	Name          string            `arg:"" help:"Its name here."`
	Identity      string            `arg:"" name:"issuer-url" help:"The iss of its tokens, to the letter; spiffe://DOMAIN for a SPIFFE trust domain."`
	Audience      string            `required:"" help:"What its tokens must be for (aud): the client id or resource that is registered there for Whence."`
	Algorithm     []string          `required:"" help:"What it signs with, such as ES256."`
	JWKSURL       string            `name:"jwks-url" help:"Where its keys are; otherwise as its discovery document says." placeholder:"URL"`
	Tenant        string            `help:"The tenant of all its users; otherwise as the tenant claim says, or else default."`
	TenantClaim   string            `help:"Claim that holds a user's tenant." placeholder:"CLAIM"`
	SubjectClaim  string            `help:"Claim that says who it is; otherwise sub." placeholder:"CLAIM"`
	GroupsClaim   string            `help:"Claim that lists a user's groups; otherwise groups." placeholder:"CLAIM"`
	Operator      map[string]string `help:"Role of a group of operators: viewer, approver or admin." mapsep:"none" placeholder:"GROUP=ROLE"`

	scopeFlags `embed:"" group:"What agents may touch for its users at most (nothing, if none is given):"`
}

func (c *issuerCreate) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.CreateIssuer(ctx, &v1.CreateIssuerRequest{Name: c.Name, Url: c.Identity, Audience: c.Audience, JwksUrl: c.JWKSURL,
		Algorithms: c.Algorithm, Tenant: c.Tenant, TenantClaim: c.TenantClaim, SubjectClaim: c.SubjectClaim, GroupsClaim: c.GroupsClaim,
		Operators: c.Operator, UserScope: c.message()})
	if err != nil {
		return err
	}
	return show(a, res, func() { printIssuer(a, res.GetIssuer()) })
}

type issuerList struct {
	operatorFlags `embed:""`
	pageFlags     `embed:""`
}

func (c *issuerList) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.ListIssuers(ctx, &v1.ListIssuersRequest{PageSize: c.Limit, PageToken: c.Page})
	if err != nil {
		return err
	}
	return show(a, res, func() { printIssuers(a, res.GetIssuers()...); a.more(res.GetNextPageToken()) })
}

type issuerName struct {
	operatorFlags `embed:""`
	Name          string `arg:"" help:"The issuer's name."`
}

type issuerGet struct {
	issuerName `embed:""`
}

func (c *issuerGet) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.GetIssuer(ctx, &v1.GetIssuerRequest{Name: c.Name})
	if err != nil {
		return err
	}
	return show(a, res, func() { printIssuer(a, res.GetIssuer()) })
}

type issuerDelete struct {
	issuerName `embed:""`
}

func (c *issuerDelete) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.DeleteIssuer(ctx, &v1.DeleteIssuerRequest{Name: c.Name})
	if err != nil {
		return err
	}
	return show(a, res, func() { a.printf("issuer %s is not trusted any more\n", c.Name) })
}

func printIssuers(a *app, issuers ...*v1.Issuer) {
	columns(a, "ISSUER\tURL\tTENANT\tALGORITHMS\tOPERATORS\tUSERS' AGENTS MAY TOUCH", func(w *tabwriter.Writer) {
		for _, i := range issuers {
			tenant := i.GetTenant()
			switch {
			case i.GetTenantClaim() != "":
				tenant = "by claim " + i.GetTenantClaim()
			case tenant == "":
				tenant = "default"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", i.GetName(), i.GetUrl(), tenant, strings.Join(i.GetAlgorithms(), " "),
				rolesText(i.GetOperators()), scopeText(i.GetUserScope()))
		}
	})
}

// printIssuer shows all of one.
func printIssuer(a *app, i *v1.Issuer) {
	printIssuers(a, i)
	a.printf("audience: %s\n", i.GetAudience())
	a.printf("keys: %s\n", cmp.Or(i.GetJwksUrl(), "where its discovery document says"))
	a.printf("claims: who it is by %s, groups by %s, tenant by %s\n", cmp.Or(i.GetSubjectClaim(), "sub"), cmp.Or(i.GetGroupsClaim(), "groups"),
		cmp.Or(i.GetTenantClaim(), "none"))
}

func rolesText(roles map[string]string) string {
	if len(roles) == 0 {
		return "none"
	}
	var words []string
	for _, group := range slices.Sorted(maps.Keys(roles)) {
		words = append(words, group+"="+roles[group])
	}
	return strings.Join(words, " ")
}

// pageFlags ask for part of a list.
type pageFlags struct {
	Limit uint32 `help:"The most to list, at most 1000." default:"100"`
	Page  string `help:"Which page: the token that the page before gave." placeholder:"TOKEN"`
}

// more says how to see the next page, if there is one.
func (a *app) more(token string) {
	if token != "" {
		a.printf("there are more: --page %s\n", token)
	}
}
