package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence/cdc"
	"github.com/whence-db/whence/internal/seal"
	"github.com/whence-db/whence/migrations"
)

type doctorCmd struct {
	DatabaseURL string `name:"database-url" env:"WHENCE_DATABASE_URL" help:"Connection string of the memory database." placeholder:"DSN"`
	SourceURL   string `name:"source-url" env:"WHENCE_SOURCE_URL" help:"Connection string of a source." placeholder:"DSN"`
	SecretKey   string `env:"WHENCE_SECRET_KEY" help:"The secret key." placeholder:"KEY"`
	URL         string `name:"url" env:"WHENCE_URL" help:"Base URL of a running server." placeholder:"URL"`
}

type finding struct {
	Check string `json:"check"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

// Run checks whatever it was told of, and fails if anything needs mending.
func (c *doctorCmd) Run(ctx context.Context, a *app) error {
	var found []finding
	check := func(name, subject string, fn func(context.Context) error) {
		if subject == "" {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		f := finding{Check: name, OK: true}
		if err := fn(ctx); err != nil {
			f.OK, f.Error = false, err.Error()
		}
		found = append(found, f)
	}
	check("memory database", c.DatabaseURL, func(ctx context.Context) error { return checkMemoryDatabase(ctx, c.DatabaseURL) })
	check("migrations", c.DatabaseURL, func(ctx context.Context) error {
		pending, err := migrations.Pending(ctx, c.DatabaseURL)
		if err == nil && pending {
			err = errors.New("some are missing: run whence migrate")
		}
		return err
	})
	if c.DatabaseURL != "" && sound(found) {
		found = append(found, checkCaptures(ctx, c.DatabaseURL)...)
	}
	check("secret key", c.SecretKey, func(context.Context) error {
		_, err := seal.ParseKey(c.SecretKey)
		return err
	})
	check("source", c.SourceURL, func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, c.SourceURL)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
		return cdc.CheckServer(ctx, conn)
	})
	check("server", c.URL, func(ctx context.Context) error { return checkServer(ctx, c.URL) })
	if len(found) == 0 {
		return errors.New("nothing to check: set WHENCE_DATABASE_URL, WHENCE_SOURCE_URL, WHENCE_SECRET_KEY or WHENCE_URL, or give their flags")
	}
	return report(a, found)
}

func sound(found []finding) bool {
	return !slices.ContainsFunc(found, func(f finding) bool { return !f.OK })
}

func report(a *app, found []finding) error {
	bad := 0
	for _, f := range found {
		if !f.OK {
			bad++
		}
	}
	if a.json {
		if err := showJSON(a.out, found); err != nil {
			return err
		}
	} else {
		for _, f := range found {
			if f.OK {
				a.printf("ok    %s\n", f.Check)
			} else {
				a.printf("MEND  %s: %s\n", f.Check, f.Error)
			}
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d checks need mending", bad, len(found))
	}
	return nil
}

// Least versions that the memory database needs.
const (
	leastPostgres = 150000
	leastVector   = "0.8"
)

const selectAbilities = `
select current_setting('server_version_num')::int,
       coalesce((select extversion from pg_extension where extname = 'vector'),
                (select default_version from pg_available_extensions where name = 'vector')),
       current_user::text, current_database()::text,
       exists (select from pg_extension where extname = 'vector')
           or (select rolsuper from pg_roles where rolname = current_user)
           or exists (select from pg_available_extension_versions v
                      where v.name = 'vector' and (v.trusted or not v.superuser)
                      and has_database_privilege(current_database(), 'CREATE')),
       to_regclass('whence.migrations') is not null or has_database_privilege(current_database(), 'CREATE')`

// checkMemoryDatabase tells, before a migration trips over it, what the server lacks.
func checkMemoryDatabase(ctx context.Context, dsn string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var version int
	var vector *string
	var role, database string
	var mayInstall, mayCreate bool
	err = conn.QueryRow(ctx, selectAbilities).Scan(&version, &vector, &role, &database, &mayInstall, &mayCreate)
	switch {
	case err != nil:
		return err
	case version < leastPostgres:
		return fmt.Errorf("the memory database runs PostgreSQL %d; 15 or newer is needed", version/10000)
	case vector == nil:
		return errors.New("the server has no pgvector: install it (Debian 13: apt-get install postgresql-17-pgvector; elsewhere scripts/setup-postgres builds it)")
	case !atLeast(*vector, leastVector):
		return fmt.Errorf("the server has pgvector %s; %s or newer is needed: install it, then ALTER EXTENSION vector UPDATE", *vector, leastVector)
	case !mayInstall:
		return fmt.Errorf("the role %q may not install pgvector: run CREATE EXTENSION vector in the database %q as a superuser", role, database)
	case !mayCreate:
		return fmt.Errorf("the role %q may not create a schema: run GRANT CREATE ON DATABASE %s TO %s as the database's owner",
			role, pgx.Identifier{database}.Sanitize(), pgx.Identifier{role}.Sanitize())
	}
	return nil
}

// atLeast compares versions of dotted numbers.
func atLeast(version, least string) bool {
	v, l := strings.Split(version, "."), strings.Split(least, ".")
	for i := range l {
		var a int
		if i < len(v) {
			a, _ = strconv.Atoi(v[i])
		}
		b, _ := strconv.Atoi(l[i])
		if a != b {
			return a > b
		}
	}
	return true
}

func checkServer(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(url, "/")+"/readyz", nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %s: its log says why", res.Status)
	}
	return nil
}
