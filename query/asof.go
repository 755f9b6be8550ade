package query

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/whence-db/whence"
)

// Incomplete says that an answer as of a moment may lack versions of a table. It
// tells of rules, not of rows: whether any is missing depends on rows that the
// caller may not know of.
type Incomplete struct {
	Table  whence.TableName
	Reason IncompleteReason
	Until  time.Time // of moments from then on nothing is missing; zero: not known
}

// IncompleteReason says what may be missing.
type IncompleteReason string

const (
	// RowsPurged means that rows deleted since have left nothing behind.
	RowsPurged IncompleteReason = "ROWS_PURGED"
	// VersionsRemoved means that the table does not keep versions for so long.
	VersionsRemoved IncompleteReason = "VERSIONS_REMOVED"
	// NotCaughtUp means that not all that had been committed by then is known to be applied.
	NotCaughtUp IncompleteReason = "NOT_CAUGHT_UP"
)

// validateAsOf refuses what a past moment does not go with.
func (r Request) validateAsOf() error {
	conflict := func(field, why string) error {
		return whence.Invalid(field, "AS_OF_CONFLICT", field+" does not go with asOf: "+why+"; leave one of them out")
	}
	switch {
	case r.AsOf.IsZero():
		return nil
	case r.FreshOnly:
		return conflict("freshOnly", "what was current then need not be fresh now")
	case r.Consistency.Verify:
		return conflict("consistency.verify", "a source tells only how its rows read now")
	}
	return nil
}

// coverage tells what may be missing of a moment, and fails where nothing is known
// of it: before a table's rows had been copied for the first time.
func coverage(state whence.State, tables []whence.Table, asOf, now time.Time) ([]Incomplete, error) {
	if asOf.IsZero() {
		return nil, nil
	}
	if asOf.After(now) {
		return nil, whence.Invalid("asOf", "AS_OF_IN_FUTURE",
			fmt.Sprintf("asOf lies ahead: it is %s here; leave it out for what is current", now.UTC().Format(time.RFC3339Nano)))
	}
	if err := covered(tables, asOf); err != nil {
		return nil, err
	}
	var out []Incomplete
	for _, t := range tables {
		add := func(is bool, why IncompleteReason, until time.Time) {
			if is {
				out = append(out, Incomplete{Table: t.Name(), Reason: why, Until: until})
			}
		}
		purges := t.OnDelete == whence.OnDeletePurge
		until := t.PurgedUntil
		if purges {
			until = time.Time{}
		}
		add(purges || asOf.Before(t.PurgedUntil), RowsPurged, until)
		add(asOf.Before(t.PrunedBefore), VersionsRemoved, t.PrunedBefore)
		add(state.Sources[t.Source].CaughtUpAt.Before(asOf), NotCaughtUp, time.Time{})
	}
	return out, nil
}

func covered(tables []whence.Table, asOf time.Time) error {
	var early, never []string
	var says []string
	var earliest time.Time
	for _, t := range tables {
		switch {
		case t.CoveredFrom.IsZero():
			never = append(never, string(t.Name()))
			says = append(says, fmt.Sprintf("%s has not been copied yet", t.Name()))
		case asOf.Before(t.CoveredFrom):
			early = append(early, string(t.Name()))
			says = append(says, fmt.Sprintf("%s is known from %s on", t.Name(), t.CoveredFrom.UTC().Format(time.RFC3339Nano)))
			if t.CoveredFrom.After(earliest) {
				earliest = t.CoveredFrom
			}
		}
	}
	if len(says) == 0 {
		return nil
	}
	const most = 16
	e := &whence.Error{Kind: whence.ErrPrecondition, Reason: "AS_OF_TOO_EARLY", Field: "asOf",
		Message: "nothing is known of that moment: " + strings.Join(says[:min(len(says), most)], ", ") +
			"; ask for a later moment, or for other tables",
		Metadata: map[string]string{"tables": strings.Join(slices.Concat(early, never), ",")}}
	if len(never) == 0 {
		e.Metadata["earliest"] = earliest.UTC().Format(time.RFC3339Nano)
	}
	return e
}
