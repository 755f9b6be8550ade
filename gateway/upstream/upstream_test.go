package upstream

import (
	"strings"
	"testing"
	"time"

	"github.com/whence-db/whence/authz"
)

func TestDefinitions(t *testing.T) {
	t.Parallel()
	rule := func(r Rule) func(*Definition) { return func(d *Definition) { d.Rules = []Rule{r} } }
	path := func(p string) func(*Definition) { return rule(Rule{Path: p, Tier: authz.TierRead}) }
	base := func(u string) func(*Definition) { return func(d *Definition) { d.URL = u } }
	ranges := func(r ...string) func(*Definition) { return func(d *Definition) { d.PrivateRanges = r } }
	env := func(e string) func(*Definition) { return func(d *Definition) { d.AuthorizationEnv = e } }
	for _, c := range []struct {
		name  string
		set   func(*Definition)
		field string // at fault; empty: it is sound
	}{
		{"as it is", func(*Definition) {}, ""},
		{"port and path", base("http://shop.example.com:8080/a/b/"), ""},
		{"public address", base("https://8.8.8.8/"), ""},
		{"public IPv6", base("https://[2606:4700::1111]:443"), ""},
		{"own address", func(d *Definition) { d.URL, d.PrivateRanges = "http://10.1.2.3", []string{"10.1.0.0/16"} }, ""},
		{"single label", base("http://shop_1"), ""},
		{"no host", base("http://"), "url"}, {"no scheme", base("shop.example.com"), "url"}, {"other scheme", base("ftp://shop.example.com"), "url"},
		{"opaque", base("http:shop"), "url"}, {"user", base("http://u@shop.example.com"), "url"}, {"password", base("http://u:p@shop.example.com"), "url"},
		{"query", base("http://shop.example.com/?a"), "url"}, {"empty query", base("http://shop.example.com/?"), "url"},
		{"fragment", base("http://shop.example.com/#a"), "url"}, {"empty fragment", base("http://shop.example.com/#"), "url"},
		{"port 0", base("http://shop.example.com:0"), "url"}, {"port 65536", base("http://shop.example.com:65536"), "url"}, {"no port", base("http://shop.example.com:"), "url"},
		{"way up", base("http://shop.example.com/a/../b"), "url"}, {"escaped way up", base("http://shop.example.com/%2e%2e"), "url"},
		{"other letters", base("http://shöp.example.com"), "url"}, {"space", base("http://shop example.com"), "url"},
		{"loopback", base("http://127.0.0.1"), "url"}, {"metadata", base("http://169.254.169.254/latest"), "url"}, {"mapped", base("http://[::ffff:127.0.0.1]"), "url"},
		{"zone", base("http://[fe80::1%25eth0]"), "url"},
		{"too long", base("http://shop.example.com/" + strings.Repeat("a", maxURL)), "url"},
		{"range with bits", ranges("10.0.0.0/8", "10.1.2.3/16"), "privateRanges[1]"}, {"address", ranges("10.1.2.3"), "privateRanges[0]"},
		{"everything", ranges("0.0.0.0/0"), "privateRanges[0]"}, {"every IPv6", ranges("::/0"), "privateRanges[0]"}, {"mapped range", ranges("::ffff:10.0.0.0/104"), "privateRanges[0]"},
		{"many ranges", ranges(strings.Split(strings.Repeat("10.0.0.0/8,", 16)+"10.0.0.0/8", ",")...), "privateRanges"},
		{"env", env("SHOP_KEY"), ""}, {"own env", env("WHENCE_UPSTREAM_SHOP"), ""}, {"secret", env("WHENCE_SECRET_KEY"), "authorizationEnv"},
		{"secret in small", env("whence_database_url"), "authorizationEnv"}, {"no variable", env("1X"), "authorizationEnv"}, {"sign", env("A=B"), "authorizationEnv"},
		{"name", func(d *Definition) { d.Name = "Shop" }, "name"}, {"no name", func(d *Definition) { d.Name = "" }, "name"}, {"slash", func(d *Definition) { d.Name = "a/b" }, "name"},
		{"timeout", func(d *Definition) { d.Timeout = time.Hour + 1 }, "timeout"}, {"negative", func(d *Definition) { d.Timeout = -1 }, "timeout"},
		{"large requests", func(d *Definition) { d.MaxRequestBytes = maxRequestBytes + 1 }, "maxRequestBytes"},
		{"large replies", func(d *Definition) { d.MaxResponseBytes = maxResponseBytes + 1 }, "maxResponseBytes"},
		{"many rules", func(d *Definition) { d.Rules = make([]Rule, maxRules+1) }, "rules"},
		{"root", path("/"), ""}, {"rest", path("/**"), ""}, {"below", path("/a/{b}/**"), ""}, {"slash at the end", path("/a/"), ""}, {"escape", path("/a%20b"), ""},
		{"no slash", path("a"), "rules[0]"}, {"empty segment", path("/a//b"), "rules[0]"}, {"empty before the rest", path("/a//**"), "rules[0]"},
		{"rest inside", path("/**/a"), "rules[0]"}, {"star", path("/a*"), "rules[0]"}, {"one star", path("/a/*"), "rules[0]"}, {"half placeholder", path("/a{b}"), "rules[0]"},
		{"empty placeholder", path("/{}"), "rules[0]"}, {"way up in a rule", path("/a/../b"), "rules[0]"}, {"escaped letter", path("/%61"), "rules[0]"}, {"parameter", path("/a;b"), "rules[0]"},
		{"small method", rule(Rule{Method: "get", Path: "/", Tier: authz.TierRead}), "rules[0]"}, {"no tier", rule(Rule{Path: "/"}), "rules[0]"},
		{"other tier", rule(Rule{Path: "/", Tier: "FREE"}), "rules[0]"}, {"negative cost", rule(Rule{Path: "/", Tier: authz.TierRead, CostMicros: -1}), "rules[0]"},
		{"negative unit", rule(Rule{Path: "/", Tier: authz.TierRead, SpendUnitMicros: -1}), "rules[0]"},
		{"spend header", rule(Rule{Path: "/", Tier: authz.TierRead, SpendHeader: "a b"}), "rules[0]"},
	} {
		d := Definition{Tenant: "default", Name: "shop", URL: "https://shop.example.com"}
		c.set(&d)
		_, err := New(d)
		switch {
		case c.field == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.field != "" && (reason(err) != "UPSTREAM_INVALID" || fieldOf(err) != c.field):
			t.Errorf("%s: %v about %q, want %q", c.name, err, fieldOf(err), c.field)
		}
	}
}

// What means the same has one digest, and every part of a definition has a say in it.
func TestDigest(t *testing.T) {
	t.Parallel()
	sound := func() Definition {
		return Definition{Tenant: "default", Name: "shop", URL: "https://shop.example.com", Rules: []Rule{{Path: "/a", Tier: authz.TierRead}, {Path: "/b", Tier: authz.TierRead}}}
	}
	digest := func(change func(*Definition)) [32]byte {
		d := sound()
		change(&d)
		return define(t, d.URL, func(to *Definition) { *to = d }).Digest
	}
	plain := digest(func(*Definition) {})
	if same := digest(func(d *Definition) {
		d.Timeout, d.MaxRequestBytes, d.MaxResponseBytes, d.PrivateRanges = DefaultTimeout, 1<<20, 16<<20, []string{}
		d.Rules[0].SpendUnitMicros = 5 // of no header
	}); same != plain {
		t.Error("defaults that are written out make another digest")
	}
	seen := map[[32]byte]string{plain: "plain"}
	for name, change := range map[string]func(*Definition){
		"tenant": func(d *Definition) { d.Tenant = "acme" }, "name": func(d *Definition) { d.Name = "shop2" }, "url": func(d *Definition) { d.URL += "/a" },
		"env": func(d *Definition) { d.AuthorizationEnv = "A" }, "timeout": func(d *Definition) { d.Timeout = 1 }, "range": func(d *Definition) { d.PrivateRanges = []string{"10.0.0.0/8"} },
		"request": func(d *Definition) { d.MaxRequestBytes = 1 }, "response": func(d *Definition) { d.MaxResponseBytes = 1 },
		"order": func(d *Definition) { d.Rules[0], d.Rules[1] = d.Rules[1], d.Rules[0] }, "method": func(d *Definition) { d.Rules[0].Method = "GET" },
		"path": func(d *Definition) { d.Rules[0].Path = "/c" }, "tier": func(d *Definition) { d.Rules[0].Tier = authz.TierReversible },
		"cost": func(d *Definition) { d.Rules[0].CostMicros = 1 }, "header": func(d *Definition) { d.Rules[0].SpendHeader = "X-Cost" },
		"unit": func(d *Definition) { d.Rules[0].SpendHeader, d.Rules[0].SpendUnitMicros = "X-Cost", 2 },
	} {
		got := digest(change)
		if other, there := seen[got]; there {
			t.Errorf("%s and %s have one digest", name, other)
		}
		seen[got] = name
	}
}
