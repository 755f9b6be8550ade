package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
	"github.com/whence-db/whence/proto/gen/whence/v1/whencev1connect"
)

type auditCmd struct {
	List auditList `cmd:"" default:"withargs" help:"List entries, newest first."`
}

type auditList struct {
	operatorFlags `embed:""`
	Task          string `help:"Only of this task."`
	Agent         string `help:"Only of this agent."`
	User          string `help:"Only on behalf of this user."`
	Call          string `help:"Only of this call, such as whence.v1.MemoryService/Query."`
	Refused       bool   `help:"Only refusals."`
	Limit         uint32 `help:"The most to list." default:"50"`
	PageToken     string `help:"Token of the page to list."`
}

func (c *auditList) Run(ctx context.Context, a *app) error {
	client, err := c.audit()
	if err != nil {
		return err
	}
	req := &v1.ListEntriesRequest{Task: c.Task, Agent: c.Agent, User: c.User, Call: c.Call, PageSize: c.Limit, PageToken: c.PageToken}
	if c.Refused {
		req.Decision = v1.Decision_DECISION_REFUSED
	}
	res, err := client.ListEntries(ctx, req)
	if err != nil {
		return err
	}
	return show(a, res, func() {
		columns(a, "TIME\tDECISION\tREASON\tCALL\tAGENT\tUSER\tANSWER\tABOUT", func(w *tabwriter.Writer) {
			for _, e := range res.GetEntries() {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.GetTime().AsTime().Format(time.RFC3339Nano),
					plain(e.GetDecision()), e.GetReason(), e.GetCall(), e.GetAgent(), e.GetUser(), e.GetAnswerId(), aboutText(e))
			}
		})
		if t := res.GetNextPageToken(); t != "" {
			a.printf("more: --page-token %s\n", t)
		}
	})
}

// aboutText says whom or what an administrative call was about.
func aboutText(e *v1.Entry) string {
	if !strings.HasPrefix(e.GetCall(), whencev1connect.AdminServiceName+"/") {
		return ""
	}
	said := func(key string) string { return e.GetDetail().GetFields()[key].GetStringValue() }
	var words []string
	for _, kind := range []string{"revoked", "reinstated"} {
		if k := said(kind); k != "" {
			words = append(words, k+" "+said("target"))
		}
	}
	for _, key := range []string{"issuer", "grant", "agent", "user", "group", "key", "tenant"} {
		if v := said(key); v != "" {
			words = append(words, key+" "+v)
		}
	}
	return line(strings.Join(words, ", "), 160)
}
