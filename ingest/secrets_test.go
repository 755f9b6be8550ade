package ingest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence/internal/pgtest"
)

// secret needs quoting in both forms of a connection string.
const secret = `s3kr:t/@ w%rd'"\&?=`

// authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	var der []byte
	a.key, der = a.sign(&x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a test's authority"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

// sign makes a key and its certificate: by the authority, or by itself while
// that has none.
func (a *authority) sign(template *x509.Certificate) (*ecdsa.PrivateKey, []byte) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, der
}

// file writes the authority's certificate.
func (a *authority) file() string {
	a.t.Helper()
	name := filepath.Join(a.t.TempDir(), "root.crt")
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return name
}

// secured is a server that takes only encrypted connections with a password,
// but for its superuser's. It returns "host:port".
func secured(t *testing.T, by *authority) (*pgtest.DB, string) {
	t.Helper()
	cluster := pgtest.OwnCluster(t, nil)
	pool, err := pgxpool.New(t.Context(), cluster.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	var dir string
	if err := pool.QueryRow(t.Context(), `show data_directory`).Scan(&dir); err != nil {
		t.Fatal(err)
	}
	owner, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	key, der := by.sign(&x509.Certificate{SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"server.crt":  pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		"server.key":  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		"pg_hba.conf": []byte("host all whence 127.0.0.1/32 trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n"),
	} {
		path, of := filepath.Join(dir, name), owner.Sys().(*syscall.Stat_t) //nolint:forcetypeassert // on every system that the server runs on
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, int(of.Uid), int(of.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	quoted := strings.ReplaceAll(secret, `'`, `''`)
	for _, statement := range []string{`alter system set ssl = on`, `select pg_reload_conf()`,
		`create role capture login replication password '` + quoted + `'`, `grant create on database postgres to capture`,
		`create schema authorization capture`} {
		if _, err := pool.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	return &pgtest.DB{Pool: pool, DSN: cluster.DSN("postgres"), Name: "postgres"}, fmt.Sprint("127.0.0.1:", cluster.Port())
}

// record keeps all that is logged and every error.
type record struct {
	mu sync.Mutex // guards text
	bytes.Buffer
}

func (r *record) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.Buffer.Write(b)
}

func (r *record) say(err error) string {
	text := fmt.Sprintf("%v %+v %#v", err, err, err)
	_, _ = r.Write([]byte(text + "\n"))
	return text
}

// TestSecrets captures over verified TLS with a password, refuses servers that
// are others than they say, and finds the password nowhere afterwards.
func TestSecrets(t *testing.T) {
	t.Parallel()
	ours, others := newAuthority(t), newAuthority(t)
	w := newWorldWithoutSource(t)
	var address string
	w.source, address = secured(t, ours)
	w.exec(w.source, `begin; set local role capture; create table capture.docs (id int primary key, title text); insert into capture.docs values (1, 'one'); commit`)
	said := &record{}
	log := slog.New(slog.NewTextHandler(said, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.r.log = log
	host, port, _ := strings.Cut(address, ":")
	link := func(password, host, more string) string {
		u := url.URL{Scheme: "postgres", User: url.UserPassword("capture", password), Host: host + ":" + port, Path: "/postgres",
			RawQuery: "sslmode=verify-full&sslrootcert=" + url.QueryEscape(ours.file()) + more}
		return u.String()
	}
	words := func(password string) string {
		quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(password)
		return fmt.Sprintf(`host=%s port=%s user=capture password='%s' dbname=postgres sslmode=verify-full sslrootcert='%s'`, host, port, quoted, ours.file())
	}
	for name, tt := range map[string]struct{ dsn, reason, says string }{
		"another authority":   {link(secret, host, "&sslrootcert="+url.QueryEscape(others.file())), "SOURCE_UNREACHABLE", "unknown authority"},
		"another host's name": {link(secret, "localhost", ""), "SOURCE_UNREACHABLE", "x509: certificate"},
		"no encryption":       {strings.Replace(link(secret, host, ""), "verify-full", "disable", 1), "SOURCE_REFUSED", "no encryption"},
		"no such file":        {link(secret, host, "&sslrootcert=/nowhere"), "DSN_INVALID", ""},
		"a wrong password":    {link(secret+"x", host, ""), "SOURCE_REFUSED", "password authentication failed"},
		"the same in words":   {words(secret + "x"), "SOURCE_REFUSED", "password authentication failed"},
		"no server":           {strings.Replace(link(secret, host, ""), ":"+port, ":1", 1), "SOURCE_UNREACHABLE", "refused"},
		"a parameter unknown": {link(secret, host, "&passwort="+url.QueryEscape(secret)), "SOURCE_REFUSED", "passwort"},
		"not escaped":         {"postgres://capture:" + secret + "@" + address + "/postgres", "DSN_INVALID", ""},
		"a quote too many":    {"host=" + host + " password='" + secret + "'", "DSN_INVALID", ""},
		"a bad port":          {"host=" + host + " port=x password=" + url.QueryEscape(secret), "DSN_INVALID", ""},
	} {
		_, err := w.r.CreateSource(t.Context(), "refused", tt.dsn, "")
		if text := said.say(err); reason(err) != tt.reason || !strings.Contains(text, tt.says) {
			t.Errorf("%s: %v, want %s and %q", name, err, tt.reason, tt.says)
		}
	}
	w.r.getenv = func(string) string { return link(secret, host, "") }
	for name, dsn := range map[string]string{"app": words(secret), "link": link(secret, host, ""), "env": ""} {
		env := map[bool]string{true: "SOME_DSN"}[dsn == ""]
		if _, err := w.r.CreateSource(t.Context(), name, dsn, env); err != nil {
			t.Fatal(name, err)
		}
	}
	runner, err := NewRunner(RunnerConfig{Registry: w.r, Poll: 100 * time.Millisecond, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- runner.Run(ctx) }()
	w.stop = func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the runner ended with %v", err)
		}
	}
	spec := TableSpec{Table: "capture.docs", TextColumns: []string{"title"}}
	info := w.register(spec)
	info = w.live(info.Name())
	w.exec(w.source, `insert into capture.docs values (2, 'two')`)
	w.caughtUp()
	w.equal(info)
	var encrypted bool
	if err := w.source.Pool.QueryRow(t.Context(), `select bool_and(s.ssl) from pg_stat_ssl s join pg_stat_activity a using (pid) where a.usename = 'capture'`).Scan(&encrypted); err != nil || !encrypted {
		t.Errorf("capture's connections are encrypted: %t, %v", encrypted, err)
	}
	// The password is changed, and the connections end.
	w.exec(w.source, `alter role capture password 'another'; select pg_terminate_backend(pid) from pg_stat_activity where usename = 'capture'`)
	for _, name := range []string{"app", "link", "env"} {
		w.until("the source says that it cannot connect", func() (bool, string) {
			s, err := w.r.GetSource(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			return strings.Contains(s.Error, "password authentication failed"), s.Error
		})
	}
	_, err = w.r.RegisterTable(t.Context(), TableSpec{Source: "link", Table: "capture.docs", TextColumns: []string{"title"}})
	said.say(err)
	for _, name := range []string{"app", "env"} {
		if _, err := w.r.DeleteSource(t.Context(), name, false); reason(err) != "SOURCE_UNREACHABLE" {
			t.Error(err)
		} else {
			said.say(err)
		}
	}
	w.kill()
	said.WriteString(w.dump())
	said.mu.Lock()
	defer said.mu.Unlock()
	text := said.String()
	for _, form := range []string{secret, url.QueryEscape(secret), url.PathEscape(secret), fmt.Sprintf("%q", secret), url.UserPassword("", secret).String()[1:],
		strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(secret), hex.EncodeToString([]byte(secret)), "s3kr", hex.EncodeToString([]byte("s3kr"))} {
		if i := strings.Index(text, form); i >= 0 {
			t.Errorf("the password was told, as %s: %s", form, text[max(0, i-200):min(len(text), i+100)])
		}
	}
	if !strings.Contains(text, "SOME_DSN") || !strings.Contains(text, "capture begins") {
		t.Error("the dump or the log is not what it should be")
	}
}

// dump is all that the memory database holds, as text.
func (w *world) dump() string {
	w.t.Helper()
	var b strings.Builder
	for _, name := range w.query(w.memory.Pool, `select format('%I.%I', schemaname, tablename) from pg_tables where schemaname = 'whence'`) {
		for _, row := range w.query(w.memory.Pool, `select t::text from `+name+` t`) {
			b.WriteString(name + " " + row + "\n")
		}
	}
	return b.String()
}
