package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

type agentCmd struct {
	Create agentCreate `cmd:"" help:"Make an agent known."`
	List   agentList   `cmd:"" default:"withargs" help:"List agents."`
	Get    agentGet    `cmd:"" help:"Show one agent."`
	Update agentUpdate `cmd:"" help:"Change what is given; the rest stays. The ceiling is one thing: its flags replace it whole."`
	Delete agentDelete `cmd:"" help:"Forget an agent with its grants, and end its tasks."`
}

// agentName names an agent.
type agentName struct {
	operatorFlags `embed:""`
	Name          string `arg:"" help:"The agent's name."`
	Tenant        string `help:"The tenant that it belongs to; otherwise the operator's."`
}

// agentDefinition is what is settled about an agent. What is not given is nil.
type agentDefinition struct {
	Description *string `help:"What it is."`
	Issuer      *string `help:"The issuer that vouches for it."`
	Subject     *string `help:"Its subject at that issuer."`
	JWKS        string  `name:"jwks" help:"File of its public keys, a JSON Web Key Set." placeholder:"FILE" xor:"keys"`
	NewKey      string  `help:"File to write a new private key for it to (Ed25519, PKCS #8); its public part is registered." placeholder:"FILE" xor:"keys"`

	Ceiling scopeFlags `embed:"" prefix:"ceiling-" group:"What it may touch at most, whatever it is granted (no bound of its own, if none is given; the flags given are the whole ceiling, in place of an earlier one):"`
}

// ceiling is what the flags say, nil if none was given. One without tables or without
// subjects would allow nothing, and is more likely meant to change a part of one.
func (d agentDefinition) ceiling() (*v1.Scope, error) {
	m := d.Ceiling.message()
	switch {
	case m == nil:
		return nil, nil
	case !m.GetAllTables() && len(m.GetTables()) == 0:
		return nil, errors.New("the ceiling is replaced whole, and this one has no tables: give all of it, with --ceiling-table or --ceiling-all-tables")
	case !m.GetAllSubjects() && len(m.GetSubjects()) == 0:
		return nil, errors.New("the ceiling is replaced whole, and this one has no subjects: give all of it, with --ceiling-subject or --ceiling-all-subjects")
	}
	return m, nil
}

// keys returns the public keys to register, nil for none. The file of a new key that
// cannot be registered is to be removed again by undo.
func (d agentDefinition) keys() (jwks *string, undo func(), err error) {
	undo = func() {}
	switch {
	case d.NewKey != "":
		made, err := newAgentKey(d.NewKey)
		return &made, func() { _ = os.Remove(d.NewKey) }, err
	case d.JWKS != "":
		b, err := os.ReadFile(d.JWKS)
		text := string(b)
		return &text, undo, err
	}
	return nil, undo, nil
}

type agentCreate struct {
	agentName       `embed:""`
	agentDefinition `embed:""`
}

func (c *agentCreate) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	ceiling, err := c.ceiling()
	if err != nil {
		return err
	}
	keys, undo, err := c.keys()
	if err != nil {
		return err
	}
	res, err := client.CreateAgent(ctx, &v1.CreateAgentRequest{Name: c.Name, Tenant: c.Tenant, Description: given(c.Description),
		Issuer: given(c.Issuer), Subject: given(c.Subject), Jwks: given(keys), Ceiling: ceiling})
	if err != nil {
		if certainly(err) {
			undo()
		}
		return err
	}
	return show(a, res, func() { printAgents(a, res.GetAgent()); c.say(a) })
}

func (d agentDefinition) say(a *app) {
	if d.NewKey != "" {
		a.printf("its private key is in %s\n", d.NewKey)
	}
}

func given(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

type agentList struct {
	operatorFlags `embed:""`
	pageFlags     `embed:""`
	Tenant        string `help:"Only of this tenant."`
}

func (c *agentList) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.ListAgents(ctx, &v1.ListAgentsRequest{Tenant: c.Tenant, PageSize: c.Limit, PageToken: c.Page})
	if err != nil {
		return err
	}
	return show(a, res, func() { printAgents(a, res.GetAgents()...); a.more(res.GetNextPageToken()) })
}

type agentGet struct {
	agentName `embed:""`
}

func (c *agentGet) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.GetAgent(ctx, &v1.GetAgentRequest{Name: c.Name, Tenant: c.Tenant})
	if err != nil {
		return err
	}
	return show(a, res, func() { printAgents(a, res.GetAgent()) })
}

type agentUpdate struct {
	agentName       `embed:""`
	agentDefinition `embed:""`
}

func (c *agentUpdate) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	ceiling, err := c.ceiling()
	if err != nil {
		return err
	}
	keys, undo, err := c.keys()
	if err != nil {
		return err
	}
	res, err := client.UpdateAgent(ctx, &v1.UpdateAgentRequest{Name: c.Name, Tenant: c.Tenant, Description: c.Description,
		Issuer: c.Issuer, Subject: c.Subject, Jwks: keys, Ceiling: ceiling})
	if err != nil {
		if certainly(err) {
			undo()
		}
		return err
	}
	return show(a, res, func() { printAgents(a, res.GetAgent()); c.say(a) })
}

type agentDelete struct {
	agentName `embed:""`
}

func (c *agentDelete) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.DeleteAgent(ctx, &v1.DeleteAgentRequest{Name: c.Name, Tenant: c.Tenant})
	if err != nil {
		return err
	}
	return show(a, res, func() { a.printf("agent %s is deleted with its grants, and its tasks are ended\n", c.Name) })
}

func printAgents(a *app, agents ...*v1.Agent) {
	columns(a, "AGENT\tTENANT\tKNOWN BY\tREVOKED\tMAY TOUCH AT MOST\tDESCRIPTION", func(w *tabwriter.Writer) {
		for _, g := range agents {
			by := "nothing"
			switch {
			case g.GetIssuer() != "" && g.GetJwks() != "":
				by = "its keys, issuer " + g.GetIssuer()
			case g.GetIssuer() != "":
				by = "issuer " + g.GetIssuer()
			case g.GetJwks() != "":
				by = "its keys"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%t\t%s\t%s\n", g.GetName(), g.GetTenant(), by, g.GetRevoked(), scopeText(g.GetCeiling()), line(g.GetDescription(), 60))
		}
	})
}
