package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// table is the demo's table, as it is registered.
const table = "app.public.packages"

// story is what one telling has come to know.
type story struct {
	screen *screen
	whence string // the program
	kind   string // of catalogue
	dir    string // holds the data folder and the log
	http   *http.Client
	began  time.Time

	server, embedder *program
	env              map[string]string // from dev.env
	op               operator
	agent            agent
	db               *pgx.Conn // the source

	first          *v1.QueryResponse // the answer that is traced
	changed, stale string            // names of the row that changed; answer that showed it stale
	fresh, gone    string            // answer that showed it fresh; name of the row that was deleted
}

// tell takes the steps in order and stops at the first that fails.
func (s *story) tell(ctx context.Context) error {
	steps := []struct {
		title, why string
		run        func(context.Context) error
	}{
		{"Start", "A private Postgres in a temporary folder and the server, which captures and answers; " +
			"apart from it the process that embeds texts.", s.start},
		{"Load a catalogue", "Ordinary rows in an ordinary table of the database app. Whence does not know of it yet.", s.load},
		{"Register the table", "Whence copies the rows that are there, follows the log from then on, and embeds each text.", s.register},
		{"Ask three questions", "Each hit says which row, version and log position it came from, how fresh it is, and what its " +
			"score is made of. Each answer is stored before it is given.", s.ask},
		{"Change a row that an answer came from", "The embedding process is stopped first, so that the moment between the change and " +
			"the new vector, otherwise some milliseconds, lasts long enough to look at.", s.change},
		{"Delete a row", "What is gone from the table is gone from the answers.", s.remove},
		{"Hand out less than everything", "The agent delegates a part of its task to another agent: one table, one subject, three calls.", s.delegate},
		{"Trace", "From the first answer to its rows, and from the changed row to every answer that it fed.", s.trace},
	}
	for i, step := range steps {
		s.screen.title(i+1, step.title, step.why)
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("step %d, %q: %w", i+1, step.title, err)
		}
	}
	return s.end()
}

func (s *story) log() string { return filepath.Join(s.dir, "whence.log") }

// start brings up whence dev without the embed role, and whence serve with only that.
func (s *story) start(ctx context.Context) (err error) {
	at := time.Now()
	data := filepath.Join(s.dir, "data")
	var url string
	s.server, url, err = start(ctx, s.dir, s.log(), environment(nil),
		s.whence, "dev", "--data", data, "--listen", "127.0.0.1:0", "--roles", "api,capture")
	if err != nil {
		return err
	}
	if s.env, err = readEnv(filepath.Join(data, "dev.env")); err != nil {
		return err
	}
	s.op = newOperator(s.http, url, s.env["WHENCE_OPERATOR_TOKEN"])
	s.agent = newAgent(s.http, url, s.env["WHENCE_AGENT_TOKEN"])
	s.screen.line("   server    %s  ready in %s (roles api, capture)", url, took(time.Since(at)))
	at = time.Now()
	if err := s.startEmbedder(ctx); err != nil {
		return err
	}
	s.screen.line("   embedder  ready in %s (role embed)", took(time.Since(at)))
	if s.db, err = pgx.Connect(ctx, s.env["WHENCE_SOURCE_URL"]); err != nil {
		return err
	}
	res, err := s.op.sources.ListSources(ctx, &v1.ListSourcesRequest{})
	if err != nil {
		return err
	}
	for _, src := range res.GetSources() {
		s.screen.line("   source    %s  %s  slot %s", src.GetName(), s.screen.state(plain(src.GetState())), src.GetSlot())
	}
	return nil
}

// startEmbedder joins a process that only embeds.
func (s *story) startEmbedder(ctx context.Context) (err error) {
	s.embedder, _, err = start(ctx, "", s.log(), environment(s.env),
		s.whence, "serve", "--roles", "embed", "--listen", "127.0.0.1:0")
	return err
}

const (
	createSQL = `
create table public.packages (
    name        text primary key,
    section     text not null,
    maintainer  text not null,
    version     text not null,
    description text not null,
    listed_at   timestamptz not null
)`
	analyzeSQL = `analyze public.packages`
)

func (s *story) load(ctx context.Context) error {
	c, err := choose(ctx, s.kind)
	if err != nil {
		return err
	}
	at := time.Now()
	if _, err := s.db.Exec(ctx, createSQL); err != nil {
		return err
	}
	n, err := s.db.CopyFrom(ctx, pgx.Identifier{"public", "packages"},
		[]string{"name", "section", "maintainer", "version", "description", "listed_at"},
		pgx.CopyFromSlice(len(c.Rows), func(i int) ([]any, error) {
			r := c.Rows[i]
			return []any{r.Name, r.Section, r.Maintainer, r.Version, r.Description, r.ListedAt}, nil
		}))
	if err != nil {
		return err
	}
	if _, err := s.db.Exec(ctx, analyzeSQL); err != nil { // so that the number of rows is known
		return err
	}
	s.screen.line("   %s rows from %s into public.packages in %s", number(n), c.From, took(time.Since(at)))
	return nil
}

func (s *story) register(ctx context.Context) error {
	began := time.Now()
	res, err := s.op.sources.RegisterTable(ctx, &v1.RegisterTableRequest{
		Source: "app", Table: "public.packages", TextTemplate: "{{name}}: {{description}}",
		SubjectColumn: "section", TimeColumn: "listed_at", AttributeColumns: []string{"section", "version"}})
	if err != nil {
		return err
	}
	t := res.GetTable()
	s.screen.line("   %s  text %q  subject %s  time %s", t.GetName(), t.GetTextTemplate(), t.GetSubjectColumn(), t.GetTimeColumn())
	return s.follow(ctx, t.GetName(), began)
}

// follow shows how a table's capture gets on until everything can be found.
func (s *story) follow(ctx context.Context, name string, began time.Time) error {
	ctx, leave := context.WithCancel(ctx)
	stream, err := s.op.sources.WatchTable(ctx, &v1.WatchTableRequest{Name: name})
	if err != nil {
		leave()
		return err
	}
	defer func() { leave(); _ = stream.Close() }()
	p := newProgress(ctx, s.screen)
	complete := false
	defer func() { p.done(complete) }()
	var live time.Duration
	for !complete {
		res, err := stream.Receive()
		if err != nil {
			return fmt.Errorf("watch the table: %w", err)
		}
		st := res.GetStatus()
		p.show(st)
		if st.GetError() != "" {
			return errors.New(st.GetError())
		}
		if st.GetState() != v1.TableState_TABLE_STATE_LIVE {
			continue
		}
		if live == 0 {
			live = time.Since(began)
		}
		if complete = st.GetPending() == 0; complete {
			all := time.Since(began)
			p.done(true)
			rows, texts := st.GetBackfill().GetRowsDone(), st.GetCalls().GetMade()
			s.screen.line("   %s  %s rows copied in %s: %s rows/s", s.screen.state(plain(st.GetState())), number(rows), took(live), rate(rows, live))
			s.screen.line("   all %s texts embedded %s after registration: %s texts/s", number(texts), took(all), rate(texts, all))
		}
	}
	return nil
}

func (s *story) end() error {
	s.screen.line("\n%s", s.screen.paint(bold, "Done in "+took(time.Since(s.began))+"."))
	s.screen.line("   make dev       the same server, to stay; credentials are written to .whence/dev.env")
	s.screen.line("   bin/whence -h  all of the above as commands: table, query, answer, audit, agent, grant, token, revoke")
	return nil
}

// close ends what was started, the server and its database last.
func (s *story) close() error {
	var closed error
	if s.db != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		closed = s.db.Close(ctx)
	}
	s.http.CloseIdleConnections()
	return errors.Join(closed, s.embedder.stop(), s.server.stop())
}

func clock(t *timestamppb.Timestamp) string { return t.AsTime().Local().Format("15:04:05.000") }
