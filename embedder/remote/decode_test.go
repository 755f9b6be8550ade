package remote

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// indexed is the least of a protocol that a response needs.
var indexed = Protocol{Decode: DecodeIndexed}

func TestDecode(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"data":[{"index":1,"embedding":[0,2]},{"index":0,"embedding":[3,4]}]}`:             "[[0.6 0.8] [0 1]]",
		`{"data":[{"embedding":[1,0]},{"embedding":[0,-1e-30]}]}`:                            "[[1 0] [0 -1]]",
		`{"data":[{"index":0,"embedding":"AACAPwAAAAA="},{"index":1,"embedding":[1e38,0]}]}`: "[[1 0] [1 0]]",
		`{"data":[{"index":0,"embedding":[ 1 , 0 ]},{"index":1,"embedding":[null,1]}]}`:      "[[1 0] []]",
		`{"data":[{"index":0,"embedding":[1,0]},{"index":1,"embedding":[1e39,1]}]}`:          "[[1 0] []]",
		`{"data":[{"index":0,"embedding":[1,0]},{"index":1,"embedding":["1",1]}]}`:           "[[1 0] []]",
		`{"data":[{"index":0,"embedding":[1,0]},{"index":1,"embedding":[[1],1]}]}`:           "[[1 0] []]",
		`{"data":[{"index":0,"embedding":[1,0]},{"index":1,"embedding":"AADAfwAAAAA="}]}`:    "[[1 0] []]", // NaN
		`{"data":[{"index":0,"embedding":[1,0]},{"index":1,"embedding":"AACAPw"}]}`:          "[[1 0] []]",
		`{"data":[{"index":0,"embedding":[1,0]},{"index":1,"embedding":[]}]}`:                "[[1 0] []]",
		`{"data":[{"index":0,"embedding":[1,0]},{"index":1}]}`:                               "[[1 0] []]",
		`{"data":[{"index":0,"embedding":[1,0]},{"index":1,"embedding":{"0":1}}]}`:           "[[1 0] []]",
		`{"data":[{"index":0,"embedding":[1,0]},{"index":1,"embedding":[1,0,0]}]}`:           "error",
		`{"data":[{"index":0,"embedding":[1,0]},{"index":0,"embedding":[1,0]}]}`:             "error",
		`{"data":[{"index":0,"embedding":[1,0]},{"index":2,"embedding":[1,0]}]}`:             "error",
		`{"data":[{"index":0,"embedding":[1,0]},{"index":-1,"embedding":[1,0]}]}`:            "error",
		`{"data":[{"index":0,"embedding":[1,0]},{"embedding":[1,0]}]}`:                       "error",
		`{"data":[{"embedding":[1,0]},{"index":1,"embedding":[1,0]}]}`:                       "error",
		`{"data":[{"index":0,"embedding":[1,0]}]}`:                                           "error",
		`{"data":null}`: "error", `null`: "error", `[]`: "error", ``: "error", `{"data":[`: "error",
		`{"data":[{"index":0,"embedding":[NaN,0]},{"index":1,"embedding":[1,0]}]}`: "error",
	} {
		vectors, faults, _, err := indexed.Vectors([]byte(body), 2, 2)
		got := fmt.Sprint(vectors)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%s\n got %s (%v), want %s", body, got, err, want)
		}
		for i, v := range vectors {
			if (v == nil) != (faults[i] != nil) {
				t.Errorf("%s: text %d has vector %v and fault %v", body, i, v, faults[i])
			}
		}
	}
}

func TestDimensionsMustAgreeWhileUnknown(t *testing.T) {
	t.Parallel()
	_, _, _, err := indexed.Vectors([]byte(`{"data":[{"embedding":[1,0]},{"embedding":[1,0,0]}]}`), 2, 0)
	if !errors.Is(err, errDimensions) {
		t.Fatalf("got %v", err)
	}
}

func TestServerMessage(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"error":{"message":"too long","code":1}}`: "too long",
		`{"error":"model not found"}`:               "model not found",
		`{"message":"busy"}`:                        "busy",
		`{"detail":"overloaded"}`:                   "overloaded",
		`{"detail":[{"input":"private words"}]}`:    "",
		`<html>private words</html>`:                "",
		``:                                          "",
	} {
		if got := serverMessage([]byte(body)); got != want {
			t.Errorf("%s: %q, want %q", body, got, want)
		}
	}
	if got := shorten("a\nb\x00" + strings.Repeat("ü", 300)); len([]rune(got)) != 201 || strings.ContainsAny(got, "\n\x00") {
		t.Errorf("shortened to %q", got)
	}
}

func TestRetryAfterForms(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "0.5": 500 * time.Millisecond, "-3": 0, "1e300": time.Hour, "NaN": 0, "soon": 0,
		"Inf": time.Hour, "Sun, 01 Mar 2026 12:00:09 GMT": 9 * time.Second, "Sun, 01 Mar 2020 12:00:00 GMT": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {value}}, now); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
	if got := retryAfter(http.Header{"Retry-After-Ms": {"250"}, "Retry-After": {"9"}}, now); got != 250*time.Millisecond {
		t.Errorf("milliseconds: %v", got)
	}
}

func BenchmarkDecode(b *testing.B) {
	item := `{"object":"embedding","index":%d,"embedding":[` + strings.TrimSuffix(strings.Repeat("-0.0123456789,", 1536), ",") + `]}`
	items := make([]string, 64)
	for i := range items {
		items[i] = fmt.Sprintf(item, i)
	}
	body := []byte(`{"data":[` + strings.Join(items, ",") + `]}`)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if _, _, _, err := indexed.Vectors(body, 64, 1536); err != nil {
			b.Fatal(err)
		}
	}
}
