package main

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/federation"
	"github.com/whence-db/whence/internal/devissuer"
	"github.com/whence-db/whence/internal/pg"
)

const (
	devIssuerPath = "/dev/issuer"
	loginClient   = "whence" // the client that people sign in with, and the audience of their tokens
	devOperators  = "operators"
)

// devClient is the client of one start of a development server. Its name is told to
// who may read dev.env: others on this machine cannot sign in.
func devClient() string { return loginClient + "-" + rand.Text() }

// devUsers are who can be signed in as while developing.
var devUsers = []devissuer.User{{Name: "dev", Groups: []string{devOperators}}, {Name: "user"}}

// mountIssuer puts an OpenID Connect provider beside the API, as a company's would
// be elsewhere, so that nothing about signing in is special here. Anyone who reaches
// it can be anyone, so a server that others reach does without.
func (c *devCmd) mountIssuer(ctx context.Context, s *process) error {
	client := devClient()
	issuer, err := devissuer.New(devissuer.Config{URL: s.url + devIssuerPath, Clients: []string{client}, Users: devUsers})
	if err != nil {
		s.log.WarnContext(ctx, "no development issuer: it is for servers on a loopback address", "error", err)
		return nil
	}
	c.client = client
	mux := http.NewServeMux()
	mux.Handle(devIssuerPath+"/", issuer)
	mux.Handle("/", s.handler)
	s.handler = mux
	return nil
}

// trustIssuer registers it, at the address that it has this time. Without one, the
// last time's is trusted no longer.
func (c *devCmd) trustIssuer(ctx context.Context, s *process) error {
	return pg.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		if c.client == "" {
			if err := s.authority.DeleteIssuer(ctx, tx, "dev"); !errors.Is(err, whence.ErrNotFound) {
				return err
			}
			return nil
		}
		return s.authority.RenewIssuer(ctx, tx, federation.Issuer{Name: "dev", URL: s.url + devIssuerPath, Audience: c.client,
			Algorithms: []string{"ES256"}, Operators: map[string]authz.Role{devOperators: authz.RoleAdmin},
			UserScope: authz.ScopeSpec{Type: authz.DetailType, AllTables: true, AllSubjects: true, Actions: authz.Actions(), Tier: authz.TierIrreversible}})
	})
}
