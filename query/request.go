package query

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
)

// Limits of a request.
const (
	DefaultLimit = 10
	MaxLimit     = 200
	MaxText      = 8192 // characters
	maxHalfLife  = 100 * 365 * 24 * time.Hour
)

// Request is a question.
type Request struct {
	Text        string
	Tables      []whence.TableName // empty: all within the scope
	Subjects    []string           // empty: all within the scope
	Filter      map[string]string  // attributes and the values they must have
	Limit       int                // 1 to MaxLimit; 0: DefaultLimit
	Recency     Recency
	Consistency Consistency
	Explain     bool      // say how the answer came about
	FreshOnly   bool      // leave out what is not FRESH
	AsOf        time.Time // answer from what was current at that moment; zero: now
}

// Recency says how much age counts.
type Recency struct {
	Weight   *float64      // the most that age can cost, in [0,1]; nil: the ranking's
	HalfLife time.Duration // zero: each table's own
}

// Consistency says how current the memory must be.
type Consistency struct {
	AtLeast      string         // "LSN" or "source@LSN[,...]" that must have been applied
	MaxStaleness *time.Duration // the largest lag of any source that is asked
	Verify       bool           // compare every hit with its row in the source
}

func (r Request) limit() int {
	if r.Limit == 0 {
		return DefaultLimit
	}
	return r.Limit
}

// within keeps the limit within the scope's; 0 sets no bound.
func (r Request) within(topK int) (Request, error) {
	switch {
	case topK == 0:
	case r.Limit == 0:
		r.Limit = min(DefaultLimit, topK)
	case r.Limit > topK:
		return r, &whence.Error{Kind: whence.ErrDenied, Reason: "LIMIT_OUT_OF_SCOPE", Field: "limit",
			Message:  fmt.Sprintf("your task's scope allows %d hits a query; ask for no more, or leave limit out", topK),
			Metadata: map[string]string{"topK": strconv.Itoa(topK)}}
	}
	return r, nil
}

// Validate tells what is wrong with a request, before any of it runs.
func (r Request) Validate() error {
	switch {
	case strings.TrimSpace(r.Text) == "":
		return whence.Invalid("text", "TEXT_BLANK", "text must say what to look for")
	case utf8.RuneCountInString(r.Text) > MaxText:
		return whence.Invalid("text", "TEXT_TOO_LONG", fmt.Sprintf("text may have at most %d characters", MaxText))
	case !clean(r.Text):
		return whence.Invalid("text", "TEXT_INVALID", "text must be UTF-8 without null characters")
	case r.Limit < 0 || r.Limit > MaxLimit:
		return whence.Invalid("limit", "LIMIT_OUT_OF_RANGE", fmt.Sprintf("limit must be 1 to %d; leave it out for %d", MaxLimit, DefaultLimit))
	case r.Recency.Weight != nil && !(*r.Recency.Weight >= 0 && *r.Recency.Weight <= 1): // NaN included
		return whence.Invalid("recency.weight", "WEIGHT_OUT_OF_RANGE", "recency.weight must be 0 to 1")
	case r.Recency.HalfLife < 0 || r.Recency.HalfLife > maxHalfLife:
		return whence.Invalid("recency.halfLife", "HALF_LIFE_OUT_OF_RANGE", "recency.halfLife must be above 0 and at most 100 years")
	case r.Consistency.MaxStaleness != nil && *r.Consistency.MaxStaleness < 0:
		return whence.Invalid("consistency.maxStaleness", "STALENESS_OUT_OF_RANGE", "consistency.maxStaleness must not be negative")
	}
	if err := r.validateAsOf(); err != nil {
		return err
	}
	if slices.ContainsFunc(r.Subjects, func(s string) bool { return !clean(s) }) {
		return whence.Invalid("subjects", "SUBJECT_INVALID", "subjects must be UTF-8 without null characters")
	}
	for k, v := range r.Filter {
		if !clean(k) || !clean(v) {
			return whence.Invalid("filter", "FILTER_INVALID", "filter must be UTF-8 without null characters")
		}
	}
	return nil
}

func clean(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// resolve finds the tables that a request may search, and refuses a filter that
// none of them can meet. What the scope does not allow is refused in the same
// words whether it exists or not.
func resolve(state whence.State, scope authz.Scope, r Request) ([]whence.Table, error) {
	tables, err := asked(state, scope, r)
	if err != nil {
		return nil, err
	}
	return tables, filterable(tables, r.Filter, func(n whence.TableName) bool { return slices.Contains(r.Tables, n) })
}

// filterable names only attributes of the given tables, which are within the scope;
// named tells which of them the request names.
func filterable(tables []whence.Table, filter map[string]string, named func(whence.TableName) bool) error {
	if len(tables) == 0 {
		return nil // there is nothing to find either way
	}
	var there []string
	for _, t := range tables {
		there = append(there, t.AttributeColumns...)
		if t.ID == whence.NotesID && named(t.Name()) {
			return nil // notes have whatever attributes their authors gave them
		}
	}
	slices.Sort(there)
	there = slices.Compact(there)
	for _, name := range slices.Sorted(maps.Keys(filter)) {
		if slices.Contains(there, name) {
			continue
		}
		advice := "they have none, so leave filter out"
		if len(there) > 0 {
			advice = "filter by one of these: " + strings.Join(there[:min(len(there), 64)], ", ")
		}
		if slices.ContainsFunc(tables, func(t whence.Table) bool { return t.ID == whence.NotesID }) {
			advice += "; notes are filtered by any attribute when tables names " + string(whence.NotesTable)
		}
		e := whence.Invalid("filter", "FILTER_UNKNOWN", fmt.Sprintf("no table that is asked has an attribute %q; %s", name, advice))
		e.Metadata = map[string]string{"attribute": name, "attributes": strings.Join(there, ",")}
		return e
	}
	return nil
}

func asked(state whence.State, scope authz.Scope, r Request) ([]whence.Table, error) {
	for _, s := range r.Subjects {
		if !scope.AllowsSubject(s) {
			return nil, &whence.Error{Kind: whence.ErrDenied, Reason: "SUBJECT_OUT_OF_SCOPE", Field: "subjects",
				Message:  fmt.Sprintf("subject %q is outside your task's scope; ask for subjects within it, or leave subjects out", s),
				Metadata: map[string]string{"subject": s}}
		}
	}
	var tables []whence.Table
	if len(r.Tables) == 0 {
		for _, t := range state.Tables {
			if scope.AllowsTable(t.Name()) {
				tables = append(tables, t)
			}
		}
		return tables, nil
	}
	for _, name := range r.Tables {
		t, err := table(state, scope, name, "tables")
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(tables, func(o whence.Table) bool { return o.ID == t.ID }) {
			tables = append(tables, t)
		}
	}
	return tables, nil
}

func table(state whence.State, scope authz.Scope, name whence.TableName, field string) (whence.Table, error) {
	if !scope.AllowsTable(name) {
		return whence.Table{}, &whence.Error{Kind: whence.ErrDenied, Reason: "TABLE_OUT_OF_SCOPE", Field: field,
			Message:  fmt.Sprintf("table %q is outside your task's scope; ask for a table within it", name),
			Metadata: map[string]string{"table": string(name)}}
	}
	t, ok := state.Table(name)
	if !ok {
		return t, &whence.Error{Kind: whence.ErrNotFound, Reason: "TABLE_NOT_REGISTERED", Field: field,
			Message: fmt.Sprintf("no table %q is registered; names are written \"source.schema.name\", "+
				"and a table must be registered before it can be asked", name),
			Metadata: map[string]string{"table": string(name)}}
	}
	return t, nil
}

// positions are what a request waits for.
type positions struct {
	sources map[string]whence.LSN
	notes   []uint64 // transactions of the memory database
}

// atLeast reads a position token for the sources that are asked.
func atLeast(token string, asked []string) (p positions, err error) {
	want := map[string]whence.LSN{}
	p.sources = want
	if token == "" {
		return p, nil
	}
	for part := range strings.SplitSeq(token, ",") {
		source, text, named := strings.Cut(strings.TrimSpace(part), "@")
		if named && source == whence.NotesSource {
			xid, err := strconv.ParseUint(text, 10, 63)
			if err != nil {
				return p, badToken("%q is not a token that a write returned", part)
			}
			p.notes = append(p.notes, xid)
			continue
		}
		if !named {
			if len(asked) != 1 {
				return p, badToken("name the source, as in \"source@16/B374D848\", for the query concerns %d sources", len(asked))
			}
			source, text = asked[0], strings.TrimSpace(part)
		}
		lsn, err := whence.ParseLSN(text)
		if err != nil {
			return p, badToken("%v", err)
		}
		if !slices.Contains(asked, source) {
			return p, badToken("the query does not concern a source %q", source)
		}
		want[source] = max(want[source], lsn)
	}
	return p, nil
}

func badToken(format string, args ...any) error {
	return whence.Invalid("consistency.atLeast", "TOKEN_INVALID", "consistency.atLeast: "+fmt.Sprintf(format, args...))
}
