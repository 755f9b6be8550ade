package mcp

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// page is a text for a model. What was remembered is quoted, each line behind a mark,
// so that no text of a row can pass for a line of ours.
type page struct{ strings.Builder }

func (p *page) line(format string, args ...any) {
	fmt.Fprintf(p, format+"\n", args...)
}

func (p *page) quote(text string) {
	for l := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		p.line("   > %s", strings.Map(visible, l))
	}
}

// visible takes away what ends a line for some readers and not for others.
func visible(r rune) rune {
	switch r {
	case '\r', '\v', '\f', '\u0085', '\u2028', '\u2029':
		return ' '
	}
	return r
}

func (p *page) end(b *v1.Budget) string {
	if b != nil {
		p.line("%s", budget(b))
	}
	return strings.TrimRight(p.String(), "\n")
}

func budget(b *v1.Budget) string {
	m := b.GetCalls()
	if m.Limit == nil {
		return fmt.Sprintf("Budget: %d calls left.", m.GetRemaining())
	}
	return fmt.Sprintf("Budget: %d of %d calls left.", m.GetRemaining(), m.GetLimit())
}

// plain is an enum's value without its type's prefix.
func plain(value fmt.Stringer, prefix string) string {
	return strings.TrimPrefix(value.String(), prefix)
}

func moment(t *timestamppb.Timestamp) string {
	if t == nil {
		return "at an unknown time"
	}
	return t.AsTime().UTC().Format(time.RFC3339)
}

// values is an object in JSON on one line.
func values(s *structpb.Struct) string {
	b, err := encode(s)
	if s == nil || err != nil {
		return "{}"
	}
	return strings.Map(visible, string(b))
}

// freshness says how far something can be relied on, and plainly when it cannot.
func freshness(f *v1.Freshness) string {
	state := plain(f.GetState(), "FRESHNESS_STATE_")
	var why []string
	for _, r := range f.GetReasons() {
		why = append(why, plain(r, "FRESHNESS_REASON_"))
	}
	because := ""
	if len(why) > 0 {
		because = " because " + strings.Join(why, ", ")
	}
	switch f.GetState() {
	case v1.FreshnessState_FRESHNESS_STATE_FRESH, v1.FreshnessState_FRESHNESS_STATE_VERIFIED:
		return state
	case v1.FreshnessState_FRESHNESS_STATE_STALE:
		return "NOT FRESH: " + state + because + "; something newer exists"
	default:
		return "NOT FRESH: " + state + because + "; nobody can vouch for it now"
	}
}

func note(n *v1.Note) string {
	return fmt.Sprintf("   Note (%s) by %s for %s, in task %s.", plain(n.GetKind(), "NOTE_KIND_"), n.GetAgent(), n.GetUser(), n.GetTask())
}

func renderQuery(r *v1.QueryResponse) string {
	p := &page{}
	switch n := len(r.GetHits()); n {
	case 0:
		p.line("Nothing found within the task's scope. answerId %s.", r.GetAnswerId())
	case 1:
		p.line("1 hit. answerId %s.", r.GetAnswerId())
	default:
		p.line("%d hits, best first. answerId %s.", n, r.GetAnswerId())
	}
	doubtful := 0
	for i, h := range r.GetHits() {
		o, state := h.GetOrigin(), freshness(h.GetFreshness())
		if strings.HasPrefix(state, "NOT") {
			doubtful++
		}
		p.line("")
		p.line("%d. %s key %s, version %d, committed %s", i+1, o.GetTable(), values(o.GetKey()), o.GetVersion(), moment(o.GetCommitTime()))
		p.line("   %s. Score %.3f. chunkId %s.", state, h.GetScore().GetFinal(), h.GetChunkId())
		if o.GetNote() != nil {
			p.line("%s", note(o.GetNote()))
		}
		p.quote(h.GetText())
		if h.MatchedText != nil {
			p.line("   Found by an older text, which is no longer so:")
			p.quote(h.GetMatchedText())
		}
		if h.LiveText != nil {
			p.line("   The live row reads now:")
			p.quote(h.GetLiveText())
		}
	}
	if len(r.GetHits()) > 0 {
		p.line("")
	}
	if doubtful > 0 {
		p.line("%d of %d hits are NOT FRESH: do not state them as current.", doubtful, len(r.GetHits()))
	}
	if r.GetDegraded() {
		p.line("Degraded, so better hits may be missing: %s", r.GetDegradedReason())
	}
	for _, in := range r.GetIncomplete() {
		p.line("Of %s something may be missing: %s.", in.GetTable(), plain(in.GetReason(), "INCOMPLETE_REASON_"))
	}
	return p.end(r.GetBudget())
}

func renderRecord(r *v1.GetRecordResponse) string {
	p := &page{}
	p.record(r.GetRecord())
	p.line("Columns: %s", values(r.GetRecord().GetColumns()))
	return p.end(r.GetBudget())
}

func (p *page) record(r *v1.Record) {
	p.line("%s key %s, version %d, committed %s", r.GetTable(), values(r.GetKey()), r.GetVersion(), moment(r.GetCommitTime()))
	if r.GetState() == v1.RecordState_RECORD_STATE_DELETED {
		p.line("   The row is DELETED; this is what it was.")
	}
	p.line("   %s.", freshness(r.GetFreshness()))
	if r.GetNote() != nil {
		p.line("%s", note(r.GetNote()))
	}
	p.quote(r.GetText())
}

func renderRemember(r *v1.RememberResponse) string {
	p := &page{}
	p.line("Kept as a note.")
	p.record(r.GetRecord())
	p.line("To see it in a query, pass consistency.atLeast %q.", r.GetToken())
	return p.end(r.GetBudget())
}

func renderForget(r *v1.ForgetResponse) string {
	p := &page{}
	p.line("Forgotten: %d versions and %d chunks are removed, and the note's words in every stored answer.", r.GetVersions(), r.GetChunks())
	p.line("For a query that is sure to lack it, pass consistency.atLeast %q.", r.GetToken())
	return p.end(r.GetBudget())
}
