-- The job: assigns all users, exports that, counts.  Needs the tables of setup.sql.

\if :{?csv}
\else
\set csv assignments.csv
\endif
\pset footer off

\set ECHO none
-- the extension's functions may be in any schema
SELECT extnamespace::regnamespace AS absmartly FROM pg_extension WHERE extname = 'absmartly' \gset
SET search_path = nightly_batch, :absmartly;

DO $$
BEGIN
    IF NOT absmartly_wait_until_ready('10 s') THEN
        RAISE EXCEPTION 'this database has no experiments yet' USING HINT = 'See absmartly_stat.';
    END IF;
END
$$;
\set ECHO queries

\echo
\echo == 2. All experiments of all users: one call each, in parallel, and one version of the experiments throughout
\echo

BEGIN;

\timing on
CREATE TABLE assignments_new AS
SELECT u.id AS user_id, u.country, a.experiment, a.variant, a.assigned AND a.eligible AND NOT a.full_on AS takes_part
FROM users AS u
    CROSS JOIN LATERAL absmartly_assignments(jsonb_build_object('user_id', u.id),
                                             jsonb_build_object('country', u.country, 'orders', u.orders, 'staff', u.staff)) AS a
WHERE a.unit_type = 'user_id';
\timing off

\echo
\echo == 3. In place of those of yesterday, for everybody at the same moment
\echo

SET LOCAL client_min_messages = warning;
DROP TABLE IF EXISTS assignments;
ALTER TABLE assignments_new RENAME TO assignments;

COMMIT;

ANALYZE assignments;

\echo
\echo == 4. As CSV, for those who have no database: :csv
\echo

COPY (SELECT user_id, country, experiment, variant, takes_part FROM assignments ORDER BY user_id, experiment)
TO STDOUT WITH (FORMAT csv, HEADER) \g :csv

\echo == 5. Who gets what
\echo

SELECT experiment, variant, count(*) AS users,
       count(*) FILTER (WHERE country = 'DE') AS "DE", count(*) FILTER (WHERE country = 'FR') AS "FR",
       count(*) FILTER (WHERE country = 'NL') AS "NL", count(*) FILTER (WHERE country = 'PL') AS "PL",
       count(*) FILTER (WHERE country = 'AT') AS "AT"
FROM assignments
WHERE takes_part
GROUP BY experiment, variant
ORDER BY experiment, variant;

\echo == 6. And who takes no part: outside the share of traffic or the audience, assigned by a rule, or full on
\echo

SELECT experiment, variant, count(*) AS users
FROM assignments
WHERE NOT takes_part
GROUP BY experiment, variant
ORDER BY experiment, variant;

\echo == 7. The same for one of them, with the reasons; nothing was exposed
\echo

SELECT experiment, variant, absmartly_explain('{"user_id": 1000}', experiment,
                                              '{"country": "DE", "orders": 6, "staff": true}') ->> 'explanation' AS explanation
FROM assignments
WHERE user_id = 1000
ORDER BY experiment;
