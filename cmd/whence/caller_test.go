package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// caller speaks the API as an agent without any library would: JSON by POST.
type caller struct {
	http  *http.Client
	url   string
	token string
}

// refusal is an error as it came over the wire.
type refusal struct {
	Status  int
	Code    string
	Message string
	Details []proto.Message
	Header  http.Header
}

func (r *refusal) Error() string {
	return fmt.Sprintf("%d %s %s: %s", r.Status, r.Code, r.reason(), r.Message)
}

// reason is the one of the ErrorInfo, or empty.
func (r *refusal) reason() string {
	if info := detailOf[*errdetails.ErrorInfo](r); info != nil {
		return info.GetReason()
	}
	return ""
}

// detailOf returns the first detail of a type, or its zero.
func detailOf[T proto.Message](r *refusal) (none T) {
	for _, d := range r.Details {
		if m, ok := d.(T); ok {
			return m
		}
	}
	return none
}

// post sends a body as it is and returns the response's, or a *refusal.
func (c caller) post(ctx context.Context, call string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/whence.v1."+call, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	return c.do(req)
}

func (c caller) do(req *http.Request) ([]byte, error) {
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	if res.StatusCode == http.StatusOK {
		return b, nil
	}
	err = parseRefusal(res.StatusCode, b)
	var r *refusal
	if errors.As(err, &r) {
		r.Header = res.Header
	}
	return nil, err
}

func parseRefusal(status int, body []byte) error {
	var wire struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Details []struct{ Type, Value string }
	}
	if err := json.Unmarshal(body, &wire); err != nil {
		return fmt.Errorf("status %d with a body that is not JSON: %.200q", status, body)
	}
	r := &refusal{Status: status, Code: wire.Code, Message: wire.Message}
	for _, d := range wire.Details {
		typ, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(d.Type))
		if err != nil {
			return fmt.Errorf("detail %s: %w", d.Type, err)
		}
		raw, err := base64.RawStdEncoding.DecodeString(d.Value)
		if err != nil {
			return fmt.Errorf("detail %s: %w", d.Type, err)
		}
		m := typ.New().Interface()
		if err := proto.Unmarshal(raw, m); err != nil {
			return fmt.Errorf("detail %s: %w", d.Type, err)
		}
		r.Details = append(r.Details, m)
	}
	return r
}

// call makes one call; a field that the contract does not know is an error.
func (c caller) call(ctx context.Context, name string, req, res proto.Message) error {
	body, err := protojson.Marshal(req)
	if err != nil {
		return err
	}
	if body, err = c.post(ctx, name, body); err != nil {
		return err
	}
	return protojson.Unmarshal(body, res)
}

// must makes a call that has to succeed.
func (c caller) must(t *testing.T, name string, req, res proto.Message) {
	t.Helper()
	if err := c.call(t.Context(), name, req, res); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func (c caller) query(t *testing.T, req *v1.QueryRequest) *v1.QueryResponse {
	t.Helper()
	var res v1.QueryResponse
	c.must(t, "MemoryService/Query", req, &res)
	return &res
}

// refused makes a call that has to be refused.
func (c caller) refused(t *testing.T, name string, req proto.Message) *refusal {
	t.Helper()
	body, err := protojson.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.post(t.Context(), name, body)
	var r *refusal
	if !errors.As(err, &r) {
		t.Fatalf("%s: want a refusal, got %.300s, %v", name, b, err)
	}
	return r
}

// delegate starts a task below the caller's and returns a caller for it.
func (c caller) delegate(t *testing.T, req *v1.DelegateRequest) (caller, *v1.Task) {
	t.Helper()
	var res v1.DelegateResponse
	c.must(t, "TaskService/Delegate", req, &res)
	return caller{c.http, c.url, res.GetToken()}, res.GetTask()
}
