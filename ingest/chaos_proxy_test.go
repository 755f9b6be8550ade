package ingest

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// proxy stands between the children and a server, to do to their connections
// what networks do.
type proxy struct {
	listener net.Listener
	target   string
	wait     sync.WaitGroup

	mu    sync.Mutex // guards what follows
	pairs map[*pair]bool
	open  chan struct{} // closed while bytes pass
}

// pair is one connection: the child's side and the server's.
type pair struct{ near, far *net.TCPConn }

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, target: target, pairs: map[*pair]bool{}, open: make(chan struct{})}
	close(p.open)
	p.wait.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.resume()
		p.reset()
		p.wait.Wait()
	})
	return p
}

func (p *proxy) port() int { return p.listener.Addr().(*net.TCPAddr).Port }

func (p *proxy) accept() {
	for {
		near, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		p.wait.Go(func() { p.serve(near.(*net.TCPConn)) })
	}
}

func (p *proxy) serve(near *net.TCPConn) {
	defer func() { _ = near.Close() }()
	p.gate()
	conn, err := net.DialTimeout("tcp", p.target, 5*time.Second)
	if err != nil {
		return
	}
	far := conn.(*net.TCPConn)
	defer func() { _ = far.Close() }()
	c := &pair{near, far}
	p.mu.Lock()
	p.pairs[c] = true
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.pass(far, near) })
	both.Go(func() { p.pass(near, far) })
	both.Wait()
	p.mu.Lock()
	delete(p.pairs, c)
	p.mu.Unlock()
}

// pass copies until either side ends, and then ends the other.
func (p *proxy) pass(to, from *net.TCPConn) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		p.gate()
		if n > 0 {
			if _, werr := to.Write(b[:n]); werr != nil {
				_ = from.Close()
				return
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				_ = to.CloseWrite()
			} else {
				_ = to.Close()
			}
			return
		}
	}
}

// gate waits while nothing may pass.
func (p *proxy) gate() {
	p.mu.Lock()
	open := p.open
	p.mu.Unlock()
	<-open
}

// stall holds everything back, new connections too, until resume.
func (p *proxy) stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.open:
		p.open = make(chan struct{})
	default:
	}
}

func (p *proxy) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.open:
	default:
		close(p.open)
	}
}

// reset ends every connection on both sides, without a goodbye.
func (p *proxy) reset() { p.each(func(c *pair) { abort(c.near); abort(c.far) }) }

// halve ends one side of every connection. The other notices nothing as long as
// it is stalled, as when a machine is gone and its peer waits.
func (p *proxy) halve(near bool) {
	p.stall()
	p.each(func(c *pair) {
		if near {
			abort(c.near)
		} else {
			abort(c.far)
		}
	})
}

func (p *proxy) each(fn func(*pair)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.pairs {
		fn(c)
	}
}

func abort(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
