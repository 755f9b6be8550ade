package reason_test

import (
	"go/types"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/whence-db/whence/reason"
)

// codes are the sentinels of package whence as Connect codes.
var codes = map[string]string{
	"ErrInvalid": "invalid_argument", "ErrNotFound": "not_found", "ErrExists": "already_exists", "ErrPrecondition": "failed_precondition",
	"ErrUnauthenticated": "unauthenticated", "ErrDenied": "permission_denied", "ErrExhausted": "resource_exhausted",
	"ErrAborted": "aborted", "ErrUnavailable": "unavailable", "ErrUnimplemented": "unimplemented", "internal": "internal",
}

// elsewhere are the reasons that no whence.Error has: they are of the protocols, and
// carry no kind where they are made.
var elsewhere = []string{"CANCELED", "DEADLINE_EXCEEDED", "INTERNAL", "METHOD_NOT_ALLOWED", "NOT_IMPLEMENTED", "PATH_NOT_FOUND"}

func scanSource(t *testing.T) *scanner {
	t.Helper()
	s := &scanner{source: readSource(t)}
	s.reasons = map[types.Object]bool{
		s.field(module, "Error", "Reason"):                                                     true,
		s.field(module+"/gateway", "Failure", "Reason"):                                        true,
		s.field(module+"/api/oauth", "failure", "reason"):                                      true,
		s.field(module+"/api/mcp", "failure", "Reason"):                                        true,
		s.field("google.golang.org/genproto/googleapis/rpc/errdetails", "ErrorInfo", "Reason"): true,
	}
	s.kinds = map[types.Object]bool{s.field(module, "Error", "Kind"): true, s.field(module+"/gateway", "Failure", "Kind"): true}
	s.metadata, s.retryAfter, s.fieldOf = s.field(module, "Error", "Metadata"), s.field(module, "Error", "RetryAfter"), s.field(module, "Error", "Field")
	s.scan()
	return s
}

// TestEveryReasonIsListed reads the source: what gives an error a reason gives it one
// of the catalogue, of a kind and with details that the catalogue has of it; and what
// the catalogue has is given somewhere.
func TestEveryReasonIsListed(t *testing.T) {
	t.Parallel()
	s := scanSource(t)
	for _, p := range s.problems {
		t.Error(p)
	}
	if len(s.uses) < 200 {
		t.Errorf("only %d uses of reasons were found", len(s.uses))
	}
	used, kinds, retries, fields := map[string]bool{}, map[string]map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, u := range s.uses {
		e, ok := reason.Of(u.reason)
		if !ok {
			t.Errorf("%s: the reason %q is not in the catalogue", u.at, u.reason)
			continue
		}
		if !used[u.reason] {
			used[u.reason], kinds[u.reason] = true, map[string]bool{}
		}
		if u.kind == "" {
			if !slices.Contains(elsewhere, u.reason) && u.reason != "NOT_IMPLEMENTED" && !strings.HasPrefix(u.at, "api/errors.go:") {
				t.Errorf("%s: the reason %s has no kind", u.at, u.reason)
			}
		} else {
			kinds[u.reason][codes[u.kind]] = true
			if !slices.Contains(e.Codes, codes[u.kind]) {
				t.Errorf("%s: %s is of the kind %s, and in the catalogue %v", u.at, u.reason, u.kind, e.Codes)
			}
		}
		for _, k := range u.keys {
			if !slices.Contains(e.Metadata, k) {
				t.Errorf("%s: %s carries %q, which the catalogue does not say", u.at, u.reason, k)
			}
		}
		if u.retry && !e.Retry {
			t.Errorf("%s: %s says when to try again, which the catalogue does not say", u.at, u.reason)
		}
		if u.field && !e.Field {
			t.Errorf("%s: %s names a field, which the catalogue does not say", u.at, u.reason)
		}
		retries[u.reason], fields[u.reason] = retries[u.reason] || u.retry, fields[u.reason] || u.field
	}
	for _, e := range reason.All() {
		if !used[e.Reason] {
			t.Errorf("nothing gives the reason %s", e.Reason)
			continue
		}
		if slices.Contains(elsewhere, e.Reason) {
			continue
		}
		if got := slices.Sorted(maps.Keys(kinds[e.Reason])); !slices.Equal(got, slices.Sorted(slices.Values(e.Codes))) {
			t.Errorf("%s comes with %v, and in the catalogue with %v", e.Reason, got, e.Codes)
		}
		if e.Retry != retries[e.Reason] || e.Field && !fields[e.Reason] {
			t.Errorf("%s: the catalogue says retry %v, field %v; the source says %v, %v", e.Reason, e.Retry, e.Field, retries[e.Reason], fields[e.Reason])
		}
	}
}

// TestEveryEntryHelps holds what an entry says against itself.
func TestEveryEntryHelps(t *testing.T) {
	t.Parallel()
	taken := map[reason.Next]bool{}
	for _, e := range reason.All() {
		taken[e.Next] = true
		if !slices.Contains(reason.Steps(), e.Next) || e.Advice() == "" {
			t.Errorf("%s: the next step %q is not one", e.Reason, e.Next)
		}
		if !strings.HasSuffix(e.Meaning, ".") || !strings.HasSuffix(e.Advice(), ".") {
			t.Errorf("%s: %q, %q: want sentences", e.Reason, e.Meaning, e.Advice())
		}
		if e.Reason != strings.ToUpper(e.Reason) || strings.Trim(e.Reason, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" {
			t.Errorf("%q is not in upper snake case", e.Reason)
		}
		if e.Next != reason.Retry && e.Next != reason.WaitForApproval && e.Next != reason.SendProof && e.Retry {
			t.Errorf("%s says when to try again, and not to: %s", e.Reason, e.Next)
		}
		for _, code := range e.Codes {
			if (code == "aborted" || code == "unavailable") && !e.Retry && e.Next != reason.AskOperator {
				t.Errorf("%s is %s, which passes, and does not say when", e.Reason, code)
			}
		}
		if slices.Contains(e.Metadata, reason.Key) {
			t.Errorf("%s: %q is every error's", e.Reason, reason.Key)
		}
	}
	for _, n := range reason.Steps() {
		if !taken[n] {
			t.Errorf("no reason leads to %s", n)
		}
	}
	if got := reason.After("NEVER_HEARD_OF"); got != reason.AskOperator {
		t.Errorf("after an unknown reason: %s", got)
	}
	given := map[string]string{"task": "7"}
	if got := reason.Details("TASK_ENDED", given); got["next"] != "START_TASK" || got["task"] != "7" || len(given) != 1 {
		t.Errorf("details %v of %v", got, given)
	}
}
