package federation

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func rsaKey(t testing.TB, bits int, e string) map[string]any {
	t.Helper()
	n := make([]byte, bits/8)
	if _, err := rand.Read(n); err != nil {
		t.Fatal(err)
	}
	n[0] |= 0x80
	n[len(n)-1] |= 1
	return map[string]any{"kty": "RSA", "alg": "RS256", "n": base64.RawURLEncoding.EncodeToString(n), "e": e}
}

func TestValidateJWKS(t *testing.T) {
	t.Parallel()
	with := func(kid string, changes map[string]any) map[string]any { return publish(t, kid, changes) }
	var nine []map[string]any
	for n := range 9 {
		nine = append(nine, with("ed", map[string]any{"kid": fmt.Sprint(n)}))
	}
	for name, good := range map[string]json.RawMessage{
		"EdDSA": set(t, with("ed", nil)), "ES256": set(t, with("ec", nil)), "ES384": set(t, with("ec384", nil)), "ES512": set(t, with("ec521", nil)),
		"RS512":           set(t, with("rsa", map[string]any{"alg": "RS512"})),
		"2048 bits":       set(t, rsaKey(t, 2048, "AQAB")),
		"for signatures":  set(t, with("ed", map[string]any{"use": "sig", "key_ops": []string{"verify"}, "alg": "EdDSA", "x5t": "AA", "note": "mine"})),
		"no kid, alone":   set(t, with("ed", map[string]any{"kid": nil})),
		"two":             set(t, with("ed", nil), with("ec", nil)),
		"eight":           set(t, nine[:8]...),
		"a member beside": json.RawMessage(strings.Replace(string(set(t, with("ed", nil))), "{", `{"note":1,`, 1)),
	} {
		if err := ValidateJWKS(good); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, bad := range map[string]json.RawMessage{
		"nothing": nil, "null": json.RawMessage(`null`), "a list": json.RawMessage(`[]`), "no keys": json.RawMessage(`{}`),
		"keys are null": json.RawMessage(`{"keys":null}`), "keys are an object": json.RawMessage(`{"keys":{}}`), "empty": set(t), "null key": json.RawMessage(`{"keys":[null]}`),
		"a tail":             append(set(t, with("ed", nil)), "{}"...),
		"keys twice":         json.RawMessage(strings.Replace(string(set(t, with("ed", nil))), "{", `{"Keys":[],`, 1)),
		"crv twice":          json.RawMessage(strings.Replace(string(set(t, with("ed", nil))), `"crv"`, `"CRV":"X25519","crv"`, 1)),
		"one key, no set":    set(t, with("ed", nil))[len(`{"keys":[`) : len(set(t, with("ed", nil)))-2],
		"nine":               set(t, nine...),
		"private":            set(t, with("ed", map[string]any{"d": "AA"})),
		"private RSA":        set(t, with("rsa", map[string]any{"alg": "RS256", "p": "AA"})),
		"private in part":    set(t, with("ed", nil), with("ec", map[string]any{"d": nil, "dq": "AA"})),
		"symmetric":          set(t, map[string]any{"kty": "oct", "k": "c2VjcmV0"}),
		"symmetric alg":      set(t, with("ed", map[string]any{"alg": "HS256"})),
		"alg none":           set(t, with("ed", map[string]any{"alg": "none"})),
		"alg of another":     set(t, with("ed", map[string]any{"alg": "ES256"})),
		"alg of a curve":     set(t, with("ec", map[string]any{"alg": "ES384"})),
		"alg is a number":    set(t, with("ed", map[string]any{"alg": 1})),
		"RSA without alg":    set(t, with("rsa", nil)),
		"RSA for encryption": set(t, with("rsa", map[string]any{"alg": "RSA-OAEP"})),
		"1024 bits":          set(t, rsaKey(t, 1024, "AQAB")),
		"2040 bits":          set(t, rsaKey(t, 2040, "AQAB")),
		"16384 bits":         set(t, rsaKey(t, 16384, "AQAB")),
		"exponent one":       set(t, rsaKey(t, 2048, "AQ")),
		"exponent even":      set(t, rsaKey(t, 2048, "AQAA")),
		"exponent huge":      set(t, rsaKey(t, 2048, "AQAAAAAAAAAAAQ")),
		"for encryption":     set(t, with("ec", map[string]any{"use": "enc"})),
		"for certificates":   set(t, with("ec", map[string]any{"use": "x509-svid"})),
		"may not verify":     set(t, with("ec", map[string]any{"key_ops": []string{"sign"}})),
		"may do nothing":     set(t, with("ec", map[string]any{"key_ops": []string{}})),
		"no kty":             set(t, with("ed", map[string]any{"kty": nil})),
		"unknown kty":        set(t, with("ed", map[string]any{"kty": "AKP"})),
		"unknown curve":      set(t, with("ec", map[string]any{"crv": "secp256k1"})),
		"key agreement":      set(t, with("ed", map[string]any{"crv": "X25519"})),
		"off the curve":      set(t, with("ec", map[string]any{"x": strings.Repeat("A", 43)})),
		"short":              set(t, with("ed", map[string]any{"x": "AAAA"})),
		"low order":          set(t, with("ed", map[string]any{"x": "AQ" + strings.Repeat("A", 41)})),
		"no point":           set(t, with("ec", map[string]any{"y": nil})),
		"kid empty":          set(t, with("ed", map[string]any{"kid": ""})),
		"kid unseen":         set(t, with("ed", map[string]any{"kid": "a\u200b"})),
		"one without kid":    set(t, with("ed", nil), with("ec", map[string]any{"kid": nil})),
		"kid twice":          set(t, with("ed", nil), with("ec", map[string]any{"kid": "ed"})),
		"larger than a set":  set(t, with("ed", map[string]any{"note": strings.Repeat("x", maxAgentKeySet)})),
	} {
		wantField(t, name, ValidateJWKS(bad), "jwks")
	}
}

// Whoever sent a private key must learn that it is lost, and not read it in a log.
func TestPrivateKeyIsNotRepeated(t *testing.T) {
	t.Parallel()
	for _, member := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"} {
		err := ValidateJWKS(set(t, publish(t, "ed", map[string]any{member: "VERYSECRET"})))
		if err == nil || !strings.Contains(err.Error(), "private") || strings.Contains(err.Error(), "VERYSECRET") {
			t.Errorf("%s: %v", member, err)
		}
	}
}

func FuzzValidateJWKS(f *testing.F) {
	f.Add([]byte(set(f, publish(f, "ed", nil), publish(f, "ec", nil))))
	f.Add([]byte(set(f, publish(f, "rsa", map[string]any{"alg": "PS256"}))))
	f.Add([]byte(set(f, rsaKey(f, 1024, "AQAB"))))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AA"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		err := ValidateJWKS(b)
		keys, again := parseAgentKeys(b)
		if (err == nil) != (again == nil) || (err == nil) != (len(keys) > 0) || len(keys) > maxAgentKeys {
			t.Fatalf("%v, %v, %d keys", err, again, len(keys))
		}
		for _, k := range keys {
			// A key that is let in can be verified with, and refuses what it did not sign.
			if len(k.algorithms) != 1 || method(k.algorithms[0]) == nil ||
				method(k.algorithms[0]).Verify("a.b", make([]byte, 64), k.public) == nil {
				t.Fatalf("let in %+v from %q", k, b)
			}
		}
	})
}
