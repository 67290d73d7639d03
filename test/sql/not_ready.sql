--
-- Before any data was loaded: an error, or control
--
SELECT current_database() AS home \gset
CREATE DATABASE regress_absmartly_not_ready;
\c regress_absmartly_not_ready
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS absmartly;
RESET client_min_messages;
\pset null NULL

SELECT absmartly_peek_treatment('{"user_id": 1}', 'exp');
\set VERBOSITY sqlstate
SELECT absmartly_peek_treatment('{"user_id": 1}', 'exp');
SELECT absmartly_peek_unit_treatment(1, 'exp');
SELECT count(*) FROM absmartly_assignments('{"user_id": 1}');
SELECT absmartly_explain('{"user_id": 1}', 'exp');
SELECT absmartly_peek_variable_value('{"user_id": 1}', 'key', 'default');
SELECT absmartly_variable_keys();
SELECT absmartly_custom_field_keys();
SELECT absmartly_custom_field_value('exp', 'field');
SELECT count(*) FROM absmartly_experiments;
-- what needs no data
SELECT absmartly_peek_treatment(NULL, 'exp') AS treatment, absmartly_peek_variable_value(NULL, 'key', 1) AS variable,
	absmartly_hash_unit('testy') AS hash, absmartly_match_audience('{"filter":[]}', NULL) AS match;

SET absmartly.on_not_ready = control;
SELECT absmartly_peek_treatment('{"user_id": 1}', 'exp') AS treatment,
	absmartly_peek_treatment('{"user_id": 1}', 'exp', '{"a": 1}', 2) AS custom,
	absmartly_peek_unit_treatment(1, 'exp', '{"a": 1}') AS unit_treatment,
	absmartly_peek_variable_value('{"user_id": 1}', 'key', 'default', '{"a": 1}') AS variable,
	absmartly_explain('{"user_id": 1}', 'exp') AS explanation;
SELECT count(*) FROM absmartly_assignments('{"user_id": 1}', '{"a": 1}');
SELECT absmartly_variable_keys(), absmartly_custom_field_keys(), absmartly_custom_field_value('exp', 'field') AS value,
	absmartly_custom_field_value_type('exp', 'field') AS type;
SELECT count(*) FROM absmartly_experiments;
-- overrides work, and arguments are looked at
SET absmartly.overrides = '{"exp": 3}';
SELECT absmartly_peek_treatment('{"user_id": 1}', 'exp') AS treatment, absmartly_peek_unit_treatment('x', 'exp') AS unit_treatment;
SELECT absmartly_peek_treatment('[]', 'exp');
SELECT absmartly_peek_treatment('{}', 'exp', '[]');
SELECT count(*) FROM absmartly_assignments('{"user_id": false}');

\c :home
DROP DATABASE regress_absmartly_not_ready;
