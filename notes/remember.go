package notes

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/ingest"
	"github.com/whence-db/whence/lineage"
)

// Limits of a note.
const (
	MaxText       = 65_536 // characters
	maxAttributes = 32
	maxName       = 63    // bytes of an attribute's name
	maxValue      = 4_096 // bytes of its value
	maxSubject    = 1_024 // bytes
	maxKey        = 256   // bytes
	maxEvidence   = 100   // answers and chunks that are named
	maxRests      = 256   // records that these were of
)

// Note is what an agent wants remembered.
type Note struct {
	Text        string
	Kind        whence.NoteKind // empty: free text
	Key         string          // a later note with the same key supersedes this one; empty: none does
	Subject     string          // whom or what it is about; empty: nobody in particular
	EventTime   time.Time       // zero: now
	Expires     time.Time       // zero: never
	Attributes  whence.Values
	DerivedFrom []string // ids of answers and chunks that the author was given
}

// Written says what has been written, once the transaction is committed.
type Written struct {
	Key       whence.Key
	Token     string  // for consistency.atLeast
	Unsettled []int64 // hand them to the index's Settle afterwards
}

// Remember writes a note in tx. What the caller's scope does not hold cannot be
// written; attributes that the scope demands are filled in.
func (s *Store) Remember(ctx context.Context, tx pgx.Tx, p *authz.Principal, n Note) (w Written, err error) {
	now, lsn, xid, err := s.Index.Moment(ctx, tx)
	if err != nil {
		return w, err
	}
	if n, err = n.check(p.Scope, now); err != nil {
		return w, err
	}
	rests, err := s.Lineage.Evidence(ctx, tx, p, n.DerivedFrom)
	if err != nil {
		return w, err
	}
	if err := restsOnTooMuch(rests); err != nil {
		return w, err
	}
	m, err := n.mutation(p, now, lsn, uint32(xid)) // the low half, as Postgres shows it
	if err != nil {
		return w, err
	}
	if err := s.Index.LockKey(ctx, tx, whence.NotesID, m.Key); err != nil {
		return w, err
	}
	ended, err := s.Index.RemoveEnded(ctx, tx, m.Key)
	if err != nil {
		return w, err
	}
	if err := s.erase(ctx, tx, ended); err != nil {
		return w, err
	}
	heads, err := s.Index.Heads(ctx, tx, whence.NotesID, []whence.Key{m.Key})
	if err != nil {
		return w, err
	}
	m.Head = heads[m.Key]
	evidence := make([]index.Evidence, len(rests))
	for i, r := range rests {
		evidence[i] = index.Evidence(r)
	}
	stored, err := s.Index.PutNote(ctx, tx, m, n.Expires, evidence)
	if err != nil {
		return w, err
	}
	return Written{Key: m.Key, Token: token(xid), Unsettled: stored.Unsettled}, s.Index.CountSaved(ctx, tx, stored.Saved)
}

func restsOnTooMuch(rests []lineage.Shown) error {
	records := map[int64]bool{}
	for _, r := range rests {
		records[r.RecordID] = true
	}
	if len(records) <= maxRests {
		return nil
	}
	return whence.Invalid("derivedFrom", "EVIDENCE_TOO_MUCH", fmt.Sprintf(
		"derivedFrom: the answers named showed %d records, and a note rests on at most %d; name the chunks that it was concluded from", len(records), maxRests))
}

// token names the transaction that wrote, which a snapshot either sees or not.
func token(xid uint64) string { return whence.NotesSource + "@" + strconv.FormatUint(xid, 10) }

// check refuses what cannot be a note of this scope, and fills in what is left out.
func (n Note) check(scope authz.Scope, now time.Time) (Note, error) {
	if !scope.AllowsTable(whence.NotesTable) {
		return n, &whence.Error{Kind: whence.ErrDenied, Reason: "TABLE_OUT_OF_SCOPE", Field: "table",
			Message:  fmt.Sprintf("table %q is outside your task's scope; work without notes, or ask for a task that has it", whence.NotesTable),
			Metadata: map[string]string{"table": string(whence.NotesTable)}}
	}
	switch {
	case strings.TrimSpace(n.Text) == "":
		return n, whence.Invalid("text", "TEXT_BLANK", "text must say what to remember")
	case utf8.RuneCountInString(n.Text) > MaxText:
		return n, whence.Invalid("text", "TEXT_TOO_LONG", fmt.Sprintf("text may have at most %d characters; write several notes", MaxText))
	case !clean(n.Text):
		return n, whence.Invalid("text", "TEXT_INVALID", "text must be UTF-8 without null characters")
	case len(n.Subject) > maxSubject || !clean(n.Subject):
		return n, whence.Invalid("subject", "SUBJECT_INVALID", fmt.Sprintf("subject must be UTF-8 of at most %d bytes without null characters", maxSubject))
	case len(n.Key) > maxKey || !clean(n.Key):
		return n, whence.Invalid("key", "KEY_INVALID", fmt.Sprintf("key must be UTF-8 of at most %d bytes without null characters", maxKey))
	case !n.Expires.IsZero() && !n.Expires.After(now):
		return n, whence.Invalid("expireTime", "EXPIRE_TIME_PAST", "expireTime must lie in the future; leave it out for a note without end")
	case len(n.DerivedFrom) > maxEvidence:
		return n, whence.Invalid("derivedFrom", "EVIDENCE_TOO_MUCH", fmt.Sprintf("derivedFrom names at most %d answers and chunks", maxEvidence))
	case !scope.AllowsSubject(n.Subject) && n.Subject == "":
		return n, &whence.Error{Kind: whence.ErrDenied, Reason: "SUBJECT_OUT_OF_SCOPE", Field: "subject",
			Message: "your task's scope is bound to subjects, so a note needs one of them: give subject"}
	case !scope.AllowsSubject(n.Subject):
		return n, &whence.Error{Kind: whence.ErrDenied, Reason: "SUBJECT_OUT_OF_SCOPE", Field: "subject",
			Message:  fmt.Sprintf("subject %q is outside your task's scope; write about subjects within it", n.Subject),
			Metadata: map[string]string{"subject": n.Subject}}
	}
	if n.Kind == "" {
		n.Kind = whence.NoteFreeText
	}
	if n.EventTime.IsZero() {
		n.EventTime = now
	}
	return n.attributed(scope)
}

// attributed checks the attributes and adds those that the scope demands.
func (n Note) attributed(scope authz.Scope) (Note, error) {
	if len(n.Attributes) > maxAttributes {
		return n, whence.Invalid("attributes", "ATTRIBUTES_TOO_MANY", fmt.Sprintf("a note has at most %d attributes", maxAttributes))
	}
	for name, v := range n.Attributes {
		switch {
		case name == "" || len(name) > maxName || !clean(name) || v != nil && (len(*v) > maxValue || !clean(*v)):
			return n, whence.Invalid("attributes", "ATTRIBUTE_INVALID", fmt.Sprintf(
				"attribute %q: a name has 1 to %d bytes and a value at most %d, both UTF-8 without null characters", name, maxName, maxValue))
		case slices.Contains(whence.NoteColumns(), name):
			return n, whence.Invalid("attributes", "ATTRIBUTE_RESERVED", fmt.Sprintf(
				"attribute %q: every note has a column of this name; choose another name", name))
		}
	}
	all := maps.Clone(n.Attributes)
	if all == nil {
		all = whence.Values{}
	}
	kind := string(n.Kind)
	for name, want := range scope.Filter() {
		have, given := all[name]
		if name == whence.NoteKindOf {
			have, given = &kind, true
		}
		if given && (have == nil || *have != want) || !given && slices.Contains(whence.NoteColumns(), name) {
			advice := "write notes with that value, or leave the attribute out"
			switch {
			case name == whence.NoteKindOf:
				advice = "write notes of that kind"
			case !given:
				advice = "no note can have that attribute, so none can be written in this task"
			}
			return n, &whence.Error{Kind: whence.ErrDenied, Reason: "ATTRIBUTE_OUT_OF_SCOPE", Field: "attributes",
				Message:  fmt.Sprintf("your task's scope is bound to %s = %q; %s", name, want, advice),
				Metadata: map[string]string{"attribute": name, "value": want}}
		}
		all[name] = &want
	}
	all[whence.NoteKindOf] = &kind
	n.Attributes = all
	return n, nil
}

// mutation writes the note as a state of a record.
func (n Note) mutation(p *authz.Principal, now time.Time, lsn whence.LSN, xid uint32) (index.Mutation, error) {
	notes := whence.Notes()
	id := n.id(p)
	key, err := whence.NewKey(notes.KeyColumns, whence.Values{whence.NoteID: &id})
	if err != nil {
		return index.Mutation{}, err
	}
	columns, err := json.Marshal(n.columns(p, id))
	if err != nil {
		return index.Mutation{}, err
	}
	attributes, err := json.Marshal(n.Attributes)
	if err != nil {
		return index.Mutation{}, err
	}
	m := index.Mutation{Table: &notes, Key: key, Columns: columns, Text: n.Text, Digest: whence.DigestOf(n.Text),
		EventTime: n.EventTime, Attributes: attributes, LSN: lsn, XID: &xid, CommitTime: now}
	if n.Subject != "" {
		m.Subject = &n.Subject
	}
	origin := whence.Origin{Source: notes.Source, Table: notes.Name(), Key: key, LSN: lsn, CommitTime: now,
		Columns: notes.TextColumns, EventTime: n.EventTime}
	for _, span := range ingest.Split(n.Text) {
		c, err := whence.NewChunk(origin, n.Text, span.Start, span.End)
		if err != nil {
			return m, err
		}
		m.Chunks = append(m.Chunks, c)
	}
	return m, nil
}

// columns are what the version keeps; the attributes stand beside the note's own.
func (n Note) columns(p *authz.Principal, id string) whence.Values {
	out := maps.Clone(n.Attributes)
	set := func(name, v string) {
		out[name] = nil
		if v != "" {
			out[name] = &v
		}
	}
	set(whence.NoteID, id)
	set(whence.NoteText, n.Text)
	set(whence.NoteKey, n.Key)
	set(whence.NoteSubject, n.Subject)
	set(whence.NoteEventTime, n.EventTime.UTC().Format(time.RFC3339Nano))
	expires := ""
	if !n.Expires.IsZero() {
		expires = n.Expires.UTC().Format(time.RFC3339Nano)
	}
	set(whence.NoteExpires, expires)
	set(whence.NoteTask, p.Task.String())
	set(whence.NoteAgent, p.Agent)
	set(whence.NoteUser, p.User)
	rests := ""
	if len(n.DerivedFrom) > 0 {
		b, _ := json.Marshal(n.DerivedFrom) // strings always can be
		rests = string(b)
	}
	set(whence.NoteRestsOn, rests)
	return out
}

// id is random, or made from the key. A key means the same note only to writers of
// one tenant, about one subject, whose scopes are bound to the same attributes: so
// nobody learns from a key, or overwrites, what they may not see.
func (n Note) id(p *authz.Principal) string {
	if n.Key == "" {
		return uuid.Must(uuid.NewV7()).String()
	}
	b, _ := json.Marshal([]any{p.Tenant, n.Subject, p.Scope.Filter(), n.Key}) // map keys are written in order
	sum := sha256.Sum256(b)
	id := uuid.UUID(sum[:16])
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // version 8: made by rules of our own
	return id.String()
}

func clean(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }
