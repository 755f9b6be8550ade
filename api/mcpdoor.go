package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/api/oauth"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
)

// mcpCall is what the log calls a request to the MCP endpoint that was refused before
// it was known what call it holds.
const mcpCall = "mcp"

// mcpDoor lets requests in to the MCP endpoint, each with its own credential, which
// the calls in it are made with. Nothing of MCP is read or answered before that.
type mcpDoor struct {
	Config
	endpoint http.Handler
}

type presentedKey struct{}

func (d *mcpDoor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	if !d.ownOrigin(r) {
		d.refuse(w, r, d.Gateway.RefuseUnread(ctx, mcpCall, &whence.Error{Kind: whence.ErrDenied, Reason: "ORIGIN_NOT_ALLOWED",
			Message: "pages of other origins may not call this server; call it from a program, which sends no Origin header"}))
		return
	}
	taken, err := d.Gateway.Arrive(ctx, gateway.Call{Name: mcpCall, Presented: presentedBy(r, d.Issuer+oauth.MCPPath)})
	if err != nil {
		d.refuse(w, r, err)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		if tooLarge := new(http.MaxBytesError); !errors.As(err, &tooLarge) {
			return // whoever asked is gone
		}
		d.refuse(w, r, d.Gateway.Refuse(ctx, gateway.Call{Name: mcpCall, Presented: taken}, whence.Invalid("", "REQUEST_TOO_LARGE",
			fmt.Sprintf("the request is larger than %d bytes; send less in one call", maxRequest))))
		return
	}
	r = r.WithContext(context.WithValue(ctx, presentedKey{}, taken))
	r.Body = io.NopCloser(bytes.NewReader(body))
	d.endpoint.ServeHTTP(w, r)
}

// ownOrigin tells whether a request comes from a program or from a page of the
// installation's own. A page that has its own name resolve to this server (DNS
// rebinding) is of the same origin in the eyes of its browser, and of
// [http.CrossOriginProtection]; so the Origin is held against the name that the
// installation goes by. A Host header is not: proxies rewrite it.
func (d *mcpDoor) ownOrigin(r *http.Request) bool {
	own := originOf(d.Issuer)
	for _, v := range r.Header.Values("Origin") {
		if own == "" || originOf(v) != own {
			return false
		}
	}
	return true
}

// originOf writes a URL's origin in one way; what has none is empty.
func originOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return ""
	}
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	return scheme + "://" + strings.TrimSuffix(host, map[string]string{"http": ":80", "https": ":443"}[scheme])
}

// presentedBy is the credential of a plain HTTP request to a URL of the installation.
func presentedBy(r *http.Request, url string) authz.Presented {
	p := authz.Presented{Proof: r.Header.Get("DPoP"), Method: r.Method, URL: url}
	if len(r.Header.Values("Authorization")) <= 1 && len(r.Header.Values("DPoP")) <= 1 { // of two, one would be ignored
		p.Token, p.Bound = authz.ReadAuthorization(r.Header.Get("Authorization"))
	}
	return p
}

func (d *mcpDoor) refuse(w http.ResponseWriter, r *http.Request, err error) {
	refuse(w, r, d.Log, d.challenge(oauth.MCPMetadataPath), err)
}
