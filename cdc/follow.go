package cdc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/whence-db/whence"
)

// session is one connection's stream. Its goroutines and what they own:
// receive reads the connection and fills queue; report writes to the
// connection; apply empties queue into the sink; probe asks the source where
// its log ends.
type session struct {
	c        *Capture
	conn     net.Conn
	frontend *pgproto3.Frontend // receive's alone
	asker    *pgx.Conn          // probe's alone

	queue  chan batch
	room   *semaphore.Weighted // bytes that queue may still take
	capped int64               // a batch weighs at most this much

	// durable is what this session's units made so, and 0 before the first: the
	// checkpoint it began from may have come from Caught. Written by apply.
	durable atomic.Uint64
	heard   atomic.Uint64 // how far the server says it has sent; written by receive
	probes  probes
	answer  chan struct{} // the server asked for a status
	ask     chan struct{} // a new position is known: have the server say how far it has sent
}

// batch is some messages of the stream, in order.
type batch struct {
	data   []byte
	ends   []int // where in data each message ends
	weight int64
}

const (
	batchBytes = 64 << 10
	// statusEvery keeps the server from giving us up, which it does after
	// wal_sender_timeout, also while the queue is full and nothing is received.
	statusEvery  = 300 * time.Millisecond
	writeTimeout = 30 * time.Second
)

// follow runs one session and returns why it ended; never nil.
func (c *Capture) follow(ctx context.Context) error {
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn.PgConn())
	hijacked, from, err := c.open(ctx, conn)
	if err != nil {
		return err
	}
	c.log.InfoContext(ctx, "capture is streaming", "from", from)
	c.cfg.Status(nil)
	s := &session{
		c: c, conn: hijacked.Conn, frontend: hijacked.Frontend, asker: conn,
		queue: make(chan batch, 1024), room: semaphore.NewWeighted(c.cfg.QueueBytes), capped: c.cfg.QueueBytes,
		answer: make(chan struct{}, 1), ask: make(chan struct{}, 1),
	}
	return s.run(ctx, from)
}

// open returns a connection that carries the stream from the sink's checkpoint.
func (c *Capture) open(ctx context.Context, conn *pgx.Conn) (_ *pgconn.HijackedConn, from whence.LSN, err error) {
	repl, err := c.connectReplication(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			closeConn(ctx, repl)
		}
	}()
	if from, err = c.reconcile(ctx, conn, repl); err != nil {
		return nil, 0, err
	}
	c.once.Do(func() { close(c.attach) })
	if _, err = c.readTables(ctx); err != nil {
		return nil, 0, err
	}
	if err = c.startStream(ctx, repl, from); err != nil {
		return nil, 0, err
	}
	hijacked, err := repl.Hijack()
	return hijacked, from, err
}

func (s *session) run(ctx context.Context, from whence.LSN) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.receive(gctx) })
	g.Go(func() error { return s.report(gctx) })
	g.Go(func() error { return s.probe(gctx) })
	g.Go(func() error { return newApplier(s, from).run(gctx) })
	err := g.Wait()
	// Nobody else uses the connection any more. What was made durable last is
	// confirmed, so that a new session has less to skip; then goodbye.
	_ = s.conn.SetDeadline(time.Now().Add(closeTimeout))
	if s.sendStatus(false) == nil {
		_, _ = s.conn.Write([]byte{'X', 0, 0, 0, 4})
	}
	_ = s.conn.Close()
	return err
}

// receive copies messages into the queue. It blocks while the queue is full;
// report goes on meanwhile.
func (s *session) receive(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) })()
	b := batch{}
	for {
		if s.frontend.ReadBufferLen() == 0 || len(b.data) >= batchBytes {
			if err := s.put(ctx, &b); err != nil {
				return err
			}
			_ = s.conn.SetReadDeadline(time.Now().Add(s.c.cfg.DeadAfter))
			if ctx.Err() != nil { // else the deadline just set would outlive the one that ends us
				return ctx.Err()
			}
		}
		raw, err := s.next(ctx)
		if err != nil {
			return err
		}
		switch m := raw.(type) {
		case *pgproto3.CopyData:
			if len(m.Data) == 18 && m.Data[0] == 'k' {
				s.heard.Store(binary.BigEndian.Uint64(m.Data[1:9]))
				if m.Data[17] != 0 {
					signal(s.answer)
				}
			}
			b.data = append(b.data, m.Data...)
			b.ends = append(b.ends, len(b.data))
		case *pgproto3.ErrorResponse:
			return fmt.Errorf("the source ended the stream: %w", s.c.unsendable(pgconn.ErrorResponseToPgError(m)))
		case *pgproto3.CopyDone:
			return errors.New("the source ended the stream")
		case *pgproto3.NoticeResponse, *pgproto3.ParameterStatus:
		default:
			return fmt.Errorf("the source sent %T within the stream", m)
		}
	}
}

// next waits for a message as long as bytes of it keep coming.
func (s *session) next(ctx context.Context) (pgproto3.BackendMessage, error) {
	for {
		had := s.frontend.ReadBufferLen()
		raw, err := s.frontend.Receive()
		if err == nil {
			return raw, nil
		}
		var late net.Error
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case !errors.As(err, &late) || !late.Timeout():
			return nil, fmt.Errorf("receive from the source: %w", err)
		case s.frontend.ReadBufferLen() == had:
			return nil, fmt.Errorf("the source has been silent for %v", s.c.cfg.DeadAfter)
		}
		_ = s.conn.SetReadDeadline(time.Now().Add(s.c.cfg.DeadAfter))
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// put hands the batch on once there is room, and begins another.
func (s *session) put(ctx context.Context, b *batch) error {
	if len(b.ends) == 0 {
		return nil
	}
	b.weight = min(int64(len(b.data)), s.capped)
	if err := s.room.Acquire(ctx, b.weight); err != nil {
		return err
	}
	select {
	case s.queue <- *b:
	case <-ctx.Done():
		return ctx.Err()
	}
	*b = batch{}
	return nil
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// report tells the server how far the sink is: never further than what is
// durable, never backwards. A position of 0 says nothing.
func (s *session) report(ctx context.Context) error {
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	for {
		reply := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-s.answer:
		case <-s.ask:
			reply = true
		}
		_ = s.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		if err := s.sendStatus(reply); err != nil {
			return fmt.Errorf("report to the source: %w", err)
		}
	}
}

// sendStatus writes a standby status update; reply asks for a keepalive.
func (s *session) sendStatus(reply bool) error {
	durable := s.durable.Load()
	m := make([]byte, 0, 39)
	m = append(m, 'd', 0, 0, 0, 38, 'r')
	for range 3 { // written, flushed, applied
		m = binary.BigEndian.AppendUint64(m, durable)
	}
	m = binary.BigEndian.AppendUint64(m, uint64(time.Since(epoch).Microseconds()))
	if reply {
		m = append(m, 1)
	} else {
		m = append(m, 0)
	}
	_, err := s.conn.Write(m)
	return err
}
