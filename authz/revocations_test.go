package authz_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
)

// TestADatabaseThatHangs holds that nobody is let in while the database neither
// answers nor fails, and that callers are not kept longer than they want to wait.
func TestADatabaseThatHangs(t *testing.T) {
	t.Parallel()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var held []net.Conn // accepted, and never answered
	var accepting errgroup.Group
	accepting.Go(func() error {
		for {
			c, err := listener.Accept()
			if err != nil {
				return nil //nolint:nilerr // the test has ended
			}
			mu.Lock()
			held = append(held, c)
			mu.Unlock()
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		_ = accepting.Wait()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range held {
			_ = c.Close()
		}
	})
	pool, err := pgxpool.New(t.Context(), "postgres://nobody@"+listener.Addr().String()+"/none?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	revocations, err := authz.NewRevocations(pool, nil)
	if err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	began := time.Now()
	for range 8 {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			err := revocations.Check(ctx, &authz.Principal{User: "ada", Tenant: authz.DefaultTenant}, "")
			if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, whence.ErrUnavailable) {
				t.Errorf("let in, or refused for another cause: %v", err)
			}
			return nil
		})
	}
	_ = group.Wait()
	if took := time.Since(began); took > 4*time.Second { // less than one try may take
		t.Errorf("eight callers who would wait 0.3 s each took %v", took)
	}
	pool.Close()
}
