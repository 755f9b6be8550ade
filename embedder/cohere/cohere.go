// Package cohere speaks the second version of Cohere's embeddings protocol
// (POST {base}/embed, https://docs.cohere.com/reference/embed).
//
// Its responses carry no indexes: that the vectors are in the order of the texts
// is the provider's word alone.
package cohere

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/whence-db/whence/embedder/remote"
)

// BaseURL is the provider's own address.
const BaseURL = "https://api.cohere.com/v2"

// New validates c and returns the model. It does not contact the server.
// Without a base URL it is BaseURL, and an API key is required.
func New(c remote.Config) (*remote.Model, error) { return remote.New(protocol, c) }

// protocol limits a request by its number of texts alone; the tokens are bounded
// so that none takes long.
var protocol = remote.Protocol{
	Name: "cohere", BaseURL: BaseURL, Path: "embed", Space: "cohere/",
	Batch: 96, MaxBatch: 96,
	BatchTokens: func(string) int { return 100_000 },
	Encode:      encode,
	Decode:      decode,
	Quotas:      quotas,
}

type request struct {
	Model           string   `json:"model"`
	Texts           []string `json:"texts"`
	InputType       string   `json:"input_type"`
	EmbeddingTypes  []string `json:"embedding_types"`
	Truncate        string   `json:"truncate"` // NONE: a text that is cut would be found by half of it
	OutputDimension int      `json:"output_dimension,omitempty"`
}

func encode(a remote.Ask) any {
	r := request{Model: a.Model, Texts: a.Inputs, InputType: "search_document",
		EmbeddingTypes: []string{"float"}, Truncate: "NONE", OutputDimension: a.Dimensions}
	if a.Query {
		r.InputType = "search_query"
	}
	return r
}

func decode(body []byte) (remote.Answer, error) {
	var response struct {
		Embeddings struct {
			Float []json.RawMessage `json:"float"`
		} `json:"embeddings"`
		Texts []json.RawMessage `json:"texts"`
		Meta  json.RawMessage   `json:"meta"`
	}
	if err := json.Unmarshal(body, &response); err != nil {
		return remote.Answer{}, err
	}
	vectors := response.Embeddings.Float
	if n := len(response.Texts); n > 0 && n != len(vectors) {
		return remote.Answer{}, fmt.Errorf("%d vectors for what the server took for %d texts", len(vectors), n)
	}
	a := remote.Answer{Items: make([]remote.Item, len(vectors))}
	for i, v := range vectors {
		a.Items[i].Vector = v
	}
	var meta struct {
		BilledUnits struct {
			InputTokens float64 `json:"input_tokens"`
		} `json:"billed_units"`
	}
	if json.Unmarshal(response.Meta, &meta) == nil && meta.BilledUnits.InputTokens < 1e15 {
		a.Tokens = int64(meta.BilledUnits.InputTokens)
	}
	return a, nil
}

// quotas adds to the common headers those that come with a trial key: calls that
// are left of this minute.
func quotas(h http.Header) []remote.Quota {
	told := remote.Quotas(h)
	remaining, ok := remote.Count(h, "X-Trial-Endpoint-Call-Remaining")
	if !ok {
		return told
	}
	q := remote.Quota{Remaining: remaining, Reset: time.Minute}
	if limit, ok := remote.Count(h, "X-Trial-Endpoint-Call-Limit"); ok && limit >= remaining {
		q.Limit = limit
	}
	return append(told, q)
}
