package index

import (
	"context"
	"errors"
	"fmt"
	"strconv"

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

const ensureSpaceSQL = `
insert into whence.spaces (model, dimensions, current) values (@model, @dimensions, true)
on conflict do nothing`

const currentSpaceSQL = `select id, model, dimensions from whence.spaces where current`

// EnsureSpace returns the current space, which the first caller makes. Another
// model or other dimensions than the current space's are refused as
// MODEL_MISMATCH: vectors of two models cannot be compared.
func (x *Index) EnsureSpace(ctx context.Context, model string, dimensions int) (Space, error) {
	var s Space
	err := pg.InTx(ctx, x.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, ensureSpaceSQL, pgx.NamedArgs{"model": model, "dimensions": dimensions}); err != nil {
			return err
		}
		var err error
		s, err = x.CurrentSpace(ctx, tx)
		return err
	})
	if err != nil {
		return Space{}, fmt.Errorf("ensure space: %w", err)
	}
	if s.Model != model || s.Dimensions != dimensions {
		return Space{}, &whence.Error{Kind: whence.ErrPrecondition, Reason: "MODEL_MISMATCH",
			Message: fmt.Sprintf("the index holds vectors of model %q with %d dimensions, but the configured model is %q with %d; "+
				"changing the model of an index is not yet possible: configure %q again, or use an empty memory database",
				s.Model, s.Dimensions, model, dimensions, s.Model),
			Metadata: map[string]string{"current_model": s.Model, "current_dimensions": strconv.Itoa(s.Dimensions), "configured_model": model}}
	}
	return s, nil
}

// CurrentSpace returns the space that searches and embeddings use now, the zero
// Space when no model has been set up yet.
func (x *Index) CurrentSpace(ctx context.Context, tx pgx.Tx) (Space, error) {
	var s Space
	err := tx.QueryRow(ctx, currentSpaceSQL).Scan(&s.ID, &s.Model, &s.Dimensions)
	if errors.Is(err, pgx.ErrNoRows) {
		return Space{}, nil
	}
	if err != nil {
		return Space{}, fmt.Errorf("current space: %w", pg.Translate(err))
	}
	return s, nil
}
