package ingest

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/whence-db/whence"
)

// chaosTable is a table that schedules write to. Each has the columns title,
// body, rev and extra; what differs is how its rows are identified and stored.
// rev grows with each change of a row, so that an old one can be told.
type chaosTable struct {
	name     string   // registered, "schema.name"
	sql      string   // as statements name it
	create   []string // with {large} for the way that bodies are stored
	keys     []string // the columns that writers set, quoted
	key      func(i int) []any
	specs    []TableSpec // one of these is registered
	alter    []alteration
	mend     []string // brings back what alterations may have left; each may fail
	purge    bool
	identity []string // replica identities that its owner may choose
}

// alteration is what an owner does to a table, in several steps with writers
// between them. It may fail the table when that is what Whence promises.
type alteration struct {
	steps []string
	fails bool
}

func text(format string, args ...any) any { return fmt.Sprintf(format, args...) }

var byDefault = []string{"default", "full"}

// The columns that every table has.
const common = `title text, body text, rev bigint not null, extra int default 0`

func specsOf(name string, more ...TableSpec) []TableSpec {
	specs := append([]TableSpec{
		{TextColumns: []string{"title", "body"}, AttributeColumns: []string{"rev"}},
		{TextTemplate: "{{title}}: {{body}} ({{rev}})", SubjectColumn: "title"},
	}, more...)
	for i := range specs {
		specs[i].Source, specs[i].Table = "app", name
	}
	return specs
}

func chaosTables() []*chaosTable {
	return []*chaosTable{
		{
			name: "public.plain", sql: `plain`, keys: []string{"id"},
			create: []string{`create table plain (id int primary key, ` + common + `)`},
			key:    func(i int) []any { return []any{i} },
			specs:  specsOf("public.plain"),
			alter: []alteration{
				{steps: []string{`alter table plain add column junk text default 'junk'`, `update plain set junk = 'other' where id < 20`, `alter table plain drop column junk`}},
				{steps: []string{`vacuum full plain`}},
				{steps: []string{`create index concurrently plain_title on plain (md5(title))`, `drop index plain_title`}},
				{steps: []string{`begin; lock table plain in access exclusive mode; select pg_sleep(0.2); commit`}},
				{steps: []string{`alter table plain alter title type varchar(100000)`, `alter table plain alter title type text`}, fails: true},
				{steps: []string{`alter table plain alter rev type numeric`, `alter table plain alter rev type bigint`}, fails: true},
				{steps: []string{`alter table plain rename to plain_away`, `alter table plain_away rename to plain`}, fails: true},
				{steps: []string{`alter table plain rename title to caption`, `alter table plain rename caption to title`}, fails: true},
				{steps: []string{`begin; drop table plain; create table plain (id int primary key, ` + common + `); commit`}, fails: true},
				{steps: []string{`alter table plain replica identity nothing`, `alter table plain replica identity default`}, fails: true},
			},
			mend: []string{`alter table plain_away rename to plain`, `alter table plain rename caption to title`,
				`alter table plain replica identity default`, `alter table plain drop column if exists junk`},
			identity: byDefault,
		},
		{
			name: "public.pairs", sql: `pairs`, keys: []string{"b", "a"},
			create:   []string{`create table pairs (b text, title text, a int, body text, rev bigint not null, extra int default 0, primary key (a, b))`},
			key:      func(i int) []any { return []any{text("k%d", i%7), i / 7} },
			specs:    specsOf("public.pairs"),
			identity: byDefault,
			alter: []alteration{
				{steps: []string{`alter table pairs add column junk text`, `alter table pairs drop column junk`}},
				{steps: []string{`alter table pairs alter extra type bigint`, `alter table pairs alter extra type int`}},
			},
			mend: []string{`alter table pairs drop column if exists junk`},
		},
		{
			name: `"Odd.Schema"."My ""Notes"""`, sql: `"Odd.Schema"."My ""Notes"""`, keys: []string{`"The Key"`},
			create: []string{`create schema "Odd.Schema"`, `create table "Odd.Schema"."My ""Notes""" ("The Key" text primary key, ` + common + `)`,
				`alter table "Odd.Schema"."My ""Notes""" replica identity full`},
			key:   func(i int) []any { return []any{text("key %d <ü> \"\\\" '%s'", i, strings.Repeat("long ", i%9*10))} },
			specs: specsOf(`"Odd.Schema"."My ""Notes"""`),
		},
		{
			name: "public.large", sql: `large`, keys: []string{"id"}, purge: true,
			create: []string{`create table large (body text, id bigint, title text, rev bigint not null, extra int default 0, primary key (id))`,
				`alter table large alter body set storage external`},
			key:      func(i int) []any { return []any{int64(i) * 1_000_000_007} },
			specs:    specsOf("public.large"),
			identity: byDefault,
			alter: []alteration{
				{steps: []string{`alter table large alter body set storage extended`, `alter table large alter body set storage external`}},
				{steps: []string{`vacuum full large`}},
				{steps: []string{`alter table large alter body type text using reverse(body)`}},
			},
		},
		{
			name: "public.coded", sql: `coded`, keys: []string{"code"},
			create: []string{`create table coded (id int generated always as identity primary key, code text not null, ` + common + `)`,
				`create unique index coded_code on coded (code)`, `alter table coded alter body set storage external`, `alter table coded replica identity using index coded_code`},
			key:   func(i int) []any { return []any{text("c-%d", i)} },
			specs: specsOf("public.coded"),
			alter: []alteration{
				{steps: []string{`alter table coded replica identity default`, `alter table coded replica identity using index coded_code`}, fails: true},
			},
			mend: []string{`alter table coded replica identity using index coded_code`},
		},
		{
			name: "public.parts", sql: `parts`, keys: []string{"id", "region"},
			create: []string{
				`create table parts (id int, region text, ` + common + `, primary key (id, region)) partition by list (region)`,
				`create table parts_n partition of parts for values in ('n')`,
				`create table parts_s partition of parts for values in ('s')`,
				`create table parts_e partition of parts for values in ('e')`,
				`create table parts_w partition of parts for values in ('w')`,
				`alter table parts_s alter body set storage external`,
			},
			key:   func(i int) []any { return []any{i / 2, []any{"n", "s", "e", "w"}[i%4]} },
			specs: specsOf("public.parts"),
			alter: []alteration{
				{steps: []string{`truncate parts_n`}},
				{steps: []string{`alter table parts detach partition parts_s`, `delete from parts_s where id > 5`, `alter table parts attach partition parts_s for values in ('s')`}},
				{steps: []string{`alter table parts detach partition parts_e concurrently`, `alter table parts detach partition parts_e finalize`,
					`alter table parts attach partition parts_e for values in ('e')`}},
				{steps: []string{`create table parts_x (like parts including all)`,
					`insert into parts_x (id, region, title, rev) select i, 'x', 'attached ' || i, nextval('revs') from generate_series(1, 20) i`,
					`alter table parts attach partition parts_x for values in ('x')`, `drop table parts_x`}},
				{steps: []string{`create table parts_y partition of parts for values in ('y')`,
					`insert into parts (id, region, title, rev) select i, 'y', 'made ' || i, nextval('revs') from generate_series(1, 20) i`,
					`alter table parts detach partition parts_y`, `drop table parts_y`}},
				{steps: []string{`alter table parts_n replica identity full`, `alter table parts_n replica identity default`}},
			},
			mend: []string{`alter table parts detach partition parts_e finalize`,
				`alter table parts attach partition parts_s for values in ('s')`, `alter table parts attach partition parts_e for values in ('e')`},
		},
		{
			name: "public.moody", sql: `moody`, keys: []string{"id"},
			create: []string{`create type mood as enum ('glad', 'sad')`, `create type point2 as (x int, y text)`,
				`create table moody (id int primary key, ` + common + `, mood mood default 'glad', at timestamptz default now(), owner text,
					amount numeric, ratio float8, raw bytea, tags text[], place point2, fixed char(8), span interval)`},
			key: func(i int) []any { return []any{i} },
			specs: specsOf("public.moody",
				TableSpec{TextTemplate: "{{title}} {{mood}} {{body}} {{place}}", SubjectColumn: "owner", TimeColumn: "at",
					AttributeColumns: []string{"rev", "amount", "ratio", "raw", "tags", "fixed", "span"}, OnDelete: whence.OnDeletePurge},
				TableSpec{TextColumns: []string{"title", "mood"}, TimeColumn: "at", AttributeColumns: []string{"rev", "owner"}}),
			identity: byDefault,
			alter: []alteration{
				{steps: []string{`alter type mood add value if not exists 'mad'`, `update moody set mood = 'mad', rev = nextval('revs') where id % 5 = 0`}},
				{steps: []string{`alter type mood rename value 'sad' to 'blue'`, `alter type mood rename value 'blue' to 'sad'`}},
				{steps: []string{`alter type mood rename to humour`, `alter type humour rename to mood`}},
				{steps: []string{`alter type point2 add attribute z int`, `alter type point2 drop attribute z`}},
				{steps: []string{`alter table moody alter amount type numeric(12, 1)`, `alter table moody alter amount type numeric`}},
				{steps: []string{`alter table moody alter owner set default 'nobody'`}},
			},
			mend: []string{`alter type mood rename value 'blue' to 'sad'`, `alter type humour rename to mood`},
		},
	}
}

// columns are those that writers set.
func (c *chaosTable) columns() string { return strings.Join(c.keys, ", ") + ", title, body, rev" }

// at is the condition on the key, with parameters from $n on.
func (c *chaosTable) at(n int) string {
	parts := make([]string, len(c.keys))
	for i, k := range c.keys {
		parts[i] = fmt.Sprintf("%s = $%d", k, n+i)
	}
	return strings.Join(parts, " and ")
}

// prose is short, or long enough to be stored out of line and cut into chunks;
// it does not compress.
func prose(random *rand.Rand) string {
	words := random.IntN(12)
	if random.IntN(5) == 0 {
		words = 400 + random.IntN(900)
	}
	var b strings.Builder
	for i := range words {
		fmt.Fprintf(&b, "%x ", random.Uint32())
		if i%40 == 39 {
			b.WriteString("\n\n")
		}
	}
	return b.String()
}
