
# Events of a hot standby, of its shutdown and promotion, and of a primary that stops with events in memory.

use strict;
use warnings;

use AbsmartlyTest;
use Test::More;
use Time::HiRes qw(sleep);

my $collector = start_collector(data => experiments(experiment('exp')));
my $primary = start_node('primary', collector => $collector, streaming => 1, settings => "absmartly.publish_delay = 100ms\n");

ok(wait_ready($primary), 'the primary is ready');
my $standby = start_standby($primary);
ok(wait_ready($standby), 'the standby is ready');

# A goal for each number, in one transaction.
sub track
{
	my ($node, $goal, $from, $to, $before) = @_;

	$before = $before ? "$before;" : '';
	return $node->safe_psql('postgres', $before . <<EOT);
SELECT count(absmartly_track(jsonb_build_object('user_id', i), '$goal', jsonb_build_object('n', i)))
FROM generate_series($from, $to) AS i
EOT
}

# The numbers of the goals of a name that have arrived, in order.
sub arrived
{
	my ($goal) = @_;

	return join ' ', sort { $a <=> $b } map { $_->{properties}{n} } $collector->goals(space => '/v1', name => $goal);
}

sub arrive
{
	my ($goal, $from, $to, $name) = @_;
	my $expected = join ' ', $from .. $to;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	await(sub { length arrived($goal) >= length $expected });
	return is(arrived($goal), $expected, $name);
}

sub publish
{
	my ($node) = @_;

	return $node->safe_psql('postgres', "SELECT absmartly_publish('$PATIENCE s')");
}

# A standby's own events
is($standby->safe_psql('postgres', q{SELECT count(absmartly_treatment(jsonb_build_object('user_id', i), 'exp')) FROM generate_series(1, 20) AS i}),
	'20', 'a query on the standby assigns');
ok(await(sub { $collector->exposures(space => '/v1', name => 'exp') >= 20 }), 'its exposures arrive');
$standby->safe_psql('postgres', q{SELECT absmartly_treatment(jsonb_build_object('user_id', i), 'exp') FROM generate_series(1, 20) AS i});
publish($standby);
is(scalar(() = $collector->exposures(space => '/v1', name => 'exp')), 20, 'once each');
is(stat_of($standby, 'exposures_sent, exposures_deduplicated'), '20|20', 'as the statistics of the standby say');
is(stat_of($primary, 'exposures_sent'), '0', 'the primary has no part in it');
track($standby, 'on standby', 1, 20);
arrive('on standby', 1, 20, 'goals of the standby arrive');
$standby->safe_psql('postgres', q{BEGIN; SELECT absmartly_track('{"user_id": 1}', 'undone'); ROLLBACK});

configure($standby, 'absmartly.publish_delay = 1h');
ok(await(sub { $standby->safe_psql('postgres', 'SHOW absmartly.publish_delay') eq '1h' }), 'the standby waits for company');
track($standby, 'asked', 1, 30);
is($standby->safe_psql('postgres', q{SELECT place, count(*) FROM absmartly_pending_events GROUP BY place}), 'memory|30', 'events wait in memory');
is(stat_of($standby, 'memory_queue_entries, outbox_records'), '1|0', 'of the standby');
is(stat_of($primary, 'memory_queue_entries, outbox_records'), '0|0', 'and of it alone');
is(publish($standby), '30', 'absmartly_publish() sends them');
is(arrived('asked'), join(' ', 1 .. 30), 'all of them');
is(publish($standby), '0', 'and nothing when there is nothing');
is(arrived('undone'), '', 'what was rolled back is not there');

configure($standby, 'absmartly.max_retries = 0');
$collector->fault('/v1', { match => { method => 'PUT' }, status => 503, times => -1 });
track($standby, 'in vain', 1, 5);
fails_with($standby, "SELECT absmartly_publish('$PATIENCE s');", '08006', qr/status 503/, 'a failure is told');
is($standby->safe_psql('postgres', q{SELECT place, count(*) FROM absmartly_pending_events GROUP BY place}), 'memory|5', 'and nothing is lost by it');
$collector->clear_faults('/v1');
# by itself, if its pause is over
cmp_ok(publish($standby), '<=', 5, 'later it works');
arrive('in vain', 1, 5, 'and all is there');

fails_with($standby, 'SELECT absmartly_requeue();', '25006', qr/during recovery/, 'absmartly_requeue() needs a server that can write');
fails_with($standby, 'SELECT absmartly_discard();', '25006', qr/during recovery/, 'absmartly_discard() does, too');

# What waits in the outbox is the primary's
ok(set_publishing($primary, 'off'), 'the primary keeps its events');
track($primary, 'of primary', 1, 10);
track($primary, 'of primary', 11, 20, 'SET absmartly.durability = memory');
ok(await_sql($primary, 'SELECT outbox_events FROM absmartly_stat', '20'), 'in the outbox');
$primary->wait_for_catchup($standby, 'replay');
ok(await_sql($standby, 'SELECT count(*) FROM absmartly_pending_events', '20'), 'a query on the standby shows them');
track($standby, 'beside', 1, 3);
is(publish($standby), '3', 'the standby sends its own');
is(arrived('of primary'), '', 'and no others');
ok(set_publishing($primary, 'on'), 'the primary sends again');
arrive('of primary', 1, 20, 'the primary sends them');
publish($primary);
$primary->wait_for_catchup($standby, 'replay');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM absmartly_pending_events'), '0', 'the standby sees that they are delivered');

# The standby's shutdown
track($standby, 'last words', 1, 40);
is(stat_of($standby, 'memory_queue_entries'), '1', 'events wait on the standby');
$standby->stop('fast');
is(arrived('last words'), join(' ', 1 .. 40), 'which are sent when it stops');

$standby->start;
ok(wait_ready($standby), 'the standby is back');
is(publish($standby), '0', 'with nothing to send');
$collector->fault('/v1', { match => { method => 'PUT' }, hang => 1, times => -1 });
my $stops = 0;
takes_less(5, 'it does not wait for a collector that hangs', sub { $standby->stop('fast') }, sub {
	$standby->start if $stops++;
	track($standby, 'nobody hears', 1, 5);
});
$collector->clear_faults('/v1');
$standby->start;
ok(wait_ready($standby), 'the standby is back again');
is(arrived('nobody hears'), '', 'what its memory had is lost');

# The primary's shutdown: the memory queue goes to the outbox.  The worker stands still meanwhile, so that it is the
# shutdown that does it.
sub stop_with_memory
{
	my ($goal, $name) = @_;

	stop_until_shutdown($primary, worker_pid($primary));
	track($primary, $goal, 1, 10, 'SET absmartly.durability = memory');
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(stat_of($primary, 'memory_queue_entries, outbox_records'), '1|0', "$name: events are in memory");
	return $primary->stop('fast');
}

ok(set_publishing($primary, 'off'), 'the primary keeps its events');
stop_with_memory('kept in memory', 'publishing off');
$primary->start;
is(stat_of($primary, 'outbox_events, memory_queue_entries'), '10|0', 'they are in the outbox after a restart');
ok(set_publishing($primary, 'on'), 'the primary sends again');
arrive('kept in memory', 1, 10, 'and they are delivered');

$collector->fault('/v1', { match => { method => 'PUT' }, status => 503, times => -1 });
stop_with_memory('refused in memory', 'collector down');
$collector->clear_faults('/v1');
$primary->start;
arrive('refused in memory', 1, 10, 'they are delivered after the restart');
ok(await_sql($primary, 'SELECT outbox_records FROM absmartly_stat', '0'), 'nothing waits any more');

# Promotion, with events in the outbox and in the standby's memory.  The worker looks for it at its refresh interval.
configure($standby, 'absmartly.refresh_interval = 1');
track($primary, 'delivered', 1, 200);
track($primary, 'delivered', 201, 210, 'SET absmartly.durability = memory');
arrive('delivered', 1, 210, 'the primary delivers');
publish($primary);
ok(set_publishing($primary, 'off'), 'then it does not');
track($primary, 'inherited', 1, 60);
track($primary, 'inherited', 61, 70, 'SET absmartly.durability = memory');
ok(await_sql($primary, 'SELECT outbox_events FROM absmartly_stat', '70'), 'events wait in the outbox');
$primary->wait_for_catchup($standby, 'replay');
$primary->stop('fast');
track($standby, 'across promotion', 1, 25);
is(stat_of($standby, 'memory_queue_entries'), '1', 'and in memory of the standby');
$standby->promote;
ok(await_sql($standby, 'SELECT NOT pg_is_in_recovery()', 't'), 'promoted');
arrive('inherited', 1, 70, 'the promoted server sends what the primary had not');
arrive('across promotion', 1, 25, 'and what it had itself');
is(publish($standby), '0', 'that is all');
is(arrived('delivered'), join(' ', 1 .. 210), 'nothing that the primary had delivered is sent again');
is(stat_of($standby, 'foreign_records'), '0', 'and nothing is foreign');

# now its own outbox
ok(set_publishing($standby, 'off'), 'the promoted server keeps its events');
track($standby, 'promoted', 1, 15);
is($standby->safe_psql('postgres', q{SELECT place IN ('a', 'b'), count(*) FROM absmartly_pending_events GROUP BY 1}), 't|15', 'goals go through its outbox');
ok(set_publishing($standby, 'on'), 'it sends again');
arrive('promoted', 1, 15, 'and delivers them');
my %seen;
$seen{"$_->{name} $_->{properties}{n}"}++ for $collector->goals(space => '/v1');
is(join(', ', grep { $seen{$_} > 1 } sort keys %seen), '', 'no goal was sent twice, by whom ever');

$standby->stop;
done_testing();
