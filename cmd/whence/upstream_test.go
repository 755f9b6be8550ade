package main

import (
	"testing"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// testUpstreamsFromTheCommandLine defines an upstream, replaces it by what it was
// shown as, and closes it.
func (w *running) testUpstreamsFromTheCommandLine(t *testing.T) {
	t.Parallel()
	const dear, shut = "POST /v1/chat READ cost=50000 spend=X-Cost unit=1000000", "* /v1/admin/** IRREVERSIBLE"
	w.cli(t, "upstream", "create", "oracle", "https://oracle.example.com", "--authorization-env", "ORACLE_KEY", "--rule", dear, "--rule", shut,
		"--timeout", "2m", "--private-range", "10.1.0.0/16", "--private-range", "fd00::/64", "--max-request-bytes", "4096").
		is(t, 0, "oracle", "ORACLE_KEY", "2m0s", "1. "+dear, "2. "+shut, "10.1.0.0/16 fd00::/64")
	w.cli(t, "upstream", "create", "oracle", "https://oracle.example.com").is(t, 1, "UPSTREAM_EXISTS")
	w.cli(t, "upstream", "create", "inside", "http://169.254.169.254/").is(t, 1, "UPSTREAM_INVALID", "privateRanges")
	w.cli(t, "upstream", "create", "worse", "https://oracle.example.com", "--rule", "GET /").is(t, 1, "METHOD PATH TIER")
	w.cli(t, "upstream", "create", "worse", "https://oracle.example.com", "--rule", "GET / FREE").is(t, 1, "no tier FREE")
	w.cli(t, "upstream", "create", "worse", "https://oracle.example.com", "--rule", "GET / READ cost=much").is(t, 1, "whole number")
	w.cli(t, "upstream").is(t, 0, "UPSTREAM", "oracle")
	var shown v1.GetUpstreamResponse
	w.cli(t, "upstream", "show", "oracle", "--json").message(t, &shown)
	if u := shown.GetUpstream(); len(u.GetRules()) != 2 || u.GetMaxRequestBytes() != 4096 || len(u.GetPrivateRanges()) != 2 {
		t.Errorf("%v", u)
	}
	w.cli(t, "upstream", "update", "oracle", "https://oracle.example.com/v2", "--rule", ruleText(shown.GetUpstream().GetRules()[1])).
		is(t, 0, "/v2", "1. "+shut, "30s", "none")
	w.cli(t, "upstream", "update", "augur", "https://oracle.example.com/v2").is(t, 1, "UPSTREAM_NOT_FOUND")
	w.cli(t, "audit", "list", "--call", "whence.v1.AdminService/UpdateUpstream").is(t, 0, "UpdateUpstream")
	w.cli(t, "upstream", "delete", "oracle").is(t, 0, "closed")
	w.cli(t, "upstream", "show", "oracle").is(t, 1, "UPSTREAM_NOT_FOUND")
}
