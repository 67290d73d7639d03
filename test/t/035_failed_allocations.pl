
# Memory that is not to be had: an error at most, nothing lost, and no process dies.
#
# The module of test/faults makes allocations fail that have the extension among their callers: one after another in the
# places where worker and launcher ask for memory while they work, and the nth one of statements in sessions, for n = 1,
# 2, ... In the end all that was committed has arrived, and nothing that was not.
#
# ABSMARTLY_FAULTS=all fails each place and each n, which takes an hour and more; else a part of them is, chosen by
# ABSMARTLY_SEED. ABSMARTLY_FAULTS_ONLY names the parts (worker, start, launcher, sessions) and scenarios to run, separated
# by commas; with ABSMARTLY_FAULTS_TRACE=1 the places are shown.

use strict;
use warnings;

use AbsmartlyTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use constant {
	WORKER => 'absmartly worker',
	LAUNCHER => 'absmartly launcher',
	# of a part's scenarios, when not all is wanted
	ROUNDS => 8,
};

my $libdir = qx($ENV{PG_CONFIG} --pkglibdir);
chomp $libdir;
plan skip_all => 'the module absmartly_faults is not installed' if !-e "$libdir/absmartly_faults.so";

my $all = ($ENV{ABSMARTLY_FAULTS} // '') eq 'all';
my $seed = $ENV{ABSMARTLY_SEED} // int(time) % 1_000_000;
my %only = map { $_ => 1 } split /,/, $ENV{ABSMARTLY_FAULTS_ONLY} // '';

srand $seed;
note "ABSMARTLY_SEED=$seed";

my $data = experiments(experiment('exp'), experiment('second', id => 2, audience => '{"filter":[{"gte":[{"var":"age"},{"value":20}]}]}'),
	experiment('third', id => 3, customFieldValues => [ { name => 'owner', type => 'string', value => 'me' } ]));
my $collector = start_collector(data => $data);
my $node = start_node('main', collector => $collector, start => 0, settings => <<'EOT');
absmartly.publish_delay = 20ms
absmartly.max_retries = 1
absmartly.batch_size = 20
absmartly.max_connections = 2
max_prepared_transactions = 10
restart_after_crash = on
log_statement = none
EOT
$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "'absmartly, absmartly_faults'");
$node->start;
create_extension($node);
ok(wait_ready($node), 'ready');

my $functions = <<'EOT';
CREATE SCHEMA faults;
CREATE FUNCTION faults.begin(process text, before bigint, fail bigint, gap bigint, distinct_stacks boolean, sweep boolean) RETURNS void
AS 'absmartly_faults', 'absmartly_faults_begin' LANGUAGE c STRICT;
CREATE FUNCTION faults."end"() RETURNS void AS 'absmartly_faults', 'absmartly_faults_end' LANGUAGE c;
CREATE FUNCTION faults.status(OUT seen bigint, OUT failed bigint, OUT critical bigint, OUT place text)
AS 'absmartly_faults', 'absmartly_faults_status' LANGUAGE c;
EOT

# one that nobody fetches experiments for
$node->safe_psql('postgres', 'CREATE DATABASE offline');
$node->safe_psql('postgres', q{ALTER DATABASE offline SET absmartly.endpoint = ''});
create_extension($node, 'offline');
$node->safe_psql($_, $functions) for 'postgres', 'offline';
$node->safe_psql('offline', 'CREATE TABLE committed (n int)');

$node->safe_psql('postgres', <<'EOT');
CREATE TABLE truth (id bigint PRIMARY KEY);
CREATE TABLE orders (id bigint PRIMARY KEY);
CREATE TRIGGER track AFTER INSERT ON orders
	FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('truth', 'user_id=id', 'id');
CREATE TABLE visits (id bigint PRIMARY KEY);
CREATE TRIGGER track AFTER INSERT ON visits
	FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('visit', 'user_id=id', 'id');
CREATE TABLE old_orders (id bigint PRIMARY KEY);
CREATE FUNCTION put(id bigint, filler int DEFAULT 0) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO truth VALUES (id);
	PERFORM absmartly_track(jsonb_build_object('user_id', id), 'truth',
		jsonb_build_object('id', id, 'filler', repeat('x', filler)));
END $$;
CREATE FUNCTION put_in_context(id bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO truth VALUES (id);
	PERFORM absmartly_context_track('truth', jsonb_build_object('id', id));
END $$;
CREATE FUNCTION try(first bigint, many int, filler int DEFAULT 0) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 0 .. many - 1 LOOP
		BEGIN
			PERFORM put(first + i, filler);
			IF i % 4 = 3 THEN
				RAISE division_by_zero;
			END IF;
		EXCEPTION WHEN division_by_zero OR out_of_memory THEN
			NULL;
		END;
	END LOOP;
END $$;
CREATE TABLE logged (event text);
CREATE FUNCTION public.log_event(context jsonb, event text, data jsonb) RETURNS void LANGUAGE sql
AS 'INSERT INTO public.logged VALUES (event)';
EOT

# ---------------------------------------------------------------------------
# What is to be seen at the end
# ---------------------------------------------------------------------------

my $next_id = 1;

sub take
{
	my ($many) = @_;
	my $id = $next_id;

	$next_id += $many // 1;
	return $id;
}

my $log_offset = 0;

# Processes that have died, in the log since it was looked at last.
sub deaths
{
	my $log = slurp_file($node->logfile, $log_offset);

	$log_offset = -s $node->logfile;
	return join "\n", grep { /terminated by signal|TRAP:|PANIC|exited with exit code [^0]|cannot abort transaction/ } split /\n/, $log;
}

# What has become of what was committed.
sub check
{
	my ($name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->safe_psql('postgres', 'SELECT faults."end"()');
	my $missing;
	my $arrived = await(sub {
		$node->psql('postgres', q{SELECT absmartly_publish('5 s')});
		my %received = map { $_->{properties}{id} => 1 } $collector->goals(space => '/v1', name => 'truth');
		my @true = split /\n/, $node->safe_psql('postgres', 'SELECT id FROM truth UNION ALL SELECT id FROM orders ORDER BY 1');
		my @missing = grep { !delete $received{$_} } @true;
		$missing = @missing . " missing: @missing[0 .. ($#missing < 20 ? $#missing : 20)]";
		is(join(' ', sort keys %received), '', "$name: nothing arrives that was not committed") if !@missing;
		return !@missing;
	});
	ok($arrived, "$name: all that was committed arrives") || diag($missing, "\n", $node->safe_psql('postgres', 'SELECT * FROM absmartly_stat', extra_params => ['-x']));
	is(deaths(), '', "$name: nobody has died");
	is($node->safe_psql('postgres', 'SELECT critical FROM faults.status()'), '0', "$name: nothing is allocated in critical sections")
		|| diag($node->safe_psql('postgres', 'SELECT place FROM faults.status()'));
	return;
}

sub wanted
{
	my ($name) = @_;

	return !%only || $only{$name};
}

# ---------------------------------------------------------------------------
# Worker and launcher, while they work
# ---------------------------------------------------------------------------

# A bit of everything that a worker has to do.
my @work = (
	sub { sprintf 'SELECT put(%d); SELECT put(%d);', take(), take() },
	sub { sprintf 'SELECT put(%d, 40000);', take() },
	sub { sprintf 'SELECT put(g) FROM generate_series(%d, %d) AS g;', map { $_, $_ + 99 } take(100) },
	sub { sprintf 'INSERT INTO orders VALUES (%d);', take() },
	sub { sprintf 'SELECT try(%d, 8);', take(8) },
	sub { sprintf q{SELECT absmartly_treatment('{"user_id": %d}', 'exp'); SELECT absmartly_treatment('{"user_id": %d}', 'third');}, take(), take() },
	sub {
		my $id = take();
		sprintf q{BEGIN; SELECT put(%d); PREPARE TRANSACTION 'p%d'; COMMIT PREPARED 'p%d';}, $id, $id, $id;
	},
	sub {
		my $id = take(4);
		join ' ', sprintf(q{SELECT absmartly_context_create('{"user_id": %d}', options => '{"publish_delay": %d}');}, $id, rand() < 0.7 ? -1 : 50),
			q{SELECT absmartly_context_treatment('exp');}, (map { "SELECT put_in_context($_);" } $id, $id + 1),
			q{SELECT absmartly_context_set_attribute('age', 30);}, sprintf('SELECT put_in_context(%d);', $id + 2),
			q{SELECT absmartly_context_publish('2 s');}, sprintf('SELECT put_in_context(%d);', $id + 3),
			rand() < 0.5 ? q{SELECT absmartly_context_finalize('2 s');} : '';
	},
	sub {
		# what stays long enough to be parked
		my $id = take(3);
		join ' ', sprintf(q{SELECT absmartly_context_create('{"user_id": %d}', options => '{"publish_delay": -1}');}, $id),
			(map { "SELECT put_in_context($_);" } $id, $id + 1), q{SELECT pg_sleep(0.1);}, q{SELECT absmartly_publish('1 s');},
			sprintf('SELECT put_in_context(%d);', $id + 2), q{SELECT absmartly_publish('1 s');};
	},
	sub { sprintf q{SELECT absmartly_track('{"user_id": %d}', 'refused'); SELECT put(%d); SELECT absmartly_publish('1 s');}, take(), take() },
	sub { q{SELECT absmartly_requeue(); SELECT absmartly_publish('1 s'); SELECT absmartly_discard();} },
	sub {
		$collector->set_data('/v1', experiments(experiment('exp'), experiment('second', id => 2), experiment('x' . take(), id => 4)));
		q{SELECT absmartly_refresh('2 s');};
	},
	sub { q{ALTER SYSTEM SET absmartly.batch_size = } . (5 + int rand 40) . q{; SELECT pg_reload_conf();} },
	sub { q{ALTER SYSTEM SET absmartly.event_logger = 'public.log_event'; SELECT pg_reload_conf(); SELECT pg_sleep(0.1);} },
	sub { q{ALTER SYSTEM RESET absmartly.event_logger; SELECT pg_reload_conf();} },
	sub { q{VACUUM absmartly_outbox_a; SELECT count(*) FROM absmartly_outbox; SELECT * FROM absmartly_stat;} },
);

$collector->fault('/v1', { reject_goal => 'refused', times => -1 });

# Gives work until so many allocations have failed, or, if all are wanted, until there are no more to fail. The process is
# a type of background workers, or a function that gives an id.
sub sweep
{
	my ($name, $process, $gap, $failures, $work) = @_;
	my $failed = 0;
	my $idle = 0;
	my $turn = int rand @$work;
	my $end = time + ($all ? 3600 : 30);

	while ($failed < $failures && $idle < 3 * @$work && time < $end)
	{
		$node->safe_psql('postgres', sprintf q{SELECT faults.begin('%s', %d, %d, %d, true, true)},
			ref $process ? $process->() : $process, rand $gap, $failures - $failed, $gap);
		my $script = $work->[ $turn++ % @$work ]->();
		$node->psql('postgres', $script, on_error_stop => 0, timeout => 60, timed_out => \my $timed_out);
		$node->psql('postgres', q{SELECT absmartly_publish('300 ms')});
		my ($now, $place) = split /\|/, $node->safe_psql('postgres', 'SELECT failed, place FROM faults.status()'), 2;
		note "failed: $place" if $now > 0 && $ENV{ABSMARTLY_FAULTS_TRACE};
		$failed += $now;
		$idle = $now > 0 ? 0 : $idle + 1;
		last if $timed_out;
	}
	cmp_ok($failed, '>', 0, "$name: allocations failed");
	note "$name: $failed allocations failed";
	return;
}

if (wanted('worker'))
{
	my $pid = worker_pid($node);

	deaths();
	sweep('worker', sub { worker_pid($node) }, $_, $all ? 1_000_000 : 20, \@work) for $all ? (3) : (40, 400);
	check('worker');
	is(worker_pid($node), $pid, 'it is the same worker');
}

if (wanted('start'))
{
	# a new worker each time
	deaths();
	sweep('start', WORKER, 20, $all ? 1_000_000 : 5, [
		sub { sprintf q{SELECT pg_terminate_backend(worker_pid, 5000) FROM absmartly_stat; SELECT put(%d);}, take() },
	]);
	$node->safe_psql('postgres', 'SELECT faults."end"()');
	# where it is not yet a worker, an error ends a process
	slurp_file($node->logfile, $log_offset) =~ /terminated by signal|TRAP:|PANIC/ ? fail('start: no crash') : pass('start: no crash');
	$log_offset = -s $node->logfile;
	check('start');
}

if (wanted('launcher'))
{
	my $start = 'SELECT pid FROM pg_stat_activity WHERE backend_type = \'absmartly launcher\'';
	my $pid = $node->safe_psql('postgres', $start);

	deaths();
	sweep('launcher', LAUNCHER, 5, $all ? 1_000_000 : 8, [
		sub { q{CREATE DATABASE other; } . q{\c other} . "\n" . q{CREATE EXTENSION absmartly; SELECT absmartly_wait_until_ready('2 s');} },
		sub { q{DROP DATABASE IF EXISTS other;} },
		sub { q{SELECT pg_terminate_backend(worker_pid) FROM absmartly_stat; SELECT absmartly_wait_until_ready('3 s');} },
	]);
	$node->safe_psql('postgres', 'SELECT faults."end"()');
	is($node->safe_psql('postgres', $start), $pid, 'it is the same launcher');
	ok($node->poll_query_until('postgres', 'SELECT worker_pid IS NOT NULL FROM absmartly_stat'), 'there is a worker');
	check('launcher');
}

# ---------------------------------------------------------------------------
# Sessions
# ---------------------------------------------------------------------------

# Statements of a session; %d is an id of its own. What is put there is true if it commits.
my %scenario = (
	track      => 'SELECT put(%1$d);',
	trigger    => 'INSERT INTO orders VALUES (%1$d);',
	warn       => 'SET absmartly.trigger_errors = warning; INSERT INTO visits VALUES (%1$d); RESET absmartly.trigger_errors;',
	savepoints => 'SELECT try(%1$d, 6); BEGIN; SELECT put(%1$d + 6); SAVEPOINT a; SELECT put(%1$d + 7); ROLLBACK TO a; SELECT put(%1$d + 8); COMMIT;',
	prepared   => q{BEGIN; SELECT put(%1$d); PREPARE TRANSACTION 'p%1$d'; COMMIT PREPARED 'p%1$d';},
	# past what is kept in memory
	spill      => 'BEGIN; SELECT put(g, 60000) FROM generate_series(%1$d, %1$d + 79) AS g; SAVEPOINT a; SELECT try(%1$d + 80, 4, 60000); ROLLBACK TO a; ROLLBACK;',
	exposures  => q{SELECT absmartly_treatment(jsonb_build_object('user_id', %1$d), e) FROM unnest('{exp,second,third}'::text[]) AS e;
		SELECT absmartly_treatment('{"user_id": %1$d}', 'second', '{"age": 30}'); SELECT absmartly_unit_treatment('u%1$d', 'exp');
		SELECT absmartly_variable_value('{"user_id": %1$d}', 'colour', 'none'::text);},
	readonly   => q{BEGIN READ ONLY; SELECT absmartly_treatment('{"user_id": %1$d}', 'exp'); COMMIT;},
	peeks      => q{SELECT absmartly_peek_treatment('{"user_id": %1$d}', 'second', '{"age": 30}'); SELECT * FROM absmartly_assignments('{"user_id": %1$d}');
		SELECT absmartly_explain('{"user_id": %1$d}', 'second', '{"age": 3}'); SELECT absmartly_variable_keys(); SELECT absmartly_custom_field_keys();
		SELECT absmartly_custom_field_value('third', 'owner'); SELECT * FROM absmartly_experiments; SELECT absmartly_peek_variable_value('{"user_id": %1$d}', 'colour', '"x"'::jsonb);
		SELECT absmartly_evaluate('{"match":[{"var":"a"},{"value":"^a+b"}]}', '{"a": "aab"}'); SELECT absmartly_hash_unit('x');
		SET absmartly.overrides = '{"exp": 1}'; RESET absmartly.overrides;},
	views      => q{SELECT put(%1$d); SELECT * FROM absmartly_stat; SELECT count(*) FROM absmartly_outbox; SELECT count(*) FROM absmartly_pending_events;
		SELECT count(*) FROM absmartly_dead_letters;},
	parked     => q{SELECT absmartly_requeue(1); SELECT absmartly_discard(1);},
	context    => q{SELECT absmartly_context_create('{"user_id": %1$d}', '{"age": 3}', options => '{"publish_delay": -1}');
		SELECT absmartly_context_set_unit('session_id', 's%1$d'); SELECT absmartly_context_set_attribute('age', 31);
		SELECT absmartly_context_set_override('third', 1); SELECT absmartly_context_set_custom_assignment('exp', 1);
		SELECT absmartly_context_treatment('exp'); SELECT absmartly_context_treatment('second'); SELECT absmartly_context_treatment('third');
		SELECT absmartly_context_variable_value('colour', 'none'::text); SELECT put_in_context(%1$d);
		BEGIN; SELECT put_in_context(%1$d + 1); SAVEPOINT a; SELECT put_in_context(%1$d + 2); SELECT absmartly_context_treatment('second'); ROLLBACK TO a;
		SELECT put_in_context(%1$d + 3); COMMIT;
		SELECT absmartly_context_set_attribute('age', 32); SELECT absmartly_context_units(); SELECT absmartly_context_attributes(); SELECT absmartly_context_pending();
		SELECT absmartly_context_data() IS NULL; SELECT absmartly_context_experiments(); SELECT absmartly_context_publish('5 s'); SELECT put_in_context(%1$d + 4);
		SELECT absmartly_context_finalize('5 s'); SELECT absmartly_context_is_finalized();},
	owndata    => q{SELECT absmartly_context_create('{"user_id": %1$d}', data => '} . $data . q{'); SELECT absmartly_context_treatment('exp'); SELECT put_in_context(%1$d);
		SELECT absmartly_context_refresh('5 s'); SELECT absmartly_context_treatment('second'); SELECT absmartly_context_close('5 s');},
	logger     => q{SET absmartly.event_logger = 'public.log_event'; SELECT absmartly_context_create('{"user_id": %1$d}'); SELECT absmartly_context_treatment('exp');
		SELECT put_in_context(%1$d); BEGIN; SAVEPOINT a; SELECT put_in_context(%1$d + 1); ROLLBACK TO a; COMMIT; SELECT absmartly_context_close('5 s'); RESET absmartly.event_logger;},
	backfill   => q{TRUNCATE old_orders; INSERT INTO old_orders SELECT g FROM generate_series(%1$d, %1$d + 2) AS g;
		CALL absmartly_backfill_goals('old_orders', 'id', 'backfilled', 'user_id=id', 'id', chunk => 2, name => 'b%1$d');
		CALL absmartly_backfill_exposures('old_orders', 'id', 'exp', 'user_id=id', chunk => 2, name => 'e%1$d');},
	offline    => q{SELECT absmartly_set_context_data('} . $data . q{'); SELECT absmartly_is_ready(); SELECT absmartly_peek_treatment('{"user_id": %1$d}', 'exp');},
);

# Runs a scenario with the nth allocation failing, for each of these n; gives the last one's count of allocations.
sub fail_nth
{
	my ($name, $distinct, @ns) = @_;
	my $database = $name eq 'offline' ? 'offline' : 'postgres';
	my @outputs;

	while (my @some = splice @ns, 0, 40)
	{
		my $script = join '', map {
			sprintf(q{SELECT faults.begin(pg_backend_pid()::text, %d, 1, 0, %s, false);} . "\n", $_ - 1, $distinct)
			. sprintf($scenario{$name}, take(100))
			. qq{\nROLLBACK;\nSELECT faults."end"();\nSELECT 'status', $_, seen, failed, critical, place FROM faults.status();\n}
		} @some;
		my ($status, $output, $error) = $node->psql($database, "SET client_min_messages = error;\n$script", on_error_stop => 0, timeout => 5 * $PATIENCE);

		push @outputs, map { [ split /\|/ ] } grep { /^status\|/ } split /\n/, $output;
		if ($status != 0)
		{
			fail("$name: the session has lived") || diag($status, substr $error, -2000);
			last;
		}
	}
	if ($ENV{ABSMARTLY_FAULTS_TRACE})
	{
		note join ' ', $name, @$_[ 1 .. 5 ] for @outputs;
	}
	return @outputs;
}

for my $name (sort keys %scenario)
{
	next if !wanted($name) && !wanted('sessions');
	deaths();
	# what it needs at all, when nothing fails; the first time it needs more
	fail_nth($name, 'true', 1);
	my (undef, $counted) = fail_nth($name, $all ? 'false' : 'true', 1_000_000, 1_000_000);
	my $count = $counted->[2];
	my @ns = $all ? (1 .. $count + 5) : grep { $_ <= $count } map { int rand($count) + 1 } 1 .. ROUNDS;
	my @results = fail_nth($name, $all ? 'false' : 'true', @ns);
	my $failed = grep { $_->[3] > 0 } @results;
	cmp_ok($failed, '>', 0, "$name: $failed of $count allocations failed");
	if (deaths() ne '')
	{
		fail("$name: nobody has died");
		last;
	}
}
# A commit that fails leaves nothing, and one that does not writes each event once.
if (wanted('commit') || wanted('sessions'))
{
	my ($failed, $more) = (0, 1);

	for (my $n = 1; $more; $n++)
	{
		my (undef, $output) = $node->psql('offline', <<"EOT", on_error_stop => 0);
BEGIN;
INSERT INTO committed VALUES ($n);
SELECT absmartly_track('{"user_id": 1}', 'commit', '{"n": $n}');
SELECT faults.begin(pg_backend_pid()::text, $n - 1, 1, 0, false, false);
COMMIT;
SELECT faults."end"();
ROLLBACK;
SELECT 'failed', failed FROM faults.status();
EOT
		($more) = $output =~ /^failed\|(\d+)$/m;
		$failed++ if $more;
	}
	cmp_ok($failed, '>', 5, "commit: $failed allocations failed");
	is($node->safe_psql('offline', q{SELECT string_agg(properties ->> 'n', ' ' ORDER BY (properties ->> 'n')::int) FROM absmartly_pending_events WHERE goal = 'commit'}),
		$node->safe_psql('offline', q{SELECT string_agg(n::text, ' ' ORDER BY n) FROM committed}), 'commit: what was committed waits once, and nothing else');
}

for my $name (split /\n/, $node->safe_psql('postgres', 'SELECT gid FROM pg_prepared_xacts'))
{
	$node->safe_psql('postgres', "COMMIT PREPARED '$name'");
}
check('sessions');

$node->stop;
done_testing();
