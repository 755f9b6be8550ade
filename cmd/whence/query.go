package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

type queryCmd struct {
	agentFlags    `embed:""`
	Text          string            `arg:"" help:"The question."`
	Table         []string          `help:"Only these registered tables." placeholder:"NAME"`
	Subject       []string          `help:"Only these subjects." sep:"none"`
	Filter        map[string]string `help:"Attributes that must be equal." placeholder:"NAME=VALUE"`
	Limit         uint32            `help:"The most hits to return, 1 to 200." default:"10"`
	RecencyWeight *float64          `help:"How much age may cost, 0 to 1."`
	HalfLife      time.Duration     `help:"Age at which recency has fallen to one half."`
	FreshOnly     bool              `help:"Only fresh hits."`
	Explain       bool              `help:"Say how the answer came about and what came close."`
	Verify        bool              `help:"Compare every hit with its row in the source."`
	AsOf          time.Time         `help:"Answer from what was current at this moment, as in 2026-01-31T18:00:00Z." placeholder:"TIME"`
	AtLeast       string            `help:"Wait until this position is applied: a token, an LSN or SOURCE@LSN." placeholder:"TOKEN"`
}

func (c *queryCmd) Run(ctx context.Context, a *app) error {
	client, err := c.memory()
	if err != nil {
		return err
	}
	req := &v1.QueryRequest{Text: c.Text, Tables: c.Table, Subjects: c.Subject, Filter: c.Filter,
		Limit: &c.Limit, FreshOnly: c.FreshOnly, Explain: c.Explain}
	if c.Verify || c.AtLeast != "" {
		req.Consistency = &v1.Consistency{Verify: c.Verify, AtLeast: c.AtLeast}
	}
	if !c.AsOf.IsZero() {
		req.AsOf = timestamppb.New(c.AsOf)
	}
	if c.RecencyWeight != nil || c.HalfLife != 0 {
		req.Recency = &v1.Recency{Weight: c.RecencyWeight}
		if c.HalfLife != 0 {
			req.Recency.HalfLife = durationpb.New(c.HalfLife)
		}
	}
	res, err := client.Query(ctx, req)
	if err != nil {
		return err
	}
	return show(a, res, func() {
		printHits(a, res.GetHits())
		if res.GetDegraded() {
			a.printf("degraded: %s\n", res.GetDegradedReason())
		}
		for _, i := range res.GetIncomplete() {
			a.printf("incomplete: %s\n", incompleteText(i))
		}
		if x := res.GetExplanation(); x != nil {
			printExplanation(a, res.GetHits(), x)
		}
		printWatermark(a, res.GetWatermark())
		a.printf("answer %s; %d of %d calls left\n", res.GetAnswerId(),
			res.GetBudget().GetCalls().GetRemaining(), res.GetBudget().GetCalls().GetLimit())
	})
}

type recordCmd struct {
	agentFlags `embed:""`
	Table      string            `arg:"" help:"The registered name, source.schema.name."`
	Key        map[string]string `arg:"" help:"The key, as column=value."`
}

func (c *recordCmd) Run(ctx context.Context, a *app) error {
	client, err := c.memory()
	if err != nil {
		return err
	}
	res, err := client.GetRecord(ctx, &v1.GetRecordRequest{Table: c.Table, Key: keyStruct(c.Key)})
	if err != nil {
		return err
	}
	return show(a, res, func() {
		r := res.GetRecord()
		a.printf("%s %s  version %d  %s  %s\n%s\n", r.GetTable(), keyText(r.GetKey()), r.GetVersion(),
			plain(r.GetState()), freshnessText(r.GetFreshness()), r.GetText())
	})
}

func printHits(a *app, hits []*v1.Hit) {
	if len(hits) == 0 {
		a.printf("nothing found\n")
		return
	}
	for i, h := range hits {
		a.printf("%2d. %.3f  %-22s  %s %s v%d at %s\n", i+1, h.GetScore().GetFinal(), freshnessText(h.GetFreshness()),
			h.GetOrigin().GetTable(), keyText(h.GetOrigin().GetKey()), h.GetOrigin().GetVersion(), h.GetOrigin().GetLsn())
		a.printf("    %s\n", line(h.GetText(), 160))
		if n := h.GetOrigin().GetNote(); n != nil {
			a.printf("    %s\n", noteText(n))
		}
		if h.MatchedText != nil {
			a.printf("    matched before it changed: %s\n", line(h.GetMatchedText(), 130))
		}
		if h.LiveText != nil {
			a.printf("    reads now: %s\n", line(h.GetLiveText(), 150))
		}
	}
}

// incompleteText says what of a table an answer as of a moment may lack.
func incompleteText(i *v1.Incomplete) string {
	why := map[v1.IncompleteReason]string{
		v1.IncompleteReason_INCOMPLETE_REASON_ROWS_PURGED:      "keeps nothing of rows that were deleted since",
		v1.IncompleteReason_INCOMPLETE_REASON_VERSIONS_REMOVED: "does not keep versions for so long",
		v1.IncompleteReason_INCOMPLETE_REASON_NOT_CAUGHT_UP:    "may not hold all that was committed by then",
	}[i.GetReason()]
	if why == "" {
		why = i.GetReason().String()
	}
	if i.GetUntil() != nil {
		why += ", from " + i.GetUntil().AsTime().Format(time.RFC3339Nano) + " on it is complete"
	}
	return i.GetTable() + " " + why
}

func printExplanation(a *app, hits []*v1.Hit, x *v1.Explanation) {
	a.printf("relevance = (%g dense from %g on + %g lexical) / %g; age costs at most %g; candidates: %d dense, %d lexical, %d recent\n",
		x.GetDenseWeight(), x.GetDenseFloor(), x.GetLexicalWeight(), x.GetDenseWeight()+x.GetLexicalWeight(), x.GetRecencyWeight(),
		x.GetDenseCandidates(), x.GetLexicalCandidates(), x.GetRecentCandidates())
	columns(a, "RANK\tFINAL\tRELEVANCE\tRECENCY\tDENSE\tLEXICAL\tFOUND BY\tROW", func(w *tabwriter.Writer) {
		for i, h := range hits {
			printScore(w, fmt.Sprint(i+1), h.GetScore(), h.GetLegs(), h.GetOrigin().GetTable()+" "+keyText(h.GetOrigin().GetKey()))
		}
		for _, l := range x.GetLeftOut() {
			printScore(w, strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(l.GetReason().String(), "LEFT_OUT_REASON_"), "_", " ")),
				l.GetScore(), l.GetLegs(), l.GetTable()+" "+keyText(l.GetKey()))
		}
	})
}

func printScore(w io.Writer, rank string, s *v1.Score, legs []v1.Leg, row string) {
	part := func(v *float64) string {
		if v == nil {
			return "-"
		}
		return fmt.Sprintf("%.3f", *v)
	}
	var by []string
	for _, l := range legs {
		by = append(by, strings.ToLower(strings.TrimPrefix(l.String(), "LEG_")))
	}
	fmt.Fprintf(w, "%s\t%.3f\t%.3f\t%.3f\t%s\t%s\t%s\t%s\n", rank, s.GetFinal(), s.GetRelevance(), s.GetRecency(),
		part(s.Dense), part(s.Lexical), strings.Join(by, "+"), row)
}

func printWatermark(a *app, ws []*v1.Watermark) {
	for _, w := range ws {
		lag := "lag not known"
		if w.Lag != nil {
			lag = ago(w.GetLag().AsDuration()) + " ago"
		}
		a.printf("source %s applied to %s, its log as of %s\n", w.GetSource(), w.GetLsn(), lag)
	}
}

// plain drops an enum value's type prefix: TABLE_STATE_LIVE is LIVE.
func plain(v fmt.Stringer) string {
	s := v.String()
	for _, prefix := range []string{"SOURCE_STATE_", "TABLE_STATE_", "RECORD_STATE_", "TASK_STATE_", "SPACE_STATE_", "FRESHNESS_STATE_", "FRESHNESS_REASON_", "DECISION_",
		"REVOCATION_KIND_", "SIGNING_KEY_STATE_"} {
		s = strings.TrimPrefix(s, prefix)
	}
	return s
}

func freshnessText(f *v1.Freshness) string {
	s := plain(f.GetState())
	for _, r := range f.GetReasons() {
		s += " " + plain(r)
	}
	return s
}

func keyText(k *structpb.Struct) string {
	b, err := k.MarshalJSON()
	if err != nil {
		return "{}"
	}
	return string(b)
}

func keyStruct(m map[string]string) *structpb.Struct {
	out := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for k, v := range m {
		out.Fields[k] = structpb.NewStringValue(v)
	}
	return out
}

// line folds white space and cuts at n characters.
func line(s string, n int) string {
	r := []rune(strings.Join(strings.Fields(s), " "))
	if len(r) <= n {
		return string(r)
	}
	return string(r[:n]) + " …"
}

func columns(a *app, header string, rows func(w *tabwriter.Writer)) {
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, header)
	rows(w)
	_ = w.Flush()
}
