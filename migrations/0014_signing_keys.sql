-- +goose Up
-- authz: a key is published before it signs, and its private part may be kept in a
-- file instead of here. Of a retired key no secret stays.
alter table whence.signing_keys
    alter column private_sealed drop not null,  -- null: in a file, or wiped
    add column vouched bytea,                   -- of a key in a file: sealed by a process that holds the secret key
    add column signs_from timestamptz;
update whence.signing_keys
set signs_from = created_at, private_sealed = case when retired_at is null then private_sealed end;
alter table whence.signing_keys
    alter column signs_from set not null,
    add constraint signing_keys_secret check (num_nonnulls(private_sealed, vouched) = case when retired_at is null then 1 else 0 end);
