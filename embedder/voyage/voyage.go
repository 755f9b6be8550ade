// Package voyage speaks Voyage's embeddings protocol (POST {base}/embeddings,
// https://docs.voyageai.com/reference/embeddings-api).
package voyage

import (
	"strings"

	"github.com/whence-db/whence/embedder/remote"
)

// BaseURL is the provider's own address.
const BaseURL = "https://api.voyageai.com/v1"

// New validates c and returns the model. It does not contact the server.
// Without a base URL it is BaseURL, and an API key is required.
func New(c remote.Config) (*remote.Model, error) { return remote.New(protocol, c) }

// protocol tells documents from questions, so its vectors are not those that the
// same model gives by OpenAI's protocol. The provider documents no headers of
// rate limits; those of OpenAI's form are heeded if a gateway sends them.
var protocol = remote.Protocol{
	Name: "voyage", BaseURL: BaseURL, Path: "embeddings", Space: "voyage/", Base64: true,
	Batch: 128, MaxBatch: 1000,
	BatchTokens: batchTokens,
	Encode:      encode,
	Decode:      remote.DecodeIndexed,
	Quotas:      remote.Quotas,
}

// batchTokens is the documented limit of a request. What is not known gets the
// lowest one, and a batch that the server finds too large is halved anyway.
func batchTokens(model string) int {
	switch {
	case strings.HasSuffix(model, "-lite"):
		return 1_000_000
	case model == "voyage-4", model == "voyage-3.5", model == "voyage-3", model == "voyage-2":
		return 320_000
	default:
		return 120_000
	}
}

type request struct {
	Model           string   `json:"model"`
	Input           []string `json:"input"`
	InputType       string   `json:"input_type"`
	Truncation      bool     `json:"truncation"` // false: a text that is cut would be found by half of it
	OutputDimension int      `json:"output_dimension,omitempty"`
	EncodingFormat  string   `json:"encoding_format,omitempty"`
}

func encode(a remote.Ask) any {
	r := request{Model: a.Model, Input: a.Inputs, InputType: "document", OutputDimension: a.Dimensions}
	if a.Query {
		r.InputType = "query"
	}
	if a.Base64 {
		r.EncodingFormat = "base64"
	}
	return r
}
