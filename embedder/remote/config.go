package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	redacted      = "[redacted]"
	maxDimensions = 16000 // what a stored vector may have
)

// Secret is a string that prints as "[redacted]" in every format.
type Secret string

// Format implements fmt.Formatter.
func (Secret) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// MarshalText keeps the secret out of JSON and structured logs.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Config says which server and model to use. Model is required, and so is
// BaseURL unless the protocol has a public address.
type Config struct {
	BaseURL string // up to and without "/embeddings" or "/embed": "http://127.0.0.1:11434/v1"
	Model   string // the server's name for the model
	Name    string // the space's name; by default it is made of the protocol's and the model's
	APIKey  Secret // sent as a bearer token; empty sends none

	// Dimensions of the vectors. 0: learn them from the server (see Probe).
	Dimensions int
	// AskDimensions sends Dimensions to the server, for models that can shorten
	// their vectors. Servers without that option refuse it.
	AskDimensions bool
	// Base64 asks for vectors in base64, a quarter of the bytes. Vectors in
	// either form are understood whatever was asked for.
	Base64 bool

	// Prefixes for models that want documents and queries marked.
	DocumentPrefix, QueryPrefix string

	MaxBatch       int           // texts in one request; default and maximum are the protocol's
	MaxBatchTokens int           // approximate tokens in one request; default is the protocol's
	Concurrency    int           // document requests at a time, and query requests at a time, at most; default 4
	Timeout        time.Duration // one request, its response included; default 60 s
	QueryTimeout   time.Duration // a whole EmbedQuery; default 5 s, and never more than Timeout
	Retries        int           // further attempts within one call; default 2, negative for none
	MaxWait        time.Duration // the longest wait before another attempt; longer ones are the caller's; default 2 s
	MaxPace        time.Duration // the longest that documents wait so as to stay within a rate limit; default 30 s

	HTTPClient *http.Client                               // default: a client with its own connections
	Now        func() time.Time                           // default time.Now
	Sleep      func(context.Context, time.Duration) error // default: a timer
	Jitter     func() float64                             // in [0,1); default rand.Float64
}

// complete fills in defaults and returns the address to post to.
func (c *Config) complete(p Protocol) (endpoint string, err error) {
	if c.BaseURL == "" && p.BaseURL != "" {
		if c.APIKey == "" {
			return "", fmt.Errorf("%s needs an API key", p.BaseURL)
		}
		c.BaseURL = p.BaseURL
	}
	base, err := url.Parse(c.BaseURL)
	switch {
	case err != nil:
		return "", errors.New("base URL cannot be parsed") // the cause would repeat it, credentials included
	case base.Scheme != "http" && base.Scheme != "https", base.Host == "":
		return "", errors.New("base URL needs http or https and a host")
	case base.User != nil, base.RawQuery != "", base.Fragment != "":
		return "", errors.New("base URL must not have credentials, a query or a fragment")
	case strings.TrimSpace(c.Model) == "":
		return "", errors.New("no model name")
	case strings.ContainsFunc(string(c.APIKey), func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", errors.New("API key has characters that no header can carry")
	case c.Dimensions < 0 || c.Dimensions > maxDimensions:
		return "", fmt.Errorf("%d dimensions, want 0 to %d", c.Dimensions, maxDimensions)
	case c.AskDimensions && c.Dimensions == 0:
		return "", errors.New("asking the server for dimensions needs to know how many")
	case c.MaxBatch < 0, c.MaxBatchTokens < 0, c.Concurrency < 0, c.Timeout < 0, c.QueryTimeout < 0, c.MaxWait < 0, c.MaxPace < 0:
		return "", errors.New("negative limit")
	case c.Base64 && !p.Base64:
		return "", errors.New("the protocol has no base64 form")
	}
	c.fill(p)
	return base.JoinPath(p.Path).String(), nil
}

func (c *Config) fill(p Protocol) {
	orDefault(&c.Name, p.Space+c.Model)
	orDefault(&c.MaxBatch, p.Batch)
	c.MaxBatch = min(c.MaxBatch, p.MaxBatch)
	orDefault(&c.MaxBatchTokens, p.BatchTokens(c.Model))
	orDefault(&c.Concurrency, 4)
	orDefault(&c.Timeout, time.Minute)
	orDefault(&c.QueryTimeout, 5*time.Second)
	c.QueryTimeout = min(c.QueryTimeout, c.Timeout)
	orDefault(&c.Retries, 2)
	c.Retries = max(0, c.Retries)
	orDefault(&c.MaxWait, 2*time.Second)
	orDefault(&c.MaxPace, 30*time.Second)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Sleep == nil {
		c.Sleep = sleep
	}
	if c.Jitter == nil {
		c.Jitter = rand.Float64
	}
}

func orDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
