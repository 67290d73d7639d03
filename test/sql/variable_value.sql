--
-- Values of variables that expose the experiments they come from
--
SELECT current_database() AS home \gset
CREATE DATABASE regress_absmartly_variable_value TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C';
-- events are where the views find them when their transaction has committed, not on a way through memory
ALTER DATABASE regress_absmartly_variable_value SET absmartly.async_commit = off;
\c regress_absmartly_variable_value
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS absmartly;
RESET client_min_messages;
\pset null NULL

-- what was committed since the last look
CREATE TEMP TABLE looked (at timestamptz);
CREATE FUNCTION pg_temp.queued(OUT exposure text, OUT variant int, OUT assigned boolean, OUT overridden boolean, OUT unit_types text[],
	OUT attributes text, OUT historic boolean, OUT at timestamptz)
RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
	last timestamptz := COALESCE((SELECT max(l.at) FROM looked l), '-infinity');
BEGIN
	INSERT INTO looked SELECT max(created) FROM absmartly_pending_events;
	RETURN QUERY SELECT e.experiment, e.variant, e.assigned, e.overridden, e.unit_types,
		(SELECT string_agg((a ->> 'name') || '=' || (a -> 'value'), ' ') FROM json_array_elements(e.attributes) AS a),
		e.historic, CASE WHEN e.event_time < now() - interval '1 hour' THEN e.event_time END
	FROM absmartly_pending_events e WHERE e.created > last
	ORDER BY e.created, e.record, e.context, e.experiment_id, e.event_time;
END
$$;

-- without data
SELECT absmartly_variable_value('{"user_id": 1}', 'shared', 'default');
SET absmartly.on_not_ready = control;
SELECT absmartly_variable_value('{"user_id": 1}', 'shared', 'default', '{"a": 1}');
SELECT absmartly_variable_value('{"user_id": ""}', 'shared', 'default');
RESET absmartly.on_not_ready;
SELECT count(*) FROM absmartly_pending_events;

-- In the order of their ids: one whose audience is strict, one whose variant 1 has no variables, one of another unit type, and
-- one that is full on and has variables of its own.  All have "shared".
CREATE FUNCTION pg_temp.experiment(id int, name text, config json, changes jsonb)
RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object(
		'id', id, 'name', name, 'iteration', 1, 'unitType', 'user_id', 'seedHi', 55006150, 'seedLo', 47189152,
		'split', '[0, 1]'::jsonb, 'trafficSeedHi', 705671872, 'trafficSeedLo', 212903484, 'trafficSplit', '[0, 1]'::jsonb,
		'fullOnVariant', 0, 'variants', jsonb_build_array(jsonb_build_object('config', '{"shared": "control of ' || name || '"}'),
			jsonb_build_object('config', config::text))) || changes
$$;
SELECT absmartly_set_context_data(jsonb_build_object('experiments', jsonb_build_array(
	pg_temp.experiment(40, 'full on', '{"shared": "full on", "int": 7, "text": "red", "null": null, "document": {"a": [1, 1.50]}}', '{"fullOnVariant": 1}'),
	pg_temp.experiment(10, 'strict', '{"shared": "strict"}',
		'{"audience": "{\"filter\":[{\"gte\":[{\"var\":\"age\"},{\"value\":20}]}]}", "audienceStrict": true}'),
	pg_temp.experiment(30, 'of sessions', '{"shared": "of sessions"}', '{"unitType": "session_id"}'),
	pg_temp.experiment(20, 'silent', '{}', '{"variants": [{"config": "{\"shared\": 1}"}, {"config": null}]}')))::json);

-- all that are consulted on the way are exposed, until one gives a value
SELECT absmartly_variable_value('{"user_id": 1, "session_id": "s1"}', 'shared', 'default', '{"age": 5}');
SELECT exposure, variant, assigned, unit_types, attributes FROM pg_temp.queued();
SELECT absmartly_variable_value('{"user_id": 1}', 'shared', 'default', '{"age": 20}');
SELECT exposure, variant, assigned, unit_types, attributes FROM pg_temp.queued();
-- once, whatever function exposes them
SELECT absmartly_variable_value('{"user_id": 1}', 'shared', 'default', '{"age": 20}') AS value, absmartly_unit_treatment(1, 'strict', '{"age": 20}') AS treatment;
SELECT count(*) FROM pg_temp.queued();
SELECT absmartly_unit_treatment(2, 'strict', '{"age": 20}') AS treatment, absmartly_variable_value('{"user_id": 2}', 'shared', 'default', '{"age": 20}') AS value;
SELECT exposure FROM pg_temp.queued();
-- no unit: exposed, no value but where an experiment is full on
SELECT absmartly_variable_value('{}', 'shared', 'default', '{"age": 20}');
SELECT exposure, variant, assigned, unit_types FROM pg_temp.queued();
-- a variant out of range is passed over, and not exposed; an override counts without a unit
SET absmartly.overrides = '{"strict": 9, "silent": 0}';
SELECT absmartly_variable_value('{}', 'shared', 'default');
SELECT exposure, variant, assigned, overridden FROM pg_temp.queued();
RESET absmartly.overrides;
-- nobody has it; peeking exposes nobody
SELECT absmartly_variable_value('{"user_id": 3}', 'unheard of', 'default') AS unheard_of, absmartly_peek_variable_value('{"user_id": 3}', 'shared', 'default') AS peek;
SELECT count(*) FROM pg_temp.queued();

-- times, history
SELECT absmartly_variable_value('{"user_id": 1}', 'int', 0, NULL, '2024-02-29 00:00:00+00') AS timed, absmartly_variable_value('{"user_id": 1}', 'int', 0, historic => true) AS historic,
	absmartly_variable_value('{"user_id": 1}', 'int', 0, NULL, '2024-02-29 00:00:00+00', true) AS both;
SELECT exposure, historic, at AT TIME ZONE 'UTC' AS at FROM pg_temp.queued();

-- types are those of peeking
SELECT absmartly_variable_value('{"user_id": 4}', 'int', 0) AS int, absmartly_variable_value('{"user_id": 4}', 'int', 0::numeric) AS numeric,
	absmartly_variable_value('{"user_id": 4}', 'text', '') AS text, absmartly_variable_value('{"user_id": 4}', 'document', '{}'::jsonb) AS jsonb,
	absmartly_variable_value('{"user_id": 4}', 'null', 'x') AS "null", absmartly_variable_value('{"user_id": 4}', 'null', 'null'::jsonb) AS json_null,
	pg_typeof(absmartly_variable_value('{"user_id": 4}', 'int', 'x')) AS of_literal, pg_typeof(absmartly_variable_value('{"user_id": 4}', 'int', 0::bigint)) AS of_bigint;
-- a value that does not fit gives the default, the experiment is exposed all the same
SELECT absmartly_variable_value('{"user_id": 5}', 'text', 7) AS "default";
SELECT exposure, unit_types FROM pg_temp.queued();
SELECT absmartly_variable_value('{"user_id": 5}', 'text', current_date) = current_date AS "default", absmartly_variable_value('{"user_id": 5}', 'text', NULL::date) AS "null";

-- NULLs
SELECT absmartly_variable_value(NULL, 'int', 1) AS units, absmartly_variable_value('{"user_id": 6}', NULL, 1) AS key,
	absmartly_variable_value('{"user_id": 6}', 'unheard of', NULL::int) AS "default";
SELECT count(*) FROM pg_temp.queued();
SELECT absmartly_variable_value('{"user_id": 6}', 'int', NULL::int) AS found;
SELECT exposure FROM pg_temp.queued();

-- errors
\set VERBOSITY sqlstate
SELECT absmartly_variable_value('[]', 'int', 1);
SELECT absmartly_variable_value('{"user_id": 7, "x": true}', 'int', 1);
SELECT absmartly_variable_value('{"user_id": 7, "x": true}', 'unheard of', 1);
SELECT absmartly_variable_value('{"user_id": 7}', repeat('k', 1025), 1);
SELECT absmartly_variable_value('{"user_id": 7}', 'int', 1, '[]');
SELECT absmartly_variable_value('{"user_id": 7}', 'int', 1, NULL, 'infinity');
SELECT absmartly_variable_value((SELECT jsonb_object_agg('u' || i, i) FROM generate_series(1, 257) AS i), 'int', 1);
\set VERBOSITY default
SELECT count(*) FROM pg_temp.queued();

\c :home
DROP DATABASE regress_absmartly_variable_value;
