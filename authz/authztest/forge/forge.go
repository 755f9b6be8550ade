// Package forge makes tokens that are wrong in one way each, out of data that a
// reader can check by eye, so that the same attacks are tried on the verifier alone
// and on a server that listens. It is for tests.
package forge

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Issuer and Now are whom and when attacks are written for.
const (
	Issuer = "https://whence.test"
	Now    = 2_000_000_000
)

// Attack is one line of testdata/attacks.json: what is changed in a good token.
type Attack struct {
	Name          string
	Header        map[string]any // merged into the header; null takes away
	Claims        map[string]any // merged into the claims; null takes away
	InsertHeader  string         // put behind the header's opening brace
	InsertClaims  string         // put behind the claims' opening brace
	ReplaceHeader string
	ReplaceClaims string
	Latin1        bool    // the claims are sent in Latin-1
	Sign          string  // eddsa (when empty), es256, stranger, hmac-public, none
	Then          string  // what happens to the finished token
	Token         *string // instead of all that
	Want          string  // the reason it is refused for; empty: accepted
}

// Signer is a key that tokens are signed with.
type Signer struct {
	ID, Algorithm string
	Key           crypto.Signer
}

// Forge holds the keys: two that the verifier knows, and a stranger's.
type Forge struct {
	EdDSA, ES256, Stranger Signer
	// Issuer is whom the tokens are to be by, and Now when they are to be made, in
	// place of those that attacks are written for; empty and zero: those.
	Issuer string
	Now    time.Time
}

// Make makes the token of an attack.
func (f *Forge) Make(t testing.TB, a Attack) string {
	t.Helper()
	if a.Token != nil {
		return *a.Token
	}
	signer := f.EdDSA
	if a.Sign == "es256" {
		signer = f.ES256
	}
	task := "00000000-0000-4000-8000-000000000001"
	header := map[string]any{"typ": "at+jwt", "alg": signer.Algorithm, "kid": signer.ID}
	claims := map[string]any{
		"iss": Issuer, "aud": Issuer, "sub": "ada", "client_id": "writer", "act": map[string]any{"sub": "writer"},
		"iat": 2_000_000_000, "nbf": 2_000_000_000, "exp": 2_000_003_600, "jti": "t1", "tenant": "default",
		"task":                  map[string]any{"id": task, "root": task, "depth": 0},
		"authorization_details": []any{map[string]any{"type": "whence", "allTables": true, "allSubjects": true, "actions": []any{"memory:read"}}},
	}
	f.merge(header, a.Header)
	f.merge(claims, a.Claims)
	h := Spell(t, header, a.InsertHeader, a.ReplaceHeader)
	c := Spell(t, claims, strings.ReplaceAll(a.InsertClaims, "$deep", `"x":`+strings.Repeat("[", 60)+strings.Repeat("]", 60)+","), a.ReplaceClaims)
	if a.Latin1 {
		c = strings.ReplaceAll(c, "\u00ff", "\xff")
	}
	c = f.place(c)
	b64 := base64.RawURLEncoding.EncodeToString
	signed := b64([]byte(h)) + "." + b64([]byte(c))
	return Damage(t, signed+"."+b64(f.sign(t, a.Sign, signed)), a.Then)
}

// numbers are the times of attacks that are near theirs: what is far from it is meant
// to be.
var numbers = regexp.MustCompile(`\b[1-9][0-9]{9}\b`)

// place moves an attack to the forge's issuer and time.
func (f *Forge) place(claims string) string {
	if f.Issuer != "" {
		claims = strings.ReplaceAll(claims, Issuer, f.Issuer)
	}
	if f.Now.IsZero() {
		return claims
	}
	return numbers.ReplaceAllStringFunc(claims, func(s string) string {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return s
		}
		return strconv.FormatInt(n-Now+f.Now.Unix(), 10)
	})
}

func (f *Forge) merge(into, changes map[string]any) {
	for k, v := range changes {
		switch v {
		case nil:
			delete(into, k)
			continue
		case "$es256":
			v = f.ES256.ID
		case "$prefix":
			v = f.EdDSA.ID[:20]
		case "$upper":
			v = strings.ToUpper(f.EdDSA.ID)
		case "$nul":
			v = f.EdDSA.ID + "\x00"
		case "$big":
			v = strings.Repeat("x", 16<<10)
		}
		into[k] = v
	}
}

func (f *Forge) sign(t testing.TB, how, signed string) []byte {
	t.Helper()
	k := f.EdDSA
	switch how {
	case "none":
		return nil
	case "hmac-public":
		public, err := json.Marshal(f.EdDSA.Key.Public())
		if err != nil {
			t.Fatal(err)
		}
		m := hmac.New(sha256.New, public)
		m.Write([]byte(signed))
		return m.Sum(nil)
	case "es256":
		k = f.ES256
	case "stranger":
		k = f.Stranger
	case "", "eddsa":
	default:
		t.Fatalf("no way to sign is called %q", how)
	}
	signature, err := jwt.GetSigningMethod(k.Algorithm).Sign(signed, k.Key)
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

// Spell writes JSON members, with something put in front or in place of them.
func Spell(t testing.TB, members map[string]any, insert, replace string) string {
	t.Helper()
	if replace != "" {
		return replace
	}
	b, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	return "{" + insert + string(b[1:])
}

// Damage does to a finished token what its name says.
func Damage(t testing.TB, token, how string) string {
	t.Helper()
	last := strings.LastIndexByte(token, '.')
	flip := func(i int) string {
		c := byte('A')
		if token[i] == c {
			c = 'B'
		}
		return token[:i] + string(c) + token[i+1:]
	}
	switch how {
	case "":
		return token
	case "drop-last":
		return token[:len(token)-1]
	case "drop-signature":
		return token[:last]
	case "flip-claims":
		// An odd place inside the value of the last member, which stays valid JSON.
		h := strings.IndexByte(token, '.')
		claims, _ := base64.RawURLEncoding.DecodeString(token[h+1 : last])
		claims = []byte(strings.Replace(string(claims), `"jti":"t1"`, `"jti":"t0"`, 1))
		return token[:h+1] + base64.RawURLEncoding.EncodeToString(claims) + token[last:]
	case "flip-signature":
		return flip(last + 10)
	case "spare-bits":
		// 64 bytes take 85 characters and 2 bits more; the other 4 bits must be 0.
		alphabet := "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		n := strings.IndexByte(alphabet, token[len(token)-1])
		return token[:len(token)-1] + string(alphabet[n|1])
	case "pad":
		return token + "=="
	case "line-break":
		return token[:last+5] + "\r\n" + token[last+5:]
	case "space":
		return " " + token
	case "bearer":
		return "Bearer " + token
	}
	t.Fatalf("no damage is called %q", how)
	return ""
}

// Load reads a file of attacks.
func Load(t testing.TB, file string) []Attack {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []Attack
	d := json.NewDecoder(bytes.NewReader(b)) // not strictly: an attack may hold a name in two cases
	d.DisallowUnknownFields()
	if err := d.Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}
