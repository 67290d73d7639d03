-- A table of users to assign; -v users=N for another number of them.

\if :{?users}
\else
\set users 100000
\endif

\set ECHO none
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS absmartly;
DROP SCHEMA IF EXISTS nightly_batch CASCADE;
CREATE SCHEMA nightly_batch;
RESET client_min_messages;
\set ECHO queries

\echo
\echo == 1. Users, with what audiences may ask for
\echo

CREATE TABLE nightly_batch.users AS
SELECT id, (ARRAY['DE', 'FR', 'NL', 'PL', 'AT'])[1 + id % 5] AS country, id % 7 AS orders, id % 1000 = 0 AS staff
FROM generate_series(1, :users) AS id;

ALTER TABLE nightly_batch.users SET (parallel_workers = 2);

ANALYZE nightly_batch.users;
