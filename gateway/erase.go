package gateway

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/gateway/action"
)

// Executions erases what executions, and approvals of them, say of rows.
type Executions struct{}

const (
	insertRowsSQL = `
insert into whence.execution_rows (execution_id, table_name, key)
select @id, t, k from unnest(@tables::text[], @keys::text[]) as r(t, k)
on conflict do nothing`

	// What is left says that it ran, on what, when and for whom.
	eraseExecutionsSQL = `
with meant as materialized (
    select distinct r.execution_id as id from whence.execution_rows r
    join unnest(@tables::text[], @keys::text[]) as g(t, k) on r.table_name = g.t and (r.key = g.k or g.k is null)
), erased as (
    update whence.executions x set erased = true, effects = null, shown = '[]', result = null, arguments = '{}', failure = failure - 'metadata'
    from meant where x.id = meant.id and not x.erased
)
update whence.approvals a set shown = '[]', requests = '[]' from meant where a.execution_id = meant.id`
)

// Erase takes out the words of rows that are to be nowhere any more. What they were
// cannot be restored from then on.
func (Executions) Erase(ctx context.Context, tx pgx.Tx, gone []whence.Gone) error {
	if len(gone) == 0 {
		return nil
	}
	tables, keys := make([]string, len(gone)), make([]*string, len(gone))
	for i, g := range gone {
		key := string(g.Key)
		tables[i], keys[i] = string(g.Table), &key
	}
	return eraseExecutions(ctx, tx, tables, keys)
}

// EraseTable does so for all rows of a table.
func (Executions) EraseTable(ctx context.Context, tx pgx.Tx, table whence.TableName) error {
	return eraseExecutions(ctx, tx, []string{string(table)}, []*string{nil})
}

func eraseExecutions(ctx context.Context, tx pgx.Tx, tables []string, keys []*string) error {
	if _, err := tx.Exec(ctx, eraseExecutionsSQL, pgx.NamedArgs{"tables": tables, "keys": keys}); err != nil {
		return fmt.Errorf("erase what was executed: %w", err)
	}
	return nil
}

// holdsRows writes down whose words an execution holds.
func holdsRows(ctx context.Context, tx pgx.Tx, id uuid.UUID, effects []action.Effect) error {
	var tables, keys []string
	for _, e := range effects {
		if e.Key == "" { // of an insert that was only tried
			continue
		}
		tables, keys = append(tables, string(e.TableName())), append(keys, string(e.Key))
	}
	return holdsKeys(ctx, tx, id, tables, keys)
}

func holdsKeys(ctx context.Context, tx pgx.Tx, id uuid.UUID, tables, keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	if _, err := tx.Exec(ctx, insertRowsSQL, pgx.NamedArgs{"id": id, "tables": tables, "keys": keys}); err != nil {
		return fmt.Errorf("store the rows of an execution: %w", err)
	}
	return nil
}
