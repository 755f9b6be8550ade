package ingest

import (
	"strings"
	"testing"
	"time"

	"github.com/whence-db/whence"
)

func values(pairs ...string) whence.Values {
	v := whence.Values{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] == "<null>" {
			v[pairs[i]] = nil
		} else {
			v[pairs[i]] = &pairs[i+1]
		}
	}
	return v
}

func TestRender(t *testing.T) {
	columns := whence.Table{TextColumns: []string{"title", "body"}}
	template := whence.Table{TextTemplate: "{{ title }}: {{body}} ({{lang}})"}
	for _, c := range []struct {
		table whence.Table
		row   whence.Values
		want  string
	}{
		{columns, values("title", "T", "body", "B"), "T\n\nB"},
		{columns, values("title", " ", "body", "B"), "B"},
		{columns, values("title", "<null>", "body", "<null>"), ""},
		{template, values("title", "T", "body", "B", "lang", "en"), "T: B (en)"},
		{template, values("title", "T", "body", "<null>", "lang", "{{title}}"), "T:  ({{title}})"},
		{template, values("title", "<null>", "body", " ", "lang", "<null>"), ""},
	} {
		if got := render(c.table, c.row); got != c.want {
			t.Errorf("%q %q: %q, want %q", c.table.TextColumns, c.table.TextTemplate, got, c.want)
		}
	}
}

func TestTemplates(t *testing.T) {
	for template, valid := range map[string]bool{
		"{{a}}": true, "x {{ a b }} y": true, "{{a}}{{b}}": true, "{a}": false, "text": false, "{{a}": false,
		"{{}}": false, "{{ }}": false, "a}} {{b}}": false, "{{a {{b}}": false, "{{a}} }}": false,
	} {
		if err := checkTemplate(template); (err == nil) != valid {
			t.Errorf("%q: %v", template, err)
		}
	}
}

func TestParseTime(t *testing.T) {
	utc := func(year int, month time.Month, day, hour, minute, second, nano int) time.Time {
		return time.Date(year, month, day, hour, minute, second, nano, time.UTC)
	}
	for s, want := range map[string]time.Time{
		"2024-02-29":                      utc(2024, 2, 29, 0, 0, 0, 0),
		"2024-02-29 13:14:15":             utc(2024, 2, 29, 13, 14, 15, 0),
		"2024-02-29 13:14:15.000001+00":   utc(2024, 2, 29, 13, 14, 15, 1000),
		"2024-02-29 13:14:15.5-03:30":     utc(2024, 2, 29, 16, 44, 15, 500_000_000),
		"1880-01-01 00:00:00+00:53:28":    utc(1879, 12, 31, 23, 6, 32, 0),
		"0044-03-15 BC":                   utc(-43, 3, 15, 0, 0, 0, 0),
		"4714-11-24 00:00:00+00 BC":       utc(-4713, 11, 24, 0, 0, 0, 0),
		"294276-12-31 23:59:59.999999+00": utc(294276, 12, 31, 23, 59, 59, 999_999_000),
	} {
		got, ok, err := parseTime(s)
		if err != nil || !ok || !got.Equal(want) {
			t.Errorf("%q: %v %v %v, want %v", s, got, ok, err, want)
		}
	}
	for _, s := range []string{"infinity", "-infinity"} {
		if _, ok, err := parseTime(s); ok || err != nil {
			t.Errorf("%q: %v %v", s, ok, err)
		}
	}
	for _, s := range []string{"", "yesterday", "2024-13-01", "2024-01-01T00:00:00", "2024-01-01 25:xx", "2024-01-01 1:2:3:4", "2024-01-01 00:00:00+x"} {
		if _, _, err := parseTime(s); err == nil {
			t.Errorf("%q was taken for a time", s)
		}
	}
}

func FuzzParseTime(f *testing.F) {
	f.Add("2024-02-29 13:14:15.5-03:30 BC")
	f.Fuzz(func(t *testing.T, s string) {
		if _, ok, err := parseTime(s); ok && err != nil {
			t.Errorf("%q: a moment and an error", s)
		}
	})
}

// A template that is accepted names columns, and takes their values and nothing
// else into the text.
func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"{{ title }}: {{body}}", "{{a}}}}", "{{{a}}", "{{a}}{{a}}", "{{ \x00 }}", "{{a}} {", "}{{a}}{"} {
		f.Add(s, "value", "{{a}}")
	}
	f.Fuzz(func(t *testing.T, template, first, others string) {
		if template == "" || checkTemplate(template) != nil {
			return
		}
		columns := whence.TemplateColumns(template)
		if len(columns) == 0 {
			t.Fatalf("%q was accepted and names no column", template)
		}
		row := whence.Values{}
		for i, c := range columns {
			if c == "" || strings.TrimSpace(c) != c {
				t.Fatalf("%q names the column %q", template, c)
			}
			if row[c] = &others; i == 0 {
				row[c] = &first
			}
		}
		got := render(whence.Table{TextTemplate: template}, row)
		want, rest, blank := "", template, true
		for {
			before, after, ok := strings.Cut(rest, "{{")
			if want += before; !ok {
				break
			}
			name, next, _ := strings.Cut(after, "}}")
			want, rest = want+*row[strings.TrimSpace(name)], next
			blank = blank && strings.TrimSpace(*row[strings.TrimSpace(name)]) == ""
		}
		if blank {
			want = ""
		}
		if got != want {
			t.Errorf("%q: %q, want %q", template, got, want)
		}
	})
}
