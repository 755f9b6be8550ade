package oauth

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
)

// Whatever is read can be asked for, and says the same when it is written down again;
// whatever is not is the request's fault and no other's.
func FuzzReadDetails(f *testing.F) {
	for _, seed := range []string{"", "[]", "[null]", "null", "[{}]", "[{},{}]", example, `{"type":"whence"}`,
		`[{"type":"whence","purpose":"p"}]`, `[{"TYPE":"whence","purpose":"p","lifetime":"1.5s","budget":{"calls":1}}]`,
		`[{"type":"whence","purpose":"\u0000"}]`, `[{"type":"whence","purpose":"p","budget":{"calls":1e3}}]`,
		`[{"type":"whence","purpose":"p","allTables":true,"denyTables":["a.b.c"],"filter":{"a":"<"},"tier":"READ","topK":5}]`,
		`[{"type":"whence","purpose":"p","purpose":"q"}]`, "[{\"type\":\"whence\",\"purpose\":\"\xff\"}]", `[{"type":"whence","lifetime":"-1h"}]`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		want, err := readDetails(raw)
		if err != nil {
			var e *whence.Error
			if !errors.As(err, &e) || !errors.Is(e.Kind, whence.ErrInvalid) || e.Reason == "" || e.Message == "" {
				t.Fatalf("refused with %#v", err)
			}
			if code := translate(err).code; code != invalidDetails {
				t.Fatalf("%s is called %s", e.Reason, code)
			}
			return
		}
		if want.Scope.Type != authz.DetailType || len(raw) > maxDetails || checkWant(want) != nil || want.Calls < 0 || want.Lifetime < 0 {
			t.Fatalf("let through: %+v", want)
		}
		if want.Calls == 0 {
			want.Calls = 1
		}
		if want.Lifetime == 0 {
			want.Lifetime = time.Minute
		}
		b, err := json.Marshal(granted(want))
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > maxDetails { // it takes more room with its escapes
			return
		}
		again, err := readDetails(string(b))
		if diff := cmp.Diff(want, again, cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Fatalf("%s: %v\n%s", b, err, diff)
		}
	})
}
