package voyage

import (
	"testing"

	"github.com/whence-db/whence/embedder/embeddertest"
)

// Whatever a server sends, what is accepted is safe to store.
func FuzzVectors(f *testing.F) {
	f.Add([]byte(`{"data":[{"index":1,"embedding":[0,2]},{"index":0,"embedding":"AACAPwAAAAA="}],"usage":{"total_tokens":7}}`), 2, 2)
	f.Add([]byte(`{"data":[{"embedding":[1e-46,null]}]}`), 1, 0)
	f.Add([]byte(`{"error":{"message":"x"}}`), 3, 4)
	f.Fuzz(func(t *testing.T, body []byte, count, dimensions int) {
		if count < 1 || count > 64 || dimensions < 0 || dimensions > 16000 {
			t.Skip()
		}
		embeddertest.CheckVectors(t, protocol, body, count, dimensions)
	})
}
