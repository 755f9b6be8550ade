package api

import (
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/whence-db/whence"
)

// A time that Postgres has and the contract cannot say is left out, and the rest
// of the message goes out.
func TestTimesBeyondTheContract(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		at   time.Time
		said bool
	}{
		{time.Time{}, false},
		{time.Date(-43, 3, 15, 0, 0, 0, 0, time.UTC), false},
		{time.Date(0, 12, 31, 23, 59, 59, 999_999_000, time.UTC), false},
		{time.Date(1, 1, 1, 0, 0, 0, 1000, time.UTC), true},
		{time.Date(9999, 12, 31, 23, 59, 59, 999_999_000, time.UTC), true},
		{time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), false},
		{time.Date(294276, 12, 31, 0, 0, 0, 0, time.UTC), false},
	} {
		o := origin(whence.Origin{EventTime: c.at, CommitTime: c.at})
		if (o.GetEventTime() != nil) != c.said || (o.GetCommitTime() != nil) != c.said {
			t.Errorf("%v is said as %v", c.at, o.GetEventTime())
		}
		if _, err := protojson.Marshal(o); err != nil {
			t.Errorf("%v: %v", c.at, err)
		}
	}
}
