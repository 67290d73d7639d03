
# Triggers are checked when they are made and when their tables change: in restored dumps, where the library is not loaded
# before, and without waiting for anybody.

use strict;
use warnings;

use AbsmartlyTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# no worker has data here: a check needs none
my $node = start_node('main');
my $plain = start_node('plain', preload => 0);

$node->safe_psql('postgres', <<'EOT');
CREATE SCHEMA shop;
CREATE TABLE shop.orders (id int, customer_id bigint, amount numeric, gross numeric GENERATED ALWAYS AS (amount * 2) STORED,
	paid timestamp, paid_at timestamptz GENERATED ALWAYS AS (paid AT TIME ZONE 'UTC') STORED);
CREATE TRIGGER paid AFTER INSERT ON shop.orders FOR EACH ROW
	EXECUTE FUNCTION absmartly_track_trigger('paid', 'user_id=customer_id', 'gross,source=''it''''s a "shop"''', 'achieved_at=paid_at');
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON shop.orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
	EXECUTE FUNCTION absmartly_track_trigger('late', 'user_id=customer_id');
CREATE TABLE shop.parts (user_id int, region text, amount int) PARTITION BY LIST (region);
CREATE TABLE shop.parts_eu PARTITION OF shop.parts FOR VALUES IN ('eu');
CREATE TRIGGER part AFTER INSERT ON shop.parts FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('part', 'user_id', 'amount');
CREATE TABLE shop.parts_us (amount int, user_id int, region text);
ALTER TABLE shop.parts ATTACH PARTITION shop.parts_us FOR VALUES IN ('us');
CREATE TABLE shop.parent (user_id int, amount int);
CREATE TABLE shop.child () INHERITS (shop.parent);
CREATE TRIGGER child AFTER INSERT ON shop.child FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('child', 'user_id', 'amount');
EOT

subtest 'dump and restore' => sub {
	my $dump = $node->basedir . '/dump.sql';

	$node->command_ok([ 'pg_dump', '-d', $node->connstr('postgres'), '-f', $dump ], 'dumped');
	$node->safe_psql('postgres', 'CREATE DATABASE restored');
	$node->command_ok([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '--single-transaction', '-d', $node->connstr('restored'), '-f', $dump ], 'restored');
	is($node->safe_psql('restored', 'SELECT count(*) FROM absmartly_check_triggers()'), '0', 'all triggers can work');
	$node->safe_psql('restored', <<'EOT');
INSERT INTO shop.orders (customer_id, amount, paid) VALUES (1, 5, '2024-01-01 12:00');
INSERT INTO shop.parts VALUES (2, 'eu', 3), (3, 'us', 4);
EOT
	is($node->safe_psql('restored', q{SELECT string_agg(concat_ws(' ', goal, properties), ';' ORDER BY goal, properties::text) FROM absmartly_pending_events}),
		q{late;paid {"gross":10,"source":"it's a \"shop\""};part {"amount":3};part {"amount":4}}, 'and do');
	unlike($node->safe_psql('restored', q{SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname = 'paid'}), qr/shop\.orders\.orders/, 'as they were');

	# one that does not work, as it could be made before it was checked
	$node->safe_psql('postgres', 'SET absmartly.trigger_errors = warning; ALTER TABLE shop.orders RENAME COLUMN customer_id TO customer');
	is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT problem) FROM absmartly_check_triggers()'), '2|2', 'two are found');
	$node->command_ok([ 'pg_dump', '-d', $node->connstr('postgres'), '-f', $dump ], 'dumped');
	$node->safe_psql('postgres', 'CREATE DATABASE broken');
	{
		local $ENV{PGOPTIONS} = '-c absmartly.trigger_errors=warning';
		$node->command_ok([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('broken'), '-f', $dump ], 'restored with warnings');
	}
	is($node->safe_psql('broken', 'SELECT count(*) FROM absmartly_check_triggers()'), '2', 'as it was');
	$node->safe_psql('postgres', 'ALTER TABLE shop.orders RENAME COLUMN customer TO customer_id');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM absmartly_check_triggers()'), '0', 'what was wrong can be put right');
};

subtest 'without the library' => sub {
	$plain->safe_psql('postgres', 'CREATE TABLE t (user_id int, amount int)');
	fails_with($plain, q{CREATE TRIGGER t AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('t', 'user');}, '42703', qr/names column "user"/,
		'a trigger that cannot work is not made');
	$plain->safe_psql('postgres', q{CREATE TRIGGER t AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('t', 'user_id')});
	fails_with($plain, 'ALTER TABLE t RENAME COLUMN user_id TO id;', '42703', qr/names column "user_id"/, 'its column is not renamed');
	$plain->safe_psql('postgres', 'ALTER TABLE t RENAME COLUMN amount TO total; ALTER TABLE t ADD COLUMN x int; DROP TABLE t');
};

subtest 'locks' => sub {
	my $session = $node->background_psql('postgres', on_error_stop => 1);

	$session->query_safe('BEGIN; LOCK TABLE shop.child IN ACCESS EXCLUSIVE MODE');
	$node->safe_psql('postgres', q{SET lock_timeout = '1ms'; ALTER TABLE shop.parent SET (autovacuum_enabled = off)});
	pass('a check waits for no child that its command has not changed');
	$session->query_safe('ROLLBACK');
	fails_with($node, 'ALTER TABLE shop.parent RENAME COLUMN amount TO total;', '42703', qr/trigger "child" names column "amount"/, 'one that it has changed is checked');
	$session->quit;
};

subtest 'columns that go with something else' => sub {
	$plain->safe_psql('postgres', <<'EOT');
CREATE TABLE currency (code text, factor int PRIMARY KEY);
CREATE AGGREGATE total(int) (sfunc = int4pl, stype = int);
CREATE FUNCTION rate(int) RETURNS int LANGUAGE sql IMMUTABLE BEGIN ATOMIC SELECT $1 + count(code)::int FROM currency; END;
CREATE FUNCTION summed(int) RETURNS int LANGUAGE sql IMMUTABLE BEGIN ATOMIC SELECT total(x) FROM (VALUES ($1)) AS v (x); END;
CREATE FUNCTION grouped(int) RETURNS text LANGUAGE sql IMMUTABLE BEGIN ATOMIC SELECT code FROM currency GROUP BY factor; END;
CREATE TABLE customers (user_id text, n int, plain int, rated int GENERATED ALWAYS AS (rate(n)) STORED,
	summed int GENERATED ALWAYS AS (summed(n)) STORED, grouped text GENERATED ALWAYS AS (grouped(n)) STORED);
CREATE TRIGGER c AFTER INSERT ON customers FOR EACH ROW
	EXECUTE FUNCTION absmartly_track_trigger('c', 'user_id', 'plain,rated,summed,grouped');
EOT
	for (
		[ 'ALTER TABLE currency DROP COLUMN code CASCADE', 'rated' ],
		[ 'ALTER TABLE currency DROP CONSTRAINT currency_pkey CASCADE', 'grouped' ],
		[ 'DROP AGGREGATE total(int) CASCADE', 'summed' ])
	{
		my ($command, $column) = @$_;

		fails_with($plain, "$command;", '42703', qr/trigger "c" names column "$column"/, "not so: $command");
	}
	my ($status, $output, $error) = $plain->psql('postgres', 'SET absmartly.trigger_errors = warning; ALTER TABLE customers DROP COLUMN plain');
	is(() = $error =~ /WARNING: /g, 1, 'a warning is given once');
	$plain->safe_psql('postgres', 'DROP TRIGGER c ON customers; DROP AGGREGATE total(int) CASCADE; DROP TABLE currency CASCADE');
};

subtest 'rights' => sub {
	$node->safe_psql('postgres', <<'EOT');
CREATE ROLE developer LOGIN;
CREATE ROLE stranger LOGIN;
GRANT ALL ON SCHEMA public TO developer;
SET ROLE developer;
CREATE TABLE own (user_id int);
SET absmartly.trigger_errors = warning;
CREATE TRIGGER own AFTER INSERT ON own FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('own', 'user');
EOT
	for (['developer', 'own'], ['stranger', ''])
	{
		my ($role, $tables) = @$_;

		is($node->safe_psql('postgres', 'SELECT relation FROM absmartly_check_triggers()', extra_params => [ '-U', $role ]), $tables, "what $role sees");
	}
	is($node->safe_psql('postgres', 'DROP EXTENSION absmartly CASCADE; SELECT count(*) FROM pg_event_trigger'), '0', 'the extension can go');
};

$node->stop;
$plain->stop;
done_testing();
