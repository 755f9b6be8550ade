package query_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/query"
)

// What is pruned before a moment is exactly what no moment from there on asks for,
// and the vectors of texts that nothing holds any more.
func TestPrunedVersionsAreNotAskedFor(t *testing.T) {
	w := newWorld(t, lexical.Default())
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	h := makeHistory(w, rand.New(rand.NewPCG(seed, 3)), true)
	const cut = minutes / 2
	before := h.began.Add(cut * time.Minute)
	had := column[[]byte](t, w, `select digest from whence.vectors`)
	removed := 0
	for at, done := (index.PrunedTo{}), false; !done; {
		err := pg.InTx(t.Context(), w.db.Pool, func(tx pgx.Tx) (err error) {
			var n int
			at, n, done, err = w.x.Prune(t.Context(), tx, w.state.Tables[0].ID, before, at, 3)
			removed += n
			if n > 3 {
				t.Errorf("%d versions at a time", n)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}

	var want []string
	texts := map[string]bool{} // whether a kept version holds it
	gone := 0
	for id, states := range h.states {
		keep := 0
		for i, s := range states {
			if !s.at.After(before) {
				keep = i
			}
		}
		gone += keep
		for i, s := range states {
			for part := range strings.SplitSeq(s.text, "\n\n") {
				texts[part] = texts[part] || i >= keep
			}
			if i >= keep {
				want = append(want, fmt.Sprintf("%s v%d", id, s.version))
			}
		}
	}
	got := column[string](t, w, `select (r.key::jsonb ->> 'id') || ' v' || v.version from whence.versions v join whence.records r on r.id = v.record_id`)
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" || removed != gone || gone < 10 {
		t.Errorf("%d of %d removed (-want +got):\n%s", removed, gone, diff)
	}
	for i := cut; i <= minutes; i += 2 {
		moment := h.began.Add(time.Duration(i) * time.Minute)
		var want []string
		for _, s := range h.at(moment) {
			want = append(want, h.seen(s))
		}
		slices.Sort(want)
		a := w.ask(everything(t), query.Request{Text: "ledger of the tide", AsOf: moment, Limit: query.MaxLimit})
		if diff := cmp.Diff(want, shown(a), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("minute %d (-want +got):\n%s", i, diff)
		}
	}
	has := column[[]byte](t, w, `select digest from whence.vectors`)
	holds := func(digests [][]byte, text string) bool {
		return slices.ContainsFunc(digests, func(d []byte) bool { return whence.Digest(d) == whence.DigestOf(text) })
	}
	for text, kept := range texts {
		switch {
		case !kept && holds(has, text):
			t.Errorf("a vector of %q is left", text)
		case kept && holds(had, text) && !holds(has, text) && alone(h, text):
			t.Errorf("the vector of %q is gone", text)
		}
	}
	if len(has) > len(had)-10 {
		t.Errorf("%d of %d vectors are left", len(has), len(had))
	}
}

// alone tells whether only one row ever held a text: of those that several did,
// each row looks only after its own.
func alone(h *history, text string) bool {
	rows := 0
	for _, states := range h.states {
		if slices.ContainsFunc(states, func(s state) bool { return slices.Contains(strings.Split(s.text, "\n\n"), text) }) {
			rows++
		}
	}
	return rows == 1
}

func column[T any](t *testing.T, w *world, sql string) []T {
	t.Helper()
	rows, err := w.db.Pool.Query(t.Context(), sql)
	if err != nil {
		t.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatal(err)
	}
	return out
}
