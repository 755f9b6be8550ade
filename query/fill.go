package query

import (
	"context"

	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/index"
)

// ExplainEmbedding takes an error of an embedder.Model apart for the index's
// filler, which knows nothing of package embedder.
func ExplainEmbedding(err error) func(i int) *index.Failure {
	of := embedder.ByText(err)
	return func(i int) *index.Failure {
		e := of(i)
		if e == nil {
			return nil
		}
		return &index.Failure{
			Permanent: !e.Temporary, RetryAfter: e.RetryAfter, Message: e.Error(),
			Whole: e.Temporary, // a model that is out of reach fails every text alike
		}
	}
}

// MeterEmbedding measures what calls of an embedder.Model cost, for the index's
// filler.
func MeterEmbedding(ctx context.Context) (context.Context, func(texts []string) []int64) {
	ctx, meter := embedder.Measure(ctx)
	return ctx, func(texts []string) []int64 { return meter.Usage().Split(texts) }
}

// MeasureEmbedding measures what embedding the questions that are asked with the
// context costs: requests that reached the model's server, and tokens.
func MeasureEmbedding(ctx context.Context) (context.Context, func() (calls, tokens int64)) {
	ctx, meter := embedder.Measure(ctx)
	return ctx, func() (calls, tokens int64) {
		u := meter.Usage()
		return int64(u.Calls), u.Tokens
	}
}
