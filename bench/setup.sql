-- What bench/assign measures on: users, experiments, baselines, and the same assignment in PL/pgSQL.
-- psql variables: rows

\set ON_ERROR_STOP on

CREATE EXTENSION absmartly;

-- ---------------------------------------------------------------------------
-- Users
-- ---------------------------------------------------------------------------

CREATE TABLE users (id bigint NOT NULL, attributes jsonb NOT NULL) WITH (autovacuum_enabled = off);

INSERT INTO users
SELECT
    id,
    jsonb_build_object(
        'age', 18 + id % 60,
        'country', (ARRAY['de', 'fr', 'gb', 'us'])[1 + id % 4],
        'plan', (ARRAY['free', 'basic', 'premium'])[1 + id % 3])
FROM generate_series(1, :rows) AS id;

VACUUM (FREEZE, ANALYZE) users;

-- ---------------------------------------------------------------------------
-- Experiments: a third have an audience of two clauses; for every user both are evaluated and half of the users match
-- ---------------------------------------------------------------------------

CREATE FUNCTION bench_experiment(name text, id int, with_audience boolean) RETURNS json
LANGUAGE sql IMMUTABLE
AS $$
    SELECT json_build_object(
        'id', id,
        'name', name,
        'unitType', 'user_id',
        'iteration', 1,
        'seedHi', hashint4(id) & 2147483647,
        'seedLo', hashint4(-id) & 2147483647,
        'split', CASE id % 3 WHEN 0 THEN '[0.34, 0.33, 0.33]'::json ELSE '[0.5, 0.5]' END,
        'trafficSeedHi', hashint4(id + 1000000) & 2147483647,
        'trafficSeedLo', hashint4(id + 2000000) & 2147483647,
        'trafficSplit', CASE id % 5 WHEN 0 THEN '[0.2, 0.8]'::json ELSE '[0, 1]' END,
        'fullOnVariant', 0,
        'applications', '[{"name": "shop"}]'::json,
        'variants',
        (
            SELECT json_agg(
                json_build_object(
                    'name', chr(64 + variant),
                    'config', CASE WHEN variant > 1
                        THEN format('{"button.%s.color": "red", "limit.%s": %s}', id % 50, id % 50, variant) END))
            FROM generate_series(1, CASE id % 3 WHEN 0 THEN 3 ELSE 2 END) AS variant
        ),
        'audience', CASE WHEN with_audience THEN
            '{"filter": [{"gte": [{"var": "age"}, {"value": 18}]},'
            ' {"in": [{"value": ["de", "fr"]}, {"var": "country"}]}]}'
            ELSE '' END,
        'audienceStrict', false,
        'customFieldValues', NULL)
$$;

-- "plain" and "targeted" are measured; they stand in the middle of the list, under the same ids in all data
CREATE TABLE bench_data (experiments int PRIMARY KEY, data json NOT NULL);

INSERT INTO bench_data
SELECT
    size,
    json_build_object(
        'experiments',
        (
            SELECT json_agg(
                CASE i
                    WHEN (size + 1) / 2 THEN bench_experiment('plain', 1, false)
                    WHEN (size + 1) / 2 + 1 THEN bench_experiment('targeted', 2, true)
                    ELSE bench_experiment(format('experiment_%s', i), i + 10, i % 3 = 0)
                END
                ORDER BY i)
            FROM generate_series(1, size) AS i
        ))
FROM unnest(ARRAY[1, 20, 200, 2000]) AS size;

CREATE FUNCTION bench_load(size int) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM absmartly_set_context_data(data) FROM bench_data WHERE experiments = size;
END
$$;

-- ---------------------------------------------------------------------------
-- Baselines in C
-- ---------------------------------------------------------------------------

CREATE FUNCTION bench_trivial(id bigint) RETURNS int
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'absmartly_bench', 'bench_trivial';

CREATE FUNCTION bench_trivial_peek(
    units jsonb, experiment text, attributes jsonb DEFAULT NULL, custom_variant int DEFAULT NULL
) RETURNS int
LANGUAGE c STABLE PARALLEL SAFE
AS 'absmartly_bench', 'bench_trivial_peek';

CREATE FUNCTION bench_cpu() RETURNS double precision
LANGUAGE c VOLATILE STRICT PARALLEL RESTRICTED
AS 'absmartly_bench', 'bench_cpu';

-- with the columns that absmartly_assignments has
DO $$
BEGIN
    EXECUTE format(
        'CREATE FUNCTION bench_constant_rows(units jsonb, attributes jsonb, count int) RETURNS %s '
        'LANGUAGE c STABLE PARALLEL SAFE AS %L, %L',
        (SELECT pg_get_function_result(oid) FROM pg_proc WHERE proname = 'absmartly_assignments'),
        'absmartly_bench', 'bench_constant_rows');
END
$$;

-- ---------------------------------------------------------------------------
-- The same assignment in PL/pgSQL
-- ---------------------------------------------------------------------------

CREATE TABLE bench_experiments (
    name text PRIMARY KEY,
    full_on_variant int NOT NULL,
    seed_hi bigint NOT NULL,
    seed_lo bigint NOT NULL,
    split float8[] NOT NULL,
    traffic_seed_hi bigint NOT NULL,
    traffic_seed_lo bigint NOT NULL,
    traffic_split float8[] NOT NULL
);

INSERT INTO bench_experiments
SELECT
    e ->> 'name',
    (e ->> 'fullOnVariant')::int,
    (e ->> 'seedHi')::bigint,
    (e ->> 'seedLo')::bigint,
    ARRAY(SELECT weight::float8 FROM json_array_elements_text(e -> 'split') AS weight),
    (e ->> 'trafficSeedHi')::bigint,
    (e ->> 'trafficSeedLo')::bigint,
    ARRAY(SELECT weight::float8 FROM json_array_elements_text(e -> 'trafficSplit') AS weight)
FROM bench_data, json_array_elements(data -> 'experiments') AS e
WHERE experiments = 200 AND e ->> 'audience' = '';

ANALYZE bench_experiments;

-- the product of two numbers below 2^32, modulo 2^32: bigint has no room for the whole of it
CREATE FUNCTION bench_multiply(a bigint, b bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
AS $$
    SELECT ((a & 65535) * b + ((((a >> 16) * b) & 65535) << 16)) & 4294967295
$$;

-- murmur3, 32 bits, seed 0
CREATE FUNCTION bench_murmur3(data bytea) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $$
DECLARE
    size int := length(data);
    tail int := size & 3;
    hash bigint := 0;
    word bigint;
BEGIN
    FOR at IN 0 .. size - 4 BY 4 LOOP
        word := get_byte(data, at)::bigint | (get_byte(data, at + 1)::bigint << 8)
            | (get_byte(data, at + 2)::bigint << 16) | (get_byte(data, at + 3)::bigint << 24);
        word := bench_multiply(word, 3432918353);
        word := ((word << 15) | (word >> 17)) & 4294967295;
        hash := hash # bench_multiply(word, 461845907);
        hash := ((hash << 13) | (hash >> 19)) & 4294967295;
        hash := (hash * 5 + 3864292196) & 4294967295;
    END LOOP;
    IF tail > 0 THEN
        word := 0;
        FOR at IN REVERSE size - 1 .. size - tail LOOP
            word := (word << 8) | get_byte(data, at);
        END LOOP;
        word := bench_multiply(word, 3432918353);
        word := ((word << 15) | (word >> 17)) & 4294967295;
        hash := hash # bench_multiply(word, 461845907);
    END IF;
    hash := hash # size;
    hash := bench_multiply(hash # (hash >> 16), 2246822507);
    hash := bench_multiply(hash # (hash >> 13), 3266489909);
    RETURN hash # (hash >> 16);
END
$$;

-- a number below 2^32 as four bytes, the lowest first
CREATE FUNCTION bench_bytes(word bigint) RETURNS bytea
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
AS $$
    SELECT substr(int8send(((word & 255) << 24) | ((word & 65280) << 8) | ((word >> 8) & 65280) | (word >> 24)), 5)
$$;

CREATE FUNCTION bench_choose(split float8[], hash bigint, seed_hi bigint, seed_lo bigint) RETURNS int
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $$
DECLARE
    probability float8 := bench_murmur3(bench_bytes(seed_lo) || bench_bytes(seed_hi) || bench_bytes(hash))
        * (1.0::float8 / 4294967295.0::float8);
    total float8 := 0;
BEGIN
    FOR i IN 1 .. cardinality(split) LOOP
        total := total + split[i];
        IF probability < total THEN
            RETURN i - 1;
        END IF;
    END LOOP;
    RETURN cardinality(split) - 1;
END
$$;

-- without rules, audiences and holdouts, and for units that need no change of encoding
CREATE FUNCTION bench_plpgsql_treatment(uid text, experiment text) RETURNS int
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
AS $$
DECLARE
    e bench_experiments;
    hash bigint;
BEGIN
    SELECT * INTO e FROM bench_experiments WHERE name = experiment;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    IF e.full_on_variant <> 0 THEN
        RETURN e.full_on_variant;
    END IF;
    hash := bench_murmur3(
        convert_to(translate(rtrim(encode(decode(md5(uid), 'hex'), 'base64'), '='), '+/', '-_'), 'UTF8'));
    IF bench_choose(e.traffic_split, hash, e.traffic_seed_hi, e.traffic_seed_lo) <> 1 THEN
        RETURN 0;
    END IF;
    RETURN bench_choose(e.split, hash, e.seed_hi, e.seed_lo);
END
$$;

-- ---------------------------------------------------------------------------
-- Nothing is measured that is wrong
-- ---------------------------------------------------------------------------

SELECT bench_load(200);

DO $$
DECLARE
    different bigint;
    variants bigint;
BEGIN
    SELECT count(*) FILTER (WHERE ours IS DISTINCT FROM theirs OR ours IS DISTINCT FROM by_unit), count(DISTINCT ours)
    INTO different, variants
    FROM (
        SELECT
            bench_plpgsql_treatment(u.id::text, e.name) AS theirs,
            absmartly_peek_treatment(jsonb_build_object('user_id', u.id), e.name) AS ours,
            absmartly_peek_unit_treatment(u.id, e.name) AS by_unit
        FROM users AS u, (SELECT name FROM bench_experiments ORDER BY name = 'plain' DESC, name LIMIT 10) AS e
        WHERE u.id <= 1000
    ) AS results;
    IF different > 0 OR variants < 2 THEN
        RAISE 'PL/pgSQL and the extension differ in % assignments, % variants seen', different, variants;
    END IF;
END
$$;

VACUUM;
CHECKPOINT;
