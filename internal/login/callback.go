package login

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// callback is the listener that the issuer's answer comes to, on a port of its own.
type callback struct {
	url      string
	host     string
	listener net.Listener
}

const callbackPath = "/callback"

func listen(ctx context.Context) (*callback, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	host := l.Addr().String()
	return &callback{url: "http://" + host + callbackPath, host: host, listener: l}, nil
}

func (cb *callback) close() { _ = cb.listener.Close() }

var errTimeout = errors.New("no answer in time")

// ask shows the user the attempt's page and waits for the answer to it.
func (cb *callback) ask(ctx context.Context, c Config, a *attempt) (answer url.Values, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.Wait, errTimeout)
	defer cancel()
	answers := make(chan url.Values, 1)
	server := &http.Server{Handler: cb.handler(a, answers), ReadHeaderTimeout: 5 * time.Second}
	var serving sync.WaitGroup
	failed := make(chan error, 1)
	serving.Go(func() { failed <- server.Serve(cb.listener) })
	defer func() {
		// The browser is to get its last page; a connection that asks nothing may go.
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if server.Shutdown(grace) != nil {
			_ = server.Close()
		}
		serving.Wait()
	}()

	fmt.Fprintf(c.Out, "To sign in, open this page in a browser on this machine:\n\n  %s\n\n", a.url)
	if err := c.Open(a.url); err != nil {
		fmt.Fprintf(c.Out, "The browser did not open by itself: %v\n", err)
	}
	select {
	case answer := <-answers:
		return answer, nil
	case err := <-failed:
		return nil, fmt.Errorf("sign in: wait for the issuer's answer: %w", err)
	case <-ctx.Done():
		if errors.Is(context.Cause(ctx), errTimeout) {
			return nil, fmt.Errorf("nobody signed in at %s within %s; run the command again and open the page that it prints", c.Issuer, c.Wait)
		}
		return nil, fmt.Errorf("signing in was interrupted: %w", context.Cause(ctx))
	}
}

// handler takes the first answer to the attempt. What does not fit is refused and
// waited past: any page in the user's browser can send it.
func (cb *callback) handler(a *attempt, answers chan<- url.Values) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+callbackPath, func(w http.ResponseWriter, r *http.Request) {
		answer := r.URL.Query()
		if !a.answers(answer) {
			http.Error(w, "This is not the sign-in that the command line waits for. Use the page that it printed last.", http.StatusBadRequest)
			return
		}
		select {
		case answers <- answer:
		default:
			http.Error(w, "This sign-in has its answer already. Go back to the terminal.", http.StatusConflict)
			return
		}
		said := "Thank you. You can close this page and go back to the terminal."
		if answer.Get("error") != "" {
			said = "You are not signed in. You can close this page; the terminal says more."
		}
		_, _ = fmt.Fprintln(w, said)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		h.Set("Connection", "close")
		if r.Host != cb.host { // a foreign name that leads here
			http.Error(w, "This listener is only for "+cb.host+".", http.StatusMisdirectedRequest)
			return
		}
		mux.ServeHTTP(w, r)
	})
}
