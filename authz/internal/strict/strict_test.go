package strict

import (
	"encoding/base64"
	"strings"
	"testing"
)

func TestPlain(t *testing.T) {
	t.Parallel()
	for s, good := range map[string]bool{
		"ada": true, "Ada Lovelace": true, "spiffe://td/agent": true, "réne": true, "日本語": true, "🙂": true,
		strings.Repeat("x", MaxName): true, strings.Repeat("x", MaxName+1): false,
		"": false, "a\x00": false, "a\nb": false, "a\x7f": false, "a\u0085": false, "\xff": false,
		"re\u0301ne":  false, // decomposed
		"\u212b":      false, // the Angstrom sign, which NFC writes as a letter
		"a\u200bb":    false, // zero-width space
		"a\u200db":    false, // zero-width joiner
		"\ufeffa":     false, // byte order mark
		"a\u00adb":    false, // soft hyphen
		"a\u202eb":    false, // right-to-left override
		"a\u2066b":    false, // left-to-right isolate
		"a\u2028b":    false, // line separator
		"a\u2029b":    false, // paragraph separator
		"a\u3164":     false, // Hangul filler
		"a\ufe00":     false, // variation selector
		"a\U000e0041": false, // tag
		"a\ufffd":     false, // stands for what could not be read
	} {
		if Plain(s) != good {
			t.Errorf("%q: %t, want %t", s, !good, good)
		}
	}
}

func TestMembers(t *testing.T) {
	t.Parallel()
	if m, err := Members([]byte(`{"a":1,"b":{"c":[]}}`)); err != nil || len(m) != 2 || string(m["b"]) != `{"c":[]}` {
		t.Errorf("%v, %v", m, err)
	}
	for _, bad := range []string{``, `null`, `[]`, `1`, `"a"`, `{"a":1,"A":2}`, `{"a":{"b":1,"b":1}}`, `{} {}`} {
		if m, err := Members([]byte(bad)); err == nil || m != nil {
			t.Errorf("%q reads %v", bad, m)
		}
	}
}

// Of all texts only one spelling of a token is read.
func FuzzSplit(f *testing.F) {
	for _, s := range []string{"e30.e30.AA", "e30.e30.AB", "e30.e30.AA==", "e30.e30.A\nA", "e30.e30", "..", "e30.e30.AA.", "e+0.e/0."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		token, err := Split(s)
		if err != nil {
			return
		}
		if again := token.String(); again != s {
			t.Errorf("%q reads as %q", s, again)
		}
	})
}

func (t Token) String() string {
	b64 := base64.RawURLEncoding.EncodeToString
	return b64(t.Header) + "." + b64(t.Claims) + "." + b64(t.Signature)
}
