package query

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/index"
)

// question is a query's text as a vector of a space.
type question struct {
	space    index.Space
	vector   []float32 // nil when there is none
	degraded string    // and why not
	again    bool      // the space has changed once since the question was asked
}

// switchedError means that the question is to be embedded by another model.
type switchedError struct{ to index.Space }

func (switchedError) Error() string { return "the embedding model was changed" }

// embed makes the question's vector by the model of the space that was current
// when it was last seen; what stands in the way is said, not failed on.
func (e *Engine) embed(ctx context.Context, text string) (question, error) {
	space, err := e.lastSpace(ctx)
	if err != nil {
		return question{}, err
	}
	q := question{space: space}
	if len(e.Models) == 0 {
		q.degraded = "EMBEDDING_UNAVAILABLE: no embedding model is configured; answered by text search alone"
		return q, nil
	}
	if space.ID == 0 {
		q.degraded = "EMBEDDING_UNAVAILABLE: nothing has been embedded yet; answered by text search alone"
		return q, nil
	}
	i := slices.IndexFunc(e.Models, func(m embedder.Model) bool { return m.Name() == space.Model && m.Dimensions() == space.Dimensions })
	if i < 0 {
		q.degraded = fmt.Sprintf("MODEL_MISMATCH: the index is asked by vectors of %q, which this server does not have; answered by text search alone", space.Model)
		return q, nil
	}
	ctx, cancel := context.WithTimeout(ctx, e.EmbedTimeout)
	defer cancel()
	q.vector, err = e.Models[i].EmbedQuery(ctx, text)
	switch {
	case err == nil:
	case errors.Is(err, context.DeadlineExceeded):
		q.degraded = fmt.Sprintf("EMBEDDING_UNAVAILABLE: the embedding model did not answer within %s; answered by text search alone", e.EmbedTimeout)
	default:
		q.degraded = "EMBEDDING_UNAVAILABLE: the embedding model failed; answered by text search alone"
	}
	return q, nil
}

func (e *Engine) lastSpace(ctx context.Context) (space index.Space, err error) {
	if seen := e.space.Load(); seen != nil {
		return *seen, nil
	}
	err = e.inSnapshot(ctx, func(tx pgx.Tx) error {
		space, err = e.Index.CurrentSpace(ctx, tx)
		return err
	})
	if err == nil {
		e.space.Store(&space)
	}
	return space, err
}
