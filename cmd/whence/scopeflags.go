package main

import (
	"fmt"
	"strings"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// scopeFlags say what may be touched: by a task, under a grant, by an agent at most,
// by an issuer's users at most.
type scopeFlags struct {
	Table       []string          `help:"Tables, as source.schema.name." placeholder:"NAME"`
	AllTables   bool              `help:"Every table, also those registered later."`
	DenyTable   []string          `help:"Tables taken from all tables." placeholder:"NAME"`
	Subject     []string          `help:"Subjects." sep:"none"`
	AllSubjects bool              `help:"Every subject, and rows without one."`
	DenySubject []string          `help:"Subjects taken from all subjects." sep:"none" placeholder:"SUBJECT"`
	Filter      map[string]string `help:"Attributes that a row must have." mapsep:"none" placeholder:"NAME=VALUE"`
	Action      []string          `help:"What may be done: memory:read (alone, if none is given), memory:write, task:delegate, action:execute."`
	TopK        uint32            `name:"top-k" help:"The most hits that one query may ask for." placeholder:"N"`
	Tier        string            `enum:"read,reversible,irreversible" default:"read" help:"The highest tier of registered actions: ${enum}."`
}

// empty tells whether none of the flags was given.
func (f scopeFlags) empty() bool {
	return !f.AllTables && !f.AllSubjects && f.TopK == 0 && (f.Tier == "" || f.Tier == "read") &&
		len(f.Table)+len(f.DenyTable)+len(f.Subject)+len(f.DenySubject)+len(f.Filter)+len(f.Action) == 0
}

func (f scopeFlags) actions() []string {
	if len(f.Action) == 0 {
		return []string{string(authz.MemoryRead)}
	}
	return f.Action
}

func (f scopeFlags) tier() string {
	if f.Tier == "" {
		return string(authz.TierRead)
	}
	return strings.ToUpper(f.Tier)
}

// message is the scope for the API; nil when none of the flags was given.
func (f scopeFlags) message() *v1.Scope {
	if f.empty() {
		return nil
	}
	return &v1.Scope{Tables: f.Table, AllTables: f.AllTables, DenyTables: f.DenyTable, Subjects: f.Subject, AllSubjects: f.AllSubjects,
		DenySubjects: f.DenySubject, Filter: f.Filter, Actions: f.actions(), TopK: f.TopK, Tier: v1.Tier(v1.Tier_value["TIER_"+f.tier()])}
}

// spec is the scope as a request for a token says it.
func (f scopeFlags) spec() authz.ScopeSpec {
	s := authz.ScopeSpec{Type: authz.DetailType, AllTables: f.AllTables, AllSubjects: f.AllSubjects, Subjects: f.Subject,
		DenySubjects: f.DenySubject, Filter: f.Filter, TopK: int(f.TopK), Tier: authz.Tier(f.tier())}
	for _, t := range f.Table {
		s.Tables = append(s.Tables, whence.TableName(t))
	}
	for _, t := range f.DenyTable {
		s.DenyTables = append(s.DenyTables, whence.TableName(t))
	}
	for _, a := range f.actions() {
		s.Actions = append(s.Actions, authz.Action(a))
	}
	return s
}

// scopeText is a scope in a few words.
func scopeText(s *v1.Scope) string {
	if s == nil {
		return "no bound"
	}
	text := partText("tables", s.GetAllTables(), s.GetTables(), s.GetDenyTables()) + "; " +
		partText("subjects", s.GetAllSubjects(), s.GetSubjects(), s.GetDenySubjects()) + "; " + strings.Join(s.GetActions(), " ")
	if len(s.GetFilter()) > 0 {
		text += "; filtered"
	}
	text = line(text, 160)
	if s.GetTopK() > 0 {
		text += fmt.Sprintf("; at most %d hits", s.GetTopK())
	}
	return text
}

func partText(kind string, all bool, named, denied []string) string {
	switch {
	case all && len(denied) > 0:
		return "all " + kind + " but " + strings.Join(denied, " ")
	case all:
		return "all " + kind
	case len(named) == 0:
		return "no " + kind
	}
	return kind + " " + strings.Join(named, " ")
}
