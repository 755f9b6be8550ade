package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence/internal/pgcluster"
	"github.com/whence-db/whence/internal/pgtest"
	"github.com/whence-db/whence/internal/seal"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// Environment of the long form: how often to kill, and the seed to try again.
const (
	chaosKills = "WHENCE_CHAOS"
	chaosSeed  = "WHENCE_CHAOS_SEED"
)

// The server is killed outright at random moments, and its Postgres now and then
// with it, while one table takes every kind of change. Once the stream has caught
// up, the index is the source, row by row.
func TestChaosKillWhileRowsChange(t *testing.T) {
	t.Parallel()
	kills, seed := number(t, chaosKills, 5), uint64(number(t, chaosSeed, int(time.Now().UnixNano()&0xffffff)))
	t.Logf("%d kills with %s=%d", kills, chaosSeed, seed)
	random := rand.New(rand.NewPCG(seed, 1))
	x := newArena(t)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var g errgroup.Group
	writer := &scribe{random: rand.New(rand.NewPCG(seed, 2)), dsn: x.cluster.DSN("app"), undone: map[int]bool{}}
	g.Go(func() error { return writer.run(ctx) })

	for n := range kills {
		c := x.serve(t)
		if n == 0 { // the first kill meets the copying of the rows
			w := x.attach(t, c.ready(t))
			w.operator().must(t, "SourceService/RegisterTable", &v1.RegisterTableRequest{Source: "app", Table: "public.docs",
				TextTemplate: "{{title}}: {{body}}", SubjectColumn: "owner", AttributeColumns: []string{"tag"}}, &v1.RegisterTableResponse{})
		}
		span := 2500
		if n == 0 {
			span = 600
		}
		time.Sleep(time.Duration(random.IntN(span)) * time.Millisecond)
		if n%4 == 2 { // Postgres dies under a living server, which dies a little later
			x.cluster.Kill()
			time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
			if err := x.cluster.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(random.IntN(800)) * time.Millisecond)
		}
		c.kill()
	}

	w := x.attach(t, x.serve(t).ready(t))
	time.Sleep(time.Second) // changes also follow the last start
	stop()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d transactions, %d of them rolled back, %d lost with their connection", writer.done, len(writer.undone), writer.lost)
	if writer.done < 20*kills {
		t.Error("hardly anything was written")
	}
	eventually(t, startLimit, "the index equals the source", func() error { return x.compare(t.Context(), w) })
	x.examine(t, w, writer.undone)
	if t.Failed() {
		t.Logf("try again with %s=%d %s=%d", chaosKills, kills, chaosSeed, seed)
	}
}

func number(t *testing.T, variable string, otherwise int) int {
	t.Helper()
	s := os.Getenv(variable)
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s: want a number", variable, s)
	}
	return n
}

// arena is a cluster of the test's own with both databases, and what servers on
// it need.
type arena struct {
	cluster *pgcluster.Cluster
	env     map[string]string
}

func newArena(t *testing.T) *arena {
	t.Helper()
	x := &arena{cluster: pgtest.OwnCluster(t, map[string]string{"fsync": "on", "synchronous_commit": "on"})}
	ctx := t.Context()
	for _, name := range []string{"memory", "app"} {
		if err := createDatabase(ctx, x.cluster.DSN("postgres"), name); err != nil {
			t.Fatal(err)
		}
	}
	memory := x.cluster.DSN("memory")
	command(t, "migrate", "--database-url", memory).is(t, 0)
	x.env = map[string]string{"WHENCE_DATABASE_URL": memory, "WHENCE_SECRET_KEY": seal.NewKey(), "WHENCE_ISSUER": "http://whence.test"}
	app := openPool(t, x.cluster.DSN("app"))
	for _, sql := range []string{
		`create table docs (id int primary key, title text, body text, owner text, tag text, unseen int)`,
		`insert into docs select i, 'old ' || i, repeat('backfilled row ' || i || '. ', 20), 'owner' || i % 7, null, 0 from generate_series(1, 1500) i`,
	} {
		if _, err := app.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	app.Close()

	o := command(t, "token", "operator", "chaos", "--role", "admin", "--database-url", memory,
		"--secret-key", x.env["WHENCE_SECRET_KEY"], "--issuer", x.env["WHENCE_ISSUER"])
	o.is(t, 0)
	x.env["WHENCE_OPERATOR_TOKEN"] = strings.TrimSpace(o.out)
	c := x.serve(t)
	w := x.attach(t, c.ready(t))
	w.operator().must(t, "SourceService/CreateSource", &v1.CreateSourceRequest{Name: "app", Dsn: x.cluster.DSN("app")}, &v1.CreateSourceResponse{})
	c.kill()
	return x
}

func (x *arena) serve(t *testing.T) *child {
	t.Helper()
	return spawn(t, x.env, "serve", "--listen", "127.0.0.1:0")
}

func (x *arena) attach(t *testing.T, url string) *running {
	t.Helper()
	return &running{url: url, env: x.env, http: newHTTPClient(t),
		source: openPool(t, x.cluster.DSN("app")), memory: openPool(t, x.cluster.DSN("memory"))}
}

// row is a source row, as the index is to know it.
type row struct{ title, body, owner, tag string }

const null = "<null>"

// compare reads both sides and says where they first differ.
func (x *arena) compare(ctx context.Context, w *running) error {
	source, err := sourceRows(ctx, w)
	if err != nil {
		return err
	}
	index, err := indexRows(ctx, w)
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(source)) {
		got, ok := index[id]
		if !ok {
			return fmt.Errorf("row %s is missing (%d rows, %d records)", id, len(source), len(index))
		}
		if got != source[id] {
			return fmt.Errorf("row %s is %.80q in the index and %.80q in the source", id, got, source[id])
		}
	}
	for _, id := range slices.Sorted(maps.Keys(index)) {
		if _, ok := source[id]; !ok {
			return fmt.Errorf("the index has row %s, which the source has not (%d rows, %d records)", id, len(source), len(index))
		}
	}
	return nil
}

func sourceRows(ctx context.Context, w *running) (map[string]row, error) {
	rows, err := w.source.Query(ctx, `select id::text, coalesce(title, $1), coalesce(body, $1), coalesce(owner, $1), coalesce(tag, $1) from docs`, null)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := map[string]row{}
	for rows.Next() {
		var id string
		var r row
		if err := rows.Scan(&id, &r.title, &r.body, &r.owner, &r.tag); err != nil {
			return nil, err
		}
		found[id] = r
	}
	return found, rows.Err()
}

func indexRows(ctx context.Context, w *running) (map[string]row, error) {
	rows, err := w.memory.Query(ctx, `
		select r.key::jsonb->>'id', coalesce(v.columns->>'title', $1), coalesce(v.columns->>'body', $1),
		       coalesce(v.columns->>'owner', $1), coalesce(v.columns->>'tag', $1), coalesce(r.subject, $1)
		from whence.records r
		join whence.tables t on t.id = r.table_id and t.state = 'LIVE'
		left join whence.versions v on v.record_id = r.id and v.version = r.version
		where not r.deleted`, null)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := map[string]row{}
	for rows.Next() {
		var id, subject string
		var r row
		if err := rows.Scan(&id, &r.title, &r.body, &r.owner, &r.tag, &subject); err != nil {
			return nil, err
		}
		if _, twice := found[id]; twice {
			return nil, fmt.Errorf("row %s is there twice", id)
		}
		if subject != r.owner {
			return nil, fmt.Errorf("row %s has the subject %q and the owner %q", id, subject, r.owner)
		}
		found[id] = r
	}
	return found, rows.Err()
}
