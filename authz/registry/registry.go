// Package registry keeps what operators have settled about authority: which
// issuers are trusted, which agents there are, and for whom an agent may act.
//
// The governing idea: nothing here is a credential. A grant says what may be asked
// for; a task's token says what was given, and stands by itself from then on, so
// that a change here never widens what is out there already.
package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
)

// Registry reads and writes the registrations. Changes take the transaction that
// records the call; reads do not need one. It is safe for concurrent use.
type Registry struct{ pool *pgxpool.Pool }

// New checks the configuration.
func New(pool *pgxpool.Pool) (*Registry, error) {
	if pool == nil {
		return nil, errors.New("registry: a pool is needed")
	}
	return &Registry{pool}, nil
}

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// one reads the row that a statement finds.
func one[T any](ctx context.Context, db querier, scan pgx.RowToFunc[T], sql string, args pgx.NamedArgs) (v T, found bool, err error) {
	rows, err := db.Query(ctx, sql, args)
	if err != nil {
		return v, false, err
	}
	v, err = pgx.CollectExactlyOneRow(rows, scan)
	if errors.Is(err, pgx.ErrNoRows) {
		return v, false, nil
	}
	return v, err == nil, err
}

// Page asks for part of a list.
type Page struct {
	Size  int    // at least 1
	Token string // of the page; empty: the first
}

// page reads a page of rows that are ordered by a text, which the statement
// compares with @after.
func page[T any](ctx context.Context, db querier, scan pgx.RowToFunc[T], key func(T) string, p Page, sql string, args pgx.NamedArgs) ([]T, string, error) {
	after := ""
	if p.Token != "" {
		b, err := base64.RawURLEncoding.DecodeString(p.Token)
		if err != nil {
			return nil, "", whence.Invalid("pageToken", "PAGE_TOKEN_INVALID", "the page token is not one that this call gave; start again without one")
		}
		after = string(b)
	}
	args["after"], args["limit"] = after, p.Size+1
	rows, err := db.Query(ctx, sql, args)
	if err != nil {
		return nil, "", err
	}
	all, err := pgx.CollectRows(rows, scan)
	if err != nil || len(all) <= p.Size {
		return all, "", err
	}
	all = all[:p.Size]
	return all, base64.RawURLEncoding.EncodeToString([]byte(key(all[p.Size-1]))), nil
}

// violates tells whether a statement failed for a constraint of the table.
func violates(err error, constraint string) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && e.ConstraintName == constraint
}

// lists says which call lists those of a kind.
var lists = map[string]string{"agent": "ListAgents", "issuer": "ListIssuers", "grant": "ListGrants"}

func missing(kind, name string) error {
	return &whence.Error{Kind: whence.ErrNotFound, Reason: strings.ToUpper(kind) + "_NOT_FOUND",
		Message: fmt.Sprintf("there is no %s %q; whence %s list (%s) shows those there are", kind, name, kind, lists[kind]), Metadata: map[string]string{kind: name}}
}

// exists refuses an agent or issuer that is there already.
func exists(kind, name string) error {
	return &whence.Error{Kind: whence.ErrExists, Reason: strings.ToUpper(kind) + "_EXISTS",
		Message: fmt.Sprintf("there is an %s %q already; choose another name, or change that one", kind, name), Metadata: map[string]string{kind: name}}
}

func toJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil { // scopes and maps of strings
		panic(err)
	}
	return string(b)
}

// optional is null for an empty text.
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
