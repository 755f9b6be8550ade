-- +goose Up
-- index: several spaces are kept full at a time; questions are asked in the current
-- one. One that is retired is on its way out, and goes when its vectors have.
alter table whence.spaces drop constraint spaces_model_key;
alter table whence.spaces add constraint spaces_model_key unique (model, dimensions);
alter table whence.spaces add column retired_at timestamptz;
alter table whence.spaces add constraint spaces_current_lives check (not current or retired_at is null);

-- Tables whose vectors are to be made anew: those that are older than made_before,
-- in the order of their chunks, of which those up to last_chunk are done, or skipped
-- until all others are.
create table whence.reembeds (
    space_id    smallint not null references whence.spaces on delete cascade,
    table_id    int not null references whence.tables on delete cascade,
    made_before timestamptz not null,
    last_chunk  bigint not null default 0,
    skipped     boolean not null default false,
    attempts    int not null default 0,
    not_before  timestamptz not null default now(),   -- lease or backoff: not to be claimed earlier
    lease       uuid,
    primary key (space_id, table_id)
);
