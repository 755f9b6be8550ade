package api

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/whence-db/whence"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// timestamp leaves out of the message the zero time and what a Timestamp cannot
// say: Postgres has years before 1 and after 9999.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	if ts := timestamppb.New(t); ts.IsValid() {
		return ts
	}
	return nil
}

func fromTimestamp(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	if t.AsTime().IsZero() { // the first moment there is, which is not the same as none
		return time.Time{}.Add(1)
	}
	return t.AsTime()
}

// known leaves a negative duration, which means "not known", out of the message.
func known(d time.Duration) *durationpb.Duration {
	if d < 0 {
		return nil
	}
	return durationpb.New(d)
}

func values(v whence.Values) *structpb.Struct {
	out := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(v))}
	for name, text := range v {
		if text == nil {
			out.Fields[name] = structpb.NewNullValue()
		} else {
			out.Fields[name] = structpb.NewStringValue(*text)
		}
	}
	return out
}

func origin(o whence.Origin) *v1.Origin {
	return &v1.Origin{
		Source: o.Source, Table: string(o.Table), Key: values(o.Key.Values()),
		Version: uint32(o.Version), Lsn: o.LSN.String(),
		CommitTime: timestamp(o.CommitTime), EventTime: timestamp(o.EventTime),
		Columns: o.Columns, Span: &v1.Span{Start: uint32(o.Start), End: uint32(o.End)},
		Digest: o.Digest.String(),
	}
}

func freshness(f whence.Freshness) *v1.Freshness {
	out := &v1.Freshness{
		State:  v1.FreshnessState(v1.FreshnessState_value["FRESHNESS_STATE_"+string(f.State)]),
		Behind: known(f.Behind),
	}
	for _, r := range f.Reasons {
		out.Reasons = append(out.Reasons, v1.FreshnessReason(v1.FreshnessReason_value["FRESHNESS_REASON_"+string(r)]))
	}
	return out
}

func watermarks(ws []whence.Watermark) []*v1.Watermark {
	out := make([]*v1.Watermark, 0, len(ws))
	for _, w := range ws {
		out = append(out, &v1.Watermark{Source: w.Source, Lsn: w.LSN.String(),
			CommitTime: timestamp(w.CommitTime), CaughtUpAt: timestamp(w.CaughtUpAt), Lag: known(w.Lag)})
	}
	return out
}

func table(t whence.Table) *v1.Table {
	out := &v1.Table{
		Name: string(t.Name()), Source: t.Source, Schema: t.Schema,
		Table:       whence.RelationName(t.Schema, t.Relation),
		TextColumns: t.TextColumns, TextTemplate: t.TextTemplate,
		SubjectColumn: t.SubjectColumn, TimeColumn: t.TimeColumn,
		AttributeColumns: t.AttributeColumns, KeyColumns: t.KeyColumns,
		HalfLife: durationpb.New(t.HalfLife), FreshnessTarget: durationpb.New(t.FreshnessTarget),
		OnDelete:   v1.OnDelete(v1.OnDelete_value["ON_DELETE_"+string(t.OnDelete)]),
		CreateTime: timestamp(t.CreateTime),
		Language:   t.Language, FormerLanguages: t.FormerLanguages,
	}
	if t.VersionRetention != 0 {
		out.VersionRetention = durationpb.New(t.VersionRetention)
	}
	return out
}

// count saturates, as the contract says.
func count(n int64) uint32 { return uint32(min(max(n, 0), 1<<32-1)) }
