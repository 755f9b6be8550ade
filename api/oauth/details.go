package oauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
)

// maxDetails is the longest authorization_details that is read, in bytes: several
// times what fits into a token.
const maxDetails = 64 << 10

// detail is the one element of authorization_details: a scope, and what else a
// task needs.
type detail struct {
	authz.ScopeSpec
	Budget   authz.Limits `json:"budget"` // what is left out: as much as granted
	Purpose  string       `json:"purpose"`
	Lifetime string       `json:"lifetime"` // as "15m"; left out: as long as granted
}

const example = `[{"type":"whence","tables":["app.public.articles"],"allSubjects":true,` +
	`"actions":["memory:read"],"budget":{"calls":100},"purpose":"answer a question","lifetime":"15m"}]`

// seeExample points at the example, which stands where double quotes may stand.
const seeExample = "metadata.example has one that works"

// readDetails reads the task that authorization_details ask for.
func readDetails(raw string) (want authz.TaskRequest, err error) {
	if len(raw) > maxDetails {
		return want, badDetails("DETAILS_TOO_LARGE", "authorization_details takes %d bytes of at most %d; name fewer tables and subjects", len(raw), maxDetails)
	}
	var elements []json.RawMessage
	if err := authz.DecodeStrict([]byte(raw), &elements); err != nil {
		return want, badDetails("DETAILS_MALFORMED", "authorization_details: %s; "+seeExample, explain(err))
	}
	if len(elements) != 1 {
		return want, badDetails("DETAILS_MALFORMED", "authorization_details has %d elements and takes exactly one; "+seeExample, len(elements))
	}
	var d detail
	if err := authz.DecodeStrict(elements[0], &d); err != nil {
		return want, badDetails("DETAILS_MALFORMED", "authorization_details: %s; "+seeExample, explain(err))
	}
	if d.Type != authz.DetailType {
		return want, badDetails("DETAILS_MALFORMED", "the element of authorization_details has the type whence; "+seeExample)
	}
	want = authz.TaskRequest{Purpose: d.Purpose, Scope: d.ScopeSpec}
	if calls, ok := d.Budget[authz.Calls]; ok {
		delete(d.Budget, authz.Calls)
		if want.Calls = calls; want.Calls < 1 {
			return want, whence.Invalid("budget.calls", "BUDGET_INVALID", fmt.Sprintf("ask for 1 to %d calls, or leave the budget out for as many as are granted", authz.MaxCalls))
		}
	}
	if len(d.Budget) > 0 {
		want.Limits = d.Budget
	}
	if d.Lifetime != "" {
		if want.Lifetime, err = time.ParseDuration(d.Lifetime); err != nil || want.Lifetime < time.Second {
			return want, whence.Invalid("lifetime", "LIFETIME_INVALID", "write lifetime as a duration of at least a second, for example 15m")
		}
	}
	return want, checkWant(want)
}

// checkWant tells what is wrong with a wish, before anything is spent on it. The
// agent's name is no part of it: that comes from its proof.
func checkWant(want authz.TaskRequest) error {
	want.Agent = "agent"
	if want.Calls == 0 {
		want.Calls = 1
	}
	if want.Lifetime == 0 {
		want.Lifetime = time.Minute
	}
	return want.Validate()
}

// granted writes down what a task was given (RFC 9396, section 7).
func granted(r authz.TaskRequest) []detail {
	r.Scope.Type = authz.DetailType
	return []detail{{ScopeSpec: r.Scope, Budget: authz.LimitsOf(r.Amounts()), Purpose: r.Purpose, Lifetime: r.Lifetime.String()}}
}

func badDetails(reason, format string, args ...any) error {
	e := whence.Invalid("authorization_details", reason, fmt.Sprintf(format, args...))
	if reason == "DETAILS_MALFORMED" {
		e.Metadata = map[string]string{"example": example}
	}
	return e
}

// explain words a decoding error for someone who writes JSON, not Go.
func explain(err error) string {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) && wrong.Field != "" {
		return fmt.Sprintf("%s cannot be a %s", wrong.Field, wrong.Value)
	} else if errors.As(err, &wrong) {
		return "this cannot be a " + wrong.Value
	}
	return fmt.Sprintf("%.200s", strings.TrimPrefix(err.Error(), "json: "))
}
