package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// outcome is what a command line did.
type outcome struct {
	args     []string
	status   int
	out, err string
}

// cli runs a command line as main does; --url and --token are added for the
// commands that take them.
func (w *running) cli(t *testing.T, args ...string) outcome {
	t.Helper()
	return command(t, w.credentialed(args)...)
}

func (w *running) credentialed(args []string) []string {
	token := ""
	switch args[0] {
	case "source", "table", "space", "answer", "audit", "issuer", "agent", "grant", "revoke", "reinstate", "key", "action", "upstream", "approval":
		token = w.env["WHENCE_OPERATOR_TOKEN"]
	case "query", "record", "remember", "forget":
		token = w.env["WHENCE_AGENT_TOKEN"]
	case "task":
		token = w.env["WHENCE_AGENT_TOKEN"]
		if len(args) > 1 && args[1] == "list" {
			token = w.env["WHENCE_OPERATOR_TOKEN"]
		}
	}
	if token == "" {
		return args
	}
	return append(append([]string{}, args...), "--url", w.url, "--token", token)
}

func command(t *testing.T, args ...string) outcome {
	t.Helper()
	var out, log strings.Builder
	status := run(t.Context(), args, &out, &log)
	return outcome{args, status, out.String(), log.String()}
}

// line is the command line without credentials.
func (o outcome) line() string {
	words := make([]string, len(o.args))
	for i, a := range o.args {
		words[i] = line(a, 60)
	}
	return strings.Join(words, " ")
}

// is checks the status and that the command wrote every one of the words.
func (o outcome) is(t *testing.T, status int, words ...string) {
	t.Helper()
	if o.status != status {
		t.Errorf("whence %s: status %d, want %d\n%s%s", o.line(), o.status, status, o.out, o.err)
	}
	for _, word := range words {
		if !strings.Contains(o.out+o.err, word) {
			t.Errorf("whence %s does not say %q:\n%s%s", o.line(), word, o.out, o.err)
		}
	}
}

// testCommandLine walks through the commands as a person would, and through the
// same with --json as a script would.
func (w *running) testCommandLine(t *testing.T) {
	t.Parallel()
	w.exec(t, `create table public.larder (id int primary key, owner text, what text, kept timestamptz)`)
	w.exec(t, `insert into public.larder values (1, 'ann', 'damson jam of last autumn', now()), (2, 'bob', 'pickled samphire', now())`)
	w.cli(t, "table", "register", "app", "public.larder", "--text", "what", "--subject", "owner", "--attribute", "owner",
		"--time", "kept", "--half-life", "48h", "--wait").is(t, 0, "LIVE")
	w.cli(t, "table", "register", "app", "public.larder", "--text", "what", "--subject", "owner", "--attribute", "owner",
		"--time", "kept", "--half-life", "48h", "--language", "dutch").is(t, 0, "LIVE")
	memory, source, secret := w.env["WHENCE_DATABASE_URL"], w.env["WHENCE_SOURCE_URL"], w.env["WHENCE_SECRET_KEY"]

	var asked v1.QueryResponse
	clerk, own := w.agent().delegate(t, &v1.DelegateRequest{Agent: "clerk", Purpose: "keep the larder",
		Scope: &v1.Scope{AllTables: true, AllSubjects: true, Actions: []string{"memory:read"}}})
	command(t, "query", "damson jam", "--table", "app.public.larder", "--limit", "1", "--json", "--url", w.url, "--token", clerk.token).
		message(t, &asked)
	if len(asked.GetHits()) != 1 {
		t.Fatalf("%d hits", len(asked.GetHits()))
	}
	answer, task := asked.GetAnswerId(), own.GetId()
	helper := w.enrol(t, "helper")
	for _, c := range []struct {
		args  []string
		words []string
	}{
		{[]string{"source"}, []string{"SOURCE", "app", "STREAMING"}},
		{[]string{"source", "list"}, []string{"app"}},
		{[]string{"source", "get", "app"}, []string{"app", "STREAMING"}},
		{[]string{"table"}, []string{"app.public.larder", "LIVE"}},
		{[]string{"table", "list", "--source", "app"}, []string{"app.public.larder", "2/2"}},
		{[]string{"table", "get", "app.public.larder"}, []string{"LIVE", "embedding calls: 2 made", "language: dutch"}},
		{[]string{"table", "preview", "app", "public.larder", "--text", "what", "--language", "elvish"}, []string{"cannot be registered", "elvish", "dutch, english"}},
		{[]string{"table", "watch", "app.public.larder"}, []string{"LIVE"}},
		{[]string{"query", "damson jam"}, []string{"app.public.larder", "damson jam", "answer ", "source app applied to", "calls left"}},
		{[]string{"query", "samphire", "--subject", "bob", "--filter", "owner=bob", "--recency-weight", "0.5", "--half-life", "1h", "--fresh-only"},
			[]string{"pickled samphire", "FRESH"}},
		{[]string{"query", "zyzzyva", "--subject", "nobody"}, []string{"nothing found"}},
		{[]string{"record", "app.public.larder", "id=1"}, []string{"version 1", "LIVE", "damson jam"}},
		{[]string{"answer"}, []string{"TIME", "ANSWER"}},
		{[]string{"answer", "list", "--task", task}, []string{answer, "clerk", "damson jam"}},
		{[]string{"answer", "get", answer}, []string{"damson jam", "clerk", "shown: version 1", "now: version 1"}},
		{[]string{"answer", "trace", "app.public.larder", "id=1"}, []string{"1 versions", answer}},
		{[]string{"audit"}, []string{"DECISION", "ALLOWED"}},
		{[]string{"audit", "list", "--call", "whence.v1.MemoryService/Query", "--limit", "5"}, []string{"whence.v1.MemoryService/Query"}},
		{[]string{"audit", "list", "--refused"}, []string{"DECISION"}},
		{[]string{"task", "get"}, []string{"dev-agent", "ACTIVE", "/1000000"}},
		{[]string{"task", "list"}, []string{"dev-agent", "ACTIVE"}},
		{[]string{"task", "delegate", "helper", "count jars", "--all-tables", "--subject", "ann", "--calls", "3"}, []string{"ey"}},
		{append([]string{"token", "exchange", "helper", "count jars", "--all-tables", "--all-subjects", "--calls", "3"}, helper...), []string{"ey"}},
		{append([]string{"token", "exchange", "helper", "count jars", "--all-tables", "--all-subjects", "--action", "memory:read,memory:write"}, helper...),
			[]string{"granted less than asked: no actions memory:write\n"}},
		{[]string{"token", "login", "--login-issuer", w.env["WHENCE_LOGIN_ISSUER"], "--login-client", w.env["WHENCE_LOGIN_CLIENT"], "--as", "dev", "--url", w.url}, []string{"ey", "signed in as dev, admin\n"}},
		{[]string{"token", "login", "--role", "user", "--login-issuer", w.env["WHENCE_LOGIN_ISSUER"], "--login-client", w.env["WHENCE_LOGIN_CLIENT"], "--as", "user", "--url", w.url}, []string{"ey", "signed in as user, user\n"}},
		{[]string{"token", "inspect", w.env["WHENCE_AGENT_TOKEN"], "--url", w.url}, []string{`"active": true`, "dev-agent"}},
		{[]string{"token", "operator", "ops", "--role", "viewer", "--database-url", memory, "--secret-key", secret, "--issuer", w.env["WHENCE_ISSUER"]}, []string{"ey"}},
		{[]string{"doctor", "--source-url", source, "--secret-key", secret, "--url", w.url}, []string{"ok    secret key", "ok    source", "ok    server"}},
		{[]string{"migrate", "--database-url", memory}, []string{"up to date"}},
		{[]string{"--help"}, []string{"Usage: whence", "doctor", "token"}},
		{[]string{"query", "--help"}, []string{"Usage: whence query", "--fresh-only"}},
		{[]string{"dev", "--help"}, []string{"--data", "--listen"}},
	} {
		t.Run(strings.Join(c.args[:min(2, len(c.args))], "_"), func(t *testing.T) {
			o := w.cli(t, c.args...)
			o.is(t, 0, c.words...)
			if o.err != "" && c.args[0] != "token" && !strings.Contains(o.err, "level=") {
				t.Errorf("whence %s complains: %s", strings.Join(c.args, " "), o.err)
			}
			if c.args[len(c.args)-1] == "--help" { // for people only
				return
			}
			o = w.cli(t, append(c.args, "--json")...)
			o.is(t, 0)
			decoder := json.NewDecoder(strings.NewReader(o.out))
			for n := 0; decoder.More() || n == 0; n++ { // a stream is several values
				var v any
				if err := decoder.Decode(&v); err != nil {
					t.Fatalf("whence %s --json: %v\n%s", strings.Join(c.args, " "), err, o.out)
				}
			}
		})
	}
	for _, c := range []struct {
		status int
		args   []string
		words  []string
	}{
		{2, []string{"quarry"}, []string{"quarry", "--help"}},
		{2, []string{"query"}, []string{"text"}},
		{2, []string{"query", "x", "--tabel", "y"}, []string{"tabel"}},
		{2, []string{"table", "register", "app", "public.larder"}, []string{"--text"}},
		{2, []string{"serve", "--roles", "cook"}, []string{"cook"}},
		{1, []string{"record", "app.public.larder", "id=9"}, []string{"not_found", "RECORD_NOT_FOUND"}},
		{1, []string{"table", "get", "app.public.cellar"}, []string{"not_found"}},
		{1, []string{"table", "register", "app", "public.larder", "--text", "what", "--language", "elvish"}, []string{"LANGUAGE_UNKNOWN", "language", "dutch, english"}},
		{1, append([]string{"token", "exchange", "helper"}, helper...), []string{"what the task is for"}},
		{1, append([]string{"token", "exchange", "stranger", "count jars", "--all-tables", "--all-subjects"}, helper...), []string{"invalid_client", "TOKEN_SIGNATURE_INVALID"}},
		{1, append([]string{"token", "exchange", "helper", "count jars", "--all-tables"}, helper...), []string{"SCOPE_NOT_GRANTED", "subjects: none asked for: name them"}},
		{1, []string{"token", "login", "--login-issuer", w.env["WHENCE_LOGIN_ISSUER"], "--login-client", w.env["WHENCE_LOGIN_CLIENT"], "--as", "user", "--url", w.url}, []string{"ROLE_MISSING", "--role user"}},
		{1, []string{"token", "login", "--url", w.url}, []string{"WHENCE_LOGIN_ISSUER"}},
		{1, []string{"token", "inspect", "a.b", "--url", w.url}, []string{"three parts"}},
		{1, []string{"doctor", "--database-url", memory, "--secret-key", "short"}, []string{"MEND  secret key", "base64"}},
		{1, []string{"dev", "--data", "/dev/null/x"}, nil},
	} {
		w.cli(t, c.args...).is(t, c.status, c.words...)
	}
	command(t, "query", "x", "--url", w.url).is(t, 1, "WHENCE_AGENT_TOKEN", "whence token exchange")
	command(t, "query", "x", "--url", "http://127.0.0.1:1", "--token", "x").is(t, 1, "refused", "WHENCE_URL", "whence serve")
	w.cli(t, "source", "create", "wrong", "--dsn", strings.Replace(source, "/app", "/nowhere", 1)).is(t, 1, "SOURCE_REFUSED", "correct the connection string")

	// Errors are JSON for who asked for that.
	for reason, args := range map[string][]string{"TABLE_NOT_REGISTERED": {"table", "get", "app.public.cellar"}, "": {"query", "x", "--tabel", "y"},
		"SOURCE_NOT_FOUND": {"source", "delete", "nobody", "--force"}} {
		var said struct{ Error failure }
		o := w.cli(t, append(args, "--json")...)
		if err := json.Unmarshal([]byte(o.err), &said); err != nil || said.Error.Reason != reason || said.Error.Message == "" || o.status == 0 {
			t.Errorf("whence %s: status %d, %v, %+v in %s", o.line(), o.status, err, said, o.err)
		}
	}

	// Tokens that the command line prints work.
	token := strings.TrimSpace(command(t, append([]string{"token", "exchange", "helper", "count jars", "--table", "app.public.larder", "--subject", "ann"}, helper...)...).out)
	command(t, "query", "jam", "--url", w.url, "--token", token).is(t, 0, "damson jam")
	if o := command(t, "query", "pickled samphire", "--url", w.url, "--token", token); strings.Contains(o.out, "pickled") {
		t.Errorf("ann's task reads what is bob's: %s", o.out)
	}
	command(t, "task", "end", "--url", w.url, "--token", token).is(t, 0, "ENDED")
	command(t, "query", "samphire", "--url", w.url, "--token", token).is(t, 1, "TASK_ENDED")

	w.cli(t, "source", "pause", "app-of-nobody").is(t, 1, "not_found")
	w.cli(t, "table", "unregister", "app.public.larder").is(t, 0, "forgotten")
	w.cli(t, "table", "get", "app.public.larder").is(t, 1, "not_found")
}

// message reads what a command printed with --json as the API's message.
func (o outcome) message(t *testing.T, into proto.Message) {
	t.Helper()
	o.is(t, 0)
	if err := protojson.Unmarshal([]byte(o.out), into); err != nil {
		t.Fatalf("whence %s: %v\n%s", o.line(), err, o.out)
	}
}

// testWatchFromTheCommandLine watches a table while its rows are copied.
func (w *running) testWatchFromTheCommandLine(t *testing.T) {
	t.Parallel()
	w.exec(t, `create table public.crowd (id int primary key, what text)`)
	w.exec(t, `insert into public.crowd select i, 'guest ' || i || ' brings a present' from generate_series(1, 3000) i`)
	w.cli(t, "table", "register", "app", "public.crowd", "--template", "{{id}}: {{what}}", "--wait").is(t, 0, "LIVE", "rows 3000/3000", "pending 0")

	// A watcher who leaves is no error.
	ctx, cancel := context.WithCancel(t.Context())
	var out, log strings.Builder
	cancel()
	if s := run(ctx, w.credentialed([]string{"table", "watch", "app.public.crowd"}), &out, &log); s > 1 {
		t.Errorf("status %d: %s", s, log.String())
	}
}
