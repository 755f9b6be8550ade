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
// in a grant, in a request for a task, in the task's row. It is a wish or a record
// and gives no authority by itself. The zero value denies everything.
type ScopeSpec struct {
	Type        string             `json:"type,omitempty"` // "whence"; may be left out where nothing else can stand
	AllTables   bool               `json:"allTables,omitempty"`
	Tables      []whence.TableName `json:"tables,omitempty"`
	AllSubjects bool               `json:"allSubjects,omitempty"`
	Subjects    []string           `json:"subjects,omitempty"`
	// DenyTables and DenySubjects are taken from all tables and all subjects. What is
	// both named and denied is refused.
	DenyTables   []whence.TableName `json:"denyTables,omitempty"`
	DenySubjects []string           `json:"denySubjects,omitempty"`
	// Filter holds attributes that a row must have, each with exactly this value;
	// empty leaves rows unfiltered.
	Filter  map[string]string `json:"filter,omitempty"`
	Actions []Action          `json:"actions,omitempty"`
	// Tier is the highest of the registered actions that may be executed; empty is TierRead.
	Tier Tier `json:"tier,omitempty"`
	// TopK is the most hits that one query may ask for; 0 sets no bound of its own.
	TopK int `json:"topK,omitempty"`
}

const (
	maxScopeParts = 1000 // tables, subjects or filter attributes
	maxTopK       = 200
)

// Validate tells what is wrong with a spec, as an ErrInvalid about one field.
func (s ScopeSpec) Validate() error {
	switch {
	case s.Type != "" && s.Type != DetailType:
		return whence.Invalid("type", "SCOPE_INVALID", `the type of a scope is "whence"`)
	case s.AllTables && len(s.Tables) > 0:
		return whence.Invalid("tables", "SCOPE_INVALID", "name tables or set allTables, not both")
	case s.AllSubjects && len(s.Subjects) > 0:
		return whence.Invalid("subjects", "SCOPE_INVALID", "name subjects or set allSubjects, not both")
	case len(s.Tables) > 0 && len(s.DenyTables) > 0:
		return whence.Invalid("denyTables", "SCOPE_INVALID", "tables are denied where allTables is set; of named ones, leave out those that are not meant")
	case len(s.Subjects) > 0 && len(s.DenySubjects) > 0:
		return whence.Invalid("denySubjects", "SCOPE_INVALID", "subjects are denied where allSubjects is set; of named ones, leave out those that are not meant")
	case s.Tier != "" && !s.Tier.Valid():
		return whence.Invalid("tier", "SCOPE_INVALID", fmt.Sprintf("there is no tier %q; there are %s", s.Tier, list(tiers)))
	case s.TopK < 0 || s.TopK > maxTopK:
		return whence.Invalid("topK", "SCOPE_INVALID", fmt.Sprintf("topK is 1 to %d hits, or left out", maxTopK))
	case max(len(s.Tables), len(s.Subjects), len(s.DenyTables), len(s.DenySubjects), len(s.Filter)) > maxScopeParts:
		return whence.Invalid("", "SCOPE_INVALID", fmt.Sprintf("a scope holds at most %d tables, subjects or attributes", maxScopeParts))
	}
	for _, t := range slices.Concat(s.Tables, s.DenyTables) {
		_, _, relation, ok := t.Parts()
		switch {
		case relation == "*" || t == "*":
			return whence.Invalid("tables", "SCOPE_INVALID", "a scope has no wildcards: name each table, or set allTables")
		case (!ok && t != whence.NotesTable) || !plain(string(t)):
			return whence.Invalid("tables", "SCOPE_INVALID",
				fmt.Sprintf(`%q is not a registered table's name: write "source.schema.name"`, t))
		}
	}
	for _, v := range slices.Concat(s.Subjects, s.DenySubjects) {
		if !datum(v) || v == "*" {
			return whence.Invalid("subjects", "SCOPE_INVALID", fmt.Sprintf(
				"a subject is text of 1 to %d bytes without control characters; for every subject set allSubjects", maxNameLength))
		}
	}
	for k, v := range s.Filter {
		if !datum(k) || (v != "" && !datum(v)) {
			return whence.Invalid("filter", "SCOPE_INVALID", fmt.Sprintf(
				"a filter takes attribute names and values of at most %d bytes without control characters", maxNameLength))
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
	tables   part[whence.TableName]
	subjects part[string]
	filter   map[string]string
	actions  set[Action]
	tier     Tier
	topK     int // 0: no bound
}

func newScope(s ScopeSpec) (Scope, error) {
	if err := s.Validate(); err != nil {
		return Scope{}, err
	}
	if s.Tier == "" {
		s.Tier = TierRead
	}
	return Scope{
		tables:   part[whence.TableName]{s.AllTables, newSet(s.Tables), newSet(s.DenyTables)}.normal(),
		subjects: part[string]{s.AllSubjects, newSet(s.Subjects), newSet(s.DenySubjects)}.normal(),
		filter:   maps.Clone(s.Filter), actions: newSet(s.Actions), tier: s.Tier, topK: s.TopK,
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
		AllTables: s.tables.all, Tables: s.tables.named.sorted(), DenyTables: s.tables.denied.sorted(),
		AllSubjects: s.subjects.all, Subjects: s.subjects.named.sorted(), DenySubjects: s.subjects.denied.sorted(),
		Filter: maps.Clone(s.filter), Actions: s.actions.sorted(), Tier: s.tier, TopK: s.topK,
	}
}

// Tables returns the tables, sorted; with all set, every table but those denied, and no names.
func (s Scope) Tables() (all bool, names, denied []whence.TableName) {
	return s.tables.all, s.tables.named.sorted(), s.tables.denied.sorted()
}

// AllowsTable tells whether rows of the table are within the scope.
func (s Scope) AllowsTable(t whence.TableName) bool { return s.tables.allows(t) }

// Subjects returns the subjects, sorted; with all set, every subject but those
// denied, rows without one included, and no names.
func (s Scope) Subjects() (all bool, names, denied []string) {
	return s.subjects.all, s.subjects.named.sorted(), s.subjects.denied.sorted()
}

// AllowsSubject tells whether rows about the subject are within the scope. A row
// without a subject is within it only when every subject is.
func (s Scope) AllowsSubject(subject string) bool { return s.subjects.allows(subject) }

// Filter returns the attributes that a row must have, each with exactly this value.
func (s Scope) Filter() map[string]string { return maps.Clone(s.filter) }

// Allows tells whether the credential may do this at all.
func (s Scope) Allows(a Action) bool { return s.actions.has(a) }

// Tier is the highest tier of registered actions that may be executed.
func (s Scope) Tier() Tier { return s.tier }

// TopK is the most hits that a query may ask for; 0: as many as any query may.
func (s Scope) TopK() int { return s.topK }

// IsZero tells whether the scope is empty in every part.
func (s Scope) IsZero() bool {
	return s.tables.empty() && s.subjects.empty() && len(s.actions) == 0
}

// Narrow makes the scope that is asked for, which must lie within s in each part.
// What does not is refused as SCOPE_WIDENED, every part that exceeds named in the
// message and the metadata; nothing is cut down silently. s's own filter and what
// it denies must be repeated, for leaving them out would be asking for more rows.
func (s Scope) Narrow(want ScopeSpec) (Scope, error) {
	child, err := newScope(want)
	if err != nil {
		return Scope{}, err
	}
	over := map[string]string{}
	exceeds := func(part, names string) {
		if names != "" {
			over[part] = names
		}
	}
	exceeds("tables", child.tables.beyond(s.tables))
	exceeds("subjects", child.subjects.beyond(s.subjects))
	exceeds("actions", list(child.actions.minus(s.actions)))
	if !child.tier.Within(s.tier) {
		exceeds("tier", string(child.tier))
	}
	if s.topK > 0 && (child.topK == 0 || child.topK > s.topK) {
		exceeds("topK", fmt.Sprintf("must be at most %d", s.topK))
	}
	exceeds("filter", list(lacking(child.filter, s.filter)))
	if len(over) == 0 {
		return child, nil
	}
	return Scope{}, &whence.Error{Kind: whence.ErrDenied, Reason: "SCOPE_WIDENED", Metadata: over,
		Message: "the scope asked for is wider than your own (" + listParts(over) + "); ask for a part of your own scope"}
}

// lacking lists what a filter must repeat of another.
func lacking(filter, of map[string]string) (missing []string) {
	for k, v := range of {
		if got, ok := filter[k]; !ok || got != v {
			missing = append(missing, fmt.Sprintf("%s must be %q", k, v))
		}
	}
	slices.Sort(missing)
	return missing
}

func listParts(m map[string]string) string {
	var parts []string
	for _, part := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, part+": "+m[part])
	}
	return strings.Join(parts, "; ")
}

// part is a scope's tables or its subjects: all but the denied ones, or the named ones.
type part[T cmp.Ordered] struct {
	all           bool
	named, denied set[T]
}

// normal has denials only where there is something to take them from.
func (p part[T]) normal() part[T] {
	if !p.all {
		p.denied = nil
	}
	return p
}

func (p part[T]) allows(v T) bool {
	return p.all && !p.denied.has(v) || p.named.has(v)
}

func (p part[T]) empty() bool { return !p.all && len(p.named) == 0 }

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

func (s set[T]) plus(o set[T]) set[T] {
	both := maps.Clone(s)
	if both == nil {
		both = set[T]{}
	}
	maps.Copy(both, o)
	return both
}

func (s set[T]) minus(o set[T]) []T {
	return slices.DeleteFunc(s.sorted(), o.has)
}

// beyond lists what p allows and o does not, in words; empty: nothing.
func (p part[T]) beyond(o part[T]) string {
	var over []string
	switch {
	case p.all && !o.all:
		return "all"
	case p.all:
		for _, v := range o.denied.minus(p.denied) {
			over = append(over, fmt.Sprintf("%v must be denied", v))
		}
	default:
		for _, v := range p.named.sorted() {
			if !o.allows(v) {
				over = append(over, fmt.Sprint(v))
			}
		}
	}
	return list(over)
}

// and is what both allow.
func (p part[T]) and(o part[T]) part[T] {
	if p.all && o.all {
		return part[T]{all: true, denied: p.denied.plus(o.denied)}
	}
	if p.all {
		p, o = o, p
	}
	both := set[T]{}
	for v := range p.named {
		if o.allows(v) {
			both[v] = struct{}{}
		}
	}
	return part[T]{named: both}
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
