package query

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/index"
)

// Note is who wrote a note, and what they said of it.
type Note struct {
	Kind              whence.NoteKind
	Key               string // empty: none
	Task, Agent, User string
	Expires           time.Time // zero: never
	DerivedFrom       []string  // as its author named it
}

func noteOf(columns whence.Values) *Note {
	get := func(name string) string {
		if v := columns[name]; v != nil {
			return *v
		}
		return ""
	}
	out := &Note{Kind: whence.NoteKind(get(whence.NoteKindOf)), Key: get(whence.NoteKey), Task: get(whence.NoteTask),
		Agent: get(whence.NoteAgent), User: get(whence.NoteUser)}
	if at := get(whence.NoteExpires); at != "" {
		out.Expires, _ = time.Parse(time.RFC3339Nano, at) // written by us in that form
	}
	if rests := get(whence.NoteRestsOn); rests != "" {
		_ = json.Unmarshal([]byte(rests), &out.DerivedFrom) // written by us as a list of strings
	}
	return out
}

// rested is the freshness of a note given that of its evidence.
func rested(f whence.Freshness, n index.Note) whence.Freshness {
	if n.Changed {
		f = combine([]whence.FreshnessReason{whence.EvidenceChanged}, f)
	}
	if n.Hidden {
		if f.State == whence.Fresh {
			f.State = whence.Unknown
		}
		f.Reasons = append(slices.Clone(f.Reasons), whence.EvidenceOutOfScope)
	}
	return f
}

// notes reads what the candidates that are notes say of themselves.
func (e *Engine) notes(ctx context.Context, tx pgx.Tx, scope authz.Scope, state whence.State, found []index.Candidate) (map[int64]index.Note, error) {
	versions := map[int64]int32{}
	for _, c := range found {
		if c.TableID == whence.NotesID {
			versions[c.RecordID] = c.Version
		}
	}
	return e.Index.Notes(ctx, tx, scope, state.Tables, versions)
}

// verifyNotes compares notes with what is in the memory database now, which is
// where they come from.
func (e *Engine) verifyNotes(ctx context.Context, hits []Hit) error {
	var ids []int64
	for _, h := range hits {
		if h.Note != nil {
			ids = append(ids, h.RecordID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	var now map[int64]int32
	err := e.inSnapshot(ctx, func(tx pgx.Tx) (err error) {
		now, err = e.Index.HeadVersions(ctx, tx, ids)
		return err
	})
	if err != nil {
		return err
	}
	for i := range hits {
		h := &hits[i]
		if h.Note == nil {
			continue
		}
		version, there := now[h.RecordID]
		switch {
		case !there:
			h.Freshness = outdated(h.Freshness, whence.SourceDeleted)
		case version != h.Origin.Version:
			h.Freshness = outdated(h.Freshness, whence.SourceChanged)
		case !slices.Contains(h.Freshness.Reasons, whence.EvidenceChanged) && !slices.Contains(h.Freshness.Reasons, whence.EvidenceOutOfScope):
			h.Freshness.State, h.Freshness.Reasons = whence.Verified, nil
		}
	}
	return nil
}

// NoteVersion reads what one version of a note said, as a transaction sees it; only
// its words, its author's account of it and its attributes are set. A version that
// is gone has none.
func (e *Engine) NoteVersion(ctx context.Context, tx pgx.Tx, scope authz.Scope, key whence.Key, version int32) (r Record, err error) {
	found, _, err := e.Index.Versions(ctx, tx, scope, whence.Notes(), key, 1, strconv.FormatInt(int64(version)+1, 10))
	if err != nil || len(found) == 0 || found[0].Version != version {
		return r, err
	}
	v := found[0]
	r.LSN, r.Text, r.Columns, r.Subject = v.LSN, v.Text, v.Columns, v.Columns[whence.NoteSubject]
	r.Attributes, r.Note = noteAttributes(v.Columns), noteOf(v.Columns)
	return r, nil
}

// noteAttributes are what stands in a version beside the note's own columns, and
// its kind.
func noteAttributes(columns whence.Values) whence.Values {
	out := whence.Values{}
	for name, v := range columns {
		if name == whence.NoteKindOf || !slices.Contains(whence.NoteColumns(), name) {
			out[name] = v
		}
	}
	return out
}
