package query

import "testing"

func TestCollapse(t *testing.T) {
	t.Parallel()
	hits := []Hit{
		{ChunkID: 1, RecordID: 1, Text: "The pump at the north gate was replaced on Monday."},
		{ChunkID: 2, RecordID: 1, Text: "the pump at the North Gate was replaced, on monday"},
		{ChunkID: 3, RecordID: 1, Text: "The pump at the south gate was painted in spring."},
		{ChunkID: 4, RecordID: 2, Text: "The pump at the north gate was replaced on Monday."},
		{ChunkID: 5, RecordID: 1, Text: "!"},
		{ChunkID: 6, RecordID: 1, Text: "?"},
		{ChunkID: 7, RecordID: 1, Text: "Die Pumpe am Nordtor wurde am Montag ersetzt."},
	}
	kept, dropped := collapse(hits)
	var ids []int64
	for _, h := range append(kept, dropped...) {
		ids = append(ids, h.ChunkID)
	}
	want := []int64{1, 3, 4, 5, 7, 2, 6}
	for i := range want {
		if ids[i] != want[i] {
			t.Fatalf("kept and dropped are %v, want %v", ids, want)
		}
	}
}
