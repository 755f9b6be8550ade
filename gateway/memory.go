package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway/action"
	"github.com/whence-db/whence/notes"
)

// dispatchMemory writes or forgets a note, in the transaction that records the call.
func (g *Gateway) dispatchMemory(ctx context.Context, tx pgx.Tx, s *Session, r run, x *Execution) (failed error) {
	fields, err := r.fields(s.Principal, *x)
	if err != nil {
		return err
	}
	if r.preview != "" && r.preview != r.previewDigest(nil, nil).String() {
		return stalePreview()
	}
	if err := g.useApproval(ctx, tx, s.Principal, r, *x, nil, nil); err != nil {
		return err
	}
	used := s.used
	s.Use(authz.Writes, 1)
	s.Use(authz.Rows, 1)
	s.Use(authz.Spend, r.def.CostMicros)
	defer func() {
		if failed != nil {
			s.used = used
		}
	}()
	if r.def.Memory.Operation == action.Forget {
		f, err := g.notes.Forget(ctx, tx, s.Principal, whence.NotesTable, noteKey(fields["id"]))
		if err != nil {
			return err
		}
		x.Token = f.Token
		x.Result, err = json.Marshal(map[string]any{"versions": f.Versions})
		return err
	}
	w, err := g.notes.Remember(ctx, tx, s.Principal, notes.Note{Text: fields["text"], Kind: whence.NoteKind(fields["kind"]),
		Subject: fields["subject"], Key: fields["key"]})
	if err != nil {
		return err
	}
	if err := holdsKeys(ctx, tx, x.ID, []string{string(whence.NotesTable)}, []string{string(w.Key)}); err != nil {
		return err
	}
	x.Token = w.Token
	x.Result, err = json.Marshal(map[string]any{"table": whence.NotesTable, "key": w.Key.Values()})
	after := context.WithoutCancel(ctx)
	s.after = append(s.after, func() {
		if g.wrote != nil {
			g.wrote()
		}
		_ = g.notes.Index.Settle(after, w.Unsettled) // else the next version's writer does
	})
	return err
}

func noteKey(id string) whence.Values { return whence.Values{whence.NoteID: &id} }

// fields resolves what a memory action takes, all of it text.
func (r run) fields(p *authz.Principal, x Execution) (map[string]string, error) {
	q := r.request(p, x)
	out := map[string]string{}
	for name, o := range r.def.Memory.Fields {
		v, given, err := o.JSON(q.Args, q.Credential)
		if err != nil {
			return nil, err
		}
		if !given || string(v) == "null" {
			continue
		}
		var text string
		if json.Unmarshal(v, &text) != nil {
			text = string(v)
		}
		out[name] = text
	}
	return out, nil
}

// forgetAgain takes a note back that an action wrote.
func (g *Gateway) forgetAgain(ctx context.Context, tx pgx.Tx, p *authz.Principal, x Execution) error {
	var was struct {
		Key whence.Values `json:"key"`
	}
	if err := json.Unmarshal(x.Result, &was); err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	_, err := g.notes.Forget(ctx, tx, p, whence.NotesTable, was.Key)
	if errors.Is(err, whence.ErrNotFound) {
		return &whence.Error{Kind: whence.ErrPrecondition, Reason: "UNDO_CONFLICT", Message: "it cannot be undone, and nothing was: the note is not there any more",
			Metadata: map[string]string{"execution": x.ID.String(), "missing": "true"}}
	}
	return err
}
