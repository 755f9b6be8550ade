-- +goose Up
-- gateway: the rows whose words an execution holds, or the approval that it waits for.
create table whence.execution_rows (
    execution_id uuid not null references whence.executions,
    table_name   text not null,
    key          text collate "C" not null,
    primary key (execution_id, table_name, key)
);
create index execution_rows_key on whence.execution_rows (table_name, key);

alter table whence.executions add column erased boolean not null default false; -- its words are gone, and do not come back

-- Those that nobody may be at any more are looked through now and then.
create index executions_open on whence.executions (id) where state in ('RUNNING', 'UNDOING');

alter table whence.approvals drop column change; -- nothing reads it
