// Package upstream keeps the HTTP services that agents reach through the server,
// and sends them what an agent asks. It settles where a request goes and what it
// carries; whether it may go, and who pays, is settled before, in package gateway.
//
// The governing idea: nothing passes through. What goes out is a request of the
// server's own, made anew of parts that were checked: the path that the rules were
// matched against is, byte for byte, the path that is sent; what says who is asking
// comes from the credential; and the address is judged when the connection is made.
// It is sent at most once, and an error tells whether it may have been.
package upstream

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
)

const (
	// DefaultTimeout is how long a request may take where the definition says nothing.
	DefaultTimeout = 30 * time.Second
	maxTimeout     = time.Hour

	defaultRequestBytes  = 1 << 20
	maxRequestBytes      = 64 << 20
	defaultResponseBytes = 16 << 20
	maxResponseBytes     = 1 << 30

	maxRules  = 256
	maxRanges = 16
	maxURL    = 2048
)

// Definition says what an operator lets agents reach.
type Definition struct {
	Tenant string `json:"tenant"`
	Name   string `json:"name"`
	// URL is what paths are below: http or https, a host, and perhaps a port and a path.
	URL string `json:"url"`
	// AuthorizationEnv is the environment variable with the Authorization header to
	// send; empty: none is sent.
	AuthorizationEnv string `json:"authorizationEnv"`
	Rules            []Rule `json:"rules"` // the first that matches counts
	// Timeout is how long a request may take, the reply's body included; 0: DefaultTimeout.
	Timeout time.Duration `json:"timeout"`
	// PrivateRanges may hold the host though they are not public.
	PrivateRanges []string `json:"privateRanges"`
	// MaxRequestBytes and MaxResponseBytes bound the bodies; 0: 1 MiB and 16 MiB.
	MaxRequestBytes  int64 `json:"maxRequestBytes"`
	MaxResponseBytes int64 `json:"maxResponseBytes"`
}

// Rule sorts requests into a tier and says what they cost.
type Rule struct {
	Method string     `json:"method"` // empty: any; GET is HEAD too
	Path   string     `json:"path"`   // "{name}" is one segment, "**" at the end any rest
	Tier   authz.Tier `json:"tier"`
	// CostMicros is what a request costs at most, in millionths.
	CostMicros int64 `json:"costMicros"`
	// SpendHeader of the reply tells what it did cost, in units of SpendUnitMicros
	// (0: 1); empty: it costs CostMicros.
	SpendHeader     string `json:"spendHeader"`
	SpendUnitMicros int64  `json:"spendUnitMicros"`
}

// Upstream is a definition that is in force. It does not change and may be shared.
type Upstream struct {
	Definition
	Version int64    // of all upstreams, and never twice; 0 where it was not stored
	Digest  [32]byte // SHA-256 of the definition's canonical form
	Created time.Time

	base      *url.URL // without a slash at the end of its path
	templates []template
	private   []netip.Prefix
}

// New checks a definition, with defaults in place of what it leaves out.
func New(d Definition) (*Upstream, error) {
	d = d.filled()
	u := &Upstream{Definition: d}
	var err error
	switch {
	case !nameForm.MatchString(d.Name):
		return nil, invalid("name", `a name is a lower-case letter, then letters, digits, "_" or "-", at most 63`)
	case !validEnv(d.AuthorizationEnv):
		return nil, invalid("authorizationEnv", "authorizationEnv names an environment variable: letters, digits and _, not starting with a digit; of those that start with WHENCE_, which hold secrets of this server, only WHENCE_UPSTREAM_... are taken")
	case d.Timeout < 0 || d.Timeout > maxTimeout:
		return nil, invalid("timeout", "the timeout is more than 0 and at most 1 hour")
	case d.MaxRequestBytes < 0 || d.MaxRequestBytes > maxRequestBytes:
		return nil, invalid("maxRequestBytes", "a request's body has at most 64 MiB")
	case d.MaxResponseBytes < 0 || d.MaxResponseBytes > maxResponseBytes:
		return nil, invalid("maxResponseBytes", "a reply's body has at most 1 GiB")
	case len(d.Rules) > maxRules:
		return nil, invalid("rules", fmt.Sprintf("an upstream has at most %d rules", maxRules))
	}
	if u.private, err = parseRanges(d.PrivateRanges); err != nil {
		return nil, err
	}
	if u.base, err = parseBase(d.URL, u.private); err != nil {
		return nil, err
	}
	for i, r := range d.Rules {
		t, err := r.compile()
		if err != nil {
			return nil, invalid(fmt.Sprintf("rules[%d]", i), err.Error())
		}
		u.templates = append(u.templates, t)
	}
	u.Digest = d.digest()
	return u, nil
}

// filled is d with the defaults written out, so that what means the same is the same.
func (d Definition) filled() Definition {
	if d.Timeout == 0 {
		d.Timeout = DefaultTimeout
	}
	if d.MaxRequestBytes == 0 {
		d.MaxRequestBytes = defaultRequestBytes
	}
	if d.MaxResponseBytes == 0 {
		d.MaxResponseBytes = defaultResponseBytes
	}
	rules := make([]Rule, len(d.Rules))
	for i, r := range d.Rules {
		switch {
		case r.SpendHeader == "":
			r.SpendUnitMicros = min(r.SpendUnitMicros, 0) // says nothing; negative stays, to be refused
		case r.SpendUnitMicros == 0:
			r.SpendUnitMicros = 1
		}
		rules[i] = r
	}
	d.Rules = rules
	d.PrivateRanges = append([]string{}, d.PrivateRanges...)
	return d
}

// digest is of a definition as filled leaves it. Its JSON is canonical: the members
// have one order, and no list is null.
func (d Definition) digest() [32]byte {
	b, err := json.Marshal(d)
	if err != nil { // texts and numbers
		panic(err)
	}
	return sha256.Sum256(append([]byte("whence upstream 1\n"), b...))
}

var (
	nameForm = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,62}$`)
	envForm  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
	hostForm = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})$`)
)

// validEnv keeps the server's own secrets at home: whoever may define an upstream
// chooses where the variable's value is sent.
func validEnv(name string) bool {
	own := strings.ToUpper(name)
	return name == "" || envForm.MatchString(name) && (!strings.HasPrefix(own, "WHENCE_") || strings.HasPrefix(own, "WHENCE_UPSTREAM_"))
}

func parseRanges(ranges []string) (out []netip.Prefix, err error) {
	if len(ranges) > maxRanges {
		return nil, invalid("privateRanges", fmt.Sprintf("an upstream has at most %d private ranges", maxRanges))
	}
	for i, text := range ranges {
		field := fmt.Sprintf("privateRanges[%d]", i)
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			return nil, invalid(field, fmt.Sprintf(`%q is not a range of addresses; write it like "10.1.0.0/16" or "127.0.0.1/32"`, text))
		case p.Addr().Is4In6():
			return nil, invalid(field, fmt.Sprintf("%q is a range of IPv4 in the form of IPv6; write it as IPv4", text))
		case p != p.Masked():
			return nil, invalid(field, fmt.Sprintf("%q has bits beyond its length; write %q if that is meant", text, p.Masked()))
		case p.Bits() == 0:
			return nil, invalid(field, fmt.Sprintf("%q is every address; name the ranges that the host is in", text))
		}
		out = append(out, p)
	}
	return out, nil
}

func parseBase(text string, private []netip.Prefix) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || len(text) > maxURL {
		return nil, invalid("url", `the URL is one like "https://api.example.com/v1", at most 2048 bytes`)
	}
	host := u.Hostname()
	addr, notAddress := netip.ParseAddr(host)
	switch {
	case u.Scheme != "http" && u.Scheme != "https", u.Opaque != "", host == "":
		return nil, invalid("url", "the URL starts with http:// or https:// and a host")
	case u.User != nil:
		return nil, invalid("url", "the URL holds no user and password; put them into the variable that authorizationEnv names")
	case u.RawQuery != "" || u.ForceQuery || strings.Contains(text, "#"):
		return nil, invalid("url", "the URL ends with its path: no query and no fragment")
	case notAddress != nil && !hostForm.MatchString(host):
		return nil, invalid("url", "the URL's host is a name of ASCII letters, digits, - and . (Punycode for others), or an address")
	case notAddress == nil && addr.Zone() != "":
		return nil, invalid("url", "the URL's address has no zone")
	case notAddress == nil && refused(addr, private):
		return nil, invalid("url", fmt.Sprintf("%s is not a public address; name its range in privateRanges if it is meant", addr))
	case strings.HasSuffix(u.Host, ":"):
		return nil, invalid("url", "the URL's port is missing after the colon")
	case u.Port() != "" && !validPort(u.Port()):
		return nil, invalid("url", "the URL's port is 1 to 65535")
	}
	path := strings.TrimSuffix(u.EscapedPath(), "/")
	if path != "" {
		if _, err := splitPath(path); err != nil {
			return nil, invalid("url", "in the URL, "+err.Error())
		}
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimSuffix(u.Path, "/"), RawPath: path}, nil
}

func validPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

func invalid(field, message string) *whence.Error {
	return whence.Invalid(field, "UPSTREAM_INVALID", message)
}

// ValidName tells whether an upstream can have the name.
func ValidName(s string) bool { return nameForm.MatchString(s) }
