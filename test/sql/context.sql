--
-- Session contexts
--
SELECT current_database() AS home \gset
CREATE DATABASE regress_absmartly_context TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C';
-- events are where the views find them when their transaction has committed, not on a way through memory
ALTER DATABASE regress_absmartly_context SET absmartly.async_commit = off;
\c regress_absmartly_context
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS absmartly;
RESET client_min_messages;
\pset null NULL

-- what the functions are
SELECT p.proname AS function, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result,
	p.provolatile AS volatile, p.proparallel AS parallel, p.proisstrict AS strict, has_function_privilege('public', p.oid, 'EXECUTE') AS for_all
FROM pg_proc p WHERE p.proname LIKE 'absmartly\_context\_%'
ORDER BY p.proname COLLATE "C", pg_get_function_arguments(p.oid) COLLATE "C";
SELECT p.oid::regprocedure AS without_comment
FROM pg_proc p WHERE p.proname LIKE 'absmartly\_%' AND obj_description(p.oid, 'pg_proc') IS NULL ORDER BY p.oid::regprocedure::text COLLATE "C";

-- what a statement leads to: its value, or its error
CREATE FUNCTION result_of(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
	message text;
	detail text;
	hint text;
BEGIN
	EXECUTE 'SELECT (absmartly_context_' || statement || ')::text' INTO result;
	RETURN COALESCE(NULLIF(result, ''), CASE WHEN result IS NULL THEN 'NULL' ELSE 'done' END);
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN SQLSTATE || ': ' || message || CASE WHEN detail <> '' THEN ' DETAIL: ' || detail ELSE '' END
		|| CASE WHEN hint <> '' THEN ' HINT: ' || hint ELSE '' END;
END
$$;

-- one call of each function, and whether what it does is done by others before it
CREATE TABLE calls (n int GENERATED ALWAYS AS IDENTITY, call text);
INSERT INTO calls (call) VALUES
	('id() IS NOT NULL'), ('is_ready()'), ('is_failed()'), ('is_finalizing()'), ('is_finalized()'), ('ready_error()'),
	('get_unit(''user_id'')'), ('units()'), ('get_attribute(''plan'')'), ('attributes()'),
	('set_override(''known'', 2)'), ('set_overrides(''{"other": 3}'')'), ('get_override(''known'')'),
	('get_custom_assignment(''known'')'), ('pending()'), ('experiments()'), ('data() IS NULL'),
	('set_unit(''email'', ''a@b.c'')'), ('set_unit(''number'', 12)'), ('set_units(''{"session_id": "abc"}'')'),
	('set_attribute(''plan'', ''free'')'), ('set_attribute(''age'', 30)'), ('set_attributes(''{"country": "de"}'')'),
	('set_custom_assignment(''plain'', 1)'), ('set_custom_assignments(''{"other": 1}'')'),
	('peek_treatment(''known'')'), ('treatment(''known'')'), ('peek_variable_value(''colour'', ''none'')'), ('peek_variable_value(''colour'', ''[]''::jsonb)'),
	('variable_value(''colour'', ''none'')'), ('variable_value(''size'', 1)'), ('variable_keys()'),
	('custom_field_value(''known'', ''owner'')'), ('custom_field_value_type(''known'', ''owner'')'), ('custom_field_keys()'),
	('track(''signup'')'), ('track(''signup'', ''{"a": 1}'')');

-- without a context
SELECT call, result_of(call) FROM calls ORDER BY n;
SELECT call, left(result_of(call), 5) AS sqlstate FROM unnest(ARRAY['refresh()', 'publish()', 'finalize()', 'close()']) AS call;

--
-- Not ready: there is no data
--
SELECT absmartly_context_create();
SELECT absmartly_context_finalize();
SELECT absmartly_context_is_finalized(), absmartly_context_is_ready(), absmartly_context_wait_until_ready();
SELECT absmartly_context_create('{"user_id": 5}', '{"plan": "basic"}');
SELECT call, result_of(call) FROM calls ORDER BY n;
SELECT call, result_of(call) FROM unnest(ARRAY['refresh()', 'publish()', 'wait_until_ready(NULL)', 'wait_until_ready(''-1 s'')']) AS call;
-- what was set is kept, and the goals wait
SELECT absmartly_context_units(), absmartly_context_attributes(), absmartly_context_pending();
SET absmartly.on_not_ready = error;
SELECT absmartly_context_treatment('known') AS still_no_error;
RESET absmartly.on_not_ready;

CREATE FUNCTION experiment(id int, name text, changes jsonb DEFAULT '{}') RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object(
		'id', id, 'name', name, 'iteration', 1, 'unitType', 'user_id', 'seedHi', 55006150, 'seedLo', 47189152,
		'split', '[0.25, 0.25, 0.25, 0.25]'::jsonb, 'trafficSeedHi', 705671872, 'trafficSeedLo', 212903484,
		'trafficSplit', '[0, 1]'::jsonb, 'fullOnVariant', 0, 'variants', '[{}, {}, {}, {}]'::jsonb,
		'audience', NULL, 'audienceStrict', false) || changes
$$;
CREATE FUNCTION context_data() RETURNS json LANGUAGE sql AS $$
	SELECT json_build_object('experiments', json_build_array(
		experiment(1, 'plain'),
		experiment(7, 'known', '{"variants": [{"config": "{\"colour\": \"grey\"}"}, {"config": "{\"colour\": \"red\", \"size\": 12}"}, {}, {}],
			"customFieldValues": [{"name": "owner", "type": "string", "value": "team ç"}, {"name": "size", "type": "number", "value": " 0x10 "},
				{"name": "broken", "type": "number", "value": "12px"}, {"name": "tags", "type": "json", "value": "{\"a\": [1, null]}"},
				{"name": "empty", "type": "json", "value": "null"}, {"name": "live", "type": "boolean", "value": "true"},
				{"name": "odd", "type": "colour", "value": "red"}, {"name": "none", "type": "text", "value": null}]}'),
		experiment(3, 'strict', '{"audience": "{\"filter\":[{\"gte\":[{\"var\":\"age\"},{\"value\":40}]}]}", "audienceStrict": true,
			"customFieldValues": [{"name": "reviewer", "type": "text", "value": "x"}, {"name": "owner", "type": "text", "value": ""}],
			"variants": [{"config": "{\"strict\": 1}"}, {"config": "{\"strict\": 2}"}, {"config": "{\"strict\": 2}"}, {"config": "{\"strict\": 2}"}]}'),
		experiment(4, 'kinds', '{"fullOnVariant": 1, "variants": [{}, {"config": "{\"text\": \"red ↓\", \"empty\": \"\", \"digits\": \"12\", \"true\": true, \"null\": null, \"int\": 42, \"float\": 1.5, \"integral\": 3.0, \"big\": 3000000000, \"object\": {\"a\": [1, 2]}, \"array\": [1, \"two\", null], \"date\": \"2026-02-28\", \"uuid\": \"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11\"}"}]}'),
		experiment(5, 'first of two', '{"variants": [{"config": "{\"shared\": 0}"}, {"config": "{\"own\": 1}"}, {"config": "{\"own\": 1}"}, {"config": "{\"own\": 1}"}]}'),
		experiment(6, 'second of two', '{"fullOnVariant": 2, "variants": [{}, {}, {"config": "{\"shared\": \"second\"}"}]}')))
$$;

-- data comes: the same context is ready, and has kept what it was told
SELECT absmartly_set_context_data(context_data());
SELECT absmartly_context_wait_until_ready('0 s') AS ready, absmartly_context_is_ready(), absmartly_context_is_failed(), absmartly_context_pending();
SELECT call, result_of(call) FROM calls ORDER BY n;

--
-- Ids, and one context after the other
--
SELECT absmartly_context_id() ~ '^[0-9a-f]{16}$' AS hexadecimal, absmartly_context_id() AS id \gset
SELECT absmartly_context_id() = :'id' AS stays;
SELECT absmartly_context_create();
SELECT absmartly_context_id() = :'id' AS replaced, absmartly_context_pending(), absmartly_context_units(), absmartly_context_attributes(),
	absmartly_context_get_override('known'), absmartly_context_is_ready();

--
-- Units
--
SELECT units, result_of(format('create(%L)', units))
FROM (VALUES ('{"user_id": 5}'), ('{"user_id": " 5 ", "big": 18446744073709551616, "f": 2.5}'), ('{"user_id": ""}'), ('{"user_id": "  "}'), ('{"user_id": true}'),
	('{"user_id": []}'), ('{"user_id": {}}'), ('{"user_id": null}'), ('[]'), ('1'), ('"user_id"'), ('null')) AS v (units);
SELECT result_of('create(NULL)') AS null_units, result_of(format('create(%L)', jsonb_build_object('user_id', repeat('x', 641)))) AS long_uid,
	result_of(format('create(%L)', jsonb_build_object('user_id', repeat('x', 640)))) AS longest_uid;
SELECT call AS long_name, result_of(format('%s(%L)', call, jsonb_build_object(repeat('x', 1025), 1)))
FROM unnest(ARRAY['set_units', 'set_attributes', 'set_overrides', 'set_custom_assignments']) AS call;

-- a failed creation leaves the context before it alone
SELECT absmartly_context_create('{"user_id": 5}');
SELECT absmartly_context_id() AS id \gset
SELECT result_of('create(''{"user_id": true}'')');
SELECT absmartly_context_id() = :'id' AS same, absmartly_context_units();

SELECT absmartly_context_create('{"user_id": " 5 "}');
SELECT call, result_of(call) FROM unnest(ARRAY['get_unit(''user_id'')', 'set_unit(''user_id'', ''5'')', 'set_unit(''user_id'', ''  5'')', 'set_unit(''user_id'', ''6'')',
	'set_unit(''user_id'', 5)', 'set_unit(''a'', 5)', 'set_unit(''a'', 5.0)', 'set_unit(''a'', ''5'')', 'set_unit(''a'', 5::bigint)', 'set_unit(''a'', 6)',
	'set_unit(''blank'', '''')', 'set_unit(''blank'', ''   '')', 'set_unit(''b'', true)', 'set_unit(''b'', ''null''::jsonb)', 'set_unit(''b'', ''[1]''::jsonb)', 'set_unit(''b'', ARRAY[1])',
	'set_unit(''b'', ''"x"''::jsonb)', 'set_unit(''c'', ''a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11''::uuid)', 'set_unit(''d'', 2.5::float8)', 'set_unit(''e'', 7::smallint)',
	'set_unit(''f'', ''v''::varchar)', 'set_unit(''g'', 12345678901234567890123)', 'set_unit(''h'', NULL::text)', 'set_unit(NULL, ''x'')', 'set_unit(''h'', NULL::int)',
	'set_unit(''h'', ''NaN''::float8)', 'set_unit(''h'', repeat(''x'', 641))', 'get_unit(''h'')', 'get_unit(NULL)', 'get_unit(''unheard of'')',
	'set_units(''{"i": 1, "j": "x"}'')', 'set_units(''{"i": 1, "k": true}'')', 'set_units(''{"i": 2}'')', 'set_units(''[]'')', 'set_units(NULL)', 'units()']) AS call;

--
-- Attributes: reading gives the last value, what is sent is all that was set, in order
--
SELECT absmartly_context_create('{"user_id": 5}', '{"b": 1, "a": null}');
SELECT call, result_of(call) FROM unnest(ARRAY['set_attribute(''plan'', ''free'')', 'get_attribute(''plan'')', 'set_attribute(''plan'', ''basic'')', 'get_attribute(''plan'')',
	'set_attribute(''n'', 1.50)', 'set_attribute(''t'', true)', 'set_attribute(''o'', ''{"k": [1, null]}''::jsonb)', 'set_attribute(''j'', ''{"z": 1, "a": 2}''::json)',
	'set_attribute(''x'', NULL::text)', 'set_attribute(''y'', NULL::int)', 'set_attribute(''array'', ARRAY[1, 2])', 'set_attribute(''at'', DATE ''2026-02-28'')',
	'set_attribute(NULL, 1)', 'set_attribute(NULL, ''x'')', 'get_attribute(NULL)', 'get_attribute(''a'')', 'get_attribute(''unheard of'')', 'get_attribute(''x'')',
	'set_attributes(''{"c": 1, "b": {"d": 2}}'')', 'set_attributes(''[]'')', 'set_attributes(NULL)', 'set_attributes(''"x"'')', 'attributes()']) AS call;
SELECT result_of('create(''{}'', ''[]'')') AS array_, result_of('create(''{}'', ''1'')') AS number;
SELECT absmartly_context_track('look at the attributes');
SELECT string_agg((a ->> 'name') || '=' || (a -> 'value'), ' ' ORDER BY i) AS sent,
	bool_and((a ->> 'setAt')::bigint BETWEEN extract(epoch FROM now() - interval '1 hour') * 1000 AND extract(epoch FROM clock_timestamp()) * 1000) AS times
FROM absmartly_pending_events e, json_array_elements(e.attributes) WITH ORDINALITY AS x (a, i) WHERE goal = 'look at the attributes';
-- at most 1000 of them: what was superseded goes first
SELECT absmartly_context_create('{"user_id": 5}', '{"first": 1}');
SELECT count(absmartly_context_set_attribute('often', i)) FROM generate_series(1, 3000) AS i;
SELECT count(absmartly_context_set_attribute('rare ' || i, i)) FROM generate_series(1, 200) AS i;
SELECT absmartly_context_track('many');
SELECT count(*), count(*) FILTER (WHERE a ->> 'name' = 'first') AS first, count(*) FILTER (WHERE a ->> 'name' LIKE 'rare%') AS rare,
	min((a ->> 'value')::int) FILTER (WHERE a ->> 'name' = 'often') > 2000 AS newest, max((a ->> 'value')::int) AS last
FROM absmartly_pending_events e, json_array_elements(e.attributes) AS a WHERE goal = 'many';
SELECT absmartly_context_get_attribute('often'), absmartly_context_get_attribute('first'),
	(SELECT count(*) FROM jsonb_object_keys(absmartly_context_attributes())) AS names;

--
-- Treatments
--
CREATE FUNCTION exposures() RETURNS SETOF text LANGUAGE sql AS $$
	SELECT concat_ws(' ', experiment, '#' || experiment_id, COALESCE(unit_type, '-'), variant, CASE WHEN assigned THEN 'assigned' END, CASE WHEN NOT eligible THEN 'not eligible' END,
		CASE WHEN overridden THEN 'overridden' END, CASE WHEN full_on THEN 'full on' END, CASE WHEN custom THEN 'custom' END,
		CASE WHEN audience_mismatch THEN 'mismatch' END, CASE WHEN rule_override THEN 'rule' END)
	FROM absmartly_pending_events WHERE kind = 'exposure' AND context_id = absmartly_context_id()
	ORDER BY experiment COLLATE "C", variant
$$;
SELECT absmartly_context_create('{"user_id": 5}');
SELECT absmartly_context_peek_treatment('known') AS peek, absmartly_context_pending() AS pending;
SELECT absmartly_context_treatment('known') AS treatment, absmartly_context_treatment('known') AS again, absmartly_context_pending() AS pending;
SELECT absmartly_context_treatment('unheard of'), absmartly_context_treatment(NULL), absmartly_context_peek_treatment(NULL), absmartly_context_pending() AS pending;
SELECT absmartly_context_treatment('strict') AS mismatch, result_of('set_attribute(''age'', 50)'), absmartly_context_treatment('strict') AS matches,
	absmartly_context_treatment('kinds') AS full_on, absmartly_context_pending() AS pending;
SELECT exposures();
-- the one-shot functions have nothing to do with it
SELECT absmartly_peek_treatment('{"user_id": 5}', 'known') = absmartly_context_peek_treatment('known') AS same_variant;
SELECT absmartly_treatment('{"user_id": 5}', 'known') IS NOT NULL AS one_shot, absmartly_context_pending() AS pending;

-- overrides
SELECT absmartly_context_create('{"user_id": 5}');
SELECT call, result_of(call) FROM unnest(ARRAY['get_override(''known'')', 'set_override(''known'', 0)', 'get_override(''known'')', 'treatment(''known'')', 'treatment(''known'')',
	'set_override(''known'', 70)', 'treatment(''known'')', 'variable_value(''colour'', ''none'')', 'set_overrides(''{"plain": 2, "unheard of": 127}'')', 'set_overrides(''{"plain": -1}'')', 'set_override(''plain'', 128)', 'treatment(''plain'')', 'treatment(''unheard of'')',
	'set_override(''known'', NULL)', 'get_override(''known'')', 'set_override(NULL, 1)', 'get_override(NULL)', 'set_overrides(''{"known": 1.5}'')', 'set_overrides(''{"known": "1"}'')',
	'set_overrides(''[]'')', 'set_overrides(NULL)', 'get_override(''known'')', 'pending()']) AS call;
SELECT exposures();

-- those of the setting count, too, unless the context has its own
SET absmartly.overrides = '{"known": 3, "plain": 3}';
SELECT absmartly_context_create('{"user_id": 5}');
SELECT absmartly_context_set_override('plain', 1);
SELECT absmartly_context_treatment('known') AS by_setting, absmartly_context_treatment('plain') AS by_context, absmartly_context_get_override('known');
RESET absmartly.overrides;
SELECT absmartly_context_peek_treatment('known') <> 3 AS without_it, absmartly_context_peek_treatment('plain');

-- custom assignments
SELECT absmartly_context_create('{"user_id": 5}');
SELECT call, result_of(call) FROM unnest(ARRAY['get_custom_assignment(''known'')', 'set_custom_assignment(''known'', 0)', 'get_custom_assignment(''known'')', 'treatment(''known'')', 'treatment(''known'')',
	'set_custom_assignment(''known'', 9)', 'treatment(''known'')', 'set_custom_assignments(''{"plain": 2, "kinds": 0}'')', 'treatment(''plain'')', 'treatment(''kinds'')',
	'set_custom_assignment(''known'', NULL)', 'get_custom_assignment(''known'')', 'set_custom_assignment(NULL, 1)', 'get_custom_assignment(NULL)', 'set_custom_assignments(''{"known": 1.5}'')',
	'set_custom_assignments(''{"known": null}'')', 'set_custom_assignments(''[]'')', 'set_custom_assignments(NULL)', 'pending()']) AS call;
SELECT exposures();

--
-- Variables
--
SELECT absmartly_context_create('{"user_id": 5}');
SELECT absmartly_context_variable_keys();
SELECT key, absmartly_context_peek_variable_value(key, 'default') AS text, absmartly_context_peek_variable_value(key, '"default"'::jsonb) AS jsonb
FROM unnest(ARRAY['text', 'empty', 'digits', 'true', 'null', 'int', 'float', 'integral', 'big', 'object', 'array', 'unheard of', NULL]) AS key;
SELECT absmartly_context_pending() AS not_exposed;
SELECT absmartly_context_variable_value('int', 7) AS int4, absmartly_context_variable_value('int', 7::bigint) AS int8, absmartly_context_variable_value('float', 7::float8) AS float8,
	absmartly_context_variable_value('float', 7::numeric) AS numeric, absmartly_context_variable_value('true', false) AS boolean, absmartly_context_variable_value('date', DATE '2000-01-01') AS date,
	absmartly_context_variable_value('uuid', '00000000-0000-0000-0000-000000000000'::uuid) AS uuid, absmartly_context_variable_value('text', NULL::text) AS text,
	absmartly_context_variable_value('unheard of', NULL::int) AS null_default, pg_typeof(absmartly_context_variable_value('int', 'x')) AS of_literal;
SELECT absmartly_context_variable_value('big', 7) AS too_big;
SELECT absmartly_context_variable_value('text', 7) AS one_warning_is_enough;
SELECT exposures();
-- all experiments that have the key are asked in turn, and exposed
SELECT absmartly_context_create('{"user_id": 5}');
SELECT absmartly_context_variable_value('shared', 'default'), absmartly_context_variable_value('strict', 0) AS strict_default, absmartly_context_pending();
SELECT exposures();

--
-- Custom fields
--
SELECT name, absmartly_context_custom_field_value('known', name) AS value, absmartly_context_custom_field_value_type('known', name) AS type
FROM unnest(ARRAY['owner', 'size', 'broken', 'tags', 'empty', 'live', 'odd', 'none', 'unheard of', NULL]) AS name;
SELECT absmartly_context_custom_field_value('unheard of', 'owner'), absmartly_context_custom_field_value_type('unheard of', 'owner'),
	absmartly_context_custom_field_value(NULL, 'owner'), absmartly_context_custom_field_value_type(NULL, 'owner');
SELECT absmartly_context_custom_field_keys(), absmartly_context_experiments();
SELECT absmartly_context_data()::jsonb = context_data()::jsonb AS data;

--
-- Goals
--
SELECT absmartly_context_create('{"user_id": 5}');
SELECT call, result_of(call) FROM unnest(ARRAY['track(''plain'')', 'track(''empty'', ''{}'')', 'track(''kinds'', ''{"n": 1.50, "l": [1, null], "o": {"k": "x"}}'')', 'track(''json null'', ''null'')',
	'track(''array'', ''[]'')', 'track(''text'', ''"x"'')', 'track(''number'', ''0'')', 'track(''boolean'', ''false'')', 'track(''it''''s'', ''1'')', 'track(NULL)', 'track(NULL, ''{}'')',
	'track(''dated'', NULL, ''2024-02-29 12:00:00.0019+00'')', 'track(''endless'', NULL, ''infinity'')', 'track('''')', 'pending()']) AS call;
SELECT goal, properties, CASE WHEN event_time BETWEEN now() - interval '1 hour' AND clock_timestamp() THEN 'now' ELSE (event_time AT TIME ZONE 'UTC')::text END AS at, units <> '{}' AS units
FROM absmartly_pending_events WHERE kind = 'goal' AND context_id = absmartly_context_id() ORDER BY goal COLLATE "C";
-- a context without units has goals, too
SELECT absmartly_context_create();
SELECT absmartly_context_track('nobody''s'), absmartly_context_pending();
SELECT goal, units FROM absmartly_pending_events WHERE context_id = absmartly_context_id();

--
-- Options
--
SELECT options, result_of(format('create(options => %L)', options))
FROM (VALUES ('{}'), ('{"publish_delay": -1}'), ('{"publish_delay": 0, "refresh_interval": 0}'), ('{"publish_delay": 1000, "refresh_interval": 60000}'), ('{"historic": true}'),
	('{"include_system_attributes": true}'), ('{"scope": "session"}'), ('{"publish_delay": null}'), ('{"publish_delay": -2}'), ('{"publish_delay": "1 s"}'), ('{"publish_delay": 1.5}'),
	('{"publish_delay": 1e30}'), ('{"refresh_interval": -1}'), ('{"refresh_interval": true}'), ('{"historic": "yes"}'), ('{"historic": 1}'), ('{"include_system_attributes": 0}'),
	('{"scope": "statement"}'), ('{"scope": 1}'), ('{"publishDelay": -1}'), ('{"Scope": "session"}'), ('[]'), ('1'), ('null')) AS v (options);
SELECT result_of('create(options => NULL)');
-- historic
SELECT absmartly_context_create('{"user_id": 5}', options => '{"historic": true}');
SELECT absmartly_context_track('of old');
SELECT historic FROM absmartly_pending_events WHERE goal = 'of old';
SET absmartly.historic = on;
SELECT absmartly_context_create('{"user_id": 5}');
SELECT absmartly_context_track('of old by the setting');
SELECT absmartly_context_create('{"user_id": 5}', options => '{"historic": false}');
SELECT absmartly_context_track('not of old by its option');
RESET absmartly.historic;
SELECT goal, historic FROM absmartly_pending_events WHERE goal LIKE '%of old by%' ORDER BY goal;
-- the transaction's: gone at its end
BEGIN;
SELECT absmartly_context_create('{"user_id": 5}', options => '{"scope": "transaction"}');
SELECT absmartly_context_treatment('known') IS NOT NULL AS treated, absmartly_context_pending();
COMMIT;
SELECT result_of('id()');
SELECT absmartly_context_create('{"user_id": 5}', options => '{"scope": "transaction"}');
SELECT result_of('id()');
SET absmartly.context_scope = transaction;
BEGIN;
SELECT absmartly_context_create('{"user_id": 5}');
SELECT absmartly_context_units();
ROLLBACK;
SELECT result_of('id()');
RESET absmartly.context_scope;
SELECT absmartly_context_create('{"user_id": 5}');
SELECT absmartly_context_create('{"user_id": 6}', options => '{"scope": "transaction"}');
SELECT result_of('units()') AS no_return_of_the_other;
SET absmartly.context_scope = statement;

--
-- Prefetched data
--
SELECT absmartly_context_create('{"user_id": 5}', data => json_build_object('experiments', json_build_array(experiment(1, 'own', '{"fullOnVariant": 3}'))));
SELECT absmartly_context_is_ready(), absmartly_context_experiments(), absmartly_context_treatment('own'), absmartly_context_treatment('known') AS unknown, absmartly_context_data() ->> 'experiments' IS NOT NULL AS data;
SELECT name FROM absmartly_experiments ORDER BY name COLLATE "C";
SELECT data, result_of(format('create(data => %L)', data)), result_of('is_ready()') AS ready, result_of('is_failed()') AS failed, result_of('experiments()') AS experiments,
	result_of('ready_error()') AS error
FROM (VALUES ('{}'), ('{"experiments": null}'), ('{"experiments": []}'), ('{"experiments": {}}'), ('[]'), ('1'), ('null'),
	('{"experiments": [{"id": 1, "name": "broken", "unitType": "user_id", "trafficSplit": [0, 1], "variants": []}]}')) AS v (data);

--
-- The end
--
SELECT absmartly_context_create('{"user_id": 5}', '{"plan": "free"}');
SELECT absmartly_context_peek_treatment('known') AS peek;
SELECT absmartly_context_finalize();
SELECT absmartly_context_is_ready(), absmartly_context_is_failed(), absmartly_context_is_finalizing(), absmartly_context_is_finalized();
SELECT call, result_of(call) FROM calls ORDER BY n;
SELECT call, result_of(call) FROM unnest(ARRAY['refresh()', 'publish()', 'finalize()', 'close()', 'wait_until_ready()', 'units()', 'attributes()', 'get_override(''known'')', 'pending()']) AS call;
SELECT absmartly_context_create('{"user_id": 5}');
SELECT absmartly_context_treatment('known') IS NOT NULL AS another_one;
SELECT absmartly_context_create();
SELECT absmartly_context_close();
SELECT absmartly_context_is_finalized();
DISCARD ALL;
SELECT result_of('id()');

--
-- The event logger
--
CREATE TABLE log (n int GENERATED ALWAYS AS IDENTITY, context jsonb, event text, data jsonb);
CREATE FUNCTION log_event(context jsonb, event text, data jsonb) RETURNS void LANGUAGE sql
AS 'INSERT INTO public.log (context, event, data) VALUES (context, event, data)';
SET absmartly.event_logger = 'public.log_event';
SELECT absmartly_context_create('{"user_id": 5}', '{"age": 50}');
SELECT absmartly_context_id() AS id \gset
SELECT absmartly_context_is_ready();
SELECT absmartly_context_peek_treatment('known') IS NOT NULL AS peeked, absmartly_context_treatment('known') IS NOT NULL AS treated, absmartly_context_treatment('known') IS NOT NULL AS again;
SELECT absmartly_context_variable_value('shared', 'default');
SELECT absmartly_context_track('signup', '{"b": 1, "a": null}'), absmartly_context_track('bare');
SELECT result_of('track(''refused'', ''[]'')');
SELECT absmartly_context_set_unit('email', 'x'), absmartly_context_set_attribute('a', 1), absmartly_context_set_override('plain', 1);
BEGIN;
SELECT absmartly_context_track('undone');
ROLLBACK;
SELECT n, event, CASE event WHEN 'ready' THEN (data = context_data()::jsonb)::text ELSE (data - 'exposedAt' - 'achievedAt')::text END AS data,
	abs(COALESCE(data ->> 'exposedAt', data ->> 'achievedAt')::bigint - extract(epoch FROM now()) * 1000) < 3600000 AS now
FROM log ORDER BY n;
SELECT DISTINCT context - 'pid' - 'id' AS context, (context ->> 'pid')::int = pg_backend_pid() AS pid, context ->> 'id' = :'id' AS id FROM log;
TRUNCATE log;
-- a context that nobody asks is told of all the same
SELECT absmartly_context_create();
SELECT event FROM log ORDER BY n;
SELECT absmartly_context_finalize();
SELECT absmartly_context_finalize();
SELECT event, data FROM log ORDER BY n OFFSET 1;
RESET absmartly.event_logger;

\c :home
DROP DATABASE regress_absmartly_context;
