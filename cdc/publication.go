package cdc

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

// goneMessage is for a table that had been published.
const goneMessage = "%s is not among the tables that the source publishes any more, so changes are missing " +
	"(it was dropped, renamed, or taken out of the publication %s, or that was altered): register the table again"

// A publication that leaves out kinds of changes, or rows of a table, publishes
// what cannot be relied on, which is as good as nothing.
const (
	membersSQL = `
select n.nspname::text, c.relname::text
  from pg_publication_rel r
  join pg_publication p on p.oid = r.prpubid
  join pg_class c on c.oid = r.prrelid
  join pg_namespace n on n.oid = c.relnamespace
 where p.pubname = @publication and r.prqual is null
   and p.pubviaroot and p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate`

	// publishedSQL also sees what a publication for a schema or for all tables holds.
	publishedSQL = `
select t.schemaname::text, t.tablename::text
  from pg_publication_tables t
  join pg_publication p on p.pubname = t.pubname
 where t.pubname = @publication and t.rowfilter is null
   and p.pubviaroot and p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate`
)

// publish makes the publication hold the registered tables, and returns those
// that it holds. A table that cannot be added fails alone.
func (t *tender) publish(ctx context.Context, set *tableSet) (map[relationName]bool, error) {
	members, err := t.relations(ctx, membersSQL)
	if err != nil {
		return nil, err
	}
	published, err := t.relations(ctx, publishedSQL)
	if err != nil {
		return nil, err
	}
	for name := range members {
		published[name] = true // a partitioned table without partitions is not among them
	}
	var trouble []error
	for _, table := range set.list {
		name := relationName{table.Schema, table.Relation}
		switch {
		case published[name] || failedState(table.State):
		case table.State == whence.TableLive:
			err := t.sink.TableFailed(ctx, table.ID, whence.TableBroken,
				fmt.Sprintf(goneMessage, sqlName(name.schema, name.name), t.cfg.Publication))
			trouble = append(trouble, err)
		default:
			added, err := t.add(ctx, table)
			trouble = append(trouble, err)
			published[name] = added
		}
	}
	for name := range members {
		if _, wanted := set.byName[name]; !wanted {
			trouble = append(trouble, t.drop(ctx, name))
		}
	}
	return published, errors.Join(trouble...)
}

func (t *tender) relations(ctx context.Context, query string) (map[relationName]bool, error) {
	rows, err := t.conn.Query(ctx, query, pgx.NamedArgs{"publication": t.cfg.Publication})
	if err != nil {
		return nil, fmt.Errorf("read the publication's tables: %w", err)
	}
	set := map[relationName]bool{}
	var name relationName
	_, err = pgx.ForEachRow(rows, []any{&name.schema, &name.name}, func() error { set[name] = true; return nil })
	if err != nil {
		return nil, fmt.Errorf("read the publication's tables: %w", err)
	}
	return set, nil
}

// add publishes a table; false without an error means that it failed and its
// state says why. It is inspected first: publishing a table whose rows cannot
// be identified would make its owner's updates fail.
func (t *tender) add(ctx context.Context, table whence.Table) (bool, error) {
	in, err := InspectTable(ctx, t.conn, table.Schema, table.Relation)
	var refusal *whence.Error
	if errors.As(err, &refusal) {
		return false, t.sink.TableFailed(ctx, table.ID, whence.TableBroken, refusal.Message+"; then register the table again")
	}
	if err != nil {
		return false, err
	}
	only := "only "
	if in.Kind == KindPartitioned {
		only = ""
	}
	statement := `alter publication ` + pgx.Identifier{t.cfg.Publication}.Sanitize() + ` add table ` + only + sqlName(table.Schema, table.Relation)
	if _, err = t.conn.Exec(ctx, statement); err == nil {
		return true, nil
	}
	if refused, ok := permanent(err); ok {
		message := fmt.Sprintf("the source refuses to publish %s (%s): ", sqlName(table.Schema, table.Relation), refused.Message)
		if refused.Code == codeDenied {
			message += fmt.Sprintf("make the role %s a member of the table's owner, or have the owner of both run %s; then register the table again", t.Capture.conn.User, statement)
		} else {
			message += "mend that, then register the table again"
		}
		return false, t.sink.TableFailed(ctx, table.ID, whence.TableBroken, message)
	}
	return false, fmt.Errorf("publish %s: %w", sqlName(table.Schema, table.Relation), err)
}

func (t *tender) drop(ctx context.Context, name relationName) error {
	statement := `alter publication ` + pgx.Identifier{t.cfg.Publication}.Sanitize() + ` drop table ` + sqlName(name.schema, name.name)
	if _, err := t.conn.Exec(ctx, statement); err != nil && !isCode(err, codeUndefinedTable) && !isCode(err, codeUndefinedObject) {
		return fmt.Errorf("take %s out of the publication: %w", sqlName(name.schema, name.name), err)
	}
	return nil
}
