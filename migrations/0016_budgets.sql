-- +goose Up
-- gateway: budgets over several meters -------------------------------------------
-- An array has one number a meter, in the order of authz.Meters: calls, writes,
-- rows, bytes, embedding tokens, spend, concurrency. The largest bigint bounds
-- nothing.

-- +goose StatementBegin
create function whence.fits(settled bigint[], reserved bigint[], limits bigint[]) returns boolean
language sql immutable parallel safe return (
    select bool_and(l = 9223372036854775807 or (s >= 0 and r >= 0 and s + r <= l))
    from unnest(settled, reserved, limits) as m(s, r, l)
);
-- +goose StatementEnd

alter table whence.tasks
    add column limits   bigint[],
    add column settled  bigint[],                -- spent by calls that are recorded
    add column reserved bigint[] not null default '{0,0,0,0,0,0,0}'; -- held by processes, for calls under way or to come
update whence.tasks set
    limits = array[calls_limit, 9223372036854775807, 9223372036854775807, 9223372036854775807, 9223372036854775807, 9223372036854775807, 9223372036854775807],
    settled = array[calls_settled, 0, 0, 0, embedding_tokens, 0, 0];
alter table whence.tasks
    alter column limits set not null,
    alter column settled set not null,
    alter column settled set default '{0,0,0,0,0,0,0}',
    drop column calls_limit, drop column calls_settled, drop column embedding_tokens,
    add constraint tasks_budget check (
        cardinality(limits) = 7 and cardinality(settled) = 7 and cardinality(reserved) = 7
        and whence.fits(settled, reserved, limits));

-- A process that charges calls. One that does not renew itself is taken for dead,
-- and what it holds goes back.
create table whence.holders (
    id         uuid primary key,
    expires_at timestamptz not null
);

-- What a process holds of a task's budget. A task's reserved amounts are the sum of
-- the leases of itself and of the tasks below it.
create table whence.leases (
    holder_id uuid not null references whence.holders,
    task_id   uuid not null references whence.tasks,
    amounts   bigint[] not null,
    primary key (holder_id, task_id)
) with (fillfactor = 50);

-- A grant bounds the other meters too: meter to number.
alter table whence.grants add column limits jsonb not null default '{}';
