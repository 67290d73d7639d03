
# What others do neither keeps the worker from its work nor has it ask the collector more often: event loggers that go on
# for ever or fail, settings of databases and roles, calls of roles that have no rights, prepared transactions.

use strict;
use warnings;

use AbsmartlyTest;
use Test::More;
use Time::HiRes qw(time);

my $collector = start_collector(data => experiments(experiment('exp')));
my $settings = <<'EOT';
absmartly.publish_delay = 20ms
absmartly.max_retries = 0
absmartly.max_connections = 1
max_prepared_transactions = 5
EOT
my $node = start_node('main', collector => $collector, streaming => 1, settings => $settings);
my $stuck = start_node('stuck', collector => $collector, space => '/stuck/v1', settings => $settings);
ok(wait_ready($_), 'ready') for $node, $stuck;

sub sql
{
	my ($query, $database, $server) = @_;

	return ($server // $node)->safe_psql($database // 'postgres', $query);
}

sub track
{
	my ($goal, $database, $server) = @_;

	return sql(qq{SELECT absmartly_track('{"user_id": 1}', '$goal')}, $database, $server);
}

sub arrives
{
	my ($goal, $name, $space) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(await(sub { scalar(() = $collector->goals(space => $space // '/v1', name => $goal)) }), $name);
}

# How often the collector was asked in the space of the main server.
sub requests
{
	my ($method) = @_;

	return scalar(() = $collector->requests(space => '/v1', method => $method, bodies => 0));
}

#
# An event logger that does not let itself be cancelled; it is left alone for a minute now
#

sql(<<'EOT', 'postgres', $stuck);
CREATE TABLE calls (event text, data jsonb);
CREATE FUNCTION log(context jsonb, event text, data jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF event = 'publish' AND data::text LIKE '%for ever%' THEN
		LOOP
			BEGIN PERFORM pg_sleep(3600); EXCEPTION WHEN query_canceled THEN NULL; END;
		END LOOP;
	END IF;
	INSERT INTO public.calls VALUES (event, data);
END $$;
ALTER DATABASE postgres SET absmartly.event_logger = 'public.log';
EOT
my $logging = q{SELECT worker_state = 'logging' FROM absmartly_stat};
track('for ever', 'postgres', $stuck);
ok(await_sql($stuck, $logging), 'an event logger goes on for ever');

# exposures of those who cannot write wait in memory meanwhile
sql(q{SET default_transaction_read_only = on; SELECT count(absmartly_unit_treatment(i, 'exp')) FROM generate_series(1::bigint, 10) AS i}, 'postgres', $stuck);
$stuck->stop('fast', fail_ok => 1) or $stuck->stop('immediate');
is($stuck->psql('postgres', 'SELECT 1'), 2, 'a fast shutdown comes to its end');
$stuck->start;
ok(await(sub { 10 == (() = $collector->exposures(space => '/stuck/v1')) }), 'and loses nothing of what was in memory');
ok(await_sql($stuck, 'SELECT worker_pid > 0 FROM absmartly_stat'), 'the worker is there again');
track('for ever', 'postgres', $stuck);
ok(await_sql($stuck, $logging), 'the logger goes on for ever again');
my $stuck_worker = worker_pid($stuck);

#
# A logger that fails, and one that leaves something behind
#

sql(<<'EOT');
CREATE FUNCTION log(context jsonb, event text, data jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_advisory_lock(42), set_config('synchronous_commit', 'on', false), set_config('role', 'none', false);
	RAISE 'no %', data;
END $$;
ALTER DATABASE postgres SET absmartly.event_logger = 'public.log';
EOT
track("failing $_") for 1 .. 20;
arrives('failing 20', 'a logger that fails stops nothing');
sql('SELECT absmartly_publish()');
is(scalar(() = log_of($node) =~ /failed at event "publish"/g), 1, 'and is not reported for each event');
sql('CREATE OR REPLACE FUNCTION log(context jsonb, event text, data jsonb) RETURNS void LANGUAGE sql AS $$ SELECT pg_advisory_lock(43), pg_advisory_lock(44) $$');
track('with a lock');
sql('SELECT absmartly_publish()');
is(sql(q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'}), '0', 'locks of a logger end with it');

#
# Calls of a role without rights
#

sql('ALTER DATABASE postgres RESET absmartly.event_logger');
ok(await_sql($node, 'SELECT ready AND worker_pid > 0 FROM absmartly_stat'), 'without a logger');
sql('SELECT absmartly_refresh()');
sql('CREATE ROLE plain LOGIN');

# Has the role call something many times, whatever comes of it; gives the seconds that it took.
sub call_often
{
	my ($times, $calls, $before) = @_;

	return seconds_of(sub { sql("SET ROLE plain;\n$before;\n" . <<EOT) });
DO \$\$ BEGIN
	FOR i IN 1 .. $times LOOP
		BEGIN $calls EXCEPTION WHEN OTHERS THEN NULL; END;
	END LOOP;
END \$\$
EOT
}

my $context = q{SELECT absmartly_context_create('{"user_id": 1}')};
my $before = requests('GET');
my $seconds = call_often(300, q{PERFORM public.absmartly_context_refresh('20 ms');}, $context);
my $asked = requests('GET') - $before;
cmp_ok($asked, '>=', 1, 'refreshing asks the collector');
cmp_ok($asked, '<=', 22 + $seconds, "no matter how often: $asked requests in $seconds s");

# the pauses of an outage are 1 s, 2 s, 4 s, and so on
sub rounds
{
	my ($seconds) = @_;

	return 3 + log($seconds + 1) / log(2);
}

$collector->fault('/v1', { match => { method => 'GET' }, status => 503, times => -1 });
$node->psql('postgres', 'SELECT absmartly_refresh()');
$before = requests('GET');
$seconds = call_often(100, q{PERFORM public.absmartly_context_refresh('50 ms');}, $context);
$asked = requests('GET') - $before;
cmp_ok($asked, '<=', rounds($seconds), "nor more often in an outage: $asked requests in $seconds s");
$before = requests('GET');
my (undef, undef, $error) = $node->psql('postgres', 'SELECT absmartly_refresh()');
like($error, qr/status 503/, 'an administrator is told at once');
cmp_ok(requests('GET'), '>', $before, 'having asked');
$collector->clear_faults('/v1');
sql('SELECT absmartly_refresh()');

# contexts for which there is no data
sql('CREATE DATABASE without');
create_extension($node, 'without');
sql("ALTER DATABASE without SET absmartly.endpoint = '" . $collector->url('/without/v1') . "'");
$collector->fault('/without/v1', { match => { method => 'GET' }, status => 503, times => -1 });
ok(await(sub { scalar(() = $collector->requests(space => '/without/v1', method => 'GET')) }), 'a database without data');
$before = scalar(() = $collector->requests(space => '/without/v1', method => 'GET'));
$seconds = seconds_of(sub { sql(join(";\n", map { "$context; SELECT pg_sleep(0.05)" } 1 .. 100), 'without') });
$asked = scalar(() = $collector->requests(space => '/without/v1', method => 'GET')) - $before;
cmp_ok($asked, '<=', rounds($seconds), "making contexts does not ask more often: $asked requests in $seconds s");

$collector->fault('/v1', { match => { method => 'PUT' }, status => 503, times => -1 });
$before = requests('PUT');
$seconds = seconds_of(
	sub {
		my $loop = join '', map { <<EOT } 1 .. 100;
SELECT absmartly_context_create('{"user_id": $_}');
SELECT absmartly_context_track('in an outage');
SELECT absmartly_context_publish('50 ms');
EOT
		$node->psql('postgres', "SET ROLE plain;\n$loop", on_error_stop => 0);
	});
$asked = requests('PUT') - $before;
cmp_ok($asked, '>=', 1, 'publishing asks the collector');
cmp_ok($asked, '<=', rounds($seconds), "once per pause: $asked requests in $seconds s");
$collector->clear_faults('/v1');
sql('SELECT absmartly_publish()');
is(scalar(() = $collector->goals(space => '/v1', name => 'in an outage')), 100, 'and nothing is lost');

#
# Settings of a database and of the role that the worker runs as
#

my %hostile = (
	'backend_flush_after' => '8kB', 'bytea_output' => 'escape', 'client_encoding' => 'LATIN1', 'client_min_messages' => 'error',
	'commit_delay' => 100000, 'commit_siblings' => 0, 'DateStyle' => 'German', 'IntervalStyle' => 'sql_standard', 'TimeZone' => 'Asia/Kathmandu',
	'deadlock_timeout' => 1, 'default_transaction_deferrable' => 'on', 'default_transaction_isolation' => 'serializable',
	'default_transaction_read_only' => 'on', 'transaction_read_only' => 'on',
	'enable_seqscan' => 'off', 'enable_indexscan' => 'off', 'exit_on_error' => 'on', 'extra_float_digits' => -15,
	'force_parallel_mode' => 'on', 'debug_parallel_query' => 'on', 'idle_in_transaction_session_timeout' => 1, 'idle_session_timeout' => 1,
	'jit' => 'on', 'jit_above_cost' => 0, 'lc_messages' => 'C', 'lock_timeout' => 1,
	'log_min_messages' => 'warning', 'maintenance_work_mem' => '1MB', 'max_stack_depth' => '100kB',
	'role' => 'plain', 'row_security' => 'off', 'session_authorization' => 'plain', 'search_path' => 'hostile', 'session_replication_role' => 'replica',
	'standard_conforming_strings' => 'off', 'statement_timeout' => 1, 'synchronous_commit' => 'remote_apply', 'temp_buffers' => '800kB',
	'temp_file_limit' => 0, 'track_activities' => 'off', 'track_counts' => 'off', 'transaction_timeout' => 1, 'vacuum_cost_delay' => 100,
	'wal_skip_threshold' => 0, 'work_mem' => '64kB', 'xmlbinary' => 'hex', 'zero_damaged_pages' => 'on',
	'ignore_checksum_failure' => 'on');

sql('CREATE DATABASE hostile');
create_extension($node, 'hostile');
sql(<<'EOT', 'hostile');
CREATE SCHEMA hostile;
CREATE TABLE hostile.calls (event text);
CREATE FUNCTION hostile.log(context jsonb, event text, data jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO hostile.calls VALUES (event);
	IF data::text LIKE '%failing%' THEN RAISE 'no'; END IF;
END $$;
ALTER DATABASE hostile SET absmartly.event_logger = 'hostile.log';
EOT
configure($node, "synchronous_commit = local\nsynchronous_standby_names = 'nosuch'");
ok(await_sql($node, 'SHOW synchronous_standby_names', 'nosuch'), 'a standby is away');
my $worker = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'absmartly worker' AND datname = 'hostile'};
my $user = sql('SELECT current_user');
my @names = grep { sql("SELECT current_setting('$_', true) IS NOT NULL") eq 't' } sort keys %hostile;
for my $whose ('DATABASE hostile', "ROLE $user IN DATABASE hostile")
{
	my $old = await(sub { sql($worker) });
	my $new;

	# what is set is for the worker that comes next: sessions shall not have it
	sql(join '', map { "ALTER $whose SET $_ = '$hostile{$_}';\n" } @names);
	sql("SELECT pg_terminate_backend($old)");
	ok(await(sub { $new = sql($worker); $new ne '' && $new ne $old }), "$whose: the worker gets " . scalar(@names) . ' settings');
	# it reads them before it takes up its work
	ok(await(sub { sql("SELECT count(*) FROM pg_stat_activity WHERE pid = $new AND wait_event = 'Extension'") eq '1' }), "$whose: it works");
	sql(join '', map { "ALTER $whose RESET $_;\n" } @names);

	track("$whose failing $_", 'hostile') for 1 .. 2;
	track($whose, 'hostile');
	arrives($whose, "$whose: goals are delivered");
	is($node->psql('hostile', 'SELECT absmartly_refresh()'), 0, "$whose: experiments are fetched");
	sql(q{SELECT count(absmartly_unit_treatment(i, 'exp')) FROM generate_series(1::bigint, 10) AS i}, 'hostile');
	ok(await_sql($node, 'SELECT memory_queue_entries = 0 AND outbox_events = 0 AND exposures_sent > 0 FROM absmartly_stat', 't', database => 'hostile'), "$whose: exposures as well");
	is(sql($worker), $new, "$whose: one worker does that");
}
configure($node, "synchronous_standby_names = ''");

#
# Prepared transactions
#

my $workers = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'absmartly worker' AND datname = 'prepared'};
sql('CREATE DATABASE prepared');
sql("BEGIN; CREATE EXTENSION absmartly; PREPARE TRANSACTION 'create'", 'prepared');
$node->restart;
sql("COMMIT PREPARED 'create'", 'prepared');
ok(await_sql($node, $workers, '1'), 'an extension that a prepared transaction has made gets a worker');
track('prepared', 'prepared');
arrives('prepared', 'which delivers');
sql("BEGIN; ALTER DATABASE prepared SET absmartly.endpoint = '" . $collector->url('/prepared/v1') . "'; PREPARE TRANSACTION 'set'", 'prepared');
sql("COMMIT PREPARED 'set'", 'prepared');
ok(await(sub { scalar(() = $collector->requests(space => '/prepared/v1', method => 'GET')) }), 'settings that come so act');
sql("BEGIN; DROP EXTENSION absmartly; PREPARE TRANSACTION 'drop'", 'prepared');
sql("COMMIT PREPARED 'drop'", 'prepared');
ok(await_sql($node, $workers, '0'), 'and a worker ends whose extension goes so');

#
# The logger that went on for ever
#

ok(await(sub { my $pid = stat_of($stuck, 'worker_pid'); $pid ne '' && $pid != $stuck_worker }, 180), 'the worker ends with a logger that can not be cancelled, and comes back');
like(log_of($stuck), qr/WARNING: .*event logger "public\.log" took more than 60 s, and is not called for the next 1 min/, 'which is reported');
track('afterwards', 'postgres', $stuck);
arrives('afterwards', 'events are delivered again', '/stuck/v1');
is($stuck->psql('postgres', 'SELECT absmartly_refresh()'), 0, 'experiments are fetched');
track('for ever', 'postgres', $stuck);
is($stuck->psql('postgres', 'SELECT absmartly_publish()'), 0, 'the logger is not called');
is(sql(q{SELECT count(*) FROM calls WHERE data::text LIKE '%afterwards%'}, 'postgres', $stuck), '0', 'for anything');

done_testing();
