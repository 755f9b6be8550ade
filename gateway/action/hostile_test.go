package action

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest"
	"github.com/whence-db/whence/ingest"
)

var injections = []string{
	`'; drop table tickets; --`, `1' or '1'='1`, `$1`, `$$; drop table tickets; $$`, `\'; delete from tickets; --`, `") or true --`, `E'\\x'`,
	"a\nb", `%s %d %[1]s`, `@name`, `null`, `NULL`, `'{}'::text[]`, `"; select pg_sleep(9); --`,
}

// What callers say is a value and nothing else, wherever it stands.
func TestValuesStayValues(t *testing.T) {
	w := open(t, tickets)
	w.register(ticketSpec)
	for _, evil := range injections {
		before := w.rows("tickets")
		update := onRows(Update, ticketTable, []string{"title"}, []string{"note"})
		update.Row.MaxRows = 10
		none, err := w.run(update, update.arguments(map[string]string{"title": evil}, map[string]string{"note": evil}), everything(t))
		if err != nil || none.Rows != 0 {
			t.Errorf("choosing by %q: %d rows, %v", evil, none.Rows, err)
		}
		byID := onRows(Update, ticketTable, []string{"id"}, []string{"note", "subject"})
		out, err := w.run(byID, byID.arguments(map[string]string{"id": "1"}, map[string]string{"note": evil, "subject": evil}), everything(t))
		if err != nil || out.Rows != 1 || *out.Effects[0].After["note"] != evil {
			t.Fatalf("writing %q: %+v, %v", evil, out.Effects, err)
		}
		word := strings.ReplaceAll(evil, "\n", " ") // a scope has no control characters
		mine := authztest.Scope(t, authz.ScopeSpec{AllTables: true, AllSubjects: true, DenySubjects: []string{word}, Filter: map[string]string{"team": word}})
		if none, err := w.run(byID, byID.arguments(map[string]string{"id": "1"}, map[string]string{"note": "x"}), mine); err != nil || none.Rows != 0 {
			t.Errorf("within a scope of %q: %d rows, %v", evil, none.Rows, err)
		}
		w.check(w.undo(byID, out.Effects, everything(t)))
		if diff := cmp.Diff(before, w.rows("tickets")); diff != "" {
			t.Fatalf("%q: %s", evil, diff)
		}
		number := onRows(Delete, ticketTable, []string{"id"}, nil)
		if _, err := w.run(number, number.arguments(map[string]string{"id": evil}, nil), everything(t)); refusal(err) != "ARGUMENTS_INVALID" {
			t.Errorf("%q for a number: %v", evil, err)
		}
	}
}

// A column may be called anything; a definition that names one that is not there is
// refused before any statement is made of it.
func TestNamesStayNames(t *testing.T) {
	w := open(t, tickets)
	for i, evil := range injections {
		table := fmt.Sprintf("odd%d", i)
		w.exec(`create table ` + table + ` (id int primary key, ` + quoted(evil) + ` text, label text); insert into ` + table + ` values (1, 'was', 'x')`)
		w.register(ingest.TableSpec{Table: "public." + table, TextColumns: []string{"label"}, AttributeColumns: []string{evil}})
		d := onRows(Update, whence.NewTableName("app", "public", table), []string{evil}, []string{evil})
		scope := authztest.Scope(t, authz.ScopeSpec{AllTables: true, AllSubjects: true, Filter: map[string]string{}})
		out, err := w.run(d, d.arguments(map[string]string{evil: "was"}, map[string]string{evil: "is"}), scope)
		if err != nil || out.Rows != 1 || *out.Effects[0].After[evil] != "is" {
			t.Errorf("a column named %q: %+v, %v", evil, out.Effects, err)
			continue
		}
		w.check(w.undo(d, out.Effects, scope))
		absent := onRows(Update, ticketTable, []string{"id"}, []string{evil})
		w.register(ticketSpec)
		if err := w.runner.Check(t.Context(), absent); refusal(err) != "ACTION_INVALID" {
			t.Errorf("a column %q that is not there: %v", evil, err)
		}
	}
	if len(w.rows("tickets")) != 5 {
		t.Error("tickets were lost")
	}
}

// Many write one row at once: each run's before is another's after, and every undo,
// newest first, finds its own.
func TestConcurrentUpdatesFormAChain(t *testing.T) {
	w := open(t, tickets)
	w.register(ticketSpec)
	before := w.rows("tickets")
	d := onRows(Update, ticketTable, []string{"id"}, []string{"note"})
	w.check(w.runner.Check(t.Context(), d))
	const writers, each = 6, 5
	var mu sync.Mutex
	byBefore := map[string]Outcome{}
	var all sync.WaitGroup
	for i := range writers {
		all.Go(func() {
			for n := range each {
				args, err := Arguments(d, d.arguments(map[string]string{"id": "1"}, map[string]string{"note": strconv.Itoa(i*each + n)}))
				if err != nil {
					t.Error(err)
					return
				}
				var k kept
				if _, err := w.runner.Run(t.Context(), Request{Action: d, Args: args, Scope: everything(t)}, k.prepare); err != nil {
					t.Error(err)
					return
				}
				was := ""
				if v := k.out.Effects[0].Before["note"]; v != nil {
					was = *v
				}
				mu.Lock()
				byBefore[was] = k.out
				mu.Unlock()
			}
		})
	}
	all.Wait()
	var chain []Outcome
	for at := ""; ; {
		out, ok := byBefore[at]
		if !ok {
			break
		}
		chain = append(chain, out)
		at = *out.Effects[0].After["note"]
	}
	if len(chain) != writers*each {
		t.Fatalf("%d of %d runs follow one another", len(chain), writers*each)
	}
	for i := len(chain) - 1; i >= 0; i-- {
		w.check(w.undo(d, chain[i].Effects, everything(t)))
	}
	if diff := cmp.Diff(before, w.rows("tickets")); diff != "" {
		t.Errorf("after undoing all: %s", diff)
	}
}
