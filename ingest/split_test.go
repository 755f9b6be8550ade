package ingest

import (
	"fmt"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// checkSpans holds Split's promises against one text.
func checkSpans(text string, spans []Span) error {
	covered := 0
	for i, s := range spans {
		switch {
		case s.Start < covered || s.Start >= s.End || s.End > len(text):
			return fmt.Errorf("span %d, %v, is empty, out of order or out of range", i, s)
		case s.End-s.Start > most:
			return fmt.Errorf("span %d has %d bytes", i, s.End-s.Start)
		case strings.TrimSpace(text[covered:s.Start]) != "":
			return fmt.Errorf("%q before span %d is in none", text[covered:s.Start], i)
		case !utf8.ValidString(text[s.Start:s.End]):
			return fmt.Errorf("span %d does not end at rune borders", i)
		case strings.TrimFunc(text[s.Start:s.End], unicode.IsSpace) != text[s.Start:s.End]:
			return fmt.Errorf("span %d is not trimmed", i)
		}
		covered = s.End
	}
	if strings.TrimSpace(text[covered:]) != "" {
		return fmt.Errorf("%q at the end is in no span", text[covered:])
	}
	return nil
}

func TestSplitKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		part := rapid.OneOf(
			rapid.String(),
			rapid.SampledFrom([]string{"\n\n", "\n", " ", ". ", "\r\n\r\n", "e\u0301\u0302", "👩‍👩‍👧‍👦", "\u00a0", "。"}),
			rapid.Custom(func(t *rapid.T) string {
				return strings.Repeat(rapid.SampledFrom([]string{"word ", "x", "é", "Sentence here. ", "👍🏽", "a\u0301", "a\n"}).Draw(t, "of"),
					rapid.IntRange(1, 1500).Draw(t, "times"))
			}),
		)
		text := strings.Join(rapid.SliceOfN(part, 0, 12).Draw(t, "parts"), "")
		if err := checkSpans(text, Split(text)); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzSplit(f *testing.F) {
	f.Add("One. Two.\n\nThree.", 200)
	f.Add("e\u0301", 3000)
	f.Fuzz(func(t *testing.T, text string, times int) {
		if !utf8.ValidString(text) || times < 0 || times*len(text) > 100_000 {
			t.Skip()
		}
		text = strings.Repeat(text, times)
		if err := checkSpans(text, Split(text)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestChangingOneParagraphLeavesTheOthers(t *testing.T) {
	paragraphs := make([]string, 10)
	for i := range paragraphs {
		paragraphs[i] = fmt.Sprintf("Paragraph %d. ", i) + strings.Repeat("It tells of something at length. ", 5+10*i)
	}
	chunks := func() map[string]bool {
		text := strings.Join(paragraphs, "\n\n")
		out := map[string]bool{}
		for _, s := range Split(text) {
			out[text[s.Start:s.End]] = true
		}
		return out
	}
	before := chunks()
	paragraphs[4] = "Paragraph 4. " + strings.Repeat("It tells of another matter at even more length. ", 20)
	fresh := 0
	for c := range chunks() {
		if !before[c] {
			fresh++
		}
	}
	if fresh == 0 || fresh > 2 {
		t.Errorf("%d new chunks for one changed paragraph", fresh)
	}
}

func TestSplitOfLongTexts(t *testing.T) {
	for name, text := range map[string]string{
		"words":   strings.Repeat("lorem ipsum ", 10<<20/12),
		"token":   strings.Repeat("x", 10<<20),
		"rows":    strings.Repeat("a line of text\n", 10<<20/15),
		"accents": "a" + strings.Repeat("\u0301", 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spans := Split(text)
			if err := checkSpans(text, spans); err != nil {
				t.Fatal(err)
			}
			if want := len(text) / most; len(spans) < want {
				t.Errorf("%d spans for %d bytes", len(spans), len(text))
			}
		})
	}
}
