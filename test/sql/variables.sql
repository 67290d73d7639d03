--
-- Variables, custom fields and the list of experiments
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS absmartly;
RESET client_min_messages;

-- One experiment that is full on has a value of each kind; others share a key.
SELECT absmartly_set_context_data(json_build_object('experiments', json_build_array(
	json_build_object('id', 7, 'name', 'kinds', 'iteration', 3, 'unitType', 'user_id', 'seedHi', 0, 'seedLo', 0, 'split', '[0.5, 0.5]'::json,
		'trafficSeedHi', 0, 'trafficSeedLo', 0, 'trafficSplit', '[0, 1]'::json, 'fullOnVariant', 1,
		'variants', json_build_array(
			json_build_object('name', 'A', 'config', '{"only in A": 1}'),
			json_build_object('name', 'B', 'config', '{"text": "red ↓", "empty": "", "digits": "12", "true": true, "false": false, "null": null,
				"int": 42, "float": 1.5, "integral": 3.0, "exponent": 1e3, "big": 3000000000, "bigger": 1e30, "huge": 1e400, "tiny": 1e-400, "third": 0.3333333333333333333333,
				"object": {"a": [1, 2]}, "array": [1, "two", null], "date": "2026-02-28", "no date": "2026-02-30",
				"uuid": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "minus": -32769, "min8": -9223372036854775808, "over8": 9223372036854775808, "long": "' || repeat('n', 64) || '"}'))),
	json_build_object('id', 3, 'name', 'second', 'iteration', 1, 'unitType', 'user_id', 'seedHi', 1, 'seedLo', 2, 'split', '[0, 1]'::json,
		'trafficSeedHi', 0, 'trafficSeedLo', 0, 'trafficSplit', '[0, 1]'::json, 'fullOnVariant', 0,
		'variants', '[{"config": "{\"shared\": \"second control\"}"}, {"config": "{\"shared\": \"second\"}"}]'::json,
		'audience', '{"filter":[{"eq":[{"var":"beta"},{"value":true}]}]}', 'audienceStrict', true,
		'customFieldValues', '[{"name": "owner", "type": "string", "value": "team ç"}, {"name": "size", "type": "number", "value": " 0x10 "},
			{"name": "broken", "type": "number", "value": "12px"}, {"name": "tags", "type": "json", "value": "{\"a\": [1, null]}"},
			{"name": "empty", "type": "json", "value": "null"}, {"name": "live", "type": "boolean", "value": "true"},
			{"name": "odd", "type": "colour", "value": "red"}, {"name": "none", "type": "text", "value": null}]'::json),
	json_build_object('id', 2, 'name', 'first', 'iteration', 1, 'unitType', 'session_id', 'seedHi', 3, 'seedLo', 4, 'split', '[0, 1]'::json,
		'trafficSeedHi', 0, 'trafficSeedLo', 0, 'trafficSplit', '[0, 1]'::json, 'fullOnVariant', 0,
		'variants', '[{"config": null}, {"config": "{\"shared\": \"first\"}"}]'::json,
		'holdoutIds', '[4, 5]'::json, 'assignmentRules', '{"rules":[]}',
		'customFieldValues', '[{"name": "size", "type": "string", "value": "L"}, {"name": "owner", "type": "text", "value": ""}]'::json)),
	'holdouts', '[{"id": 5, "seedHi": 1, "seedLo": 1, "split": [0, 1]}]'::json));
\pset null NULL

-- text gets the contents of a string and the JSON text of all else
SELECT key, absmartly_peek_variable_value('{"user_id": 1}', key, 'default') AS value
FROM unnest(ARRAY['text', 'empty', 'digits', 'true', 'null', 'int', 'float', 'integral', 'exponent', 'object', 'array', 'only in A', 'unheard of']) AS key;
-- jsonb gets the value as it is, JSON null included
SELECT key, absmartly_peek_variable_value('{"user_id": 1}', key, '"default"'::jsonb) AS jsonb,
	absmartly_peek_variable_value('{"user_id": 1}', key, '"default"'::json) AS json
FROM unnest(ARRAY['text', 'true', 'null', 'integral', 'exponent', 'object', 'array', 'unheard of']) AS key;

-- one warning for all that does not fit; without shared memory parallel workers would know of none before theirs
SELECT current_setting('shared_preload_libraries') = 'absmartly' AS preloaded \gset
\if :preloaded
\else
SET max_parallel_workers_per_gather = 0;
\endif
SELECT absmartly_peek_variable_value('{"user_id": 1}', 'text', 7) AS int;
SELECT key, absmartly_peek_variable_value('{"user_id": 1}', key, 7) AS int4,
	absmartly_peek_variable_value('{"user_id": 1}', key, 7::smallint) AS int2,
	absmartly_peek_variable_value('{"user_id": 1}', key, 7::bigint) AS int8,
	absmartly_peek_variable_value('{"user_id": 1}', key, 7::numeric) AS numeric,
	absmartly_peek_variable_value('{"user_id": 1}', key, 7::real) AS real,
	absmartly_peek_variable_value('{"user_id": 1}', key, 7::double precision) AS double,
	absmartly_peek_variable_value('{"user_id": 1}', key, true) AS boolean
FROM unnest(ARRAY['int', 'float', 'integral', 'exponent', 'big', 'bigger', 'third', 'minus', 'min8', 'over8', 'digits', 'true', 'false', 'null', 'object']) AS key;
SELECT absmartly_peek_variable_value('{"user_id": 1}', 'huge', 7.5::double precision) AS double,
	length(absmartly_peek_variable_value('{"user_id": 1}', 'huge', 7::numeric)::text) AS numeric,
	absmartly_peek_variable_value('{"user_id": 1}', 'bigger', 7::real) AS real,
	absmartly_peek_variable_value('{"user_id": 1}', 'tiny', 7::double precision) AS tiny;
SELECT absmartly_peek_variable_value('{"user_id": 1}', 'text', 'x'::varchar(3)) AS varchar,
	absmartly_peek_variable_value('{"user_id": 1}', 'text', 'x'::char(3)) AS char,
	absmartly_peek_variable_value('{"user_id": 1}', 'text', 'x'::name) AS name,
	pg_typeof(absmartly_peek_variable_value('{"user_id": 1}', 'int', 'x'::name)) AS of_name,
	pg_typeof(absmartly_peek_variable_value('{"user_id": 1}', 'int', 'x')) AS of_literal;

-- other types read strings
CREATE TYPE pg_temp.colour AS ENUM ('red ↓', 'green');
CREATE DOMAIN pg_temp.small AS int CHECK (VALUE < 50);
CREATE DOMAIN pg_temp.required AS int NOT NULL;
CREATE DOMAIN pg_temp.flag AS boolean;
CREATE DOMAIN pg_temp.document AS jsonb CHECK (jsonb_typeof(VALUE) = 'object');
CREATE DOMAIN pg_temp.inverse AS int CHECK (1 / (VALUE - 42) IS NOT NULL); -- its check can fail with an error of its own
SELECT key, absmartly_peek_variable_value('{"user_id": 1}', key, '1999-12-31'::date) AS date,
	absmartly_peek_variable_value('{"user_id": 1}', key, '00000000-0000-0000-0000-000000000000'::uuid) AS uuid,
	absmartly_peek_variable_value('{"user_id": 1}', key, 'green'::pg_temp.colour) AS enum,
	absmartly_peek_variable_value('{"user_id": 1}', key, '{7}'::int[]) AS "array",
	absmartly_peek_variable_value('{"user_id": 1}', key, '[1,2)'::int4range) AS range
FROM unnest(ARRAY['date', 'no date', 'uuid', 'text', 'array', 'int', 'null', 'unheard of']) AS key;
SELECT key, absmartly_peek_variable_value('{"user_id": 1}', key, 7::pg_temp.small) AS small,
	absmartly_peek_variable_value('{"user_id": 1}', key, 7::pg_temp.required) AS required,
	absmartly_peek_variable_value('{"user_id": 1}', key, true::pg_temp.flag) AS flag,
	absmartly_peek_variable_value('{"user_id": 1}', key, '{}'::pg_temp.document) AS document
FROM unnest(ARRAY['int', 'big', 'digits', 'text', 'empty', 'false', 'null', 'object', 'array']) AS key;
-- the transaction goes on after a value that did not fit
BEGIN;
SELECT absmartly_peek_variable_value('{"user_id": 1}', 'text', '{7}'::int[]) AS "array",
	absmartly_peek_variable_value('{"user_id": 1}', 'no date', now()) = now() AS timestamptz;
SELECT absmartly_peek_variable_value('{"user_id": 1}', 'text', 'pg_class'::regclass) AS regclass;
SELECT key, absmartly_peek_variable_value('{"user_id": 1}', key, 7::pg_temp.inverse) AS inverse FROM unnest(ARRAY['int', 'minus', 'text']) AS key;
COMMIT;

-- a key of several experiments: the lowest id that gives a value
SELECT absmartly_variable_keys() -> 'shared' AS names;
SELECT units, beta, absmartly_peek_variable_value(units, 'shared', 'default', jsonb_build_object('beta', beta)) AS value
FROM (VALUES ('{"user_id": 1, "session_id": 2}'::jsonb, true), ('{"user_id": 1}', true), ('{"user_id": 1}', false), ('{}', true)) AS v (units, beta);
-- the control of an experiment counts if the unit is assigned, an override in any case
SELECT absmartly_peek_variable_value('{"user_id": 1}', 'only in A', 0) AS full_on_b;
SET absmartly.overrides = '{"kinds": 0, "second": 0, "first": 9}';
SELECT absmartly_peek_variable_value('{}', 'only in A', 0) AS overridden,
	absmartly_peek_variable_value('{}', 'shared', 'default') AS skips_variant_9;
RESET absmartly.overrides;

-- NULLs
SELECT absmartly_peek_variable_value(NULL, 'int', 1) AS units,
	absmartly_peek_variable_value('{"user_id": 1}', NULL, 1) AS key,
	absmartly_peek_variable_value('{"user_id": 1}', 'int', NULL::int) AS found,
	absmartly_peek_variable_value('{"user_id": 1}', 'unheard of', NULL::int) AS "default",
	absmartly_peek_variable_value('{"user_id": 1}', 'text', NULL) AS unknown_literal,
	absmartly_peek_variable_value('{"user_id": 1}', 'true', NULL::date) AS unfit;
SELECT absmartly_peek_variable_value('{"user_id": 1}', repeat('k', 1025), 1);
SELECT absmartly_peek_variable_value('{"user_id": 1}', 'int', 1, '[]');

-- a call site that sees many keys
SELECT i, absmartly_peek_variable_value('{"user_id": 1}', key, 0) AS value
FROM (VALUES (1, 'int'), (2, 'minus'), (3, 'int'), (4, 'unheard of')) AS v (i, key) ORDER BY i;

-- what there is
SELECT key, names FROM jsonb_each(absmartly_variable_keys()) AS k (key, names) WHERE key IN ('shared', 'int', 'only in A') ORDER BY key;
SELECT absmartly_custom_field_keys();
SELECT experiment, field, absmartly_custom_field_value(experiment, field) AS value, absmartly_custom_field_value_type(experiment, field) AS type
FROM unnest(ARRAY['second', 'first', 'unheard of']) AS experiment, unnest(ARRAY['owner', 'size', 'broken', 'tags', 'empty', 'live', 'odd', 'none', 'missing']) AS field
WHERE absmartly_custom_field_value_type(experiment, field) IS NOT NULL OR field IN ('missing', 'size');
SELECT absmartly_custom_field_value(NULL, 'size') AS experiment, absmartly_custom_field_value('first', NULL) AS field;
SELECT absmartly_custom_field_value('first', repeat('f', 1025));

\x
SELECT name, id, iteration, unit_type, variants, split, traffic_split, full_on_variant, audience, audience_strict, rules, holdout_ids,
	variables[:2] AS variables, custom_fields FROM absmartly_experiments;
\x
-- for everybody
SELECT has_table_privilege('public', 'absmartly_experiments', 'SELECT') AS "select", has_table_privilege('public', 'absmartly_experiments', 'INSERT') AS "insert";
CREATE ROLE regress_absmartly_reader;
SET ROLE regress_absmartly_reader;
SELECT count(*) FROM absmartly_experiments;
RESET ROLE;
DROP ROLE regress_absmartly_reader;

-- a value lies in the data as the server would have stored it
CREATE TEMP TABLE texts AS
SELECT n, value FROM (VALUES
	(1, 'null'), (2, 'true'), (3, '-12.5e-3'), (4, '""'), (5, '"text ↓"'), (6, '[]'), (7, '{}'), (8, '[[], {}, [[]], [{}]]'),
	(9, '{"b": 1, "a": [2], "": 0, "bb": "c", "aa": null, "b": 3, "B": {"b": {"a": 1.50, "c": [1, "two", 3e2]}}}'),
	(10, (SELECT json_agg(i)::text FROM generate_series(1, 100) i)),
	(11, (SELECT json_object_agg('key ' || i, repeat('x', i))::text FROM generate_series(100, 1, -1) i)),
	(12, (SELECT json_agg(json_build_object('a', i, 'list', json_build_array(i, 'text ' || i, i * 0.25), 'o', json_build_object(repeat('é', i % 40), i)))::text
		FROM generate_series(1, 2000) i))) v (n, value);
SELECT absmartly_set_context_data(json_build_object('experiments', json_build_array(json_build_object(
	'id', 1, 'name', 'stored', 'unitType', 'user_id', 'seedHi', 0, 'seedLo', 0, 'split', '[0, 1]'::json, 'trafficSeedHi', 0, 'trafficSeedLo', 0,
	'trafficSplit', '[0, 1]'::json, 'fullOnVariant', 1, 'variants', json_build_array(json_build_object('name', 'A'),
		json_build_object('name', 'B', 'config', (SELECT '{' || string_agg('"value ' || n || '": ' || value, ', ') || '}' FROM texts)))))));
CREATE TEMP TABLE stored AS
SELECT *, pg_column_size(stored) = pg_column_size(expected) AS same_size FROM (
	SELECT n, value::jsonb AS expected, absmartly_peek_variable_value('{"user_id": 1}', 'value ' || n, NULL::jsonb) AS stored FROM texts
	UNION ALL
	SELECT 0, (SELECT jsonb_object_agg('value ' || n, value::jsonb) FROM texts), variables FROM absmartly_assignments('{"user_id": 1}')) s;
SELECT n, stored = expected AS equal, stored::text = expected::text AS same_text, same_size
FROM stored ORDER BY n;
SELECT octet_length(jsonb_send(stored)) AS bytes, stored #> '{1999,list}' AS last, stored -> 33 -> 'o' AS object FROM stored WHERE n = 12;
SELECT count(*) FROM stored, jsonb_object_keys(expected) AS key WHERE n IN (0, 9, 11) AND stored -> key IS DISTINCT FROM expected -> key;
