package upstream

import (
	"net/netip"
	"testing"
)

func TestAddresses(t *testing.T) {
	t.Parallel()
	for _, a := range []string{"8.8.8.8", "1.1.1.1", "172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0", "198.17.255.255", "192.0.1.0", "223.255.255.255",
		"::ffff:8.8.8.8", "2606:4700:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888", "2001:200::1"} {
		if refused(netip.MustParseAddr(a), nil) {
			t.Errorf("%s is refused", a)
		}
	}
	for _, a := range []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.255", "169.254.169.254", "172.16.0.1", "172.31.255.255",
		"192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:8.8.8.8",
		"64:ff9b::8.8.8.8", "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1", "2001::1", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::1", "2002:808:808::1", "3ffe::1", "3fff::1",
		"4000::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%lo", "fec0::1", "ff02::1", "::ffff:127.0.0.1%lo",
	} {
		if !refused(netip.MustParseAddr(a), nil) {
			t.Errorf("%s is let through", a)
		}
	}
	if !refused(netip.Addr{}, nil) {
		t.Error("no address is let through")
	}
	within, err := parseRanges([]string{"10.1.0.0/16", "fd00::/64", "127.0.0.1/32"})
	if err != nil {
		t.Fatal(err)
	}
	for a, want := range map[string]bool{"10.1.2.3": false, "::ffff:10.1.2.3": false, "10.2.0.1": true, "fd00::1": false, "fd00::1%eth0": false, "fd00:0:0:1::1": true,
		"127.0.0.1": false, "127.0.0.2": true, "::1": true, "64:ff9b::a01:203": true, "2002:a01:203::1": true, "8.8.8.8": false} {
		if got := refused(netip.MustParseAddr(a), within); got != want {
			t.Errorf("within the ranges, %s is refused: %t", a, got)
		}
	}
}
