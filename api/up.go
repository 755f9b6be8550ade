package api

import (
	"net/http"
	"strings"
	"time"

	"github.com/whence-db/whence/api/oauth"
	"github.com/whence-db/whence/gateway"
)

// upPath is what requests to upstreams come in under: "/up/NAME/…".
const upPath = "/up/"

// readLimit is how long a caller may take to send a request's body.
const readLimit = time.Minute

// up hands requests to upstreams to the gateway, with the caller's credential.
type up struct{ Config }

func (u *up) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, _, _ := strings.Cut(r.RequestURI, "?")
	name, _, _ := strings.Cut(strings.TrimPrefix(raw, upPath), "/")
	prefix := upPath + name
	in := gateway.Passed{Upstream: name, Prefix: prefix, Request: r, Key: r.Header.Get("Idempotency-Key"),
		Presented: presentedBy(r, u.Issuer+raw)}
	if len(r.Header.Values("Idempotency-Key")) > 1 {
		in.Key = "\x00" // of two keys neither is meant
	}
	// The body and the reply may last longer than the server allows its own calls.
	control := http.NewResponseController(w)
	_ = control.EnableFullDuplex() // HTTP/2 always is
	_ = control.SetReadDeadline(time.Now().Add(readLimit))
	if err := u.Gateway.Pass(r.Context(), in, w); err != nil {
		refuse(w, r, u.Log, u.challenge(oauth.ResourceMetadataPath), err)
	}
}
