package authz

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/whence-db/whence/authz/internal/strict"
)

const (
	// MaxTokenSize is the longest token that is read, in bytes.
	MaxTokenSize = 16 << 10
	// MaxLifetime is the longest a token may be valid.
	MaxLifetime = 24 * time.Hour
	// MaxActors is the longest chain of agents that a token may name.
	MaxActors = 16

	// tokenType marks access tokens (RFC 9068), so that no other signed JWT,
	// such as an ID token, can be used as one.
	tokenType = "at+jwt"
)

// header is a token's JOSE header: these members and no others.
type header struct {
	Type      string `json:"typ"`
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
}

// claims are a token's claims. Names: RFC 7519, RFC 8693 (act, client_id), RFC 9396
// (authorization_details), RFC 7800 (cnf); tenant, task and role are Whence's own.
type claims struct {
	Issuer   string          `json:"iss"`
	Subject  string          `json:"sub"`
	Client   string          `json:"client_id"`
	Actor    *actor          `json:"act,omitempty"`
	Audience strict.Audience `json:"aud"`
	Expires  *strict.Seconds `json:"exp"`
	IssuedAt *strict.Seconds `json:"iat"`
	NotYet   *strict.Seconds `json:"nbf,omitempty"`
	ID       string          `json:"jti"`
	Tenant   string          `json:"tenant"`
	Task     *taskClaim      `json:"task,omitempty"`
	Scope    string          `json:"scope,omitempty"` // the actions, for others to read (RFC 9068); Details decide
	Details  details         `json:"authorization_details,omitempty"`
	Role     Role            `json:"role,omitempty"`
	Confirm  *confirm        `json:"cnf,omitempty"`
}

// confirm says who may present the token: the holder of the key with this RFC 7638
// thumbprint (RFC 9449, section 6). Any other way of saying so is refused, for it
// could not be held to.
type confirm struct {
	Thumbprint string `json:"jkt"`
}

// actor nests the chain of RFC 8693: the outermost acts now.
type actor struct {
	Subject string `json:"sub"`
	Actor   *actor `json:"act,omitempty"`
}

func newActor(chain []string) *actor {
	if len(chain) == 0 {
		return nil
	}
	return &actor{Subject: chain[0], Actor: newActor(chain[1:])}
}

func (a *actor) chain() (out []string) {
	for ; a != nil; a = a.Actor {
		out = append(out, a.Subject)
	}
	return out
}

type taskClaim struct {
	ID     uuid.UUID  `json:"id"`
	Root   uuid.UUID  `json:"root"`
	Parent *uuid.UUID `json:"parent,omitempty"`
	Depth  int        `json:"depth"`
}

// details is authorization_details with its one element of type "whence".
type details []ScopeSpec

// decodeClaims reads the claims that Whence knows by their exact names and
// ignores others; those it knows must be unambiguous and of the right type.
func decodeClaims(b []byte) (c claims, err error) {
	members, err := strict.Members(b)
	if err != nil {
		return claims{}, err
	}
	for name, target := range map[string]any{
		"iss": &c.Issuer, "sub": &c.Subject, "client_id": &c.Client, "act": &c.Actor, "aud": &c.Audience,
		"exp": &c.Expires, "iat": &c.IssuedAt, "nbf": &c.NotYet, "jti": &c.ID, "tenant": &c.Tenant,
		"task": &c.Task, "authorization_details": &c.Details, "role": &c.Role, "cnf": &c.Confirm,
	} {
		raw, ok := members[name]
		if !ok {
			continue
		}
		if err := DecodeStrict(raw, target); err != nil {
			return claims{}, fmt.Errorf("claim %s is not what it should be", name) // without what it is
		}
	}
	if _, bound := members["cnf"]; bound && c.Confirm == nil {
		return claims{}, errors.New("claim cnf is null, which must not be taken for none")
	}
	return c, nil
}

// operatorScope lets every role read: what an answer showed must be held against
// the record as it is now. What else a role may do, its calls say.
var operatorScope = mustScope(ScopeSpec{Type: DetailType, AllTables: true, AllSubjects: true, Actions: []Action{MemoryRead}})

// principal turns claims whose signature, issuer, audience and times are good
// into the caller. Whatever does not fit together is an error.
func (c claims) principal() (*Principal, error) {
	p := &Principal{Tenant: c.Tenant, User: c.Subject, TokenID: c.ID, Role: c.Role,
		IssuedAt: c.IssuedAt.Time(), Expires: c.Expires.Time()}
	for name, value := range map[string]string{"sub": c.Subject, "client_id": c.Client, "jti": c.ID, "tenant": c.Tenant} {
		if !plain(value) {
			return nil, fmt.Errorf("claim %s is missing or not a name", name)
		}
	}
	if c.Confirm != nil {
		if p.Thumbprint = c.Confirm.Thumbprint; !isThumbprint(p.Thumbprint) {
			return nil, errors.New("claim cnf does not hold a thumbprint")
		}
	}
	switch {
	case c.Role == RoleUser:
		if c.Task != nil || c.Actor != nil || len(c.Details) != 1 || c.Details[0].Type != DetailType {
			return nil, errors.New("a user's token has one scope and no task or actor")
		}
		var err error
		p.Scope, err = newScope(c.Details[0])
		return p, err
	case c.Role != "":
		if !c.Role.Valid() || c.Task != nil || c.Actor != nil || c.Details != nil {
			return nil, errors.New("an operator's token has one of the roles and no task, actor or scope")
		}
		p.Scope = operatorScope
		return p, nil
	}
	if c.Task == nil || c.Actor == nil || len(c.Details) != 1 || c.Details[0].Type != DetailType {
		return nil, errors.New("a task's token has a task, an actor and one scope")
	}
	p.Agent, p.Actors = c.Client, c.Actor.chain()
	if err := checkChain(p.Agent, p.Actors); err != nil {
		return nil, err
	}
	p.Task, p.Root, p.Depth = c.Task.ID, c.Task.Root, c.Task.Depth
	if c.Task.Parent != nil {
		p.Parent = *c.Task.Parent
	}
	if err := checkTask(p.Task, p.Root, p.Parent, p.Depth); err != nil {
		return nil, err
	}
	var err error
	p.Scope, err = newScope(c.Details[0])
	return p, err
}

func checkChain(agent string, actors []string) error {
	switch {
	case len(actors) == 0 || actors[0] != agent:
		return errors.New("the chain of actors must begin with the agent")
	case len(actors) > MaxActors:
		return fmt.Errorf("the chain of actors is longer than %d", MaxActors)
	case slices.ContainsFunc(actors, func(a string) bool { return !plain(a) }):
		return errors.New("an actor is not a name")
	}
	return nil
}

func checkTask(task, root, parent uuid.UUID, depth int) error {
	isRoot := depth == 0
	if task == uuid.Nil || root == uuid.Nil || depth < 0 ||
		isRoot != (parent == uuid.Nil) || isRoot != (root == task) || parent == task {
		return errors.New("task, root, parent and depth do not make a place in a tree")
	}
	return nil
}
