
# A standby is promoted while its worker waits for an answer: the worker after it serves the same memory meanwhile, in
# which are what the first one has sent, what it was going to send, and what comes.

use strict;
use warnings;

use AbsmartlyTest;
use Test::More;

my $collector = start_collector(data => experiments(experiment('exp')));
my $primary = start_node('primary', collector => $collector, streaming => 1, settings => <<'EOT');
absmartly.publish_delay = 0
absmartly.refresh_interval = 1
absmartly.max_connections = 2
absmartly.batch_size = 1
absmartly.max_retries = 0
absmartly.request_timeout = 120s
EOT
ok(wait_ready($primary), 'the primary is ready');
my $standby = start_standby($primary);
ok(wait_ready($standby), 'the standby is ready');

# the worker has one request on its way, and another one that has failed and waits; the rest it leaves where it is
sub track
{
	my ($n) = @_;

	return $standby->safe_psql('postgres', "SELECT absmartly_track('{\"user_id\": 1}', 'goal', '{\"n\": $n}')");
}

$collector->fault('/v1', { match => { method => 'PUT' }, delay_ms => 40000 });
track(1);
ok(await_sql($standby, 'SELECT publish_requests FROM absmartly_stat', '1'), 'a request is on its way');
$collector->fault('/v1', { match => { method => 'PUT' }, status => 503, times => -1 });
track(2);
ok(await_sql($standby, 'SELECT publish_failures FROM absmartly_stat', '1'), 'another one has failed');
track($_) for 3 .. 6;
is(stat_of($standby, 'memory_queue_entries'), '6', 'events are in memory');
my $before = worker_pid($standby);
$standby->promote;
ok(await(sub { stat_of($standby, 'worker_pid') !~ /^(|$before)$/ }), 'another worker has come');
ok(await_sql($standby, 'SELECT outbox_events > 0 FROM absmartly_stat', 't'), 'and saves what is in memory');
is($standby->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE pid = $before"), '1', 'while the one before it waits');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM absmartly_pending_events'), '6', 'all of them wait, as the view shows');
$collector->clear_faults('/v1');
ok(await_sql($standby, "SELECT count(*) FROM pg_stat_activity WHERE pid = $before", '0'), 'until it has its answer');
ok(await_sql($standby, 'SELECT count(*) FROM absmartly_pending_events', '0'), 'nothing waits any more');
is(join(' ', sort map { $_->{properties}{n} } $collector->goals(space => '/v1', name => 'goal')), '1 2 3 4 5 6', 'each goal has arrived, once');

$standby->stop;
$primary->stop;
done_testing();
