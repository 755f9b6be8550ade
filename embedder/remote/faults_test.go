package remote_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/embedder/embeddertest"
	"github.com/whence-db/whence/embedder/remote"
)

// Under every fault each text ends with its right vector or with an error, never
// with a wrong vector and never with neither; and afterwards the model works.
func TestNoFaultLetsACorruptVectorOut(t *testing.T) {
	t.Parallel()
	type expectation struct {
		reason embedder.Reason // of the failures; empty: no failure
		others bool            // texts without "poison" have vectors
	}
	all := map[embeddertest.Kind]expectation{
		embeddertest.Status:          {embedder.Unavailable, true},
		embeddertest.WrongDimensions: {embedder.BadResponse, false},
		embeddertest.OneWrong:        {embedder.BadResponse, false},
		embeddertest.NullComponent:   {embedder.BadResponse, true},
		embeddertest.NullVector:      {embedder.BadResponse, true},
		embeddertest.Overflow:        {embedder.BadResponse, true},
		embeddertest.ZeroVector:      {embedder.BadResponse, true},
		embeddertest.TooFew:          {embedder.BadResponse, true},
		embeddertest.TooMany:         {embedder.BadResponse, true},
		embeddertest.RepeatedIndex:   {embedder.BadResponse, true},
		embeddertest.Unordered:       {"", true},
		embeddertest.NoIndexes:       {"", true},
		embeddertest.LiteralNaN:      {embedder.BadResponse, true},
		embeddertest.Malformed:       {embedder.BadResponse, true},
		embeddertest.NotJSON:         {embedder.BadResponse, true},
		embeddertest.ErrorBody:       {embedder.BadResponse, true},
		embeddertest.Cut:             {embedder.Unavailable, false},
		embeddertest.HangUp:          {embedder.Unavailable, false},
		embeddertest.Endless:         {embedder.BadResponse, false},
		embeddertest.Drip:            {embedder.Timeout, false},
		embeddertest.Stall:           {embedder.Timeout, false},
		embeddertest.Redirect:        {embedder.Misconfigured, false},
		embeddertest.Unscaled:        {"", true},
		embeddertest.Infinite:        {embedder.BadResponse, true},
		embeddertest.WrongType:       {embedder.BadResponse, true},
		embeddertest.RedirectAway:    {embedder.Misconfigured, false},
		embeddertest.Bomb:            {embedder.BadResponse, false},
		embeddertest.NoUsage:         {"", true},
		embeddertest.AbsurdUsage:     {"", true},
	}
	elsewhere := serve(t, embeddertest.Config{})
	t.Cleanup(func() { // when all of the below have ended
		if n := elsewhere.Requests(); n > 0 {
			t.Errorf("%d requests went elsewhere", n)
		}
	})
	for _, kind := range embeddertest.Kinds() {
		want, ok := all[kind]
		if !ok {
			t.Errorf("no expectation for %q", kind)
		}
		for _, p := range providers {
			want := want
			if kind == embeddertest.RepeatedIndex && p.name == "cohere" {
				want = expectation{"", true} // it has no indexes
			}
			for _, whole := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s %s whole=%t", p.name, kind, whole), func(t *testing.T) {
					t.Parallel()
					s := serve(t, embeddertest.Config{})
					m, _ := p.connect(t, s, func(c *remote.Config) {
						if want.reason == embedder.Timeout {
							c.Timeout = 300 * time.Millisecond
						}
					})
					batch := texts(20)
					batch[7] += " poison"
					batch[16] += " poison"
					f := embeddertest.Fault{Kind: kind, Delay: 5 * time.Millisecond, Location: p.url(elsewhere) + "/embeddings"}
					if !whole {
						f.Match = "poison"
					}
					s.SetFault(f)
					vectors, err := m.Embed(t.Context(), batch)
					fault := embedder.ByText(err)
					for i, text := range batch {
						e := fault(i)
						switch blamed := whole || !want.others || strings.Contains(text, "poison"); {
						case want.reason == "" || !blamed:
							if e != nil {
								t.Errorf("text %d failed: %v", i, e)
							}
						case e == nil:
							t.Errorf("text %d did not fail", i)
						case e.Reason != want.reason || !e.Temporary:
							t.Errorf("text %d: %#v, want temporary %s", i, e, want.reason)
						}
						if e == nil {
							checkVector(t, s, text, vectors[i])
						} else if vectors != nil && vectors[i] != nil {
							t.Errorf("text %d has both a vector and a failure", i)
						}
					}
					if whole {
						v, err := m.EmbedQuery(t.Context(), "a question")
						switch {
						case want.reason != "" && err == nil:
							t.Error("the query did not fail")
						case want.reason == "" && err != nil:
							t.Errorf("the query failed: %v", err)
						case err == nil:
							p.checkQuery(t, s, "a question", v)
						}
					}
					s.SetFault(embeddertest.Fault{})
					for range 3 { // a busy machine may be slower than the short timeout
						if vectors, err = m.Embed(t.Context(), batch); err == nil {
							break
						}
					}
					if err != nil {
						t.Fatalf("after the fault: %v", err)
					}
					for i, text := range batch {
						checkVector(t, s, text, vectors[i])
					}
				})
			}
		}
	}
}

func TestStatusIsSorted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status    int
		reason    embedder.Reason
		temporary bool
		requests  int // for one text; two retries where trying again may help
	}{
		{400, embedder.Rejected, false, 2}, // the text and then the harmless one
		{401, embedder.Misconfigured, true, 1},
		{402, embedder.Misconfigured, true, 1},
		{403, embedder.Misconfigured, true, 1},
		{404, embedder.Misconfigured, true, 1},
		{408, embedder.Timeout, true, 3},
		{413, embedder.Rejected, false, 2},
		{418, embedder.Misconfigured, true, 1},
		{422, embedder.Rejected, false, 2},
		{429, embedder.RateLimited, true, 3},
		{500, embedder.Unavailable, true, 4},
		{502, embedder.Unavailable, true, 3},
		{503, embedder.Unavailable, true, 3},
		{504, embedder.Unavailable, true, 3},
	} {
		for _, p := range providers {
			t.Run(fmt.Sprint(p.name, c.status), func(t *testing.T) {
				t.Parallel()
				s := serve(t, embeddertest.Config{})
				m, _ := p.connect(t, s, nil)
				s.SetFault(embeddertest.Fault{Kind: embeddertest.Status, Status: c.status, Match: "some", Message: "because"})
				_, err := m.Embed(t.Context(), []string{"some text"})
				e := embedder.ByText(err)(0)
				if e == nil || e.Reason != c.reason || e.Temporary != c.temporary || e.Status != c.status {
					t.Errorf("got %#v", e)
				}
				if e != nil && c.status != 401 && c.status != 403 && !strings.Contains(e.Message, "because") {
					t.Errorf("%q does not say why", e.Message)
				}
				if n := s.Requests(); n != c.requests {
					t.Errorf("%d requests, want %d", n, c.requests)
				}
			})
		}
	}
}

func TestOneTextNeverBlocksOthers(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string][]int{"one": {13}, "ends": {0, 63}, "many": {3, 4, 5, 31, 32}, "first half": {0, 1, 2, 3, 4, 5, 6, 7}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, embeddertest.Config{MaxTextBytes: 1000})
			m, _ := connect(t, s, nil)
			batch := texts(64)
			for _, i := range bad {
				batch[i] = strings.Repeat("long ", 300) + batch[i]
			}
			vectors, err := m.Embed(t.Context(), batch)
			failed, ok := errors.AsType[*embedder.BatchError](err)
			if !ok || !slices.Equal(failed.Indexes(), bad) {
				t.Fatalf("got %v, want failures at %v", err, bad)
			}
			for i, text := range batch {
				if e := failed.Failed[i]; e != nil {
					if e.Temporary || e.Reason != embedder.Rejected || vectors[i] != nil {
						t.Errorf("text %d: %v", i, e)
					}
					continue
				}
				checkVector(t, s, text, vectors[i])
				if n := s.Embedded(text); n != 1 {
					t.Errorf("text %d embedded %d times", i, n)
				}
			}
		})
	}
}

func TestServerTakesSmallerBatchesThanConfigured(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{MaxBatch: 5})
	m, _ := connect(t, s, nil)
	if _, err := m.Embed(t.Context(), texts(64)); err != nil {
		t.Fatal(err)
	}
}

// A server that refuses everything with a client error is a wrong setting; no
// text may be condemned for it.
func TestWrongSettingCondemnsNoText(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{})
	m, _ := connect(t, s, nil)
	s.SetFault(embeddertest.Fault{Kind: embeddertest.Status, Status: 400, Message: "unknown parameter"})
	_, err := m.Embed(t.Context(), texts(64))
	e, ok := errors.AsType[*embedder.Error](err)
	if !ok || e.Reason != embedder.Misconfigured || !e.Temporary || !strings.Contains(e.Message, "unknown parameter") {
		t.Fatalf("got %v", err)
	}
	if n := s.Requests(); n > 10 {
		t.Errorf("%d requests to find out", n)
	}
	if err := m.Probe(t.Context()); err == nil {
		t.Error("the probe succeeded")
	}
}

// A server that fails, stalls or drips for one model leaves another alone.
func TestModelsAreApart(t *testing.T) {
	t.Parallel()
	bad, good := serve(t, embeddertest.Config{}), serve(t, embeddertest.Config{})
	stalled, _ := connect(t, bad, func(c *remote.Config) { c.Timeout = time.Hour })
	well, _ := connect(t, good, nil)
	bad.SetFault(embeddertest.Fault{Kind: embeddertest.Stall})
	ctx, cancel := context.WithCancel(t.Context())
	var calls sync.WaitGroup
	for range 8 {
		calls.Go(func() { _, _ = stalled.Embed(ctx, texts(3)) })
	}
	for bad.Requests() == 0 {
		time.Sleep(time.Millisecond)
	}
	if _, err := well.Embed(t.Context(), texts(3)); err != nil {
		t.Error(err)
	}
	cancel()
	calls.Wait()
}
