// Package embedder turns text into vectors.
//
// Whence embeds the same text once and keeps the vector under (space, digest of
// the text), so everything here serves one caller: a worker that claims texts,
// embeds them in batches and must know, for each text that failed, whether
// waiting will help. The governing idea is therefore that a model either
// returns vectors that are safe to store or says exactly which texts have none
// and why. A wrong, short, empty or unnormalised vector never leaves a Model.
//
// Adapters live in folders of their own: lexical needs no network; openai, cohere
// and voyage are protocols of servers, and remote is what they have in common.
package embedder

import "context"

// Model is one embedding space: vectors of two models are never compared.
//
// Obligations of an implementation:
//
//   - Embed returns exactly len(texts) vectors in the order of texts, each of
//     Dimensions() finite components and of Euclidean length 1. An empty batch
//     gives an empty result and costs nothing.
//   - With a *BatchError the result still has len(texts) entries: nil for every
//     failed index, a good vector for the others. With any other error the
//     result is nil.
//   - Failures that are not the caller's context are an *Error, or a
//     *BatchError made of them. When the caller's context ends, the error wraps
//     ctx.Err().
//   - What a call cost is recorded (see Record) before it returns, also when it
//     fails. A model that asks nobody records nothing.
//   - The caller owns the returned slices; texts are not kept.
//   - All methods are safe for concurrent use.
type Model interface {
	// Name identifies the space together with Dimensions. It changes whenever
	// the same text would get a different vector.
	Name() string

	// Dimensions is the length of every vector. A model that has to ask its
	// server returns 0 until it knows.
	Dimensions() int

	// MaxBatch is the number of texts that one Embed call takes best. Larger
	// batches are accepted and split.
	MaxBatch() int

	// Embed returns one document vector for each text.
	Embed(ctx context.Context, texts []string) ([][]float32, error)

	// EmbedQuery returns the vector to search with. It differs from a document
	// vector for models that treat questions and passages differently, and it
	// prefers a quick error to a late answer.
	EmbedQuery(ctx context.Context, text string) ([]float32, error)
}
