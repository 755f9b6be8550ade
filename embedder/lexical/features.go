package lexical

import (
	"math"
	"math/bits"
	"unicode/utf8"
)

// Weights are integers in units of 1/scale.
const (
	scale      = 1024
	stemWeight = scale
	gramWeight = scale         // all n-grams of a word together
	loneWeight = scale * 7 / 5 // the stem of a word that has no n-grams
	pairWeight = scale / 2

	functionWord = scale / 8
	window       = 1 << 16 // distinct words or pairs counted together
)

// lengthWeight is the weight of a word by its characters; 1 from four on.
var lengthWeight = [...]int64{0, scale * 4 / 10, scale * 6 / 10, scale * 8 / 10}

// gramShare[n] is the weight of one of n n-grams of a word.
var gramShare = func() (share [3*maxWord + 8]int64) {
	for n := 1; n < len(share); n++ {
		share[n] = int64(gramWeight/math.Sqrt(float64(n)) + 0.5)
	}
	return share
}()

// Kinds of feature; each is the seed of its hashes, so that a word and an
// n-gram of the same spelling are different features.
const (
	kindWord uint64 = 0x57 + iota
	kindStem
	kindGram
	kindPair
)

type entry struct {
	stem       uint64
	weight     int64
	count      int64
	start, end int32 // in accumulator.spelling; empty when there are no n-grams
}

type pair struct {
	weight int64
	count  int64
}

// accumulator holds the counts of one window and the sums of one text.
type accumulator struct {
	sums     []int64
	index    map[uint64]int32 // hash of the word to its place in entries
	entries  []entry
	spelling []rune // the distinct words of the window, with boundary marks
	pairs    map[uint64]pair
	previous entry // the word before; weight 0 at the start of the text
	stem     []byte
}

func newAccumulator(dimensions int) *accumulator {
	a := &accumulator{sums: make([]int64, dimensions)}
	a.empty()
	return a
}

func (a *accumulator) reset() {
	clear(a.sums)
	a.previous = entry{}
	a.empty()
}

// empty drops the counts, and maps that a long text has made large: clearing
// those would cost every short text after it.
func (a *accumulator) empty() {
	if a.index == nil || len(a.entries) > 1024 || len(a.pairs) > 1024 {
		a.index, a.pairs = make(map[uint64]int32), make(map[uint64]pair)
	} else {
		clear(a.index)
		clear(a.pairs)
	}
	a.entries, a.spelling = a.entries[:0], a.spelling[:0]
}

func (a *accumulator) word(w word) {
	key := hash(kindWord, w.text)
	at, known := a.index[key]
	if !known {
		at = int32(len(a.entries))
		a.index[key] = at
		a.entries = append(a.entries, a.newEntry(w))
	}
	e := &a.entries[at]
	e.count++

	if a.previous.weight > 0 {
		k := mix(a.previous.stem*3 + e.stem)
		p := a.pairs[k]
		p.weight, p.count = min(a.previous.weight, e.weight), p.count+1
		a.pairs[k] = p
	}
	a.previous = *e
	if len(a.entries) >= window || len(a.pairs) >= window {
		a.flush()
		a.empty()
	}
}

func (a *accumulator) newEntry(w word) entry {
	a.stem = appendStem(a.stem[:0], w.text)
	e := entry{stem: hash(kindStem, a.stem), weight: scale}
	common := functionWords[string(w.text)]
	switch {
	case common:
		e.weight = functionWord
	case !w.alone && !w.digits && w.length < len(lengthWeight):
		e.weight = lengthWeight[w.length]
	}
	if common || w.alone || w.digits || w.length < 2 {
		return e
	}
	e.start = int32(len(a.spelling))
	a.spelling = append(a.spelling, '\x02')
	for rest := w.text; len(rest) > 0; {
		r, n := utf8.DecodeRune(rest)
		a.spelling = append(a.spelling, r)
		rest = rest[n:]
	}
	a.spelling = append(a.spelling, '\x03')
	e.end = int32(len(a.spelling))
	return e
}

// flush adds the window's features to the sums.
func (a *accumulator) flush() {
	for _, e := range a.entries {
		weight := e.weight * occurrences(e.count) / scale
		grams := a.spelling[e.start:e.end]
		if len(grams) == 0 {
			a.add(e.stem, weight*loneWeight)
			continue
		}
		a.add(e.stem, weight*stemWeight)
		a.grams(grams, weight)
	}
	for k, p := range a.pairs {
		a.add(hash64(kindPair, k), p.weight*occurrences(p.count)/scale*pairWeight)
	}
}

func (a *accumulator) grams(spelling []rune, weight int64) {
	n := 0
	for size := 3; size <= 5; size++ {
		n += max(0, len(spelling)-size+1)
	}
	weight *= gramShare[min(n, len(gramShare)-1)]
	for i := range len(spelling) - 2 {
		h := offset ^ kindGram*prime
		for j := i; j < min(i+5, len(spelling)); j++ {
			h = (h ^ uint64(spelling[j])) * prime
			if j-i >= 2 {
				a.add(mix(h), weight)
			}
		}
	}
}

// add puts one feature on the dimension and with the sign that its hash says.
func (a *accumulator) add(h uint64, weight int64) {
	dimension, _ := bits.Mul64(h, uint64(len(a.sums)))
	if h&1 == 1 {
		weight = -weight
	}
	a.sums[dimension] += weight
}

// occurrences is the weight of n occurrences in units of 1/scale.
func occurrences(n int64) int64 {
	const ln2 = 710 // ln 2 · 1024
	power := bits.Len64(uint64(n)) - 1
	log2 := int64(power)*scale + (n-1<<power)*scale>>power
	return scale + ln2*log2/scale
}

// FNV-1a over 64 bits: offset basis and prime as its authors publish them.
const (
	offset uint64 = 14695981039346656037
	prime  uint64 = 1099511628211
)

func hash(kind uint64, s []byte) uint64 {
	h := offset ^ kind*prime
	for _, c := range s {
		h = (h ^ uint64(c)) * prime
	}
	return mix(h)
}

func hash64(kind, v uint64) uint64 { return mix(offset ^ kind*prime ^ v) }

// mix spreads every input bit over the whole word (the finaliser of
// SplitMix64): FNV alone leaves the high bits of short inputs poor.
func mix(h uint64) uint64 {
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
