package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

func (r *drainResult) print(w io.Writer) error {
	fmt.Fprintf(w, "\nReading the log: %d changes in transactions of 1 to 1000 (%d MB, which the source wrote at %.0f changes/s)\n",
		r.Changes, r.LogBytes>>20, r.WriteRate)
	fmt.Fprintf(w, "%d rounds in turns; median of the rounds (lowest to highest)\n\n", r.Rounds)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\tchanges/s\t\tclient's µs/change\t\tallocations/change\tpeak MB\t")
	line(t, "pg_recvlogical, pgoutput, to /dev/null", r.Recvlogical, 0, &r.RecvlogicalCPU, 1)
	fmt.Fprintln(t, "\t\t")
	line(t, "capture into a sink that counts", r.Decode, 0, &r.DecodeCPU, 1)
	fmt.Fprintf(t, "%.1f\t%.0f\t\n", r.DecodeAllocations.Median, r.DecodePeak.Median)
	line(t, "capture ÷ pg_recvlogical", r.DecodeRatio, 2, nil, 0)
	fmt.Fprintln(t)
	if err := t.Flush(); err != nil {
		return err
	}

	fmt.Fprintf(w, "\nApplying the first %d of them, nothing embedded\n", r.Applied)
	fmt.Fprintf(w, "%d rounds in turns; median of the rounds (lowest to highest)\n\n", r.ApplyRounds)
	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\tchanges/s\t\tclient's µs/change\t\tallocations/change\tpeak MB\t")
	line(t, "Postgres's subscription, the same table", r.Subscription, 0, nil, 0)
	fmt.Fprintln(t)
	line(t, "floor: the same rows by plain SQL", r.Floor, 0, nil, 0)
	fmt.Fprintln(t)
	line(t, "capture into a memory database", r.Capture, 0, &r.CaptureCPU, 1)
	fmt.Fprintf(t, "%.1f\t%.0f\t\n", r.CaptureAllocations.Median, r.CapturePeak.Median)
	line(t, "capture ÷ floor", r.CaptureRatio, 2, nil, 0)
	fmt.Fprintln(t)
	line(t, "capture ÷ subscription", r.NativeRatio, 3, nil, 0)
	fmt.Fprintln(t)
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\nonce all was applied capture's slot kept %.1f MB of log, of which %.1f MB were not confirmed; this process had %.0f MB before reading\n",
		float64(r.Retained)/(1<<20), float64(r.Unconfirmed)/(1<<20), r.Before.Median)
	return err
}

// line writes the beginning of a row of a table: a name and one or two figures.
func line(t io.Writer, name string, f figure, digits int, second *figure, secondDigits int) {
	m, s := f.text(digits)
	fmt.Fprintf(t, "%s\t%s\t%s\t", name, m, s)
	if second != nil {
		m, s = second.text(secondDigits)
		fmt.Fprintf(t, "%s\t%s\t", m, s)
	}
}

func (r *hugeResult) print(w io.Writer) error {
	fmt.Fprintf(w, "\nOne transaction of %d rows, inserted in %.0f s (%d MB of log), captured by whence serve with the roles api and capture\n\n",
		r.Rows, r.Write, r.Log>>20)
	if r.Rows < r.Wanted {
		fmt.Fprintf(w, "  fewer than %d, so that it ends in good time; -huge %d takes the time it needs\n", r.Wanted, r.Wanted)
	}
	_, err := fmt.Fprintf(w, "  applied %.0f s after its commit, %.0f rows/s; the process had %.0f MB resident before, at most %.0f MB\n",
		r.Took, r.Rate, r.Before, r.Peak)
	return err
}

func (r *steadyResult) print(w io.Writer) error {
	fmt.Fprintf(w, "\nFrom a commit in the source, at %.0f changes/s (wanted: %d) in transactions of %d, for %.0f s, embedding on\n",
		r.Achieved, r.Rate, r.Transaction, r.Seconds)
	fmt.Fprintf(w, "looked at every %.0f ms; found: by its word through the API, one query after the other; %d changes behind at the end\n\n", r.Look, r.Behind)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\tp50 ms\tp95 ms\tp99 ms\tmax ms\tseen\tnot seen\t")
	for _, row := range []struct {
		name string
		spread
	}{{"applied, the old text known to be stale", r.Applied}, {"found by text", r.Found}, {"embedded anew", r.Embedded}} {
		fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%.0f\t%.0f\t%d\t%d\t\n", row.name, row.P50, row.P95, row.P99, row.Max, row.Count, row.Beyond)
	}
	return t.Flush()
}
