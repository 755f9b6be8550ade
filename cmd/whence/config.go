package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/embedder/cohere"
	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/embedder/openai"
	"github.com/whence-db/whence/embedder/remote"
	"github.com/whence-db/whence/embedder/voyage"
	"github.com/whence-db/whence/internal/seal"
)

// embedderFlags choose an embedding model. There are two sets of them, that their
// variables' names are prefixed for.
type embedderFlags struct {
	Embedder             string        `enum:",lexical,openai,cohere,voyage" default:"" env:"EMBEDDER" help:"lexical (built in, no network; what there is without this), or whose API the server speaks: openai (many servers do), cohere, voyage."`
	EmbedderURL          string        `env:"EMBEDDER_URL" help:"Base URL of the embedding server, such as http://127.0.0.1:11434/v1; default the provider's own for cohere and voyage." placeholder:"URL"`
	EmbedderModel        string        `env:"EMBEDDER_MODEL" help:"The server's name for the model." placeholder:"NAME"`
	EmbedderAPIKey       string        `env:"EMBEDDER_API_KEY" help:"Sent as a bearer token." placeholder:"KEY"`
	EmbedderDimensions   int           `env:"EMBEDDER_DIMENSIONS" help:"Of the model's vectors; 0 asks the server once." default:"0"`
	EmbedderShorten      bool          `env:"EMBEDDER_SHORTEN" help:"Ask the server for vectors of --embedder-dimensions, which some models can shorten."`
	EmbedderTimeout      time.Duration `env:"EMBEDDER_TIMEOUT" help:"For one request." default:"60s"`
	EmbedderQueryTimeout time.Duration `env:"EMBEDDER_QUERY_TIMEOUT" help:"For a question's vector, all attempts together." default:"5s"`
	EmbedderConcurrency  int           `env:"EMBEDDER_CONCURRENCY" help:"The most requests at a time for texts, and as many for questions." default:"4"`
}

// modelFlags choose the models that a process has: the one it is to work with and,
// while changing over, another.
type modelFlags struct {
	embedderFlags `embed:"" envprefix:"WHENCE_"`
	Next          embedderFlags `embed:"" prefix:"next-" envprefix:"WHENCE_NEXT_" group:"Changing the embedding model"`
}

// models returns the chosen models; used is told what their calls cost.
func (f modelFlags) models(ctx context.Context, used func(embedder.Usage)) ([]embedder.Model, error) {
	first, err := f.model(ctx, used)
	if err != nil {
		return nil, err
	}
	if f.Next.Embedder == "" {
		if set := f.Next.serverFlags(); set != "" {
			return nil, fmt.Errorf("next %s: say with --next-embedder (WHENCE_NEXT_EMBEDDER) whose API the server speaks", set)
		}
		return []embedder.Model{first}, nil
	}
	next, err := f.Next.model(ctx, used)
	if err != nil {
		return nil, fmt.Errorf("next embedder (--next-..., WHENCE_NEXT_...): %w", err)
	}
	if next.Name() == first.Name() && next.Dimensions() == first.Dimensions() {
		return nil, fmt.Errorf("--embedder and --next-embedder choose the same model, %s with %d dimensions: leave the second out, or choose another",
			first.Name(), first.Dimensions())
	}
	return []embedder.Model{first, next}, nil
}

// queryCache is how many questions' vectors a process keeps.
const queryCache = 2048

// protocols are the embedders that are reached over HTTP.
var protocols = map[string]struct {
	new     func(remote.Config) (*remote.Model, error)
	baseURL string // empty: there is no server that is meant
}{
	"openai": {openai.New, ""},
	"cohere": {cohere.New, cohere.BaseURL},
	"voyage": {voyage.New, voyage.BaseURL},
}

// model returns the chosen model with a cache for questions; used is told what
// its calls cost. A server whose dimensions are not given must answer once before
// anything starts.
func (f embedderFlags) model(ctx context.Context, used func(embedder.Usage)) (embedder.Model, error) {
	protocol, ok := protocols[f.Embedder]
	if !ok {
		if set := f.serverFlags(); set != "" {
			return nil, fmt.Errorf("the lexical embedder has no server: leave out %s, or choose another with --embedder (WHENCE_EMBEDDER)", set)
		}
		return embedder.WithQueryCache(lexical.Default(), queryCache), nil
	}
	url := f.EmbedderURL
	if url == "" {
		url = protocol.baseURL
	}
	switch {
	case url == "":
		return nil, f.needs("--embedder-url (WHENCE_EMBEDDER_URL)")
	case f.EmbedderModel == "":
		return nil, f.needs("--embedder-model (WHENCE_EMBEDDER_MODEL)")
	case f.EmbedderAPIKey == "" && url == protocol.baseURL:
		return nil, f.needs("--embedder-api-key (WHENCE_EMBEDDER_API_KEY) for " + url)
	case f.EmbedderShorten && f.EmbedderDimensions == 0:
		return nil, errors.New("--embedder-shorten needs --embedder-dimensions (WHENCE_EMBEDDER_DIMENSIONS), to say to how many")
	}
	m, err := protocol.new(remote.Config{BaseURL: url, Model: f.EmbedderModel, APIKey: remote.Secret(f.EmbedderAPIKey),
		Dimensions: f.EmbedderDimensions, AskDimensions: f.EmbedderShorten,
		Timeout: f.EmbedderTimeout, QueryTimeout: f.EmbedderQueryTimeout, Concurrency: f.EmbedderConcurrency})
	if err != nil {
		return nil, err
	}
	if f.EmbedderDimensions == 0 {
		if err := m.Probe(ctx); err != nil {
			return nil, fmt.Errorf("%w; the server must answer once, or give --embedder-dimensions", err)
		}
	}
	return embedder.WithReport(embedder.WithQueryCache(m, queryCache), used), nil
}

func (f embedderFlags) needs(what string) error {
	return fmt.Errorf("the %s embedder needs %s", f.Embedder, what)
}

// serverFlags names a flag that is set and means nothing without a server.
func (f embedderFlags) serverFlags() string {
	switch {
	case f.EmbedderURL != "":
		return "--embedder-url"
	case f.EmbedderModel != "":
		return "--embedder-model"
	default:
		return ""
	}
}

// serveFlags configure a server process.
type serveFlags struct {
	DatabaseURL  string        `name:"database-url" env:"WHENCE_DATABASE_URL" required:"" help:"Connection string of the memory database." placeholder:"DSN"`
	SecretKey    string        `env:"WHENCE_SECRET_KEY" required:"" help:"Seals stored secrets: 32 random bytes in base64; the same for every process." placeholder:"KEY"`
	Listen       string        `env:"WHENCE_LISTEN" default:"127.0.0.1:7171" help:"Address to listen on."`
	Issuer       string        `env:"WHENCE_ISSUER" help:"Public URL of this installation, which tokens name as issuer and audience; default http://LISTEN." placeholder:"URL"`
	Roles        []string      `env:"WHENCE_ROLES" enum:"api,capture,embed" default:"api,capture,embed" help:"What this process does: api, capture, embed."`
	Connections  int32         `env:"WHENCE_DATABASE_CONNECTIONS" default:"20" help:"The most connections to the memory database."`
	Grace        time.Duration `env:"WHENCE_GRACE" default:"10s" help:"How long calls may go on after the signal to stop."`
	MetricsToken string        `env:"WHENCE_METRICS_TOKEN" help:"Who shows it as a bearer token may read /metrics, and nothing else; operators may anyway." placeholder:"TOKEN"`
	Verbose      bool          `env:"WHENCE_VERBOSE" short:"v" help:"Log more."`
	signingFlags `embed:""`
	modelFlags   `embed:""`
}

// signingFlags choose the keys that tokens are signed with.
type signingFlags struct {
	SigningKeyFile   string `env:"WHENCE_SIGNING_KEY_FILE" help:"PEM file of private keys (PKCS #8, Ed25519 or P-256) to sign tokens with, the one to use first; without it keys are made and stored sealed." placeholder:"FILE"`
	SigningAlgorithm string `enum:"EdDSA,ES256" default:"EdDSA" env:"WHENCE_SIGNING_ALGORITHM" help:"Of signing keys that are made: EdDSA or ES256."`
}

// keys reads the signing keys, and makes or takes over what is missing; who borrows
// them takes nothing over.
func (f signingFlags) keys(ctx context.Context, pool *pgxpool.Pool, secret seal.Key, borrow bool) (*authz.Keys, error) {
	return authz.LoadKeys(ctx, authz.KeysConfig{Pool: pool, Seal: secret, Borrow: borrow,
		File: f.SigningKeyFile, Algorithm: authz.Algorithm(f.SigningAlgorithm)})
}

// shortestMetricsToken is longer than anything that could be guessed.
const shortestMetricsToken = 16

func (f serveFlags) validate() error {
	if n := len(f.MetricsToken); n > 0 && n < shortestMetricsToken {
		return fmt.Errorf("--metrics-token: at least %d characters, please; openssl rand -hex 32 makes a good one", shortestMetricsToken)
	}
	if f.Issuer == "" {
		return nil
	}
	u, err := url.Parse(f.Issuer)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return fmt.Errorf("--issuer %q: want a URL such as https://memory.example.org", f.Issuer)
	}
	return nil
}

func (f serveFlags) role(name string) bool {
	for _, r := range f.Roles {
		if r == name {
			return true
		}
	}
	return false
}
