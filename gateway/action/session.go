package action

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/ingest"
)

// session is one transaction on a source, on one table. It belongs to one goroutine.
type session struct {
	r     *Runner
	w     *ingest.Writer
	conn  *ingest.Write
	tx    pgx.Tx
	t     whence.Table
	c     catalogue
	scope authz.Scope
	d     Definition
}

// row is one row with all its columns.
type row struct {
	values whence.Values
	within bool // the scope
}

const (
	// Whatever the session had before, values have the text form that capture has,
	// and the answer to a commit means that it is on disk.
	settingsSQL = `
select set_config(name, value, true) from (values
    ('datestyle', 'ISO, MDY'), ('intervalstyle', 'postgres'), ('timezone', 'UTC'), ('extra_float_digits', '1'),
    ('bytea_output', 'hex'), ('client_encoding', 'UTF8'), ('lc_monetary', 'C'), ('xmlbinary', 'base64'), ('row_security', 'off'),
    ('synchronous_commit', case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end),
    ('statement_timeout', @statement::text), ('lock_timeout', @lock::text), ('idle_in_transaction_session_timeout', @idle::text)
) s(name, value)`

	immediateSQL = `set constraints all immediate`
	positionSQL  = `select pg_current_xact_id()::text, pg_current_wal_insert_lsn()`
	flushedSQL   = `select pg_current_wal_flush_lsn()`

	commitLimit = 10 * time.Second
)

// open begins a transaction in which the table, and what decides what the action may
// do to it, stay as they are.
func (r *Runner) open(ctx context.Context, d Definition, scope authz.Scope) (*session, error) {
	name := d.Row.Table
	if !scope.AllowsTable(name) {
		return nil, &whence.Error{Kind: whence.ErrDenied, Reason: "TABLE_OUT_OF_SCOPE", Metadata: map[string]string{"table": string(name)},
			Message: fmt.Sprintf("the action %q works on the table %q, which is outside your task's scope; choose another", d.Name, name)}
	}
	s, err := r.begin(ctx, d, scope)
	if err != nil {
		return nil, err
	}
	r.step("begun")
	if err := s.hold(ctx); err != nil {
		s.close(ctx)
		return nil, s.unfit(ctx, err)
	}
	r.step("checked")
	return s, nil
}

// unfit tells an agent that the table and the action do not fit, without what an
// operator is told of the table's columns and the server's role; the log has that.
func (s *session) unfit(ctx context.Context, err error) error {
	var e *whence.Error
	if !errors.As(err, &e) || e.Reason != "ACTION_INVALID" && (!errors.Is(err, whence.ErrPrecondition) || e.Reason != "SOURCE_REFUSED" && e.Reason != "SOURCE_READ_ONLY") {
		return err
	}
	s.r.log.WarnContext(ctx, "an action does not fit its table any more", "action", s.d.Name, "table", s.t.Name(), "error", err)
	return &whence.Error{Kind: whence.ErrPrecondition, Reason: e.Reason, Err: err, Metadata: map[string]string{"action": s.d.Name, "table": string(s.t.Name())},
		Message: fmt.Sprintf("the action %q cannot run on %s as that is now: an operator is to register it anew, and is told then what is wrong", s.d.Name, s.t.Name())}
}

func (r *Runner) begin(ctx context.Context, d Definition, scope authz.Scope) (*session, error) {
	s := &session{r: r, scope: scope, d: d}
	var ok bool
	var err error
	if s.t, ok, err = r.registry.Table(ctx, d.Row.Table); err != nil {
		return nil, err
	} else if !ok {
		return nil, &whence.Error{Kind: whence.ErrPrecondition, Reason: "TABLE_NOT_REGISTERED", Field: "row.table", Metadata: map[string]string{"table": string(d.Row.Table)},
			Message: fmt.Sprintf("no table is registered as %q, on whose rows the action %q works: an operator is to register it", d.Row.Table, d.Name)}
	}
	if s.w, err = r.registry.Writer(ctx, s.t.Source); err != nil {
		return nil, err
	}
	if s.conn, err = s.w.Acquire(ctx); err != nil {
		return nil, err
	}
	var access pgx.TxAccessMode // a role that is not to write by default is not made to
	if d.Row.Operation == Select {
		access = pgx.ReadOnly
	}
	if s.tx, err = s.conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: access}); err != nil {
		s.conn.Release()
		return nil, s.w.Translate(ctx, err)
	}
	milliseconds := func(d time.Duration) string { return strconv.FormatInt(max(1, d.Milliseconds()), 10) }
	_, err = s.tx.Exec(ctx, settingsSQL, pgx.NamedArgs{"statement": milliseconds(d.RunTime()), "lock": milliseconds(r.lockWait),
		"idle": milliseconds(r.prepare + commitLimit)})
	if err != nil {
		err = s.translate(ctx, err)
		s.close(ctx)
		return nil, err
	}
	return s, nil
}

// hold locks the table's definition, reads it and holds the action against it.
func (s *session) hold(ctx context.Context) error {
	// What adds a trigger, a rule or a foreign key waits for this lock.
	mode := "row exclusive"
	if s.d.Row.Operation == Select {
		mode = "access share"
	}
	var err error
	if s.c, err = inspect(ctx, s.tx, s.t); err != nil {
		return s.translate(ctx, err)
	}
	if err := s.c.check(s.d, s.t); err != nil {
		return err
	}
	if _, err := s.tx.Exec(ctx, "lock table "+relation(s.t, s.c.Kind)+" in "+mode+" mode"); err != nil {
		return s.translate(ctx, err)
	}
	if s.c, err = inspect(ctx, s.tx, s.t); err != nil {
		return s.translate(ctx, err)
	}
	return s.c.check(s.d, s.t)
}

// close takes back what was not committed.
func (s *session) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitLimit)
	defer cancel()
	_ = s.tx.Rollback(ctx) // on failure the connection goes, and the transaction with it
	s.conn.Release()
}

func (s *session) query(ctx context.Context, q *statement) ([]row, error) {
	all, err := s.batch(ctx, []*statement{q})
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// batch runs statements in one round trip; each gives rows as [statement.shown] writes them.
func (s *session) batch(ctx context.Context, statements []*statement) (out [][]row, err error) {
	b := &pgconn.Batch{}
	for _, q := range statements {
		b.ExecParams(q.String(), q.args, nil, nil, nil)
	}
	results := s.conn.Conn.Conn().PgConn().ExecBatch(ctx, b)
	for range statements {
		if !results.NextResult() {
			break
		}
		rows, err := s.read(results.ResultReader())
		if err != nil {
			_ = results.Close() // what went wrong first counts
			return nil, s.translate(ctx, err)
		}
		out = append(out, rows)
	}
	if err := results.Close(); err != nil {
		return nil, s.translate(ctx, err)
	}
	if len(out) != len(statements) {
		return nil, fmt.Errorf("the source answered %d of %d statements", len(out), len(statements))
	}
	return out, nil
}

func (s *session) read(r *pgconn.ResultReader) (out []row, err error) {
	names := s.c.names()
	for r.NextRow() {
		got := r.Values()
		if len(got) != len(names)+1 {
			_, _ = r.Close()
			return nil, fmt.Errorf("a row of %d columns has %d values", len(names), len(got)-1)
		}
		one := row{values: whence.Values{}, within: string(got[len(names)]) == "t"}
		for i, name := range names {
			if got[i] == nil {
				one.values[name] = nil
				continue
			}
			v := string(got[i])
			one.values[name] = &v
		}
		out = append(out, one)
	}
	_, err = r.Close()
	return out, err
}

// write runs one statement for each effect and takes its image of the row over.
func (s *session) write(ctx context.Context, statements []*statement, effects []Effect) error {
	if len(statements) == 0 {
		return nil
	}
	all, err := s.batch(ctx, statements)
	if err != nil {
		return err
	}
	for i := range effects {
		e, rows := &effects[i], all[i]
		if len(rows) != 1 {
			return interfered(s.t.Name())
		}
		if e.Kind == Delete {
			continue
		}
		if !rows[0].within {
			return outOfScope()
		}
		e.After = rows[0].values
		if e.Kind == Insert {
			if e.Key, err = whence.NewKey(s.t.KeyColumns, e.After); err != nil {
				return fmt.Errorf("name a row of %s: %w", s.t.Name(), err)
			}
		}
	}
	return nil
}

func outOfScope() error {
	return &whence.Error{Kind: whence.ErrDenied, Reason: "ROW_OUT_OF_SCOPE",
		Message: "the row would be outside your task's scope, so nothing was written: write a subject and attributes that are within it"}
}

func interfered(t whence.TableName) error {
	return &whence.Error{Kind: whence.ErrPrecondition, Reason: "TRIGGER_INTERFERED", Metadata: map[string]string{"table": string(t)},
		Message: fmt.Sprintf("a trigger of %s kept a row from being written, or changed it beyond recognition, so nothing was done: an operator is to look at the table's triggers", t)}
}

// settle makes all that is deferred happen now, so that the images are final.
func (s *session) settle(ctx context.Context, out *Outcome) error {
	if _, err := s.tx.Exec(ctx, immediateSQL); err != nil {
		return s.translate(ctx, err)
	}
	if len(s.c.Triggers) > 0 { // one that fires after a row was written may have changed it again
		if err := s.reread(ctx, out.Effects); err != nil {
			return err
		}
	}
	for _, e := range out.Effects {
		shown := e.Shown(s.d)
		if e.Kind == Delete {
			out.Shown = append(out.Shown, shown.Before)
		} else {
			out.Shown = append(out.Shown, shown.After)
		}
	}
	out.SystemID, out.Timeline = s.conn.SystemID, s.conn.Timeline
	return nil
}

func (s *session) reread(ctx context.Context, effects []Effect) error {
	var statements []*statement
	for _, e := range effects {
		image := e.After
		if e.Kind == Delete {
			image = e.Before
		}
		key, err := whence.NewKey(s.t.KeyColumns, image)
		if err != nil {
			return fmt.Errorf("name a row of %s: %w", s.t.Name(), err)
		}
		statements = append(statements, readRow(s.c, s.t, s.scope, key.Values()))
	}
	if len(statements) == 0 {
		return nil
	}
	all, err := s.batch(ctx, statements)
	if err != nil {
		return err
	}
	for i, rows := range all {
		e := &effects[i]
		switch {
		case e.Kind == Delete && len(rows) == 0:
		case e.Kind == Delete || len(rows) != 1:
			return interfered(s.t.Name())
		case !rows[0].within:
			return outOfScope()
		default:
			e.After = rows[0].values
		}
	}
	return nil
}

// commit has the outcome written down and commits. The source's log is on disk up
// to here before that: otherwise a crash could give the transaction's id away to
// another one, and that one's fate would be taken for this one's.
func (s *session) commit(ctx context.Context, out Outcome, prepare func(context.Context, Outcome) error) (Result, error) {
	var at whence.LSN
	if err := s.tx.QueryRow(ctx, positionSQL).Scan(&out.XID, &at); err != nil {
		return Result{}, s.translate(ctx, err)
	}
	if err := s.w.Flush(ctx, at); err != nil {
		return Result{}, err
	}
	s.r.step("flushed")
	bound, cancel := context.WithTimeout(ctx, s.r.prepare)
	defer cancel()
	if err := prepare(bound, out); err != nil {
		return Result{}, err
	}
	s.r.step("prepared")
	// The caller may go; only the commit's answer says what happened.
	ctx, end := context.WithTimeout(context.WithoutCancel(ctx), commitLimit)
	defer end()
	if err := s.tx.Commit(ctx); err != nil {
		return Result{}, s.uncommitted(ctx, err, out)
	}
	s.r.step("committed")
	res := Result{Outcome: out}
	var lsn whence.LSN
	if err := s.conn.QueryRow(ctx, flushedSQL).Scan(&lsn); err != nil {
		s.r.log.WarnContext(ctx, "an action took effect, and the source was lost before it said where in its log", "source", s.t.Source, "error", err)
		return res, nil
	}
	res.Token = token(s.t.Source, lsn)
	return res, nil
}

// uncommitted tells a commit that failed from one that was not answered.
func (s *session) uncommitted(ctx context.Context, err error, out Outcome) error {
	var pe *pgconn.PgError
	switch {
	case errors.Is(err, pgx.ErrTxCommitRollback):
		return fmt.Errorf("commit on %s: %w", s.t.Source, err)
	case errors.As(err, &pe) && pe.SeverityUnlocalized == "ERROR":
		return s.translate(ctx, err)
	}
	s.r.log.WarnContext(ctx, "a source did not answer a commit", "source", s.t.Source, "xid", out.XID, "error", err)
	return &whence.Error{Kind: whence.ErrUnavailable, Reason: "EXECUTION_UNCERTAIN", RetryAfter: time.Second, Err: errors.Join(ErrUncertain, err),
		Metadata: map[string]string{"source": s.t.Source},
		Message:  "contact with the source was lost as the action took effect, or did not: look at the execution again before anything else"}
}
