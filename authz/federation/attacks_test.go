package federation

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest/forge"
)

// attack is one line of testdata/attacks.json: what is changed in a good token.
type attack struct {
	Name          string
	As            string         // user (when empty), agent, svid, assertion
	Issuer        string         // main when empty; sets iss
	Header        map[string]any // merged into the header; null takes away
	Claims        map[string]any // merged into the claims; null takes away
	InsertHeader  string         // put behind the header's opening brace
	InsertClaims  string         // put behind the claims' opening brace
	ReplaceHeader string
	ReplaceClaims string
	Latin1        bool    // the claims are sent in Latin-1
	Sign          string  // the key's name; none, hmac-public, ec-as-es384
	Then          string  // what happens to the finished token
	Token         *string // instead of all that
	Want          string  // the reason it is refused for; empty: accepted
	Is            *who    // whom an accepted token speaks of
}

type who struct {
	Subject, Tenant, TokenID string
	Groups                   []string
	Role                     authz.Role
}

var ownAudiences = []string{"https://whence.test", "https://whence.test/oauth/token"}

// good is the token that attacks change.
func (p *provider) good(as, issuer string) (header, claims map[string]any, sign string) {
	if issuer == "" {
		issuer = "main"
	}
	header = map[string]any{"typ": "JWT", "alg": "EdDSA", "kid": "ed"}
	claims = map[string]any{"iss": p.URL + "/" + issuer, "aud": "whence", "sub": "ada", "jti": "t1", "iat": 2_000_000_000, "exp": 2_000_000_300}
	switch as {
	case "svid":
		header["alg"], header["kid"], claims["sub"] = "ES256", "svid", "spiffe://example.org/agent/writer"
		delete(claims, "iss")
		delete(claims, "iat")
		return header, claims, "svid"
	case "assertion":
		header["kid"], claims["iss"], claims["sub"], claims["aud"] = "agent", "writer", "writer", "https://whence.test"
		return header, claims, "agent"
	}
	return header, claims, "ed"
}

func (p *provider) make(t testing.TB, a attack) string {
	t.Helper()
	if a.Token != nil {
		return *a.Token
	}
	header, claims, sign := p.good(a.As, a.Issuer)
	if a.Sign != "" {
		sign = a.Sign
	}
	p.merge(header, a.Header)
	p.merge(claims, a.Claims)
	h := forge.Spell(t, header, a.InsertHeader, a.ReplaceHeader)
	c := forge.Spell(t, claims, strings.ReplaceAll(a.InsertClaims, "$deep", `"x":`+strings.Repeat("[", 60)+strings.Repeat("]", 60)+","), a.ReplaceClaims)
	if a.Latin1 {
		c = strings.ReplaceAll(c, "\u00ff", "\xff")
	}
	b64 := base64.RawURLEncoding.EncodeToString
	signed := b64([]byte(h)) + "." + b64([]byte(c))
	algorithm, _ := header["alg"].(string)
	return damage(t, signed+"."+b64(signature(t, sign, algorithm, signed)), a.Then)
}

func (p *provider) merge(into, changes map[string]any) {
	for k, v := range changes {
		if v == nil {
			delete(into, k)
			continue
		}
		if s, ok := v.(string); ok {
			s = strings.ReplaceAll(s, "$server", p.URL)
			s = strings.ReplaceAll(s, "$SERVER", strings.ToUpper(p.URL))
			v = strings.ReplaceAll(s, "$big", strings.Repeat("x", authz.MaxTokenSize))
		}
		into[k] = v
	}
}

func signature(t testing.TB, how, algorithm, signed string) []byte {
	t.Helper()
	switch how {
	case "none":
		return nil
	case "hmac-public":
		public, err := json.Marshal(publish(t, "ed", nil))
		if err != nil {
			t.Fatal(err)
		}
		m := hmac.New(sha256.New, public)
		m.Write([]byte(signed))
		return m.Sum(nil)
	case "ec-as-es384": // right in all but the curve
		sum := sha512.Sum384([]byte(signed))
		r, s, err := ecdsa.Sign(rand.Reader, pair("ec").(*ecdsa.PrivateKey), sum[:])
		if err != nil {
			t.Fatal(err)
		}
		out := make([]byte, 96)
		r.FillBytes(out[:48])
		s.FillBytes(out[48:])
		return out
	}
	k := pair(how)
	if k == nil {
		t.Fatalf("no way to sign is called %q", how)
	}
	// The algorithm that the header names when the key can do it, or else its own.
	m := method(algorithm)
	if m != nil {
		if s, err := m.Sign(signed, k); err == nil {
			return s
		}
	}
	own := "EdDSA"
	if _, ok := k.(*ecdsa.PrivateKey); ok {
		own = "ES256"
	}
	s, err := method(own).Sign(signed, k)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func damage(t testing.TB, token, how string) string {
	t.Helper()
	switch how {
	case "change-claims":
		h, last := strings.IndexByte(token, '.'), strings.LastIndexByte(token, '.')
		claims, _ := base64.RawURLEncoding.DecodeString(token[h+1 : last])
		claims = bytes.Replace(claims, []byte(`"sub":"ada"`), []byte(`"sub":"eve"`), 1)
		return token[:h+1] + base64.RawURLEncoding.EncodeToString(claims) + token[last:]
	case "encrypted":
		return token + ".AA.AA"
	}
	return forge.Damage(t, token, how)
}

func attacks(t testing.TB) []attack {
	t.Helper()
	b, err := os.ReadFile("testdata/attacks.json")
	if err != nil {
		t.Fatal(err)
	}
	var out []attack
	d := json.NewDecoder(bytes.NewReader(b)) // not strictly: an attack may hold a name in two cases
	d.DisallowUnknownFields()
	if err := d.Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

// judge verifies a token as what the attack sends it as.
func (p *provider) judge(t testing.TB, v *Verifier, as, token string) (who, time.Time, error) {
	t.Helper()
	var id Identity
	var err error
	switch as {
	case "", "user":
		id, err = v.User(t.Context(), token)
	case "agent", "svid":
		id, err = v.Agent(t.Context(), token)
	case "assertion":
		a, err := v.Assertion(t.Context(), token, agentKeys(t), ownAudiences)
		return who{Subject: a.Agent, TokenID: a.TokenID}, a.Expires, err
	default:
		t.Fatalf("nothing is sent as %q", as)
	}
	return who{id.Subject, id.Tenant, id.TokenID, id.Groups, id.Role}, id.Expires, err
}

func TestAttacks(t *testing.T) {
	t.Parallel()
	p := standard(t)
	v := p.verifier(t)
	parameter := map[string]string{"": "subject_token", "user": "subject_token", "agent": "actor_token", "svid": "actor_token", "assertion": "client_assertion"}
	seen := map[string]bool{}
	for _, a := range attacks(t) {
		if seen[a.As+a.Name] {
			t.Errorf("two attacks are called %q", a.Name)
		}
		seen[a.As+a.Name] = true
		token := p.make(t, a)
		for _, again := range []string{"", " the second time"} { // a refusal or an acceptance must not wear off
			got, _, err := p.judge(t, v, a.As, token)
			var e *whence.Error
			switch {
			case a.Want == "" && err != nil:
				t.Errorf("%s%s: refused: %v", a.Name, again, err)
			case a.Want == "" && a.Is == nil:
				t.Errorf("%s: accepted tokens must say whom they speak of", a.Name)
			case a.Want == "":
				if diff := cmp.Diff(*a.Is, got); diff != "" {
					t.Errorf("%s%s (-want +got):\n%s", a.Name, again, diff)
				}
			case err == nil:
				t.Errorf("%s%s: accepted as %+v", a.Name, again, got)
			case !errors.As(err, &e) || e.Reason != a.Want || !errors.Is(e.Kind, whence.ErrUnauthenticated) || !cmp.Equal(got, who{}):
				t.Errorf("%s%s: %v (%+v), want %s", a.Name, again, err, e, a.Want)
			case !strings.HasPrefix(e.Message, "the "+parameter[a.As]+" ") || len(token) > 3 && strings.Contains(e.Error(), token):
				t.Errorf("%s%s: message %q", a.Name, again, e.Error())
			}
		}
	}
}

// Nothing but the very tokens that were signed is accepted, as anything.
func FuzzTokens(f *testing.F) {
	p := standard(f)
	v := p.verifier(f)
	issued := map[string]bool{}
	for _, a := range attacks(f) {
		token := p.make(f, a)
		for _, as := range []string{"user", "agent", "assertion"} { // one kind's bad token may be another's good one
			if _, _, err := p.judge(f, v, as, token); err == nil {
				issued[token] = true
			}
		}
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		for _, as := range []string{"user", "agent", "assertion"} {
			got, expires, err := p.judge(t, v, as, token)
			if err == nil && (!issued[token] || got.Subject == "" || expires.IsZero()) || err != nil && !cmp.Equal(got, who{}) {
				t.Fatalf("issued %t, as %s %+v, error %v", issued[token], as, got, err)
			}
		}
	})
}

// Claims as if their signature were good: whatever comes out holds together.
func FuzzClaims(f *testing.F) {
	p := standard(f)
	for _, a := range attacks(f) {
		if parts := strings.Split(p.make(f, a), "."); len(parts) == 3 {
			if b, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil {
				f.Add(b)
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, i := range p.issuers {
			token := &token{role: subjectToken}
			token.parts.Claims = b
			if token.readClaims() != nil || token.checkLifetime(testNow, true) != nil || token.checkTime(testNow) != nil {
				return
			}
			id, err := token.identity(i)
			if err != nil {
				continue
			}
			if id.Subject == "" || id.Tenant == "" || id.Role != "" || i.Tenant != "" && id.Tenant != i.Tenant ||
				id.Expires.Before(testNow.Add(-clockSkew)) || id.Expires.After(testNow.Add(authz.MaxLifetime+clockSkew)) {
				t.Fatalf("accepted %+v from %q", id, b)
			}
		}
	})
}
