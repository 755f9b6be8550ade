package cdc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/whence-db/whence"
)

// A publication that leaves out kinds of changes, or rows of a table, publishes
// what cannot be relied on, which is as good as nothing.
const (
	membersSQL = `
select n.nspname::text, c.relname::text, coalesce((
           select array_agg(a.attname::text) from pg_attribute a
            where a.attrelid = c.oid and a.attnum = any(r.prattrs::int2[])), '{}'), r.prattrs is null
  from pg_publication_rel r
  join pg_publication p on p.oid = r.prpubid
  join pg_class c on c.oid = r.prrelid
  join pg_namespace n on n.oid = c.relnamespace
 where p.pubname = @publication and r.prqual is null
   and p.pubviaroot and p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate`

	// publishedSQL also sees what a publication for a schema or for all tables holds.
	publishedSQL = `
select t.schemaname::text, t.tablename::text, '{}'::text[], true
  from pg_publication_tables t
  join pg_publication p on p.pubname = t.pubname
 where t.pubname = @publication and t.rowfilter is null
   and p.pubviaroot and p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate`
)

// member is how a table is published.
type member struct {
	columns []string
	all     bool // every column, also those added later
}

func (m member) covers(columns []string) bool {
	return m.all || !slices.ContainsFunc(columns, func(c string) bool { return !slices.Contains(m.columns, c) })
}

// publish makes the publication hold the registered tables, and returns those
// that it holds. What happened to tables whose rows are stored is judged; a
// table that cannot be captured fails alone.
func (t *tender) publish(ctx context.Context, set *tableSet) (map[relationName]bool, error) {
	now, err := t.catalogue(ctx, set)
	if err != nil {
		return nil, err
	}
	// A publication that is gone, made anew, or leaves kinds of changes out is no
	// fault of the tables: the stream finds out and has them all compared. They were
	// read before it, so only a second look at the same one judges them.
	version := ""
	if now.whole != nil && now.whole.complete {
		version = now.whole.version
	}
	if version == "" || version != t.version {
		if t.version = version; version != "" {
			t.Poke()
		}
		return nil, nil
	}
	ready := map[relationName]bool{}
	room := maxBackfills - len(t.runs) // with many new tables, most wait: a look at all of them would take long
	var trouble []error
	for name := range now.members { // first: a partition of one of them may be new
		if _, wanted := set.byName[name]; !wanted {
			trouble = append(trouble, t.drop(ctx, name))
		}
	}
	for _, table := range set.list {
		name := relationName{table.Schema, table.Relation}
		m, there := now.published[name]
		switch {
		case failedState(table.State):
			if _, listed := now.members[name]; listed {
				trouble = append(trouble, t.release(ctx, name, now.looks[table.ID]))
			}
		case table.State == whence.TablePending && t.runs[table.ID] != nil:
			// Its copying has begun since, or is being given up; how the table looked
			// was kept before.
		case table.State == whence.TablePending && (room <= 0 || !t.due(table.ID)):
		case table.State == whence.TablePending:
			_, listed := now.members[name]
			ok, err := t.prepare(ctx, table, m, there, there && !listed)
			if ready[name] = ok; ok {
				room--
			}
			trouble = append(trouble, err)
		default:
			ok, err := t.review(ctx, table, m, there, now.looks[table.ID])
			ready[name] = ok
			trouble = append(trouble, err)
		}
	}
	return ready, errors.Join(trouble...)
}

// release takes a table that has failed before out of the publication once that
// would make its owner's updates fail.
func (t *tender) release(ctx context.Context, name relationName, look string) error {
	now, err := parseShape(look)
	if err != nil || now.Mute == nil {
		return err
	}
	return t.drop(ctx, name)
}

// catalogue is what the source says of the publication and of the tables.
type catalogue struct {
	whole     *publicationState
	members   map[relationName]member // what the publication holds itself
	published map[relationName]member // all that it publishes
	looks     map[int32]string
}

// catalogue reads everything as of one moment: a table that is taken out in
// between would seem to be published still, and only altered.
func (t *tender) catalogue(ctx context.Context, set *tableSet) (now catalogue, err error) {
	one := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err = pgx.BeginTxFunc(ctx, t.conn, one, func(pgx.Tx) (err error) {
		if now.whole, err = t.publication(ctx, t.conn); err != nil {
			return err
		}
		if now.members, err = t.members(ctx, membersSQL); err != nil {
			return err
		}
		if now.published, err = t.members(ctx, publishedSQL); err != nil {
			return err
		}
		maps.Copy(now.published, now.members) // a partitioned table without partitions is only a member
		now.looks, err = t.shapes(ctx, t.conn, set.list)
		return err
	})
	return now, err
}

func (t *tender) members(ctx context.Context, query string) (map[relationName]member, error) {
	rows, err := t.conn.Query(ctx, query, pgx.NamedArgs{"publication": t.cfg.Publication})
	if err != nil {
		return nil, fmt.Errorf("read the publication's tables: %w", err)
	}
	set := map[relationName]member{}
	var name relationName
	var m member
	_, err = pgx.ForEachRow(rows, []any{&name.schema, &name.name, &m.columns, &m.all}, func() error {
		set[name] = m
		m.columns = nil
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the publication's tables: %w", err)
	}
	return set, nil
}

// prepare publishes a table whose rows are to be copied and keeps how it looks;
// false without an error means that it failed and its state says why. It is
// inspected first: publishing a table whose rows cannot be identified would make
// its owner's updates fail. elsewise: it is published with its schema or with all.
func (t *tender) prepare(ctx context.Context, table whence.Table, m member, there, elsewise bool) (bool, error) {
	in, err := InspectTable(ctx, t.conn, table.Schema, table.Relation)
	var refusal *whence.Error
	if errors.As(err, &refusal) {
		if refusal.Reason == reasonKeyless || refusal.Reason == reasonMute {
			return false, t.unidentified(ctx, table, refusal)
		}
		return false, t.sink.TableFailed(ctx, table.ID, table.Definition, whence.TableBroken, refusal.Message+"; then register the table again")
	}
	if err != nil {
		return false, err
	}
	for _, column := range in.Columns {
		if column.Generated && slices.Contains(table.Columns(), column.Name) {
			return false, t.sink.TableFailed(ctx, table.ID, table.Definition, whence.TableSchemaChanged, fmt.Sprintf(
				"the column %q of %s is generated, and the source does not send generated values: leave it out, and register the table again",
				column.Name, sqlName(table.Schema, table.Relation)))
		}
	}
	looks, err := t.shapes(ctx, t.conn, []whence.Table{table})
	if err != nil {
		return false, err
	}
	now, err := parseShape(looks[table.ID])
	if err != nil {
		return false, err
	}
	if why, fits := judgeKey(table, now); !fits {
		return false, t.sink.TableFailed(ctx, table.ID, table.Definition, whence.TableSchemaChanged, why)
	}
	above, hidden := now.published()
	for _, a := range now.Above {
		if !hidden && t.tables.Load().has(a.Name) { // and so about to be published
			above, hidden = a.Name, true
		}
	}
	if hidden {
		return false, t.hidden(ctx, table, above)
	}
	full := strings.Contains(now.Identity, "f")
	if !there || !m.covers(table.Columns()) || full && !m.all {
		err := t.put(ctx, table, in.Kind, there && !elsewise)
		if isCode(err, codeDuplicateObject) { // it is listed, but for some of its rows
			err = t.put(ctx, table, in.Kind, true)
		}
		refused, ok := permanent(err)
		switch {
		case err == nil:
		case !ok:
			return false, err
		default:
			return false, t.refused(ctx, table, in.Kind, refused)
		}
	}
	if looks, err = t.shapes(ctx, t.conn, []whence.Table{table}); err != nil {
		return false, err
	}
	if err := t.sink.Saw(ctx, table.ID, table.Definition, looks[table.ID]); err != nil {
		return false, fmt.Errorf("keep how %s looks: %w", table.Name(), err)
	}
	_, err = t.readTables(ctx) // the stream is to go by it before the snapshot is taken
	return err == nil, err
}

// statement adds a table with all its columns: with a list of them Postgres would
// refuse its owner to drop or retype a column, and updates once the whole row
// identifies it.
func (t *tender) statement(table whence.Table, kind Kind) string {
	name := sqlName(table.Schema, table.Relation)
	if kind == KindTable {
		name = "only " + name
	}
	return `alter publication ` + pgx.Identifier{t.cfg.Publication}.Sanitize() + ` add table ` + name
}

// lockPatience bounds the wait for a table's lock, which something long such as CREATE
// INDEX CONCURRENTLY may hold: the other tables are not to wait for that one. An
// autovacuum makes way after a second.
const lockPatience = `set local lock_timeout = '3s'`

// put adds a table to the publication, in place of how it is listed there.
func (t *tender) put(ctx context.Context, table whence.Table, kind Kind, there bool) error {
	return pgx.BeginFunc(ctx, t.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, lockPatience); err != nil {
			return err
		}
		if there {
			if _, err := tx.Exec(ctx, t.removal(relationName{table.Schema, table.Relation})); err != nil {
				return fmt.Errorf("publish all columns of %s: %w", sqlName(table.Schema, table.Relation), err)
			}
		}
		if _, err := tx.Exec(ctx, t.statement(table, kind)); err != nil {
			return fmt.Errorf("publish %s: %w", sqlName(table.Schema, table.Relation), err)
		}
		return nil
	})
}

// refused fails a table that the source will not publish as it must be.
func (t *tender) refused(ctx context.Context, table whence.Table, kind Kind, why *pgconn.PgError) error {
	listed, err := t.listed(ctx, table)
	if err != nil {
		return err
	}
	add, name := t.statement(table, kind), sqlName(table.Schema, table.Relation)
	message := fmt.Sprintf("the source refuses to publish %s (%s): ", name, why.Message)
	statements := add
	if listed != "" {
		message = fmt.Sprintf("the publication %s holds %s with %s, so changes would be missing: ", t.cfg.Publication, name, listed)
		statements = t.removal(relationName{table.Schema, table.Relation}) + "; " + add
	}
	switch {
	case why.Code == codeDenied:
		message += fmt.Sprintf("make the role %s a member of the table's owner, or have an owner of both run %s; then register the table again",
			t.Capture.conn.User, statements)
	case listed != "":
		message += fmt.Sprintf("run %s; then register the table again", statements)
	default:
		message += "mend that, then register the table again"
	}
	return t.sink.TableFailed(ctx, table.ID, table.Definition, whence.TableBroken, message)
}

const listedSQL = `
select coalesce(pg_get_expr(r.prqual, r.prrelid), ''), coalesce((
           select string_agg(quote_ident(a.attname), ', ' order by a.attnum) from pg_attribute a
            where a.attrelid = r.prrelid and a.attnum = any(r.prattrs::int2[])), '')
  from pg_publication_rel r
  join pg_publication p on p.oid = r.prpubid
  join pg_class c on c.oid = r.prrelid
  join pg_namespace n on n.oid = c.relnamespace
 where p.pubname = @publication and n.nspname = @schema and c.relname = @relation`

// listed says what of a table the publication holds; empty when that is all or none.
func (t *tender) listed(ctx context.Context, table whence.Table) (string, error) {
	var filter, columns string
	err := t.conn.QueryRow(ctx, listedSQL, pgx.NamedArgs{"publication": t.cfg.Publication, "schema": table.Schema, "relation": table.Relation}).
		Scan(&filter, &columns)
	var parts []string
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("ask how %s is published: %w", table.Name(), err)
	}
	if filter != "" {
		parts = append(parts, "the row filter "+filter)
	}
	if columns != "" {
		parts = append(parts, "the column list ("+columns+")")
	}
	return strings.Join(parts, " and "), nil
}

func (t *tender) removal(name relationName) string {
	return `alter publication ` + pgx.Identifier{t.cfg.Publication}.Sanitize() + ` drop table ` + sqlName(name.schema, name.name)
}

// drop takes a table out of the publication; where an owner of the tables made
// that, it is the owner's business.
func (t *tender) drop(ctx context.Context, name relationName) error {
	_, err := t.conn.Exec(ctx, t.removal(name))
	if err != nil && !isCode(err, codeUndefinedTable) && !isCode(err, codeUndefinedObject) && !isCode(err, codeDenied) {
		return fmt.Errorf("take %s out of the publication: %w", sqlName(name.schema, name.name), err)
	}
	return nil
}
