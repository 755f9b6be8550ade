-- +goose Up
-- authz: who is trusted, who may act for whom, and who is stopped ------------------
create table whence.issuers (
    name          text primary key,
    url           text not null unique,          -- the iss of its tokens
    audience      text not null,
    jwks_url      text not null,                 -- empty: as its discovery document says
    algorithms    text[] not null,
    tenant        text not null,                 -- empty: as the tenant claim says
    tenant_claim  text not null,
    subject_claim text not null,
    groups_claim  text not null,
    operators     jsonb not null,                -- group to role
    user_scope    jsonb not null,
    created_at    timestamptz not null default now()
);

create table whence.agents (
    tenant      text not null,
    name        text not null,
    description text not null,
    issuer      text references whence.issuers,  -- who vouches for it, as subject; null: nobody
    subject     text,
    jwks        jsonb,                           -- its own keys; null: none
    ceiling     jsonb,                           -- null: no bound of its own
    created_at  timestamptz not null default now(),
    primary key (tenant, name),
    unique (issuer, subject),
    check ((issuer is null) = (subject is null))
);

create table whence.grants (
    id            uuid primary key,
    tenant        text not null,
    agent         text not null,
    user_id       text,                          -- or
    group_name    text,                          -- every user of this group
    scope         jsonb not null,
    calls         bigint not null,
    task_lifetime interval not null,
    max_depth     int not null,
    proof         bool not null,                 -- tokens are bound to a key
    created_by    text not null,
    created_at    timestamptz not null default now(),
    expires_at    timestamptz,
    foreign key (tenant, agent) references whence.agents on delete cascade,
    check ((user_id is null) <> (group_name is null))
);
create index grants_agent on whence.grants (tenant, agent);

-- Numbered in the order of commits, so that whoever has read up to a number has
-- missed none before it: the writers hold a lock from drawing it on.
create table whence.revocations (
    id            bigint generated always as identity primary key,
    kind          text not null check (kind in ('TASK', 'AGENT', 'USER', 'TENANT', 'TOKEN', 'KEY')),
    tenant        text not null,                 -- of an agent or a user, else empty
    target        text not null,
    reason        text not null,
    revoked_by    text not null,
    at            timestamptz not null default clock_timestamp(),
    reinstated_at timestamptz,
    change        bigint not null,               -- drawn anew when it is reinstated
    expires_at    timestamptz                    -- from then on what it stops has expired anyway; null: never
);
create sequence whence.revocation_changes;
create unique index revocations_change on whence.revocations (change);
create unique index revocations_standing on whence.revocations (kind, tenant, target) where reinstated_at is null;

-- A client assertion is used once.
create table whence.assertions (
    agent      text not null,
    token_id   text not null,
    expires_at timestamptz not null,
    primary key (agent, token_id)
);

-- gateway: what a task was granted ----------------------------------------------
alter table whence.tasks add grant_id uuid, -- no foreign key: the record outlives the grant
    add actors text[] not null default '{}',
    add max_depth int not null default 3,
    add thumbprint text not null default '';  -- of the key that its tokens are bound to
create index tasks_grant on whence.tasks (grant_id) where state = 'ACTIVE';
create index tasks_agent on whence.tasks (tenant, agent) where state = 'ACTIVE';
create index tasks_user on whence.tasks (tenant, user_id) where state = 'ACTIVE';
