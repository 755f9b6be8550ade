package devissuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// maxBody bounds a form, in bytes.
const maxBody = 64 << 10

// scopes are what every token is good for, whatever else was asked for.
const scopes = "openid profile groups"

// makeKeys makes the one key, on P-256 because not every client knows Ed25519.
func (i *Issuer) makeKeys() error {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	key := jose.JSONWebKey{Key: private, Algorithm: string(jose.ES256), Use: "sig"}
	thumbprint, err := key.Thumbprint(crypto.SHA256)
	if err != nil {
		return err
	}
	key.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
	i.keys = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key.Public()}}
	signing := jose.SigningKey{Algorithm: jose.ES256, Key: key}
	if i.id, err = jose.NewSigner(signing, (&jose.SignerOptions{}).WithType("JWT")); err != nil {
		return err
	}
	// The type keeps an access token from being taken for an ID token (RFC 9068).
	i.access, err = jose.NewSigner(signing, (&jose.SignerOptions{}).WithType("at+jwt"))
	return err
}

func (i *Issuer) jwks(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, i.keys) }

// discovery is OpenID Connect Discovery 1.0, section 3.
func (i *Issuer) discovery(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{
		"issuer":                                         i.c.URL,
		"authorization_endpoint":                         i.c.URL + "/authorize",
		"token_endpoint":                                 i.c.URL + "/token",
		"jwks_uri":                                       i.c.URL + "/jwks",
		"response_types_supported":                       []string{"code"},
		"response_modes_supported":                       []string{"query"},
		"grant_types_supported":                          []string{"authorization_code"},
		"subject_types_supported":                        []string{"public"},
		"id_token_signing_alg_values_supported":          []string{string(jose.ES256)},
		"code_challenge_methods_supported":               []string{"S256"},
		"token_endpoint_auth_methods_supported":          []string{"none"},
		"scopes_supported":                               []string{"openid", "profile", "groups"},
		"claims_supported":                               []string{"iss", "sub", "aud", "azp", "exp", "iat", "nonce", "name", "groups"},
		"request_uri_parameter_supported":                false, // the default is true
		"authorization_response_iss_parameter_supported": true,
	})
}

// claims are what tokens say.
type claims struct {
	Issuer   string   `json:"iss"`
	Subject  string   `json:"sub"`
	Audience string   `json:"aud"`
	Party    string   `json:"azp"`
	Client   string   `json:"client_id,omitempty"` // of access tokens
	Expires  int64    `json:"exp"`
	IssuedAt int64    `json:"iat"`
	ID       string   `json:"jti"`
	Nonce    string   `json:"nonce,omitempty"` // of ID tokens
	Name     string   `json:"name"`
	Groups   []string `json:"groups"`
}

// token redeems a code (RFC 6749 section 4.1.3, RFC 7636 section 4.6). A code that
// was sent with anything wrong is used up all the same.
func (i *Issuer) token(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if err := r.ParseForm(); err != nil {
		refuse(w, http.StatusBadRequest, "invalid_request", "the form cannot be read")
		return
	}
	for name, values := range r.PostForm {
		if len(values) > 1 {
			refuse(w, http.StatusBadRequest, "invalid_request", "send "+name+" once")
			return
		}
	}
	get := r.PostForm.Get
	switch {
	case r.Header.Get("Authorization") != "":
		w.Header().Set("WWW-Authenticate", `Basic realm="development issuer"`)
		refuse(w, http.StatusUnauthorized, "invalid_client", "clients have no secret here: send client_id in the form alone")
		return
	case !slices.Contains(i.c.Clients, get("client_id")):
		refuse(w, http.StatusUnauthorized, "invalid_client", "the client_id is not known")
		return
	case get("grant_type") != "authorization_code":
		refuse(w, http.StatusBadRequest, "unsupported_grant_type", "grant_type must be authorization_code")
		return
	}
	g, ok := i.codes.take(get("code"))
	if !ok {
		refuse(w, http.StatusBadRequest, "invalid_grant", "the code is unknown, used or older than a minute; sign in again")
		return
	}
	if g.client != get("client_id") || g.redirect != get("redirect_uri") || !matches(g.challenge, get("code_verifier")) {
		refuse(w, http.StatusBadRequest, "invalid_grant", "the code is not for this client_id, redirect_uri and code_verifier; sign in again")
		return
	}
	i.issue(w, g)
}

// matches is PKCE's check, S256 only.
func matches(challenge, verifier string) bool {
	sum := sha256.Sum256([]byte(verifier))
	return subtle.ConstantTimeCompare([]byte(challenge), []byte(base64.RawURLEncoding.EncodeToString(sum[:]))) == 1
}

func (i *Issuer) issue(w http.ResponseWriter, g grant) {
	now := i.c.Clock()
	c := claims{Issuer: i.c.URL, Subject: g.user.Name, Audience: g.client, Party: g.client,
		Expires: now.Add(i.c.Lifetime).Unix(), IssuedAt: now.Unix(), Name: g.user.Name,
		Groups: append([]string{}, g.user.Groups...)}
	id, access := c, c
	id.ID, id.Nonce = rand.Text(), g.nonce
	access.ID, access.Client = rand.Text(), g.client
	idToken, err := jwt.Signed(i.id).Claims(id).Serialize()
	if err != nil {
		refuse(w, http.StatusInternalServerError, "server_error", "the token could not be signed")
		return
	}
	accessToken, err := jwt.Signed(i.access).Claims(access).Serialize()
	if err != nil {
		refuse(w, http.StatusInternalServerError, "server_error", "the token could not be signed")
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"access_token": accessToken, "id_token": idToken, "token_type": "Bearer",
		"expires_in": int64(i.c.Lifetime / time.Second), "scope": scopes})
}

// refuse is RFC 6749, section 5.2.
func refuse(w http.ResponseWriter, status int, code, description string) {
	writeJSON(w, status, map[string]string{"error": code, "error_description": description})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a reader that is gone needs no answer
}
