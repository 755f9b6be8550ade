package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// report is what a run found; -json prints it.
type report struct {
	Data      string     `json:"data"`
	Documents int        `json:"documents"`
	Dated     bool       `json:"dated"`
	Chunks    int64      `json:"chunks"`
	Questions int        `json:"questions"`
	Judgments int        `json:"judgments"` // that say a document answers
	Absent    int        `json:"absent"`    // of those, whose document is not in the corpus
	Model     string     `json:"model"`
	Ranking   string     `json:"ranking"`
	Rankings  []measured `json:"rankings"`
	Kinds     []kind     `json:"kinds,omitempty"`
	Recency   []float64  `json:"sweep_recency,omitempty"`
	Sweep     []swept    `json:"sweep,omitempty"`
	Worst     []lost     `json:"worst,omitempty"`
	Seconds   float64    `json:"seconds"`
}

// kind is nDCG@10 over the questions of one kind, by ranking.
type kind struct {
	Name      string    `json:"name"`
	Questions int       `json:"questions"`
	NDCG10    []float64 `json:"ndcg_at_10"`
}

// lost is a question with what each ranking made of it.
type lost struct {
	ID     string    `json:"id"`
	Text   string    `json:"text"`
	NDCG10 []float64 `json:"ndcg_at_10"`
	First  []string  `json:"first"`
}

func kinds(questions []question, rankings []measured) (out []kind) {
	at := map[string]int{}
	for i, q := range questions {
		if q.kind == "" {
			return nil
		}
		if _, seen := at[q.kind]; !seen {
			at[q.kind] = len(out)
			out = append(out, kind{Name: q.kind, NDCG10: make([]float64, len(rankings))})
		}
		k := &out[at[q.kind]]
		k.Questions++
		for j, m := range rankings {
			k.NDCG10[j] += m.ndcg[i]
		}
	}
	for _, k := range out {
		for j := range k.NDCG10 {
			k.NDCG10[j] /= float64(k.Questions)
		}
	}
	return out
}

// worst lists the questions that the last ranking loses most on to the first.
func worst(questions []question, rankings []measured, most int) (out []lost) {
	first, last := rankings[0], rankings[len(rankings)-1]
	order := make([]int, len(questions))
	for i := range order {
		order[i] = i
	}
	loss := func(i int) float64 { return first.ndcg[i] - last.ndcg[i] }
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(loss(b), loss(a)) })
	for _, i := range order[:min(most, len(order))] {
		if loss(i) <= same {
			break
		}
		l := lost{ID: questions[i].id, Text: questions[i].text}
		for _, m := range rankings {
			l.NDCG10 = append(l.NDCG10, m.ndcg[i])
			l.First = append(l.First, graded(questions[i].grades, m.ranked[i], 5))
		}
		out = append(out, l)
	}
	return out
}

// graded writes the first documents of an answer, those that answer with their grade.
func graded(g grades, ranked []string, most int) string {
	var parts []string
	for _, id := range ranked[:min(most, len(ranked))] {
		if g[id] > 0 {
			id += fmt.Sprintf("(%g)", g[id])
		}
		parts = append(parts, id)
	}
	return strings.Join(parts, " ")
}

func (r *report) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(cells ...string) { fmt.Fprintln(w, strings.Join(cells, "\t")+"\t") }
	fmt.Fprintf(out, "data     %s: %d documents (%d chunks), %d questions, %d judgments\n", r.Data, r.Documents, r.Chunks, r.Questions, r.Judgments)
	if r.Absent > 0 {
		fmt.Fprintf(out, "         %d of the judged documents are not in the corpus, and count as not found\n", r.Absent)
	}
	if !r.Dated {
		fmt.Fprintln(out, "         no document has a time, so recency orders equals at most")
	}
	fmt.Fprintf(out, "model    %s\nfused    %s\n\n", r.Model, r.Ranking)
	row("", "nDCG@10", "recall@10", "recall@100", "better", "worse", "equal", "p")
	for _, m := range r.Rankings {
		cells := []string{m.Name, three(m.NDCG10), three(m.Recall10), three(m.Recall100)}
		if c := m.Against; c != nil {
			cells = append(cells, fmt.Sprint(c.Better), fmt.Sprint(c.Worse), fmt.Sprint(c.Equal), fmt.Sprintf("%.2g", c.P))
		}
		row(cells...)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out, "\nbetter, worse, equal: questions by nDCG@10 against plain BM25; p: of so uneven a count by chance (sign test)")
	r.printKinds(row)
	r.printSweep(row)
	if err := w.Flush(); err != nil {
		return err
	}
	for _, l := range r.Worst {
		fmt.Fprintf(out, "\n%s  %s\n", l.ID, l.Text)
		for i, m := range r.Rankings {
			fmt.Fprintf(out, "%19s  %s  %s\n", m.Name, three(l.NDCG10[i]), l.First[i])
		}
	}
	_, err := fmt.Fprintf(out, "\nthe run took %.0f s\n", r.Seconds)
	return err
}

func (r *report) printKinds(row func(...string)) {
	if len(r.Kinds) == 0 {
		return
	}
	row("")
	head := []string{"nDCG@10 by kind", "questions"}
	for _, m := range r.Rankings {
		head = append(head, m.Name)
	}
	row(head...)
	for _, k := range r.Kinds {
		row(append([]string{k.Name, fmt.Sprint(k.Questions)}, threes(k.NDCG10)...)...)
	}
}

func (r *report) printSweep(row func(...string)) {
	if len(r.Sweep) == 0 {
		return
	}
	row("")
	head := []string{"dense : lexical"}
	for _, w := range r.Recency {
		head = append(head, fmt.Sprintf("recency %g", w))
	}
	row(head...)
	for _, s := range r.Sweep {
		row(append([]string{fmt.Sprintf("%.1f : %.1f", s.Dense, s.Lexical)}, threes(s.NDCG10)...)...)
	}
}

func three(v float64) string { return fmt.Sprintf("%.3f", v) }

func threes(values []float64) (out []string) {
	for _, v := range values {
		out = append(out, three(v))
	}
	return out
}
