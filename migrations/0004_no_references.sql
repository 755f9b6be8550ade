-- +goose Up
-- index: what hangs on a record is written and removed by one package, under the
-- record's lock and in one transaction, so a reference proves nothing more; to
-- check it for every row cost half of the time that capture spends in the database.
alter table whence.records drop constraint records_table_id_fkey;
alter table whence.versions drop constraint versions_record_id_fkey;
alter table whence.chunks drop constraint chunks_record_id_fkey;
alter table whence.vectors drop constraint vectors_space_id_fkey;
-- What a call cost is booked also if the table is gone by then.
alter table whence.embedding_calls drop constraint embedding_calls_table_id_fkey;
