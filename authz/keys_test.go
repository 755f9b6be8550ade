package authz

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pgtest"
	"github.com/whence-db/whence/internal/seal"
)

// process is what one Whence process holds: keys of its own memory, one database.
type process struct {
	*Keys
	*Issuer
	*Verifier
	config KeysConfig
	mu     sync.Mutex
	now    time.Time // guarded by mu
}

func (p *process) advance(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = p.now.Add(d)
}

func (p *process) clock() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now
}

func secret(t *testing.T) seal.Key {
	t.Helper()
	k, err := seal.ParseKey(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func startProcess(ctx context.Context, c KeysConfig) (*process, error) {
	p := &process{now: testNow, config: c}
	c.Clock = p.clock
	var err error
	if p.Keys, err = LoadKeys(ctx, c); err != nil {
		return nil, err
	}
	if p.Issuer, err = NewIssuer(IssuerConfig{Name: testIssuer, Keys: p.Keys, Clock: p.clock}); err != nil {
		return nil, err
	}
	p.Verifier, err = NewVerifier(VerifierConfig{Issuer: testIssuer, Keys: p.Keys, Clock: p.clock})
	return p, err
}

func mustStart(t *testing.T, c KeysConfig) *process {
	t.Helper()
	p, err := startProcess(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *process) token(t *testing.T) string {
	t.Helper()
	token, _, err := p.IssueOperator("ada", RoleAdmin, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// replaceKey makes a new key that signs at once.
func (p *process) replaceKey(t *testing.T) {
	t.Helper()
	k, err := p.signer()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Retire(t.Context(), k.kid); err != nil {
		t.Fatal(err)
	}
}

func wantReason(t *testing.T, what string, err error, want string) {
	t.Helper()
	var e *whence.Error
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v", what, err)
	case want != "" && (!errors.As(err, &e) || e.Reason != want):
		t.Errorf("%s: %v, want %s", what, err, want)
	}
}

func TestKeysAreSharedFromTheFirstStart(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []Algorithm{"", EdDSA, ES256} {
		db := pgtest.New(t)
		c := KeysConfig{Pool: db.Pool, Seal: secret(t), Algorithm: algorithm}
		processes := make([]*process, 6)
		var g errgroup.Group
		for i := range processes {
			g.Go(func() (err error) {
				processes[i], err = startProcess(t.Context(), c)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		var n int
		if err := db.Pool.QueryRow(t.Context(), `select count(*) from whence.signing_keys`).Scan(&n); err != nil || n != 1 {
			t.Fatalf("%q: %d keys were made, %v", algorithm, n, err)
		}
		for _, p := range processes[1:] {
			if _, err := p.Verify(t.Context(), processes[0].token(t)); err != nil {
				t.Errorf("%q: %v", algorithm, err)
			}
		}
	}
}

func TestKeysAreSealed(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	c := KeysConfig{Pool: db.Pool, Seal: secret(t)}
	p := mustStart(t, c)
	k, err := p.signer()
	if err != nil {
		t.Fatal(err)
	}
	der, err := k.marshal()
	if err != nil {
		t.Fatal(err)
	}
	var sealed []byte
	var public string
	if err := db.Pool.QueryRow(t.Context(), `select private_sealed, public_jwk::text from whence.signing_keys`).Scan(&sealed, &public); err != nil {
		t.Fatal(err)
	}
	seed := string(der[len(der)-32:])
	if strings.Contains(string(sealed), seed) || strings.Contains(public, `"d"`) {
		t.Error("the private key is stored in the clear")
	}
	c.Seal = secret(t)
	if _, err := LoadKeys(t.Context(), c); err == nil || !strings.Contains(err.Error(), "WHENCE_SECRET_KEY") {
		t.Errorf("another secret key: %v", err)
	}
	// Whoever can write the table but lacks the secret cannot give one key another's
	// id, nor bring in a key.
	if _, err := db.Pool.Exec(t.Context(), `update whence.signing_keys set kid = 'other'`); err != nil {
		t.Fatal(err)
	}
	c.Seal = p.config.Seal
	if _, err := LoadKeys(t.Context(), c); err == nil {
		t.Error("a key was taken under another's id")
	}
	stranger, err := generateKey(EdDSA)
	if err != nil {
		t.Fatal(err)
	}
	// Nor can another public part take the place of one that is vouched for.
	if _, err := db.Pool.Exec(t.Context(), `update whence.signing_keys set kid = $1, private_sealed = null, vouched = $2, public_jwk = $3`,
		k.kid, c.Seal.Seal(vouchPurpose(k.kid), nil), stranger.jwk); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKeys(t.Context(), c); err == nil || !strings.Contains(err.Error(), "holds another key") {
		t.Errorf("a stranger's key was taken under an id that is vouched for: %v", err)
	}
	for what, vouched := range map[string][]byte{
		"another secret": secret(t).Seal(vouchPurpose(stranger.kid), nil),
		"another key":    c.Seal.Seal(vouchPurpose(k.kid), nil),
		"another place":  c.Seal.Seal(sealPurpose(stranger.kid), nil),
		"too short":      {1},
	} {
		if _, err := db.Pool.Exec(t.Context(), `update whence.signing_keys set kid = $1, private_sealed = null, vouched = $2, public_jwk = $3`,
			stranger.kid, vouched, stranger.jwk); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadKeys(t.Context(), c); err == nil {
			t.Errorf("a stranger's key was taken, vouched for with %s", what)
		}
	}
}

func jwksIDs(t *testing.T, ks *Keys) (ids []string) {
	t.Helper()
	raw, err := ks.JWKS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var doc struct{ Keys []jwk }
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	for _, k := range doc.Keys {
		ids = append(ids, k.KeyID)
	}
	return ids
}

// An outage must not be told to callers as a bad token.
func TestStoreOutageIsNotABadToken(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	p := mustStart(t, KeysConfig{Pool: db.Pool, Seal: secret(t)})
	token := p.token(t)
	other := mustStart(t, p.config)
	other.replaceKey(t)
	unknown := other.token(t)
	if _, err := db.Pool.Exec(t.Context(), `alter table whence.signing_keys rename to away`); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Verify(t.Context(), token); err != nil {
		t.Errorf("a known key needs no store: %v", err)
	}
	p.advance(refreshPause)
	for range 2 { // the second finds the first's failure remembered
		if _, err := p.Verify(t.Context(), unknown); err == nil || errors.Is(err, whence.ErrUnauthenticated) {
			t.Errorf("with the store away an unknown key is %v", err)
		}
	}
	if _, err := db.Pool.Exec(t.Context(), `alter table whence.away rename to signing_keys`); err != nil {
		t.Fatal(err)
	}
	p.advance(refreshPause)
	if _, err := p.Verify(t.Context(), unknown); err != nil {
		t.Errorf("with the store back: %v", err)
	}
}

// A caller that gives up while the keys are read must not spoil it for others.
func TestRefreshOutlivesItsCaller(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	c := KeysConfig{Pool: db.Pool, Seal: secret(t)}
	a, b := mustStart(t, c), mustStart(t, c)
	a.replaceKey(t)
	b.advance(refreshPause)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Verify(ctx, a.token(t)); err != nil {
		t.Error(err)
	}
}

// The example of RFC 8037, appendix A: its key, and the thumbprint that must come out.
func TestThumbprint(t *testing.T) {
	t.Parallel()
	const der = "\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20" +
		"\x9d\x61\xb1\x9d\xef\xfd\x5a\x60\xba\x84\x4a\xf4\x92\xec\x2c\xc4\x44\x49\xc5\x69\x7b\x32\x69\x19\x70\x3b\xac\x03\x1c\xae\x7f\x60"
	k, err := parseKey([]byte(der))
	if err != nil {
		t.Fatal(err)
	}
	if k.jwk.X != "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" || k.kid != "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k" {
		t.Errorf("x %s, kid %s", k.jwk.X, k.kid)
	}
}

func TestLoadKeysConfig(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	for name, c := range map[string]KeysConfig{
		"no pool":           {Seal: secret(t)},
		"no secret":         {Pool: db.Pool},
		"unknown algorithm": {Pool: db.Pool, Seal: secret(t), Algorithm: "HS256"},
	} {
		if _, err := LoadKeys(t.Context(), c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A made key's id never begins as a flag does. One in 64 would.
func TestMadeKeyIDs(t *testing.T) {
	t.Parallel()
	for _, a := range []Algorithm{EdDSA, ES256} {
		for range 1000 {
			k, err := generateKey(a)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(k.kid, "-") {
				t.Fatalf("%s: %s", a, k.kid)
			}
		}
	}
}
