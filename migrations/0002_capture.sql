-- +goose Up
-- What a change is compared with stands in the record, so that capture need not
-- read versions: the transaction of the head, and a digest of its columns and
-- definition, opaque here and null where it is to be worked out again.
alter table whence.records add column xid bigint, add column state bytea;

-- Capture takes ids a block at a time: it knows them before it writes.
alter table whence.records alter column id set increment by 1000;

-- The database derives a chunk's terms, also for COPY. New entries of the text
-- index are gathered and merged many at a time, which costs a fifth of merging
-- each; a search also looks through what is gathered.
alter table whence.chunks drop column tsv;
alter table whence.chunks add column tsv tsvector not null generated always as (to_tsvector('english', text)) stored;
create index chunks_tsv on whence.chunks using gin (tsv) with (fastupdate = on, gin_pending_list_limit = 4096);

create index records_missing on whence.records (table_id) where missing is not null;

-- ingest: of a running backfill, what of the source's tables has been copied; a
-- part is a table or partition in the file that it had.
create table whence.backfills (
    table_id int not null references whence.tables on delete cascade,
    part     oid not null,
    file     oid not null,
    blocks   int8multirange not null,
    rows     bigint not null,
    primary key (table_id, part, file)
) with (fillfactor = 20);
-- snapshot_lsn is of the snapshot that copying began from, copy_lsn of the one it
-- goes on from.
alter table whence.tables add column copy_lsn pg_lsn, add column copy_began timestamptz, add column copy_rows bigint not null default 0;
