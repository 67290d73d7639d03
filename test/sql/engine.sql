--
-- The engine's functions
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS absmartly;
RESET client_min_messages;
\pset null NULL

-- bytes: a character above the BMP takes six, three for each surrogate
SELECT string, absmartly_utf8_bytes(string) FROM unnest(ARRAY['', 'ab', 'aç', '↓', U&'\+01F600', U&'a\+01F600b\+10FFFF']) AS string;
SELECT absmartly_utf8_bytes(U&'\FEFF') AS byte_order_mark; -- alone, for psql does not always give it the same width
SELECT absmartly_utf8_bytes(NULL) IS NULL AS is_null, array_length(absmartly_utf8_bytes(repeat('ç', 100000)), 1) AS many;

SELECT input, absmartly_base64url(input) FROM unnest(ARRAY['', ' ', 'te', 'test', 'testy', 'testy1', '↓', U&'\+01F600']) AS input;
SELECT input, absmartly_base64url(input) FROM unnest(ARRAY['\x', '\xff', '\xfffe', '\xfffefd', '\xd41d8cd98f00b204e9800998ecf8427e']::bytea[]) AS input;
SELECT absmartly_base64url(NULL::text) IS NULL AND absmartly_base64url(NULL::bytea) IS NULL AS is_null;

-- a hash is the base64url of the MD5 of the bytes
SELECT left(unit, 12) AS unit, length(unit), absmartly_hash_unit(unit), absmartly_hash_unit(unit) = absmartly_base64url(decode(md5(unit), 'hex')) AS as_md5
FROM unnest(ARRAY['', 'test', 'bleh@absmartly.com', 'açb↓c', 'e791e240fcd3df7d238cfc285f475e8152fcc0ec', repeat('x', 55), repeat('x', 56), repeat('x', 64), repeat('ç', 1000)]) AS unit
ORDER BY length(unit);
SELECT absmartly_hash_unit(123456778999) AS number, absmartly_hash_unit(U&'\+01F600') = absmartly_base64url(decode(md5('\xeda0bdedb880'::bytea), 'hex')) AS surrogates;

-- the assigner: seeds modulo 2^32
SELECT split, seed_hi, seed_lo, absmartly_assign(absmartly_hash_unit('123456789'), split, seed_hi, seed_lo)
FROM (VALUES ('{0.5,0.5}'::float8[], 0::bigint, 0::bigint), ('{0.5,0.5}', 2148876399, 2129959832), ('{0.5,0.5}', -2146090897, 2129959832 + 4294967296),
	('{0.33,0.33,0.34}', 0, 1), ('{1,0}', 0, 0), ('{0,1}', 0, 0), ('{0,0}', 0, 0), ('{}', 0, 0)) AS v (split, seed_hi, seed_lo);
SELECT absmartly_assign('x', '{{0.5},{0.5}}', 0, 0);
SELECT absmartly_assign('x', '{0.5,NULL}', 0, 0);
SELECT absmartly_assign('x', NULL, 0, 0) IS NULL AS is_null;
SELECT variant, count(*) BETWEEN 900 AND 1100 AS about_1000 FROM (
	SELECT absmartly_assign(absmartly_hash_unit(i), '{0.1,0.2,0.7}', 17, 4) AS variant FROM generate_series(1, 10000) AS i) AS a
WHERE variant = 0 GROUP BY variant;

-- expressions: the first key counts, so json is not jsonb
SELECT expression, absmartly_evaluate(expression, '{"age": 20, "name": "Åse", "tags": ["a", "b"], "nested": {"list": [{"x": 1}, null]}, "no": null, "vast": 1e400, "pi": 3.141592653589793238462643}') AS result
FROM unnest(ARRAY[
	'{"value": {"b": [1, 2.50], "a": "ç"}}', '{"value": null}', '{"value": "x"}', '{"value": 1e2}',
	'{"var": "name"}', '{"var": {"path": "nested/list/0/x"}}', '{"var": "nested"}', '{"var": "tags"}', '{"var": "missing"}', '{"var": "no"}',
	'{"var": "pi"}', '{"eq": [{"var": "vast"}, {"value": 1.7976931348623157e308}]}',
	'{"eq": [{"var": "no"}, {"value": null}]}', '{"not": {"var": "no/deeper"}}', '{"not": {"var": "missing"}}',
	'{"gte": [{"var": "age"}, {"value": 18}], "lt": [{"var": "age"}, {"value": 18}]}', '{"zz": 1, "value": 2}',
	'{"and": []}', '{"or": []}', '[{"value": 1}, {"value": 0}]', '{"in": [{"var": "tags"}, {"value": "b"}]}',
	'{"match": [{"var": "name"}, {"value": "^.se$"}]}', '{"match": [{"var": "name"}, {"value": "("}]}',
	'{"semver_gt": [{"value": "v1.10.0"}, {"value": "1.9"}]}', '"x"', '5', 'null', '{}', '[]']::json[]) AS expression;
SELECT absmartly_evaluate('{"var": "a"}', NULL) AS no_variables, absmartly_evaluate(NULL, '{}') AS no_expression;
SELECT absmartly_evaluate('{"var": "a"}', '[1]');
SELECT absmartly_evaluate((repeat('[', 128) || repeat(']', 128))::json, '{}') AS deepest;
SELECT absmartly_evaluate((repeat('[', 129) || repeat(']', 129))::json, '{}');
SELECT absmartly_evaluate('{"value": "\u0000"}', '{}');
SELECT absmartly_evaluate('{"value": ["\u0000"]}', '{}');
-- one call site, several expressions
SELECT i, absmartly_evaluate(('{"value": ' || i % 3 || '}')::json, NULL) FROM generate_series(1, 5) AS i;
-- names in long objects
SELECT count(*) AS wrong FROM (SELECT jsonb_object_agg('key' || i, i) AS variables FROM generate_series(0, 499) AS i) AS v, generate_series(0, 499) AS i
WHERE absmartly_evaluate(json_build_object('var', 'key' || i), variables) IS DISTINCT FROM to_jsonb(i);
SELECT count(*) AS wrong FROM (SELECT jsonb_build_object('list', jsonb_agg(CASE i % 3 WHEN 0 THEN to_jsonb(i) WHEN 1 THEN to_jsonb('s' || i) ELSE jsonb_build_array(i) END)) AS variables
	FROM generate_series(0, 499) AS i) AS v, generate_series(0, 499) AS i
WHERE absmartly_evaluate(json_build_object('var', 'list/' || i), variables) IS DISTINCT FROM variables #> ARRAY['list', i::text];
-- numbers become the nearest double, whatever their form
SELECT count(*) AS wrong FROM (
	SELECT (CASE i % 2 WHEN 0 THEN 1 ELSE -1 END * round((random() * 10 ^ (i % 25))::numeric, i % 17))::text AS number FROM generate_series(1, 2000) AS i
	UNION ALL SELECT unnest(ARRAY['9007199254740993', '9007199254740992.5', '1e22', '1e23', '123456789012345678901234567890', '0.1', '5e-324', '4.9e-324',
		'2.2250738585072014e-308', '1.7976931348623157e308', '0.000000000000000000000123', '4503599627370497.5', '8.5', '1' || repeat('0', 300) || '1'])) AS n
WHERE absmartly_evaluate('{"var": "n"}', ('{"n": ' || number || '}')::jsonb)::text::float8 <> number::float8;
SELECT absmartly_evaluate('{"var": "n"}', '{"n": 1e-400}') AS underflow, absmartly_evaluate('{"var": "n"}', '{"n": -1e400}') = to_jsonb((-1.7976931348623157e308)::float8::text::numeric) AS overflow;

-- audiences
SELECT audience, absmartly_match_audience(audience, '{"age": 20, "no": null}') FROM unnest(ARRAY[
	'{"filter":[{"gte":[{"var":"age"},{"value":20}]}]}', '{"filter":[{"gte":[{"var":"age"},{"value":21}]}]}', '{"filter":[]}', '{"filter":{}}',
	'{"filter":null}', '{"filter":0}', '{}', '[]', 'null', '', 'nonsense', '{"filter":[{"var":"no/x"}]}']) AS audience;
SELECT absmartly_match_audience('{"filter":[{"var":"x"}]}', NULL) AS no_attributes, absmartly_match_audience(NULL, '{}') AS no_audience;
SELECT absmartly_match_audience('{"filter":[]}', '"x"');
