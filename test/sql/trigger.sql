-- absmartly_track_trigger(): arguments, columns, values, errors.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS absmartly;
RESET client_min_messages;
CREATE SCHEMA trigger_test;
SET search_path = trigger_test, public, absmartly_elsewhere;

-- what waits
CREATE VIEW goals AS
	SELECT goal, (SELECT jsonb_object_agg(type, unit) FROM unnest(unit_types, units) AS u (type, unit)) AS units,
		properties::text, attributes::text, event_time, historic
	FROM absmartly_pending_events WHERE kind = 'goal';

--
-- The documented case, and values
--
CREATE TABLE orders (
	id int PRIMARY KEY,
	customer_id bigint,
	amount numeric,
	items int,
	currency text,
	paid_at timestamptz,
	attrs jsonb);
CREATE TRIGGER payment_goal AFTER INSERT ON orders FOR EACH ROW
	EXECUTE FUNCTION absmartly_track_trigger('payment', 'user_id=customer_id', 'amount,items,currency',
		'achieved_at=paid_at', 'attributes=attrs');
INSERT INTO orders VALUES
	(1, 42, 12.50, 3, 'EUR', '2024-05-01 12:00:00.1239+00', '{"b": [1, "x"], "a": null}'),
	(2, 43, 'NaN', NULL, E'"quoted"\\ \t\n\r\b\f\x01 ü€😀', '1969-12-31 23:59:59.9991+00', '{}'),
	(3, NULL, 1, 1, 'no unit: tracks nothing', NULL, NULL),
	(4, -9223372036854775808, 1e30, -2147483648, '', '2024-05-01 12:00:00+00', NULL);
SELECT units, properties, attributes FROM goals WHERE goal = 'payment' ORDER BY properties;
SELECT units = jsonb_build_object('user_id', absmartly_hash_unit('42')) AS hashed,
	extract(epoch FROM event_time) AS achieved_at FROM goals WHERE goal = 'payment' ORDER BY properties;

-- without a time of its own it is now
CREATE TRIGGER now_goal AFTER INSERT ON orders FOR EACH ROW WHEN (NEW.id = 10)
	EXECUTE FUNCTION absmartly_track_trigger('now', 'customer_id', '', 'achieved_at=paid_at');
INSERT INTO orders (id, customer_id) VALUES (9, 1), (10, 1);
SELECT units, properties, event_time BETWEEN now() - interval '1 minute' AND clock_timestamp() AS now FROM goals WHERE goal = 'now';

-- what is rolled back was not tracked
BEGIN;
INSERT INTO orders VALUES (20, 20, 20);
SAVEPOINT s;
INSERT INTO orders VALUES (21, 21, 21);
ROLLBACK TO s;
INSERT INTO orders VALUES (22, 22, 22);
COMMIT;
BEGIN;
INSERT INTO orders VALUES (23, 23, 23);
ROLLBACK;
SELECT properties FROM goals WHERE goal = 'payment' AND properties LIKE '{"amount":2%' ORDER BY properties;

-- absmartly.historic
SET absmartly.historic = on;
INSERT INTO orders VALUES (30, 30, 30);
RESET absmartly.historic;
SELECT properties, historic FROM goals WHERE goal = 'payment' AND properties ~ '"amount":(22|30),' ORDER BY properties;

-- every type with a writer of its own, and others, as to_json() has them
CREATE TYPE mood AS ENUM ('sad', 'so "so"');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN cents AS numeric(10, 2) CHECK (VALUE >= 0);
CREATE DOMAIN moods AS mood[];
CREATE TABLE everything (
	u uuid,
	c_bool bool, c_int2 int2, c_int4 int4, c_int8 int8, c_float4 float4, c_float8 float8, c_numeric numeric,
	c_text text, c_varchar varchar(20), c_char char(5), c_uuid uuid, c_date date, c_timestamp timestamp,
	c_timestamptz timestamptz, c_json json, c_jsonb jsonb, c_time time, c_interval interval, c_bytea bytea,
	c_array int[], c_texts text[], c_enum mood, c_pair pair, c_domain cents, c_moods moods, c_inet inet, c_range int4range,
	c_generated int GENERATED ALWAYS AS (c_int4 * 2) STORED);
CREATE TRIGGER everything AFTER INSERT ON everything FOR EACH ROW
	EXECUTE FUNCTION absmartly_track_trigger('everything', 'u', '*');
SET DateStyle = 'SQL, DMY';
SET TimeZone = 'Europe/Paris';
SET extra_float_digits = -10;
INSERT INTO everything VALUES
	('A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', true, -32768, 1073741823, 9223372036854775807, 0.1, 0.1, -0.10,
	'x', 'y', 'z', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '2024-02-29', '2024-02-29 01:02:03.45', '2024-02-29 01:02:03+00',
	'{"a":  1, "a": 2}', '{"b": 1.0, "a": [true, null, {}]}', '01:02:03', '1 day 02:03', '\x00ff', '{1,NULL,3}', '{"a\"b",NULL}',
	'so "so"', '(1,"x y")', 1.5, '{sad,NULL}', '10.0.0.1/8', '[1,5)'),
	('00000000-0000-0000-0000-000000000000', false, 0, 0, 0, 'NaN', '-Infinity', 'Infinity',
	'', '', '', '00000000-0000-0000-0000-000000000000', 'infinity', '-infinity', '4713-01-01 BC',
	'null', '"s"', '00:00', '0', '', '{}', '{}', 'sad', '(,)', 0, '{}', '::1', 'empty');
INSERT INTO everything (u, c_float4, c_float8, c_numeric) VALUES ('00000000-0000-0000-0000-000000000001', '1e20', 1e-7, '1e-20');
SELECT units = jsonb_build_object('u', absmartly_hash_unit(properties::json ->> 'u')) AS hashed, properties
FROM goals WHERE goal = 'everything' ORDER BY properties;
-- the same as to_json() in UTC, but for the blanks of jsonb
RESET extra_float_digits;
SET TimeZone = 'UTC';
SET IntervalStyle = postgres;
SELECT key, tracked.value::text AS tracked, expected.value::text AS expected
FROM goals JOIN everything ON u::text = properties::json ->> 'u', json_each(properties::json) AS tracked JOIN json_each(to_json(everything)) AS expected USING (key)
WHERE goal = 'everything' AND tracked.value::text IS DISTINCT FROM expected.value::text;
RESET DateStyle;
RESET TimeZone;
RESET IntervalStyle;

-- units of every type they may be of
CREATE DOMAIN uid AS varchar(700);
CREATE TABLE unit_types (a int2, b int4, c int8, d text, e varchar(20), f char(10), g uuid, h uid);
CREATE TRIGGER unit_types AFTER INSERT ON unit_types FOR EACH ROW
	EXECUTE FUNCTION absmartly_track_trigger('units', 'a, b ,c, d,e, f,g,h');
INSERT INTO unit_types VALUES (-7, 7, 70, E' \t padded ', '7', 'seven', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', repeat('ü', 640));
INSERT INTO unit_types (b, f) VALUES (8, 'eight');
SELECT key, value = absmartly_hash_unit(expected) AS hashed
FROM goals, jsonb_each_text(units) JOIN (VALUES ('a', '-7'), ('b', '7'), ('c', '70'), ('d', 'padded'), ('e', '7'), ('f', 'seven'),
	('g', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'), ('h', repeat('ü', 640))) AS v (key, expected) USING (key)
WHERE goal = 'units' AND units ? 'a' ORDER BY key;
SELECT units = jsonb_build_object('b', absmartly_hash_unit('8'), 'f', absmartly_hash_unit('eight')) AS hashed, properties
FROM goals WHERE goal = 'units' AND NOT units ? 'a';

--
-- Names
--
CREATE TABLE "Odd, names" ("User=ID" int, "a,b" int, "Mixed" int, "with ""quotes""" int, plain int, "  " int,
	"größe" int, a_name_that_is_exactly_sixty_three_bytes_long_as_the_longest_one_is int);
CREATE TRIGGER odd AFTER INSERT ON "Odd, names" FOR EACH ROW
	EXECUTE FUNCTION absmartly_track_trigger('Odd, "goal"=', ' "Unit=,1" = "User=ID" ,Device=PLAIN',
		'"a,b", mixed = "Mixed","Kept""Case"="with ""quotes""",PLAIN,"  ",größe,
		a_name_that_is_exactly_sixty_three_bytes_long_as_the_longest_one_is_and_cut,
		"a name of a property is not cut, though it has more than the sixty-three bytes of an SQL identifier"=plain');
INSERT INTO "Odd, names" VALUES (1, 2, 3, 4, 5, 6, 7, 8);
SELECT goal, units, properties FROM goals WHERE goal LIKE 'Odd%';

-- arguments that cannot be
CREATE TABLE arguments (id int, user_id int, note text, at timestamp, doc json, price numeric);
CREATE PROCEDURE try_arguments(VARIADIC arguments text[]) LANGUAGE plpgsql AS $$
DECLARE
	detail text;
	hint text;
BEGIN
	BEGIN
		EXECUTE format('CREATE TRIGGER tried AFTER INSERT ON arguments FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger(%s)',
			(SELECT string_agg(quote_literal(a), ', ' ORDER BY n) FROM unnest(arguments) WITH ORDINALITY AS u (a, n)));
		INSERT INTO arguments VALUES (1, 1);
		RAISE WARNING 'no error';
		DROP TRIGGER tried ON arguments;
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
		RAISE WARNING '% %', SQLSTATE, SQLERRM USING DETAIL = detail, HINT = hint;
	END;
END $$;
\set VERBOSITY terse
CALL try_arguments('goal');
\set VERBOSITY default
CALL try_arguments('goal', '');
CALL try_arguments('goal', '*');
CALL try_arguments('', 'user_id');
CALL try_arguments(repeat('g', 1025), 'user_id');
CALL try_arguments('goal', 'user_id=');
\set VERBOSITY terse
CALL try_arguments('goal', 'user_id,');
CALL try_arguments('goal', ',user_id');
CALL try_arguments('goal', 'user_id user_id');
CALL try_arguments('goal', 'user_id=user_id=user_id');
CALL try_arguments('goal', '"user_id');
CALL try_arguments('goal', '""=user_id');
CALL try_arguments('goal', '1a=user_id');
CALL try_arguments('goal', 'user-id=user_id');
CALL try_arguments('goal', 'a=user_id,A=id');
CALL try_arguments('goal', repeat('u', 1025) || '=user_id');
SELECT string_agg('u' || n || '=user_id', ',') AS units FROM generate_series(1, 257) AS n \gset
CALL try_arguments('goal', :'units');
CALL try_arguments('goal', 'user_id', 'id,*');
CALL try_arguments('goal', 'user_id', 'id,note,id');
\set VERBOSITY default
CALL try_arguments('goal', 'USER_IDD');
CALL try_arguments('goal', 'user_id', 'id,x="ID"');
CALL try_arguments('goal', 'user_id', 'ctid');
CALL try_arguments('goal', 'price');
CALL try_arguments('goal', 'user_id,doc');
CALL try_arguments('goal', 'user_id', '', 'achieved_at=at');
CALL try_arguments('goal', 'user_id', '', 'attributes=doc');
CALL try_arguments('goal', 'user_id', '', 'attributes=nothing');
CALL try_arguments('goal', 'user_id', '', 'historic=on');
CALL try_arguments('goal', 'user_id', '', 'Achieved_At=at', 'achieved_at=at');
-- nothing wrong with these
CALL try_arguments('goal', 'user_id');
CALL try_arguments('goal', 'user_id', '', '');
CALL try_arguments('goal', 'user_id', ' * ');
SELECT count(*) FROM goals WHERE goal = 'goal';

-- texts among the properties, of the trigger's own
\set VERBOSITY terse
CALL try_arguments('constants', 'user_id', 'source=''web'', "it''s" = ''it''''s "x", ü'',user_id,empty='''',last=''x''');
CALL try_arguments('constants', 'user_id', 'source=''only''');
CALL try_arguments('constants', 'user_id', 'source=''web');
CALL try_arguments('constants', 'user_id', 'source=''web''x');
CALL try_arguments('constants', 'user_id', '''web''');
CALL try_arguments('constants', 'user_id=''1''');
CALL try_arguments('constants', 'user_id', '', 'achieved_at=''now''');
\set VERBOSITY default
SELECT properties FROM goals WHERE goal = 'constants' ORDER BY properties;

-- computed properties: a generated column
CREATE TABLE computed (user_id int, amount numeric, vat numeric, gross numeric GENERATED ALWAYS AS (amount + vat) STORED,
	paid timestamp, paid_at timestamptz GENERATED ALWAYS AS (paid AT TIME ZONE 'Europe/Berlin') STORED);
CREATE TRIGGER computed AFTER INSERT ON computed FOR EACH ROW
	EXECUTE FUNCTION absmartly_track_trigger('computed', 'user_id', 'gross,currency=''EUR''', 'achieved_at=paid_at');
INSERT INTO computed VALUES (1, 100, 19, DEFAULT, '2024-07-01 12:00');
SELECT properties, event_time AT TIME ZONE 'UTC' AS achieved_at FROM goals WHERE goal = 'computed';

--
-- What cannot work is refused when it is made
--
CREATE TABLE made (id int, user_id int, amount numeric, at timestamp, other int);
CREATE TRIGGER wrong AFTER INSERT ON made FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('made', 'user');
CREATE TRIGGER wrong AFTER INSERT ON made FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('made', 'amount');
CREATE TRIGGER wrong AFTER INSERT ON made FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('made', 'user_id', '', 'achieved_at=at');
CREATE TRIGGER wrong AFTER INSERT ON made FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('', 'user_id');
CREATE TRIGGER wrong BEFORE UPDATE ON made FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('made', 'user_id');
CREATE TRIGGER wrong AFTER INSERT ON made FOR EACH STATEMENT EXECUTE FUNCTION absmartly_track_trigger('made', 'user_id');
CREATE VIEW made_view AS SELECT * FROM made;
CREATE TRIGGER wrong INSTEAD OF INSERT ON made_view FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('made', 'user_id');
CREATE SCHEMA made_schema CREATE TABLE made (user_id int)
	CREATE TRIGGER wrong AFTER INSERT ON made FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('made', 'user');
SELECT count(*) FROM pg_trigger WHERE tgname = 'wrong';
SELECT count(*) FROM absmartly_check_triggers();
-- a change that takes from it what it needs is refused as well
DROP VIEW made_view;
CREATE TRIGGER made AFTER INSERT ON made FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('made', 'user_id', 'amount');
ALTER TABLE made RENAME COLUMN amount TO total;
\set VERBOSITY terse
ALTER TABLE made RENAME COLUMN user_id TO customer_id;
ALTER TABLE made DROP COLUMN amount;
ALTER TABLE made DROP COLUMN amount CASCADE;
ALTER TABLE made ALTER COLUMN user_id TYPE numeric;
-- another one is not
ALTER TABLE made ALTER COLUMN user_id TYPE bigint;
ALTER TABLE made RENAME COLUMN id TO number;
ALTER TABLE made DROP COLUMN other, ADD COLUMN another int;
ALTER TABLE made RENAME TO made_anew;
ALTER TABLE made_anew RENAME TO made;
INSERT INTO made VALUES (1, 1, 1);
-- nor while the trigger is disabled
ALTER TABLE made DISABLE TRIGGER made;
ALTER TABLE made RENAME COLUMN amount TO total;
ALTER TABLE made ENABLE TRIGGER made;
SELECT relation, trigger, enabled, problem FROM absmartly_check_triggers();
CREATE OR REPLACE TRIGGER made AFTER INSERT ON made FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('made', 'user_id', 'amount=total');
ALTER TABLE made ENABLE TRIGGER made;
INSERT INTO made VALUES (2, 2, 2);
SELECT properties FROM goals WHERE goal = 'made' ORDER BY properties;
-- by way of parents, of types and of what they depend on
CREATE TABLE family (user_id int, region text, amount int) PARTITION BY LIST (region);
CREATE TABLE family_eu PARTITION OF family FOR VALUES IN ('eu');
CREATE TRIGGER child AFTER INSERT ON family_eu FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('made', 'user_id', 'amount');
ALTER TABLE family RENAME COLUMN amount TO total;
CREATE TRIGGER wrong AFTER INSERT ON family FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('made', 'user_id', 'price');
CREATE DOMAIN made_domain AS int;
CREATE TABLE of_domain (user_id int, amount made_domain);
CREATE TRIGGER made AFTER INSERT ON of_domain FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('made', 'user_id', 'amount');
DROP DOMAIN made_domain CASCADE;
-- with a collation, the type of another relation's rows, or what a generated column names
CREATE COLLATION made_collation FROM "C";
CREATE TABLE made_rows (id int);
CREATE VIEW made_row AS SELECT 1 AS id;
CREATE FUNCTION made_gross(numeric) RETURNS numeric LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';
CREATE TEXT SEARCH CONFIGURATION made_words (COPY = simple);
CREATE TABLE of_others (user_id int, price numeric, note text COLLATE made_collation, rows made_rows, row made_row,
	gross numeric GENERATED ALWAYS AS (made_gross(price)) STORED, words tsvector GENERATED ALWAYS AS (to_tsvector('made_words', '')) STORED);
CREATE TRIGGER made AFTER INSERT ON of_others FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('made', 'user_id', 'note,rows,row,gross,words');
DROP COLLATION made_collation CASCADE;
DROP TABLE made_rows CASCADE;
DROP VIEW made_row CASCADE;
DROP FUNCTION made_gross CASCADE;
DROP TEXT SEARCH CONFIGURATION made_words CASCADE;
DROP TABLE of_others, made_rows CASCADE;
DROP FUNCTION made_gross;
CREATE TYPE made_type AS (user_id int, amount int);
CREATE TABLE of_type OF made_type;
CREATE TRIGGER made AFTER INSERT ON of_type FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('made', 'user_id', 'amount');
ALTER TYPE made_type RENAME ATTRIBUTE amount TO total CASCADE;
SELECT count(*) FROM absmartly_check_triggers();
-- absmartly.trigger_errors = warning takes it with a warning
SET absmartly.trigger_errors = warning;
CREATE TRIGGER wrong AFTER INSERT ON made FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('made', 'user_id', 'cost');
ALTER TABLE made RENAME COLUMN total TO amount;
RESET absmartly.trigger_errors;
-- what was wrong before is not another command's fault
ALTER TABLE of_domain RENAME COLUMN user_id TO customer_id;
ALTER TABLE of_domain ADD COLUMN other int;
\set VERBOSITY default
SELECT relation, trigger, enabled, sqlstate, problem, detail, hint FROM absmartly_check_triggers() ORDER BY trigger;
DROP TABLE made CASCADE;
SELECT count(*) FROM absmartly_check_triggers();

--
-- Wrong timing, where nothing has kept a trigger from being made: event triggers are off
--
ALTER EVENT TRIGGER absmartly_check_command DISABLE;
CREATE TABLE timing (user_id int);
CREATE TRIGGER wrong BEFORE INSERT OR UPDATE OR DELETE ON timing FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('timing', 'user_id');
INSERT INTO timing VALUES (1);
SET absmartly.trigger_errors = warning;
INSERT INTO timing VALUES (1), (2);
UPDATE timing SET user_id = user_id + 10;
DELETE FROM timing WHERE user_id = 11;
TABLE timing;
RESET absmartly.trigger_errors;
DROP TRIGGER wrong ON timing;
CREATE TRIGGER wrong AFTER INSERT ON timing FOR EACH STATEMENT EXECUTE FUNCTION absmartly_track_trigger('timing', 'user_id');
INSERT INTO timing VALUES (1);
DROP TRIGGER wrong ON timing;
CREATE TRIGGER wrong BEFORE TRUNCATE ON timing FOR EACH STATEMENT EXECUTE FUNCTION absmartly_track_trigger('timing', 'user_id');
TRUNCATE timing;
SET absmartly.trigger_errors = warning;
TRUNCATE timing;
RESET absmartly.trigger_errors;
DROP TRIGGER wrong ON timing;
CREATE VIEW timing_view AS SELECT * FROM timing;
CREATE TRIGGER wrong INSTEAD OF INSERT ON timing_view FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('timing', 'user_id');
INSERT INTO timing_view VALUES (1);
SET absmartly.trigger_errors = warning;
INSERT INTO timing_view VALUES (1);
RESET absmartly.trigger_errors;
SELECT absmartly_track_trigger();
SELECT count(*) FROM goals WHERE goal = 'timing';

--
-- UPDATE, DELETE, deferred triggers
--
CREATE TABLE changing (user_id int, state text);
CREATE TRIGGER changed AFTER UPDATE OF state ON changing FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state)
	EXECUTE FUNCTION absmartly_track_trigger('changed', 'user_id', 'state');
CREATE TRIGGER deleted AFTER DELETE ON changing FOR EACH ROW
	EXECUTE FUNCTION absmartly_track_trigger('deleted', 'user_id', 'state');
CREATE CONSTRAINT TRIGGER late AFTER INSERT OR UPDATE ON changing DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
	EXECUTE FUNCTION absmartly_track_trigger('late', 'user_id', 'state');
INSERT INTO changing VALUES (1, 'new'), (2, 'new');
UPDATE changing SET state = 'paid' WHERE user_id = 1;
UPDATE changing SET state = state;
DELETE FROM changing WHERE user_id = 1;
BEGIN;
UPDATE changing SET state = 'sent';
SET CONSTRAINTS late IMMEDIATE;
INSERT INTO changing VALUES (3, 'immediate');
SET CONSTRAINTS late DEFERRED;
INSERT INTO changing VALUES (4, 'deferred');
COMMIT;
SELECT goal, properties FROM goals WHERE goal IN ('changed', 'deleted', 'late') ORDER BY goal, properties;
MERGE INTO changing USING (VALUES (2, 'merged'), (5, 'added')) AS v (id, state) ON user_id = v.id
	WHEN MATCHED THEN UPDATE SET state = v.state WHEN NOT MATCHED THEN INSERT VALUES (v.id, v.state);
SELECT goal, properties FROM goals WHERE properties ~ 'merged|added' ORDER BY goal, properties;

--
-- Changes of the table and of the trigger
--
CREATE TABLE evolving (a int, user_id int, b text DEFAULT 'b');
CREATE TRIGGER evolving AFTER INSERT ON evolving FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('evolving', 'user_id', '*');
CREATE TRIGGER evolving_b AFTER INSERT ON evolving FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('evolving b', 'user_id', 'b');
INSERT INTO evolving VALUES (1, 1);
ALTER TABLE evolving DROP COLUMN a;
INSERT INTO evolving VALUES (2);
ALTER TABLE evolving ADD COLUMN c int DEFAULT 3;
INSERT INTO evolving VALUES (3);
ALTER TABLE evolving ALTER COLUMN b DROP DEFAULT, ALTER COLUMN b TYPE int USING 1, ALTER COLUMN b SET DEFAULT 4;
INSERT INTO evolving VALUES (4);
ALTER TABLE evolving RENAME COLUMN b TO d;
INSERT INTO evolving VALUES (5);
ALTER TABLE evolving RENAME TO evolved;
INSERT INTO evolved VALUES (5);
ALTER TABLE evolved RENAME COLUMN d TO b;
INSERT INTO evolved VALUES (6);
CREATE OR REPLACE TRIGGER evolving_b AFTER INSERT ON evolved FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('evolving c', 'user_id', 'c');
INSERT INTO evolved VALUES (7);
SELECT goal, properties FROM goals WHERE goal LIKE 'evolving%' ORDER BY goal, properties;
-- a row that is older than a column
ALTER TABLE evolved ADD COLUMN e int DEFAULT 5;
CREATE TRIGGER removed AFTER DELETE ON evolved FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('removed', 'user_id', 'e,c');
DELETE FROM evolved WHERE user_id = 7;
SELECT goal, properties FROM goals WHERE goal = 'removed';

--
-- The text of a value is the same whatever the session's settings are
--
ALTER EVENT TRIGGER absmartly_check_command ENABLE;
CREATE TYPE money_range AS RANGE (SUBTYPE = money);
CREATE TYPE float_range AS RANGE (SUBTYPE = float8);
CREATE TYPE interval_range AS RANGE (SUBTYPE = interval);
CREATE TYPE parts AS (t timestamptz, i interval, b bytea, m money);
CREATE DOMAIN span AS interval;
CREATE TABLE settled (user_id int, c_bytea bytea, c_interval interval, c_money money, c_date date, c_timestamp timestamp, c_timestamptz timestamptz,
	c_timetz timetz, c_float float8, c_point point, c_circle circle, c_daterange daterange, c_tsrange tsrange, c_tstzrange tstzrange,
	c_tstzmultirange tstzmultirange, c_money_range money_range, c_float_range float_range, c_interval_range interval_range,
	c_intervals interval[], c_moneys money[], c_parts parts, c_many_parts parts[], c_span span, c_regclass regclass, c_regtype regtype,
	c_ranges tstzrange[]);
CREATE TRIGGER settled AFTER INSERT ON settled FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('settled', 'user_id', '*');
CREATE TABLE to_settle (LIKE settled);
INSERT INTO to_settle VALUES (1, '\x00ff', '1 day 02:03:00.5', 1234567.89::numeric::money, '2024-02-03', '2024-02-03 01:02:03.5', '2024-02-03 01:02:03.5+00',
	'01:02+03', 0.1, '(0.1,0.2)', '<(0.1,0.2),0.3>', '[2024-02-03,2024-02-05)', '["2024-02-03 01:02:03","2024-02-05 00:00:00")',
	'[2024-02-03 01:02:03+00,2024-02-05 00:00:00+00)', '{[2024-02-03 01:02:03+00,2024-02-05 00:00:00+00)}', money_range(1::money, 1000::money),
	'[0.1,0.3)', interval_range('1 hour', '2 days'), '{1 day,2 hours}', ARRAY[(-5.05)::numeric::money, 0::money, '-92233720368547758.08'::money],
	ROW ('2024-02-03 01:02:03.5+00', '1 day', '\x01', 1000::money), ARRAY[ROW ('2024-02-03 01:02:03.5+00', '1 day', '\x01', (-1000)::money)::parts],
	'3 days', 'settled', 'parts', ARRAY['[2024-02-03 01:02:03+00,2024-02-05 00:00:00+00)'::tstzrange]);
SET TimeZone = 'UTC';
INSERT INTO settled TABLE to_settle;
SET DateStyle = 'SQL, DMY';
SET IntervalStyle = iso_8601;
SET TimeZone = 'Asia/Tokyo';
SET extra_float_digits = -5;
SET bytea_output = escape;
SET lc_monetary = 'POSIX';
SET quote_all_identifiers = on;
SET search_path = '';
INSERT INTO trigger_test.settled TABLE trigger_test.to_settle;
SHOW DateStyle;
SHOW TimeZone;
RESET DateStyle;
RESET IntervalStyle;
RESET TimeZone;
RESET extra_float_digits;
RESET bytea_output;
RESET lc_monetary;
RESET quote_all_identifiers;
SET search_path = trigger_test, public, absmartly_elsewhere;
SELECT key, value FROM (SELECT DISTINCT properties FROM goals WHERE goal = 'settled') AS g, json_each(properties::json);

-- a unit's cast to text may change
SET client_min_messages = warning;
CREATE TYPE castable;
CREATE FUNCTION castable_in(cstring) RETURNS castable LANGUAGE internal IMMUTABLE STRICT AS 'int4in';
CREATE FUNCTION castable_out(castable) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'int4out';
CREATE TYPE castable (INPUT = castable_in, OUTPUT = castable_out, LIKE = int4, CATEGORY = 'S');
CREATE FUNCTION castable_text(castable) RETURNS text LANGUAGE sql AS $$ SELECT 'cast' $$;
CREATE CAST (castable AS text) WITH FUNCTION castable_text(castable);
RESET client_min_messages;
CREATE TABLE casts (u castable);
CREATE TRIGGER casts AFTER INSERT ON casts FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('casts', 'u');
INSERT INTO casts VALUES ('7');
DROP CAST (castable AS text);
DROP FUNCTION castable_text;
INSERT INTO casts VALUES ('7');
SELECT units ->> 'u' = absmartly_hash_unit('cast') AS cast, units ->> 'u' = absmartly_hash_unit('7') AS output
FROM goals WHERE goal = 'casts' ORDER BY 1 DESC;

--
-- Partitions whose columns are in another order
--
CREATE TABLE parted (user_id int, amount int, region text) PARTITION BY LIST (region);
CREATE TABLE parted_eu (region text, gone int, amount int, user_id int);
ALTER TABLE parted_eu DROP COLUMN gone;
ALTER TABLE parted ATTACH PARTITION parted_eu FOR VALUES IN ('eu');
CREATE TABLE parted_us PARTITION OF parted FOR VALUES IN ('us');
CREATE TRIGGER parted AFTER INSERT OR UPDATE OR DELETE ON parted FOR EACH ROW
	EXECUTE FUNCTION absmartly_track_trigger('parted', 'user_id', 'amount,region');
INSERT INTO parted VALUES (1, 10, 'eu'), (2, 20, 'us'), (3, 30, 'eu'), (4, 40, 'us');
UPDATE parted SET amount = amount + 1 WHERE user_id IN (1, 2);
UPDATE parted SET region = 'us' WHERE user_id = 3;
DELETE FROM parted WHERE user_id IN (1, 4);
COPY parted FROM stdin;
5	50	eu
6	60	us
\.
SELECT (SELECT id FROM generate_series(1, 6) AS id WHERE units = jsonb_build_object('user_id', absmartly_hash_unit(id::text))) AS user_id, properties
FROM goals WHERE goal = 'parted' ORDER BY user_id, properties;

-- a row that moves is new to its partition: a condition tells it from one that is new to the table
CREATE TABLE moving (user_id int, state text, created_at timestamptz NOT NULL DEFAULT now()) PARTITION BY LIST (state);
CREATE TABLE moving_open PARTITION OF moving FOR VALUES IN ('open');
CREATE TABLE moving_paid PARTITION OF moving FOR VALUES IN ('paid');
CREATE TRIGGER moving AFTER INSERT ON moving FOR EACH ROW WHEN (NEW.created_at >= now())
	EXECUTE FUNCTION absmartly_track_trigger('moving', 'user_id', 'state');
INSERT INTO moving (user_id, state) VALUES (1, 'open'), (2, 'paid');
UPDATE moving SET state = 'paid' WHERE user_id = 1;
SELECT properties FROM goals WHERE goal = 'moving' ORDER BY properties;

--
-- Errors and warnings
--
CREATE TABLE fragile (user_id text, price numeric, at timestamptz, attrs jsonb);
CREATE TRIGGER fragile AFTER INSERT ON fragile FOR EACH ROW
	EXECUTE FUNCTION absmartly_track_trigger('fragile', 'user_id', 'price', 'achieved_at=at', 'attributes=attrs');
INSERT INTO fragile VALUES (E' \t', 1);
INSERT INTO fragile VALUES (repeat('ü', 641), 2);
INSERT INTO fragile VALUES ('u', 3, 'infinity');
INSERT INTO fragile VALUES ('u', 4, NULL, '[]');
SELECT count(*) FROM fragile;
SET absmartly.trigger_errors = warning;
INSERT INTO fragile VALUES ('u1', 0, NULL, NULL), (E' \t', 1, NULL, NULL), (repeat('ü', 641), 2, NULL, NULL),
	('u', 3, 'infinity', NULL), ('u', 4, NULL, '[]'), ('u2', 5, '2024-05-01', '{"a": 5}');
SELECT count(*) FROM fragile;
ALTER TABLE fragile RENAME COLUMN price TO cost;
INSERT INTO fragile VALUES ('u3', 6);
ALTER TABLE fragile RENAME COLUMN cost TO price;
INSERT INTO fragile VALUES ('u4', 7);
SELECT properties, attributes FROM goals WHERE goal = 'fragile' ORDER BY properties;
-- with SQLSTATEs
\set VERBOSITY sqlstate
INSERT INTO fragile VALUES (E' \t', 1, NULL), ('u', 3, 'infinity');
RESET absmartly.trigger_errors;
INSERT INTO fragile VALUES (E' \t', 1);
INSERT INTO fragile VALUES ('u', 3, 'infinity');
SET absmartly.trigger_errors = warning;
ALTER TABLE fragile RENAME COLUMN price TO cost;
RESET absmartly.trigger_errors;
INSERT INTO fragile VALUES ('u3', 6);
ALTER TABLE fragile RENAME COLUMN cost TO price;
\set VERBOSITY default

-- a type whose conversion to JSON tracks goals itself, makes the map of the trigger that called it stale, and fails
CREATE TABLE casting (user_id int, m mood, after int);
CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE 'GRANT SELECT ON casting TO pg_monitor';
	EXECUTE 'REVOKE SELECT ON casting FROM pg_monitor';
	INSERT INTO orders VALUES (1000 + (SELECT count(*) FROM orders), 77, 777);
	IF $1 = 'sad' THEN RAISE EXCEPTION 'too %', $1 USING ERRCODE = 'AB123', HINT = 'Cheer up.'; END IF;
	RETURN to_json('<' || $1::text || '>');
END $$;
CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood);
CREATE TRIGGER casting AFTER INSERT ON casting FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('casting', 'user_id', 'm,after');
INSERT INTO casting VALUES (1, 'so "so"', 1);
INSERT INTO casting VALUES (2, 'sad', 2);
SET absmartly.trigger_errors = warning;
INSERT INTO casting VALUES (3, 'sad', 3), (4, 'so "so"', 4), (5, NULL, 5);
RESET absmartly.trigger_errors;
SELECT count(*) FROM casting;
-- what the failed conversions did is undone
SELECT goal, properties FROM goals WHERE goal = 'casting' OR properties LIKE '{"amount":777,%' ORDER BY goal, properties;
-- cancelling is no error of the row
CREATE OR REPLACE FUNCTION mood_json(mood) RETURNS json LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_sleep(60); RETURN 'null'; END $$;
SET absmartly.trigger_errors = warning;
SET statement_timeout = '200ms';
\set VERBOSITY sqlstate
INSERT INTO casting VALUES (6, 'sad', 6);
\set VERBOSITY default
RESET statement_timeout;
RESET absmartly.trigger_errors;
SELECT count(*) FROM casting;

--
-- Large events
--
CREATE TABLE big (user_id int, note text, attrs jsonb);
CREATE TRIGGER big AFTER INSERT ON big FOR EACH ROW
	EXECUTE FUNCTION absmartly_track_trigger('big', 'user_id', 'user_id,note', 'attributes=attrs');
INSERT INTO big SELECT n, string_agg(md5(n || ' ' || i), ''), NULL FROM unnest(ARRAY[1, 30000, 40000]) AS n, generate_series(1, n) AS i GROUP BY n ORDER BY n;
INSERT INTO big VALUES (2, repeat('x', 3000000), '{"a": 1}');
INSERT INTO big VALUES (3, repeat('"', 600000), '{"a": 1}');
INSERT INTO big VALUES (4, 'short', jsonb_build_object('a', repeat('x', 2000000)));
INSERT INTO big VALUES (5, 'short', jsonb_build_object('a', repeat('x', 1000000)));
SELECT left(properties, 60) AS properties, length(properties), length(attributes::text) AS attributes
FROM goals WHERE goal = 'big' ORDER BY properties, attributes;
SELECT count(*) FROM big;
SET absmartly.max_event_size = '10MB';
INSERT INTO big VALUES (6, repeat('x', 3000000));
RESET absmartly.max_event_size;
SELECT length(properties) FROM goals WHERE goal = 'big' AND length(properties) > 2000000;

-- many rows
CREATE TABLE many (user_id bigint, amount numeric, items int, currency text);
CREATE TRIGGER many AFTER INSERT ON many FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('many', 'user_id', 'amount,items,currency');
INSERT INTO many SELECT n, n * 0.01, n % 7, 'EUR' FROM generate_series(1, 20000) AS n;
SELECT count(*), count(DISTINCT units), sum((properties::json ->> 'amount')::numeric) FROM goals WHERE goal = 'many';

-- whoever inserts needs no rights on anything of ours
CREATE ROLE trigger_user;
GRANT USAGE ON SCHEMA trigger_test TO trigger_user;
GRANT INSERT ON many TO trigger_user;
SET ROLE trigger_user;
SET search_path = '';
INSERT INTO trigger_test.many VALUES (20001);
RESET ROLE;
SET search_path = trigger_test, public, absmartly_elsewhere;
SELECT properties FROM goals WHERE goal = 'many' AND properties LIKE '{"amount":null%';
SET client_min_messages = warning;
DROP SCHEMA trigger_test CASCADE;
DROP ROLE trigger_user;
RESET client_min_messages;
