package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/http"

	"github.com/whence-db/whence"
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
	var e *whence.Error
	status := http.StatusInternalServerError
	switch {
	case !errors.As(err, &e):
		d.Log.ErrorContext(r.Context(), "cannot tell who asks for the metrics", "error", err)
		problem(w, status, "INTERNAL", "the server failed; its log says why")
		return
	case errors.Is(e.Kind, whence.ErrUnauthenticated):
		status = http.StatusUnauthorized
		w.Header().Set("WWW-Authenticate", d.challenge())
	case errors.Is(e.Kind, whence.ErrDenied):
		status = http.StatusForbidden
	case errors.Is(e.Kind, whence.ErrUnavailable):
		status = http.StatusServiceUnavailable
	}
	problem(w, status, e.Reason, e.Message)
}

// sameSecret compares in a time that tells nothing of either.
func sameSecret(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}
