package ingest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/whence-db/whence"
)

// connectTimeout bounds every look at a live source.
const connectTimeout = 10 * time.Second

const sealPurpose = "source dsn"

// secrets are how a source's connection string is stored: one of the two.
type secrets struct {
	env    *string
	sealed []byte
}

func (r *Registry) dsn(name string, s secrets) (string, error) {
	if s.env != nil {
		dsn := r.getenv(*s.env)
		if dsn == "" {
			return "", refuse(whence.ErrPrecondition, "DSN_ENV_NOT_SET", fmt.Sprintf(
				"the environment variable %s, which holds the connection string of the source %q, is not set in this server", *s.env, name))
		}
		return dsn, nil
	}
	plain, err := r.seal.Open(sealPurpose+" "+name, s.sealed)
	return string(plain), err
}

// connect opens a connection to a source. Its errors say why it failed and
// never what was secret in the connection string.
func connect(ctx context.Context, name, dsn string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		// The cause is left out: it repeats the string.
		return nil, whence.Invalid("dsn", "DSN_INVALID",
			"the connection string cannot be read: write postgres://user:password@host:port/database")
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	cfg.RuntimeParams["application_name"] = "whence"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err == nil {
		return conn, nil
	}
	e := &whence.Error{Kind: whence.ErrUnavailable, Reason: "SOURCE_UNREACHABLE", RetryAfter: 5 * time.Second,
		Metadata: map[string]string{"source": name}}
	why := "it did not answer in time"
	var pe *pgconn.PgError
	switch {
	case errors.As(err, &pe):
		why = pe.Message
		if refuses(pe.Code) {
			e.Kind, e.Reason, e.Field, e.RetryAfter = whence.ErrPrecondition, "SOURCE_REFUSED", "dsn", 0
			why += "; correct the connection string, or let the role in"
		}
	case !errors.Is(err, context.DeadlineExceeded):
		why = err.Error()
	}
	if cfg.Password != "" {
		why = strings.ReplaceAll(why, cfg.Password, "…")
	}
	e.Message = fmt.Sprintf("cannot connect to the source %q at %s:%d, database %q, as %q: %s",
		name, cfg.Host, cfg.Port, cfg.Database, cfg.User, why)
	return nil, e
}

// refuses tells whether a server that answers so would do so again: the role, its
// password, the database or a parameter is not as it takes it.
func refuses(code string) bool {
	class := code[:min(2, len(code))]
	return class == "28" || class == "3D" || class == "42"
}

func closeConn(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // either way it is gone
}
