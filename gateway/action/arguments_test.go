package action

import (
	"encoding/json"
	"math"
	"math/big"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestArguments(t *testing.T) {
	t.Parallel()
	least, most := -2.5, 1e20
	d := Definition{Name: "x", Parameters: []Parameter{
		{Name: "t", Type: Text, MaxLength: 3}, {Name: "e", Type: Text, Values: []string{"red", "blue"}}, {Name: "i", Type: Integer},
		{Name: "n", Type: Number}, {Name: "m", Type: Number, Minimum: &least, Maximum: &most}, {Name: "b", Type: Boolean}, {Name: "at", Type: Time}, {Name: "u", Type: UUID}, {Name: "j", Type: JSON}}}
	for _, c := range []struct {
		name  string
		given any
		json  string // canonical; empty: refused
		text  string // as Postgres takes it
	}{
		{"t", "äöü", `"äöü"`, "äöü"}, {"t", "", `""`, ""}, {"t", "four", "", ""}, {"t", 1.0, "", ""}, {"t", nil, "", ""}, {"t", "a\x00", "", ""}, {"t", "\xff", "", ""},
		{"e", "red", `"red"`, "red"}, {"e", "green", "", ""},
		{"i", 7.0, `7`, "7"}, {"i", "7", `7`, "7"}, {"i", "-0", `0`, "0"}, {"i", 1e3, `1000`, "1000"}, {"i", 7.5, "", ""}, {"i", "0x7", "", ""}, {"i", " 7", "", ""}, {"i", "07", "", ""},
		{"i", 9007199254740991.0, `9007199254740991`, "9007199254740991"}, {"i", 9007199254740992.0, "", ""},
		{"i", "9007199254740993", `"9007199254740993"`, "9007199254740993"}, {"i", json.Number("9223372036854775807"), `"9223372036854775807"`, "9223372036854775807"},
		{"i", "1e30", `"1000000000000000000000000000000"`, "1000000000000000000000000000000"}, {"i", "1e401", "", ""}, {"i", math.Inf(1), "", ""}, {"i", true, "", ""},
		{"n", 0.1, `0.1`, "0.1"}, {"n", "0.10", `0.1`, "0.1"}, {"n", "0.1234567890123456789", `"0.1234567890123456789"`, "0.1234567890123456789"},
		{"n", "1e-7", `1e-7`, "0.0000001"}, {"n", "-1.5e2", `-150`, "-150"}, {"n", "NaN", "", ""}, {"n", "Infinity", "", ""}, {"n", math.NaN(), "", ""}, {"n", ".5", "", ""}, {"n", "1;", "", ""},
		{"m", -2.5, `-2.5`, "-2.5"}, {"m", "-2.50000000000000000001", "", ""}, {"m", "100000000000000000000", `100000000000000000000`, "100000000000000000000"}, {"m", "100000000000000000001", "", ""},
		{"b", true, `true`, "true"}, {"b", "true", "", ""},
		{"at", "2026-01-31T12:00:00+02:00", `"2026-01-31T10:00:00Z"`, "2026-01-31T10:00:00Z"}, {"at", "2026-01-31T12:00:00.120Z", `"2026-01-31T12:00:00.12Z"`, "2026-01-31T12:00:00.12Z"},
		{"at", "2026-01-31", "", ""}, {"at", "now", "", ""},
		{"u", "0193B1DE-0000-7000-8000-000000000000", `"0193b1de-0000-7000-8000-000000000000"`, "0193b1de-0000-7000-8000-000000000000"}, {"u", "{0193b1de-0000-7000-8000-000000000000}", "", ""}, {"u", "7", "", ""},
		{"j", map[string]any{"b": 1.0, "a": []any{nil, "x"}}, `{"a":[null,"x"],"b":1}`, `{"a":[null,"x"],"b":1}`}, {"j", nil, `null`, "null"}, {"j", []any{"a\x00"}, "", ""}, {"j", `\u0000`, `"\\u0000"`, `"\\u0000"`},
	} {
		a, err := Arguments(d, map[string]any{c.name: c.given})
		if c.json == "" {
			if refusal(err) != "ARGUMENTS_INVALID" || field(err) != "arguments."+c.name {
				t.Errorf("%s = %v: %v about %q", c.name, c.given, err, field(err))
			}
			continue
		}
		if want := `{"` + c.name + `":` + c.json + `}`; err != nil || string(a.JSON()) != want || *a.values[c.name].text != c.text {
			t.Errorf("%s = %v: %s, not %s; %v", c.name, c.given, a.JSON(), want, err)
		}
	}
	if _, err := Arguments(d, map[string]any{"other": 1.0}); refusal(err) != "ARGUMENTS_INVALID" || field(err) != "arguments.other" || !strings.Contains(err.Error(), "t, e, i") {
		t.Errorf("an argument that there is not: %v", err)
	}
	d.Parameters[0].Required = true
	if _, err := Arguments(d, map[string]any{}); refusal(err) != "ARGUMENTS_INVALID" || field(err) != "arguments.t" {
		t.Errorf("a missing argument: %v", err)
	}
}

// However an argument was written, equal ones have equal JSON, and their JSON fits
// again and stays as it is.
func TestArgumentsAreCanonical(t *testing.T) {
	t.Parallel()
	d := Definition{Name: "x", Parameters: []Parameter{{Name: "n", Type: Number}, {Name: "i", Type: Integer}}}
	for _, alike := range [][]any{{"1.50", "15e-1", 1.5, json.Number("1.5")}, {"-0", 0.0, "0e5", "0.000"}, {"123456789012345678901234567890", "1.2345678901234567890123456789e29"}} {
		var first string
		for i, v := range alike {
			a, err := Arguments(d, map[string]any{"n": v})
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				first = string(a.JSON())
			}
			var raw map[string]any
			if err := json.Unmarshal(a.JSON(), &raw); err != nil {
				t.Fatal(err)
			}
			again, err := Arguments(d, raw)
			if err != nil || string(again.JSON()) != first || string(a.JSON()) != first {
				t.Errorf("%v: %s, %s, not %s; %v", v, a.JSON(), again.JSON(), first, err)
			}
		}
	}
}

func TestInputSchema(t *testing.T) {
	t.Parallel()
	most := 9.0
	d := Definition{Name: "x", Parameters: []Parameter{{Name: "e", Type: Text, Values: []string{"a"}, Required: true, Description: "which"}, {Name: "i", Type: Integer, Maximum: &most}, {Name: "j", Type: JSON}}}
	want := map[string]any{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "required": []any{"e"}, "additionalProperties": false,
		"properties": map[string]any{
			"e": map[string]any{"type": "string", "maxLength": 65536.0, "enum": []any{"a"}, "description": "which"},
			"i": map[string]any{"type": []any{"integer", "string"}, "pattern": `^-?(0|[1-9][0-9]*)$`, "maximum": 9.0},
			"j": map[string]any{}}}
	if diff := cmp.Diff(want, InputSchema(d)); diff != "" {
		t.Error(diff)
	}
}

// Whatever numeral is taken, its text is the same number.
func FuzzDecimal(f *testing.F) {
	for _, s := range []string{"0", "-1.50", "1e400", "1E-400", "0.001e3", "100e-2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > maxDigits || !numeral.MatchString(s) {
			return
		}
		text, _, err := decimal(s)
		if err != nil {
			return
		}
		again, _, err := decimal(text)
		if err != nil || again != text {
			t.Errorf("%s is written %s, which is written %s, %v", s, text, again, err)
		}
		if a, b := rat(t, s), rat(t, text); a.Cmp(b) != 0 {
			t.Errorf("%s is written %s", s, text)
		}
	})
}

func rat(t *testing.T, s string) *big.Rat {
	t.Helper()
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		t.Fatalf("%s is no number", s)
	}
	return r
}
