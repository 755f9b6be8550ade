package lineage

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/internal/pg"
)

// Filter chooses answers; what is zero does not choose.
type Filter struct {
	Task         uuid.UUID
	Agent        string
	User         string
	Since, Until time.Time // Since ≤ At < Until
}

// Page says which part of a list is wanted.
type Page struct {
	Size  int    // 0 means DefaultPage; more than MaxPage is cut to it
	Token string // the next token of the page before; empty for the first
}

// The limits of a page.
const (
	DefaultPage = 100
	MaxPage     = 1000
)

// An answer lies within a scope when all that it showed does. Attributes are not
// kept apart from what was shown, so a scope with a filter on them sees nothing.
const (
	hitInScope = `@reads and coalesce((@allTables and o.table_name <> all(@deniedTables) or o.table_name = any(@tables))
    and (@allSubjects and coalesce(o.subject <> all(@deniedSubjects), true) or o.subject = any(@subjects)), false)`

	answerInScope = `(@reads and not exists (
    select from whence.answer_hits o where o.answer_id = a.id and not (` + hitInScope + `)))`
)

// within adds the scope to a statement's arguments.
func within(scope authz.Scope, args pgx.NamedArgs) pgx.NamedArgs {
	allTables, tables, deniedTables := scope.Tables()
	allSubjects, subjects, deniedSubjects := scope.Subjects()
	args["reads"] = scope.Allows(authz.MemoryRead) && len(scope.Filter()) == 0
	args["allTables"], args["tables"], args["deniedTables"] = allTables, texts(tables), texts(deniedTables)
	args["allSubjects"], args["subjects"], args["deniedSubjects"] = allSubjects, subjects, append([]string{}, deniedSubjects...)
	return args
}

// texts is never nil, which SQL would take for unknown.
func texts(names []whence.TableName) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = string(n)
	}
	return out
}

const answerColumnsSQL = `
select a.id, a.at, a.tenant, coalesce(a.task_id, @none), a.agent, a.user_id, a.request, a.watermark, coalesce(a.degraded, ''),
       (select count(*) from whence.answer_hits h where h.answer_id = a.id)`

const (
	getSQL = answerColumnsSQL + `
from whence.answers a
where a.id = @id and ` + answerInScope

	hitsSQL = `
select record_id, table_name, key, version, subject, hit
from whence.answer_hits
where answer_id = @id
order by rank`
)

// Get returns an answer with its hits, best first. An id that is unknown or
// outside the scope is ErrNotFound.
func (s *Store) Get(ctx context.Context, scope authz.Scope, id uuid.UUID) (a Answer, err error) {
	err = pg.Snapshot(ctx, s.pool, func(tx pgx.Tx) error {
		a, err = query(ctx, tx, scanAnswer, pgx.CollectExactlyOneRow, getSQL, within(scope, pgx.NamedArgs{"id": id, "none": uuid.Nil}))
		if err != nil {
			return err
		}
		a.Hits, err = query(ctx, tx, scanHit, pgx.CollectRows, hitsSQL, pgx.NamedArgs{"id": id})
		return err
	})
	if errors.Is(err, whence.ErrNotFound) {
		return Answer{}, &whence.Error{Kind: whence.ErrNotFound, Reason: "ANSWER_NOT_FOUND", Field: "answerId",
			Message: "there is no answer with this id"}
	}
	if err != nil {
		return Answer{}, fmt.Errorf("get an answer: %w", err)
	}
	return a, nil
}

const (
	listSQL = answerColumnsSQL + `
from whence.answers a
where ` + answerInScope

	beforeSQL  = ` and (a.at, a.id) < ((select at from whence.answers where id = @before), @before)`
	byTaskSQL  = ` and a.task_id = @task`
	byAgentSQL = ` and a.agent = @agent`
	byUserSQL  = ` and a.user_id = @user`
	sinceSQL   = ` and a.at >= @since`
	untilSQL   = ` and a.at < @until`
	newestSQL  = ` order by a.at desc, a.id desc limit @limit`
)

// List returns the scope's answers without their hits, newest first, and the token of the
// next page, which is empty after the last one. Answers given meanwhile do not
// shift the pages. A token that List did not make is an ErrInvalid.
func (s *Store) List(ctx context.Context, scope authz.Scope, f Filter, p Page) (answers []Answer, next string, err error) {
	size, before, err := p.parse()
	if err != nil {
		return nil, "", err
	}
	var q strings.Builder
	q.WriteString(listSQL)
	args := within(scope, pgx.NamedArgs{"none": uuid.Nil, "limit": size + 1}) // one more tells whether there is a next page
	and := func(use bool, condition, name string, value any) {
		if use {
			q.WriteString(condition)
			args[name] = value
		}
	}
	and(before != uuid.Nil, beforeSQL, "before", before)
	and(f.Task != uuid.Nil, byTaskSQL, "task", f.Task)
	and(f.Agent != "", byAgentSQL, "agent", pg.Text(f.Agent))
	and(f.User != "", byUserSQL, "user", pg.Text(f.User))
	and(!f.Since.IsZero(), sinceSQL, "since", f.Since)
	and(!f.Until.IsZero(), untilSQL, "until", f.Until)
	q.WriteString(newestSQL)
	answers, err = query(ctx, s.pool, scanAnswer, pgx.CollectRows, q.String(), args)
	if err != nil {
		return nil, "", fmt.Errorf("list answers: %w", err)
	}
	if len(answers) > size {
		answers = answers[:size]
		next = token(answers[size-1].ID)
	}
	return answers, next, nil
}

// Counts says how much an answerer relied on a record.
type Counts struct {
	Answers int64 // that showed the record
	Hits    int64 // that showed it; one answer may show several chunks
}

// Use is one answer that showed a record.
type Use struct {
	Answer  Answer // without hits
	Rank    int    // of the best hit on the record, from 1
	Version int32  // of the record, as that hit showed it
}

const (
	countUsesSQL = `
select count(distinct o.answer_id), count(*)
from whence.answer_hits o join whence.answers a on a.id = o.answer_id
where o.table_name = @table and o.key = @key and ` + answerInScope

	// Ids grow with time, so the index on (table_name, key, answer_id) read
	// backwards gives the newest first.
	usesSQL = answerColumnsSQL + `, u.rank, u.version
from (select distinct on (o.answer_id) o.answer_id, o.rank, o.version
      from whence.answer_hits o join whence.answers a on a.id = o.answer_id
      where o.table_name = @table and o.key = @key and (@before::uuid = @none::uuid or o.answer_id < @before::uuid)
        and ` + answerInScope + `
      order by o.answer_id desc, o.rank
      limit @limit) u
join whence.answers a on a.id = u.answer_id
order by a.id desc`
)

// Trace tells which of the scope's answers showed a record: how many over all, then page by page
// which, newest first. Both are read in one snapshot. A record that no answer
// showed has zero counts, whether or not it exists.
func (s *Store) Trace(ctx context.Context, scope authz.Scope, table whence.TableName, key whence.Key, p Page) (n Counts, uses []Use, next string, err error) {
	size, before, err := p.parse()
	if err != nil {
		return Counts{}, nil, "", err
	}
	args := within(scope, pgx.NamedArgs{"table": pg.Text(string(table)), "key": pg.Text(string(key)),
		"none": uuid.Nil, "before": before, "limit": size + 1})
	err = pg.Snapshot(ctx, s.pool, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, countUsesSQL, args).Scan(&n.Answers, &n.Hits); err != nil {
			return err
		}
		uses, err = query(ctx, tx, scanUse, pgx.CollectRows, usesSQL, args)
		return err
	})
	if err != nil {
		return Counts{}, nil, "", fmt.Errorf("trace a record: %w", err)
	}
	if len(uses) > size {
		uses = uses[:size]
		next = token(uses[size-1].Answer.ID)
	}
	return n, uses, next, nil
}

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// query runs one statement and collects its rows.
func query[T, R any](ctx context.Context, db querier, scan pgx.RowToFunc[T],
	collect func(pgx.Rows, pgx.RowToFunc[T]) (R, error), sql string, args pgx.NamedArgs) (R, error) {
	rows, err := db.Query(ctx, sql, args)
	if err != nil {
		var none R
		return none, pg.Translate(err)
	}
	r, err := collect(rows, scan)
	return r, pg.Translate(err)
}

func scanAnswer(row pgx.CollectableRow) (a Answer, err error) {
	err = a.scan(row)
	return a, err
}

func (a *Answer) scan(row pgx.CollectableRow, more ...any) (err error) {
	var request, watermark []byte
	err = row.Scan(append([]any{&a.ID, &a.At, &a.Tenant, &a.Task, &a.Agent, &a.User, &request, &watermark, &a.Degraded, &a.HitCount}, more...)...)
	if err != nil {
		return err
	}
	a.At, a.Request = a.At.UTC(), json.RawMessage(request)
	a.Watermark, err = decodeWatermark(watermark)
	return err
}

func scanUse(row pgx.CollectableRow) (u Use, err error) {
	err = u.Answer.scan(row, &u.Rank, &u.Version)
	return u, err
}

func scanHit(row pgx.CollectableRow) (h Hit, err error) {
	var shown []byte
	err = row.Scan(&h.RecordID, &h.Table, &h.Key, &h.Version, &h.Subject, &shown)
	h.Shown = json.RawMessage(shown)
	return h, err
}

func (p Page) parse() (size int, before uuid.UUID, err error) {
	size = p.Size
	if size <= 0 {
		size = DefaultPage
	}
	if p.Token != "" {
		var b []byte
		if b, err = base64.RawURLEncoding.DecodeString(p.Token); err == nil {
			before, err = uuid.FromBytes(b)
		}
		if err != nil || before == uuid.Nil {
			return 0, uuid.Nil, whence.Invalid("pageToken", "PAGE_TOKEN_INVALID",
				"the page token is not one that this call gave; start again without one")
		}
	}
	return min(size, MaxPage), before, nil
}

func token(id uuid.UUID) string { return base64.RawURLEncoding.EncodeToString(id[:]) }
