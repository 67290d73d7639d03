
# One bad event costs nobody else anything: of a request that the collector refuses, or finds too large, all that can be
# delivered is, whatever unit, transaction or session context it shares with the guilty one, and whether the collector says
# which one that is or not. An answer that is not the collector's delivers nothing.

use strict;
use warnings;

use AbsmartlyMain qw(:DEFAULT put_fault puts);
use AbsmartlyTest;
use JSON::PP ();
use Test::More;
use Time::HiRes qw(sleep);

start_main(data => experiments(experiment('exp'), experiment('other', id => 2)), settings => <<'EOT');
absmartly.publish_delay = '10min'
absmartly.max_retries = 1
EOT
idle($node);

#
# Helpers
#

# So many goals of one unit in one transaction; some of them have another name.
sub track
{
	my ($number, $goal, %others) = @_;
	my $name = join(' ', 'CASE i', (map { "WHEN $_ THEN '$others{$_}'" } sort keys %others), "ELSE '$goal' END");

	$name = "'$goal'" if !%others;
	return sql(q[DO $$ BEGIN PERFORM absmartly_track('{"user_id": 7}', ] . $name
		. ", jsonb_build_object('i', i), attributes => '{\"plan\": \"free\"}') FROM generate_series(1, $number) AS i; END \$\$");
}

# Publishes; gives how many events were sent since the last time, be it before the call.
my $sent_before = 0;

sub sent { return sql('SELECT exposures_sent + goals_sent FROM absmartly_stat') }

sub publish
{
	my $before = $sent_before;

	sql("SELECT absmartly_publish('$PATIENCE s')");
	$sent_before = sent();
	return $sent_before - ($sent_before < $before ? 0 : $before);
}

sub publish_requests
{
	return map { @{ $_->{json}{requests} // [ $_->{json} ] } } grep { $_->{accepted} } puts();
}

# Each of so many goals has arrived once: those with these numbers.
sub arrived
{
	my ($goal, $numbers, $name) = @_;
	my @arrived = sort { $a <=> $b } map { $_->{properties}{i} } $collector->goals(space => '/v1', name => $goal);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is("@arrived", "@$numbers", $name);
}

sub except
{
	my ($number, %guilty) = @_;

	return [ grep { !$guilty{$_} } 1 .. $number ];
}

# Ends a case: nothing waits, and nothing is dead any more.
sub clean
{
	$collector->clear_faults('/v1');
	sql('SELECT absmartly_discard()');
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(stat_of($node, 'outbox_events'), '0', 'nothing is left');
	$collector->forget;
	$sent_before = sent();
	return;
}

# The call fails if one of the context's events is refused.
my $publish_context = q{DO $$ BEGIN PERFORM absmartly_context_publish('} . $PATIENCE . q{ s'); EXCEPTION WHEN OTHERS THEN NULL; END $$};

my $dead = q{SELECT count(*), count(DISTINCT record) FROM absmartly_dead_letters};

#
# Refused events
#

subtest 'one of a hundred that share a unit and a transaction' => sub {
	put_fault(reject_goal => 'bad');
	track(100, 'good', 50 => 'bad');
	is(publish(), '99', 'the others are delivered');
	arrived('good', except(100, 50 => 1), 'each of them once');
	is(scalar puts(), 2, 'by a second request');
	is(sql("$dead WHERE goal = 'bad' AND properties ->> 'i' = '50'"), '1|1', 'the guilty one is a dead letter');
	is(sql($dead), '1|1', 'and no other');
	is(sql('SELECT goals_sent, goals_rejected, dead_letters FROM absmartly_stat'), '99|1|1', 'absmartly_stat says so');
	my ($request) = publish_requests();
	is_deeply([ $request->{units}, $request->{attributes}[0]{value} ],
		[ [ { type => 'user_id', uid => sql("SELECT absmartly_hash_unit('7')") } ], 'free' ], 'units and attributes are the same');

	is(sql('SELECT absmartly_requeue()'), '1', 'it can be requeued');
	track(3, 'innocent');
	is(publish(), '3', 'and takes nobody with it');
	is(sql($dead), '1|1', 'it is dead again');
	$collector->clear_faults('/v1');
	is(sql('SELECT absmartly_requeue()'), '1', 'once more');
	is(publish(), '1', 'it arrives when it is taken');
	arrived('bad', [50], 'once');
	clean();
};

subtest 'a collector that does not say which one' => sub {
	put_fault(reject_goal => 'bad', with_index => 0);
	track(100, 'good', 50 => 'bad');
	is(publish(), '99', 'the others are delivered');
	arrived('good', except(100, 50 => 1), 'each of them once');
	is(sql($dead), '1|1', 'the guilty one is a dead letter');
	cmp_ok(scalar puts(), '<=', 15, 'in about two requests for each halving');
	clean();

	put_fault(reject_goal => 'bad', error => { eventIndex => undef, subject => undef });
	sql(q{SELECT absmartly_track('{"user_id": 1}', 'before')});
	track(100, 'good', 1 => 'bad', 100 => 'bad');
	sql(q{SELECT absmartly_track('{"user_id": 2}', 'after')});
	is(publish(), '100', 'nor does the index of an item that has many events');
	arrived('good', [ 2 .. 99 ], 'each of the others arrives once');
	is(sql($dead), '2|2', 'the guilty ones are dead letters');
	clean();
};

subtest 'many guilty ones' => sub {
	my %guilty = map { 7 * $_ => 'bad' } 1 .. 30;

	put_fault(reject_goal => 'bad');
	track(300, 'good', %guilty);
	is(publish(), '270', 'the others are delivered');
	arrived('good', except(300, %guilty), 'each of them once');
	is(scalar puts(), 2, 'if all are named, by a second request');
	is(sql("$dead WHERE goal = 'bad'"), '30|30', 'each has a row');
	clean();

	put_fault(reject_goal => 'bad', most_errors => 1);
	track(300, 'good', %guilty);
	is(publish(), '270', 'if one is named at a time, the others are delivered as well');
	arrived('good', except(300, %guilty), 'each of them once');
	is(sql("$dead WHERE goal = 'bad'"), '30|30', 'each has a row');
	cmp_ok(scalar puts(), '<=', 30 * 2 * 9, 'with so many requests for each');
	clean();

	put_fault(reject_goal => 'bad');
	track(50, 'bad');
	track(50, 'good');
	is(publish(), '50', 'all of a request may be guilty');
	is(sql("$dead WHERE goal = 'bad'"), '50|50', 'each has a row');
	arrived('good', [ 1 .. 50 ], 'other requests arrive');
	clean();
};

subtest 'goals and exposures' => sub {
	my $events = q{BEGIN; SELECT absmartly_treatment('{"user_id": 1}', 'exp', exposed_at => '2024-02-29'),
		absmartly_treatment('{"user_id": 1}', 'other', exposed_at => '2024-02-29'),
		absmartly_track('{"user_id": 1}', 'one', '{"n": 1.50}', '2024-02-29'),
		absmartly_track('{"user_id": 1}', 'two', NULL, '2024-02-29'); COMMIT};
	my $names = q{SELECT string_agg(coalesce(goal, experiment), ' ' ORDER BY coalesce(goal, experiment)) FROM absmartly_dead_letters};

	for my $case (
		[ 'an exposure that is named by its subject', { subject => 'exposures[1].variant', eventIndex => 0 }, 'other' ],
		[ 'a goal that is named by its subject alone', { subject => 'requests[0].goals[1]' }, 'two' ],
		[ 'a list that is named by the subject', { subject => 'exposures', eventIndex => 1, batchIndex => 0 }, 'other' ],
		[ 'a path', { subject => '/goals/0/properties' }, 'one' ],
		[ 'an index that may be of either list', { eventIndex => 1 }, '' ],
		[ 'an index that no list has', { subject => 'goals[2].name', eventIndex => 2 }, '' ],
		[ 'an item that is not there', { subject => 'goals[1].name', eventIndex => 1, batchIndex => 4 }, '' ],
		[ 'an index that is none', { subject => 'goals', eventIndex => -1 }, '' ],
		[ 'what all have in common', { subject => 'units[0].uid' }, 'exp one other two' ])
	{
		my ($name, $error, $expected) = @$case;

		put_fault(bad_request => { message => 'no', %$error }, times => 1);
		sql($events);
		is(publish(), 4 - split(' ', $expected), "$name: what is not blamed is delivered");
		is(sql($names), $expected, "$name: it costs nothing else");
		clean();
	}

	put_fault(reject_goal => 'one', error => { subject => undef });
	sql($events);
	is(publish(), '3', 'an index without a list: the guilty one is found');
	is(sql($names), 'one', 'it alone is dead');
	clean();
};

subtest 'a collector that names the wrong ones' => sub {
	for my $wrong ({ eventIndex => 0, subject => 'goals[0]' }, { eventIndex => 99, subject => undef }, { batchIndex => 77 })
	{
		my $told = join(' ', map { "$_ " . ($wrong->{$_} // 'null') } sort keys %$wrong);

		put_fault(reject_goal => 'bad', error => $wrong);
		track(300, 'good', 200 => 'bad');
		cmp_ok(publish(), '>=', 296, "$told: nearly all are delivered");
		is(sql(q{SELECT count(*) FROM absmartly_dead_letters WHERE goal = 'bad'}), '1', "$told: the guilty one is found");
		cmp_ok(sql('SELECT count(*) FROM absmartly_dead_letters'), '<=', 4, "$told: few are believed to be guilty");
		cmp_ok(scalar puts(), '<=', 25, "$told: in about two requests for each halving");
		clean();
	}
};

subtest 'a session context' => sub {
	my $session = $node->background_psql('postgres');
	my $create = q{SELECT absmartly_context_create('{"user_id": "c"}', options => '{"publish_delay": -1}')};


	put_fault(reject_goal => 'bad');
	$session->query_safe($create);
	$session->query_safe("SELECT absmartly_context_wait_until_ready('$PATIENCE s')");
	$session->query_safe("SELECT absmartly_context_track(CASE i WHEN 30 THEN 'bad' ELSE 'good' END, jsonb_build_object('i', i)) "
		. "FROM generate_series($_ * 20 + 1, $_ * 20 + 20) AS i") for 0 .. 4;
	$session->query_safe(q{SELECT absmartly_context_set_attribute('late', 'yes'::text)});
	$session->query_safe($publish_context);
	arrived('good', except(100, 30 => 1), 'all others of five transactions arrive, once');
	is(scalar puts(), 2, 'by a second request');
	is(sql(q{SELECT count(*), min(goal), min(attributes::text) ~ 'late' FROM absmartly_dead_letters}), '1|bad|t',
		'the guilty one is dead, with what it was sent with');
	is($session->query_safe('SELECT absmartly_context_pending()'), '0', 'nothing is pending');
	clean();

	put_fault(reject_goal => 'bad', with_index => 0);
	$session->query_safe("SELECT absmartly_context_track(CASE i WHEN 30 THEN 'bad' ELSE 'good' END, jsonb_build_object('i', i)) "
		. "FROM generate_series($_ * 20 + 1, $_ * 20 + 20) AS i") for 0 .. 4;
	$session->query_safe($publish_context);
	arrived('good', except(100, 30 => 1), 'also if it is not named');
	is(sql($dead), '1|1', 'the guilty one is dead');
	is($session->query_safe('SELECT absmartly_context_pending()'), '0', 'nothing is pending');
	$session->quit;
	clean();
};

subtest 'an event that the collector fails with' => sub {
	put_fault(reject_goal => 'bad', status => 500);
	track(20, 'good', 10 => 'bad');
	# that others are delivered shows that it is the event
	ok(await(sub {
		sql(q{SELECT absmartly_track('{"user_id": 1}', 'other')});
		publish_some();
		$collector->goals(space => '/v1', name => 'good') == 19;
	}), 'those that share its unit and transaction get through');
	arrived('good', except(20, 10 => 1), 'once');
	is(sql($dead), '0|0', 'no event is blamed');
	is(sql(q{SELECT count(*) FROM absmartly_pending_events WHERE goal = 'bad'}), '1', 'it waits');
	$collector->clear_faults('/v1');
	publish();
	arrived('bad', [10], 'and arrives at last');
	clean();
};

# Publishes what can be; that something fails does not matter.
sub publish_some
{
	return $node->psql('postgres', q{SELECT absmartly_publish('5 s')});
}

#
# What is not made
#

subtest 'events that no collector takes' => sub {
	$node->safe_psql('postgres', <<'EOT');
CREATE TABLE payment (customer_id int, amount numeric, details jsonb, raw json);
CREATE TRIGGER track AFTER INSERT ON payment FOR EACH ROW
EXECUTE FUNCTION absmartly_track_trigger('payment', 'user_id=customer_id', 'amount,details,raw');
EOT
	my $data = JSON::PP->new->canonical->encode({ experiments => [ map { experiment($_->[0], id => $_->[1], fullOnVariant => $_->[2]) }
		[ 'fine', 11, 2 ], [ 'large', 12, 500 ], [ 'negative', 13, -1 ] ] });

	# who asks for a variant that can not be learns that at once
	for my $call (
		q{absmartly_treatment('{"user_id": 777}', 'exp', custom_variant => -1)},
		q{absmartly_peek_treatment('{"user_id": 777}', 'exp', custom_variant => 128)},
		q{absmartly_context_set_override('exp', 500)},
		q{absmartly_context_set_overrides('{"exp": 500}')},
		q{absmartly_context_set_custom_assignment('exp', -1)},
		q{absmartly_context_set_custom_assignments('{"exp": 128}')})
	{
		fails_with($node, "SELECT absmartly_context_create('{\"user_id\": 777}'); SELECT $call;", '22023', qr/variant must be between 0 and 127/, $call);
	}
	fails_with($node, q{SET absmartly.overrides = '{"exp": 500}';}, '22023', qr/invalid value for parameter/, 'absmartly.overrides');

	# what the data makes is answered, and costs nobody anything
	my ($status, $output, $error) = $node->psql('postgres', <<EOT);
SELECT absmartly_context_create('{"user_id": "c"}', data => '$data');
BEGIN;
INSERT INTO payment VALUES (777, 12.34);
SELECT absmartly_context_treatment(name) FROM unnest(ARRAY['fine', 'large', 'negative', 'large']) AS name;
SELECT absmartly_treatment('{"user_id": 777}', '');
SELECT absmartly_treatment('{"user_id": 777}', 'exp');
COMMIT;
EOT
	like($output, qr/2\n500\n-1\n500\n0\n/, 'all is answered');
	like($error, qr/WARNING:  an exposure of experiment "large" is not queued\n/, 'the first one is told');
	unlike($error, qr/not queued.*not queued/s, 'once');
	publish();
	is(join(' ', sort map { $_->{name} } $collector->goals(space => '/v1'), $collector->exposures(space => '/v1')), 'exp fine payment', 'the others are delivered');
	is(stat_of($node, 'exposures_impossible, dead_letters'), '4|0', 'absmartly_stat counts those that are not queued');
	clean();

	sql(q{SELECT absmartly_track('{"user_id": 1}', 'odd', attributes => '{"": 1, "a": 2}'), absmartly_track('{"user_id": 2}', 'odd', attributes => '{"": 1}')});
	is(publish(), '2', 'an attribute without a name stops nothing');
	is(join(' ', map { "$_->{name}=$_->{value}" } $collector->attributes(space => '/v1')), 'a=2', 'it is not sent');
	clean();

	my $deep = q{(repeat('[', 200) || repeat(']', 200))};
	fails_with($node, "SELECT absmartly_track('{\"user_id\": 1}', 'deep', jsonb_build_object('a', $deep\::jsonb));", '54000',
		qr/event is nested too deeply/, 'properties that are nested too deeply');
	($status, $output, $error) = $node->psql('postgres',
		"INSERT INTO payment VALUES (1, 1, $deep\::jsonb); INSERT INTO payment VALUES (2, 1, NULL, $deep\::json); INSERT INTO payment VALUES (3, 1)");
	is($status, 0, 'fail no insert');
	is(scalar(() = $error =~ /is tracked without its properties\n.*DETAIL:  They are nested more than 128 deep/g), 2, 'but are left out');
	is(publish(), '3', 'the goals are delivered');
	clean();
};

subtest 'no application' => sub {
	for my $setting (qw(application environment))
	{
		$node->append_conf('postgresql.conf', "absmartly.$setting = ''\n");
		$node->restart;
		track(3, "without $setting");
		fails_with($node, "SELECT absmartly_publish('$PATIENCE s');", '55000', qr/"absmartly\.$setting" is not set/, "without $setting nothing is sent");
		is(scalar puts(), 0, 'not even tried');
		like(log_of($node), qr/WARNING: .*absmartly: events are kept, and not sent: "absmartly\.$setting" is not set/, 'which the log tells');
		$node->append_conf('postgresql.conf', "absmartly.$setting = 'x'\n");
		$node->restart;
		publish();
		arrived("without $setting", [ 1 .. 3 ], 'it is sent when there is one');
		is(sql($dead), '0|0', 'nothing is dead');
		clean();
	}
};

#
# Too large
#

subtest 'status 413' => sub {
	put_fault(match => { method => 'PUT', larger_than => 3000 }, status => 413, html => 'too large');
	track(200, 'good');
	publish();
	arrived('good', [ 1 .. 200 ], 'a request of one unit and transaction is halved until it fits, and all arrive, once');
	is(sql($dead), '0|0', 'nothing is dead');
	clean();

	put_fault(match => { method => 'PUT', larger_than => 3000 }, status => 413, html => 'too large');
	my $session = $node->background_psql('postgres');
	$session->query_safe(q{SELECT absmartly_context_create('{"user_id": "c"}', options => '{"publish_delay": -1}')});
	$session->query_safe("SELECT absmartly_context_wait_until_ready('$PATIENCE s')");
	$session->query_safe(q{SELECT absmartly_context_track('good', jsonb_build_object('i', i)) FROM generate_series(1, 200) AS i});
	$session->query_safe(q{SELECT absmartly_context_track('large', jsonb_build_object('i', 1, 'text', repeat('x', 5000)))});
	$session->query_safe(q{SELECT absmartly_context_track('good', jsonb_build_object('i', i)) FROM generate_series(201, 300) AS i});
	$session->query_safe($publish_context);
	arrived('good', [ 1 .. 300 ], 'so is one of a session context');
	is(sql(q{SELECT count(*), min(goal), min(note) FROM absmartly_dead_letters}), '1|large|status 413', 'only what is too large alone is dead');
	is($session->query_safe('SELECT absmartly_context_pending()'), '0', 'nothing is pending');
	$session->quit;
	clean();
};

subtest 'a limit that is remembered' => sub {
	my $large = q[DO $$ BEGIN PERFORM absmartly_track(jsonb_build_object('user_id', i % 20), 'good',
		jsonb_build_object('i', i, 'text', repeat('x', 1000))) FROM generate_series(1, 2000) AS i; END $$];
	my $too_large = sub { return scalar grep { $_->{status} == 413 } puts(); };

	$node->reload;
	put_fault(match => { method => 'PUT', larger_than => 300_000 }, status => 413, html => 'too large');
	sql($large);
	publish();
	arrived('good', [ 1 .. 2000 ], 'batches become smaller, and all arrive, once');
	cmp_ok($too_large->(), '>', 0, 'after some that were too large');
	$collector->forget;
	sql($large);
	publish();
	arrived('good', [ 1 .. 2000 ], 'the next ones arrive');
	cmp_ok($too_large->(), '<=', 1, 'and are small from the beginning');
	clean();
};

#
# Answers that are not the collector's
#

subtest 'a good status with another body' => sub {
	my @bodies = (
		[ 'no JSON', body => 'OK', content_type => 'text/plain' ],
		[ 'half of an answer', body => '{"ok":tr' ],
		[ 'another object', body => { status => 'ok' } ],
		[ 'an empty object', body => {} ],
		[ 'no object', body => [] ],
		[ 'a number instead of a truth', body => { ok => 1 } ],
		[ 'data', body => { experiments => [] } ],
		[ 'nothing', body => '' ],
		[ 'status 201', status => 201, body => { created => \1 } ],
		[ 'more than is read', huge => 1_200_000 ],
		[ 'more than is read, of unknown length', huge => 1_200_000, chunked => 1 ]);

	for my $case (@bodies)
	{
		my ($name, %fault) = @$case;
		my $offset = -s $node->logfile;
		my ($status, $output, $error);

		put_fault(status => 200, accept => 0, %fault);
		track(5, $name);
		($status, $output, $error) = $node->psql('postgres', "SELECT absmartly_publish('$PATIENCE s')");
		like($error, qr/could not publish events: /, "$name: it is said");
		is(stat_of($node, 'outbox_events, goals_sent') =~ s/\|.*//r, '5', "$name: nothing counts as delivered");
		is(sql($dead), '0|0', "$name: nothing is blamed");
		like(substr(log_of($node), $offset), qr/WARNING: .*absmartly: could not publish events: /, "$name: the log has it");
		$collector->clear_faults('/v1');
		is(publish(), '5', "$name: it is delivered later");
		arrived($name, [ 1 .. 5 ], "$name: once");
		clean();
	}

	for my $case ([ 'status 204', status => 204 ], [ 'status 201', status => 201, body => { ok => \1 } ],
		[ 'not ok', status => 200, body => { ok => \0 } ])
	{
		my ($name, %fault) = @$case;

		put_fault(accept => 1, times => 1, %fault);
		track(5, $name);
		is(publish(), '5', "$name: an answer of the collector's");
		arrived($name, [ 1 .. 5 ], "$name: once");
		clean();
	}
};

unlike(log_of($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
$node->stop;
done_testing();
