package ingest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

// canonical are the settings that a value's text form depends on.
var canonical = map[string]string{"datestyle": "ISO, MDY", "intervalstyle": "postgres", "timezone": "UTC", "extra_float_digits": "1",
	"bytea_output": "hex", "client_encoding": "UTF8"}

// rowHash is what a row is compared by: its registered columns and its text.
func rowHash(columns []string, row whence.Values, text string) string {
	h := sha256.New()
	for _, c := range slices.Sorted(slices.Values(columns)) {
		v, ok := row[c]
		switch {
		case !ok:
			_, _ = fmt.Fprintf(h, "%q absent\n", c)
		case v == nil:
			_, _ = fmt.Fprintf(h, "%q null\n", c)
		default:
			_, _ = fmt.Fprintf(h, "%q %q\n", c, *v)
		}
	}
	_, _ = fmt.Fprintf(h, "%q", text)
	return hex.EncodeToString(h.Sum(nil))
}

// sourceRows reads a table's rows as the source prints them.
func sourceRows(ctx context.Context, dsn string, t whence.Table) (map[whence.Key]whence.Values, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	maps.Copy(cfg.RuntimeParams, canonical)
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer closeConn(ctx, conn)
	columns := t.Columns()
	quoted := make([]string, len(columns))
	for i, c := range columns {
		quoted[i] = pgx.Identifier{c}.Sanitize()
	}
	result := conn.PgConn().ExecParams(ctx, `select `+strings.Join(quoted, ", ")+` from `+pgx.Identifier{t.Schema, t.Relation}.Sanitize(), nil, nil, nil, nil).Read()
	if result.Err != nil {
		return nil, result.Err
	}
	rows := make(map[whence.Key]whence.Values, len(result.Rows))
	for _, r := range result.Rows {
		row := make(whence.Values, len(columns))
		for i, c := range columns {
			if r[i] == nil {
				row[c] = nil
				continue
			}
			v := string(r[i])
			row[c] = &v
		}
		key, err := whence.NewKey(t.KeyColumns, row)
		if err != nil {
			return nil, err
		}
		rows[key] = row
	}
	return rows, nil
}

// indexed is a record's head, as it is stored.
type indexed struct {
	columns whence.Values
	text    string
}

const selectHeads = `
select r.key, v.columns, v.text, v.digest, coalesce(r.subject, '-'), r.event_time, r.commit_time, v.definition, r.missing is not null,
    coalesce(c.texts, '{}'), coalesce(c.digests, '{}'), coalesce(c.aligned, true)
from whence.records r join whence.versions v on v.record_id = r.id and v.version = r.version
left join (select record_id, version, array_agg(text order by ordinal) as texts, array_agg(digest order by ordinal) as digests,
        bool_and(convert_from(substring(convert_to(whole, 'UTF8') from span_start + 1 for span_end - span_start), 'UTF8') = text
            and alike) as aligned
    from (select c.record_id, c.version, c.ordinal, c.span_start, c.span_end, c.text, c.digest, v.text as whole, c.subject is not distinct from r.subject and c.attributes = r.attributes
            and c.event_time is not distinct from r.event_time as alike
        from whence.chunks c join whence.records r on r.id = c.record_id join whence.versions v on v.record_id = r.id and v.version = c.version
        where c.table_id = $1) c
    group by record_id, version) c on c.record_id = r.id and c.version = r.version
where r.table_id = $1 and not r.deleted`

// indexRows reads the heads of a table's records, and holds each against itself:
// its text is its columns', its chunks are that text, each with its record's filters.
func indexRows(ctx context.Context, tx pgx.Tx, t whence.Table) (map[whence.Key]indexed, error) {
	rows, err := tx.Query(ctx, selectHeads, t.ID)
	if err != nil {
		return nil, err
	}
	out := map[whence.Key]indexed{}
	var (
		key, text, subject string
		columns, digest    []byte
		event, commit      *time.Time
		definition         int32
		owes, aligned      bool
		texts              []string
		digests            [][]byte
	)
	_, err = pgx.ForEachRow(rows, []any{&key, &columns, &text, &digest, &subject, &event, &commit, &definition, &owes, &texts, &digests, &aligned}, func() error {
		row := whence.Values{}
		if err := json.Unmarshal(columns, &row); err != nil {
			return err
		}
		bad := func(format string, args ...any) error { return fmt.Errorf("record "+key+": "+format, args...) }
		if want := whence.DigestOf(text); string(want[:]) != string(digest) {
			return bad("its digest is %x, its text's %s", digest, want)
		}
		switch {
		case owes:
			return bad("it owes columns although its table is LIVE")
		case definition != t.Definition:
			return bad("it is of definition %d, its table of %d", definition, t.Definition)
		case text != render(t, row):
			return bad("its text is %.100q, and its columns make %.100q", text, render(t, row))
		case !aligned:
			return bad("its chunks are not what its text has at their places, or filtered by something else")
		}
		if v := row[t.SubjectColumn]; t.SubjectColumn != "" && (v == nil && subject != "-" || v != nil && subject != *v) {
			return bad("its subject is %q", subject)
		}
		if v := row[t.TimeColumn]; t.TimeColumn != "" && v != nil && !strings.Contains(*v, "infinity") {
			if at, _, err := parseTime(*v); err != nil || event == nil || !event.Equal(at) {
				return bad("its event time is %v, its column's %s, %v", event, *v, err)
			}
		}
		spans := Split(text)
		if len(spans) != len(texts) {
			return bad("it has %d chunks, its text %d", len(texts), len(spans))
		}
		for i, s := range spans {
			want := whence.DigestOf(texts[i])
			if text[s.Start:s.End] != texts[i] || string(want[:]) != string(digests[i]) {
				return bad("chunk %d is %.60q, want %.60q", i, texts[i], text[s.Start:s.End])
			}
		}
		out[whence.Key(key)] = indexed{row, text}
		return nil
	})
	return out, err
}

// compareTable says how the index differs from the source: what is missing, what
// is there and should not be, what is old.
func compareTable(t whence.Table, source map[whence.Key]whence.Values, index map[whence.Key]indexed) error {
	var problems []string
	report := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	columns := t.Columns()
	for _, key := range slices.Sorted(maps.Keys(source)) {
		have, ok := index[key]
		if !ok {
			report("%s is missing", key)
			continue
		}
		row := source[key]
		want, got := rowHash(columns, row, render(t, row)), rowHash(slices.Sorted(maps.Keys(have.columns)), have.columns, have.text)
		if want != got {
			report("%s is old: %s", key, differences(row, have.columns))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(index)) {
		if _, ok := source[key]; !ok {
			report("%s is in the index only, with rev %s", key, show(index[key].columns["rev"]))
		}
	}
	if len(problems) == 0 {
		return nil
	}
	const shown = 8
	return fmt.Errorf("%s (definition %d): %d differences (%d rows, %d records):\n  %s", t.Name(), t.Definition, len(problems), len(source), len(index),
		strings.Join(problems[:min(shown, len(problems))], "\n  "))
}

func differences(want, got whence.Values) string {
	var out []string
	for _, c := range slices.Sorted(maps.Keys(want)) {
		if w, g := show(want[c]), show(got[c]); w != g {
			out = append(out, fmt.Sprintf("%s is %.60s in the source and %.60s in the index", c, w, g))
		}
	}
	return strings.Join(out, ", ")
}

func show(v *string) string {
	if v == nil {
		return "null"
	}
	return fmt.Sprintf("%q", *v)
}

// invariants must hold at once, whatever has happened.
var invariants = map[string]string{
	"records whose versions are not counted without a gap up to the head": `
		select count(*) from whence.records r join lateral (
			select max(v.version) as last, min(v.version) as first, count(*) as n from whence.versions v where v.record_id = r.id) v on true
		where v.last is distinct from r.version or v.n <> v.last - v.first + 1`,
	"versions that go backwards": `
		select count(*) from (select lsn < lag(lsn) over (partition by record_id order by version) as back from whence.versions) x where back`,
	"heads that are not at their record's position": `
		select count(*) from whence.records r join whence.versions v on v.record_id = r.id and v.version = r.version
		where r.lsn < v.lsn or r.deleted <> v.deleted`,
	"versions that were applied twice": `
		select count(*) from (select from whence.versions where xid is not null group by record_id, xid, lsn having count(*) > 1) x`,
	"texts that were rolled back": `select count(*) from whence.versions where text like '%` + undone + `%' or columns::text like '%` + undone + `%'`,
	"chunks of deleted records":   `select count(*) from whence.records r join whence.chunks c on c.record_id = r.id where r.deleted`,
	"records of no table":         `select count(*) from whence.records r where not exists (select from whence.tables t where t.id = r.table_id and t.state <> 'UNREGISTERING')`,
	"what a purge left": `
		select count(*) from whence.records r join whence.tables t on t.id = r.table_id and t.on_delete = 'PURGE'
		join whence.versions v on v.record_id = r.id where r.deleted and (v.text <> '' or v.columns <> '{}') and t.definition = 1`,
}

// soon must hold once the filler has caught up.
var soon = map[string]string{
	"chunks without a vector": `
		select count(*) from whence.chunks c where not exists (
			select from whence.vectors v join whence.spaces s on s.id = v.space_id and s.current where v.digest = c.digest and v.embedding is not null)`,
	"superseded chunks": `select count(*) from whence.chunks c join whence.records r on r.id = c.record_id where c.version <> r.version`,
}
