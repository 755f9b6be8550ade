package upstream

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/pgtest"
)

func stored(t *testing.T) (*Store, *pgxpool.Pool) {
	t.Helper()
	pool := pgtest.New(t).Pool
	s, err := NewStore(pool)
	if err != nil {
		t.Fatal(err)
	}
	return s, pool
}

// write runs one change in a transaction of its own.
func write(t *testing.T, pool *pgxpool.Pool, change func(pgx.Tx) (*Upstream, error)) (u *Upstream, err error) {
	t.Helper()
	err = pg.InTx(t.Context(), pool, func(tx pgx.Tx) (err error) { u, err = change(tx); return err })
	return u, err
}

func TestStore(t *testing.T) {
	t.Parallel()
	s, pool := stored(t)
	ctx := t.Context()
	create := func(u *Upstream) (*Upstream, error) {
		return write(t, pool, func(tx pgx.Tx) (*Upstream, error) { return s.Create(ctx, tx, u) })
	}
	want := func(what string, err error, reasonWanted string) {
		t.Helper()
		if reason(err) != reasonWanted {
			t.Errorf("%s: %v, want %q", what, err, reasonWanted)
		}
	}
	rules := []Rule{{Method: "POST", Path: "/a/{b}", Tier: authz.TierReversible, CostMicros: 5, SpendHeader: "X-Cost", SpendUnitMicros: 10}, {Path: "/**", Tier: authz.TierRead}}
	shop := define(t, "https://shop.example.com/v1", func(d *Definition) {
		d.Rules, d.Timeout, d.AuthorizationEnv, d.MaxRequestBytes = rules, 1500*time.Millisecond, "SHOP_KEY", 5
	})
	made, err := create(shop)
	want("create", err, "")
	got, err := s.Get(ctx, "default", "shop")
	want("get", err, "")
	if !cmp.Equal(got.Definition, shop.Definition) || got.Digest != shop.Digest || got.Version != made.Version || !got.Created.Equal(made.Created) || got.Version == 0 {
		t.Errorf("as it was made %+v, as it is read %+v", made, got)
	}
	if v, err := got.Match("POST", "/a/1"); err != nil || v.Index != 0 {
		t.Errorf("what was read matches %+v, %v", v, err)
	}
	_, err = create(shop)
	want("create again", err, "UPSTREAM_EXISTS")
	of := func(tenant, name string) *Upstream {
		return define(t, "https://shop.example.com", func(d *Definition) { d.Tenant, d.Name = tenant, name })
	}
	for _, u := range []*Upstream{of("acme", "shop"), of("default", "a-b"), of("default", "a_b"), of("default", "ab")} {
		_, err := create(u)
		want(u.Name, err, "")
	}
	var names []string
	for token, pages := "", 0; pages == 0 || token != ""; pages++ {
		var page []*Upstream
		page, token, err = s.List(ctx, "default", 3, token)
		want("list", err, "")
		for _, u := range page {
			names = append(names, u.Name)
		}
	}
	if !cmp.Equal(names, []string{"a-b", "a_b", "ab", "shop"}) {
		t.Errorf("listed are %q", names)
	}
	_, _, err = s.List(ctx, "default", 3, "AA")
	want("a page that is none", err, "PAGE_TOKEN_INVALID")

	// What forwarding reads is what is in force, without a change being told.
	now := func(reasonWanted string) *Upstream {
		t.Helper()
		u, err := s.Current(ctx, "default", "shop")
		want("current", err, reasonWanted)
		return u
	}
	first := now("")
	if now("") != first {
		t.Error("what has not changed is read again")
	}
	changed, err := write(t, pool, func(tx pgx.Tx) (*Upstream, error) {
		return s.Update(ctx, tx, define(t, "https://other.example.com", nil))
	})
	want("update", err, "")
	if u := now(""); u.URL != "https://other.example.com" || u.Version != changed.Version || u.Version <= first.Version || u.Digest == first.Digest || len(u.Rules) != 0 || !u.Created.Equal(first.Created) {
		t.Errorf("in force is %+v", u)
	}
	_, err = write(t, pool, func(tx pgx.Tx) (*Upstream, error) { return nil, s.Delete(ctx, tx, "default", "shop") })
	want("delete", err, "")
	now("UPSTREAM_NOT_FOUND")
	remade, err := create(shop)
	want("create after delete", err, "")
	if remade.Version <= changed.Version {
		t.Errorf("version %d comes after %d", remade.Version, changed.Version)
	}
	if u := now(""); u.Version != remade.Version {
		t.Errorf("in force is version %d, not %d", u.Version, remade.Version)
	}

	_, err = write(t, pool, func(tx pgx.Tx) (*Upstream, error) { return s.Update(ctx, tx, of("default", "none")) })
	want("update none", err, "UPSTREAM_NOT_FOUND")
	_, err = write(t, pool, func(tx pgx.Tx) (*Upstream, error) { return nil, s.Delete(ctx, tx, "other", "shop") })
	want("delete another's", err, "UPSTREAM_NOT_FOUND")
	_, err = s.Get(ctx, "other", "shop")
	want("get another's", err, "UPSTREAM_NOT_FOUND")
}
