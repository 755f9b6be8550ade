package whence

// SourceState is what a query must know of a source to judge a hit's freshness.
type SourceState struct {
	Watermark
	Paused   bool
	Error    string // why capture is broken or trying again; empty while it runs
	Retrying bool   // the error may mend itself
}

// State is the registry as one transaction sees it.
type State struct {
	Tables  []Table
	Sources map[string]SourceState
}

// Table finds a registered table by its full name.
func (s State) Table(name TableName) (Table, bool) {
	for _, t := range s.Tables {
		if t.Name() == name {
			return t, true
		}
	}
	return Table{}, false
}

// LiveRow is a row as its source holds it at this moment.
type LiveRow struct {
	State      []byte // equal to a record's exactly when no registered column differs
	Text       string // as it would be rendered now
	Subject    *string
	Attributes Values
}

// RowsOf names rows of one table.
type RowsOf struct {
	Table Table
	Keys  []Key
}
