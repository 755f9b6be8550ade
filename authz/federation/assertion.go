package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz/internal/strict"
)

// AssertedAgent is an agent that has proved who it is.
type AssertedAgent struct {
	Agent   string
	TokenID string
	// Expires is when the assertion stops being accepted, the clocks' difference
	// allowed for: until then its TokenID must be remembered and not be let in
	// again.
	Expires time.Time
}

// AgentKeys finds the key set of an agent; an unknown one is a whence.ErrNotFound.
type AgentKeys func(ctx context.Context, agent string) (json.RawMessage, error)

// Assertion verifies a client assertion (private_key_jwt, RFC 7523): the agent
// signs with a key of its own that it is itself. Everyone whom the assertion is
// for must be one of audiences, it may expire at most [MaxAssertionAhead] from
// now, and it must have an id. Whether it was used before is for the caller to
// judge. An unknown agent is refused as a bad signature is, so that names cannot
// be found out.
func (v *Verifier) Assertion(ctx context.Context, text string, keys AgentKeys, audiences []string) (AssertedAgent, error) {
	t, err := assertion.parse(text)
	if err != nil {
		return AssertedAgent{}, err
	}
	switch {
	case t.issuer != t.subject:
		return AssertedAgent{}, t.role.malformed("iss and sub must both be the agent's name")
	case !strict.Plain(t.subject):
		return AssertedAgent{}, t.role.malformed("iss and sub are missing or not a name")
	}
	document, err := keys(ctx, t.subject)
	if err != nil && !errors.Is(err, whence.ErrNotFound) {
		return AssertedAgent{}, fmt.Errorf("find keys of an agent: %w", err)
	}
	var known []key
	if err == nil {
		if known, err = parseAgentKeys(document); err != nil {
			return AssertedAgent{}, fmt.Errorf("keys of agent %q: %s", t.subject, err.Error()) // not the caller's mistake
		}
	}
	if t.checkSignature(t.signers(known)) != nil {
		return AssertedAgent{}, t.role.refuse("TOKEN_SIGNATURE_INVALID",
			"is not signed by a key that is registered for the agent that it names; register the public key, or sign with the private one", nil)
	}
	if len(t.audience) == 0 || slices.ContainsFunc(t.audience, func(a string) bool { return !slices.Contains(audiences, a) }) {
		return AssertedAgent{}, t.role.refuse("TOKEN_AUDIENCE_WRONG", "must be for this server alone (aud); make one for its issuer URL", nil)
	}
	now := v.c.Clock()
	switch {
	case t.id == "":
		return AssertedAgent{}, t.role.malformed("it has no id (jti)")
	case t.expires == nil:
		return AssertedAgent{}, t.role.malformed("it does not say when it expires (exp)")
	case t.expires.Time().After(now.Add(MaxAssertionAhead + clockSkew)):
		return AssertedAgent{}, t.role.malformed(fmt.Sprintf("it expires more than %s from now", MaxAssertionAhead))
	}
	if err := t.checkTime(now); err != nil {
		return AssertedAgent{}, err
	}
	return AssertedAgent{Agent: t.subject, TokenID: t.id, Expires: t.expires.Time().Add(clockSkew)}, nil
}
