package api

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/ingest"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
	"github.com/whence-db/whence/proto/gen/whence/v1/whencev1connect"
)

// A watched table is looked at every watchInterval, or as much less often as
// keeps the counting below a fifth of the time.
const watchInterval = 250 * time.Millisecond

type sources struct {
	whencev1connect.UnimplementedSourceServiceHandler
	registry *ingest.Registry
}

// CreateSource connects a database.
func (s *sources) CreateSource(ctx context.Context, req *v1.CreateSourceRequest) (*v1.CreateSourceResponse, error) {
	src, err := s.registry.CreateSource(ctx, req.GetName(), req.GetDsn(), req.GetDsnEnv())
	if err != nil {
		return nil, err
	}
	return &v1.CreateSourceResponse{Source: sourceMessage(src)}, nil
}

// ListSources lists every source.
func (s *sources) ListSources(ctx context.Context, _ *v1.ListSourcesRequest) (*v1.ListSourcesResponse, error) {
	all, err := s.registry.ListSources(ctx)
	if err != nil {
		return nil, err
	}
	out := &v1.ListSourcesResponse{}
	for _, src := range all {
		out.Sources = append(out.Sources, sourceMessage(src))
	}
	return out, nil
}

// GetSource returns one source.
func (s *sources) GetSource(ctx context.Context, req *v1.GetSourceRequest) (*v1.GetSourceResponse, error) {
	src, err := s.registry.GetSource(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &v1.GetSourceResponse{Source: sourceMessage(src)}, nil
}

// PauseSource stops capture.
func (s *sources) PauseSource(ctx context.Context, req *v1.PauseSourceRequest) (*v1.PauseSourceResponse, error) {
	src, err := s.registry.PauseSource(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &v1.PauseSourceResponse{Source: sourceMessage(src)}, nil
}

// ResumeSource goes on with capture.
func (s *sources) ResumeSource(ctx context.Context, req *v1.ResumeSourceRequest) (*v1.ResumeSourceResponse, error) {
	src, err := s.registry.ResumeSource(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &v1.ResumeSourceResponse{Source: sourceMessage(src)}, nil
}

// DeleteSource forgets a source.
func (s *sources) DeleteSource(ctx context.Context, req *v1.DeleteSourceRequest) (*v1.DeleteSourceResponse, error) {
	left, err := s.registry.DeleteSource(ctx, req.GetName(), req.GetForce())
	if err != nil {
		return nil, err
	}
	return &v1.DeleteSourceResponse{Left: left}, nil
}

// definition is what a request says of a table, to try it or to register it.
type definition interface {
	GetSource() string
	GetTable() string
	GetTextColumns() []string
	GetTextTemplate() string
	GetSubjectColumn() string
	GetTimeColumn() string
	GetAttributeColumns() []string
	GetHalfLife() *durationpb.Duration
	GetFreshnessTarget() *durationpb.Duration
	GetOnDelete() v1.OnDelete
	GetLanguage() string
}

func tableSpec(d definition) ingest.TableSpec {
	spec := ingest.TableSpec{
		Source: d.GetSource(), Table: d.GetTable(), TextColumns: d.GetTextColumns(), TextTemplate: d.GetTextTemplate(),
		SubjectColumn: d.GetSubjectColumn(), TimeColumn: d.GetTimeColumn(), AttributeColumns: d.GetAttributeColumns(),
		HalfLife: d.GetHalfLife().AsDuration(), FreshnessTarget: d.GetFreshnessTarget().AsDuration(), Language: d.GetLanguage(),
	}
	if on := d.GetOnDelete(); on != v1.OnDelete_ON_DELETE_UNSPECIFIED {
		spec.OnDelete = whence.OnDelete(strings.TrimPrefix(on.String(), "ON_DELETE_"))
	}
	return spec
}

// PreviewTable shows what registering a table would give.
func (s *sources) PreviewTable(ctx context.Context, req *v1.PreviewTableRequest) (*v1.PreviewTableResponse, error) {
	rows := 5
	if req.Sample != nil {
		rows = int(req.GetSample())
	}
	p, err := s.registry.PreviewTable(ctx, tableSpec(req), rows)
	if err != nil {
		return nil, err
	}
	out := &v1.PreviewTableResponse{Table: table(p.Table), RowsTotal: count(p.RowsTotal), Problems: p.Problems}
	for _, r := range p.Rows {
		row := &v1.RenderedRow{Key: values(r.Key.Values()), Text: r.Text, Subject: r.Subject, EventTime: timestamp(r.EventTime),
			Attributes: values(r.Attributes), Tokens: count(int64(r.Tokens))}
		for _, c := range r.Chunks {
			row.Chunks = append(row.Chunks, &v1.Span{Start: count(int64(c.Start)), End: count(int64(c.End))})
		}
		out.Rows = append(out.Rows, row)
	}
	if e := p.Estimate; e != nil {
		out.Estimate = &v1.TableEstimate{SampledRows: count(int64(e.Sampled)), Chunks: e.Chunks, Calls: e.Calls, Tokens: e.Tokens, Bytes: e.Bytes}
	}
	return out, nil
}

// RegisterTable starts to remember a table.
func (s *sources) RegisterTable(ctx context.Context, req *v1.RegisterTableRequest) (*v1.RegisterTableResponse, error) {
	spec := tableSpec(req)
	spec.VersionRetention = req.GetVersionRetention().AsDuration()
	info, err := s.registry.RegisterTable(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &v1.RegisterTableResponse{Table: table(info.Table), Status: status(info.Status)}, nil
}

// ListTables lists registered tables.
func (s *sources) ListTables(ctx context.Context, req *v1.ListTablesRequest) (*v1.ListTablesResponse, error) {
	all, err := s.registry.ListTables(ctx, req.GetSource())
	if err != nil {
		return nil, err
	}
	out := &v1.ListTablesResponse{}
	for _, info := range all {
		out.Tables = append(out.Tables, &v1.TableWithStatus{Table: table(info.Table), Status: status(info.Status)})
	}
	return out, nil
}

// GetTable returns one table with its status.
func (s *sources) GetTable(ctx context.Context, req *v1.GetTableRequest) (*v1.GetTableResponse, error) {
	info, err := s.registry.GetTable(ctx, whence.TableName(req.GetName()))
	if err != nil {
		return nil, err
	}
	out := &v1.GetTableResponse{Table: table(info.Table), Status: status(info.Status)}
	if req.GetSetAside() > 0 {
		aside, err := s.registry.ListAside(ctx, info.Table, int(req.GetSetAside()))
		if err != nil {
			return nil, err
		}
		for _, a := range aside {
			out.SetAside = append(out.SetAside, &v1.SetAsideRow{Key: a.Key, Reason: a.Reason, Time: timestamp(a.At)})
		}
	}
	return out, nil
}

// WatchTable sends a table's status whenever it has changed.
func (s *sources) WatchTable(ctx context.Context, req *v1.WatchTableRequest, stream whencev1connect.SourceServiceWatchTableServerStream) error {
	var last *v1.WatchTableResponse
	for {
		began := time.Now()
		info, err := s.registry.GetTable(ctx, whence.TableName(req.GetName()))
		if err != nil {
			return err
		}
		now := &v1.WatchTableResponse{Table: table(info.Table), Status: status(info.Status)}
		if !proto.Equal(last, now) {
			if err := stream.Send(now); err != nil {
				return err
			}
			last = now
		}
		pause := time.NewTimer(max(watchInterval, 4*time.Since(began)))
		select {
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		case <-pause.C:
		}
	}
}

// ReembedTable makes a table's vectors anew.
func (s *sources) ReembedTable(ctx context.Context, req *v1.ReembedTableRequest) (*v1.ReembedTableResponse, error) {
	info, err := s.registry.ReembedTable(ctx, whence.TableName(req.GetName()))
	if err != nil {
		return nil, err
	}
	return &v1.ReembedTableResponse{Table: table(info.Table), Status: status(info.Status)}, nil
}

// UnregisterTable forgets a table.
func (s *sources) UnregisterTable(ctx context.Context, req *v1.UnregisterTableRequest) (*v1.UnregisterTableResponse, error) {
	if err := s.registry.UnregisterTable(ctx, whence.TableName(req.GetName())); err != nil {
		return nil, err
	}
	return &v1.UnregisterTableResponse{}, nil
}

func sourceMessage(s ingest.Source) *v1.Source {
	bytes := func(n int64) *int64 {
		if n < 0 {
			return nil
		}
		return &n
	}
	var rate *float64
	if s.ApplyRate >= 0 {
		rate = &s.ApplyRate
	}
	return &v1.Source{
		Name: s.Name, State: v1.SourceState(v1.SourceState_value["SOURCE_STATE_"+string(s.State)]), Error: s.Error,
		Slot: s.Slot, Publication: s.Publication, SystemId: s.SystemID, Lsn: s.LSN.String(),
		CommitTime: timestamp(s.CommitTime), CaughtUpAt: timestamp(s.CaughtUpAt), Lag: known(s.Lag),
		LagBytes: bytes(s.LagBytes), Tables: uint32(s.Tables), CreateTime: timestamp(s.CreateTime),
		RetainedWalBytes: bytes(s.RetainedWAL), SafeWalBytes: bytes(s.SafeWAL), Warning: s.Warning, ApplyRate: rate,
	}
}

func status(s ingest.TableStatus) *v1.TableStatus {
	return &v1.TableStatus{
		State:    v1.TableState(v1.TableState_value["TABLE_STATE_"+string(s.State)]),
		Error:    s.Error,
		WaitsFor: s.WaitsFor,
		Backfill: backfill(s),
		Records:  count(s.Records), Chunks: count(s.Chunks), Pending: count(s.Pending), Reembedding: count(s.Reembedding),
		Calls: &v1.EmbeddingCalls{Made: count(s.Made), Saved: count(s.Saved), Tokens: s.Tokens},
		SetAside: &v1.SetAside{Rows: count(s.Aside.Rows), Key: s.Aside.Newest.Key, Reason: s.Aside.Newest.Reason,
			Time: timestamp(s.Aside.Newest.At)},
	}
}

func backfill(s ingest.TableStatus) *v1.Backfill {
	b := &v1.Backfill{RowsDone: count(s.RowsDone), RowsTotal: count(s.RowsTotal), RowsPerSecond: s.RowRate}
	if s.RowRate > 0 {
		b.Remaining = durationpb.New(time.Duration(float64(max(0, s.RowsTotal-s.RowsDone)) / s.RowRate * float64(time.Second)).Round(time.Second))
	}
	return b
}
