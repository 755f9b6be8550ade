package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/demo/nextstep"
	"github.com/whence-db/whence/reason"
)

func detailsOf(t *testing.T, err error) (code string, out []proto.Message) {
	t.Helper()
	var ce *connect.Error
	if !errors.As(err, &ce) {
		t.Fatalf("%v is not an error that a caller may see", err)
	}
	for _, d := range ce.Details() {
		m, err := connectproto.UnmarshalErrorDetail(d)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return ce.Code().String(), out
}

// expected is what an agent does after each step.
var expected = map[reason.Next]nextstep.Step{
	reason.FixRequest:      {Send: nextstep.Other},
	reason.LookUp:          {Send: nextstep.Other},
	reason.PreviewAgain:    {Send: nextstep.Other},
	reason.LookAtOutcome:   {Send: nextstep.Other},
	reason.SpendLess:       {Send: nextstep.Other},
	reason.Retry:           {Send: nextstep.Same, SameKey: true},
	reason.WaitForApproval: {Send: nextstep.Same, SameKey: true},
	reason.NewKey:          {Send: nextstep.Same},
	reason.GetToken:        {Send: nextstep.Same, SameKey: true, Credential: true},
	reason.SendProof:       {Send: nextstep.Same, SameKey: true, Credential: true},
	reason.StartTask:       {Send: nextstep.Same, Credential: true},
	reason.AskForScope:     {},
	reason.AskOperator:     {},
	reason.Stop:            {},
}

// TestAgentGoesOnByDetails gives an agent that knows no reason every entry of the
// catalogue, in each of its codes, as it goes over the wire.
func TestAgentGoesOnByDetails(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	tried := 0
	for _, e := range reason.All() {
		for _, code := range e.Codes {
			i := slices.IndexFunc(codes, func(c struct {
				kind error
				code connect.Code
			}) bool {
				return c.code.String() == code
			})
			if i < 0 {
				continue // TestForeignErrors
			}
			tried++
			in := &whence.Error{Kind: codes[i].kind, Reason: e.Reason, Message: "unread", Metadata: map[string]string{}}
			for _, k := range e.Metadata {
				in.Metadata[k] = "x"
			}
			if e.Field {
				in.Field = "a.field"
			}
			if e.Retry {
				in.RetryAfter = 3 * time.Second
			}
			got, details := detailsOf(t, toConnect(t.Context(), log, "Call", in))
			if got != code {
				t.Errorf("%s: code %s, want %s", e.Reason, got, code)
			}
			want := expected[e.Next]
			want.Next = string(e.Next)
			if want.Wait = in.RetryAfter; want.Wait == 0 && (e.Next == reason.Retry || e.Next == reason.WaitForApproval) {
				want.Wait = time.Second
			}
			if e.Field && code == "invalid_argument" {
				want.Fields = []string{"a.field"}
			}
			if step := nextstep.After(details); fmt.Sprint(step) != fmt.Sprint(want) {
				t.Errorf("%s as %s: the agent does %+v, want %+v", e.Reason, code, step, want)
			}
			if len(in.Metadata) != len(e.Metadata) {
				t.Errorf("%s: the error itself was changed: %v", e.Reason, in.Metadata)
			}
		}
	}
	if tried < 220 {
		t.Errorf("only %d tried", tried)
	}
	if step := nextstep.After(nil); step.Send != nextstep.Nothing {
		t.Errorf("after an error without details: %+v", step)
	}
}

// TestForeignErrors holds that no error goes out without a reason of the catalogue and
// its next step, wherever it came from.
func TestForeignErrors(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	for _, c := range []struct {
		err          error
		code, reason string
		next         reason.Next
	}{
		{errors.New("secret"), "internal", "INTERNAL", reason.Retry},
		{fmt.Errorf("x: %w", context.Canceled), "canceled", "CANCELED", reason.Stop},
		{context.DeadlineExceeded, "deadline_exceeded", "DEADLINE_EXCEEDED", reason.Retry},
		{connect.NewError(connect.CodeUnimplemented, "x"), "unimplemented", "NOT_IMPLEMENTED", reason.Stop},
		{connect.NewError(connect.CodeInvalidArgument, "x"), "invalid_argument", "MALFORMED_REQUEST", reason.FixRequest},
		{connect.NewError(connect.CodeResourceExhausted, "x"), "resource_exhausted", "REQUEST_TOO_LARGE", reason.FixRequest},
		{connect.NewError(connect.CodeDataLoss, "x"), "data_loss", "INTERNAL", reason.Retry},
	} {
		code, details := detailsOf(t, toConnect(t.Context(), log, "Call", c.err))
		i := slices.IndexFunc(details, func(m proto.Message) bool { _, ok := m.(*errdetails.ErrorInfo); return ok })
		if i < 0 {
			t.Errorf("%v: no ErrorInfo", c.err)
			continue
		}
		if why := details[i].(*errdetails.ErrorInfo).GetReason(); code != c.code || why != c.reason {
			t.Errorf("%v: %s %s, want %s %s", c.err, code, why, c.code, c.reason)
		}
		if step := nextstep.After(details); step.Next != string(c.next) || c.next == reason.Retry && step.Wait != time.Second {
			t.Errorf("%v: the agent does %+v, want %s", c.err, step, c.next)
		}
	}
}

// TestProblemDetails holds that plain paths say the same.
func TestProblemDetails(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	refuse(w, httptest.NewRequest(http.MethodGet, "/mcp", nil), slog.New(slog.DiscardHandler), "Bearer",
		&whence.Error{Kind: whence.ErrUnavailable, Reason: "REVOCATIONS_UNKNOWN", RetryAfter: 1500 * time.Millisecond, Message: "not now"})
	var body struct {
		Reason, Next, Detail string
		Metadata             map[string]string
	}
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
		t.Fatal(err)
	}
	if w.Code != 503 || w.Header().Get("Retry-After") != "2" || body.Reason != "REVOCATIONS_UNKNOWN" || body.Next != "RETRY" || body.Metadata["next"] != "RETRY" || body.Detail != "not now" {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
}
