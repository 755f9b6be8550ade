package main

import (
	"context"
	"time"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/seal"
)

type tokenOperator struct {
	Name        string        `arg:"" help:"Who the operator is."`
	Role        string        `enum:"viewer,approver,admin" default:"viewer" help:"viewer, approver or admin."`
	Lifetime    time.Duration `default:"1h" help:"At most 24h."`
	DatabaseURL string        `name:"database-url" env:"WHENCE_DATABASE_URL" required:"" help:"Connection string of the memory database." placeholder:"DSN"`
	SecretKey   string        `env:"WHENCE_SECRET_KEY" required:"" help:"The server's secret key." placeholder:"KEY"`
	Issuer      string        `env:"WHENCE_ISSUER" required:"" help:"Public URL of the installation." placeholder:"URL"`

	signingFlags `embed:""`
}

// Run signs with the stored key, which only who holds the secret key can unseal, or
// with that of the server's key file.
func (c *tokenOperator) Run(ctx context.Context, a *app) error {
	secret, err := seal.ParseKey(c.SecretKey)
	if err != nil {
		return err
	}
	pool, err := pg.NewPool(ctx, c.DatabaseURL, 2)
	if err != nil {
		return err
	}
	defer pool.Close()
	keys, err := c.keys(ctx, pool, secret, true)
	if err != nil {
		return err
	}
	issuer, err := authz.NewIssuer(authz.IssuerConfig{Name: c.Issuer, Keys: keys})
	if err != nil {
		return err
	}
	token, expires, err := issuer.IssueOperator(c.Name, authz.Role(c.Role), c.Lifetime)
	if err != nil {
		return err
	}
	if a.json {
		return showJSON(a.out, map[string]any{"token": token, "expireTime": expires})
	}
	a.printf("%s\n", token)
	return nil
}
