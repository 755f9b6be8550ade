package lineage

import (
	"context"
	"fmt"
	"strconv"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/internal/pg"
)

// Shown is a version of a record that somebody was shown.
type Shown struct {
	RecordID int64
	Version  int32
}

const (
	// An agent may rest on what it was given for the same user in an earlier task.
	given = `a.tenant = @tenant and a.user_id = @user and (a.task_id = @task or a.agent = @agent)`

	shownByAnswersSQL = `
select a.id::text, h.record_id, h.version
from whence.answers a left join whence.answer_hits h on h.answer_id = a.id
where a.id = any(@answers) and ` + given

	// Of a chunk that was shown more than once, as it was shown last.
	shownAsChunksSQL = `
select distinct on (h.hit ->> 'chunkId') h.hit ->> 'chunkId', h.record_id, h.version
from whence.answers a join whence.answer_hits h on h.answer_id = a.id
where a.task_id = @task and a.tenant = @tenant and a.user_id = @user and h.hit ->> 'chunkId' = any(@chunks)
order by h.hit ->> 'chunkId', a.at desc`
)

// Evidence resolves what an agent says that it concluded something from: the ids
// of answers that it was given for the same user, all of whose hits count, and of
// chunks that the present task was shown. What it was not given is EVIDENCE_UNKNOWN,
// whether it exists or not.
func (s *Store) Evidence(ctx context.Context, tx pgx.Tx, p *authz.Principal, named []string) (out []Shown, err error) {
	if len(named) == 0 {
		return nil, nil
	}
	var answers []uuid.UUID
	var chunks []string
	for _, name := range named {
		if id, err := uuid.Parse(name); err == nil && len(name) == 36 {
			answers = append(answers, id)
		} else if _, err := strconv.ParseUint(name, 10, 63); err == nil {
			chunks = append(chunks, name)
		} else {
			return nil, unknownEvidence(name)
		}
	}
	args := pgx.NamedArgs{"tenant": p.Tenant, "user": p.User, "task": p.Task, "agent": p.Agent, "answers": answers, "chunks": chunks}
	known := map[string]bool{}
	for _, sql := range []string{shownByAnswersSQL, shownAsChunksSQL} {
		rows, err := tx.Query(ctx, sql, args)
		if err != nil {
			return nil, fmt.Errorf("look for evidence: %w", pg.Translate(err))
		}
		var name string
		var record *int64
		var version *int32
		_, err = pgx.ForEachRow(rows, []any{&name, &record, &version}, func() error {
			known[name] = true
			if record != nil && version != nil {
				out = append(out, Shown{*record, *version})
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("look for evidence: %w", pg.Translate(err))
		}
	}
	for _, id := range answers {
		if !known[id.String()] {
			return nil, unknownEvidence(id.String())
		}
	}
	for _, c := range chunks {
		if !known[c] {
			return nil, unknownEvidence(c)
		}
	}
	return out, nil
}

func unknownEvidence(name string) error {
	e := whence.Invalid("derivedFrom", "EVIDENCE_UNKNOWN", fmt.Sprintf(
		"derivedFrom: %q is neither the answerId of an answer that you were given for this user nor the chunkId of a hit that this task was shown", name))
	e.Metadata = map[string]string{"id": name}
	return e
}
