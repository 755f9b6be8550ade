package authz

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/whence-db/whence"
)

// DetailType is the type of the authorization_details that Whence understands (RFC 9396).
const DetailType = "whence"

// ScopeSpec is a scope as it is written down: in a token's authorization_details,
// in a request for a task, in the task's row. It is a wish or a record and gives
// no authority by itself. The zero value denies everything.
type ScopeSpec struct {
	Type        string             `json:"type,omitempty"` // "whence"; may be left out where nothing else can stand
	AllTables   bool               `json:"allTables,omitempty"`
	Tables      []whence.TableName `json:"tables,omitempty"`
	AllSubjects bool               `json:"allSubjects,omitempty"`
	Subjects    []string           `json:"subjects,omitempty"`
	// Filter holds attributes that a row must have, each with exactly this value;
	// empty leaves rows unfiltered.
	Filter  map[string]string `json:"filter,omitempty"`
	Actions []Action          `json:"actions,omitempty"`
}

const maxScopeParts = 1000 // tables, subjects or filter attributes

// Validate tells what is wrong with a spec, as an ErrInvalid about one field.
func (s ScopeSpec) Validate() error {
	switch {
	case s.Type != "" && s.Type != DetailType:
		return whence.Invalid("type", "SCOPE_INVALID", `the type of a scope is "whence"`)
	case s.AllTables && len(s.Tables) > 0:
		return whence.Invalid("tables", "SCOPE_INVALID", "name tables or set allTables, not both")
	case s.AllSubjects && len(s.Subjects) > 0:
		return whence.Invalid("subjects", "SCOPE_INVALID", "name subjects or set allSubjects, not both")
	case len(s.Tables) > maxScopeParts || len(s.Subjects) > maxScopeParts || len(s.Filter) > maxScopeParts:
		return whence.Invalid("", "SCOPE_INVALID", fmt.Sprintf("a scope holds at most %d tables, subjects or attributes", maxScopeParts))
	}
	for _, t := range s.Tables {
		if _, _, _, ok := t.Parts(); (!ok && t != whence.NotesTable) || !plain(string(t)) {
			return whence.Invalid("tables", "SCOPE_INVALID",
				fmt.Sprintf(`%q is not a registered table's name: write "source.schema.name"`, t))
		}
	}
	for _, v := range s.Subjects {
		if !plain(v) {
			return whence.Invalid("subjects", "SCOPE_INVALID", fmt.Sprintf(
				"a subject is text of 1 to %d bytes in form NFC without control or invisible characters; for every subject set allSubjects", maxNameLength))
		}
	}
	for k, v := range s.Filter {
		if !plain(k) || (v != "" && !plain(v)) {
			return whence.Invalid("filter", "SCOPE_INVALID", fmt.Sprintf(
				"a filter takes attribute names and values of at most %d bytes in form NFC without control or invisible characters", maxNameLength))
		}
	}
	for _, a := range s.Actions {
		if !slices.Contains(Actions(), a) {
			return whence.Invalid("actions", "SCOPE_INVALID", fmt.Sprintf("there is no action %q; there are %s", a, list(Actions())))
		}
	}
	return nil
}

// Scope is what a credential may touch. Only this package makes one that allows
// anything; the zero value denies everything. Scopes do not change and may be
// shared between goroutines.
type Scope struct {
	allTables, allSubjects bool
	tables                 set[whence.TableName]
	subjects               set[string]
	filter                 map[string]string
	actions                set[Action]
}

func newScope(s ScopeSpec) (Scope, error) {
	if err := s.Validate(); err != nil {
		return Scope{}, err
	}
	return Scope{
		allTables: s.AllTables, tables: newSet(s.Tables),
		allSubjects: s.AllSubjects, subjects: newSet(s.Subjects),
		filter: maps.Clone(s.Filter), actions: newSet(s.Actions),
	}, nil
}

// mustScope is for scopes that the code itself writes down.
func mustScope(spec ScopeSpec) Scope {
	s, err := newScope(spec)
	if err != nil {
		panic(err)
	}
	return s
}

// Spec writes the scope down, each list sorted.
func (s Scope) Spec() ScopeSpec {
	return ScopeSpec{
		Type:      DetailType,
		AllTables: s.allTables, Tables: s.tables.sorted(),
		AllSubjects: s.allSubjects, Subjects: s.subjects.sorted(),
		Filter: maps.Clone(s.filter), Actions: s.actions.sorted(),
	}
}

// Tables returns the tables, sorted; with all set, every table and no names.
func (s Scope) Tables() (all bool, names []whence.TableName) { return s.allTables, s.tables.sorted() }

// AllowsTable tells whether rows of the table are within the scope.
func (s Scope) AllowsTable(t whence.TableName) bool { return s.allTables || s.tables.has(t) }

// Subjects returns the subjects, sorted; with all set, every subject, rows
// without one included, and no names.
func (s Scope) Subjects() (all bool, names []string) { return s.allSubjects, s.subjects.sorted() }

// AllowsSubject tells whether rows about the subject are within the scope. A row
// without a subject is within it only when every subject is.
func (s Scope) AllowsSubject(subject string) bool { return s.allSubjects || s.subjects.has(subject) }

// Filter returns the attributes that a row must have, each with exactly this value.
func (s Scope) Filter() map[string]string { return maps.Clone(s.filter) }

// Allows tells whether the credential may do this at all.
func (s Scope) Allows(a Action) bool { return s.actions.has(a) }

// IsZero tells whether the scope is empty in every part.
func (s Scope) IsZero() bool {
	return !s.allTables && !s.allSubjects && len(s.tables)+len(s.subjects)+len(s.actions) == 0
}

// Narrow makes the scope that is asked for, which must lie within s in each part.
// What does not is refused as SCOPE_WIDENED, every part that exceeds named in the
// message and the metadata; nothing is cut down silently. s's own filter must be
// repeated, for leaving it out would be asking for more rows.
func (s Scope) Narrow(want ScopeSpec) (Scope, error) {
	child, err := newScope(want)
	if err != nil {
		return Scope{}, err
	}
	over := map[string]string{}
	exceeds := func(part string, all bool, names string) {
		if all {
			names = "all"
		}
		if names != "" {
			over[part] = names
		}
	}
	if !s.allTables {
		exceeds("tables", child.allTables, list(child.tables.minus(s.tables)))
	}
	if !s.allSubjects {
		exceeds("subjects", child.allSubjects, list(child.subjects.minus(s.subjects)))
	}
	exceeds("actions", false, list(child.actions.minus(s.actions)))
	var missing []string
	for k, v := range s.filter {
		if got, ok := child.filter[k]; !ok || got != v {
			missing = append(missing, fmt.Sprintf("%s must be %q", k, v))
		}
	}
	slices.Sort(missing)
	exceeds("filter", false, list(missing))
	if len(over) == 0 {
		return child, nil
	}
	var parts []string
	for _, part := range slices.Sorted(maps.Keys(over)) {
		parts = append(parts, part+": "+over[part])
	}
	return Scope{}, &whence.Error{Kind: whence.ErrDenied, Reason: "SCOPE_WIDENED", Metadata: over,
		Message: "the scope asked for is wider than your own (" + strings.Join(parts, "; ") + "); ask for a part of your own scope"}
}

// set is a set of strings; nil is empty.
type set[T cmp.Ordered] map[T]struct{}

func newSet[T cmp.Ordered](vs []T) set[T] {
	if len(vs) == 0 {
		return nil
	}
	s := make(set[T], len(vs))
	for _, v := range vs {
		s[v] = struct{}{}
	}
	return s
}

func (s set[T]) has(v T) bool { _, ok := s[v]; return ok }

func (s set[T]) sorted() []T { return slices.Sorted(maps.Keys(s)) }

func (s set[T]) minus(o set[T]) []T {
	return slices.DeleteFunc(s.sorted(), o.has)
}

// list joins names for a message; a long list is cut, and says so.
func list[T ~string](vs []T) string {
	const most = 10
	var names []string
	for i, v := range vs {
		if i == most {
			names = append(names, fmt.Sprintf("and %d more", len(vs)-most))
			break
		}
		names = append(names, string(v))
	}
	return strings.Join(names, ", ")
}
