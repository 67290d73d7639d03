--
-- Values of attributes and the same values as literals: jsonb is read in place, literals are trees of the engine's own
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS absmartly;
RESET client_min_messages;
\pset null NULL

-- any JSON, as text: names and texts that are easily mixed up, numbers of all forms, small and large containers
CREATE FUNCTION pg_temp.some_json(depth int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	words text[] := ARRAY['', 'a', 'b', 'aa', 'ab', 'ba', 'é', '€', '😀', '0', '1', '-1', '1.5', ' 1', '1e3', 'true', 'false',
		'null', 'k1', 'k10', 'k2', '1.2.3', 'v1.2.3-rc.1', '01', '2147483648', 'length', '/', 'a/b'];
	numbers text[] := ARRAY['0', '-0', '1', '-1', '1.0', '1.50', '10000', '99999999', '1e4', '1e-7', '0.1', '123456789012345678901234567890',
		'1e400', '-1e400', '9007199254740993', '0.000000000000001', '3.14159265358979323846264338327950288419716939937510582097494459',
		'4.9e-324', '1e21', '12345.678901', '0.30000000000000004'];
	kind int := floor(random() * CASE WHEN depth > 0 THEN 8 ELSE 5 END);
	many int := floor(random() * CASE WHEN random() < 0.1 THEN 60 ELSE 5 END);
BEGIN
	RETURN CASE kind
		WHEN 0 THEN 'null'
		WHEN 1 THEN (ARRAY['true', 'false'])[1 + floor(random() * 2)]
		WHEN 2 THEN numbers[1 + floor(random() * array_length(numbers, 1))]
		WHEN 3 THEN to_json(words[1 + floor(random() * array_length(words, 1))])::text
		WHEN 4 THEN to_json(repeat(words[1 + floor(random() * array_length(words, 1))], many))::text
		WHEN 5 THEN coalesce((SELECT '[' || string_agg(pg_temp.some_json(depth - 1), ',') || ']' FROM generate_series(1, many)), '[]')
		ELSE coalesce((SELECT '{' || string_agg(to_json(name)::text || ':' || pg_temp.some_json(depth - 1), ',' ORDER BY random()) || '}'
			FROM (SELECT DISTINCT CASE WHEN many > 8 THEN 'k' || i ELSE words[1 + floor(random() * array_length(words, 1))] END AS name
				FROM generate_series(1, many) i) n), '{}')
		END;
END $$;

-- the same with its objects' members in another order, and sometimes another value somewhere
CREATE FUNCTION pg_temp.turned(value json) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN CASE json_typeof(value)
		WHEN 'object' THEN coalesce((SELECT '{' || string_agg(to_json(key)::text || ':' || pg_temp.turned(m.value), ',' ORDER BY random()) || '}'
			FROM json_each(value) m), '{}')
		WHEN 'array' THEN coalesce((SELECT '[' || string_agg(pg_temp.turned(e.value), ',' ORDER BY e.ordinality) || ']'
			FROM json_array_elements(value) WITH ORDINALITY e), '[]')
		ELSE CASE WHEN random() < 0.01 THEN '7' ELSE value::text END
		END;
END $$;

SELECT setseed(0.5);
-- where the server compiles expressions, it would do so at each call
SET jit = off;
CREATE TEMP TABLE pairs AS
SELECT i, l, CASE WHEN i % 2 = 0 THEN pg_temp.turned(l::json) ELSE pg_temp.some_json(2) END AS r
FROM (SELECT i, pg_temp.some_json(3) AS l FROM generate_series(1, 1500) i) s;
RESET jit;

-- one operator over all combinations of where its operands stand
CREATE TEMP VIEW answers AS
SELECT i, op, l, r, place,
	absmartly_evaluate(format('{"%s":[%s,%s]}', op,
		CASE WHEN place & 1 = 0 THEN format('{"value":%s}', l) ELSE '{"var":"l"}' END,
		CASE WHEN place & 2 = 0 THEN format('{"value":%s}', r) ELSE '{"var":"r"}' END)::json,
		jsonb_build_object('l', l::jsonb, 'r', r::jsonb)) AS answer
FROM pairs, unnest(ARRAY['eq', 'gt', 'gte', 'lt', 'lte', 'in', 'match', 'semver_eq', 'semver_lt']) op, generate_series(0, 3) place;

SELECT op, count(*) AS different, min(l) AS l, min(r) AS r
FROM (SELECT i, op, l, r FROM answers GROUP BY i, op, l, r HAVING count(DISTINCT coalesce(answer::text, 'NULL')) > 1) d
GROUP BY op ORDER BY op;

-- that says something only if there are answers of all kinds
SELECT op, bool_or(answer = 'true') AS some_true, bool_or(answer = 'false') AS some_false, bool_or(answer IS NULL) AS some_null
FROM answers WHERE place = 0 GROUP BY op ORDER BY op;

-- equality is that of jsonb where numbers are doubles that jsonb tells apart, too
SELECT count(*) FILTER (WHERE (coalesce(answer, 'false') = 'true') <> (l::jsonb = r::jsonb)) AS wrong, bool_or(l::jsonb = r::jsonb) AS some_equal
FROM answers
WHERE op = 'eq' AND jsonb_typeof(l::jsonb) IN ('array', 'object') AND jsonb_typeof(l::jsonb) = jsonb_typeof(r::jsonb)
	AND l || r !~ '\d{16}|e-?\d{3}';

-- members and elements by their paths
SELECT count(*) AS wrong FROM (
	SELECT l::jsonb AS value, key, l::jsonb -> key AS member FROM pairs, jsonb_object_keys(l::jsonb) key
	WHERE jsonb_typeof(l::jsonb) = 'object' AND key !~ '/') m
WHERE absmartly_evaluate(json_build_object('eq', json_build_array(json_build_object('var', 'l/' || key), json_build_object('value', member))),
	jsonb_build_object('l', value)) IS DISTINCT FROM CASE WHEN member <> 'null' THEN 'true'::jsonb END;
SELECT count(*) AS wrong FROM (
	SELECT l::jsonb AS value, n, l::jsonb -> n AS element FROM pairs, generate_series(0, 70) n
	WHERE jsonb_typeof(l::jsonb) = 'array') e
WHERE absmartly_evaluate(json_build_object('eq', json_build_array(json_build_object('var', 'l/' || n), json_build_object('value', element))),
	jsonb_build_object('l', value)) IS DISTINCT FROM CASE WHEN element <> 'null' THEN 'true'::jsonb END;

-- a value comes out as it went in, but for numbers, which become doubles
SELECT count(*) AS wrong FROM pairs
WHERE l !~ '\d{16}|e-?\d{3}' AND (absmartly_evaluate(format('{"value":%s}', l)::json, '{}') IS DISTINCT FROM nullif(l::jsonb, 'null')
	OR absmartly_evaluate('{"var":"l"}', jsonb_build_object('l', l::jsonb)) IS DISTINCT FROM nullif(l::jsonb, 'null'));

-- what cannot be read says why
SELECT absmartly_evaluate(('{"value":[' || repeat('0,', 20000000) || '0]}')::json, '{}');
SELECT absmartly_match_audience('{"filter":' || repeat('[', 200) || repeat(']', 200) || '}', '{}');
