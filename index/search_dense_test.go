package index_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgvector/pgvector-go"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/internal/pg"
)

const (
	crowdDimensions = 48
	crowdClusters   = 40
)

// crowd fills a table with n rows of vectors around some centres. A row of a
// hundred is of the attribute lang=de, one of a thousand is "few"'s; each
// hundredth of the others belongs to a subject; "far" has 60 on the other side of
// the sphere.
type crowd struct {
	*world
	random  *rand.Rand
	centres [][]float32
	next    int
}

func newCrowd(t *testing.T) *crowd {
	t.Helper()
	w := newWorld(t, "articles")
	w.exec(`update whence.spaces set current = false`)
	w.space = index.Space{Model: "crowd", Dimensions: crowdDimensions}
	w.scan([]any{&w.space.ID}, `insert into whence.spaces (model, dimensions, current) values ('crowd', $1, true) returning id`, crowdDimensions)
	c := &crowd{world: w, random: rand.New(rand.NewPCG(1, 2))}
	for range crowdClusters {
		v := make([]float32, crowdDimensions)
		v[0] = 2 // all on one side
		c.centres = append(c.centres, c.around(v, 1))
	}
	return c
}

func (c *crowd) around(centre []float32, spread float64) []float32 {
	v := make([]float32, crowdDimensions)
	var sum float64
	for i := range v {
		v[i] = centre[i] + float32(c.random.NormFloat64()*spread/math.Sqrt(crowdDimensions)*2)
		sum += float64(v[i]) * float64(v[i])
	}
	for i := range v {
		v[i] /= float32(math.Sqrt(sum))
	}
	return v
}

func (c *crowd) add(n int, subject func(i int) string, vector func(i int) []float32) {
	c.t.Helper()
	var ids, subjects, langs, texts []string
	var digests [][]byte
	var flat []float32
	for i := range n {
		text := fmt.Sprint("text ", c.next)
		d := whence.DigestOf(text)
		lang := "en"
		if c.next%100 == 7 {
			lang = "de"
		}
		ids, subjects, langs = append(ids, string(key(fmt.Sprint(c.next)))), append(subjects, subject(i)), append(langs, lang)
		texts, digests, flat = append(texts, text), append(digests, d[:]), append(flat, vector(i)...)
		c.next++
	}
	c.exec(`
with n as (
    select key, subject, lang, text, digest, i
    from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[]) with ordinality n(key, subject, lang, text, digest, i)
), rec as (
    insert into whence.records (table_id, key, version, lsn, subject, attributes)
    select $6::int, key, 1, '0/10', subject, jsonb_build_object('lang', lang) from n returning id, key
), ver as (
    insert into whence.versions (record_id, version, lsn, definition, columns, text, digest)
    select id, 1, '0/10', 1, '{}', text, digest from rec join n using (key)
), vec as (
    insert into whence.vectors (space_id, digest, table_id, embedding, seq)
    select $7, digest, $6, ($8::real[])[(i - 1) * $9 + 1 : i * $9]::halfvec, nextval('whence.vectors_seq') from n
)
insert into whence.chunks (record_id, table_id, version, ordinal, span_start, span_end, text, digest, subject, attributes)
select id, $6, 1, 0, 0, length(text), text, digest, subject, jsonb_build_object('lang', lang) from rec join n using (key)`,
		ids, subjects, langs, texts, digests, c.tables["articles"].ID, c.space.ID, flat, crowdDimensions)
}

// exact is what comparing every vector finds.
func (c *crowd) exact(where string, vector []float32, limit int) (keys []whence.Key) {
	c.t.Helper()
	rows, err := c.db.Pool.Query(c.t.Context(), `
select r.key from whence.chunks c join whence.records r on r.id = c.record_id join whence.vectors v on v.digest = c.digest
where `+where+` order by v.embedding <=> $1::halfvec, c.id limit $2`, pgvector.NewHalfVector(vector).String(), limit)
	if err != nil {
		c.t.Fatal(err)
	}
	if keys, err = pgx.CollectRows(rows, pgx.RowTo[whence.Key]); err != nil {
		c.t.Fatal(err)
	}
	return keys
}

func (c *crowd) ask(scope authz.Scope, filter map[string]string, vector []float32, limit int) (found []index.Candidate) {
	c.t.Helper()
	err := pg.Snapshot(c.t.Context(), c.db.Pool, func(tx pgx.Tx) (err error) {
		found, err = c.x.Search(c.t.Context(), tx, scope, index.SearchRequest{Tables: []whence.Table{c.tables["articles"]},
			Text: "-", Filter: filter, Vector: vector, Space: c.space, Limit: limit})
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	slices.SortFunc(found, func(a, b index.Candidate) int { return -cmpFloat(*a.Dense, *b.Dense) })
	return found
}

func cmpFloat(a, b float64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Whatever share of the vectors the scope and the filter leave, the nearest of
// those are found, and as many as were asked for.
func TestNearestAtAnySelectivity(t *testing.T) {
	t.Parallel()
	c := newCrowd(t)
	const n = 24_000
	c.add(n, func(i int) string {
		switch {
		case i%1000 == 500:
			return "few"
		case i%2 == 0:
			return "half"
		}
		return fmt.Sprint("s", i%100)
	}, func(int) []float32 { return c.around(c.centres[c.random.IntN(crowdClusters)], 0.5) })
	c.add(60, func(int) string { return "far" }, func(int) []float32 {
		v := make([]float32, crowdDimensions)
		v[0] = -1
		return c.around(v, 0.5)
	})
	if built, err := c.x.Segment(t.Context(), c.space); err != nil || !built {
		t.Fatalf("no segment was built: %v", err)
	}
	c.add(500, func(int) string { return "half" }, func(int) []float32 { return c.around(c.centres[c.random.IntN(crowdClusters)], 0.5) })
	c.exec(`analyze whence.chunks, whence.vectors, whence.records`)
	for _, share := range []struct {
		name, where string
		scope       authz.Scope
		filter      map[string]string
		have        int
	}{
		{"all", "true", everything(t), nil, n},
		{"half", "c.subject = 'half'", subjects(t, "half"), nil, n / 2},
		{"hundredth", "c.attributes ->> 'lang' = 'de'", everything(t), map[string]string{"lang": "de"}, n / 100},
		{"subject", "c.subject = 's1'", subjects(t, "s1"), nil, n / 100},
		{"thousandth", "c.subject = 'few'", subjects(t, "few"), nil, n / 1000},
		{"far", "c.subject = 'far'", subjects(t, "far"), nil, 60},
		{"narrowed", "c.subject in ('s1', 'far', 'half')", authztest.Scope(t, authz.ScopeSpec{AllTables: true, Subjects: []string{"s1", "far", "half"}, Actions: authz.Actions()}), nil, n / 2},
	} {
		var hits, wanted int
		for range 12 {
			v := c.around(c.centres[c.random.IntN(crowdClusters)], 0.5)
			want := c.exact(share.where, v, 10)
			found := c.ask(share.scope, share.filter, v, 60)
			if least := min(60, share.have); len(found) < least {
				t.Errorf("%s: %d of %d found", share.name, len(found), least)
			}
			wanted += len(want)
			for _, f := range found[:min(10, len(found))] {
				if slices.Contains(want, f.Key) {
					hits++
				}
			}
		}
		recall := float64(hits) / float64(wanted)
		t.Logf("%s: recall@10 %.3f", share.name, recall)
		if recall < 0.98 {
			t.Errorf("%s: recall@10 %.3f", share.name, recall)
		}
	}
	var scans int
	if c.scan([]any{&scans}, `
select sum(pg_stat_get_numscans(i.indexrelid) + pg_stat_get_xact_numscans(i.indexrelid)) from pg_index i join pg_class x on x.oid = i.indexrelid
where x.relname like 'vectors\_%\_%\_%'`); scans < 12 {
		t.Errorf("the approximate index was used %d times", scans)
	}
}
