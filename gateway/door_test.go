package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/audit"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest"
	"github.com/whence-db/whence/gateway"
	"github.com/whence-db/whence/internal/pgtest"
	"github.com/whence-db/whence/lineage"
)

// Who may make which call, and what the log says of those who may not.
func TestWhoMayCall(t *testing.T) {
	t.Parallel()
	w, g := open(t)
	agent, _ := w.start(t, g, 1000)
	viewer, admin := w.operator(t, authz.RoleViewer), w.operator(t, authz.RoleAdmin)
	const memory, execute, open = authz.MemoryRead, authz.ActionExecute, authz.Action("")
	for i, c := range []struct {
		who, bearer string
		action      authz.Action
		role        authz.Role
		want        string
	}{
		{"nobody, agents' call", "", memory, "", "TOKEN_MISSING"},
		{"nobody, operators' call", "", open, authz.RoleViewer, "TOKEN_MISSING"},
		{"a stranger", "a.b.c", memory, "", "TOKEN_MALFORMED"},
		{"agent, own action", agent, memory, "", ""},
		{"agent, own task", agent, open, "", ""},
		{"agent, other action", agent, execute, "", "ACTION_OUT_OF_SCOPE"},
		{"agent, operators' call", agent, open, authz.RoleViewer, "WRONG_CREDENTIAL_KIND"},
		{"agent, shared call", agent, memory, authz.RoleViewer, ""},
		{"agent, shared call, other action", agent, execute, authz.RoleViewer, "ACTION_OUT_OF_SCOPE"},
		{"viewer, agents' call", viewer, memory, "", "WRONG_CREDENTIAL_KIND"},
		{"viewer, agent's own task", viewer, open, "", "WRONG_CREDENTIAL_KIND"},
		{"viewer, viewers' call", viewer, open, authz.RoleViewer, ""},
		{"viewer, shared call", viewer, memory, authz.RoleViewer, ""},
		{"viewer, admins' call", viewer, open, authz.RoleAdmin, "ROLE_INSUFFICIENT"},
		{"admin, viewers' call", admin, open, authz.RoleViewer, ""},
		{"admin, admins' call", admin, open, authz.RoleAdmin, ""},
		{"admin, a role that does not exist", admin, open, "owner", "ROLE_INSUFFICIENT"},
	} {
		name, ran := fmt.Sprint("call", i), false
		err := g.Do(t.Context(), gateway.Call{Name: name, Presented: authz.Presented{Token: c.bearer}, Action: c.action, Role: c.role},
			func(context.Context, *gateway.Session) error { ran = true; return nil })
		decision := "REFUSED"
		if c.want == "" {
			decision = "ALLOWED"
		}
		if reason(err) != c.want || ran != (c.want == "") {
			t.Errorf("%s: ran %v, %v; want %q", c.who, ran, err, c.want)
		}
		if diff := cmp.Diff([]line{{decision, c.want, 0}}, w.entries(t, name)); diff != "" {
			t.Errorf("%s: %s", c.who, diff)
		}
	}
}

// What is stored of a call is who the credential says, and what the handler noted.
func TestWhatIsRecorded(t *testing.T) {
	t.Parallel()
	w, g := open(t)
	token, task := w.start(t, g, 10)
	call := read(token)
	digest := whence.DigestOf("request")
	call.Prepare = func() ([32]byte, error) { return digest, nil }
	call.Detail = map[string]any{"protocol": "mcp"}
	var id uuid.UUID
	err := g.Do(t.Context(), call, func(_ context.Context, s *gateway.Session) error {
		s.Note("hits", 1)
		id = s.SetAnswer(lineage.Answer{
			Tenant: "another", Task: uuid.New(), Agent: "another", User: "another", At: time.Unix(0, 0),
			Request: json.RawMessage(`{"text":"why?"}`),
			Hits:    []lineage.Hit{{RecordID: 1, Table: "app.public.docs", Key: `{"id":"1"}`, Version: 1}},
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	answers, err := lineage.New(lineage.Config{Pool: w.pool})
	if err != nil {
		t.Fatal(err)
	}
	a, err := answers.Get(t.Context(), authztest.Operator(t, authz.RoleViewer).Scope, id)
	if err != nil {
		t.Fatal(err)
	}
	if a.Tenant != authz.DefaultTenant || a.Task != task || a.Agent != "worker" || a.User != "olga" ||
		time.Since(a.At) > time.Minute || len(a.Hits) != 1 {
		t.Errorf("answer %+v", a)
	}
	log, err := audit.New(audit.Config{Pool: w.pool})
	if err != nil {
		t.Fatal(err)
	}
	es, _, err := log.List(t.Context(), audit.Filter{Answer: id}, 0, "")
	if err != nil || len(es) != 1 {
		t.Fatal(es, err)
	}
	e := es[0]
	want := audit.Entry{ID: e.ID, At: a.At, Tenant: authz.DefaultTenant, Agent: "worker", User: "olga", Actors: []string{"worker"},
		Task: task, RootTask: task, TokenID: e.TokenID, Call: query, Decision: audit.Allowed, RequestDigest: digest,
		Answer: id, CallsCharged: 1, Latency: e.Latency, Detail: map[string]any{"protocol": "mcp", "hits": 1.0}}
	if diff := cmp.Diff(want, e); diff != "" || e.TokenID == "" || e.Latency <= 0 {
		t.Errorf("entry %+v\n%s", e, diff)
	}
	if len(call.Detail) != 1 {
		t.Errorf("the caller's detail was changed: %v", call.Detail)
	}
}

func TestRefuse(t *testing.T) {
	t.Parallel()
	w, g := open(t)
	token, task := w.start(t, g, 10)
	why := &whence.Error{Kind: whence.ErrUnimplemented, Reason: "UNKNOWN_CALL"}
	if err := g.Refuse(t.Context(), gateway.Call{Name: "known", Presented: authz.Presented{Token: token}}, why); !errors.Is(err, why) {
		t.Error(err)
	}
	if err := g.RefuseUnread(t.Context(), "oauth/token", why); !errors.Is(err, why) {
		t.Error(err)
	}
	if n := w.number(t, "select count(*) from whence.entries where call = 'known' and task_id = $1 and reason = 'UNKNOWN_CALL'", task); n != 1 {
		t.Errorf("%d entries of the known caller", n)
	}
	if n := w.number(t, "select count(*) from whence.entries where call = 'oauth/token' and reason = 'UNKNOWN_CALL'"); n != 1 {
		t.Errorf("%d entries of the unknown caller", n)
	}
}

// Whatever a call is about to say, it says nothing when that cannot be recorded.
func TestNothingLeavesUnrecorded(t *testing.T) {
	t.Parallel()
	w, g := open(t)
	token, _ := w.start(t, g, 10)
	answer := func(_ context.Context, s *gateway.Session) error {
		s.SetAnswer(lineage.Answer{})
		return nil
	}
	rename := func(sql string) {
		t.Helper()
		if _, err := w.pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	rename("alter table whence.entries rename to gone")
	for name, err := range map[string]error{
		"success":         g.Do(t.Context(), read(token), answer),
		"refusal":         g.Do(t.Context(), read(""), nothing),
		"refused outside": g.Refuse(t.Context(), read(token), whence.Invalid("", "MALFORMED_REQUEST", "no")),
	} {
		if reason(err) != "AUDIT_UNAVAILABLE" || !errors.Is(err, whence.ErrUnavailable) {
			t.Errorf("%s without a log: %v", name, err)
		}
	}
	rename("alter table whence.gone rename to entries")
	rename("alter table whence.answers rename to gone")
	if err := g.Do(t.Context(), read(token), answer); reason(err) != "AUDIT_UNAVAILABLE" {
		t.Errorf("without a place for the answer: %v", err)
	}
	rename("alter table whence.gone rename to answers")
	if n, lines := w.answers(t), w.entries(t, query); n != 0 || len(lines) != 0 {
		t.Errorf("%d answers, entries %v", n, lines)
	}
	if err := g.Do(t.Context(), read(token), answer); err != nil {
		t.Errorf("with both back: %v", err)
	}
}

// Calls that share a transaction with one that cannot be written do not fail with it.
func TestOneBadMemberFailsAlone(t *testing.T) {
	t.Parallel()
	w, g := open(t)
	token, task := w.start(t, g, 1000)
	if _, err := w.pool.Exec(t.Context(), "alter table whence.entries add check (call <> 'bad')"); err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	for i := range 60 {
		group.Go(func() error {
			call := read(token)
			want := ""
			if i%20 == 0 {
				call.Name, want = "bad", "AUDIT_UNAVAILABLE"
			}
			if err := g.Do(t.Context(), call, nothing); reason(err) != want {
				return fmt.Errorf("call %d, %s: %w", i, call.Name, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if n, used := len(w.entries(t, query)), w.used(t, task); n != 57 || used != 57 {
		t.Errorf("%d entries, used %d", n, used)
	}
	// What was held for those that failed does not stay held.
	for begin := time.Now(); w.number(t, "select reserved[1] from whence.tasks where id = $1", task) != 0; time.Sleep(20 * time.Millisecond) {
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("%d calls stay reserved", w.number(t, "select reserved[1] from whence.tasks where id = $1", task))
		}
	}
}

// A call that is inside when the gateway stops is recorded; one that comes later is not let in.
func TestStop(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pgtest.New(t).Pool)
	g, stop := w.gateway(t, w.pool)
	token, task := w.start(t, g, 10)
	inside, leave := make(chan struct{}), make(chan struct{})
	var group errgroup.Group
	group.Go(func() error {
		return g.Do(t.Context(), read(token), func(_ context.Context, s *gateway.Session) error {
			s.SetAnswer(lineage.Answer{})
			close(inside)
			<-leave
			return nil
		})
	})
	<-inside
	stopped := make(chan struct{})
	var stopper errgroup.Group
	stopper.Go(func() error { stop(); close(stopped); return nil })
	for {
		if err := g.Do(t.Context(), read(token), nothing); reason(err) == "SHUTTING_DOWN" {
			break
		}
	}
	select {
	case <-stopped:
		t.Error("the gateway stopped with a call inside")
	default:
	}
	before := w.used(t, task)
	close(leave)
	if err := errors.Join(group.Wait(), stopper.Wait()); err != nil {
		t.Error(err)
	}
	if n := int64(len(w.entries(t, query))); n != before+1 || w.answers(t) != 1 {
		t.Errorf("%d entries of %d calls, %d answers", n, before, w.answers(t))
	}
}
