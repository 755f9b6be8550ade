-- +goose Up
-- index: vectors in the order in which they were made. Runs of them are segments,
-- each with an approximate index of its own that is built at once; what came after
-- the last is compared one by one. Vectors never change, so a segment needs no upkeep.
create sequence whence.vectors_seq;
alter table whence.vectors add column seq bigint;
update whence.vectors set seq = nextval('whence.vectors_seq') where embedding is not null;
alter table whence.vectors add constraint vectors_numbered check ((embedding is null) = (seq is null));
create index vectors_order on whence.vectors (space_id, seq) where seq is not null;
create table whence.segments (
    space_id smallint not null references whence.spaces on delete cascade,
    low      bigint not null,          -- the vectors with low < seq <= high
    high     bigint not null check (low < high),
    primary key (space_id, low)
);

-- The newest rows of a table; those without a time of their own come last, in the
-- order in which they were captured.
create index chunks_recent on whence.chunks (table_id, event_time desc nulls last, id desc);
create index chunks_attributes on whence.chunks using gin (attributes jsonb_path_ops) with (fastupdate = on);

-- What text search learns from about wide bounds: one chunk in 64, by chance.
create index chunks_sample on whence.chunks (table_id, subject, id) where hashint8(id) & 63 = 0;
