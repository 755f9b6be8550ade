-- +goose Up
-- index: what a past version is found and shown by once its chunks are gone.
alter table whence.versions
    add event_time timestamptz, -- as its chunks had it; null: not known
    add spans int[];            -- where each chunk of the text began and ended; null: one chunk, the whole

-- The moment from which on a record is as it is: the commit time of its head, or
-- when that was captured.
alter table whence.records add since timestamptz;
update whence.records r set since = coalesce(w.commit_time, w.captured_at)
from whence.versions w where w.record_id = r.id and w.version = r.version;
update whence.records set since = coalesce(commit_time, now()) where since is null;
alter table whence.records alter since set default clock_timestamp(), alter since set not null;
-- What has changed since a moment, within a scope and within a whole table. New
-- rows have no past, so copying a table costs nothing here.
create index records_changed_subject on whence.records (table_id, subject, since) where version > 1;
create index records_changed on whence.records (table_id, since, id) where version > 1;

update whence.versions w set event_time = r.event_time, spans = n.spans
from whence.records r cross join lateral (
    select array_agg(s.at order by c.ordinal, s.at) as spans
    from whence.chunks c cross join lateral (values (c.span_start), (c.span_end)) s(at)
    where c.record_id = r.id and c.version = r.version
) n
where w.record_id = r.id and w.version = r.version and not w.deleted;

-- ingest: of which moments a table's versions tell.
alter table whence.tables
    add covered_from      timestamptz, -- the first copy of the rows had ended; null: not yet
    add purged_until      timestamptz, -- rows deleted before left nothing behind
    add version_retention interval,    -- how long a version is kept after the next; null: for ever
    add pruned_before     timestamptz; -- versions that had a next one by then may be gone
update whence.tables set covered_from = now() where state = 'LIVE';

-- gateway: what embedding the questions of a task, and of those below it, has cost.
alter table whence.tasks
    add embedding_calls  bigint not null default 0,
    add embedding_tokens bigint not null default 0;
