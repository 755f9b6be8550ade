package ingest

import (
	"fmt"
	"strings"
	"testing"
)

// Values that JSON, paths, or a clock of ours could spoil are stored as the
// source prints them, copied and streamed, in keys, texts, subjects and attributes.
func TestValuesAreStoredAsTheyAre(t *testing.T) {
	w := newWorld(t)
	w.exec(w.source, `create table docs (key text, at timestamptz, day date, title text, owner text, lang text, number numeric, raw bytea, doc jsonb, js json,
		primary key (key, number))`)
	w.create()
	texts := []string{``, ` `, `null`, `NULL`, `"`, `\`, `\u0000`, `\x00`, `{"a": [1]}`, `<b>&amp;</b>`, "\u2028\u2029\ufeff", "tab\tnew\nline\rback\b", "e\u0301 é",
		"👩‍👩‍👧‍👦", "\x01\x1f\x7f", "\U0010ffff\ufffd", `'; drop table docs; --`, `%s $1 {{title}}`, strings.Repeat("long ", 300)}
	times := []string{`infinity`, `-infinity`, `4714-11-24 00:00:00+00 BC`, `294276-12-31 23:59:59.999999+00`, `0001-01-01 00:00:00+00`, `10000-01-01 12:00:00+00`, `2024-02-29 12:00:00.5+05:30`}
	days := []string{`infinity`, `-infinity`, `4714-11-24 BC`, `5874897-12-31`, `0044-03-15 BC`}
	insert := func(from int) {
		for i, s := range texts {
			w.exec(w.source, `insert into docs values ($1, $2::text::timestamptz, $3::text::date, $1, $1, $1, $4::text::numeric, $5, to_jsonb($1::text), to_json($1::text))`,
				s, times[i%len(times)], days[i%len(days)], fmt.Sprint(from+i, ".", strings.Repeat("0", i)), []byte(s))
		}
		w.exec(w.source, `insert into docs (key, number) values ('all null', $1::text::numeric), ('', 'NaN'::numeric + $1::text::numeric)  on conflict do nothing`, fmt.Sprint(from))
	}
	insert(100)
	for _, spec := range []TableSpec{
		{TextColumns: []string{"title", "raw", "doc", "js"}, SubjectColumn: "owner", TimeColumn: "at", AttributeColumns: []string{"lang", "day", "number"}},
		{TextTemplate: "{{key}} {{title}}{{doc}} {{raw}} {{at}}", TimeColumn: "day", AttributeColumns: []string{"owner", "doc"}},
	} {
		spec.Table = "public.docs"
		w.register(spec)
		if w.stop == nil {
			w.run()
		}
		info := w.live(docs)
		w.exec(w.source, `delete from docs where number >= 200`)
		insert(200)
		w.exec(w.source, `update docs set number = number + 100, title = title || '.' where number >= 210`)
		w.caughtUp()
		w.equal(info)
		w.want("null and empty differ", w.query(w.memory.Pool, `select distinct coalesce(v.columns ->> 'doc', 'null') from whence.records r
			join whence.versions v on v.record_id = r.id and v.version = r.version where not r.deleted and v.columns ->> 'key' in ('', 'all null') order by 1`), `""`, `null`)
	}
	w.want("moments as far as they go", w.query(w.memory.Pool, `select distinct event_time::text from whence.records
		where event_time in ('0044-03-15 00:00+00 BC', '294276-12-31 00:00+00') order by 1`), "0044-03-15 00:00:00+00 BC", "294276-12-31 00:00:00+00")
}
