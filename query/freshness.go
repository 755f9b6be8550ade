package query

import (
	"slices"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/index"
)

// judge says how far a candidate can be relied on. What Whence knows to be newer
// makes it STALE; what Whence cannot know makes it UNKNOWN; all reasons are
// given, and STALE, which is certain, beats UNKNOWN. Behind is negative when
// nobody knows.
func judge(c index.Candidate, t whence.Table, state whence.State) whence.Freshness {
	var stale []whence.FreshnessReason
	switch {
	case c.Past && c.Deleted:
		stale = append(stale, whence.SourceDeleted)
	case c.Past:
		stale = append(stale, whence.SourceChanged)
	case c.Superseded || !c.Embedded && !c.OtherSpace:
		stale = append(stale, whence.SourceChanged)
	}
	if !c.Embedded && c.OtherSpace {
		stale = append(stale, whence.ModelChanged)
	}
	if c.Definition < t.Definition {
		stale = append(stale, whence.DefinitionChanged)
	}
	return combine(stale, judgeTable(t, state))
}

// judgeRecord is judge for a whole record.
func judgeRecord(r index.Record, t whence.Table, state whence.State) whence.Freshness {
	var stale []whence.FreshnessReason
	switch {
	case r.Deleted:
		stale = append(stale, whence.SourceDeleted)
	case len(r.Missing) > 0 || r.Embedded < r.Chunks && !r.OtherSpace:
		stale = append(stale, whence.SourceChanged)
	case r.Embedded < r.Chunks:
		stale = append(stale, whence.ModelChanged)
	}
	if !r.Deleted && r.Definition < t.Definition {
		stale = append(stale, whence.DefinitionChanged)
	}
	return combine(stale, judgeTable(t, state))
}

func combine(stale []whence.FreshnessReason, f whence.Freshness) whence.Freshness {
	if len(stale) > 0 {
		f.State = whence.Stale
		f.Reasons = append(stale, f.Reasons...)
	}
	return f
}

// lacking is the freshness of a row that could not be taken over whole: current
// or not, what is shown is not all of it.
func lacking(f whence.Freshness) whence.Freshness {
	if f.State != whence.Stale {
		f.State = whence.Unknown
	}
	f.Reasons = append(slices.Clone(f.Reasons), whence.RowSetAside)
	return f
}

// judgeTable says how far anything in a table can be relied on.
func judgeTable(t whence.Table, state whence.State) whence.Freshness {
	s, known := state.Sources[t.Source]
	var reasons []whence.FreshnessReason
	add := func(r whence.FreshnessReason) {
		if !slices.Contains(reasons, r) {
			reasons = append(reasons, r)
		}
	}
	switch t.State {
	case whence.TableLive:
	case whence.TableSchemaChanged:
		add(whence.SchemaChanged)
	case whence.TableBroken:
		add(whence.CaptureBroken)
	default: // its first rows are still on their way
		add(whence.CaptureLagging)
	}
	if s.Paused {
		add(whence.CapturePaused)
	}
	if s.Error != "" && !s.Retrying {
		add(whence.CaptureBroken)
	}
	if !known {
		s.Lag = -1
	}
	if s.Lag < 0 || s.Lag > t.FreshnessTarget {
		add(whence.CaptureLagging)
	}
	f := whence.Freshness{State: whence.Fresh, Reasons: reasons, Behind: s.Lag}
	if len(reasons) > 0 {
		f.State = whence.Unknown
	}
	return f
}
