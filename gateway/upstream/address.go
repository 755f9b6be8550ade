package upstream

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"
)

// Of IPv4, everything is public but for these; of IPv6, only global is, but for
// these (IANA's registries of special-purpose addresses). The ones that hold an IPv4
// address lead to it, whatever that is, so they are out as a whole.
var (
	global = netip.MustParsePrefix("2000::/3")
	closed = prefixes(
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
		"192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
		"198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
		"2001::/23",     // protocols: Teredo, benchmarking, ORCHID
		"2001:db8::/32", // documentation
		"2002::/16",     // 6to4
		"3ffe::/16",     // the former 6bone
		"3fff::/20",     // documentation
	)
)

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

// refused tells whether an address is not to be connected to.
func refused(addr netip.Addr, private []netip.Prefix) bool {
	addr = addr.Unmap().WithZone("")
	holds := func(p netip.Prefix) bool { return p.Contains(addr) }
	if slices.ContainsFunc(private, holds) {
		return false
	}
	return !addr.IsValid() || slices.ContainsFunc(closed, holds) || addr.Is6() && !global.Contains(addr)
}

// refusedError is an address that a connection was not made to.
type refusedError struct{ addr netip.Addr }

func (e *refusedError) Error() string { return fmt.Sprintf("the address %s is refused", e.addr) }

// control judges each address as it is connected to, so that no later answer of a
// name server counts.
func control(private []netip.Prefix) func(network, address string, _ syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		if refused(to.Addr(), private) {
			return &refusedError{to.Addr().Unmap()}
		}
		return nil
	}
}
