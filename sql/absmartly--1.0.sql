-- absmartly 1.0

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION absmartly" to load this file. \quit

-- Volatility: peeking reads data that stays the same within a statement, so it
-- is stable; the engine's functions look at their arguments only and are
-- immutable.  Costs are multiples of cpu_operator_cost as measured, in units of
-- some 10 ns.

--
-- Assignment without exposure
--

CREATE FUNCTION absmartly_peek_treatment(
	units jsonb,
	experiment text,
	attributes jsonb DEFAULT NULL,
	custom_variant int DEFAULT NULL)
RETURNS int
AS 'MODULE_PATHNAME', 'absmartly_peek_treatment'
LANGUAGE C STABLE CALLED ON NULL INPUT PARALLEL SAFE COST 20;

COMMENT ON FUNCTION absmartly_peek_treatment(jsonb, text, jsonb, int) IS
'variant of an experiment for these units, without an exposure';

CREATE FUNCTION absmartly_peek_unit_treatment(
	uid text,
	experiment text,
	attributes jsonb DEFAULT NULL)
RETURNS int
AS 'MODULE_PATHNAME', 'absmartly_peek_unit_treatment_text'
LANGUAGE C STABLE CALLED ON NULL INPUT PARALLEL SAFE COST 20;

COMMENT ON FUNCTION absmartly_peek_unit_treatment(text, text, jsonb) IS
'variant of an experiment for one unit, of the type that the experiment names, without an exposure';

CREATE FUNCTION absmartly_peek_unit_treatment(
	uid bigint,
	experiment text,
	attributes jsonb DEFAULT NULL)
RETURNS int
AS 'MODULE_PATHNAME', 'absmartly_peek_unit_treatment_bigint'
LANGUAGE C STABLE CALLED ON NULL INPUT PARALLEL SAFE COST 20;

COMMENT ON FUNCTION absmartly_peek_unit_treatment(bigint, text, jsonb) IS
'variant of an experiment for one unit, of the type that the experiment names, without an exposure';

CREATE FUNCTION absmartly_peek_unit_treatment(
	uid uuid,
	experiment text,
	attributes jsonb DEFAULT NULL)
RETURNS int
AS 'MODULE_PATHNAME', 'absmartly_peek_unit_treatment_uuid'
LANGUAGE C STABLE CALLED ON NULL INPUT PARALLEL SAFE COST 20;

COMMENT ON FUNCTION absmartly_peek_unit_treatment(uuid, text, jsonb) IS
'variant of an experiment for one unit, of the type that the experiment names, without an exposure';

CREATE FUNCTION absmartly_assignments(
	units jsonb,
	attributes jsonb DEFAULT NULL)
RETURNS TABLE (
	experiment text,
	id int,
	unit_type text,
	variant int,
	assigned boolean,
	eligible boolean,
	overridden boolean,
	full_on boolean,
	custom boolean,
	audience_mismatch boolean,
	rule_override boolean,
	held_out boolean,
	holdout_id int,
	variables jsonb)
AS 'MODULE_PATHNAME', 'absmartly_assignments'
LANGUAGE C STABLE CALLED ON NULL INPUT PARALLEL SAFE COST 500 ROWS 20;

COMMENT ON FUNCTION absmartly_assignments(jsonb, jsonb) IS
'outcome of every experiment for these units, without exposures';

CREATE FUNCTION absmartly_explain(
	units jsonb,
	experiment text,
	attributes jsonb DEFAULT NULL)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'absmartly_explain'
LANGUAGE C STABLE CALLED ON NULL INPUT PARALLEL SAFE COST 2000;

COMMENT ON FUNCTION absmartly_explain(jsonb, text, jsonb) IS
'why these units get this variant of an experiment';

--
-- Variables, custom fields, experiments
--

CREATE FUNCTION absmartly_peek_variable_value(
	units jsonb,
	key text,
	default_value anyelement,
	attributes jsonb DEFAULT NULL)
RETURNS anyelement
AS 'MODULE_PATHNAME', 'absmartly_peek_variable_value'
LANGUAGE C STABLE CALLED ON NULL INPUT PARALLEL SAFE COST 25;

COMMENT ON FUNCTION absmartly_peek_variable_value(jsonb, text, anyelement, jsonb) IS
'value of a variable for these units, or the default, without exposures';

CREATE FUNCTION absmartly_peek_variable_value(
	units jsonb,
	key text,
	default_value text,
	attributes jsonb DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME', 'absmartly_peek_variable_value'
LANGUAGE C STABLE CALLED ON NULL INPUT PARALLEL SAFE COST 25;

COMMENT ON FUNCTION absmartly_peek_variable_value(jsonb, text, text, jsonb) IS
'value of a variable for these units, or the default, without exposures';

CREATE FUNCTION absmartly_variable_keys()
RETURNS jsonb
AS 'MODULE_PATHNAME', 'absmartly_variable_keys'
LANGUAGE C STABLE STRICT PARALLEL SAFE COST 1000;

COMMENT ON FUNCTION absmartly_variable_keys() IS
'variables, each with the names of the experiments that have it, lowest id first';

CREATE FUNCTION absmartly_custom_field_keys()
RETURNS text[]
AS 'MODULE_PATHNAME', 'absmartly_custom_field_keys'
LANGUAGE C STABLE STRICT PARALLEL SAFE COST 100;

COMMENT ON FUNCTION absmartly_custom_field_keys() IS
'names of the custom fields of all experiments';

CREATE FUNCTION absmartly_custom_field_value(experiment text, name text)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'absmartly_custom_field_value'
LANGUAGE C STABLE STRICT PARALLEL SAFE COST 10;

COMMENT ON FUNCTION absmartly_custom_field_value(text, text) IS
'value of a custom field of an experiment';

CREATE FUNCTION absmartly_custom_field_value_type(experiment text, name text)
RETURNS text
AS 'MODULE_PATHNAME', 'absmartly_custom_field_value_type'
LANGUAGE C STABLE STRICT PARALLEL SAFE COST 10;

COMMENT ON FUNCTION absmartly_custom_field_value_type(text, text) IS
'declared type of a custom field of an experiment';

CREATE FUNCTION absmartly_experiments_get(
	OUT name text,
	OUT id int,
	OUT iteration int,
	OUT unit_type text,
	OUT variants int,
	OUT split float8[],
	OUT traffic_split float8[],
	OUT full_on_variant int,
	OUT audience text,
	OUT audience_strict boolean,
	OUT rules text,
	OUT holdout_ids int[],
	OUT variables text[],
	OUT custom_fields text[])
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'absmartly_experiments_get'
LANGUAGE C STABLE STRICT PARALLEL SAFE COST 1000 ROWS 20;

COMMENT ON FUNCTION absmartly_experiments_get() IS
'rows of the view absmartly_experiments';

CREATE VIEW absmartly_experiments AS
	SELECT name, id, iteration, unit_type, variants, split, traffic_split,
		full_on_variant, audience, audience_strict, rules, holdout_ids,
		variables, custom_fields
	FROM @extschema@.absmartly_experiments_get();

COMMENT ON VIEW absmartly_experiments IS
'experiments of the data in use';
COMMENT ON COLUMN absmartly_experiments.name IS
'name by which functions find the experiment';
COMMENT ON COLUMN absmartly_experiments.unit_type IS
'type of the units that are assigned; null: none are';
COMMENT ON COLUMN absmartly_experiments.variants IS
'number of variants';
COMMENT ON COLUMN absmartly_experiments.split IS
'weights of the variants';
COMMENT ON COLUMN absmartly_experiments.traffic_split IS
'weights of being left out and of taking part';
COMMENT ON COLUMN absmartly_experiments.full_on_variant IS
'variant that everybody gets; 0: the experiment is not full on';
COMMENT ON COLUMN absmartly_experiments.audience IS
'audience expression as received';
COMMENT ON COLUMN absmartly_experiments.audience_strict IS
'whether units outside the audience are left unassigned';
COMMENT ON COLUMN absmartly_experiments.rules IS
'assignment rules as received';
COMMENT ON COLUMN absmartly_experiments.holdout_ids IS
'holdouts that are in effect for the experiment';
COMMENT ON COLUMN absmartly_experiments.variables IS
'variables that any of the variants sets';
COMMENT ON COLUMN absmartly_experiments.custom_fields IS
'names of the custom fields';

GRANT SELECT ON absmartly_experiments TO PUBLIC;

--
-- The engine
--

CREATE FUNCTION absmartly_hash_unit(unit text)
RETURNS text
AS 'MODULE_PATHNAME', 'absmartly_hash_unit_text'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE COST 15;

COMMENT ON FUNCTION absmartly_hash_unit(text) IS
'hash of a unit''s text, taken as it is';

CREATE FUNCTION absmartly_hash_unit(unit numeric)
RETURNS text
AS 'MODULE_PATHNAME', 'absmartly_hash_unit_numeric'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE COST 15;

COMMENT ON FUNCTION absmartly_hash_unit(numeric) IS
'hash of a unit that is a number';

CREATE FUNCTION absmartly_assign(
	unit_hash text,
	split float8[],
	seed_hi bigint,
	seed_lo bigint)
RETURNS int
AS 'MODULE_PATHNAME', 'absmartly_assign'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE COST 5;

COMMENT ON FUNCTION absmartly_assign(text, float8[], bigint, bigint) IS
'part of the split that the assigner chooses for a unit''s hash';

CREATE FUNCTION absmartly_evaluate(expression json, variables jsonb)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'absmartly_evaluate'
LANGUAGE C IMMUTABLE CALLED ON NULL INPUT PARALLEL SAFE COST 50;

COMMENT ON FUNCTION absmartly_evaluate(json, jsonb) IS
'result of an audience expression';

CREATE FUNCTION absmartly_match_audience(audience text, attributes jsonb)
RETURNS boolean
AS 'MODULE_PATHNAME', 'absmartly_match_audience'
LANGUAGE C IMMUTABLE CALLED ON NULL INPUT PARALLEL SAFE COST 50;

COMMENT ON FUNCTION absmartly_match_audience(text, jsonb) IS
'whether attributes match an audience; null: it gives no verdict';

CREATE FUNCTION absmartly_base64url(data text)
RETURNS text
AS 'MODULE_PATHNAME', 'absmartly_base64url_text'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE COST 10;

COMMENT ON FUNCTION absmartly_base64url(text) IS
'base64url, without padding, of the bytes that absmartly_utf8_bytes gives';

CREATE FUNCTION absmartly_base64url(data bytea)
RETURNS text
AS 'MODULE_PATHNAME', 'absmartly_base64url_bytea'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE COST 5;

COMMENT ON FUNCTION absmartly_base64url(bytea) IS
'base64url without padding';

CREATE FUNCTION absmartly_utf8_bytes(string text)
RETURNS int[]
AS 'MODULE_PATHNAME', 'absmartly_utf8_bytes'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE COST 10;

COMMENT ON FUNCTION absmartly_utf8_bytes(text) IS
'bytes that a unit''s hash is made of: each UTF-16 code unit encoded by itself';

--
-- The shared data as a whole
--

CREATE FUNCTION absmartly_is_ready() RETURNS boolean
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION absmartly_is_ready() IS
'whether this database has experiment data to assign with';

CREATE FUNCTION absmartly_wait_until_ready(timeout interval DEFAULT '10 s')
RETURNS boolean
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION absmartly_wait_until_ready(interval) IS
'waits until this database has experiment data; false if the time-out comes first';

CREATE FUNCTION absmartly_refresh(timeout interval DEFAULT '10 s')
RETURNS bigint
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION absmartly_refresh(interval) IS
'fetches the experiments now and waits for them; gives the generation of the data';
REVOKE ALL ON FUNCTION absmartly_refresh(interval) FROM PUBLIC;

CREATE FUNCTION absmartly_set_context_data(data json) RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION absmartly_set_context_data(json) IS
'loads experiment data without a network, until the next fetch';
REVOKE ALL ON FUNCTION absmartly_set_context_data(json) FROM PUBLIC;

CREATE FUNCTION absmartly_shared_data(
	OUT data json,
	OUT generation bigint,
	OUT source text,
	OUT endpoint text,
	OUT application text,
	OUT environment text,
	OUT fetched_at timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME' LANGUAGE C STABLE PARALLEL RESTRICTED ROWS 1;
COMMENT ON FUNCTION absmartly_shared_data() IS
'the experiment data in use and where it comes from; no row if there is none';
REVOKE ALL ON FUNCTION absmartly_shared_data() FROM PUBLIC;

--
-- Monitoring
--

CREATE FUNCTION absmartly_stat_get(
	OUT mode text,
	OUT worker_pid integer,
	OUT worker_state text,
	OUT ready boolean,
	OUT generation bigint,
	OUT source text,
	OUT experiments integer,
	OUT experiments_left_out integer,
	OUT fetched_at timestamptz,
	OUT last_fetch_at timestamptz,
	OUT last_fetch_error text,
	OUT last_fetch_error_at timestamptz,
	OUT fetch_requests bigint,
	OUT fetch_failures bigint,
	OUT fetch_retries bigint,
	OUT fetch_bytes bigint,
	OUT fetch_last_ms double precision,
	OUT fetch_mean_ms double precision,
	OUT data_versions integer,
	OUT data_bytes bigint,
	OUT stat_reset_at timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 1;
COMMENT ON FUNCTION absmartly_stat_get() IS
'the row of the view absmartly_stat';
REVOKE ALL ON FUNCTION absmartly_stat_get() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION absmartly_stat_get() TO pg_monitor;

CREATE VIEW absmartly_stat AS SELECT * FROM absmartly_stat_get();
COMMENT ON VIEW absmartly_stat IS
'what absmartly does in this database: one row';
COMMENT ON COLUMN absmartly_stat.mode IS
'preloaded, or not preloaded: then there is no worker';
COMMENT ON COLUMN absmartly_stat.worker_pid IS
'process of this database''s worker; null: none runs';
COMMENT ON COLUMN absmartly_stat.worker_state IS
'not running, starting, idle, fetching, retrying, backing off or logging';
COMMENT ON COLUMN absmartly_stat.ready IS
'whether there is experiment data to assign with';
COMMENT ON COLUMN absmartly_stat.generation IS
'number of the data in use; grows when it changes';
COMMENT ON COLUMN absmartly_stat.source IS
'fetched by the worker, read from the file at start, or set by hand';
COMMENT ON COLUMN absmartly_stat.experiments IS
'experiments in the data in use';
COMMENT ON COLUMN absmartly_stat.experiments_left_out IS
'experiments that were broken and are not in use';
COMMENT ON COLUMN absmartly_stat.fetched_at IS
'when the data in use was last confirmed by its source';
COMMENT ON COLUMN absmartly_stat.last_fetch_at IS
'when a fetch last succeeded';
COMMENT ON COLUMN absmartly_stat.last_fetch_error IS
'why the last attempt failed; null if it did not';
COMMENT ON COLUMN absmartly_stat.last_fetch_error_at IS
'when an attempt last failed';
COMMENT ON COLUMN absmartly_stat.fetch_requests IS
'attempts to fetch';
COMMENT ON COLUMN absmartly_stat.fetch_failures IS
'attempts that failed';
COMMENT ON COLUMN absmartly_stat.fetch_retries IS
'attempts that repeated a failed one';
COMMENT ON COLUMN absmartly_stat.fetch_bytes IS
'bytes of the answers received';
COMMENT ON COLUMN absmartly_stat.fetch_last_ms IS
'duration of the last attempt in milliseconds';
COMMENT ON COLUMN absmartly_stat.fetch_mean_ms IS
'mean duration of the attempts in milliseconds';
COMMENT ON COLUMN absmartly_stat.data_versions IS
'versions of the data in shared memory: the one in use, and older ones that statements still read';
COMMENT ON COLUMN absmartly_stat.data_bytes IS
'shared memory that they take';
COMMENT ON COLUMN absmartly_stat.stat_reset_at IS
'when the counters were last set to zero';
REVOKE ALL ON absmartly_stat FROM PUBLIC;
GRANT SELECT ON absmartly_stat TO pg_monitor;

CREATE FUNCTION absmartly_stat_reset() RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION absmartly_stat_reset() IS
'sets the counters of absmartly_stat to zero for this database';
REVOKE ALL ON FUNCTION absmartly_stat_reset() FROM PUBLIC;
