--
-- What the extension consists of, and what it promises of each function
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS absmartly;
RESET client_min_messages;
LOAD 'absmartly';

-- volatility, parallel safety, strictness, cost and rows are a part of the interface
SELECT p.oid::regprocedure AS function, p.provolatile AS volatile,
	p.proparallel AS parallel, p.proisstrict AS strict, p.procost AS cost,
	p.prorows AS rows
FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
	AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'absmartly')
ORDER BY p.oid::regprocedure::text COLLATE "C";

SELECT c.relname, c.relkind, c.relacl IS NULL AS default_privileges
FROM pg_depend d JOIN pg_class c ON c.oid = d.objid
WHERE d.classid = 'pg_class'::regclass AND d.deptype = 'e'
	AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'absmartly')
ORDER BY 1;

-- what is written at the end of transactions is never toasted, also after a rewrite
CREATE TEMP VIEW outbox_heaps AS
SELECT c.relname, c.reltoastrelid <> 0 AS toasted, (
		SELECT string_agg(a.attname, ' ' ORDER BY a.attnum) FROM pg_attribute a
		WHERE a.attrelid = c.oid AND a.attlen = -1 AND a.attstorage <> 'p') AS toastable,
	c.relispopulated AS populated, c.reloptions
FROM pg_class c
WHERE c.oid IN ('absmartly_outbox_a'::regclass, 'absmartly_outbox_b'::regclass, 'absmartly_outbox_bulk_a'::regclass,
	'absmartly_outbox_bulk_b'::regclass, 'absmartly_outbox_parked'::regclass)
ORDER BY 1;
SELECT * FROM outbox_heaps;
SELECT count(*) FROM pg_index WHERE indrelid::regclass::text LIKE 'absmartly%';
VACUUM FULL absmartly_outbox_a;
VACUUM FULL absmartly_outbox_b;
VACUUM FULL absmartly_outbox_bulk_a;
VACUUM FULL absmartly_outbox_bulk_b;
VACUUM FULL absmartly_outbox_parked;
SELECT relname, toasted FROM outbox_heaps;

-- what not everybody may call
SELECT p.oid::regprocedure AS function
FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
	AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'absmartly')
	AND NOT has_function_privilege('public', p.oid, 'EXECUTE')
ORDER BY p.oid::regprocedure::text COLLATE "C";

SELECT relocatable, superuser, trusted FROM pg_available_extension_versions
WHERE name = 'absmartly';

-- settings: their kind, unit and default; those of shared memory are there with the library preloaded only
SELECT name, vartype, unit, boot_val, min_val, context
FROM pg_settings WHERE name LIKE 'absmartly.%' AND context <> 'postmaster' ORDER BY name COLLATE "C";

--
-- Loading data by hand
--
SELECT current_database() AS home \gset
CREATE DATABASE regress_absmartly_admin;
\c regress_absmartly_admin
SET client_min_messages = warning;
CREATE EXTENSION absmartly;
RESET client_min_messages;

SELECT absmartly_is_ready();
SELECT absmartly_wait_until_ready('0 s');
SELECT absmartly_wait_until_ready(NULL);
SELECT absmartly_wait_until_ready('-1 s');
SELECT count(*) FROM absmartly_shared_data();
SELECT absmartly_set_context_data(NULL) IS NULL AS nothing;

SELECT absmartly_set_context_data('{"experiments": []}');
SELECT absmartly_is_ready(), absmartly_wait_until_ready('0 s');
SELECT data, generation, source, endpoint = '' AS no_endpoint, fetched_at <= clock_timestamp() AS fetched
FROM absmartly_shared_data();
SELECT ready, generation, source, experiments, experiments_left_out FROM absmartly_stat;

-- the same again is no new generation; the spelling counts
SELECT absmartly_set_context_data('{"experiments": []}');
SELECT generation FROM absmartly_stat;
SELECT absmartly_set_context_data('{"experiments":[]}');
SELECT generation FROM absmartly_stat;

-- no experiments at all, and what is no context data
SELECT absmartly_set_context_data('{}');
SELECT absmartly_set_context_data('[]');
SELECT absmartly_set_context_data('1');
SELECT absmartly_set_context_data('{"experiments": {}}');
SELECT generation FROM absmartly_stat;

-- broken experiments are left out, one warning each; data is not transactional
BEGIN;
SELECT absmartly_set_context_data('{"experiments": [
	{"id": 1, "name": "no_split", "unitType": "user_id", "trafficSplit": [0, 1], "variants": []},
	{"id": 2, "name": "sound", "unitType": "user_id", "split": [1, 0], "trafficSplit": [0, 1], "variants": [{}, {}]}]}');
ROLLBACK;
SELECT experiments, experiments_left_out FROM absmartly_stat;
SELECT absmartly_peek_treatment('{"user_id": 1}', 'sound'), absmartly_peek_treatment('{"user_id": 1}', 'no_split');

SELECT absmartly_stat_reset();
SELECT stat_reset_at IS NOT NULL OR mode = 'not preloaded' AS reset, fetch_requests FROM absmartly_stat;

-- names are refused when they are set
SET absmartly.endpoint = 'acme.absmartly.io';
SET absmartly.event_logger = 'log';
SET absmartly.overrides = '{"exp": 1.5}';
SET absmartly.unknown = 1;
SHOW absmartly.api_key;

\c :home
DROP DATABASE regress_absmartly_admin;
