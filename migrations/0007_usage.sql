-- +goose Up
-- index: what embedding a table's texts has cost, as the model's server reported
-- it or as it was reckoned from the texts.
alter table whence.embedding_calls add column tokens bigint not null default 0;
