package ingest

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/rivo/uniseg"
)

// Sizes in bytes. A text up to target is one chunk. In longer ones each
// paragraph stands for itself, so that changing one leaves the others' chunks,
// and so their vectors, alone; paragraphs below least join the next one.
const (
	least  = 300
	target = 1000
	most   = 2000
)

// Span is a half-open range of bytes of a text.
type Span struct{ Start, End int }

// Split cuts a text into the spans that are embedded and searched. Spans are in
// order, do not overlap, begin and end at rune borders and with something else
// than white space, are at most 2,000 bytes long and together hold all that is
// not white space. They end at the borders of paragraphs where possible, else of
// sentences, else of words, else of characters as people see them.
func Split(text string) []Span {
	all := trim(text, Span{0, len(text)})
	if all.Start == all.End {
		return nil
	}
	if all.End-all.Start <= target {
		return []Span{all}
	}
	var out []Span
	gathered := Span{-1, -1} // small paragraphs that wait for the next one
	flush := func() {
		if gathered.Start >= 0 {
			out = append(out, gathered)
		}
		gathered = Span{-1, -1}
	}
	for at := all.Start; at < all.End; {
		p, next := paragraph(text, Span{at, all.End})
		at = next
		if p.Start == p.End {
			continue
		}
		if gathered.Start >= 0 {
			if p.End-gathered.Start <= target {
				p.Start = gathered.Start
			} else {
				out = append(out, gathered)
			}
			gathered = Span{-1, -1}
		}
		switch size := p.End - p.Start; {
		case size < least:
			gathered = p
		case size <= target:
			out = append(out, p)
		default:
			out = sentences(text, p, out)
		}
	}
	flush()
	return out
}

// paragraph returns the first paragraph of a span, trimmed, and where the rest begins.
func paragraph(text string, s Span) (p Span, next int) {
	for i := s.Start; i < s.End; {
		nl := strings.IndexByte(text[i:s.End], '\n')
		if nl < 0 {
			break
		}
		line := i + nl + 1
		j := line
		for j < s.End && (text[j] == ' ' || text[j] == '\t' || text[j] == '\r') {
			j++
		}
		if j < s.End && text[j] == '\n' {
			return trim(text, Span{s.Start, i + nl}), j + 1
		}
		i = line
	}
	return trim(text, s), s.End
}

// sentences packs the sentences of a long paragraph into chunks near target.
func sentences(text string, p Span, out []Span) []Span {
	first := len(out)
	cur := Span{p.Start, p.Start}
	emit := func() {
		if s := trim(text, cur); s.Start < s.End {
			out = append(out, s)
		}
		cur.Start = cur.End
	}
	rest, state := text[p.Start:p.End], -1
	for rest != "" {
		var s string
		s, rest, state = uniseg.FirstSentenceInString(rest, state)
		if cur.End > cur.Start && cur.End+len(s)-cur.Start > target {
			emit()
		}
		if len(s) <= most {
			cur.End += len(s)
			continue
		}
		end := cur.End + len(s)
		for _, piece := range pieces(text, Span{cur.End, end}) {
			cur = piece
			if piece.End < end {
				emit()
			}
		}
	}
	emit()
	// A remnant joins what it belongs to.
	if n := len(out); n-first > 1 && out[n-1].End-out[n-1].Start < least && out[n-1].End-out[n-2].Start <= most {
		out[n-2].End = out[n-1].End
		out = out[:n-1]
	}
	return out
}

// pieces cuts a sentence that is too long, after white space where there is any.
func pieces(text string, s Span) []Span {
	var out []Span
	for s.End-s.Start > target {
		cut := s.Start + target
		window := text[s.Start:cut]
		if i := strings.LastIndexFunc(window, unicode.IsSpace); i >= least {
			_, size := utf8.DecodeRuneInString(window[i:])
			cut = s.Start + i + size
		} else {
			cut = s.Start + graphemes(text[s.Start:min(s.End, s.Start+most)])
		}
		out = append(out, Span{s.Start, cut})
		s.Start = cut
	}
	if s.Start < s.End {
		out = append(out, s)
	}
	return out
}

// graphemes returns the length of the longest run of whole user-perceived
// characters within target bytes; of whole runes when the first is longer.
func graphemes(s string) int {
	n, state := 0, -1
	for rest := s; rest != ""; {
		var g string
		g, rest, _, state = uniseg.FirstGraphemeClusterInString(rest, state)
		if n+len(g) > target {
			break
		}
		n += len(g)
	}
	if n > 0 {
		return n
	}
	n = min(target, len(s))
	for n > 0 && n < len(s) && !utf8.RuneStart(s[n]) {
		n--
	}
	return max(n, 1)
}

func trim(text string, s Span) Span {
	part := text[s.Start:s.End]
	left := strings.TrimLeftFunc(part, unicode.IsSpace)
	s.Start = s.End - len(left)
	s.End = s.Start + len(strings.TrimRightFunc(left, unicode.IsSpace))
	return s
}
