package pg

import (
	"bytes"
	"strings"
)

// Text makes s fit a text column: Postgres holds neither a NUL byte nor invalid
// UTF-8, and a record that must be written may not fail on what a caller sent.
// What does not fit becomes U+FFFD.
func Text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// JSON makes a JSON text fit a jsonb column, which does not hold the escape of
// a NUL; U+FFFD stands in its place. It expects valid JSON and may return b itself.
func JSON(b []byte) []byte {
	b = bytes.ToValidUTF8(b, []byte("\uFFFD"))
	if !bytes.Contains(b, []byte(`\u0000`)) {
		return b
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] != '\\' || i+1 == len(b):
			out = append(out, b[i])
		case bytes.HasPrefix(b[i:], []byte(`\u0000`)):
			out = append(out, `\ufffd`...)
			i += 5
		default: // an escape, perhaps of a backslash: its second byte starts none
			out = append(out, b[i], b[i+1])
			i++
		}
	}
	return out
}
