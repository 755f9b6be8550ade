package ingest

import (
	"context"
	"fmt"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
)

// reader reads rows of a source; it is made anew when the connection string is
// another.
type reader struct {
	dsn string
	*cdc.Reader
}

// Close ends the connections that Live and Writer keep.
func (r *Registry) Close() {
	defer r.closing.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, reader := range r.readers {
		reader.Close()
		delete(r.readers, id)
	}
	for id, writer := range r.writers {
		writer.Close()
		delete(r.writers, id)
	}
}

// reader returns what reads rows of a source.
func (r *Registry) reader(s Source) (*cdc.Reader, error) {
	dsn, err := r.dsn(s.Name, s.secrets)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.readers[s.ID]
	if old != nil && old.dsn == dsn {
		return old.Reader, nil
	}
	fresh, err := cdc.NewReader(dsn)
	if err != nil {
		return nil, unreadable(s.Name)
	}
	if old != nil {
		r.closing.Go(old.Close) // waits for those who still read
	}
	r.readers[s.ID] = &reader{dsn, fresh}
	return fresh, nil
}

// Live reads rows of one source's tables from the source, in one round trip. A row
// that is not there any more is nil. A source that cannot be read, or is another cluster
// than the one that is captured, is SOURCE_UNREACHABLE, without what its connection string holds.
func (r *Registry) Live(ctx context.Context, source string, wanted []whence.RowsOf) ([][]*whence.LiveRow, error) {
	s, err := r.GetSource(ctx, source)
	if err != nil {
		return nil, err
	}
	from, err := r.reader(s)
	if err != nil {
		return nil, err
	}
	asked := make([]cdc.Asked, len(wanted))
	for i, w := range wanted {
		asked[i].Table = w.Table
		for _, k := range w.Keys {
			asked[i].Keys = append(asked[i].Keys, k.Values())
		}
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	rows, err := from.Rows(ctx, cdc.Cluster{System: s.SystemID, Timeline: s.timeline}, asked)
	if err != nil {
		r.log.WarnContext(ctx, "cannot read rows of a source to compare them", "source", source, "error", err)
		return nil, unreadable(source)
	}
	out := make([][]*whence.LiveRow, len(wanted))
	for i, w := range wanted {
		t := capturing(w.Table)
		for _, v := range rows[i] {
			out[i] = append(out[i], live(t, v))
		}
	}
	return out, nil
}

func live(t *capturedTable, v whence.Values) *whence.LiveRow {
	if v == nil {
		return nil
	}
	clean(v)
	row := newRow(t, v, moment{})
	l := &whence.LiveRow{State: row.mark[:], Text: row.text, Subject: row.subject, Attributes: whence.Values{}}
	for _, name := range t.AttributeColumns {
		l.Attributes[name] = row.values[name]
	}
	return l
}

func unreadable(source string) *whence.Error {
	return &whence.Error{Kind: whence.ErrUnavailable, Reason: "SOURCE_UNREACHABLE", RetryAfter: 5 * time.Second,
		Metadata: map[string]string{"source": source},
		Message:  fmt.Sprintf("the rows of the source %q cannot be read at the moment; try again, or ask without consistency.verify", source)}
}
