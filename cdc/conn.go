package cdc

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// sessionParameters are set on every connection, so that a value has one text
// form whether the stream or a backfill brings it, and so that a server's, a
// database's or a role's defaults neither end a long copy, nor filter its rows
// unseen, nor change what a statement of ours means.
var sessionParameters = map[string]string{
	"application_name":                    "whence capture",
	"client_encoding":                     "UTF8",
	"datestyle":                           "ISO, MDY",
	"intervalstyle":                       "postgres",
	"timezone":                            "UTC",
	"extra_float_digits":                  "1",
	"bytea_output":                        "hex",
	"lc_monetary":                         "C",
	"xmlbinary":                           "base64",
	"quote_all_identifiers":               "off",        // it changes how regclass and its kind print
	"search_path":                         "pg_catalog", // regclass and its kind print what it does not find with the schema
	"row_security":                        "off",        // an error, where policies would hide rows
	"standard_conforming_strings":         "on",
	"default_transaction_isolation":       "read committed",
	"default_transaction_read_only":       "off",
	"statement_timeout":                   "0",
	"lock_timeout":                        "0",
	"idle_in_transaction_session_timeout": "0",
	"idle_session_timeout":                "0",
}

// unsetTimeout is for servers that know the parameter; others refuse a
// connection that names it.
const unsetTimeout = `select set_config(name, '0', false) from pg_catalog.pg_settings where name = 'transaction_timeout'`

func (c *Capture) connect(ctx context.Context) (*pgx.Conn, error) {
	conn, err := connect(ctx, c.conn.Copy())
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, unsetTimeout); err != nil {
		closeConn(ctx, conn.PgConn())
		return nil, fmt.Errorf("prepare the session: %w", err)
	}
	return conn, nil
}

// connectLimit is for a server that accepts a connection and never answers;
// connect_timeout in the connection string wins.
const connectLimit = 15 * time.Second

// connectAttached connects to the cluster that the stream is attached to.
func (c *Capture) connectAttached(ctx context.Context) (*pgx.Conn, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	if err := onCluster(ctx, conn, *c.cluster.Load()); err != nil {
		closeConn(ctx, conn.PgConn())
		return nil, err
	}
	return conn, nil
}

func connect(ctx context.Context, cfg *pgx.ConnConfig) (*pgx.Conn, error) {
	defaultTo(&cfg.ConnectTimeout, connectLimit)
	delete(cfg.RuntimeParams, "replication")
	for k, v := range sessionParameters {
		cfg.RuntimeParams[k] = v
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to the source: %w", err)
	}
	return conn, nil
}

func (c *Capture) connectReplication(ctx context.Context) (*pgconn.PgConn, error) {
	cfg := c.conn.Config.Copy()
	defaultTo(&cfg.ConnectTimeout, connectLimit)
	for k, v := range sessionParameters {
		cfg.RuntimeParams[k] = v
	}
	cfg.RuntimeParams["replication"] = "database"
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		if isCode(err, codeDenied) {
			return nil, &BrokenError{Message: noReplicationPrivilege(cfg.User), Err: err}
		}
		return nil, fmt.Errorf("connect to the source for replication: %w", err)
	}
	return conn, nil
}

// closeConn says goodbye also when ctx has ended, but not for long, and waits
// for the driver's own clean-up.
func closeConn(ctx context.Context, conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = conn.Close(ctx) // the connection is given up either way
	select {
	case <-conn.CleanupDone():
	case <-ctx.Done():
	}
}
