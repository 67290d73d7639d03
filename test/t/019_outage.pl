
# Many events, and little room for them: the end of a long outage, a full outbox, snapshots and locks that others hold,
# transactions and memory queues that are too small or too large.
#
# ABSMARTLY_EVENTS says how many events pass by an old snapshot in each of its rounds.

use strict;
use warnings;

use AbsmartlyTest;
use FastSink;
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);

# kB that the worker may have of its own, and that a backend may grow by
my $WORKER_LIMIT = 64 * 1024;
my $BACKEND_LIMIT = 30 * 1024;

# bytes of an outbox that is small; a heap that is drained keeps up to 64 pages
my $SMALL = 2 * 1024 * 1024;

my $sink = FastSink->start(data => experiments(experiment('exp')));
my $node = start_node('main', collector => $sink, settings => <<'EOT');
absmartly.publish_delay = 100ms
absmartly.exposure_dedup_interval = 0
absmartly.max_retries = 1
max_wal_size = 4GB
max_prepared_transactions = 5
EOT
ok(wait_ready($node), 'ready');

#
# Helpers
#

sub sql
{
	my ($query) = @_;

	return $node->safe_psql('postgres', $query);
}

# A statement that queues an exposure, or a goal, of each unit in a range.
sub exposures_of
{
	my ($from, $to) = @_;

	return "SELECT count(absmartly_unit_treatment(i, 'exp')) FROM generate_series(${from}::bigint, $to) AS i";
}

sub goals_of
{
	my ($from, $to) = @_;

	return "SELECT count(absmartly_track(jsonb_build_object('user_id', i), 'bought')) FROM generate_series($from, $to) AS i";
}

sub publish
{
	# they may be many
	return sql(q{SELECT absmartly_publish('1 h')});
}

# What was counted since it was last looked at.
sub counters
{
	my %values;

	@values{qw(exposures_queued goals_queued exposures_dropped goals_dropped)} = split /\|/,
		sql('SELECT exposures_queued, goals_queued, exposures_dropped, goals_dropped FROM absmartly_stat');
	return %values;
}

# Exactly these have arrived, each in a request of its own: the digest tells one that is missing for one that came twice.
sub arrived
{
	my ($name, %expected) = @_;
	my $count = $sink->count;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(join(' ', map { "$_=$count->{$_}" } sort keys %expected),
		join(' ', map { "$_=$expected{$_}" } sort keys %expected), $name);
}

sub outbox_is_small
{
	my ($name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(await_sql($node, "SELECT $OUTBOX_FILES < $SMALL AND outbox_events = 0 FROM absmartly_stat"), $name)
		|| diag(stat_of($node, "$OUTBOX_FILES, outbox_events"));
}

sub log_since
{
	my ($offset) = @_;

	return substr(log_of($node), $offset);
}

# Seconds that a process has worked; 0 where the system does not tell.
sub cpu_seconds
{
	my ($pid) = @_;

	open my $file, '<', "/proc/$pid/stat" or return 0;
	my @fields = split ' ', <$file> =~ s/^.*\)//r;
	return ($fields[11] + $fields[12]) / POSIX::sysconf(&POSIX::_SC_CLK_TCK);
}

my $drops = qr/WARNING: .*absmartly: \d+ exposures and \d+ goals were dropped/;

#
# The end of an outage
#

subtest 'two million events after an outage' => sub {
	my $worker = worker_pid($node);
	my $before = rss_anon($worker);
	my ($most, $number) = (0, 2_000_000);
	my ($count, $arrived) = (undef, 0);
	my $end;

	$sink->close;
	sql(exposures_of(1, 500_000));
	sql(exposures_of(500_001, 1_000_000));
	$sink->open;
	$sink->answer(500);
	sql(goals_of(1_000_001, 2_000_000));
	ok(await_sql($node, q{SELECT last_publish_error LIKE '%500%' FROM absmartly_stat}), 'the collector does not work');
	is(stat_of($node, 'outbox_events'), $number, 'the events wait');
	cmp_ok(stat_of($node, 'outbox_bytes'), '>', 40_000_000, 'in large files');
	is(stat_of($node, 'exposures_dropped + goals_dropped'), 0, 'none is dropped');

	my $start = time;
	$sink->answer(200);
	$node->reload;
	do
	{
		my $now = rss_anon($worker);

		$most = $now if $now > $most;
		sleep 0.05;
		$count = $sink->count;
		# for as long as there is progress
		$end = time + $PATIENCE if !$end || $count->{exposures} + $count->{goals} > $arrived;
		$arrived = $count->{exposures} + $count->{goals};
	} while ($arrived < $number && time < $end);
	my $seconds = time - $start;

	publish();
	arrived('all have arrived, once', contexts => $number, exposures => 1_000_000, goals => 1_000_000,
		digest => FastSink::digest_of(1 .. $number));
	is(worker_pid($node), $worker, 'the worker has lived through it');
	cmp_ok($most, '<', $WORKER_LIMIT, 'in little memory');
	is(stat_of($node, 'exposures_sent + goals_sent'), $number, 'the statistics agree');
	outbox_is_small('the files are small again');
	note(sprintf '%.0f events/s; the worker had %d kB, then at most %d kB, and has %d kB', $number / $seconds, $before, $most,
		rss_anon($worker));
};

#
# A full outbox
#

subtest 'absmartly.outbox_max_size' => sub {
	my $offset = -s $node->logfile;
	my %before = counters();
	my $began = time;

	configure($node, "absmartly.outbox_max_size = '1MB'");
	is(sql('SHOW absmartly.outbox_max_size'), '1MB', 'the outbox may have 1 MB');
	$sink->forget;
	$sink->answer(500);
	sql(exposures_of(1, 100_000));
	cmp_ok(sql("SELECT $OUTBOX_FILES"), '<', 1.5 * 1024 * 1024, 'it gets no larger by exposures');
	sql(exposures_of(100_001, 100_100)) for 1 .. 10;
	sql(goals_of(1, 50_000));
	sql(exposures_of(100_001, 100_100) . '; ' . goals_of(50_001, 50_100));
	my %after = counters();
	my $queued = $after{exposures_queued} - $before{exposures_queued};
	cmp_ok($queued, '>', 10_000, 'some exposures are taken');
	cmp_ok($queued, '<', 90_000, 'as many as there is room for');
	note("$queued exposures");
	is($after{exposures_dropped} - $before{exposures_dropped}, 101_100 - $queued, 'the others are dropped and counted');
	is($after{goals_queued} - $before{goals_queued}, 50_100, 'goals are taken');
	is($after{goals_dropped} - $before{goals_dropped}, 0, 'and not dropped');
	ok(await(sub { log_since($offset) =~ $drops }), 'the log tells it');

	$sink->answer(200);
	publish();
	arrived('what was taken has arrived, once', exposures => $queued, goals => 50_100, contexts => $queued + 50_100);
	outbox_is_small('the outbox is small again');
	$sink->forget;
	%before = counters();
	sql(exposures_of(1, 1000));
	publish();
	arrived('exposures are taken again', exposures => 1000, digest => FastSink::digest_of(1 .. 1000));
	%after = counters();
	is($after{exposures_dropped}, $before{exposures_dropped}, 'all of them');
	cmp_ok(scalar(() = log_since($offset) =~ /$drops/g), '<=', 1 + (time - $began) / 60, 'the log has told the drops once a minute');
	configure($node, "absmartly.outbox_max_size = '1GB'");
};

#
# What other sessions hold
#

# Queues and delivers goals; gives how many for each second that the worker has worked: that does not depend on what else
# the machine does.
sub deliver
{
	my ($number) = @_;
	my $worker = worker_pid($node);
	my $before = cpu_seconds($worker);

	$sink->forget;
	sql(goals_of(1, $number));
	publish();
	my $count = $sink->count;
	fail("$count->{goals} of $number goals have arrived") if $count->{goals} != $number;
	return $number / (cpu_seconds($worker) - $before || 0.01);
}

subtest 'an old snapshot' => sub {
	my $session = $node->background_psql('postgres');
	my $number = $ENV{ABSMARTLY_EVENTS} // 170_000;
	my %best = (with => 0, without => 0);

	for my $round (1 .. 9)
	{
		for my $kind ($round % 2 ? qw(with without) : qw(without with))
		{
			$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class') if $kind eq 'with';
			my $rate = deliver($number);
			$session->query_safe('COMMIT') if $kind eq 'with';
			$best{$kind} = $rate if $rate > $best{$kind};
		}
		last if $round >= 3 && $best{with} > 0.8 * $best{without};
	}
	note(sprintf '%.0f goals for each second of the worker, with an old snapshot %.0f', $best{without}, $best{with});
	cmp_ok($best{with}, '>', 0.8 * $best{without}, 'does not slow delivery');

	$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class');
	deliver(50_000) for 1 .. 2;
	outbox_is_small('the files are small again while it is held');
	is(sql(q{SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND backend_xmin IS NOT NULL}), '1',
		'as it still is');
	$session->query_safe('COMMIT');
	$session->quit;
};

subtest 'a session that has read the outbox' => sub {
	my $session = $node->background_psql('postgres');
	my $number = 100_000;

	$session->query_safe('BEGIN; ' . join '', map { "SELECT count(*) FROM absmartly_outbox_$_;" } qw(a b bulk_a bulk_b));
	cmp_ok(sql(q{SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
		WHERE c.relname LIKE 'absmartly_outbox%' AND c.relkind IN ('r', 'm') AND l.mode = 'AccessShareLock'}), '>=', 2,
		'holds locks');
	$sink->forget;
	for my $round (0 .. 2)
	{
		sql(goals_of($round * $number + 1, ($round + 1) * $number));
		publish();
	}
	sleep 1;
	arrived('delivery goes on, and repeats nothing', goals => 3 * $number, contexts => 3 * $number,
		digest => FastSink::digest_of(1 .. 3 * $number));
	is(stat_of($node, 'outbox_events'), '0', 'the outbox is empty');
	cmp_ok(sql("SELECT $OUTBOX_FILES"), '>', $SMALL, 'but its files can not shrink');
	cmp_ok(stat_of($node, 'outbox_bytes'), '<', $SMALL, 'which does not count');
	is($session->query_safe('SELECT count(*) FROM absmartly_outbox'), '0', 'the session sees that nothing waits');
	$session->query_safe('COMMIT');
	outbox_is_small('they shrink when it ends');
	arrived('and nothing is repeated then', goals => 3 * $number);
	$session->quit;
};

# One that nobody finishes must not have the files keep what others have delivered.
subtest 'a prepared transaction' => sub {
	my $number = 300_000;
	my $rounds = 10;
	my $most = 0;

	$sink->forget;
	sql('BEGIN; ' . goals_of(0, 0) . q{; PREPARE TRANSACTION 'forgotten'});
	for my $round (0 .. $rounds - 1)
	{
		sql(goals_of($round * $number + 1, ($round + 1) * $number));
		publish();
		my $bytes = sql("SELECT $OUTBOX_FILES");
		$most = $bytes if $bytes > $most;
	}
	note("at most $most bytes");
	cmp_ok($most, '<', 5 * 32 * $number, 'the files take what some rounds need');
	arrived('all others are delivered, once', goals => $rounds * $number, digest => FastSink::digest_of(1 .. $rounds * $number));
	sql(q{COMMIT PREPARED 'forgotten'});
	publish();
	arrived('it, too, when it commits', goals => $rounds * $number + 1);
	outbox_is_small('then nothing is left');
};

#
# Memory of a backend
#

# The most memory that a session of its own takes for queries, in kB more than at their start.
sub growth_by
{
	my ($queries, $done) = @_;
	my $session = $node->background_psql('postgres');
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	my $most = 0;

	# what the first call in a session takes
	$session->query_safe('BEGIN; ' . exposures_of(1, 10) . '; ' . goals_of(1, 10) . '; ROLLBACK');
	my $before = rss_anon($pid);
	$session->query_until(qr/started/, "\\echo started\n$queries;\n");
	await(sub {
		for (1 .. 10)
		{
			my $now = rss_anon($pid);
			$most = $now if $now > $most;
			sleep 0.01;
		}
		return $done->();
	}) or die "the session does not get done";
	$session->quit;
	return $most - $before;
}

subtest 'a million exposures in a transaction' => sub {
	my $number = 1_000_000;
	my $queued = stat_of($node, 'exposures_queued');

	$sink->forget;
	my $growth = growth_by(exposures_of(1, $number), sub { stat_of($node, 'exposures_queued') >= $queued + $number });
	cmp_ok($growth, '<', $BACKEND_LIMIT, 'take little memory of the session');
	publish();
	arrived('all arrive, once', exposures => $number, contexts => $number, digest => FastSink::digest_of(1 .. $number));
	note("$growth kB");
};

subtest 'exception blocks' => sub {
	my $number = 20_000;
	my $queued = stat_of($node, 'goals_queued');

	$sink->forget;
	my $growth = growth_by(<<EOT, sub { stat_of($node, 'goals_queued') > $queued });
DO \$\$
BEGIN
	FOR i IN 1 .. $number LOOP
		BEGIN
			PERFORM absmartly_unit_treatment(i::bigint, 'exp');
			PERFORM absmartly_track(jsonb_build_object('user_id', i), 'bought');
			IF i % 2 = 0 THEN
				RAISE EXCEPTION 'not this one';
			END IF;
		EXCEPTION WHEN raise_exception THEN
			NULL;
		END;
	END LOOP;
END \$\$
EOT
	cmp_ok($growth, '<', $BACKEND_LIMIT, 'take little memory of the session');
	publish();
	arrived('exactly what did not fail arrives', exposures => $number / 2, goals => $number / 2, contexts => $number / 2,
		digest => FastSink::digest_of(map { 2 * $_ - 1 } 1 .. $number / 2));
	note("$growth kB");
};

#
# A memory queue that stays full, and one that is too small
#

subtest 'a memory queue that can not be moved to the outbox' => sub {
	my $number = 50_000;
	my $session = $node->background_psql('postgres');
	my $worker = worker_pid($node);
	my $offset = -s $node->logfile;

	$sink->forget;
	$sink->answer(500);
	$session->query_safe('BEGIN; ' . join ' ', map { "ALTER MATERIALIZED VIEW absmartly_outbox_$_ OWNER TO CURRENT_USER;" } qw(a b));
	sql(<<"EOT");
SET absmartly.durability = memory;
DO \$\$
BEGIN
	FOR i IN 1 .. $number LOOP
		PERFORM absmartly_track('{"user_id": 1}', 'in memory');
		COMMIT;
	END LOOP;
END \$\$;
EOT
	my $before = cpu_seconds($worker);
	ok(await(sub { substr(log_of($node), $offset) =~ /could not write exposures to the outbox/ }), 'a lock is in the way');
	ok(await(sub { sql(q{SELECT wait_event_type FROM pg_stat_activity WHERE backend_type = 'absmartly worker' AND datname = 'postgres'}) eq 'Extension' }), 'the worker rests');
	cmp_ok(cpu_seconds($worker) - $before, '<', 1, 'after little work');
	cmp_ok(rss_anon($worker), '<', 32 * 1024, 'and with little memory');
	$session->query_safe('ROLLBACK');
	$session->quit;
	ok(await_sql($node, 'SELECT outbox_events, memory_queue_entries FROM absmartly_stat', "$number|0"), 'later all is moved');
	is(worker_pid($node), $worker, 'by the same worker');
	$sink->answer(200);
	publish();
	arrived('and sent, once', goals => $number);
};

subtest 'absmartly.memory_queue_size' => sub {
	$node->append_conf('postgresql.conf', "absmartly.memory_queue_size = '64kB'\n");
	$node->restart;
	ok(wait_ready($node), 'ready with 64 kB');
	publish();

	my $offset = -s $node->logfile;
	my %before = counters();
	$sink->forget;
	sql('SET absmartly.durability = memory; BEGIN; ' . exposures_of(1, 5000) . '; ' . goals_of(5001, 10_000) . '; COMMIT');
	publish();
	my %after = counters();
	my %change = map { $_ => $after{$_} - $before{$_} } keys %after;
	note(join ', ', map { "$_ $change{$_}" } sort keys %change);
	cmp_ok($change{exposures_queued} + $change{goals_queued}, '>', 500, 'some of a large transaction\'s events have room');
	is($change{exposures_queued} + $change{exposures_dropped}, 5000, 'the exposures that have none are dropped and counted');
	is($change{goals_queued} + $change{goals_dropped}, 5000, 'so are the goals');
	cmp_ok($change{exposures_dropped} + $change{goals_dropped}, '>', 0, 'there are some');
	arrived('the others arrive', exposures => $change{exposures_queued}, goals => $change{goals_queued},
		contexts => $change{exposures_queued} + $change{goals_queued});
	ok(await(sub { log_since($offset) =~ $drops }), 'the log tells it');

	%before = counters();
	$sink->forget;
	sql('SET absmartly.durability = memory; ' . exposures_of(1, 500));
	publish();
	%after = counters();
	is($after{exposures_dropped}, $before{exposures_dropped}, 'then there is room again');
	arrived('for what fits', exposures => 500, digest => FastSink::digest_of(1 .. 500));
	is(stat_of($node, 'memory_queue_entries'), '0', 'nothing is left');
};

unlike(log_of($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
$node->stop;
done_testing();
