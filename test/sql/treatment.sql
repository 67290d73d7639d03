--
-- Treatments: assignments that queue an exposure
--
SELECT current_database() AS home \gset
CREATE DATABASE regress_absmartly_treatment TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C';
-- events are where the views find them when their transaction has committed, not on a way through memory
ALTER DATABASE regress_absmartly_treatment SET absmartly.async_commit = off;
\c regress_absmartly_treatment
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS absmartly;
RESET client_min_messages;
\pset null NULL

-- the SQLSTATE and the message of a statement's error
CREATE FUNCTION pg_temp.error_of(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
	RETURN 'none';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ': ' || SQLERRM;
END
$$;

-- what was committed since the last look: each flag is a letter, a unit is its type and the start of its hash
CREATE TEMP TABLE looked (at timestamptz);
CREATE FUNCTION pg_temp.queued(OUT context int, OUT exposure text, OUT id bigint, OUT unit text, OUT variant int, OUT flags text,
	OUT units text, OUT attributes text, OUT historic boolean, OUT at text)
RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
	last timestamptz := COALESCE((SELECT max(l.at) FROM looked l), '-infinity');
BEGIN
	INSERT INTO looked SELECT max(created) FROM absmartly_pending_events;
	RETURN QUERY SELECT e.context, e.experiment, e.experiment_id, e.unit_type, e.variant,
		concat(CASE WHEN assigned THEN 'a' END, CASE WHEN eligible THEN 'e' END, CASE WHEN overridden THEN 'o' END,
			CASE WHEN full_on THEN 'f' END, CASE WHEN custom THEN 'c' END, CASE WHEN audience_mismatch THEN 'm' END,
			CASE WHEN rule_override THEN 'r' END, CASE WHEN held_out THEN 'h' || holdout_id END),
		(SELECT string_agg(t || '=' || left(u, 4), ' ' ORDER BY i) FROM unnest(e.unit_types, e.units) WITH ORDINALITY AS x (t, u, i)),
		(SELECT string_agg((a ->> 'name') || '=' || (a -> 'value') ||
			CASE WHEN (a ->> 'setAt')::bigint = (extract(epoch FROM e.event_time) * 1000)::bigint THEN '' ELSE ' at another time' END, ' ' ORDER BY i)
		 FROM json_array_elements(e.attributes) WITH ORDINALITY AS x (a, i)),
		e.historic,
		CASE WHEN e.event_time BETWEEN now() - interval '1 hour' AND clock_timestamp() THEN 'now' ELSE (e.event_time AT TIME ZONE 'UTC')::text END
	FROM absmartly_pending_events e WHERE e.created > last
	ORDER BY e.created, e.record, e.context, e.experiment_id, e.experiment, e.variant, e.event_time;
END
$$;

-- without data: an error, or control and no exposure
SELECT pg_temp.error_of($$SELECT absmartly_treatment('{"user_id": 1}', 'plain')$$) AS treatment,
	pg_temp.error_of($$SELECT absmartly_unit_treatment(1, 'plain')$$) AS unit_treatment;
SET absmartly.on_not_ready = control;
SET absmartly.overrides = '{"other": 3}';
SELECT absmartly_treatment('{"user_id": 1}', 'plain', '{"a": 1}', 1) AS control, absmartly_unit_treatment('x', 'other') AS override;
SELECT pg_temp.error_of($$SELECT absmartly_treatment('[]', 'plain')$$) AS units,
	pg_temp.error_of($$SELECT absmartly_unit_treatment(1, 'plain', '[]')$$) AS attributes;
RESET absmartly.on_not_ready;
RESET absmartly.overrides;
SELECT count(*) FROM absmartly_pending_events;

-- Experiments that differ from the first in what their names say.  The split's seeds give variant 1 to the unit 5.
CREATE FUNCTION pg_temp.experiment(id int, name text, changes jsonb DEFAULT '{}')
RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object(
		'id', id, 'name', name, 'iteration', 1, 'unitType', 'user_id', 'seedHi', 55006150, 'seedLo', 47189152,
		'split', '[0.25, 0.25, 0.25, 0.25]'::jsonb, 'trafficSeedHi', 705671872, 'trafficSeedLo', 212903484,
		'trafficSplit', '[0, 1]'::jsonb, 'fullOnVariant', 0, 'variants', '[{}, {}, {}, {}]'::jsonb,
		'audience', NULL, 'audienceStrict', false) || changes
$$;
CREATE FUNCTION pg_temp.load(iteration int) RETURNS void LANGUAGE sql AS $$
	SELECT absmartly_set_context_data(jsonb_build_object(
		'experiments', jsonb_build_array(
			pg_temp.experiment(1, 'plain', jsonb_build_object('iteration', iteration)),
			pg_temp.experiment(2, 'shut', '{"trafficSplit": [1, 0]}'),
			pg_temp.experiment(3, 'full on', '{"fullOnVariant": 2}'),
			pg_temp.experiment(4, 'strict', '{"audience": "{\"filter\":[{\"gte\":[{\"var\":\"age\"},{\"value\":20}]}]}", "audienceStrict": true}'),
			pg_temp.experiment(5, 'lenient', '{"audience": "{\"filter\":[{\"gte\":[{\"var\":\"age\"},{\"value\":20}]}]}"}'),
			pg_temp.experiment(6, 'ruled', '{"assignmentRules": "{\"rules\":[{\"type\":\"assign\",\"variant\":3}]}"}'),
			pg_temp.experiment(7, 'held back', '{"holdoutIds": [9]}'),
			pg_temp.experiment(8, 'no unit type', '{"unitType": null}'),
			pg_temp.experiment(9, 'of sessions', '{"unitType": "session_id"}')),
		'holdouts', '[{"id": 9, "seedHi": 90210, "seedLo": 4711, "split": [1, 0]}]'::jsonb)::json)
$$;
SELECT pg_temp.load(1);

-- every row of the decision table, with all units in the object's order
SELECT absmartly_treatment('{"session_id": "abc", "user_id": 5, "email": null, "f": 2.5}', 'plain');
SELECT * FROM pg_temp.queued();
SELECT experiment, absmartly_treatment('{"user_id": 6}', experiment) AS variant
FROM unnest(ARRAY['plain', 'shut', 'full on', 'strict', 'lenient', 'ruled', 'held back', 'no unit type', 'of sessions', 'unheard of']) AS experiment;
SELECT * FROM pg_temp.queued();
SELECT experiment, absmartly_treatment('{"user_id": 7}', experiment, '{"age": 30}', 9) AS custom
FROM unnest(ARRAY['plain', 'shut', 'full on', 'strict', 'lenient', 'ruled', 'held back', 'no unit type', 'of sessions', 'unheard of']) AS experiment;
SELECT exposure, id, unit, variant, flags, units, attributes, historic, at FROM pg_temp.queued() ORDER BY id;
SET absmartly.overrides = '{"plain": 3, "strict": 70, "unheard of": 127}';
SELECT absmartly_treatment('{"user_id": 5}', 'plain', custom_variant => 1) AS plain, absmartly_unit_treatment(5, 'strict') AS strict,
	absmartly_unit_treatment(5, 'unheard of') AS unknown;
SELECT * FROM pg_temp.queued();
RESET absmartly.overrides;
-- the variants are those of peeking
SELECT count(*) AS disagreements
FROM generate_series(1, 200) AS i, unnest(ARRAY['plain', 'shut', 'lenient', 'held back', 'of sessions', 'unheard of']) AS experiment
WHERE absmartly_treatment(jsonb_build_object('user_id', i, 'session_id', 's' || i), experiment)
	<> absmartly_peek_treatment(jsonb_build_object('user_id', i, 'session_id', 's' || i), experiment)
	OR absmartly_unit_treatment(i, experiment) <> absmartly_peek_unit_treatment(i, experiment);
SELECT count(*) > 1000 AS queued FROM pg_temp.queued();

-- the hashes are those that assignment uses, of every kind of unit
SELECT absmartly_treatment('{"text": "  açb↓c ", "big": 18446744073709551616, "fraction": -0.5, "decimal": 5.00, "face": "\ud83d\ude00"}'::jsonb ||
	jsonb_build_object('long', repeat('x', 100), 'long face', repeat('y', 70) || U&'\+01F600'), 'hashes');
SELECT bool_and(u = absmartly_hash_unit(expected)) AS ok, count(*)
FROM absmartly_pending_events e, unnest(e.unit_types, e.units) AS x (t, u)
	JOIN (VALUES ('text', 'açb↓c'), ('big', '18446744073709551616'), ('fraction', '-1'), ('decimal', '5'), ('face', U&'\+01F600'),
		('long', repeat('x', 100)), ('long face', repeat('y', 70) || U&'\+01F600')) AS v (type, expected) ON t = type
WHERE e.experiment = 'hashes';
SELECT count(*) AS committed FROM pg_temp.queued();

-- one unit, of the experiment's type: three types of uid
SELECT absmartly_unit_treatment(' u1 ', 'plain') AS text, absmartly_unit_treatment(1234567890123, 'plain') AS bigint,
	absmartly_unit_treatment('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid, 'of sessions') AS uuid;
SELECT exposure, unit, units FROM pg_temp.queued();
SELECT left(absmartly_hash_unit('u1'), 4) AS text, left(absmartly_hash_unit('1234567890123'), 4) AS bigint,
	left(absmartly_hash_unit('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'), 4) AS uuid;
-- without a type, or without an experiment, there is no unit to send
SELECT absmartly_unit_treatment('u1', 'no unit type') AS no_type, absmartly_unit_treatment('u1', 'nobody knows') AS unknown;
SELECT exposure, id, unit, units FROM pg_temp.queued();

-- NULL gives NULL and queues nothing
SELECT absmartly_treatment(NULL, 'plain') AS units, absmartly_treatment('{"user_id": 5}', NULL) AS experiment,
	absmartly_unit_treatment(NULL::text, 'plain') AS text, absmartly_unit_treatment(NULL::bigint, 'plain') AS bigint,
	absmartly_unit_treatment(NULL::uuid, 'plain') AS uuid, absmartly_unit_treatment('x', NULL) AS unit_experiment;
-- neither does peeking
SELECT absmartly_peek_treatment('{"user_id": "peek"}', 'plain') IS NULL AS treatment, absmartly_peek_unit_treatment('peek', 'plain') IS NULL AS unit;
SELECT count(*) FROM pg_temp.queued();

-- an identical exposure is queued once: units beside the experiment's own do not count, what is sent of it does
SELECT absmartly_treatment('{"user_id": "d1"}', 'plain') = absmartly_treatment('{"user_id": "d1", "session_id": "d2"}', 'plain') AS same,
	absmartly_unit_treatment('d1', 'plain') = absmartly_treatment('{"user_id": " d1"}', 'plain', '{"a": 1}') AS same_again;
SELECT absmartly_unit_treatment('d1', 'plain') IS NULL AS later;
SELECT exposure, flags, units, attributes FROM pg_temp.queued();
SELECT absmartly_unit_treatment('d3', 'plain') IS NULL AS other_unit, absmartly_unit_treatment('d1', 'of sessions') IS NULL AS other_type,
	absmartly_treatment('{"user_id": "d1"}', 'plain', custom_variant => 3) AS other_flags;
SELECT exposure, flags, variant = 3 AS three, units FROM pg_temp.queued();
-- of those without a unit of their own all units count
SELECT absmartly_treatment('{"session_id": "d1"}', 'plain') AS one, absmartly_treatment('{"session_id": "d1"}', 'plain') AS again,
	absmartly_treatment('{"session_id": "d1", "x": 1}', 'plain') AS more, absmartly_treatment('{}', 'plain') AS none;
SELECT exposure, variant, flags, units FROM pg_temp.queued();
SELECT absmartly_treatment('{"user_id": "d1"}', 'no such 1') AS one, absmartly_treatment('{"user_id": "d1"}', 'no such 1') AS again,
	absmartly_treatment('{"user_id": "d1"}', 'no such 2') AS other_name, absmartly_treatment('{"user_id": "d2"}', 'no such 1') AS other_unit;
SELECT exposure, id, unit, variant, flags, units FROM pg_temp.queued();
-- a new iteration is another exposure
SELECT pg_temp.load(2);
SELECT absmartly_unit_treatment('d1', 'plain') IS NULL AS new, absmartly_unit_treatment('d1', 'of sessions') IS NULL AS old;
SELECT exposure FROM pg_temp.queued();
-- a call site that sees many experiments
SELECT i, absmartly_unit_treatment('d9', experiment) IS NULL AS "null"
FROM (VALUES (1, 'plain'), (2, 'no such'), (3, 'plain'), (4, 'shut'), (5, 'no such'), (6, 'no suck')) AS v (i, experiment);
SELECT exposure FROM pg_temp.queued();
-- off
SET absmartly.exposure_dedup_interval = 0;
SELECT absmartly_unit_treatment('d1', 'plain') = absmartly_unit_treatment('d1', 'plain') AS same;
SELECT exposure, units FROM pg_temp.queued();
RESET absmartly.exposure_dedup_interval;

-- a given time, or historic, neither consults nor marks
SELECT absmartly_treatment('{"user_id": "t1"}', 'shut', exposed_at => '2024-02-29 12:00:00.0019+00') AS t1,
	absmartly_unit_treatment('t1', 'shut', NULL, '1969-12-31 23:59:59.9999+00') AS before_1970,
	absmartly_unit_treatment('t1', 'shut', historic => true) AS historic,
	absmartly_treatment('{"user_id": "t1"}', 'shut', '{"a": 1}', NULL, '2024-02-29 00:00:00+00', true) AS both,
	absmartly_unit_treatment('t1', 'shut') AS now, absmartly_unit_treatment('t1', 'shut') AS again,
	absmartly_unit_treatment('t1', 'shut', historic => true) AS after;
SELECT * FROM pg_temp.queued();
SET absmartly.historic = on;
SELECT absmartly_unit_treatment('t2', 'shut') AS by_setting, absmartly_unit_treatment('t2', 'shut', historic => false) AS by_argument,
	absmartly_unit_treatment('t2', 'shut') AS again;
SELECT exposure, historic, at FROM pg_temp.queued();
RESET absmartly.historic;

-- attributes: by the bytes of their names, any JSON, toasted or not, set at the exposure's time
SELECT absmartly_unit_treatment('a1', 'plain', '{"bb": 1.50, "é": "x\n\"\\\u0001é", "b": [1, {"a": null, "c": []}, {}], "Z": null, "": true}', '2024-02-29 00:00:00+00');
SELECT units, attributes FROM pg_temp.queued();
SELECT absmartly_unit_treatment('a2', 'plain', '{"big": 1e400, "tiny": -1.0e-400}', '2024-02-29 00:00:00+00') IS NULL AS "null";
SELECT attributes = 'big=1' || repeat('0', 400) || ' tiny=-0.' || repeat('0', 399) || '10' AS exact FROM pg_temp.queued();
CREATE TEMP TABLE toasted (kind text, units jsonb, attributes jsonb);
INSERT INTO toasted VALUES ('short', '{"user_id": "a3"}', '{"age": 20}');
INSERT INTO toasted SELECT 'compressed', '{"user_id": "a4"}', jsonb_build_object('age', 20, 'pad', repeat('x', 10000));
ALTER TABLE toasted ALTER attributes SET STORAGE EXTERNAL, ALTER units SET STORAGE EXTERNAL;
INSERT INTO toasted SELECT 'external', (SELECT jsonb_object_agg('unit ' || i, repeat('u', 600)) FROM generate_series(1, 10) AS i) || '{"user_id": "a5"}',
	jsonb_build_object('age', 20, 'pad', repeat('x', 10000));
SELECT kind, absmartly_treatment(units, 'strict', attributes) IS NOT NULL AS assigned FROM toasted;
SELECT flags, right(units, 12) AS units, left(attributes, 6) AS attributes, length(attributes) FROM pg_temp.queued() ORDER BY 2;
SELECT absmartly_unit_treatment('a6', 'plain', '{}') IS NULL AS empty;
SELECT attributes FROM pg_temp.queued();
-- those of the system come first
SET absmartly.include_system_attributes = on;
SELECT absmartly_unit_treatment('a7', 'plain', '{"age": 1, "application": "mine"}') IS NULL AS with_attributes, absmartly_unit_treatment('a8', 'plain') IS NULL AS without;
SELECT regexp_replace(attributes, 'sdk_version="[^"]*"', 'sdk_version=...') AS attributes FROM pg_temp.queued();
RESET absmartly.include_system_attributes;

-- many units
SELECT absmartly_treatment((SELECT jsonb_object_agg('u' || i, i) || '{"user_id": "m1", "none": null}' FROM generate_series(1, 255) AS i), 'shut');
SELECT array_length(string_to_array(units, ' '), 1) AS units FROM pg_temp.queued();

-- errors, which queue nothing
SELECT pg_temp.error_of('SELECT absmartly_treatment(' || arguments || ')')
FROM (VALUES ($$'[]', 'plain'$$), ($$'null', 'plain'$$), ($$'{"user_id": true}', 'plain'$$), ($$'{"user_id": 1, "other": []}', 'unheard of'$$),
	($$'{"user_id": " "}', 'plain'$$), ($$jsonb_build_object('user_id', repeat('x', 641)), 'plain'$$), ($$jsonb_build_object(repeat('n', 1025), 1), 'plain'$$),
	($$'{"user_id": 1}', repeat('n', 1025)$$), ($$'{"user_id": 1}', 'plain', '[1]'$$), ($$'{"user_id": 1}', 'plain', 'null'$$),
	($$'{"user_id": 1}', 'plain', exposed_at => 'infinity'$$), ($$'{"user_id": 1}', 'plain', exposed_at => '-infinity'$$),
	($$(SELECT jsonb_object_agg('u' || i, i) FROM generate_series(1, 257) AS i), 'plain'$$),
	($$'{"user_id": "e"}', 'plain', (SELECT jsonb_object_agg('a' || i, i) FROM generate_series(1, 1025) AS i)$$),
	($$'{"user_id": "e"}', 'plain', jsonb_build_object(repeat('n', 1025), 1)$$)) AS v (arguments);
SELECT pg_temp.error_of('SELECT absmartly_unit_treatment(' || arguments || ')')
FROM (VALUES ($$'', 'plain'$$), ($$repeat('x', 641), 'plain'$$), ($$1, repeat('n', 1025)$$), ($$1, 'plain', '7'$$), ($$1, 'plain', NULL, 'infinity'$$)) AS v (arguments);
SELECT count(*) FROM pg_temp.queued();
-- the largest that is allowed
SELECT absmartly_unit_treatment('e1', 'shut', (SELECT jsonb_object_agg('a' || i, i) FROM generate_series(1, 1024) AS i)) AS attributes;
SELECT array_length(string_to_array(attributes, ' '), 1) AS attributes FROM pg_temp.queued();
SET absmartly.max_event_size = '2kB';
SELECT pg_temp.error_of($$SELECT absmartly_unit_treatment('e2', 'shut', jsonb_build_object('a', repeat('x', 3000)))$$);
RESET absmartly.max_event_size;

-- a rollback takes exposures and their marks with it, also one to a savepoint
BEGIN;
SELECT absmartly_unit_treatment('r1', 'shut');
ROLLBACK;
BEGIN;
SELECT absmartly_unit_treatment('r2', 'shut');
SAVEPOINT s;
SELECT absmartly_unit_treatment('r3', 'shut') AS r3, absmartly_unit_treatment('r2', 'shut') AS r2_again;
ROLLBACK TO s;
SELECT absmartly_unit_treatment('r4', 'shut') AS r4, absmartly_unit_treatment('r2', 'shut') AS r2_again;
RELEASE s;
SELECT count(*) AS uncommitted FROM pg_temp.queued();
COMMIT;
SELECT units FROM pg_temp.queued();
SELECT absmartly_unit_treatment('r1', 'shut') AS r1, absmartly_unit_treatment('r2', 'shut') AS r2, absmartly_unit_treatment('r3', 'shut') AS r3;
SELECT units FROM pg_temp.queued();
DO $$
BEGIN
	PERFORM absmartly_unit_treatment('r5', 'shut');
	BEGIN
		PERFORM absmartly_unit_treatment('r6', 'shut');
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
		PERFORM absmartly_unit_treatment('r7', 'shut');
	END;
END
$$;
SELECT units FROM pg_temp.queued();
SELECT left(absmartly_hash_unit(u), 4) AS hash, u FROM unnest(ARRAY['r1', 'r2', 'r3', 'r4', 'r5', 'r6', 'r7']) AS u;

-- what no collector takes is answered, and not queued; that is said once
SELECT absmartly_set_context_data(json_build_object('experiments', json_build_array(
	pg_temp.experiment(1, 'large', '{"fullOnVariant": 500}'), pg_temp.experiment(2, 'negative', '{"fullOnVariant": -1}'),
	pg_temp.experiment(3, 'last', '{"fullOnVariant": 127}'), pg_temp.experiment(4, 'no split', '{"split": []}'))));
SELECT absmartly_unit_treatment('i1', 'large') AS large, absmartly_unit_treatment('i1', 'negative') AS negative,
	absmartly_unit_treatment('i1', 'last') AS last, absmartly_unit_treatment('i1', 'no split') AS no_split,
	absmartly_unit_treatment('i1', '') AS no_name;
SELECT absmartly_unit_treatment('i1', 'large') AS large;
SELECT exposure, variant FROM pg_temp.queued();
SELECT pg_temp.error_of(format($$SELECT absmartly_treatment('{"user_id": 1}', 'last', custom_variant => %s)$$, variant)) AS error
FROM unnest(ARRAY[-1, 127, 128]) AS variant;
SELECT exposure, variant FROM pg_temp.queued();

-- data without holdouts
SELECT absmartly_set_context_data(json_build_object('experiments', json_build_array(pg_temp.experiment(7, 'held back', '{"holdoutIds": [9]}'))));
SELECT absmartly_unit_treatment('h1', 'held back') IS NULL AS "null";
SELECT exposure, flags FROM pg_temp.queued();

-- declarations
SELECT p.oid::regprocedure AS function, p.provolatile AS volatile, p.proparallel AS parallel, p.proisstrict AS strict, p.procost > 1 AS has_cost, d.description
FROM pg_proc p LEFT JOIN pg_description d ON d.objoid = p.oid AND d.classoid = 'pg_proc'::regclass
WHERE p.proname IN ('absmartly_treatment', 'absmartly_unit_treatment', 'absmartly_variable_value', 'absmartly_track')
ORDER BY p.oid::regprocedure::text COLLATE "C";

\c :home
DROP DATABASE regress_absmartly_treatment;
