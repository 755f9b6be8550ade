package main

import (
	"context"
	"fmt"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// progress shows how far copying and embedding are: two bars on a terminal, a
// line a second elsewhere.
type progress struct {
	screen      *screen
	began, told time.Time
	bars        *mpb.Progress
	rows, texts *mpb.Bar
}

func newProgress(ctx context.Context, s *screen) *progress {
	p := &progress{screen: s, began: time.Now()}
	if !s.terminal {
		return p
	}
	p.bars = mpb.NewWithContext(ctx, mpb.WithOutput(s.out), mpb.WithWidth(40))
	bar := func(name string) *mpb.Bar {
		return p.bars.AddBar(0,
			mpb.PrependDecorators(decor.Name("   "+name, decor.WCSyncSpaceR), decor.CountersNoUnit("%d / %d", decor.WCSyncSpace)),
			mpb.AppendDecorators(decor.Percentage(decor.WCSyncSpace), decor.AverageSpeed(0, " %.0f/s")))
	}
	p.rows, p.texts = bar("rows copied"), bar("texts embedded")
	return p
}

func (p *progress) show(st *v1.TableStatus) {
	b := st.GetBackfill()
	embedded := int64(st.GetChunks()) - int64(st.GetPending())
	if p.bars != nil {
		p.rows.SetTotal(int64(max(b.GetRowsTotal(), b.GetRowsDone(), 1)), false)
		p.rows.SetCurrent(int64(b.GetRowsDone()))
		p.texts.SetTotal(int64(max(st.GetChunks(), b.GetRowsTotal(), 1)), false)
		p.texts.SetCurrent(embedded)
		return
	}
	if time.Since(p.told) < time.Second {
		return
	}
	p.told = time.Now()
	p.screen.line("   %6s  %-11s  rows copied %7s of %s   texts embedded %7s", fmt.Sprintf("%.1f s", time.Since(p.began).Seconds()),
		plain(st.GetState()), number(b.GetRowsDone()), number(max(b.GetRowsTotal(), b.GetRowsDone())), number(embedded))
}

// done leaves the bars as they are, complete ones full. Again, it does nothing.
func (p *progress) done(complete bool) {
	if p.bars == nil {
		return
	}
	for _, b := range []*mpb.Bar{p.rows, p.texts} {
		if complete {
			b.SetTotal(-1, true)
		} else {
			b.Abort(false)
		}
	}
	p.bars.Wait()
	p.bars = nil
}
