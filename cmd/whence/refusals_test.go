package main

import (
	"bufio"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/internal/pgtest"
	"github.com/whence-db/whence/internal/seal"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// bad is one case of testdata/refusals.txt.
type bad struct {
	name                         string
	call, as, body, code, reason string
	says                         []string
}

// testRefusals makes every call of testdata/refusals.txt.
func (w *running) testRefusals(t *testing.T) {
	t.Parallel()
	w.exec(t, `create table public.shelf (id int primary key, owner text, what text)`)
	w.exec(t, `insert into public.shelf values (1, 'ann', 'a crate of quinces'), (2, 'bob', 'a crate of medlars')`)
	w.exec(t, `create table public.keyless (what text)`)
	w.exec(t, `create table public.desk (id int primary key, owner text, what text)`)
	w.exec(t, `create view public.sight as select id, what from public.desk`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.shelf", TextColumns: []string{"what"}, SubjectColumn: "owner"})
	w.register(t, &v1.RegisterTableRequest{Table: "public.desk", TextColumns: []string{"what"}, SubjectColumn: "owner"})
	tokens := credentials(t, w)
	for _, c := range readBad(t, "testdata/refusals.txt") {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			token, ok := tokens[c.as]
			if !ok {
				t.Fatalf("no credential %q", c.as)
			}
			body := strings.NewReplacer("@10MB@", strings.Repeat("x", 10<<20), "@9000@", strings.Repeat("x", 9000)).Replace(c.body)
			b, err := caller{w.http, w.url, token}.post(t.Context(), c.call, []byte(body))
			var r *refusal
			if !errors.As(err, &r) {
				t.Fatalf("want a refusal, got %.300s, %v", b, err)
			}
			c.check(t, r)
		})
	}
}

func (c bad) check(t *testing.T, r *refusal) {
	t.Helper()
	if r.Code != c.code || r.reason() != c.reason {
		t.Errorf("got %v, want %s %s", r, c.code, c.reason)
	}
	for _, word := range c.says {
		if !strings.Contains(strings.ToLower(r.Message), strings.ToLower(word)) {
			t.Errorf("the message %q does not say %q", r.Message, word)
		}
	}
	if len(strings.Fields(r.Message)) < 3 {
		t.Errorf("the message %q helps nobody", r.Message)
	}
}

// credentials are what the cases call with.
func credentials(t *testing.T, w *running) map[string]string {
	t.Helper()
	narrow, _ := w.agent().delegate(t, &v1.DelegateRequest{Agent: "narrow", Purpose: "read what ann put on the shelf",
		Scope: &v1.Scope{Tables: []string{"app.public.shelf"}, Subjects: []string{"ann"}, Actions: []string{"memory:read"}}})
	idle, _ := w.agent().delegate(t, &v1.DelegateRequest{Agent: "idle", Purpose: "do nothing"})
	ended, _ := w.agent().delegate(t, &v1.DelegateRequest{Agent: "ended", Purpose: "end at once",
		Scope: &v1.Scope{AllTables: true, AllSubjects: true, Actions: []string{"memory:read"}}})
	lead, _ := w.agent().delegate(t, &v1.DelegateRequest{Agent: "lead", Purpose: "hand work on",
		Scope: &v1.Scope{AllTables: true, AllSubjects: true, Actions: []string{"memory:read", "task:delegate"}}})
	ended.must(t, "TaskService/EndTask", &v1.EndTaskRequest{}, &v1.EndTaskResponse{})
	agent := w.env["WHENCE_AGENT_TOKEN"]
	from, to := len(agent)-40, len(agent)-20 // within the signature
	garbled := agent[:from] + strings.Map(func(r rune) rune {
		if r == 'A' {
			return 'B'
		}
		return 'A'
	}, agent[from:to]) + agent[to:]
	return map[string]string{
		"agent": agent, "operator": w.env["WHENCE_OPERATOR_TOKEN"], "none": "", "words": "open sesame", "garbled": garbled,
		"narrow": narrow.token, "idle": idle.token, "ended": ended.token, "lead": lead.token,
		"viewer":  signed(t, w, authz.RoleViewer, time.Now, w.env["WHENCE_ISSUER"]),
		"expired": signed(t, w, authz.RoleAdmin, func() time.Time { return time.Now().Add(-2 * time.Hour) }, w.env["WHENCE_ISSUER"]),
		"foreign": signed(t, w, authz.RoleAdmin, time.Now, "https://elsewhere.example"),
	}
}

// signed makes an operator's token with the server's own keys.
func signed(t *testing.T, w *running, role authz.Role, clock func() time.Time, issuer string) string {
	t.Helper()
	secret, err := seal.ParseKey(w.env["WHENCE_SECRET_KEY"])
	if err != nil {
		t.Fatal(err)
	}
	keys, err := authz.LoadKeys(t.Context(), authz.KeysConfig{Pool: w.memory, Seal: secret})
	if err != nil {
		t.Fatal(err)
	}
	i, err := authz.NewIssuer(authz.IssuerConfig{Name: issuer, Keys: keys, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := i.IssueOperator("somebody", role, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// readBad reads cases: blocks of "word value" lines, each headed by "# name".
func readBad(t *testing.T, path string) (cases []bad) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		word, value, _ := strings.Cut(lines.Text(), " ")
		value = strings.TrimSpace(value)
		if word == "#" {
			cases = append(cases, bad{name: value})
			continue
		}
		if word == "" || len(cases) == 0 {
			continue
		}
		c := &cases[len(cases)-1]
		switch word {
		case "call":
			c.call = value
		case "as":
			c.as = value
		case "body":
			c.body = value
		case "code":
			c.code = value
		case "reason":
			c.reason = value
		case "says":
			c.says = strings.Fields(value)
		default:
			t.Fatalf("%s:%d: unknown word %q", path, n, word)
		}
	}
	if lines.Err() != nil || len(cases) == 0 {
		t.Fatalf("%s: %d cases, %v", path, len(cases), lines.Err())
	}
	return cases
}

// A database whose server does not decode its log is refused in words that say
// which setting to change, by the API and by doctor.
func (w *running) testSourceWithoutLogicalDecoding(t *testing.T) {
	t.Parallel()
	cluster := pgtest.OwnCluster(t, map[string]string{"wal_level": "replica"})
	r := w.operator().refused(t, "SourceService/CreateSource", &v1.CreateSourceRequest{Name: "plain", Dsn: cluster.DSN("postgres")})
	bad{code: "failed_precondition", reason: "WAL_LEVEL_NOT_LOGICAL", says: []string{"wal_level", "logical", "restart"}}.check(t, r)
	res := w.cli(t, "doctor", "--source-url", cluster.DSN("postgres"), "--database-url", "", "--url", "")
	res.is(t, 1, "MEND", "wal_level")

	// On the same server: a role that may not install the extension.
	ctx := context.Background()
	if err := createDatabase(ctx, cluster.DSN("postgres"), "poor"); err != nil {
		t.Fatal(err)
	}
	admin := openPool(t, cluster.DSN("poor"))
	if _, err := admin.Exec(ctx, `create role poor login`); err != nil {
		t.Fatal(err)
	}
	dsn := strings.Replace(cluster.DSN("poor"), "whence", "poor", 1)
	w.cli(t, "serve", "--database-url", dsn, "--secret-key", seal.NewKey(), "--listen", "127.0.0.1:0").is(t, 1, "whence migrate")
	w.cli(t, "doctor", "--database-url", dsn, "--source-url", "", "--url", "").is(t, 1, "CREATE EXTENSION vector")
	for _, mend := range []string{`create extension vector`, `grant create on database poor to poor`} {
		says := map[bool]string{true: "CREATE EXTENSION vector", false: "GRANT CREATE"}[strings.Contains(mend, "extension")]
		w.cli(t, "migrate", "--database-url", dsn).is(t, 1, says, "poor")
		if _, err := admin.Exec(ctx, mend); err != nil {
			t.Fatal(err)
		}
	}
	w.cli(t, "migrate", "--database-url", dsn).is(t, 0, "up to date")
	admin.Close()
}

// testTenMegabyteRow captures a row of 10 MB and finds what stands at its end.
func (w *running) testTenMegabyteRow(t *testing.T) {
	w.exec(t, `create table public.tome (id int primary key, what text not null)`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.tome", TextColumns: []string{"what"}})
	w.exec(t, `insert into public.tome select 1, string_agg('Chapter ' || i || ' tells of nothing in particular, at some length, again and again.', E'\n\n') || E'\n\nAt the very end a kestrel alights.'
		from generate_series(1, 142000) i`)
	var size int
	if err := w.source.QueryRow(t.Context(), `select length(what) from public.tome`).Scan(&size); err != nil || size < 10<<20 {
		t.Fatalf("the row has %d bytes, %v", size, err)
	}
	ask := &v1.QueryRequest{Text: "kestrel alights", Tables: []string{"app.public.tome"}}
	start, slowest := time.Now(), time.Duration(0)
	eventually(t, 4*time.Minute, "the end of the long row shows", func() error {
		asked := time.Now()
		hits := w.agent().query(t, ask).GetHits()
		slowest = max(slowest, time.Since(asked))
		for _, h := range hits {
			if strings.Contains(h.GetText(), "kestrel") {
				return nil
			}
		}
		return errors.New("not found")
	})
	t.Logf("a row of %d bytes shows after %v; the slowest question took %v", size, time.Since(start).Round(time.Millisecond), slowest.Round(time.Millisecond))
	w.cli(t, "record", "app.public.tome", "id=1").is(t, 0, "Chapter 1 tells")
	w.exec(t, `delete from public.tome`)
}
