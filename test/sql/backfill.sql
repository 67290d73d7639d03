--
-- Backfills: events of the rows of a table, in committed chunks
--
SELECT current_database() AS home \gset
CREATE DATABASE regress_absmartly_backfill;
\c regress_absmartly_backfill
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS absmartly;
RESET client_min_messages;
-- notices say how fast it goes in their details
\set VERBOSITY terse
\pset null NULL

CREATE TABLE backfill_orders (
	id bigint PRIMARY KEY,
	customer_id int,
	device text,
	amount numeric(10, 2),
	paid_at timestamptz NOT NULL,
	visitor jsonb,
	"Odd Name" text,
	note text);
INSERT INTO backfill_orders
	SELECT g, CASE WHEN g % 10 <> 0 THEN g END, CASE WHEN g % 20 <> 0 THEN 'device ' || g END, g * 1.25,
		'2024-01-01 00:00 UTC'::timestamptz + g * interval '1 min', '{"country": "PT"}', 'it''s \ odd', 'note ' || g
	FROM generate_series(1, 1000) AS g;
CREATE VIEW backfill_events AS
	SELECT goal, experiment, variant, unit_types, units, historic, attributes, event_time, properties
	FROM absmartly_pending_events
	WHERE goal LIKE 'backfill %' OR experiment LIKE 'backfill %';

-- rows without any unit make no event
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill paid', 'user_id=customer_id, device',
	'amount, id, "Odd ""="="Odd Name"', achieved_at => 'paid_at', attributes => 'visitor', chunk => 300);
SELECT count(*), count(DISTINCT event_time), min(event_time) AT TIME ZONE 'UTC' AS first,
	max(event_time) AT TIME ZONE 'UTC' AS last, bool_and(historic) AS historic
FROM backfill_events WHERE goal = 'backfill paid';
SELECT unit_types, count(*) FROM backfill_events WHERE goal = 'backfill paid' GROUP BY 1 ORDER BY 1;
SELECT properties, attributes FROM backfill_events WHERE goal = 'backfill paid' ORDER BY event_time LIMIT 1;
-- a unit is its column's text
SELECT units = ARRAY[absmartly_hash_unit('device 7'), absmartly_hash_unit('7')] AS hashed FROM backfill_events
WHERE goal = 'backfill paid' AND properties ->> 'id' = '7';

-- all columns as properties, a filter with a comment at its end, no time
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill all', 'user_id=customer_id', '*',
	filter => 'backfill_orders.amount > 1200 AND id < 971 -- the last ones');
SELECT count(*), bool_and(event_time > now() - interval '1 hour') AS present FROM backfill_events WHERE goal = 'backfill all';
SELECT properties FROM backfill_events WHERE goal = 'backfill all' ORDER BY (properties ->> 'id')::int LIMIT 1;

-- many properties
SELECT string_agg(format('p%s=amount', g), ',') AS many FROM generate_series(1, 120) AS g \gset
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill many', 'user_id=customer_id', :'many', filter => 'id = 1');
SELECT count(*) FROM backfill_events, json_object_keys(properties) WHERE goal = 'backfill many';

-- interrupted, and taken up again: no row twice, none left out
UPDATE backfill_orders SET device = ' ' WHERE id = 777;
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill stopped', 'device', 'id', chunk => 200);
SELECT count(*), max((properties ->> 'id')::int) FROM backfill_events WHERE goal = 'backfill stopped';
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill stopped', 'device', 'id', chunk => 10);
SELECT count(*), max((properties ->> 'id')::int) FROM backfill_events WHERE goal = 'backfill stopped';
UPDATE backfill_orders SET device = 'device 777' WHERE id = 777;
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill stopped', 'device', 'id', chunk => 150);
SELECT count(*), count(DISTINCT properties ->> 'id'), max((properties ->> 'id')::int)
FROM backfill_events WHERE goal = 'backfill stopped';
-- when it is finished, the next call starts anew
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill stopped', 'device', 'id', filter => 'id <= 5');
SELECT count(*) FROM backfill_events WHERE goal = 'backfill stopped';

-- by a name of one's own, and from the beginning
UPDATE backfill_orders SET device = ' ' WHERE id = 5;
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill named', 'device', chunk => 2, name => 'mine');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill named', 'device', filter => 'id < 5', name => 'other');
UPDATE backfill_orders SET device = 'device 5' WHERE id = 5;
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill named', 'device', filter => 'id < 10', name => 'mine', restart => true);
SELECT count(*) FROM backfill_events WHERE goal = 'backfill named';

-- keys of other types; what the session's settings make of their text is no matter
CREATE TABLE backfill_keys ("When" timestamptz UNIQUE, day date UNIQUE, name varchar(20) UNIQUE, word text COLLATE "C" UNIQUE,
	number float8 UNIQUE, code uuid UNIQUE, pair int[] UNIQUE);
INSERT INTO backfill_keys
	SELECT '2024-01-31 12:00 UTC'::timestamptz + g * interval '1.000001 days', '2024-01-01'::date + g, 'name ' || g,
		CASE WHEN g % 2 = 0 THEN 'a''\' ELSE 'B"' END || g, 1.0 / g, md5(g::text)::uuid, ARRAY[g, g]
	FROM generate_series(1, 50) AS g;
SET DateStyle = 'SQL, DMY';
SET timezone = 'Asia/Kathmandu';
SET extra_float_digits = -10;
CALL absmartly_backfill_goals('backfill_keys', '"When"', 'backfill keys', 'name', chunk => 7);
CALL absmartly_backfill_goals('backfill_keys', 'day', 'backfill keys', 'name', chunk => 7);
CALL absmartly_backfill_goals('backfill_keys', 'name', 'backfill keys', 'name', chunk => 7);
CALL absmartly_backfill_goals('backfill_keys', 'word', 'backfill keys', 'name', chunk => 7);
CALL absmartly_backfill_goals('backfill_keys', 'number', 'backfill keys', 'name', chunk => 7);
CALL absmartly_backfill_goals('backfill_keys', 'code', 'backfill keys', 'code', chunk => 7);
CALL absmartly_backfill_goals('backfill_keys', 'pair', 'backfill keys', 'name', chunk => 7);
RESET DateStyle;
RESET timezone;
RESET extra_float_digits;
SELECT units, count(*) FROM backfill_events WHERE goal = 'backfill keys' GROUP BY 1 HAVING count(*) NOT IN (1, 6);

-- rows without key are not passed over in silence
INSERT INTO backfill_keys (name) VALUES ('no day');
CALL absmartly_backfill_goals('backfill_keys', 'day', 'backfill nulls', 'name');
CALL absmartly_backfill_goals('backfill_keys', 'day', 'backfill nulls', 'name', filter => 'day IS NOT NULL');

-- partitions, views, inheritance
CREATE TABLE backfill_parts (id int PRIMARY KEY, unit int) PARTITION BY RANGE (id);
CREATE TABLE backfill_part_1 PARTITION OF backfill_parts FOR VALUES FROM (0) TO (50);
CREATE TABLE backfill_part_2 (unit int, id int NOT NULL);
ALTER TABLE backfill_parts ATTACH PARTITION backfill_part_2 FOR VALUES FROM (50) TO (101);
INSERT INTO backfill_parts SELECT g, g FROM generate_series(1, 100) AS g;
CALL absmartly_backfill_goals('backfill_parts', 'id', 'backfill parts', 'unit', '*', chunk => 30);
SELECT count(*), count(DISTINCT properties ->> 'id') FROM backfill_events WHERE goal = 'backfill parts';
CREATE VIEW backfill_view AS SELECT id, unit FROM backfill_parts;
CALL absmartly_backfill_goals('backfill_view', 'id', 'backfill view', 'unit', chunk => 30);
CREATE TABLE backfill_parent (id int PRIMARY KEY);
CREATE TABLE backfill_child () INHERITS (backfill_parent);
CALL absmartly_backfill_goals('backfill_parent', 'id', 'backfill parent', 'id');
CALL absmartly_backfill_goals('backfill_parts', 'unit', 'backfill parts', 'unit');

-- settings of the session: nothing goes through memory, and each chunk sees what is committed
SET absmartly.durability = memory;
SET default_transaction_isolation = serializable;
CALL absmartly_backfill_goals('backfill_parts', 'id', 'backfill durable', 'unit', chunk => 30);
SELECT count(*) FROM backfill_events WHERE goal = 'backfill durable';
SHOW absmartly.durability;
DO $$
BEGIN
	CALL absmartly_backfill_goals('backfill_parts', 'id', 'backfill nested', 'unit', chunk => 30);
	RAISE NOTICE '%, %', current_setting('transaction_isolation'), current_setting('absmartly.durability');
END
$$;
RESET absmartly.durability;
RESET default_transaction_isolation;

-- nothing of the search path is used
CREATE SCHEMA backfill_hostile;
CREATE FUNCTION backfill_hostile.greater(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'hostile'; END $$;
CREATE OPERATOR backfill_hostile.> (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = backfill_hostile.greater);
CREATE FUNCTION backfill_hostile.count() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE 'hostile'; END $$;
CREATE FUNCTION backfill_hostile.jsonb_build_object(VARIADIC "any") RETURNS jsonb LANGUAGE internal AS 'jsonb_build_object_noargs';
SET search_path = backfill_hostile, public, absmartly_elsewhere, pg_catalog;
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill hostile', 'device', 'id', chunk => 300);
RESET search_path;
SELECT count(*), count(DISTINCT properties ->> 'id') FROM backfill_events WHERE goal = 'backfill hostile';

-- exposures
SELECT absmartly_set_context_data('{"experiments": [{"id": 1, "name": "backfill exp", "iteration": 1, "unitType": "user_id",
	"seedHi": 3603515, "seedLo": 233373850, "split": [0.5, 0.5], "trafficSeedHi": 449867249, "trafficSeedLo": 455443629,
	"trafficSplit": [0, 1], "fullOnVariant": 0, "variants": [{"config": null}, {"config": null}],
	"audience": "{\"filter\":[{\"eq\":[{\"var\":\"country\"},{\"value\":\"PT\"}]}]}", "audienceStrict": true}]}');
UPDATE backfill_orders SET visitor = '{"country": "US"}' WHERE id > 500;
CALL absmartly_backfill_exposures('backfill_orders', 'id', 'backfill exp', 'user_id=customer_id', exposed_at => 'paid_at',
	attributes => 'visitor', chunk => 300);
SELECT count(*), count(DISTINCT event_time), bool_and(historic) AS historic, count(DISTINCT variant) AS variants,
	min(event_time) AT TIME ZONE 'UTC' AS first
FROM backfill_events WHERE experiment = 'backfill exp';
SELECT bool_and(e.variant = absmartly_peek_unit_treatment(o.customer_id, 'backfill exp', o.visitor)) AS same
FROM backfill_events e JOIN backfill_orders o ON o.paid_at = e.event_time
WHERE e.experiment = 'backfill exp';
CALL absmartly_backfill_exposures('backfill_orders', 'id', 'backfill exp', 'user_id=customer_id', filter => 'id < 3');

-- what is refused
BEGIN;
CALL absmartly_backfill_goals('backfill_orders', 'id', 'goal', 'device');
ROLLBACK;
SET default_transaction_read_only = on;
CALL absmartly_backfill_goals('backfill_orders', 'id', 'goal', 'device');
RESET default_transaction_read_only;
\set VERBOSITY default
CALL absmartly_backfill_goals('backfill_orders', 'amount', 'goal', 'device');
CALL absmartly_backfill_goals('backfill_orders', 'ID', 'goal', '"Device"');
CALL absmartly_backfill_goals('backfill_orders', '"ID"', 'goal', 'device');
CALL absmartly_backfill_goals('backfill_orders', 'id, id', 'goal', 'device');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'goal', '');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'goal', 'device=');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'goal', 'user-id=device');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'goal', 'u=device, u=customer_id');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'goal', 'amount');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'goal', 'device', achieved_at => 'note');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'goal', 'device', attributes => 'note');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'goal', 'device', chunk => 0);
CALL absmartly_backfill_goals('backfill_orders', 'id', NULL, 'device');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'goal', 'device', name => repeat('x', 1025));
CALL absmartly_backfill_goals('backfill_orders_pkey', 'id', 'goal', 'device');
CALL absmartly_backfill_exposures('backfill_orders', 'id', 'goal', 'device', exposed_at => 'note');
\set VERBOSITY terse

-- keys whose type has a length
CREATE TABLE backfill_lengths (word char(6) PRIMARY KEY, bits bit(5) NOT NULL UNIQUE);
INSERT INTO backfill_lengths SELECT 'W' || lpad(i::text, 5, '0'), i::bit(5) FROM generate_series(1, 20) AS i;
CALL absmartly_backfill_goals('backfill_lengths', 'word', 'backfill word', 'word', chunk => 6);
CALL absmartly_backfill_goals('backfill_lengths', 'bits', 'backfill bits', 'word', chunk => 6);

-- the caller's rights count, and what others do is no matter
CREATE ROLE regress_absmartly_backfill;
GRANT SELECT ON backfill_parts TO regress_absmartly_backfill;
SET ROLE regress_absmartly_backfill;
CALL absmartly_backfill_goals('backfill_parts', 'id', 'backfill role', 'unit');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill role', 'device');
SELECT absmartly_requeue();
SELECT absmartly_discard();
RESET ROLE;

-- parked events
SELECT absmartly_requeue() AS requeued, absmartly_requeue(1) AS one, absmartly_discard(0) AS none;
BEGIN READ ONLY;
SELECT absmartly_requeue();
ROLLBACK;
BEGIN READ ONLY;
SELECT absmartly_discard();
ROLLBACK;

\c :home
DROP DATABASE regress_absmartly_backfill;
DROP ROLE regress_absmartly_backfill;
