package ingest

import (
	"strings"

	"github.com/whence-db/whence"
)

// textColumns returns the columns that a table's text is rendered from.
func textColumns(t whence.Table) []string {
	if t.TextTemplate != "" {
		return whence.TemplateColumns(t.TextTemplate)
	}
	return t.TextColumns
}

// render turns a row into the text that is indexed: the template with its
// columns filled in, or else the text columns that are not blank, one a
// paragraph. A row whose text columns are all null or blank renders to nothing,
// whatever the template says around them.
func render(t whence.Table, row whence.Values) string {
	if t.TextTemplate == "" {
		return paragraphs(t.TextColumns, row)
	}
	var b strings.Builder
	blank := true
	rest := t.TextTemplate
	for {
		before, after, ok := strings.Cut(rest, "{{")
		name, next, closed := strings.Cut(after, "}}")
		if !ok || !closed {
			b.WriteString(rest)
			break
		}
		b.WriteString(before)
		if v := row[strings.TrimSpace(name)]; v != nil {
			b.WriteString(*v)
			blank = blank && strings.TrimSpace(*v) == ""
		}
		rest = next
	}
	if blank {
		return ""
	}
	return b.String()
}

func paragraphs(columns []string, row whence.Values) string {
	var kept []string
	for _, c := range columns {
		if v := row[c]; v != nil && strings.TrimSpace(*v) != "" {
			kept = append(kept, *v)
		}
	}
	return strings.Join(kept, "\n\n")
}
