
# What waits can be taken back until it is on its way: it is sent or taken back, never both, and never neither.

use strict;
use warnings;

use AbsmartlyTest;
use Test::More;

my $collector = start_collector(data => experiments(experiment('exp')));
my $node = start_node('main', collector => $collector, settings => <<'EOT');
absmartly.publish_delay = 0
absmartly.batch_size = 20
absmartly.max_connections = 2
max_prepared_transactions = 5
EOT
ok(wait_ready($node), 'ready');

sub sql
{
	my ($query) = @_;

	return $node->safe_psql('postgres', $query);
}

sub track
{
	my ($goal, $number) = @_;

	sql("SELECT count(absmartly_track(jsonb_build_object('user_id', i), '$goal', jsonb_build_object('n', i))) FROM generate_series(1, $number) AS i");
	return;
}

# The numbers of a goal that have arrived.
sub arrived
{
	my ($goal) = @_;

	my @arrived = sort { $a <=> $b } map { $_->{properties}{n} } $collector->goals(space => '/v1', name => $goal);

	return @arrived;
}

sub publishing
{
	my ($value) = @_;

	configure($node, "absmartly.publishing = $value");
	return await(sub { my (undef, undef, $error) = $node->psql('postgres', "SELECT absmartly_publish('$PATIENCE s')"); ($error =~ /is off/) == ($value eq 'off') });
}

sql(<<'EOT');
CREATE TABLE orders (id int PRIMARY KEY);
INSERT INTO orders SELECT generate_series(1, 1000);
EOT

subtest 'while publishing is off' => sub {
	ok(publishing('off'), 'events wait');
	sql("CALL absmartly_backfill_goals('orders', 'id', '$_', 'user_id=id', 'n=id', chunk => 300)") for qw(kept wrong other);
	sql(q{CALL absmartly_backfill_exposures('orders', 'id', 'exp', 'user_id=id', chunk => 300, name => 'exposed')});
	track('live', 30);
	is(sql(q{SELECT absmartly_take_back(backfill => 'goal wrong of public.orders by id')}), '1000', 'a backfill');
	is(sql(q{SELECT absmartly_take_back(backfill => 'exposed')}), '1000', 'one of exposures');
	is(sql(q{SELECT absmartly_take_back(filter => $$goal = 'other' AND (properties ->> 'n')::int % 3 <> 0$$)}), '667', 'some events of each record');
	is(sql(q{SELECT absmartly_take_back(filter => $$(properties ->> 'n')::int <= 30$$, backfill => 'goal other of public.orders by id')}), '10',
		'and some of these, of a backfill');
	my $record = sql('SELECT record FROM absmartly_outbox WHERE goals = 30 AND note = $$$$');
	is(sql("SELECT absmartly_take_back($record)"), '30', 'a record');
	is(sql("SELECT absmartly_take_back($record), absmartly_take_back(backfill => 'exposed'), absmartly_take_back(0)"), '0|0|0', 'nothing twice');
	is(stat_of($node, 'exposures_taken_back, goals_taken_back, outbox_events'), '1000|1707|1323', 'all is counted');
	like(log_of($node), qr/LOG:  absmartly: 0 exposures and 1000 goals that waited were taken back by role.*\n.*DETAIL:  Backfill: goal wrong of/, 'and logged');
	ok(publishing('on'), 'the rest is sent');
	is_deeply([ arrived('kept') ], [ 1 .. 1000 ], 'what nobody has taken back');
	is_deeply([ arrived('other') ], [ grep { $_ % 3 == 0 && $_ > 30 } 1 .. 1000 ], 'and what was left of records');
	is(scalar(arrived('wrong')) + scalar(arrived('live')), 0, 'and nothing else');
	is(scalar(grep { !$_->{historic} } $collector->publish_requests(space => '/v1')), 0, 'all of it historic');
};

subtest 'what is known of a backfill' => sub {
	my $state = q{SELECT state, rows, last_key FROM absmartly_backfills WHERE name = 'slow'};
	my $call = q{CALL absmartly_backfill_goals('orders', 'id', 'slow', 'user_id=id', 'n=id', chunk => 10, name => 'slow', filter => $$id <= 20%s$$)};
	my $session = $node->background_psql('postgres', on_error_stop => 0);

	# it waits in the second chunk
	my $locker = $node->background_psql('postgres');
	$locker->query_safe('SELECT pg_advisory_lock(1)');
	$session->query_until(qr/begun/, "\\echo begun\n" . sprintf($call, ' AND (id < 15 OR pg_advisory_lock_shared(1) IS NOT NULL)') . ";\n");
	ok(await_sql($node, $state, 'running|10|10'), 'it is running');
	fails_with($node, sprintf("$call;", ''), '55006', qr/running in another session/, 'and runs once');
	sql(q{SELECT pg_cancel_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objsubid = 1});
	ok(await_sql($node, $state, 'interrupted|10|10'), 'it was interrupted');
	$_->quit for $session, $locker;
	$node->restart('immediate');
	is(sql($state), 'interrupted|10|10', 'also after a crash');
	sql(sprintf $call, '');
	is(sql($state), 'finished|20|20', 'it is finished');
	fails_with($node, sprintf("$call;", ''), '55000', qr/backfill "slow" is finished/, 'and not done again');
	like(log_of($node), qr/DETAIL:  It came to its end at \d{4}-.*, with 20 rows done\.\n.*HINT:  restart => true/, 'which says when that was');
	sql("SELECT absmartly_publish('$PATIENCE s')");
	is_deeply([ arrived('slow') ], [ 1 .. 20 ], 'each row has become an event, once');
};

# What the worker has read and not sent is taken back as well; what is on its way is not.
subtest 'while requests are on their way' => sub {
	$collector->fault('/v1', { match => { method => 'PUT' }, delay_ms => 1500, times => 2 });
	track('busy', 5000);
	ok($collector->wait_for_request(method => 'PUT', state => 'pending'), 'some are on their way');
	my $taken = sql(q{SELECT absmartly_take_back(filter => $$goal = 'busy'$$)});
	ok($taken > 0, "others are taken back: $taken");
	sql("SELECT absmartly_publish('$PATIENCE s')");
	my @arrived = arrived('busy');
	is(@arrived + $taken, 5000, 'each is sent or taken back');
	is(scalar(keys %{ { map { $_ => 1 } @arrived } }), scalar(@arrived), 'none is sent twice');
	track('after', 10);
	sql("SELECT absmartly_publish('$PATIENCE s')");
	is(scalar(arrived('after')), 10, 'the worker goes on');
};

subtest 'during an outage' => sub {
	$collector->fault('/v1', { match => { method => 'PUT' }, status => 503, times => -1 });
	track('outage', 2000);
	ok(await_sql($node, 'SELECT worker_state FROM absmartly_stat', 'backing off'), 'nothing gets through');
	is(sql(q{SELECT absmartly_take_back(filter => $$goal = 'outage' AND (properties ->> 'n')::int > 5$$)}), '1995', 'what has failed is taken back, too');
	$collector->clear_faults('/v1');
	sql("SELECT absmartly_publish('$PATIENCE s')");
	is_deeply([ arrived('outage') ], [ 1 .. 5 ], 'the rest is sent');
};

# One request gets through, and no other.
sub fail_after_one
{
	sql('SELECT absmartly_stat_reset()');
	$collector->fault('/v1', { match => { method => 'PUT' }, after => 1, status => 503, times => -1 });
	return;
}

sub await_failure
{
	return await_sql($node, q{SELECT goals_sent > 0 AND worker_state = 'backing off' FROM absmartly_stat});
}

# What is left of a record becomes another one before anything can be taken back.
subtest 'a record of which a part was delivered' => sub {
	fail_after_one();
	track('part', 45);
	ok(await_failure(), 'the rest is not');
	my $arrived = arrived('part');
	is(sql(q{SELECT absmartly_take_back(filter => $$goal = 'part'$$)}), 45 - $arrived, 'the rest is taken back');
	$collector->clear_faults('/v1');
	sql("SELECT absmartly_publish('$PATIENCE s')");
	is(scalar(arrived('part')), $arrived, 'and not sent');
};

# What is left of the records of a context is written under what that has become.
subtest 'records of several rows' => sub {
	my $session = $node->background_psql('postgres');
	my $waiting = sub { sql(q{SELECT count(*) FROM absmartly_pending_events WHERE goal = 'large'} . ($_[0] // '')) };
	my $even = q{ AND (properties ->> 'n')::int % 2 = 0};
	my $track = q{SELECT count(absmartly_context_track('large', jsonb_build_object('n', i, 'pad', repeat('x', 300)))) FROM generate_series(%d, %d) AS i};
	my $take = sub { ($node->psql('postgres', qq{SELECT absmartly_take_back(filter => \$\$goal = 'large'$_[0]\$\$)}))[ 1, 2 ] };
	my $pid = sql('SELECT worker_pid FROM absmartly_stat');

	configure($node, 'absmartly.batch_bytes = 32kB');
	$session->query_safe(q{SELECT absmartly_context_create('{"user_id": "alice"}', '{"plan": "free"}')});
	$session->query_safe("SELECT absmartly_context_wait_until_ready('$PATIENCE s')");
	fail_after_one();
	$session->query_safe('BEGIN; ' . sprintf($track, 1, 400) . q{; SELECT absmartly_context_set_attribute('plan', repeat('y', 9000)); } . sprintf($track, 401, 401) . '; COMMIT');
	ok(await_failure(), 'a part is delivered');
	sql("SELECT pg_terminate_backend($pid)");
	ok(await_sql($node, "SELECT worker_pid <> $pid FROM absmartly_stat"), 'another worker comes');
	is($waiting->() + arrived('large'), 401, 'the rest waits');
	cmp_ok(sql(q{SELECT count(*) FROM absmartly_outbox WHERE goals > 1 AND bytes > 9000}), '>', 0, 'in records that are larger than a row');

	my $fit = $waiting->($even);
	my ($taken, $words) = $take->($even);
	my ($kept) = $words =~ /WARNING:  (\d+) events that fit the filter were not taken back\nDETAIL:.*larger than a row.*\nHINT:/;
	ok($kept, 'who takes back some of their events is told of those that stay') or diag($words);
	is($waiting->($even), $kept, 'these wait on');
	is($taken + $kept, $fit, 'and the others do not');
	my $rest = $waiting->();
	is(join(' ', $take->('')), "$rest ", 'records are taken back as a whole, without a word');
	is($waiting->(), '0', 'nothing waits then');
	is($session->query_safe('SELECT absmartly_context_pending()'), '0', 'nor does the context think so');
	$collector->clear_faults('/v1');
	$session->quit;
};

subtest 'transactions that have not committed' => sub {
	my $session = $node->background_psql('postgres');
	my $one = sub { sprintf q{SELECT absmartly_track('{"user_id": 1}', 'open', '{"n": %d}')}, $_[0] };

	$session->query_safe('BEGIN; ' . $one->(1));
	sql('BEGIN; ' . $one->(2) . "; PREPARE TRANSACTION 'prepared'");
	is(sql(q{SELECT absmartly_take_back(filter => 'true')}), '0', 'are left alone');
	$session->query_safe('COMMIT');
	$session->quit;
	sql("COMMIT PREPARED 'prepared'");
	sql("SELECT absmartly_publish('$PATIENCE s')");
	is_deeply([ arrived('open') ], [ 1, 2 ], 'and sent when they have');
};

subtest 'exposures that wait in memory' => sub {
	ok(publishing('off'), 'events wait');
	sql(q{SELECT absmartly_treatment('{"user_id": 77}', 'exp')});
	is(sql(q{SELECT absmartly_take_back(filter => $$experiment = 'exp'$$)}), '1', 'are taken back, too');
	ok(publishing('on'), 'on again');
	is(scalar($collector->exposures(space => '/v1', name => 'exp')), 0, 'nobody was exposed');
};

# The worker lets go only for who is still there.
subtest 'whoever gives up' => sub {
	$collector->fault('/v1', { match => { method => 'PUT' }, hang => 1, times => 1 });
	track('hung', 1);
	ok($collector->wait_for_request(method => 'PUT', state => 'pending'), 'a request hangs');
	fails_with($node, q{SET lock_timeout = '1s'; SELECT absmartly_take_back(filter => 'true');}, '55P03', qr/lock timeout/, 'who waits for it can give up');
	fails_with($node, q{SET statement_timeout = '1s'; SELECT absmartly_take_back(filter => 'true');}, '57014', qr/statement timeout/, 'or be cancelled');
	track('meanwhile', 10);
	ok(await(sub { scalar(arrived('meanwhile')) == 10 }), 'and others are sent');
	# a worker that is asked to leave waits for the answer, unless it is asked again
	my $pid = sql('SELECT worker_pid FROM absmartly_stat');
	ok(await(sub { sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $pid"); scalar(arrived('hung')) == 1 }), 'as it is by the next worker');
};

# All at once: what is recorded arrives once, or was taken back.
subtest 'in the midst of traffic' => sub {
	my ($taken, $recorded) = (0, 0);
	my @writers = map { $node->background_psql('postgres') } 1 .. 2;

	for my $round (1 .. 8)
	{
		$_->query_safe(sprintf q{SELECT count(absmartly_track(jsonb_build_object('user_id', i), 'traffic', jsonb_build_object('n', %d + i))) FROM generate_series(1, 400) AS i},
			($recorded += 400) - 400) for @writers;
		$taken += sql(q{SELECT absmartly_take_back(filter => $$goal = 'traffic' AND (properties ->> 'n')::int % 2 = 0$$)});
	}
	$_->quit for @writers;
	sql("SELECT absmartly_publish('$PATIENCE s')");
	my @arrived = arrived('traffic');
	my %times;
	$times{$_}++ for @arrived;
	is(@arrived + $taken, $recorded, "$taken of $recorded taken back");
	is(scalar(grep { $_ > 1 } values %times), 0, 'none is sent twice');
	is(scalar(grep { !$times{$_} } map { 2 * $_ - 1 } 1 .. $recorded / 2), 0, 'and of the others none is missing');
};

fails_with($node, 'SELECT absmartly_take_back();', '22023', qr/needs a record, a backfill or a filter/, 'all is not taken back by mistake');
fails_with($node, q{SELECT absmartly_take_back(backfill => 'none');}, '42704', qr/there is no backfill "none"/, 'nor is what there is not');
fails_with($node, q{SELECT absmartly_take_back(filter => 'goal = 1');}, '42883', qr/operator does not exist.*\n.*HINT.*\n.*LOCATION|LINE 1: goal = 1/s, 'a filter is told of');
fails_with($node, q{SELECT absmartly_track('{"user_id": 1}', 'divided'); SELECT absmartly_take_back(filter => '1 / (length(goal) - 7) = 0');}, '22012',
	qr/division by zero\nCONTEXT:  filter of absmartly_take_back\(\): 1 \/ \(length\(goal\) - 7\) = 0\nLOCATION/, 'and of its errors without our query')
	if publishing('off');
subtest 'an error on the way' => sub {
	sql("CALL absmartly_backfill_goals('orders', 'id', '$_', 'user_id=id', filter => 'id <= 5', name => '$_')") for qw(late later);
	sql(<<'EOT');
CREATE SEQUENCE looks;
CREATE FUNCTION fails_after(looks int) RETURNS boolean LANGUAGE plpgsql COST 1000 AS
	$$ BEGIN IF nextval('looks') > looks THEN RAISE 'enough' USING ERRCODE = 'P0002'; END IF; RETURN true; END $$;
EOT
	my $before = stat_of($node, 'goals_taken_back');
	# more fits the filter than is taken, so that it is looked for once more
	fails_with($node, q{SELECT absmartly_take_back(backfill => 'late', filter => $$goal LIKE 'late%' AND fails_after(10)$$);}, 'P0002', qr/enough/, 'is told');
	is(sql(q{SELECT string_agg(DISTINCT goal, ' ') FROM absmartly_pending_events WHERE goal LIKE 'late%'}), 'later', 'what was taken back before is gone');
	is(stat_of($node, 'goals_taken_back') - $before, 5, 'and counted');
	like(log_of($node), qr/0 exposures and 5 goals that waited were taken back by role.*\n.*DETAIL:  Backfill: late\./, 'and logged');
};
fails_with($node, q{SET default_transaction_read_only = on; SELECT absmartly_take_back(1);}, '25006', qr/read-only/, 'and what is read-only');
$node->stop;

# Without a worker nobody has read anything.
my $alone = start_node('alone', preload => 0, settings => "absmartly.endpoint = 'http://127.0.0.1:1/v1'\n");
$alone->safe_psql('postgres', q{SELECT count(absmartly_track('{"user_id": 1}', 'alone')) FROM generate_series(1, 10)});
is($alone->safe_psql('postgres', q{SELECT absmartly_take_back(filter => 'true')}), '10', 'without a worker all is taken back');
is($alone->safe_psql('postgres', 'SELECT count(*) FROM absmartly_pending_events'), '0', 'and nothing waits');

# Whoever was told that something is taken back does not look again after a crash.
$alone->safe_psql('postgres', q{SELECT count(absmartly_track('{"user_id": 1}', 'crash')) FROM generate_series(1, 10)});
my $writer = $alone->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'});
stop_asleep($alone, $writer);
is($alone->safe_psql('postgres', q{SELECT absmartly_take_back(filter => $$goal = 'crash'$$)}), '10', 'what was taken back');
$alone->stop('immediate');
$alone->start;
is($alone->safe_psql('postgres', 'SELECT count(*) FROM absmartly_pending_events'), '0', 'is so after a crash');
$alone->stop;
done_testing();
