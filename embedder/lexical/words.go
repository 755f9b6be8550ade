package lexical

import (
	"context"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

const (
	maxWord     = 64      // characters; a longer run is cut
	blockLength = 1 << 16 // bytes read between two looks at the context
)

// word is one token. Its bytes are only valid during the call it is passed to.
type word struct {
	text   []byte // folded
	length int    // characters
	digits bool   // nothing but digits
	alone  bool   // a character of a script without spaces, or a pictograph
}

// eachWord calls yield for the words of text in order.
func eachWord(ctx context.Context, text string, yield func(word)) error {
	t := tokenizer{yield: yield}
	for len(text) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		var block string
		block, text = cutBlock(text)
		if !isASCII(block) {
			block = norm.NFKD.String(strings.ToValidUTF8(block, " "))
		}
		for _, r := range block {
			t.rune(r)
		}
	}
	t.end()
	return nil
}

// cutBlock splits off about blockLength bytes before an ASCII byte, where no
// sequence of combining characters and no UTF-8 sequence can be torn; text that
// offers none within four times as much is cut at the start of a character.
func cutBlock(text string) (block, rest string) {
	if len(text) <= blockLength {
		return text, ""
	}
	end := blockLength
	for limit := min(len(text), 4*blockLength); end < limit; end++ {
		if text[end] < utf8.RuneSelf {
			return text[:end], text[end:]
		}
	}
	for back := 0; back < utf8.UTFMax && end < len(text) && !utf8.RuneStart(text[end]); back++ {
		end--
	}
	return text[:end], text[end:]
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

type tokenizer struct {
	yield  func(word)
	buffer []byte
	length int
	other  bool // something other than a digit was seen
	alone  bool
}

func (t *tokenizer) end() {
	if t.length > 0 {
		t.yield(word{text: t.buffer, length: t.length, digits: !t.other, alone: t.alone})
	}
	t.buffer, t.length, t.other, t.alone = t.buffer[:0], 0, false, false
}

func (t *tokenizer) add(r rune, digit bool) {
	if t.alone || t.length >= maxWord {
		t.end()
	}
	t.buffer = utf8.AppendRune(t.buffer, r)
	t.length++
	t.other = t.other || !digit
}

func (t *tokenizer) rune(r rune) {
	switch {
	case 'a' <= r && r <= 'z':
		t.add(r, false)
	case 'A' <= r && r <= 'Z':
		t.add(r+('a'-'A'), false)
	case '0' <= r && r <= '9':
		t.add(r, true)
	case r == '\'':
		// inside a word it vanishes; outside there is nothing to end
	case r < utf8.RuneSelf:
		t.end()
	default:
		t.wide(r)
	}
}

// wide handles characters outside ASCII.
func (t *tokenizer) wide(r rune) {
	switch {
	case 0x300 <= r && r <= 0x36f, r == '’', r == 'ʼ', unicode.Is(unicode.Cf, r), unicode.Is(unicode.Variation_Selector, r):
	case unicode.Is(unicode.M, r):
		if t.length > 0 {
			t.buffer = utf8.AppendRune(t.buffer, r)
		}
		if len(t.buffer) > 4*maxWord {
			t.end()
		}
	case unicode.Is(unicode.So, r), unicode.In(r, scriptsWithoutSpaces...):
		t.end()
		t.add(r, false)
		t.alone = true
	case unicode.IsLetter(r):
		r = unicode.ToLower(r)
		if spelled, ok := spelledOut[r]; ok {
			for _, s := range spelled {
				t.add(s, false)
			}
			return
		}
		t.add(r, false)
	case unicode.IsNumber(r):
		t.add(r, true)
	default:
		t.end()
	}
}

var scriptsWithoutSpaces = []*unicode.RangeTable{
	unicode.Han, unicode.Hiragana, unicode.Katakana,
	unicode.Thai, unicode.Lao, unicode.Khmer, unicode.Myanmar,
}

// spelledOut folds lower-case letters that decomposition leaves alone.
var spelledOut = map[rune]string{
	'ß': "ss", 'æ': "ae", 'œ': "oe", 'ø': "o", 'ł': "l", 'đ': "d",
	'ð': "d", 'þ': "th", 'ı': "i", 'ŋ': "n", 'ħ': "h", 'ς': "σ",
}
