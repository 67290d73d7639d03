# Everything at once that could read data after it was freed, or see data that is not its statement's: sessions that mix
# errors, savepoints, deferred triggers, cursors, pruning, parallel workers, wrong labels, procedures, contexts and changes
# that a subscription applies, while data of different sizes comes all the time.  On a server with assertions, what is
# freed is overwritten.
#
#   HOSTILE_SEED=N      the same run again (what a session does; not how the sessions interleave)
#   HOSTILE_ROUNDS=N    so many statements a session (default 60)

use strict;
use warnings;

use AbsmartlyTest;
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

my $SESSIONS = 5;
my $ROUNDS   = $ENV{HOSTILE_ROUNDS} || 60;
my $SEED     = $ENV{HOSTILE_SEED} || int rand 1_000_000;

note("seed $SEED, $ROUNDS rounds");
srand $SEED;

my $node = start_node('main', streaming => 1, settings => "wal_level = logical\nmax_wal_senders = 4\nmax_worker_processes = 24\nmax_connections = 60\n");

# Version N gives the variable k the value N.  Everything else about it differs: how many experiments, how large, and where
# the one that counts lies among them.
my $schema = <<'EOT';
CREATE SEQUENCE loaded;
CREATE TABLE seen (kind text, floor bigint, least bigint, most bigint);
CREATE FUNCTION one(id int, name text, variable text, value text) RETURNS json LANGUAGE sql AS $$
	SELECT json_build_object('id', id, 'name', name, 'iteration', 1, 'unitType', 'user_id', 'seedHi', 1, 'seedLo', 2,
		'split', '[0, 1]'::json, 'trafficSeedHi', 1, 'trafficSeedLo', 2, 'trafficSplit', '[0, 1]'::json, 'fullOnVariant', 1,
		'applications', '[{"name": "website"}]'::json, 'variants', json_build_array(json_build_object('name', 'A', 'config', NULL),
			json_build_object('name', 'B', 'config', json_build_object(variable, value)::text)),
		'audience', NULL, 'audienceStrict', false, 'customFieldValues', NULL)
$$;
CREATE FUNCTION data(n bigint) RETURNS json LANGUAGE sql AS $$
	SELECT json_build_object('experiments', json_agg(e ORDER BY md5(n::text || i::text))) FROM (
		SELECT 0 AS i, one(1, 'exp', 'k', n::text) AS e
		UNION ALL SELECT i, one(1 + i, format('e%s_%s', n, i), format('q%s', i), repeat(chr(97 + n::int % 26), 3000))
		FROM generate_series(1, 5 + (n * 37 % 60)::int) AS i) AS all_of_them
$$;
-- one at a time, so that the sequence never says more than what is in force
CREATE FUNCTION load() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE n bigint;
BEGIN
	PERFORM pg_advisory_lock(1);
	n := (SELECT last_value + 1 FROM loaded);
	PERFORM absmartly_set_context_data(data(n)), setval('loaded', n);
	PERFORM pg_advisory_unlock(1);
	RETURN n;
END $$;
CREATE FUNCTION k(units jsonb) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE
	AS $$ SELECT absmartly_peek_variable_value(units, 'k', '0')::bigint $$;
CREATE FUNCTION look(id int) RETURNS bigint LANGUAGE plpgsql STABLE PARALLEL SAFE
	AS $$ BEGIN RETURN absmartly_peek_variable_value(jsonb_build_object('user_id', id), 'k', '0')::bigint; END $$;
CREATE FUNCTION look_and_fail(id int) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE result bigint;
BEGIN
	BEGIN
		result := look(id);
		IF id % 3 = 0 THEN RAISE EXCEPTION 'caught'; END IF;
		IF id % 3 = 1 THEN RETURN look(id) + absmartly_peek_treatment('[]', 'exp'); END IF;
	EXCEPTION WHEN OTHERS THEN PERFORM pg_sleep(0.001);
	END;
	RETURN k(jsonb_build_object('user_id', id));
END $$;
-- labels that are wrong
CREATE FUNCTION unpin(i int) RETURNS int LANGUAGE plpgsql VOLATILE PARALLEL RESTRICTED
	AS $$ BEGIN IF i % 7 = 1 THEN PERFORM absmartly_wait_until_ready('0 s'); END IF; RETURN i; END $$;
CREATE FUNCTION unpin_anywhere(i int) RETURNS int LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = public
	AS $$ BEGIN IF i % 7 = 1 THEN PERFORM absmartly_wait_until_ready('0 s'); END IF; RETURN i; END $$;
CREATE FUNCTION folded(i int) RETURNS bigint LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
	AS $$ BEGIN RETURN look_and_fail(i); EXCEPTION WHEN OTHERS THEN RETURN look(i); END $$;
-- a check that does as it likes below a function that has found a variable
CREATE FUNCTION busy(value text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	PERFORM absmartly_wait_until_ready('0 s'), look(1), absmartly_wait_until_ready('0 s'), pg_sleep(0.005);
	IF length(value) % 2 = 0 THEN PERFORM look_and_fail(3); END IF;
	RETURN value <> 'none';
END $$;
CREATE DOMAIN busy_text AS text CHECK (busy(value));
CREATE TABLE users AS SELECT i AS id FROM generate_series(1, 3000) AS i;
ALTER TABLE users SET (parallel_workers = 2);
ANALYZE users;
CREATE TABLE parts (v bigint, id int) PARTITION BY HASH (v);
CREATE TABLE parts0 PARTITION OF parts FOR VALUES WITH (MODULUS 4, REMAINDER 0);
CREATE TABLE parts1 PARTITION OF parts FOR VALUES WITH (MODULUS 4, REMAINDER 1);
CREATE TABLE parts2 PARTITION OF parts FOR VALUES WITH (MODULUS 4, REMAINDER 2);
CREATE TABLE parts3 PARTITION OF parts FOR VALUES WITH (MODULUS 4, REMAINDER 3);
INSERT INTO parts SELECT i % 2000, i FROM generate_series(0, 3999) AS i;
CREATE TABLE orders (kind text, floor bigint, id int);
CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE first bigint := look_and_fail(new.id); each bigint;
BEGIN
	FOR each IN SELECT look(i) FROM generate_series(1, 3) AS i LOOP
		first := CASE WHEN each = first THEN first ELSE -1 END;
	END LOOP;
	PERFORM pg_sleep(0.002);
	each := k('{"user_id": 1}');
	INSERT INTO seen VALUES (new.kind, new.floor, least(first, each), greatest(first, each));
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late();
CREATE TABLE applied (floor bigint, id int);
CREATE FUNCTION applied() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_catalog AS $$
DECLARE first bigint := look_and_fail(new.id); next bigint;
BEGIN
	PERFORM pg_sleep(0.002);
	next := look(1);
	INSERT INTO seen VALUES ('applied', 0, least(first, next), greatest(first, next));
	RETURN NULL;
END $$;
CREATE TRIGGER applied AFTER INSERT ON applied FOR EACH ROW EXECUTE FUNCTION applied();
CREATE FUNCTION open_cursor(c refcursor) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE r bigint;
BEGIN OPEN c FOR SELECT look(id) AS v FROM users; FETCH c INTO r; RETURN r; END $$;
CREATE FUNCTION fetch_cursor(c refcursor, OUT of_cursor bigint, OUT of_statement bigint) LANGUAGE plpgsql AS $$
BEGIN FETCH c INTO of_cursor; of_statement := look(1); END $$;
CREATE PROCEDURE steps(rounds int) LANGUAGE plpgsql AS $$
DECLARE floor bigint; first bigint; next bigint;
BEGIN
	FOR i IN 1 .. rounds LOOP
		floor := (SELECT last_value FROM loaded);
		first := look_and_fail(i);
		PERFORM pg_sleep(0.005);
		next := look(i);
		INSERT INTO seen VALUES ('procedure', floor, least(first, next), greatest(first, next));
		IF i % 3 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
	END LOOP;
END $$;
EOT

$node->safe_psql('postgres', 'CREATE ROLE joe LOGIN; CREATE DATABASE sub');
$node->safe_psql('sub', 'CREATE EXTENSION absmartly');
for my $database (qw(postgres sub))
{
	ok(await_sql($node, 'SELECT worker_pid IS NOT NULL FROM absmartly_stat', 't', database => $database), "$database has a worker");
	$node->safe_psql($database, $schema);
	$node->safe_psql($database, 'GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO joe; GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO joe; SELECT load()');
}
$node->safe_psql('postgres', 'CREATE PUBLICATION applied FOR TABLE applied');
$node->safe_psql('postgres', q{SELECT pg_create_logical_replication_slot('applied', 'pgoutput')});
$node->safe_psql('sub', 'ALTER TABLE applied ENABLE ALWAYS TRIGGER applied');
(my $connection = $node->connstr('postgres')) =~ s/'/''/g;
$node->safe_psql('sub', "CREATE SUBSCRIPTION applied CONNECTION '$connection' PUBLICATION applied WITH (create_slot = false, copy_data = false, slot_name = 'applied')");

# What a session may do; \gset has "floor" be what was in force before.  Rows go to seen: all of a statement are of one
# version, and that is none of before it began.
my $k = q{k(jsonb_build_object('user_id', id))};
my %kinds = (
	plain    => "INSERT INTO seen SELECT 'plain', :floor, min(v), max(v) FROM (SELECT $k AS v FROM users WHERE id % 10 = 1) AS q;",
	failing  => q{INSERT INTO seen SELECT 'failing', :floor, min(v), max(v) FROM (SELECT look_and_fail(id) AS v FROM users LIMIT 12) AS q;},
	parallel => q{SELECT 'parallel' AS kind, min(v) AS least, max(v) AS most FROM (
		SELECT look(id) AS v, unpin(id) AS u FROM users WHERE look(unpin_anywhere(id)) > 0) AS q \gset x_
		INSERT INTO seen VALUES (:'x_kind', :floor, :x_least, :x_most);},
	pruned   => q{INSERT INTO seen SELECT 'pruned', :floor, coalesce(min(v), -1), coalesce(max(v), -2) FROM parts WHERE v = k('{"user_id": 1}');},
	planned  => q{INSERT INTO seen SELECT 'planned', :floor, min(v), max(v) FROM (SELECT look(id) AS v FROM users WHERE id < folded(5) % 7 + 20) AS q;},
	checked  => q{INSERT INTO seen SELECT 'checked', 0, 0, count(absmartly_peek_variable_value(jsonb_build_object('user_id', id), 'k', 'some'::busy_text)) * 0
		FROM users WHERE id < 12;},
	trigger  => q{INSERT INTO orders SELECT 'trigger', :floor, i FROM generate_series(1, 6) AS i;},
	error    => q{SELECT look(id) / (id - 30) FROM users;},
	prepared => q{PREPARE p AS SELECT min(look(id)) AS least, max(look(id)) AS most FROM users WHERE id < 30; EXECUTE p; EXECUTE p; EXECUTE p; EXECUTE p; EXECUTE p;
		EXECUTE p \gset x_
		DEALLOCATE p; INSERT INTO seen VALUES ('prepared', :floor, :x_least, :x_most);},
	several  => q{SELECT look(1)\; SELECT pg_sleep(0.005)\; SELECT look(2)\; INSERT INTO seen SELECT 'several', :floor, min(look(id)), max(look(id)) FROM users WHERE id < 9;},
	cursor   => q{BEGIN; DECLARE c SCROLL CURSOR FOR SELECT look(id) AS v, look_and_fail(id) AS w FROM users WHERE id < 40;
		FETCH 1 FROM c \gset a_
		SAVEPOINT s; SELECT look(1) / 0; ROLLBACK TO s; SELECT pg_sleep(0.01), look(3);
		FETCH FORWARD 5 FROM c;
		FETCH ALL FROM c; SELECT pg_sleep(0.01);
		FETCH ABSOLUTE 2 FROM c \gset b_
		SAVEPOINT t; SELECT look_and_fail(7);
		FETCH BACKWARD 1 FROM c \gset c_
		COMMIT; INSERT INTO seen VALUES ('cursor', :floor, least(:a_v, :b_v, :c_v, :a_w, :b_w), greatest(:a_v, :b_v, :c_v, :a_w, :b_w));},
	hold     => q{BEGIN; DECLARE h CURSOR WITH HOLD FOR SELECT look(id) AS v FROM users WHERE id < 40; FETCH 1 FROM h \gset a_
		COMMIT; SELECT pg_sleep(0.01); FETCH LAST FROM h \gset b_
		CLOSE h; INSERT INTO seen VALUES ('hold', :floor, least(:a_v, :b_v), greatest(:a_v, :b_v));},
	refcursor => q{BEGIN; SELECT open_cursor('r') AS v \gset a_
		SELECT pg_sleep(0.01); FETCH 1 FROM r \gset b_
		SELECT least(1, 2); SELECT of_cursor AS v, of_statement AS w FROM fetch_cursor('r') \gset c_
		COMMIT; INSERT INTO seen VALUES ('refcursor', :floor, least(:a_v, :b_v, :c_v), greatest(:a_v, :b_v, :c_v)),
			('refcursor statement', :floor, :c_w, :c_w);},
	long     => q{BEGIN;} . join('', map { "SELECT look($_), pg_sleep(0.003); SAVEPOINT s$_;" . ($_ % 3 ? '' : "SELECT look(1) / 0; ROLLBACK TO s$_;") } 1 .. 9)
		. q{SELECT last_value AS floor FROM loaded \gset
		INSERT INTO seen SELECT 'long', :floor, min(v), max(v) FROM (SELECT look_and_fail(id) AS v FROM users LIMIT 5) AS q; COMMIT;},
	procedure => q{CALL steps(6);},
	loop     => q{DO $$ BEGIN FOR i IN 1 .. 7 LOOP DECLARE n bigint := load(); BEGIN IF look(1) < n THEN RAISE 'stale in a loop'; END IF;
		PERFORM look_and_fail(i), absmartly_peek_treatment('[]', 'exp'); EXCEPTION WHEN invalid_parameter_value THEN NULL; END; END LOOP; END $$;},
	context  => q{SELECT absmartly_context_create('{"user_id": 1}'); SELECT absmartly_context_peek_variable_value('k', '0')::bigint AS v \gset a_
		SELECT pg_sleep(0.01), look_and_fail(3); SELECT absmartly_context_peek_variable_value('k', '0')::bigint AS v \gset b_
		INSERT INTO seen VALUES ('context', :floor, least(:a_v, :b_v), greatest(:a_v, :b_v));},
	prefetch => q{SELECT absmartly_context_create(jsonb_build_object('user_id', id), data => data(7)), absmartly_context_peek_variable_value('k', '0'), look(id)
		FROM users WHERE id < 9; SELECT absmartly_context_treatment('exp'); SELECT absmartly_context_finalize('0 s'); DISCARD ALL;},
	utility  => q{CREATE TEMP TABLE mine AS SELECT look(id) AS v FROM users WHERE id < 20; EXPLAIN (ANALYZE, COSTS OFF) SELECT look_and_fail(id) FROM users LIMIT 5;
		INSERT INTO seen SELECT 'utility', :floor, min(v), max(v) FROM mine; CREATE INDEX ON mine (unpin_anywhere(v::int)); DROP TABLE mine;},
	applied  => q{INSERT INTO applied SELECT :floor, i FROM generate_series(1, 4) AS i;},
	load     => q{SELECT load();},
);
# not in databases where only joe may
my @of_superuser = qw(load loop);
my @of_all = grep { my $kind = $_; !grep { $_ eq $kind } @of_superuser } sort keys %kinds;

sub script
{
	my ($superuser) = @_;
	my @all = $superuser ? (@of_all, @of_superuser) : @of_all;
	my $text = $superuser ? '' : "SET ROLE joe;\n";

	$text .= "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET statement_timeout = '300s';\n";
	for (1 .. $ROUNDS)
	{
		my $kind = $all[ int rand @all ];
		my $commands = $kinds{$kind};

		$text .= "\\echo $kind\nSELECT last_value AS floor FROM loaded \\gset\n$commands\n";
		# whatever an error has left behind
		$text .= "ROLLBACK;\n";
		$text .= "RESET ROLE; SET ROLE joe;\n" if !$superuser && $kind eq 'prefetch';
	}
	# the last one ends in the middle of its work
	return $text . "RESET ROLE; BEGIN; DECLARE c CURSOR FOR SELECT look(id) FROM users; FETCH 5 FROM c; SELECT look(id), pg_terminate_backend(pg_backend_pid()) FROM users;\n";
}

my @running;
my $start = sub {
	my ($text, $database) = @_;
	my %run = (input => $text, output => '');

	$run{handle} = IPC::Run::start(
		[ 'psql', '-X', '-q', '-A', '-t', '-d', $node->connstr($database) ],
		'<', \$run{input}, '>', \$run{output}, '2>', \$run{error});
	push @running, \%run;
	return;
};
for my $number (1 .. $SESSIONS)
{
	$start->(script($number > 3), 'postgres');
}
for my $database (qw(postgres sub))
{
	# data comes until the others have ended
	$start->("SET client_min_messages = warning;\nDO \$\$ BEGIN WHILE to_regclass('done') IS NULL LOOP PERFORM load(), pg_sleep(0.004); COMMIT; END LOOP; END \$\$;\n", $database);
}
my @loaders = splice @running, -2;
my $postmaster = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');

for my $run (@running)
{
	IPC::Run::finish($run->{handle});
}
$node->safe_psql($_, 'CREATE TABLE done ()') for qw(postgres sub);
IPC::Run::finish($_->{handle}) for @loaders;
is($_->{error}, '', 'a session that loads data has seen no error') for @loaders;
for my $run (@running)
{
	my %errors;

	$errors{$1}++ while $run->{error} =~ /^(?:psql:[^:]*:\d+: )?(?:ERROR|FATAL|PANIC): +(.*)$/mg;
	my @unexpected = grep { !/^(division by zero|Publish failed: time-out$|terminating connection due to administrator command|permission denied)/ } sort keys %errors;
	is(join("\n", @unexpected), '', 'a session has seen no errors but its own') or diag(substr $run->{output}, -2000);
}

is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'), $postmaster, 'the server has not restarted');
ok(await(sub { $node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_lsn()}) > 0 }), 'changes have been applied');
for my $database (qw(postgres sub))
{
	is($node->safe_psql($database, 'SELECT * FROM seen WHERE least IS DISTINCT FROM most OR least < floor ORDER BY 1, 2'), '', "$database: each statement saw one version, and none of before it");
	ok(await_sql($node, 'SELECT data_versions FROM absmartly_stat', '1', database => $database), "$database: one version is left");
}
my $kinds = $node->safe_psql('postgres', q{SELECT string_agg(DISTINCT kind, ' ') FROM seen});
note("kinds: $kinds");
note($node->safe_psql('postgres', q{SELECT last_value || ' versions, ' || (SELECT count(*) FROM seen) || ' statements' FROM loaded}));
cmp_ok($node->safe_psql('postgres', 'SELECT count(DISTINCT least) FROM seen'), '>', 2, 'several versions were seen');
cmp_ok($node->safe_psql('sub', q{SELECT count(*) FROM seen WHERE kind = 'applied'}), '>', 0, 'by what a subscription applied, too');
$node->safe_psql('sub', 'ALTER SUBSCRIPTION applied DISABLE; ALTER SUBSCRIPTION applied SET (slot_name = NONE); DROP SUBSCRIPTION applied');
unlike(log_of($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
$node->stop;
done_testing();
