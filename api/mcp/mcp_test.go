package mcp

import (
	"log/slog"
	"strings"
	"testing"

	"connectrpc.com/connect/v2"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"google.golang.org/protobuf/proto"
)

func TestNewWantsAll(t *testing.T) {
	t.Parallel()
	log, calls := slog.New(slog.DiscardHandler), connect.NewServer()
	for _, c := range []Config{{}, {Calls: calls}, {Log: log}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
	if _, err := New(Config{Calls: calls, Log: log}); err != nil {
		t.Error(err)
	}
}

// A tool that panics fails; the server lives.
func TestPanickingTool(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	e := &endpoint{log: slog.New(slog.NewTextHandler(&log, nil))}
	got := e.call(t.Context(), &tool{name: "broken", reply: func() proto.Message { panic("the secret") }}, nil)
	text := got.Content[0].(*sdk.TextContent).Text
	if !got.IsError || !strings.HasPrefix(text, "internal INTERNAL: ") || !strings.Contains(text, "next: RETRY") || strings.Contains(text, "secret") || !strings.Contains(log.String(), "the secret") {
		t.Errorf("%q, and in the log %q", text, &log)
	}
}
