package main

import (
	"context"
	"sync"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
)

// countingSink does what a sink has to and keeps nothing but numbers: what is
// left is decoding, routing and handing over.
type countingSink struct {
	table   whence.Table
	cluster cdc.Cluster
	wanted  int
	keep    bool

	mu         sync.Mutex // guards what follows
	checkpoint whence.LSN
	count      int
	kept       []cdc.Change
	done       chan struct{} // closed once as many changes as wanted are committed
}

var _ cdc.Sink = (*countingSink)(nil)

func (s *countingSink) Start(context.Context) (whence.LSN, cdc.Cluster, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.checkpoint, s.cluster, nil
}

func (s *countingSink) Attach(_ context.Context, at whence.LSN, of cdc.Cluster) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checkpoint, s.cluster = at, of
	return nil
}

func (s *countingSink) Tables(context.Context) ([]whence.Table, error) {
	return []whence.Table{s.table}, nil
}

func (s *countingSink) Begin(context.Context) (cdc.Unit, error) { return &countingUnit{s: s}, nil }

func (s *countingSink) Caught(context.Context, cdc.Progress) error { return nil }

// What follows cannot happen in a drain: the table is LIVE and nothing is lost.

func (s *countingSink) Lost(context.Context, bool, string) error { return errNotADrain }
func (s *countingSink) BackfillStart(context.Context, int32, int32, whence.LSN, int64) ([]cdc.Blocks, error) {
	return nil, errNotADrain
}
func (s *countingSink) BackfillOwed(context.Context, int32) ([]whence.Values, error) {
	return nil, errNotADrain
}
func (s *countingSink) BackfillRows(context.Context, int32, whence.LSN, []whence.Values, cdc.Blocks) error {
	return errNotADrain
}
func (s *countingSink) BackfillDone(context.Context, int32, whence.LSN) (bool, error) {
	return false, errNotADrain
}
func (s *countingSink) Saw(context.Context, int32, int32, string) error { return nil }
func (s *countingSink) CopyAgain(context.Context, int32, int32, whence.LSN, string) error {
	return errNotADrain
}
func (s *countingSink) TableFailed(context.Context, int32, int32, whence.TableState, string) error {
	return errNotADrain
}

type countingUnit struct {
	s     *countingSink
	count int
	kept  []cdc.Change
}

func (u *countingUnit) Apply(_ context.Context, changes []cdc.Change) error {
	u.count += len(changes)
	if u.s.keep {
		u.kept = append(u.kept, changes...)
	}
	return nil
}

func (u *countingUnit) Commit(_ context.Context, p cdc.Progress) error {
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	before := u.s.count
	u.s.count += u.count
	u.s.kept = append(u.s.kept, u.kept...)
	u.s.checkpoint = p.LSN
	if before < u.s.wanted && u.s.count >= u.s.wanted {
		close(u.s.done)
	}
	return nil
}

func (u *countingUnit) Rollback(context.Context) error { return nil }
