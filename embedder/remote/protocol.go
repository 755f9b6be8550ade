package remote

import (
	"encoding/json"
	"net/http"
	"time"
)

// Protocol is what one provider's API looks like on the wire. Its functions only
// translate: whatever can go wrong with a server is handled here, once for all.
type Protocol struct {
	Name     string // in messages: "cohere"
	BaseURL  string // the provider's public address; empty when many servers speak the protocol
	Path     string // after the base URL
	Space    string // put before the model's name: another protocol makes other vectors of it
	Base64   bool   // vectors can be asked for in base64
	Batch    int    // texts in one request by default
	MaxBatch int    // texts in one request that the API takes at most

	// BatchTokens is how many tokens one request may have, for a model.
	BatchTokens func(model string) int
	// Encode returns the request's body, to be marshalled.
	Encode func(Ask) any
	// Decode takes a response's body apart. The vectors in it are checked later.
	Decode func(body []byte) (Answer, error)
	// Quotas reads what a response's headers say of rate limits.
	Quotas func(http.Header) []Quota
}

// Ask is a request.
type Ask struct {
	Model      string
	Inputs     []string
	Query      bool // questions to search with, and not documents to be found
	Dimensions int  // to ask for; 0: the model's own
	Base64     bool
}

// Answer is a response.
type Answer struct {
	Items  []Item
	Tokens int64 // as reported; 0: not said
}

// Item is one vector, as it came.
type Item struct {
	Index  *int            // of its text; nil: the items are in the order of the texts
	Vector json.RawMessage // an array of numbers, or base64 of little-endian float32s
}

// Quota is how much of a rate limit is left.
type Quota struct {
	Tokens    bool    // the limit is of tokens, and not of requests
	Limit     float64 // 0: not said
	Remaining float64
	Reset     time.Duration // until Remaining is Limit again
	Steady    bool          // it refills all the time, and not all at once
}
