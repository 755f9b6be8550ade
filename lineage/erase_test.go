package lineage_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/lineage"
)

// TestEraseLateAnswers erases a record, then stores an answer of a call that had
// seen it, as one under way may, and one that saw what came after it.
func TestEraseLateAnswers(t *testing.T) {
	t.Parallel()
	s, db := open(t)
	answer := func(version int32) lineage.Answer {
		return lineage.Answer{ID: newID(t), At: noon, Tenant: "t", Agent: "a", User: "u", Hits: []lineage.Hit{{
			RecordID: 7, Table: whence.NotesTable, Key: `{"id":"x"}`, Version: version,
			Shown: json.RawMessage(fmt.Sprintf(`{"text": "words of version %d", "matchedText": "words", "attributes": {"a": "words"}, "origin": {"digest": "d", "note": {"key": "words"}}, "score": {"final": 0.5}}`, version))}}}
	}
	early, late, after := answer(1), answer(2), answer(3)
	insert(t, s, db, early)
	err := pg.InTx(t.Context(), db.Pool, func(tx pgx.Tx) error {
		return s.Erase(t.Context(), tx, []whence.Gone{{Table: whence.NotesTable, Key: `{"id":"x"}`, RecordID: 7, Below: 3}})
	})
	if err != nil {
		t.Fatal(err)
	}
	insert(t, s, db, late, after)
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		of     lineage.Answer
		erased bool
	}{{early, true}, {late, true}, {after, false}} {
		var words int
		var kept bool
		err := db.Pool.QueryRow(t.Context(), `
select (select count(*) from regexp_matches(hit::text, 'words', 'g')), hit ? 'erased' and hit #>> '{origin,digest}' = 'd' and hit ? 'score'
from whence.answer_hits where answer_id = $1`, c.of.ID).Scan(&words, &kept)
		if err != nil {
			t.Fatal(err)
		}
		if (words == 0) != c.erased || kept != c.erased {
			t.Errorf("version %d: %d words left, want erased: %v", c.of.Hits[0].Version, words, c.erased)
		}
	}
}
