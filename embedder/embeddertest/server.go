// Package embeddertest is a stand-in for a server of embedding models: a real
// HTTP server on loopback that speaks the protocols of OpenAI, Cohere and Voyage,
// answers with deterministic vectors, keeps account of every text, keeps rate
// limits, and misbehaves on demand.
//
// It exists so that tests, demonstrations and fault injection need no network
// and can prove what no real provider can: how often each text was embedded.
package embeddertest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence/embedder/lexical"
)

// Config describes the server. The zero value is valid.
type Config struct {
	Addr         string // to listen on; "127.0.0.1:0" when empty
	Dimensions   int    // of the vectors; 64 when 0
	Model        string // the only model served; any when empty
	APIKey       string // required as a bearer token; none when empty
	MaxTextBytes int    // a longer text is refused as too long; 0: no limit
	MaxBatch     int    // a larger batch is refused; 0: no limit
	MaxTokens    int    // a batch of more tokens is refused; 0: no limit
}

// Server is a running stand-in. All methods are safe for concurrent use.
type Server struct {
	config  Config
	vectors *lexical.Model

	switching sync.Mutex // held while switching on or off, so that each is whole

	mu        sync.Mutex // guards everything below
	addr      string
	period    *period // nil while switched off
	closed    bool
	fault     Fault
	faultLeft int // requests it still applies to; negative: no end
	requests  int
	requested map[string]int
	embedded  map[string]int
	tokens    int64
	headers   http.Header // sent with every response
	limiter   *limiter    // nil: no rate limit
	refused   int
}

// period is the time between switching on and off.
type period struct {
	server   *http.Server
	over     context.Context // ends when the server is switched off
	end      context.CancelFunc
	serving  errgroup.Group // the listener
	handlers sync.WaitGroup // Add only under Server.mu while this is Server.period
}

// Start listens and serves until Close.
func Start(c Config) (*Server, error) {
	if c.Addr == "" {
		c.Addr = "127.0.0.1:0"
	}
	if c.Dimensions == 0 {
		c.Dimensions = 64
	}
	vectors, err := lexical.New(lexical.Config{Dimensions: c.Dimensions})
	if err != nil {
		return nil, fmt.Errorf("start embedding stand-in: %w", err)
	}
	s := &Server{config: c, vectors: vectors, addr: c.Addr,
		requested: make(map[string]int), embedded: make(map[string]int)}
	if err := s.SwitchOn(); err != nil {
		return nil, err
	}
	return s, nil
}

// URL is the base URL for clients that speak OpenAI's protocol, the same for as
// long as the server lives.
func (s *Server) URL() string { return s.base("/v1") }

// CohereURL is the base URL for clients that speak Cohere's protocol.
func (s *Server) CohereURL() string { return s.base("/cohere/v2") }

// VoyageURL is the base URL for clients that speak Voyage's protocol.
func (s *Server) VoyageURL() string { return s.base("/voyage/v1") }

func (s *Server) base(path string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return "http://" + s.addr + path
}

// SwitchOff stops listening and cuts every connection: from now on clients are
// refused. It waits for handlers in progress. Switched off twice is off.
func (s *Server) SwitchOff() {
	s.switching.Lock()
	defer s.switching.Unlock()
	s.switchOff()
}

// switchOff must be called with switching held.
func (s *Server) switchOff() {
	s.mu.Lock()
	p := s.period
	s.period = nil
	s.mu.Unlock()
	if p == nil {
		return
	}
	_ = p.server.Close() // the listener's error is of no use to anyone
	p.end()              // after it, so that a handler that ends now reaches nobody
	_ = p.serving.Wait()
	p.handlers.Wait()
}

// SwitchOn listens on the address of before.
func (s *Server) SwitchOn() error {
	s.switching.Lock()
	defer s.switching.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.period != nil || s.closed {
		return nil
	}
	listener, err := net.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("embedding stand-in: %w", err)
	}
	s.addr = listener.Addr().String()
	p := &period{}
	p.over, p.end = context.WithCancel(context.Background())
	mux := http.NewServeMux()
	mux.Handle("POST /v1/embeddings", s.during(p, openAI))
	mux.Handle("POST /cohere/v2/embed", s.during(p, cohere))
	mux.Handle("POST /voyage/v1/embeddings", s.during(p, voyage))
	p.server = &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	p.serving.Go(func() error { return p.server.Serve(listener) })
	s.period = p
	return nil
}

// during handles requests as long as p is the current period.
func (s *Server) during(p *period, d dialect) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		current := s.period == p
		if current {
			p.handlers.Add(1)
			maps.Copy(w.Header(), s.headers)
		}
		s.mu.Unlock()
		if !current {
			panic(http.ErrAbortHandler)
		}
		defer p.handlers.Done()
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(p.over, cancel)()
		s.embeddings(w, r.WithContext(ctx), d)
	})
}

// Close stops the server for good. Closing twice is the same as once.
func (s *Server) Close() {
	s.switching.Lock()
	defer s.switching.Unlock()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.switchOff()
}

// Requests is the number of well-formed requests received.
func (s *Server) Requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

// Requested is how often text was sent to the server, answered or not.
func (s *Server) Requested(text string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requested[text]
}

// Embedded is how often a good vector for text was sent back.
func (s *Server) Embedded(text string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.embedded[text]
}

// AllEmbedded returns, for every text, how often it was embedded.
func (s *Server) AllEmbedded() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.embedded)
}

// Tokens is how many tokens the server has reported for its answers.
func (s *Server) Tokens() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens
}

// Refused is how many requests were over the rate limit.
func (s *Server) Refused() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused
}

// SetHeaders has every response carry h too.
func (s *Server) SetHeaders(h http.Header) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.headers = h.Clone()
}

// Forget sets all counts to zero.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests, s.refused, s.tokens = 0, 0, 0
	clear(s.requested)
	clear(s.embedded)
}

// QueryVector is what the server answers for text when it is called a question,
// as Cohere's and Voyage's protocols can.
func (s *Server) QueryVector(ctx context.Context, text string) ([]float32, error) {
	return s.vectors.EmbedQuery(ctx, asQuestion(text))
}

func asQuestion(text string) string { return "question: " + text }

// Vector is what the server answers for text: a unit vector.
func (s *Server) Vector(ctx context.Context, text string) ([]float32, error) {
	return s.vectors.EmbedQuery(ctx, text)
}
