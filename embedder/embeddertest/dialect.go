package embeddertest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// asked is a request in any protocol.
type asked struct {
	model      string
	texts      []string
	query      bool
	dimensions int
	base64     bool
}

type item struct {
	Object    string `json:"object"`
	Index     *int   `json:"index,omitempty"`
	Embedding any    `json:"embedding"`
}

// dialect is one provider's protocol, as strict as the provider is.
type dialect struct {
	parse   func(body []byte) (asked, error)
	answer  func(q asked, items []item, tokens int64) any
	refusal func(message string) any
	indexed bool   // vectors say which text they are of
	opening string // what stands before the first component of the first vector
	trial   bool   // rate limits are told by the headers of a trial key
}

// strictly refuses what the provider does not know.
func strictly(body []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value")
	}
	return nil
}

func oneOf(what, value string, allowed ...string) error {
	for _, a := range allowed {
		if value == a {
			return nil
		}
	}
	return fmt.Errorf("%s is %q, want one of %q", what, value, allowed)
}

func atMost(texts []string, most int) error {
	if len(texts) == 0 || len(texts) > most {
		return fmt.Errorf("%d texts, want 1 to %d", len(texts), most)
	}
	return nil
}

var openAI = dialect{
	indexed: true, opening: `"embedding":[`,
	parse: func(body []byte) (asked, error) {
		var r struct {
			Model          string   `json:"model"`
			Input          []string `json:"input"`
			EncodingFormat string   `json:"encoding_format"`
			Dimensions     int      `json:"dimensions"`
			User           string   `json:"user"`
		}
		err := errors.Join(strictly(body, &r), atMost(r.Input, 2048), oneOf("encoding_format", r.EncodingFormat, "", "float", "base64"))
		return asked{model: r.Model, texts: r.Input, dimensions: r.Dimensions, base64: r.EncodingFormat == "base64"}, err
	},
	answer: func(q asked, items []item, tokens int64) any {
		return map[string]any{"object": "list", "model": q.model, "data": items,
			"usage": map[string]int64{"prompt_tokens": tokens, "total_tokens": tokens}}
	},
	refusal: func(message string) any {
		return map[string]any{"error": map[string]string{"message": message, "type": "invalid_request_error"}}
	},
}

var voyage = dialect{
	indexed: true, opening: `"embedding":[`,
	parse: func(body []byte) (asked, error) {
		var r struct {
			Model           string   `json:"model"`
			Input           []string `json:"input"`
			InputType       string   `json:"input_type"`
			Truncation      *bool    `json:"truncation"`
			OutputDimension int      `json:"output_dimension"`
			OutputDtype     string   `json:"output_dtype"`
			EncodingFormat  string   `json:"encoding_format"`
		}
		err := errors.Join(strictly(body, &r), atMost(r.Input, 1000), oneOf("input_type", r.InputType, "document", "query"),
			oneOf("encoding_format", r.EncodingFormat, "", "base64"))
		if err == nil && (r.Truncation == nil || *r.Truncation) {
			err = errors.New("a client that lets texts be cut")
		}
		return asked{model: r.Model, texts: r.Input, query: r.InputType == "query",
			dimensions: r.OutputDimension, base64: r.EncodingFormat == "base64"}, err
	},
	answer: func(q asked, items []item, tokens int64) any {
		return map[string]any{"object": "list", "model": q.model, "data": items,
			"usage": map[string]int64{"total_tokens": tokens}}
	},
	refusal: func(message string) any { return map[string]string{"detail": message} },
}

var cohere = dialect{
	opening: `"float":[[`, trial: true,
	parse: func(body []byte) (asked, error) {
		var r struct {
			Model           string   `json:"model"`
			Texts           []string `json:"texts"`
			InputType       string   `json:"input_type"`
			EmbeddingTypes  []string `json:"embedding_types"`
			Truncate        string   `json:"truncate"`
			OutputDimension int      `json:"output_dimension"`
		}
		err := errors.Join(strictly(body, &r), atMost(r.Texts, 96), oneOf("input_type", r.InputType, "search_document", "search_query"),
			oneOf("truncate", r.Truncate, "NONE"))
		if err == nil && (len(r.EmbeddingTypes) != 1 || r.EmbeddingTypes[0] != "float") {
			err = fmt.Errorf("embedding_types is %q, want float", r.EmbeddingTypes)
		}
		return asked{model: r.Model, texts: r.Texts, query: r.InputType == "search_query", dimensions: r.OutputDimension}, err
	},
	answer: func(q asked, items []item, tokens int64) any {
		vectors := make([]any, len(items))
		for i, it := range items {
			vectors[i] = it.Embedding
		}
		return map[string]any{"id": "1", "response_type": "embeddings_by_type", "texts": q.texts,
			"embeddings": map[string]any{"float": vectors},
			"meta":       map[string]any{"billed_units": map[string]int64{"input_tokens": tokens}}}
	},
	refusal: func(message string) any { return map[string]string{"id": "1", "message": message} },
}
