package api

import (
	"testing"

	"github.com/whence-db/whence/embedder/openai"
	"github.com/whence-db/whence/index"
)

// Two models may differ in their dimensions alone; the one without a space is meant.
func TestModelThatIsMeant(t *testing.T) {
	t.Parallel()
	var models []index.Model
	var spaces []index.SpaceStatus
	for _, dimensions := range []int{96, 48} {
		m, err := openai.New(openai.Config{BaseURL: "http://127.0.0.1:1/v1", Model: "m", Dimensions: dimensions})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.Close)
		models = append(models, m)
		spaces = append(spaces, index.SpaceStatus{Space: index.Space{Model: "m", Dimensions: dimensions}})
	}
	a := &admin{models: models}
	for _, c := range []struct {
		name   string
		spaces []index.SpaceStatus
		want   int // dimensions; 0: refused
	}{
		{"", nil, 96}, {"", spaces[:1], 48}, {"", spaces[1:], 96}, {"", spaces, 0},
		{"m", nil, 96}, {"m", spaces[:1], 48}, {"m", spaces[1:], 96}, {"m", spaces, 48},
		{"other", nil, 0},
	} {
		m, err := a.model(c.name, c.spaces)
		got := 0
		if err == nil {
			got = m.Dimensions()
		}
		if got != c.want {
			t.Errorf("%q with %d spaces: %d dimensions, want %d (%v)", c.name, len(c.spaces), got, c.want, err)
		}
	}
}
