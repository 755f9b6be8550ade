package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/whence-db/whence/authz"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
	"github.com/whence-db/whence/reason"
)

// actionNames are what a task needs to run actions and to ask.
func actionNames() []string {
	var out []string
	for _, a := range authz.Actions() {
		out = append(out, string(a))
	}
	return out
}

func durationOf(d time.Duration) *durationpb.Duration { return durationpb.New(d) }

// metadata is a fact that an error carries.
func metadata(r *refusal, key string) string {
	return detailOf[*errdetails.ErrorInfo](r).GetMetadata()[key]
}

// mustSend makes a call that has to succeed and returns its reply.
func mustSend(t *testing.T, y try) (out struct {
	Digest    string
	Execution struct{ ID string }
}) {
	t.Helper()
	b, err := y.send(t.Context())
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		t.Fatalf("%s %s: %v", y.call, y.body, err)
	}
	return out
}

// digestOf previews an action.
func digestOf(t *testing.T, as caller, body string) string {
	t.Helper()
	return mustSend(t, try{as: as, call: "ActionService/Preview", body: body}).Digest
}

// outcomes are those where something has happened, or has not.
func (w *running) outcomes(t *testing.T) []predicament {
	t.Helper()
	agent := w.agent()
	execution := func(call, id string) try { return try{as: agent, call: call, body: fmt.Sprintf(`{"id": %q}`, id)} }
	keyed := func(y try) try { y.key = "undo-" + y.body; return y }
	look := func(id string) func(*testing.T, *refusal) try {
		return func(*testing.T, *refusal) try { return execution("ActionService/GetExecution", id) }
	}
	changed := mustSend(t, try{as: agent, call: executing, body: setStock(20, 1), key: "changed"}).Execution.ID
	w.exec(t, `update public.stock set n = 2 where id = 20`)
	pending := predicament{reason: "APPROVAL_PENDING"}.refused(t, try{as: agent, call: executing, body: burn(21), key: "burn-21"})
	waits := metadata(pending, "execution")
	const nobody = "01980000-0000-7000-8000-000000000000"
	return []predicament{
		{reason: "UNDO_CONFLICT", next: reason.LookAtOutcome, first: keyed(execution(undoing, changed)),
			other: func(*testing.T, *refusal) try { // look at the row, and set it as it is to be
				mustSend(t, try{as: agent, call: "ActionService/Preview", body: setStock(20, 5)})
				return try{as: agent, call: executing, body: setStock(20, 5), key: "set-back"}
			}},
		{reason: "NOTHING_TO_UNDO", next: reason.LookAtOutcome, first: keyed(execution(undoing, waits)), other: look(waits)},
		{reason: "EXECUTION_NOT_FOUND", next: reason.LookUp, first: execution("ActionService/GetExecution", nobody), other: look(changed)},
	}
}

// crowds are those where others are at it, or capture is behind: what passes.
func (w *running) crowds(t *testing.T) []predicament {
	t.Helper()
	agent := w.agent()
	one := uint32(1)
	single, _ := agent.delegate(t, &v1.DelegateRequest{Agent: "single", Purpose: "one thing at a time", Budget: &v1.BudgetLimits{Concurrency: &one},
		Scope: &v1.Scope{AllTables: true, AllSubjects: true, Actions: actionNames(), Tier: v1.Tier_TIER_REVERSIBLE}})

	// hold sends a call that waits for a row, which is locked until it is released.
	hold := func(y try, id int) (before func(*testing.T), release func(*testing.T, *refusal)) {
		free := make(chan struct{})
		done := make(chan error, 1)
		var once sync.Once
		before = func(t *testing.T) {
			t.Helper()
			locked, err := w.source.Begin(t.Context())
			if err == nil {
				_, err = locked.Exec(t.Context(), `update public.stock set n = n where id = $1`, id)
			}
			if err != nil {
				t.Fatal(err)
			}
			ctx := context.WithoutCancel(t.Context())
			go func() {
				<-free
				done <- locked.Rollback(ctx)
			}()
			held := make(chan struct{})
			go func() { defer close(held); _, _ = y.send(ctx) }()
			t.Cleanup(func() {
				once.Do(func() { close(free) })
				<-held
			})
		}
		release = func(t *testing.T, _ *refusal) {
			t.Helper()
			once.Do(func() { close(free) })
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		return before, release
	}
	inFlight := try{as: agent, call: executing, body: setStock(22, 1), key: "in-flight"}
	holdKey, releaseKey := hold(inFlight, 22)
	holdTask := func(t *testing.T) { // with a question that waits for what is not to come, and gives up
		t.Helper()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = caughtUpTo(single, "FFFF/0").send(context.WithoutCancel(t.Context()))
		}()
		t.Cleanup(func() { <-done })
		time.Sleep(500 * time.Millisecond)
	}
	return []predicament{
		{reason: "IN_FLIGHT", next: reason.Retry, first: inFlight, until: releaseKey, before: func(t *testing.T) {
			t.Helper()
			holdKey(t)
			time.Sleep(200 * time.Millisecond) // the one that holds the key comes first
			eventually(t, showLimit, "the first call is under way", func() error {
				var r *refusal
				if _, err := inFlight.send(t.Context()); !errors.As(err, &r) || r.reason() != "IN_FLIGHT" {
					return fmt.Errorf("not in flight, but: %w", err)
				}
				return nil
			})
		}},
		{reason: "BUDGET_BUSY", next: reason.Retry, first: try{as: single, call: queryCall, body: goodQuery}, before: holdTask},
	}
}

// caughtUpTo asks for an answer that holds all that the source had committed by an LSN.
func caughtUpTo(as caller, lsn string) try {
	return try{as: as, call: queryCall, body: fmt.Sprintf(`{"text": "quinces", "consistency": {"atLeast": "app@%s"}}`, lsn)}
}

// behind is capture that stands still.
func (w *running) behind(t *testing.T) []predicament {
	t.Helper()
	w.operator().must(t, "SourceService/PauseSource", &v1.PauseSourceRequest{Name: "app"}, &v1.PauseSourceResponse{})
	var lsn string
	w.exec(t, `update public.stock set what = 'a crate of apples' where id = 24`)
	if err := w.source.QueryRow(t.Context(), `select pg_current_wal_lsn()::text`).Scan(&lsn); err != nil {
		t.Fatal(err)
	}
	return []predicament{
		{reason: "NOT_CAUGHT_UP", next: reason.Retry, first: caughtUpTo(w.agent(), lsn), until: func(t *testing.T, _ *refusal) {
			t.Helper()
			w.operator().must(t, "SourceService/ResumeSource", &v1.ResumeSourceRequest{Name: "app"}, &v1.ResumeSourceResponse{})
		}},
	}
}
