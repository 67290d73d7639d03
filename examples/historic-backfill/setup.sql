-- Visits and orders of last year; -v rows=N for another number of each.

\if :{?rows}
\else
\set rows 20000
\endif

\set ECHO none
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS absmartly;
DROP SCHEMA IF EXISTS historic_backfill CASCADE;
CREATE SCHEMA historic_backfill;
RESET client_min_messages;

-- these tables are new: an earlier run on others of these names is no matter
\set restart true
\set ECHO queries

\echo
\echo == 1. Visits, with what is known of the visitor, and orders, as another system has left them; a table for variants
\echo

CREATE TABLE historic_backfill.visits AS
SELECT id, 1 + id % 5000 AS user_id, jsonb_build_object('country', (ARRAY['DE', 'FR', 'NL'])[1 + id % 3]) AS visitor,
       timestamptz '2025-01-01' + id * (interval '364 days' / :rows) AS seen_at
FROM generate_series(1, :rows) AS id;

ALTER TABLE historic_backfill.visits ADD PRIMARY KEY (id);

CREATE TABLE historic_backfill.orders AS
SELECT id, (1 + id % 5000)::text AS customer, (5 + id % 95)::numeric(10, 2) AS amount, 'EUR' AS currency,
       timestamptz '2025-01-01' + id * (interval '364 days' / :rows) AS paid_at
FROM generate_series(1, :rows) AS id;

ALTER TABLE historic_backfill.orders ADD PRIMARY KEY (id);

-- a guest has bought this one
UPDATE historic_backfill.orders SET customer = ' ' WHERE id = :rows / 2 + 1;

CREATE TABLE historic_backfill.variants (visit bigint PRIMARY KEY, variant int NOT NULL);

ANALYZE historic_backfill.visits, historic_backfill.orders;
