package index_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/whence-db/whence/embedder/embeddertest"
)

// The vectors of one table are made anew, and the old ones serve meanwhile, but for
// texts that no chunk holds any more; a server that fails and a filler that ends are no matter.
func TestReembedMakesATablesVectorsAnew(t *testing.T) {
	t.Parallel()
	w, server, model := newServed(t, embeddertest.Config{})
	const texts = 60
	for i := range texts {
		w.put("docs", row{fmt.Sprint(i), "ann", "en", fmt.Sprintf("text %d", i)})
	}
	w.fill(model, func() bool { return w.count(withVector) == texts })
	w.exec(`insert into whence.vectors (space_id, digest, table_id, embedding, seq, embedded_at)
select space_id, sha256('of no chunk'), $1, embedding, nextval('whence.vectors_seq'), embedded_at from whence.vectors limit 1`, w.tables["docs"].ID)
	var last int
	w.scan([]any{&last}, `select max(seq) from whence.vectors`)

	server.SetFault(embeddertest.Fault{Kind: embeddertest.Status, Status: 400, Match: "text 7"}) // and no other: 70 is not there
	if err := w.x.Reembed(t.Context(), w.tables["docs"].ID); err != nil {
		t.Fatal(err)
	}
	again := func() int { return w.count(`select count(*) from whence.vectors where seq > $1`, last) }
	for done := 0; done < texts-1; done = again() {
		if st, err := w.x.Status(t.Context(), w.tables["docs"].ID); err != nil || st.Pending > 0 || st.Reembedding != int64(texts-done) {
			t.Fatalf("after %d: %+v, %v", done, st, err)
		}
		if n := w.count(withVector); n != texts {
			t.Fatalf("%d of %d texts have a vector meanwhile", n, texts)
		}
		w.fill(model, func() bool { return again() > done }) // and ends
	}
	w.fill(model, func() bool { return w.count(`select count(*) from whence.reembeds`) == 0 })
	for i := range texts {
		want := 2
		if i == 7 {
			want = 1
		}
		if n := server.Embedded(fmt.Sprintf("text %d", i)); n != want {
			t.Errorf("text %d was embedded %d times, want %d", i, n, want)
		}
	}
	if n := again(); n != texts-1 {
		t.Errorf("%d vectors were made anew", n)
	}
}

// A text on which the model chokes for a while holds up no other.
func TestReembedGoesRoundWhatFails(t *testing.T) {
	t.Parallel()
	w, server, model := newServed(t, embeddertest.Config{})
	const texts = 40
	w.put("docs", row{"bad", "ann", "en", "text 3 chokes"}) // the first
	for i := range texts {
		w.put("docs", row{fmt.Sprint(i), "ann", "en", fmt.Sprintf("text %d", i)})
	}
	w.fill(model, func() bool { return w.count(withVector) == texts+1 })
	server.SetFault(embeddertest.Fault{Kind: embeddertest.Status, Status: 500, Match: "text 3 chokes"})
	if err := w.x.Reembed(t.Context(), w.tables["docs"].ID); err != nil {
		t.Fatal(err)
	}
	left := func() int64 {
		st, err := w.x.Status(t.Context(), w.tables["docs"].ID)
		if err != nil {
			t.Fatal(err)
		}
		return st.Reembedding
	}
	soon := func() { w.exec(`update whence.reembeds set not_before = now() where lease is null`) } // time passes
	w.fill(model, func() bool { soon(); return left() == 1 })
	w.fill(model, func() bool {
		soon()
		return w.count(`select count(*) from whence.reembeds where skipped or last_chunk = 0`) == 1
	})
	server.SetFault(embeddertest.Fault{})
	w.fill(model, func() bool { soon(); return w.count(`select count(*) from whence.reembeds`) == 0 })
	if n := left(); n != 0 {
		t.Errorf("%d chunks have their old vectors", n)
	}
}

// What is at the model when all is to be made anew once more counts as old.
func TestReembedAgainMeanwhile(t *testing.T) {
	t.Parallel()
	w, _, model := newServed(t, embeddertest.Config{})
	table := w.tables["docs"].ID
	for i := range 20 {
		w.put("docs", row{fmt.Sprint(i), "ann", "en", fmt.Sprintf("text %d", i)})
	}
	w.fill(model, func() bool { return w.count(withVector) == 20 })
	if err := w.x.Reembed(t.Context(), table); err != nil {
		t.Fatal(err)
	}
	var again time.Time
	m := &during{Model: model, do: func() {
		if err := w.x.Reembed(t.Context(), table); err != nil {
			t.Error(err)
		}
		w.scan([]any{&again}, `select made_before from whence.reembeds`)
	}}
	w.fill(m, func() bool { return w.count(`select count(*) from whence.reembeds`) == 0 })
	if n := w.count(`select count(*) from whence.vectors where embedded_at < $1`, again); n > 0 {
		t.Errorf("%d vectors are from before", n)
	}
}
