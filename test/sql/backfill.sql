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
-- when it is finished, it is not done again unless that is wanted
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill stopped', 'device', 'id', filter => 'id <= 5');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill stopped', 'device', 'id', filter => 'id <= 5', restart => NULL);
SELECT count(*) FROM backfill_events WHERE goal = 'backfill stopped';
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill stopped', 'device', 'id', filter => 'id <= 5', restart => true);
SELECT count(*) FROM backfill_events WHERE goal = 'backfill stopped';
-- also one that has come upon no row, and one whose last chunk was a full one
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill none', 'device', filter => 'false');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill none', 'device', filter => 'false');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill full', 'device', filter => 'id <= 4', chunk => 2);
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill full', 'device', filter => 'id <= 4', chunk => 2);
SELECT count(*) FROM backfill_events WHERE goal = 'backfill full';

-- by a name of one's own, and from the beginning
UPDATE backfill_orders SET device = ' ' WHERE id = 5;
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill named', 'device', chunk => 2, name => 'mine');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill named', 'device', filter => 'id < 5', name => 'other');
UPDATE backfill_orders SET device = 'device 5' WHERE id = 5;
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill named', 'device', filter => 'id < 10', name => 'mine', restart => true);
SELECT count(*) FROM backfill_events WHERE goal = 'backfill named';

-- names of any length count in full
SELECT repeat('n', 600) AS long, repeat('n', 20000) AS longer \gset
UPDATE backfill_orders SET device = ' ' WHERE id = 5;
\set VERBOSITY sqlstate
SET client_min_messages = warning;
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill long', 'device', chunk => 2, name => :'long' || '1', filter => 'id < 10');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill long', 'device', chunk => 2, name => :'long' || '2', filter => 'id < 4');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill long', 'device', chunk => 2, name => :'longer' || '1', filter => 'id < 10');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill long', 'device', chunk => 2, name => :'longer' || '2', filter => 'id < 4');
SELECT length(name) AS length, right(name, 1) AS number, state, rows, last_key FROM absmartly_backfills WHERE name LIKE 'nnn%' ORDER BY 1, 2;
UPDATE backfill_orders SET device = 'device 5' WHERE id = 5;
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill long', 'device', chunk => 2, name => :'long' || '1', filter => 'id < 10');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill long', 'device', chunk => 2, name => :'longer' || '1', filter => 'id < 10');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill long', 'device', chunk => 2, name => :'longer' || '1', filter => 'id < 10');
RESET client_min_messages;
\set VERBOSITY terse
SELECT count(*) FROM backfill_events WHERE goal = 'backfill long';

-- what there is
SELECT name, role = current_user AS mine, source, state, rows, last_key,
	started_at <= last_chunk_at AND coalesce(last_chunk_at = finished_at, true) AS in_order, finished_at IS NULL AS unfinished
FROM absmartly_backfills WHERE name NOT LIKE 'nnn%' ORDER BY name COLLATE "C";

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

-- one that was interrupted goes on where it was, whatever the styles of dates and intervals are then
CREATE TABLE backfill_styles (during daterange PRIMARY KEY, days date[] UNIQUE, span interval UNIQUE, name text);
INSERT INTO backfill_styles
	SELECT daterange('2024-01-01'::date + g, NULL), ARRAY['2024-01-01'::date + g], g * interval '-1 month +1 hour', nullif('name ' || g, 'name 7')
	FROM generate_series(1, 30) AS g;
UPDATE backfill_styles SET name = ' ' WHERE name IS NULL;
SET DateStyle = 'German, DMY';
SET IntervalStyle = sql_standard;
CALL absmartly_backfill_goals('backfill_styles', 'during', 'backfill styles', 'name', chunk => 5);
CALL absmartly_backfill_goals('backfill_styles', 'days', 'backfill styles', 'name', chunk => 5);
SHOW DateStyle;
UPDATE backfill_styles SET name = 'name 7' WHERE name = ' ';
SET DateStyle = 'ISO, MDY';
CALL absmartly_backfill_goals('backfill_styles', 'during', 'backfill styles', 'name', chunk => 5);
CALL absmartly_backfill_goals('backfill_styles', 'days', 'backfill styles', 'name', chunk => 5);
CALL absmartly_backfill_goals('backfill_styles', 'span', 'backfill styles', 'name', chunk => 5);
RESET DateStyle;
RESET IntervalStyle;
SELECT count(*), count(DISTINCT units) FROM backfill_events WHERE goal = 'backfill styles';

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

-- what cannot be right
CALL absmartly_backfill_exposures('backfill_orders', 'id', 'backfill typo', 'user_id=customer_id', filter => 'id < 3');
CALL absmartly_backfill_exposures('backfill_orders', 'id', 'backfill typo', 'user_id=customer_id', filter => 'id < 3', allow_unknown_experiment => true);
CALL absmartly_backfill_exposures('backfill_orders', 'id', 'backfill exp', 'device', filter => 'id < 3', name => 'units');
CALL absmartly_backfill_exposures('backfill_orders', 'id', 'backfill exp', 'device', filter => 'id < 3', name => 'units', allow_other_units => true);
SELECT experiment, unit_types, variant, count(*) FROM backfill_events
WHERE experiment = 'backfill typo' OR experiment = 'backfill exp' AND 'device' = ANY (unit_types) GROUP BY 1, 2, 3 ORDER BY 1;
UPDATE backfill_orders SET paid_at = CASE id WHEN 4 THEN '2999-01-01'::timestamptz WHEN 6 THEN '1960-01-01' ELSE now() + interval '1 hour' END
WHERE id IN (4, 6, 8);
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill times', 'device', '', 'paid_at', filter => 'id < 10', chunk => 2);
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill times', 'device', '', 'paid_at', filter => 'id < 10 AND id <> 4', chunk => 2);
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill times', 'device', '', 'paid_at', filter => 'id < 10 AND id NOT IN (4, 6)', chunk => 2);
SELECT count(*) FROM backfill_events WHERE goal = 'backfill times';
CALL absmartly_backfill_goals('backfill_orders', 'id', 'backfill times', 'device', '', 'paid_at', filter => 'id < 10', chunk => 2,
	restart => true, allow_any_time => true);
SELECT count(*), min(event_time) AT TIME ZONE 'UTC' AS first FROM backfill_events WHERE goal = 'backfill times';
CALL absmartly_backfill_exposures('backfill_orders', 'id', 'backfill exp', 'user_id=customer_id', 'paid_at', name => 'times', filter => 'id < 10');
-- an experiment may go while it runs
CREATE FUNCTION backfill_unload(id bigint) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
	IF id = 20 THEN PERFORM absmartly_set_context_data('{"experiments": []}'); END IF;
	RETURN true;
END $$;
CALL absmartly_backfill_exposures('backfill_orders', 'id', 'backfill exp', 'user_id=customer_id', name => 'gone',
	filter => 'id BETWEEN 11 AND 40 AND backfill_unload(id)', chunk => 10);
SELECT state, rows, last_key FROM absmartly_backfills WHERE name = 'gone';

-- what is wrong with a filter
\set VERBOSITY default
CALL absmartly_backfill_goals('backfill_orders', 'id', 'filter', 'device', filter => 'amont > 5');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'filter', 'device', filter => 'amount > 5 AND');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'filter', 'device', filter => 'amount > 5) OR (true');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'filter', 'device', filter => 'true; DROP TABLE backfill_orders');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'filter', 'device', filter => 'true LIMIT 1');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'filter', 'device', filter => '*');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'filter', 'device', filter => '');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'filter', 'device', filter => 'amount');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'filter', 'device', filter => $$note = 'n' AND amount = 'much'$$);
CALL absmartly_backfill_goals('backfill_orders', 'id', 'filter', 'device', filter => '1 / 0 = id');
CALL absmartly_backfill_goals('backfill_orders', 'id', 'filter', 'device', filter => '1 / (id - id) = 1');
CALL absmartly_backfill_goals('backfill_keys', 'day', 'filter', 'name', filter => '1 / (number - number) = 1');
\set VERBOSITY terse

-- units of all types that are texts, or stand for one
SET client_min_messages = warning;
CREATE TYPE backfill_text;
CREATE FUNCTION backfill_text_in(cstring) RETURNS backfill_text LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION backfill_text_out(backfill_text) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE TYPE backfill_text (INPUT = backfill_text_in, OUTPUT = backfill_text_out, INTERNALLENGTH = VARIABLE, STORAGE = extended, CATEGORY = 'S');
CREATE CAST (backfill_text AS text) WITHOUT FUNCTION AS IMPLICIT;
CREATE TYPE backfill_output;
CREATE FUNCTION backfill_output_in(cstring) RETURNS backfill_output LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION backfill_output_out(backfill_output) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE TYPE backfill_output (INPUT = backfill_output_in, OUTPUT = backfill_output_out, INTERNALLENGTH = VARIABLE, CATEGORY = 'S');
CREATE TYPE backfill_cast;
CREATE FUNCTION backfill_cast_in(cstring) RETURNS backfill_cast LANGUAGE internal IMMUTABLE STRICT AS 'int4in';
CREATE FUNCTION backfill_cast_out(backfill_cast) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'int4out';
CREATE TYPE backfill_cast (INPUT = backfill_cast_in, OUTPUT = backfill_cast_out, LIKE = int4, CATEGORY = 'S');
CREATE FUNCTION backfill_cast_text(backfill_cast, int, boolean) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
	PERFORM absmartly_track('{"user_id": 1}', 'unit cast'), count(*) FROM backfill_parts;
	RETURN CASE WHEN backfill_cast_out($1)::text <> '3' THEN format('cast %s %s %s', backfill_cast_out($1), $2, $3) END;
END $$;
CREATE CAST (backfill_cast AS text) WITH FUNCTION backfill_cast_text(backfill_cast, int, boolean);
RESET client_min_messages;
CREATE TYPE backfill_enum AS ENUM ('one', 'two', 'three');
CREATE DOMAIN backfill_domain AS backfill_enum;
CREATE TABLE backfill_units (id int PRIMARY KEY, u1 backfill_text, u2 backfill_output, u3 backfill_cast, u4 backfill_enum, u5 backfill_domain,
	u6 name, u7 char(8), point point, flag "char", number numeric);
CREATE TRIGGER tracked AFTER INSERT ON backfill_units FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('backfill tracked', 'u1,u2,u3,u4,u5,u6,u7', 'id');
INSERT INTO backfill_units VALUES (1, ' Text', 'Output', '7', 'one', 'two', 'Name', 'char'), (2, repeat('long', 100)::backfill_text, NULL, '8', 'three', NULL, '7', ' x '),
	(3, NULL, NULL, '3', 'one', NULL, NULL, NULL);
CALL absmartly_backfill_goals('backfill_units', 'id', 'backfill tracked', 'u1,u2,u3,u4,u5,u6,u7', 'id', name => 'units of texts');
SELECT properties ->> 'id' AS id, unit_types, count(*), count(DISTINCT units) FROM backfill_events WHERE goal = 'backfill tracked'
GROUP BY 1, 2 ORDER BY 1;
SELECT units = ARRAY[absmartly_hash_unit('Text'), absmartly_hash_unit('Output'), absmartly_hash_unit('cast 7 -1 t'), absmartly_hash_unit('one'),
	absmartly_hash_unit('two'), absmartly_hash_unit('Name'), absmartly_hash_unit('char')] AS by_text
FROM backfill_events WHERE goal = 'backfill tracked' AND properties ->> 'id' = '1' AND historic;
-- as objects and in a session's context they are the same
SELECT count(absmartly_track(jsonb_build_object('a', u1, 'b', u4, 'c', u6), 'backfill object')) FROM backfill_units WHERE id = 1;
SELECT units = ARRAY[absmartly_hash_unit('Text'), absmartly_hash_unit('one'), absmartly_hash_unit('Name')] AS by_text
FROM backfill_events WHERE goal = 'backfill object';
SELECT absmartly_context_create();
SELECT absmartly_context_set_unit('a', u1), absmartly_context_set_unit('b', u4), absmartly_context_set_unit('c', u6), absmartly_context_set_unit('d', u5)
FROM backfill_units WHERE id = 1;
SELECT absmartly_context_units();
DISCARD ALL;
-- what is no text is none
CALL absmartly_backfill_goals('backfill_units', 'id', 'backfill refused', 'point');
CALL absmartly_backfill_goals('backfill_units', 'id', 'backfill refused', 'flag');
CALL absmartly_backfill_goals('backfill_units', 'id', 'backfill refused', 'number');

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
CALL absmartly_backfill_goals('backfill_orders', 'id', 'goal', 'device', name => repeat('x', 1024 * 1024 + 1));
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
SELECT name, role, state, rows FROM absmartly_backfills;
SELECT absmartly_requeue();
SELECT absmartly_discard();
RESET ROLE;
SELECT name, role, state, rows FROM absmartly_backfills WHERE role <> current_user;

-- properties: texts, and values that have the text that a trigger gives them, whatever the settings are
CREATE TABLE backfill_values (id int PRIMARY KEY, span interval, bytes bytea, at timestamptz, price money, during tstzrange);
INSERT INTO backfill_values VALUES (1, '1 day 2:00', '\x00ff', '2024-01-01 00:00+00', 5::money, '[2024-01-01 00:00+00,2024-01-02 00:00+00)');
SET IntervalStyle = iso_8601;
SET bytea_output = escape;
SET TimeZone = 'Asia/Tokyo';
SET DateStyle = German;
CALL absmartly_backfill_goals('backfill_values', 'id', 'backfill all values', 'id', '*');
CALL absmartly_backfill_goals('backfill_values', 'id', 'backfill values', 'id', 'span, during, source=''it''''s a text''');
CALL absmartly_backfill_goals('backfill_values', 'id', 'backfill values', 'id=''1''', name => 'wrong');
CALL absmartly_backfill_goals('backfill_values', 'id', 'backfill values', 'id', 'span=''1', name => 'wrong');
RESET IntervalStyle;
RESET bytea_output;
RESET TimeZone;
RESET DateStyle;
SELECT properties FROM backfill_events WHERE goal LIKE 'backfill %values' ORDER BY goal;
SELECT absmartly_properties(ROW (interval '1 day 1 hour', NULL, ARRAY[1.50, NULL]));

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
