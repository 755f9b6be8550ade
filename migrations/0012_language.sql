-- +goose Up
-- index: the terms of a text in a language; null for a language that is not known.
-- Each is named here, so that this is immutable in fact and may stand in a column:
-- a name that is looked up is not, and a column of type regconfig would keep
-- pg_upgrade from taking the database over.
create function whence.lexemes(language text, content text) returns tsvector immutable parallel safe
return case language
    when 'english' then to_tsvector('pg_catalog.english', content)
    when 'arabic' then to_tsvector('pg_catalog.arabic', content)
    when 'armenian' then to_tsvector('pg_catalog.armenian', content)
    when 'basque' then to_tsvector('pg_catalog.basque', content)
    when 'catalan' then to_tsvector('pg_catalog.catalan', content)
    when 'danish' then to_tsvector('pg_catalog.danish', content)
    when 'dutch' then to_tsvector('pg_catalog.dutch', content)
    when 'finnish' then to_tsvector('pg_catalog.finnish', content)
    when 'french' then to_tsvector('pg_catalog.french', content)
    when 'german' then to_tsvector('pg_catalog.german', content)
    when 'greek' then to_tsvector('pg_catalog.greek', content)
    when 'hindi' then to_tsvector('pg_catalog.hindi', content)
    when 'hungarian' then to_tsvector('pg_catalog.hungarian', content)
    when 'indonesian' then to_tsvector('pg_catalog.indonesian', content)
    when 'irish' then to_tsvector('pg_catalog.irish', content)
    when 'italian' then to_tsvector('pg_catalog.italian', content)
    when 'lithuanian' then to_tsvector('pg_catalog.lithuanian', content)
    when 'nepali' then to_tsvector('pg_catalog.nepali', content)
    when 'norwegian' then to_tsvector('pg_catalog.norwegian', content)
    when 'portuguese' then to_tsvector('pg_catalog.portuguese', content)
    when 'romanian' then to_tsvector('pg_catalog.romanian', content)
    when 'russian' then to_tsvector('pg_catalog.russian', content)
    when 'serbian' then to_tsvector('pg_catalog.serbian', content)
    when 'simple' then to_tsvector('pg_catalog.simple', content)
    when 'spanish' then to_tsvector('pg_catalog.spanish', content)
    when 'swedish' then to_tsvector('pg_catalog.swedish', content)
    when 'tamil' then to_tsvector('pg_catalog.tamil', content)
    when 'turkish' then to_tsvector('pg_catalog.turkish', content)
    when 'yiddish' then to_tsvector('pg_catalog.yiddish', content)
end;

-- A chunk's terms are of the language that it was indexed in, which is its table's,
-- or was until a moment ago. This writes the table and its indexes anew.
alter table whence.chunks add column language text not null default 'english';
alter table whence.chunks drop column tsv;
alter table whence.chunks add column tsv tsvector not null generated always as (whence.lexemes(language, text)) stored;
create index chunks_tsv on whence.chunks using gin (tsv) with (fastupdate = on, gin_pending_list_limit = 4096);

-- ingest: what a table's texts are in, and languages that some of its chunks may
-- still be indexed in.
alter table whence.tables
    add language text not null default 'english',
    add former_languages text[] not null default '{}';
