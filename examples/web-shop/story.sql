-- Five customers in the shop of schema.sql.

\pset footer off

INSERT INTO customers (email, country)
VALUES ('ada@example.org', 'DE'), ('ben@example.org', 'FR'), ('cleo@example.org', 'AT'), ('dan@example.org', 'DE'),
       ('eve@example.org', 'NL');

\echo
\echo == 4. Two customers order and pay: each an exposure per experiment, and a goal
\echo

SELECT bill.free_from, bill.shipping, bill.invoice_first, pay(bill, 500) FROM checkout(1, 64.50) AS bill;
SELECT bill.free_from, bill.shipping, bill.invoice_first, pay(bill, 500) FROM checkout(2, 41.00) AS bill;

\echo == 5. The third one changes her mind: order, payment, exposures and goal were never there
\echo

BEGIN;
SELECT bill.free_from, bill.shipping, pay(bill, 500) FROM checkout(3, 38.90) AS bill;
ROLLBACK;

\echo == 6. The card of the fourth one is declined: he has seen the checkout, and has not paid
\echo

SELECT bill.free_from, bill.shipping, pay(bill, 10) FROM checkout(4, 99.00) AS bill;

\echo == 7. The first one sends everything back: a goal from the other trigger
\echo

UPDATE payments SET refunded_at = now() WHERE customer_id = 1;

\echo == 8. The fifth one only looks at the page of delivery costs: peeking, since she is not at the checkout yet
\echo

SELECT absmartly_peek_variable_value('{"user_id": 5}', 'shipping.free_from', 50) AS free_from;

\echo == 9. The shop knows what it has shown to whom, without asking anybody
\echo

SELECT free_from, count(*) AS orders, count(payments.id) AS paid, count(refunded_at) AS refunded, sum(amount) AS amount
FROM orders LEFT JOIN payments ON payments.order_id = orders.id
GROUP BY free_from
ORDER BY free_from;

\set ECHO none
SELECT has_function_privilege('absmartly_publish(interval)', 'EXECUTE') AS may_publish \gset
\if :may_publish
\set ECHO queries
\echo == 10. What waits for the worker, or was just sent; then wait until everything is delivered
\echo

SELECT kind, coalesce(experiment, goal) AS name, variant, properties FROM absmartly_pending_events ORDER BY event_time;

SELECT absmartly_publish('1 min') AS delivered;
\else
\echo == 10. The worker delivers the events; only superusers may watch that
\echo
\endif
