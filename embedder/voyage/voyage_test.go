package voyage

import "testing"

func TestBatchTokens(t *testing.T) {
	t.Parallel()
	for model, want := range map[string]int{
		"voyage-3.5-lite": 1_000_000, "voyage-4-lite": 1_000_000, "voyage-3.5": 320_000, "voyage-4": 320_000,
		"voyage-3-large": 120_000, "voyage-code-3": 120_000, "voyage-9": 120_000,
	} {
		if got := batchTokens(model); got != want {
			t.Errorf("%s: %d, want %d", model, got, want)
		}
	}
}
