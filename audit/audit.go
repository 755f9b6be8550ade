// Package audit keeps the log of every call that was let in or refused: who
// called, for whom, within which task, what was decided and why.
//
// The governing idea: the log is part of the call. An entry is appended in the
// transaction that the call's outcome hangs on, many callers' entries in one
// statement, so that there is neither a buffer that can drop entries nor a lock
// that lines callers up. Entries are never changed; the database refuses it.
package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence/internal/pg"
)

// Decision is what became of a call.
type Decision string

const (
	// Allowed calls ran and succeeded.
	Allowed Decision = "ALLOWED"
	// Refused calls were not the caller's to make, or not in this form.
	Refused Decision = "REFUSED"
	// Failed calls were let in and did not succeed.
	Failed Decision = "FAILED"
)

// Valid tells whether d is one of the decisions.
func (d Decision) Valid() bool { return d == Allowed || d == Refused || d == Failed }

// Entry is one record of the log. Its texts may come from a caller who was not
// even authenticated, so nothing in it is to be trusted as markup.
type Entry struct {
	ID            int64     // given by the database; grows in the order of appending within a process
	At            time.Time // when the call came in
	Tenant        string
	Agent         string // empty for an operator or an unknown caller
	User          string
	Actors        []string  // the chain that acted, the calling agent first
	Task          uuid.UUID // zero when there is none
	RootTask      uuid.UUID // zero when there is none
	TokenID       string
	Call          string // as in "whence.v1.MemoryService/Query"
	Decision      Decision
	Reason        string        // empty when allowed
	RequestDigest [32]byte      // SHA-256 of the canonical request; zero when it could not be decoded
	Answer        uuid.UUID     // zero when the call gave none
	CallsCharged  int64         // to the task and each task above it
	Latency       time.Duration // stored in microseconds
	Detail        map[string]any
}

// Log is the audit log in one memory database. It is safe for concurrent use.
type Log struct {
	pool *pgxpool.Pool
}

// Config says where the log lives.
type Config struct {
	Pool *pgxpool.Pool // of the memory database
}

// New checks the configuration.
func New(c Config) (*Log, error) {
	if c.Pool == nil {
		return nil, errors.New("audit: a pool is needed")
	}
	return &Log{pool: c.Pool}, nil
}

const appendSQL = `
insert into whence.entries (at, tenant, agent, user_id, actors, task_id, root_task_id, token_id, call,
       decision, reason, request_digest, answer_id, calls_charged, latency_us, detail)
select at, tenant, agent, user_id, array(select jsonb_array_elements_text(actors)),
       nullif(task_id, @none), nullif(root_task_id, @none), token_id, call,
       decision, reason, request_digest, nullif(answer_id, @none), calls_charged, latency_us, detail
from unnest(@at::timestamptz[], @tenant::text[], @agent::text[], @user::text[], @actors::jsonb[],
            @task::uuid[], @root::uuid[], @token::text[], @call::text[], @decision::text[], @reason::text[],
            @digest::bytea[], @answer::uuid[], @charged::bigint[], @latency::bigint[], @detail::jsonb[])
  as e(at, tenant, agent, user_id, actors, task_id, root_task_id, token_id, call,
       decision, reason, request_digest, answer_id, calls_charged, latency_us, detail)`

// Append writes entries in one statement of the caller's transaction; they are
// durable when that commits. IDs are given in the order of the slice.
func (l *Log) Append(ctx context.Context, tx pgx.Tx, entries []Entry) error {
	if len(entries) == 0 {
		return nil
	}
	c, err := newColumns(entries)
	if err != nil {
		return fmt.Errorf("append to the audit log: %w", err)
	}
	if _, err := tx.Exec(ctx, appendSQL, c.args()); err != nil {
		return fmt.Errorf("append to the audit log: %w", pg.Translate(err))
	}
	return nil
}

// columns are entries turned on their side, as unnest wants them.
type columns struct {
	at                                     []time.Time
	tenant, agent, user, token             []string
	call, decision, reason, actors, detail []string
	task, root, answer                     []uuid.UUID
	digest                                 [][]byte
	charged, latency                       []int64
}

func newColumns(entries []Entry) (*columns, error) {
	var c columns
	for i := range entries {
		e := &entries[i]
		if !e.Decision.Valid() || e.Call == "" {
			return nil, fmt.Errorf("an entry needs a call and a decision, not %q and %q", e.Call, e.Decision)
		}
		actors, err := toJSON(e.Actors, "[]")
		if err != nil {
			return nil, err
		}
		detail, err := toJSON(e.Detail, "{}")
		if err != nil {
			return nil, err
		}
		c.at = append(c.at, e.At)
		c.tenant = append(c.tenant, pg.Text(e.Tenant))
		c.agent = append(c.agent, pg.Text(e.Agent))
		c.user = append(c.user, pg.Text(e.User))
		c.actors = append(c.actors, actors)
		c.task = append(c.task, e.Task)
		c.root = append(c.root, e.RootTask)
		c.token = append(c.token, pg.Text(e.TokenID))
		c.call = append(c.call, pg.Text(e.Call))
		c.decision = append(c.decision, string(e.Decision))
		c.reason = append(c.reason, pg.Text(e.Reason))
		c.digest = append(c.digest, e.RequestDigest[:])
		c.answer = append(c.answer, e.Answer)
		c.charged = append(c.charged, e.CallsCharged)
		c.latency = append(c.latency, e.Latency.Microseconds())
		c.detail = append(c.detail, detail)
	}
	return &c, nil
}

func (c *columns) args() pgx.NamedArgs {
	return pgx.NamedArgs{"none": uuid.Nil,
		"at": c.at, "tenant": c.tenant, "agent": c.agent, "user": c.user, "actors": c.actors,
		"task": c.task, "root": c.root, "token": c.token, "call": c.call, "decision": c.decision,
		"reason": c.reason, "digest": c.digest, "answer": c.answer, "charged": c.charged,
		"latency": c.latency, "detail": c.detail}
}

// toJSON writes v for a jsonb column; nil becomes empty.
func toJSON(v any, empty string) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	if string(b) == "null" {
		return empty, nil
	}
	return string(pg.JSON(b)), nil
}
