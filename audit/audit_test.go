package audit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/audit"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func open(t *testing.T) (*audit.Log, *pgtest.DB) {
	t.Helper()
	db := pgtest.New(t)
	log, err := audit.New(audit.Config{Pool: db.Pool})
	if err != nil {
		t.Fatal(err)
	}
	return log, db
}

func add(t *testing.T, log *audit.Log, db *pgtest.DB, entries ...audit.Entry) {
	t.Helper()
	err := pg.InTx(t.Context(), db.Pool, func(tx pgx.Tx) error { return log.Append(t.Context(), tx, entries) })
	if err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, log *audit.Log, f audit.Filter) []audit.Entry {
	t.Helper()
	es, _, err := log.List(t.Context(), f, audit.MaxPage, "")
	if err != nil {
		t.Fatal(err)
	}
	return es
}

func TestWhatIsAppendedIsRead(t *testing.T) {
	t.Parallel()
	log, db := open(t)
	whole := audit.Entry{
		At: time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC), Tenant: "t", Agent: "a", User: "u",
		Actors: []string{"a", "boss, \"the\" first", ""}, Task: uuid.New(), RootTask: uuid.New(), TokenID: "jti",
		Call: "whence.v1.MemoryService/Query", Decision: audit.Failed, Reason: "INTERNAL",
		RequestDigest: whence.DigestOf("request"), Answer: uuid.New(), CallsCharged: 2,
		Latency: 1234 * time.Microsecond, Detail: map[string]any{"k": "v", "n": 1.5},
	}
	// What an unauthenticated caller may send must not keep the entry out.
	hostile := audit.Entry{At: whole.At, Agent: "a\x00\xff", Call: "x", Decision: audit.Refused,
		Detail: map[string]any{"text": "nul \x00 and \\u0000"}}
	add(t, log, db, whole, hostile)

	whole.ID, hostile.ID = 1, 2
	hostile.Agent = "a\uFFFD\uFFFD"
	hostile.Actors = []string{}
	hostile.Detail = map[string]any{"text": "nul \uFFFD and \\u0000"}
	if diff := cmp.Diff([]audit.Entry{hostile, whole}, list(t, log, audit.Filter{})); diff != "" {
		t.Error(diff)
	}
}

func TestFilters(t *testing.T) {
	t.Parallel()
	log, db := open(t)
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	one := audit.Entry{At: noon, Agent: "a", User: "u", Call: "c", Decision: audit.Allowed, Task: uuid.New(), Answer: uuid.New()}
	two := audit.Entry{At: noon.Add(time.Hour), Agent: "b", User: "v", Call: "d", Decision: audit.Refused, Task: uuid.New()}
	add(t, log, db, one, two)
	for name, f := range map[string]audit.Filter{
		"task":     {Task: one.Task},
		"agent":    {Agent: "a"},
		"user":     {User: "u"},
		"call":     {Call: "c"},
		"decision": {Decision: audit.Allowed},
		"answer":   {Answer: one.Answer},
		"until":    {Until: two.At},
		"all":      {Since: noon, Until: two.At, Task: one.Task, Agent: "a", User: "u", Call: "c", Decision: audit.Allowed, Answer: one.Answer},
	} {
		if es := list(t, log, f); len(es) != 1 || es[0].Agent != "a" {
			t.Errorf("%s: %+v", name, es)
		}
	}
	if es := list(t, log, audit.Filter{Since: two.At}); len(es) != 1 || es[0].Agent != "b" {
		t.Errorf("since: %+v", es)
	}
	if es := list(t, log, audit.Filter{Agent: "a", User: "v"}); len(es) != 0 {
		t.Errorf("two conditions that no entry meets: %+v", es)
	}
}

func TestPagesDoNotShift(t *testing.T) {
	t.Parallel()
	log, db := open(t)
	entry := func(i int) audit.Entry {
		return audit.Entry{At: time.Now(), Call: fmt.Sprint(i), Decision: audit.Allowed}
	}
	for i := range 25 {
		add(t, log, db, entry(i))
	}
	var got []string
	var next string
	for {
		es, n, err := log.List(t.Context(), audit.Filter{}, 10, next)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			got = append(got, e.Call)
		}
		if n == "" {
			break
		}
		next = n
		add(t, log, db, entry(100))
	}
	var want []string
	for i := range 25 {
		want = append(want, fmt.Sprint(24-i))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	var e *whence.Error
	if _, _, err := log.List(t.Context(), audit.Filter{}, 10, "nonsense"); !errors.As(err, &e) || e.Field != "pageToken" {
		t.Errorf("a made-up token: %v", err)
	}
}

// Either all entries of a batch are there or none.
func TestAppendIsPartOfTheTransaction(t *testing.T) {
	t.Parallel()
	log, db := open(t)
	good := audit.Entry{At: time.Now(), Call: "c", Decision: audit.Allowed}
	err := pg.InTx(t.Context(), db.Pool, func(tx pgx.Tx) error {
		if err := log.Append(t.Context(), tx, []audit.Entry{good, good}); err != nil {
			return err
		}
		return context.Canceled
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	err = pg.InTx(t.Context(), db.Pool, func(tx pgx.Tx) error {
		return log.Append(t.Context(), tx, []audit.Entry{good, {At: time.Now(), Call: "c", Decision: "MAYBE"}})
	})
	if err == nil {
		t.Error("an entry without a decision was appended")
	}
	if es := list(t, log, audit.Filter{}); len(es) != 0 {
		t.Errorf("%d entries of transactions that did not commit", len(es))
	}
}

func TestEntriesCannotBeChanged(t *testing.T) {
	t.Parallel()
	log, db := open(t)
	add(t, log, db, audit.Entry{At: time.Now(), Call: "c", Decision: audit.Allowed})
	for _, sql := range []string{
		"update whence.entries set decision = 'REFUSED'",
		"delete from whence.entries",
		"truncate whence.entries",
	} {
		if _, err := db.Pool.Exec(t.Context(), sql); err == nil {
			t.Errorf("the database allows %q", sql)
		}
	}
}
