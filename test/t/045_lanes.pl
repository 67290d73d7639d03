
# Two lanes: what happens now does not wait behind masses of events (historic ones, large transactions, what is requeued),
# which nevertheless end.

use strict;
use warnings;

use AbsmartlyMain qw(:DEFAULT arrived publish);
use AbsmartlyTest;
use FastSink;
use Test::More;

start_main(streaming => 1, settings => <<'EOT');
absmartly.publish_delay = 0
absmartly.batch_size = 10
absmartly.max_connections = 2
absmartly.max_retries = 0
absmartly.exposure_dedup_interval = 0
max_prepared_transactions = 5
EOT

# A statement that tracks goals of so many units.
sub goals
{
	my ($name, $number, $historic) = @_;

	$historic = $historic ? 'true' : 'false';
	return "SELECT count(absmartly_track(jsonb_build_object('user_id', i), '$name', historic => $historic)) FROM generate_series(1, $number) AS i";
}

sub exposures
{
	my ($number, $historic) = @_;

	$historic = $historic ? 'true' : 'false';
	return "SELECT count(absmartly_unit_treatment(i::bigint, 'exp', historic => $historic)) FROM generate_series(1, $number) AS i";
}

# Turns publishing on or off, and waits for nothing to be sent.
sub publishing { return set_publishing($node, $_[0], '1 ms') }

sub served_by
{
	my ($collector) = @_;

	return await_sql($node, 'SELECT endpoint FROM absmartly_shared_data()', $collector->url);
}

# The names of the goals in each request, in the order in which they came: a name for each request.
sub order_of_requests
{
	my @names;

	for my $request ($collector->requests(space => '/v1', method => 'PUT'))
	{
		my ($first) = $request->{json}{requests} ? @{ $request->{json}{requests} } : $request->{json};
		push @names, $first->{goals} ? $first->{goals}[0]{name} : '';
	}
	return @names;
}

#
# What is bulk
#

subtest 'what goes where' => sub {
	my $lanes = sub {
		my ($statement, $expected, $name) = @_;

		sql($statement);
		local $Test::Builder::Level = $Test::Builder::Level + 1;
		ok(await_sql($node, q{SELECT string_agg(place || ' ' || n, ', ' ORDER BY place) FROM
			(SELECT left(place, -1) || '*' AS place, count(*) AS n FROM absmartly_pending_events WHERE place NOT IN ('memory', 'parked') GROUP BY 1) AS p},
				$expected), $name);
		sql('SELECT absmartly_publish()') if publishing('on');
		publishing('off');
		return;
	};

	publishing('off');
	$lanes->(goals('one', 1), '* 1', 'a goal is live');
	$lanes->(goals('some', 500), '* 500', 'what fits in a request is live');
	$lanes->(goals('many', 501), 'bulk_* 501', 'what does not is bulk');
	$lanes->(goals('old', 1, 1), 'bulk_* 1', 'a historic goal is bulk');
	$lanes->('BEGIN; ' . goals('old', 3, 1) . '; ' . goals('new', 2) . '; ' . goals('old', 1, 1) . '; COMMIT', '* 6',
		'but not in a transaction with others: they keep their order');
	$lanes->('BEGIN; SAVEPOINT s; ' . goals('many', 501) . '; ROLLBACK TO s; ' . goals('few', 2) . '; COMMIT', '* 2',
		'what was rolled back does not count');
	$lanes->('BEGIN; ' . goals('many', 501) . q{; PREPARE TRANSACTION 'large'; COMMIT PREPARED 'large'}, 'bulk_* 501', 'a large one that was prepared');
	$lanes->('SET absmartly.durability = memory; ' . goals('many', 501), 'bulk_* 501', 'through memory, too');
	$lanes->('SET absmartly.durability = memory; ' . goals('one', 2), '* 2', 'as what is live');
	$lanes->(q{SELECT absmartly_context_create('{"user_id": 1}'); SELECT count(absmartly_context_track('one' || i)) FROM generate_series(1, 5000) AS i},
		'* 5000', 'what a context records is a request of its own');
	$lanes->('CREATE TABLE payments AS SELECT i AS id FROM generate_series(1, 20) AS i; CREATE UNIQUE INDEX ON payments (id)', '', 'a table');
	$lanes->(q{CALL absmartly_backfill_goals('payments', 'id', 'old', 'user_id=id')}, 'bulk_* 20', 'a backfill is bulk');

	sql(goals('old', 2, 1) . '; ' . goals('new', 1));
	is(stat_of($node, 'outbox_events, bulk_events, bulk_records, live_oldest_age IS NOT NULL, bulk_oldest_age IS NOT NULL'),
		'3|2|1|t|t', 'absmartly_stat shows both');
	publishing('on');
	publish();
	is(stat_of($node, 'outbox_events, bulk_events, bulk_records, live_oldest_age IS NULL, bulk_oldest_age IS NULL'), '0|0|0|t|t', 'and that nothing is left');
};

subtest 'what is requeued is bulk' => sub {
	$collector->fault('/v1', { reject_goal => 'bad' });
	sql(goals('bad', 1));
	publish();
	is(stat_of($node, 'dead_letters'), '1', 'a goal is refused');
	publishing('off');
	is(sql('SELECT absmartly_requeue()'), '1', 'and is to be sent again');
	is(stat_of($node, 'outbox_events, bulk_events'), '1|1', 'with the bulk');
	publishing('on');
	publish();
	is(arrived('bad'), 1, 'it arrives');
};

#
# Bulk does not keep others waiting
#

subtest 'a goal behind a backlog' => sub {
	my $number = 1500;

	publishing('off');
	sql(goals('backlog', $number, 1));
	sql(goals('backlog', $number));
	$collector->forget;
	publishing('on');
	ok(await(sub { arrived('backlog') > 0 }), 'bulk is sent');

	# all connections are in use, and stay so
	$collector->pause;
	sql(goals('now', 1));
	my $before = stat_of($node, 'publish_requests');
	my $sent = sub { return stat_of($node, 'publish_requests') };
	ok(await(sub { my $now = $sent->(); my $same = $now == $before; $before = $now; return $same; }), 'until the collector does not answer');
	$collector->resume;
	ok(await(sub { arrived('now') > 0 }), 'a goal arrives');
	cmp_ok(arrived('backlog'), '<', 2 * $number, 'before the bulk has');
	publish();
	is(arrived('backlog'), 2 * $number, 'absmartly_publish() waits for bulk, which ends');
	my @order = order_of_requests();
	my ($place) = grep { $order[$_] eq 'now' } 0 .. $#order;
	my $first = $before - (stat_of($node, 'publish_requests') - @order);
	cmp_ok($place, '<=', $first + 2, 'the goal was in the next requests');
};

subtest 'a goal behind one connection' => sub {
	configure($node, 'absmartly.max_connections = 1');
	publishing('off');
	sql(goals('backlog 1', 1000, 1));
	sql(goals("now $_", 100)) for 1 .. 10;
	$collector->forget;
	publishing('on');
	publish();
	my @order = order_of_requests();
	is(scalar @order, 200, 'all is sent');
	my @early = grep { $_ eq 'backlog 1' } @order[ 0 .. 99 ];
	cmp_ok(scalar @early, '>=', 8, 'bulk has a share while live ones wait');
	cmp_ok(scalar @early, '<=', 20, 'and no more');
	my @late = grep { $_ ne 'backlog 1' } @order[ 120 .. 199 ];
	is(scalar @late, 0, 'the rest is bulk');
	configure($node, 'absmartly.max_connections = 2');
};

subtest 'bulk that fails' => sub {
	my $number = 0;

	$collector->fault('/v1', { match => { method => 'PUT', path => 'context/batch' }, status => 403, times => -1 });
	sql(goals('fails', 20, 1));
	ok(await_sql($node, q{SELECT last_publish_error LIKE '%403%' FROM absmartly_stat}), 'is refused');
	# the pause after that takes 15 s at least
	takes_less(8, 'does not stop what is live', sub {
			$number++;
			sql(goals("goes on $number", 1));
			await(sub { arrived("goes on $number") });
		});
	$collector->clear_faults('/v1');
	publish();
	is(arrived('fails'), 20, 'and arrives later');
};

#
# Room
#

subtest 'absmartly.outbox_max_size' => sub {
	my $sink = FastSink->start(data => experiments(experiment('exp')));
	my $dropped = sub { return stat_of($node, 'exposures_dropped') };

	publishing('off');
	configure($node, "absmartly.outbox_max_size = '1MB'\nabsmartly.batch_size = 500\nabsmartly.endpoint = '" . $sink->url . "'");
	ok(await_sql($node, q{SHOW absmartly.outbox_max_size}, '1MB'), 'the outbox is small');
	ok(served_by($sink), 'the collector is a fast one');
	sql(exposures(60_000, 1));
	is($dropped->(), '0', 'exposures that are historic are an order: none is dropped');
	cmp_ok(stat_of($node, 'bulk_bytes'), '>', 1024 * 1024, 'though bulk has more than that');
	sql(exposures(100)) for 1 .. 10;
	is($dropped->(), '0', 'live ones have room, too');
	ok(await_sql($node, 'SELECT outbox_events - bulk_events FROM absmartly_stat', '1000'), 'and wait beside it');
	sql(exposures(10_000));
	cmp_ok($dropped->(), '>', 9000, 'others of a large transaction have none');
	my $taken = 10_000 - $dropped->();
	publishing('on');
	publish();
	is($sink->count->{exposures}, 60_000 + 1000 + $taken, 'all that was taken arrives');
	ok(await_sql($node, 'SELECT outbox_bytes < 2 * 1024 * 1024 FROM absmartly_stat'), 'the files of both lanes are emptied');
	configure($node, "absmartly.outbox_max_size = '1GB'\nabsmartly.batch_size = 10\n" . collector_settings($collector));
	ok(served_by($collector), 'back to the other collector');
};

#
# A standby has its memory queue only
#

subtest 'a standby' => sub {
	$node->backup('base');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'base', has_streaming => 1);
	$standby->append_conf('postgresql.conf', "absmartly.publishing = off\nabsmartly.max_connections = 1\n" . collector_settings($collector, '/standby'));
	$standby->start;
	ok(wait_ready($standby), 'ready');
	$standby->safe_psql('postgres', goals('large', 600));
	$standby->safe_psql('postgres', goals('small', 1));
	is(stat_of($standby, 'memory_queue_entries > 1'), 't', 'events of a large transaction wait, and a later one');
	configure($standby, 'absmartly.publishing = on');
	my @order;
	ok(await(sub { @order = $collector->goals(space => '/standby'); return @order == 601; }), 'they are sent');
	my ($place) = grep { $order[$_]{name} eq 'small' } 0 .. $#order;
	cmp_ok($place, '<=', 20, 'the later one first');
	$standby->stop;
};

$node->stop;
done_testing();
