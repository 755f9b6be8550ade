package ingest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/internal/pg"
)

// Unregistering marks a table whose rows are being removed; nobody sees it any more.
const Unregistering whence.TableState = "UNREGISTERING"

// TableStatus is how far a table's capture and indexing have come.
type TableStatus struct {
	State     whence.TableState
	Error     string
	RowsDone  int64   // of the running or last backfill
	RowsTotal int64   // an estimate until that ends
	RowRate   float64 // rows copied a second since the running backfill began or went on; 0 when none runs
	WaitsFor  string  // what keeps it from getting on with its copy, as far as is known; else empty
	Aside     AsideStatus
	index.Status
}

// TableInfo is a registered table with its status.
type TableInfo struct {
	whence.Table
	Status TableStatus
}

const (
	tableFields = `
t.id, t.source_id, s.name, t.schema_name, t.relation, t.key_columns, t.text_columns, t.text_template, t.subject_column,
t.time_column, t.attribute_columns, t.half_life, t.freshness_target, t.on_delete, t.definition, t.state,
coalesce(t.error, ''), t.created_at, case when t.state in ('PENDING', 'BACKFILLING', 'LIVE') then t.snapshot_lsn end, coalesce(t.shape, ''),
t.copy_lsn, exists (select from whence.set_aside a where a.table_id = t.id),
coalesce(t.version_retention, '0'), coalesce(t.covered_from, case when t.state = 'LIVE' then t.created_at end), t.purged_until, t.pruned_before,
t.language, t.former_languages`

	selectTables = `select ` + tableFields + `, p.done, greatest(t.rows_total, p.done),
    case when t.state = 'BACKFILLING' then greatest(0, p.done - t.copy_rows) / greatest(extract(epoch from now() - t.copy_began), 0.001) else 0 end::float8
from whence.tables t join whence.sources s on s.id = t.source_id
cross join lateral (select case when t.state <> 'BACKFILLING' then t.rows_done
    else coalesce((select sum(b.rows) from whence.backfills b where b.table_id = t.id), 0)::bigint end as done) p
where t.state <> 'UNREGISTERING' and (@source = '' or s.name = @source)
order by s.name, t.schema_name, t.relation`
)

func scanTable(row pgx.CollectableRow, more ...any) (t whence.Table, err error) {
	var covered, purged, pruned *time.Time
	dest := []any{&t.ID, &t.SourceID, &t.Source, &t.Schema, &t.Relation, &t.KeyColumns, &t.TextColumns, &t.TextTemplate, &t.SubjectColumn,
		&t.TimeColumn, &t.AttributeColumns, &t.HalfLife, &t.FreshnessTarget, &t.OnDelete, &t.Definition, &t.State, &t.Error, &t.CreateTime, &t.Snapshot, &t.Shape,
		&t.Copied, &t.SetAside, &t.VersionRetention, &covered, &purged, &pruned, &t.Language, &t.FormerLanguages}
	err = row.Scan(append(dest, more...)...)
	for of, is := range map[*time.Time]*time.Time{&t.CoveredFrom: covered, &t.PurgedUntil: purged, &t.PrunedBefore: pruned} {
		if is != nil {
			*of = *is
		}
	}
	return t, err
}

// readTables reads the registered tables of a source, or of all when it is empty.
func readTables(ctx context.Context, q querier, source string) ([]TableInfo, error) {
	rows, err := q.Query(ctx, selectTables, pgx.NamedArgs{"source": source})
	if err != nil {
		return nil, fmt.Errorf("read tables: %w", pg.Translate(err))
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (i TableInfo, err error) {
		i.Table, err = scanTable(row, &i.Status.RowsDone, &i.Status.RowsTotal, &i.Status.RowRate)
		i.Status.State, i.Status.Error = i.State, i.Error
		return i, err
	})
	if err != nil {
		return nil, fmt.Errorf("read tables: %w", pg.Translate(err))
	}
	return out, nil
}

// ListTables returns the registered tables with their status, of one source or
// of all when it is empty.
func (r *Registry) ListTables(ctx context.Context, source string) ([]TableInfo, error) {
	if source != "" {
		if _, err := r.GetSource(ctx, source); err != nil {
			return nil, err
		}
	}
	tables, err := readTables(ctx, r.pool, source)
	if err != nil {
		return nil, err
	}
	sources, err := readSources(ctx, r.pool, source)
	if err != nil {
		return nil, err
	}
	for i := range tables {
		if err := r.fillStatus(ctx, &tables[i], sources); err != nil {
			return nil, err
		}
	}
	return tables, nil
}

// GetTable returns one table by its full name, "source.schema.name";
// TABLE_NOT_REGISTERED when there is none.
func (r *Registry) GetTable(ctx context.Context, name whence.TableName) (TableInfo, error) {
	tables, err := readTables(ctx, r.pool, "")
	if err != nil {
		return TableInfo{}, err
	}
	for _, t := range tables {
		if t.Name() == name {
			sources, err := readSources(ctx, r.pool, t.Source)
			if err != nil {
				return TableInfo{}, err
			}
			err = r.fillStatus(ctx, &t, sources)
			return t, err
		}
	}
	return TableInfo{}, notRegistered(name, tables)
}

// ReembedTable has all vectors of a table made anew.
func (r *Registry) ReembedTable(ctx context.Context, name whence.TableName) (TableInfo, error) {
	t, err := r.GetTable(ctx, name)
	if err != nil {
		return TableInfo{}, err
	}
	if err := r.index.Reembed(ctx, t.ID); err != nil {
		return TableInfo{}, err
	}
	return r.GetTable(ctx, name)
}

func (r *Registry) fillStatus(ctx context.Context, t *TableInfo, sources []Source) (err error) {
	for _, s := range sources {
		if s.ID == t.SourceID {
			t.Status.WaitsFor = waitsFor(t.State, s)
		}
	}
	if t.Status.Status, err = r.index.Status(ctx, t.ID); err != nil {
		return err
	}
	t.Status.Aside, err = r.asideStatus(ctx, t.Table)
	return err
}

func notRegistered(name whence.TableName, tables []TableInfo) *whence.Error {
	there := "none is yet"
	if len(tables) > 0 {
		names := make([]string, len(tables))
		for i, t := range tables {
			names[i] = string(t.Name())
		}
		there = "registered are: " + strings.Join(names, ", ")
	}
	if _, _, _, ok := name.Parts(); !ok {
		there = `write "source.schema.name"; ` + there
	}
	return refuse(whence.ErrNotFound, "TABLE_NOT_REGISTERED", fmt.Sprintf("no table is registered as %q; %s", name, there))
}

const (
	// No key update: what the stream inserts at the same time refers to the row.
	lockTable = `select ` + tableFields + `
from whence.tables t join whence.sources s on s.id = t.source_id
where t.source_id = @source and t.schema_name = @schema and t.relation = @relation
for no key update of t`
	lockCheckpoint = `select from whence.checkpoints where source_id = @source for update`

	insertTable = `
insert into whence.tables (source_id, schema_name, relation, key_columns, text_columns, text_template, subject_column,
    time_column, attribute_columns, half_life, freshness_target, on_delete, version_retention, language, snapshot_lsn)
values (@source, @schema, @relation, @key, @text, @template, @subject, @time, @attributes, @half_life, @target, @on_delete, @retention, @language, @lsn)`
	updateTable = `
update whence.tables set key_columns = @key, text_columns = @text, text_template = @template, subject_column = @subject,
    time_column = @time, attribute_columns = @attributes, half_life = @half_life, freshness_target = @target, on_delete = @on_delete,
    version_retention = @retention, definition = definition + 1, state = 'PENDING', error = null, shape = null, rows_done = 0, rows_total = 0,
    snapshot_lsn = greatest(snapshot_lsn, @lsn::pg_lsn), ` + keepPurged + `, ` + takeLanguage + `
where id = @id`
	tuneTable = `
update whence.tables set half_life = @half_life, freshness_target = @target, on_delete = @on_delete, version_retention = @retention, ` + keepPurged + `, ` + takeLanguage + ` where id = @id`
	// What was purged stays so when the table no longer purges.
	keepPurged = `purged_until = case when on_delete = 'PURGE' and @on_delete <> 'PURGE' then clock_timestamp() else purged_until end`
	// Chunks are indexed in the new language afterwards, a few at a time.
	takeLanguage = `language = @language,
    former_languages = array(select distinct l from unnest(former_languages || language) l where l <> @language order by l)`
	sourcePosition = `select pg_current_wal_insert_lsn()`
)

// RegisterTable begins to capture a table, or changes how it is captured. The
// same definition again changes nothing; one that renders rows otherwise, or
// mends a table that failed, copies the table anew. Texts that come out the same
// cost no embedding. In another language the chunks are only indexed anew.
func (r *Registry) RegisterTable(ctx context.Context, spec TableSpec) (TableInfo, error) {
	want, err := spec.table()
	if err != nil {
		return TableInfo{}, err
	}
	s, err := r.GetSource(ctx, spec.Source)
	if err != nil {
		return TableInfo{}, err
	}
	if s.deleting {
		return TableInfo{}, deletingError(s.Name)
	}
	want.SourceID = s.ID
	dsn, err := r.dsn(s.Name, s.secrets)
	if err != nil {
		return TableInfo{}, err
	}
	conn, err := connect(ctx, s.Name, dsn)
	if err != nil {
		return TableInfo{}, err
	}
	defer closeConn(ctx, conn)
	look, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	in, err := cdc.InspectTable(look, conn, want.Schema, want.Relation)
	if err != nil {
		return TableInfo{}, err
	}
	if err := fit(&want, in); err != nil {
		return TableInfo{}, err
	}
	for {
		err = pg.InTx(ctx, r.pool, func(tx pgx.Tx) error { return r.register(ctx, tx, conn, want) })
		var going *unregisteringError
		switch {
		case errors.Is(err, whence.ErrExists):
			continue // another call was first, and is there to be compared with
		case errors.As(err, &going):
			if err := r.dropTable(ctx, going.table); err != nil {
				return TableInfo{}, err
			}
			continue
		}
		break
	}
	if err != nil {
		return TableInfo{}, fmt.Errorf("register table: %w", err)
	}
	return r.GetTable(ctx, want.Name())
}

type unregisteringError struct{ table int32 }

func (e *unregisteringError) Error() string { return "the table is being unregistered" }

// register writes a definition. It holds the source's checkpoint meanwhile, so
// every unit of the stream commits either before, and then holds nothing beyond
// the source's position as read here, or after, and then finds the new
// definition and language. A backfill is therefore only good from that position on.
func (r *Registry) register(ctx context.Context, tx pgx.Tx, conn *pgx.Conn, want whence.Table) error {
	args := pgx.NamedArgs{"source": want.SourceID, "schema": want.Schema, "relation": want.Relation, "key": want.KeyColumns,
		"text": want.TextColumns, "template": want.TextTemplate, "subject": want.SubjectColumn, "time": want.TimeColumn,
		"attributes": want.AttributeColumns, "half_life": want.HalfLife, "target": want.FreshnessTarget, "on_delete": string(want.OnDelete), "retention": nil,
		"language": want.Language}
	if want.VersionRetention != 0 {
		args["retention"] = want.VersionRetention
	}
	rows, err := tx.Query(ctx, lockTable, args)
	if err != nil {
		return err
	}
	have, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (whence.Table, error) { return scanTable(row) })
	fresh := errors.Is(err, pgx.ErrNoRows)
	if err != nil && !fresh {
		return err
	}
	args["id"] = have.ID
	failed := have.State == whence.TableBroken || have.State == whence.TableSchemaChanged
	statement := updateTable
	switch {
	case fresh:
		statement = insertTable
	case have.State == Unregistering:
		return &unregisteringError{have.ID}
	case sameDefinition(have, want) && !failed:
		return nil
	case sameCapture(have, want) && !failed:
		statement = tuneTable
	}
	if statement != tuneTable || have.Language != want.Language {
		if _, err := tx.Exec(ctx, lockCheckpoint, args); err != nil {
			return err
		}
	}
	if statement != tuneTable {
		ctx, cancel := context.WithTimeout(ctx, connectTimeout)
		defer cancel()
		var lsn whence.LSN
		if err := conn.QueryRow(ctx, sourcePosition).Scan(&lsn); err != nil {
			return fmt.Errorf("read the source's position: %w", err)
		}
		args["lsn"] = lsn
	}
	if _, err := tx.Exec(ctx, statement, args); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, announce)
	return err
}

const (
	markUnregistering = `update whence.tables set state = 'UNREGISTERING', error = null where id = @id`
	deleteTable       = `delete from whence.tables where id = @id`
	selectLeftTables  = `select id from whence.tables where state = 'UNREGISTERING'`
	dropBatch         = 5000
)

// UnregisterTable stops capturing a table and removes all that was captured
// from it. It returns when everything is gone; from its start on nobody finds
// the table.
func (r *Registry) UnregisterTable(ctx context.Context, name whence.TableName) error {
	tables, err := readTables(ctx, r.pool, "")
	if err != nil {
		return err
	}
	for _, t := range tables {
		if t.Name() != name {
			continue
		}
		err := pg.InTx(ctx, r.pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, markUnregistering, pgx.NamedArgs{"id": t.ID}); err != nil {
				return err
			}
			// Units that still wrote to the table have committed before this is granted.
			if _, err := tx.Exec(ctx, lockCheckpoint, pgx.NamedArgs{"source": t.SourceID}); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, announce)
			return err
		})
		if err != nil {
			return fmt.Errorf("unregister table: %w", err)
		}
		return r.dropTable(ctx, t.ID)
	}
	return notRegistered(name, tables)
}

// dropTable removes a table's rows in batches, so that no lock is held for
// long, and then the table itself. It may be interrupted and called again.
func (r *Registry) dropTable(ctx context.Context, id int32) error {
	for more := true; more; {
		err := pg.InTx(ctx, r.pool, func(tx pgx.Tx) error {
			n, err := r.index.DropSome(ctx, tx, id, dropBatch)
			more = n == dropBatch
			return err
		})
		if err != nil {
			return fmt.Errorf("remove a table's rows: %w", err)
		}
	}
	err := pg.InTx(ctx, r.pool, func(tx pgx.Tx) error {
		if err := r.index.DropTable(ctx, tx, id); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, deleteTable, pgx.NamedArgs{"id": id})
		return err
	})
	if err != nil {
		return fmt.Errorf("remove a table: %w", err)
	}
	return nil
}

// sweep finishes what an interrupted UnregisterTable left.
func (r *Registry) sweep(ctx context.Context) error {
	rows, err := r.pool.Query(ctx, selectLeftTables)
	if err != nil {
		return fmt.Errorf("look for tables to remove: %w", pg.Translate(err))
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil {
		return fmt.Errorf("look for tables to remove: %w", pg.Translate(err))
	}
	for _, id := range ids {
		if err := r.dropTable(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// Notes need no capture, for they come from this database; on a replica they are
// as old as what it has replayed last.
const selectCheckpoints = `
select s.name, c.lsn, c.commit_time, c.caught_up_at, coalesce(extract(epoch from clock_timestamp() - c.caught_up_at), -1)::float8,
    s.paused or s.deleting, coalesce(s.error, ''), s.retrying
from whence.sources s left join whence.checkpoints c on c.source_id = s.id
union all
select @notes, null, null, n.at, coalesce(extract(epoch from clock_timestamp() - n.at), -1)::float8, false, '', false
from (select case when pg_is_in_recovery() then pg_last_xact_replay_timestamp() else clock_timestamp() end) n(at)`

// State returns all registered tables and where their sources stand, as tx sees
// them; lags are counted to this moment, not to the beginning of tx.
func (r *Registry) State(ctx context.Context, tx pgx.Tx) (whence.State, error) {
	state := whence.State{Sources: map[string]whence.SourceState{}}
	tables, err := readTables(ctx, tx, "")
	if err != nil {
		return whence.State{}, err
	}
	for _, t := range tables {
		state.Tables = append(state.Tables, t.Table)
	}
	rows, err := tx.Query(ctx, selectCheckpoints, pgx.NamedArgs{"notes": whence.NotesSource})
	if err != nil {
		return whence.State{}, fmt.Errorf("read checkpoints: %w", pg.Translate(err))
	}
	var s whence.SourceState
	var commit, caught *time.Time
	var lag float64
	_, err = pgx.ForEachRow(rows, []any{&s.Source, &s.LSN, &commit, &caught, &lag, &s.Paused, &s.Error, &s.Retrying}, func() error {
		s.CommitTime, s.CaughtUpAt, s.Lag = time.Time{}, time.Time{}, -1
		if commit != nil {
			s.CommitTime = *commit
		}
		if caught != nil {
			s.CaughtUpAt, s.Lag = *caught, max(0, time.Duration(lag*float64(time.Second)))
		}
		state.Sources[s.Source] = s
		return nil
	})
	if err != nil {
		return whence.State{}, fmt.Errorf("read checkpoints: %w", pg.Translate(err))
	}
	state.Tables = append(state.Tables, whence.Notes())
	return state, nil
}
