package authz

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pgtest"
)

// tokenKey returns the id of the key that signed a token.
func tokenKey(t *testing.T, token string) string {
	t.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(token[:strings.IndexByte(token, '.')])
	if err != nil {
		t.Fatal(err)
	}
	var h header
	if err := json.Unmarshal(raw, &h); err != nil {
		t.Fatal(err)
	}
	return h.KeyID
}

// longToken is one of the longest lifetime.
func (p *process) longToken(t *testing.T) (string, time.Time) {
	t.Helper()
	token, expires, err := p.IssueOperator("ada", RoleAdmin, MaxLifetime)
	if err != nil {
		t.Fatal(err)
	}
	return token, expires
}

func states(t *testing.T, ks *Keys) (out []string) {
	t.Helper()
	infos, err := ks.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range infos {
		out = append(out, string(k.State))
	}
	return out
}

func wantStates(t *testing.T, what string, ks *Keys, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, states(t, ks)); diff != "" {
		t.Errorf("%s: states (-want +got):\n%s", what, diff)
	}
}

func mustRotate(t *testing.T, p *process) {
	t.Helper()
	if err := p.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// rotation is a rotation seen by three processes on one database: a rotates, b has a
// slow clock, and c only signs, so that it looks at the keys as seldom as it may.
type rotation struct {
	a, b, c *process
	tokens  []rotationToken
	sets    []rotationSet // what a client that fetches the key set would have
}

type rotationToken struct {
	text, kid string
	expires   time.Time
}

type rotationSet struct {
	at  time.Time
	ids []string
}

// step lets some time pass; then each process issues a token, and every token that
// has not expired is verified by a and b.
func (w *rotation) step(t *testing.T, d time.Duration) {
	t.Helper()
	for _, p := range []*process{w.a, w.b, w.c} {
		p.advance(d)
	}
	now := w.a.clock()
	for name, p := range map[string]*process{"a": w.a, "b": w.b, "c": w.c} {
		text, expires := p.longToken(t)
		kid := tokenKey(t, text)
		w.tokens = append(w.tokens, rotationToken{text, kid, expires})
		for _, s := range slices.Backward(w.sets) {
			if now.Sub(s.at) < refreshAge {
				continue
			}
			if !slices.Contains(s.ids, kid) {
				t.Errorf("%s at %s: signed with a key that was not published %s before", name, now, now.Sub(s.at))
			}
			break
		}
	}
	w.sets = append(w.sets, rotationSet{now, jwksIDs(t, w.a.Keys)})
	for _, p := range []*process{w.a, w.b} {
		for _, token := range w.tokens {
			if !p.clock().Before(token.expires.Add(clockSkew)) {
				continue
			}
			if _, err := p.Verify(t.Context(), token.text); err != nil {
				t.Fatalf("%s before it expires a token is refused: %v", token.expires.Sub(p.clock()), err)
			}
		}
	}
}

func (w *rotation) steps(t *testing.T, n int, d time.Duration) {
	t.Helper()
	for range n {
		w.step(t, d)
	}
}

func TestNoTokenIsRefusedBecauseOfARotation(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	config := KeysConfig{Pool: db.Pool, Seal: secret(t)}
	w := &rotation{a: mustStart(t, config), b: mustStart(t, config), c: mustStart(t, config)}
	w.b.advance(-clockSkew + time.Second)
	old := tokenKey(t, w.a.token(t))
	w.steps(t, 6, refreshAge/6) // c has looked just before
	mustRotate(t, w.a)
	rotated := w.a.clock()
	wantStates(t, "rotated", w.a.Keys, "SIGNING", "PENDING")
	if ids := jwksIDs(t, w.a.Keys); len(ids) != 2 {
		t.Errorf("the new key is not published: %v", ids)
	}
	err := w.a.Rotate(t.Context())
	wantReason(t, "rotate twice", err, "KEY_PENDING")
	var e *whence.Error
	if errors.As(err, &e) && (e.RetryAfter != publication || !errors.Is(e.Kind, whence.ErrPrecondition) ||
		!strings.Contains(e.Message, rotated.Add(publication).UTC().Format(time.RFC3339))) {
		t.Errorf("%+v does not say when the key begins", e)
	}

	w.steps(t, 23, publication/24)
	if kid := tokenKey(t, w.a.token(t)); kid != old {
		t.Error("the new key signs before its time")
	}
	w.steps(t, 1, publication/24)
	begun := w.a.clock()
	if kid := tokenKey(t, w.a.token(t)); kid == old {
		t.Error("the new key does not sign when its time has come")
	}
	wantStates(t, "begun", w.b.Keys, "SIGNING", "PENDING") // by its slow clock
	w.steps(t, 1, clockSkew)
	wantStates(t, "begun", w.b.Keys, "VERIFYING", "SIGNING")
	w.steps(t, 24, 5*time.Second)
	for name, p := range map[string]*process{"b": w.b, "c": w.c} {
		if kid := tokenKey(t, p.token(t)); kid == old {
			t.Errorf("%s goes on signing with the old key", name)
		}
	}

	// To just before the last of the old key's tokens are over, and past that.
	w.steps(t, 70, 20*time.Minute)
	w.step(t, begun.Add(MaxLifetime-time.Minute).Sub(w.a.clock()))
	w.steps(t, 30, 5*time.Second)
	if infos, err := w.a.List(t.Context()); err != nil || len(infos) != 2 || infos[0].ID != old ||
		!infos[0].RetiresAt.Equal(begun.Add(keyOutlives)) || !infos[1].RetiresAt.IsZero() || !infos[1].SignsFrom.Equal(begun) || !infos[1].Created.Equal(rotated) {
		t.Errorf("%+v, %v", infos, err)
	}
	wantStates(t, "retired by itself", w.a.Keys, "RETIRED", "SIGNING")
	if ids := jwksIDs(t, w.a.Keys); len(ids) != 1 || ids[0] == old {
		t.Errorf("the retired key is published: %v", ids)
	}
	if k, err := w.a.find(t.Context(), old); k != nil || err != nil {
		t.Errorf("the retired key verifies (%v)", err)
	}

	// The next change wipes what is secret of it.
	mustRotate(t, w.c)
	var secrets, retired int
	if err := db.Pool.QueryRow(t.Context(), `select count(private_sealed), count(retired_at) from whence.signing_keys`).Scan(&secrets, &retired); err != nil || secrets != 2 || retired != 1 {
		t.Errorf("%d private parts, %d keys retired, %v", secrets, retired, err)
	}
	wantStates(t, "wiped", w.a.Keys, "RETIRED", "SIGNING", "PENDING")
}

// A process that lost sight of the store must not sign: the key may be retired.
func TestSigningLooksAtTheStore(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	c := KeysConfig{Pool: db.Pool, Seal: secret(t)}
	a, b := mustStart(t, c), mustStart(t, c)
	first := tokenKey(t, b.token(t))
	a.replaceKey(t)
	b.advance(refreshAge - 1)
	if kid := tokenKey(t, b.token(t)); kid != first {
		t.Error("b has looked sooner than it must: this test proves nothing")
	}
	b.advance(1)
	if kid := tokenKey(t, b.token(t)); kid == first {
		t.Error("b signs with a key that was retired a minute ago")
	}
	if _, err := db.Pool.Exec(t.Context(), `alter table whence.signing_keys rename to away`); err != nil {
		t.Fatal(err)
	}
	b.advance(refreshAge)
	if _, _, err := b.IssueOperator("ada", RoleAdmin, time.Hour); err == nil {
		t.Error("b signs with a key of which it does not know whether it is retired")
	}
}

func TestRetire(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	c := KeysConfig{Pool: db.Pool, Seal: secret(t), Algorithm: ES256}
	a, b := mustStart(t, c), mustStart(t, c)
	before := a.token(t)
	first := tokenKey(t, before)
	_, err := b.Verify(t.Context(), before)
	wantReason(t, "before anything", err, "")
	wantReason(t, "retire the only key", a.Retire(t.Context(), first), "LAST_KEY")
	wantReason(t, "retire nobody's key", a.Retire(t.Context(), "nobody"), "KEY_NOT_FOUND")

	// A pending one: the rotation is taken back.
	mustRotate(t, a)
	infos, err := a.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Retire(t.Context(), infos[1].ID); err != nil {
		t.Fatal(err)
	}
	wantStates(t, "taken back", a.Keys, "SIGNING", "RETIRED")
	wantReason(t, "retire it again", a.Retire(t.Context(), infos[1].ID), "KEY_NOT_FOUND")
	wantReason(t, "the last again", a.Retire(t.Context(), first), "LAST_KEY")

	// The one that signs, with another pending.
	for _, p := range []*process{a, b} {
		p.advance(time.Second)
	}
	a.replaceKey(t)
	wantStates(t, "replaced", a.Keys, "RETIRED", "SIGNING", "RETIRED")
	after := a.token(t)
	second := tokenKey(t, after)
	_, err = a.Verify(t.Context(), before)
	wantReason(t, "retired here", err, "TOKEN_SIGNATURE_INVALID")
	_, err = b.Verify(t.Context(), before)
	wantReason(t, "retired elsewhere, at once", err, "") // the price of not asking each time
	_, err = b.Verify(t.Context(), after)
	wantReason(t, "the key that signs at once", err, "")
	_, err = b.Verify(t.Context(), before)
	wantReason(t, "retired elsewhere, after a look", err, "TOKEN_SIGNATURE_INVALID")
	var secrets int
	if err := db.Pool.QueryRow(t.Context(), `select count(private_sealed) from whence.signing_keys`).Scan(&secrets); err != nil || secrets != 1 {
		t.Errorf("%d private parts are left, %v", secrets, err)
	}

	// The one that signs, without another pending: the one before signs again, and
	// is no longer about to retire.
	mustRotate(t, a)
	a.advance(publication)
	third := tokenKey(t, a.token(t))
	if third == second {
		t.Fatal("no third key")
	}
	if err := a.Retire(t.Context(), third); err != nil {
		t.Fatal(err)
	}
	if kid := tokenKey(t, a.token(t)); kid != second {
		t.Error("the second key does not sign again")
	}
	a.advance(2 * keyOutlives)
	if kid := tokenKey(t, a.token(t)); kid != second {
		t.Error("time has retired the last key")
	}

	// A key that time has retired is not one to fall back on.
	mustRotate(t, a)
	a.advance(publication + keyOutlives - 1)
	wantStates(t, "nearly", a.Keys, "RETIRED", "VERIFYING", "RETIRED", "RETIRED", "SIGNING")
	a.advance(1)
	wantReason(t, "retire what time has", a.Retire(t.Context(), second), "KEY_NOT_FOUND")
	wantReason(t, "the last that time has left", a.Retire(t.Context(), tokenKey(t, a.token(t))), "LAST_KEY")
}

// Two clocks that differ do not keep the first key from signing.
func TestFirstKeySignsAtOnce(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	c := KeysConfig{Pool: db.Pool, Seal: secret(t)}
	a := mustStart(t, c)
	slow := mustStart(t, c)
	slow.advance(-clockSkew)
	if tokenKey(t, a.token(t)) != tokenKey(t, slow.token(t)) {
		t.Error("two keys")
	}
	wantStates(t, "by the slow clock", slow.Keys, "SIGNING")
	ephemeral := NewEphemeralKeys()
	wantStates(t, "ephemeral", ephemeral, "SIGNING")
}
