package api

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
	"github.com/whence-db/whence/notes"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
	"github.com/whence-db/whence/query"
)

const kindPrefix = "NOTE_KIND_"

// Remember writes a note; the door commits it together with the call's entry.
func (m *memory) Remember(ctx context.Context, req *v1.RememberRequest) (*v1.RememberResponse, error) {
	s := session(ctx)
	p := s.Principal
	n := notes.Note{Text: req.GetText(), Key: req.GetKey(), Subject: req.GetSubject(), EventTime: fromTimestamp(req.GetEventTime()),
		Expires: fromTimestamp(req.GetExpireTime()), DerivedFrom: req.GetDerivedFrom(), Attributes: columnValues(req.GetAttributes())}
	if req.GetKind() != v1.NoteKind_NOTE_KIND_UNSPECIFIED {
		n.Kind = whence.NoteKind(strings.TrimPrefix(req.GetKind().String(), kindPrefix))
	}
	out := &v1.RememberResponse{Budget: budget(s.Budget())}
	var unsettled []int64
	s.Write(gateway.Write{
		Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
			w, err := m.notes.Remember(ctx, tx, p, n)
			if err != nil {
				return nil, err
			}
			r, err := m.query.RecordIn(ctx, tx, p.Scope, query.Ref{Table: whence.NotesTable, Key: w.Key.Values()})
			if err != nil {
				return nil, err
			}
			out.Record, out.Token, unsettled = recordMessage(r), w.Token, w.Unsettled
			return wordless(out)
		},
		Replay: func(ctx context.Context, tx pgx.Tx, reply []byte) error {
			if err := proto.Unmarshal(reply, out); err != nil {
				return err
			}
			return m.reword(ctx, tx, p.Scope, out.GetRecord())
		},
		After: func(ctx context.Context) {
			m.wrote()
			_ = m.notes.Index.Settle(ctx, unsettled) // else the next version's writer does
		},
	})
	return out, nil
}

// Forget removes a note; the door commits that together with the call's entry.
func (m *memory) Forget(ctx context.Context, req *v1.ForgetRequest) (*v1.ForgetResponse, error) {
	s := session(ctx)
	p := s.Principal
	row := ref(req.GetTable(), req.GetKey())
	if req.GetReason() != "" {
		s.Note("reason", req.GetReason())
	}
	out := &v1.ForgetResponse{Budget: budget(s.Budget())}
	s.Write(gateway.Write{
		Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
			f, err := m.notes.Forget(ctx, tx, p, row.Table, row.Key)
			if err != nil {
				return nil, err
			}
			out.Versions, out.Chunks, out.Token = count(f.Versions), count(f.Chunks), f.Token
			return proto.Marshal(out)
		},
		Replay: func(_ context.Context, _ pgx.Tx, reply []byte) error { return proto.Unmarshal(reply, out) },
	})
	return out, nil
}

// wordless is a reply as it is kept: what was written stands in the note's version,
// and goes with it.
func wordless(r *v1.RememberResponse) ([]byte, error) {
	kept := proto.CloneOf(r)
	kept.Record.Text, kept.Record.Columns, kept.Record.Attributes, kept.Record.Subject, kept.Record.Note = "", nil, nil, nil, nil
	return proto.MarshalOptions{Deterministic: true}.Marshal(kept)
}

func columnValues(s *structpb.Struct) whence.Values {
	out := whence.Values{}
	for name, v := range s.GetFields() {
		out[name] = nil
		if text, ok := v.GetKind().(*structpb.Value_StringValue); ok {
			out[name] = &text.StringValue
		}
	}
	return out
}

func note(n *query.Note) *v1.Note {
	if n == nil {
		return nil
	}
	return &v1.Note{Kind: v1.NoteKind(v1.NoteKind_value[kindPrefix+string(n.Kind)]), Key: n.Key, Task: n.Task, Agent: n.Agent, User: n.User,
		ExpireTime: timestamp(n.Expires), DerivedFrom: n.DerivedFrom}
}

// reword puts the words of a note's version back into a reply that was kept.
func (m *memory) reword(ctx context.Context, tx pgx.Tx, scope authz.Scope, r *v1.Record) error {
	row := ref(r.GetTable(), r.GetKey())
	key, err := canonical(row)
	if err != nil {
		return err
	}
	was, err := m.query.NoteVersion(ctx, tx, scope, key, int32(r.GetVersion()))
	if err != nil {
		return err
	}
	if was.Note == nil || was.LSN.String() != r.GetLsn() {
		r.State = v1.RecordState_RECORD_STATE_DELETED // forgotten since
		return nil
	}
	r.Text, r.Columns, r.Attributes, r.Subject, r.Note = was.Text, values(was.Columns), values(was.Attributes), was.Subject, note(was.Note)
	return nil
}
