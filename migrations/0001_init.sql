-- +goose Up
-- One schema holds everything; each table belongs to the package named above it,
-- and only that package's SQL touches it.
create extension if not exists vector;

-- ingest: the registry of sources and tables ---------------------------------
create table whence.sources (
    id          int generated always as identity primary key,
    name        text not null unique,
    dsn_env     text,
    dsn_sealed  bytea,                        -- AES-256-GCM under the server's secret key
    slot        text not null unique,
    publication text not null,
    system_id   text,                         -- of the cluster that the slot was made on
    timeline    int,                          -- of that cluster, as it was captured last
    elsewhere   bool not null default false,  -- the dsn leads to another cluster; resuming takes that one
    paused      bool not null default false,
    deleting    bool not null default false,  -- its slot and publication are being removed
    error       text,                         -- why capture is broken, null while it is not
    retrying    bool not null default false,  -- the error may mend itself
    created_at  timestamptz not null default now(),
    check ((dsn_env is null) <> (dsn_sealed is null))
);

-- One hot row a source, apart from the registry so that an update is cheap.
create table whence.checkpoints (
    source_id    int primary key references whence.sources on delete cascade,
    lsn          pg_lsn not null,       -- everything committed before this is applied
    commit_time  timestamptz,           -- of the last transaction applied, the source's clock
    caught_up_at timestamptz,           -- every commit up to then is applied, this database's clock
    lag_bytes    bigint not null default 0,
    retained_wal bigint not null default 0,  -- bytes of log that the slot keeps on the source
    safe_wal     bigint not null default -1, -- bytes until the source gives the slot up; -1: without bound
    warning      text                        -- what to do before it does
) with (fillfactor = 20);

create table whence.tables (
    id                int generated always as identity primary key,
    source_id         int not null references whence.sources on delete cascade,
    schema_name       text not null,
    relation          text not null,
    key_columns       text[] not null,
    text_columns      text[] not null,
    text_template     text not null,
    subject_column    text not null,
    time_column       text not null,
    attribute_columns text[] not null,
    half_life         interval not null,
    freshness_target  interval not null,
    on_delete         text not null check (on_delete in ('TOMBSTONE', 'PURGE')),
    definition        int not null default 1,
    state             text not null default 'PENDING',
    error             text,
    rows_done         bigint not null default 0,
    rows_total        bigint not null default 0,     -- an estimate until the backfill ends
    snapshot_lsn      pg_lsn,                        -- of the running or last backfill
    truncated_lsn     pg_lsn,                        -- backfilled rows older than this are gone
    shape             text,                          -- how the relation looked when copying began; for cdc
    created_at        timestamptz not null default now(),
    unique (source_id, schema_name, relation)
);

-- index: records, versions, chunks, vectors ------------------------------------
create table whence.records (
    id           bigint generated always as identity primary key,
    table_id     int not null references whence.tables on delete cascade,
    key          text collate "C" not null,
    version      int not null,                 -- the head
    lsn          pg_lsn not null,              -- of the head's commit
    commit_time  timestamptz,
    event_time   timestamptz,
    subject      text,
    attributes   jsonb not null default '{}',
    deleted      bool not null default false,
    missing      text[],                       -- columns still owed by the running backfill
    unique (table_id, key)
);

create table whence.versions (
    record_id   bigint not null references whence.records on delete cascade,
    version     int not null,
    lsn         pg_lsn not null,
    xid         bigint,                        -- null when it came from a backfill
    commit_time timestamptz,
    captured_at timestamptz not null default clock_timestamp(),
    deleted     bool not null default false,
    definition  int not null,
    columns     jsonb not null,
    text        text not null,
    digest      bytea not null,
    primary key (record_id, version)
);

create table whence.chunks (
    id         bigint generated always as identity primary key,
    record_id  bigint not null references whence.records on delete cascade,
    table_id   int not null,
    version    int not null,     -- the newest version it was found in; less than the head's: superseded
    ordinal    int not null,
    span_start int not null,
    span_end   int not null,
    text       text not null,
    digest     bytea not null,
    subject    text,
    event_time timestamptz,
    attributes jsonb not null default '{}',
    tsv        tsvector not null
) with (fillfactor = 80);
create index chunks_record on whence.chunks (record_id);
create index chunks_digest on whence.chunks using hash (digest);
create index chunks_tsv on whence.chunks using gin (tsv) with (fastupdate = off);
create index chunks_table_subject on whence.chunks (table_id, subject);

create table whence.spaces (
    id         smallint generated always as identity primary key,
    model      text not null unique,
    dimensions int not null check (dimensions between 1 and 4000),
    current    bool not null default false,
    created_at timestamptz not null default now()
);
create unique index spaces_current on whence.spaces (current) where current;

-- A vector belongs to a text, not to a row: it is never out of date, so a null
-- embedding is exactly "this text has no vector in this space yet".
create table whence.vectors (
    space_id    smallint not null references whence.spaces on delete cascade,
    digest      bytea not null,
    table_id    int not null,            -- of the chunk that asked for it first; for accounting
    embedding   halfvec,
    attempts    int not null default 0,
    not_before  timestamptz not null default now(),   -- lease or backoff: not to be claimed earlier
    lease       uuid,
    error       text,
    embedded_at timestamptz,
    primary key (space_id, digest)
);
create index vectors_pending on whence.vectors (space_id, not_before) where embedding is null;

create table whence.embedding_calls (
    table_id int primary key references whence.tables on delete cascade,
    made     bigint not null default 0,   -- texts sent to the model
    saved    bigint not null default 0    -- chunks of new versions whose vector was already there or asked for
) with (fillfactor = 20);

-- authz --------------------------------------------------------------------------
create table whence.signing_keys (
    kid            text primary key,
    algorithm      text not null check (algorithm in ('EdDSA', 'ES256')),
    private_sealed bytea not null,
    public_jwk     jsonb not null,
    created_at     timestamptz not null default now(),
    retired_at     timestamptz
);

-- gateway: tasks and their budgets -----------------------------------------------
create table whence.tasks (
    id             uuid primary key,
    root_id        uuid not null,
    parent_id      uuid references whence.tasks,
    path           uuid[] not null,            -- from the root to the task itself
    depth          int not null,
    tenant         text not null,
    user_id        text not null,
    agent          text not null,
    purpose        text not null,
    scope          jsonb not null,
    calls_limit    bigint not null check (calls_limit >= 0),
    calls_settled  bigint not null default 0,
    state          text not null default 'ACTIVE' check (state in ('ACTIVE', 'ENDED', 'REVOKED')),
    deadline       timestamptz not null,
    created_at     timestamptz not null default now(),
    ended_at       timestamptz,
    check (calls_settled <= calls_limit)
) with (fillfactor = 50);
create index tasks_root on whence.tasks (root_id);

-- lineage --------------------------------------------------------------------------
create table whence.answers (
    id              uuid primary key,
    at              timestamptz not null,
    tenant          text not null,
    task_id         uuid,
    agent           text not null,
    user_id         text not null,
    request         jsonb not null,
    watermark       jsonb not null,
    degraded        text                        -- why, null when it was not
);
create index answers_at on whence.answers (at desc, id desc);
create index answers_task on whence.answers (task_id, at desc);

create table whence.answer_hits (
    answer_id  uuid not null references whence.answers,
    rank       int not null,
    record_id  bigint not null,                 -- no foreign key: lineage outlives the record
    table_name text not null,
    key        text collate "C" not null,
    version    int not null,
    subject    text,
    hit        jsonb not null,                  -- as it was shown, whole
    primary key (answer_id, rank)
);
create index answer_hits_key on whence.answer_hits (table_name, key, answer_id);

-- audit ------------------------------------------------------------------------------
create table whence.entries (
    id             bigint generated always as identity primary key,
    at             timestamptz not null default clock_timestamp(),
    tenant         text not null,
    agent          text not null,
    user_id        text not null,
    actors         text[] not null,             -- the agents that acted, the calling one first
    task_id        uuid,
    root_task_id   uuid,
    token_id       text not null,
    call           text not null,
    decision       text not null check (decision in ('ALLOWED', 'REFUSED', 'FAILED')),
    reason         text not null,
    request_digest bytea not null,
    answer_id      uuid,
    calls_charged  bigint not null default 0,
    latency_us     bigint not null,
    detail         jsonb not null default '{}'
);
create index entries_task on whence.entries (task_id, id);
create index entries_at on whence.entries (at);

-- +goose StatementBegin
create function whence.refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '% on %.% is refused: the audit log is append-only', tg_op, tg_table_schema, tg_table_name
        using errcode = 'restrict_violation';
end $$;
-- +goose StatementEnd
create trigger entries_append_only before update or delete on whence.entries
    for each row execute function whence.refuse_change();
create trigger entries_no_truncate before truncate on whence.entries
    for each statement execute function whence.refuse_change();
