package index_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/embedder/embeddertest"
	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/embedder/openai"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/internal/pg"
)

func explain(err error) func(int) *index.Failure {
	of := embedder.ByText(err)
	return func(i int) *index.Failure {
		e := of(i)
		if e == nil {
			return nil
		}
		return &index.Failure{Permanent: !e.Temporary, Whole: e.Temporary, RetryAfter: e.RetryAfter, Message: e.Error()}
	}
}

// meter sums up what a filler's calls cost.
func (w *world) meter(ctx context.Context) (context.Context, func([]string) []int64) {
	ctx, m := embedder.Measure(ctx)
	return ctx, func(texts []string) []int64 {
		w.spent.Add(m.Usage().Tokens)
		return m.Usage().Split(texts)
	}
}

// fill runs a filler until ready, and waits for its end.
func (w *world) fill(model index.Model, ready func() bool) {
	w.t.Helper()
	f, err := index.NewFiller(index.FillerConfig{Index: w.x, Models: []index.Model{model}, Explain: explain, Meter: w.meter, Batch: 16,
		Poll: 10 * time.Millisecond, Probe: 20 * time.Millisecond, Heal: 100 * time.Millisecond, Follow: 10 * time.Millisecond})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	for !ready() && ctx.Err() == nil {
		time.Sleep(5 * time.Millisecond)
	}
	late := ctx.Err() != nil
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		w.t.Fatal(err)
	}
	if late {
		w.t.Fatal("what was waited for did not come")
	}
}

func (w *world) count(sql string, args ...any) (n int) {
	w.t.Helper()
	w.scan([]any{&n}, sql, args...)
	return n
}

const withVector = `select count(*) from whence.vectors where embedding is not null`

// newServed is a world whose space is that of a served model.
func newServed(t *testing.T, c embeddertest.Config) (*world, *embeddertest.Server, *openai.Model) {
	t.Helper()
	server, err := embeddertest.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	model, err := openai.New(openai.Config{BaseURL: server.URL(), Model: "test", Dimensions: 64, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, "docs")
	w.exec(`delete from whence.spaces`)
	if w.space, err = w.x.EnsureSpace(t.Context(), model); err != nil {
		t.Fatal(err)
	}
	return w, server, model
}

func TestFillEmbedsEachTextOnce(t *testing.T) {
	t.Parallel()
	w, server, model := newServed(t, embeddertest.Config{})
	for i := range 100 {
		w.put("docs", row{fmt.Sprint(i), "ann", "en", fmt.Sprintf("text %d", i%60)}) // 40 texts are there twice
	}
	w.fill(model, func() bool { return w.count(withVector) == 60 })
	for text, n := range server.AllEmbedded() {
		if strings.HasPrefix(text, "text ") && n != 1 {
			t.Errorf("%q was embedded %d times", text, n)
		}
	}
	if made := w.count(`select made from whence.embedding_calls`); made != 60 {
		t.Errorf("%d calls are counted", made)
	}
	if tokens := w.count(`select tokens from whence.embedding_calls`); tokens == 0 || int64(tokens) != w.spent.Load() {
		t.Errorf("%d tokens are booked, the calls took %d", tokens, w.spent.Load())
	}
	want, err := server.Vector(t.Context(), "text 7")
	if err != nil {
		t.Fatal(err)
	}
	d := whence.DigestOf("text 7")
	if n := w.count(`select count(*) from whence.vectors where digest = $1 and embedding <=> $2::real[]::halfvec < 0.001`, d[:], want); n != 1 {
		t.Error("text 7 has another text's vector")
	}
}

func TestFillSurvivesAnOutage(t *testing.T) {
	t.Parallel()
	w, server, model := newServed(t, embeddertest.Config{})
	for i := range 50 {
		w.put("docs", row{fmt.Sprint(i), "ann", "en", fmt.Sprintf("text %d", i)})
	}
	server.SwitchOff()
	w.fill(model, func() bool { return w.count(`select count(*) from whence.vectors where attempts > 0`) >= 2 })
	if n := w.count(withVector); n != 0 {
		t.Fatalf("%d vectors came from nowhere", n)
	}
	if err := server.SwitchOn(); err != nil {
		t.Fatal(err)
	}
	w.fill(model, func() bool { return w.count(withVector) == 50 })
	if n := w.count(`select count(*) from whence.vectors where error is not null or lease is not null`); n != 0 {
		t.Errorf("%d vectors still carry an error or a lease", n)
	}
}

func TestARefusedTextBlocksNoOther(t *testing.T) {
	t.Parallel()
	w, _, model := newServed(t, embeddertest.Config{MaxTextBytes: 100})
	w.put("docs", row{"long", "ann", "en", strings.Repeat("long ", 40)})
	for i := range 40 {
		w.put("docs", row{fmt.Sprint(i), "ann", "en", fmt.Sprintf("text %d", i)})
	}
	w.fill(model, func() bool {
		return w.count(withVector) == 40 && w.count(`select count(*) from whence.vectors where error is not null`) == 1
	})
	if n := w.count(`select count(*) from whence.vectors where embedding is null and not_before > now() + interval '1 hour'`); n != 1 {
		t.Error("the refused text does not wait")
	}
}

// One text on which the model always fails, in a way that looks like an outage.
func TestATextThatLooksLikeAnOutageBlocksNoOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "docs")
	w.put("docs", row{"bad", "ann", "en", "poison"})
	for i := range 40 {
		w.put("docs", row{fmt.Sprint(i), "ann", "en", fmt.Sprintf("text %d", i)})
	}
	model := &choking{Model: lexical.Default(), on: "poison"}
	w.fill(model, func() bool { return w.count(withVector) == 40 })
	if n := w.count(`select count(*) from whence.vectors where embedding is null`); n != 1 {
		t.Errorf("%d texts wait", n)
	}
}

// choking is the lexical model with a defect.
type choking struct {
	*lexical.Model
	on     string // how a text begins that it cannot take
	before func()
	once   sync.Once
	spoil  func([][]float32)
}

func (c *choking) Embed(ctx context.Context, texts []string) ([][]float32, error) {
	if c.before != nil {
		c.once.Do(c.before)
	}
	for _, text := range texts {
		if c.on != "" && strings.HasPrefix(text, c.on) {
			return nil, &embedder.Error{Temporary: true, Reason: embedder.Unavailable, Message: "choked"}
		}
	}
	v, err := c.Model.Embed(ctx, texts)
	if c.spoil != nil {
		c.spoil(v)
	}
	return v, err
}

func TestFillDiscardsWhatIsNoLongerItsOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "docs")
	w.put("docs", row{"1", "ann", "en", "text"})
	stolen := make(chan struct{})
	model := &choking{Model: lexical.Default(), before: func() {
		// While the text is being embedded, another worker's lease takes over.
		w.exec(`update whence.vectors set lease = gen_random_uuid()`)
		close(stolen)
	}}
	w.fill(model, func() bool {
		select {
		case <-stolen:
			return w.count(`select coalesce(sum(made), 0) from whence.embedding_calls`) == 1
		default:
			return false
		}
	})
	if n := w.count(withVector); n != 0 {
		t.Error("a vector was stored under another's lease")
	}
}

func TestFillRefusesSpoiltVectors(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "docs")
	w.put("docs", row{"1", "ann", "en", "text"})
	model := &choking{Model: lexical.Default(), spoil: func(v [][]float32) { v[0] = v[0][1:] }}
	w.fill(model, func() bool { return w.count(`select count(*) from whence.vectors where attempts > 0`) == 1 })
	if n := w.count(withVector); n != 0 {
		t.Error("a vector of the wrong length was stored")
	}
}

func TestFillForgetsTextsThatAreGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "docs")
	w.put("docs", row{"1", "ann", "en", "text"})
	gone := whence.DigestOf("gone")
	w.exec(`insert into whence.vectors (space_id, digest, table_id) values ($1, $2, 1)`, w.space.ID, gone[:])
	w.fill(lexical.Default(), func() bool { return w.count(`select count(*) from whence.vectors`) == 1 && w.count(withVector) == 1 })
}

// What a crash between storing vectors and removing superseded chunks leaves.
func TestFillFinishesWhatACrashLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "docs")
	w.put("docs", row{"1", "ann", "en", "old"})
	w.put("docs", row{"1", "ann", "en", "new"})
	w.embed("old", "new")
	w.fill(lexical.Default(), func() bool { return w.count(`select count(*) from whence.chunks`) == 1 })
}

func TestASecondModelIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "docs")
	other, err := lexical.New(lexical.Config{Dimensions: 64})
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.x.EnsureSpace(t.Context(), other)
	var e *whence.Error
	if !errors.As(err, &e) || e.Reason != "MODEL_MISMATCH" || !errors.Is(err, whence.ErrPrecondition) {
		t.Errorf("another model: %v", err)
	}
	for _, models := range [][]index.Model{{lexical.Default()}, {other, lexical.Default()}} {
		if s, err := w.x.EnsureSpace(t.Context(), models...); err != nil || s != w.space {
			t.Errorf("the same model among %d: %+v %v", len(models), s, err)
		}
	}
}

// during lets something happen while the first batch is at the model.
type during struct {
	index.Model
	once sync.Once
	do   func()
}

func (m *during) Embed(ctx context.Context, texts []string) ([][]float32, error) {
	m.once.Do(m.do)
	return m.Model.Embed(ctx, texts)
}

// A table that is unregistered while its texts are at the model takes nobody
// else's vectors with it, and leaves none of its own.
func TestATableGoesWhileItIsEmbedded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "docs", "notes")
	for i := range 5 {
		w.put("docs", row{fmt.Sprint(i), "ann", "en", fmt.Sprintf("doc %d", i)})
		w.put("notes", row{fmt.Sprint(i), "ann", "en", fmt.Sprintf("note %d", i)})
	}
	model := &during{Model: lexical.Default(), do: func() {
		err := pg.InTx(t.Context(), w.db.Pool, func(tx pgx.Tx) error {
			if err := w.x.DropTable(t.Context(), tx, w.tables["docs"].ID); err != nil {
				return err
			}
			_, err := tx.Exec(t.Context(), `delete from whence.tables where id = $1`, w.tables["docs"].ID)
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}}
	w.fill(model, func() bool {
		return w.count(withVector) == 5 && w.count(`select count(*) from whence.vectors`) == 5
	})
	if n := w.count(`select count(*) from whence.embedding_calls where table_id = $1`, w.tables["docs"].ID); n != 0 {
		t.Error("calls are booked for a table that is gone")
	}
	if n := w.count(`select (select count(*) from whence.chunks) + (select count(*) from whence.versions)`); n != 10 {
		t.Errorf("%d chunks and versions are left, want the other table's 10", n)
	}
}

// Of a table that keeps nothing of what is deleted, the last chunk of a text takes
// the vector along, also when two deletions have not seen each other.
func TestVectorsWithoutAnOwner(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "docs", "notes")
	w.put("docs", row{"1", "ann", "en", "kept"})
	w.embed("kept", "purged")
	w.exec(`update whence.vectors set table_id = $1 where digest = sha256('purged')`, w.tables["notes"].ID)
	w.exec(`update whence.tables set on_delete = 'PURGE' where id = $1`, w.tables["notes"].ID)
	w.fill(lexical.Default(), func() bool { return w.count(`select count(*) from whence.vectors`) == 1 })
}
