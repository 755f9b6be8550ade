package index_test

import (
	"fmt"
	"testing"

	"github.com/whence-db/whence/embedder/embeddertest"
	"github.com/whence-db/whence/embedder/lexical"
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
	for i := range texts { // a filler that ends may give up what is at the model
		if n := server.Embedded(fmt.Sprintf("text %d", i)); i == 7 && n != 1 || i != 7 && n < 2 {
			t.Errorf("text %d was embedded %d times", i, n)
		}
	}
	if n := w.count(`select max(seq) - $1 from whence.vectors`, last); n != texts-1 {
		t.Errorf("%d vectors were stored, want %d", n, texts-1)
	}
	if n := again(); n != texts-1 {
		t.Errorf("%d vectors were made anew", n)
	}
}

// Texts on which the model chokes for a while hold up no others, though they fill
// more than a whole call.
func TestReembedGoesRoundWhatFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "docs")
	const bad, good = 20, 40
	for i := range bad + good { // the bad ones first
		text := fmt.Sprintf("bad text %d", i)
		if i >= bad {
			text = fmt.Sprintf("text %d", i)
		}
		w.put("docs", row{fmt.Sprint(i), "ann", "en", text})
	}
	m := &choking{Model: lexical.Default()}
	w.fill(m, func() bool { return w.count(withVector) == bad+good })
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
	m.on = "bad"
	w.fill(m, func() bool { soon(); return left() == bad })
	m.on = ""
	w.fill(m, func() bool { soon(); return w.count(`select count(*) from whence.reembeds`) == 0 })
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
	m := &during{Model: model, do: func() {
		if err := w.x.Reembed(t.Context(), table); err != nil {
			t.Error(err)
		}
	}}
	w.fill(m, func() bool { return w.count(`select count(*) from whence.reembeds`) == 0 })
	// At first, in the batch that was at the model, and all once more.
	if made := w.count(`select made from whence.embedding_calls`); made != 20+16+20 {
		t.Errorf("%d texts were sent, want 56", made)
	}
}
