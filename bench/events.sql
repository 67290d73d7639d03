-- What bench/events measures on.
-- psql variables: rows

\set ON_ERROR_STOP on

CREATE EXTENSION absmartly;
SELECT absmartly_wait_until_ready('30 s');

CREATE TABLE users (id bigint NOT NULL);
INSERT INTO users SELECT id FROM generate_series(1, :rows) AS id;
VACUUM (FREEZE, ANALYZE) users;

-- ---------------------------------------------------------------------------
-- The same table four times, each with another trigger
-- ---------------------------------------------------------------------------

CREATE TABLE payments_none (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL,
    amount numeric(12, 2) NOT NULL,
    items int NOT NULL,
    currency text NOT NULL
);
CREATE TABLE payments_trivial (LIKE payments_none INCLUDING ALL);
CREATE TABLE payments_track (LIKE payments_none INCLUDING ALL);
CREATE TABLE payments_plpgsql (LIKE payments_none INCLUDING ALL);

CREATE FUNCTION bench_trivial_trigger() RETURNS trigger
LANGUAGE c
AS 'absmartly_bench', 'bench_trivial_trigger';

CREATE TRIGGER payment AFTER INSERT ON payments_trivial
FOR EACH ROW EXECUTE FUNCTION bench_trivial_trigger();

CREATE TRIGGER payment AFTER INSERT ON payments_track
FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('payment', 'user_id=customer_id', 'amount,items,currency');

-- what people write by hand; somebody would have to send it, too
CREATE TABLE queue (
    goal text NOT NULL,
    user_id bigint NOT NULL,
    amount numeric NOT NULL,
    items int NOT NULL,
    currency text NOT NULL,
    achieved_at timestamptz NOT NULL
);

CREATE FUNCTION bench_queue_trigger() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO queue VALUES ('payment', NEW.customer_id, NEW.amount, NEW.items, NEW.currency, now());
    RETURN NULL;
END
$$;

CREATE TRIGGER payment AFTER INSERT ON payments_plpgsql
FOR EACH ROW EXECUTE FUNCTION bench_queue_trigger();

-- ---------------------------------------------------------------------------
-- Delivery
-- ---------------------------------------------------------------------------

-- a transaction for each event
CREATE PROCEDURE bench_track_singly(count int)
LANGUAGE plpgsql
AS $$
BEGIN
    FOR i IN 1 .. count LOOP
        PERFORM absmartly_track(jsonb_build_object('user_id', i), 'payment', '{"amount": 12.5}');
        COMMIT;
    END LOOP;
END
$$;

-- a queue made by hand, to be emptied by a client
CREATE TABLE waiting (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payload jsonb NOT NULL
);

-- ---------------------------------------------------------------------------
-- What waits to be sent, in bytes of files
-- ---------------------------------------------------------------------------

CREATE FUNCTION bench_outbox_bytes() RETURNS bigint
LANGUAGE sql VOLATILE
AS $$
    SELECT pg_total_relation_size('absmartly_outbox_a') + pg_total_relation_size('absmartly_outbox_b')
        + pg_total_relation_size('absmartly_outbox_bulk_a') + pg_total_relation_size('absmartly_outbox_bulk_b')
$$;

CREATE FUNCTION bench_cpu() RETURNS double precision
LANGUAGE c VOLATILE STRICT PARALLEL RESTRICTED
AS 'absmartly_bench', 'bench_cpu';

VACUUM;
CHECKPOINT;
