package notes

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
)

// Forgotten says what has been removed, once the transaction is committed.
type Forgotten struct {
	Versions, Chunks int64
	Token            string // for consistency.atLeast
}

// Forget removes a note within the caller's scope in tx: its versions, its chunks,
// the vectors that nothing else needs, and its words in every answer that showed it.
// An empty table means that of notes.
func (s *Store) Forget(ctx context.Context, tx pgx.Tx, p *authz.Principal, table whence.TableName, values whence.Values) (f Forgotten, err error) {
	if table != "" && table != whence.NotesTable {
		return f, whence.Invalid("table", "TABLE_NOT_NOTES", fmt.Sprintf(
			"only notes can be forgotten, and %q holds none; rows are forgotten by deleting them in their source", table))
	}
	notes := whence.Notes()
	key, err := whence.NewKey(notes.KeyColumns, values)
	if err != nil || len(values) != len(notes.KeyColumns) || !clean(*values[whence.NoteID]) || len(*values[whence.NoteID]) > maxKey {
		return f, whence.Invalid("key", "KEY_INVALID", `the key of a note is {"id": "..."}, as its record gives it`)
	}
	if err := s.Index.LockKey(ctx, tx, whence.NotesID, key); err != nil {
		return f, err
	}
	removed, err := s.Index.Remove(ctx, tx, p.Scope, notes, key)
	if err != nil {
		return f, err
	}
	if err := s.erase(ctx, tx, []whence.Gone{removed.Gone}); err != nil {
		return f, err
	}
	_, _, xid, err := s.Index.Moment(ctx, tx)
	return Forgotten{Versions: removed.Versions, Chunks: removed.Chunks, Token: token(xid)}, err
}
