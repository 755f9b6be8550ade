package action

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/whence-db/whence"
)

// Args are arguments that fit their parameters, in one form for each value: equal
// arguments have equal JSON, however they were written.
type Args struct {
	values map[string]value
	json   []byte
}

// value is one value: as Postgres takes it, nil for SQL null, and as JSON.
type value struct {
	text *string
	json json.RawMessage
}

// JSON returns the arguments as canonical JSON (RFC 8785). Numbers that a double
// does not hold exactly are strings in it.
func (a Args) JSON() []byte { return a.json }

// Value returns an argument as JSON; ok is false when it was not given.
func (a Args) Value(name string) (_ json.RawMessage, ok bool) {
	v, ok := a.values[name]
	return v.json, ok
}

// Arguments fits what a caller sent to the action's parameters. What does not fit
// is ARGUMENTS_INVALID with the field, "arguments.name".
func Arguments(d Definition, raw map[string]any) (Args, error) {
	a := Args{values: map[string]value{}}
	all := map[string]json.RawMessage{}
	for _, p := range d.Parameters {
		given, ok := raw[p.Name]
		if !ok {
			if p.Required {
				return Args{}, misfit(p.Name, "is missing: %s", p.describe())
			}
			continue
		}
		v, err := p.fit(given)
		if err != nil {
			return Args{}, misfit(p.Name, "%v: %s", err, p.describe())
		}
		a.values[p.Name], all[p.Name] = v, v.json
	}
	for _, name := range slices.Sorted(maps.Keys(raw)) {
		if _, known := a.values[name]; !known {
			return Args{}, misfit(name, "is no parameter of %s, which takes: %s", d.Name, d.takes())
		}
	}
	var err error
	if a.json, err = canonical(all); err != nil {
		return Args{}, fmt.Errorf("write the arguments of %q: %w", d.Name, err)
	}
	return a, nil
}

func misfit(name, format string, args ...any) error {
	return whence.Invalid("arguments."+name, "ARGUMENTS_INVALID", fmt.Sprintf("arguments.%s ", name)+fmt.Sprintf(format, args...))
}

func (d Definition) takes() string {
	var names []string
	for _, p := range d.Parameters {
		names = append(names, p.Name)
	}
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}

// describe says what an argument is to be.
func (p Parameter) describe() string {
	var s string
	switch p.Type {
	case Text:
		s = fmt.Sprintf("a text of at most %d characters", p.length())
		if len(p.Values) > 0 {
			s = fmt.Sprintf("one of %q", p.Values)
		}
	case Integer:
		s = "a whole number" + p.bounds()
	case Number:
		s = "a number" + p.bounds()
	case Boolean:
		s = "true or false"
	case Time:
		s = `a time as RFC 3339 writes it, such as "2026-01-31T12:00:00Z"`
	case UUID:
		s = "a UUID"
	case JSON:
		s = "any JSON value without null characters"
	}
	if p.Description != "" {
		s += " (" + p.Description + ")"
	}
	return s
}

func (p Parameter) bounds() (s string) {
	if p.Minimum != nil {
		s += fmt.Sprintf(", at least %v", *p.Minimum)
	}
	if p.Maximum != nil {
		s += fmt.Sprintf(", at most %v", *p.Maximum)
	}
	return s
}

func (p Parameter) length() int {
	if p.MaxLength > 0 {
		return p.MaxLength
	}
	return defaultLength
}

var errType = errors.New("is of another type")

func (p Parameter) fit(given any) (value, error) {
	switch p.Type {
	case Integer, Number:
		return p.fitNumber(given)
	case Boolean:
		if b, ok := given.(bool); ok {
			return ofText(fmt.Sprint(b), b)
		}
		return value{}, errType
	case JSON:
		b, err := canonical(given)
		if err != nil || !plainJSON(b) {
			return value{}, errType
		}
		s := string(b)
		return value{&s, b}, nil
	case Text, Time, UUID:
	}
	s, ok := given.(string)
	if !ok {
		return value{}, errType
	}
	switch p.Type {
	case Text:
		switch {
		case !plain(s):
			return value{}, errors.New("holds what is no text")
		case utf8.RuneCountInString(s) > p.length():
			return value{}, errors.New("is too long")
		case len(p.Values) > 0 && !slices.Contains(p.Values, s):
			return value{}, errors.New("is another value")
		}
	case Time:
		t, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			return value{}, errors.New("is not a time")
		}
		s = t.UTC().Format(time.RFC3339Nano)
	case UUID:
		id, err := uuid.Parse(s)
		if err != nil || len(s) != 36 {
			return value{}, errors.New("is not a UUID")
		}
		s = id.String()
	case Integer, Number, Boolean, JSON: // not in a string
	}
	return ofText(s, s)
}

// ofText makes a value of its text and of what its JSON is of.
func ofText(text string, v any) (value, error) {
	b, err := json.Marshal(v)
	return value{&text, b}, err
}

// plainJSON tells whether Postgres can hold a JSON text: one value, and no string
// in it that a text column could not hold.
func plainJSON(b []byte) bool {
	if !utf8.Valid(b) {
		return false
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var v any
	if dec.Decode(&v) != nil {
		return false
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return false
	}
	return plainValue(v)
}

func plainValue(v any) bool {
	switch v := v.(type) {
	case string:
		return plain(v)
	case []any:
		return !slices.ContainsFunc(v, func(e any) bool { return !plainValue(e) })
	case map[string]any:
		for k, e := range v {
			if !plain(k) || !plainValue(e) {
				return false
			}
		}
	}
	return true
}

// Canonical makes arguments of values that no definition describes.
func Canonical(raw map[string]any) Args {
	b, err := canonical(raw)
	if err != nil { // texts always can be
		panic(err)
	}
	return Args{json: b}
}
