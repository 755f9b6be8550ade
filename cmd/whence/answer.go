package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

type answerCmd struct {
	Get   answerGet   `cmd:"" help:"Show an answer: each hit as it was shown and as it is now."`
	List  answerList  `cmd:"" default:"withargs" help:"List answers, newest first."`
	Trace answerTrace `cmd:"" help:"List the answers that a record fed."`
}

type answerGet struct {
	operatorFlags `embed:""`
	ID            string `arg:"" help:"The answer's id."`
}

func (c *answerGet) Run(ctx context.Context, a *app) error {
	client, err := c.audit()
	if err != nil {
		return err
	}
	res, err := client.GetAnswer(ctx, &v1.GetAnswerRequest{AnswerId: c.ID})
	if err != nil {
		return err
	}
	return show(a, res, func() {
		an := res.GetAnswer()
		a.printf("answer %s at %s\nto %q, asked by agent %s for user %s in task %s\n", an.GetId(),
			an.GetTime().AsTime().Format(time.RFC3339), an.GetQuery().GetText(), an.GetAgent(), an.GetUser(), an.GetTask())
		for i, h := range an.GetHits() {
			o, now := h.GetShown().GetOrigin(), h.GetNow()
			since := "no longer remembered"
			if now != nil {
				since = fmt.Sprintf("version %d, %s", now.GetVersion(), plain(now.GetState()))
			}
			a.printf("%2d. %s %s  shown: version %d (%s)  now: %s\n", i+1, o.GetTable(), keyText(o.GetKey()),
				o.GetVersion(), freshnessText(h.GetShown().GetFreshness()), since)
			a.printf("    %s\n", line(h.GetShown().GetText(), 160))
			for _, ch := range h.GetChanges() {
				a.printf("    %s: %s -> %s\n", ch.GetColumn(), nullable(ch.Was), nullable(ch.Now))
			}
		}
		printWatermark(a, an.GetWatermark())
	})
}

type answerList struct {
	operatorFlags `embed:""`
	Task          string `help:"Only of this task."`
	Agent         string `help:"Only of this agent."`
	User          string `help:"Only on behalf of this user."`
	Limit         uint32 `help:"The most to list." default:"50"`
}

func (c *answerList) Run(ctx context.Context, a *app) error {
	client, err := c.audit()
	if err != nil {
		return err
	}
	res, err := client.ListAnswers(ctx, &v1.ListAnswersRequest{Task: c.Task, Agent: c.Agent, User: c.User, PageSize: c.Limit})
	if err != nil {
		return err
	}
	return show(a, res, func() {
		columns(a, "TIME\tANSWER\tAGENT\tUSER\tHITS\tQUESTION", func(w *tabwriter.Writer) {
			for _, an := range res.GetAnswers() {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", an.GetTime().AsTime().Format(time.RFC3339), an.GetId(),
					an.GetAgent(), an.GetUser(), an.GetHitCount(), line(an.GetQuery().GetText(), 60))
			}
		})
	})
}

type answerTrace struct {
	operatorFlags `embed:""`
	Table         string            `arg:"" help:"The registered name, source.schema.name."`
	Key           map[string]string `arg:"" help:"The key, as column=value."`
}

func (c *answerTrace) Run(ctx context.Context, a *app) error {
	client, err := c.audit()
	if err != nil {
		return err
	}
	res, err := client.TraceRecord(ctx, &v1.TraceRecordRequest{Table: c.Table, Key: keyStruct(c.Key)})
	if err != nil {
		return err
	}
	return show(a, res, func() {
		n := res.GetCounts()
		a.printf("%d versions, %d chunks, %d answers\n", n.GetVersions(), n.GetChunks(), n.GetAnswers())
		columns(a, "TIME\tANSWER\tAGENT\tUSER\tVERSION\tSUPERSEDED\tQUESTION", func(w *tabwriter.Writer) {
			for _, t := range res.GetAnswers() {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%v\t%s\n", t.GetTime().AsTime().Format(time.RFC3339), t.GetAnswerId(),
					t.GetAgent(), t.GetUser(), t.GetVersion(), t.GetSuperseded(), line(t.GetText(), 60))
			}
		})
	})
}

func nullable(s *string) string {
	if s == nil {
		return "null"
	}
	return fmt.Sprintf("%q", line(*s, 80))
}
