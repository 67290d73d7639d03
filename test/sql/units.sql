--
-- Units: what may be one, and its hash
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS absmartly;
RESET client_min_messages;

SELECT absmartly_set_context_data('{"experiments": [
	{"id": 1, "name": "exp", "iteration": 1, "unitType": "user_id", "seedHi": 55006150, "seedLo": 47189152,
	 "split": [0.25, 0.25, 0.25, 0.25], "trafficSeedHi": 705671872, "trafficSeedLo": 212903484, "trafficSplit": [0, 1],
	 "fullOnVariant": 0, "variants": [{"config": null}, {"config": null}, {"config": null}, {"config": null}]}]}');

-- the hash that an experiment sees is the one in explanations
CREATE FUNCTION pg_temp.hash(units jsonb) RETURNS text LANGUAGE sql AS
	$$ SELECT absmartly_explain(units, 'exp') #>> '{unit,hash}' $$;

-- texts are trimmed of JavaScript's blanks, and of these only
SELECT label, pg_temp.hash(jsonb_build_object('user_id', uid)) = absmartly_hash_unit(expected) AS ok
FROM (VALUES
	('plain', 'açb↓c', 'açb↓c'),
	('blanks', E' \t\r\n\x0b\x0cabc \n', 'abc'),
	('inside', 'a b', 'a b'),
	('no-break space', U&'\00A0abc\00A0', 'abc'),
	('other spaces', U&'\1680\2000\200A\2028\2029\202F\205F\3000\FEFFabc\FEFF', 'abc'),
	('next line stays', U&'\0085abc', U&'\0085abc'),
	('zero width space stays', U&'abc\200B', U&'abc\200B'),
	('above the BMP', U&'\+01F600', U&'\+01F600')) AS v (label, uid, expected);
SELECT absmartly_hash_unit('bleh@absmartly.com') AS known, pg_temp.hash('{"user_id": "bleh@absmartly.com"}') AS seen;

-- an integral number stands for its exact text
SELECT uid, pg_temp.hash(('{"user_id": ' || uid || '}')::jsonb) = absmartly_hash_unit(expected) AS in_units,
	absmartly_hash_unit(uid::numeric) = absmartly_hash_unit(expected) AS by_itself
FROM (VALUES ('0', '0'), ('-0', '0'), ('0.0', '0'), ('5', '5'), ('5.0', '5'), ('5.000000000000', '5'), ('-5.00', '-5'),
	('1e3', '1000'), ('1.5e1', '15'), ('9999', '9999'), ('10000', '10000'), ('10001', '10001'), ('100000000', '100000000'),
	('1234567890123456', '1234567890123456'), ('12345678901234567', '12345678901234567'), ('9007199254740993', '9007199254740993'),
	('9223372036854775807', '9223372036854775807'), ('-9223372036854775808', '-9223372036854775808'),
	('18446744073709551616', '18446744073709551616'), ('1e21', '1000000000000000000000'), ('-1.25e22', '-12500000000000000000000'),
	('100000000000000000000000000000000000001', '100000000000000000000000000000000000001'),
	('123000000000000000000000000000', '123000000000000000000000000000')) AS v (uid, expected);
-- every length
SELECT count(*) AS wrong FROM generate_series(1, 640) AS digits, unnest(ARRAY['1', '9']) AS first, unnest(ARRAY['0', '7']) AS other
WHERE pg_temp.hash(('{"user_id": ' || first || repeat(other, digits - 1) || '}')::jsonb) <> absmartly_hash_unit(first || repeat(other, digits - 1));

-- others count as doubles without decimals: halves away from zero
SELECT uid, pg_temp.hash(('{"user_id": ' || uid || '}')::jsonb) = absmartly_hash_unit(expected) AS in_units,
	absmartly_hash_unit(uid::numeric) = absmartly_hash_unit(expected) AS by_itself
FROM (VALUES ('0.5', '1'), ('2.5', '3'), ('-0.5', '-1'), ('125.75', '126'), ('-0.4', '-0'), ('0.4', '0'), ('1e-30', '0'),
	('0.49999999999999994', '0'), ('9007199254740992.5', '9007199254740992'), ('1234567890123456789.5', '1234567890123456768'),
	('1000000000000000000000.5', '1e+21')) AS v (uid, expected);
SELECT absmartly_hash_unit('NaN'::numeric);
SELECT absmartly_hash_unit('-Infinity'::numeric);
SELECT absmartly_hash_unit(NULL::numeric) IS NULL AND absmartly_hash_unit(NULL::text) IS NULL AS is_null;
-- by itself a text is taken as it is
SELECT absmartly_hash_unit('') AS empty, absmartly_hash_unit(' a ') = absmartly_hash_unit('a') AS trimmed;

-- several units, found among others
SELECT pg_temp.hash('{"a": "x", "user_id": "u", "zzzzzzzzzzzz": 3, "session_id": null}') = absmartly_hash_unit('u') AS found;
SELECT count(*) AS wrong FROM generate_series(0, 200) AS n
WHERE pg_temp.hash((SELECT jsonb_object_agg('unit' || i, i * 1.5) || jsonb_build_object('user_id', n) FROM generate_series(0, n) AS i))
	<> absmartly_hash_unit(n::text);

-- what is no unit, whether or not the experiment asks for it
SELECT absmartly_peek_treatment('{"user_id": true}', 'exp');
SELECT absmartly_peek_treatment('{"user_id": 1, "tags": ["a"]}', 'exp');
SELECT absmartly_peek_treatment('{"user_id": 1, "place": {"x": 1}}', 'unheard of');
SELECT absmartly_peek_treatment('{"user_id": ""}', 'exp');
SELECT absmartly_peek_treatment(jsonb_build_object('user_id', U&' \FEFF\3000 '), 'exp');
SELECT absmartly_peek_treatment('[]', 'exp');
SELECT absmartly_peek_treatment('"user"', 'exp');
SELECT absmartly_peek_treatment('null', 'exp');
SELECT absmartly_peek_treatment('42', 'exp');
SELECT absmartly_peek_treatment('true', 'exp');
SELECT count(*) FROM absmartly_assignments('{"user_id": 1, "other": false}');
SELECT count(*) FROM absmartly_assignments('[]');
SELECT absmartly_peek_variable_value('{"other": false}', 'unheard of', 1);
SELECT absmartly_explain('{"other": false}', 'exp');
SELECT absmartly_peek_unit_treatment('  ', 'exp');
SELECT absmartly_peek_unit_treatment('', 'unheard of');

-- 640 characters are enough; blanks do not count
SELECT absmartly_peek_treatment(jsonb_build_object('user_id', '  ' || repeat('ç', 640) || ' '), 'exp') =
	absmartly_peek_unit_treatment(repeat('ç', 640), 'exp') AS same;
SELECT absmartly_peek_treatment(jsonb_build_object('user_id', repeat('ç', 641)), 'exp');
SELECT absmartly_peek_unit_treatment(repeat('x', 641), 'exp');
SELECT absmartly_peek_treatment(('{"user_id": -1e639}')::jsonb, 'exp');
SELECT absmartly_peek_treatment(('{"other": 1e640}')::jsonb, 'exp');
SELECT absmartly_hash_unit(('1' || repeat('0', 640))::numeric);
-- a unit type's name is bounded
SELECT absmartly_peek_treatment(jsonb_build_object(repeat('n', 1024), 1), 'exp') AS longest;
SELECT absmartly_peek_treatment(jsonb_build_object(repeat('n', 1025), 1), 'exp');
