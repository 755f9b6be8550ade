-- +goose Up
-- ingest: rows that could not be taken over whole, now; written and removed in
-- the transaction that captures the row.
create table whence.set_aside (
    table_id   int not null references whence.tables on delete cascade,
    key_digest bytea not null,                -- SHA-256 of the key, which may be too long to store
    key        text collate "C" not null,     -- the key, or its beginning
    lsn        pg_lsn not null,               -- of the state that was set aside
    reason     text not null,                 -- what is missing of the row and what to do
    at         timestamptz not null default clock_timestamp(),
    primary key (table_id, key_digest)
);
create index set_aside_newest on whence.set_aside (table_id, at desc);

-- ingest: how many changes were applied, and when that was what before, so that
-- a rate can be told from this row alone.
alter table whence.checkpoints
    add applied       bigint not null default 0,   -- changes, since the checkpoint was made
    add mark_applied  bigint not null default 0,   -- the same at mark_at
    add mark_at       timestamptz not null default clock_timestamp(),
    add prior_applied bigint not null default 0,   -- the same at prior_at, the mark before
    add prior_at      timestamptz not null default clock_timestamp();
