package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect/v2"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// note is what the update puts before a description.
const note = "withdrawn for review, do not install; was: "

const (
	updateSQL = `
update public.packages set description = $2 || description, listed_at = now()
where name = $1
returning description, pg_current_wal_insert_lsn()::text`

	deleteSQL = `delete from public.packages where name = $1`
)

// change updates the first answer's first row and asks again, twice: before and
// after the new text is embedded.
func (s *story) change(ctx context.Context) error {
	if err := s.embedder.stop(); err != nil {
		return err
	}
	s.embedder = nil
	var description, lsn string
	if err := s.db.QueryRow(ctx, updateSQL, s.changed, note).Scan(&description, &lsn); err != nil {
		return err
	}
	s.screen.line("   app=# update packages set description = %s || …\n         where name = %s", quote(note), quote(s.changed))
	wait, err := until(ctx, "the change is captured", func(ctx context.Context) (bool, error) {
		res, err := s.agent.memory.GetRecord(ctx, &v1.GetRecordRequest{Table: table, Key: keyOf(s.changed)})
		return res.GetRecord().GetVersion() > 1, err
	})
	if err != nil {
		return err
	}
	s.screen.line("   captured as version 2 within %s of the commit; nobody embeds at the moment", took(wait))

	stale, err := s.again(ctx, s.changed, "the embedder is away")
	if err != nil {
		return err
	}
	if err := s.expect(stale, v1.FreshnessState_FRESHNESS_STATE_STALE, v1.FreshnessReason_FRESHNESS_REASON_SOURCE_CHANGED); err != nil {
		return err
	}
	s.stale = stale.GetAnswerId()

	at := time.Now()
	if err := s.startEmbedder(ctx); err != nil {
		return err
	}
	s.screen.line("\n   the embedder is back, ready in %s", took(time.Since(at)))
	if _, err = until(ctx, "the new text is embedded", func(ctx context.Context) (bool, error) {
		res, err := s.op.sources.GetTable(ctx, &v1.GetTableRequest{Name: table})
		return err == nil && res.GetStatus().GetPending() == 0, err
	}); err != nil {
		return err
	}
	fresh, err := s.again(ctx, s.changed, took(time.Since(at))+" after the embedder was started")
	if err != nil {
		return err
	}
	s.fresh = fresh.GetAnswerId()
	return s.expect(fresh, v1.FreshnessState_FRESHNESS_STATE_FRESH, v1.FreshnessReason_FRESHNESS_REASON_UNSPECIFIED)
}

// again asks the first question anew and shows what became of one row.
func (s *story) again(ctx context.Context, name, when string) (*v1.QueryResponse, error) {
	s.screen.line("\n   %s%s", s.screen.paint(bold, "? "+question), s.screen.paint(dim, "  again: "+when))
	at := time.Now()
	res, err := s.agent.memory.Query(ctx, theQuestion(4))
	if err != nil {
		return nil, err
	}
	spent := time.Since(at)
	others := make([]string, 0, len(res.GetHits()))
	for i, h := range res.GetHits() {
		if nameOf(h.GetOrigin().GetKey()) == name {
			s.hit(i+1, h)
			continue
		}
		others = append(others, fmt.Sprintf("%d. %s %s", i+1, nameOf(h.GetOrigin().GetKey()), freshness(h.GetFreshness())))
	}
	s.screen.line("   %s", s.screen.paint(dim, "the other hits: "+strings.Join(others, "  ")))
	s.footer(res, spent)
	return res, nil
}

// expect checks that an answer shows the changed row with its new text, in this state.
func (s *story) expect(res *v1.QueryResponse, state v1.FreshnessState, reason v1.FreshnessReason) error {
	_, h := find(res.GetHits(), s.changed)
	f := h.GetFreshness()
	switch {
	case h == nil:
		return fmt.Errorf("%s is no longer among the hits", s.changed)
	case !strings.Contains(h.GetText(), note):
		return fmt.Errorf("%s is shown with its old text", s.changed)
	case f.GetState() != state, reason != 0 && (len(f.GetReasons()) == 0 || f.GetReasons()[0] != reason):
		return fmt.Errorf("%s is %s, and should be %s", s.changed, freshness(f), plain(state))
	}
	return nil
}

// remove deletes the first answer's second row.
func (s *story) remove(ctx context.Context) error {
	if _, err := s.db.Exec(ctx, deleteSQL, s.gone); err != nil {
		return err
	}
	s.screen.line("   app=# delete from packages where name = %s", quote(s.gone))
	var last string
	wait, err := until(ctx, "the deletion is captured", func(ctx context.Context) (bool, error) {
		res, err := s.agent.memory.GetRecord(ctx, &v1.GetRecordRequest{Table: table, Key: keyOf(s.gone)})
		var ce *connect.Error
		if errors.As(err, &ce) && ce.Code() == connect.CodeNotFound {
			last = ce.Code().String()
			return true, nil
		}
		last = plain(res.GetRecord().GetState())
		return err == nil && res.GetRecord().GetState() == v1.RecordState_RECORD_STATE_DELETED, err
	})
	if err != nil {
		return err
	}
	s.screen.line("   GetRecord %s: %s, within %s of the commit", s.gone, s.screen.state(last), took(wait))
	res, err := s.query(ctx, s.agent, theQuestion(4))
	if err != nil {
		return err
	}
	if rank, h := find(res.GetHits(), s.gone); h != nil {
		return fmt.Errorf("%s is deleted and still the answer's hit %d", s.gone, rank)
	}
	return nil
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
