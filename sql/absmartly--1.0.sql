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
-- Events
--

--
-- Assignment with exposure
--

CREATE FUNCTION absmartly_treatment(
	units jsonb,
	experiment text,
	attributes jsonb DEFAULT NULL,
	custom_variant int DEFAULT NULL,
	exposed_at timestamptz DEFAULT NULL,
	historic boolean DEFAULT NULL)
RETURNS int
AS 'MODULE_PATHNAME', 'absmartly_treatment'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED COST 40;

COMMENT ON FUNCTION absmartly_treatment(jsonb, text, jsonb, int, timestamptz, boolean) IS
'variant of an experiment for these units; queues its exposure';

CREATE FUNCTION absmartly_unit_treatment(
	uid text,
	experiment text,
	attributes jsonb DEFAULT NULL,
	exposed_at timestamptz DEFAULT NULL,
	historic boolean DEFAULT NULL)
RETURNS int
AS 'MODULE_PATHNAME', 'absmartly_unit_treatment_text'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED COST 40;

COMMENT ON FUNCTION absmartly_unit_treatment(text, text, jsonb, timestamptz, boolean) IS
'variant of an experiment for one unit, of the type that the experiment names; queues its exposure';

CREATE FUNCTION absmartly_unit_treatment(
	uid bigint,
	experiment text,
	attributes jsonb DEFAULT NULL,
	exposed_at timestamptz DEFAULT NULL,
	historic boolean DEFAULT NULL)
RETURNS int
AS 'MODULE_PATHNAME', 'absmartly_unit_treatment_bigint'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED COST 40;

COMMENT ON FUNCTION absmartly_unit_treatment(bigint, text, jsonb, timestamptz, boolean) IS
'variant of an experiment for one unit, of the type that the experiment names; queues its exposure';

CREATE FUNCTION absmartly_unit_treatment(
	uid uuid,
	experiment text,
	attributes jsonb DEFAULT NULL,
	exposed_at timestamptz DEFAULT NULL,
	historic boolean DEFAULT NULL)
RETURNS int
AS 'MODULE_PATHNAME', 'absmartly_unit_treatment_uuid'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED COST 40;

COMMENT ON FUNCTION absmartly_unit_treatment(uuid, text, jsonb, timestamptz, boolean) IS
'variant of an experiment for one unit, of the type that the experiment names; queues its exposure';

CREATE FUNCTION absmartly_variable_value(
	units jsonb,
	key text,
	default_value anycompatible,
	attributes jsonb DEFAULT NULL,
	exposed_at timestamptz DEFAULT NULL,
	historic boolean DEFAULT NULL)
RETURNS anycompatible
AS 'MODULE_PATHNAME', 'absmartly_variable_value'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED COST 50;

COMMENT ON FUNCTION absmartly_variable_value(jsonb, text, anycompatible, jsonb, timestamptz, boolean) IS
'value of a variable for these units, or the default; queues the exposures of the experiments it consults';

--
-- Goals
--

CREATE FUNCTION absmartly_track(
	units jsonb,
	goal text,
	properties jsonb DEFAULT NULL,
	achieved_at timestamptz DEFAULT NULL,
	attributes jsonb DEFAULT NULL,
	historic boolean DEFAULT NULL)
RETURNS void
AS 'MODULE_PATHNAME', 'absmartly_track'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED COST 50;

COMMENT ON FUNCTION absmartly_track(jsonb, text, jsonb, timestamptz, jsonb, boolean) IS
'queues a goal of these units';

--
-- Goals from triggers
--

CREATE FUNCTION absmartly_track_trigger()
RETURNS trigger
AS 'MODULE_PATHNAME', 'absmartly_track_trigger'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

COMMENT ON FUNCTION absmartly_track_trigger() IS
'tracks a goal for each row: arguments are the goal, units as unit_type=column, properties as columns or name=''text'', and the options achieved_at=column and attributes=column';

CREATE FUNCTION absmartly_check_triggers(
	OUT relation regclass,
	OUT trigger name,
	OUT enabled boolean,
	OUT sqlstate text,
	OUT problem text,
	OUT detail text,
	OUT hint text)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'absmartly_check_triggers'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000 ROWS 10;

COMMENT ON FUNCTION absmartly_check_triggers() IS
'triggers that call absmartly_track_trigger() and cannot work, and why, on tables that the user may write to';

CREATE FUNCTION absmartly_check_command() RETURNS event_trigger
AS 'MODULE_PATHNAME', 'absmartly_check_command'
LANGUAGE C;

COMMENT ON FUNCTION absmartly_check_command() IS
'refuses what makes a trigger that calls absmartly_track_trigger() unable to work';
REVOKE ALL ON FUNCTION absmartly_check_command() FROM PUBLIC;

CREATE EVENT TRIGGER absmartly_check_command ON ddl_command_end
	WHEN TAG IN ('CREATE TRIGGER', 'ALTER TABLE', 'ALTER FOREIGN TABLE',
		'ALTER TYPE', 'CREATE SCHEMA')
	EXECUTE FUNCTION @extschema@.absmartly_check_command();
COMMENT ON EVENT TRIGGER absmartly_check_command IS
'refuses commands that make a tracking trigger which cannot work, or make one so';

-- A column goes with its type, which may be a relation's, or its collation, and
-- a generated one with all that its expression names, whatever these go with:
-- so any command may take one along.
CREATE EVENT TRIGGER absmartly_check_drop ON sql_drop
	EXECUTE FUNCTION @extschema@.absmartly_check_command();
COMMENT ON EVENT TRIGGER absmartly_check_drop IS
'refuses commands that take a column from a tracking trigger, with what it depends on';

--
-- Variables, custom fields, experiments
--

CREATE FUNCTION absmartly_peek_variable_value(
	units jsonb,
	key text,
	default_value anycompatible,
	attributes jsonb DEFAULT NULL)
RETURNS anycompatible
AS 'MODULE_PATHNAME', 'absmartly_peek_variable_value'
LANGUAGE C STABLE CALLED ON NULL INPUT PARALLEL SAFE COST 25;

COMMENT ON FUNCTION absmartly_peek_variable_value(jsonb, text, anycompatible, jsonb) IS
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

CREATE FUNCTION absmartly_publish(timeout interval DEFAULT '10 s')
RETURNS bigint
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION absmartly_publish(interval) IS
'waits until all events that are committed are delivered; gives their number';
REVOKE ALL ON FUNCTION absmartly_publish(interval) FROM PUBLIC;

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
-- The outbox
--

-- Three heaps of one shape, which src/events/heaps.c writes and reads by the
-- layout of their rows: no index, nothing toasted, nothing null; application,
-- its version and the environment are in UTF-8 whatever the database has.
--
-- For PostgreSQL they are materialized views.  These are heaps like tables, but
-- no publication has them, not even one of all tables, so that a subscriber
-- needs nothing of ours; no INSERT, UPDATE, DELETE or TRUNCATE touches them; and
-- they take no part in serialization conflicts.  A REFRESH, which would empty
-- them, does nothing: src/events/guard.c tells how.
--
-- What a materialized view is made of is toastable, so each is made with a TOAST
-- table.  CLUSTER makes its file anew when its columns are not toastable any
-- more, and so leaves it without one.

CREATE FUNCTION absmartly_outbox_guard() RETURNS boolean
AS 'MODULE_PATHNAME', 'absmartly_outbox_guard'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION absmartly_outbox_guard() IS
'keeps the outbox from being refreshed, which would empty it';
REVOKE ALL ON FUNCTION absmartly_outbox_guard() FROM PUBLIC;

-- Sessions without the library load it for a REFRESH, which then is of this one.
CREATE MATERIALIZED VIEW absmartly_outbox_nothing
USING heap
AS SELECT WHERE false
WITH NO DATA;
COMMENT ON MATERIALIZED VIEW absmartly_outbox_nothing IS
'what is refreshed in place of the outbox';
REVOKE ALL ON absmartly_outbox_nothing FROM PUBLIC;

CREATE FUNCTION absmartly_outbox_keep() RETURNS event_trigger
AS 'MODULE_PATHNAME', 'absmartly_outbox_keep'
LANGUAGE C;
COMMENT ON FUNCTION absmartly_outbox_keep() IS
'has a REFRESH of the outbox do nothing';
REVOKE ALL ON FUNCTION absmartly_outbox_keep() FROM PUBLIC;

CREATE EVENT TRIGGER absmartly_outbox_keep ON ddl_command_start
	WHEN TAG IN ('REFRESH MATERIALIZED VIEW')
	EXECUTE FUNCTION @extschema@.absmartly_outbox_keep();
ALTER EVENT TRIGGER absmartly_outbox_keep ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER absmartly_outbox_keep IS
'keeps the events that wait in the outbox, in sessions that have not loaded the library';

CREATE MATERIALIZED VIEW absmartly_outbox_a
USING heap
WITH (fillfactor = 100, autovacuum_enabled = off)
AS SELECT
	0::int AS status,
	0::pg_catalog.oid AS database,
	0::bigint AS endpoint,
	pg_catalog.now() AS created,
	0::bigint AS record,
	0::bigint AS context,
	0::bigint AS sequence,
	0::int AS chunk,
	0::int AS chunks,
	0::int AS contexts,
	0::int AS exposures,
	0::int AS goals,
	''::pg_catalog.bytea AS application,
	''::pg_catalog.bytea AS application_version,
	''::pg_catalog.bytea AS environment,
	''::pg_catalog.text AS note,
	''::pg_catalog.bytea AS payload
WHERE @extschema@.absmartly_outbox_guard();
ALTER MATERIALIZED VIEW absmartly_outbox_a
	ALTER COLUMN application SET STORAGE PLAIN,
	ALTER COLUMN application_version SET STORAGE PLAIN,
	ALTER COLUMN environment SET STORAGE PLAIN,
	ALTER COLUMN note SET STORAGE PLAIN,
	ALTER COLUMN payload SET STORAGE PLAIN;
CREATE INDEX absmartly_outbox_a_order ON absmartly_outbox_a (status);
CLUSTER absmartly_outbox_a USING absmartly_outbox_a_order;
DROP INDEX absmartly_outbox_a_order;
COMMENT ON MATERIALIZED VIEW absmartly_outbox_a IS
'events that wait to be sent';
REVOKE ALL ON absmartly_outbox_a FROM PUBLIC;

CREATE MATERIALIZED VIEW absmartly_outbox_b
USING heap
WITH (fillfactor = 100, autovacuum_enabled = off)
AS SELECT
	0::int AS status,
	0::pg_catalog.oid AS database,
	0::bigint AS endpoint,
	pg_catalog.now() AS created,
	0::bigint AS record,
	0::bigint AS context,
	0::bigint AS sequence,
	0::int AS chunk,
	0::int AS chunks,
	0::int AS contexts,
	0::int AS exposures,
	0::int AS goals,
	''::pg_catalog.bytea AS application,
	''::pg_catalog.bytea AS application_version,
	''::pg_catalog.bytea AS environment,
	''::pg_catalog.text AS note,
	''::pg_catalog.bytea AS payload
WHERE @extschema@.absmartly_outbox_guard();
ALTER MATERIALIZED VIEW absmartly_outbox_b
	ALTER COLUMN application SET STORAGE PLAIN,
	ALTER COLUMN application_version SET STORAGE PLAIN,
	ALTER COLUMN environment SET STORAGE PLAIN,
	ALTER COLUMN note SET STORAGE PLAIN,
	ALTER COLUMN payload SET STORAGE PLAIN;
CREATE INDEX absmartly_outbox_b_order ON absmartly_outbox_b (status);
CLUSTER absmartly_outbox_b USING absmartly_outbox_b_order;
DROP INDEX absmartly_outbox_b_order;
COMMENT ON MATERIALIZED VIEW absmartly_outbox_b IS
'events that wait to be sent';
REVOKE ALL ON absmartly_outbox_b FROM PUBLIC;

CREATE MATERIALIZED VIEW absmartly_outbox_bulk_a
USING heap
WITH (fillfactor = 100, autovacuum_enabled = off)
AS SELECT
	0::int AS status,
	0::pg_catalog.oid AS database,
	0::bigint AS endpoint,
	pg_catalog.now() AS created,
	0::bigint AS record,
	0::bigint AS context,
	0::bigint AS sequence,
	0::int AS chunk,
	0::int AS chunks,
	0::int AS contexts,
	0::int AS exposures,
	0::int AS goals,
	''::pg_catalog.bytea AS application,
	''::pg_catalog.bytea AS application_version,
	''::pg_catalog.bytea AS environment,
	''::pg_catalog.text AS note,
	''::pg_catalog.bytea AS payload
WHERE @extschema@.absmartly_outbox_guard();
ALTER MATERIALIZED VIEW absmartly_outbox_bulk_a
	ALTER COLUMN application SET STORAGE PLAIN,
	ALTER COLUMN application_version SET STORAGE PLAIN,
	ALTER COLUMN environment SET STORAGE PLAIN,
	ALTER COLUMN note SET STORAGE PLAIN,
	ALTER COLUMN payload SET STORAGE PLAIN;
CREATE INDEX absmartly_outbox_bulk_a_order ON absmartly_outbox_bulk_a (status);
CLUSTER absmartly_outbox_bulk_a USING absmartly_outbox_bulk_a_order;
DROP INDEX absmartly_outbox_bulk_a_order;
COMMENT ON MATERIALIZED VIEW absmartly_outbox_bulk_a IS
'events in bulk that wait to be sent: historic ones, and those of large transactions';
REVOKE ALL ON absmartly_outbox_bulk_a FROM PUBLIC;

CREATE MATERIALIZED VIEW absmartly_outbox_bulk_b
USING heap
WITH (fillfactor = 100, autovacuum_enabled = off)
AS SELECT
	0::int AS status,
	0::pg_catalog.oid AS database,
	0::bigint AS endpoint,
	pg_catalog.now() AS created,
	0::bigint AS record,
	0::bigint AS context,
	0::bigint AS sequence,
	0::int AS chunk,
	0::int AS chunks,
	0::int AS contexts,
	0::int AS exposures,
	0::int AS goals,
	''::pg_catalog.bytea AS application,
	''::pg_catalog.bytea AS application_version,
	''::pg_catalog.bytea AS environment,
	''::pg_catalog.text AS note,
	''::pg_catalog.bytea AS payload
WHERE @extschema@.absmartly_outbox_guard();
ALTER MATERIALIZED VIEW absmartly_outbox_bulk_b
	ALTER COLUMN application SET STORAGE PLAIN,
	ALTER COLUMN application_version SET STORAGE PLAIN,
	ALTER COLUMN environment SET STORAGE PLAIN,
	ALTER COLUMN note SET STORAGE PLAIN,
	ALTER COLUMN payload SET STORAGE PLAIN;
CREATE INDEX absmartly_outbox_bulk_b_order ON absmartly_outbox_bulk_b (status);
CLUSTER absmartly_outbox_bulk_b USING absmartly_outbox_bulk_b_order;
DROP INDEX absmartly_outbox_bulk_b_order;
COMMENT ON MATERIALIZED VIEW absmartly_outbox_bulk_b IS
'events in bulk that wait to be sent: historic ones, and those of large transactions';
REVOKE ALL ON absmartly_outbox_bulk_b FROM PUBLIC;

CREATE MATERIALIZED VIEW absmartly_outbox_parked
USING heap
WITH (fillfactor = 100, autovacuum_enabled = off)
AS SELECT
	0::int AS status,
	0::pg_catalog.oid AS database,
	0::bigint AS endpoint,
	pg_catalog.now() AS created,
	0::bigint AS record,
	0::bigint AS context,
	0::bigint AS sequence,
	0::int AS chunk,
	0::int AS chunks,
	0::int AS contexts,
	0::int AS exposures,
	0::int AS goals,
	''::pg_catalog.bytea AS application,
	''::pg_catalog.bytea AS application_version,
	''::pg_catalog.bytea AS environment,
	''::pg_catalog.text AS note,
	''::pg_catalog.bytea AS payload
WHERE @extschema@.absmartly_outbox_guard();
ALTER MATERIALIZED VIEW absmartly_outbox_parked
	ALTER COLUMN application SET STORAGE PLAIN,
	ALTER COLUMN application_version SET STORAGE PLAIN,
	ALTER COLUMN environment SET STORAGE PLAIN,
	ALTER COLUMN note SET STORAGE PLAIN,
	ALTER COLUMN payload SET STORAGE PLAIN;
CREATE INDEX absmartly_outbox_parked_order ON absmartly_outbox_parked (status);
CLUSTER absmartly_outbox_parked USING absmartly_outbox_parked_order;
DROP INDEX absmartly_outbox_parked_order;
COMMENT ON MATERIALIZED VIEW absmartly_outbox_parked IS
'events that must stay: held by a session context, refused by the collector, of another database, or not readable';
REVOKE ALL ON absmartly_outbox_parked FROM PUBLIC;

CREATE FUNCTION absmartly_decode_events(
	payload bytea,
	record_created timestamptz DEFAULT NULL,
	OUT created timestamptz,
	OUT context int,
	OUT unit_types text[],
	OUT units text[],
	OUT historic boolean,
	OUT attributes json,
	OUT kind text,
	OUT event_time timestamptz,
	OUT experiment text,
	OUT experiment_id bigint,
	OUT unit_type text,
	OUT variant int,
	OUT assigned boolean,
	OUT eligible boolean,
	OUT overridden boolean,
	OUT full_on boolean,
	OUT custom boolean,
	OUT audience_mismatch boolean,
	OUT rule_override boolean,
	OUT held_out boolean,
	OUT holdout_id bigint,
	OUT goal text,
	OUT properties json)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'absmartly_decode_events'
LANGUAGE C STABLE CALLED ON NULL INPUT PARALLEL SAFE COST 1000 ROWS 100;

COMMENT ON FUNCTION absmartly_decode_events(bytea, timestamptz) IS
'events of a payload of the outbox, a row each, and when they were recorded if that is known of the first ones';

CREATE FUNCTION absmartly_outbox_records(
	view text,
	OUT place text,
	OUT status text,
	OUT record bigint,
	OUT created timestamptz,
	OUT database oid,
	OUT context_id text,
	OUT contexts int,
	OUT exposures int,
	OUT goals int,
	OUT application text,
	OUT application_version text,
	OUT environment text,
	OUT bytes bigint,
	OUT note text,
	OUT payload bytea)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'absmartly_outbox_records'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 1000 ROWS 1000;
COMMENT ON FUNCTION absmartly_outbox_records(text) IS
'records that wait or are kept, in the outbox and in memory, as they are at this moment: those of a view, for who may read that';

-- The events of a record are shown once, also while it moves from memory to the
-- outbox, or within that: a function sees to it, since a snapshot alone can't.

CREATE VIEW absmartly_outbox AS
	SELECT place, status, record, created, database, context_id, contexts,
		exposures, goals, application, application_version, environment, bytes,
		note
	FROM @extschema@.absmartly_outbox_records(
		'absmartly_outbox'::pg_catalog.text);

COMMENT ON VIEW absmartly_outbox IS
'records that wait in the outbox or are kept there, a row each';
COMMENT ON COLUMN absmartly_outbox.place IS
'where the record is: a or b, of which one is written while the other is emptied, bulk_a or bulk_b likewise, parked, or in memory';
COMMENT ON COLUMN absmartly_outbox.status IS
'waiting; held: of a session context, until that lets it go; foreign: of another database or endpoint; dead: refused by the collector; unreadable: of an unknown version';
COMMENT ON COLUMN absmartly_outbox.record IS
'id of the record, for absmartly_requeue and absmartly_discard';
COMMENT ON COLUMN absmartly_outbox.created IS
'when the transaction that made the record ended; of several that share one, the first one';
COMMENT ON COLUMN absmartly_outbox.database IS
'database whose events these are';
COMMENT ON COLUMN absmartly_outbox.context_id IS
'session context that has recorded the events, as absmartly_context_id gives it; NULL: none has';
COMMENT ON COLUMN absmartly_outbox.contexts IS
'publish requests that the record becomes';
COMMENT ON COLUMN absmartly_outbox.application IS
'application that the events are sent under; empty: the one in force when they are sent';
COMMENT ON COLUMN absmartly_outbox.bytes IS
'size of the encoded events';
COMMENT ON COLUMN absmartly_outbox.note IS
'why the record is kept, the collector''s words if it was refused; of a record that waits, the backfill that has made it: digits that stand for it, and its name; (waits for no standby): goals that no synchronous standby is waited for';
REVOKE ALL ON absmartly_outbox FROM PUBLIC;

CREATE VIEW absmartly_pending_events AS
	SELECT waiting.place, waiting.record, event.ordinality AS event,
		event.created, waiting.context_id,
		event.context, event.kind, event.event_time,
		event.unit_types, event.units,
		event.experiment, event.experiment_id, event.unit_type, event.variant,
		event.assigned, event.eligible, event.overridden, event.full_on,
		event.custom, event.audience_mismatch, event.rule_override,
		event.held_out, event.holdout_id,
		event.goal, event.properties, event.attributes, event.historic
	FROM @extschema@.absmartly_outbox_records(
			'absmartly_pending_events'::pg_catalog.text) AS waiting,
		LATERAL @extschema@.absmartly_decode_events(
			waiting.payload, waiting.created) WITH ORDINALITY AS event;

COMMENT ON VIEW absmartly_pending_events IS
'events that wait to be sent or are held, a row each';
COMMENT ON COLUMN absmartly_pending_events.event IS
'number of the event within the record';
COMMENT ON COLUMN absmartly_pending_events.created IS
'when the transaction that recorded the event ended';
COMMENT ON COLUMN absmartly_pending_events.context_id IS
'session context that has recorded the event; NULL: none has';
COMMENT ON COLUMN absmartly_pending_events.context IS
'number of the context within the record: of the publish request, unless the record is of a session context, which has one for all its records';
COMMENT ON COLUMN absmartly_pending_events.kind IS
'exposure or goal';
COMMENT ON COLUMN absmartly_pending_events.event_time IS
'when the exposure or goal happened';
COMMENT ON COLUMN absmartly_pending_events.unit_types IS
'types of the units';
COMMENT ON COLUMN absmartly_pending_events.units IS
'hashes of the units, in the order of unit_types';
COMMENT ON COLUMN absmartly_pending_events.unit_type IS
'type of the units that the experiment assigns';
COMMENT ON COLUMN absmartly_pending_events.attributes IS
'attributes as they are sent';
REVOKE ALL ON absmartly_pending_events FROM PUBLIC;

CREATE VIEW absmartly_dead_letters AS
	SELECT dead.record, event.created, dead.note,
		event.context, event.kind, event.event_time,
		event.unit_types, event.units,
		event.experiment, event.experiment_id, event.unit_type, event.variant,
		event.assigned, event.eligible, event.overridden, event.full_on,
		event.custom, event.audience_mismatch, event.rule_override,
		event.held_out, event.holdout_id,
		event.goal, event.properties, event.attributes, event.historic
	FROM @extschema@.absmartly_outbox_records(
			'absmartly_dead_letters'::pg_catalog.text) AS dead,
		LATERAL @extschema@.absmartly_decode_events(
			dead.payload, dead.created) AS event;

COMMENT ON VIEW absmartly_dead_letters IS
'events that the collector refused for good, a row each';
COMMENT ON COLUMN absmartly_dead_letters.record IS
'id of the record, for absmartly_requeue and absmartly_discard';
COMMENT ON COLUMN absmartly_dead_letters.created IS
'when the transaction that recorded the event ended';
COMMENT ON COLUMN absmartly_dead_letters.note IS
'the collector''s words';
COMMENT ON COLUMN absmartly_dead_letters.context IS
'number of the publish request within the record';
REVOKE ALL ON absmartly_dead_letters FROM PUBLIC;

--
-- Backfills
--

-- Not polymorphic: another function of that name can't fit a row better.
CREATE FUNCTION absmartly_properties(value record)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'absmartly_properties'
LANGUAGE C STABLE STRICT PARALLEL SAFE COST 10;

COMMENT ON FUNCTION absmartly_properties(record) IS
'a row as an object, with values as a tracking trigger sends them: whatever the settings of the session are';

-- The procedures commit, so that they are for CALL outside of transaction
-- blocks only.  They run with the caller's rights, who reads the source and
-- calls absmartly_track() or absmartly_treatment(); how far they have got is
-- kept by role.

CREATE PROCEDURE absmartly_backfill_goals(
	source regclass,
	key text,
	goal text,
	units text,
	properties text DEFAULT '',
	achieved_at text DEFAULT NULL,
	attributes text DEFAULT NULL,
	filter text DEFAULT NULL,
	chunk int DEFAULT 10000,
	name text DEFAULT NULL,
	restart boolean DEFAULT false,
	allow_any_time boolean DEFAULT false)
AS 'MODULE_PATHNAME', 'absmartly_backfill_goals'
LANGUAGE C;

COMMENT ON PROCEDURE absmartly_backfill_goals(regclass, text, text, text, text, text, text, text, int, text, boolean, boolean) IS
'tracks a historic goal for each row of a table, in the order of a unique key, committing after each chunk; the next call of a backfill that was interrupted goes on where it stopped';

CREATE PROCEDURE absmartly_backfill_exposures(
	source regclass,
	key text,
	experiment text,
	units text,
	exposed_at text DEFAULT NULL,
	attributes text DEFAULT NULL,
	filter text DEFAULT NULL,
	chunk int DEFAULT 10000,
	name text DEFAULT NULL,
	restart boolean DEFAULT false,
	allow_any_time boolean DEFAULT false,
	allow_unknown_experiment boolean DEFAULT false,
	allow_other_units boolean DEFAULT false)
AS 'MODULE_PATHNAME', 'absmartly_backfill_exposures'
LANGUAGE C;

COMMENT ON PROCEDURE absmartly_backfill_exposures(regclass, text, text, text, text, text, text, int, text, boolean, boolean, boolean, boolean) IS
'assigns the units of each row of a table and queues a historic exposure, in the order of a unique key, committing after each chunk; the next call of a backfill that was interrupted goes on where it stopped';

CREATE FUNCTION absmartly_backfills_get(
	OUT name text,
	OUT role name,
	OUT source text,
	OUT state text,
	OUT rows bigint,
	OUT last_key text,
	OUT started_at timestamptz,
	OUT last_chunk_at timestamptz,
	OUT finished_at timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'absmartly_backfills_get'
LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 10;
COMMENT ON FUNCTION absmartly_backfills_get() IS
'the rows of the view absmartly_backfills';

CREATE VIEW absmartly_backfills AS
	SELECT * FROM @extschema@.absmartly_backfills_get();
COMMENT ON VIEW absmartly_backfills IS
'backfills of the reader''s roles, a row each: those that run, that were interrupted, and that are finished';
COMMENT ON COLUMN absmartly_backfills.name IS
'name that was given, or made of the arguments';
COMMENT ON COLUMN absmartly_backfills.role IS
'whose it is: each role has names of its own';
COMMENT ON COLUMN absmartly_backfills.source IS
'what it walks over';
COMMENT ON COLUMN absmartly_backfills.state IS
'running, interrupted or finished';
COMMENT ON COLUMN absmartly_backfills.rows IS
'rows that are done';
COMMENT ON COLUMN absmartly_backfills.last_key IS
'key of the last one';
COMMENT ON COLUMN absmartly_backfills.started_at IS
'when it began';
COMMENT ON COLUMN absmartly_backfills.last_chunk_at IS
'when its last chunk was committed';
COMMENT ON COLUMN absmartly_backfills.finished_at IS
'when it came to its end; null: it has not';
GRANT SELECT ON absmartly_backfills TO PUBLIC;

--
-- Events that wait
--

CREATE FUNCTION absmartly_take_back(
	record bigint DEFAULT NULL,
	backfill text DEFAULT NULL,
	filter text DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'absmartly_take_back'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

COMMENT ON FUNCTION absmartly_take_back(bigint, text, text) IS
'drops events that wait and are not on their way, for good: those of a record, of a backfill, or of which a condition on absmartly_pending_events is true; gives their number; takes effect at once, and a rollback does not undo it';
REVOKE ALL ON FUNCTION absmartly_take_back(bigint, text, text) FROM PUBLIC;

--
-- Parked events
--

CREATE FUNCTION absmartly_requeue(record bigint DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'absmartly_requeue'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

COMMENT ON FUNCTION absmartly_requeue(bigint) IS
'lets the events of a parked record, or of all of them, be sent again; gives their number; takes effect at once, and a rollback does not undo it';
REVOKE ALL ON FUNCTION absmartly_requeue(bigint) FROM PUBLIC;

CREATE FUNCTION absmartly_discard(record bigint DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'absmartly_discard'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

COMMENT ON FUNCTION absmartly_discard(bigint) IS
'drops the events of a parked record, or of all of them, for good; gives their number; takes effect at once, and a rollback does not undo it';
REVOKE ALL ON FUNCTION absmartly_discard(bigint) FROM PUBLIC;

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
	OUT last_publish_at timestamptz,
	OUT last_publish_error text,
	OUT last_publish_error_at timestamptz,
	OUT exposures_queued bigint,
	OUT goals_queued bigint,
	OUT exposures_deduplicated bigint,
	OUT exposures_sent bigint,
	OUT goals_sent bigint,
	OUT exposures_rejected bigint,
	OUT goals_rejected bigint,
	OUT exposures_dropped bigint,
	OUT goals_dropped bigint,
	OUT exposures_impossible bigint,
	OUT exposures_taken_back bigint,
	OUT goals_taken_back bigint,
	OUT outbox_records bigint,
	OUT outbox_events bigint,
	OUT outbox_bytes bigint,
	OUT outbox_oldest_age interval,
	OUT live_oldest_age interval,
	OUT bulk_records bigint,
	OUT bulk_events bigint,
	OUT bulk_bytes bigint,
	OUT bulk_oldest_age interval,
	OUT held_records bigint,
	OUT foreign_records bigint,
	OUT dead_letters bigint,
	OUT memory_queue_entries bigint,
	OUT memory_queue_bytes bigint,
	OUT publish_requests bigint,
	OUT publish_failures bigint,
	OUT publish_retries bigint,
	OUT publish_bytes bigint,
	OUT publish_last_ms double precision,
	OUT publish_mean_ms double precision,
	OUT publish_warnings bigint,
	OUT last_publish_warning text,
	OUT stat_reset_at timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 1;
COMMENT ON FUNCTION absmartly_stat_get() IS
'the row of the view absmartly_stat, for who may read that';

CREATE VIEW absmartly_stat AS SELECT * FROM @extschema@.absmartly_stat_get();
COMMENT ON VIEW absmartly_stat IS
'what absmartly does in this database: one row';
COMMENT ON COLUMN absmartly_stat.mode IS
'preloaded, or not preloaded: then there is no worker';
COMMENT ON COLUMN absmartly_stat.worker_pid IS
'process of this database''s worker; null: none runs';
COMMENT ON COLUMN absmartly_stat.worker_state IS
'not running, no worker slot, starting, idle, fetching, publishing, retrying, backing off or logging';
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
COMMENT ON COLUMN absmartly_stat.last_publish_at IS
'when a request with events last succeeded';
COMMENT ON COLUMN absmartly_stat.last_publish_error IS
'why the last request with events failed; null if it did not';
COMMENT ON COLUMN absmartly_stat.last_publish_error_at IS
'when a request with events last failed';
COMMENT ON COLUMN absmartly_stat.exposures_queued IS
'exposures that committed transactions have queued';
COMMENT ON COLUMN absmartly_stat.goals_queued IS
'goals that committed transactions have queued';
COMMENT ON COLUMN absmartly_stat.exposures_deduplicated IS
'exposures that were not queued since an identical one was, within absmartly.exposure_dedup_interval';
COMMENT ON COLUMN absmartly_stat.exposures_sent IS
'exposures that the collector has taken';
COMMENT ON COLUMN absmartly_stat.goals_sent IS
'goals that the collector has taken';
COMMENT ON COLUMN absmartly_stat.exposures_rejected IS
'exposures that the collector has refused for good';
COMMENT ON COLUMN absmartly_stat.goals_rejected IS
'goals that the collector has refused for good';
COMMENT ON COLUMN absmartly_stat.exposures_dropped IS
'exposures for which there was no room';
COMMENT ON COLUMN absmartly_stat.goals_dropped IS
'goals for which there was no room in memory';
COMMENT ON COLUMN absmartly_stat.exposures_impossible IS
'exposures that were not queued, since no collector takes such a variant, name or id';
COMMENT ON COLUMN absmartly_stat.exposures_taken_back IS
'exposures that absmartly_take_back has dropped while they waited';
COMMENT ON COLUMN absmartly_stat.goals_taken_back IS
'goals that absmartly_take_back has dropped while they waited';
COMMENT ON COLUMN absmartly_stat.outbox_records IS
'records that wait in the outbox; null while somebody has locked a part of it, as are the other numbers that are counted there';
COMMENT ON COLUMN absmartly_stat.outbox_events IS
'events in them';
COMMENT ON COLUMN absmartly_stat.outbox_bytes IS
'bytes of the pages on which something waits; absmartly.outbox_max_size limits them';
COMMENT ON COLUMN absmartly_stat.outbox_oldest_age IS
'age of the oldest record that waits; null if none does';
COMMENT ON COLUMN absmartly_stat.live_oldest_age IS
'age of the oldest one that is not bulk; null if none waits';
COMMENT ON COLUMN absmartly_stat.bulk_records IS
'records that are bulk, of those that wait: historic events, those of large transactions, and what was requeued';
COMMENT ON COLUMN absmartly_stat.bulk_events IS
'events in them';
COMMENT ON COLUMN absmartly_stat.bulk_bytes IS
'size of the heaps that hold bulk';
COMMENT ON COLUMN absmartly_stat.bulk_oldest_age IS
'age of the oldest record that is bulk; null if none waits';
COMMENT ON COLUMN absmartly_stat.held_records IS
'records that session contexts hold, moved aside: not among those that wait';
COMMENT ON COLUMN absmartly_stat.foreign_records IS
'records of another database or endpoint, which are not sent: see absmartly_outbox';
COMMENT ON COLUMN absmartly_stat.dead_letters IS
'events in absmartly_dead_letters';
COMMENT ON COLUMN absmartly_stat.memory_queue_entries IS
'entries that wait in the memory queue';
COMMENT ON COLUMN absmartly_stat.memory_queue_bytes IS
'memory that they take';
COMMENT ON COLUMN absmartly_stat.publish_requests IS
'requests with events, retries included';
COMMENT ON COLUMN absmartly_stat.publish_failures IS
'those that failed';
COMMENT ON COLUMN absmartly_stat.publish_retries IS
'those that repeated a failed one';
COMMENT ON COLUMN absmartly_stat.publish_bytes IS
'bytes of the requests with events';
COMMENT ON COLUMN absmartly_stat.publish_last_ms IS
'duration of the last one in milliseconds';
COMMENT ON COLUMN absmartly_stat.publish_mean_ms IS
'mean duration in milliseconds';
COMMENT ON COLUMN absmartly_stat.publish_warnings IS
'remarks of the collector on events that it has taken';
COMMENT ON COLUMN absmartly_stat.last_publish_warning IS
'the last one of them';
COMMENT ON COLUMN absmartly_stat.stat_reset_at IS
'when the counters were last set to zero';
REVOKE ALL ON absmartly_stat FROM PUBLIC;
GRANT SELECT ON absmartly_stat TO pg_monitor;
-- for when it is taken from PUBLIC
GRANT EXECUTE ON FUNCTION absmartly_stat_get() TO pg_monitor;

CREATE FUNCTION absmartly_stat_reset() RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION absmartly_stat_reset() IS
'sets the counters of absmartly_stat to zero for this database';
REVOKE ALL ON FUNCTION absmartly_stat_reset() FROM PUBLIC;

--
-- The session's context
--

-- State of the session, which only its own process has: PARALLEL RESTRICTED.
-- What it gives depends on what was called before, and assigning writes to it:
-- VOLATILE.

CREATE FUNCTION absmartly_context_create(
	units jsonb DEFAULT '{}',
	attributes jsonb DEFAULT NULL,
	data json DEFAULT NULL,
	options jsonb DEFAULT NULL)
RETURNS void
AS 'MODULE_PATHNAME', 'absmartly_context_create'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_create(jsonb, jsonb, json, jsonb) IS
'makes this session''s context, with units, attributes, data to use instead of the database''s, and options; closes the one before it';

CREATE FUNCTION absmartly_context_id()
RETURNS text
AS 'MODULE_PATHNAME', 'absmartly_context_id'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_id() IS
'id by which the event logger knows this session''s context';

CREATE FUNCTION absmartly_context_is_ready()
RETURNS boolean
AS 'MODULE_PATHNAME', 'absmartly_context_is_ready'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_is_ready() IS
'whether the context has its data, or has failed';

CREATE FUNCTION absmartly_context_is_failed()
RETURNS boolean
AS 'MODULE_PATHNAME', 'absmartly_context_is_failed'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_is_failed() IS
'whether the data of the context could not be loaded';

CREATE FUNCTION absmartly_context_is_finalizing()
RETURNS boolean
AS 'MODULE_PATHNAME', 'absmartly_context_is_finalizing'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_is_finalizing() IS
'whether the context is being finalized';

CREATE FUNCTION absmartly_context_is_finalized()
RETURNS boolean
AS 'MODULE_PATHNAME', 'absmartly_context_is_finalized'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_is_finalized() IS
'whether the context is finalized';

CREATE FUNCTION absmartly_context_ready_error()
RETURNS text
AS 'MODULE_PATHNAME', 'absmartly_context_ready_error'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_ready_error() IS
'why the data of the context could not be loaded; NULL if it was, or is still to be';

CREATE FUNCTION absmartly_context_wait_until_ready(timeout interval DEFAULT '10 s')
RETURNS boolean
AS 'MODULE_PATHNAME', 'absmartly_context_wait_until_ready'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_wait_until_ready(interval) IS
'waits until the context is ready, or failed; whether it is';

CREATE FUNCTION absmartly_context_set_unit(unit_type text, uid anyelement)
RETURNS void
AS 'MODULE_PATHNAME', 'absmartly_context_set_unit'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_set_unit(text, anyelement) IS
'sets a unit of the context; a unit that is set can''t become another one';

CREATE FUNCTION absmartly_context_set_unit(unit_type text, uid text)
RETURNS void
AS 'MODULE_PATHNAME', 'absmartly_context_set_unit'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_set_unit(text, text) IS
'sets a unit of the context; a unit that is set can''t become another one';

CREATE FUNCTION absmartly_context_set_units(units jsonb)
RETURNS void
AS 'MODULE_PATHNAME', 'absmartly_context_set_units'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_set_units(jsonb) IS
'sets units of the context, from an object';

CREATE FUNCTION absmartly_context_get_unit(unit_type text)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'absmartly_context_get_unit'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_get_unit(text) IS
'a unit of the context, as it was set; NULL if it is not';

CREATE FUNCTION absmartly_context_units()
RETURNS jsonb
AS 'MODULE_PATHNAME', 'absmartly_context_units'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_units() IS
'the units of the context, an object';

CREATE FUNCTION absmartly_context_set_attribute(name text, value anyelement)
RETURNS void
AS 'MODULE_PATHNAME', 'absmartly_context_set_attribute'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_set_attribute(text, anyelement) IS
'sets an attribute of the context';

CREATE FUNCTION absmartly_context_set_attribute(name text, value text)
RETURNS void
AS 'MODULE_PATHNAME', 'absmartly_context_set_attribute'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_set_attribute(text, text) IS
'sets an attribute of the context';

CREATE FUNCTION absmartly_context_set_attributes(attributes jsonb)
RETURNS void
AS 'MODULE_PATHNAME', 'absmartly_context_set_attributes'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_set_attributes(jsonb) IS
'sets attributes of the context, from an object';

CREATE FUNCTION absmartly_context_get_attribute(name text)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'absmartly_context_get_attribute'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_get_attribute(text) IS
'the last value of an attribute of the context; NULL if it is not set';

CREATE FUNCTION absmartly_context_attributes()
RETURNS jsonb
AS 'MODULE_PATHNAME', 'absmartly_context_attributes'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_attributes() IS
'the attributes of the context with their last values, an object';

CREATE FUNCTION absmartly_context_set_override(experiment text, variant int)
RETURNS void
AS 'MODULE_PATHNAME', 'absmartly_context_set_override'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_set_override(text, int) IS
'forces a variant of an experiment in the context';

CREATE FUNCTION absmartly_context_set_overrides(overrides jsonb)
RETURNS void
AS 'MODULE_PATHNAME', 'absmartly_context_set_overrides'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_set_overrides(jsonb) IS
'forces variants in the context, from an object experiment -> variant';

CREATE FUNCTION absmartly_context_get_override(experiment text)
RETURNS int
AS 'MODULE_PATHNAME', 'absmartly_context_get_override'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_get_override(text) IS
'the variant that is forced in the context; NULL if none is';

CREATE FUNCTION absmartly_context_set_custom_assignment(
	experiment text,
	variant int)
RETURNS void
AS 'MODULE_PATHNAME', 'absmartly_context_set_custom_assignment'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_set_custom_assignment(text, int) IS
'sets the variant that the context gives to units that take part in an experiment';

CREATE FUNCTION absmartly_context_set_custom_assignments(assignments jsonb)
RETURNS void
AS 'MODULE_PATHNAME', 'absmartly_context_set_custom_assignments'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_set_custom_assignments(jsonb) IS
'sets custom assignments of the context, from an object experiment -> variant';

CREATE FUNCTION absmartly_context_get_custom_assignment(experiment text)
RETURNS int
AS 'MODULE_PATHNAME', 'absmartly_context_get_custom_assignment'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_get_custom_assignment(text) IS
'the custom assignment of an experiment in the context; NULL if there is none';

CREATE FUNCTION absmartly_context_treatment(experiment text)
RETURNS int
AS 'MODULE_PATHNAME', 'absmartly_context_treatment'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_treatment(text) IS
'assigns a variant in the context and queues the exposure, once for each assignment';

CREATE FUNCTION absmartly_context_peek_treatment(experiment text)
RETURNS int
AS 'MODULE_PATHNAME', 'absmartly_context_peek_treatment'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_peek_treatment(text) IS
'assigns a variant in the context without exposing it';

CREATE FUNCTION absmartly_context_variable_value(
	key text,
	default_value anycompatible)
RETURNS anycompatible
AS 'MODULE_PATHNAME', 'absmartly_context_variable_value'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_variable_value(text, anycompatible) IS
'the value of a variable in the context, or the default; exposes the experiments that it consults';

CREATE FUNCTION absmartly_context_peek_variable_value(
	key text,
	default_value anycompatible)
RETURNS anycompatible
AS 'MODULE_PATHNAME', 'absmartly_context_peek_variable_value'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_peek_variable_value(text, anycompatible) IS
'the value of a variable in the context, or the default, without exposing';

CREATE FUNCTION absmartly_context_variable_keys()
RETURNS jsonb
AS 'MODULE_PATHNAME', 'absmartly_context_variable_keys'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_variable_keys() IS
'the variables in the data of the context: key -> names of experiments, lowest id first';

CREATE FUNCTION absmartly_context_custom_field_value(experiment text, name text)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'absmartly_context_custom_field_value'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_custom_field_value(text, text) IS
'the value of a custom field in the data of the context';

CREATE FUNCTION absmartly_context_custom_field_value_type(
	experiment text,
	name text)
RETURNS text
AS 'MODULE_PATHNAME', 'absmartly_context_custom_field_value_type'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_custom_field_value_type(text, text) IS
'the type of a custom field in the data of the context';

CREATE FUNCTION absmartly_context_custom_field_keys()
RETURNS jsonb
AS 'MODULE_PATHNAME', 'absmartly_context_custom_field_keys'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_custom_field_keys() IS
'the names of custom fields in the data of the context, an array';

CREATE FUNCTION absmartly_context_track(
	goal text,
	properties jsonb DEFAULT NULL,
	achieved_at timestamptz DEFAULT NULL)
RETURNS void
AS 'MODULE_PATHNAME', 'absmartly_context_track'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_track(text, jsonb, timestamptz) IS
'queues a goal of the context''s units';

CREATE FUNCTION absmartly_context_pending()
RETURNS bigint
AS 'MODULE_PATHNAME', 'absmartly_context_pending'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_pending() IS
'events of the context that are not delivered, those of this transaction included';

CREATE FUNCTION absmartly_context_refresh(timeout interval DEFAULT '10 s')
RETURNS void
AS 'MODULE_PATHNAME', 'absmartly_context_refresh'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_refresh(interval) IS
'has the experiments fetched, and takes them over into the context';

CREATE FUNCTION absmartly_context_publish(timeout interval DEFAULT '10 s')
RETURNS void
AS 'MODULE_PATHNAME', 'absmartly_context_publish'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_publish(interval) IS
'delivers what the context has recorded and this session has committed, and waits for it';

CREATE FUNCTION absmartly_context_finalize(timeout interval DEFAULT '10 s')
RETURNS void
AS 'MODULE_PATHNAME', 'absmartly_context_finalize'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_finalize(interval) IS
'publishes and seals the context';

CREATE FUNCTION absmartly_context_close(timeout interval DEFAULT '10 s')
RETURNS void
AS 'MODULE_PATHNAME', 'absmartly_context_finalize'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_close(interval) IS
'publishes and seals the context, like absmartly_context_finalize';

CREATE FUNCTION absmartly_context_experiments()
RETURNS jsonb
AS 'MODULE_PATHNAME', 'absmartly_context_experiments'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_experiments() IS
'the names of the experiments in the data of the context, an array';

CREATE FUNCTION absmartly_context_data()
RETURNS json
AS 'MODULE_PATHNAME', 'absmartly_context_data'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION absmartly_context_data() IS
'the data of the context, as it was received';
