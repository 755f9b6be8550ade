// Package strict reads what others wrote (tokens, key sets, names) in one way
// or not at all. Two readers that disagree about one text are how a check is
// passed with one meaning and used with another.
//
// The governing idea: one thing has one spelling. JSON members are not repeated,
// base64url has no spare bits, names are normalised and hold nothing that an
// operator could not see.
package strict

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// MaxName is the longest name, in bytes.
const MaxName = 512

// Plain tells whether s can stand as a name: some text, of reasonable length,
// that a log line and a Postgres text column can hold, in Unicode's form NFC, and
// without characters that show nothing or turn the direction of writing, and without
// white space at its ends. Two
// names that look the same may still differ in their script.
func Plain(s string) bool {
	return s != "" && len(s) <= MaxName && utf8.ValidString(s) && !strings.ContainsFunc(s, unseen) && norm.NFC.IsNormalString(s) &&
		strings.TrimSpace(s) == s
}

// unseen tells the characters that a reader of a name cannot see, or that stand
// for ones that could not be read.
func unseen(r rune) bool {
	return r == unicode.ReplacementChar || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp,
		unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

var (
	// ErrAmbiguous means that a JSON object has two members of one name.
	ErrAmbiguous = errors.New("a JSON member appears twice")
	errTooDeep   = errors.New("JSON is nested too deeply")
	errNotOne    = errors.New("want one JSON value and nothing after it")
	errNotUTF8   = errors.New("JSON is not valid UTF-8")
)

const maxJSONDepth = 40

// Decode reads one JSON value that can be read in one way only: no member twice
// (not even in another case, which encoding/json would take for the same), none
// that v does not know, valid UTF-8, nothing after it.
func Decode(b []byte, v any) error {
	if err := Unambiguous(b); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// Members reads one JSON object that can be read in one way only and leaves its
// members, by their exact names, for later.
func Members(b []byte) (map[string]json.RawMessage, error) {
	if err := Unambiguous(b); err != nil {
		return nil, err
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(b, &members); err != nil {
		return nil, err
	}
	if members == nil { // null
		return nil, errors.New("want a JSON object")
	}
	return members, nil
}

// Unambiguous tells what is wrong with JSON that two readers could understand
// differently.
func Unambiguous(b []byte) error {
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
				return ErrAmbiguous
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

// Token is a signed token (RFC 7515, compact form) taken apart.
type Token struct {
	Header, Claims []byte
	Signed         string // what the signature is about
	Signature      []byte
}

// Split takes a token apart. There is exactly one spelling for each: strict
// base64url, no padding, no line breaks. Its errors never hold the token.
func Split(token string) (Token, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return Token{}, errors.New("a token has three parts")
	}
	var raw [3][]byte
	for i, part := range parts {
		// encoding/base64 skips line breaks even when strict.
		if strings.ContainsAny(part, "\r\n") {
			return Token{}, errors.New("line break")
		}
		var err error
		if raw[i], err = base64.RawURLEncoding.Strict().DecodeString(part); err != nil {
			return Token{}, errors.New("not base64url")
		}
	}
	return Token{Header: raw[0], Claims: raw[1], Signed: parts[0] + "." + parts[1], Signature: raw[2]}, nil
}
