package api

import (
	"context"
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/reason"
)

// errorDomain names Whence in every google.rpc.ErrorInfo.
const errorDomain = "whence"

var codes = []struct {
	kind error
	code connect.Code
}{
	{whence.ErrInvalid, connect.CodeInvalidArgument},
	{whence.ErrNotFound, connect.CodeNotFound},
	{whence.ErrExists, connect.CodeAlreadyExists},
	{whence.ErrPrecondition, connect.CodeFailedPrecondition},
	{whence.ErrUnauthenticated, connect.CodeUnauthenticated},
	{whence.ErrDenied, connect.CodePermissionDenied},
	{whence.ErrExhausted, connect.CodeResourceExhausted},
	{whence.ErrAborted, connect.CodeAborted},
	{whence.ErrUnavailable, connect.CodeUnavailable},
	{whence.ErrUnimplemented, connect.CodeUnimplemented},
}

// toConnect is the one place where a domain error becomes what a caller sees. An
// error that is not a [whence.Error] becomes an opaque internal one, and its
// detail goes to the log.
func toConnect(ctx context.Context, log *slog.Logger, procedure string, err error) error {
	if err == nil {
		return nil
	}
	var e *whence.Error
	if !errors.As(err, &e) {
		return foreign(ctx, log, procedure, err)
	}
	code := connect.CodeInternal
	for _, c := range codes {
		if errors.Is(e.Kind, c.kind) {
			code = c.code
		}
	}
	if e.Err != nil {
		log.WarnContext(ctx, "call failed", "call", procedure, "reason", e.Reason, "error", e.Err)
	}
	out := connect.NewError(code, e.Message)
	out = detail(out, info(e.Reason, e.Metadata))
	if e.RetryAfter > 0 {
		out = detail(out, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)})
	}
	switch code {
	case connect.CodeInvalidArgument:
		if e.Field != "" {
			out = detail(out, &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
				{Field: e.Field, Description: e.Message, Reason: e.Reason}}})
		}
	case connect.CodeResourceExhausted:
		out = detail(out, &errdetails.QuotaFailure{Violations: []*errdetails.QuotaFailure_Violation{
			{Subject: "task:" + e.Metadata["task"], Description: e.Message, QuotaMetric: e.Metadata["meter"]}}})
	case connect.CodeFailedPrecondition:
		out = detail(out, &errdetails.PreconditionFailure{Violations: []*errdetails.PreconditionFailure_Violation{
			{Type: e.Reason, Subject: e.Field, Description: e.Message}}})
	default: // the reason says it all
	}
	return out
}

// info is the detail that a program goes on by: it holds the reason and the next step.
func info(why string, metadata map[string]string) *errdetails.ErrorInfo {
	return &errdetails.ErrorInfo{Reason: why, Domain: errorDomain, Metadata: reason.Details(why, metadata)}
}

func foreign(ctx context.Context, log *slog.Logger, procedure string, err error) error {
	var ce *connect.Error
	switch {
	case errors.As(err, &ce):
		return explained(ce)
	case errors.Is(err, context.Canceled):
		return explained(connect.NewError(connect.CodeCanceled, "the caller cancelled the call"))
	case errors.Is(err, context.DeadlineExceeded):
		return explained(connect.NewError(connect.CodeDeadlineExceeded, "the call did not finish within its deadline; allow more time or ask for less"))
	}
	log.ErrorContext(ctx, "internal error", "call", procedure, "error", err)
	return explained(connect.NewError(connect.CodeInternal, "internal error; the server's log has the details"))
}

// explained gives an error of the protocol's own the details that every error has.
func explained(ce *connect.Error) error {
	for _, d := range ce.Details() {
		if d.Type == string((&errdetails.ErrorInfo{}).ProtoReflect().Descriptor().FullName()) {
			return ce
		}
	}
	var out *errdetails.ErrorInfo
	switch ce.Code() {
	case connect.CodeCanceled:
		out = info("CANCELED", nil)
	case connect.CodeDeadlineExceeded:
		out = info("DEADLINE_EXCEEDED", nil)
	case connect.CodeUnimplemented:
		out = info("NOT_IMPLEMENTED", nil)
	case connect.CodeInvalidArgument:
		out = info("MALFORMED_REQUEST", nil)
	case connect.CodeResourceExhausted:
		out = info("REQUEST_TOO_LARGE", nil)
	default:
		out = info("INTERNAL", nil)
	}
	ce = detail(ce, out)
	if out.GetReason() == "INTERNAL" {
		ce = detail(ce, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)})
	}
	return ce
}

func detail(e *connect.Error, m proto.Message) *connect.Error {
	d, err := connectproto.NewErrorDetail(m)
	if err != nil {
		return e
	}
	return e.WithDetail(d)
}

// violations turns what protovalidate found into one ErrInvalid that names the
// first field and lists the others.
func violations(err error) error {
	var ve *protovalidate.ValidationError
	if !errors.As(err, &ve) || len(ve.Violations) == 0 {
		return err
	}
	all := make(map[string]string, len(ve.Violations))
	for _, v := range ve.Violations {
		all[jsonPath(v.Proto.GetField())] = v.Proto.GetMessage()
	}
	first := ve.Violations[0].Proto
	field := jsonPath(first.GetField())
	message := first.GetMessage()
	if field != "" {
		message = field + ": " + message
	}
	e := whence.Invalid(field, "INVALID_FIELD", message)
	e.Metadata = all
	return e
}

var underscore = regexp.MustCompile(`_([a-z0-9])`)

// jsonPath names a field as JSON callers wrote it: recency.halfLife, tables[0].
func jsonPath(p *validate.FieldPath) string {
	return underscore.ReplaceAllStringFunc(protovalidate.FieldPathString(p), func(s string) string {
		return strings.ToUpper(s[1:])
	})
}
