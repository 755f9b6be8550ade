// Package authz says who is calling and what they may touch. It issues and
// verifies the tokens of tasks and operators, keeps the keys that sign them, and
// narrows scopes for delegated work.
//
// The governing idea: authority cannot be typed in. A [Scope] has no public
// fields and comes only out of a verified token or out of narrowing another
// scope, so code that demands a Scope cannot be reached with one that a request
// made up; and its zero value denies everything.
package authz

import (
	"slices"
	"time"

	"github.com/google/uuid"
)

// Action is something that an agent's credential allows.
type Action string

const (
	// MemoryRead allows queries and reading records.
	MemoryRead Action = "memory:read"
	// MemoryWrite allows writing and forgetting notes.
	MemoryWrite Action = "memory:write"
	// TaskDelegate allows starting child tasks.
	TaskDelegate Action = "task:delegate"
	// ActionExecute allows previewing, executing and undoing registered actions.
	ActionExecute Action = "action:execute"
)

// Actions lists every action there is.
func Actions() []Action {
	return []Action{MemoryRead, MemoryWrite, TaskDelegate, ActionExecute}
}

// Tier sorts registered actions by what it takes to take them back.
type Tier string

const (
	// TierRead actions change nothing.
	TierRead Tier = "READ"
	// TierReversible actions can be undone.
	TierReversible Tier = "REVERSIBLE"
	// TierIrreversible actions cannot.
	TierIrreversible Tier = "IRREVERSIBLE"
)

var tiers = []Tier{TierRead, TierReversible, TierIrreversible}

// Valid tells whether t is one of the tiers.
func (t Tier) Valid() bool { return slices.Contains(tiers, t) }

// Within tells whether t is no higher than highest; nothing is within a tier that
// does not exist.
func (t Tier) Within(highest Tier) bool {
	return t.Valid() && slices.Index(tiers, t) <= slices.Index(tiers, highest)
}

// Role is what an operator may do; each role includes those before it. Agents have none.
type Role string

const (
	// RoleUser is whoever delegates: they give and take back grants for themselves,
	// and stop what acts for them. It is the least, and no operator's.
	RoleUser Role = "user"
	// RoleViewer reads the registry, the answers and the audit log.
	RoleViewer Role = "viewer"
	// RoleApprover also decides on executions that wait for approval.
	RoleApprover Role = "approver"
	// RoleAdmin also changes sources, tables, agents and grants, and starts tasks.
	RoleAdmin Role = "admin"
)

var roles = []Role{RoleUser, RoleViewer, RoleApprover, RoleAdmin}

// Valid tells whether r is one of the roles.
func (r Role) Valid() bool { return slices.Contains(roles, r) }

// Operates tells whether r is an operator's.
func (r Role) Operates() bool { return r.Valid() && r != RoleUser }

// AtLeast tells whether r includes least. An agent's empty role includes nothing,
// and nothing includes a role that does not exist.
func (r Role) AtLeast(least Role) bool {
	return r.Valid() && least.Valid() && slices.Index(roles, r) >= slices.Index(roles, least)
}

// Principal is the verified caller: an agent within a task, or an operator.
type Principal struct {
	Tenant  string
	User    string    // who delegated the task; the operator themselves
	Agent   string    // empty for an operator
	Actors  []string  // the chain that acts, the calling agent first; empty for an operator
	Task    uuid.UUID // zero for an operator
	Root    uuid.UUID // of the task tree; the task itself when it has no parent
	Parent  uuid.UUID // zero when the task has none
	Depth   int       // 0 at the root
	TokenID string
	// Thumbprint is of the key whose holder alone may present the token: a call must
	// bring a proof of it ([ProofVerifier]). Empty: whoever bears the token may.
	Thumbprint string
	// IssuedAt and Expires are in whole seconds, as tokens carry them.
	IssuedAt, Expires time.Time
	Scope             Scope // for an operator: to read everything, and nothing else; for a user: what agents may get at most
	Role              Role  // empty for an agent
}

// IsOperator tells operators, and users who come for themselves, from agents.
func (p *Principal) IsOperator() bool { return p.Role != "" }
