--
-- Assignment without exposure: the decision table, row by row
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS absmartly;
RESET client_min_messages;

-- Experiments that differ from the first in what their names say.  The split's
-- seeds give variant 1 to the unit hash of "e791e240fcd3df7d238cfc285f475e8152fcc0ec"
-- and variant 0 to "bleh@absmartly.com".
CREATE FUNCTION pg_temp.experiment(id int, name text, changes jsonb DEFAULT '{}')
RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object(
		'id', id, 'name', name, 'iteration', 1, 'unitType', 'session_id',
		'seedHi', 3603515, 'seedLo', 233373850, 'split', '[0.5, 0.5]'::jsonb,
		'trafficSeedHi', 449867249, 'trafficSeedLo', 455443629,
		'trafficSplit', '[0, 1]'::jsonb, 'fullOnVariant', 0,
		'variants', '[{"name": "A", "config": null}, {"name": "B", "config": "{\"button\": \"red\"}"}]'::jsonb,
		'audience', NULL, 'audienceStrict', false) || changes
$$;

SELECT absmartly_set_context_data(jsonb_build_object(
	'experiments', jsonb_build_array(
		pg_temp.experiment(1, 'plain'),
		pg_temp.experiment(2, 'three', '{"seedHi": 55006150, "seedLo": 47189152, "split": [0.34, 0.33, 0.33],
			"variants": [{"config": null}, {"config": null}, {"config": null}]}'),
		pg_temp.experiment(3, 'shut', '{"trafficSplit": [1, 0]}'),
		pg_temp.experiment(4, 'no traffic split', '{"trafficSplit": []}'),
		pg_temp.experiment(5, 'full on', '{"fullOnVariant": 1}'),
		pg_temp.experiment(6, 'strict', '{"audience": "{\"filter\":[{\"gte\":[{\"var\":\"age\"},{\"value\":20}]}]}", "audienceStrict": true}'),
		pg_temp.experiment(7, 'lenient', '{"audience": "{\"filter\":[{\"gte\":[{\"var\":\"age\"},{\"value\":20}]}]}"}'),
		pg_temp.experiment(8, 'ruled', '{"assignmentRules": "{\"rules\":[{\"type\":\"assign\",\"variant\":0,\"conditions\":{\"eq\":[{\"var\":\"country\"},{\"value\":\"PT\"}]}},{\"type\":\"assign\",\"variant\":7,\"conditions\":{\"eq\":[{\"var\":\"country\"},{\"value\":\"US\"}]}}]}"}'),
		pg_temp.experiment(9, 'held back', '{"holdoutIds": [1]}'),
		pg_temp.experiment(10, 'no unit type', '{"unitType": null}'),
		pg_temp.experiment(11, 'other unit', '{"unitType": "user_id"}'),
		pg_temp.experiment(12, 'twice', '{"fullOnVariant": 1}'),
		pg_temp.experiment(13, 'twice')),
	'holdouts', '[{"id": 1, "seedHi": 90210, "seedLo": 4711, "split": [1, 0]}]'::jsonb)::json);

\set one '''{"session_id": "e791e240fcd3df7d238cfc285f475e8152fcc0ec"}'''
\set zero '''{"session_id": "bleh@absmartly.com"}'''

-- rows 9 and 2: the split, and an experiment that does not exist
SELECT absmartly_peek_treatment(:one, 'plain') AS one,
	absmartly_peek_treatment(:zero, 'plain') AS zero,
	absmartly_peek_treatment(:one, 'unheard of') AS unknown,
	absmartly_peek_treatment(:one, '') AS nameless;
SELECT unit, absmartly_peek_treatment(jsonb_build_object('session_id', unit), 'three')
FROM unnest(ARRAY['e791e240fcd3df7d238cfc285f475e8152fcc0ec', 'bleh@absmartly.com', '123456789', 'testy']) AS unit;

-- row 6: no unit, also where the experiment asks for none
SELECT absmartly_peek_treatment('{}', 'plain') AS none,
	absmartly_peek_treatment('{"session_id": null}', 'plain') AS "null",
	absmartly_peek_treatment(:one, 'other unit') AS other,
	absmartly_peek_treatment(:one, 'no unit type') AS no_type;

-- rows 7, 8 and 5: custom assignments count for who takes part
SELECT experiment,
	absmartly_peek_treatment(:one, experiment) AS plain,
	absmartly_peek_treatment(:one, experiment, NULL, 0) AS custom_0,
	absmartly_peek_treatment(:one, experiment, NULL, 9) AS custom_9,
	absmartly_peek_treatment('{}', experiment, NULL, 9) AS no_unit
FROM unnest(ARRAY['plain', 'shut', 'no traffic split', 'full on', 'held back', 'unheard of']) AS experiment;

-- row 4, and audiences that are not strict; attributes may be none
SELECT attributes,
	absmartly_peek_treatment(:one, 'strict', attributes) AS strict,
	absmartly_peek_treatment(:one, 'lenient', attributes) AS lenient
FROM (VALUES ('{"age": 20}'::jsonb), ('{"age": 19.5}'), ('{"age": "30 years"}'), ('{}'), (NULL)) AS v (attributes);

-- row 3: a variant out of range ends the search and does not apply
SELECT attributes, absmartly_peek_treatment(:one, 'ruled', attributes) AS ruled
FROM (VALUES ('{"country": "PT"}'::jsonb), ('{"country": "US"}'), ('{"country": "DE"}'), (NULL)) AS v (attributes);

-- of two experiments with one name the later one counts
SELECT absmartly_peek_treatment(:zero, 'twice');

-- row 1: overrides
SET absmartly.overrides = '{"plain": 0, "strict": 5, "unheard of": 3, "no unit type": 127}';
SELECT experiment, absmartly_peek_treatment(:one, experiment, NULL, 1) AS variant
FROM unnest(ARRAY['plain', 'strict', 'unheard of', 'no unit type', 'three']) AS experiment;
SELECT absmartly_peek_unit_treatment('x', 'strict') AS unit_treatment;
RESET absmartly.overrides;

-- variants that no exposure may have
SET absmartly.overrides = '{"plain": -1}';
SET absmartly.overrides = '{"plain": 128}';
SELECT absmartly_peek_treatment(:one, 'plain', NULL, 127);
SELECT absmartly_peek_treatment(:one, 'plain', NULL, 128);
SELECT absmartly_peek_treatment(:one, 'plain', NULL, -1);

-- all at once
SELECT experiment, id, unit_type, variant, assigned AS a, eligible AS e, overridden AS o, full_on AS f, custom AS c,
	audience_mismatch AS m, rule_override AS r, held_out AS h, holdout_id AS hid, variables
FROM absmartly_assignments(:one, '{"age": 5, "country": "PT"}');
SET absmartly.overrides = '{"plain": 0, "three": 3}';
SELECT experiment, variant, assigned, eligible, overridden, variables
FROM absmartly_assignments('{"session_id": "bleh@absmartly.com", "user_id": 7}') WHERE id IN (1, 2, 5, 11);
RESET absmartly.overrides;
SELECT count(*) FROM absmartly_assignments(NULL);
SELECT (absmartly_assignments(:one)).variant LIMIT 3;

-- a single unit, of whatever type the experiment names
SELECT absmartly_peek_unit_treatment('e791e240fcd3df7d238cfc285f475e8152fcc0ec', 'plain') AS one,
	absmartly_peek_unit_treatment('bleh@absmartly.com', 'plain') AS zero,
	absmartly_peek_unit_treatment('e791e240fcd3df7d238cfc285f475e8152fcc0ec', 'other unit') AS other,
	absmartly_peek_unit_treatment('e791e240fcd3df7d238cfc285f475e8152fcc0ec', 'no unit type') AS no_type,
	absmartly_peek_unit_treatment('x', 'full on') AS full_on,
	absmartly_peek_unit_treatment('x', 'unheard of') AS unknown;
SELECT absmartly_peek_unit_treatment('x', 'strict', '{"age": 3}') AS outside,
	absmartly_peek_unit_treatment('e791e240fcd3df7d238cfc285f475e8152fcc0ec', 'strict', '{"age": 30}') AS inside;

-- the three types of uid and a units object agree
SELECT count(*) AS disagreements
FROM generate_series(-500, 500) AS id, unnest(ARRAY['plain', 'three', 'other unit']) AS experiment
WHERE absmartly_peek_unit_treatment(id, experiment) <> absmartly_peek_unit_treatment(id::text, experiment)
	OR absmartly_peek_unit_treatment(id, experiment) <>
		absmartly_peek_treatment(jsonb_build_object('session_id', id, 'user_id', id::text), experiment);
SELECT count(*) AS disagreements
FROM (SELECT md5(i::text)::uuid AS id FROM generate_series(1, 500) AS i) AS ids
WHERE absmartly_peek_unit_treatment(id, 'three') <> absmartly_peek_unit_treatment(id::text, 'three');
SELECT absmartly_peek_unit_treatment(9223372036854775807, 'three') = absmartly_peek_unit_treatment('9223372036854775807', 'three') AS largest,
	absmartly_peek_unit_treatment((-9223372036854775808)::bigint, 'three') = absmartly_peek_unit_treatment('-9223372036854775808', 'three') AS smallest;

-- NULL gives NULL
SELECT absmartly_peek_treatment(NULL, 'plain') AS units,
	absmartly_peek_treatment(:one, NULL) AS experiment,
	absmartly_peek_unit_treatment(NULL::text, 'plain') AS uid_text,
	absmartly_peek_unit_treatment(NULL::bigint, 'plain') AS uid_bigint,
	absmartly_peek_unit_treatment(NULL::uuid, 'plain') AS uid_uuid,
	absmartly_peek_unit_treatment('x', NULL) AS unit_experiment;

-- attributes must be an object, whether or not they are looked at
SELECT absmartly_peek_treatment(:one, 'plain', '[1]');
SELECT absmartly_peek_treatment(:one, 'strict', '"age"');
SELECT absmartly_peek_unit_treatment(1, 'plain', 'null');
SELECT count(*) FROM absmartly_assignments(:one, '7');

-- names are bounded
SELECT absmartly_peek_treatment(:one, repeat('n', 1024)) AS longest;
SELECT absmartly_peek_treatment(:one, repeat('n', 1025));

-- a call site that sees many experiments, and experiments that change
SELECT experiment, absmartly_peek_treatment(:one, experiment)
FROM (VALUES (1, 'plain'), (2, 'shut'), (3, 'plain'), (4, 'plain '), (5, 'plain')) AS v (i, experiment) ORDER BY i;
PREPARE peek AS SELECT absmartly_peek_treatment(:one, 'plain');
EXECUTE peek;
SELECT absmartly_set_context_data(jsonb_build_object('experiments', jsonb_build_array(
	pg_temp.experiment(1, 'plain', '{"fullOnVariant": 3}'))::jsonb)::json);
EXECUTE peek;
SELECT absmartly_set_context_data('{"experiments": []}');
EXECUTE peek;
SELECT count(*) FROM absmartly_assignments(:one);

-- toasted attributes and units
SELECT absmartly_set_context_data(jsonb_build_object('experiments', jsonb_build_array(
	pg_temp.experiment(6, 'strict', '{"audience": "{\"filter\":[{\"gte\":[{\"var\":\"age\"},{\"value\":20}]}]}", "audienceStrict": true}'))::jsonb)::json);
CREATE TEMP TABLE toasted (kind text, units jsonb, attributes jsonb);
INSERT INTO toasted VALUES ('short', :one, '{"age": 20}'), ('short', :one, '{"age": 10}');
INSERT INTO toasted SELECT 'compressed', jsonb_build_object('session_id', 'e791e240fcd3df7d238cfc285f475e8152fcc0ec', 'pad', 'x', repeat('k', 1000), 1),
	jsonb_build_object('age', 20, 'pad', repeat('x', 10000));
ALTER TABLE toasted ALTER attributes SET STORAGE EXTERNAL;
INSERT INTO toasted SELECT 'external', :one, jsonb_build_object('age', 20, 'pad', repeat('x', 10000));
ALTER TABLE toasted ALTER units SET STORAGE EXTERNAL;
INSERT INTO toasted SELECT 'external units', (SELECT jsonb_object_agg('unit ' || i, repeat('u', 600)) FROM generate_series(1, 10) AS i) || :one, '{"age": 20}';
SELECT kind, absmartly_peek_treatment(units, 'strict', attributes) FROM toasted;
INSERT INTO toasted SELECT 'no object', :one, to_jsonb(repeat('x', 10000));
SELECT absmartly_peek_treatment(units, 'strict', attributes) FROM toasted WHERE kind = 'no object';

-- declarations
SELECT p.proname, count(*), string_agg(DISTINCT p.provolatile::text, '') AS volatile, string_agg(DISTINCT p.proparallel::text, '') AS parallel,
	bool_and(p.proisstrict) AS strict, bool_and(p.procost > 1) AS has_cost, bool_and(d.description IS NOT NULL) AS has_comment
FROM pg_proc p LEFT JOIN pg_description d ON d.objoid = p.oid AND d.classoid = 'pg_proc'::regclass
WHERE p.proname IN ('absmartly_peek_treatment', 'absmartly_peek_unit_treatment', 'absmartly_peek_variable_value', 'absmartly_assignments',
	'absmartly_explain', 'absmartly_variable_keys', 'absmartly_custom_field_keys', 'absmartly_custom_field_value',
	'absmartly_custom_field_value_type', 'absmartly_experiments_get', 'absmartly_hash_unit', 'absmartly_assign', 'absmartly_evaluate',
	'absmartly_match_audience', 'absmartly_base64url', 'absmartly_utf8_bytes')
GROUP BY p.proname ORDER BY p.proname;
