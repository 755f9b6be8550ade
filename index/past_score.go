package index

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

// addTo adds the chunks in the wording's language to what is known of the others:
// how many there are, how many hold each term, and how long they are.
func (p *past) addTo(w *wording) {
	n, length := 0.0, 0.0
	for _, c := range p.chunks {
		if c.asked != w {
			continue
		}
		n++
		length += c.length
		for i, s := range c.saturation {
			if s > 0 {
				w.asked[i].df++
			}
		}
	}
	if n > 0 {
		w.mean = max(1, (w.mean*w.total+length)/(w.total+n))
		w.total += n
	}
}

// best returns the chunks that answer best: as many as of the present, by each leg.
func (p *past) best(ctx context.Context, tx pgx.Tx, r SearchRequest) ([]Candidate, error) {
	p.score()
	p.choose(ByVector, r.Limit, func(c *pastChunk) (float64, bool) {
		if c.dense == nil {
			return 0, false
		}
		return *c.dense, true
	})
	p.choose(ByTerms, r.Limit, func(c *pastChunk) (float64, bool) { return c.lexical, c.lexical > 0 })
	p.choose(ByTime, recentMost, func(c *pastChunk) (float64, bool) {
		if e := p.versions[c.of].EventTime; !e.IsZero() {
			return float64(e.Unix()) + float64(e.Nanosecond())/1e9, true
		}
		return -1e18, true // last, as in the present
	})
	chosen := slices.DeleteFunc(p.chunks, func(c pastChunk) bool { return c.legs == 0 })
	if len(chosen) == 0 {
		return nil, nil
	}
	out := make([]Candidate, len(chosen))
	for i, c := range chosen {
		out[i] = p.candidate(c)
	}
	return out, readTexts(ctx, tx, out, r.Tables)
}

// score is what scoreSQL makes of a text.
func (p *past) score() {
	for i := range p.chunks {
		c := &p.chunks[i]
		for j, s := range c.saturation {
			if s > 0 {
				c.lexical += c.asked.asked[j].weight * s / (s + (1-s)*(0.4+0.6*c.length/c.asked.mean))
			}
		}
	}
}

// choose marks the chunks with the highest values, at most limit.
func (p *past) choose(by Legs, limit int, value func(*pastChunk) (float64, bool)) {
	type valued struct {
		at    int
		value float64
	}
	var all []valued
	for i := range p.chunks {
		if v, ok := value(&p.chunks[i]); ok {
			all = append(all, valued{i, v})
		}
	}
	slices.SortStableFunc(all, func(a, b valued) int { return cmp.Compare(b.value, a.value) })
	for _, v := range all[:min(len(all), limit)] {
		p.chunks[v.at].legs |= by
	}
}

func (p *past) candidate(c pastChunk) Candidate {
	out := p.versions[c.of]
	out.ChunkID = pastID(out.RecordID, out.Version, c.ordinal)
	out.Start, out.End, out.Digest, out.Legs = c.start, c.end, c.digest, c.legs
	out.Dense, out.EmbeddedAt, out.Embedded = c.dense, timeOf(c.embeddedAt), c.embeddedAt != nil
	if c.lexical > 0 {
		out.Lexical = &c.lexical
	}
	return out
}

// pastID names a chunk that has no row any more, by what it is: a negative number,
// always the same.
func pastID(record int64, version, ordinal int32) int64 {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], uint64(record))
	binary.BigEndian.PutUint32(b[8:], uint32(version))
	binary.BigEndian.PutUint32(b[12:], uint32(ordinal))
	sum := sha256.Sum256(b[:])
	return int64(binary.BigEndian.Uint64(sum[:]) | 1<<63)
}

func readTexts(ctx context.Context, tx pgx.Tx, out []Candidate, tables []whence.Table) error {
	records, versions := make([]int64, len(out)), make([]int32, len(out))
	lows, highs := make([]int, len(out)), make([]int, len(out))
	for i, c := range out {
		records[i], versions[i], lows[i], highs[i] = c.RecordID, c.Version, c.Start, c.End
	}
	rows, err := tx.Query(ctx, pastTextsSQL, planned, pgx.NamedArgs{"records": records, "versions": versions, "lows": lows, "highs": highs,
		"subjectColumns": subjectColumns(tables), "attributeColumns": attributeColumns(tables)})
	if err != nil {
		return err
	}
	var i int
	var text string
	var subject *string
	var attributes []byte
	_, err = pgx.ForEachRow(rows, []any{&i, &text, &subject, &attributes}, func() error {
		out[i].Text, out[i].Subject = text, subject
		out[i].Attributes = nil
		return json.Unmarshal(attributes, &out[i].Attributes)
	})
	return err
}
