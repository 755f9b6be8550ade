package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

type taskCmd struct {
	Get      taskGet      `cmd:"" help:"Show the credential's own task, and what is left of its budget."`
	Delegate taskDelegate `cmd:"" help:"Start a narrower task for another agent, and print its token."`
	End      taskEnd      `cmd:"" help:"End the credential's own task and everything delegated from it."`
	List     taskList     `cmd:"" help:"List tasks, newest first, as an operator."`
}

type taskGet struct {
	agentFlags `embed:""`
}

func (c *taskGet) Run(ctx context.Context, a *app) error {
	client, err := c.tasks()
	if err != nil {
		return err
	}
	res, err := client.GetTask(ctx, &v1.GetTaskRequest{})
	if err != nil {
		return err
	}
	return show(a, res, func() { printTasks(a, res.GetTask()) })
}

type taskDelegate struct {
	agentFlags  `embed:""`
	Agent       string   `arg:"" help:"The agent that gets the task."`
	Purpose     string   `arg:"" help:"What the task is for."`
	Table       []string `help:"Tables it may read." placeholder:"NAME"`
	AllTables   bool     `help:"Every table that this task may read."`
	Subject     []string `help:"Subjects it may read." sep:"none"`
	AllSubjects bool     `help:"Every subject that this task may read."`
	Action      []string `help:"What it may do." default:"memory:read"`
	Calls       uint32   `help:"Calls that it may make."`
	budgetFlags `embed:""`
	Lifetime    time.Duration `help:"How long it may last." default:"15m"`
}

func (c *taskDelegate) Run(ctx context.Context, a *app) error {
	client, err := c.tasks()
	if err != nil {
		return err
	}
	req := &v1.DelegateRequest{Agent: c.Agent, Purpose: c.Purpose, Lifetime: durationpb.New(c.Lifetime),
		Scope: &v1.Scope{Tables: c.Table, AllTables: c.AllTables, Subjects: c.Subject, AllSubjects: c.AllSubjects, Actions: c.Action}}
	if req.Budget, err = c.message(&c.Calls); err != nil {
		return err
	}
	res, err := client.Delegate(ctx, req)
	if err != nil {
		return err
	}
	return show(a, res, func() { a.printf("%s\n", res.GetToken()) })
}

type taskEnd struct {
	agentFlags `embed:""`
}

func (c *taskEnd) Run(ctx context.Context, a *app) error {
	client, err := c.tasks()
	if err != nil {
		return err
	}
	res, err := client.EndTask(ctx, &v1.EndTaskRequest{})
	if err != nil {
		return err
	}
	return show(a, res, func() { printTasks(a, res.GetTask()) })
}

type taskList struct {
	operatorFlags `embed:""`
	Limit         uint32 `help:"The most to list." default:"50"`
}

func (c *taskList) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.ListTasks(ctx, &v1.ListTasksRequest{PageSize: c.Limit})
	if err != nil {
		return err
	}
	return show(a, res, func() { printTasks(a, res.GetTasks()...) })
}

func printTasks(a *app, tasks ...*v1.Task) {
	columns(a, "TASK\tSTATE\tAGENT\tUSER\tCALLS\tTOKENS\tENDS\tPURPOSE", func(w *tabwriter.Writer) {
		for _, t := range tasks {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d/%d\t%d\t%s\t%s\n", t.GetId(), plain(t.GetState()), t.GetAgent(), t.GetUser(),
				t.GetBudget().GetCalls().GetUsed(), t.GetBudget().GetCalls().GetLimit(),
				t.GetUsage().GetEmbeddingTokens(), t.GetDeadline().AsTime().Format(time.RFC3339), line(t.GetPurpose(), 60))
		}
	})
}
