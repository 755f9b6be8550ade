package index

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

const (
	// What a writer holds is left for the next walk, so that neither waits for the
	// other in a circle.
	changeLanguage = `
with next as materialized (
    select id, key from whence.records where table_id = @table and key > @after order by key limit @limit
), free as materialized (
    select r.id from whence.records r join next n on n.id = r.id for no key update of r skip locked
), changed as (
    update whence.chunks c set language = @language from free f where c.record_id = f.id and c.language <> @language
    returning 1
)
select count(*), coalesce(max(key), ''), (select count(*) from changed) from next`

	selectOtherLanguage = `select exists (select from whence.chunks where table_id = @table and language <> @language)`
)

// ChangeLanguage indexes the chunks of a table's next records, by key, in a language:
// at most limit records, those after a key. Texts and vectors stay. It returns the
// key to go on from, and done when there is no record beyond.
func (x *Index) ChangeLanguage(ctx context.Context, tx pgx.Tx, table int32, language, after string, limit int) (to string, changed int, done bool, err error) {
	if _, err := tx.Exec(ctx, planAnew); err != nil {
		return "", 0, false, fmt.Errorf("prepare: %w", err)
	}
	var looked int
	args := pgx.NamedArgs{"table": table, "language": language, "after": after, "limit": limit}
	if err := tx.QueryRow(ctx, changeLanguage, args).Scan(&looked, &to, &changed); err != nil {
		return "", 0, false, fmt.Errorf("change the language of chunks: %w", err)
	}
	return to, changed, looked < limit, nil
}

// OtherLanguage tells whether a chunk of a table is indexed in another language.
func (x *Index) OtherLanguage(ctx context.Context, tx pgx.Tx, table int32, language string) (other bool, err error) {
	err = tx.QueryRow(ctx, selectOtherLanguage, pgx.NamedArgs{"table": table, "language": language}).Scan(&other)
	if err != nil {
		return false, fmt.Errorf("look for chunks in another language: %w", err)
	}
	return other, nil
}
