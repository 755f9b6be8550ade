package whence

import (
	"testing"
	"unicode/utf8"
)

// Whatever a relation is called, its written name says which one it is.
func FuzzRelationName(f *testing.F) {
	f.Add("public", "notes")
	f.Add(`a."b`, `.`)
	f.Add(`"`, `""`)
	f.Add(" ", "\n")
	f.Fuzz(func(t *testing.T, schema, name string) {
		if schema == "" || name == "" {
			t.Skip("no such names")
		}
		s, n, err := ParseRelation(RelationName(schema, name))
		if err != nil || s != schema || n != name {
			t.Errorf("%q.%q is written %q, which reads %q.%q, %v", schema, name, RelationName(schema, name), s, n, err)
		}
		source, s, n, ok := NewTableName("app", schema, name).Parts()
		if !ok || source != "app" || s != schema || n != name {
			t.Errorf("%q.%q of app reads %q.%q.%q", schema, name, source, s, n)
		}
	})
}

// What callers write is understood in one way or refused.
func FuzzParseRelation(f *testing.F) {
	for _, s := range []string{"public.notes", `"a.b"."c""d"`, `"a`, "a.", ".a", `"a"b.c`, "a.b.c", `""."a"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		schema, name, err := ParseRelation(text)
		if err != nil {
			return
		}
		if schema == "" || name == "" {
			t.Errorf("%q has an empty part", text)
		}
		if s, n, err := ParseRelation(RelationName(schema, name)); err != nil || s != schema || n != name {
			t.Errorf("%q reads %q.%q, and written again %q.%q, %v", text, schema, name, s, n, err)
		}
	})
}

func FuzzParseLSN(f *testing.F) {
	for _, s := range []string{"0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF", "1/100000000", "/", "+1/-1", "0x1/2", "1_0/2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		lsn, err := ParseLSN(s)
		if err != nil {
			return
		}
		if again, err := ParseLSN(lsn.String()); err != nil || again != lsn {
			t.Errorf("%q reads %s, which reads %s, %v", s, lsn, again, err)
		}
	})
}

// A key says the values that it was made of, and other values make another one.
func FuzzKey(f *testing.F) {
	f.Add("id", "7", "Key two", `{"id":"7"}`)
	f.Add(`"`, "\x00", `\`, "\u2028<&>")
	f.Fuzz(func(t *testing.T, column, value, second, other string) {
		for _, text := range []string{column, value, second, other} {
			if column == second || !utf8.ValidString(text) {
				t.Skip()
			}
		}
		columns := []string{column, second}
		k, err := NewKey(columns, Values{column: &value, second: &other, "more": nil})
		if err != nil {
			t.Fatal(err)
		}
		turned, err := NewKey([]string{second, column}, Values{column: &value, second: &other})
		if err != nil || turned != k {
			t.Errorf("in another order %s is %s, %v", k, turned, err)
		}
		v := k.Values()
		if len(v) != 2 || v[column] == nil || *v[column] != value || v[second] == nil || *v[second] != other {
			t.Errorf("%s reads %v", k, v)
		}
		if swapped, err := NewKey(columns, Values{column: &other, second: &value}); err != nil || swapped == k && value != other {
			t.Errorf("other values make the same key %s, %v", swapped, err)
		}
	})
}
