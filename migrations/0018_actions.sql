-- +goose Up
-- gateway: the operations that agents may call ------------------------------------
-- Every version is kept, for executions refer to them.
create table whence.actions (
    tenant     text not null,
    name       text not null,
    version    int not null check (version > 0),
    definition jsonb not null,
    digest     bytea not null,                   -- SHA-256 of the definition's canonical form
    current    bool not null default true,       -- none is, once the action is unregistered
    created_by text not null,
    created_at timestamptz not null default now(),
    primary key (tenant, name, version)
);
create unique index actions_current on whence.actions (tenant, name) where current;
