-- What the extension does, step by step.  "make demo" plays this and then backfill.sql; by hand: psql -X -q
-- --echo-queries -f examples/demo/demo.sql in an empty database of a server that knows a collector with
-- test/collector/data/demo.json.

\pset null -
\pset footer off

\echo
\echo == 1. Create the extension; a worker fetches the experiments by itself
\echo

CREATE EXTENSION absmartly;

SELECT absmartly_wait_until_ready('30 s');

\echo == 2. Every experiment for one user, with the variables that her variants carry
\echo

SELECT experiment, unit_type, variant, assigned, eligible, full_on, variables
FROM absmartly_assignments('{"user_id": 406, "session_id": "e791e240fcd3df7d"}',
                           '{"country": "DE", "orders": 5}');

\echo == 3. Why she would see no loyalty banner as a business customer
\echo

SELECT key, value
FROM jsonb_each(absmartly_explain('{"user_id": 406}', 'loyalty_banner',
                                  '{"orders": 5, "customer": {"segment": "business"}}')
                - 'result' #- '{audience,expression}');    -- what step 2 shows; the whole audience

\echo == 4. A million users, and the split over the variants
\echo

CREATE TABLE users AS
SELECT id, (ARRAY['DE', 'FR', 'NL', 'PL'])[1 + id % 4] AS country
FROM generate_series(1, 1000000) AS id;

VACUUM ANALYZE users;

\timing on
SELECT count(*) AS users,
       round(100.0 * count(*) FILTER (WHERE variant = 0) / count(*), 2) AS "% at 50 euros",
       round(100.0 * count(*) FILTER (WHERE variant = 1) / count(*), 2) AS "% at 35 euros",
       round(100.0 * count(*) FILTER (WHERE variant = 2) / count(*), 2) AS "% always free"
FROM (SELECT absmartly_peek_unit_treatment(id, 'free_shipping_threshold') AS variant
      FROM users
      OFFSET 0) AS assigned;
\timing off

\echo
\echo == 5. A variant in a WHERE: German users whose delivery is always free
\echo

SELECT id, country
FROM users
WHERE country = 'DE' AND absmartly_peek_unit_treatment(id, 'free_shipping_threshold') = 2
ORDER BY id
LIMIT 5;

\echo == 6. A variable, with the value to use where no experiment sets it
\echo

SELECT id,
       absmartly_peek_variable_value(jsonb_build_object('user_id', id), 'shipping.free_from', 50) AS free_from,
       absmartly_peek_variable_value(jsonb_build_object('user_id', id), 'shipping.carrier', 'parcel') AS carrier
FROM users
ORDER BY id
LIMIT 5;

\echo == 7. A table of orders whose trigger tracks a goal for each
\echo

CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL,
    amount numeric(10, 2) NOT NULL,
    currency text NOT NULL DEFAULT 'EUR',
    paid_at timestamptz NOT NULL DEFAULT now());

CREATE TRIGGER payment_goal AFTER INSERT ON orders FOR EACH ROW
    EXECUTE FUNCTION absmartly_track_trigger('payment', 'user_id=customer_id', 'amount,currency', 'achieved_at=paid_at');

\echo == 8. A checkout that fails: the order and its goal are rolled back
\echo

BEGIN;
SELECT absmartly_treatment('{"user_id": 406}', 'free_shipping_threshold');
INSERT INTO orders (customer_id, amount) VALUES (406, 13.37);
ROLLBACK;

\echo == 9. A checkout that succeeds: one exposure, one goal, by the same commit as the order
\echo

BEGIN;
SELECT absmartly_treatment('{"user_id": 406}', 'free_shipping_threshold');
INSERT INTO orders (customer_id, amount) VALUES (406, 64.50);
COMMIT;

\echo == 10. What waits in the outbox, or has just been sent
\echo

SELECT kind, experiment, variant, goal, properties, units FROM absmartly_pending_events ORDER BY kind;

\echo == 11. Wait until everything that was committed is delivered
\echo

SELECT absmartly_publish('30 s') AS delivered;
