--
-- Goals
--
SELECT current_database() AS home \gset
CREATE DATABASE regress_absmartly_track TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C';
-- events are where the views find them when their transaction has committed, not on a way through memory
ALTER DATABASE regress_absmartly_track SET absmartly.async_commit = off;
\c regress_absmartly_track
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS absmartly;
RESET client_min_messages;
\pset null NULL

-- what was committed since the last look
CREATE TEMP TABLE looked (at timestamptz);
CREATE FUNCTION pg_temp.queued(OUT context int, OUT goal text, OUT properties text, OUT units text, OUT attributes text, OUT historic boolean, OUT at text)
RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
	last timestamptz := COALESCE((SELECT max(l.at) FROM looked l), '-infinity');
BEGIN
	INSERT INTO looked SELECT max(created) FROM absmartly_pending_events;
	RETURN QUERY SELECT e.context, e.goal, e.properties::text,
		(SELECT string_agg(t || '=' || left(u, 4), ' ' ORDER BY i) FROM unnest(e.unit_types, e.units) WITH ORDINALITY AS x (t, u, i)),
		(SELECT string_agg((a ->> 'name') || '=' || (a -> 'value') ||
			CASE WHEN (a ->> 'setAt')::bigint = (extract(epoch FROM e.event_time) * 1000)::bigint THEN '' ELSE ' at another time' END, ' ' ORDER BY i)
		 FROM json_array_elements(e.attributes) WITH ORDINALITY AS x (a, i)),
		e.historic,
		CASE WHEN e.event_time BETWEEN now() - interval '1 hour' AND clock_timestamp() THEN 'now' ELSE (e.event_time AT TIME ZONE 'UTC')::text END
	FROM absmartly_pending_events e WHERE e.created > last AND e.kind = 'goal'
	ORDER BY e.created, e.record, e.context, e.goal, e.event_time;
END
$$;

-- no data is needed, and the same goal counts each time
SELECT absmartly_track('{"user_id": 5}', 'signup');
SELECT absmartly_track('{"user_id": 5}', 'signup') FROM generate_series(1, 2);
SELECT * FROM pg_temp.queued();
SELECT absmartly_track('{"session_id": "abc", "user_id": 5.0, "email": null, "f": 2.5}', 'payment',
	'{"currency": "EUR", "amount": 125.50, "items": ["a", {"sku": null}], "": {}, "text": "x\n\"\\\u0001é"}', '2024-02-29 12:00:00.0019+00',
	'{"bb": 1, "é": true, "b": {"c": []}, "Z": null}', true);
SELECT * FROM pg_temp.queued();
SELECT left(absmartly_hash_unit('3'), 4) AS f, left(absmartly_hash_unit('5'), 4) AS user_id, left(absmartly_hash_unit('abc'), 4) AS session_id;

-- properties: null or an object, its numbers by their exact text
SELECT absmartly_track('{"user_id": 1}', goal, properties)
FROM (VALUES ('none', NULL::jsonb), ('json null', 'null'), ('empty', '{}'), ('numbers', '{"a": 1.50, "b": -0.0, "c": 12345678901234567890123, "d": 1e2, "e": 1e-7}')) AS v (goal, properties);
SELECT goal, properties FROM pg_temp.queued();
SELECT absmartly_track('{"user_id": 1}', 'huge', '{"n": 1e400}');
SELECT goal, properties = '{"n":1' || repeat('0', 400) || '}' AS exact FROM pg_temp.queued();
CREATE TEMP TABLE toasted (units jsonb, properties jsonb, attributes jsonb);
ALTER TABLE toasted ALTER properties SET STORAGE EXTERNAL;
INSERT INTO toasted SELECT jsonb_build_object('user_id', 1, 'pad', repeat('u', 600)), jsonb_build_object('p', repeat('x', 10000)), jsonb_build_object('a', repeat('x', 10000));
BEGIN;
SELECT absmartly_track(units, 'toasted', properties, NULL, attributes) FROM toasted;
DROP TABLE toasted;
COMMIT;
SELECT goal, length(properties) AS properties, length(attributes) AS attributes FROM pg_temp.queued();

-- no unit is left, or something is NULL: nothing
SELECT absmartly_track('{}', 'goal') IS NULL AS empty, absmartly_track('{"user_id": null, "session_id": null}', 'goal') IS NULL AS nulls,
	absmartly_track(NULL, 'goal') IS NULL AS units, absmartly_track('{"user_id": 1}', NULL) IS NULL AS goal;
SELECT count(*) FROM pg_temp.queued();

-- times, history, attributes of the system
SET absmartly.historic = on;
SELECT absmartly_track('{"user_id": 1}', 'by setting'), absmartly_track('{"user_id": 1}', 'by argument', historic => false),
	absmartly_track('{"user_id": 1}', 'before 1970', achieved_at => '1969-12-31 23:59:59.9999+00');
RESET absmartly.historic;
SELECT goal, historic, at FROM pg_temp.queued();
SET absmartly.include_system_attributes = on;
SELECT absmartly_track('{"user_id": 1}', 'with', attributes => '{"a": 1}'), absmartly_track('{"user_id": 1}', 'without');
RESET absmartly.include_system_attributes;
SELECT goal, attributes ~ '^sdk_name="absmartly-postgresql-sdk" sdk_version="[0-9.]+"' AS sdk, attributes ~ ' a=1$' AS given FROM pg_temp.queued();

-- errors, which queue nothing and name what is wrong
CREATE FUNCTION pg_temp.error_of(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
	RETURN 'none';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ': ' || SQLERRM;
END
$$;
SELECT pg_temp.error_of('SELECT absmartly_track(' || arguments || ')')
FROM (VALUES ($$'[]', 'g'$$), ($$'{"user_id": false}', 'g'$$), ($$'{"user_id": null, "x": ""}', 'g'$$), ($$'{"user_id": 1}', ''$$),
	($$'{"user_id": 1}', repeat('g', 1025)$$), ($$'{"user_id": 1}', 'g', '[1]'$$), ($$'{"user_id": 1}', 'g', '"x"'$$), ($$'{}', 'g', 'false'$$),
	($$'{"user_id": 1}', 'g', NULL, 'infinity'$$), ($$'{"user_id": 1}', 'g', attributes => 'null'$$),
	($$'{"user_id": 1}', 'g', attributes => jsonb_build_object(repeat('n', 1025), 1)$$),
	($$(SELECT jsonb_object_agg('u' || i, i) FROM generate_series(1, 257) AS i), 'g'$$),
	($$'{"user_id": 1}', 'g', attributes => (SELECT jsonb_object_agg('a' || i, i) FROM generate_series(1, 1025) AS i)$$)) AS v (arguments);
SELECT absmartly_track('{"user_id": 1}', 'g', '7');
SET absmartly.max_event_size = '2kB';
SELECT pg_temp.error_of($$SELECT absmartly_track('{"user_id": 1}', 'large', jsonb_build_object('p', repeat('x', 2048)))$$);
SELECT absmartly_track('{"user_id": 1}', 'not so large', jsonb_build_object('p', repeat('x', 1024)));
RESET absmartly.max_event_size;
SELECT goal FROM pg_temp.queued();
SELECT absmartly_track('{"user_id": 1}', repeat('g', 1024));
SELECT length(goal) FROM pg_temp.queued();

-- a goal exists exactly if its transaction commits
BEGIN;
SELECT absmartly_track('{"user_id": 1}', 'rolled back');
ROLLBACK;
BEGIN;
SELECT absmartly_track('{"user_id": 1}', 'first');
SAVEPOINT s;
SELECT absmartly_track('{"user_id": 2}', 'dropped');
ROLLBACK TO s;
SELECT absmartly_track('{"user_id": 1}', 'second');
SELECT count(*) AS uncommitted FROM pg_temp.queued();
COMMIT;
SELECT context, goal FROM pg_temp.queued();
DO $$
BEGIN
	PERFORM absmartly_track('{"user_id": 1}', 'before');
	BEGIN
		PERFORM absmartly_track('{"user_id": 1}', 'within');
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
		PERFORM absmartly_track('{"user_id": 1}', 'handler');
	END;
END
$$;
SELECT context, goal FROM pg_temp.queued();
-- a loop over rows in one transaction
SELECT count(absmartly_track(jsonb_build_object('user_id', i), 'bulk', jsonb_build_object('i', i))) FROM generate_series(1, 20000) AS i;
SELECT count(*), count(DISTINCT units) AS units FROM absmartly_pending_events WHERE goal = 'bulk';

\c :home
DROP DATABASE regress_absmartly_track;
