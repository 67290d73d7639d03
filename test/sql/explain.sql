--
-- Explanations
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS absmartly;
RESET client_min_messages;

CREATE FUNCTION pg_temp.experiment(id int, name text, changes jsonb DEFAULT '{}')
RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object(
		'id', id, 'name', name, 'iteration', 2, 'unitType', 'session_id',
		'seedHi', 3603515, 'seedLo', 233373850, 'split', '[0.5, 0.5]'::jsonb,
		'trafficSeedHi', 449867249, 'trafficSeedLo', 455443629,
		'trafficSplit', '[0, 1]'::jsonb, 'fullOnVariant', 0,
		'variants', '[{"config": null}, {"config": "{\"button\": \"red\"}"}]'::jsonb,
		'audience', NULL, 'audienceStrict', false) || changes
$$;

SELECT absmartly_set_context_data(jsonb_build_object(
	'experiments', jsonb_build_array(
		pg_temp.experiment(1, 'plain'),
		pg_temp.experiment(3, 'shut', '{"trafficSplit": [1, 0]}'),
		pg_temp.experiment(5, 'full on', '{"fullOnVariant": 1}'),
		pg_temp.experiment(6, 'strict', '{"audience": "{\"filter\":[{\"gte\":[{\"var\":\"age\"},{\"value\":20}]},{\"eq\":[{\"var\":\"country\"},{\"value\":\"PT\"}]}]}", "audienceStrict": true}'),
		pg_temp.experiment(7, 'one clause', '{"audience": "{\"filter\":{\"and\":[{\"value\":1},{\"eq\":[{\"var\":\"country\"},{\"value\":\"PT\"}]}]}}"}'),
		pg_temp.experiment(8, 'ruled', '{"assignmentRules": "{\"rules\":[{\"type\":\"other\"},{\"type\":\"assign\",\"name\":\"Portugal\",\"variant\":0,\"conditions\":{\"eq\":[{\"var\":\"country\"},{\"value\":\"PT\"}]}},{\"type\":\"assign\",\"variant\":7,\"conditions\":{\"eq\":[{\"var\":\"country\"},{\"value\":\"US\"}]}}]}"}'),
		pg_temp.experiment(9, 'held back', '{"holdoutIds": [1, 2]}'),
		pg_temp.experiment(10, 'no unit type', '{"unitType": null}'),
		pg_temp.experiment(11, 'no audience', '{"audience": "{\"filter\":"}')),
	'holdouts', '[{"id": 1, "seedHi": 1, "seedLo": 2, "split": [0, 1]}, {"id": 2, "seedHi": 90210, "seedLo": 4711, "split": [1, 0]}]'::jsonb)::json);

\set one '''{"session_id": "e791e240fcd3df7d238cfc285f475e8152fcc0ec"}'''

-- all there is
SELECT jsonb_pretty(absmartly_explain(:one, 'plain') - '{generation,environment}'::text[]);
SELECT jsonb_pretty(absmartly_explain('{}', 'unheard of') - '{generation,environment}'::text[]);
SELECT jsonb_pretty(absmartly_explain(:one, 'held back') -> 'holdouts');

-- the reason, for each row of the decision table
SELECT experiment, e -> 'result' -> 'variant' AS variant, e ->> 'reason' AS reason, e ->> 'explanation' AS explanation
FROM unnest(ARRAY['plain', 'unheard of', 'shut', 'full on', 'strict', 'one clause', 'ruled', 'held back', 'no unit type']) AS experiment,
	absmartly_explain(:one, experiment, '{"country": "PT"}') AS e;
SELECT e ->> 'reason' AS reason, e ->> 'explanation' AS explanation FROM absmartly_explain('{"user_id": 5}', 'plain') AS e;
SET absmartly.overrides = '{"plain": 4}';
SELECT e -> 'override' AS override, e ->> 'reason' AS reason, e ->> 'explanation' AS explanation, e -> 'result' AS result FROM absmartly_explain(:one, 'plain') AS e;
RESET absmartly.overrides;

-- audiences: the clause that decided
SELECT experiment, attributes, absmartly_explain(:one, experiment, attributes) -> 'audience' AS audience
FROM unnest(ARRAY['strict', 'one clause']) AS experiment,
	unnest(ARRAY['{"age": 30, "country": "PT"}', '{"age": 30}', '{"age": 3, "country": "PT"}']::jsonb[]) AS attributes;
SELECT absmartly_explain(:one, 'no audience') -> 'audience' AS audience;

-- rules, also one that is out of range
SELECT country, e -> 'rule' AS rule, e ->> 'reason' AS reason
FROM unnest(ARRAY['PT', 'US', 'DE']) AS country, absmartly_explain(:one, 'ruled', jsonb_build_object('country', country)) AS e;

-- an explanation agrees with what is done
SELECT count(*) AS disagreements FROM absmartly_assignments(:one, '{"country": "US", "age": 1}') AS a, absmartly_explain(:one, experiment, '{"country": "US", "age": 1}') AS e
WHERE (e -> 'result') - 'variables' <> jsonb_build_object('variant', variant, 'assigned', assigned, 'eligible', eligible, 'overridden', overridden,
	'full_on', full_on, 'custom', custom, 'audience_mismatch', audience_mismatch, 'rule_override', rule_override, 'held_out', held_out, 'holdout_id', holdout_id)
	OR e -> 'result' -> 'variables' <> variables;

SELECT absmartly_explain(NULL, 'plain') IS NULL AS units, absmartly_explain('{}', NULL) IS NULL AS experiment;
SELECT absmartly_explain('{}', 'plain', '[]');
SELECT absmartly_explain('[]', 'plain');
SELECT absmartly_explain('{}', repeat('n', 1025));

-- the clause that decided is the innermost one of nested conjunctions
SELECT absmartly_set_context_data(json_build_object('experiments', json_build_array(json_build_object(
	'id', 1, 'name', 'nested', 'unitType', 'session_id', 'split', '[0.5, 0.5]'::json, 'trafficSplit', '[0, 1]'::json,
	'variants', '[{}, {}]'::json,
	'audience', '{"filter":[{"gte":[{"var":"age"},{"value":18}]},{"and":[{"value":true},[{"eq":[{"var":"country"},{"value":"DE"}]}]]}]}'))));
SELECT (absmartly_explain('{"session_id": "a"}', 'nested', '{"age": 20, "country": "FR"}')->'audience') - 'expression' AS inner_clause;
SELECT (absmartly_explain('{"session_id": "a"}', 'nested', '{"age": 10, "country": "FR"}')->'audience') - 'expression' AS outer_clause;
SELECT (absmartly_explain('{"session_id": "a"}', 'nested', '{"age": 20, "country": "DE"}')->'audience') - 'expression' AS no_clause;
