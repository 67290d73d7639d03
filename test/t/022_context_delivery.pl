
# What session contexts have recorded, on its way: held and let go, one request for each context, failures, ends of sessions,
# workers and servers.

use strict;
use warnings;

use AbsmartlyTest;
use Test::More;
use Time::HiRes qw(sleep);

my $collector = start_collector(data => experiments(experiment('exp'), experiment('other', id => 2)));
my $node = start_node('main', collector => $collector, streaming => 1, extension => 0, settings => <<'EOT');
restart_after_crash = on
max_prepared_transactions = 4
absmartly.publish_delay = 20ms
absmartly.max_retries = 1
EOT

$node->safe_psql('postgres', <<'EOT');
CREATE TABLE log (n serial, context jsonb, event text, data jsonb);
CREATE FUNCTION log(context jsonb, event text, data jsonb) RETURNS void LANGUAGE sql
AS $$ INSERT INTO public.log (context, event, data) VALUES (context, event, data) $$;
ALTER DATABASE postgres SET absmartly.event_logger = 'public.log';
EOT
create_extension($node);
ok(wait_ready($node), 'ready');

my @open;

# A session with a context: its events are held unless options say otherwise.
sub session
{
	my ($uid, %options) = @_;
	my $on = $options{node} // $node;
	my $session = $on->background_psql($options{database} // 'postgres', on_error_stop => 0);
	my $delay = $options{delay} // -1;

	push @open, $session;
	$session->query_safe("SELECT absmartly_context_create('{\"user_id\": \"$uid\"}', NULL, NULL, '{\"publish_delay\": $delay}')");
	$session->query_safe("SELECT absmartly_context_wait_until_ready('$PATIENCE s')");
	return ($session, $session->query_safe('SELECT absmartly_context_id()'));
}

# Runs something; gives what it has to say, errors too.
sub run
{
	my ($session, $query) = @_;

	$session->{stderr} = '';
	my $answer = $session->query($query);
	my $error = $session->{stderr};
	$session->{stderr} = '';
	return $error ne '' ? $error : $answer;
}

sub track
{
	my ($session, $goal, $from, $to) = @_;

	for my $n ($from .. $to // $from)
	{
		$session->query_safe("SELECT absmartly_context_track('$goal', '{\"n\": $n}')");
	}
	return;
}

sub publish { my ($session) = @_; return run($session, "SELECT absmartly_context_publish('$PATIENCE s')") }

# The requests that hold a goal of a name; the numbers of its goals, in order of their coming.
sub requests_of
{
	my ($goal) = @_;

	return grep { grep { $_->{name} eq $goal } @{ $_->{goals} // [] } } $collector->publish_requests(space => '/v1');
}

sub numbers_in { return join ' ', map { map { $_->{properties}{n} } @{ $_->{goals} // [] } } @_ }

sub arrived { my ($goal) = @_; return numbers_in(requests_of($goal)) }

sub arrive
{
	my ($goal, $expected, $name) = @_;

	await(sub { length arrived($goal) >= length $expected });
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(arrived($goal), $expected, $name);
}

# What the outbox says of a context.
sub outbox
{
	my ($id, $on) = @_;

	return ($on // $node)->safe_psql('postgres',
		"SELECT string_agg(DISTINCT place || ' ' || status, ', '), sum(goals + exposures) FROM absmartly_outbox WHERE context_id = '$id'");
}

# Has the worker come to rest after a pass over all that is committed.
sub settle
{
	$node->safe_psql('postgres', "SELECT absmartly_publish('$PATIENCE s')");
	return;
}

# Held until they are let go; one request of many transactions, in order, with the header as it is at the end
{
	my ($session, $id) = session('alice');

	track($session, 'held', 1, 3);
	like(outbox($id), qr/^\w+ waiting\|3$/, 'what is held waits in the outbox');
	settle();
	is(outbox($id), 'parked held|3', 'is moved aside by a pass');
	is(arrived('held'), '', 'and is not sent, nor by absmartly_publish()');
	is(stat_of($node, 'held_records, outbox_records'), '3|0', 'the statistics count it by itself');
	is($node->safe_psql('postgres', "SELECT count(*) FROM absmartly_pending_events WHERE context_id = '$id'"), '3', 'it is pending');
	is($node->safe_psql('postgres', 'SELECT absmartly_discard(), absmartly_requeue()'), '0|0', 'and nothing for absmartly_discard() or absmartly_requeue()');

	$session->query_safe(q{SELECT absmartly_context_treatment('exp')});
	$session->query_safe(q{SELECT absmartly_context_set_attribute('age', 5)});
	$session->query_safe(q{SELECT absmartly_context_set_unit('device_id', 'd1')});
	track($session, 'held', 4);
	is($session->query_safe('SELECT absmartly_context_pending()'), '5', 'pending counts all');
	$session->query_safe(q{SELECT absmartly_context_set_attribute('age', 6)});
	is(publish($session), '', 'publish');
	my @requests = requests_of('held');
	is(scalar @requests, 1, 'makes one request');
	is(numbers_in(@requests), '1 2 3 4', 'with all events in order');
	is(scalar @{ $requests[0]{exposures} }, 1, 'exposures too');
	is(join(' ', sort map { $_->{type} } @{ $requests[0]{units} }), 'device_id user_id', 'and the units');
	is(join(' ', map { "$_->{name} $_->{value}" } @{ $requests[0]{attributes} }), 'age 5 age 6', 'and attributes as they are at the end');
	cmp_ok($requests[0]{attributes}[0]{setAt}, '<=', $requests[0]{attributes}[1]{setAt}, 'each with its time');
	is($session->query_safe('SELECT absmartly_context_pending()'), '0', 'nothing is pending any more');
	is(outbox($id), '|', 'nor in the outbox');
	is($node->safe_psql('postgres', "SELECT count(*) FROM log WHERE event = 'publish' AND context->>'id' = '$id' AND context->>'source' = 'context'"),
		'1', 'the event logger was told before the caller went on');
	is(publish($session), '', 'another publish');
	is(scalar(requests_of('held')), 1, 'sends nothing');
	$session->query_safe(q{SELECT absmartly_context_set_attribute('age', 7)});
	is(publish($session), '', 'nor for an attribute alone');
	is(scalar(requests_of('held')), 1, 'which is no request');

	# some of them, and the rest later
	track($session, 'parts', 1, 2);
	settle();
	$session->query_safe(q{BEGIN; SELECT absmartly_context_track('parts', '{"n": 3}')});
	is(publish($session), '', 'publish in a transaction');
	is(arrived('parts'), '1 2', 'sends what is committed');
	$session->query_safe('COMMIT');
	arrive('parts', '1 2 3', 'and the rest at once when that is');
	track($session, 'parts', 4);
	settle();
	is(arrived('parts'), '1 2 3', 'what comes after it is held again');
	$session->query_safe("SELECT absmartly_context_finalize('$PATIENCE s')");
	is(arrived('parts'), '1 2 3 4', 'finalize lets go');
}

# A context without options of its own goes like others; one with a delay when that is over
{
	my ($session, $id) = session('bob', delay => 'null');

	track($session, 'plain', 1);
	arrive('plain', '1', 'without an option nothing is held');

	my ($slow) = session('carol', delay => 3000);
	track($slow, 'slow', 1, 2);
	arrive('slow', '1 2', 'with a delay events arrive when it is over');
	my @requests = requests_of('slow');
	is(scalar @requests, 1, 'in one request');
	cmp_ok($requests[0]{publishedAt} - $requests[0]{goals}[0]{achievedAt}, '>=', 2900, 'and not before');

	my ($slower, $slower_id) = session('dave', delay => 8000);
	track($slower, 'slower', 1);
	settle();
	is(outbox($slower_id), 'parked held|1', 'with a long one they are moved aside');
	arrive('slower', '1', 'and found when it is over');
}

# One that commits all the time: what was due does not wait for what comes, and no request has a gap
{
	my ($session) = session('busy', delay => 20);
	my $most = 2000;

	# made by the server: psql takes no more at a time than it can read
	$session->query_safe("SELECT format('SELECT absmartly_context_track(%L, %L)', 'busy', json_build_object('n', i)) FROM generate_series(1, $most) AS i \\gexec");
	is(publish($session), '', 'published');
	my @requests = requests_of('busy');
	cmp_ok(scalar @requests, '>', 2, 'a context that is busy is sent again and again');
	is(join(' ', sort { $a <=> $b } split / /, numbers_in(@requests)), join(' ', 1 .. $most), 'each event once');
	is(scalar(grep { my @numbers = split / /, numbers_in($_); $numbers[-1] - $numbers[0] != $#numbers } @requests), 0, 'in order, without gaps');
	$collector->forget('/v1');
}

# A session ends; another context takes the place of one; a session crashes
{
	my ($session, $id) = session('erin');

	track($session, 'ended', 1, 2);
	$session->quit;
	arrive('ended', '1 2', 'what a session has left is sent when it ends');

	($session, $id) = session('erin');
	track($session, 'replaced', 1, 2);
	settle();
	is(outbox($id), 'parked held|2', 'held');
	$session->query_safe('SELECT absmartly_context_create()');
	arrive('replaced', '1 2', 'what a context has left is sent when there is another one');
	is($session->query_safe('SELECT absmartly_context_pending()'), '0', 'which does not count it');
	track($session, 'discarded', 1);
	$session->query_safe('DISCARD ALL');
	arrive('discarded', '1', 'so it is at DISCARD ALL');
}

# Two contexts, one let go
{
	my ($one) = session('one');
	my ($two, $two_id) = session('two');

	track($one, 'both', $_), track($two, 'both', $_ + 10) for 1 .. 3;
	settle();
	publish($one);
	is(arrived('both'), '1 2 3', 'each context has its own');
	is(outbox($two_id), 'parked held|3', 'the other one holds');
	publish($two);
	is(arrived('both'), '1 2 3 11 12 13', 'until it does not');
}

# Large: more than a request takes is cut, in order; a record in several chunks is held as well
{
	configure($node, 'absmartly.batch_bytes = 64kB');
	my ($session, $id) = session('large');

	$session->query_safe(q{SELECT absmartly_context_set_attribute('text', repeat('x', 30000))});
	$session->query_safe(qq{SELECT absmartly_context_track('large', jsonb_build_object('n', i, 'text', repeat(i::text, 2000)))
		FROM generate_series(1, 80) AS i}) for 1 .. 2;
	settle();
	like(outbox($id), qr/^parked held\|160$/, 'large records are held');
	is(publish($session), '', 'published');
	my @requests = requests_of('large');
	cmp_ok(scalar @requests, '>', 3, 'in several requests');
	is(join(' ', sort { $a <=> $b } split / /, numbers_in(@requests)), join(' ', sort { $a <=> $b } 1 .. 80, 1 .. 80), 'with all events, once');
	my $broken = grep {
		my @numbers = split / /, numbers_in($_);
		grep { $numbers[ $_ - 1 ] % 80 + 1 != $numbers[$_] } 1 .. $#numbers
	} @requests;
	is($broken, 0, 'each with some that follow each other');
	is(scalar(grep { length($_->{attributes}[0]{value}) == 30000 } @requests), scalar @requests, 'each with the header');
	is($session->query_safe('SELECT absmartly_context_pending()'), '0', 'and counted once');
	configure($node, 'absmartly.batch_bytes = 1MB');
	$collector->forget('/v1');
}

# A collector that fails: told at the end of the first round, and held as before
{
	my ($session, $id) = session('frank');
	my ($other) = session('grace', delay => 'null');

	$node->safe_psql('postgres', 'TRUNCATE log');
	track($session, 'failing', 1, 2);
	$collector->fault('/v1', { match => { method => 'PUT' }, status => 503, body => 'closed', times => -1 });
	like(publish($session), qr/ERROR:  Publish failed: .*status 503/, 'a failed publish');
	is($session->query_safe('SELECT absmartly_context_pending()'), '2', 'leaves the events where they were');
	is($node->safe_psql('postgres', "SELECT count(*), min(data #>> '{}') ~ 'status 503' FROM log WHERE event = 'error' AND context->>'id' = '$id'"),
		'1|t', 'the event logger was told of it');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM log WHERE event = 'error' AND context->>'id' IS NULL}), '0', 'once');
	track($other, 'others', 1);
	like(publish($session), qr/Publish failed: .*status 503/, 'so does the next one');
	like(run($session, "SELECT absmartly_context_finalize('$PATIENCE s')"), qr/Publish failed: .*status 503/, 'and finalize');
	$collector->clear_faults('/v1');
	arrive('others', '1', 'what is not held is sent when it can be');
	settle();
	is(arrived('failing'), '', 'what is held is held');
	is(outbox($id), 'parked held|2', 'as before');
	track($session, 'failing', 3);
	is(publish($session), '', 'publish');
	is(arrived('failing'), '1 2 3', 'sends it, once');
	is($session->query_safe('SELECT absmartly_context_pending()'), '0', 'nothing is pending');

	# the caller gives up
	$collector->fault('/v1', { match => { method => 'PUT' }, hang => 1, times => -1 });
	track($session, 'cancelled', 1);
	like(run($session, "SET statement_timeout = 200; SELECT absmartly_context_publish('$PATIENCE s')"), qr/statement timeout/, 'a caller that gives up');
	$session->query_safe('RESET statement_timeout');
	like(run($session, q{SELECT absmartly_context_publish('0 s')}), qr/ERROR:  Publish failed/, 'or does not wait');
	$collector->restart;    # which ends the request
	settle();
	is(arrived('cancelled'), '', 'holds its events');
	is($session->query_safe('SELECT absmartly_context_pending()'), '1', 'and has them');
	publish($session);
	is(arrived('cancelled'), '1', 'until it asks again');

	# a collector that asks for quiet is left alone by those who may have contexts published: that is everybody
	my $requests = sub { scalar grep { $_->{method} eq 'PUT' } $collector->requests(space => '/v1') };

	track($session, 'quiet', 1);
	$collector->fault('/v1', { match => { method => 'PUT' }, status => 429, headers => { 'Retry-After' => '600' }, times => 1 });
	like(publish($session), qr/ERROR:  Publish failed: .*status 429/, 'the collector asks for quiet');
	my $before = $requests->();
	like(run($session, q{SELECT absmartly_context_publish('1 s')}), qr/ERROR:  Publish failed: time-out\n.*Last error: .*status 429/, 'another publish waits in vain');
	is($requests->(), $before, 'and asks for nothing');
	$node->safe_psql('postgres', "SELECT absmartly_publish('$PATIENCE s')");
	is(publish($session), '', 'an administrator ends the quiet');
	is(arrived('quiet'), '1', 'then it arrives');
}

# Refused for good: the caller is told the collector's words, the events are dead letters as they were sent
{
	my ($session, $id) = session('heidi');

	$collector->fault('/v1', { reject_goal => 'broken', times => -1 });
	track($session, 'broken', 1);
	$session->query_safe(q{SELECT absmartly_context_set_attribute('late', true)});
	like(publish($session), qr/ERROR:  Publish failed: \S/, 'refused events fail the publish');
	is($session->query_safe('SELECT absmartly_context_pending()'), '0', 'and are pending no more');
	is($node->safe_psql('postgres', q{SELECT count(*), min(attributes::text) ~ 'late' FROM absmartly_dead_letters WHERE goal = 'broken'}),
		'1|t', 'they are kept with what was sent');
	$collector->clear_faults('/v1');
	is(publish($session), '', 'the next publish is fine');
	is($node->safe_psql('postgres', 'SELECT absmartly_requeue()'), '1', 'a dead letter that is sent again');
	arrive('broken', '1', 'arrives');
	is($session->query_safe('SELECT absmartly_context_pending()'), '0', 'and counts for nobody');
}

# Where nothing may be sent
{
	my ($session, $id) = session('ivan');

	track($session, 'obstacle', 1);
	ok(set_publishing($node, 'off'), 'turned off');
	like(publish($session), qr/ERROR:  Publish failed: "absmartly\.publishing" is off/, 'a publish fails');
	configure($node, 'absmartly.publishing = on');
	settle();
	is(arrived('obstacle'), '', 'what is held is held');
	publish($session);
	is(arrived('obstacle'), '1', 'and sent when it is asked for');
}

# The heaps change while somebody holds events
{
	my ($session, $id) = session('judy');
	my $small = 64 * 8192;

	track($session, 'rotated', 1);
	for my $round (1 .. 3)
	{
		$node->safe_psql('postgres', q{SELECT count(absmartly_track('{"user_id": 1}', 'filler', jsonb_build_object('text', repeat('x', 1000)))) FROM generate_series(1, 2000)});
		settle();
	}
	ok(await_sql($node, q{SELECT pg_relation_size('absmartly_outbox_a') + pg_relation_size('absmartly_outbox_b') < } . 2 * $small), 'the heaps are emptied');
	is(outbox($id), 'parked held|1', 'what is held is not among them');
	publish($session);
	is(arrived('rotated'), '1', 'and is found');
	ok(await_sql($node, q{SELECT pg_relation_size('absmartly_outbox_parked') = 0}), 'the third heap is emptied as well');
	$collector->forget('/v1');
}

# The third heap does not grow for ever where something stays in it
{
	my ($long, $long_id) = session('lena');
	my ($session, $id) = session('max');

	$collector->fault('/v1', { reject_goal => 'refused', times => -1 });
	$node->safe_psql('postgres', q{SELECT absmartly_track('{"user_id": 1}', 'refused')});
	ok(await_sql($node, q{SELECT count(*) FROM absmartly_dead_letters WHERE goal = 'refused'}, '1'), 'a dead letter');
	$collector->clear_faults('/v1');
	track($long, 'long', 1);
	$session->query_safe(q{SELECT count(absmartly_context_track('much', jsonb_build_object('n', i, 'text', repeat('x', 6000)))) FROM generate_series(1, 1500) AS i});
	settle();
	is(outbox($id), 'parked held|1500', 'much is held');
	cmp_ok($node->safe_psql('postgres', q{SELECT pg_relation_size('absmartly_outbox_parked')}), '>', 9000000, 'in a large heap');
	track($long, 'long', 2);
	my $reader = $node->background_psql('postgres');
	$reader->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
	is(publish($session), '', 'published');
	ok(await_sql($node, q{SELECT pg_relation_size('absmartly_outbox_parked') < 100000}), 'the heap is small again');
	is($reader->query_safe(q{SELECT count(*) FROM absmartly_dead_letters WHERE goal = 'refused'}), '1', 'an old snapshot sees the dead letter still');
	$reader->quit;
	settle();
	is(outbox($long_id), 'parked held|2', 'what is held is held');
	$session->query_safe(q{SELECT absmartly_context_track('much', '{"n": 1501}')});
	publish($_) for $long, $session;
	is(arrived('long'), '1 2', 'and found');
	$collector->forget('/v1');
	is($node->safe_psql('postgres', 'SELECT absmartly_discard()'), '1', 'the dead letter is there');
}

# The endpoint changes: what is held goes to the new one
{
	my ($session, $id) = session('kim');

	track($session, 'moved', 1);
	settle();
	configure($node, collector_settings($collector, '/new/v1'));
	ok(await(sub { $collector->requests(space => '/new/v1', method => 'GET') }), 'another endpoint');
	wait_ready($node);
	settle();
	is(outbox($id), 'parked held|1', 'is held still');
	is(publish($session), '', 'published');
	is(join(' ', map { $_->{properties}{n} } $collector->goals(space => '/new/v1', name => 'moved')), '1', 'to the new endpoint');
	configure($node, collector_settings($collector));
	wait_ready($node);
	settle();
}

# Prepared transactions
{
	my ($session, $id) = session('leo');

	track($session, 'prepared', 1);
	$session->query_safe(q{BEGIN; SELECT absmartly_context_track('prepared', '{"n": 2}'); PREPARE TRANSACTION 'held'});
	$session->query_safe(q{BEGIN; SELECT absmartly_context_track('prepared', '{"n": 3}'); PREPARE TRANSACTION 'undone'});
	$node->safe_psql('postgres', q{COMMIT PREPARED 'held'});
	$node->safe_psql('postgres', q{ROLLBACK PREPARED 'undone'});
	settle();
	is(outbox($id), 'parked held|2', 'what a prepared transaction had is held');
	is($session->query_safe('SELECT absmartly_context_pending()'), '2', 'and pending');
	track($session, 'prepared', 4);
	is(publish($session), '', 'published');
	is(arrived('prepared'), '1 2 4', 'with the others');
	is($session->query_safe('SELECT absmartly_context_pending()'), '0', 'nothing is pending');
}

# Another database
{
	$node->safe_psql('postgres', 'CREATE DATABASE second');
	create_extension($node, 'second');
	wait_ready($node, 'second');
	my ($here) = session('mallory');
	my ($there) = session('mallory', database => 'second');

	track($here, 'here', 1);
	track($there, 'there', 1);
	is(publish($there), '', 'a publish in another database');
	is(arrived('there') . '|' . arrived('here'), '1|', 'concerns that one alone');
	publish($here);
	is(arrived('here'), '1', 'and this one this');
}

# A context that fails: what it has recorded before is dropped
{
	$node->safe_psql('postgres', 'CREATE DATABASE failing');
	$collector->fault('/failing/v1', { match => { method => 'GET' }, hang => 1, times => 1 }, { match => { method => 'GET' }, status => 404, times => -1 });
	$node->safe_psql('postgres', q{ALTER DATABASE failing SET absmartly.endpoint = '} . $collector->url('/failing/v1') . q{'});
	# as long as the context is looked at before
	$node->safe_psql('postgres', "ALTER DATABASE failing SET absmartly.request_timeout = '" . int($PATIENCE / 12) . "s'");
	create_extension($node, 'failing');
	ok($collector->wait_for_request(space => '/failing/v1'), 'experiments are asked for');
	my $session = $node->background_psql('failing', on_error_stop => 0);

	push @open, $session;
	$session->query_safe(q{SELECT absmartly_context_create('{"user_id": "trent"}')});
	is($session->query_safe('SELECT absmartly_context_is_ready()'), 'f', 'a context that is not ready');
	track($session, 'doomed', 1);
	$node->safe_psql('failing', "SELECT absmartly_publish('$PATIENCE s')");
	is($node->safe_psql('failing', 'SELECT held_records + outbox_records FROM absmartly_stat'), '1', 'holds its events');
	is($session->query_safe("SELECT absmartly_context_wait_until_ready('$PATIENCE s'), absmartly_context_is_failed()"), 't|t', 'it fails');
	is($session->query_safe('SELECT absmartly_context_pending()'), '1', 'and has its events still');
	ok(await_sql($node, 'SELECT held_records + outbox_records FROM absmartly_stat', '0', database => 'failing'), 'which the worker has dropped');
	$session->query_safe("SELECT absmartly_context_publish('$PATIENCE s')");
	is($session->query_safe('SELECT absmartly_context_pending()'), '0', 'a publish forgets them');
	is(scalar(() = $collector->goals(space => '/failing/v1', name => 'doomed')), 0, 'they are not sent');
}

# The worker ends, and another one comes
{
	my ($session, $id) = session('niaj');
	my $pid = worker_pid($node);

	track($session, 'worker', 1);
	settle();
	track($session, 'worker', 2);
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	is(publish($session), '', 'a publish while the worker ends');
	is(arrived('worker'), '1 2', 'is served by the next one');

	track($session, 'worker', 3);
	settle();
	$pid = worker_pid($node);
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	ok(await(sub { my $new = stat_of($node, 'worker_pid'); $new && $new != $pid }), 'another worker');
	settle();
	is(arrived('worker'), '1 2', 'holds what was held');
	is(outbox($id), 'parked held|1', 'where it was');
	publish($session);
	is(arrived('worker'), '1 2 3', 'and finds it');
}

# Many contexts at once, with commits and publishes that overlap
{
	my $script = $node->basedir . '/contexts.sql';
	my $before = $collector->last_request_number;

	open my $file, '>', $script or die "$script: $!";
	print {$file} <<'EOT';
\set id random(1, 1000000000)
SELECT absmartly_context_create(jsonb_build_object('user_id', :id), NULL, NULL, '{"publish_delay": -1}');
SELECT absmartly_context_track('many', '{"n": 1}');
SELECT absmartly_context_track('many', '{"n": 2}');
SELECT absmartly_context_set_attribute('n', :id);
SELECT absmartly_context_publish(:patience * interval '1 s');
EOT
	close $file or die "$script: $!";
	$node->command_ok([ 'pgbench', '-n', '-c', '8', '-t', '25', '-D', "patience=$PATIENCE", '-f', $script, '-h', $node->host, '-p', $node->port, 'postgres' ], 'many contexts');
	my @requests = grep { grep { $_->{name} eq 'many' } @{ $_->{goals} // [] } } $collector->publish_requests(space => '/v1', since => $before);
	is(scalar @requests, 200, 'each makes one request');
	is(scalar(grep { numbers_in($_) eq '1 2' && @{ $_->{attributes} // [] } == 1 } @requests), 200, 'of its own events and header');
	is(stat_of($node, 'held_records, outbox_records'), '0|0', 'nothing is left');
}

# A server that stops, and one that crashes: all is sent afterwards
{
	my ($session) = session('olivia');

	track($session, 'stopped', 1);
	settle();
	track($session, 'stopped', 2);
	$node->stop('immediate');
	$node->start;
	wait_ready($node);
	arrive('stopped', '1 2', 'what was held is sent after a crash');
	is(scalar(requests_of('stopped')), 1, 'in one request');

	($session) = session('peggy');
	track($session, 'killed', 1);
	settle();
	track($session, 'killed', 2);
	kill 'KILL', worker_pid($node);
	ok(await(sub { my ($status, $output) = $node->psql('postgres', 'SELECT worker_pid FROM absmartly_stat WHERE ready'); $status == 0 && $output ne '' }),
		'a crash restart');
	arrive('killed', '1 2', 'and after that of a worker');

	($session) = session('quentin');
	track($session, 'restarted', 1);
	settle();
	ok(set_publishing($node, 'off'), 'turned off');
	$node->restart;
	is(stat_of($node, 'held_records'), '1', 'what is held outlasts a restart');
	configure($node, 'absmartly.publishing = on');
	arrive('restarted', '1', 'and is sent then');
}

# A standby: its contexts hold their events in memory, and others pass them
{
	$node->safe_psql('postgres', 'ALTER DATABASE postgres RESET absmartly.event_logger');
	my $standby = start_standby($node);
	wait_ready($standby);
	my ($session, $id) = session('rupert', node => $standby);

	track($session, 'standby', 1, 2);
	$standby->safe_psql('postgres', q{SELECT absmartly_track('{"user_id": 1}', 'passing', '{"n": 1}')});
	arrive('passing', '1', 'on a standby others are not kept up');
	$standby->safe_psql('postgres', "SELECT absmartly_publish('$PATIENCE s')");
	is(arrived('standby'), '', 'by what is held');
	is(outbox($id, $standby), 'memory waiting|2', 'in memory');
	is(publish($session), '', 'published');
	is(arrived('standby'), '1 2', 'it arrives');
	is(scalar(requests_of('standby')), 1, 'in one request');
	track($session, 'standby', 3);
	$session->quit;
	arrive('standby', '1 2 3', 'so does what a session leaves');
	($session) = session('sybil', node => $standby);
	track($session, 'standby', 4);
	$standby->safe_psql('postgres', "SELECT absmartly_publish('$PATIENCE s')");
	$standby->stop;
	arrive('standby', '1 2 3 4', 'and what is held when it stops');
}

for my $session (@open)
{
	eval { $session->quit };
}
$node->stop;
$collector->stop;
done_testing();
