package main

import (
	"strings"
	"sync"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/embedder/embeddertest"
)

func TestEmbedderFlagsSayWhatIsMissing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args string
		want string
	}{
		{"--embedder openai --embedder-model m", "--embedder-url (WHENCE_EMBEDDER_URL)"},
		{"--embedder openai --embedder-url http://127.0.0.1:1/v1", "--embedder-model (WHENCE_EMBEDDER_MODEL)"},
		{"--embedder cohere --embedder-api-key k", "the cohere embedder needs --embedder-model"},
		{"--embedder cohere --embedder-model m", "--embedder-api-key (WHENCE_EMBEDDER_API_KEY) for https://api.cohere.com/v2"},
		{"--embedder voyage --embedder-model m", "--embedder-api-key (WHENCE_EMBEDDER_API_KEY) for https://api.voyageai.com/v1"},
		{"--embedder voyage --embedder-model m --embedder-api-key k --embedder-shorten", "--embedder-dimensions"},
		{"--embedder voyage --embedder-model m --embedder-url ftp://127.0.0.1", "http or https"},
		{"--embedder openai --embedder-model m --embedder-url http://127.0.0.1:1/v1", "or give --embedder-dimensions"},
		{"--embedder-model m", "choose another with --embedder"},
		{"--embedder-url http://127.0.0.1:1/v1", "choose another with --embedder"},
	} {
		f := embedderFlagsOf(t, strings.Fields(c.args)...)
		_, err := f.model(t.Context(), func(embedder.Usage) {})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.args, err, c.want)
		}
	}
	if o := command(t, "serve", "--embedder", "other"); o.status != 2 || !strings.Contains(o.err, "lexical") {
		t.Errorf("an unknown embedder: %+v", o)
	}
}

// embedderFlagsOf reads them as the command line does.
func embedderFlagsOf(t *testing.T, args ...string) (f embedderFlags) {
	t.Helper()
	parser, err := kong.New(&f)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse(args); err != nil {
		t.Fatal(err)
	}
	return f
}

// The second set of flags chooses another model, also by its variables.
func TestNextEmbedder(t *testing.T) {
	for _, c := range []struct {
		args string
		want string            // of the models' names, or of the error
		env  map[string]string // variables after WHENCE_NEXT_EMBEDDER
	}{
		{"", "lexical-512-v1", nil},
		{"--next-embedder openai --next-embedder-url http://127.0.0.1:1/v1 --next-embedder-model m --next-embedder-dimensions 8", "lexical-512-v1 m", nil},
		{"--embedder openai --embedder-url http://127.0.0.1:1/v1 --embedder-model m --embedder-dimensions 8 --next-embedder lexical", "m lexical-512-v1", nil},
		{"--embedder openai --embedder-url http://127.0.0.1:1/v1 --embedder-model m --embedder-dimensions 8", "m cohere/variable", map[string]string{"": "cohere", "_URL": "http://127.0.0.1:1/v2", "_MODEL": "variable", "_DIMENSIONS": "9"}},
		{"--next-embedder lexical", "choose the same model", nil},
		{"--next-embedder openai", "next embedder (--next-..., WHENCE_NEXT_...): the openai embedder needs", nil},
		{"--next-embedder-model m", "--next-embedder (WHENCE_NEXT_EMBEDDER)", nil},
	} {
		t.Run(c.args, func(t *testing.T) {
			for name, value := range c.env {
				t.Setenv("WHENCE_NEXT_EMBEDDER"+name, value)
			}
			var f modelFlags
			parser, err := kong.New(&f)
			if err == nil {
				_, err = parser.Parse(strings.Fields(c.args))
			}
			if err != nil {
				t.Fatal(err)
			}
			models, err := f.models(t.Context(), func(embedder.Usage) {})
			var names []string
			for _, m := range models {
				names = append(names, m.Name())
			}
			got := strings.Join(names, " ")
			if err != nil {
				got = err.Error()
			}
			if !strings.Contains(got, c.want) {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// stands is where the stand-in speaks each protocol.
var stands = map[string]func(*embeddertest.Server) string{
	"openai": (*embeddertest.Server).URL,
	"cohere": (*embeddertest.Server).CohereURL,
	"voyage": (*embeddertest.Server).VoyageURL,
}

// Each protocol is spoken as it is chosen, shortened if that is asked for, and
// what it costs is told.
func TestEmbedderFlagsChooseTheProtocol(t *testing.T) {
	t.Parallel()
	for name, url := range stands {
		s, err := embeddertest.Start(embeddertest.Config{Model: "m", APIKey: "k"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		var mu sync.Mutex
		var total embedder.Usage
		used := func(u embedder.Usage) {
			mu.Lock()
			defer mu.Unlock()
			total = total.Add(u)
		}
		f := embedderFlagsOf(t, "--embedder", name, "--embedder-url", url(s), "--embedder-model", "m", "--embedder-api-key", "k")
		m, err := f.model(t.Context(), used)
		if err != nil || m.Dimensions() != 64 {
			t.Fatalf("%s: %v", name, err)
		}
		f.EmbedderDimensions, f.EmbedderShorten = 16, true
		if m, err = f.model(t.Context(), used); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		before := s.Tokens()
		v, err := m.Embed(t.Context(), []string{"a text", "another"})
		if err != nil || len(v[0]) != 16 {
			t.Errorf("%s: %d dimensions, %v", name, len(v[0]), err)
		}
		for range 2 { // the second from the cache
			if _, err := m.EmbedQuery(t.Context(), "a question"); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if want := (embedder.Usage{Calls: 2, Tokens: s.Tokens() - before}); total != want {
			t.Errorf("%s: used %+v, want %+v", name, total, want)
		}
	}
}
