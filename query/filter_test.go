package query_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest"
	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/query"
)

// A filter that no asked table can meet is refused with the attributes there are;
// of tables outside the scope nothing is told.
func TestUnknownFilter(t *testing.T) {
	w := newWorld(t, lexical.Default())
	w.put(row{"1", "ann", "en", "alpha", 0})
	const docs = whence.TableName("app.public.docs")
	vault := w.state.Tables[0]
	vault.ID, vault.Relation, vault.AttributeColumns = vault.ID+1, "vault", []string{"clearance"}
	bare := vault
	bare.ID, bare.Relation, bare.AttributeColumns = vault.ID+1, "bare", nil
	w.state.Tables = append(w.state.Tables, vault, bare)
	ann := authztest.Scope(t, authz.ScopeSpec{Tables: []whence.TableName{docs}, AllSubjects: true, Actions: authz.Actions()})
	ask := func(scope authz.Scope, name string, tables ...whence.TableName) (string, string) {
		_, err := w.e.Query(t.Context(), scope, query.Request{Text: "alpha", Tables: tables, Filter: map[string]string{name: "en"}})
		var e *whence.Error
		if err != nil && !errors.As(err, &e) {
			t.Fatal(err)
		}
		if e == nil {
			return "", ""
		}
		return e.Reason, e.Message + " " + e.Metadata["attributes"]
	}
	for _, c := range []struct {
		scope  authz.Scope
		name   string
		tables []whence.TableName
		reason string
		says   string
	}{
		{ann, "lang", nil, "", ""},
		{everything(t), "lang", nil, "", ""},
		{everything(t), "clearance", nil, "", ""},
		{ann, "nosuch", nil, "FILTER_UNKNOWN", "lang"},
		{ann, "clearance", nil, "FILTER_UNKNOWN", "lang"},
		{everything(t), "nosuch", nil, "FILTER_UNKNOWN", "clearance, lang"},
		{everything(t), "clearance", []whence.TableName{docs}, "FILTER_UNKNOWN", "lang"},
		{everything(t), "lang", []whence.TableName{"app.public.bare"}, "FILTER_UNKNOWN", "leave filter out"},
		{authz.Scope{}, "lang", nil, "", ""},
	} {
		reason, message := ask(c.scope, c.name, c.tables...)
		if reason != c.reason || !strings.Contains(message, c.says) {
			t.Errorf("%s in %v: %s %q", c.name, c.tables, reason, message)
		}
	}
	_, hidden := ask(ann, "clearance")
	_, unknown := ask(ann, "nosuch")
	if strings.ReplaceAll(hidden, "clearance", "nosuch") != unknown {
		t.Errorf("a hidden attribute is told from one that there is not: %q, %q", hidden, unknown)
	}
}
