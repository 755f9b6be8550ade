package upstream

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// names is a name server that gives one answer after another, each time it is asked
// for an address of IPv4; the last goes on.
type names struct {
	mu      sync.Mutex
	answers [][]string // guarded by mu
	asked   int        // guarded by mu
}

func (n *names) next() (out []netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range n.answers[min(n.asked, len(n.answers)-1)] {
		out = append(out, netip.MustParseAddr(a))
	}
	n.asked++
	return out
}

func (n *names) times() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked
}

// resolver asks a name server of the test's own, over loopback.
func (n *names) resolver(t *testing.T) *net.Resolver {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			size, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(n.answer(buf[:size]), from)
		}
	}()
	t.Cleanup(func() { _ = c.Close(); <-done })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", c.LocalAddr().String())
	}}
}

// answer writes a reply of RFC 1035 to the one question that q has.
func (n *names) answer(q []byte) []byte {
	end := 12
	for q[end] != 0 {
		end += int(q[end]) + 1
	}
	end += 5
	kind := binary.BigEndian.Uint16(q[end-4:])
	out := append([]byte{}, q[:end]...)
	copy(out[2:], []byte{0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0})
	if kind != 1 { // only A
		return out
	}
	for _, a := range n.next() {
		raw := a.As4()
		out = append(out, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
		out = append(out, raw[:]...)
		out[7]++
	}
	return out
}

// The address that is judged is the one that is connected to, whatever a name server
// says before or after.
func TestNamesAreJudgedByWhereTheyLead(t *testing.T) {
	t.Parallel()
	base := listen(t, func(_ int, c net.Conn) {
		_ = c.SetDeadline(time.Now().Add(time.Second))
		_, _ = c.Read(make([]byte, 4096))
		_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"))
	})
	at, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		answers [][]string
		ranges  []string
		want    []string // of one request after another
	}{
		{"private", [][]string{{"127.0.0.1"}}, nil, []string{ReasonAddressRefused}},
		{"metadata", [][]string{{"169.254.169.254"}}, nil, []string{ReasonAddressRefused}},
		{"several", [][]string{{"10.0.0.1", "192.168.0.1", "100.64.0.1", "127.0.0.1"}}, nil, []string{ReasonAddressRefused}},
		{"in the range", [][]string{{"127.0.0.1"}}, []string{loopback}, []string{"", ""}},
		{"beside the range", [][]string{{"127.0.0.1"}}, []string{"10.0.0.0/8"}, []string{ReasonAddressRefused}},
		{"one of two in the range", [][]string{{"10.255.255.254", "127.0.0.1"}}, []string{loopback}, []string{""}},
		{"rebound", [][]string{{"127.0.0.1"}, {"127.0.0.2"}, {"169.254.169.254"}}, []string{"127.0.0.1/32"}, []string{"", ReasonAddressRefused, ReasonAddressRefused}},
	} {
		n := &names{answers: c.answers}
		f := forwarder(t, Config{Resolver: n.resolver(t)})
		u := define(t, "http://rebind.example.com:"+at.Port(), func(d *Definition) { d.PrivateRanges = c.ranges })
		for i, want := range c.want {
			res, err := ask(t, f, u, get("/"))
			if err == nil {
				_ = res.Body.Close()
			}
			if reason(err) != want || Sent(err) {
				t.Errorf("%s, request %d: %v, want %q", c.name, i, err, want)
			}
			if asked := n.times(); asked != i+1 {
				t.Errorf("%s: the name was looked up %d times for %d connections", c.name, asked, i+1)
			}
		}
	}
}

// control is what stands between a name and its address, so it is asked as the dialer
// asks it, in every spelling.
func TestControl(t *testing.T) {
	t.Parallel()
	check := control(nil)
	for _, address := range []string{"127.0.0.1:80", "[::1]:80", "[::ffff:127.0.0.1]:80", "[fe80::1%lo]:80", "[64:ff9b::7f00:1]:443", "169.254.169.254:80"} {
		var refused *refusedError
		if err := check("tcp", address, nil); !errors.As(err, &refused) {
			t.Errorf("%s: %v", address, err)
		}
	}
	for _, address := range []string{"8.8.8.8:443", "[2606:4700::1111]:443"} {
		if err := check("tcp", address, nil); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
	if err := check("unix", "/run/postgres.sock", nil); err == nil || strings.Contains(err.Error(), "refused") {
		t.Errorf("what is no address: %v", err)
	}
}
