package devissuer

import (
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// maxParameter bounds what is kept of a request, in bytes.
const maxParameter = 2048

// authRequest is an authorization request (RFC 6749 section 4.1.1, RFC 7636, OpenID
// Connect Core section 3.1.2.1) that may be answered by sending the user back.
type authRequest struct {
	query    url.Values // as it came
	redirect *url.URL
}

// newAuthRequest checks what must hold before anybody is sent anywhere.
func (i *Issuer) newAuthRequest(query url.Values) (authRequest, error) {
	for name, values := range query {
		if len(values) > 1 || len(values[0]) > maxParameter {
			return authRequest{}, errors.New("the parameter " + name + " is there twice or too long; send each once, with 2048 bytes at most")
		}
	}
	if !slices.Contains(i.c.Clients, query.Get("client_id")) {
		return authRequest{}, errors.New("the client_id is not known to the development issuer; use the one that whoever runs it has")
	}
	u, err := url.Parse(query.Get("redirect_uri"))
	if err != nil || u.Scheme != "http" || !loopbackHost(u.Hostname()) || u.User != nil ||
		strings.Contains(query.Get("redirect_uri"), "#") {
		return authRequest{}, errors.New("the redirect_uri must be an http URL of this machine, such as http://127.0.0.1:8000/callback")
	}
	return authRequest{query, u}, nil
}

// authError is an error that the client is told (RFC 6749 section 4.1.2.1).
type authError struct{ code, description string }

// check returns what is wrong with the rest, which the client is told.
func (q authRequest) check() *authError {
	get := q.query.Get
	challenge, err := base64.RawURLEncoding.Strict().DecodeString(get("code_challenge"))
	prompts := strings.Fields(get("prompt"))
	switch {
	case q.query.Has("request"):
		return &authError{"request_not_supported", "send the parameters themselves"}
	case q.query.Has("request_uri"):
		return &authError{"request_uri_not_supported", "send the parameters themselves"}
	case get("response_type") != "code":
		return &authError{"unsupported_response_type", "response_type must be code"}
	case q.query.Has("response_mode") && get("response_mode") != "query":
		return &authError{"invalid_request", "response_mode must be query"}
	case get("code_challenge_method") != "S256" || err != nil || len(challenge) != 32:
		return &authError{"invalid_request", "PKCE is required: code_challenge with code_challenge_method S256"}
	case !slices.Contains(strings.Fields(get("scope")), "openid"):
		return &authError{"invalid_scope", "scope must contain openid"}
	case len(prompts) > 1 && slices.Contains(prompts, "none"):
		return &authError{"invalid_request", "prompt none goes with no other"}
	}
	return nil
}

// authorize shows whom one may sign in as. With prompt=none nothing is shown:
// login_hint says who it is.
func (i *Issuer) authorize(w http.ResponseWriter, r *http.Request) {
	q, ok := i.accept(w, r)
	if !ok {
		return
	}
	if q.query.Get("prompt") != "none" {
		i.showPage(w, q)
		return
	}
	u, ok := i.user(q.query.Get("login_hint"))
	if !ok {
		i.fail(w, r, q, authError{"login_required", "login_hint names no user of the development issuer"})
		return
	}
	i.grant(w, r, q, u)
}

// signIn takes the page's form. The request comes along in the address and is
// checked again: nothing is kept between the two.
func (i *Issuer) signIn(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "the form cannot be read; sign in again", http.StatusBadRequest)
		return
	}
	q, ok := i.accept(w, r)
	if !ok {
		return
	}
	if r.PostForm.Has("cancel") {
		i.fail(w, r, q, authError{"access_denied", "the user cancelled"})
		return
	}
	u, ok := i.user(r.PostForm.Get("user"))
	if !ok {
		http.Error(w, "the development issuer has no such user; sign in again", http.StatusBadRequest)
		return
	}
	i.grant(w, r, q, u)
}

// accept reads a request, or answers it when it is wrong.
func (i *Issuer) accept(w http.ResponseWriter, r *http.Request) (authRequest, bool) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		http.Error(w, "the parameters cannot be read", http.StatusBadRequest)
		return authRequest{}, false
	}
	q, err := i.newAuthRequest(query)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return authRequest{}, false
	}
	if problem := q.check(); problem != nil {
		i.fail(w, r, q, *problem)
		return authRequest{}, false
	}
	return q, true
}

func (i *Issuer) grant(w http.ResponseWriter, r *http.Request, q authRequest, u User) {
	code, ok := i.codes.put(grant{user: u, client: q.query.Get("client_id"), redirect: q.query.Get("redirect_uri"),
		nonce: q.query.Get("nonce"), challenge: q.query.Get("code_challenge")})
	if !ok {
		i.fail(w, r, q, authError{"temporarily_unavailable", "too many codes wait to be redeemed; try again in a minute"})
		return
	}
	i.sendBack(w, r, q, url.Values{"code": {code}})
}

func (i *Issuer) fail(w http.ResponseWriter, r *http.Request, q authRequest, e authError) {
	i.sendBack(w, r, q, url.Values{"error": {e.code}, "error_description": {e.description}})
}

// sendBack answers the client, and says whose answer it is (RFC 9207).
func (i *Issuer) sendBack(w http.ResponseWriter, r *http.Request, q authRequest, answer url.Values) {
	answer.Set("iss", i.c.URL)
	if state := q.query.Get("state"); state != "" {
		answer.Set("state", state)
	}
	to := *q.redirect
	if to.RawQuery != "" {
		to.RawQuery += "&"
	}
	to.RawQuery += answer.Encode()
	http.Redirect(w, r, to.String(), http.StatusSeeOther) // to this machine, by newAuthRequest
}
