-- +goose Up
-- gateway/upstream: the HTTP services that agents reach through the server -------
-- Versions of all upstreams come from one sequence, so that none ever comes back:
-- an upstream that is deleted and made again is another one.
create sequence whence.upstream_versions;
create table whence.upstreams (
    tenant             text not null,
    name               text not null,
    url                text not null,
    authorization_env  text not null,            -- empty: no Authorization is sent
    rules              jsonb not null,           -- in the order that they are tried in
    timeout            interval not null,
    private_ranges     text[] not null,
    max_request_bytes  bigint not null,
    max_response_bytes bigint not null,
    version            bigint not null default nextval('whence.upstream_versions'),
    digest             bytea not null,           -- of the definition, which approvals bind to
    created_at         timestamptz not null default now(),
    primary key (tenant, name)
);
