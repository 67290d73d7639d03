-- A small shop: its tables, the goals that triggers track, and the checkout.

\set ECHO none
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS absmartly;
DROP SCHEMA IF EXISTS web_shop CASCADE;
CREATE SCHEMA web_shop;
RESET client_min_messages;

-- the extension's functions may be in any schema
SELECT extnamespace::regnamespace AS absmartly FROM pg_extension WHERE extname = 'absmartly' \gset
SET search_path = web_shop, :absmartly;

DO $$
BEGIN
    IF NOT absmartly_wait_until_ready('10 s') THEN
        RAISE EXCEPTION 'this database has no experiments yet' USING HINT = 'See absmartly_stat.';
    END IF;
END
$$;
\set ECHO queries

\echo
\echo == 1. Customers, orders, payments
\echo

CREATE TABLE customers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email text NOT NULL UNIQUE,
    country text NOT NULL);

CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES customers,
    goods numeric(10, 2) NOT NULL CHECK (goods > 0),
    free_from numeric(10, 2) NOT NULL,     -- the threshold that this customer is shown
    shipping numeric(10, 2) NOT NULL,
    invoice_first boolean NOT NULL,        -- the order of payment methods
    ordered_at timestamptz NOT NULL DEFAULT now());

CREATE TABLE payments (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id bigint NOT NULL REFERENCES orders,
    customer_id bigint NOT NULL REFERENCES customers,
    amount numeric(10, 2) NOT NULL,
    currency text NOT NULL DEFAULT 'EUR',
    paid_at timestamptz NOT NULL DEFAULT now(),
    refunded_at timestamptz);

\echo == 2. A goal for each payment, and one for each refund: whatever program writes the rows
\echo

CREATE TRIGGER payment_goal AFTER INSERT ON payments FOR EACH ROW
    EXECUTE FUNCTION absmartly_track_trigger('payment', 'user_id=customer_id', 'amount,currency', 'achieved_at=paid_at');

CREATE TRIGGER refund_goal AFTER UPDATE OF refunded_at ON payments FOR EACH ROW
    WHEN (OLD.refunded_at IS NULL AND NEW.refunded_at IS NOT NULL)
    EXECUTE FUNCTION absmartly_track_trigger('refund', 'user_id=customer_id', 'amount,currency', 'achieved_at=refunded_at');

\echo == 3. The checkout: here the customer sees the variants, so here they are asked for, which exposes
\echo

CREATE FUNCTION checkout(customer_id bigint, goods numeric) RETURNS orders
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    units jsonb := jsonb_build_object('user_id', customer_id);
    visitor jsonb;
    free_from numeric;
    invoice_first boolean;
    result orders;
BEGIN
    SELECT jsonb_build_object('country', country) INTO STRICT visitor FROM customers WHERE id = customer_id;

    -- what delivery costs nothing from; 50 where no experiment says something else
    free_from := absmartly_variable_value(units, 'shipping.free_from', 50::numeric, visitor);
    invoice_first := absmartly_treatment(units, 'local_payment_methods', visitor) = 1;

    INSERT INTO orders (customer_id, goods, free_from, shipping, invoice_first)
    VALUES (checkout.customer_id, checkout.goods, free_from, CASE WHEN goods >= free_from THEN 0 ELSE 4.90 END, invoice_first)
    RETURNING * INTO result;
    RETURN result;
END
$$;

-- Pays an order; a card that does not bear the amount leaves it unpaid.
CREATE FUNCTION pay(bill orders, card_limit numeric) RETURNS text
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO payments (order_id, customer_id, amount)
    VALUES (bill.id, bill.customer_id, bill.goods + bill.shipping);
    IF bill.goods + bill.shipping > card_limit THEN
        RAISE EXCEPTION 'card declined' USING ERRCODE = 'PY001';
    END IF;
    RETURN 'paid';
EXCEPTION
    WHEN SQLSTATE 'PY001' THEN
        RETURN 'declined';    -- the payment is undone, and its goal with it
END
$$;
