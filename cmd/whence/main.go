// Command whence is the server, the development server and the command line of
// Whence. Apart from dev, serve, migrate, doctor and token operator, its
// subcommands are ordinary clients of the public API.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// cli is the grammar of the command line.
type cli struct {
	Dev     devCmd     `cmd:"" help:"Run everything on this machine: a private Postgres, a source to play with, the server."`
	Serve   serveCmd   `cmd:"" help:"Run the server against a memory database."`
	Migrate migrateCmd `cmd:"" help:"Bring the memory database to this version's schema."`
	Doctor  doctorCmd  `cmd:"" help:"Check the memory database, a source and a running server, and say what to mend."`

	Source   sourceCmd   `cmd:"" help:"Connect Postgres databases."`
	Table    tableCmd    `cmd:"" help:"Register tables and watch their capture."`
	Space    spaceCmd    `cmd:"" help:"Change the embedding model."`
	Query    queryCmd    `cmd:"" help:"Ask, as an agent does."`
	Record   recordCmd   `cmd:"" help:"Show one record, as an agent sees it."`
	Remember rememberCmd `cmd:"" help:"Write a note, as an agent does."`
	Forget   forgetCmd   `cmd:"" help:"Remove a note and all that is left of it."`
	Answer   answerCmd   `cmd:"" help:"Show which memories fed an answer, and which answers a record fed."`
	Audit    auditCmd    `cmd:"" help:"Read the audit log."`
	Task     taskCmd     `cmd:"" help:"Look at, delegate and end tasks."`
	Approval approvalCmd `cmd:"" help:"Decide what agents may do that cannot be undone."`
	Action   actionCmd   `cmd:"" help:"Settle which operations agents may call."`
	Token    tokenCmd    `cmd:"" help:"Get credentials."`

	Issuer    issuerCmd    `cmd:"" help:"Trust identity providers."`
	Agent     agentCmd     `cmd:"" help:"Make agents known."`
	Grant     grantCmd     `cmd:"" help:"Settle which agent may act for whom."`
	Upstream  upstreamCmd  `cmd:"" help:"Let agents reach HTTP services through the server."`
	Revoke    revokeCmd    `cmd:"" help:"Stop a task, an agent, a user, a tenant, a token or a key."`
	Reinstate reinstateCmd `cmd:"" help:"Let an agent, a user or a tenant in again."`
	Key       keyCmd       `cmd:"" help:"Look at the keys that sign tokens, and rotate them."`

	JSON bool `name:"json" help:"Print JSON: the API's own messages." short:"j"`
}

// app is what every command runs with.
type app struct {
	out  io.Writer
	err  io.Writer
	json bool
}

func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.out, format, args...) }

// run is main without the process: it parses, runs one command, and returns the
// exit status: 0 when it succeeded, 1 when it failed, 2 when the words are off.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	var c cli
	exited, status := false, 0
	parser, err := kong.New(&c, kong.Name("whence"),
		kong.Description("A provenance-first memory database server for AI agents."),
		kong.UsageOnError(), kong.TypeMapper(reflect.TypeFor[time.Time](), readTime), kong.TypeMapper(reflect.TypeFor[time.Duration](), readDuration), kong.Writers(stdout, stderr),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Exit(func(code int) { exited, status = true, code }))
	if err != nil {
		fmt.Fprintln(stderr, "whence:", err)
		return 2
	}
	parsed, err := parser.Parse(args)
	if exited { // --help
		return status
	}
	if err != nil {
		asJSON := slices.Contains(args, "--json") || slices.Contains(args, "-j")
		complain(stderr, asJSON, err)
		if !asJSON {
			fmt.Fprintln(stderr, "Run whence --help for the commands.")
		}
		return 2
	}
	parsed.BindTo(ctx, (*context.Context)(nil))
	if err := parsed.Run(&app{out: stdout, err: stderr, json: c.JSON}); err != nil && !errors.Is(err, context.Canceled) {
		complain(stderr, c.JSON, err)
		return 1
	}
	return 0
}
