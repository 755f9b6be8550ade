package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/golang-jwt/jwt/v5"

	"github.com/whence-db/whence/internal/login"
)

type tokenCmd struct {
	Login    tokenLogin    `cmd:"" help:"Sign in at your issuer and print a token for your own use."`
	Exchange tokenExchange `cmd:"" help:"Start a task as an agent, for a user, and print its token (OAuth token exchange)."`
	Inspect  tokenInspect  `cmd:"" help:"Show what a token says, and whether it is still good."`
	Operator tokenOperator `cmd:"" help:"Make an operator's token from the server's own key: for setting up, on the server."`
}

// loginFlags say where and as whom to sign in.
type loginFlags struct {
	server   `embed:""`
	Issuer   string `name:"login-issuer" env:"WHENCE_LOGIN_ISSUER" help:"URL of the OpenID Connect issuer to sign in at." placeholder:"URL"`
	ClientID string `name:"login-client" env:"WHENCE_LOGIN_CLIENT" default:"whence" help:"This program's client ID there."`
	User     string `name:"as" help:"Whom to sign in as: tried without a browser first." placeholder:"NAME"`
}

func (f loginFlags) idToken(ctx context.Context, a *app) (string, error) {
	if f.Issuer == "" {
		return "", errors.New("say where to sign in: --login-issuer URL, or WHENCE_LOGIN_ISSUER (whence dev writes it to dev.env)")
	}
	return login.IDToken(ctx, login.Config{Issuer: f.Issuer, ClientID: f.ClientID, User: f.User, Out: a.err})
}

type tokenLogin struct {
	loginFlags `embed:""`
	Role       string `enum:"operator,user" default:"operator" help:"operator: the role that your groups have; user: to give grants for yourself and stop what acts for you."`
}

func (c *tokenLogin) Run(ctx context.Context, a *app) error {
	id, err := c.idToken(ctx, a)
	if err != nil {
		return err
	}
	out, err := exchange(ctx, c.URL, url.Values{"subject_token": {id}, "subject_token_type": {typeIDToken}, "scope": {c.Role}})
	if err != nil {
		if out.Reason == "ROLE_MISSING" {
			err = fmt.Errorf("%w; --role user signs in as a user", err)
		}
		return err
	}
	fmt.Fprintf(a.err, "signed in as %s, %s\n", subjectOf(out.Token), cmp.Or(out.Role, out.Scope))
	return out.print(a)
}

// subjectOf is whom a token that the server gave is for.
func subjectOf(token string) string {
	var said jwt.RegisteredClaims
	if _, _, err := jwt.NewParser().ParseUnverified(token, &said); err != nil {
		return "somebody"
	}
	return said.Subject
}

// exchanged is what the token endpoint answers.
type exchanged struct {
	Token       string     `json:"access_token"`
	Role        string     `json:"role"`
	Scope       string     `json:"scope"`
	Details     []taskWish `json:"authorization_details"`
	Error       string     `json:"error"`
	Description string     `json:"error_description"`
	Reason      string     `json:"reason"`

	body []byte
}

// exchange asks for a token. A refusal is an error; what is returned then has its reason.
func exchange(ctx context.Context, base string, form url.Values) (out exchanged, err error) {
	form.Set("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
	body, status, err := post(ctx, base, "/oauth/token", "", form)
	if err != nil {
		return out, err
	}
	if err := json.Unmarshal(body, &out); err != nil {
		return out, fmt.Errorf("the server answered %s with something that is not JSON", status)
	}
	if out.Token == "" {
		return out, fmt.Errorf("%s: %s (%s)", out.Error, out.Description, out.Reason)
	}
	out.body = body
	return out, nil
}

func (e exchanged) print(a *app) error {
	if a.json {
		_, err := a.out.Write(append(e.body, '\n'))
		return err
	}
	a.printf("%s\n", e.Token)
	return nil
}

// post sends a form to an OAuth endpoint.
func post(ctx context.Context, base, path, bearer string, form url.Values) (body []byte, status string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(base, "/")+path, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	return fetch(req)
}

func fetch(req *http.Request) (body []byte, status string, err error) {
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = res.Body.Close() }()
	body, err = io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return body, res.Status, err
}

type tokenInspect struct {
	operatorFlags `embed:""`
	Shown         string `arg:"" name:"inspected" help:"The token."`
}

// Run shows the claims as they stand there, and what the server thinks of them if an
// operator asks or the token is the caller's own.
func (c *tokenInspect) Run(ctx context.Context, a *app) error {
	parts := strings.Split(c.Shown, ".")
	if len(parts) != 3 {
		return errors.New("this is not a token: a token has three parts, with dots between them")
	}
	claims, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return errors.New("this is not a token: its claims are not base64url")
	}
	var said map[string]any
	if err := json.Unmarshal(claims, &said); err != nil {
		return errors.New("this is not a token: its claims are not JSON")
	}
	bearer := c.Token
	if bearer == "" {
		bearer = c.Shown
	}
	body, status, err := post(ctx, c.URL, "/oauth/introspect", bearer, url.Values{"token": {c.Shown}})
	if err != nil {
		return err
	}
	var found map[string]any
	if err := json.Unmarshal(body, &found); err != nil {
		return fmt.Errorf("the server answered %s with something that is not JSON", status)
	}
	out := map[string]any{"claims": said, "active": found["active"]}
	if found["active"] == nil {
		out["why"] = found["error_description"]
	}
	return showJSON(a.out, out)
}
