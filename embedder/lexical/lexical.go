// Package lexical is the built-in embedding model: hashed words, word pairs and
// character n-grams. It has no weights, needs no network and knows no meanings:
// two texts are near each other when they share words, inflections or spellings.
// It is what Whence uses until a semantic model is configured.
//
// The governing idea is that a vector, once stored, must be reproducible for
// ever and on every machine: all sums are integer sums, so neither the order of
// the features nor a fused multiply-add can change a bit. Any change to what
// follows needs a new version in the model's name.
//
// # Algorithm, version 1
//
//  1. Invalid UTF-8 becomes a separator. The text is put into NFKD, combining
//     diacritics U+0300 to U+036F are dropped, and letters are lowered (with ß,
//     æ, ø and the like spelled out).
//  2. A word is a run of letters, digits and marks; apostrophes and invisible
//     format characters inside it vanish. Each character of a script written
//     without spaces, and each pictograph, is a word of its own. A run longer
//     than 64 characters is cut.
//  3. A word weighs 1; less when it is shorter than four characters or an
//     English function word. Words count sub-linearly: n occurrences weigh
//     1 + ln 2 · log₂ n, with log₂ interpolated linearly between powers of two.
//     Occurrences are counted within a window of 65,536 distinct words.
//  4. Each distinct word adds its stem (light English suffix stripping), and its
//     character 3-, 4- and 5-grams with marks at both ends. The n-grams of a word
//     together have as much energy as its stem, whatever its length. Numbers
//     and function words have no n-grams. Each adjacent pair of stems adds half
//     the weight of the lighter of the two.
//  5. A feature is hashed (FNV-1a over 64 bits, then a bit mixer); the hash
//     chooses a dimension and a sign. The sum is scaled to length 1.
//
// A text without a word (empty, only punctuation) has no features. It gets one
// fixed unit vector: such texts are equal to each other and unlike the rest.
package lexical

import (
	"context"
	"fmt"
	"math"
	"sync"
)

const (
	defaultDimensions = 512
	maxDimensions     = 16000 // what a stored vector may have
)

// Config chooses the size of the space. The zero value is the default model.
type Config struct {
	// Dimensions of the vectors: 512 when 0, at most 16000. Fewer than about
	// 256 let unrelated words collide often.
	Dimensions int
}

// Model implements embedder.Model. It fails only when the context ends.
type Model struct {
	dimensions int
	name       string
	scratch    sync.Pool // of *accumulator
}

// New returns the model for c.
func New(c Config) (*Model, error) {
	if c.Dimensions == 0 {
		c.Dimensions = defaultDimensions
	}
	if c.Dimensions < 1 || c.Dimensions > maxDimensions {
		return nil, fmt.Errorf("lexical model: %d dimensions, want 1 to %d", c.Dimensions, maxDimensions)
	}
	m := &Model{dimensions: c.Dimensions, name: fmt.Sprintf("lexical-%d-v1", c.Dimensions)}
	m.scratch.New = func() any { return newAccumulator(m.dimensions) }
	return m, nil
}

// Default returns the model lexical-512-v1.
func Default() *Model {
	m, err := New(Config{})
	if err != nil {
		panic(err) // the zero Config is valid
	}
	return m
}

// Name is "lexical-512-v1" for the default model.
func (m *Model) Name() string { return m.name }

// Dimensions is the length of every vector.
func (m *Model) Dimensions() int { return m.dimensions }

// MaxBatch keeps the time between two looks at the context short.
func (m *Model) MaxBatch() int { return 256 }

// Embed returns one unit vector for each text.
func (m *Model) Embed(ctx context.Context, texts []string) ([][]float32, error) {
	vectors := make([][]float32, len(texts))
	for i, text := range texts {
		v, err := m.EmbedQuery(ctx, text)
		if err != nil {
			return nil, err
		}
		vectors[i] = v
	}
	return vectors, nil
}

// EmbedQuery returns the same vector that Embed gives for text.
func (m *Model) EmbedQuery(ctx context.Context, text string) ([]float32, error) {
	a := m.scratch.Get().(*accumulator)
	defer m.scratch.Put(a)
	a.reset()
	if err := eachWord(ctx, text, a.word); err != nil {
		return nil, fmt.Errorf("embed: %w", err)
	}
	a.flush()
	return unit(a.sums), nil
}

// unit scales sums to length 1. Conversions keep the compiler from fusing the
// multiplication with the addition, which would round differently by machine.
func unit(sums []int64) []float32 {
	var squares float64
	for _, s := range sums {
		squares += float64(float64(s) * float64(s))
	}
	v := make([]float32, len(sums))
	if squares == 0 {
		v[0] = 1
		return v
	}
	norm := math.Sqrt(squares)
	for i, s := range sums {
		v[i] = float32(float64(s) / norm)
	}
	return v
}
