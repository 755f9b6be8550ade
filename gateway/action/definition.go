// Package action holds the operations that agents may call: how they are defined,
// the store of their definitions, and what runs those that read and write rows of a
// source.
//
// The governing idea: a row action is data, not SQL. Its columns come from the live
// table's catalogue and its values go as parameters, so nothing that a caller or a
// definition says is ever part of a statement; the caller's scope is in every
// statement's WHERE and is asked again of what was written. What an action did is
// written down, row by row, before it takes effect, and that is what undo goes by.
package action

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
)

// ParameterType is what an argument is.
type ParameterType string

// The types of arguments.
const (
	Text    ParameterType = "TEXT"
	Integer ParameterType = "INTEGER" // of any size
	Number  ParameterType = "NUMBER"  // decimal, of any size
	Boolean ParameterType = "BOOLEAN"
	Time    ParameterType = "TIME" // RFC 3339
	UUID    ParameterType = "UUID"
	JSON    ParameterType = "JSON" // any value; its numbers are IEEE 754 doubles
)

// Parameter is one argument that an action takes.
type Parameter struct {
	Name        string        `json:"name"`
	Type        ParameterType `json:"type"`
	Description string        `json:"description,omitempty"`
	Required    bool          `json:"required,omitempty"`
	MaxLength   int           `json:"maxLength,omitempty"` // of a text, in characters; 0: defaultLength
	Values      []string      `json:"values,omitempty"`    // the only texts that it can be; empty: any
	Minimum     *float64      `json:"minimum,omitempty"`
	Maximum     *float64      `json:"maximum,omitempty"`
}

// Operand is where an action takes one value from: exactly one of its fields is set.
type Operand struct {
	Parameter  string          `json:"parameter,omitempty"`
	Constant   json.RawMessage `json:"constant,omitempty"`   // any JSON value, null included
	Credential string          `json:"credential,omitempty"` // "user", "agent", "task" or "execution"
	Result     *string         `json:"result,omitempty"`     // a JSON Pointer into the reply that is taken back
}

// Operation is what a row or memory action does.
type Operation string

// The operations, of rows and of memory.
const (
	Select   Operation = "SELECT"
	Insert   Operation = "INSERT"
	Update   Operation = "UPDATE"
	Delete   Operation = "DELETE"
	Remember Operation = "REMEMBER"
	Forget   Operation = "FORGET"
)

// RowAction reads or writes rows of a registered table in its source.
type RowAction struct {
	Table     whence.TableName   `json:"table"`
	Operation Operation          `json:"operation"`
	Where     map[string]Operand `json:"where,omitempty"` // column to the value that it must equal
	Set       map[string]Operand `json:"set,omitempty"`   // column to what is written
	Columns   []string           `json:"columns,omitempty"`
	MaxRows   int                `json:"maxRows,omitempty"` // 0: 1
	// TriggersStayWithinRow is the operator's word that the table's triggers change
	// nothing but the row itself.
	TriggersStayWithinRow bool `json:"triggersStayWithinRow,omitempty"`
}

// HTTPRequest is one request to an upstream. In its path, "{name}" stands for an operand.
type HTTPRequest struct {
	Method       string             `json:"method"`
	Path         string             `json:"path"`
	PathOperands map[string]Operand `json:"pathOperands,omitempty"`
	Query        map[string]Operand `json:"query,omitempty"`
	Body         map[string]Operand `json:"body,omitempty"` // members of the JSON body; empty: none
}

// HTTPAction makes one request to a registered upstream.
type HTTPAction struct {
	Upstream          string       `json:"upstream"`
	Request           HTTPRequest  `json:"request"`
	Inverse           *HTTPRequest `json:"inverse,omitempty"`
	IdempotencyHeader string       `json:"idempotencyHeader,omitempty"`
}

// MemoryAction writes or forgets a note.
type MemoryAction struct {
	Operation Operation          `json:"operation"`
	Fields    map[string]Operand `json:"fields,omitempty"`
}

// Step is one action among others.
type Step struct {
	Action    string             `json:"action"`
	Arguments map[string]Operand `json:"arguments,omitempty"`
}

// SagaStep is one step of a saga; without a compensation the step's own inverse takes it back.
type SagaStep struct {
	Step         Step  `json:"step"`
	Compensation *Step `json:"compensation,omitempty"`
}

// SagaAction runs actions one after the other.
type SagaAction struct {
	Steps []SagaStep `json:"steps"`
}

// Definition is a registered operation. Exactly one of Row, HTTP, Memory and Saga is set.
type Definition struct {
	Name                string        `json:"name"`
	Description         string        `json:"description"`
	Tier                authz.Tier    `json:"tier"`
	Parameters          []Parameter   `json:"parameters,omitempty"`
	Row                 *RowAction    `json:"row,omitempty"`
	HTTP                *HTTPAction   `json:"http,omitempty"`
	Memory              *MemoryAction `json:"memory,omitempty"`
	Saga                *SagaAction   `json:"saga,omitempty"`
	IrreversibleBecause string        `json:"irreversibleBecause,omitempty"`
	Compensation        *Step         `json:"compensation,omitempty"`
	Approvals           int           `json:"approvals,omitempty"` // see NeededApprovals
	ApprovalWindow      Duration      `json:"approvalWindow,omitempty"`
	UndoWindow          Duration      `json:"undoWindow,omitempty"`
	Timeout             Duration      `json:"timeout,omitempty"`
	CostMicros          int64         `json:"costMicros,omitempty"`
}

const (
	defaultApprovalWindow = time.Hour
	defaultUndoWindow     = 24 * time.Hour
	defaultTimeout        = 30 * time.Second
)

// NeededApprovals is how many people must approve each execution.
func (d Definition) NeededApprovals() int {
	if d.Approvals == 0 && d.Tier == authz.TierIrreversible && d.Compensation == nil {
		return 1
	}
	return d.Approvals
}

// ApprovalTime is how long an approval may be waited for, and used once given.
func (d Definition) ApprovalTime() time.Duration { return or(d.ApprovalWindow, defaultApprovalWindow) }

// UndoTime is how long an execution can be undone; zero: it never can.
func (d Definition) UndoTime() time.Duration {
	if d.Tier == authz.TierReversible || d.Tier == authz.TierIrreversible && d.Compensation != nil {
		return or(d.UndoWindow, defaultUndoWindow)
	}
	return 0
}

// RunTime is how long an execution may run.
func (d Definition) RunTime() time.Duration { return or(d.Timeout, defaultTimeout) }

// Limit is the most rows that the action may touch.
func (r RowAction) Limit() int { return max(r.MaxRows, 1) }

func or(d Duration, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return time.Duration(d)
}

// Duration is written as protobuf's JSON has it: seconds, as in "3600s" and "0.5s".
type Duration time.Duration

// MarshalText writes seconds without needless zeros.
func (d Duration) MarshalText() ([]byte, error) {
	n := time.Duration(d)
	if n < 0 {
		return nil, fmt.Errorf("a duration is not negative")
	}
	s := strconv.FormatInt(int64(n/time.Second), 10)
	if part := n % time.Second; part > 0 {
		s += "." + strings.TrimRight(fmt.Sprintf("%09d", part), "0")
	}
	return []byte(s + "s"), nil
}

// UnmarshalText reads what MarshalText wrote.
func (d *Duration) UnmarshalText(b []byte) error {
	n, err := time.ParseDuration(string(b))
	if err != nil || n < 0 || !strings.HasSuffix(string(b), "s") {
		return fmt.Errorf("%q is not a duration: write seconds, as in \"3600s\"", b)
	}
	*d = Duration(n)
	return nil
}
