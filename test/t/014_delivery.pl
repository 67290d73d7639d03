
# Delivery: from a commit to the collector; what its answers lead to; the end of the worker.

use strict;
use warnings;

use AbsmartlyMain qw(:DEFAULT arrived publish);
use AbsmartlyTest;
use Test::More;
use Time::HiRes qw(sleep time);

start_main(settings => <<'EOT');
absmartly.publish_delay = 100ms
absmartly.max_retries = 2
EOT

sub track
{
	my ($goal, $from, $to) = @_;

	$to //= $from;
	return $node->safe_psql('postgres', "DO \$\$ BEGIN PERFORM absmartly_track(jsonb_build_object('user_id', i), '$goal') FROM generate_series($from, $to) i; END \$\$");
}

sub arrive
{
	my ($goal, $number, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(await(sub { arrived($goal) >= $number }), $name) && is(arrived($goal), $number, "$name, once");
}

# the plain case
track('first', 1);
arrive('first', 1, 'a goal arrives by itself');
is($node->safe_psql('postgres', 'SELECT absmartly_treatment(\'{"user_id": 1}\', \'exp\') IN (0, 1)'), 't', 'an exposure is queued');
ok(await(sub { $collector->exposures(space => '/v1', name => 'exp') == 1 }), 'and arrives');
my ($request) = $collector->publish_requests(space => '/v1');
is($request->{hashed}, 1, 'with hashed units');
cmp_ok(abs($request->{publishedAt} / 1000 - time), '<', 60, 'at the moment of sending');
$node->safe_psql('postgres', q{BEGIN; SELECT absmartly_track('{"user_id": 1}', 'undone'); ROLLBACK});

# on request
track('asked', 1, 1200);
is(publish() + 0 <= 1200 ? arrived('asked') : -1, 1200, 'absmartly_publish() delivers all that was committed');
is(publish(), '0', 'and nothing when there is nothing');
is(arrived('undone'), 0, 'what was rolled back is not there');
my @sizes = map { scalar @{ $_->{json}{requests} } } $collector->requests(space => '/v1', path => 'context/batch');
cmp_ok((sort { $b <=> $a } @sizes)[0], '<=', 500, 'in batches of at most 500');
is(stat_of($node, 'goals_sent'), '1201', 'the statistics count them');
is(stat_of($node, 'exposures_sent'), '1', 'and exposures');
is(stat_of($node, 'outbox_records'), '0', 'nothing is left in the outbox');

# turned off, and back on
ok(set_publishing($node, 'off'), 'turned off it says so');
fails_with($node, "SELECT absmartly_publish('$PATIENCE s');", '55000', qr/events are not published/, 'as 55000');
track('kept', 1, 10);
sleep 0.5;
is(arrived('kept'), 0, 'events are kept');
is(stat_of($node, 'outbox_events'), '10', 'in the outbox');
configure($node, 'absmartly.publishing = on');
arrive('kept', 10, 'turned on they go out');

# failures: retries, rounds, nothing lost
$collector->fault('/v1', { match => { method => 'PUT' }, status => 500, times => 2 });
track('retried', 1);
arrive('retried', 1, 'retries overcome a failure');
cmp_ok(stat_of($node, 'publish_retries'), '>=', 2, 'and are counted');
$collector->fault('/v1', { match => { method => 'PUT' }, status => 503, body => 'closed', times => -1 });
track('failed', 1, 5);
# the pause doubles: after so many rounds it takes minutes
fails_with($node, "SELECT absmartly_publish('$PATIENCE s');", '08006', qr/status 503: "closed"/, 'absmartly_publish() tells why it fails')
	for 1 .. 9;
like(stat_of($node, 'last_publish_error'), qr/status 503/, 'so do the statistics');
like(stat_of($node, 'worker_state'), qr/backing off|retrying|publishing/, 'and the state of the worker');
$collector->clear_faults('/v1');
is(publish(), '5', 'once it is better a publish ends the pause');
is(arrived('failed'), 5, 'nothing is lost');

# a key that is refused
$collector->set_keys('/v1', ['right-key']);
track('locked', 1);
fails_with($node, "SELECT absmartly_publish('$PATIENCE s');", '08006', qr/status 401/, 'a refused key is a fault');
$collector->set_keys('/v1', []);
is(publish(), '1', 'repaired');

# HTML from somebody in between
$collector->fault('/v1', { match => { method => 'PUT' }, html => 1, times => -1 });
track('html', 1);
fails_with($node, "SELECT absmartly_publish('$PATIENCE s');", '08006', qr/HTML page/, 'an HTML page is no answer');
$collector->clear_faults('/v1');
publish();
is(arrived('html'), 1, 'and takes nothing in');

# what is refused for good: by index, and by bisecting
$collector->fault('/v1', { reject_goal => 'broken', times => -1 });
track('good', 1, 20);
track('broken', 1);
track('good', 21, 40);
publish();
is(arrived('good'), 40, 'what is refused does not stop the others');
is($node->safe_psql('postgres', q{SELECT count(*), count(DISTINCT note) FROM absmartly_dead_letters WHERE goal = 'broken'}), '1|1', 'it is kept');
isnt($node->safe_psql('postgres', q{SELECT note FROM absmartly_dead_letters}), '', 'with words');
is(stat_of($node, 'goals_rejected'), '1', 'and counted');
is(stat_of($node, 'dead_letters'), '1', 'as a dead letter');
ok(log_of($node) =~ /the collector has refused 1 event/, 'and reported');
$collector->clear_faults('/v1');
$collector->fault('/v1', { reject_goal => 'vague', with_index => 0, times => -1 });
track('fine', 1, 100);
track('vague', 1);
track('fine', 101, 200);
publish();
is(arrived('fine'), 200, 'without an index the others are found by bisecting');
is($node->safe_psql('postgres', q{SELECT count(*) FROM absmartly_dead_letters WHERE goal = 'vague'}), '1', 'and the one that is refused');
$collector->clear_faults('/v1');

# too large
$collector->fault('/v1', { match => { method => 'PUT', path => 'context/batch' }, status => 413, html => 'too large', times => 2 });
track('large', 1, 300);
publish();
is(arrived('large'), 300, 'a batch that is too large is halved');

# a batch that the collector always fails on does not stop the others
$collector->fault('/v1', { match => { method => 'PUT', path => 'context/batch' }, status => 500, times => -1 });
track('poison', 1, 2);
ok(await(sub { stat_of($node, 'publish_failures') > 0 && stat_of($node, 'last_publish_error') =~ /500/ }), 'a batch fails');
for my $n (1 .. 5)
{
	track('passing', $n);
	await(sub { arrived('passing') == $n });
}
is(arrived('passing'), 5, 'others pass');
$collector->clear_faults('/v1');
publish();
is(arrived('poison'), 2, 'and it, in the end');

# without the batch endpoint
$collector->set_batch('/v1', 0);
track('single', 1, 50);
publish();
is(arrived('single'), 50, 'a collector without batches is served singly');
ok(log_of($node) =~ /takes no batches/, 'as the log tells');
$collector->set_batch('/v1', 1);

# the end of the worker in mid-request: it waits for the answer, unless it is asked once more
my $hung = 0;
my $pid;
takes_less(1, 'within a second', sub {
	ok(await(sub { !kill 'TERM', $pid }), 'more than one SIGTERM ends the worker');
}, sub {
	$collector->fault('/v1', { match => { method => 'PUT' }, hang => 1, times => 1 });
	track('hung', ++$hung);
	ok($collector->wait_for_request(method => 'PUT', state => 'pending'), 'a request hangs');
	$pid = worker_pid($node);
});
arrive('hung', $hung, 'the next worker delivers');

# a restart
ok(set_publishing($node, 'off'), 'off');
track('restarted', 1, 3);
$node->restart;
configure($node, 'absmartly.publishing = on');
arrive('restarted', 3, 'events outlast a restart');

# the memory queue goes to the outbox at shutdown
ok(set_publishing($node, 'off'), 'off again');
stop_until_shutdown($node, worker_pid($node));
$node->safe_psql('postgres', q{SET absmartly.durability = memory; SELECT absmartly_track('{"user_id": 1}', 'memory')});
is(stat_of($node, 'memory_queue_entries'), '1', 'an event is in memory');
$node->restart;
is(stat_of($node, 'outbox_events'), '1', 'and in the outbox after a restart');
configure($node, 'absmartly.publishing = on');
arrive('memory', 1, 'and at the collector');

$node->stop;
done_testing();
