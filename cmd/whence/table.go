package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

type tableCmd struct {
	Preview    tablePreview    `cmd:"" help:"Show what registering a table would give, and about what it would cost."`
	Register   tableRegister   `cmd:"" help:"Start to remember a table."`
	List       tableList       `cmd:"" default:"withargs" help:"List registered tables."`
	Get        tableGet        `cmd:"" help:"Show one table and its status."`
	Watch      tableWatch      `cmd:"" help:"Follow a table's copy until the rows that were there when it began can be found; what was committed just now may come later."`
	Reembed    tableReembed    `cmd:"" help:"Make all vectors of a table anew; the old ones serve until then."`
	Unregister tableUnregister `cmd:"" help:"Forget a table with its records."`
}

// tableDefinition says how a table is remembered.
type tableDefinition struct {
	Source          string        `arg:"" help:"The source's name."`
	Table           string        `arg:"" help:"The table, as schema.name."`
	Text            []string      `help:"Columns to render to text, one a paragraph." xor:"text" required:"" placeholder:"COLUMN"`
	Template        string        `help:"Template that renders the text, such as '{{title}}: {{body}}'." xor:"text" required:""`
	Subject         string        `help:"Column that says whom or what a row is about." placeholder:"COLUMN"`
	Time            string        `help:"Column of the event time; otherwise the commit time counts." placeholder:"COLUMN"`
	Attribute       []string      `help:"Columns to return with hits and to filter by." placeholder:"COLUMN"`
	HalfLife        time.Duration `help:"Age at which recency has fallen to one half."`
	FreshnessTarget time.Duration `help:"The largest capture lag at which a hit is fresh."`
	Language        string        `help:"The language of the texts, by which words are compared, such as german; simple compares them as they are written." placeholder:"english"`
	Purge           bool          `help:"Remove every text and vector of a row when it is deleted."`
}

func (d tableDefinition) request() *v1.RegisterTableRequest {
	req := &v1.RegisterTableRequest{Source: d.Source, Table: d.Table, TextColumns: d.Text, TextTemplate: d.Template,
		SubjectColumn: d.Subject, TimeColumn: d.Time, AttributeColumns: d.Attribute, Language: d.Language}
	if d.HalfLife != 0 {
		req.HalfLife = durationpb.New(d.HalfLife)
	}
	if d.FreshnessTarget != 0 {
		req.FreshnessTarget = durationpb.New(d.FreshnessTarget)
	}
	if d.Purge {
		req.OnDelete = v1.OnDelete_ON_DELETE_PURGE
	}
	return req
}

type tablePreview struct {
	operatorFlags   `embed:""`
	tableDefinition `embed:""`
	Sample          uint32 `help:"Rows to show, 1 to 100." default:"5"`
}

func (c *tablePreview) Run(ctx context.Context, a *app) error {
	client, err := c.sources()
	if err != nil {
		return err
	}
	r := c.request()
	res, err := client.PreviewTable(ctx, &v1.PreviewTableRequest{Source: r.Source, Table: r.Table, TextColumns: r.TextColumns,
		TextTemplate: r.TextTemplate, SubjectColumn: r.SubjectColumn, TimeColumn: r.TimeColumn, AttributeColumns: r.AttributeColumns,
		HalfLife: r.HalfLife, FreshnessTarget: r.FreshnessTarget, OnDelete: r.OnDelete, Language: r.Language, Sample: &c.Sample})
	if err != nil {
		return err
	}
	return show(a, res, func() { printPreview(a, res) })
}

func printPreview(a *app, p *v1.PreviewTableResponse) {
	for _, row := range p.GetRows() {
		about := ""
		if row.Subject != nil {
			about = "  about " + row.GetSubject()
		}
		if row.EventTime != nil {
			about += "  at " + row.GetEventTime().AsTime().Format(time.RFC3339)
		}
		a.printf("%s%s  %d tokens\n", keyText(row.GetKey()), about, row.GetTokens())
		for i, s := range row.GetChunks() {
			a.printf("    %d. %s\n", i+1, line(row.GetText()[s.GetStart():s.GetEnd()], 160))
		}
		if len(row.GetChunks()) == 0 {
			a.printf("    no text, so nothing to find\n")
		}
	}
	if e := p.GetEstimate(); e != nil {
		a.printf("about %d rows: %.0f chunks, %.0f texts to embed with %.0f tokens, %s in the memory database (by %d rows)\n",
			p.GetRowsTotal(), e.GetChunks(), e.GetCalls(), e.GetTokens(), size(int64(e.GetBytes())), e.GetSampledRows())
	}
	for _, problem := range p.GetProblems() {
		a.printf("cannot be registered: %s\n", problem)
	}
}

type tableRegister struct {
	operatorFlags    `embed:""`
	tableDefinition  `embed:""`
	VersionRetention time.Duration `help:"How long a version is kept once a newer one has taken its place; otherwise for ever."`
	Wait             bool          `help:"Show progress until the table is live and embedded." short:"w"`
}

func (c *tableRegister) Run(ctx context.Context, a *app) error {
	client, err := c.sources()
	if err != nil {
		return err
	}
	req := c.request()
	if c.VersionRetention != 0 {
		req.VersionRetention = durationpb.New(c.VersionRetention)
	}
	res, err := client.RegisterTable(ctx, req)
	if err != nil {
		return err
	}
	if !c.Wait {
		return show(a, res, func() { printTables(a, &v1.TableWithStatus{Table: res.GetTable(), Status: res.GetStatus()}) })
	}
	return (&tableWatch{operatorFlags: c.operatorFlags, Name: res.GetTable().GetName()}).Run(ctx, a)
}

type tableList struct {
	operatorFlags `embed:""`
	Source        string `help:"Only this source's tables."`
}

func (c *tableList) Run(ctx context.Context, a *app) error {
	client, err := c.sources()
	if err != nil {
		return err
	}
	res, err := client.ListTables(ctx, &v1.ListTablesRequest{Source: c.Source})
	if err != nil {
		return err
	}
	return show(a, res, func() { printTables(a, res.GetTables()...) })
}

type tableGet struct {
	operatorFlags `embed:""`
	Name          string `arg:"" help:"The registered name, source.schema.name."`
	Aside         uint32 `help:"List up to so many of the rows that are not taken over whole, at most 1000." placeholder:"N"`
}

func (c *tableGet) Run(ctx context.Context, a *app) error {
	client, err := c.sources()
	if err != nil {
		return err
	}
	res, err := client.GetTable(ctx, &v1.GetTableRequest{Name: c.Name, SetAside: c.Aside})
	if err != nil {
		return err
	}
	return show(a, res, func() {
		printTables(a, &v1.TableWithStatus{Table: res.GetTable(), Status: res.GetStatus()})
		if why := res.GetStatus().GetWaitsFor(); why != "" {
			a.printf("waits: %s\n", why)
		}
		a.printf("language: %s%s\n", res.GetTable().GetLanguage(), stillIn(res.GetTable().GetFormerLanguages()))
		if keep := res.GetTable().GetVersionRetention(); keep != nil {
			a.printf("versions are kept for %s after the next\n", keep.AsDuration())
		}
		a.printf("embedding calls: %d made, %d saved\n", res.GetStatus().GetCalls().GetMade(), res.GetStatus().GetCalls().GetSaved())
		if n := res.GetStatus().GetReembedding(); n > 0 {
			a.printf("chunks to be embedded anew: %d\n", n)
		}
		if aside := res.GetStatus().GetSetAside(); aside.GetRows() > 0 && c.Aside == 0 {
			a.printf("rows not taken over whole: %d; the newest is %s: %s; --aside lists them\n", aside.GetRows(), aside.GetKey(), aside.GetReason())
		}
		for _, row := range res.GetSetAside() {
			a.printf("not taken over whole: %s at %s: %s\n", row.GetKey(), row.GetTime().AsTime().Format(time.RFC3339), row.GetReason())
		}
	})
}

type tableReembed struct {
	operatorFlags `embed:""`
	Name          string `arg:"" help:"The registered name, source.schema.name."`
}

func (c *tableReembed) Run(ctx context.Context, a *app) error {
	client, err := c.sources()
	if err != nil {
		return err
	}
	res, err := client.ReembedTable(ctx, &v1.ReembedTableRequest{Name: c.Name})
	if err != nil {
		return err
	}
	return show(a, res, func() { a.printf("%s: chunks to be embedded anew: %d\n", c.Name, res.GetStatus().GetReembedding()) })
}

// stillIn tells of languages that some of a table's chunks are still indexed in.
func stillIn(former []string) string {
	if len(former) == 0 {
		return ""
	}
	return "; some chunks are still indexed in " + strings.Join(former, ", ")
}

type tableUnregister struct {
	operatorFlags `embed:""`
	Name          string `arg:"" help:"The registered name, source.schema.name."`
}

func (c *tableUnregister) Run(ctx context.Context, a *app) error {
	client, err := c.sources()
	if err != nil {
		return err
	}
	res, err := client.UnregisterTable(ctx, &v1.UnregisterTableRequest{Name: c.Name})
	if err != nil {
		return err
	}
	return show(a, res, func() { a.printf("table %s is forgotten\n", c.Name) })
}

type tableWatch struct {
	operatorFlags `embed:""`
	Name          string `arg:"" help:"The registered name, source.schema.name."`
}

// Run draws two bars on a terminal and prints a line a change elsewhere.
func (c *tableWatch) Run(ctx context.Context, a *app) error {
	client, err := c.sources()
	if err != nil {
		return err
	}
	stream, err := client.WatchTable(ctx, &v1.WatchTableRequest{Name: c.Name})
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	why := ""
	report := func(st *v1.TableStatus) {
		if st.GetState() == v1.TableState_TABLE_STATE_PENDING {
			a.printf("%-11s waits to be copied\n", plain(st.GetState()))
			return
		}
		pace := ""
		if f := st.GetBackfill(); f.GetRemaining() != nil {
			pace = fmt.Sprintf(" (%.0f/s, %v left)", f.GetRowsPerSecond(), f.GetRemaining().AsDuration())
		}
		a.printf("%-11s rows %d/%d%s  chunks %d  pending %d\n", plain(st.GetState()),
			st.GetBackfill().GetRowsDone(), st.GetBackfill().GetRowsTotal(), pace, st.GetChunks(), st.GetPending())
	}
	say := func(why string) { a.printf("%-11s %s\n", "", why) }
	if interactive(a.out) && !a.json {
		bars := newBars(ctx, a)
		defer bars.done()
		report = bars.set
		say = func(why string) { fmt.Fprintln(bars.progress, why) }
	}
	for {
		res, err := stream.Receive()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		st := res.GetStatus()
		if a.json {
			if err := show(a, res, nil); err != nil {
				return err
			}
		} else {
			report(st)
			if now := line(st.GetWaitsFor(), 1000); now != why {
				if why = now; why != "" {
					say("waits: " + why)
				}
			}
		}
		switch st.GetState() {
		case v1.TableState_TABLE_STATE_BROKEN, v1.TableState_TABLE_STATE_SCHEMA_CHANGED:
			return fmt.Errorf("%s: %s", c.Name, st.GetError())
		case v1.TableState_TABLE_STATE_LIVE:
			if st.GetPending() == 0 {
				return nil
			}
		default: // still on its way
		}
	}
}

// bars shows rows copied and chunks embedded.
type bars struct {
	progress    *mpb.Progress
	rows, texts *mpb.Bar
}

func newBars(ctx context.Context, a *app) *bars {
	p := mpb.NewWithContext(ctx, mpb.WithOutput(a.out), mpb.WithWidth(48))
	bar := func(name string) *mpb.Bar {
		// Until there is something to do no total, rate or end would be true.
		known := func(d decor.Decorator) decor.Decorator {
			return decor.Any(func(s decor.Statistics) string {
				if s.Total <= 0 {
					return ""
				}
				text, _ := d.Decor(s)
				return text
			})
		}
		return p.AddBar(0,
			mpb.PrependDecorators(decor.Name(name, decor.WCSyncSpaceR), known(decor.CountersNoUnit(" %d / %d"))),
			mpb.AppendDecorators(known(decor.Percentage()), known(decor.AverageSpeed(0, " %.0f/s")), known(decor.AverageETA(decor.ET_STYLE_GO, decor.WC{W: 8}))))
	}
	return &bars{progress: p, rows: bar("rows copied"), texts: bar("chunks embedded")}
}

func (b *bars) set(st *v1.TableStatus) {
	f := st.GetBackfill()
	live := st.GetState() == v1.TableState_TABLE_STATE_LIVE
	if st.GetState() == v1.TableState_TABLE_STATE_PENDING {
		return
	}
	b.rows.SetTotal(int64(max(f.GetRowsTotal(), f.GetRowsDone())), false)
	b.rows.SetCurrent(int64(f.GetRowsDone()))
	if live {
		b.rows.SetTotal(-1, true)
	}
	b.texts.SetTotal(int64(st.GetChunks()), false)
	b.texts.SetCurrent(int64(st.GetChunks()) - int64(st.GetPending()))
	if live && st.GetPending() == 0 {
		b.texts.SetTotal(-1, true)
	}
}

func (b *bars) done() {
	b.rows.Abort(false)
	b.texts.Abort(false)
	b.progress.Wait()
}

func printTables(a *app, tables ...*v1.TableWithStatus) {
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "TABLE\tSTATE\tROWS\tRECORDS\tCHUNKS\tPENDING\tASIDE\tERROR")
	for _, t := range tables {
		st := t.GetStatus()
		fmt.Fprintf(w, "%s\t%s\t%d/%d\t%d\t%d\t%d\t%d\t%s\n", t.GetTable().GetName(), plain(st.GetState()),
			st.GetBackfill().GetRowsDone(), st.GetBackfill().GetRowsTotal(), st.GetRecords(), st.GetChunks(), st.GetPending(), st.GetSetAside().GetRows(), line(st.GetError(), 1000))
	}
	_ = w.Flush()
}
