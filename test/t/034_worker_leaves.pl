
# The worker and the launcher leave whenever they are to, whatever they wait for, and no setting of a database or a role
# keeps the worker from its work: standbys that are away, locks, event loggers that go on for ever, a collector that
# does not answer.  A goal whose commit still waits for its standby is not sent.

use strict;
use warnings;

use AbsmartlyTest;
use Test::More;
use Time::HiRes qw(sleep);

my $collector = start_collector(data => experiments(experiment('exp')));
my $node = start_node('main', collector => $collector, streaming => 1, settings => <<'EOT');
absmartly.publish_delay = 20ms
absmartly.refresh_interval = 1
absmartly.max_retries = 1
max_prepared_transactions = 5
log_min_messages = debug1
EOT
ok(wait_ready($node), 'ready');

#
# Helpers
#

sub sql
{
	my ($query, $database) = @_;

	return $node->safe_psql($database // 'postgres', $query);
}

# Runs statements in a session that goes on meanwhile; gives what to quit.
sub in_background
{
	my ($query) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);

	$session->query_until(qr/started/, "\\echo started\n$query\n");
	return $session;
}

sub arrives
{
	my ($goal, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(await(sub { scalar(() = $collector->goals(space => '/v1', name => $goal)) }), $name);
}

# Fetches go on: at least one begins after this call.
sub fetches_go_on
{
	my ($name) = @_;
	my $before = stat_of($node, 'fetch_requests');

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(await(sub { stat_of($node, 'fetch_requests') > $before + 1 }), $name);
}

# A fast shutdown comes to its end: pg_ctl waits for a minute.
sub stops
{
	my ($name, $server) = @_;

	$server //= $node;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return 1 if ok($server->stop('fast', fail_ok => 1), $name);
	$server->stop('immediate');
	return 0;
}

#
# A normal stop
#

my $from = length log_of($node);
stops('a fast shutdown');
unlike(substr(log_of($node), $from), qr/FATAL:.*absmartly/, 'is no error of the launcher or the workers');
$node->start;
ok(wait_ready($node), 'ready again');

# who is terminated comes back
my $launcher = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'absmartly launcher'};
for my $process (worker_pid($node), sql($launcher))
{
	sql("SELECT pg_terminate_backend($process)");
}
ok(await_sql($node, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('absmartly worker', 'absmartly launcher')}, '2'), 'terminated ones come back');
ok(wait_ready($node), 'and work');

#
# A standby that is away
#

configure($node, "synchronous_standby_names = 'nosuch'");
ok(await_sql($node, 'SHOW synchronous_standby_names', 'nosuch'), 'no standby answers');
# exposures that the worker writes to the outbox itself
sql(q{SELECT count(absmartly_unit_treatment(i, 'exp')) FROM generate_series(1::bigint, 10) AS i});
ok(await_sql($node, 'SELECT exposures_sent >= 10 FROM absmartly_stat'), 'exposures are delivered');
sql(q{SET synchronous_commit = local; SELECT absmartly_track('{"user_id": 1}', 'local')});
arrives('local', 'and goals of those who do not wait for it');
fetches_go_on('experiments are fetched');
is(sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'absmartly%' AND wait_event = 'SyncRep'}), '0', 'nobody of ours waits for it');
{
	my $waiting = in_background(q{SELECT absmartly_track('{"user_id": 1}', 'waiting');});
	my $prepared = in_background(q{SET synchronous_commit = local; BEGIN; SELECT absmartly_track('{"user_id": 1}', 'prepared'); PREPARE TRANSACTION 'p'; SET synchronous_commit = on; COMMIT PREPARED 'p';});

	ok(await_sql($node, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'}, '2'), 'two goals wait for the standby');
	sql(q{SET synchronous_commit = local; SELECT absmartly_track('{"user_id": 1}', 'later'); SELECT absmartly_publish()});
	arrives('later', 'one that does not wait is sent');
	is(scalar(() = $collector->goals(space => '/v1', name => $_)), 0, "$_: not one whose commit waits") for qw(waiting prepared);
	configure($node, "synchronous_standby_names = ''");
	arrives($_, "$_: it is once the wait is over") for qw(waiting prepared);
	$_->quit for $waiting, $prepared;
}

configure($node, "synchronous_standby_names = 'nosuch'");
ok(await_sql($node, 'SHOW synchronous_standby_names', 'nosuch'), 'no standby answers, again');
sql('SET synchronous_commit = local; CREATE DATABASE source; ALTER DATABASE source ALLOW_CONNECTIONS true');
sql('SET synchronous_commit = local; CREATE EXTENSION absmartly', 'source');
ok(await_sql($node, q{SELECT worker_pid > 0 AND ready FROM absmartly_stat}, 't', database => 'source'), 'another database has a worker');
sql(q{SELECT count(absmartly_unit_treatment(i, 'exp')) FROM generate_series(1::bigint, 10) AS i}, 'source');
is($node->psql('postgres', 'SET synchronous_commit = local; CREATE DATABASE copy TEMPLATE source'), 0, 'it can be copied');
is($node->psql('postgres', 'SET synchronous_commit = local; DROP DATABASE source'), 0, 'and dropped');
sql('SET synchronous_commit = local; DROP DATABASE copy');
sql(q{SELECT count(absmartly_unit_treatment(i, 'exp')) FROM generate_series(11::bigint, 20) AS i});
stops('a fast shutdown comes to its end without the standby');
$node->start;
configure($node, "synchronous_standby_names = ''");
ok(wait_ready($node), 'ready again');

#
# Locks
#

# Runs a statement that locks something in a transaction that stays open, and more in the same session.
sub lock_it
{
	my ($lock, @more) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);

	$session->query_safe('BEGIN');
	$session->query_safe($lock);
	$session->query_safe($_) for @more;
	return $session;
}

# A session whose server has gone.
sub give_up
{
	my ($session) = @_;

	eval { $session->quit };
	return;
}

# the worker reads this at its start, and when it is to look
my $locker = lock_it('LOCK pg_catalog.pg_extension IN ACCESS EXCLUSIVE MODE');
my $pid = sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'absmartly worker' AND datname = 'postgres'});
sql("SELECT pg_terminate_backend($pid)");
ok(await_sql($node, "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid", '0'), 'the worker leaves');
ok(await_sql($node, q{SELECT count(*) FROM pg_locks l, pg_stat_activity a WHERE a.pid = l.pid AND NOT granted AND backend_type = 'absmartly worker'}, '1'), 'its successor waits for a lock');
stops('a fast shutdown comes to its end while a catalog is locked');
give_up($locker);
$node->start;
ok(wait_ready($node), 'ready again');

# what it writes to
$locker = lock_it(join '; ', map { "ALTER MATERIALIZED VIEW absmartly_outbox_$_ OWNER TO CURRENT_USER" } qw(a b parked));
# the standby of these is memory, from which the worker cannot write them
sql(q{SET default_transaction_read_only = on; SELECT count(absmartly_unit_treatment(i, 'exp')) FROM generate_series(21::bigint, 30) AS i});
ok(await_sql($node, q{SELECT count(*) > 0 FROM pg_locks l, pg_stat_activity a WHERE a.pid = l.pid AND NOT granted AND backend_type = 'absmartly worker'}), 'the worker waits for the outbox');
stops('a fast shutdown comes to its end while the outbox is locked');
give_up($locker);
$node->start;
ok(wait_ready($node), 'ready again');

# what the launcher reads
$locker = lock_it('LOCK pg_catalog.pg_database IN ACCESS EXCLUSIVE MODE', 'SELECT pg_reload_conf()');
ok(await(sub { $locker->query_safe(q{SELECT count(*) FROM pg_locks l, pg_stat_get_activity(NULL) a WHERE a.pid = l.pid AND NOT granted AND a.backend_type = 'absmartly launcher'}) eq '1' }), 'the launcher waits for a lock');
stops('a fast shutdown comes to its end while the list of databases is locked');
give_up($locker);
$node->start;
ok(wait_ready($node), 'ready again');

#
# A collector that does not answer
#

$collector->fault('/v1', { match => { method => 'PUT' }, hang => 1 });
sql(q{SELECT absmartly_track('{"user_id": 1}', 'stuck')});
ok(await_sql($node, q{SELECT worker_state = 'publishing' FROM absmartly_stat}), 'a request is not answered');
stops('a fast shutdown comes to its end in the middle of a request');
$collector->clear_faults('/v1');
$node->start;
arrives('stuck', 'and the goal is delivered afterwards');

# Has a goal be on its way while something happens; it is taken in, and the answer is late.
sub on_its_way
{
	my ($goal, $code, $database) = @_;
	my $pid = worker_pid($node, $database);

	$collector->fault('/v1', { match => { method => 'PUT' }, delay_ms => 3000 });
	sql(qq{SELECT absmartly_track('{"user_id": 1}', '$goal')}, $database);
	ok(await(sub { scalar(() = $collector->goals(space => '/v1', name => $goal)) }), "$goal: a goal is on its way");
	$code->($pid);
	ok(await_sql($node, "SELECT worker_pid <> $pid FROM absmartly_stat", 't', database => $database // 'postgres'), "$goal: another worker comes");
	return;
}

sub is_sent_once
{
	my ($goal, $database) = @_;

	sql("SELECT absmartly_publish('$PATIENCE s')", $database);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(scalar(() = $collector->goals(space => '/v1', name => $goal)), 1, "$goal: it is sent once");
}

my $workers = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'absmartly worker' AND datname = 'postgres'};
on_its_way('restarted', sub { sql('ALTER DATABASE postgres SET absmartly.batch_size = 400') });
fetches_go_on('experiments are fetched while the answer is waited for');
is_sent_once('restarted');
on_its_way('terminated', sub { sql("SELECT pg_terminate_backend($_[0])") });
is_sent_once('terminated');
on_its_way('endpoint', sub { sql("ALTER DATABASE postgres SET absmartly.endpoint = '" . $collector->url('/other/v1') . q{'}) });
is(sql('SELECT endpoint FROM absmartly_shared_data()'), $collector->url('/other/v1'), 'another endpoint is in force at once');
is_sent_once('endpoint');
is(scalar(() = $collector->goals(space => '/other/v1')), 0, 'and not to the other one');
sql('ALTER DATABASE postgres RESET absmartly.endpoint');
ok(await_sql($node, 'SELECT endpoint FROM absmartly_shared_data()', $collector->url('/v1')), 'back to the first one');

# by a reload the worker stays
$collector->fault('/v1', { match => { method => 'PUT' }, delay_ms => 3000 });
sql(q{SELECT absmartly_track('{"user_id": 1}', 'reloaded')});
arrives('reloaded', 'a goal is on its way');
configure($node, collector_settings($collector, '/other/v1'));
ok(await_sql($node, 'SELECT endpoint FROM absmartly_shared_data()', $collector->url('/other/v1')), 'another endpoint is reloaded');
is_sent_once('reloaded');
is(scalar(() = $collector->goals(space => '/other/v1')), 0, 'and not to the other one');
configure($node, collector_settings($collector, '/v1'));
ok(await_sql($node, 'SELECT endpoint FROM absmartly_shared_data()', $collector->url('/v1')), 'back to the first one, again');

# those who do not wait
sub on_its_way_for_ever
{
	my ($goal, $database) = @_;

	$collector->fault('/v1', { match => { method => 'PUT' }, hang => 1 });
	sql(qq{SELECT absmartly_track('{"user_id": 1}', '$goal')}, $database);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(await(sub { scalar(() = $collector->requests(space => '/v1', method => 'PUT', state => 'pending')) }), "$goal: no answer comes");
}

on_its_way_for_ever('asked twice');
$pid = worker_pid($node);
sql("SELECT pg_terminate_backend($pid)");
ok(await_sql($node, "SELECT worker_pid <> $pid FROM absmartly_stat"), 'a worker waits for an answer that does not come');
is(sql($workers), '2', 'while another one is there');
sql("SELECT pg_terminate_backend($pid)");
arrives('asked twice', 'it goes when it is asked twice, and the other one sends what it had sent');
on_its_way_for_ever('stopped');
$pid = worker_pid($node);
sql('ALTER DATABASE postgres RESET absmartly.batch_size');
ok(await_sql($node, "SELECT worker_pid <> $pid FROM absmartly_stat"), 'a worker waits for an answer again');
stops('a fast shutdown comes to its end nevertheless');
$node->start;
arrives('stopped', 'and the goal is delivered afterwards');
sql('CREATE DATABASE source');
create_extension($node, 'source');
ok(wait_ready($node, 'source'), 'a database to be copied');
for my $leaves ('', 'while its worker leaves')
{
	on_its_way_for_ever("copied$leaves", 'source');
	$pid = worker_pid($node, 'source');
	sql('ALTER DATABASE source SET absmartly.batch_size = 400') if $leaves;
	is($node->psql('postgres', 'CREATE DATABASE copy TEMPLATE source'), 0, "it can be copied in the middle of a request $leaves");
	is($node->psql('postgres', 'DROP DATABASE copy'), 0, 'and the copy dropped');
	arrives("copied$leaves", 'what it had sent is sent');
}
is($node->psql('postgres', 'DROP DATABASE source'), 0, 'it is dropped, too');

#
# A failover
#

my $standby = start_standby($node, settings => "synchronous_standby_names = ''");
configure($node, "synchronous_standby_names = '*'");
ok(await_sql($node, q{SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'}, '1'), 'a standby answers');
sql(q{SELECT absmartly_track('{"user_id": 1}', 'replicated')});
arrives('replicated', 'a goal that it has is sent');
stops('the standby stops', $standby);
my $lost = in_background(q{SELECT absmartly_track('{"user_id": 1}', 'lost');});
ok(await_sql($node, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'}, '1'), 'a goal waits for it');
sql(q{SET synchronous_commit = local; SELECT absmartly_track('{"user_id": 1}', 'meanwhile'); SELECT absmartly_publish()});
arrives('meanwhile', 'others are sent');
# a crash: what waits has not come to its end
$node->stop('immediate');
give_up($lost);
$standby->start;
$standby->promote;
ok(await_sql($standby, 'SELECT worker_pid > 0 AND NOT pg_is_in_recovery() FROM absmartly_stat'), 'the standby is promoted');
$standby->safe_psql('postgres', q{SELECT absmartly_track('{"user_id": 1}', 'promoted')});
arrives('promoted', 'and delivers');
is(scalar(() = $collector->goals(space => '/v1', name => 'lost')), 0, 'a goal that it does not have is not at the collector');
stops('it stops', $standby);

done_testing();
