package login

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// errPageNeeded means that the issuer must show the user something first.
var errPageNeeded = errors.New("the issuer asks for the user")

// pageCodes are the errors of OpenID Connect Core, section 3.1.2.6, that say so.
var pageCodes = []string{"login_required", "interaction_required", "consent_required", "account_selection_required"}

// follow asks without a browser: it goes where the issuer sends it until it would be
// sent to the listener, and takes the answer from that address.
func follow(ctx context.Context, c Config, a *attempt) (url.Values, error) {
	client := *c.Client
	client.CheckRedirect = func(next *http.Request, via []*http.Request) error {
		if home(next.URL, a) {
			return http.ErrUseLastResponse
		}
		return checkRedirect(next, via)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url, nil)
	if err != nil {
		return nil, fmt.Errorf("sign in: %w", err)
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, unreachable(ctx, c, err)
	}
	_ = res.Body.Close()
	to, err := res.Location()
	if err != nil || !home(to, a) { // a page, of whatever kind: for the user to see
		return nil, errPageNeeded
	}
	answer := to.Query()
	if !a.answers(answer) {
		return nil, fmt.Errorf("the issuer %s answered another sign-in than this one (the state differs); run the command again", c.Issuer)
	}
	return answer, nil
}

// home tells whether a URL is the attempt's redirect_uri.
func home(u *url.URL, a *attempt) bool {
	bare := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	return bare.String() == a.config.RedirectURL
}

// refusal words an answer without a code.
func refusal(c Config, answer url.Values) error {
	code := answer.Get("error")
	text := printable(code)
	if d := answer.Get("error_description"); d != "" {
		text += ": " + printable(d)
	}
	switch {
	case slices.Contains(pageCodes, code):
		return fmt.Errorf("%w (%s)", errPageNeeded, text)
	case code == "access_denied":
		return fmt.Errorf("signing in at %s was cancelled or refused (%s); run the command again to try once more, or ask the issuer's administrator for access", c.Issuer, text)
	case code == "temporarily_unavailable" || code == "server_error":
		return fmt.Errorf("the issuer %s is in trouble (%s); try again in a while", c.Issuer, text)
	case code != "":
		return fmt.Errorf("the issuer %s refused the request (%s); check there that %q is a public client with loopback redirects", c.Issuer, text, c.ClientID)
	case answer.Get("code") == "":
		return fmt.Errorf("the issuer %s answered with neither a code nor an error; run the command again", c.Issuer)
	}
	return nil
}

// printable keeps what others wrote from moving the terminal's cursor.
func printable(s string) string {
	const most = 200
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\ufffd' {
			return -1
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
