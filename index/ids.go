package index

import (
	"context"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
)

// idBlock hands out ids for new records from a block that the sequence gave.
// What a process does not use is lost, as any number of a sequence may be.
type idBlock struct {
	mu       sync.Mutex // guards the rest
	at, left int64
}

const (
	// nextIDs must give as many numbers as the sequence's increment says.
	nextIDs    = `select nextval(pg_get_serial_sequence('whence.records', 'id'))`
	idsAtATime = 1000
)

func (b *idBlock) next(ctx context.Context, tx pgx.Tx) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left == 0 {
		if err := tx.QueryRow(ctx, nextIDs).Scan(&b.at); err != nil {
			return 0, fmt.Errorf("take numbers for records: %w", err)
		}
		b.left = idsAtATime
	}
	id := b.at
	b.at++
	b.left--
	return id, nil
}
