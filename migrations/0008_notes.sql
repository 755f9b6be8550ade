-- +goose Up
-- index: a note ends by itself; rows of tables have no end.
alter table whence.records add column expires_at timestamptz;
alter table whence.chunks add column expires_at timestamptz;
create index records_expiring on whence.records (expires_at) where expires_at is not null;

-- index: the versions of records that a version of a note was concluded from.
create table whence.evidence (
    record_id     bigint not null,            -- of the note
    version       int not null,
    rests_on      bigint not null,            -- a record, which may be gone
    rests_version int not null,               -- as it was shown to the note's author
    primary key (record_id, version, rests_on)
);
create index evidence_of on whence.evidence (rests_on);

-- lineage: records whose words were taken out of the answers a moment ago; a call
-- that was under way then may have stored them since.
create table whence.erasures (
    record_id  bigint not null,
    table_name text not null,
    key        text collate "C" not null,
    below      int not null,             -- versions before this one
    at         timestamptz not null default now(),
    primary key (record_id, below)
);

-- gateway: what was answered to a write, so that the same key writes once. A reply
-- holds no words of what was written.
create table whence.idempotency (
    tenant      text not null,
    user_id     text not null,
    task        uuid not null,           -- whose scope the write was allowed by
    call        text not null,
    key         text collate "C" not null,
    fingerprint bytea not null,          -- SHA-256 of the canonical request
    reply       bytea not null,
    expires_at  timestamptz not null,    -- not before the task's deadline
    primary key (tenant, user_id, task, call, key)
);
create index idempotency_expiring on whence.idempotency (expires_at);

-- No statistics over what may have to be erased: they would keep samples of it.
alter table whence.versions alter column columns set statistics 0, alter column text set statistics 0;
alter table whence.chunks alter column text set statistics 0;
alter table whence.vectors alter column embedding set statistics 0;
alter table whence.answers alter column request set statistics 0;
alter table whence.answer_hits alter column hit set statistics 0;
