package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/seal"
)

type tokenCmd struct {
	Exchange tokenExchange `cmd:"" help:"Start a task for an agent and print its token (OAuth token exchange)."`
	Operator tokenOperator `cmd:"" help:"Make an operator's token from the server's own key: for setting up, on the server."`
}

type tokenExchange struct {
	operatorFlags `embed:""`
	Agent         string            `arg:"" help:"The agent that gets the task."`
	Purpose       string            `arg:"" help:"What the task is for."`
	Table         []string          `help:"Tables it may read." placeholder:"NAME"`
	AllTables     bool              `help:"Every table."`
	Subject       []string          `help:"Subjects it may read." sep:"none"`
	AllSubjects   bool              `help:"Every subject."`
	Filter        map[string]string `help:"Attributes that what it reads must have." placeholder:"NAME=VALUE"`
	Action        []string          `help:"What it may do." default:"memory:read"`
	Calls         int64             `help:"Calls that it may make." default:"1000"`
	Lifetime      time.Duration     `help:"How long it may last." default:"15m"`
}

func (c *tokenExchange) Run(ctx context.Context, a *app) error {
	details, err := json.Marshal([]map[string]any{{"type": "whence", "tables": c.Table, "allTables": c.AllTables,
		"subjects": c.Subject, "allSubjects": c.AllSubjects, "filter": c.Filter, "actions": c.Action,
		"budget": map[string]any{"calls": c.Calls}, "purpose": c.Purpose, "lifetime": c.Lifetime.String()}})
	if err != nil {
		return err
	}
	form := url.Values{
		"grant_type":            {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"subject_token":         {c.Token},
		"subject_token_type":    {"urn:ietf:params:oauth:token-type:access_token"},
		"client_id":             {c.Agent},
		"authorization_details": {string(details)},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(c.URL, "/")+"/oauth/token", strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return err
	}
	var out struct {
		Token       string `json:"access_token"`
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if err := json.Unmarshal(body, &out); err != nil {
		return fmt.Errorf("the server answered %s with something that is not JSON", res.Status)
	}
	switch {
	case out.Token == "":
		return fmt.Errorf("%s: %s", out.Error, out.Description)
	case a.json:
		_, err = a.out.Write(append(body, '\n'))
		return err
	}
	a.printf("%s\n", out.Token)
	return nil
}

type tokenOperator struct {
	Name        string        `arg:"" help:"Who the operator is."`
	Role        string        `enum:"viewer,approver,admin" default:"viewer" help:"viewer, approver or admin."`
	Lifetime    time.Duration `default:"1h" help:"At most 24h."`
	DatabaseURL string        `name:"database-url" env:"WHENCE_DATABASE_URL" required:"" help:"Connection string of the memory database." placeholder:"DSN"`
	SecretKey   string        `env:"WHENCE_SECRET_KEY" required:"" help:"The server's secret key." placeholder:"KEY"`
	Issuer      string        `env:"WHENCE_ISSUER" required:"" help:"Public URL of the installation." placeholder:"URL"`

	signingFlags `embed:""`
}

// Run signs with the stored key, which only who holds the secret key can unseal, or
// with that of the server's key file.
func (c *tokenOperator) Run(ctx context.Context, a *app) error {
	secret, err := seal.ParseKey(c.SecretKey)
	if err != nil {
		return err
	}
	pool, err := pg.NewPool(ctx, c.DatabaseURL, 2)
	if err != nil {
		return err
	}
	defer pool.Close()
	keys, err := c.keys(ctx, pool, secret)
	if err != nil {
		return err
	}
	issuer, err := authz.NewIssuer(authz.IssuerConfig{Name: c.Issuer, Keys: keys})
	if err != nil {
		return err
	}
	token, expires, err := issuer.IssueOperator(c.Name, authz.Role(c.Role), c.Lifetime)
	if err != nil {
		return err
	}
	if a.json {
		return showJSON(a.out, map[string]any{"token": token, "expireTime": expires})
	}
	a.printf("%s\n", token)
	return nil
}
