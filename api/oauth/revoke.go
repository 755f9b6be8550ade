package oauth

import (
	"net/http"

	"github.com/whence-db/whence"
)

// revoke ends a token (RFC 7009). To have it is authority enough, so that whoever
// finds a token can end it; who asks, and how they say so, does not matter.
func (s *server) revoke(w http.ResponseWriter, r *http.Request) {
	form, err := readForm(w, r)
	if err == nil && form.Get("token") == "" {
		err = whence.Invalid("token", "TOKEN_MISSING", "send the token to be revoked as token")
	}
	if err != nil {
		err = s.Door.RefuseUnread(r.Context(), "oauth/revoke", err)
	} else {
		err = s.Door.RevokeToken(r.Context(), form.Get("token"))
	}
	if err != nil {
		s.fail(w, r, translate(err))
		return
	}
	write(w, http.StatusOK, nil)
}
