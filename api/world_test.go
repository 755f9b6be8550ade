package api

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/whence-db/whence/audit"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/federation"
	"github.com/whence-db/whence/authz/registry"
	"github.com/whence-db/whence/gateway"
	"github.com/whence-db/whence/gateway/upstream"
	"github.com/whence-db/whence/internal/pgtest"
	"github.com/whence-db/whence/internal/seal"
	"github.com/whence-db/whence/lineage"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

const adminService = "/whence.v1.AdminService/"

// world is the API over a memory database, without what captures and answers.
type world struct {
	handler http.Handler
	gateway *gateway.Gateway
	issuer  *authz.Issuer
	earlier *authz.Issuer // whose clock is a minute behind
}

func open(t *testing.T) *world {
	t.Helper()
	pool := pgtest.New(t).Pool
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	secret, err := seal.ParseKey(seal.NewKey())
	check(err)
	keys, err := authz.LoadKeys(t.Context(), authz.KeysConfig{Pool: pool, Seal: secret})
	check(err)
	const name = "https://whence.test"
	w := &world{}
	w.issuer, err = authz.NewIssuer(authz.IssuerConfig{Name: name, Keys: keys})
	check(err)
	w.earlier, err = authz.NewIssuer(authz.IssuerConfig{Name: name, Keys: keys, Clock: func() time.Time { return time.Now().Add(-time.Minute) }})
	check(err)
	known, err := registry.New(pool)
	check(err)
	stops, err := authz.NewRevocations(pool, nil)
	check(err)
	foreign, err := federation.New(federation.Config{Issuers: known.IssuerByURL, Client: &http.Client{}})
	check(err)
	verifier, err := authz.NewVerifier(authz.VerifierConfig{Issuer: name, Keys: keys, Revocations: stops})
	check(err)
	log, err := audit.New(audit.Config{Pool: pool})
	check(err)
	answers, err := lineage.New(lineage.Config{Pool: pool})
	check(err)
	w.gateway, err = gateway.New(gateway.Config{Pool: pool, Audit: log, Lineage: answers, Verifier: verifier, Issuer: w.issuer,
		Identities: foreign, Registry: known, Revocations: stops, Keys: keys})
	check(err)
	reached, err := upstream.NewStore(pool)
	check(err)
	ctx, cancel := context.WithCancel(context.Background())
	var group errgroup.Group
	group.Go(func() error { return w.gateway.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
	})
	w.handler = NewHandler(Config{Pool: pool, Gateway: w.gateway, Audit: log, Lineage: answers, Authority: known, Revocations: stops, Keys: keys, Upstreams: reached,
		Issuer: name, OAuth: http.NotFoundHandler(), Ready: pool.Ping, Log: slog.New(slog.DiscardHandler)})
	return w
}

// caller makes calls with one credential.
type caller struct {
	*world
	token string
}

func (w *world) operator(t *testing.T, role authz.Role) caller {
	t.Helper()
	token, _, err := w.issuer.IssueOperator("olga", role, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return caller{w, token}
}

func (w *world) user(t *testing.T, tenant, name string, scope authz.ScopeSpec) caller {
	t.Helper()
	return w.userBy(t, w.issuer, tenant, name, scope)
}

// userBefore comes with a token that is a minute old.
func (w *world) userBefore(t *testing.T, tenant, name string) caller {
	t.Helper()
	return w.userBy(t, w.earlier, tenant, name, reading)
}

func (w *world) userBy(t *testing.T, issuer *authz.Issuer, tenant, name string, scope authz.ScopeSpec) caller {
	t.Helper()
	token, _, err := issuer.IssueUser(tenant, name, scope, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return caller{w, token}
}

// failed is what a refusal says.
type failed struct{ code, reason, message, field string }

// call posts a request to an absolute path and reads the response, if res is not nil.
func (c caller) call(t *testing.T, path string, req, res proto.Message) failed {
	t.Helper()
	body := []byte("{}")
	if req != nil {
		var err error
		if body, err = protojson.Marshal(req); err != nil {
			t.Fatal(err)
		}
	}
	r := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+c.token)
	got := httptest.NewRecorder()
	c.handler.ServeHTTP(got, r)
	if got.Code == http.StatusOK {
		if res != nil {
			proto.Reset(res)
			if err := protojson.Unmarshal(got.Body.Bytes(), res); err != nil {
				t.Fatal(err)
			}
		}
		return failed{}
	}
	var wire struct {
		Code, Message string
		Details       []struct{ Type, Value string }
	}
	if err := json.Unmarshal(got.Body.Bytes(), &wire); err != nil {
		t.Fatalf("%d %s: %v", got.Code, got.Body, err)
	}
	f := failed{code: wire.Code, message: wire.Message}
	for _, d := range wire.Details {
		raw, err := base64.RawStdEncoding.DecodeString(d.Value)
		if err != nil {
			t.Fatal(err)
		}
		var info errdetails.ErrorInfo
		var bad errdetails.BadRequest
		switch {
		case strings.HasSuffix(d.Type, "ErrorInfo") && proto.Unmarshal(raw, &info) == nil:
			f.reason = info.GetReason()
		case strings.HasSuffix(d.Type, "BadRequest") && proto.Unmarshal(raw, &bad) == nil:
			f.field = bad.GetFieldViolations()[0].GetField()
		}
	}
	return f
}

// must makes a call of the AdminService that has to succeed.
func (c caller) must(t *testing.T, name string, req, res proto.Message) {
	t.Helper()
	if f := c.call(t, adminService+name, req, res); f != (failed{}) {
		t.Fatalf("%s: %+v", name, f)
	}
}

// refused makes a call of the AdminService that has to be refused for a reason.
func (c caller) refused(t *testing.T, name string, req proto.Message, reason string) failed {
	t.Helper()
	f := c.call(t, adminService+name, req, nil)
	if f.reason != reason {
		t.Errorf("%s: %+v, want %q", name, f, reason)
	}
	return f
}

// noted is the detail of the newest entry of a call that was let in.
func (w *world) noted(t *testing.T, call string) map[string]any {
	t.Helper()
	var res v1.ListEntriesResponse
	f := w.operator(t, authz.RoleViewer).call(t, "/whence.v1.AuditService/ListEntries",
		&v1.ListEntriesRequest{Call: adminService[1:] + call, Decision: v1.Decision_DECISION_ALLOWED, PageSize: 1}, &res)
	if f != (failed{}) || len(res.GetEntries()) != 1 {
		t.Fatalf("no entry of %s: %+v", call, f)
	}
	return res.GetEntries()[0].GetDetail().AsMap()
}

var reading = authz.ScopeSpec{AllTables: true, AllSubjects: true, Actions: []authz.Action{authz.MemoryRead}}

func readingMessage() *v1.Scope { return scopeMessage(reading) }
