package main

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/embedder/cohere"
	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/embedder/openai"
	"github.com/whence-db/whence/embedder/remote"
	"github.com/whence-db/whence/embedder/voyage"
)

// modelFlags choose the embedding model, by the names that whence has for it.
type modelFlags struct {
	protocol string
	key      string
	server   remote.Config
}

const lexicalModel = "lexical"

func (m *modelFlags) define(f *flag.FlagSet) {
	f.StringVar(&m.protocol, "embedder", lexicalModel, "lexical, openai, cohere or voyage")
	f.StringVar(&m.server.BaseURL, "embedder-url", "", "base `URL` of the embedding server")
	f.StringVar(&m.server.Model, "embedder-model", "", "the server's `NAME` for the model")
	f.StringVar(&m.key, "embedder-api-key", "", "sent as a bearer token")
	f.IntVar(&m.server.Dimensions, "embedder-dimensions", 0, "of the model's vectors; 0 asks the server once")
	f.BoolVar(&m.server.AskDimensions, "embedder-shorten", false, "ask the server for vectors of -embedder-dimensions")
	f.DurationVar(&m.server.Timeout, "embedder-timeout", time.Minute, "for one request")
	f.DurationVar(&m.server.QueryTimeout, "embedder-query-timeout", 30*time.Second, "for a question's vector; in peace, for nobody waits")
	f.IntVar(&m.server.Concurrency, "embedder-concurrency", 4, "the most requests at a time")
}

// fromEnvironment sets the embedder's flags that were not given from whence's variables.
func fromEnvironment(f *flag.FlagSet, getenv func(string) string) (err error) {
	given := map[string]bool{}
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	f.VisitAll(func(one *flag.Flag) {
		if !strings.HasPrefix(one.Name, "embedder") || given[one.Name] || err != nil {
			return
		}
		name := "WHENCE_" + strings.ToUpper(strings.ReplaceAll(one.Name, "-", "_"))
		if v := getenv(name); v != "" {
			if e := f.Set(one.Name, v); e != nil {
				err = fmt.Errorf("%s: %w", name, e)
			}
		}
	})
	return err
}

// open returns the model. A server whose dimensions are not given must answer once.
func (m *modelFlags) open(ctx context.Context) (embedder.Model, error) {
	connect := map[string]func(remote.Config) (*remote.Model, error){"openai": openai.New, "cohere": cohere.New, "voyage": voyage.New}[m.protocol]
	switch {
	case m.protocol == lexicalModel:
		return lexical.Default(), nil
	case connect == nil:
		return nil, fmt.Errorf("-embedder %q: want lexical, openai, cohere or voyage", m.protocol)
	}
	server := m.server
	server.APIKey = remote.Secret(m.key)
	model, err := connect(server)
	if err != nil {
		return nil, err
	}
	if server.Dimensions == 0 {
		if err := model.Probe(ctx); err != nil {
			return nil, err
		}
	}
	// A question is asked once a ranking, and embedded once.
	return embedder.WithQueryCache(model, questionsKept), nil
}

const questionsKept = 100_000
