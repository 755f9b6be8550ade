// Package lineage keeps every answer as it was given: its hits in order, each as
// it was shown, and the watermark that they were read at. From there it tells
// what an answer rested on, and which answers a record fed.
//
// The governing idea: lineage is evidence, so it is written with the audit entry
// of the call, in one transaction, and outlives what it points at. A hit names
// its record by table and key, which stay true when the record is gone; what the
// record looks like now is for the caller to ask of the index.
package lineage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
)

// Answer is the stored result of one query.
type Answer struct {
	ID        uuid.UUID // version 7: later answers have greater ids
	At        time.Time
	Tenant    string
	Task      uuid.UUID // zero when no task asked
	Agent     string
	User      string
	Request   json.RawMessage // the query as it was asked; null when empty
	Watermark []whence.Watermark
	Degraded  string // why part of the search was left out; empty when it was not
	Hits      []Hit  // best first; listings leave them out
	HitCount  int64  // how many hits are stored; set by reading
}

// Hit is one chunk as an answer showed it.
type Hit struct {
	RecordID int64
	Table    whence.TableName
	Key      whence.Key
	Version  int32           // of the record, whose text was shown
	Subject  *string         // nil when the row had none
	Shown    json.RawMessage // the whole hit; its shape is the caller's
}

// Store is the lineage in one memory database. It is safe for concurrent use.
type Store struct {
	pool *pgxpool.Pool
	log  *slog.Logger
}

// Config says where the lineage lives.
type Config struct {
	Pool *pgxpool.Pool // of the memory database
	Log  *slog.Logger  // default: discards
}

// New checks the configuration.
func New(c Config) (*Store, error) {
	if c.Pool == nil {
		return nil, errors.New("lineage: a pool is needed")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Store{pool: c.Pool, log: c.Log}, nil
}

const (
	insertAnswersSQL = `
insert into whence.answers (id, at, tenant, task_id, agent, user_id, request, watermark, degraded)
select id, at, tenant, nullif(task_id, @none), agent, user_id, request, watermark, nullif(degraded, '')
from unnest(@id::uuid[], @at::timestamptz[], @tenant::text[], @task::uuid[], @agent::text[], @user::text[],
            @request::jsonb[], @watermark::jsonb[], @degraded::text[])
  as a(id, at, tenant, task_id, agent, user_id, request, watermark, degraded)`

	insertHitsSQL = `
insert into whence.answer_hits (answer_id, rank, record_id, table_name, key, version, subject, hit)
select answer_id, rank, record_id, table_name, key, version, subject, hit
from unnest(@answer::uuid[], @rank::int[], @record::bigint[], @table::text[], @key::text[],
            @version::int[], @subject::text[], @hit::jsonb[])
  as h(answer_id, rank, record_id, table_name, key, version, subject, hit)`
)

// Insert writes answers with their hits, two statements for any number of them,
// in the caller's transaction; they are durable when that commits.
func (s *Store) Insert(ctx context.Context, tx pgx.Tx, answers []Answer) error {
	if len(answers) == 0 {
		return nil
	}
	a, h, err := newColumns(answers)
	if err == nil {
		_, err = tx.Exec(ctx, insertAnswersSQL, a.args())
	}
	if err == nil && len(h.answer) > 0 {
		_, err = tx.Exec(ctx, insertHitsSQL, h.args())
	}
	if err != nil {
		return fmt.Errorf("store answers: %w", pg.Translate(err))
	}
	return nil
}

// answerColumns and hitColumns are rows turned on their side, as unnest wants them.
type answerColumns struct {
	id, task                      []uuid.UUID
	at                            []time.Time
	tenant, agent, user, degraded []string
	request, watermark            []string
}

type hitColumns struct {
	answer          []uuid.UUID
	rank, version   []int32
	record          []int64
	table, key, hit []string
	subject         []*string
}

func newColumns(answers []Answer) (*answerColumns, *hitColumns, error) {
	var a answerColumns
	var h hitColumns
	for i := range answers {
		x := &answers[i]
		if x.ID == uuid.Nil {
			return nil, nil, errors.New("an answer needs an id")
		}
		watermark, err := encodeWatermark(x.Watermark)
		if err != nil {
			return nil, nil, err
		}
		a.id = append(a.id, x.ID)
		a.at = append(a.at, x.At)
		a.tenant = append(a.tenant, pg.Text(x.Tenant))
		a.task = append(a.task, x.Task)
		a.agent = append(a.agent, pg.Text(x.Agent))
		a.user = append(a.user, pg.Text(x.User))
		a.request = append(a.request, document(x.Request))
		a.watermark = append(a.watermark, watermark)
		a.degraded = append(a.degraded, pg.Text(x.Degraded))
		for rank, hit := range x.Hits {
			if hit.Table == "" || hit.Key == "" {
				return nil, nil, errors.New("a hit needs an origin that names its table and key")
			}
			h.answer = append(h.answer, x.ID)
			h.rank = append(h.rank, int32(rank+1))
			h.record = append(h.record, hit.RecordID)
			h.table = append(h.table, string(hit.Table))
			h.key = append(h.key, string(hit.Key))
			h.version = append(h.version, hit.Version)
			h.subject = append(h.subject, hit.Subject)
			h.hit = append(h.hit, document(hit.Shown))
		}
	}
	return &a, &h, nil
}

func (a *answerColumns) args() pgx.NamedArgs {
	return pgx.NamedArgs{"none": uuid.Nil, "id": a.id, "at": a.at, "tenant": a.tenant, "task": a.task,
		"agent": a.agent, "user": a.user, "request": a.request, "watermark": a.watermark, "degraded": a.degraded}
}

func (h *hitColumns) args() pgx.NamedArgs {
	return pgx.NamedArgs{"answer": h.answer, "rank": h.rank, "record": h.record, "table": h.table,
		"key": h.key, "version": h.version, "subject": h.subject, "hit": h.hit}
}

func document(b json.RawMessage) string {
	if len(b) == 0 {
		return "null"
	}
	return string(pg.JSON(b))
}

// storedWatermark is a watermark's form in the database.
type storedWatermark struct {
	Source     string        `json:"source"`
	LSN        whence.LSN    `json:"lsn"`
	CommitTime time.Time     `json:"commitTime,omitzero"`
	CaughtUpAt time.Time     `json:"caughtUpAt,omitzero"`
	Lag        time.Duration `json:"lagNanos"`
}

func encodeWatermark(ws []whence.Watermark) (string, error) {
	out := make([]storedWatermark, len(ws))
	for i, w := range ws {
		out[i] = storedWatermark(w)
	}
	b, err := json.Marshal(out)
	return string(b), err
}

func decodeWatermark(b []byte) ([]whence.Watermark, error) {
	var stored []storedWatermark
	if err := json.Unmarshal(b, &stored); err != nil {
		return nil, fmt.Errorf("stored watermark: %w", err)
	}
	var out []whence.Watermark
	for _, w := range stored {
		out = append(out, whence.Watermark(w))
	}
	return out, nil
}
