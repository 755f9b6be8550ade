package cdc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

// goneMessage is for a table that had been published.
const goneMessage = "%s is not among the tables that the source publishes any more, so changes are missing " +
	"(it was dropped, renamed, or taken out of the publication %s, or that was altered): register the table again"

// review judges what happened to a table whose rows are stored, or being copied.
// It tells whether the copying may go on.
func (t *tender) review(ctx context.Context, table whence.Table, m member, there bool, look string) (bool, error) {
	name := sqlName(table.Schema, table.Relation)
	if there && look == table.Shape {
		return true, nil
	}
	now, err := parseShape(look)
	if err != nil {
		return false, err
	}
	before := now
	if table.Shape != "" {
		if before, err = parseShape(table.Shape); err != nil {
			return false, err
		}
	}
	if now.Mute != nil {
		return false, t.unidentified(ctx, table, now.Mute.refusal())
	}
	if above, hidden := now.published(); hidden {
		return false, t.hidden(ctx, table, above)
	}
	v := judge(table, before, now)
	switch {
	case now.Relation == 0:
		return false, t.gone(ctx, table, before.Relation)
	case !there && v.state == "":
		return false, t.sink.TableFailed(ctx, table.ID, table.Definition, whence.TableBroken, fmt.Sprintf(goneMessage, name, t.cfg.Publication))
	case v.state != "":
		return false, t.sink.TableFailed(ctx, table.ID, table.Definition, v.state, v.why)
	case strings.Contains(now.Identity, "f") && !m.all, !m.covers(table.Columns()):
		// With the whole row as identity and a list of columns, its owner's updates fail.
		return false, t.copyAgain(ctx, table, "how its rows are identified or published was changed")
	case v.again:
		return false, t.copyAgain(ctx, table, v.why)
	}
	if filled, err := t.filled(ctx, v.leaf); err != nil || filled {
		return false, errors.Join(err, t.copyAgain(ctx, table, v.why))
	}
	return t.keep(ctx, table, look)
}

// keep replaces the shape that was judged, unless it was spoilt meanwhile.
func (t *tender) keep(ctx context.Context, table whence.Table, look string) (bool, error) {
	t.looks.Lock()
	defer t.looks.Unlock()
	set, err := t.readTables(ctx)
	if err != nil || !slices.ContainsFunc(set.list, func(now whence.Table) bool { return now.ID == table.ID && now.Shape == table.Shape }) {
		return false, err
	}
	if err := t.sink.Saw(ctx, table.ID, table.Definition, look); err != nil {
		return false, fmt.Errorf("keep how %s looks: %w", table.Name(), err)
	}
	_, err = t.readTables(ctx)
	return true, err
}

// hidden fails a partition whose changes come under another table's name.
func (t *tender) hidden(ctx context.Context, table whence.Table, above string) error {
	return t.sink.TableFailed(ctx, table.ID, table.Definition, whence.TableBroken, fmt.Sprintf(
		"%s is a partition of %s, and its changes come under that name, because that is published too: unregister this one; "+
			"or see that %s is not registered and not in the publication %s, then register this one again",
		sqlName(table.Schema, table.Relation), above, above, t.cfg.Publication))
}

func (t *tender) copyAgain(ctx context.Context, table whence.Table, why string) error {
	var text string
	if err := t.conn.QueryRow(ctx, insertPositionSQL).Scan(&text); err != nil {
		return fmt.Errorf("read the source's log position: %w", err)
	}
	at, err := whence.ParseLSN(text)
	if err != nil {
		return err
	}
	t.log.WarnContext(ctx, "a table is compared anew", "table", table.Name(), "why", why)
	if err := t.sink.CopyAgain(ctx, table.ID, table.Definition, at, why); err != nil {
		return fmt.Errorf("have %s copied again: %w", table.Name(), err)
	}
	t.Poke()
	return nil
}

// unidentified fails a table whose changed rows the stream would not tell apart,
// and sees that it is not published: its owner's updates would fail.
func (t *tender) unidentified(ctx context.Context, table whence.Table, why *whence.Error) error {
	return errors.Join(
		t.drop(ctx, relationName{table.Schema, table.Relation}),
		t.sink.TableFailed(ctx, table.ID, table.Definition, whence.TableBroken, why.Message+"; then register the table again"))
}

// gone fails a table whose name no relation bears any more.
func (t *tender) gone(ctx context.Context, table whence.Table, was uint32) error {
	name := sqlName(table.Schema, table.Relation)
	var schema, relation string
	err := t.conn.QueryRow(ctx, relationNameSQL, pgx.NamedArgs{"oid": strconv.FormatUint(uint64(was), 10)}).Scan(&schema, &relation)
	message := fmt.Sprintf("%s was renamed to %s: rename it back and register it again, or register it under its new name", name, sqlName(schema, relation))
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		message = fmt.Sprintf(goneMessage, name, t.cfg.Publication)
	case err != nil:
		return fmt.Errorf("ask what became of %s: %w", name, err)
	case schema == table.Schema && relation == table.Relation:
		return nil // it is back already
	}
	return t.sink.TableFailed(ctx, table.ID, table.Definition, whence.TableBroken, message)
}

const (
	insertPositionSQL = `select pg_current_wal_insert_lsn()::text`
	relationNameSQL   = `
select n.nspname::text, c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = @oid::text::oid`
)

// filled tells whether one of the partitions holds rows. One that is empty now
// held nothing when it was attached, or what it held was deleted since, which
// the stream tells.
func (t *tender) filled(ctx context.Context, leaves []string) (bool, error) {
	for _, oid := range leaves {
		var schema, relation string
		err := t.conn.QueryRow(ctx, relationNameSQL, pgx.NamedArgs{"oid": oid}).Scan(&schema, &relation)
		if errors.Is(err, pgx.ErrNoRows) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("look into a partition: %w", err)
		}
		var rows bool
		err = t.conn.QueryRow(ctx, `select exists (select from only `+sqlName(schema, relation)+`)`).Scan(&rows)
		if refused, ok := permanent(err); ok && (refused.Code == codeDenied || refused.Code == codeUndefinedTable) {
			return true, nil // the copying says what is wrong
		}
		if err != nil {
			return false, fmt.Errorf("look into a partition: %w", err)
		}
		if rows {
			return true, nil
		}
	}
	return false, nil
}
