package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	whencev1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// backfillResult compares bringing a table into memory with copying its columns.
type backfillResult struct {
	Rows     int    `json:"rows"`
	Rounds   int    `json:"rounds"`
	Live     figure `json:"live_rows_per_second"`     // until the table was LIVE
	Embedded figure `json:"embedded_rows_per_second"` // until every text had its vector; zero without an embedder
	Copy     figure `json:"copy_rows_per_second"`
	// How many times as long as COPY it took.
	LiveRatio     figure `json:"live_ratio"`
	EmbeddedRatio figure `json:"embedded_ratio"`
}

// tableName is the source table of a round.
func tableName(round int) string { return fmt.Sprintf("articles_%d", round+1) }

func registeredName(round int) whence.TableName {
	return whence.NewTableName("app", "public", tableName(round))
}

// site is a running server with what is needed to bring a table into memory.
type site struct {
	source, memory string // connection strings
	embeds         bool
	register       func(ctx context.Context, round int) error
	unregister     func(ctx context.Context, round int) error
}

func (s *server) site() site {
	return site{source: s.env["WHENCE_SOURCE_URL"], memory: s.env["WHENCE_DATABASE_URL"], embeds: true,
		register: func(ctx context.Context, round int) error {
			_, err := s.sources.RegisterTable(ctx, &whencev1.RegisterTableRequest{Source: "app", Table: "public." + tableName(round),
				TextColumns: []string{"title", "body"}, SubjectColumn: "author", TimeColumn: "published_at", AttributeColumns: []string{"section"}})
			return err
		},
		unregister: func(ctx context.Context, round int) error {
			_, err := s.sources.UnregisterTable(ctx, &whencev1.UnregisterTableRequest{Name: string(registeredName(round))})
			return err
		}}
}

// measureBackfill runs rounds of both, each first every other time. Every round
// has a table with texts of its own, for a text that was embedded before costs
// nothing. Only the last round's table stays registered. A slow machine gets fewer
// rounds: none begins once backfillBudget is spent.
func measureBackfill(ctx context.Context, s site, rounds int, write func(round int) []article) (backfillResult, error) {
	source, err := pgx.Connect(ctx, s.source)
	if err != nil {
		return backfillResult{}, err
	}
	defer source.Close(ctx)
	memory, err := pgx.Connect(ctx, s.memory)
	if err != nil {
		return backfillResult{}, err
	}
	defer memory.Close(ctx)

	var live, embedded, copied []float64
	var rows int
	begun := time.Now()
	for round := range rounds {
		articles := write(round)
		rows = len(articles)
		if err := fillTable(ctx, source, tableName(round), articles); err != nil {
			return backfillResult{}, fmt.Errorf("fill a source table: %w", err)
		}
		for turn := range 2 {
			if (round+turn)%2 == 1 {
				t, err := copyTable(ctx, source, memory, tableName(round))
				if err != nil {
					return backfillResult{}, fmt.Errorf("copy: %w", err)
				}
				copied = append(copied, t.Seconds())
				continue
			}
			l, e, err := register(ctx, s, memory, round, rows)
			if err != nil {
				return backfillResult{}, fmt.Errorf("backfill: %w", err)
			}
			live, embedded = append(live, l.Seconds()), append(embedded, e.Seconds())
		}
		if round == rounds-1 || time.Since(begun) > backfillBudget {
			break
		}
		if err := s.unregister(ctx, round); err != nil {
			return backfillResult{}, err
		}
	}
	if _, err := memory.Exec(ctx, "vacuum analyze"); err != nil {
		return backfillResult{}, err
	}
	r := backfillResult{Rows: rows, Rounds: len(live), Live: rate(rows, live), Copy: rate(rows, copied), LiveRatio: pairwise(live, copied)}
	if s.embeds {
		r.Embedded, r.EmbeddedRatio = rate(rows, embedded), pairwise(embedded, copied)
	}
	return r, nil
}

func rate(rows int, seconds []float64) figure {
	rates := make([]float64, len(seconds))
	for i, s := range seconds {
		rates[i] = float64(rows) / s
	}
	return figureOf(rates)
}

const (
	backfillBudget = 30 * time.Second
	backfillLimit  = 10 * time.Minute
	look           = 5 * time.Millisecond
)

const stateSQL = `
select t.state, t.state = 'LIVE' and not exists (
    select from whence.vectors v join whence.spaces s on s.id = v.space_id and s.current where v.embedding is null)
from whence.tables t where t.relation = @relation`

const countSQL = `
select (select count(*) from whence.records r where r.table_id = t.id and not r.deleted),
       (select count(*) from whence.chunks c where c.table_id = t.id
           and not exists (select from whence.vectors v where v.digest = c.digest and (v.embedding is not null or not @embeds)))
from whence.tables t where t.relation = @relation`

// register registers a table and returns how long it took until it was LIVE, and,
// where there is an embedder, until every text had its vector. It looks into the
// memory database, because a call of the API costs the server more than that.
func register(ctx context.Context, s site, memory *pgx.Conn, round, rows int) (live, embedded time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, backfillLimit)
	defer cancel()
	args := pgx.NamedArgs{"relation": tableName(round), "embeds": s.embeds}
	start := time.Now()
	if err := s.register(ctx, round); err != nil {
		return 0, 0, err
	}
	for live == 0 || s.embeds && embedded == 0 {
		var state string
		var whole bool
		if err := memory.QueryRow(ctx, stateSQL, args).Scan(&state, &whole); err != nil {
			return 0, 0, err
		}
		switch {
		case state == string(whence.TableBroken) || state == string(whence.TableSchemaChanged):
			return 0, 0, fmt.Errorf("the table is %s", state)
		case state == string(whence.TableLive) && live == 0:
			live = time.Since(start)
		}
		if whole {
			embedded = time.Since(start)
		}
		if err := pause(ctx, look); err != nil {
			return 0, 0, err
		}
	}
	var records, owing int
	if err := memory.QueryRow(ctx, countSQL, args).Scan(&records, &owing); err != nil {
		return 0, 0, err
	}
	if records != rows || owing != 0 {
		return 0, 0, fmt.Errorf("%d rows became %d records, of which %d chunks have no vector", rows, records, owing)
	}
	return live, embedded, nil
}

// copyTable copies the registered columns from one database to the other, in
// COPY's binary format through this process, into a table without an index, and returns how long it took.
func copyTable(ctx context.Context, source, memory *pgx.Conn, name string) (time.Duration, error) {
	scratch := pgx.Identifier{"copied_" + name}.Sanitize()
	_, err := memory.Exec(ctx, "create table "+scratch+
		" (id bigint not null, title text not null, body text not null, author text not null, section text not null, published_at timestamptz not null)")
	if err != nil {
		return 0, err
	}
	start := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	out, in := io.Pipe()
	g.Go(func() error {
		_, err := source.PgConn().CopyTo(gctx, in, "copy (select id, title, body, author, section, published_at from "+
			pgx.Identifier{name}.Sanitize()+") to stdout (format binary)")
		return errors.Join(err, in.CloseWithError(err))
	})
	g.Go(func() error {
		_, err := memory.PgConn().CopyFrom(gctx, out, "copy "+scratch+" from stdin (format binary)")
		return errors.Join(err, out.CloseWithError(err))
	})
	if err := g.Wait(); err != nil {
		return 0, err
	}
	took := time.Since(start)
	_, err = memory.Exec(ctx, "drop table "+scratch)
	return took, err
}
