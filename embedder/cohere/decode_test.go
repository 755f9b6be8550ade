package cohere

import (
	"fmt"
	"net/http"
	"testing"
	"time"
)

func TestDecode(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"embeddings":{"float":[[3,4],[0,2]]},"texts":["a","b"],"meta":{"billed_units":{"input_tokens":7}}}`: "[[0.6 0.8] [0 1]] 7",
		`{"embeddings":{"float":[[3,4],[0,2]]},"meta":{"billed_units":{"input_tokens":"x"}}}`:                 "[[0.6 0.8] [0 1]] 0",
		`{"embeddings":{"float":[[3,4],[0,2]]},"meta":7}`:                                                     "[[0.6 0.8] [0 1]] 0",
		`{"embeddings":{"float":[[3,4],[null,2]]},"meta":null}`:                                               "[[0.6 0.8] []] 0",
		`{"embeddings":{"float":[[3,4],[]]}}`:                                                                 "[[0.6 0.8] []] 0",
		`{"embeddings":{"float":[[3,4],null]}}`:                                                               "[[0.6 0.8] []] 0",
		`{"embeddings":{"float":[[3,4],[1,0]]},"texts":["a"]}`:                                                "error",
		`{"embeddings":{"float":[[3,4]]}}`:                                                                    "error",
		`{"embeddings":{"float":[[3,4],[1,0],[0,1]]}}`:                                                        "error",
		`{"embeddings":{"float":[[3,4],[1,0,0]]}}`:                                                            "error",
		`{"embeddings":{"int8":[[3,4],[1,0]]}}`:                                                               "error",
		`{"embeddings":[[3,4],[1,0]]}`:                                                                        "error", // the protocol's first version
		`{"message":"no capacity"}`:                                                                           "error",
	} {
		vectors, _, tokens, err := protocol.Vectors([]byte(body), 2, 2)
		got := fmt.Sprint(vectors, tokens)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%s\n got %s (%v), want %s", body, got, err, want)
		}
	}
}

func TestTrialHeaders(t *testing.T) {
	t.Parallel()
	h := http.Header{}
	if told := quotas(h); len(told) != 0 {
		t.Errorf("of no headers %+v", told)
	}
	h.Set("x-trial-endpoint-call-remaining", "3")
	h.Set("x-trial-endpoint-call-limit", "20")
	told := quotas(h)
	if len(told) != 1 || told[0].Remaining != 3 || told[0].Limit != 20 || told[0].Reset != time.Minute || told[0].Tokens || told[0].Steady {
		t.Errorf("got %+v", told)
	}
}
