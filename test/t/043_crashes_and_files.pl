
# What a crash in the midst of things leaves of a record, what happens to what is in flight when somebody gives a heap of
# the outbox another file, and that a worker with nothing to do does nothing.

use strict;
use warnings;

use AbsmartlyMain qw(:DEFAULT arrived publish);
use AbsmartlyTest;
use Test::More;
use Time::HiRes qw(sleep);

start_main(settings => <<'EOT');
absmartly.publish_delay = 0
absmartly.max_connections = 1
autovacuum = off
fsync = on
restart_after_crash = on
EOT

my @heaps = map { "absmartly_outbox_$_" } qw(a b parked);

# A statement that queues goals, each of so many bytes, which are a record of several rows each if they are large.
sub track
{
	my ($goal, $number, $bytes) = @_;

	return sprintf q{SELECT count(absmartly_track(jsonb_build_object('user_id', i), '%s', jsonb_build_object('n', i, 'text', repeat('x', %d))))
		FROM generate_series(1, %d) AS i}, $goal, $bytes // 10, $number // 1;
}

# Changes rows of the outbox, which SQL lets nobody do, but for a trick.
sub change_rows
{
	my ($heap, @changes) = @_;

	sql("BEGIN; UPDATE pg_class SET relkind = 'r', relhasrules = false WHERE oid = '$heap'::regclass; "
		. join(' ', map { "$_;" } @changes)
		. " UPDATE pg_class SET relkind = 'm', relhasrules = true WHERE oid = '$heap'::regclass; COMMIT");
	return;
}

# Rows that something is still to be done with.
my $LEFT = 'SELECT count(*) FROM (' . join(' UNION ALL ', map { "SELECT status FROM $_" } @heaps) . ') AS x WHERE status <> 1';

# A worker that finds nothing does nothing: neither after some passes, nor by itself.
sub does_nothing
{
	my ($name) = @_;
	my $state = q{SELECT pg_snapshot_xmax(pg_current_snapshot()), pg_current_wal_insert_lsn() - '0/0'};

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	# what it tidies up once
	publish() for 1 .. 3;
	idle($node);
	my @before = split /\|/, sql($state);
	publish() for 1 .. 10;
	my @after = split /\|/, sql($state);
	is($after[0], $before[0], "$name: no transaction id is used");
	# what the server itself writes now and then
	cmp_ok($after[1] - $before[1], '<', 4096, 'and no WAL');
	return;
}
does_nothing('at first');

#
# Records of which a crash has left some rows
#

my $log = -s $node->logfile;
for my $case (
	[ 'the first row is left', 'chunk > 0' ],
	[ 'the last row is left', 'chunk < chunks - 1' ],
	[ 'every second row is left', 'chunk % 2 = 0' ])
{
	my ($name, $marked) = @$case;

	subtest $name => sub {
		ok(set_publishing($node, 'off'), 'events wait');
		sql(track('torn', 3, 300_000));
		sql(track('whole', 2, 300_000));
		my $heap = sql(q{SELECT 'absmartly_outbox_' || min(place) FROM absmartly_outbox WHERE place <> 'parked'});
			my $torn = sql("SELECT string_agg(record::text, ',') FROM (SELECT record FROM $heap WHERE chunk = 0 AND status = 0 ORDER BY ctid LIMIT 3) AS x");
		change_rows($heap, "UPDATE $heap SET status = 1 WHERE record IN ($torn) AND $marked");
		is(sql("SELECT count(*) FROM absmartly_outbox"), '2', 'records lack some of their rows');
		$collector->forget;

		ok(set_publishing($node, 'on'), 'it goes on');
		ok(await_sql($node, $LEFT, '0'), 'nothing is left of them');
		is(arrived('torn'), 0, 'they were delivered before');
		is(arrived('whole'), 2, 'and others are now');
		does_nothing('then');
	};
}
like(substr(log_of($node), $log), qr/LOG: .*3 records that a crash had left in parts/, 'the log tells it');

subtest 'records that were being requeued or dropped' => sub {
	$collector->fault('/v1', { match => { method => 'PUT' }, status => 400, times => -1 });
	for my $goal ('requeued', 'dropped', 'kept')
	{
		sql(track($goal, 1, 300_000));
		ok(await(sub { sql('SELECT count(*) FROM absmartly_dead_letters WHERE goal = ' . "'$goal'") eq '1' }), "$goal is refused");
	}
	$collector->clear_faults('/v1');
	my %record = map { $_ => sql("SELECT record FROM absmartly_dead_letters WHERE goal = '$_'") } 'requeued', 'dropped';
	change_rows('absmartly_outbox_parked',
		"UPDATE absmartly_outbox_parked SET status = 0 WHERE record = $record{requeued} AND chunk < 10",
		"UPDATE absmartly_outbox_parked SET status = 1 WHERE record = $record{dropped} AND chunk > 10");
	is(sql('SELECT count(*) FROM absmartly_dead_letters'), '1', 'which some of their rows are not');
	$node->stop('immediate');
	$collector->forget;
	$node->start;
	ok(await(sub { arrived('requeued') }), 'the one is requeued');
	publish();
	is(arrived('requeued'), 1, 'once');
	is(sql('SELECT count(DISTINCT record) FROM absmartly_outbox_parked WHERE status <> 1'), '1', 'the other is dropped');
	is(sql('SELECT string_agg(goal, NULL) FROM absmartly_dead_letters'), 'kept', 'and others stay');
	is(sql('SELECT absmartly_discard()'), '1', 'until they are dropped');
	ok(await_sql($node, $LEFT, '0'), 'nothing is left');
	does_nothing('then');
};

# A commit in the midst of a pass is no crash.
subtest 'large events that are committed while others are read' => sub {
	my @sessions = map { $node->background_psql('postgres') } 1 .. 3;

	$collector->forget;
	$_->query_until(qr/started/, "\\echo started\n" . (track('busy', 1, 60_000) . ";\n") x 20) for @sessions;
	$_->quit for @sessions;
	publish();
	is(arrived('busy'), 60, 'all arrive, once');
	ok(await_sql($node, $LEFT, '0'), 'and nothing is left');
};

subtest 'a worker that is killed' => sub {
	for my $trial (0 .. 3)
	{
		ok(set_publishing($node, 'off'), 'events wait');
		sql(track('killed', 40, 100_000));
		sql('CHECKPOINT');
		$collector->forget;
		configure($node, 'absmartly.publishing = on');
		ok(await(sub { arrived('killed') > 0 }), 'some have arrived');
		sleep 0.1 * $trial;
		kill 'KILL', worker_pid($node);
		ok(worker_pid($node), 'it is back');
		publish();
		my %numbers;
		$numbers{ $_->{properties}{n} }++ for $collector->goals(space => '/v1', name => 'killed');
		is(scalar keys %numbers, 40, 'all have arrived');
		ok(await_sql($node, $LEFT, '0'), 'and nothing is left');
		does_nothing('then');
	}
};

#
# Other files
#

# Has one request with goals in flight, the rest of them behind it, and does something then.
sub in_flight
{
	my ($goal, $do) = @_;

	ok(set_publishing($node, 'off'), 'events wait');
	sql(track($goal, 10, 50_000));
	sql(track($goal, 1000));
	$collector->forget;
	$collector->pause;
	configure($node, 'absmartly.publishing = on');
	ok(await_sql($node, 'SELECT worker_state FROM absmartly_stat', 'publishing'), 'some are in flight');
	$do->();
	$collector->resume;
	publish();
	is(arrived($goal), 1010, 'each goal arrives, once');
	ok(await_sql($node, $LEFT, '0'), 'nothing is left');
	return;
}

$log = -s $node->logfile;
for my $command ('VACUUM FULL', 'CLUSTER', 'TABLESPACE')
{
	subtest "$command of what is being read" => sub {
		in_flight(
			"by $command",
			sub {
				for my $heap (@heaps)
				{
					if ($command eq 'TABLESPACE')
					{
						my $path = $node->basedir . "/space_$heap";
						mkdir $path;
						sql("CREATE TABLESPACE space_$heap LOCATION '$path'");
						sql("ALTER MATERIALIZED VIEW $heap SET TABLESPACE space_$heap");
						sql("ALTER MATERIALIZED VIEW $heap SET TABLESPACE pg_default");
					}
					elsif ($command eq 'CLUSTER') { $node->psql('postgres', "CLUSTER $heap"); sql('CLUSTER'); }
					else { sql("$command $heap") for 1 .. 2; }
				}
			});
	};
}

# What a transaction that fails at its end has written.
my $FAILS = <<'EOT';
CREATE TEMPORARY TABLE one (id int PRIMARY KEY) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE other (id int REFERENCES one);
EOT

subtest 'VACUUM cuts the end of what is being read' => sub {
	in_flight(
		'before the end',
		sub {
			my (undef, undef, $error) = $node->psql('postgres', "BEGIN; $FAILS " . track('failed', 5000, 500) . '; COMMIT');
			like($error, qr/unsupported ON COMMIT/, 'a transaction fails at its end');
			$collector->resume;
			ok(await(sub { arrived('before the end') > 10 }), 'it is read on');
			sql("VACUUM (TRUNCATE) $_") for @heaps;
		});
	is(arrived('failed'), 0, 'what failed is not sent');
};

subtest 'VACUUM FULL of what is held, and of dead letters' => sub {
	my $session = $node->background_psql('postgres');

	$session->query_safe(q{SELECT absmartly_context_create('{"user_id": 1}', options => '{"publish_delay": -1}')});
	$session->query_safe("SELECT absmartly_context_track('held', jsonb_build_object('text', repeat('x', 100000))) FROM generate_series(1, 20)");
	$collector->fault('/v1', { match => { method => 'PUT' }, reject_goal => 'dead', times => -1 });
	sql(track('dead', 1, 50_000));
	ok(await_sql($node, 'SELECT held_records > 0 AND dead_letters = 1 FROM absmartly_stat'), 'there are some');
	sql("VACUUM FULL $_") for @heaps;
	publish();
	$collector->clear_faults('/v1');
	sql('SELECT absmartly_requeue()');
	$session->query_safe('SELECT absmartly_context_publish()');
	sql("VACUUM FULL $_") for @heaps;
	publish();
	is(arrived('held'), 20, 'what was held arrives, once');
	is(arrived('dead'), 1, 'and what was requeued');
	$session->quit;
	ok(await_sql($node, $LEFT, '0'), 'nothing is left');
	does_nothing('then');
};
unlike(substr(log_of($node), $log), qr/could not read|WARNING: .*absmartly: could not/, 'the log has no error');

#
# Dead letters
#

# Before its original is marked somebody is in the way, and the worker is killed.
subtest 'a crash while an event becomes a dead letter' => sub {
	my $locker = $node->background_psql('postgres');
	my $offset = -s $node->logfile;

	ok(set_publishing($node, 'off'), 'events wait');
	sql(track('letter'));
	my $heap = sql(q{SELECT 'absmartly_outbox_' || min(place) FROM absmartly_outbox});
	$collector->fault('/v1', { match => { method => 'PUT' }, reject_goal => 'letter', times => -1 });
	$collector->pause;
	configure($node, 'absmartly.publishing = on');
	ok(await_sql($node, 'SELECT worker_state FROM absmartly_stat', 'publishing'), 'it is in flight');
	$locker->query_safe("BEGIN; ALTER MATERIALIZED VIEW $heap OWNER TO CURRENT_USER");
	$collector->resume;
	my $worker = worker_pid($node);
	ok(await_sql($node, "SELECT wait_event_type FROM pg_stat_activity WHERE pid = $worker", 'Lock'), 'it is refused, and can not be marked');
	kill 'KILL', $worker;
	ok(worker_pid($node), 'the worker is back');
	publish();
	is(sql('SELECT count(*) FROM absmartly_dead_letters'), '1', 'it is a dead letter, once');
	is(sql('SELECT absmartly_discard()'), '1', 'which is dropped');
	$collector->clear_faults('/v1');
	ok(await_sql($node, $LEFT, '0'), 'nothing is left');
	does_nothing('then');
};

$node->stop;
done_testing();
