package cdc

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

// valueTypes are types with what is special about their values, as SQL
// expressions; each is cast to the type.
var valueTypes = []struct {
	name   string
	values []string
}{
	{"smallint", []string{`-32768`, `32767`, `0`}},
	{"integer", []string{`-2147483648`, `2147483647`, `0`}},
	{"bigint", []string{`-9223372036854775808`, `9223372036854775807`, `0`}},
	{"numeric", []string{`'NaN'`, `'Infinity'`, `'-Infinity'`, `0`, `'0.000'`, `'-0.0'`, `1e-1000`,
		`repeat('9', 1000) || '.' || repeat('9', 1000)`, `repeat('7', 131072)`, `'-0.' || repeat('3', 16383)`}},
	{"numeric(20,4)", []string{`1.5`, `'NaN'`, `-9999999999999999.9999`}},
	{"numeric(3,-2)", []string{`12345`}},
	{"real", []string{`'NaN'`, `'Infinity'`, `'-Infinity'`, `'-0'`, `3.4028235e38`, `1.1754944e-38`, `1.4e-45`, `0.1`, `16777217`}},
	{"double precision", []string{`'NaN'`, `'Infinity'`, `'-Infinity'`, `'-0'`, `1.7976931348623157e308`, `2.2250738585072014e-308`, `4.9e-324`,
		`0.1::float8 + 0.2`, `1e15`, `9007199254740993`, `123456789012345680`}},
	{"money", []string{`'-92233720368547758.08'`, `'92233720368547758.07'`, `'1234.5'`, `'0'`}},
	{"boolean", []string{`true`, `false`}},
	{"char(5)", []string{`'ab'`, `''`, `'ab   '`, `'  ü'`, `'12345'`}},
	{"varchar(8)", []string{`'ab  '`, `''`, `' '`, `'日本語'`}},
	{"text", []string{`''`, `' '`, `E'tab\tline\nreturn\rback\\bell\x07'`, `'NULL'`, `'null'`, `'\N'`, `'{}'`, `'"'`, `''''`, `'日本語 👩‍👩‍👧‍👦 é é'`,
		`U&'\FEFF\200B\2028\FFFD\+10FFFF'`, `E'\x01\x1f\x7f'`, `repeat('z', 100000)`}},
	{`"char"`, []string{`'a'`, `''`, `'\200'`, `'\377'`}},
	{"name", []string{`'Mixed "Case"'`, `''`, `repeat('n', 63)`}},
	{"bytea", []string{`''`, `'\x00'`, `'\xdeadbeef00ff5c27'`, `decode(repeat('ab', 50000), 'hex')`}},
	{"date", []string{`'infinity'`, `'-infinity'`, `'4714-11-24 BC'`, `'5874897-12-31'`, `'0001-01-01'`, `'0001-12-31 BC'`, `'10000-01-01'`, `'2024-02-29'`}},
	{"time", []string{`'00:00'`, `'24:00'`, `'23:59:59.999999'`}},
	{"timetz", []string{`'00:00+15:59:59'`, `'24:00-15:59:59'`, `'12:34:56.7+05:30'`, `'12:00+00'`}},
	{"timestamp", []string{`'infinity'`, `'-infinity'`, `'4714-11-24 00:00:00 BC'`, `'294276-12-31 23:59:59.999999'`, `'10000-01-01'`,
		`'0044-03-15 12:00:00.000001 BC'`, `'2024-02-29 12:00'`}},
	{"timestamptz", []string{`'infinity'`, `'-infinity'`, `'4714-11-24 00:00:00+00 BC'`, `'294276-12-31 23:59:59.999999+00'`, `'10000-01-01 00:00+05:30'`,
		`'0044-03-15 12:00:00.000001+02 BC'`, `'1883-11-18 12:03:57 America/New_York'`, `'2024-06-01 12:00 Europe/Paris'`}},
	{"timestamp(0)", []string{`'2024-02-29 12:00:00.6'`}},
	{"interval", []string{`'0'`, `'-1 year -2 mons +3 days -04:05:06.7'`, `'1 year -1 day'`, `'178000000 years'`, `'-178000000 years'`,
		`'-00:00:00.000001'`, `'2562047788:00:54.775807'`, `'13 months 40 days 25 hours'`}},
	{"uuid", []string{`'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'`, `'00000000-0000-0000-0000-000000000000'`}},
	{"json", []string{`'{"b": 1,   "a" : [ ], "b":2}'`, `'null'`, `'""'`, `'"\u0000"'`, `'"\ud83d\ude00"'`, `'1e400'`, `E'\n [1]\n'`}},
	{"jsonb", []string{`'{"b": 1.50, "a": "ü", "b": 2}'`, `'null'`, `'""'`, `'"\u00e9\ud83d\ude00\\ \" \/ \n"'`, `'1e400'`, `'-1e-400'`,
		`repeat('[', 1000) || repeat(']', 1000)`, `'{"": {"": []}}'`}},
	{"bit(3)", []string{`B'101'`, `B'000'`}},
	{"varbit", []string{`B''`, `B'1'`, `repeat('10', 500)`}},
	{"inet", []string{`'10.0.0.1'`, `'10.0.0.1/8'`, `'::1'`, `'2001:db8::ff00:42:8329/64'`, `'::ffff:1.2.3.4'`}},
	{"cidr", []string{`'10.0.0.0/8'`, `'::/0'`, `'192.168.1.1/32'`}},
	{"macaddr", []string{`'08-00-2b-01-02-03'`}},
	{"macaddr8", []string{`'08:00:2b:01:02:03'`, `'08:00:2b:01:02:03:04:05'`}},
	{"point", []string{`'(1.5,-2e300)'`, `'(NaN,Infinity)'`, `'(-0,0)'`}},
	{"line", []string{`'{1,-1,0.1}'`, `'[(0,0),(0,1)]'`}},
	{"lseg", []string{`'[(1,2),(3,4)]'`}},
	{"box", []string{`'(1,2),(3,4)'`, `'(3,2),(1,Infinity)'`}},
	{"path", []string{`'[(1,2),(3,4)]'`, `'((1,2),(3,4))'`}},
	{"polygon", []string{`'((0,0),(1,1),(1,0))'`}},
	{"circle", []string{`'<(1,2),0.1>'`, `'<(0,0),Infinity>'`}},
	{"tsvector", []string{`''`, `'a:1A,2B ''it''''s'' \\ "'`, `to_tsvector('english', 'The fat cats ate')`}},
	{"tsquery", []string{`''`, `'a & !b <2> (c | ''it''''s'':*AB)'`}},
	{"int4range", []string{`'[1,5]'`, `'empty'`, `'(,)'`, `'[1,)'`}},
	{"int8range", []string{`'(1,5]'`}},
	{"numrange", []string{`'(1.50,NaN]'`, `'[-Infinity,Infinity]'`, `'(,1)'`}},
	{"tsrange", []string{`'["2024-01-01 00:00",infinity)'`, `'(0044-03-15 BC,)'`}},
	{"tstzrange", []string{`'["2024-01-01 00:00+05:30",)'`}},
	{"daterange", []string{`'[2024-01-01,2024-02-01]'`, `'[-infinity,infinity]'`}},
	{"int4multirange", []string{`'{}'`, `'{[1,3),[5,7]}'`}},
	{"tstzmultirange", []string{`'{["2024-01-01 00:00+02","2024-01-02 00:00+02"),(,-infinity]}'`}},
	{"integer[]", []string{`'{}'`, `'{{1,NULL},{3,4}}'`, `'[-2:0]={1,2,3}'`, `'[0:1][5:6]={{1,2},{3,4}}'`, `'{{{{{{7}}}}}}'`}},
	{"text[]", []string{`array['a,b', '"', '\', null, 'NULL', 'null', '', ' ', '{', '}', E'\n', 'ü', ';']`, `'{}'`, `array[array['a', null], array['', 'b']]`}},
	{"timestamptz[]", []string{`array['2024-01-01 12:00+02', 'infinity', null]::timestamptz[]`}},
	{"bytea[]", []string{`array['\x00'::bytea, '']`}},
	{"jsonb[]", []string{`array['{"a": "b"}'::jsonb, 'null', null]`}},
	{"box[]", []string{`array['(1,2),(3,4)'::box, '(5,6),(7,8)']`}}, // its delimiter is a semicolon
	{"numrange[]", []string{`array['(1,2)'::numrange, 'empty']`}},
	{"oid", []string{`0`, `4294967295`}},
	{"oidvector", []string{`'1 2 3'`, `''`}},
	{"int2vector", []string{`'1 -2'`}},
	{"xid", []string{`'4294967295'`}},
	{"xid8", []string{`'18446744073709551615'`}},
	{"cid", []string{`'7'`}},
	{"tid", []string{`'(4294967295,65535)'`}},
	{"regclass", []string{`'pg_class'`, `'"Odd ""name"".x"'`, `0`, `99999999`}},
	{"regtype", []string{`'integer'`, `'timestamp with time zone'`, `'mood'`, `0`}},
	{"regproc", []string{`'now'`, `0`}},
	{"regprocedure", []string{`'abs(bigint)'`, `'own(mood)'`}},
	{"regoper", []string{`'||/'`}},
	{"regoperator", []string{`'+(integer,integer)'`}},
	{"regnamespace", []string{`'public'`, `'"Odd schema"'`}},
	{"regrole", []string{`'pg_monitor'`}},
	{"regconfig", []string{`'english'`}},
	{"regdictionary", []string{`'simple'`}},
	{"regcollation", []string{`'"C"'`}},
	{"pg_lsn", []string{`'FFFFFFFF/FFFFFFFF'`, `'0/0'`}},
	{"txid_snapshot", []string{`'10:20:10,14,15'`}},
	{"pg_snapshot", []string{`'10:20:10,14,15'`, `'7:7:'`}},
	{"jsonpath", []string{`'$.a[*] ? (@.b > 1.50)'`}},
	{"refcursor", []string{`'a "cursor"'`}},
	{"mood", []string{`'fine'`, `'so so, "quoted"'`}},
	{"mood[]", []string{`array['fine', null, 'so so, "quoted"']::mood[]`}},
	{"pair", []string{`row(1, 'x "y", z\')`, `row(null, null)`, `row(null, '')`, `row(1, '(a,b)')`}},
	{"nest", []string{`row(row(1, 'a "b"'), array[row(2, null)::pair, null], 'fine')`, `row(null, '{}', null)`}},
	{"pair[]", []string{`array[row(1, 'a,"b"\')::pair, null, row(null, null)]`}},
	{"small", []string{`5`}},
	{"list", []string{`array[1, null, 2]`, `'[5:6]={1,2}'`, `'{}'`}},
	{"couple", []string{`row(1, 'domain over a composite')`}},
	{"small[]", []string{`array[1, 2]::small[]`}},
	{"moodrange", []string{`moodrange('fine', 'so so, "quoted"', '[]')`, `'empty'`}},
}

const valueDDL = `
create type mood as enum ('fine', 'so so, "quoted"');
create type pair as (a int, b text);
create type nest as (p pair, list pair[], m mood);
create domain small as int check (value < 10);
create domain list as int[];
create domain couple as pair;
create type moodrange as range (subtype = mood);
create table "Odd ""name"".x" (id int);
create schema "Odd schema";
create function own(mood) returns int language sql as 'select 1'`

// optionalTypes come with extensions, or with how the server was built.
var optionalTypes = []struct {
	extension, name string
	values          []string
}{
	{"hstore", "hstore", []string{`'a=>1, "b c"=>NULL, "\"q\""=>"\\"'`, `''`}},
	{"citext", "citext", []string{`'MiXed'`, `''`}},
	{"ltree", "ltree", []string{`'Top.Science.Astronomy'`, `''`}},
	{"cube", "cube", []string{`'(1,2),(3,4.5)'`}},
	{"vector", "vector(3)", []string{`'[1,2.5,-3e-10]'`}},
	{"isn", "isbn13", []string{`'978-0-306-40615-7'`}},
}

// printed are types whose cast to text is not how Postgres prints them in rows:
// true::text is true, printed it is t.
var printed = []string{"boolean", "char(5)", "inet", "cidr", "xml"}

// valued is a source with a table that has a column for each type.
type valued struct {
	*source
	conn    *pgx.Conn // from before the database was given odd defaults
	table   whence.Table
	types   []string
	values  [][]string
	longest int
}

func newValued(t *testing.T) *valued {
	t.Helper()
	v := &valued{table: whence.Table{ID: 1, Source: "app", Schema: "public", Relation: "Types", KeyColumns: []string{"id"}, Definition: 1}}
	v.source = newSource(t, valueDDL)
	var err error
	if v.conn, err = pgx.Connect(t.Context(), v.db.DSN); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.conn.Close(context.Background()) })
	add := func(name string, values []string) {
		v.types, v.values, v.longest = append(v.types, name), append(v.values, values), max(v.longest, len(values))
	}
	for _, ty := range valueTypes {
		add(ty.name, ty.values)
	}
	for _, ty := range optionalTypes {
		if _, err := v.conn.Exec(t.Context(), `create extension `+ty.extension); err != nil {
			t.Logf("without %s: %v", ty.extension, err)
			continue
		}
		add(ty.name, ty.values)
	}
	if _, err := v.conn.Exec(t.Context(), `select '<a/>'::xml`); err == nil {
		add("xml", []string{`'<a b="c">d &amp; e</a>'`, `''`, `'<?xml version="1.0"?><a/>'`})
	}
	var columns []string
	for i, ty := range v.types {
		// Names that need quotes, and more bytes than letters.
		v.table.TextColumns = append(v.table.TextColumns, fmt.Sprintf(`%d. "ü" %.20s`, i, ty))
		columns = append(columns, pgx.Identifier{v.table.TextColumns[i]}.Sanitize()+" "+ty)
	}
	v.exec(`create table "Types" (id int primary key, other int, ` + strings.Join(columns, ", ") + `)`)
	v.sink.register(v.table)
	return v
}

func (v *valued) exec(sql string, args ...any) {
	v.t.Helper()
	if _, err := v.conn.Exec(v.t.Context(), sql, args...); err != nil {
		v.t.Fatalf("%.300s: %v", sql, err)
	}
}

// expressions are the n-th values of all types, and null where a type has fewer.
func (v *valued) expressions(n int) []string {
	out := make([]string, len(v.types))
	for i, ty := range v.types {
		if out[i] = "null"; n < len(v.values[i]) {
			out[i] = "(" + v.values[i][n] + ")::" + ty
		}
	}
	return out
}

func (v *valued) insert(from int) {
	v.t.Helper()
	for n := range v.longest {
		v.exec(fmt.Sprintf(`insert into "Types" values (%d, 0, %s)`, from+n, strings.Join(v.expressions(n), ", ")))
	}
}

// update sets the rows from the given one on, which may hold anything.
func (v *valued) update(from int) {
	v.t.Helper()
	for n := range v.longest {
		var set []string
		for i, e := range v.expressions(n) {
			set = append(set, pgx.Identifier{v.table.TextColumns[i]}.Sanitize()+" = "+e)
		}
		v.exec(fmt.Sprintf(`update "Types" set %s where id = %d`, strings.Join(set, ", "), from+n))
	}
}

func (v *valued) empty(from int) {
	v.t.Helper()
	v.exec(`insert into "Types" (id) select generate_series($1::int, $2)`, from, from+v.longest-1)
}

// texts compares what the sink holds with the source's own casts to text.
func (v *valued) texts() {
	v.t.Helper()
	c, err := New(v.cfg)
	if err != nil {
		v.t.Fatal(err)
	}
	conn, err := c.connect(v.t.Context())
	if err != nil {
		v.t.Fatal(err)
	}
	defer closeConn(v.t.Context(), conn.PgConn())
	v.sink.mu.Lock()
	defer v.sink.mu.Unlock()
	rows := 0
	for i, column := range v.table.TextColumns {
		name := pgx.Identifier{column}.Sanitize()
		text := name + "::text"
		if slices.Contains(printed, v.types[i]) {
			text = "format('%s', " + name + ")"
		}
		found, err := conn.Query(v.t.Context(), `select id::text, case when num_nulls(`+name+`) = 0 then `+text+` end from public."Types"`)
		if err != nil {
			v.t.Fatal(err)
		}
		var id string
		var want *string
		rows = 0
		_, err = pgx.ForEachRow(found, []any{&id, &want}, func() error {
			rows++
			got, there := v.sink.tables[1].records[whence.Key(`{"id":"`+id+`"}`)].row[column]
			if !there || (got == nil) != (want == nil) || got != nil && *got != *want {
				v.t.Errorf("%s, row %s: got %.200s, want %.200s", v.types[i], id, show(got), show(want))
			}
			return nil
		})
		if err != nil {
			v.t.Fatal(err)
		}
	}
	live := 0
	for _, r := range v.sink.tables[1].records {
		if r.row != nil {
			live++
		}
	}
	if live != rows {
		v.t.Errorf("%d records of %d rows", live, rows)
	}
}

func show(s *string) string {
	if s == nil {
		return "null"
	}
	return fmt.Sprintf("%q", *s)
}

// Every type's values read as Postgres's own text, whichever way they come, and
// whatever the database, the role and the server print by themselves.
func TestValues(t *testing.T) {
	v := newValued(t)
	name := pgx.Identifier{v.db.Name}.Sanitize()
	for _, set := range []string{`datestyle = 'German'`, `intervalstyle = 'iso_8601'`, `timezone = 'Asia/Kathmandu'`, `extra_float_digits = -15`,
		`bytea_output = 'escape'`, `xmlbinary = 'hex'`, `quote_all_identifiers = on`, `search_path = '"Odd schema"', public`,
		`standard_conforming_strings = off`, `client_encoding = 'LATIN1'`, `default_transaction_isolation = 'serializable'`} {
		v.exec(`alter database ` + name + ` set ` + set)
	}
	v.insert(100) // is copied
	v.empty(200)  // is copied, and updated in the stream
	v.start()
	v.settle()
	v.texts()
	for ty, want := range map[string]map[int]string{ // the session's settings, not the database's
		"regclass":         {0: `pg_class`, 1: `public."Odd ""name"".x"`},
		"timestamptz":      {5: `0044-03-15 10:00:00.000001+00 BC`},
		"bytea":            {2: `\xdeadbeef00ff5c27`},
		"interval":         {1: `-1 years -2 mons +3 days -04:05:06.7`},
		"double precision": {7: `0.30000000000000004`},
		"money":            {2: `$1,234.50`},
	} {
		for n, text := range want {
			key := whence.Key(fmt.Sprintf(`{"id":"%d"}`, 100+n))
			if got := v.sink.tables[1].records[key].row[v.table.TextColumns[slices.Index(v.types, ty)]]; got == nil || *got != text {
				t.Errorf("%s: %s, want %s", ty, show(got), text)
			}
		}
	}
	v.insert(300)
	v.empty(400)
	v.update(200)
	v.update(400)
	v.settle()
	v.texts()
	v.exec(`update "Types" set other = 1`) // what is kept out of line does not come again
	v.exec(`alter table "Types" replica identity full`)
	v.settle()
	v.exec(`update "Types" set other = 2; update "Types" set id = id + 1000 where id < 200`)
	v.update(300)
	v.settle()
	v.texts()
}

// keyValues are, for each type, the keys of two rows that stay, of one that is
// deleted, and of one with what it becomes.
var keyValues = map[string][5]string{
	"numeric":          {`1.0`, `'NaN'`, `'-Infinity'`, `2.0`, `2.00`}, // equal, and yet another text
	"double precision": {`'Infinity'`, `0.1`, `'NaN'`, `0`, `'-0'`},
	"money":            {`'1'`, `'-2'`, `'3'`, `'4'`, `'5'`},
	"boolean":          {`null`, `null`, `null`, `true`, `false`},
	"char(5)":          {`'ab'`, `''`, `' c'`, `'d'`, `'e    '`},
	"text":             {`''`, `E'"\\\n\t{}'`, `'ü<&>' || U&'\2028'`, `'d'`, `'D'`},
	`"char"`:           {`'a'`, `'\377'`, `'c'`, `'d'`, `'e'`},
	"name":             {`'Mixed'`, `'"'`, `'c'`, `'d'`, `'e'`},
	"bytea":            {`''`, `'\x00'`, `'\xff'`, `'\x01'`, `'\x02'`},
	"date":             {`'infinity'`, `'0044-03-15 BC'`, `'5874897-12-31'`, `'2024-01-01'`, `'-infinity'`},
	"timestamptz":      {`'infinity'`, `'0044-03-15 12:00+02 BC'`, `'2024-01-01 12:00+05:30'`, `'2024-01-01'`, `'-infinity'`},
	"timetz":           {`'12:00+02'`, `'24:00-01'`, `'00:00+00'`, `'12:00+03'`, `'13:00+03'`},
	"interval":         {`'1 year'`, `'-1 day'`, `'0'`, `'30 days'`, `'720:00'`}, // equal to it
	"uuid":             {`gen_random_uuid()`, `gen_random_uuid()`, `gen_random_uuid()`, `gen_random_uuid()`, `gen_random_uuid()`},
	"jsonb":            {`'{"a": 1}'`, `'[]'`, `'""'`, `'1'`, `'1.0'`},
	"inet":             {`'10.0.0.1'`, `'::1/64'`, `'10.0.0.0/8'`, `'1.2.3.4'`, `'1.2.3.4/31'`},
	"bit varying":      {`B''`, `B'1'`, `B'0'`, `B'01'`, `B'10'`},
	"int[]":            {`'{}'`, `'{1,2}'`, `'{1,NULL}'`, `'{3}'`, `'[0:0]={3}'`},
	"int4range":        {`'[1,2)'`, `'empty'`, `'(,)'`, `'[5,6]'`, `'[7,8]'`},
	"pg_lsn":           {`'0/0'`, `'1/2'`, `'2/3'`, `'3/4'`, `'4/5'`},
	"mood":             {`'fine'`, `null`, `null`, `'so so'`, `'calm'`},
	"pair":             {`row(1, 'a')`, `row(1, 'x "y", z')`, `row(2, '')`, `row(3, 'c')`, `row(3, 'd')`},
	"citext":           {`'A'`, `'b'`, `'c'`, `'d'`, `'D'`},
}

// A key has one text, and every change of it tells the old one.
func TestKeysOfEveryType(t *testing.T) {
	s := newSource(t, `create type mood as enum ('fine', 'so so', 'calm'); create type pair as (a int, b text)`)
	if _, err := s.db.Pool.Exec(t.Context(), `create extension citext`); err != nil {
		s.exec(`create domain citext as text`)
	}
	insert := func(id int, v string, body string) {
		if v != "null" {
			s.exec(fmt.Sprintf(`insert into k%d values (%s, '%s')`, id, v, body))
		}
	}
	names := slices.Sorted(maps.Keys(keyValues))
	var tables []whence.Table
	for i, name := range names {
		s.exec(fmt.Sprintf(`create table k%d (id %s primary key, body text)`, i, name))
		keys := keyValues[name]
		for n, key := range keys[:4] {
			insert(i, key, fmt.Sprint("copied ", n))
		}
		tables = append(tables, table(int32(i+1), fmt.Sprint("k", i), "id"))
		s.sink.register(tables[i])
	}
	s.start()
	s.settle()
	for round := range 2 { // of rows that were copied, and of rows that came in the stream
		for i, name := range names {
			v := keyValues[name]
			if round > 0 {
				s.exec(fmt.Sprintf(`delete from k%d`, i))
				for n := range 4 {
					insert(i, v[n], fmt.Sprint("streamed ", n))
				}
			}
			s.exec(fmt.Sprintf(`update k%d set body = body || '!'`, i))
			s.exec(fmt.Sprintf(`delete from k%d where body like '%%d 2!'`, i))
			s.exec(fmt.Sprintf(`update k%d set id = %s where body like '%%d 3!'`, i, v[4]))
		}
		s.settle()
		for _, table := range tables {
			s.compare(table)
		}
	}
}

// Values that an enum has had added are read in the stream, in the transaction
// that comes next and wherever the type is used.
func TestEnumGrows(t *testing.T) {
	notes := table(1, "notes", "id")
	notes.TextColumns = []string{"m", "ms", "p"}
	s := newSource(t, `create type mood as enum ('a'); create type pair as (m mood, t text);
		create table notes (id int primary key, m mood, ms mood[], p pair); insert into notes values (1, 'a', '{a}', row('a', ''))`, notes)
	s.start()
	s.settle()
	for i, label := range []string{"b", "c d", `e"f,`} {
		s.exec(`alter type mood add value ` + "'" + label + "' before 'a'")
		s.exec(`insert into notes values ($1, $2::text::mood, array[$2::text::mood, null], row($2::text::mood, 'x'))`, i+2, label)
		s.exec(`update notes set m = $1::text::mood where id = 1`, label)
	}
	s.settle()
	s.compare(notes)
}
