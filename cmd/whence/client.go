package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/whence-db/whence/proto/gen/whence/v1/whencev1connect"
)

// server says where the API is; commands embed it.
type server struct {
	URL string `name:"url" env:"WHENCE_URL" default:"http://127.0.0.1:7171" help:"Base URL of the server."`
}

// operatorFlags are for calls that need an operator's credential.
type operatorFlags struct {
	server `embed:""`
	Token  string `env:"WHENCE_OPERATOR_TOKEN" help:"An operator's token." placeholder:"TOKEN"`
}

// agentFlags are for calls that need a task's credential.
type agentFlags struct {
	server `embed:""`
	Token  string `env:"WHENCE_AGENT_TOKEN" help:"A task's token." placeholder:"TOKEN"`
}

func (f operatorFlags) client() (*connect.Client, error) {
	return dial(f.URL, f.Token, "WHENCE_OPERATOR_TOKEN", "whence token login signs in; on the server, whence token operator makes the first")
}

func (f agentFlags) client() (*connect.Client, error) {
	return dial(f.URL, f.Token, "WHENCE_AGENT_TOKEN", "whence token exchange gets one for a task")
}

func dial(url, token, variable, source string) (*connect.Client, error) {
	if token == "" {
		return nil, fmt.Errorf("no credential: set %s or give --token: %s (whence dev writes one to dev.env in its data folder)", variable, source)
	}
	authorize := func(next connect.ClientFunc) connect.ClientFunc {
		return func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
			info, ok := connect.CallInfoForClientContext(ctx)
			if !ok {
				ctx, info = connect.NewClientContext(ctx)
			}
			info.RequestHeader().Set("Authorization", "Bearer "+token)
			return next(ctx, spec)
		}
	}
	// A record may be as large as its row.
	transport := connecthttp.NewTransport(http.DefaultClient, strings.TrimRight(url, "/"), connecthttp.WithReadMaxBytes(0))
	return connect.NewClient(transport, authorize), nil
}

func (f operatorFlags) sources() (whencev1connect.SourceServiceClient, error) {
	c, err := f.client()
	return whencev1connect.NewSourceServiceClient(c), err
}

func (f operatorFlags) audit() (whencev1connect.AuditServiceClient, error) {
	c, err := f.client()
	return whencev1connect.NewAuditServiceClient(c), err
}

func (f operatorFlags) admin() (whencev1connect.AdminServiceClient, error) {
	c, err := f.client()
	return whencev1connect.NewAdminServiceClient(c), err
}

func (f agentFlags) memory() (whencev1connect.MemoryServiceClient, error) {
	c, err := f.client()
	return whencev1connect.NewMemoryServiceClient(c), err
}

func (f agentFlags) tasks() (whencev1connect.TaskServiceClient, error) {
	c, err := f.client()
	return whencev1connect.NewTaskServiceClient(c), err
}

var printer = protojson.MarshalOptions{Multiline: true, Indent: "  ", EmitDefaultValues: true}

// show prints the message as JSON when that was asked for, and calls human otherwise.
func show(a *app, m proto.Message, human func()) error {
	if !a.json {
		human()
		return nil
	}
	b, err := printer.Marshal(m)
	if err != nil {
		return err
	}
	a.printf("%s\n", b)
	return nil
}

// showJSON prints any value as JSON.
func showJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// failure is an error as scripts read it.
type failure struct {
	Code       string            `json:"code,omitempty"` // of the call; absent when none was made
	Message    string            `json:"message"`
	Reason     string            `json:"reason,omitempty"`
	Metadata   map[string]string `json:"metadata,omitempty"`
	RetryAfter string            `json:"retryAfter,omitempty"`
}

// failureOf takes an error apart into what its details say.
func failureOf(err error) failure {
	f := failure{Message: err.Error()}
	var ce *connect.Error
	if errors.As(err, &ce) {
		f.Code, f.Message = ce.Code().String(), ce.Message()
		for _, d := range ce.Details() {
			m, err := connectproto.UnmarshalErrorDetail(d)
			if err != nil {
				continue
			}
			switch m := m.(type) {
			case *errdetails.ErrorInfo:
				f.Reason, f.Metadata = m.GetReason(), m.GetMetadata()
			case *errdetails.RetryInfo:
				f.RetryAfter = m.GetRetryDelay().AsDuration().String()
			}
		}
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		f.Message += "; start the server (whence dev, or whence serve), or say by WHENCE_URL or --url where it is"
	}
	return f
}

// explain adds what an error's details say to its message.
func explain(err error) string {
	f := failureOf(err)
	s := f.Message
	if f.Code != "" {
		s = f.Code + ": " + s
	}
	if f.Reason != "" {
		s += " (" + f.Reason + ")"
	}
	if f.RetryAfter != "" {
		s += "; try again in " + f.RetryAfter
	}
	return s
}

// complain writes an error to stderr: a line, or as JSON when that was asked for.
func complain(stderr io.Writer, asJSON bool, err error) {
	if asJSON {
		_ = showJSON(stderr, map[string]failure{"error": failureOf(err)})
		return
	}
	fmt.Fprintln(stderr, "whence:", explain(err))
}

// interactive tells whether w is a terminal, where progress may be drawn over.
func interactive(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// ago writes a duration as people read it.
func ago(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}
