-- +goose Up
-- ingest: when the figures were told, so that old ones are not taken for current.
alter table whence.checkpoints
    add lag_at    timestamptz, -- of lag_bytes
    add awaits    text not null default '', -- backends whose transactions the copying of tables waits for
    add health_at timestamptz; -- of retained_wal, safe_wal, warning and awaits
