package action

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/ingest"
)

// Effect is what an execution does to one row, with the whole row before and after
// in Postgres's text form: more than the caller may be shown.
type Effect struct {
	Kind   Operation     `json:"kind"` // INSERT, UPDATE or DELETE
	Source string        `json:"source"`
	Table  string        `json:"table"`            // "schema.name"
	Key    whence.Key    `json:"key"`              // of the row before, or of the inserted one
	Before whence.Values `json:"before,omitempty"` // nil for an insert
	After  whence.Values `json:"after,omitempty"`  // nil for a delete
}

// TableName is the registered table's full name.
func (e Effect) TableName() whence.TableName { return whence.TableName(e.Source + "." + e.Table) }

// Shown is the effect with no more columns than the action shows, beside the key.
func (e Effect) Shown(d Definition) Effect {
	columns := slices.Concat(slices.Sorted(maps.Keys(e.Key.Values())), d.Row.Columns)
	e.Before, e.After = only(e.Before, columns), only(e.After, columns)
	return e
}

func only(row whence.Values, columns []string) whence.Values {
	if row == nil {
		return nil
	}
	out := whence.Values{}
	for _, c := range columns {
		if v, ok := row[c]; ok {
			out[c] = v
		}
	}
	return out
}

// Request is one run of a row action.
type Request struct {
	Action     Definition
	Args       Args
	Credential Credential
	Scope      authz.Scope
	// Expect holds what a preview said would happen. Where the rows are others by now,
	// or not in the state that they had, the run is refused as PREVIEW_STALE. Nil
	// expects nothing in particular; empty expects that no row is touched.
	Expect []Effect
}

// Outcome is what a run has done, before it takes effect.
type Outcome struct {
	Effects []Effect
	Rows    int             // that were read or touched
	Shown   []whence.Values // of each row, the key and the columns that the action shows
	// The transaction, by which [Runner.Fate] tells what became of it. SystemID is
	// empty when the source does not tell which cluster it is.
	XID      string
	SystemID string
	Timeline int32
}

// Result is what a run did.
type Result struct {
	Outcome
	Token string // for consistency.atLeast; empty when nothing was written, or the source was lost just after
}

// ErrUncertain is in the error of a run whose commit was sent and never answered:
// whether it took effect, [Runner.Fate] tells.
var ErrUncertain = errors.New("it is not known whether the transaction was committed")

// Runner runs row actions. It is safe for concurrent use.
type Runner struct {
	registry *ingest.Registry
	log      *slog.Logger
	lockWait time.Duration
	prepare  time.Duration
	step     func(string) // told after each step, for tests
}

// Config says what a runner works on.
type Config struct {
	Registry *ingest.Registry
	LockWait time.Duration // the longest wait for a row that others hold; default 2 s
	// Prepare is the longest that prepare may take; the source gives a transaction up
	// whose client is silent for longer. Default 30 s.
	Prepare time.Duration
	Log     *slog.Logger // default: discards
}

// NewRunner checks the configuration.
func NewRunner(c Config) (*Runner, error) {
	if c.Registry == nil {
		return nil, errors.New("action: a registry is needed")
	}
	if c.LockWait < 0 || c.Prepare < 0 {
		return nil, errors.New("action: a wait is not negative")
	}
	if c.LockWait == 0 {
		c.LockWait = 2 * time.Second
	}
	if c.Prepare == 0 {
		c.Prepare = 30 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Runner{registry: c.Registry, log: c.Log, lockWait: c.LockWait, prepare: c.Prepare, step: func(string) {}}, nil
}

// Run runs a row action on the rows within the scope. Before it commits on the
// source, prepare gets what it did, and stores that durably: when it fails, nothing
// was done. A select needs no prepare. An error that holds [ErrUncertain] leaves
// open what happened; any other says that nothing did.
func (r *Runner) Run(ctx context.Context, q Request, prepare func(context.Context, Outcome) error) (Result, error) {
	if prepare == nil && q.Action.Tier != authz.TierRead {
		return Result{}, errors.New("run an action: what it does must be written down before it does it")
	}
	return r.run(ctx, q, prepare, false)
}

// DryRun does what Run does, constraints that are deferred included, and takes it
// back. Nothing of it is seen by others or by capture.
func (r *Runner) DryRun(ctx context.Context, q Request) (Outcome, error) {
	res, err := r.run(ctx, q, nil, true)
	return res.Outcome, err
}

func (r *Runner) run(ctx context.Context, q Request, prepare func(context.Context, Outcome) error, dry bool) (Result, error) {
	where, set, err := q.values()
	if err != nil {
		return Result{}, err
	}
	s, err := r.open(ctx, q.Action, q.Scope)
	if err != nil {
		return Result{}, err
	}
	defer s.close(ctx)
	out, err := s.apply(ctx, q, where, set)
	if err != nil {
		return Result{}, s.blame(ctx, q, where, set, err)
	}
	if q.Action.Row.Operation == Select {
		return Result{Outcome: out}, nil
	}
	if err := s.settle(ctx, &out); err != nil {
		return Result{}, err
	}
	if dry {
		return Result{Outcome: out}, nil
	}
	return s.commit(ctx, out, prepare)
}

// values resolves what chooses rows and what is written.
func (q Request) values() (where, set whence.Values, err error) {
	if q.Action.Row == nil {
		return nil, nil, fmt.Errorf("run an action: %q is not of rows", q.Action.Name)
	}
	row := *q.Action.Row
	if where, err = resolve(row.Where, q.Args, q.Credential); err != nil {
		return nil, nil, err
	}
	if len(where) != len(row.Where) { // never for a valid definition: an argument that chooses rows is required
		return nil, nil, fmt.Errorf("run an action: %q lacks a value that chooses its rows", q.Action.Name)
	}
	if set, err = resolve(row.Set, q.Args, q.Credential); err != nil {
		return nil, nil, err
	}
	if row.Operation == Update && len(set) == 0 {
		return nil, nil, whence.Invalid("arguments", "ARGUMENTS_INVALID", "the arguments leave nothing to write: give one that is written")
	}
	return where, set, nil
}

func resolve(operands map[string]Operand, args Args, c Credential) (whence.Values, error) {
	out := whence.Values{}
	for name, o := range operands {
		v, given, err := o.value(args, c)
		if err != nil {
			return nil, err
		}
		if given {
			out[name] = v.text
		}
	}
	return out, nil
}

// apply does what the action says to the rows that it means.
func (s *session) apply(ctx context.Context, q Request, where, set whence.Values) (out Outcome, err error) {
	op := q.Action.Row.Operation
	var rows []row
	if op != Insert {
		limit := q.Action.Row.Limit()
		if rows, err = s.query(ctx, selectRows(s.c, s.t, s.scope, where, limit+1, op != Select)); err != nil {
			return out, err
		}
		if len(rows) > limit {
			return out, &whence.Error{Kind: whence.ErrPrecondition, Reason: "ROWS_LIMIT", Metadata: map[string]string{"maxRows": strconv.Itoa(limit)},
				Message: fmt.Sprintf("the action would touch more than the %d rows that it may, so it touched none: choose rows more narrowly", limit)}
		}
	}
	s.r.step("locked")
	for _, row := range rows {
		e, err := s.effect(op, row.values, nil)
		if err != nil {
			return out, err
		}
		out.Effects = append(out.Effects, e)
	}
	if op == Select {
		for i := range out.Effects {
			out.Shown = append(out.Shown, out.Effects[i].Shown(q.Action).Before)
		}
		out.Rows, out.Effects = len(rows), nil
		return out, expected(q.Expect, nil)
	}
	if op == Insert {
		out.Effects = []Effect{{Kind: Insert, Source: s.t.Source, Table: whence.RelationName(s.t.Schema, s.t.Relation)}}
	}
	if err := expected(q.Expect, out.Effects); err != nil {
		return out, err
	}
	var statements []*statement
	for _, e := range out.Effects {
		switch op {
		case Insert:
			statements = append(statements, insertRow(s.c, s.t, s.scope, set, false))
		case Update:
			statements = append(statements, updateRow(s.c, s.t, s.scope, e.Key.Values(), set))
		default:
			statements = append(statements, deleteRow(s.c, s.t, s.scope, e.Key.Values()))
		}
	}
	if err := s.write(ctx, statements, out.Effects); err != nil {
		return out, err
	}
	s.r.step("written")
	out.Rows = len(out.Effects)
	return out, nil
}

// effect makes an effect of a row as it was or, without that, as it became.
func (s *session) effect(op Operation, before, after whence.Values) (Effect, error) {
	e := Effect{Kind: op, Source: s.t.Source, Table: whence.RelationName(s.t.Schema, s.t.Relation), Before: before, After: after}
	image := before
	if image == nil {
		image = after
	}
	var err error
	if e.Key, err = whence.NewKey(s.t.KeyColumns, image); err != nil {
		return e, fmt.Errorf("name a row of %s: %w", s.t.Name(), err)
	}
	return e, nil
}

// expected holds what is about to happen against what a preview said.
func expected(want, have []Effect) error {
	if want == nil {
		return nil
	}
	same := len(want) == len(have)
	left := map[whence.Key]Effect{}
	for _, e := range want {
		left[e.Key] = e
	}
	for _, e := range have {
		if e.Kind == Insert { // its key may be one that the source makes
			same = same && want[0].Kind == Insert
			continue
		}
		w, ok := left[e.Key]
		same = same && ok && w.Kind == e.Kind && len(differing(w.Before, e.Before)) == 0
	}
	if same {
		return nil
	}
	return &whence.Error{Kind: whence.ErrPrecondition, Reason: "PREVIEW_STALE",
		Message: "the rows are not as they were when this was previewed, so nothing was done: preview again, and decide by that"}
}

// differing lists the columns that two images of a row do not have alike.
func differing(a, b whence.Values) (columns []string) {
	for name, v := range a {
		if w, ok := b[name]; !ok || (v == nil) != (w == nil) || v != nil && *v != *w {
			columns = append(columns, name)
		}
	}
	for name := range b {
		if _, ok := a[name]; !ok {
			columns = append(columns, name)
		}
	}
	slices.Sort(columns)
	return columns
}

// token is what a query waits for by consistency.atLeast.
func token(source string, lsn whence.LSN) string {
	return strings.Join([]string{source, lsn.String()}, "@")
}
