package ingest

import (
	"math"
	"strings"
	"testing"
)

func TestPreviewTable(t *testing.T) {
	w := newWorld(t)
	w.exec(w.source, `
create table notes (id int primary key, owner text, title text, body text, at date, v xml);
insert into notes select i, 'ann', 'Title ' || i, case when i % 10 = 0 then null else repeat('some words here. ', 150) end, '2026-01-02', null
from generate_series(1, 3000) i;
create table few (id int primary key, body text);
insert into few values (1, 'the same'), (2, 'the same'), (3, ' '), (4, 'another');
create table keyless (body text);
analyze notes`)
	w.create()
	spec := TableSpec{Source: "app", Table: "public.notes", TextTemplate: "{{title}}\n\n{{body}}", SubjectColumn: "owner", TimeColumn: "at", AttributeColumns: []string{"owner"}}
	p, err := w.r.PreviewTable(t.Context(), spec, 3)
	if err != nil || len(p.Problems) > 0 || len(p.Rows) != 3 || p.RowsTotal != 3000 {
		t.Fatalf("%+v, %v", p, err)
	}
	row := p.Rows[0]
	if !strings.HasPrefix(row.Text, "Title ") || *row.Subject != "ann" || row.EventTime.Format("2006-01-02") != "2026-01-02" ||
		*row.Attributes["owner"] != "ann" || len(row.Chunks) < 2 || row.Tokens < len(row.Text)/5 {
		t.Errorf("%+v", row)
	}

	// What the estimate says is about what registering brings.
	info := w.register(spec)
	w.run()
	w.live(info.Name())
	chunks := len(w.query(w.memory.Pool, `select id::text from whence.chunks`))
	texts := len(w.query(w.memory.Pool, `select digest::text from whence.vectors`))
	e := p.Estimate
	if off := math.Abs(e.Chunks/float64(chunks) - 1); off > 0.1 {
		t.Errorf("%.0f chunks were estimated, there are %d", e.Chunks, chunks)
	}
	if e.Calls < float64(texts) || e.Calls > e.Chunks {
		t.Errorf("at most %.0f texts were estimated, there are %d", e.Calls, texts)
	}

	p, err = w.r.PreviewTable(t.Context(), TableSpec{Source: "app", Table: "public.few", TextColumns: []string{"body"}}, 100)
	if err != nil || len(p.Rows) != 4 || p.RowsTotal != 4 || p.Estimate.Chunks != 3 || p.Estimate.Calls != 2 {
		t.Errorf("%+v %+v, %v", p, p.Estimate, err)
	}
	for _, c := range []struct{ table, column, says string }{
		{"public.keyless", "body", "no primary key"},
		{"public.nowhere", "body", "no table"},
		{"public.few", "nothing", "no column"},
		{"few", "body", "schema"},
	} {
		p, err := w.r.PreviewTable(t.Context(), TableSpec{Source: "app", Table: c.table, TextColumns: []string{c.column}}, 1)
		if err != nil || len(p.Problems) != 1 || !strings.Contains(p.Problems[0], c.says) || p.Estimate != nil {
			t.Errorf("%s: %q, %v", c.table, p.Problems, err)
		}
	}
	if _, err := w.r.PreviewTable(t.Context(), TableSpec{Source: "no", Table: "a.b", TextColumns: []string{"c"}}, 1); err == nil {
		t.Error("a source that is not there is no error")
	}
	if n := w.query(w.memory.Pool, `select relation from whence.tables`); len(n) != 1 {
		t.Errorf("previews registered %v", n)
	}
}
