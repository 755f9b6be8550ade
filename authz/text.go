package authz

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/whence-db/whence/authz/internal/strict"
)

const maxNameLength = strict.MaxName // bytes

// plain tells whether s can stand as a name.
func plain(s string) bool { return strict.Plain(s) }

// datum tells whether s can stand for what a column holds, which is not ours to
// judge: it is compared byte by byte, whatever it looks like.
func datum(s string) bool {
	return s != "" && len(s) <= maxNameLength && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// text tells whether Postgres can hold s.
func text(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// DecodeStrict reads one JSON value that can be read in one way only: no member
// twice (not even in another case, which encoding/json would take for the same),
// none that v does not know, valid UTF-8, nothing after it.
func DecodeStrict(b []byte, v any) error { return strict.Decode(b, v) }
