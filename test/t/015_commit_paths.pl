
# An event exists exactly if its transaction committed, whichever way that came about.
#
# The function t() tracks a goal and notes the same in a table, so that the table is what there must be.  Events are kept
# (publishing is off) and looked at in the outbox; at the end all of them go to the collector, which must have received
# exactly the same.

use strict;
use warnings;

use AbsmartlyTest;
use List::Util qw(max sum0);
use PostgreSQL::Test::Utils;
use Test::More;

my $seed = $ENV{ABSMARTLY_SEED} // time;
srand $seed;
note "ABSMARTLY_SEED=$seed";

my $collector = start_collector(data => experiments(map { experiment("exp$_", id => $_) } 1 .. 10));
my $node = start_node('main', collector => $collector, settings => <<'EOT');
absmartly.publish_delay = 100ms
absmartly.publishing = off
absmartly.exposure_dedup_interval = 0
max_prepared_transactions = 10
fsync = on
wal_writer_delay = 10s
log_temp_files = 0
log_statement = none
EOT
ok(wait_ready($node), 'ready');
my $major = $node->safe_psql('postgres', q{SELECT current_setting('server_version_num')::int / 10000});

# goal => what must have been tracked, by number; and experiments likewise, by unit
my (%tracked, %exposed);

# Runs commands, in a session of their own; errors do not end it. Gives output and errors.
sub run
{
	my ($commands, %options) = @_;
	my $database = $options{database} // 'postgres';
	my (undef, $output, $error) = $node->psql($database, $commands, on_error_stop => 0,
		extra_params => $options{user} ? [ '-U', $options{user} ] : []);

	return wantarray ? ($output, $error) : $output;
}

# As run(), but nothing may fail.
sub succeed
{
	my ($commands, %options) = @_;
	my ($output, $error) = run($commands, %options);

	fail('commands fail') || diag("$commands\n$error") if $error =~ /(ERROR|FATAL|WARNING):/;
	return $output;
}

# The numbers of a goal's events that wait, in order.
sub waiting
{
	my ($goal, $database, $schema) = @_;

	$schema //= 'public';
	return $node->safe_psql($database // 'postgres', <<EOT);
SELECT string_agg(n::text, ',' ORDER BY n)
FROM (SELECT (properties->>'n')::int AS n FROM $schema.absmartly_pending_events WHERE goal = '$goal') AS event
EOT
}

# What waits of a goal must be what t() has left in its table, and the given numbers if there are any.
sub is_kept
{
	my ($goal, $expected, $name) = @_;
	my $waiting = waiting($goal);
	my $noted = $node->safe_psql('postgres', "SELECT string_agg(n::text, ',' ORDER BY n) FROM noted WHERE goal = '$goal'");

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$tracked{$goal} = $noted;
	if (defined $expected)
	{
		is($noted, $expected, "$name (rows)");
		is($waiting, $expected, $name);
	}
	elsif (!ok($waiting eq $noted, $name))
	{
		my ($got, $wanted) = map { { map { $_ => 1 } split /,/ } } $waiting, $noted;
		my @missing = grep { !$got->{$_} } sort { $a <=> $b } keys %$wanted;
		my @excess = grep { !$wanted->{$_} } sort { $a <=> $b } keys %$got;
		diag(scalar(keys %$wanted) . ' expected, ' . scalar(my @all = split /,/, $waiting) . ' found');
		diag("missing: @missing[0 .. max(-1, $#missing > 20 ? 20 : $#missing)]");
		diag("too many: @excess[0 .. max(-1, $#excess > 20 ? 20 : $#excess)]");
	}
	return;
}

# What waits of a goal must be these numbers; for goals that leave no row.
sub is_waiting
{
	my ($goal, $expected, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$tracked{$goal} = $expected;
	is(waiting($goal), $expected, $name);
	return;
}

# The units (numbers from 1 to 1000) that an experiment has been exposed to. Some come to the outbox by the worker.
sub is_exposed
{
	my ($experiment, $expected, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$exposed{$experiment} = $expected;
	ok(await_sql($node, <<EOT, $expected), $name);
SELECT string_agg(n::text, ',' ORDER BY n)
FROM (SELECT units[1] AS hash FROM absmartly_pending_events WHERE experiment = '$experiment') AS event
	JOIN (SELECT absmartly_hash_unit(i::text) AS hash, i AS n FROM generate_series(1, 1000) AS i) AS unit USING (hash)
EOT
	return;
}

sub numbers
{
	return join ',', @_;
}

my $functions = <<'EOT';
CREATE TABLE noted (goal text NOT NULL, n int NOT NULL);
CREATE FUNCTION t(goal text, n int, bytes int = 0) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO noted VALUES (goal, n);
	PERFORM absmartly_track(jsonb_build_object('user_id', n), goal, CASE WHEN bytes > 0
		THEN jsonb_build_object('n', n, 'filling', repeat(chr(97 + n % 26), bytes)) ELSE jsonb_build_object('n', n) END);
END $$;
EOT
succeed($functions);

subtest 'commit and rollback' => sub {
	succeed(q{SELECT t('auto', 1)});
	is_kept('auto', '1', 'a statement by itself');
	succeed(q{BEGIN; SELECT t('plain', 1); SELECT t('plain', 2); COMMIT; BEGIN; SELECT t('plain', 3); ROLLBACK});
	is_kept('plain', '1,2', 'committed and rolled back');
	run(q{BEGIN; SELECT t('failed', 1); SELECT 1/0; SELECT t('failed', 2); COMMIT});
	run(q{SELECT t('failed', i) / 0 FROM generate_series(3, 4) i});
	run(q{SELECT t('failed', i), 1 / (7 - i) FROM generate_series(5, 9) i});
	is_kept('failed', '', 'an error');
	succeed(q{BEGIN; SELECT t('chain', 1); COMMIT AND CHAIN; SELECT t('chain', 2); ROLLBACK AND CHAIN; SELECT t('chain', 3); COMMIT});
	is_kept('chain', '1,3', 'AND CHAIN');
	# several statements in one message are one transaction
	$node->command_ok([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c',
		q{SELECT t('implicit', 1); SELECT t('implicit', 2)} ], 'an implicit transaction block');
	$node->command_fails([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c',
		q{SELECT t('implicit', 3); SELECT 1/0} ], 'and one that fails');
	is_kept('implicit', '1,2', 'implicit transaction blocks');
	run(q{BEGIN; SELECT t('gone', 1)});
	is_kept('gone', '', 'a session that ends');
};

subtest 'savepoints' => sub {
	succeed(<<'EOT');
BEGIN;
SELECT t('nested', 1);
SAVEPOINT a;
SELECT t('nested', 2);
SAVEPOINT b;
SELECT t('nested', 3);
ROLLBACK TO b;
SELECT t('nested', 4);
RELEASE a;
SELECT t('nested', 5);
SAVEPOINT a;
SELECT t('nested', 6);
SAVEPOINT a;
SELECT t('nested', 7);
ROLLBACK TO a;
SELECT t('nested', 8);
RELEASE a;
ROLLBACK TO a;
SELECT t('nested', 9);
COMMIT;
EOT
	is_kept('nested', '1,2,4,5,9', 'nested, released, of one name');
	succeed(q{BEGIN; SAVEPOINT a; SELECT t('only', 1); ROLLBACK TO a; COMMIT});
	is_kept('only', '', 'all that was recorded is rolled back');
	succeed(q{BEGIN; SAVEPOINT a; SAVEPOINT b; SAVEPOINT c; SELECT t('deep', 1); RELEASE c; RELEASE b; SELECT t('deep', 2); COMMIT});
	is_kept('deep', '1,2', 'released by several levels');
	succeed(q{BEGIN; SAVEPOINT a; SAVEPOINT b; SAVEPOINT c; SELECT t('deep2', 1); RELEASE b; ROLLBACK TO a; COMMIT});
	is_kept('deep2', '', 'released, and rolled back further out');
	run(q{BEGIN; SELECT t('error', 1); SAVEPOINT a; SELECT t('error', 2); SELECT 1/0; ROLLBACK TO a; SELECT t('error', 3); COMMIT});
	is_kept('error', '1,3', 'an error that is rolled back');
	my $levels = 300;
	succeed("BEGIN;\n" . join('', map { "SAVEPOINT s$_; SELECT t('levels', $_);\n" } 1 .. $levels)
			. "ROLLBACK TO s200; SELECT t('levels', 1000); COMMIT");
	is_kept('levels', numbers(1 .. 199, 1000), 'hundreds of levels');
};

# Savepoints at random; the table tells what must be there. Sizes: so that payloads of the outbox end everywhere.
sub random_savepoints
{
	my ($goal, $steps, $bytes) = @_;
	my ($n, @open) = (0);
	my $script = "BEGIN;\n";

	for (1 .. $steps)
	{
		my $dice = rand;
		if ($dice < 0.55)
		{
			my $many = rand() < 0.1 ? 1 + int rand 40 : 1;
			my $size = int rand(rand() < 0.03 ? 30000 : $bytes);
			$script .= "SELECT t('$goal', i, $size) FROM generate_series(" . ($n + 1) . ', ' . ($n + $many) . ") i;\n";
			$n += $many;
		}
		elsif ($dice < 0.75 && @open < 12)
		{
			push @open, 's' . int rand 4;
			$script .= "SAVEPOINT $open[-1];\n";
		}
		elsif (@open)
		{
			# the innermost of that name
			my $name = $open[ rand @open ];
			pop @open while $open[-1] ne $name;
			if ($dice < 0.85)
			{
				pop @open;
				$script .= "RELEASE $name;\n";
			}
			else
			{
				$script .= "ROLLBACK TO $name;\n";
			}
		}
	}
	return $script . "COMMIT;\n";
}

subtest 'savepoints at random' => sub {
	for my $round (1 .. 12)
	{
		succeed(random_savepoints("random$round", 300, $round % 2 ? 20 : 3000));
		is_kept("random$round", undef, "round $round");
	}
};

subtest 'events that spill to a file' => sub {
	my $offset = -s $node->logfile;

	succeed(q{BEGIN; SELECT t('spill', i, 1500) FROM generate_series(1, 7000) i; COMMIT});
	is_kept('spill', undef, 'committed');
	like(substr(log_of($node), $offset), qr/temporary file: .* size [0-9]{7}/, 'there was a file');
	succeed(q{BEGIN; SELECT t('spill_undone', i, 1500) FROM generate_series(1, 7000) i; ROLLBACK});
	is_kept('spill_undone', '', 'rolled back');
	succeed(<<'EOT');
BEGIN;
SELECT t('middle', i, 1501) FROM generate_series(1, 1001) i;
SAVEPOINT a;
SELECT t('middle', 1002);
SAVEPOINT b;
SELECT t('middle', i, 1500) FROM generate_series(1003, 7000) i;
ROLLBACK TO b;
SELECT t('middle', i, 1500) FROM generate_series(7001, 14000) i;
ROLLBACK TO b;
SELECT t('middle', 14001);
SAVEPOINT c;
SELECT t('middle', i, 1500) FROM generate_series(14002, 21000) i;
ROLLBACK TO a;
COMMIT;
EOT
	is_kept('middle', numbers(1 .. 1001), 'returned to the middle of what was spilled, more than once');
	succeed(<<'EOT');
BEGIN;
SELECT t('end', i, 1501) FROM generate_series(1, 1001) i;
SAVEPOINT a;
SELECT t('end', i, 1500) FROM generate_series(1002, 7000) i;
ROLLBACK TO a;
SELECT t('end', i, 1500) FROM generate_series(7001, 13000) i;
SAVEPOINT b;
SELECT t('end', i, 10000) FROM generate_series(13001, 13600) i;
RELEASE b;
COMMIT;
EOT
	is_kept('end', numbers(1 .. 1001, 7001 .. 13600), 'and gone on from there');
	succeed(q{BEGIN; SAVEPOINT a; SELECT t('start', i, 1500) FROM generate_series(1, 7000) i; ROLLBACK TO a; COMMIT});
	is_kept('start', '', 'returned to the very start');
	for my $round (1 .. 3)
	{
		succeed(random_savepoints("spilled$round", 900, 40000));
		is_kept("spilled$round", undef, "at random, round $round");
	}
	my $files = $node->safe_psql('postgres', q{SELECT count(*) FROM pg_ls_tmpdir()});
	is($files, '0', 'no file is left');
};

subtest 'exception blocks' => sub {
	succeed(<<'EOT');
DO $$
BEGIN
	FOR i IN 1 .. 10000 LOOP
		BEGIN
			PERFORM t('blocks', i);
			IF i % 2 = 0 THEN
				RAISE EXCEPTION 'no';
			END IF;
		EXCEPTION WHEN OTHERS THEN NULL;
		END;
	END LOOP;
END $$;
EOT
	is_kept('blocks', numbers(grep { $_ % 2 } 1 .. 10000), '10000, of which half fail');
	succeed(<<'EOT');
CREATE FUNCTION inner_block(goal text, n int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM t(goal, n);
	BEGIN
		PERFORM t(goal, n + 1);
		BEGIN
			PERFORM t(goal, n + 2);
			PERFORM 1 / (n % 3);
		EXCEPTION WHEN division_by_zero THEN
			PERFORM t(goal, n + 3);
		END;
		PERFORM t(goal, n + 4);
		PERFORM 1 / (n % 2);
	EXCEPTION WHEN division_by_zero THEN
		PERFORM t(goal, n + 5);
	END;
END $$;
SELECT inner_block('inner', i * 10) FROM generate_series(1, 3000) i;
EOT
	is_kept('inner', undef, 'nested ones');
	run(q{DO $$ BEGIN PERFORM inner_block('inner_undone', 10); RAISE 'no'; END $$});
	is_kept('inner_undone', '', 'in a statement that fails');
};

subtest 'COMMIT and ROLLBACK in procedures' => sub {
	succeed(<<'EOT');
CREATE PROCEDURE p(goal text, most int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. most LOOP
		PERFORM t(goal, i);
		IF i % 15 = 0 THEN
			ROLLBACK;
		ELSIF i % 5 = 0 THEN
			COMMIT;
		END IF;
	END LOOP;
END $$;
CALL p('procedure', 32);
EOT
	my @kept = grep { $_ > 30 || ($_ - 1) % 15 < 10 } 1 .. 32;
	is_kept('procedure', numbers(@kept), 'a procedure');
	succeed(<<'EOT');
DO $$
DECLARE r record;
BEGIN
	PERFORM t('do', 0);
	FOR r IN SELECT i FROM generate_series(1, 32) i LOOP
		PERFORM t('do', r.i);
		IF r.i % 15 = 0 THEN
			ROLLBACK;
		ELSIF r.i % 5 = 0 THEN
			COMMIT;
		END IF;
	END LOOP;
END $$;
EOT
	is_kept('do', numbers(0, @kept), 'a DO block, in the loop of a cursor');
	run(q{DO $$ BEGIN PERFORM t('do2', 1); COMMIT; PERFORM t('do2', 2); RAISE 'no'; END $$});
	is_kept('do2', '1', 'an error after a COMMIT');
	succeed(q{DO $$ BEGIN PERFORM t('do3', 1); ROLLBACK; PERFORM t('do3', 2); COMMIT AND CHAIN; PERFORM t('do3', 3); END $$});
	is_kept('do3', '2,3', 'and AND CHAIN');
	run(q{BEGIN; SELECT t('block', 1); CALL p('block', 5); COMMIT});
	is_kept('block', '', 'a COMMIT that is not allowed fails the block');
	succeed(<<'EOT');
DO $$
BEGIN
	PERFORM t('procedure_spill', i, 3000) FROM generate_series(1, 2500) i;
	COMMIT;
	PERFORM t('procedure_spill', i, 3000) FROM generate_series(2501, 5000) i;
	ROLLBACK;
	PERFORM t('procedure_spill', 5001);
END $$;
EOT
	is_kept('procedure_spill', numbers(1 .. 2500, 5001), 'with a file');
};

subtest 'prepared transactions' => sub {
	succeed(<<'EOT');
BEGIN; SELECT t('prepared', 1); PREPARE TRANSACTION 'one';
BEGIN; SELECT t('prepared', 2); SAVEPOINT a; SELECT t('prepared', 3); ROLLBACK TO a; SELECT t('prepared', 4); PREPARE TRANSACTION 'two';
BEGIN; SELECT t('prepared', 5); PREPARE TRANSACTION 'three';
BEGIN; SELECT t('prepared', 6); PREPARE TRANSACTION 'four';
BEGIN; SELECT t('prepared', i, 2000) FROM generate_series(10, 3000) i; PREPARE TRANSACTION 'five';
BEGIN; SET LOCAL absmartly.durability = memory; SELECT t('prepared', 7); PREPARE TRANSACTION 'six';
BEGIN; SET LOCAL absmartly.durability = memory; SELECT t('prepared', 8); PREPARE TRANSACTION 'seven';
SELECT t('prepared', 9);
EOT
	is_kept('prepared', '9', 'prepared is not committed');
	succeed(q{COMMIT PREPARED 'one'});
	is_kept('prepared', '1,9', 'COMMIT PREPARED, in another session');
	succeed(q{ROLLBACK PREPARED 'three'});
	$node->restart;
	is_kept('prepared', '1,9', 'after a restart');
	succeed(q{COMMIT PREPARED 'two'; ROLLBACK PREPARED 'four'});
	$node->stop('immediate');
	$node->start;
	is_kept('prepared', '1,2,4,9', 'after a crash');
	succeed(q{COMMIT PREPARED 'five'; COMMIT PREPARED 'six'; ROLLBACK PREPARED 'seven'});
	is_kept('prepared', numbers(1, 2, 4, 7, 9 .. 3000), 'all are done');
	run(q{BEGIN; SELECT t('unprepared', 1); SELECT 1/0; PREPARE TRANSACTION 'eight'});
	is_kept('unprepared', '', 'a failed one is rolled back instead');
	ok(wait_ready($node), 'ready again');
	fails_with($node, q{BEGIN READ ONLY; SELECT absmartly_track('{"user_id": 1}', 'unprepared'); PREPARE TRANSACTION 'nine'},
		'0A000', qr/cannot PREPARE a read-only transaction that has recorded events/, 'a read-only one is refused');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'), '0', 'none is left');
	is(stat_of($node, 'memory_queue_entries'), '0', 'nothing in memory');
};

subtest 'deferred triggers' => sub {
	succeed(<<'EOT');
CREATE TABLE orders (n int PRIMARY KEY, goal text);
CREATE FUNCTION order_tracked() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM t(NEW.goal, NEW.n);
	IF NEW.n = 13 THEN
		RAISE EXCEPTION 'no';
	END IF;
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER order_tracked AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION order_tracked();
BEGIN; INSERT INTO orders VALUES (1, 'deferred'), (2, 'deferred'); COMMIT;
BEGIN; INSERT INTO orders VALUES (3, 'deferred'); ROLLBACK;
BEGIN; SAVEPOINT a; INSERT INTO orders VALUES (4, 'deferred'); ROLLBACK TO a; INSERT INTO orders VALUES (5, 'deferred'); COMMIT;
BEGIN; INSERT INTO orders VALUES (6, 'deferred'); SET CONSTRAINTS ALL IMMEDIATE; INSERT INTO orders VALUES (7, 'deferred'); COMMIT;
INSERT INTO orders VALUES (8, 'deferred');
BEGIN; INSERT INTO orders VALUES (9, 'deferred'); PREPARE TRANSACTION 'orders';
COMMIT PREPARED 'orders';
EOT
	run(q{BEGIN; SELECT t('deferred', 100); INSERT INTO orders VALUES (12, 'deferred'), (13, 'deferred'); COMMIT});
	is_kept('deferred', '1,2,5,6,7,8,9', 'a trigger that fires at commit');

	succeed(<<'EOT');
CREATE TABLE payments (n int PRIMARY KEY, customer_id int);
CREATE CONSTRAINT TRIGGER payment AFTER INSERT ON payments DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('payment', 'user_id=customer_id', 'n');
INSERT INTO payments VALUES (1, 1);
BEGIN; INSERT INTO payments VALUES (2, 2); SAVEPOINT a; INSERT INTO payments VALUES (3, 3); ROLLBACK TO a; COMMIT;
BEGIN; INSERT INTO payments VALUES (4, 4); ROLLBACK;
EOT
	is_waiting('payment', '1,2', 'absmartly_track_trigger() as a constraint trigger');
};

subtest 'cursors' => sub {
	my $select = q{SELECT absmartly_treatment(jsonb_build_object('user_id', i), '%s') FROM generate_series(1, 20) i};
	my $cursor = sub { sprintf "DECLARE c CURSOR %s FOR $select", $_[1] // '', $_[0] };

	succeed('BEGIN; ' . $cursor->('exp1') . '; FETCH 5 FROM c; COMMIT');
	is_exposed('exp1', '1,2,3,4,5', 'partly fetched: what was fetched');
	succeed('BEGIN; ' . ($cursor->('exp2', 'WITH HOLD') =~ s/c CURSOR/c NO SCROLL CURSOR/r) . '; FETCH 5 FROM c; COMMIT; FETCH 5 FROM c; CLOSE c');
	is_exposed('exp2', numbers(1 .. 20), 'holdable: all, as it is run to its end at commit');
	# one that scrolls is run from its beginning then, as far as it had got once more
	succeed(q{SET absmartly.exposure_dedup_interval = '10min'; BEGIN; } . $cursor->('exp6', 'WITH HOLD') . '; FETCH 5 FROM c; COMMIT');
	is_exposed('exp6', numbers(1 .. 20), 'holdable and run twice: each unit once, as far as repeated exposures are left out');
	succeed('BEGIN; ' . $cursor->('exp3', 'WITH HOLD') . '; FETCH 5 FROM c; ROLLBACK; BEGIN; ' . $cursor->('exp3') . '; FETCH 5 FROM c; ROLLBACK');
	is_exposed('exp3', '', 'rolled back: none');
	succeed('BEGIN; ' . $cursor->('exp4') . '; FETCH 2 FROM c; SAVEPOINT a; FETCH 2 FROM c; ROLLBACK TO a; FETCH 2 FROM c; COMMIT');
	is_exposed('exp4', '1,2,5,6', 'fetched in a savepoint that is rolled back');
	succeed("\\set FETCH_COUNT 3\n" . sprintf($select, 'exp5') . ';');
	is_exposed('exp5', numbers(1 .. 20), 'fetched in portions by psql');
};

subtest 'SERIALIZABLE' => sub {
	my @sessions = map { $node->background_psql('postgres', on_error_stop => 0) } 1 .. 2;

	$_->query_safe(q{BEGIN ISOLATION LEVEL SERIALIZABLE}) for @sessions;
	$_->query_safe(q{SELECT count(*) FROM noted WHERE goal = 'serial'}) for @sessions;
	$sessions[$_]->query_safe("SELECT t('serial', $_)") for 0, 1;
	$sessions[0]->query_safe('COMMIT');
	$sessions[1]->query('COMMIT');
	like($sessions[1]->{stderr}, qr/could not serialize access/, 'one of two fails');
	$sessions[1]->{stderr} = '';
	is_kept('serial', '0', 'and its events are gone');
	$sessions[1]->query_safe(q{BEGIN ISOLATION LEVEL SERIALIZABLE});
	$sessions[1]->query_safe(q{SELECT t('serial', 1)});
	$sessions[1]->query_safe('COMMIT');
	is_kept('serial', '0,1', 'tried again they are there');
	$_->quit for @sessions;

	# events alone conflict with nothing: the outbox is no table that is read
	@sessions = map { $node->background_psql('postgres', on_error_stop => 0) } 1 .. 4;
	$_->query_safe(q{BEGIN ISOLATION LEVEL SERIALIZABLE}) for @sessions;
	$sessions[$_]->query_safe(qq{SELECT absmartly_track('{"user_id": 1}', 'serial_alone', '{"n": $_}')}) for 0 .. 3;
	$_->query_safe('COMMIT') for @sessions;
	$_->quit for @sessions;
	is_waiting('serial_alone', '0,1,2,3', 'concurrent ones do not disturb each other');
};

subtest 'READ ONLY' => sub {
	my $track = sub { my ($goal, $n) = @_; return qq{SELECT absmartly_track('{"user_id": 1}', '$goal', '{"n": $n}')} };

	succeed('BEGIN READ ONLY; ' . $track->('read_only', 1) . '; COMMIT');
	succeed('BEGIN READ ONLY; ' . $track->('read_only', 2) . '; ROLLBACK');
	run('BEGIN READ ONLY; ' . $track->('read_only', 2) . '; SELECT 1/0; COMMIT');
	ok(await(sub { waiting('read_only') eq '1' }), 'goes through memory, if committed');
	succeed('BEGIN; ' . $track->('read_only', 3) . '; SET TRANSACTION READ ONLY; ' . $track->('read_only', 4) . '; COMMIT');
	ok(await(sub { waiting('read_only') eq '1,3,4' }), 'set after an event: so do those before');
	succeed('BEGIN; ' . $track->('read_only', 5) . '; SAVEPOINT a; SET TRANSACTION READ ONLY; ' . $track->('read_only', 6)
		. '; ROLLBACK TO a; ' . $track->('read_only', 7) . '; COMMIT');
	is(waiting('read_only'), '1,3,4,5,7', 'set in a savepoint that is rolled back: to the outbox');
	succeed('BEGIN; SAVEPOINT a; ' . $track->('read_only', 8) . '; SET TRANSACTION READ ONLY; SAVEPOINT b; '
		. $track->('read_only', 9) . '; ROLLBACK TO b; COMMIT');
	succeed('SET default_transaction_read_only = on; ' . $track->('read_only', 10));
	ok(await(sub { waiting('read_only') eq '1,3,4,5,7,8,10' }), 'in a savepoint; by default');
	$tracked{read_only} = '1,3,4,5,7,8,10';
	succeed(q{BEGIN; SELECT t('late', i, 2000) FROM generate_series(1, 3000) i; SET TRANSACTION READ ONLY; COMMIT});
	ok(await(sub { waiting('late') eq numbers(1 .. 3000) }), 'after events that spilled to a file');
	is_kept('late', numbers(1 .. 3000), 'with the rows written before');
};

subtest 'parallel plans' => sub {
	succeed(q{CREATE TABLE many AS SELECT i AS n FROM generate_series(1, 2000) i; ANALYZE many});
	my $force = $major >= 16 ? 'debug_parallel_query' : 'force_parallel_mode';
	my $parallel = "SET $force = on; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; "
		. 'SET max_parallel_workers_per_gather = 2; SET parallel_leader_participation = off; ';
	my $query = q{SELECT count(absmartly_track(jsonb_build_object('user_id', n), 'parallel', jsonb_build_object('n', n))) FROM many WHERE n % 4 = 0};

	like(succeed("$parallel EXPLAIN (COSTS OFF) $query"), qr/Gather/, 'a parallel plan');
	succeed("$parallel $query");
	succeed("$parallel BEGIN; " . ($query =~ s/n % 4 = 0/n % 4 = 1/r) . '; ROLLBACK');
	is_waiting('parallel', numbers(map { 4 * $_ } 1 .. 500), 'the leader records');
	succeed(<<'EOT');
CREATE FUNCTION wrongly_safe(n int) RETURNS int LANGUAGE plpgsql PARALLEL SAFE AS $$
BEGIN
	PERFORM absmartly_track('{"user_id": 1}', 'wrongly_safe', jsonb_build_object('n', n));
	RETURN n;
END $$;
EOT
	fails_with($node, "$parallel SELECT count(wrongly_safe(n)) FROM many", '25000', qr/cannot record events in a parallel worker/,
		'a function that is wrongly PARALLEL SAFE');
	is_waiting('wrongly_safe', '', 'records nothing');
	succeed(<<'EOT');
CREATE FUNCTION wrongly_safe_context(n int) RETURNS int LANGUAGE plpgsql PARALLEL SAFE AS $$
BEGIN
	RETURN n + absmartly_context_peek_treatment('exp');
END $$;
EOT
	fails_with($node, "$parallel SELECT absmartly_context_create('{\"user_id\": 1}'); SELECT count(wrongly_safe_context(n)) FROM many", '25000',
		qr/cannot use the session's context in a parallel worker/, 'the same with a session context');
	succeed(<<'EOT');
CREATE FUNCTION wrongly_safe_create(n int) RETURNS int LANGUAGE plpgsql PARALLEL SAFE AS $$
BEGIN
	PERFORM absmartly_context_create('{"user_id": 1}');
	RETURN n;
END $$;
EOT
	fails_with($node, "$parallel SELECT count(wrongly_safe_create(n)) FROM many", '25000',
		qr/cannot use the session's context in a parallel worker/, 'and with one that it makes');
};

subtest 'privileges and row security' => sub {
	succeed(<<'EOT');
CREATE ROLE nobody LOGIN;
CREATE ROLE owner;
CREATE TABLE accounts (n int PRIMARY KEY, holder text);
ALTER TABLE accounts OWNER TO owner;
ALTER TABLE accounts ENABLE ROW LEVEL SECURITY;
ALTER TABLE accounts FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON accounts USING (holder = current_user) WITH CHECK (n < 100);
GRANT ALL ON accounts TO nobody;
CREATE TRIGGER account AFTER INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('account', 'user_id=n', 'n');
EOT
	my $track = sub { my ($goal, $n) = @_; return qq{SELECT absmartly_track('{"user_id": 1}', '$goal', '{"n": $n}')} };

	run($track->('nobody', 1) . q{; SELECT absmartly_treatment('{"user_id": 7}', 'exp7'); BEGIN; } . $track->('nobody', 2) . '; ROLLBACK', user => 'nobody');
	succeed('SET ROLE nobody; ' . $track->('nobody', 3));
	succeed('SET SESSION AUTHORIZATION nobody; BEGIN; ' . $track->('nobody', 4) . '; PREPARE TRANSACTION \'nobody\'; COMMIT PREPARED \'nobody\'');
	is_waiting('nobody', '1,3,4', 'a role without privileges');
	is_exposed('exp7', '7', 'also for exposures');
	for my $relation (qw(absmartly_outbox_a absmartly_outbox_b absmartly_outbox_bulk_a absmartly_outbox_bulk_b absmartly_outbox_parked absmartly_outbox absmartly_pending_events))
	{
		like((run("SELECT * FROM $relation", user => 'nobody'))[1], qr/permission denied/, "which may not read $relation");
		like((run("DELETE FROM $relation", user => 'nobody'))[1], qr/permission denied|cannot delete from view/, 'nor write it');
	}

	succeed(q{SET ROLE owner; INSERT INTO accounts VALUES (1, 'owner')});
	succeed(q{INSERT INTO accounts VALUES (2, 'somebody')}, user => 'nobody');
	succeed(q{SET row_security = off; INSERT INTO accounts VALUES (3, 'somebody')});
	like((run(q{INSERT INTO accounts VALUES (200, 'nobody')}, user => 'nobody'))[1], qr/row-level security/, 'a row that a policy refuses');
	is_waiting('account', '1,2,3', 'a table with row security');
};

my $hostile = 'SET search_path = hostile, pg_catalog, public; ';
subtest 'a hostile search path' => sub {
	succeed(<<'EOT');
CREATE SCHEMA hostile;
GRANT ALL ON SCHEMA hostile TO PUBLIC;
CREATE FUNCTION hostile.trap() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE TABLE hostile.absmartly_outbox_a (LIKE public.absmartly_outbox_a);
CREATE TABLE hostile.absmartly_outbox_b (LIKE public.absmartly_outbox_b);
CREATE TABLE hostile.absmartly_outbox_bulk_a (LIKE public.absmartly_outbox_bulk_a);
CREATE TABLE hostile.absmartly_outbox_bulk_b (LIKE public.absmartly_outbox_bulk_b);
CREATE TABLE hostile.absmartly_outbox_parked (LIKE public.absmartly_outbox_parked);
CREATE TABLE hostile.pg_extension (oid oid, extname name);
CREATE TABLE hostile.pg_class (oid oid, relname name);
CREATE DOMAIN hostile.int4 AS text;
CREATE FUNCTION hostile.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT hostile.trap()::timestamptz';
CREATE FUNCTION hostile.count(anyelement) RETURNS text LANGUAGE sql AS 'SELECT hostile.trap()';
CREATE FUNCTION hostile.convert_from(bytea, text) RETURNS text LANGUAGE sql AS 'SELECT hostile.trap()';
CREATE FUNCTION hostile.octet_length(bytea) RETURNS int LANGUAGE sql AS 'SELECT hostile.trap()::pg_catalog.int4';
CREATE FUNCTION hostile.jsonb_out(jsonb) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'jsonb_out';
CREATE FUNCTION hostile.equal(pg_catalog.int4, pg_catalog.int4) RETURNS boolean LANGUAGE sql AS 'SELECT hostile.trap()::boolean';
CREATE OPERATOR hostile.= (LEFTARG = pg_catalog.int4, RIGHTARG = pg_catalog.int4, FUNCTION = hostile.equal);
CREATE FUNCTION hostile.oid_equal(oid, oid) RETURNS boolean LANGUAGE sql AS 'SELECT hostile.trap()::boolean';
CREATE OPERATOR hostile.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = hostile.oid_equal);
CREATE FUNCTION hostile.absmartly_track(jsonb, text, jsonb) RETURNS void LANGUAGE sql AS 'SELECT hostile.trap()';
CREATE FUNCTION hostile.absmartly_outbox_records(text) RETURNS void LANGUAGE sql AS 'SELECT hostile.trap()';
CREATE FUNCTION hostile.absmartly_decode_events(bytea, timestamptz) RETURNS void LANGUAGE sql AS 'SELECT hostile.trap()';
CREATE TABLE shopping (n pg_catalog.int4, customer text);
GRANT ALL ON shopping TO PUBLIC;
CREATE TRIGGER shopping AFTER INSERT ON shopping FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('hostile', 'user_id=customer', 'n');
EOT
	succeed("$hostile SELECT public.absmartly_track('{\"user_id\": 1}', 'hostile', '{\"n\": 1}')", user => 'nobody');
	succeed("$hostile INSERT INTO shopping VALUES (2, 'two')", user => 'nobody');
	succeed("$hostile SELECT public.absmartly_treatment('{\"user_id\": 8}', 'exp8')", user => 'nobody');
	succeed("SET search_path = ''; SELECT public.absmartly_track('{\"user_id\": 1}', 'hostile', '{\"n\": 3}')", user => 'nobody');
	is_waiting('hostile', '1,2,3', 'events');
	is_exposed('exp8', '8', 'exposures');
	succeed("$hostile SELECT goal FROM public.absmartly_pending_events; SELECT record FROM public.absmartly_outbox; TABLE public.absmartly_dead_letters; "
		. 'TABLE public.absmartly_stat; TABLE public.absmartly_experiments;');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM (SELECT 1 FROM hostile.absmartly_outbox_a UNION ALL SELECT 1 FROM hostile.absmartly_outbox_b) AS row'),
		'0', 'tables of our names remain empty');
	# the worker is to deliver all this under it, too
	succeed('ALTER DATABASE postgres SET search_path = hostile, pg_catalog, public');
	ok(await_sql($node, 'SELECT worker_pid IS NOT NULL AND ready FROM public.absmartly_stat'), 'the worker is back');
	succeed('ALTER ROLE CURRENT_USER SET search_path = public');
};

subtest 'session_replication_role = replica' => sub {
	succeed(<<'EOT');
SET session_replication_role = replica;
SELECT absmartly_track('{"user_id": 1}', 'replica', '{"n": 1}');
INSERT INTO shopping VALUES (100, 'not fired');
BEGIN; SELECT absmartly_track('{"user_id": 1}', 'replica', '{"n": 2}'); ROLLBACK;
CREATE TABLE always (n int);
CREATE TRIGGER always AFTER INSERT ON always FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('replica', 'user_id=n', 'n');
ALTER TABLE always ENABLE ALWAYS TRIGGER always;
INSERT INTO always VALUES (3);
EOT
	is_waiting('replica', '1,3', 'what is called or fires');
	is(waiting('hostile'), '1,2,3', 'and not what does not');
};

subtest 'other databases and schemas; DROP EXTENSION' => sub {
	my $track = sub { my ($n, $goal) = @_; $goal //= 'ddl'; return qq{SELECT absmartly_track('{"user_id": 1}', '$goal', '{"n": $n}')} };

	succeed(q{CREATE DATABASE ddl}, database => 'postgres');
	succeed('CREATE EXTENSION absmartly', database => 'ddl');
	succeed('BEGIN; ' . $track->(1) . '; DROP EXTENSION absmartly; COMMIT', database => 'ddl');
	is($node->safe_psql('ddl', q{SELECT count(*) FROM pg_extension WHERE extname = 'absmartly'}), '0', 'DROP EXTENSION after an event commits');
	succeed('BEGIN; CREATE EXTENSION absmartly; ' . $track->(2) . '; COMMIT', database => 'ddl');
	is(waiting('ddl', 'ddl'), '2', 'CREATE EXTENSION before an event');
	succeed('BEGIN; ' . $track->(3) . '; SAVEPOINT a; DROP EXTENSION absmartly; ROLLBACK TO a; ' . $track->(4) . '; COMMIT', database => 'ddl');
	is(waiting('ddl', 'ddl'), '2,3,4', 'DROP EXTENSION that is rolled back');
	succeed('BEGIN; ' . $track->(5) . '; DROP EXTENSION absmartly; CREATE EXTENSION absmartly; ' . $track->(6) . '; COMMIT', database => 'ddl');
	is(waiting('ddl', 'ddl'), '5,6', 'DROP and CREATE EXTENSION in one transaction');
	succeed('BEGIN; ' . $track->(7) . '; DROP EXTENSION absmartly; ROLLBACK', database => 'ddl');
	succeed($track->(8), database => 'ddl');
	is(waiting('ddl', 'ddl'), '5,6,8', 'a transaction that is rolled back');
	my $session = $node->background_psql('ddl', on_error_stop => 0);
	$session->query_safe($track->(9));
	succeed('DROP EXTENSION absmartly; CREATE SCHEMA elsewhere; CREATE EXTENSION absmartly SCHEMA elsewhere;'
		. 'CREATE TABLE public.absmartly_outbox_a (LIKE elsewhere.absmartly_outbox_a)', database => 'ddl');
	$session->query_safe($track->(10) =~ s/absmartly_track/elsewhere.absmartly_track/r);
	$session->quit;
	is(waiting('ddl', 'ddl', 'elsewhere'), '10', 'another schema, in a session that knew the former');
	is($node->safe_psql('ddl', 'SELECT count(*) FROM public.absmartly_outbox_a'), '0', 'not into a table of the same name');
	run('DROP EXTENSION absmartly; ' . ($track->(11) =~ s/absmartly_track/elsewhere.absmartly_track/r), database => 'ddl');
	succeed('DROP DATABASE ddl');
};

subtest 'locks and time-outs' => sub {
	# LOCK is not for materialized views; this takes the strongest lock, too
	my ($lock_a, $lock_b) = map { "ALTER MATERIALIZED VIEW absmartly_outbox_$_ OWNER TO CURRENT_USER" } qw(a b);
	my $track = sub { my ($n, $goal) = @_; return "SELECT t('$goal', $n)" };
	my ($a, $b) = map { $node->background_psql('postgres', on_error_stop => 0) } 1 .. 2;

	succeed("SET lock_timeout = '1ms'; SET statement_timeout = '$PATIENCE s'; SET idle_in_transaction_session_timeout = '$PATIENCE s'; BEGIN; " . $track->(1, 'locked') . '; COMMIT');
	is_kept('locked', '1', 'time-outs');
	$a->query_safe("BEGIN; $lock_a");
	succeed("SET lock_timeout = '$PATIENCE s'; " . $track->(2, 'locked'));
	$b->query_safe("BEGIN; $lock_b");
	$a->query_safe('ROLLBACK');
	succeed("SET lock_timeout = '$PATIENCE s'; " . $track->(3, 'locked'));
	$b->query_safe('ROLLBACK');
	is_kept('locked', '1,2,3', 'while one of the heaps is locked the other one is written');

	$a->query_safe("BEGIN; $lock_a; $lock_b");
	my ($output, $error) = run("SET lock_timeout = '50ms'; " . $track->(4, 'locked'));
	like($error, qr/canceling statement due to lock timeout/, 'while both are locked a lock_timeout is heeded');
	$b->query_until(qr/sent/, "\\echo sent\n" . $track->(6, 'locked') . ";\n");
	ok(await_sql($node, q{SELECT count(*) FROM pg_locks WHERE relation IN ('absmartly_outbox_a'::regclass, 'absmartly_outbox_b'::regclass) AND NOT granted}, '1'),
		'without one the writer waits');
	my $canceled = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $canceled->query_safe('SELECT pg_backend_pid()');
	$canceled->query_until(qr/sent/, "\\echo sent\n" . $track->(5, 'locked') . ";\n");
	ok(await_sql($node, "SELECT count(*) FROM pg_locks WHERE pid = $pid AND NOT granted", '1'), 'another one, too');
	succeed("SELECT pg_cancel_backend($pid)");
	$canceled->query('SELECT 1');
	like($canceled->{stderr}, qr/canceling statement due to user request/, 'and can be canceled');
	$canceled->quit;
	$a->query_safe('ROLLBACK');
	$b->query_safe('SELECT 1');
	$_->quit for $a, $b;
	is_kept('locked', '1,2,3,6', 'rows and events agree');

	my $reader = $node->background_psql('postgres', on_error_stop => 0);
	$reader->query_safe(join ' ', 'BEGIN;', map { "ALTER MATERIALIZED VIEW absmartly_outbox_$_ SET (fillfactor = 100);" } qw(a b));
	succeed("SET lock_timeout = '$PATIENCE s'; " . $track->(7, 'locked'));
	$reader->quit;
	is_kept('locked', '1,2,3,6,7', 'locks that readers and vacuum take disturb nobody');
};

subtest 'pg_terminate_backend' => sub {
	my @sessions = map { $node->background_psql('postgres', on_error_stop => 0) } 1 .. 3;
	my @pids = map { $_->query_safe('SELECT pg_backend_pid()') } @sessions;

	$sessions[$_]->query_safe("BEGIN; SELECT t('killed', $_); SAVEPOINT a; SELECT t('killed', " . ($_ + 10) . ')') for 0 .. 2;
	succeed("SELECT pg_terminate_backend($pids[0], 10000), pg_cancel_backend($pids[1])");
	$sessions[$_]->query_safe('COMMIT') for 1, 2;
	my ($output, $error) = run(q{BEGIN; SELECT t('killed', 20); SELECT pg_terminate_backend(pg_backend_pid()); COMMIT});
	like($error, qr/terminating connection/, 'also by itself');
	eval { $sessions[0]->quit };
	$_->quit for @sessions[ 1, 2 ];
	is_kept('killed', '1,2,11,12', 'the events of the session that was ended, and only those, are gone');
};

subtest 'durability' => sub {
	my $grows = sub {
		my ($commands, $expected, $name) = @_;
		my $query = 'SELECT exposures_queued, goals_queued FROM absmartly_stat';
		my @before = split /\|/, $node->safe_psql('postgres', $query);
		run($commands);
		my @after = split /\|/, $node->safe_psql('postgres', $query);
		is(join(',', map { $after[$_] - $before[$_] } 0, 1), $expected, "$name (counted)");
	};
	my $both = q{SELECT absmartly_treatment('{"user_id": %d}', 'exp9'); SELECT absmartly_track('{"user_id": 1}', 'durability', '{"n": %d}')};

	$grows->('BEGIN; ' . sprintf($both, 1, 1) . '; COMMIT', '1,1', 'transaction');
	$grows->("SET absmartly.durability = goals; BEGIN; " . sprintf($both, 2, 2) . '; COMMIT', '1,1', 'goals');
	is(waiting('durability'), '1,2', 'goals are in the outbox at once');
	$grows->("SET absmartly.durability = memory; BEGIN; " . sprintf($both, 3, 3) . '; COMMIT', '1,1', 'memory');
	$grows->("SET absmartly.durability = memory; BEGIN; " . sprintf($both, 4, 4) . '; ROLLBACK', '0,0', 'memory, rolled back');
	$grows->("SET absmartly.durability = memory; BEGIN; SAVEPOINT a; " . sprintf($both, 5, 5) . '; ROLLBACK TO a; ' . sprintf($both, 6, 6) . '; COMMIT',
		'1,1', 'memory, a part of it rolled back');
	ok(await_sql($node, 'SELECT memory_queue_entries FROM absmartly_stat', '0'), 'those of memory come there');
	is_waiting('durability', '1,2,3,6', 'and no others');
	is_exposed('exp9', '1,2,3,6', 'exposures likewise');
};

subtest 'asynchronous commit' => sub {
	my $expose = sub { return qq{SELECT absmartly_treatment('{"user_id": $_[0]}', 'exp10')} };
	my $expose_many = q{SELECT count(absmartly_treatment(jsonb_build_object('user_id', i), 'exp10')) FROM generate_series(1, 1000) i};
	my $shown = q{SELECT setting, source FROM pg_settings WHERE name = 'synchronous_commit'};

	for my $before ('', 'SET synchronous_commit = local;', 'SET synchronous_commit = on;')
	{
		my @shown = split /\n/, $node->safe_psql('postgres', "$before $shown; " . $expose->(1) . "; $shown; BEGIN; " . $expose->(2)
				. '; SET LOCAL synchronous_commit = remote_write; ' . $expose->(3) . "; COMMIT; $expose_many; $shown");
		@shown = grep { /\|/ } @shown;
		is(scalar(@shown), 3, 'shown three times');
		ok($shown[0] eq $shown[1] && $shown[1] eq $shown[2], 'the setting is back after the commit' . ($before && " ($before)")) || diag("@shown");
	}

	my $synced = $major >= 18 ? q{SELECT sum(fsyncs) FROM pg_stat_io WHERE object = 'wal'} : 'SELECT wal_sync FROM pg_stat_wal';
	my $others = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()};
	my $syncs_of = sub {
		my ($statement, $times) = @_;
		await_sql($node, $others, '0');
		$node->safe_psql('postgres', 'CHECKPOINT');
		await_sql($node, $others, '0');
		my $before = $node->safe_psql('postgres', $synced);
		$node->safe_psql('postgres', join '', map { sprintf("$statement;\n", $_) } 1 .. $times);
		# what a session has done is counted when it is gone
		await_sql($node, $others, '0');
		return $node->safe_psql('postgres', $synced) - $before;
	};
	my $times = 200;
	cmp_ok($syncs_of->("$expose_many WHERE i <> %d", 20), '<', 10, 'many exposures do not wait for the disk');
	cmp_ok($syncs_of->($expose->('%d'), $times), '<', $times / 2, 'exposures alone do not wait for the disk');
	cmp_ok($syncs_of->(q{SELECT absmartly_track('{"user_id": 1}', 'synced', '{"n": %d}')}, $times), '>=', $times, 'goals do');
	cmp_ok($syncs_of->('BEGIN; INSERT INTO many VALUES (0); ' . $expose->('%d') . '; COMMIT', $times), '>=', $times, 'so do exposures beside a row');
	cmp_ok($syncs_of->('SET absmartly.async_commit = off; ' . $expose->('%d'), $times), '>=', $times, 'and all if absmartly.async_commit is off');
	$tracked{synced} = numbers(1 .. $times);
};

subtest 'the collector receives the same' => sub {
	# what the crash took with it from memory has not been tracked since
	configure($node, 'absmartly.publishing = on');
	ok(await(sub { my ($status) = $node->psql('postgres', "SELECT public.absmartly_publish('$PATIENCE s')"); $status == 0 }), 'all is delivered');
	my (%received, $strange);
	for my $goal ($collector->goals(space => '/v1'))
	{
		push @{ $received{ $goal->{name} } }, $goal->{properties}{n};
		$strange++ if !exists $tracked{ $goal->{name} };
	}
	is($strange, undef, 'no goal that there must not be');
	for my $goal (sort keys %tracked)
	{
		ok(numbers(sort { $a <=> $b } @{ $received{$goal} // [] }) eq $tracked{$goal}, "goal $goal")
			|| diag('received: ' . substr(numbers(sort { $a <=> $b } @{ $received{$goal} // [] }), 0, 300) . "\nexpected: " . substr($tracked{$goal}, 0, 300));
	}
	my $stats = $collector->stats('/v1');
	my %exposures;
	$exposures{ $_->{name} }++ for $collector->exposures(space => '/v1');
	for my $experiment (grep { defined $exposed{$_} } sort keys %exposed)
	{
		is($exposures{$experiment} // 0, scalar(my @units = split /,/, $exposed{$experiment}), "exposures of $experiment");
	}
	is(stat_of($node, 'outbox_records'), '0', 'nothing is left');
	note sum0(map { scalar @$_ } values %received), ' goals, ', sum0(values %exposures), ' exposures';
};

$node->stop;
done_testing();
