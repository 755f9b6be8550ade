-- +goose Up
-- gateway: runs of actions, and what operators decide on them ----------------------
create table whence.executions (
    id             uuid primary key,
    tenant         text not null,
    user_id        text not null,
    root_id        uuid not null,
    task_id        uuid not null references whence.tasks,
    agent          text not null,
    actors         text[] not null,
    call           text not null,
    key            text collate "C" not null,    -- the idempotency key
    fingerprint    bytea not null,               -- SHA-256 of the canonical request
    action         text not null,
    action_version int not null,
    tier           text not null,
    arguments      json not null,
    digest         bytea not null,               -- of action, version and arguments
    state          text not null check (state in
        ('AWAITING_APPROVAL', 'RUNNING', 'SUCCEEDED', 'FAILED', 'UNCERTAIN', 'DENIED', 'UNDOING', 'UNDONE')),
    holder_id      uuid not null,                -- who runs or undoes it
    attempt        int not null default 1,       -- grows whenever somebody takes it up
    -- The transaction on the source that runs it or, in UNDOING, undoes it, stored
    -- before that commits; of a request to an upstream, when it was sent.
    source         text,
    xid            text,
    system_id      text,
    timeline       int,
    sent_at        timestamptz,
    effects        jsonb,                        -- whole rows before and after: what undo restores
    shown          jsonb not null default '[]',  -- of them, what the action shows
    result         json,                        -- as it was told, byte for byte
    token          text not null default '',     -- for consistency.atLeast
    failure        jsonb,
    approval_id    uuid,
    undo_until     timestamptz,
    created_at     timestamptz not null,
    ended_at       timestamptz,
    unique (tenant, user_id, root_id, call, key)
);
create index executions_task on whence.executions (task_id, id);
create index executions_root on whence.executions (root_id, id) where state in ('SUCCEEDED', 'UNDOING', 'RUNNING');
alter table whence.executions alter column effects set statistics 0, alter column shown set statistics 0,
    alter column result set statistics 0, alter column arguments set statistics 0;

create table whence.approvals (
    id           uuid primary key,
    execution_id uuid not null references whence.executions,
    tenant       text not null,
    digest       bytea not null,                 -- of all that is decided on
    shown        jsonb not null,                 -- what it would do to rows
    requests     jsonb not null,                 -- what it would send
    needed       int not null,
    state        text not null check (state in ('PENDING', 'APPROVED', 'DENIED')),
    used_at      timestamptz,
    expires_at   timestamptz not null,
    created_at   timestamptz not null,
    decided_at   timestamptz,
    comment      text not null default '',
    change       bigint generated always as identity
);
create index approvals_new on whence.approvals (created_at desc, id desc);
create index approvals_execution on whence.approvals (execution_id);
alter table whence.approvals alter column shown set statistics 0, alter column requests set statistics 0;

create table whence.approval_votes (
    approval_id uuid not null references whence.approvals,
    operator    text not null,
    approves    boolean not null,
    comment     text not null,
    at          timestamptz not null,
    primary key (approval_id, operator)
);

-- A key is of the whole task tree; what another task wrote under it is told only to
-- one that may do all that the other may.
alter table whence.idempotency add column root_id uuid;
update whence.idempotency i set root_id = t.root_id from whence.tasks t where t.id = i.task;
delete from whence.idempotency where root_id is null;
alter table whence.idempotency alter column root_id set not null;
delete from whence.idempotency i using whence.idempotency j
where i.tenant = j.tenant and i.user_id = j.user_id and i.root_id = j.root_id and i.call = j.call and i.key = j.key and i.ctid > j.ctid;
alter table whence.idempotency drop constraint idempotency_pkey, add primary key (tenant, user_id, root_id, call, key);
