package remote_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/embedder/embeddertest"
	"github.com/whence-db/whence/embedder/remote"
)

func TestUsage(t *testing.T) {
	t.Parallel()
	type want struct {
		calls               int
		reported, estimated bool
	}
	for kind, w := range map[embeddertest.Kind]want{
		embeddertest.None:        {5, true, false},
		embeddertest.NoUsage:     {5, false, true},
		embeddertest.AbsurdUsage: {5, false, true}, // more tokens than bytes: not believed
		embeddertest.Status:      {5, false, false},
		embeddertest.Redirect:    {5, false, false},
		embeddertest.HangUp:      {5, false, true}, // it had the texts, and may bill them
		embeddertest.Cut:         {5, false, true},
		embeddertest.Stall:       {5, false, true},
		embeddertest.Bomb:        {5, false, true},
	} {
		for _, p := range providers {
			t.Run(p.name+" "+string(kind), func(t *testing.T) {
				t.Parallel()
				s := serve(t, embeddertest.Config{})
				s.SetFault(embeddertest.Fault{Kind: kind, Status: http.StatusServiceUnavailable})
				m, _ := p.connect(t, s, func(c *remote.Config) {
					c.MaxBatch, c.Retries, c.Concurrency = 2, -1, 1
					if kind == embeddertest.Stall {
						c.Timeout = 200 * time.Millisecond
					}
				})
				ctx, outer := embedder.Measure(t.Context())
				ctx, meter := embedder.Measure(ctx)
				_, err := m.Embed(ctx, texts(10))
				if (err == nil) != (kind == embeddertest.None || w.estimated && s.Embedded(texts(1)[0]) > 0) {
					t.Fatal(err)
				}
				u := meter.Usage()
				if u.Calls != w.calls || u.Calls != s.Requests() {
					t.Errorf("%d calls, want %d; the server counts %d", u.Calls, w.calls, s.Requests())
				}
				if (u.Estimated > 0) != w.estimated || (u.Tokens > u.Estimated) != w.reported {
					t.Errorf("usage %+v, want %+v", u, w)
				}
				if w.reported && u.Tokens != s.Tokens() {
					t.Errorf("%d tokens; the server reported %d", u.Tokens, s.Tokens())
				}
				if outer.Usage() != u {
					t.Errorf("the outer meter says %+v", outer.Usage())
				}
			})
		}
	}
}

// What never reached a server cost nothing; every attempt that did, counts.
func TestUsageOfAttempts(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{})
	m, _ := connect(t, s, nil)
	measure := func() embedder.Usage {
		ctx, meter := embedder.Measure(t.Context())
		_, _ = m.EmbedQuery(ctx, "a question")
		return meter.Usage()
	}
	s.SetFault(embeddertest.Fault{Kind: embeddertest.Status, Status: 503, Times: 1})
	if u := measure(); u.Calls != 2 || u.Tokens != s.Tokens() || u.Tokens == 0 || u.Estimated != 0 {
		t.Errorf("a failure and a success: %+v, the server reported %d", u, s.Tokens())
	}
	s.SwitchOff()
	m.Close() // or the first attempt would go into the old connection
	if u := measure(); u != (embedder.Usage{}) {
		t.Errorf("a server that is off: %+v", u)
	}
}
