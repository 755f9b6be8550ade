package whence

import "time"

const (
	// NotesSource is the name under which notes stand beside the sources; no
	// source can be called so.
	NotesSource = "whence"
	// NotesTable is the built-in table of notes.
	NotesTable TableName = "whence.notes"
	// NotesID is its ID; registered tables have positive ones.
	NotesID int32 = -1
)

// Columns of a note. Its attributes stand beside them, so they cannot be called so.
const (
	NoteID        = "id"
	NoteText      = "text"
	NoteKindOf    = "kind"
	NoteKey       = "key"
	NoteSubject   = "subject"
	NoteEventTime = "event_time"
	NoteExpires   = "expires_at"
	NoteTask      = "task"
	NoteAgent     = "agent"
	NoteUser      = "user"
	NoteRestsOn   = "derived_from" // a JSON array of what its author named
)

// NoteColumns lists them.
func NoteColumns() []string {
	return []string{NoteID, NoteText, NoteKindOf, NoteKey, NoteSubject, NoteEventTime, NoteExpires, NoteTask, NoteAgent, NoteUser, NoteRestsOn}
}

// NoteKind sorts notes by what they say.
type NoteKind string

const (
	// NoteFact holds until it is corrected.
	NoteFact NoteKind = "FACT"
	// NoteEvent happened at a time.
	NoteEvent NoteKind = "EVENT"
	// NotePreference is what somebody wants or likes.
	NotePreference NoteKind = "PREFERENCE"
	// NoteProcedure is how something is done.
	NoteProcedure NoteKind = "PROCEDURE"
	// NoteFreeText is anything else.
	NoteFreeText NoteKind = "FREE_TEXT"
)

// Notes describes the table of notes as a registered table is described. What is
// forgotten leaves nothing behind.
func Notes() Table {
	return Table{
		ID: NotesID, Source: NotesSource, Relation: "notes",
		KeyColumns: []string{NoteID}, TextColumns: []string{NoteText}, SubjectColumn: NoteSubject, TimeColumn: NoteEventTime,
		AttributeColumns: []string{NoteKindOf}, HalfLife: 30 * 24 * time.Hour, FreshnessTarget: 30 * time.Second, Language: DefaultLanguage,
		OnDelete: OnDeletePurge, Definition: 1, State: TableLive, CoveredFrom: time.Unix(0, 0), // no note is missed
	}
}

// Gone names versions of a record whose words are to be nowhere any more.
type Gone struct {
	Table    TableName
	Key      Key
	RecordID int64
	Below    int32 // versions before this one
}
