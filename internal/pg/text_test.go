package pg_test

import (
	"testing"

	"github.com/whence-db/whence/internal/pg"
)

func TestText(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain":      "plain",
		"a\x00b":     "a\uFFFDb",
		"a\xff\xfeb": "a\uFFFDb",
	} {
		if got := pg.Text(in); got != want {
			t.Errorf("Text(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"a":"b\n"}`:            `{"a":"b\n"}`,
		`{"a":"\u0000"}`:         `{"a":"\ufffd"}`,
		`{"a":"\\u0000"}`:        `{"a":"\\u0000"}`, // a backslash and the letters u0000
		`{"a":"\\\u0000\u0001"}`: `{"a":"\\\ufffd\u0001"}`,
	} {
		if got := string(pg.JSON([]byte(in))); got != want {
			t.Errorf("JSON(%s) = %s, want %s", in, got, want)
		}
	}
}
