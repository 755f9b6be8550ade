// Package login signs a person in at their OpenID Connect issuer from the command
// line, the way RFC 8252 has it for native apps: the browser shows the issuer's own
// page, and its answer comes back to a listener on this machine.
//
// The governing idea is that this program never sees what a user proves themselves
// with, and believes no answer that it did not ask for: state, nonce and the PKCE
// verifier are new for every attempt, and the token is verified before it is handed on.
package login

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

const (
	defaultWait = 2 * time.Minute
	// requestTimeout bounds one request to the issuer.
	requestTimeout = 30 * time.Second
)

// Config says where to sign in, as which client, and how to reach the user.
type Config struct {
	Issuer   string // URL; https, unless it is on this machine
	ClientID string // of a public client that may use loopback redirects
	// User is whom to sign in as. When it is set, the issuer is first asked to do so
	// without a page; if it declines, the page opens with the name filled in.
	User string
	// Open shows a URL to the user and returns soon. Nil opens a browser, but only
	// when Out is a terminal with a desktop around it. The URL is written to Out in
	// any case.
	Open func(url string) error
	Out  io.Writer     // where the user reads; nil is nowhere
	Wait time.Duration // for the user; 0 is 2 minutes
	// Client makes the requests to the issuer; nil is one with a time limit.
	Client *http.Client
}

func (c Config) complete() (Config, error) {
	if c.Out == nil {
		c.Out = io.Discard
	}
	if c.Wait == 0 {
		c.Wait = defaultWait
	}
	if c.Client == nil {
		c.Client = &http.Client{Timeout: requestTimeout}
	}
	client := *c.Client
	client.CheckRedirect = checkRedirect
	c.Client = &client
	if c.Open == nil {
		c.Open = opener(c.Out)
	}
	switch {
	case c.ClientID == "":
		return c, errors.New("sign in: a client id is required: the one that the issuer has for this command line")
	case !safe(c.Issuer):
		return c, fmt.Errorf("sign in: the issuer %q must be an https URL; http is for issuers on this machine", c.Issuer)
	case c.Wait < 0:
		return c, errors.New("sign in: the time to wait is negative")
	}
	return c, nil
}

// safe tells whether codes and tokens may travel to a URL: encrypted, or not at all.
func safe(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" {
		return false
	}
	a, err := netip.ParseAddr(u.Hostname())
	local := u.Hostname() == "localhost" || err == nil && a.IsLoopback()
	return u.Scheme == "https" || u.Scheme == "http" && local
}

const maxRedirects = 10

// checkRedirect holds the issuer's redirects to what its URLs are held to.
func checkRedirect(next *http.Request, via []*http.Request) error {
	switch {
	case len(via) >= maxRedirects:
		return errors.New("it redirects without end")
	case !safe(next.URL.String()):
		return fmt.Errorf("it redirects to %s://%s, without encryption", next.URL.Scheme, next.URL.Host)
	}
	return nil
}

// IDToken signs a user in and returns their verified ID token. The errors are for
// people: they say what to do.
func IDToken(ctx context.Context, c Config) (string, error) {
	c, err := c.complete()
	if err != nil {
		return "", err
	}
	p, err := discover(ctx, c)
	if err != nil {
		return "", err
	}
	cb, err := listen(ctx)
	if err != nil {
		return "", fmt.Errorf("sign in: listen for the issuer's answer: %w", err)
	}
	defer cb.close()
	var hint []oauth2.AuthCodeOption
	if c.User != "" {
		hint = append(hint, oauth2.SetAuthURLParam("login_hint", c.User))
		token, err := p.silently(ctx, cb, hint)
		if !errors.Is(err, errPageNeeded) {
			return token, err
		}
		fmt.Fprintf(c.Out, "%s is not signed in without a page: %v.\n", c.User, err)
	}
	a := p.attempt(cb.url, hint...)
	answer, err := cb.ask(ctx, c, a)
	if err != nil {
		return "", err
	}
	token, err := p.redeem(ctx, a, answer)
	if errors.Is(err, errPageNeeded) {
		return "", fmt.Errorf("the issuer %s did not show its page: %w; sign in there first, then run the command again", c.Issuer, err)
	}
	return token, err
}

// silently signs in without a browser, if the issuer does that.
func (p *provider) silently(ctx context.Context, cb *callback, hint []oauth2.AuthCodeOption) (string, error) {
	a := p.attempt(cb.url, append(slices.Clip(hint), oauth2.SetAuthURLParam("prompt", "none"))...)
	answer, err := follow(ctx, p.c, a)
	if err != nil {
		return "", err
	}
	return p.redeem(ctx, a, answer)
}

// provider is the issuer as it describes itself.
type provider struct {
	c      Config
	oidc   *oidc.Provider
	names  bool // it says in every answer whose it is (RFC 9207)
	scopes []string
}

func discover(ctx context.Context, c Config) (*provider, error) {
	o, err := oidc.NewProvider(oidc.ClientContext(ctx, c.Client), c.Issuer)
	if mismatch := (*oidc.IssuerMismatchError)(nil); errors.As(err, &mismatch) {
		return nil, fmt.Errorf("the issuer at %s calls itself %q; use its own name, to the letter", c.Issuer, mismatch.Discovered)
	}
	if err != nil {
		return nil, unreachable(ctx, c, err)
	}
	var more struct {
		Scopes []string `json:"scopes_supported"`
		Names  bool     `json:"authorization_response_iss_parameter_supported"`
	}
	if err := o.Claims(&more); err != nil {
		return nil, fmt.Errorf("the issuer %s describes itself in a way that cannot be read: %w", c.Issuer, err)
	}
	if e := o.Endpoint(); !safe(e.AuthURL) || !safe(e.TokenURL) {
		return nil, fmt.Errorf("the issuer %s names endpoints without encryption, %q and %q; nothing was sent there", c.Issuer, e.AuthURL, e.TokenURL)
	}
	p := &provider{c: c, oidc: o, names: more.Names, scopes: []string{oidc.ScopeOpenID}}
	// Not every issuer has these, and some refuse what they do not have.
	for _, scope := range []string{"profile", "email", "groups"} {
		if slices.Contains(more.Scopes, scope) {
			p.scopes = append(p.scopes, scope)
		}
	}
	return p, nil
}

// unreachable words the failure of a request to the issuer.
func unreachable(ctx context.Context, c Config, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("signing in was interrupted: %w", context.Cause(ctx))
	}
	if failed := (*url.Error)(nil); errors.As(err, &failed) {
		err = failed.Err // without the address, which is long and holds the state
	} else {
		err = errors.New(printable(err.Error())) // what the issuer sent may be in it
	}
	return fmt.Errorf("the issuer %s cannot be used: %w; check the URL, and that it is running and can be reached from here", c.Issuer, err)
}

// attempt is one authorization request and what its answer must fit.
type attempt struct {
	config                 oauth2.Config
	url                    string
	state, nonce, verifier string
}

func (p *provider) attempt(redirect string, options ...oauth2.AuthCodeOption) *attempt {
	a := &attempt{state: rand.Text(), nonce: rand.Text(), verifier: oauth2.GenerateVerifier(),
		config: oauth2.Config{ClientID: p.c.ClientID, Endpoint: p.oidc.Endpoint(), RedirectURL: redirect, Scopes: p.scopes}}
	a.config.Endpoint.AuthStyle = oauth2.AuthStyleInParams // there is no secret for a header
	a.url = a.config.AuthCodeURL(a.state, append(options, oidc.Nonce(a.nonce), oauth2.S256ChallengeOption(a.verifier))...)
	return a
}

// answers tells whether an answer is to this attempt.
func (a *attempt) answers(answer url.Values) bool { return same(answer.Get("state"), a.state) }

func same(got, want string) bool { return subtle.ConstantTimeCompare([]byte(got), []byte(want)) == 1 }

// redeem turns the issuer's answer to the attempt into a verified token.
func (p *provider) redeem(ctx context.Context, a *attempt, answer url.Values) (string, error) {
	if iss := answer.Get("iss"); iss != p.c.Issuer && (p.names || iss != "") {
		return "", fmt.Errorf("the answer is from the issuer %q, not from %s; nothing was sent to it", iss, p.c.Issuer)
	}
	if err := refusal(p.c, answer); err != nil {
		return "", err
	}
	ctx = oidc.ClientContext(ctx, p.c.Client)
	t, err := a.config.Exchange(ctx, answer.Get("code"), oauth2.VerifierOption(a.verifier))
	if refused := (*oauth2.RetrieveError)(nil); errors.As(err, &refused) {
		return "", fmt.Errorf("the issuer %s gives no token for its code (%s, %s); run the command again, and check that %q is a public client there",
			p.c.Issuer, refused.Response.Status, printable(refused.ErrorCode+" "+refused.ErrorDescription), p.c.ClientID)
	}
	if err != nil {
		return "", unreachable(ctx, p.c, err)
	}
	raw, _ := t.Extra("id_token").(string)
	if raw == "" {
		return "", fmt.Errorf("the issuer %s sent no ID token; allow the scope openid for the client %q there", p.c.Issuer, p.c.ClientID)
	}
	if err := p.verify(ctx, a, raw); err != nil {
		return "", fmt.Errorf("the ID token of %s is not to be trusted: %w", p.c.Issuer, err)
	}
	return raw, nil
}

// verify is OpenID Connect Core, section 3.1.3.7.
func (p *provider) verify(ctx context.Context, a *attempt, raw string) error {
	token, err := p.oidc.VerifierContext(ctx, &oidc.Config{ClientID: p.c.ClientID}).Verify(ctx, raw)
	if err != nil {
		return err
	}
	var c struct {
		Party string `json:"azp"`
	}
	if err := token.Claims(&c); err != nil {
		return err
	}
	switch {
	case !same(token.Nonce, a.nonce):
		return errors.New("it is for another sign-in: its nonce is not the one that was sent")
	case c.Party != "" && c.Party != p.c.ClientID, c.Party == "" && len(token.Audience) > 1:
		return fmt.Errorf("it was made for the client %q, not for %q", c.Party, p.c.ClientID)
	}
	return nil
}
