package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/golang-jwt/jwt/v5"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
	"github.com/whence-db/whence/proto/gen/whence/v1/whencev1connect"
)

// throughResult is what it costs to reach an upstream that answers with 1 KB: by
// itself, through a bare reverse proxy in Go, through HAProxy that verifies an ES256
// token of each request, and through Whence with all that it does: the credential,
// revocations, the budget, and a durable entry of each request.
type throughResult struct {
	Rounds       int            `json:"rounds"`
	RoundSeconds float64        `json:"round_seconds"`
	Clients      []throughFound `json:"clients"`
	Missing      string         `json:"missing,omitempty"` // why HAProxy was not measured
}

type throughFound struct {
	Clients int           `json:"clients"`
	Sides   []throughSide `json:"sides"`
}

// throughSide is one way: processor time of the processes in between for one request,
// those of the memory database included.
type throughSide struct {
	Name string `json:"name"`
	P50  figure `json:"p50_us"`
	P99  figure `json:"p99_us"`
	CPU  figure `json:"cpu_us"`
}

// way is one way to the upstream.
type way struct {
	name  string
	url   string
	token string
	pid   int // of the first process in between; 0: none
}

// proxyArgument has this program be a bare reverse proxy: bench -reverse-proxy URL.
const proxyArgument = "-reverse-proxy"

// beProxy forwards to the URL and does nothing else, until its input ends.
func beProxy(to string, out io.Writer) error {
	target, err := url.Parse(to)
	if err != nil {
		return err
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: &http.Transport{MaxIdleConnsPerHost: 256, MaxIdleConns: 256}}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "ready http://%s\n", l.Addr())
	srv := &http.Server{Handler: proxy, ReadHeaderTimeout: 10 * time.Second}
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); _ = srv.Close() }() // it ends with the program
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// measureThrough lets the ways take turns.
func measureThrough(ctx context.Context, s *server, c config, say func(string, ...any)) (r *throughResult, err error) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = w.Write(kilobyte)
	}))
	defer upstream.Close()
	ways := []way{{name: "no proxy", url: upstream.URL + "/x"}}
	bare, stopBare, err := startBare(ctx, upstream.URL)
	if err != nil {
		return nil, err
	}
	defer stopBare()
	r = &throughResult{Rounds: c.rounds, RoundSeconds: c.perSide.Seconds() / float64(c.rounds)}
	ways = append(ways, bare)
	switch balanced, stop, err := startHAProxy(ctx, upstream.URL); {
	case errors.Is(err, exec.ErrNotFound):
		r.Missing = "haproxy is not installed"
		say("HAProxy is not installed: its side is left out (Debian: apt-get install haproxy)")
	case err != nil:
		return nil, err
	default:
		defer stop()
		ways = append(ways, balanced)
	}
	own, err := s.throughItself(ctx, upstream.URL)
	if err != nil {
		return nil, err
	}
	ways = append(ways, own)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: c.most(), MaxIdleConns: 4 * c.most()}}
	for _, clients := range c.clients {
		say("through proxies with %d clients", clients)
		p50, p99, cpu := make([][]float64, len(ways)), make([][]float64, len(ways)), make([][]float64, len(ways))
		for round := range c.rounds + 1 {
			for i, w := range ways {
				length := c.perSide / time.Duration(c.rounds)
				if round == 0 { // warms up
					length = min(length, time.Second)
				}
				before := treeTime(w.pid)
				got, err := load(ctx, clients, length, w.get(client))
				if err != nil {
					return nil, fmt.Errorf("%s: %w", w.name, err)
				}
				if round == 0 {
					continue
				}
				p50[i] = append(p50[i], 1000*milliseconds(percentile(got.latencies, 0.5)))
				p99[i] = append(p99[i], 1000*milliseconds(percentile(got.latencies, 0.99)))
				cpu[i] = append(cpu[i], 1000*milliseconds(treeTime(w.pid)-before)/float64(len(got.latencies)))
			}
		}
		found := throughFound{Clients: clients}
		for i, w := range ways {
			found.Sides = append(found.Sides, throughSide{w.name, figureOf(p50[i]), figureOf(p99[i]), figureOf(cpu[i])})
		}
		r.Clients = append(r.Clients, found)
	}
	return r, nil
}

var kilobyte = []byte(strings.Repeat("0123456789abcdef", 64))

func (w way) get(client *http.Client) call {
	return func(ctx context.Context, _ int) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url, nil)
		if err != nil {
			return err
		}
		if w.token != "" {
			req.Header.Set("Authorization", "Bearer "+w.token)
		}
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, res.Body)
		if e := res.Body.Close(); err == nil {
			err = e
		}
		if err == nil && (res.StatusCode != http.StatusOK || n != int64(len(kilobyte))) {
			err = fmt.Errorf("status %d with %d bytes", res.StatusCode, n)
		}
		return err
	}
}

// throughItself registers the upstream, and gets a task that may reach it.
func (s *server) throughItself(ctx context.Context, to string) (way, error) {
	dial := func(token string) *connect.Client {
		authorize := func(next connect.ClientFunc) connect.ClientFunc {
			return func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
				ctx, info := connect.NewClientContext(ctx)
				info.RequestHeader().Set("Authorization", "Bearer "+token)
				return next(ctx, spec)
			}
		}
		return connect.NewClient(connecthttp.NewTransport(http.DefaultClient, s.env["WHENCE_URL"]), authorize)
	}
	_, err := whencev1connect.NewAdminServiceClient(dial(s.env["WHENCE_OPERATOR_TOKEN"])).CreateUpstream(ctx,
		&v1.CreateUpstreamRequest{Upstream: &v1.Upstream{Name: "bench", Url: to, PrivateRanges: []string{"127.0.0.1/32"}}})
	if err != nil {
		return way{}, err
	}
	pid, err := s.pid()
	return way{name: "Whence", url: s.env["WHENCE_URL"] + "/up/bench/x", token: s.env["WHENCE_AGENT_TOKEN"], pid: pid}, err
}

// startBare starts this program as a bare reverse proxy.
func startBare(ctx context.Context, to string) (w way, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return w, nil, err
	}
	cmd := exec.CommandContext(ctx, self, proxyArgument, to) //nolint:gosec // this program
	in, err := cmd.StdinPipe()
	if err != nil {
		return w, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return w, nil, err
	}
	if err := cmd.Start(); err != nil {
		return w, nil, err
	}
	stop = func() { _ = in.Close(); _ = cmd.Wait() }
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		stop()
		return w, nil, fmt.Errorf("start a reverse proxy: %w", err)
	}
	return way{name: "Go's ReverseProxy", url: strings.TrimSpace(strings.TrimPrefix(line, "ready ")) + "/x", pid: cmd.Process.Pid}, stop, nil
}

const haproxyConfig = `
global
    nbthread 2
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend in
    bind %s
    http-request deny deny_status 401 unless { http_auth_bearer,jwt_header_query('$.alg') -m str ES256 }
    http-request deny deny_status 401 unless { http_auth_bearer,jwt_verify("ES256","%s") -m int 1 }
    http-request del-header authorization
    default_backend out
backend out
    server upstream %s
`

// startHAProxy starts HAProxy with verification of ES256 tokens.
func startHAProxy(ctx context.Context, to string) (w way, stop func(), err error) {
	binary, err := exec.LookPath("haproxy")
	if err != nil {
		if binary, err = exec.LookPath("/usr/sbin/haproxy"); err != nil {
			return w, nil, exec.ErrNotFound
		}
	}
	folder, err := os.MkdirTemp("", "whence-bench-haproxy-")
	if err != nil {
		return w, nil, err
	}
	clean := func() { _ = os.RemoveAll(folder) }
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return w, clean, err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return w, clean, err
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"sub": "bench", "exp": time.Now().Add(time.Hour).Unix()}).SignedString(key)
	if err != nil {
		return w, clean, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return w, clean, err
	}
	addr := l.Addr().String()
	_ = l.Close() // for HAProxy to take
	keyFile, file := filepath.Join(folder, "key.pem"), filepath.Join(folder, "haproxy.cfg")
	err = errors.Join(os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o600),
		os.WriteFile(file, []byte(fmt.Sprintf(haproxyConfig, addr, keyFile, strings.TrimPrefix(to, "http://"))), 0o600))
	if err != nil {
		clean()
		return w, nil, err
	}
	cmd := exec.CommandContext(ctx, binary, "-db", "-f", file) //nolint:gosec // what is installed
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		clean()
		return w, nil, err
	}
	stop = func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); clean() }
	for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
		if conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr); err == nil {
			_ = conn.Close()
			return way{name: "HAProxy, ES256", url: "http://" + addr + "/x", token: token, pid: cmd.Process.Pid}, stop, nil
		}
	}
	stop()
	return w, nil, fmt.Errorf("haproxy does not answer; it said: %s", said.String())
}

// treeTime is the processor time of a process, of all below it that live, and of
// those that they have waited for.
func treeTime(root int) time.Duration {
	if root == 0 {
		return 0
	}
	type process struct {
		parent int
		ticks  int64
	}
	all := map[int]process{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(b), ") ") // a name may hold spaces
		f := strings.Fields(rest)
		if len(f) < 15 {
			continue
		}
		p := process{}
		p.parent, _ = strconv.Atoi(f[1])
		for _, i := range []int{11, 12, 13, 14} { // utime, stime, cutime, cstime
			n, _ := strconv.ParseInt(f[i], 10, 64)
			p.ticks += n
		}
		all[pid] = p
	}
	const perSecond = 100 // USER_HZ, which Linux has shown everywhere for long
	ticks := int64(0)
	for pid, p := range all {
		for at := pid; at > 1; at = all[at].parent {
			if at == root {
				ticks += p.ticks
				break
			}
		}
	}
	return time.Duration(ticks) * time.Second / perSecond
}

func (r *throughResult) print(w io.Writer) error {
	fmt.Fprintf(w, "\nTo an upstream that answers with 1 KB; %d rounds of %.1f s each way in turns; processor time of the processes in between\n\n", r.Rounds, r.RoundSeconds)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "clients\t\tp50 µs\t\tp99 µs\t\tCPU µs a request\t\t")
	for _, c := range r.Clients {
		for _, s := range c.Sides {
			fmt.Fprintf(t, "%d\t%s\t%.0f\t(%.0f to %.0f)\t%.0f\t(%.0f to %.0f)\t%.0f\t(%.0f to %.0f)\t\n", c.Clients, s.Name,
				s.P50.Median, s.P50.Low, s.P50.High, s.P99.Median, s.P99.Low, s.P99.High, s.CPU.Median, s.CPU.Low, s.CPU.High)
		}
	}
	return t.Flush()
}
