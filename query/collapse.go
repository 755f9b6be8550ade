package query

import (
	"strings"
	"unicode"
)

// alike is the share of words that two texts of one record have in common from
// which on they say the same.
const alike = 0.8

// collapse leaves of the hits of one record, best first, only those that do not
// say what a better one says. It returns the others too.
func collapse(hits []Hit) (kept, dropped []Hit) {
	said := map[int64][]map[string]bool{}
	for _, h := range hits {
		w := wordsOf(h.Text)
		repeats := false
		for _, before := range said[h.RecordID] {
			repeats = repeats || share(before, w) >= alike
		}
		if repeats {
			dropped = append(dropped, h)
			continue
		}
		said[h.RecordID] = append(said[h.RecordID], w)
		kept = append(kept, h)
	}
	return kept, dropped
}

func wordsOf(text string) map[string]bool {
	out := map[string]bool{}
	for w := range strings.FieldsFuncSeq(strings.ToLower(text), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsNumber(r) }) {
		out[w] = true
	}
	return out
}

// share is the size of what two sets have in common by that of both together; two
// empty ones are alike.
func share(a, b map[string]bool) float64 {
	if len(a) == 0 && len(b) == 0 {
		return 1
	}
	common := 0
	for w := range a {
		if b[w] {
			common++
		}
	}
	return float64(common) / float64(len(a)+len(b)-common)
}
