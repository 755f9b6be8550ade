package ingest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/whence-db/whence"
)

// What the memory database takes, with room to spare. Whatever is larger would
// fail each time that it is sent, and with it everything after it.
const (
	// maximumRow bounds a row's values together: a jsonb holds 256 MB, and a
	// statement 1 GB of JSON, where one byte of a value may take six.
	maximumRow = 128 << 20
	// maximumText bounds the text that is indexed: a chunk costs about a hundred
	// times its text in memory on its way, and all of a row's go at once.
	maximumText = 16 << 20
	// maximumCopies bounds the attributes of a row's chunks together: each has
	// them all.
	maximumCopies = 64 << 20
	// maximumSubject and maximumKey fit an index entry, the key also beside its
	// table's name and an answer's id.
	maximumSubject = 2000
	maximumKey     = 2400
	// maximumWrite bounds what is gathered before it is written, but for a single row.
	maximumWrite = 64 << 20
	// maximumRead bounds what is read of a slice's rows, but for a single row; on its
	// way it takes several times as much memory.
	maximumRead = 4 << 20
)

// lacking gathers what of a row does not fit.
type lacking struct {
	whys []string
	lost []string // columns that are not stored
}

func (l *lacking) add(format string, args ...any) {
	l.whys = append(l.whys, fmt.Sprintf(format, args...))
}

// String says what the row lacks and what to do; it is empty when that is nothing.
func (l *lacking) String() string {
	if len(l.whys) == 0 {
		return ""
	}
	return "the row is kept, but " + strings.Join(l.whys, ", and ") + ": make it smaller and write it again, or register the table without that column"
}

// columns leaves the largest values out until the rest can be stored. They are
// absent then, not null: an update that does not repeat them must not take over
// a null.
func (l *lacking) columns(row whence.Values) whence.Values {
	size := row.Size()
	if size <= maximumRow {
		return row
	}
	row = maps.Clone(row)
	names := slices.SortedFunc(maps.Keys(row), func(a, b string) int { return length(row[b]) - length(row[a]) })
	for _, name := range names {
		if size <= maximumRow {
			break
		}
		l.add("its column %q with %d bytes is not stored, for a row may have %d", name, length(row[name]), maximumRow)
		l.lost = append(l.lost, name)
		size -= length(row[name])
		delete(row, name)
	}
	return row
}

func length(v *string) int {
	if v == nil {
		return 0
	}
	return len(*v)
}

// missing is about values that no copy will bring: the row was set aside when
// they came, and this change did not repeat them.
func (l *lacking) missing(complete bool, names []string) {
	if complete && len(names) > 0 {
		l.add("the values of %s were left out earlier and did not come again with its last change", strings.Join(names, ", "))
	}
}

func (l *lacking) subject(v *string) *string {
	if length(v) <= maximumSubject {
		return v
	}
	l.add("its subject has %d bytes, of which %d can be stored, and is ignored", len(*v), maximumSubject)
	return nil // then only who may see every subject sees it
}

func (l *lacking) time() {
	l.add("its time is none that can be read, and its commit time stands for it")
}

// text renders what is searched; a row that lacks some of its text has none.
func (l *lacking) text(t *capturedTable, row whence.Values) string {
	if slices.ContainsFunc(l.lost, func(name string) bool { return slices.Contains(t.text, name) }) {
		return ""
	}
	text := render(t.Table, row)
	if len(text) > maximumText {
		l.add("its text has %d bytes, of which %d can be indexed, and is not searchable", len(text), maximumText)
		return ""
	}
	return text
}

// attributes takes them off a row whose chunks cannot all carry them. Then only
// who needs none of them finds it.
func (l *lacking) attributes(attributes []byte, chunks int) []byte {
	if len(attributes)*max(1, chunks) <= maximumCopies {
		return attributes
	}
	l.add("its attributes with %d bytes are too large beside a text of %d chunks and are ignored", len(attributes), chunks)
	return nil
}
