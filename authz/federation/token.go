package federation

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/internal/strict"
)

// role is what a token is sent as: the request parameter that holds it, for
// messages, and the types (typ, in small letters) that may stand there.
type role struct {
	parameter string
	types     []string
}

var (
	subjectToken = role{"subject_token", []string{"jwt", "at+jwt"}}
	actorToken   = role{"actor_token", []string{"jwt", "at+jwt", "jose"}} // jose: JWT-SVID, section 2.3
	assertion    = role{"client_assertion", []string{"jwt", "client-authentication+jwt"}}
)

func (r role) refuse(reason, message string, cause error) error {
	return &whence.Error{Kind: whence.ErrUnauthenticated, Reason: reason, Message: "the " + r.parameter + " " + message,
		Field: r.parameter, Err: cause}
}

// malformed says what is wrong; problem must not hold anything of the token.
func (r role) malformed(problem string) error {
	return r.refuse("TOKEN_MALFORMED", "cannot be used: "+problem, nil)
}

func (r role) badSignature(cause error) error {
	return r.refuse("TOKEN_SIGNATURE_INVALID", "is not signed by a key that its issuer publishes, with an algorithm that is registered for it; get a new one", cause)
}

func (r role) wrongAudience() error {
	return r.refuse("TOKEN_AUDIENCE_WRONG", "is for somebody else; ask its issuer for one whose aud is the audience that is registered here", nil)
}

// token is a foreign token that was read and not yet verified.
type token struct {
	role      role
	parts     strict.Token
	algorithm string
	keyID     string // empty when it names none
	members   map[string]json.RawMessage

	issuer, subject, id string
	party               *string // azp
	audience            strict.Audience
	expires             *strict.Seconds
	issued, notYet      *strict.Seconds
}

// parse reads a token without believing it.
func (r role) parse(text string) (*token, error) {
	switch {
	case text == "":
		return nil, r.refuse("TOKEN_MISSING", "is empty; send a signed JWT", nil)
	case len(text) > authz.MaxTokenSize:
		return nil, r.malformed(fmt.Sprintf("it is longer than %d bytes", authz.MaxTokenSize))
	}
	parts, err := strict.Split(text)
	if err != nil {
		return nil, r.malformed("it is not a signed JWT (" + err.Error() + ")")
	}
	t := &token{role: r, parts: parts}
	if err := t.readHeader(); err != nil {
		return nil, err
	}
	if err := t.readClaims(); err != nil {
		return nil, err
	}
	return t, nil
}

// refused are the header members that bring a key along, or change what the rest
// means (RFC 7515, RFC 7516, RFC 7797).
var refused = []string{"jwk", "jku", "x5u", "x5c", "crit", "b64", "zip"}

func (t *token) readHeader() error {
	members, err := strict.Members(t.parts.Header)
	if err != nil {
		return t.role.malformed("its header is not a JSON object with each member once")
	}
	for _, name := range refused {
		if _, ok := members[name]; ok {
			return t.role.malformed("its header must not have " + name)
		}
	}
	var typ, kid *string
	for name, target := range map[string]any{"typ": &typ, "alg": &t.algorithm, "kid": &kid} {
		if raw, ok := members[name]; ok && json.Unmarshal(raw, target) != nil {
			return t.role.malformed("its header's " + name + " is not a string")
		}
	}
	if typ != nil && !slices.Contains(t.role.types, strings.TrimPrefix(strings.ToLower(*typ), "application/")) {
		return t.wrongType("is of a type (typ) made for something else")
	}
	if kid != nil {
		if !strict.Plain(*kid) {
			return t.role.malformed("its header's kid is not plain text")
		}
		t.keyID = *kid
	}
	return nil
}

func (t *token) wrongType(problem string) error {
	return t.role.refuse("TOKEN_TYPE_WRONG", problem+"; send one of type "+strings.Join(t.role.types, ", ")+" that is for this", nil)
}

func (t *token) readClaims() error {
	var err error
	if t.members, err = strict.Members(t.parts.Claims); err != nil {
		return t.role.malformed("its claims are not a JSON object with each member once")
	}
	for name, target := range map[string]any{"iss": &t.issuer, "sub": &t.subject, "aud": &t.audience, "azp": &t.party,
		"exp": &t.expires, "iat": &t.issued, "nbf": &t.notYet, "jti": &t.id} {
		if raw, ok := t.members[name]; ok && json.Unmarshal(raw, target) != nil {
			return t.role.malformed("its claim " + name + " is not what it should be")
		}
	}
	switch {
	case t.has("events"): // logout and security event tokens, which need not have a type
		return t.wrongType("tells of an event")
	case t.has("cnf"):
		return t.wrongType("is bound to a key (cnf), which cannot be proved here")
	case t.has("jti") && !strict.Plain(t.id):
		return t.role.malformed("its claim jti is not plain text")
	}
	return nil
}

func (t *token) has(claim string) bool { _, ok := t.members[claim]; return ok }

// signers returns those keys that may have signed the token. Without a key id
// only the signature tells.
func (t *token) signers(keys []key) []key {
	var out []key
	for _, k := range keys {
		if t.keyID != "" && k.id == t.keyID || t.keyID == "" && t.signed(k) == nil {
			out = append(out, k)
		}
	}
	return out
}

// checkSignature tells whether one of the signers signed the token.
func (t *token) checkSignature(signers []key) error {
	err := errors.New("the issuer has no such key")
	for _, k := range signers {
		if err = t.signed(k); err == nil {
			return nil
		}
	}
	return t.role.badSignature(err)
}

func (t *token) signed(k key) error {
	m := method(t.algorithm)
	if m == nil || !slices.Contains(k.algorithms, t.algorithm) {
		return errors.New("the algorithm is not the key's")
	}
	return m.Verify(t.parts.Signed, t.parts.Signature, k.public)
}

// checkLifetime tells whether a token's validity has an end that is near enough.
func (t *token) checkLifetime(now time.Time, issuedRequired bool) error {
	if t.expires == nil || t.issued == nil && issuedRequired {
		return t.role.malformed("it does not say when it was issued and when it expires (iat, exp)")
	}
	from, most := now, authz.MaxLifetime+clockSkew
	if t.issued != nil {
		from, most = t.issued.Time(), authz.MaxLifetime
		if !t.expires.Time().After(from) {
			return t.role.malformed("it expires before it was issued")
		}
	}
	if t.expires.Time().Sub(from) > most {
		return t.role.malformed(fmt.Sprintf("it is valid for more than %s", authz.MaxLifetime))
	}
	return nil
}

func (t *token) checkTime(now time.Time) error {
	for _, start := range []*strict.Seconds{t.issued, t.notYet} {
		if start != nil && now.Before(start.Time().Add(-clockSkew)) {
			return t.role.refuse("TOKEN_NOT_YET_VALID", "is not valid yet; compare this machine's clock with the issuer's", nil)
		}
	}
	if !now.Before(t.expires.Time().Add(clockSkew)) {
		return t.role.refuse("TOKEN_EXPIRED", "has expired; get a new one from its issuer", nil)
	}
	return nil
}
