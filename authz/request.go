package authz

import (
	"fmt"
	"time"

	"github.com/whence-db/whence"
)

const (
	// MaxPurpose is the longest purpose of a task, in bytes.
	MaxPurpose = 2000
	// MaxCalls is the largest budget of a task.
	MaxCalls = 1_000_000_000
)

// TaskRequest asks for a root task. It holds only what may be asked for: who
// delegates comes from the credential that asks.
type TaskRequest struct {
	Agent    string
	Purpose  string
	Scope    ScopeSpec
	Calls    int64         // the budget
	Limits   Limits        // of the other meters; what is absent only the tasks above bound
	Lifetime time.Duration // of the task; its token may expire sooner
}

// Validate tells what is wrong with a request, as an ErrInvalid about one field.
func (r TaskRequest) Validate() error {
	switch {
	case !plain(r.Agent):
		return whence.Invalid("agent", "AGENT_INVALID", "name the agent that is to act, in plain text")
	case r.Purpose == "" || len(r.Purpose) > MaxPurpose || !text(r.Purpose):
		return whence.Invalid("purpose", "PURPOSE_INVALID",
			fmt.Sprintf("say what the task is for, in 1 to %d bytes of text", MaxPurpose))
	case r.Calls < 1 || r.Calls > MaxCalls:
		return whence.Invalid("budget.calls", "BUDGET_INVALID",
			fmt.Sprintf("a task needs a budget of 1 to %d calls", MaxCalls))
	case r.Lifetime < time.Second || r.Lifetime > MaxLifetime:
		return whence.Invalid("lifetime", "LIFETIME_INVALID", "a task lives from 1s to 24h; for example 15m")
	}
	if err := r.Limits.Validate(); err != nil {
		return err
	}
	return r.Scope.Validate()
}

// Amounts are the bounds of all meters.
func (r TaskRequest) Amounts() Amounts {
	a := r.Limits.Amounts()
	a[Calls] = r.Calls
	return a
}
