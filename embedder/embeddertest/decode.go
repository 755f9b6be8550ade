package embeddertest

import (
	"math"
	"testing"

	"github.com/whence-db/whence/embedder/remote"
)

// CheckVectors fails unless whatever p makes of body is safe: a response to count
// texts, complete, in place, each vector finite and of length 1, or refused.
func CheckVectors(t *testing.T, p remote.Protocol, body []byte, count, dimensions int) {
	t.Helper()
	vectors, faults, _, err := p.Vectors(body, count, dimensions)
	if err != nil {
		if vectors != nil || faults != nil {
			t.Fatal("an error together with vectors")
		}
		return
	}
	if len(vectors) != count {
		t.Fatalf("%d vectors, want %d", len(vectors), count)
	}
	for i, v := range vectors {
		if faults[i] != nil {
			if v != nil {
				t.Fatalf("text %d has both a vector and a fault", i)
			}
			continue
		}
		if dimensions == 0 {
			dimensions = len(v)
		}
		if len(v) != dimensions {
			t.Fatalf("text %d has %d components, want %d", i, len(v), dimensions)
		}
		var squares float64
		for _, x := range v {
			squares += float64(x) * float64(x)
		}
		if !(math.Abs(squares-1) < 1e-5) {
			t.Fatalf("text %d has length² %v", i, squares)
		}
	}
}
