package main

import (
	"context"

	"github.com/whence-db/whence/migrations"
)

type migrateCmd struct {
	DatabaseURL string `name:"database-url" env:"WHENCE_DATABASE_URL" required:"" help:"Connection string of the memory database." placeholder:"DSN"`
}

func (c *migrateCmd) Run(ctx context.Context, a *app) error {
	if err := checkMemoryDatabase(ctx, c.DatabaseURL); err != nil {
		return err
	}
	if err := migrations.Up(ctx, c.DatabaseURL); err != nil {
		return err
	}
	if a.json {
		return showJSON(a.out, map[string]any{"migrated": true})
	}
	a.printf("the memory database is up to date\n")
	return nil
}
