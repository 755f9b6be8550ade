package ingest

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
)

// TableSpec is how a table is to be captured.
type TableSpec struct {
	Source           string
	Table            string        // "schema.name" in the source
	TextColumns      []string      // rendered one a paragraph; either these or the template
	TextTemplate     string        // "{{title}}: {{body}}"
	SubjectColumn    string        // whom a row is about; optional
	TimeColumn       string        // when it happened, of type date or timestamp; default: the commit time
	AttributeColumns []string      // to filter by; optional
	HalfLife         time.Duration // of recency; default 30 days
	FreshnessTarget  time.Duration // the largest capture lag of a FRESH hit; default 10 s
	OnDelete         whence.OnDelete
	VersionRetention time.Duration // how long a version is kept after the next; default for ever
	Language         string        // of the texts, one of whence.Languages; default English
}

const (
	defaultHalfLife  = 720 * time.Hour
	minimumHalfLife  = time.Second
	maximumHalfLife  = 100 * 365 * 24 * time.Hour
	defaultFreshness = 10 * time.Second
	minimumFreshness = time.Second
	maximumFreshness = 365 * 24 * time.Hour
	minimumRetention = time.Second
	maximumRetention = 100 * 365 * 24 * time.Hour
	maximumTemplate  = 8 << 10
	maximumColumns   = 200
)

// table checks all that can be checked without the source and returns the
// definition, defaults filled in.
func (s TableSpec) table() (whence.Table, error) {
	schema, relation, err := whence.ParseRelation(s.Table)
	if err == nil && (!utf8.ValidString(s.Table) || strings.ContainsRune(s.Table, 0)) {
		err = fmt.Errorf("%q holds what no name in a database can", s.Table)
	}
	if err != nil {
		return whence.Table{}, whence.Invalid("table", "TABLE_NAME_INVALID", err.Error())
	}
	t := whence.Table{
		Source: s.Source, Schema: schema, Relation: relation,
		TextColumns: orNone(s.TextColumns), TextTemplate: s.TextTemplate, SubjectColumn: s.SubjectColumn, TimeColumn: s.TimeColumn,
		AttributeColumns: orNone(s.AttributeColumns), HalfLife: s.HalfLife, FreshnessTarget: s.FreshnessTarget, OnDelete: s.OnDelete,
		VersionRetention: s.VersionRetention, Language: s.Language,
	}
	if t.HalfLife == 0 {
		t.HalfLife = defaultHalfLife
	}
	if t.FreshnessTarget == 0 {
		t.FreshnessTarget = defaultFreshness
	}
	if t.OnDelete == "" {
		t.OnDelete = whence.OnDeleteTombstone
	}
	if t.Language == "" {
		t.Language = whence.DefaultLanguage
	}
	switch {
	case len(t.TextColumns) == 0 && t.TextTemplate == "":
		return t, whence.Invalid("textColumns", "TEXT_REQUIRED", "name at least one column in textColumns, or give a textTemplate such as \"{{title}}: {{body}}\"")
	case len(t.TextColumns) > 0 && t.TextTemplate != "":
		return t, whence.Invalid("textTemplate", "TEXT_AMBIGUOUS", "give either textColumns or textTemplate, not both")
	case len(t.TextColumns)+len(t.AttributeColumns) > maximumColumns:
		return t, whence.Invalid("attributeColumns", "TOO_MANY_COLUMNS", fmt.Sprintf("at most %d columns can be captured", maximumColumns))
	case t.HalfLife < minimumHalfLife || t.HalfLife > maximumHalfLife:
		return t, whence.Invalid("halfLife", "HALF_LIFE_OUT_OF_RANGE", fmt.Sprintf("halfLife is %v: it must be from %v to 100 years", t.HalfLife, minimumHalfLife))
	case t.FreshnessTarget < minimumFreshness || t.FreshnessTarget > maximumFreshness:
		return t, whence.Invalid("freshnessTarget", "FRESHNESS_TARGET_OUT_OF_RANGE",
			fmt.Sprintf("freshnessTarget is %v: it must be from %v to a year", t.FreshnessTarget, minimumFreshness))
	case t.VersionRetention != 0 && (t.VersionRetention < minimumRetention || t.VersionRetention > maximumRetention):
		return t, whence.Invalid("versionRetention", "VERSION_RETENTION_OUT_OF_RANGE",
			fmt.Sprintf("versionRetention is %v: it must be from %v to 100 years; leave it out to keep versions for ever", t.VersionRetention, minimumRetention))
	case !slices.Contains(whence.Languages(), t.Language):
		e := whence.Invalid("language", "LANGUAGE_UNKNOWN", fmt.Sprintf("language is %q: it must be one of %s",
			t.Language, strings.Join(whence.Languages(), ", ")))
		e.Metadata = map[string]string{"languages": strings.Join(whence.Languages(), ",")}
		return t, e
	case t.OnDelete != whence.OnDeleteTombstone && t.OnDelete != whence.OnDeletePurge:
		return t, whence.Invalid("onDelete", "ON_DELETE_INVALID", fmt.Sprintf("onDelete is %q: it must be TOMBSTONE or PURGE", t.OnDelete))
	}
	for field, list := range map[string][]string{"textColumns": t.TextColumns, "attributeColumns": t.AttributeColumns} {
		for i, c := range list {
			if c == "" || slices.Contains(list[:i], c) {
				return t, whence.Invalid(field, "COLUMN_REPEATED", fmt.Sprintf("%s names the column %q twice or not at all", field, c))
			}
		}
	}
	return t, checkTemplate(t.TextTemplate)
}

func checkTemplate(template string) error {
	if template == "" {
		return nil
	}
	invalid := func(why string) error {
		return whence.Invalid("textTemplate", "TEMPLATE_INVALID", "textTemplate "+why+`: write columns in double braces, as in "{{title}}: {{body}}"`)
	}
	if len(template) > maximumTemplate {
		return invalid(fmt.Sprintf("is longer than %d bytes", maximumTemplate))
	}
	columns := 0
	for rest := template; ; columns++ {
		before, after, ok := strings.Cut(rest, "{{")
		if strings.Contains(before, "}}") {
			return invalid("closes a brace that it did not open")
		}
		if !ok {
			break
		}
		name, next, closed := strings.Cut(after, "}}")
		switch {
		case !closed:
			return invalid("does not close a brace")
		case strings.TrimSpace(name) == "" || strings.Contains(name, "{{"):
			return invalid(fmt.Sprintf("names no column in %q", "{{"+name+"}}"))
		}
		rest = next
	}
	if columns == 0 {
		return invalid("names no column")
	}
	return nil
}

// fit checks a definition against the live table and takes over its key.
func fit(t *whence.Table, in cdc.Inspection) error {
	t.KeyColumns = in.KeyColumns
	columns := make(map[string]cdc.Column, len(in.Columns))
	var names []string
	for _, c := range in.Columns {
		columns[c.Name] = c
		if !c.Generated {
			names = append(names, c.Name)
		}
	}
	check := func(field string, wanted ...string) error {
		for _, name := range wanted {
			if name == "" {
				continue
			}
			c, ok := columns[name]
			switch {
			case !ok:
				e := whence.Invalid(field, "COLUMN_NOT_FOUND", fmt.Sprintf("%s has no column %q; it has: %s",
					t.Name(), name, strings.Join(names, ", ")))
				e.Metadata = map[string]string{"column": name, "columns": strings.Join(names, ",")}
				return e
			case c.Generated:
				return whence.Invalid(field, "COLUMN_GENERATED", fmt.Sprintf(
					"the column %q of %s is generated, and the source does not send generated values: name the columns that it is made from", name, t.Name()))
			}
		}
		return nil
	}
	if err := check("textColumns", t.TextColumns...); err != nil {
		return err
	}
	if err := check("textTemplate", whence.TemplateColumns(t.TextTemplate)...); err != nil {
		return err
	}
	if err := check("subjectColumn", t.SubjectColumn); err != nil {
		return err
	}
	if err := check("timeColumn", t.TimeColumn); err != nil {
		return err
	}
	if err := check("attributeColumns", t.AttributeColumns...); err != nil {
		return err
	}
	if err := check("table", t.KeyColumns...); err != nil {
		return err
	}
	if typ := columns[t.TimeColumn].Type; t.TimeColumn != "" && !timeType.MatchString(typ) {
		return whence.Invalid("timeColumn", "TIME_COLUMN_TYPE", fmt.Sprintf(
			"the column %q of %s is of type %s: the time column must be a date or a timestamp", t.TimeColumn, t.Name(), typ))
	}
	return nil
}

// timeType is how Postgres writes the types that hold a moment; an array of them
// begins alike.
var timeType = regexp.MustCompile(`^(date|timestamp(\(\d\))? with(out)? time zone)$`)

// sameDefinition tells whether a registration changes nothing.
func sameDefinition(a, b whence.Table) bool {
	return slices.Equal(a.KeyColumns, b.KeyColumns) && slices.Equal(a.TextColumns, b.TextColumns) &&
		a.TextTemplate == b.TextTemplate && a.SubjectColumn == b.SubjectColumn && a.TimeColumn == b.TimeColumn &&
		slices.Equal(a.AttributeColumns, b.AttributeColumns) && a.HalfLife == b.HalfLife &&
		a.FreshnessTarget == b.FreshnessTarget && a.OnDelete == b.OnDelete && a.VersionRetention == b.VersionRetention &&
		a.Language == b.Language
}

// sameCapture tells whether what is stored of a row stays the same; in which language
// it is indexed does not change that.
func sameCapture(a, b whence.Table) bool {
	a.HalfLife, a.FreshnessTarget, a.OnDelete, a.VersionRetention = b.HalfLife, b.FreshnessTarget, b.OnDelete, b.VersionRetention
	a.Language = b.Language
	return sameDefinition(a, b)
}

// orNone keeps an absent list from becoming null.
func orNone(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
