package authz

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// plain tells whether s can stand as a name: some text, of reasonable length,
// that a log line and a Postgres text column can hold.
func plain(s string) bool {
	return s != "" && len(s) <= maxNameLength && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// text tells whether Postgres can hold s.
func text(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

var (
	errAmbiguous = errors.New("a JSON member appears twice")
	errTooDeep   = errors.New("JSON is nested too deeply")
	errNotOne    = errors.New("want one JSON value and nothing after it")
	errNotUTF8   = errors.New("JSON is not valid UTF-8")
)

const maxJSONDepth = 40

// DecodeStrict reads one JSON value that can be read in one way only: no member
// twice (not even in another case, which encoding/json would take for the same),
// none that v does not know, valid UTF-8, nothing after it.
func DecodeStrict(b []byte, v any) error {
	if err := unambiguous(b); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

func unambiguous(b []byte) error {
	if !utf8.Valid(b) {
		return errNotUTF8
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := walk(d, 0); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errNotOne
	}
	return nil
}

func walk(d *json.Decoder, depth int) error {
	if depth > maxJSONDepth {
		return errTooDeep
	}
	t, err := d.Token()
	if err != nil {
		return err
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	seen := map[string]bool{}
	for d.More() {
		if open == '{' {
			name, err := d.Token()
			if err != nil {
				return err
			}
			key := strings.Map(fold, name.(string))
			if seen[key] {
				return errAmbiguous
			}
			seen[key] = true
		}
		if err := walk(d, depth+1); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

// fold maps runes that differ only in case to the same one: the smallest of them.
func fold(r rune) rune {
	for {
		next := unicode.SimpleFold(r)
		if next <= r {
			return next
		}
		r = next
	}
}
