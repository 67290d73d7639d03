
# A collector that is down, slow, mistaken or refuses events: absmartly_publish() says what is wrong, the log says it once,
# absmartly_stat shows it; nothing is lost, and nothing is sent twice unless an answer was lost.

use strict;
use warnings;

use AbsmartlyMain qw($collector $node publish put_fault puts sql);
use AbsmartlyTest;
use Test::More;
use Time::HiRes qw(sleep time);

my $key = 'q7-secret/key+0123456789';
$collector = start_collector(data => experiments(experiment('exp')), keys => [$key]);
$node = start_node('main', start => 0, collector => $collector, settings => <<'EOT');
absmartly.publish_delay = '10min'
absmartly.max_retries = 1
EOT
$node->append_conf('postgresql.conf', "absmartly.api_key_file = '" . write_key($node, $key) . "'\n");
$node->start;
create_extension($node);
ok(wait_ready($node), 'ready');
idle($node);

# events that were queued again from the dead letters, and that were dropped from them
my ($requeued, $discarded) = (0, 0);

#
# Helpers
#

# Goals of so many units, one transaction.
sub track
{
	my ($goal, $number, $from) = @_;

	$from //= 1;
	return sql("DO \$\$ BEGIN PERFORM absmartly_track(jsonb_build_object('user_id', i), '$goal')"
		. " FROM generate_series($from, $from + $number - 1) AS i; END \$\$");
}

# Publishes what is left of so many events: the worker has sent some by itself if its pause was over, or they are from the
# dead letters.
sub publish_rest
{
	my ($number, $name) = @_;
	my $published = publish();

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok($published >= 0 && $published <= $number, $name) || diag($published);
}

# absmartly_publish() must fail with this text.
sub publish_fails
{
	my ($error, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return fails_with($node, "SELECT absmartly_publish('$PATIENCE s');", '08006', qr/ERROR:  08006: could not publish events: $error/, $name);
}

# Unit => how often a goal of it has arrived.
sub arrivals
{
	my ($goal) = @_;
	my %units;

	$units{ $_->{units}[0]{uid} }++ for $collector->goals(space => '/v1', name => $goal);
	return %units;
}

sub arrived_once
{
	my ($goal, $number, $name) = @_;
	my %units = arrivals($goal);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(join(' ', scalar keys %units, sort { $a <=> $b } grep { $_ > 1 } values %units), $number, $name);
}

# What the log got since a place in it, and how often that says something.
sub log_since
{
	my ($offset) = @_;

	return substr(log_of($node), $offset);
}

sub times_in
{
	my ($text, $pattern) = @_;

	return scalar(() = $text =~ /$pattern/g);
}

my $complaint = qr/WARNING: .*absmartly: could not publish events: /;
my $relief = qr/LOG: .*absmartly: publishing events works again/;

# Every event is somewhere. An entry of the memory queue has one event here.
sub accounts
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(sql(<<EOT), 't|t', 'the accounts balance')
SELECT exposures_queued + goals_queued + $requeued
	= exposures_sent + goals_sent + exposures_rejected + goals_rejected + outbox_events + memory_queue_entries,
	dead_letters + $requeued + $discarded = exposures_rejected + goals_rejected
FROM absmartly_stat
EOT
		|| diag(sql('SELECT exposures_queued, goals_queued, exposures_sent, goals_sent, exposures_rejected, goals_rejected,'
			. " outbox_events, memory_queue_entries, dead_letters, $requeued AS requeued, $discarded AS discarded FROM absmartly_stat"));
	is(sql('SELECT exposures_dropped + goals_dropped FROM absmartly_stat'), '0', 'nothing was dropped');
	return;
}

#
# Faults that last until somebody repairs them
#

# a time-out that is to be seen; a request that is answered takes no such time, however busy the machine is
my $short = int(1000 * $PATIENCE / 60);

my @faults = (
	{ name => '500', fault => { status => 500 }, error => qr/.*status 500/, attempts => 2 },
	{ name => '503 with words', fault => { status => 503, body => "closed\e[0m", content_type => 'text/plain' },
		error => qr/.*status 503: "closed.*"/, attempts => 2 },
	{ name => '408', fault => { status => 408 }, error => qr/.*status 408/, attempts => 2 },
	{ name => '429 without a time', fault => { status => 429 }, error => qr/.*status 429/, attempts => 2 },
	{ name => '401', fault => { status => 401 }, error => qr/.*status 401/, attempts => 1 },
	{ name => 'a wrong key', break => sub { $collector->set_keys('/v1', ['another']) },
		repair => sub { $collector->set_keys('/v1', [$key]) }, error => qr/.*status 401/, attempts => 1 },
	{ name => '403', fault => { status => 403, body => '' }, error => qr/the collector answered with status 403$/m, attempts => 1 },
	{ name => '404', fault => { status => 404 }, error => qr/.*status 404/ },
	{ name => '405', fault => { status => 405 }, error => qr/.*status 405/ },
	{ name => 'HTML with 200', fault => { html => 1 }, error => qr/.*status 200 and an HTML page/, attempts => 1 },
	{ name => 'more HTML than is read', fault => { html => '<html>' . 'x' x 1_200_000 }, error => qr/./, attempts => 1 },
	{ name => 'HTML with 502', fault => { html => '<html><body>Bad gateway</body></html>', status => 502 },
		error => qr/.*status 502 and an HTML page$/m, attempts => 2 },
	{ name => 'HTML with 400', fault => { html => 1, status => 400 }, error => qr/.*status 400 and an HTML page/, attempts => 1 },
	{ name => 'HTML that does not say so', fault => { status => 200, body => " \n<html>", content_type => 'application/json' },
		accept => 0, error => qr/.*status 200 and an HTML page/, attempts => 1 },
	{ name => 'a redirect', fault => { status => 307, headers => { Location => $collector->url('/elsewhere/v1') . '/context/batch' } },
		error => qr/.*status 307/, attempts => 1 },
	# libcurl tries on where a connection was used before
	{ name => 'a connection that is reset', fault => { reset => 1 }, error => qr/./ },
	{ name => 'an answer that is cut off', fault => { cut_after => 3, accept => 0 }, error => qr/./, attempts => 2 },
	{ name => 'garbage', fault => { garbage => 1 }, error => qr/./ },
	{ name => 'an answer that comes too late', fault => { delay_ms => 600_000, accept => 0 }, error => qr/timed out after $short ms/,
		attempts => 2, times_out => 1 },
	{ name => 'an answer that never comes', fault => { hang => 1 }, error => qr/timed out after $short ms/, attempts => 2, times_out => 1 },
	{ name => 'an answer that never ends', fault => { body => 'x' x 100_000, drip => 10, accept => 0 },
		error => qr/timed out after $short ms/, attempts => 2, times_out => 1 },
	{ name => 'a collector that is down', break => sub { $collector->stop }, repair => sub { $collector->restart },
		error => qr/could not connect/ },
	{ name => 'no file with the key', break => sub { unlink $node->basedir . '/api_key' },
		repair => sub { write_key($node, $key) },
		error => qr/could not open the file of "absmartly\.api_key_file": No such file or directory$/m, attempts => 0 },
	{ name => 'an empty file instead of the key', break => sub { write_key($node, '') }, repair => sub { write_key($node, $key) },
		error => qr/the file of "absmartly\.api_key_file" must hold one key/, attempts => 0 },
);

my $number = 0;
for my $case (@faults)
{
	subtest "fault: $case->{name}" => sub {
		my $goal = 'fault ' . ++$number;
		set_for_worker($node, request_timeout => "${short}ms") if $case->{times_out};
		my $offset = -s $node->logfile;
		my $failures = stat_of($node, 'publish_failures');
		my $dead = stat_of($node, 'dead_letters');

		$collector->forget;
		put_fault(%{ $case->{fault} }, exists $case->{accept} ? (accept => $case->{accept}) : ()) if $case->{fault};
		$case->{break}->() if $case->{break};
		track($goal, 10);
		sql("SELECT absmartly_treatment('{\"user_id\": 1}', '$goal', exposed_at => now())");

		publish_fails($case->{error}, 'absmartly_publish() says why');
		is(scalar puts(), $case->{attempts}, 'after so many attempts') if defined $case->{attempts} && $collector->is_running;
		publish_fails($case->{error}, 'again');
		like(stat_of($node, 'last_publish_error'), qr/^$case->{error}/, 'absmartly_stat shows the reason');
		is(sql("SELECT last_publish_error_at > now() - interval '1 h' FROM absmartly_stat"), 't', 'and when it was');
		cmp_ok(stat_of($node, 'publish_failures') - $failures, '>=', 2 * ($case->{attempts} || 1), 'and how often');
		ok(await_sql($node, q{SELECT worker_state IN ('backing off', 'publishing') FROM absmartly_stat}), 'and the pause');
		is(stat_of($node, 'outbox_events + memory_queue_entries'), '11', 'all events are kept');
		is(stat_of($node, 'dead_letters'), $dead, 'none is blamed');
		unlike(stat_of($node, 'last_publish_error'), qr/[\x00-\x1f]/, 'the reason has no control characters');
		accounts();

		$collector->clear_faults('/v1') if $case->{fault};
		$case->{repair}->() if $case->{repair};
		publish_rest(11, 'once it is repaired all are published');
		arrived_once($goal, 10, 'all goals have arrived, once');
		is(scalar $collector->exposures(space => '/v1', name => $goal), 1, 'the exposure, too');
		ok((grep { $_->{operation} eq 'context/batch' && $_->{accepted} } puts()), 'in a batch');
		is(scalar $collector->requests(space => '/elsewhere/v1'), 0, 'nothing went elsewhere');
		is(sql('SELECT last_publish_error IS NULL, outbox_events FROM absmartly_stat'), 't|0', 'absmartly_stat shows that');
		ok(idle($node), 'the worker rests');
		is(times_in(log_since($offset), $complaint), 1, 'the log has told the fault once');
		is(times_in(log_since($offset), $relief), 1, 'and its end');
		accounts();
		set_for_worker($node, request_timeout => undef) if $case->{times_out};
	};
}

subtest 'one fault after the other' => sub {
	my $offset = -s $node->logfile;

	track('changing', 3);
	put_fault(status => 503);
	publish_fails(qr/.*status 503/, 'status 503');
	publish_fails(qr/.*status 503/, 'status 503 again');
	$collector->clear_faults('/v1');
	put_fault(status => 403);
	publish_fails(qr/.*status 403/, 'status 403');
	$collector->clear_faults('/v1');
	is(publish(), '3', 'better');
	is(times_in(log_since($offset), $complaint), 2, 'the log tells each reason');
	arrived_once('changing', 3, 'nothing is lost');
};

#
# Attempts and pauses
#

subtest 'max_retries' => sub {
	set_for_worker($node, max_retries => 3);
	$collector->forget;
	my $retries = stat_of($node, 'publish_retries');
	put_fault(status => 500, times => 3);
	track('stubborn', 2);
	my $seconds = seconds_of(sub { is(publish(), '2', 'three retries overcome three failures') });
	cmp_ok($seconds, '>', 0.35, 'after 50, 100 and 200 ms');
	is(scalar puts(), 4, 'four attempts');
	is(stat_of($node, 'publish_retries') - $retries, 3, 'retries are counted');
	is(stat_of($node, 'last_publish_error'), '', 'no error remains');
	arrived_once('stubborn', 2, 'nothing is lost');

	set_for_worker($node, max_retries => 0);
	$collector->forget;
	put_fault(status => 500, times => 1);
	track('impatient', 2);
	publish_fails(qr/.*status 500/, 'without retries one failure is enough');
	is(scalar puts(), 1, 'one attempt');
	publish_rest(2, 'the next call tries again');
	arrived_once('impatient', 2, 'nothing is lost');
	set_for_worker($node, max_retries => undef);
	accounts();
};

subtest 'it gets well by itself' => sub {
	$collector->forget;
	put_fault(status => 500, times => 4);
	track('left alone', 5);
	publish_fails(qr/.*status 500/, 'a round fails');
	ok(await(sub { my %units = arrivals('left alone'); keys %units == 5 }), 'later rounds go better, and nobody has to ask');
	arrived_once('left alone', 5, 'all arrive, once');
	accounts();
};

subtest 'a pause after a fault of the endpoint' => sub {
	$collector->forget;
	put_fault(status => 403);
	track('paused', 5);
	# the pause doubles: after so many rounds it takes minutes
	publish_fails(qr/.*status 403/, 'a fault') for 1 .. 6;
	my $attempts = puts();
	track('paused', 5, 6);
	sleep 3;
	is(scalar puts(), $attempts, 'is followed by a pause, also for other events');
	is(stat_of($node, 'worker_state'), 'backing off', 'which absmartly_stat shows');
	$collector->clear_faults('/v1');
	is(publish(), '10', 'absmartly_publish() ends it');
	arrived_once('paused', 10, 'nothing is lost');

	put_fault(status => 403);
	track('paused', 5, 11);
	publish_fails(qr/.*status 403/, 'a fault') for 1 .. 6;
	$collector->clear_faults('/v1');
	$node->reload;
	ok(await(sub { my %units = arrivals('paused'); keys %units == 15 }), 'so does a reload');
	arrived_once('paused', 15, 'nothing is lost');
	accounts();
};

subtest '429 with Retry-After' => sub {
	$collector->forget;
	put_fault(status => 429, headers => { 'Retry-After' => '2' }, times => 1);
	track('too many', 5);
	my $seconds = seconds_of(sub { is(publish(), '5', 'a short one is waited for') });
	cmp_ok($seconds, '>=', 1.9, 'for as long as it says');
	arrived_once('too many', 5, 'nothing is lost');

	$collector->forget;
	put_fault(status => 429, headers => { 'Retry-After' => 10 * $PATIENCE }, times => 1);
	track('too many', 5, 6);
	publish_fails(qr/.*status 429/, 'a long one fails the call');
	sleep 3;
	is(scalar puts(), 1, 'it is heeded when nobody asks');
	is(publish(), '5', 'whoever asks gets an answer');
	arrived_once('too many', 5, 'nothing is lost');
	accounts();
};

subtest 'some that always fail' => sub {
	set_for_worker($node, 'batch_size', 1);
	set_for_worker($node, 'max_connections', 1);
	set_for_worker($node, 'max_retries', 0);
	$collector->forget;
	put_fault(match => { method => 'PUT', larger_than => 3000 }, status => 500);
	sql(q{SELECT absmartly_track('{"user_id": 1}', 'poison', jsonb_build_object('text', repeat('x', 5000)))}) for 1 .. 4;
	# these show that the collector works; the poisonous ones fail alone then
	ok(await(sub { track('healthy', 1); my %units = arrivals('healthy'); keys %units }), 'others get through');
	track('healthy', 5, 2);
	ok(await(sub { my %units = arrivals('healthy'); keys %units == 6 }), 'all of them');
	is(sql(q{SELECT count(*) FROM absmartly_pending_events WHERE goal = 'poison'}), '4', 'the others wait');
	$collector->clear_faults('/v1');
	publish();
	is(scalar($collector->goals(space => '/v1', name => 'poison')), 4, 'and are sent at last');
	accounts();
	set_for_worker($node, $_) for qw(batch_size max_connections max_retries);
};

subtest 'slow, but in time' => sub {
	$collector->forget;
	put_fault(delay_ms => 700, times => 1);
	track('slow', 5);
	is(publish(), '5', 'a slow answer is an answer');
	arrived_once('slow', 5, 'nothing is sent twice');
	cmp_ok(stat_of($node, 'publish_last_ms'), '>=', 690, 'its duration is shown');
	fails_with($node, q{SELECT absmartly_publish('-1 s');}, '22023', qr/./, 'the time of a call is not negative');
	put_fault(delay_ms => 5000, times => 1);
	track('slow', 5, 6);
	fails_with($node, q{SELECT absmartly_publish('200 ms');}, '08006',
		qr/time-out while waiting for the events of database "postgres" to be published/, 'a caller may wait for less');
	ok(await(sub { my %units = arrivals('slow'); keys %units == 10 }), 'that stops nothing');
	publish();
	arrived_once('slow', 10, 'nothing is sent twice');
};

subtest 'lost answers' => sub {
	my $sent = stat_of($node, 'goals_sent');

	set_for_worker($node, request_timeout => "${short}ms");
	for my $case (
		[ 'cut',     cut_after => 3 ],
		[ 'late',    delay_ms  => 600_000 ],
		[ 'dripped', body      => 'x' x 100_000, drip => 10 ])
	{
		my ($name, %fault) = @$case;

		$collector->forget;
		put_fault(%fault, times => 1, accept => 1);
		track("lost $name", 10);
		is(publish(), '10', "$name: the request is repeated");
		my %units = arrivals("lost $name");
		is(join(' ', scalar keys %units, sort values %units), '10' . ' 2' x 10, "$name: only so are events sent twice");
	}
	is(stat_of($node, 'goals_sent') - $sent, 30, 'they are counted once');
	accounts();
	set_for_worker($node, request_timeout => undef);
};

#
# What concerns single events
#

subtest 'status 400 that names the item' => sub {
	my $offset = -s $node->logfile;

	$collector->forget;
	put_fault(reject_goal => 'named');
	track('fine', 20);
	track('named', 1);
	track('fine', 20, 21);
	track('named', 2, 2);
	is(publish(), '40', 'all others are delivered');
	arrived_once('fine', 40, 'once');
	cmp_ok(scalar puts(), '<=', 2, 'by a second request');
	is(sql(q{SELECT count(*), count(DISTINCT units), string_agg(DISTINCT note, ',') FROM absmartly_dead_letters WHERE goal = 'named'}),
		'3|3|goals[0].name: goal "named" is refused', 'those that are refused are kept, with the words of the collector');
	is(sql(q{SELECT status, count(*), sum(goals) FROM absmartly_outbox GROUP BY status}), 'dead|3|3', 'as dead records');
	is(times_in(log_since($offset), qr/WARNING: .*absmartly: the collector has refused \d+ event/), 1, 'the log tells it');
	like(log_since($offset), qr/DETAIL: .*The last reason: goals\[0\]\.name: goal "named" is refused\./, 'with the reason');
	is(stat_of($node, 'last_publish_error'), '', 'it is no fault of the collector');
	accounts();

	$requeued += sql('SELECT absmartly_requeue()');
	is($requeued, 3, 'all dead letters are queued again');
	is(stat_of($node, 'dead_letters'), '0', 'none is left');
	is(publish(), '0', 'the collector still refuses them');
	is(stat_of($node, 'dead_letters'), '3', 'they are dead again');
	$discarded += sql(q{SELECT absmartly_discard(record) FROM absmartly_dead_letters ORDER BY record LIMIT 1});
	is(sql('SELECT (SELECT dead_letters FROM absmartly_stat), count(*) FROM absmartly_dead_letters'), '2|2', 'one is dropped');
	accounts();
	$collector->clear_faults('/v1');
	$requeued += sql('SELECT absmartly_requeue()');
	publish_rest(2, 'the others are sent once it takes them');
	arrived_once('named', 2, 'and arrive');
	is(sql('SELECT count(*) FROM absmartly_dead_letters'), '0', 'none is left');
	is(sql('SELECT absmartly_requeue(), absmartly_discard(), absmartly_discard(123456789)'), '0|0|0', 'then there is nothing to do');
	accounts();
};

subtest 'status 400 that names one by its number' => sub {
	$collector->forget;
	put_fault(bad_request => { message => "no\nsuch\tthing $key" }, batchIndex => 7, times => 1);
	track('numbered', 10);
	is(publish(), '9', 'the others are delivered');
	is(sql('SELECT note FROM absmartly_dead_letters'), 'request: no such thing ********',
		'words have neither control characters nor the key');
	is(sql(q{SELECT units[1] = absmartly_hash_unit('8') FROM absmartly_dead_letters}), 't', 'it is the eighth that is kept');
	$discarded += sql('SELECT absmartly_discard()');
	put_fault(bad_request => 1, batchIndex => 10, times => 1);
	track('numbered', 10, 11);
	is(publish(), '10', 'a number that none of them has blames none');
	is(stat_of($node, 'dead_letters'), '0', 'so all are delivered');
	accounts();
};

subtest 'status 400 that names nobody' => sub {
	$collector->forget;
	put_fault(reject_goal => 'hidden', with_index => 0);
	track('seen', 249);
	track('hidden', 1);
	# 500 would fill a request, and be sent at once
	track('seen', 249, 250);
	is(publish(), '498', 'one bad among 499 is found by halving');
	arrived_once('seen', 498, 'the others arrive, once');
	is(sql(q{SELECT count(*), max(note) FROM absmartly_dead_letters WHERE goal = 'hidden'}),
		'1|goals[0].name: goal "hidden" is refused', 'it is kept, with the words');
	cmp_ok(scalar puts(), '<=', 21, 'in about two requests for each halving');
	accounts();
	$collector->clear_faults('/v1');
	$discarded += sql('SELECT absmartly_discard()');

	$collector->forget;
	put_fault(bad_request => { subject => 'body', message => 'we do not like you' });
	track('hated', 5);
	is(publish(), '0', 'what is refused one by one is not delivered');
	is(sql(q{SELECT count(*), max(note) FROM absmartly_dead_letters WHERE goal = 'hated'}), '5|body: we do not like you', 'but kept');
	$collector->clear_faults('/v1');
	$requeued += sql('SELECT absmartly_requeue()');
	publish_rest(5, 'and can be sent');
	arrived_once('hated', 5, 'once');
	accounts();
};

subtest 'status 413' => sub {
	my $dead = stat_of($node, 'dead_letters');

	$collector->forget;
	put_fault(match => { method => 'PUT', larger_than => 3000 }, status => 413, html => 'too large');
	track('large', 200);
	is(publish(), '200', 'batches are halved until they fit');
	arrived_once('large', 200, 'all arrive, once');
	sql(q{SELECT absmartly_track('{"user_id": 1}', 'enormous', jsonb_build_object('text', repeat('x', 5000)))});
	track('large', 50, 201);
	is(publish(), '50', 'what is too large alone is not delivered');
	arrived_once('large', 250, 'but all else is');
	is(stat_of($node, 'dead_letters') - $dead, 1, 'it is kept');
	is(sql(q{SELECT length(properties->>'text'), note FROM absmartly_dead_letters WHERE goal = 'enormous'}), '5000|status 413',
		'whole, with the reason');
	$collector->clear_faults('/v1');
	$requeued += sql(q{SELECT absmartly_requeue(record) FROM absmartly_dead_letters WHERE goal = 'enormous'});
	publish_rest(1, 'it can be sent again');
	arrived_once('enormous', 1, 'and arrives then');
	accounts();
};

subtest 'words that no terminal should see' => sub {
	$collector->forget;
	put_fault(status => 400, body_base64 => 'cuBmdXNlZCAbWzMxbXJlZAcg//4=', content_type => 'text/plain', times => 1);
	track('rude', 1);
	is(publish(), '0', 'it is refused');
	is(sql(q{SELECT note ~ '[[:cntrl:]]', length(note) > 5 FROM absmartly_dead_letters WHERE goal = 'rude'}), 'f|t',
		'its reason is kept without control characters, and can be read');
	$collector->clear_faults('/v1');
	$discarded += sql('SELECT absmartly_discard()');
	accounts();
};

subtest 'status 422' => sub {
	$collector->forget;
	put_fault(reject_goal => 'unprocessable', status => 422);
	sql(q{BEGIN; SELECT absmartly_track('{"user_id": 1}', 'processable'), absmartly_track('{"user_id": 2}', 'unprocessable'),
		absmartly_track('{"user_id": 3}', 'processable'); COMMIT});
	is(publish(), '2', 'the others are delivered');
	arrived_once('processable', 2, 'once');
	is(sql(q{SELECT count(*) FROM absmartly_dead_letters WHERE goal = 'unprocessable'}), '1', 'it is kept');
	track('unprocessable', 1, 4);
	is(publish(), '0', 'alone');
	is(sql(q{SELECT count(*) FROM absmartly_dead_letters WHERE goal = 'unprocessable'}), '2', 'as well');
	$collector->clear_faults('/v1');
	$discarded += sql('SELECT absmartly_discard()');
	accounts();
};

subtest 'a dead letter is sent again as it was' => sub {
	$collector->forget;
	put_fault(reject_goal => 'one of three');
	sql(q{BEGIN; SELECT absmartly_treatment('{"user_id": 1}', 'exp', '{"a": 1}', exposed_at => '2024-02-29'),
		absmartly_track('{"user_id": 1}', 'one of three', '{"n": 1.50}', '2024-02-29', '{"a": 1}'),
		absmartly_track('{"user_id": 1}', 'another', NULL, '2024-02-29', '{"a": 1}'); COMMIT});
	is(publish(), '2', 'the others are delivered');
	is(sql(q{SELECT count(*), count(DISTINCT record), min(goal) FROM absmartly_dead_letters}), '1|1|one of three', 'it is alone');
	my ($first) = map { $_->{json} } puts();
	$collector->clear_faults('/v1');
	$collector->forget;
	$requeued += sql('SELECT absmartly_requeue()');
	publish_rest(1, 'and can be sent');
	my ($second) = map { $_->{json} } puts();
	delete $_->{publishedAt} for $first, $second;
	delete $first->{exposures};
	$first->{goals} = [ grep { $_->{name} eq 'one of three' } @{ $first->{goals} } ];
	is_deeply($second, $first, 'as it was');
	accounts();
};

subtest 'remarks in good answers' => sub {
	my $warnings = stat_of($node, 'publish_warnings');

	$collector->forget;
	put_fault(status => 200, accept => 1, times => 1, body => { ok => \1, warnings => [
		{ batchIndex => 0, eventIndex => 0, subject => 'goals[0].name', message => "is odd\e[31m" }, { message => 'so is this' } ] });
	track('odd', 5);
	is(publish(), '5', 'warnings stop nothing');
	is(stat_of($node, 'publish_warnings') - $warnings, 2, 'but are counted');
	like(stat_of($node, 'last_publish_warning'), qr/^goals\[0\]\.name: is odd.\[31m$/, 'and shown');
	put_fault(status => 200, accept => 1, times => 1, body => { ok => \0, errors => [ { batchIndex => 1, message => 'is wrong' } ] });
	track('odd', 5, 6);
	is(publish(), '5', 'nor do errors');
	is(stat_of($node, 'publish_warnings') - $warnings, 3, 'which are counted, too');
	put_fault(status => 204, accept => 1, times => 1);
	track('odd', 5, 11);
	is(publish(), '5', 'an answer without a body is a good one');
	arrived_once('odd', 15, 'nothing is sent twice');
	is(stat_of($node, 'dead_letters'), '0', 'and nothing refused');
	accounts();
};

subtest 'no batch endpoint' => sub {
	my $offset = -s $node->logfile;

	$collector->set_batch('/v1', 0);
	$collector->forget;
	track('single', 30);
	is(publish(), '30', 'publish requests are sent one by one');
	arrived_once('single', 30, 'once');
	track('single', 30, 31);
	is(publish(), '30', 'the next ones, too');
	arrived_once('single', 60, 'once');
	my @batches = grep { $_->{operation} eq 'context/batch' } puts();
	is(scalar @batches, 1, 'batches are tried once');
	is(times_in(log_since($offset), qr/LOG: .*absmartly: the collector takes no batches/), 1, 'and the log tells it once');
	is(times_in(log_since($offset), $complaint), 0, 'as no fault');
	is(stat_of($node, 'last_publish_error'), '', 'nor does absmartly_stat show one');

	$collector->set_batch('/v1', 1);
	$node->reload;
	ok(await(sub {
		track('single again', 2, 1 + 2 * arrivals('single again'));
		publish();
		return grep { $_->{operation} eq 'context/batch' && $_->{status} == 200 } puts();
	}), 'after a reload batches are tried again');
	accounts();
};

subtest 'events in memory' => sub {
	my $in_memory = 'SET absmartly.durability = memory; ';

	$collector->forget;
	put_fault(status => 503);
	sql($in_memory . "DO \$\$ BEGIN PERFORM absmartly_track(jsonb_build_object('user_id', i), 'remembered')"
		. " FROM generate_series(1, 20) AS i; END \$\$");
	publish_fails(qr/.*status 503/, 'absmartly_publish() says why they are not sent');
	is(sql('SELECT memory_queue_entries + outbox_records > 0 FROM absmartly_stat'), 't', 'they are kept');
	$collector->clear_faults('/v1');
	put_fault(reject_goal => 'forgotten');
	sql($in_memory . q{SELECT absmartly_track('{"user_id": 1}', 'forgotten')});
	publish_rest(20, 'and are sent when that is possible');
	arrived_once('remembered', 20, 'once');
	is(stat_of($node, 'memory_queue_entries + outbox_records'), '0', 'none is left');
	is(sql('SELECT goal, note FROM absmartly_dead_letters'), 'forgotten|goals[0].name: goal "forgotten" is refused',
		'one that is refused is kept like others');
	$collector->clear_faults('/v1');
	$requeued += sql('SELECT absmartly_requeue()');
	publish_rest(1, 'and can be sent again');
	arrived_once('forgotten', 1, 'once');
	accounts();
};

#
# The key
#

subtest 'the key is never shown' => sub {
	my $offset = -s $node->logfile;

	$collector->forget;
	track('locked', 1);
	for my $body ("the key $key is not known", '{"message":"q7-secret\/key\u002b0123456789 is not known"}', 'x' x 190 . $key)
	{
		$collector->clear_faults('/v1');
		put_fault(status => 401, body => $body, content_type => 'text/plain');
		my ($status, $output, $error) = $node->psql('postgres', "SELECT absmartly_publish('$PATIENCE s')");
		like($error, qr/status 401: ".*\*\*\*/, 'an answer that quotes it');
		unlike($error . sql('SELECT absmartly_stat::text FROM absmartly_stat'), qr/secret|0123456789/, 'is shown without it');
	}
	$collector->clear_faults('/v1');
	publish_rest(1, 'it works in the end');
	unlike(log_since($offset), qr/secret|0123456789/, 'the log has no part of it');
	arrived_once('locked', 1, 'nothing is lost');
	accounts();
};

#
# The end of the worker in mid-request
#

subtest 'SIGTERM' => sub {
	my $tries = 0;

	# Queues goals, and has the worker hang in the request with them.
	my $hang = sub {
		$collector->forget;
		put_fault(hang => 1, times => 1);
		track('ended ' . ++$tries, 5);
		$node->psql('postgres', q{SELECT absmartly_publish('300 ms')});
		ok($collector->wait_for_request(method => 'PUT', state => 'pending'), 'a request has no answer');
	};
	for (1 .. 2)
	{
		my $pid;

		takes_less(1, 'within a second', sub {
			kill 'TERM', $pid;
			ok(await(sub { !kill 'TERM', $pid }), 'more than one ends the worker');
		}, sub {
			$hang->();
			$pid = worker_pid($node);
		});
		ok(await(sub { my %units = arrivals("ended $tries"); keys %units == 5 }), 'the next one delivers');
		ok(idle($node), 'and rests');
		arrived_once("ended $tries", 5, 'once');
	}
	accounts();

	my $stops = 0;
	takes_less(3, 'the server stops, too', sub { $node->stop }, sub {
		$node->start if $stops++;
		$hang->();
	});
	$node->start;
	publish();
	arrived_once("ended $tries", 5, 'after its start they are delivered');
};

unlike(log_of($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');

subtest 'a crash while the collector does not work' => sub {
	$collector->forget;
	put_fault(status => 503);
	track('before the crash', 5);
	sql(qq{SELECT absmartly_treatment('{"user_id": $_}', 'before the crash')}) for 1 .. 5;
	publish_fails(qr/.*status 503/, 'events wait');
	track('before the crash', 5, 6);
	sql(qq{SELECT absmartly_treatment('{"user_id": $_}', 'before the crash')}) for 6 .. 10;
	publish_fails(qr/.*status 503/, 'and go on waiting');
	# what commits asynchronously is on disk when a later commit is
	ok(await_sql($node, 'SELECT memory_queue_entries FROM absmartly_stat', '0'), 'on disk');
	sql('CREATE TABLE synchronous ()');
	$node->stop('immediate');
	$node->start;
	$collector->clear_faults('/v1');
	ok(wait_ready($node), 'ready');
	publish();
	arrived_once('before the crash', 10, 'goals outlast it');
	is(scalar $collector->exposures(space => '/v1', name => 'before the crash'), 10, 'so do exposures');
	is(stat_of($node, 'outbox_events + memory_queue_entries'), '0', 'nothing is left');
};

unlike(log_of($node), qr/\Q$key\E/, 'the log has no key');
$node->stop;
done_testing();
