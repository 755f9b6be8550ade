package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/whence-db/whence"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

var numberPattern = regexp.MustCompile(`number=(\d+);`)

// examine checks, once index and source are equal, what must hold besides: every
// record's history, its chunks and vectors, what the API says, and that capture
// still follows.
func (x *arena) examine(t *testing.T, w *running, undone map[int]bool) {
	t.Helper()
	w.settled(t, "app.public.docs")
	x.histories(t, w, undone)
	x.chunks(t, w)
	x.records(t, w)
	w.exec(t, `insert into docs values (777777, 'wisteria', 'after it all', 'owner1', null, 0)`)
	eventually(t, showLimit, "capture still follows", func() error { return x.compare(t.Context(), w) })
}

// histories holds each record's versions: counted from 1 without a gap, in the
// order of the log, each written once, none of what was rolled back.
func (x *arena) histories(t *testing.T, w *running, undone map[int]bool) {
	t.Helper()
	rows, err := w.memory.Query(t.Context(), `
		select r.key, r.version, v.version, v.lsn, v.text, v.deleted
		from whence.records r join whence.versions v on v.record_id = r.id
		order by r.id, v.version`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var (
		key, lastKey, text string
		head, version      int
		lsn, lastLSN       whence.LSN
		deleted            bool
		lastHead, last     int
		lastNumber         int
	)
	for rows.Next() {
		if err := rows.Scan(&key, &head, &version, &lsn, &text, &deleted); err != nil {
			t.Fatal(err)
		}
		if key != lastKey {
			if last != lastHead {
				t.Errorf("record %s has the head %d and %d versions", lastKey, lastHead, last)
			}
			lastKey, last, lastLSN, lastNumber = key, 0, 0, 0
		}
		if version != last+1 || lsn < lastLSN {
			t.Errorf("record %s: version %d at %v follows version %d at %v", key, version, lsn, last, lastLSN)
		}
		last, lastLSN, lastHead = version, lsn, head
		m := numberPattern.FindStringSubmatch(text)
		if m == nil || deleted {
			continue
		}
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		// The same number again is another column's change; an older one is an
		// older text come back.
		if n < lastNumber {
			t.Errorf("record %s: version %d has the text of change %d after that of %d", key, version, n, lastNumber)
		}
		lastNumber = n
		if undone[n] {
			t.Errorf("record %s: version %d was rolled back", key, version)
		}
	}
	if rows.Err() != nil {
		t.Fatal(rows.Err())
	}
	var doubled int
	err = w.memory.QueryRow(t.Context(), `
		select count(*) from (
			select from whence.versions group by record_id, xid, lsn, columns, deleted
			having count(*) > 1 and xid is not null) d`).Scan(&doubled)
	if err != nil || doubled > 0 {
		t.Errorf("%d versions were applied twice, %v", doubled, err)
	}
}

// chunks holds what is searched: the head's chunks cover its text, nothing of
// deleted or superseded versions is left, and every text has its vector.
func (x *arena) chunks(t *testing.T, w *running) {
	t.Helper()
	for what, sql := range map[string]string{
		"live records with a text but without chunks": `select count(*) from whence.records r join whence.versions v on v.record_id = r.id and v.version = r.version
			where not r.deleted and v.text <> '' and not exists (select from whence.chunks c where c.record_id = r.id and c.version = r.version)`,
		"chunks of deleted records": `select count(*) from whence.records r join whence.chunks c on c.record_id = r.id where r.deleted`,
		"superseded chunks":         `select count(*) from whence.records r join whence.chunks c on c.record_id = r.id where c.version <> r.version`,
		"chunks that are not of their text": `select count(*) from whence.records r join whence.versions v on v.record_id = r.id and v.version = r.version
			join whence.chunks c on c.record_id = r.id and c.version = r.version
			where convert_from(substring(convert_to(v.text, 'UTF8') from c.span_start + 1 for c.span_end - c.span_start), 'UTF8') <> c.text`,
		"chunks without a vector": `select count(*) from whence.chunks c join whence.spaces s on s.current
			left join whence.vectors v on v.space_id = s.id and v.digest = c.digest where v.embedding is null`,
		"chunks with another record's subject": `select count(*) from whence.records r join whence.chunks c on c.record_id = r.id
			where c.subject is distinct from r.subject or c.attributes <> r.attributes`,
	} {
		// Superseded chunks go soon after their successors have vectors; one whose
		// record was locked just then waits for the filler's next derivation, a minute.
		eventually(t, 90*time.Second, what, func() error {
			var n int
			if err := w.memory.QueryRow(t.Context(), sql).Scan(&n); err != nil {
				return err
			}
			if n > 0 {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
	}
}

// records asks the API for every record.
func (x *arena) records(t *testing.T, w *running) {
	t.Helper()
	o := command(t, append([]string{"token", "exchange", "checker", "compare everything", "--all-tables", "--all-subjects"}, w.enrol(t, "checker")...)...)
	o.is(t, 0)
	agent := caller{w.http, w.url, strings.TrimSpace(o.out)}
	source, err := sourceRows(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range source {
		var res v1.GetRecordResponse
		agent.must(t, "MemoryService/GetRecord", &v1.GetRecordRequest{Table: "app.public.docs", Key: idKey(id)}, &res)
		r := res.GetRecord()
		text := func(column string) string {
			v := r.GetColumns().GetFields()[column]
			if _, isNull := v.GetKind().(*structpb.Value_NullValue); isNull || v == nil {
				return null
			}
			return v.GetStringValue()
		}
		got := row{text("title"), text("body"), text("owner"), text("tag")}
		if got != want || r.GetState() != v1.RecordState_RECORD_STATE_LIVE || !slices.Contains([]string{"FRESH"}, plain(r.GetFreshness().GetState())) {
			t.Errorf("GetRecord %s: %v", id, r)
		}
	}
}
