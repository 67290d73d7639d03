
# Session contexts among transactions, sessions, versions of the data, and servers of several kinds.

use strict;
use warnings;

use AbsmartlyTest;
use Test::More;
use Time::HiRes qw(time);

my $plain = experiments(experiment('exp'), experiment('second', id => 2), experiment('third', id => 3));
my $collector = start_collector(data => $plain);
my $node = start_node('main', collector => $collector, streaming => 1, settings => <<'EOT');
absmartly.publish_delay = 100ms
absmartly.max_retries = 0
max_prepared_transactions = 4
EOT

ok(wait_ready($node), 'ready');

my $held = q{SELECT absmartly_context_create('{"user_id": 1}', options => '{"publish_delay": -1}');};

# What statements of one session give.
sub answers
{
	my ($script, %options) = @_;
	my $output = ($options{node} // $node)->safe_psql($options{database} // 'postgres', $script);

	return shown($output);
}

# Rows on one line, but for those of functions that give nothing.
sub shown
{
	return join ' ', grep { !/^\|*$/ } split /\n/, $_[0];
}

# A session that stays open, whose queries give the error's text in case of an error.
sub session
{
	my ($database, $server) = @_;

	return ($server // $node)->background_psql($database // 'postgres', on_error_stop => 0);
}

sub in_session
{
	my ($session, $query) = @_;
	my $output = $session->query("$query;");
	my ($error) = $session->{stderr} =~ /ERROR:  (.*)/;

	$session->{stderr} = '';
	return $error // shown($output);
}

# The names of the goals and exposures that have arrived since the collector forgot the others, a text for each request.
sub arrived
{
	my ($space) = @_;

	return join '; ', map {
		join ' ', (map { $_->{name} } @{ $_->{exposures} // [] }), (map { $_->{name} } @{ $_->{goals} // [] })
	} $collector->publish_requests(space => $space // '/v1');
}

sub arrive
{
	my ($expected, $name, $space) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	await(sub { length arrived($space) >= length $expected });
	is(arrived($space), $expected, $name);
	$collector->forget($space // '/v1');
	return;
}

#
# Transactions
#

is(answers(<<EOT), 'in 2 after 0 email free 2 exposed_again 1 same 1', 'ROLLBACK undoes events, marks of exposure and pending; state is kept');
$held
BEGIN;
SELECT absmartly_context_treatment('exp') IS NULL OR NULL, absmartly_context_track('undone') IS NULL OR NULL;
SELECT absmartly_context_set_unit('email', 'a\@b.c'), absmartly_context_set_attribute('plan', 'free'), absmartly_context_set_override('other', 2);
SELECT 'in ' || absmartly_context_pending();
ROLLBACK;
SELECT 'after ' || absmartly_context_pending();
SELECT 'email ' || (absmartly_context_attributes() ->> 'plan') || ' ' || absmartly_context_get_override('other') WHERE absmartly_context_units() ? 'email';
SELECT absmartly_context_treatment('exp') IS NULL OR NULL;
SELECT 'exposed_again ' || absmartly_context_pending();
SELECT absmartly_context_treatment('exp') IS NULL OR NULL;
SELECT 'same ' || absmartly_context_pending();
SELECT absmartly_context_publish();
EOT
my ($request) = $collector->publish_requests(space => '/v1');
is(join(' ', sort map { $_->{type} } @{ $request->{units} }), 'email user_id', 'units that were set in a transaction which failed are sent');
is($request->{attributes}[0]{value}, 'free', 'so are attributes');
arrive('exp', 'of the events only that of the second time');

is(answers(<<EOT), 'a 0 b 1 c 2 d 2 e 3 f 3', 'savepoints take back what came after them');
$held
BEGIN;
SAVEPOINT a;
SELECT absmartly_context_track('undone'), absmartly_context_treatment('exp') IS NULL OR NULL;
SAVEPOINT inner_one;
SELECT absmartly_context_track('undone');
RELEASE inner_one;
ROLLBACK TO a;
SELECT 'a ' || absmartly_context_pending();
SELECT absmartly_context_treatment('exp') IS NULL OR NULL;
SELECT 'b ' || absmartly_context_pending();
SAVEPOINT b;
SELECT absmartly_context_treatment('second') IS NULL OR NULL;
RELEASE b;
SELECT 'c ' || absmartly_context_pending();
DO \$\$ BEGIN PERFORM absmartly_context_track('undone'), absmartly_context_treatment('third'); RAISE 'undo'; EXCEPTION WHEN OTHERS THEN NULL; END \$\$;
SELECT 'd ' || absmartly_context_pending();
SELECT absmartly_context_track('kept');
COMMIT;
SELECT 'e ' || absmartly_context_pending();
SELECT absmartly_context_treatment('exp') IS NULL OR NULL, absmartly_context_treatment('second') IS NULL OR NULL;
SELECT 'f ' || absmartly_context_pending();
SELECT absmartly_context_publish();
EOT
arrive('exp second kept', 'and only that');

is(answers(<<EOT), '{"user_id": 7} finalized', 'neither creation nor the end is undone');
$held
BEGIN;
SELECT absmartly_context_create('{"user_id": 7}', options => '{"publish_delay": -1}');
ROLLBACK;
SELECT absmartly_context_units();
BEGIN;
SELECT absmartly_context_finalize();
ROLLBACK;
SELECT 'finalized' WHERE absmartly_context_is_finalized();
EOT

# a changed attribute makes a new assignment, which a rollback does not take back; its exposure it does
is(answers(<<EOT, database => 'postgres'), '0 1 1', 'events of many transactions are one request');
$held
SELECT absmartly_context_pending();
BEGIN; SELECT absmartly_context_track('one'); COMMIT;
SELECT absmartly_context_pending();
BEGIN; SELECT absmartly_context_track('undone'); ROLLBACK;
SELECT absmartly_context_pending();
SELECT absmartly_context_track('two');
SELECT absmartly_context_treatment('exp') IS NULL OR NULL;
SELECT absmartly_context_publish();
EOT
arrive('exp one two', 'in which they are in order');

# prepared transactions
is(answers(<<EOT), 'prepared', 'events of a prepared transaction');
$held
BEGIN; SELECT absmartly_context_track('prepared'); PREPARE TRANSACTION 'p';
BEGIN; SELECT absmartly_context_track('undone'); PREPARE TRANSACTION 'q';
SELECT absmartly_context_track('plain');
COMMIT PREPARED 'p';
ROLLBACK PREPARED 'q';
SELECT absmartly_context_publish();
SELECT 'prepared' WHERE absmartly_context_pending() = 0;
EOT
is(join(' ', sort split / /, arrived()), 'plain prepared', 'arrive if it commits, and nothing stays pending');
$collector->forget('/v1');
is(answers(<<EOT), 'first 0 second 0', 'publish sends all that has been prepared and committed before it');
$held
BEGIN; SELECT absmartly_context_track('p1'); PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p';
SELECT absmartly_context_publish();
SELECT 'first ' || absmartly_context_pending();
BEGIN; SELECT absmartly_context_track('p2'); PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p';
SELECT absmartly_context_publish();
SELECT 'second ' || absmartly_context_pending();
EOT
arrive('p1; p2', 'each time');
my $preparing = session();
in_session($preparing, "$held\nBEGIN;\nSELECT absmartly_context_track('p3');\nSELECT absmartly_context_publish('$PATIENCE s');\nPREPARE TRANSACTION 'p';\nCOMMIT PREPARED 'p'");
arrive('p3', 'what a prepared transaction has published follows its commit');
$preparing->quit;

# who has prepared a transaction can only count what is pending by looking for it, which is for nobody who sets or commits something
my $locker = session();
my $counting = session();
in_session($counting, "$held\nBEGIN;\nSELECT absmartly_context_track('prepared');\nPREPARE TRANSACTION 'p';\nCOMMIT PREPARED 'p'");
in_session($locker, "BEGIN;\nALTER MATERIALIZED VIEW absmartly_outbox_parked RENAME TO absmartly_outbox_locked");
in_session($counting, "SET lock_timeout = '$PATIENCE s'");
is(in_session($counting, "SELECT absmartly_context_set_attribute('late', 1);\nBEGIN;\nSELECT absmartly_track('{\"user_id\": 1}', 'one-shot');\nSELECT absmartly_context_set_attribute('later', 2);\nCOMMIT;\nSELECT 'done'"),
	'done', 'setting and committing do not look into the outbox');
in_session($locker, 'ROLLBACK');
is(in_session($counting, "SELECT absmartly_context_publish('$PATIENCE s');\nSELECT absmartly_context_pending()"), '0', 'publish does');
my ($prepared) = grep { ($_->{goals}[0]{name} // '') eq 'prepared' } $collector->publish_requests(space => '/v1');
is(join(' ', map { $_->{name} } @{ $prepared->{attributes} }), 'late later', 'and what was set is sent');
$_->quit for $locker, $counting;
$node->safe_psql('postgres', "SELECT absmartly_publish('$PATIENCE s')");
$collector->forget('/v1');

# publish and finalize inside a transaction
my $session = session();
in_session($session, $held);
in_session($session, q{SELECT absmartly_context_track('before')});
is(in_session($session, "BEGIN;\nSELECT absmartly_context_track('inside');\nSELECT absmartly_context_publish('$PATIENCE s');\nSELECT absmartly_context_pending()"),
	'1', 'publish does not wait for its own transaction, whose events stay pending');
is(arrived(), 'before', 'but has sent what was committed');
in_session($session, 'COMMIT');
arrive('before; inside', 'the others follow the commit');
ok(await(sub { in_session($session, 'SELECT absmartly_context_pending()') eq '0' }), 'and are pending no more');
in_session($session, q{SELECT absmartly_context_track('held')});
in_session($session, "BEGIN;\nSELECT absmartly_context_track('undone');\nSELECT absmartly_context_publish('$PATIENCE s');\nROLLBACK");
is(in_session($session, 'SELECT absmartly_context_pending()'), '0', 'a rollback leaves nothing');
arrive('held', 'nor sends anything');
in_session($session, q{SELECT absmartly_context_track('still held')});
is(in_session($session, 'SELECT absmartly_context_pending()'), '1', 'what comes later is held again');
in_session($session, "BEGIN;\nSELECT absmartly_context_track('last')");
is(in_session($session, "SELECT absmartly_context_finalize('$PATIENCE s');\nSELECT absmartly_context_is_finalized() OR absmartly_context_is_finalizing()"),
	't', 'finalize seals at once');
like(in_session($session, "SAVEPOINT s;\nSELECT absmartly_context_track('too late')"), qr/^ABSmartly Context is finali(?:zed|zing)\.$/, 'nothing can be added');
in_session($session, "ROLLBACK TO s;\nCOMMIT");
arrive('still held; last', 'and all arrives');
is(in_session($session, 'SELECT absmartly_context_is_finalized()'), 't', 'it is finalized then');

# a read-only transaction, and one that ends up so
is(answers(<<EOT), '2', 'read-only transactions have events, too');
$held
BEGIN READ ONLY; SELECT absmartly_context_track('read only'); COMMIT;
BEGIN; SELECT absmartly_context_track('late'); SET TRANSACTION READ ONLY; COMMIT;
SELECT absmartly_context_pending();
SELECT absmartly_context_publish();
EOT
is(join(' ', sort split /;? /, arrived()), 'late only read', 'which arrive');
$collector->forget('/v1');

#
# The end of a context
#

in_session($session, $held);
in_session($session, q{SELECT absmartly_context_track('of the first')});
in_session($session, $held);
arrive('of the first', 'a context that is replaced sends what it has held');
is(in_session($session, 'SELECT absmartly_context_pending()'), '0', 'the new one has nothing to do with that');
in_session($session, q{SELECT absmartly_context_track('discarded')});
in_session($session, 'DISCARD ALL');
like(in_session($session, 'SELECT absmartly_context_units()'), qr/context/, 'DISCARD ALL drops the context');
arrive('discarded', 'and its events are sent');
in_session($session, $held);
in_session($session, "DISCARD TEMP;\nDISCARD PLANS;\nDISCARD SEQUENCES");
is(in_session($session, 'SELECT absmartly_context_units()'), '{"user_id": 1}', 'other forms of DISCARD do not');
in_session($session, q{SELECT absmartly_context_track('left')});
$session->quit;
arrive('left', 'so are those of a session that ends');

# what is held is shown
$session = session();
in_session($session, $held);
in_session($session, q{SELECT absmartly_context_track('held')});
my $id = in_session($session, 'SELECT absmartly_context_id()');
is($node->safe_psql('postgres', q{SELECT absmartly_track('{"user_id": 1}', 'by the way'); SELECT absmartly_publish()}) =~ /^\s*1$/ ? arrived() : '', 'by the way',
	'absmartly_publish() does not release what is held');
ok(await_sql($node, "SELECT status, contexts FROM absmartly_outbox WHERE context_id = '$id'", 'held|1'), 'absmartly_outbox shows that it is held');
is($node->safe_psql('postgres', "SELECT goal FROM absmartly_pending_events WHERE context_id = '$id'"), 'held', 'and absmartly_pending_events its goal');
$collector->forget('/v1');
in_session($session, "SELECT absmartly_context_close('$PATIENCE s')");
arrive('held', 'close does');
$session->quit;

#
# Several sessions
#

my @sessions = map { session() } 1 .. 3;
for my $number (0 .. 2)
{
	in_session($sessions[$number], qq{SELECT absmartly_context_create('{"user_id": "user $number"}', '{"n": $number}', options => '{"publish_delay": -1}')});
	in_session($sessions[$number], "SELECT absmartly_context_set_override('exp', $number)");
}
for my $number (0 .. 2)
{
	in_session($sessions[$number], "SELECT absmartly_context_track('goal $number')");
	is(in_session($sessions[$number], q{SELECT absmartly_context_treatment('exp'), absmartly_context_get_attribute('n'), absmartly_context_units() ->> 'user_id', absmartly_context_pending()}),
		"$number|$number|user $number|2", "session $number has its own context");
}
is($node->safe_psql('postgres', q{SELECT count(DISTINCT context_id) FROM absmartly_pending_events}), '3', 'each context has an id');
in_session($sessions[1], "SELECT absmartly_context_publish('$PATIENCE s')");
arrive('exp goal 1', 'publish sends those of its own context');
is(join(' ', map { in_session($sessions[$_], 'SELECT absmartly_context_pending()') } 0 .. 2), '2 0 2', 'no others');
in_session($sessions[$_], "SELECT absmartly_context_publish('$PATIENCE s')") for 0, 2;
my %unit_of = map { $_->{goals}[0]{name} => $_->{units}[0]{uid} } $collector->publish_requests(space => '/v1');
is($unit_of{"goal $_"}, $node->safe_psql('postgres', "SELECT absmartly_hash_unit('user $_'::text)"), "the request of session $_ has its unit") for 0, 2;
$_->quit for @sessions;
$collector->forget('/v1');

#
# Versions of the data
#

my ($idle, $used) = (session(), session());
my $fetches = sub { scalar grep { $_->{operation} eq 'context' } $collector->requests(space => '/v1', method => 'GET') };
my $fetched = $fetches->();
in_session($_, $held) for $idle, $used;
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
is($fetches->() - $fetched, 1, 'where there is data, contexts are made without a fetch');
is(in_session($used, q{SELECT absmartly_context_experiments()}), '["exp", "second", "third"]', 'a context has the data of its creation');
for my $version (1 .. 10)
{
	$collector->set_data('/v1', experiments(experiment("version $version", fullOnVariant => 1)));
	$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
	is(in_session($used, q{SELECT absmartly_context_peek_treatment('version ' || i), absmartly_context_peek_treatment('exp') IN (0, 1) FROM generate_series(1, 10) AS i LIMIT 1}), '0|t',
		"newer data does not reach it: $version") if $version % 5 == 0;
}
ok(await(sub { stat_of($node, 'data_versions') <= 2 }), 'a session that does nothing keeps no more than the version that its context has');
is(in_session($_, q{SELECT absmartly_context_experiments(), absmartly_context_treatment('exp') IN (0, 1)}), '["exp", "second", "third"]|t', 'contexts still have theirs') for $idle, $used;
ok(await_sql($node, 'SELECT data_versions FROM absmartly_stat', '1'), 'no old version is kept in shared memory for a session that goes on');
is(in_session($used, "SELECT absmartly_context_refresh('$PATIENCE s');\nSELECT absmartly_context_experiments(), absmartly_context_treatment('version 10')"), '["version 10"]|1',
	'until it is refreshed');
is(in_session($idle, 'SELECT absmartly_context_experiments()'), '["exp", "second", "third"]', 'by itself');
is(in_session($used, "SELECT absmartly_context_refresh('$PATIENCE s');\nSELECT absmartly_context_experiments()"), '["version 10"]', 'refresh succeeds without news');
$collector->fault('/v1', { match => { method => 'GET' }, status => 404, times => 1 });
like(in_session($used, "SELECT absmartly_context_refresh('$PATIENCE s')"), qr/status 404/, 'a refresh that fails says why');
is(in_session($used, 'SELECT absmartly_context_experiments(), absmartly_context_is_failed()'), '["version 10"]|f', 'and changes nothing');
$_->quit for $idle, $used;
$collector->forget('/v1');

# a context that refreshes itself
my ($refreshing, $still) = (session(), session());
in_session($refreshing, q{SELECT absmartly_context_create('{"user_id": 1}', options => '{"refresh_interval": 100}')});
in_session($still, q{SELECT absmartly_context_create('{"user_id": 1}', options => '{"refresh_interval": 0}')});
is(in_session($_, 'SELECT absmartly_context_experiments()'), '["version 10"]', 'two contexts') for $refreshing, $still;
$collector->set_data('/v1', $plain);
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
ok(await(sub { in_session($refreshing, 'SELECT absmartly_context_experiments()') eq '["exp", "second", "third"]' }), 'with a refresh_interval it comes to newer data');
is(in_session($still, 'SELECT absmartly_context_experiments()'), '["version 10"]', 'without it it does not');
in_session($refreshing, "SELECT absmartly_context_finalize('$PATIENCE s')");
$collector->set_data('/v1', experiments(experiment('too late')));
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
select undef, undef, undef, 0.3;
is(in_session($refreshing, 'SELECT absmartly_context_experiments()'), '["exp", "second", "third"]', 'not once it is finalized');
$_->quit for $refreshing, $still;
$collector->set_data('/v1', $plain);
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");

# data that changes all the time: whatever a context sees is of one version
my $churn = session();
$churn->query_until(qr/started/, <<'EOT');
\echo started
DO $$
DECLARE
	seen int[] := '{}';
	a int;
	b int;
BEGIN
	FOR i IN 1 .. 100000 LOOP
		PERFORM absmartly_context_create('{"user_id": 1}');
		a := absmartly_context_peek_treatment('a');
		PERFORM pg_sleep(0.001);
		b := absmartly_context_peek_treatment('b');
		IF a <> b THEN
			RAISE 'data of two versions: % and %', a, b;
		END IF;
		IF NOT a = ANY (seen) THEN
			seen := seen || a;
		END IF;
		COMMIT;
		EXIT WHEN cardinality(seen) >= 20;
	END LOOP;
	RAISE NOTICE 'seen %', cardinality(seen);
END
$$;
\echo done
EOT
my $data = sub { experiments(experiment('a', fullOnVariant => $_[0]), experiment('b', id => 2, fullOnVariant => $_[0])) };
my $changes = 0;
my $end = time + $PATIENCE;
while ($churn->{stdout} !~ /done/ && time < $end)
{
	$changes++;
	$node->safe_psql('postgres', "SELECT absmartly_set_context_data('" . $data->($changes) . "')");
	$churn->{run}->pump_nb;
}
like($churn->{stderr}, qr/NOTICE:  seen \d+/, "contexts are made while data changes ($changes times)");
unlike($churn->{stderr}, qr/ERROR/, 'each is of one piece');
$churn->quit;
ok(await_sql($node, 'SELECT data_versions FROM absmartly_stat', '1'), 'and no version stays behind');

#
# Delays
#

configure($node, 'absmartly.publish_delay = 10min');
ok(await(sub { $node->safe_psql('postgres', 'SHOW absmartly.publish_delay') eq '10min' }), 'events in general wait for long');
$node->safe_psql('postgres', "SELECT absmartly_publish('$PATIENCE s')");
$collector->forget('/v1');
my ($quick, $usual) = (session(), session());
in_session($usual, q{SELECT absmartly_context_create('{"user_id": 1}')});
in_session($usual, q{SELECT absmartly_context_track('usual')});
in_session($quick, q{SELECT absmartly_context_create('{"user_id": 1}', options => '{"publish_delay": 50}')});
my $tracked = time;
in_session($quick, q{SELECT absmartly_context_track('quick')});
ok(await(sub { arrived() =~ /quick/ }), 'a context with a publish_delay of its own does not');
cmp_ok(time - $tracked, '>=', 0.05, 'but for as long as that says');
ok(await(sub { in_session($quick, 'SELECT absmartly_context_pending()') eq '0' }), 'its events are delivered');
in_session($usual, "SELECT absmartly_context_publish('$PATIENCE s')");
is(join(' ', sort split /;? /, arrived()), 'quick usual', 'the others are published on request');
$_->quit for $quick, $usual;
$collector->forget('/v1');
configure($node, 'absmartly.publish_delay = 50ms');
ok(await(sub { $node->safe_psql('postgres', 'SHOW absmartly.publish_delay') eq '50ms' }), 'now they wait for less');
my $slow = session();
in_session($slow, q{SELECT absmartly_context_create('{"user_id": 1}', options => '{"publish_delay": 600000}')});
in_session($slow, q{SELECT absmartly_context_track('slow')});
$node->safe_psql('postgres', q{SELECT absmartly_track('{"user_id": 1}', 'other')});
arrive('other', 'a context with a longer delay is not sent with others');
is(in_session($slow, 'SELECT absmartly_context_pending()'), '1', 'but waits');
in_session($slow, "SELECT absmartly_context_publish('$PATIENCE s')");
arrive('slow', 'until it publishes');
$slow->quit;

#
# Epochs
#

$collector->set_data('/new/v1', experiments(experiment('new')));
$collector->set_data('/v1', $plain);
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
$session = session();
in_session($session, $held);
is(in_session($session, q{SELECT absmartly_context_experiments()}), '["exp", "second", "third"]', 'a context');
in_session($session, q{SELECT absmartly_context_track('before')});
$node->safe_psql('postgres', "ALTER DATABASE postgres SET absmartly.endpoint = '" . $collector->url('/new/v1') . "'");
ok(await_sql($node, 'SELECT name FROM absmartly_experiments', 'new'), 'the database has another endpoint');
is(in_session($session, q{SELECT absmartly_context_experiments(), absmartly_context_treatment('exp') IN (0, 1), absmartly_context_is_failed()}),
	'["exp", "second", "third"]|t|f', 'the context keeps its data');
in_session($session, "SELECT absmartly_context_publish('$PATIENCE s')");
arrive('exp before', 'its events go to the new endpoint', '/new/v1');
is(arrived('/v1'), '', 'not to the former one');
is(in_session($session, "SELECT absmartly_context_refresh('$PATIENCE s');\nSELECT absmartly_context_experiments()"), '["new"]', 'as does its refresh');
$session->quit;
$node->safe_psql('postgres', 'ALTER DATABASE postgres RESET absmartly.endpoint');
ok(await_sql($node, 'SELECT count(*) FROM absmartly_experiments', '3'), 'back');

#
# A context that fails, beside a healthy database
#

$collector->fault('/failing/v1', { match => { method => 'GET' }, status => 404, body => 'no such application', times => -1 });
$node->safe_psql('postgres', 'CREATE DATABASE failing');
$node->safe_psql('postgres', "ALTER DATABASE failing SET absmartly.endpoint = '" . $collector->url('/failing/v1') . "'");
create_extension($node, 'failing');
my $failing = session('failing');
in_session($failing, $held);
is(in_session($failing, "SELECT absmartly_context_wait_until_ready('$PATIENCE s'), absmartly_context_is_ready(), absmartly_context_is_failed()"), 't|t|t', 'a load that fails makes a failed context');
like(in_session($failing, 'SELECT absmartly_context_ready_error()'), qr/status 404.*no such application/, 'which tells why');
is(in_session($failing, q{SELECT absmartly_context_data(), absmartly_context_experiments(), absmartly_context_variable_keys(), absmartly_context_variable_value('colour', 'none')}),
	'{}|[]|{}|none', 'it has no experiments');
in_session($failing, q{SELECT absmartly_context_set_override('exp', 3), absmartly_context_track('lost')});
is(in_session($failing, q{SELECT absmartly_context_treatment('exp'), absmartly_context_treatment('other'), absmartly_context_pending()}), '3|0|3', 'but overrides, and events');
is(answers(q{SELECT absmartly_context_create('{"user_id": 1}'); SELECT absmartly_context_is_failed(), absmartly_context_treatment('exp') IN (0, 1)}), 'f|t', 'other databases are well');
is(in_session($failing, "SELECT absmartly_context_refresh('$PATIENCE s');\nSELECT absmartly_context_is_failed()"), 't', 'its refresh does nothing');
is(in_session($failing, "SELECT absmartly_context_publish('$PATIENCE s');\nSELECT absmartly_context_pending()"), '0', 'its publish discards events');
# one that has gone before the worker can see that it has failed
my $hasty = session('failing');
my $failures = stat_of($node, 'fetch_failures', 'failing');
my $hasty_pid = in_session($hasty, 'SELECT pg_backend_pid()');
in_session($hasty, q{SELECT absmartly_context_create('{"user_id": 1}'), absmartly_context_track('lost at once')});
ok(await(sub { stat_of($node, 'fetch_failures', 'failing') > $failures }), 'a load fails of which the session does not know');
my $worker = worker_pid($node, 'failing');
stop_asleep($node, $worker);
is(in_session($hasty, q{SELECT absmartly_context_is_failed()}), 't', 'the session hears of it');
$hasty->quit;
ok(await_sql($node, "SELECT count(*) FROM pg_stat_activity WHERE pid = $hasty_pid", '0'), 'and ends');
kill 'CONT', $worker;
$collector->clear_faults('/failing/v1');
$collector->set_data('/failing/v1', $plain);
$node->safe_psql('failing', "SELECT absmartly_refresh('$PATIENCE s')");
is(answers(q{SELECT absmartly_context_create('{"user_id": 1}'); SELECT absmartly_context_is_failed(), absmartly_context_peek_treatment('exp') IN (0, 1)}, database => 'failing'),
	'f|t', 'once there is data the next context is well');
is(in_session($failing, q{SELECT absmartly_context_is_failed(), absmartly_context_treatment('second'), absmartly_context_experiments()}), 't|0|[]', 'this one is not revived');
in_session($failing, q{SELECT absmartly_context_track('lost as well')});
is(in_session($failing, "SELECT absmartly_context_finalize('$PATIENCE s');\nSELECT absmartly_context_is_finalized(), absmartly_context_pending()"), 't|0', 'it can be finalized');
$failing->quit;
$node->safe_psql('failing', "SELECT absmartly_publish('$PATIENCE s')");
is(arrived('/failing/v1'), '', 'none of its events was sent');

# a context that waits for its data
$collector->fault('/waiting/v1', { match => { method => 'GET' }, hang => 1, times => 1 });
$collector->set_data('/waiting/v1', $plain);
$node->safe_psql('postgres', 'CREATE DATABASE waiting');
$node->safe_psql('postgres', "ALTER DATABASE waiting SET absmartly.endpoint = '" . $collector->url('/waiting/v1') . "'");
create_extension($node, 'waiting');
my $waiting = session('waiting');
in_session($waiting, q{SELECT absmartly_context_create('{"user_id": 1}', options => '{"publish_delay": -1}')});
is(in_session($waiting, q{SELECT absmartly_context_is_ready(), absmartly_context_wait_until_ready('50 ms'), absmartly_context_treatment('exp'), absmartly_context_pending()}), 'f|f|0|0',
	'until data comes a context is not ready');
is(in_session($waiting, "SELECT absmartly_context_publish('$PATIENCE s')"), 'ABSmartly Context is not yet ready.', 'it can not publish');
is(in_session($waiting, "SELECT absmartly_context_refresh('$PATIENCE s')"), 'ABSmartly Context is not yet ready.', 'or refresh');
in_session($waiting, q{SELECT absmartly_context_track('early')});
my $setter = session('waiting');
is(in_session($setter, "SELECT absmartly_set_context_data('$plain')"), '', 'data is set by another session');
is(in_session($waiting, "SELECT absmartly_context_wait_until_ready('$PATIENCE s'), absmartly_context_is_failed(), absmartly_context_treatment('exp') IN (0, 1), absmartly_context_pending()"), 't|f|t|2',
	'then it is, with what was recorded before');
$_->quit for $waiting, $setter;
$collector->clear_faults('/waiting/v1');
$node->safe_psql('postgres', 'DROP DATABASE waiting');
$node->safe_psql('postgres', 'DROP DATABASE failing');

#
# Failure to publish
#

$session = session();
in_session($session, $held);
in_session($session, q{SELECT absmartly_context_track('stubborn')});
$collector->forget('/v1');
$collector->fault('/v1', { match => { method => 'PUT' }, status => 503, body => 'closed', times => -1 });
like(in_session($session, 'SELECT absmartly_context_publish()'), qr/^Publish failed: .*status 503: "closed"/, 'publish tells why it fails');
fails_with($node, "$held SELECT absmartly_context_track('stubborn'); SELECT absmartly_context_publish('$PATIENCE s');", '08006', qr/Publish failed: /, 'as 08006');
is(in_session($session, 'SELECT absmartly_context_pending(), absmartly_context_is_finalized()'), '1|f', 'and leaves all as it was');
like(in_session($session, "SELECT absmartly_context_finalize('$PATIENCE s')"), qr/^Publish failed: /, 'so does finalize');
is(in_session($session, 'SELECT absmartly_context_is_finalizing(), absmartly_context_is_finalized(), absmartly_context_pending()'), 'f|f|1', 'which gives the context back');
is(in_session($session, "SELECT absmartly_context_track('more');\nSELECT absmartly_context_pending()"), '2', 'as usable as before');
$collector->clear_faults('/v1');
ok(await(sub { arrived() =~ /stubborn/ }), 'events of a session that has ended arrive when they can');
is(in_session($session, 'SELECT absmartly_context_pending()'), '2', 'those of the context are held again');
in_session($session, "SELECT absmartly_context_publish('$PATIENCE s')");
is(in_session($session, 'SELECT absmartly_context_pending()'), '0', 'until it publishes');
arrive('stubborn; stubborn more', 'once each');

# a time-out, and an interrupt
$collector->fault('/v1', { match => { method => 'PUT' }, hang => 1, times => 1 });
in_session($session, q{SELECT absmartly_context_track('late')});
like(in_session($session, q{SELECT absmartly_context_publish('200 ms')}), qr/\S/, 'a publish that takes too long is an error');
is(in_session($session, 'SELECT absmartly_context_pending()'), '1', 'which loses nothing');
like(in_session($session, "SET statement_timeout = 200; SELECT absmartly_context_publish('$PATIENCE s')"), qr/statement timeout/, 'it can be interrupted');
in_session($session, 'RESET statement_timeout');
$collector->restart;    # which ends the request
ok(await(sub { in_session($session, "SELECT absmartly_context_publish('$PATIENCE s')") eq '' }), 'later it goes through');
ok(arrived() =~ /^late(?:; late)?$/, 'the event arrives') || diag(arrived());
$collector->forget('/v1');
$session->quit;

# nothing can be sent
ok(set_publishing($node, 'off'), 'publishing is off');
fails_with($node, "$held SELECT absmartly_context_track('kept'); SELECT absmartly_context_publish('$PATIENCE s');", '55000', qr/publish/, 'then publish is refused');
configure($node, 'absmartly.publishing = on');
arrive('kept', 'and nothing is lost');

#
# Memory
#

$session = session();
my $memory = q{SELECT sum(total_bytes) FROM pg_backend_memory_contexts};
my $cycle = sub {
	return <<EOT;
DO \$\$
BEGIN
	FOR i IN 1 .. $_[0] LOOP
		PERFORM absmartly_context_create(jsonb_build_object('user_id', i), jsonb_build_object('plan', repeat('x', 1000)));
		PERFORM absmartly_context_set_attribute('a' || j, j) FROM generate_series(1, 20) AS j;
		PERFORM absmartly_context_peek_treatment('exp'), absmartly_context_peek_treatment('second'), absmartly_context_set_override('third', 1);
		IF i % 10 = 0 THEN
			PERFORM absmartly_context_treatment('exp');
		END IF;
		PERFORM absmartly_context_close('60 s');
		COMMIT;
	END LOOP;
END
\$\$
EOT
};
my $pid = in_session($session, 'SELECT pg_backend_pid()');
is(in_session($session, $cycle->(100)), '', 'a hundred contexts');
my ($before, $rss_before) = (in_session($session, $memory), rss_anon($pid));
is(in_session($session, $cycle->(1000)), '', 'a thousand more');
my ($after, $rss_after) = (in_session($session, $memory), rss_anon($pid));
cmp_ok($after - $before, '<', 64 * 1024, 'leave no memory behind');
cmp_ok($rss_after - $rss_before, '<', 1024, 'neither the server\'s nor the libraries\'');
# a context that lives, through many calls and refreshes
in_session($session, q{SELECT absmartly_context_create('{"user_id": 1}', '{"plan": "free"}')});
my $calls = q{DO $$ BEGIN FOR i IN 1 .. 20000 LOOP PERFORM absmartly_context_treatment('exp'), absmartly_context_variable_value('colour', 'none'), absmartly_context_units(),
	absmartly_context_variable_keys(), absmartly_context_get_attribute('plan'), absmartly_context_custom_field_keys(), absmartly_context_pending(); END LOOP; END $$};
my $refreshes = join ";\n", ('SELECT absmartly_context_refresh()') x 30;
in_session($session, $_) for $calls, $refreshes;
($before, $rss_before) = (in_session($session, $memory), rss_anon($pid));
in_session($session, $_) for $calls, $refreshes, $calls;
($after, $rss_after) = (in_session($session, $memory), rss_anon($pid));
cmp_ok($after - $before, '<', 64 * 1024, 'nor do many calls and refreshes of one context');
cmp_ok($rss_after - $rss_before, '<', 1024, 'in all');
$session->quit;
$node->safe_psql('postgres', "SELECT absmartly_publish('$PATIENCE s')");
ok(await_sql($node, 'SELECT outbox_records FROM absmartly_stat', '0'), 'all was delivered');

#
# A hot standby
#

my $standby = start_standby($node);
ok(wait_ready($standby), 'the standby is ready');
$collector->forget('/v1');
$session = session('postgres', $standby);
in_session($session, $held);
is(in_session($session, q{SELECT pg_is_in_recovery(), absmartly_context_is_ready(), absmartly_context_treatment('exp') IN (0, 1)}), 't|t|t', 'a context on a standby');
in_session($session, q{SELECT absmartly_context_track('on the standby'), absmartly_context_set_attribute('plan', 'free')});
is(in_session($session, 'SELECT absmartly_context_pending()'), '2', 'has events');
$standby->safe_psql('postgres', q{SELECT absmartly_track('{"user_id": 1}', 'one-shot')});
arrive('one-shot', 'which wait while others are sent');
is(in_session($session, "SELECT absmartly_context_publish('$PATIENCE s');\nSELECT absmartly_context_pending()"), '0', 'and are published');
arrive('exp on the standby', 'in one request');
is(in_session($session, "SELECT absmartly_context_refresh('$PATIENCE s');\nSELECT absmartly_context_is_failed()"), 'f', 'refresh works');
in_session($session, q{SELECT absmartly_context_track('left')});
$session->quit;
arrive('left', 'the end of a session sends what it has left');
$standby->stop;

#
# Without preloading
#

$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "''");
$node->restart;
$session = session();
in_session($session, $held);
is(in_session($session, q{SELECT absmartly_context_is_ready(), absmartly_context_is_failed(), absmartly_context_wait_until_ready(), absmartly_context_treatment('exp') IN (0, 1),
	absmartly_context_experiments()}), 't|f|t|t|["exp", "second", "third"]', 'without preloading a context has the data of the file');
in_session($session, q{SELECT absmartly_context_track('not preloaded')});
is(in_session($session, 'SELECT absmartly_context_pending()'), '2', 'and events');
fails_with($node, "$held SELECT absmartly_context_track('not preloaded'); SELECT absmartly_context_publish('$PATIENCE s');", '55000', qr/HINT:  Add absmartly to "shared_preload_libraries"/, 'to publish them takes a worker');
fails_with($node, "$held SELECT absmartly_context_refresh('$PATIENCE s');", '55000', qr/HINT:  Add absmartly to "shared_preload_libraries"/, 'so does a refresh');
in_session($session, q{BEGIN; SELECT absmartly_context_track('undone'); ROLLBACK});
is(in_session($session, 'SELECT absmartly_context_pending(), absmartly_context_is_finalized()'), '2|f', 'all stays as it is');
is(answers("$held SELECT absmartly_context_finalize('$PATIENCE s'); SELECT absmartly_context_is_finalized()"), 't', 'a context without events can be finalized');
$session->quit;
$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "'absmartly'");
$node->restart;
ok(await(sub { arrived() =~ /exp not preloaded/ }), 'a worker sends them later');
is(join('; ', sort split /; /, arrived()), 'exp not preloaded; not preloaded', 'each session\'s by itself');

unlike(log_of($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
$node->stop;
done_testing();
