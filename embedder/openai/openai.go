// Package openai speaks OpenAI's embeddings protocol (POST {base}/embeddings),
// which most servers of embedding models do: OpenAI itself, Ollama, vLLM, Text
// Embeddings Inference, LM Studio and others.
package openai

import "github.com/whence-db/whence/embedder/remote"

type (
	// Model is a model of such a server.
	Model = remote.Model
	// Config says which; BaseURL and Model are required.
	Config = remote.Config
	// Secret is a string that never shows.
	Secret = remote.Secret
)

// New validates c and returns the model. It does not contact the server.
func New(c Config) (*Model, error) { return remote.New(protocol, c) }

// protocol has no mark of its own in a space's name: that is the model's name at
// whatever server.
var protocol = remote.Protocol{
	Name: "openai", Path: "embeddings", Base64: true,
	Batch: 64, MaxBatch: 2048, // OpenAI's own limit
	BatchTokens: func(string) int { return 100_000 },
	Encode:      encode,
	Decode:      remote.DecodeIndexed,
	Quotas:      remote.Quotas,
}

type request struct {
	Model          string   `json:"model"`
	Input          []string `json:"input"`
	EncodingFormat string   `json:"encoding_format"`
	Dimensions     int      `json:"dimensions,omitempty"`
}

func encode(a remote.Ask) any {
	r := request{Model: a.Model, Input: a.Inputs, EncodingFormat: "float", Dimensions: a.Dimensions}
	if a.Base64 {
		r.EncodingFormat = "base64"
	}
	return r
}
