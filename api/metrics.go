package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"

	"github.com/whence-db/whence/api/oauth"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
)

// metricsDoor keeps agents away from the metrics: how many rows a table has, or
// how many were changed just now, is more than a scope may allow them to learn.
type metricsDoor struct{ Config }

func (d *metricsDoor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token, _ := authz.ReadAuthorization(r.Header.Get("Authorization"))
	if d.MetricsToken != "" && sameSecret(token, d.MetricsToken) {
		d.Metrics.ServeHTTP(w, r)
		return
	}
	err := d.Gateway.Observe(r.Context(), gateway.Call{Name: "GET /metrics", Presented: authz.Presented{Token: token}, Role: authz.RoleViewer})
	if err == nil {
		d.Metrics.ServeHTTP(w, r)
		return
	}
	refuse(w, r, d.Log, d.challenge(oauth.ResourceMetadataPath), err)
}

// sameSecret compares in a time that tells nothing of either.
func sameSecret(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}
