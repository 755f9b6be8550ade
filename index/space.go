package index

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
)

// Space is an embedding model and its dimensions. Vectors are compared only
// inside one. The zero ID means that there is no space yet.
type Space struct {
	ID         int16
	Model      string
	Dimensions int
}

func (s Space) of(m Model) bool { return s.Model == m.Name() && s.Dimensions == m.Dimensions() }

// SpaceState is what a space is there for.
type SpaceState string

// Questions are asked in the current space. One on standby is kept full beside
// it, to be switched to; one that is being deleted is neither.
const (
	SpaceCurrent  SpaceState = "CURRENT"
	SpaceStandby  SpaceState = "STANDBY"
	SpaceDeleting SpaceState = "DELETING"
)

// SpaceStatus is a space and how full it is.
type SpaceStatus struct {
	Space
	State     SpaceState
	CreatedAt time.Time
	Texts     int64  // that chunks hold, each counted once
	Embedded  int64  // of those, with a vector in this space
	Failed    int64  // of those, tried in vain so far
	Error     string // why one of them failed
}

const (
	ensureSpaceSQL = `
insert into whence.spaces (model, dimensions, current) select @model, @dimensions, true
where not exists (select from whence.spaces)
on conflict do nothing`
	currentSpaceSQL = `select id, model, dimensions from whence.spaces where current`
	liveSpaceSQL    = `
select id, model, dimensions from whence.spaces where model = @model and dimensions = @dimensions and retired_at is null`
)

// EnsureSpace returns the current space, which must be of one of the models; of
// the first when there has been none yet. Otherwise it fails as MODEL_MISMATCH:
// vectors of two models cannot be compared.
func (x *Index) EnsureSpace(ctx context.Context, models ...Model) (Space, error) {
	if len(models) == 0 {
		return Space{}, errors.New("ensure space: no model")
	}
	var s Space
	err := pg.InTx(ctx, x.pool, func(tx pgx.Tx) error {
		args := pgx.NamedArgs{"model": models[0].Name(), "dimensions": models[0].Dimensions()}
		if _, err := tx.Exec(ctx, ensureSpaceSQL, args); err != nil {
			return err
		}
		var err error
		s, err = x.CurrentSpace(ctx, tx)
		return err
	})
	if err != nil {
		return Space{}, fmt.Errorf("ensure space: %w", err)
	}
	for _, m := range models {
		if s.of(m) {
			return s, nil
		}
	}
	return Space{}, &whence.Error{Kind: whence.ErrPrecondition, Reason: "MODEL_MISMATCH",
		Message: fmt.Sprintf("the index is asked by vectors of model %q with %d dimensions, but the configured model is %q with %d: "+
			"configure %[1]q as --embedder and the other as --next-embedder, and change over with whence space create and whence space switch",
			s.Model, s.Dimensions, models[0].Name(), models[0].Dimensions()),
		Metadata: map[string]string{"current_model": s.Model, "current_dimensions": strconv.Itoa(s.Dimensions), "configured_model": models[0].Name()}}
}

// CurrentSpace returns the space that questions are asked in now, the zero Space
// when no model has been set up yet.
func (x *Index) CurrentSpace(ctx context.Context, tx pgx.Tx) (Space, error) {
	return readSpace(tx.QueryRow(ctx, currentSpaceSQL))
}

// liveSpace returns the space of a model that is to be kept full, else the zero Space.
func (x *Index) liveSpace(ctx context.Context, m Model) (Space, error) {
	return readSpace(x.pool.QueryRow(ctx, liveSpaceSQL, pgx.NamedArgs{"model": m.Name(), "dimensions": m.Dimensions()}))
}

func readSpace(row pgx.Row) (s Space, err error) {
	err = row.Scan(&s.ID, &s.Model, &s.Dimensions)
	if errors.Is(err, pgx.ErrNoRows) {
		return Space{}, nil
	}
	if err != nil {
		return Space{}, fmt.Errorf("read space: %w", pg.Translate(err))
	}
	return s, nil
}

const selectSpaces = `
with texts as materialized (select distinct digest from whence.chunks)
select s.id, s.model, s.dimensions, s.created_at,
       case when s.current then 'CURRENT' when s.retired_at is null then 'STANDBY' else 'DELETING' end,
       n.texts, n.embedded, n.failed, n.error
from whence.spaces s
cross join lateral (
    select count(*) as texts, count(v.embedding) as embedded,
           count(*) filter (where v.embedding is null and v.error is not null) as failed,
           coalesce(min(v.error) filter (where v.embedding is null), '') as error
    from texts t left join whence.vectors v on v.space_id = s.id and v.digest = t.digest
) n
order by s.id`

// Spaces lists all spaces, the oldest first. It counts, which takes seconds where
// there are millions of chunks.
func (x *Index) Spaces(ctx context.Context) ([]SpaceStatus, error) {
	rows, err := x.pool.Query(ctx, selectSpaces)
	if err != nil {
		return nil, fmt.Errorf("list spaces: %w", pg.Translate(err))
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s SpaceStatus, err error) {
		err = row.Scan(&s.ID, &s.Model, &s.Dimensions, &s.CreatedAt, &s.State, &s.Texts, &s.Embedded, &s.Failed, &s.Error)
		return s, err
	})
	if err != nil {
		return nil, fmt.Errorf("list spaces: %w", pg.Translate(err))
	}
	return out, nil
}

// SpaceEstimate is about what filling a space would cost.
type SpaceEstimate struct {
	Texts  int64 // without a vector in it
	Tokens int64 // in these, as about four bytes make one
	Bytes  int64 // of their vectors, and once more in their index
}

const estimateSQL = `
select count(*), coalesce(sum(greatest((length + 3) / 4, words)), 0)::bigint
from (
    select distinct on (c.digest) octet_length(c.text) as length,
           1 + length(btrim(c.text)) - length(regexp_replace(btrim(c.text), '\s', '', 'g')) as words
    from whence.chunks c
    where not exists (
        select from whence.spaces s join whence.vectors v on v.space_id = s.id and v.digest = c.digest
        where s.model = @model and s.dimensions = @dimensions and s.retired_at is null and v.embedding is not null)
) t`

// EstimateSpace says what giving every text a vector of the model would cost.
func (x *Index) EstimateSpace(ctx context.Context, m Model) (e SpaceEstimate, err error) {
	args := pgx.NamedArgs{"model": m.Name(), "dimensions": m.Dimensions()}
	if err := x.pool.QueryRow(ctx, estimateSQL, args).Scan(&e.Texts, &e.Tokens); err != nil {
		return e, fmt.Errorf("estimate space: %w", pg.Translate(err))
	}
	const twoBytesTwice = 4
	e.Bytes = e.Texts * twoBytesTwice * int64(m.Dimensions())
	return e, nil
}
