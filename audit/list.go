package audit

import (
	"context"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
)

// Filter chooses entries; what is zero does not choose.
type Filter struct {
	Task         uuid.UUID // of this task
	Agent        string
	User         string
	Call         string
	Decision     Decision
	Answer       uuid.UUID // the entry of the call that gave this answer
	Since, Until time.Time // Since ≤ At < Until
}

// The limits of a page.
const (
	DefaultPage = 100
	MaxPage     = 1000
)

const (
	listSQL = `
select id, at, tenant, agent, user_id, actors, coalesce(task_id, @none), coalesce(root_task_id, @none), token_id, call,
       decision, reason, request_digest, coalesce(answer_id, @none), calls_charged, latency_us, detail
from whence.entries
where true`

	beforeSQL     = ` and id < @before`
	byTaskSQL     = ` and task_id = @task`
	byAgentSQL    = ` and agent = @agent`
	byUserSQL     = ` and user_id = @user`
	byCallSQL     = ` and call = @call`
	byDecisionSQL = ` and decision = @decision`
	byAnswerSQL   = ` and answer_id = @answer`
	sinceSQL      = ` and at >= @since`
	untilSQL      = ` and at < @until`
	newestSQL     = ` order by id desc limit @limit`
)

// List returns entries, newest first, and the token of the next page, which is
// empty after the last one. Entries appended meanwhile do not shift the pages.
// pageSize 0 means DefaultPage; more than MaxPage is cut to it. A token that List
// did not make is an ErrInvalid.
func (l *Log) List(ctx context.Context, f Filter, pageSize int, pageToken string) (entries []Entry, next string, err error) {
	if pageSize <= 0 {
		pageSize = DefaultPage
	}
	pageSize = min(pageSize, MaxPage)
	q, args := f.where()
	if pageToken != "" {
		before, err := parseToken(pageToken)
		if err != nil {
			return nil, "", err
		}
		q.WriteString(beforeSQL)
		args["before"] = before
	}
	q.WriteString(newestSQL)
	args["limit"] = pageSize + 1 // one more tells whether there is a next page
	rows, err := l.pool.Query(ctx, q.String(), args)
	if err == nil {
		entries, err = pgx.CollectRows(rows, scanEntry)
	}
	if err != nil {
		return nil, "", fmt.Errorf("list the audit log: %w", pg.Translate(err))
	}
	if len(entries) > pageSize {
		entries = entries[:pageSize]
		next = token(entries[pageSize-1].ID)
	}
	return entries, next, nil
}

func (f Filter) where() (*strings.Builder, pgx.NamedArgs) {
	q := new(strings.Builder)
	q.WriteString(listSQL)
	args := pgx.NamedArgs{"none": uuid.Nil}
	and := func(use bool, condition, name string, value any) {
		if use {
			q.WriteString(condition)
			args[name] = value
		}
	}
	and(f.Task != uuid.Nil, byTaskSQL, "task", f.Task)
	and(f.Agent != "", byAgentSQL, "agent", pg.Text(f.Agent))
	and(f.User != "", byUserSQL, "user", pg.Text(f.User))
	and(f.Call != "", byCallSQL, "call", pg.Text(f.Call))
	and(f.Decision != "", byDecisionSQL, "decision", f.Decision)
	and(f.Answer != uuid.Nil, byAnswerSQL, "answer", f.Answer)
	and(!f.Since.IsZero(), sinceSQL, "since", f.Since)
	and(!f.Until.IsZero(), untilSQL, "until", f.Until)
	return q, args
}

func scanEntry(row pgx.CollectableRow) (Entry, error) {
	var e Entry
	var digest []byte
	var micros int64
	err := row.Scan(&e.ID, &e.At, &e.Tenant, &e.Agent, &e.User, &e.Actors, &e.Task, &e.RootTask, &e.TokenID, &e.Call,
		&e.Decision, &e.Reason, &digest, &e.Answer, &e.CallsCharged, &micros, &e.Detail)
	copy(e.RequestDigest[:], digest)
	e.At = e.At.UTC()
	e.Latency = time.Duration(micros) * time.Microsecond
	return e, err
}

func token(id int64) string {
	return base64.RawURLEncoding.EncodeToString(strconv.AppendInt(nil, id, 10))
}

func parseToken(s string) (int64, error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		var id int64
		if id, err = strconv.ParseInt(string(b), 10, 64); err == nil {
			return id, nil
		}
	}
	return 0, whence.Invalid("pageToken", "PAGE_TOKEN_INVALID", "the page token is not one that this call gave; start again without one")
}
