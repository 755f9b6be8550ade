package main

import (
	"context"
	"errors"
	"net/http"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/whence-db/whence/proto/gen/whence/v1/whencev1connect"
)

// operator holds the services that an operator's token opens, agent those that a
// task's token does.
type (
	operator struct {
		sources whencev1connect.SourceServiceClient
		audit   whencev1connect.AuditServiceClient
	}
	agent struct {
		memory whencev1connect.MemoryServiceClient
		tasks  whencev1connect.TaskServiceClient
	}
)

func newOperator(h *http.Client, url, token string) operator {
	c := dial(h, url, token)
	return operator{whencev1connect.NewSourceServiceClient(c), whencev1connect.NewAuditServiceClient(c)}
}

func newAgent(h *http.Client, url, token string) agent {
	c := dial(h, url, token)
	return agent{whencev1connect.NewMemoryServiceClient(c), whencev1connect.NewTaskServiceClient(c)}
}

func dial(h *http.Client, url, token string) *connect.Client {
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
	return connect.NewClient(connecthttp.NewTransport(h, url), authorize)
}

// refusal is what an error tells an agent: the code, the stable reason, the words
// and, when a limit was hit, which.
type refusal struct {
	code            connect.Code
	reason, message string
	quota           *errdetails.QuotaFailure_Violation
}

// refused takes an error of the API apart; ok is false for any other error.
func refused(err error) (r refusal, ok bool) {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return r, false
	}
	r.code, r.message = ce.Code(), ce.Message()
	for _, d := range ce.Details() {
		m, err := connectproto.UnmarshalErrorDetail(d)
		if err != nil {
			continue
		}
		switch m := m.(type) {
		case *errdetails.ErrorInfo:
			r.reason = m.GetReason()
		case *errdetails.QuotaFailure:
			if v := m.GetViolations(); len(v) > 0 {
				r.quota = v[0]
			}
		}
	}
	return r, true
}

// keyOf is the key of a row of the demo's table.
func keyOf(name string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{"name": structpb.NewStringValue(name)}}
}

// nameOf is the name in such a key.
func nameOf(key *structpb.Struct) string { return key.GetFields()["name"].GetStringValue() }
