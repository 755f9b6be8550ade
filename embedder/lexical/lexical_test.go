package lexical_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/embedder/lexical"
)

var _ embedder.Model = (*lexical.Model)(nil)

func embed(t testing.TB, m *lexical.Model, text string) []float32 {
	t.Helper()
	v, err := m.EmbedQuery(t.Context(), text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func cosine(a, b []float32) (sum float64) {
	for i := range a {
		sum += float64(a[i]) * float64(b[i])
	}
	return sum
}

func checkUnit(t testing.TB, v []float32, dimensions int) {
	t.Helper()
	if len(v) != dimensions {
		t.Fatalf("%d components, want %d", len(v), dimensions)
	}
	// A NaN anywhere makes the comparison false.
	if n := cosine(v, v); !(math.Abs(n-1) < 1e-5) {
		t.Fatalf("length %v, want 1", n)
	}
}

func TestNearerAndFarther(t *testing.T) {
	t.Parallel()
	f, err := os.Open("testdata/triples.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, seen := lexical.Default(), 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		parts := strings.Split(line, "|")
		if len(parts) != 3 {
			t.Fatalf("malformed line %q", line)
		}
		query := embed(t, m, parts[0])
		near, far := cosine(query, embed(t, m, parts[1])), cosine(query, embed(t, m, parts[2]))
		t.Logf("%+.3f %+.3f  %s", near, far, line)
		if near <= far {
			t.Errorf("nearer %.3f is not above farther %.3f: %s", near, far, line)
		}
		seen++
	}
	if seen < 40 {
		t.Fatalf("only %d triples read", seen)
	}
}

// Stored vectors outlive the program that made them: a change of these digests
// needs a new model name, not a new digest.
func TestVectorsNeverChange(t *testing.T) {
	t.Parallel()
	m := lexical.Default()
	for text, want := range map[string]string{
		"":                           "657fb06bb7c1da60",
		"The order ships on Monday.": "36a4a4a131958b60",
		"Café — naïve Straße; ﬁve ORA-00942":                                 "e45abe5bec894175",
		"東京の天気 배송 지연 изменение 🎉":                                            "2400d3a73c97a119",
		strings.Repeat("to be or not to be ", 5000) + "that is the question": "645e03bbd1696b3d",
	} {
		h := sha256.New()
		for _, x := range embed(t, m, text) {
			h.Write(binary.BigEndian.AppendUint32(nil, math.Float32bits(x)))
		}
		if got := hex.EncodeToString(h.Sum(nil)[:8]); got != want {
			t.Errorf("digest of %.30q is %s, want %s", text, got, want)
		}
	}
	if m.Name() != "lexical-512-v1" || m.Dimensions() != 512 {
		t.Errorf("the default model is %s with %d dimensions", m.Name(), m.Dimensions())
	}
}

func TestTextsWithoutWordsShareOneVector(t *testing.T) {
	t.Parallel()
	m := lexical.Default()
	empty := embed(t, m, "")
	checkUnit(t, empty, 512)
	for _, text := range []string{" \n\t", "?!…—", "\xff\xfe", "\u200b", "\u0301", "'"} {
		if !slices.Equal(embed(t, m, text), empty) {
			t.Errorf("%q does not get the vector of the empty text", text)
		}
	}
	if c := cosine(empty, embed(t, m, "an ordinary sentence about invoices")); math.Abs(c) > 0.3 {
		t.Errorf("the empty text is %.2f near an ordinary one", c)
	}
}

func TestEquivalentSpellingsAreEqual(t *testing.T) {
	t.Parallel()
	m := lexical.Default()
	for _, pair := range [][2]string{
		{"Café", "cafe\u0301"}, {"STRASSE", "straße"}, {"don't", "don’t"},
		{"ΟΔΟΣ", "οδος"}, {"soft\u00adhyphen", "softhyphen"}, {"가", "\u1100\u1161"},
		{"a, b; c!", "A B C"},
	} {
		if !slices.Equal(embed(t, m, pair[0]), embed(t, m, pair[1])) {
			t.Errorf("%q and %q differ", pair[0], pair[1])
		}
	}
}

// Where the text is cut into blocks must not show: the same words, moved
// against the cuts by padding, give the same vector.
func TestBlocksDoNotTearWords(t *testing.T) {
	t.Parallel()
	m := lexical.Default()
	for _, unit := range []string{"cancelled orders ", "überfällige Re\u0301chnung ", "天気地図"} {
		body := strings.Repeat(unit, 4*(1<<16)/len(unit))
		want := embed(t, m, body)
		for pad := 1; pad <= 20; pad += 3 {
			if !slices.Equal(embed(t, m, strings.Repeat(" ", pad)+body), want) {
				t.Errorf("%q padded by %d differs", unit, pad)
			}
		}
	}
}

func TestHugeTexts(t *testing.T) {
	t.Parallel()
	const size = 10 << 20
	random := rand.NewChaCha8([32]byte{7})
	binaryText := make([]byte, size)
	random.Read(binaryText)
	words := make([]byte, size)
	for i := range words {
		words[i] = "abcdefghijklmnopqrstuvwxyz      "[binaryText[i]&31]
	}
	m := lexical.Default()
	for name, text := range map[string]string{
		"one word":  strings.Repeat("x", size),
		"binary":    string(binaryText),
		"words":     string(words),
		"marks":     strings.Repeat("\u0301", size/20),
		"arabic":    "ا" + strings.Repeat("\u064b", size/20),
		"expanding": strings.Repeat("\ufdfa", size/300),
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			checkUnit(t, embed(t, m, text), 512)
			t.Logf("%d bytes in %s", len(text), time.Since(start))
		})
	}
}

func TestContextEndsALongText(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	v, err := lexical.Default().Embed(ctx, []string{"a text"})
	if !errors.Is(err, context.Canceled) || v != nil {
		t.Fatalf("got %v, %v", v, err)
	}
}

func TestConcurrentCallsAgree(t *testing.T) {
	t.Parallel()
	m := lexical.Default()
	texts := []string{"first text", "second one", strings.Repeat("long words here ", 9000), ""}
	want, err := m.Embed(t.Context(), texts)
	if err != nil || len(want) != len(texts) {
		t.Fatal(len(want), err)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			got, err := m.Embed(t.Context(), texts)
			if err != nil {
				t.Error(err)
			}
			for i := range got {
				if !slices.Equal(got[i], want[i]) {
					t.Errorf("text %d differs", i)
				}
			}
		})
	}
	all.Wait()
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for _, n := range []int{-1, 16001} {
		if _, err := lexical.New(lexical.Config{Dimensions: n}); err == nil {
			t.Errorf("%d dimensions accepted", n)
		}
	}
	m, err := lexical.New(lexical.Config{Dimensions: 3})
	if err != nil {
		t.Fatal(err)
	}
	checkUnit(t, embed(t, m, "tiny"), 3)
}

func FuzzEmbed(f *testing.F) {
	f.Add("Café ﬁve 東京 🎉 don't ORA-00942")
	f.Add("\xff\u0301\u200d" + strings.Repeat("a", 70))
	m := lexical.Default()
	f.Fuzz(func(t *testing.T, text string) {
		v := embed(t, m, text)
		checkUnit(t, v, 512)
		if !slices.Equal(v, embed(t, m, text)) {
			t.Fatal("two calls differ")
		}
	})
}

func BenchmarkShortText(b *testing.B) {
	m := lexical.Default()
	const text = "Ticket 88: the battery of the laptop has swollen and the case no longer closes. Replacement requested by the user."
	b.ReportAllocs()
	for b.Loop() {
		embed(b, m, text)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "texts/s")
}

func BenchmarkLongText(b *testing.B) {
	m := lexical.Default()
	text := strings.Repeat("Ticket 88: the battery of the laptop has swollen and the case no longer closes. ", 1<<20/80)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		embed(b, m, text)
	}
}
