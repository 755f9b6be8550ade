package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

type rememberCmd struct {
	agentFlags     `embed:""`
	Text           string            `arg:"" help:"The note."`
	Kind           string            `help:"What kind of note: ${enum}." enum:"fact,event,preference,procedure,free-text" default:"free-text"`
	Key            string            `help:"Name under which a later note supersedes this one."`
	Subject        string            `help:"Whom or what it is about."`
	EventTime      time.Time         `help:"When what it tells of happened, as in 2006-01-02T15:04:05Z."`
	Expires        time.Duration     `help:"How long it is remembered; without end if left out."`
	Attribute      map[string]string `help:"Attributes of the note." placeholder:"NAME=VALUE"`
	DerivedFrom    []string          `help:"What it was concluded from: ids of answers, or of chunks that this task was shown." placeholder:"ID"`
	IdempotencyKey string            `help:"The same key writes once, however often it is sent." placeholder:"KEY"`
}

func (c *rememberCmd) Run(ctx context.Context, a *app) error {
	client, err := c.memory()
	if err != nil {
		return err
	}
	req := &v1.RememberRequest{Text: c.Text, Key: c.Key, Subject: c.Subject, DerivedFrom: c.DerivedFrom,
		Kind: v1.NoteKind(v1.NoteKind_value["NOTE_KIND_"+strings.ToUpper(strings.ReplaceAll(c.Kind, "-", "_"))])}
	if !c.EventTime.IsZero() {
		req.EventTime = timestamppb.New(c.EventTime)
	}
	if c.Expires != 0 {
		req.ExpireTime = timestamppb.New(time.Now().Add(c.Expires))
	}
	if len(c.Attribute) > 0 {
		req.Attributes = keyStruct(c.Attribute)
	}
	res, err := client.Remember(withKey(ctx, c.IdempotencyKey), req)
	if err != nil {
		return err
	}
	return show(a, res, func() {
		r := res.GetRecord()
		a.printf("remembered as %s %s, version %d\n", r.GetTable(), keyText(r.GetKey()), r.GetVersion())
		a.printf("an answer that knows it: --at-least %s\n", res.GetToken())
	})
}

type forgetCmd struct {
	agentFlags     `embed:""`
	ID             string `arg:"" help:"The note's id."`
	Reason         string `help:"Why; kept in the audit log."`
	IdempotencyKey string `help:"The same key forgets once, however often it is sent." placeholder:"KEY"`
}

func (c *forgetCmd) Run(ctx context.Context, a *app) error {
	client, err := c.memory()
	if err != nil {
		return err
	}
	key := &structpb.Struct{Fields: map[string]*structpb.Value{"id": structpb.NewStringValue(c.ID)}}
	res, err := client.Forget(withKey(ctx, c.IdempotencyKey), &v1.ForgetRequest{Key: key, Reason: c.Reason})
	if err != nil {
		return err
	}
	return show(a, res, func() {
		a.printf("forgotten: %d versions, %d chunks; its words are gone from every answer that showed it\n", res.GetVersions(), res.GetChunks())
	})
}

// withKey sends an idempotency key along, if there is one.
func withKey(ctx context.Context, key string) context.Context {
	if key == "" {
		return ctx
	}
	ctx, info := connect.NewClientContext(ctx)
	info.RequestHeader().Set("Idempotency-Key", key)
	return ctx
}

// noteText says of a note who wrote it.
func noteText(n *v1.Note) string {
	if n == nil {
		return ""
	}
	kind := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(n.GetKind().String(), "NOTE_KIND_"), "_", " "))
	return fmt.Sprintf("%s noted by %s for %s", kind, n.GetAgent(), n.GetUser())
}
