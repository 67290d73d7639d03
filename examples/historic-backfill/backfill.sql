-- Records the exposures and goals of the tables of setup.sql.

\pset footer off
\set SHOW_CONTEXT never

\set ECHO none
-- the extension's functions may be in any schema
SELECT extnamespace::regnamespace AS absmartly FROM pg_extension WHERE extname = 'absmartly' \gset
SET search_path = historic_backfill, :absmartly;

DO $$
BEGIN
    IF NOT absmartly_wait_until_ready('10 s') THEN
        RAISE EXCEPTION 'this database has no experiments yet' USING HINT = 'See absmartly_stat.';
    END IF;
END
$$;
SELECT count(*) / 8 AS chunk FROM orders \gset
-- with another collector than the development one
SELECT NOT EXISTS (SELECT FROM absmartly_experiments WHERE name = 'local_payment_methods') AS unknown \gset
\set ECHO queries

\echo
\echo == 2. Exposures of the first half of the year, in chunks: each is committed, and on its way at once
\echo

CALL absmartly_backfill_exposures('visits', 'id', 'local_payment_methods', 'user_id', 'seen_at', 'visitor',
                                  filter => $$seen_at < '2025-07-01'$$, chunk => :chunk, restart => true,
                                  allow_unknown_experiment => :'unknown');

\echo
\echo == 3. Those of the second half by INSERT ... SELECT: one transaction, and the variants are kept
\echo

INSERT INTO variants
SELECT id, absmartly_unit_treatment(user_id, 'local_payment_methods', visitor, exposed_at => seen_at, historic => true)
FROM visits
WHERE seen_at >= '2025-07-01' AND id NOT IN (SELECT visit FROM variants);    -- so it may be repeated

SELECT variant, count(*) FROM variants GROUP BY variant ORDER BY variant;

\echo == 4. Goals of the orders: a broken row stops it in the middle
\echo

\set ON_ERROR_STOP off
CALL absmartly_backfill_goals('orders', 'id', 'payment', 'user_id=customer', 'amount,currency', 'paid_at',
                              chunk => :chunk, restart => true);
\set ON_ERROR_STOP on

\echo
\echo == 5. It is repaired: a customer that is NULL is no unit, and an order without units makes no goal
\echo

UPDATE orders SET customer = NULL WHERE customer = ' ';

\echo == 6. The same call goes on behind the last chunk that was committed, so that nothing is recorded twice
\echo

CALL absmartly_backfill_goals('orders', 'id', 'payment', 'user_id=customer', 'amount,currency', 'paid_at', chunk => :chunk);

\set ECHO none
SELECT has_function_privilege('absmartly_publish(interval)', 'EXECUTE') AS may_publish \gset
\if :may_publish
\set ECHO queries
\echo
\echo == 7. Wait until everything is delivered
\echo

SELECT absmartly_publish('10 min') AS delivered_meanwhile;

SELECT exposures_queued, exposures_sent, goals_queued, goals_sent, outbox_events FROM absmartly_stat;
\else
\echo
\echo == 7. The worker delivers the events; only superusers may watch that
\echo
\endif
