package notes

import (
	"errors"
	"testing"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/lineage"
)

// TestRestsOnTooMuch counts records, however many of their chunks were shown.
func TestRestsOnTooMuch(t *testing.T) {
	t.Parallel()
	shown := func(records, times int) (out []lineage.Shown) {
		for i := range records * times {
			out = append(out, lineage.Shown{RecordID: int64(i % records), Version: int32(i)})
		}
		return out
	}
	if err := restsOnTooMuch(shown(maxRests, 3)); err != nil {
		t.Errorf("%d records: %v", maxRests, err)
	}
	var refused *whence.Error
	if err := restsOnTooMuch(shown(maxRests+1, 1)); !errors.As(err, &refused) || refused.Reason != "EVIDENCE_TOO_MUCH" {
		t.Errorf("%d records: %v", maxRests+1, err)
	}
}
