-- +goose Up
-- How large bounds are is read off the sample's index alone, where no attribute
-- bounds them.
drop index whence.chunks_sample;
create index chunks_sample on whence.chunks (table_id, subject, id) include (expires_at, language) where hashint8(id) & 63 = 0;
