// Package devissuer is a small OpenID Connect provider for development and tests,
// so that nothing that trusts an issuer needs an exception there: whence dev trusts
// this one as an installation trusts its company's.
//
// It speaks the authorization code flow with PKCE for public clients on this
// machine, and nothing else. The governing idea is that it is real in everything
// but the proof of who somebody is: whoever reaches it can be anyone, so only this
// machine reaches it. A full provider such as zitadel/oidc would bring more code to
// store its sessions, refresh tokens and devices than all that is needed here.
package devissuer

import (
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
)

// defaultLifetime is how long tokens are good for.
const defaultLifetime = 5 * time.Minute

// User is somebody to sign in as.
type User struct {
	Name   string   // the token's sub and name; unique
	Groups []string // the token's groups
}

// Config says who the issuer is and whom it knows.
type Config struct {
	// URL is the issuer: http or https, on a loopback host, with any path that does
	// not end in a slash. Requests for other hosts are refused.
	URL string
	// Clients are the client_ids that may ask. They have no secrets, and are told to
	// nobody: one that cannot be guessed keeps out who does not know it.
	Clients []string
	// Users are offered in this order.
	Users []User
	// Lifetime of tokens; 0 is 5 minutes, the least is a second.
	Lifetime time.Duration
	Clock    func() time.Time // nil is time.Now
}

// Issuer is the provider: an http.Handler for everything beneath its URL, which
// takes paths as they are, without the prefix stripped. Its keys live as long as it
// does.
type Issuer struct {
	c       Config
	prefix  string // the URL's path
	host    string
	codes   *codes
	keys    jose.JSONWebKeySet // public
	id      jose.Signer        // ID tokens
	access  jose.Signer        // access tokens
	page    *template.Template
	handler http.Handler
}

// New checks the configuration and makes the keys.
func New(c Config) (*Issuer, error) {
	if c.Lifetime == 0 {
		c.Lifetime = defaultLifetime
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	u, err := url.Parse(c.URL)
	switch {
	case err != nil:
		return nil, fmt.Errorf("development issuer: %w", err)
	case u.Scheme != "http" && u.Scheme != "https" || !loopbackHost(u.Hostname()):
		return nil, fmt.Errorf("development issuer: %q must be an http URL on a loopback host", c.URL)
	case (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String() != c.URL || !plainPath(u.Path):
		return nil, fmt.Errorf("development issuer: %q must have a plain path and nothing after it", c.URL)
	case len(c.Clients) == 0 || slices.Contains(c.Clients, ""):
		return nil, errors.New("development issuer: clients with a name are required")
	case c.Lifetime < time.Second:
		return nil, errors.New("development issuer: tokens must live for a second at least")
	}
	if err := checkUsers(c.Users); err != nil {
		return nil, fmt.Errorf("development issuer: %w", err)
	}
	i := &Issuer{c: c, prefix: u.Path, host: u.Host, codes: newCodes(c.Clock), page: newPage()}
	if err := i.makeKeys(); err != nil {
		return nil, fmt.Errorf("development issuer: %w", err)
	}
	i.handler = http.NewCrossOriginProtection().Handler(i.routes())
	return i, nil
}

func checkUsers(users []User) error {
	if len(users) == 0 {
		return errors.New("users are required")
	}
	seen := map[string]bool{}
	for _, u := range users {
		if u.Name == "" || !utf8.ValidString(u.Name) || seen[u.Name] {
			return fmt.Errorf("user %q: a name must be text and one of its kind", u.Name)
		}
		seen[u.Name] = true
	}
	return nil
}

// plainPath tells whether requests reach the path as it is written, and whether it
// means itself in a pattern.
func plainPath(p string) bool {
	return p == "" || path.Clean(p) == p && p != "/" && !strings.ContainsAny(p, "{}%")
}

// user returns the user of a name.
func (i *Issuer) user(name string) (User, bool) {
	n := slices.IndexFunc(i.c.Users, func(u User) bool { return u.Name == name })
	if n < 0 {
		return User{}, false
	}
	return i.c.Users[n], true
}

func (i *Issuer) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+i.prefix+"/.well-known/openid-configuration", i.discovery)
	mux.HandleFunc("GET "+i.prefix+"/jwks", i.jwks)
	mux.HandleFunc("GET "+i.prefix+"/authorize", i.authorize)
	mux.HandleFunc("POST "+i.prefix+"/signin", i.signIn)
	mux.HandleFunc("GET "+i.prefix+"/style.css", style)
	mux.HandleFunc("POST "+i.prefix+"/token", i.token)
	return mux
}

// forwarding are the headers by which a proxy says that it asks for somebody else.
var forwarding = []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "Via"}

// ServeHTTP answers this machine only. A foreign Host is how a page from elsewhere
// would read what is served here (DNS rebinding), and a proxy on this machine makes
// everyone look local.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	proxied := slices.ContainsFunc(forwarding, func(name string) bool { return r.Header.Get(name) != "" })
	switch {
	case proxied || !loopbackAddress(r.RemoteAddr):
		http.Error(w, "the development issuer answers only the machine that it runs on; sign in from there", http.StatusForbidden)
	case !strings.EqualFold(r.Host, i.host):
		http.Error(w, "this host is not the development issuer's; use "+i.c.URL, http.StatusMisdirectedRequest)
	default:
		i.handler.ServeHTTP(w, r)
	}
}

func loopbackAddress(remote string) bool {
	a, err := netip.ParseAddrPort(remote)
	return err == nil && a.Addr().IsLoopback()
}

func loopbackHost(host string) bool {
	a, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && a.IsLoopback() && a.Zone() == ""
}
