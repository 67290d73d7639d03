
# A worker that ends in order leaves what is left to be sent, and no more: what had its answer is not sent again because other
# events of its record wait for a retry, or have not been read yet; nor is an event refused twice.

use strict;
use warnings;

use AbsmartlyTest;
use JSON::PP ();
use PostgreSQL::Test::Cluster;
use Test::More;

my $collector = start_collector(data => experiments(experiment('exp')));
my $node = start_node('main', collector => $collector, settings => <<'EOT');
absmartly.publish_delay = 20ms
absmartly.max_retries = 0
absmartly.max_connections = 1
absmartly.batch_size = 10
EOT
ok(wait_ready($node), 'ready');
idle($node);

#
# Helpers
#

sub sql
{
	my ($query) = @_;

	return $node->safe_psql('postgres', $query);
}

# Goals of so many units in one transaction: the same, or another one for some of them.
sub track
{
	my ($goal, $units, %others) = @_;
	my $names = JSON::PP->new->encode({ map { $_ => "$goal, $others{$_}" } keys %others });

	sql(q{SELECT count(absmartly_track(jsonb_build_object('user_id', i), }
			. qq{coalesce('$names'::jsonb ->> i::text, '$goal'), jsonb_build_object('i', i), attributes => '{"plan": "free"}')) FROM generate_series(1, $units) AS i});
	return;
}

# The collector takes in so many more requests; what comes after these fails. A worker may be sending meanwhile.
sub fail_after
{
	my ($requests, %fault) = @_;

	$collector->replace_faults('/v1',
		$fault{refused} ? { reject_goal => $fault{refused}, times => -1 } : (),
		{ match => { method => 'PUT' }, after => $requests, status => 503, times => -1 });
	return;
}

# The numbers of the goals of a name that have arrived, in order.
sub arrived
{
	my ($goal) = @_;

	my @numbers = sort { $a <=> $b } map { $_->{properties}{i} } $collector->goals(space => '/v1', name => $goal);

	return @numbers;
}

# Waits until so many events have arrived, and then others failed, and the worker knows of both.
sub await_failure
{
	my ($number) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok(await_sql($node, "SELECT exposures_sent + goals_sent = $number AND last_publish_error LIKE '%503%' FROM absmartly_stat"),
		"$number are delivered, and others wait for a retry");
	return is(scalar(() = map { $collector->$_(space => '/v1') } qw(goals exposures)), $number, 'no more have arrived');
}

# What has been sent is not counted any more.
sub forget
{
	sql('SELECT absmartly_stat_reset()');
	$collector->forget;
	return;
}

sub publish { return sql("SELECT absmartly_publish('$PATIENCE s')") }

# Each of the goals arrives once, in the end.
sub arrive
{
	my ($goal, @numbers) = @_;

	$collector->clear_faults('/v1');
	publish();
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(join(' ', arrived($goal)), "@numbers", "$goal: each arrives once");
	is(stat_of($node, 'outbox_events'), '0', 'nothing is left');
	forget();
	return;
}

my $size = 10;

my %ends = (
	'pg_terminate_backend' => sub { sql("SELECT pg_terminate_backend($_[0])") },
	'ALTER DATABASE'       => sub { $size = 21 - $size; sql("ALTER DATABASE postgres SET absmartly.batch_size = $size") },
	'CREATE DATABASE'      => sub { $node->safe_psql('template1', 'CREATE DATABASE copy TEMPLATE postgres') },
	'a fast restart'       => sub { $node->restart },
	'a smart restart'      => sub { $node->stop('smart'); $node->start });

# Ends the worker, and waits for the next one.
sub end_worker
{
	my ($end) = @_;
	my $pid = worker_pid($node);

	$ends{$end}->($pid);
	await(sub { stat_of($node, 'worker_pid') !~ /^(|$pid)$/ }) or die 'the worker does not come back';
	$node->safe_psql('template1', 'DROP DATABASE copy') if $end eq 'CREATE DATABASE';
	return;
}

# What waits, all but the records that it is in, by its numbers.
sub waiting
{
	return map { split /\|/, $_, 2 } split /\n/, sql(<<'EOT');
SELECT units[1] || kind, created, kind, event_time, unit_types, goal, experiment, variant, properties, attributes, historic FROM absmartly_pending_events
EOT
}

#
# Records of one transaction
#

for my $end (sort keys %ends)
{
	subtest $end => sub {
		fail_after(1);
		track($end, 35);
		await_failure($size);
		my %was = waiting();
		end_worker($end);
		my %is = waiting();
		is(scalar keys %is, 35 - scalar(arrived($end)), 'what has not arrived waits on');
		is_deeply(\%is, { map { $_ => $was{$_} } keys %is }, 'as it was');
		arrive($end, 1 .. 35);
	};
}

subtest 'a request that hangs' => sub {
	$collector->fault('/v1', { match => { method => 'PUT' }, after => 1, hang => 1, times => -1 });
	track('hangs', 35);
	ok($collector->wait_for_request(method => 'PUT', state => 'pending'), 'one is not answered');
	$collector->clear_faults('/v1');
	end_worker('a fast restart');
	arrive('hangs', 1 .. 35);
};

subtest 'one worker after the other' => sub {
	my $arrived = 0;

	fail_after(1);
	track('again', 45);
	for my $turn (1 .. 3)
	{
		# one request of any size: what has failed before comes after what has not
		ok(await(sub { $arrived < arrived('again') }), "a request of turn $turn gets through");
		$arrived = arrived('again');
		await_failure($arrived);
		end_worker('pg_terminate_backend');
		fail_after(1);
	}
	arrive('again', 1 .. 45);
};

# What was delivered of a record is marked as soon as its heap can be locked.
for my $end ('pg_terminate_backend', 'absmartly_take_back')
{
	subtest "a locked heap: $end" => sub {
		my ($locker, $taker) = map { $node->background_psql('postgres') } 1 .. 2;

		fail_after(1);
		track("locked, $end", 35);
		await_failure($size);
		my $heap = sql('SELECT DISTINCT place FROM absmartly_outbox');
		my $lock = "BEGIN; ALTER MATERIALIZED VIEW absmartly_outbox_$heap OWNER TO CURRENT_USER";
		my $from = length log_of($node);
		if ($end =~ /^pg/)
		{
			$locker->query_safe($lock);
			end_worker($end);
		}
		else
		{
			# the lock comes when the worker has been asked, and has not heard of it yet
			my $pid = worker_pid($node);
			stop_asleep($node, $pid);
			$taker->query_until(qr/asked/, "\\echo asked\nSELECT absmartly_take_back(filter => \$\$properties->>'i' = '35'\$\$);\n");
			ok(await_sql($node, q{SELECT count(*) FROM pg_stat_activity WHERE query ~ '^SELECT absmartly_take_back' AND state = 'active' AND wait_event IS NOT NULL}, '1'),
				'the worker is asked');
			$locker->query_safe($lock);
			kill 'CONT', $pid;
		}
		ok(await(sub { substr(log_of($node), $from) =~ /could not (?:acknowledge delivered|keep) events/ }), 'it cannot be marked');
		$locker->query_safe('ROLLBACK');
		$_->quit for $locker, $taker;
		arrive("locked, $end", 1 .. ($end =~ /^pg/ ? 35 : 34));
	};
}

subtest 'many units: bulk' => sub {
	fail_after(5);
	track('bulk', 600);
	await_failure(5 * $size);
	end_worker('pg_terminate_backend');
	is(stat_of($node, 'outbox_events, bulk_events'), join('|', (600 - 5 * $size) x 2), 'what is left is bulk as before');
	arrive('bulk', 1 .. 600);
};

subtest 'a backfill' => sub {
	my $note = q{SELECT DISTINCT note FROM absmartly_outbox WHERE place LIKE 'bulk%'};

	sql('CREATE TABLE payments AS SELECT i AS id, i FROM generate_series(1, 35) AS i; CREATE UNIQUE INDEX ON payments (id)');
	fail_after(1);
	sql(q{CALL absmartly_backfill_goals('payments', 'id', 'paid', 'user_id=id', 'i')});
	await_failure($size);
	my $was = sql($note);
	like($was, qr/payments|paid/, 'whose events it is stands in their record');
	end_worker('pg_terminate_backend');
	is(sql($note), $was, 'and in what is left of it');
	arrive('paid', 1 .. 35);
};

# Exposures of so many units, one after the other in transactions that leave them in memory, while nothing is sent.
sub expose
{
	my ($from, $to) = @_;

	ok(set_publishing($node, 'off'), 'nothing is sent');
	# all are in memory when it takes them, however slow the machine is
	my $pid = worker_pid($node);
	stop_asleep($node, $pid);
	sql(join ' ', map {"SELECT absmartly_unit_treatment($_, 'exp'); SELECT pg_sleep(0.002);"} $from .. $to);
	kill 'CONT', $pid;
	ok(await_sql($node, "SELECT sum(exposures) = $to - $from + 1 AND count(*) < 5 AND bool_and(place <> 'memory') FROM absmartly_outbox"),
		'they are put together');
	return;
}

subtest 'exposures of several transactions that share a record' => sub {
	expose(1, 35);
	my %was = waiting();
	fail_after(1);
	configure($node, 'absmartly.publishing = on');
	await_failure($size);
	end_worker('pg_terminate_backend');
	my %is = waiting();
	is(scalar keys %is, 35 - $size, 'the others are left');
	is_deeply(\%is, { map { $_ => $was{$_} } keys %is }, 'with their own times');
	$collector->clear_faults('/v1');
	publish();
	my %units = map { $_->{units}[0]{uid} => 1 } $collector->publish_requests(space => '/v1');
	is(scalar(() = $collector->exposures(space => '/v1')) . ' ' . scalar keys %units, '35 35', 'each arrives once');
	forget();
};

#
# Refused events
#

subtest 'all of a record that is shared' => sub {
	my $times = 'SELECT units, created FROM %s ORDER BY created, units';

	expose(101, 110);
	my $were = sql(sprintf $times, 'absmartly_pending_events');
	$collector->fault('/v1', { match => { method => 'PUT' }, bad_request => 1, times => -1 });
	configure($node, 'absmartly.publishing = on');
	publish();
	is(sql(sprintf $times, 'absmartly_dead_letters'), $were, 'dead letters have the times of their events');
	$collector->clear_faults('/v1');
	is(sql('SELECT absmartly_discard()'), '10', 'they are dropped');
};

subtest 'refused events' => sub {
	my $dead = q{SELECT string_agg(properties ->> 'i', ' ' ORDER BY (properties ->> 'i')::int) FROM absmartly_dead_letters};

	for my $end ('pg_terminate_backend', 'a fast restart')
	{
		fail_after(1, refused => "$end, bad");
		track($end, 35, 3 => 'bad', 34 => 'bad');
		await_failure($size - 1);
		end_worker($end);
		is(sql($dead), '3', "$end: the refused event of what was tried is a dead letter");
		fail_after(100, refused => "$end, bad");
		publish();
		is(sql($dead), '3 34', 'and the other one later, each once');
		$collector->clear_faults('/v1');
		is(sql('SELECT absmartly_requeue()'), '2', 'they are requeued');
		publish();
		is(join(' ', arrived("$end, bad")), '3 34', 'and arrive once');
		arrive($end, grep { $_ != 3 && $_ != 34 } 1 .. 35);
	}
};

#
# Session contexts
#

subtest 'a session context' => sub {
	my $session = $node->background_psql('postgres');

	set_for_worker($node, batch_bytes => '32kB');
	$session->query_safe(q{SELECT absmartly_context_create('{"user_id": "alice"}', '{"plan": "free"}')});
	$session->query_safe("SELECT absmartly_context_wait_until_ready('$PATIENCE s')");
	for my $refused (0, 1)
	{
		my $goal = "goal $refused";

		fail_after(1, $refused ? (refused => 'bad') : ());
		$session->query_safe(q{SELECT count(absmartly_context_track(CASE i WHEN 3 THEN }
				. ($refused ? q{'bad'} : "'$goal'")
				. qq{ ELSE '$goal' END, jsonb_build_object('i', i, 'pad', repeat('x', 300)))) FROM generate_series(1, 500) AS i});
		ok(await_sql($node, q{SELECT last_publish_error LIKE '%503%' FROM absmartly_stat}), 'some are delivered');
		my $arrived = arrived($goal);
		cmp_ok($arrived, '>', 0, 'not none');
		end_worker('pg_terminate_backend');
		is($session->query_safe('SELECT absmartly_context_pending()'), 500 - $arrived - $refused, 'the others are pending');
		is(sql('SELECT count(*) FROM absmartly_pending_events'), 500 - $arrived - $refused, 'and wait');
		$collector->clear_faults('/v1');
		publish();
		is(join(' ', arrived($goal)), join(' ', grep { !$refused || $_ != 3 } 1 .. 500), 'each arrives once');
		is($session->query_safe('SELECT absmartly_context_pending()'), '0', 'none is pending any more');
		my %headers = map { join(' ', map({"$_->{type} $_->{uid}"} @{ $_->{units} }), map {"$_->{name} $_->{value}"} @{ $_->{attributes} }) => 1 }
			$collector->publish_requests(space => '/v1');
		is(scalar keys %headers, 1, 'under the same units and attributes');
		is(stat_of($node, 'outbox_events, dead_letters'), "0|$refused", 'nothing is left');
		forget();
	}
	$session->quit;
};

$node->stop;
unlike(log_of($node), qr/(?:WARNING|ERROR|FATAL):(?!.*(?:could not publish|are not published|has refused|terminating|another database|could not keep events: canceling statement due to lock timeout))/, 'and nothing has gone wrong');

done_testing();
