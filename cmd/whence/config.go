package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/embedder/openai"
)

// embedderFlags choose the embedding model.
type embedderFlags struct {
	Embedder           string        `enum:"lexical,openai" default:"lexical" env:"WHENCE_EMBEDDER" help:"lexical (built in, no network) or openai (any server that speaks its embeddings API)."`
	EmbedderURL        string        `env:"WHENCE_EMBEDDER_URL" help:"Base URL of the embedding server, such as http://127.0.0.1:11434/v1." placeholder:"URL"`
	EmbedderModel      string        `env:"WHENCE_EMBEDDER_MODEL" help:"The server's name for the model." placeholder:"NAME"`
	EmbedderAPIKey     string        `env:"WHENCE_EMBEDDER_API_KEY" help:"Sent as a bearer token." placeholder:"KEY"`
	EmbedderDimensions int           `env:"WHENCE_EMBEDDER_DIMENSIONS" help:"Of the model's vectors; 0 asks the server once." default:"0"`
	EmbedderTimeout    time.Duration `env:"WHENCE_EMBEDDER_TIMEOUT" help:"For one request." default:"60s"`
}

// queryCache is how many questions' vectors a process keeps.
const queryCache = 2048

// model returns the chosen model with a cache for questions. A server whose
// dimensions are not given must answer once before anything starts.
func (f embedderFlags) model(ctx context.Context) (embedder.Model, error) {
	if f.Embedder == "lexical" {
		return embedder.WithQueryCache(lexical.Default(), queryCache), nil
	}
	if f.EmbedderURL == "" || f.EmbedderModel == "" {
		return nil, errors.New("the openai embedder needs --embedder-url and --embedder-model (WHENCE_EMBEDDER_URL, WHENCE_EMBEDDER_MODEL)")
	}
	m, err := openai.New(openai.Config{BaseURL: f.EmbedderURL, Model: f.EmbedderModel, APIKey: openai.Secret(f.EmbedderAPIKey),
		Dimensions: f.EmbedderDimensions, Timeout: f.EmbedderTimeout})
	if err != nil {
		return nil, err
	}
	if f.EmbedderDimensions == 0 {
		if err := m.Probe(ctx); err != nil {
			return nil, fmt.Errorf("%w; the server must answer once, or give --embedder-dimensions", err)
		}
	}
	return embedder.WithQueryCache(m, queryCache), nil
}

// serveFlags configure a server process.
type serveFlags struct {
	DatabaseURL   string        `name:"database-url" env:"WHENCE_DATABASE_URL" required:"" help:"Connection string of the memory database." placeholder:"DSN"`
	SecretKey     string        `env:"WHENCE_SECRET_KEY" required:"" help:"Seals stored secrets: 32 random bytes in base64; the same for every process." placeholder:"KEY"`
	Listen        string        `env:"WHENCE_LISTEN" default:"127.0.0.1:7171" help:"Address to listen on."`
	Issuer        string        `env:"WHENCE_ISSUER" help:"Public URL of this installation, which tokens name as issuer and audience; default http://LISTEN." placeholder:"URL"`
	Roles         []string      `env:"WHENCE_ROLES" enum:"api,capture,embed" default:"api,capture,embed" help:"What this process does: api, capture, embed."`
	Connections   int32         `env:"WHENCE_DATABASE_CONNECTIONS" default:"20" help:"The most connections to the memory database."`
	Grace         time.Duration `env:"WHENCE_GRACE" default:"10s" help:"How long calls may go on after the signal to stop."`
	MetricsToken  string        `env:"WHENCE_METRICS_TOKEN" help:"Who shows it as a bearer token may read /metrics, and nothing else; operators may anyway." placeholder:"TOKEN"`
	Verbose       bool          `env:"WHENCE_VERBOSE" short:"v" help:"Log more."`
	embedderFlags `embed:""`
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
