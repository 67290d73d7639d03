-- The second part of "make demo": a backfill of the orders of the time before there was a trigger.

\pset null -
\pset footer off

\echo
\echo == 13. 100,000 orders of last year; the trigger is off, as it was not there yet
\echo

ALTER TABLE orders DISABLE TRIGGER payment_goal;

INSERT INTO orders (customer_id, amount, paid_at)
SELECT 1 + n % 5000, 5 + n % 95, timestamptz '2025-01-01' + n * interval '5 minutes'
FROM generate_series(1, 100000) AS n;

ALTER TABLE orders ENABLE TRIGGER payment_goal;

\echo == 14. Their goals, as historic ones with the time of payment: in committed chunks, so that it may be interrupted
\echo

\timing on
CALL absmartly_backfill_goals('orders', 'id', 'payment', 'user_id=customer_id', 'amount,currency', 'paid_at',
                              filter => $$paid_at < '2026-01-01'$$, chunk => 20000);
\timing off

\echo
\echo == 15. Wait until all of them are delivered (a real collector is quicker than this one, which checks each event)
\echo

SELECT absmartly_publish('5 min') AS delivered;

\echo == 16. How it is doing
\echo

\x on
SELECT * FROM absmartly_stat;
\x off
