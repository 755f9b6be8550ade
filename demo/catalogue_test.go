package main

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestParseAvailable(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	tests := map[string]struct {
		in   string
		want []row
		err  string
	}{
		"nothing":          {in: ""},
		"blank lines only": {in: "\n\n\n"},
		"fields in any order, others left out": {
			in: "Package: a\nVersion: 1:2.0-1\nDepends: b, c (>= 1)\nMaintainer: A team <a@example.org>\n" +
				"Description: does: things\n and a long text\n .\n Package: not a field\nSection: games\n\n",
			want: []row{{"a", "games", "A team <a@example.org>", "1:2.0-1", "does: things", at}},
		},
		"last stanza without a blank line, or even a line end": {
			in:   "Package: a\nSection: net\n\nPackage: b\nSection: utils",
			want: []row{{Name: "a", Section: "net", ListedAt: at}, {Name: "b", Section: "utils", ListedAt: at}},
		},
		"an archive area is not part of the section": {
			in:   "Package: a\nSection: non-free/games\n",
			want: []row{{Name: "a", Section: "games", ListedAt: at}},
		},
		"of one name the last counts, in the first one's place": {
			in:   "Package: a\nVersion: 1\n\nPackage: b\n\nPackage: a\nVersion: 2\n",
			want: []row{{Name: "a", Version: "2", ListedAt: at}, {Name: "b", ListedAt: at}},
		},
		"nothing carries over to the next stanza": {
			in:   "Package: a\nSection: net\n\nPackage: b\n",
			want: []row{{Name: "a", Section: "net", ListedAt: at}, {Name: "b", ListedAt: at}},
		},
		"field names in any case, carriage returns": {
			in:   "PACKAGE: a\r\nsection: net\r\n\r\n",
			want: []row{{Name: "a", Section: "net", ListedAt: at}},
		},
		"what Postgres does not take as text": {
			in:   "Package: a\nDescription: x\x00y\xffz\n",
			want: []row{{Name: "a", Description: "xy\uFFFDz", ListedAt: at}},
		},
		"no name": {in: "Package: a\n\nVersion: 1\n", err: "stanza 2 names no package"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := parseAvailable(strings.NewReader(tt.in), at)
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Fatalf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestALineOfAnyLengthIsRead(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 3<<20)
	got, err := parseAvailable(strings.NewReader("Package: a\nDepends: "+long+"\nDescription: "+long+"\n"), time.Time{})
	if err != nil || len(got) != 1 || got[0].Description != long {
		t.Fatalf("%d rows, error %v", len(got), err)
	}
}

func FuzzParseAvailable(f *testing.F) {
	f.Add("Package: a\nSection: net\n\nPackage: a\n b\n")
	f.Add("\r\n:\n\x00: \xff\n")
	f.Fuzz(func(t *testing.T, in string) {
		rows, err := parseAvailable(strings.NewReader(in), time.Time{})
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, r := range rows {
			if r.Name == "" || seen[r.Name] {
				t.Errorf("name %q is empty or comes twice", r.Name)
			}
			seen[r.Name] = true
			if all := r.Name + r.Section + r.Description; strings.ContainsAny(all, "\x00\n") || !utf8.ValidString(all) {
				t.Errorf("%+v holds what Postgres does not take", r)
			}
		}
	})
}

func TestSample(t *testing.T) {
	t.Parallel()
	c, err := sample()
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Rows) < 200 {
		t.Errorf("the sample has %d rows", len(c.Rows))
	}
	seen, sections := map[string]bool{}, map[string]int{}
	for _, r := range c.Rows {
		if r.Name == "" || r.Section == "" || r.Maintainer == "" || r.Version == "" || r.Description == "" || r.ListedAt.IsZero() {
			t.Errorf("%+v lacks something", r)
		}
		if seen[r.Name] {
			t.Errorf("%s comes twice", r.Name)
		}
		seen[r.Name] = true
		sections[r.Section]++
	}
	for _, section := range []string{"games", "graphics", "net", "admin"} { // which the story asks about
		if sections[section] < 5 {
			t.Errorf("section %s has %d rows", section, sections[section])
		}
	}
}

func TestChooseNamesWhatThereIs(t *testing.T) {
	t.Parallel()
	if _, err := choose(t.Context(), "rpm"); err == nil || !strings.Contains(err.Error(), "auto, apt or sample") {
		t.Errorf("error %v", err)
	}
	c, err := choose(t.Context(), "sample")
	if err != nil || !strings.Contains(c.From, "sample") {
		t.Errorf("from %q, error %v", c.From, err)
	}
}
