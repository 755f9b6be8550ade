package ingest

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
)

const (
	selectChangingLanguages = `select id from whence.tables where former_languages <> '{}' and state <> 'UNREGISTERING' order by id`
	// The language stays what it is while chunks are indexed in it.
	holdLanguage = `select language from whence.tables where id = @id and former_languages <> '{}' and state <> 'UNREGISTERING' for share`
	// One process at a time is enough.
	tryLanguage     = `select pg_try_advisory_xact_lock(hashtext('whence language'), @id)`
	selectLanguage  = `select language from whence.tables where id = @id`
	forgetLanguages = `update whence.tables set former_languages = '{}' where id = @id`

	languageBatch = 200 // records
)

// changeLanguages indexes chunks in the language that their table has by now, in
// small batches beside capture, whoever captures the table's source. What is still to
// be done stands in the chunks, so it may be interrupted anywhere.
func (r *Runner) changeLanguages(ctx context.Context) error {
	var t trouble
	for {
		if err := r.changeLanguagesOnce(ctx); t.is(ctx, err) {
			r.Log.WarnContext(ctx, "cannot index texts in another language, trying again", "error", err)
		}
		if err := sleep(ctx, r.Poll); err != nil {
			return err
		}
	}
}

func (r *Runner) changeLanguagesOnce(ctx context.Context) error {
	rows, err := r.Registry.pool.Query(ctx, selectChangingLanguages)
	if err != nil {
		return fmt.Errorf("look for tables in another language: %w", pg.Translate(err))
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil {
		return fmt.Errorf("look for tables in another language: %w", pg.Translate(err))
	}
	for _, id := range ids {
		if err := r.changeLanguage(ctx, id); err != nil && !errors.Is(err, whence.ErrNotFound) { // else it is gone, or done
			return fmt.Errorf("change the language of a table: %w", err)
		}
	}
	return nil
}

// changeLanguage walks through a table's records once.
func (r *Runner) changeLanguage(ctx context.Context, id int32) error {
	for after, done := "", false; !done; {
		mine, changed, to := false, 0, after
		err := pg.InTx(ctx, r.Registry.pool, func(tx pgx.Tx) (err error) {
			mine, done = false, false
			args := pgx.NamedArgs{"id": id}
			var language string
			if err := tx.QueryRow(ctx, holdLanguage, args).Scan(&language); err != nil {
				return err
			}
			if err := tx.QueryRow(ctx, tryLanguage, args).Scan(&mine); err != nil || !mine {
				return err
			}
			to, changed, done, err = r.Registry.index.ChangeLanguage(ctx, tx, id, language, after, languageBatch)
			return err
		})
		if err != nil || !mine {
			return err
		}
		after = to
		if changed > 0 {
			r.wrote()
		}
	}
	return r.Registry.endLanguages(ctx, id)
}

// endLanguages forgets a table's former languages once no chunk is indexed in one. If
// the table is changed while that is looked up, the update fails and all is done again.
func (r *Registry) endLanguages(ctx context.Context, id int32) error {
	return pg.InTxWith(ctx, r.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		args := pgx.NamedArgs{"id": id}
		var language string
		if err := tx.QueryRow(ctx, selectLanguage, args).Scan(&language); err != nil {
			return err
		}
		other, err := r.index.OtherLanguage(ctx, tx, id, language)
		if err != nil || other {
			return err
		}
		_, err = tx.Exec(ctx, forgetLanguages, args)
		return err
	})
}
