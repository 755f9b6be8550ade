package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Names of RFC 8693 and RFC 7523.
const (
	typeIDToken     = "urn:ietf:params:oauth:token-type:id_token"              //nolint:gosec // G101: a name, not a credential
	typeJWT         = "urn:ietf:params:oauth:token-type:jwt"                   //nolint:gosec // G101: a name, not a credential
	typeAccessToken = "urn:ietf:params:oauth:token-type:access_token"          //nolint:gosec // G101: a name, not a credential
	typeAssertion   = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" //nolint:gosec // G101: a name, not a credential
)

type tokenExchange struct {
	loginFlags   `embed:""`
	scopeFlags   `embed:""`
	Agent        string `arg:"" help:"The agent that gets the task."`
	Purpose      string `arg:"" optional:"" help:"What the task is for."`
	Installation string `name:"issuer" env:"WHENCE_ISSUER" help:"Public URL of the installation, as its server has it: the agent signs for no other; default the server's URL." placeholder:"URL"`
	Key          string `required:"" env:"WHENCE_AGENT_KEY" type:"path" help:"File with the agent's private key (PEM, PKCS #8)." placeholder:"FILE"`
	SubjectToken string `env:"WHENCE_SUBJECT_TOKEN" help:"The user's token by a trusted issuer, instead of signing in." placeholder:"TOKEN"`
	Renew        string `help:"Get another token for the task of this one." placeholder:"TOKEN"`
	Calls        int64  `help:"Calls that it may make; 0: as many as granted."`
	budgetFlags  `embed:""`
	Lifetime     time.Duration `help:"How long it may last; 0: as long as granted."`
}

func (c *tokenExchange) Run(ctx context.Context, a *app) error {
	installation := c.Installation
	if installation == "" {
		installation = strings.TrimRight(c.URL, "/")
	}
	assertion, err := assert(installation, c.Agent, c.Key)
	if err != nil {
		return err
	}
	form := url.Values{"client_assertion": {assertion}, "client_assertion_type": {typeAssertion}}
	switch {
	case c.Renew != "":
		form.Set("subject_token", c.Renew)
		form.Set("subject_token_type", typeAccessToken)
		out, err := exchange(ctx, c.URL, form)
		if err != nil {
			return err
		}
		return out.print(a)
	case c.Purpose == "":
		return errors.New("say what the task is for: whence token exchange AGENT PURPOSE")
	}
	subject, kind := c.SubjectToken, typeJWT
	if subject == "" {
		kind = typeIDToken
		if subject, err = c.idToken(ctx, a); err != nil {
			return err
		}
	}
	asked := c.wish()
	details, err := json.Marshal([]taskWish{asked})
	if err != nil {
		return err
	}
	form.Set("subject_token", subject)
	form.Set("subject_token_type", kind)
	form.Set("authorization_details", string(details))
	out, err := exchange(ctx, c.URL, form)
	if err != nil {
		return err
	}
	if user := subjectOf(out.Token); c.SubjectToken == "" && c.User != "" && user != c.User {
		fmt.Fprintf(a.err, "signed in as %s\n", user)
	}
	if len(out.Details) == 1 {
		if less := lessThan(asked, out.Details[0]); less != "" {
			fmt.Fprintf(a.err, "granted less than asked: %s\n", less)
		}
	}
	return out.print(a)
}

// assert signs that the holder of the key is the agent (private_key_jwt, RFC 7523),
// for one installation: not for whatever a server says that it is called, or it could
// pass the assertion on.
func assert(installation, agent, file string) (string, error) {
	key, method, err := readKey(file)
	if err != nil {
		return "", err
	}
	now := time.Now()
	return jwt.NewWithClaims(method, jwt.MapClaims{"iss": agent, "sub": agent, "aud": installation, "jti": rand.Text(),
		"iat": now.Unix(), "exp": now.Add(time.Minute).Unix()}).SignedString(key)
}

// readKey reads an agent's private key and tells how it signs.
func readKey(file string) (crypto.Signer, jwt.SigningMethod, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, nil, fmt.Errorf("%s: want a private key in PEM; whence agent create --new-key makes one", file)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	switch key := parsed.(type) {
	case ed25519.PrivateKey:
		return key, jwt.SigningMethodEdDSA, nil
	case *ecdsa.PrivateKey:
		for _, m := range []*jwt.SigningMethodECDSA{jwt.SigningMethodES256, jwt.SigningMethodES384, jwt.SigningMethodES512} {
			if m.CurveBits == key.Params().BitSize {
				return key, m, nil
			}
		}
	}
	return nil, nil, fmt.Errorf("%s: want an Ed25519 key, or an ECDSA key on P-256, P-384 or P-521", file)
}
