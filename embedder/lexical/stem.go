package lexical

import (
	"bytes"
	"strings"
)

// appendStem appends w without its English inflection. It is light on purpose:
// plural, -ed, -ing and -ly only, so that it seldom joins words that differ;
// what it misses the n-grams catch. Words outside a to z are left as they are.
func appendStem(dst, w []byte) []byte {
	dst = append(dst, w...)
	if len(w) < 4 {
		return dst
	}
	for _, c := range w {
		if c < 'a' || c > 'z' {
			return dst
		}
	}
	s := stripPlural(dst)
	s = stripVerbal(s)
	if len(s) >= 6 && hasSuffix(s, "ly") {
		s = s[:len(s)-2]
	}
	if len(s) > 3 && s[len(s)-1] == 'e' {
		s = s[:len(s)-1]
	}
	return s
}

func stripPlural(s []byte) []byte {
	n := len(s)
	switch {
	case s[n-1] != 's', hasSuffix(s, "ss"), hasSuffix(s, "us"), hasSuffix(s, "is"):
		return s
	case n >= 5 && hasSuffix(s, "ies"):
		return append(s[:n-3], 'y')
	case hasSuffix(s, "sses"), hasSuffix(s, "xes"), hasSuffix(s, "ches"), hasSuffix(s, "shes"), hasSuffix(s, "zes"):
		return s[:n-2]
	}
	return s[:n-1]
}

func stripVerbal(s []byte) []byte {
	n := len(s)
	switch {
	case n >= 5 && hasSuffix(s, "ied"):
		return append(s[:n-3], 'y')
	case n >= 5 && hasSuffix(s, "ing") && hasVowel(s[:n-3]):
		return undouble(s[:n-3])
	case n >= 5 && hasSuffix(s, "ed") && !hasSuffix(s, "eed") && hasVowel(s[:n-2]):
		return undouble(s[:n-2])
	}
	return s
}

// undouble turns "shipp" into "ship"; l, s and z are double in their own right.
func undouble(s []byte) []byte {
	n := len(s)
	if n >= 4 && s[n-1] == s[n-2] && !bytes.ContainsRune([]byte("lsz"), rune(s[n-1])) {
		return s[:n-1]
	}
	return s
}

func hasVowel(s []byte) bool { return len(s) >= 2 && bytes.ContainsAny(s, "aeiouy") }

func hasSuffix(s []byte, suffix string) bool { return bytes.HasSuffix(s, []byte(suffix)) }

// functionWords carry grammar rather than subject.
var functionWords = func() map[string]bool {
	set := make(map[string]bool)
	for w := range strings.FieldsSeq(`
		a about after all also am an and any are as at be because been before being but by
		can could did do does doing done for from had has have having he her hers him his how
		i if in into is it its just may me might more most must my no nor not of on only or
		our ours out over shall she should so some such than that the their theirs them then
		there these they this those through to too under up us very was we were what when
		where which while who whom whose why will with would you your yours
		dont doesnt didnt isnt arent wasnt werent cant couldnt wont wouldnt im ive id ill
		youre thats whats theres s t`) {
		set[w] = true
	}
	return set
}()
