package gateway

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
)

const (
	revokeCall     = "oauth/revoke"
	introspectCall = "oauth/introspect"
)

// RevokeToken ends one token; to have it is authority enough, and a proof of its key
// is not asked for. The call's entry and the revocation are one transaction; it is in
// effect in this process before the call returns, and in every other within a second.
// What is not a token of this server, or is good for nothing any more, is recorded as
// refused and is no error (RFC 7009): the caller has what they wanted.
func (g *Gateway) RevokeToken(ctx context.Context, token string) error {
	leave, err := g.enter()
	if err != nil {
		return err
	}
	defer leave()
	c := Call{Name: revokeCall}
	s := &Session{Started: g.now()}
	err = protect(ctx, c, s, func(ctx context.Context, s *Session) error { return g.revokeToken(ctx, token, s) })
	if err = g.record(ctx, c, s, false, err); isKind(err, whence.ErrUnauthenticated) {
		return nil
	}
	return err
}

func (g *Gateway) revokeToken(ctx context.Context, token string, s *Session) (err error) {
	if s.Principal, err = g.verifier.Verify(ctx, token); err != nil {
		return err
	}
	v := authz.Revocation{Kind: authz.RevokedToken, Target: s.Principal.TokenID, By: s.Principal.User, Reason: "its holder ended it"}
	s.Note("revoked", string(v.Kind))
	s.Note("target", v.Target)
	s.Write(Write{
		Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
			if err := g.stops.Lock(ctx, tx); err != nil {
				return nil, err
			}
			_, err := g.stops.Add(ctx, tx, v)
			return nil, err
		},
		After: func(ctx context.Context) {
			if err := g.stops.Refresh(ctx); err != nil {
				g.log.ErrorContext(ctx, "a revocation is recorded, and calls are refused until it can be read back", "error", err)
			}
		},
	})
	return nil
}

// Introspected is what a token is good for.
type Introspected struct {
	Active    bool
	Principal *authz.Principal // whom the token speaks for; nil when it is not active
}

// Introspect tells operators what a token is good for, and whoever holds it what
// their own is. One that would not be let in, or whose task may not go on, is not
// active; why is not told.
func (g *Gateway) Introspect(ctx context.Context, caller authz.Presented, token string) (out Introspected, err error) {
	leave, err := g.enter()
	if err != nil {
		return out, err
	}
	defer leave()
	c := Call{Name: introspectCall}
	s := &Session{Started: g.now()}
	err = protect(ctx, c, s, func(ctx context.Context, s *Session) error {
		var err error
		out, err = g.introspect(ctx, caller, token, s)
		return err
	})
	if err = g.record(ctx, c, s, false, err); err != nil {
		return Introspected{}, err
	}
	return out, nil
}

func (g *Gateway) introspect(ctx context.Context, caller authz.Presented, token string, s *Session) (out Introspected, err error) {
	if s.Principal, err = g.verifier.Authenticate(ctx, caller); err != nil {
		return out, err
	}
	p := s.Principal
	if caller.Token != token {
		if !p.Role.Operates() {
			return out, wrongKind("operators introspect any token, others their own: send it as token too, or use an operator's token to ask")
		}
		if p, err = g.verifier.Verify(ctx, token); isKind(err, whence.ErrUnauthenticated) {
			s.Note("active", false)
			return out, nil
		} else if err != nil {
			return out, err
		}
	}
	s.Note("token", p.TokenID)
	if !p.IsOperator() {
		if err := g.alive(ctx, p.Task); isKind(err, whence.ErrDenied) {
			s.Note("active", false)
			return out, nil
		} else if err != nil {
			return out, err
		}
	}
	s.Note("active", true)
	return Introspected{Active: true, Principal: p}, nil
}

// RefuseUnread records a call about tokens whose request could not be read. It
// returns the reason.
func (g *Gateway) RefuseUnread(ctx context.Context, call string, reason error) error {
	leave, err := g.enter()
	if err != nil {
		return err
	}
	defer leave()
	return g.record(ctx, Call{Name: call}, &Session{Started: g.now()}, false, reason)
}

// isKind tells whether the caller may be told of an error of this kind. What merely
// caused it does not count: a refusal that could not be recorded is no refusal.
func isKind(err, kind error) bool {
	var e *whence.Error
	return errors.As(err, &e) && errors.Is(e.Kind, kind)
}
