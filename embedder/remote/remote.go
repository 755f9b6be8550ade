// Package remote embeds text with servers that are reached over HTTP. What one
// provider's API looks like is a Protocol, in a package of its own: openai,
// cohere, voyage.
//
// The governing idea is that the server is not trusted with the index. Every
// response is bounded in size and time and checked in full: count, indexes,
// dimensions, each component. Failures are sorted into those that pass with time
// and those of one text. A text that a server chokes on is found by halving the
// batch, so it never holds up the others; and before any text is condemned, a
// harmless one must have gone through, so a wrong setting never condemns all.
//
// Nor is the server troubled more than it wants: requests keep within the limits
// that it tells, fewer are made at a time when it refuses one, and none for a
// while when it only fails. Questions go their own way past all documents.
package remote

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence/embedder"
)

// canary is what is embedded when only the server is in question, not a text.
const canary = "whence"

// Model implements embedder.Model. Create it with the New of a protocol's package.
type Model struct {
	protocol                    Protocol
	name, model                 string
	endpoint                    string
	documentPrefix, queryPrefix string
	base64, askDimensions       bool
	maxBatch, maxBatchTokens    int
	concurrency, retries        int
	timeout, queryTimeout       time.Duration
	maxWait, maxPace            time.Duration

	client    *http.Client
	authorize func(*http.Request) // a closure, so that printing a Model shows no key
	redact    func(string) string
	now       func() time.Time
	sleep     func(context.Context, time.Duration) error
	jitter    func() float64

	dimensions atomic.Int64 // 0 until configured or probed
	documents  *lane
	queries    *lane // queries do not wait behind documents
	pace       pace
}

// New validates c and returns the model. It does not contact the server.
func New(p Protocol, c Config) (*Model, error) {
	endpoint, err := c.complete(p)
	if err != nil {
		return nil, fmt.Errorf("embedding model %q: %w", c.Model, err)
	}
	m := &Model{
		protocol: p, name: c.Name, model: c.Model, endpoint: endpoint,
		documentPrefix: c.DocumentPrefix, queryPrefix: c.QueryPrefix,
		base64: c.Base64, askDimensions: c.AskDimensions,
		maxBatch: c.MaxBatch, maxBatchTokens: c.MaxBatchTokens, concurrency: c.Concurrency,
		retries: c.Retries, timeout: c.Timeout, queryTimeout: c.QueryTimeout, maxWait: c.MaxWait, maxPace: c.MaxPace,
		client: httpClient(c), authorize: func(*http.Request) {}, redact: func(s string) string { return s },
		now: c.Now, sleep: c.Sleep, jitter: c.Jitter,
		documents: newLane(c), queries: newLane(c),
	}
	if key := string(c.APIKey); key != "" {
		m.authorize = func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+key) }
		m.redact = func(s string) string { return strings.ReplaceAll(s, key, redacted) }
	}
	if c.DocumentPrefix != "" {
		sum := sha256.Sum256([]byte(c.DocumentPrefix))
		m.name += "#" + hex.EncodeToString(sum[:4])
	}
	m.dimensions.Store(int64(c.Dimensions))
	return m, nil
}

// httpClient never follows a redirect: the texts and the key are for the
// configured address only.
func httpClient(c Config) *http.Client {
	client := &http.Client{}
	if c.HTTPClient != nil {
		*client = *c.HTTPClient
	} else {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.MaxIdleConnsPerHost = 2 * c.Concurrency
		transport.MaxResponseHeaderBytes = 64 << 10
		client.Transport = transport
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return client
}

// Name is Config.Name, or by default the model's name at the server with a mark of
// the protocol, and a mark of the document prefix if there is one: both change
// every vector.
func (m *Model) Name() string { return m.name }

// Dimensions is 0 until they are configured or Probe has succeeded.
func (m *Model) Dimensions() int { return int(m.dimensions.Load()) }

// MaxBatch is the number of texts sent in one request.
func (m *Model) MaxBatch() int { return m.maxBatch }

// Close drops idle connections. Calls in flight go on.
func (m *Model) Close() { m.client.CloseIdleConnections() }

// Probe embeds one harmless word. It returns nil when the server, credential and
// model name work; it learns the dimensions, or checks the configured ones.
func (m *Model) Probe(ctx context.Context) error {
	if fail := m.probe(ctx); fail != nil {
		return m.fault(ctx, fail)
	}
	return nil
}

func (m *Model) probe(ctx context.Context) *failure {
	vectors, _, fail := m.send(ctx, m.queries, errand{inputs: []string{m.documentPrefix + canary}, harmless: true, urgent: true,
		retries: m.retries, wait: m.maxWait})
	if fail != nil {
		return fail.accuseNobody()
	}
	m.dimensions.CompareAndSwap(0, int64(len(vectors[0])))
	return nil
}

// EmbedQuery returns the vector to search with. It retries at most once, and
// takes QueryTimeout at most.
func (m *Model) EmbedQuery(ctx context.Context, text string) ([]float32, error) {
	limited, cancel := context.WithTimeout(ctx, m.queryTimeout)
	defer cancel()
	if m.Dimensions() == 0 {
		if fail := m.probe(limited); fail != nil {
			return nil, m.fault(ctx, fail)
		}
	}
	if strings.TrimSpace(text) == "" {
		return nil, m.emptyText()
	}
	vectors, bad, fail := m.send(limited, m.queries, errand{inputs: []string{m.queryPrefix + clean(text)}, query: true, urgent: true,
		retries: min(1, m.retries), wait: m.maxWait})
	if fail != nil {
		return nil, m.fault(ctx, fail)
	}
	if bad[0] != nil {
		return nil, bad[0]
	}
	return vectors[0], nil
}

// Embed returns one document vector for each text, in as few requests as
// MaxBatch and MaxBatchTokens allow. Texts that are empty or blank are rejected
// without a request, as the protocol's own server does.
func (m *Model) Embed(ctx context.Context, texts []string) ([][]float32, error) {
	if len(texts) == 0 {
		return [][]float32{}, nil
	}
	if m.Dimensions() == 0 {
		if err := m.Probe(ctx); err != nil {
			return nil, err
		}
	}
	j := newJob(m, texts)
	var requests errgroup.Group
	requests.SetLimit(m.concurrency)
	for _, group := range j.pack() {
		requests.Go(func() error {
			j.run(ctx, group)
			return nil
		})
	}
	_ = requests.Wait() // failures are in j
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("embed: %w", err)
	}
	return j.result()
}

// fault is what a caller sees of a failure: its own context's end, if that is
// the cause, or else the Error.
func (m *Model) fault(ctx context.Context, f *failure) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("embed: %w", err)
	}
	return f.Error
}

func (m *Model) emptyText() *embedder.Error {
	return &embedder.Error{Model: m.name, Reason: embedder.Rejected, Message: "the text is empty"}
}

// clean replaces what JSON cannot carry.
func clean(text string) string { return strings.ToValidUTF8(text, "\ufffd") }
