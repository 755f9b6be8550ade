package mcp

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	"github.com/whence-db/whence/reason"
)

// failure is the structured content of a call that failed: what the API says in a
// Connect error and its details, in one flat object.
type failure struct {
	Code            string            `json:"code"`
	Reason          string            `json:"reason,omitempty"`
	Message         string            `json:"message"`
	RetryAfter      float64           `json:"retryAfter,omitempty"` // seconds
	FieldViolations []fieldViolation  `json:"fieldViolations,omitempty"`
	Preconditions   []precondition    `json:"preconditions,omitempty"`
	Quota           []quota           `json:"quota,omitempty"`
	Metadata        map[string]string `json:"metadata,omitempty"`
}

type fieldViolation struct {
	Field       string `json:"field"`
	Description string `json:"description"`
	Reason      string `json:"reason,omitempty"`
}

type precondition struct {
	Type        string `json:"type"`
	Subject     string `json:"subject,omitempty"`
	Description string `json:"description"`
}

type quota struct {
	Subject     string `json:"subject"`
	Metric      string `json:"metric,omitempty"`
	Description string `json:"description"`
}

// explain reads an error of a call.
func explain(err error) failure {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		ce = connect.NewError(connect.CodeUnknown, "the call failed for an unknown reason")
	}
	f := failure{Code: ce.Code().String(), Message: ce.Message()}
	for _, d := range ce.Details() {
		m, err := connectproto.UnmarshalErrorDetail(d)
		if err != nil {
			continue // a detail of another's, which says nothing to us
		}
		switch m := m.(type) {
		case *errdetails.ErrorInfo:
			f.Reason, f.Metadata = m.GetReason(), m.GetMetadata()
		case *errdetails.RetryInfo:
			f.RetryAfter = m.GetRetryDelay().AsDuration().Seconds()
		case *errdetails.BadRequest:
			for _, v := range m.GetFieldViolations() {
				f.FieldViolations = append(f.FieldViolations, fieldViolation{v.GetField(), v.GetDescription(), v.GetReason()})
			}
		case *errdetails.PreconditionFailure:
			for _, v := range m.GetViolations() {
				f.Preconditions = append(f.Preconditions, precondition{v.GetType(), v.GetSubject(), v.GetDescription()})
			}
		case *errdetails.QuotaFailure:
			for _, v := range m.GetViolations() {
				f.Quota = append(f.Quota, quota{v.GetSubject(), v.GetQuotaMetric(), v.GetDescription()})
			}
		}
	}
	if f.Reason == "" {
		f.Reason, f.RetryAfter, f.Metadata = "INTERNAL", 1, reason.Details("INTERNAL", nil)
	}
	return f
}

// failed is the result of a tool whose call failed.
func failed(err error) *sdk.CallToolResult {
	f := explain(err)
	out := &sdk.CallToolResult{IsError: true, Content: []sdk.Content{&sdk.TextContent{Text: f.text()}}}
	if b, err := json.Marshal(f); err == nil {
		out.StructuredContent = json.RawMessage(b)
	}
	return out
}

func (f failure) text() string {
	var b strings.Builder
	b.WriteString(f.Code)
	if f.Reason != "" {
		b.WriteString(" " + f.Reason)
	}
	b.WriteString(": " + f.Message)
	for _, v := range f.FieldViolations {
		if !strings.Contains(f.Message, v.Field) {
			fmt.Fprintf(&b, "\nArgument %s: %s", v.Field, v.Description)
		}
	}
	if f.RetryAfter > 0 {
		fmt.Fprintf(&b, "\nTry again in %gs.", f.RetryAfter)
	}
	for _, name := range slices.Sorted(maps.Keys(f.Metadata)) {
		fmt.Fprintf(&b, "\n%s: %s", name, f.Metadata[name])
	}
	return b.String()
}
