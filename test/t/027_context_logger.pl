
# What the event logger is told of session contexts: by whom, in which order and transaction, and what its failures do.

use strict;
use warnings;

use AbsmartlyTest;
use JSON::PP ();
use Test::More;
use Time::HiRes qw(time);

my $data = experiments(
	experiment('exp', fullOnVariant => 1, variants => [ { name => 'A', config => '{"size":1}' }, { name => 'B', config => '{"colour":"red"}' } ]),
	experiment('second', id => 2, variants => [ { name => 'A', config => '{"size":2}' }, { name => 'B', config => '{"size":3}' } ]));
my $collector = start_collector(data => $data);
my $node = start_node('main', collector => $collector, extension => 0, settings => <<'EOT');
absmartly.publish_delay = 50ms
absmartly.max_retries = 0
EOT

# what is there already when the logger hears of the experiments
create_extension($node);
ok(wait_ready($node), 'ready');
log_events($node);
# the worker has the setting
ok(await(sub { $node->safe_psql('postgres', 'SELECT absmartly_refresh()'); logged('', q{context->>'source' = 'worker'}) =~ /refresh/ }), 'the logger is in use');

my $held = q{SELECT absmartly_context_create('{"user_id": 1}', options => '{"publish_delay": -1}');};

# The events of a context, in order, since the last time that the table was emptied.
sub logged
{
	my ($id, $condition, $columns) = @_;

	$condition //= "context->>'id' = '$id'";
	$columns //= 'event';
	return $node->safe_psql('postgres', "SELECT string_agg(concat_ws(' ', $columns), ', ' ORDER BY n) FROM event_log WHERE $condition");
}

sub session
{
	my ($database) = @_;

	return $node->background_psql($database // 'postgres', on_error_stop => 0);
}

# What a query of a session gives, or its error; and what was written to its standard error besides.
sub in_session
{
	my ($session, $query) = @_;
	my $output = $session->query("$query;");
	my $noise = $session->{stderr};
	my ($error) = $noise =~ /ERROR:  (.*)/;
	my $result = $error // join ' ', grep { !/^\|*$/ } split /\n/, $output;

	$session->{stderr} = '';
	return wantarray ? ($result, $noise) : $result;
}

sub new_context
{
	my ($session, $statement) = @_;

	in_session($session, $statement // $held);
	return scalar in_session($session, 'SELECT absmartly_context_id()');
}

# Has the logger do something else.
sub logger
{
	my ($body, %options) = @_;
	my $language = $options{language} // 'plpgsql';

	$node->safe_psql('postgres', "CREATE OR REPLACE FUNCTION public.log_event(context jsonb, event text, data jsonb) RETURNS void LANGUAGE $language AS \$body\$ $body \$body\$");
	return;
}

my $insert = 'INSERT INTO public.event_log (context, event, data) VALUES (context, event, data);';

#
# The usual course
#

my $session = session();
my $id = new_context($session);
my $pid = in_session($session, 'SELECT pg_backend_pid()');
is(logged($id), 'ready', 'a context that has its data at once is ready');
in_session($session, $_) for
	q{SELECT absmartly_context_peek_treatment('exp'), absmartly_context_peek_variable_value('colour', 'none')},
	q{SELECT absmartly_context_set_unit('email', 'x'), absmartly_context_set_attribute('a', 1), absmartly_context_set_override('other', 1), absmartly_context_set_custom_assignment('second', 1)};
is(logged($id), 'ready', 'of peeking, units, attributes and overrides nobody is told');
in_session($session, q{SELECT absmartly_context_treatment('exp'), absmartly_context_track('signup', '{"n": 1}'), absmartly_context_treatment('exp'), absmartly_context_variable_value('size', 'none')});
is(logged($id), 'ready, exposure, goal, exposure', 'exposures and goals are told when they are recorded');
in_session($session, "SELECT absmartly_context_publish('$PATIENCE s')");
is(logged($id), 'ready, exposure, goal, exposure, publish', 'a publish before its caller goes on');
in_session($session, "SELECT absmartly_context_publish('$PATIENCE s')");
is(logged($id), 'ready, exposure, goal, exposure, publish', 'one of nothing is none');
in_session($session, "SELECT absmartly_context_refresh('$PATIENCE s')");
is(logged($id), 'ready, exposure, goal, exposure, publish, refresh', 'a refresh that brings no news is one');
in_session($session, q{SELECT absmartly_context_track('last')});
in_session($session, "SELECT absmartly_context_finalize('$PATIENCE s')");
in_session($session, "SELECT absmartly_context_finalize('$PATIENCE s')");
is(logged($id), 'ready, exposure, goal, exposure, publish, refresh, goal, publish, finalize', 'the end comes once, after the publish');

is($node->safe_psql('postgres', "SELECT DISTINCT context->>'source', context->>'database' FROM event_log WHERE context->>'id' = '$id'"), 'context|postgres', 'all are of the context');
is($node->safe_psql('postgres', "SELECT DISTINCT event = 'publish' FROM event_log WHERE context->>'id' = '$id' AND context->>'pid' <> '$pid'"), 't', 'only publish comes from elsewhere');
is($node->safe_psql('postgres', "SELECT DISTINCT context->>'pid' = (SELECT worker_pid::text FROM absmartly_stat) FROM event_log WHERE context->>'id' = '$id' AND event = 'publish'"), 't', 'from the worker');
is($node->safe_psql('postgres', "SELECT DISTINCT path FROM event_log WHERE context->>'id' = '$id'"), 'pg_catalog, pg_temp', 'with a safe search path');

my $json = JSON::PP->new->canonical;
my @rows = map { $json->decode($_) } split /\n/, $node->safe_psql('postgres', "SELECT json_build_object('event', event, 'data', data) FROM event_log WHERE context->>'id' = '$id' ORDER BY n");
is_deeply($rows[0]{data}, $json->decode($data), 'ready comes with the data');
is_deeply($rows[5]{data}, $json->decode($data), 'so does refresh');
my %exposure = %{ $rows[1]{data} };
cmp_ok(abs(delete($exposure{exposedAt}) / 1000 - time), '<', 60, 'an exposure has its time');
is($json->encode(\%exposure), '{"assigned":true,"audienceMismatch":false,"custom":false,"eligible":true,"fullOn":true,"heldOut":false,"holdoutId":0,"id":1,"name":"exp","overridden":false,"ruleOverride":false,"unit":"user_id","variant":1}',
	'and all that is known of it');
is($rows[3]{data}{name}, 'second', 'a variable exposes all that it asks');
is($rows[3]{data}{custom}, JSON::PP::true, 'with the custom assignment');
my %goal = %{ $rows[2]{data} };
cmp_ok(abs(delete($goal{achievedAt}) / 1000 - time), '<', 60, 'a goal has its time');
is($json->encode(\%goal), '{"name":"signup","properties":{"n":1}}', 'name and properties');
is($rows[-1]{data}, undef, 'finalize has none');
my ($sent) = $collector->publish_requests(space => '/v1');
is($json->encode($rows[4]{data}), $json->encode($sent), 'publish has the request that was sent');

# a context that is not ready at first; one that fails; data that is given
$collector->set_data('/late/v1', $data);
$collector->fault('/late/v1', { match => { method => 'GET' }, delay_ms => 400, times => -1 });
$node->safe_psql('postgres', 'CREATE DATABASE late');
$node->safe_psql('postgres', "ALTER DATABASE late SET absmartly.endpoint = '" . $collector->url('/late/v1') . "'");
create_extension($node, 'late');
log_events($node, 'late');
my $late = session('late');
my $late_events = "SELECT string_agg(event, ', ' ORDER BY n) FROM event_log WHERE context->>'id' = ";
new_context($late);
my $late_id = in_session($late, 'SELECT absmartly_context_id()');
in_session($late, "SELECT absmartly_context_wait_until_ready('$PATIENCE s')");
is(in_session($late, "$late_events '$late_id'"), 'ready', 'a context is ready once');
in_session($late, "SELECT absmartly_context_wait_until_ready('$PATIENCE s'), absmartly_context_treatment('exp')");
is(in_session($late, "$late_events '$late_id'"), 'ready, exposure', 'and before its first exposure');
new_context($late, qq{SELECT absmartly_context_create('{}', data => '$data')});
$late_id = in_session($late, 'SELECT absmartly_context_id()');
is(in_session($late, "$late_events '$late_id'"), 'ready', 'one that is given its data is ready at once');
$late->quit;

$collector->fault('/fails/v1', { match => { method => 'GET' }, status => 404, times => -1 });
$node->safe_psql('postgres', "ALTER DATABASE late SET absmartly.endpoint = '" . $collector->url('/fails/v1') . "'");
$late = session('late');
new_context($late);
$late_id = in_session($late, 'SELECT absmartly_context_id()');
is(in_session($late, "SELECT absmartly_context_wait_until_ready('$PATIENCE s'), absmartly_context_is_failed()"), 't|t', 'a load fails');
is(in_session($late, "$late_events '$late_id'"), 'error', 'which is told as an error, and nothing else');
is(in_session($late, "SELECT data #>> '{}' = absmartly_context_ready_error(), context->>'source', context->>'pid' = pg_backend_pid()::text FROM event_log WHERE context->>'id' = '$late_id'"),
	't|context|t', 'the one that the context tells, in its session');
in_session($late, "SELECT absmartly_context_treatment('exp'), absmartly_context_publish('$PATIENCE s'), absmartly_context_refresh('$PATIENCE s')");
is(in_session($late, "$late_events '$late_id'"), 'error, exposure', 'a failed context tells of exposures, but neither publishes nor refreshes');
in_session($late, "SELECT absmartly_context_finalize('$PATIENCE s')");
is(in_session($late, "$late_events '$late_id'"), 'error, exposure, finalize', 'it ends like others');
$late->quit;
$node->safe_psql('postgres', 'DROP DATABASE late');

#
# Failures of the collector: told by the worker, in its own transaction
#

$id = new_context($session);
$collector->fault('/v1', { match => { method => 'GET' }, status => 404, times => -1 });
like(in_session($session, "SELECT absmartly_context_refresh('$PATIENCE s')"), qr/status 404/, 'a refresh fails');
$collector->clear_faults('/v1');
is(logged($id), 'ready, error', 'which is told, though the session\'s transaction is undone');
like(logged($id, "context->>'id' = '$id' AND event = 'error'", q{context->>'source', data}), qr/^context ".*status 404.*"$/, 'with its text, as of the context');
in_session($session, q{SELECT absmartly_context_track('kept')});
$collector->fault('/v1', { match => { method => 'PUT' }, status => 503, body => 'closed', times => -1 });
like(in_session($session, "SELECT absmartly_context_publish('$PATIENCE s')"), qr/^Publish failed: /, 'a publish fails');
is(logged($id), 'ready, error, goal, error', 'which is told before its caller goes on');
like(logged($id, "context->>'id' = '$id' AND event = 'error' AND data::text LIKE '%503%'", q{context->>'source', data}), qr/^context ".*status 503.*"$/, 'with its text');
like(in_session($session, "SELECT absmartly_context_finalize('$PATIENCE s')"), qr/^Publish failed: /, 'finalize as well');
is(logged($id), 'ready, error, goal, error, error', 'each time');
$collector->clear_faults('/v1');
in_session($session, "SELECT absmartly_context_finalize('$PATIENCE s')");
is(logged($id), 'ready, error, goal, error, error, publish, finalize', 'in the end it succeeds');

# two contexts that wait for the same refresh; an administrator's ends the pause after the one that has failed
$node->safe_psql('postgres', 'SELECT absmartly_refresh()');
my $other = session();
my ($one, $two) = (new_context($session), new_context($other));
$collector->fault('/v1', { match => { method => 'GET' }, delay_ms => 500, status => 404, times => -1 });
$session->{stdin} .= "SELECT absmartly_context_refresh('$PATIENCE s');\n";
$other->{stdin} .= "SELECT absmartly_context_refresh('$PATIENCE s');\n";
$_->{run}->pump_nb for $session, $other;
ok(await_sql($node, "SELECT count(*) FROM event_log WHERE event = 'error' AND context->>'id' IN ('$one', '$two')", '2'), 'each context is told of the failure of a refresh that it waits for');
in_session($_, 'SELECT 1') for $session, $other;
is(logged($_), 'ready, error', 'once') for $one, $two;
$collector->clear_faults('/v1');
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
$other->quit;

#
# Transactions
#

$id = new_context($session);
in_session($session, "BEGIN;\nSELECT absmartly_context_track('undone'), absmartly_context_treatment('exp')");
is(in_session($session, "SELECT string_agg(event, ', ' ORDER BY n) FROM event_log WHERE context->>'id' = '$id'"), 'ready, goal, exposure', 'the logger works in the session\'s transaction');
in_session($session, 'ROLLBACK');
is(logged($id), 'ready', 'with which its work is undone');
in_session($session, "BEGIN;\nSAVEPOINT s;\nSELECT absmartly_context_track('undone');\nROLLBACK TO s;\nSELECT absmartly_context_track('kept');\nCOMMIT");
is(logged($id, "context->>'id' = '$id' AND event = 'goal'", q{data->>'name'}), 'kept', 'savepoints count');
my ($result, $noise) = in_session($session, "BEGIN READ ONLY;\nSELECT absmartly_context_treatment('exp');\nCOMMIT");
is($result, '1', 'in a read-only transaction a logger that writes fails, and the treatment does not');
like($noise, qr/event logger "public\.log_event" failed at event "exposure": cannot execute INSERT in a read-only transaction/, 'which is reported');
in_session($session, "SELECT absmartly_context_publish('$PATIENCE s')");
is(logged($id), 'ready, goal, publish', 'the exposure is delivered all the same');
is(scalar(@{ ($collector->publish_requests(space => '/v1'))[-1]{exposures} }), 1, 'as the request says');

#
# As whom it runs
#

$node->safe_psql('postgres', <<'EOT');
CREATE ROLE auditor;
CREATE ROLE caller LOGIN;
GRANT INSERT ON event_log TO auditor;
CREATE TABLE secrets (secret text);
CREATE FUNCTION mine() RETURNS text LANGUAGE sql AS $$ SELECT current_user::text $$;
ALTER FUNCTION log_event OWNER TO auditor;
EOT
$id = new_context($session, qq{SET ROLE caller; $held});
in_session($session, q{SELECT absmartly_context_treatment('exp'), absmartly_context_track('as caller')});
is(in_session($session, 'SELECT current_user'), 'caller', 'who calls');
in_session($session, 'RESET ROLE');
is($node->safe_psql('postgres', "SELECT string_agg(DISTINCT who, ' ') FROM event_log WHERE context->>'id' = '$id'"), 'auditor', 'the logger runs as its owner, for a session without rights of its own');
is(logged($id), 'ready, exposure, goal', 'and is told of all');
# in a schema that is closed to who calls
$node->safe_psql('postgres', "CREATE SCHEMA closed; ALTER FUNCTION log_event SET SCHEMA closed; ALTER DATABASE postgres SET absmartly.event_logger = 'closed.log_event'");
my $outsider = session();
$id = new_context($outsider, qq{SET ROLE caller; $held});
(undef, my $complaint) = in_session($outsider, q{SELECT absmartly_context_track('from outside')});
is($complaint, '', 'a logger may be in a schema that its callers may not use');
is($node->safe_psql('postgres', "SELECT string_agg(event, ', ' ORDER BY n) FROM event_log WHERE context->>'id' = '$id'"), 'ready, goal', 'and is told');
# a dot in a quoted name is no schema's
(undef, $complaint) = in_session($outsider, qq{RESET ROLE;\nSET absmartly.event_logger = '"closed.log_event"';\nSELECT absmartly_context_track('nobody hears')});
like($complaint, qr/event logger ""closed\.log_event"" does not exist/, 'a name without a schema is none');
$outsider->quit;
$node->safe_psql('postgres', "ALTER FUNCTION closed.log_event SET SCHEMA public; ALTER DATABASE postgres SET absmartly.event_logger = 'public.log_event'");
for my $attempt (
	[ q{INSERT INTO public.secrets VALUES ('stolen');}, qr/permission denied for table secrets/, 'it may do what its owner may, no more' ],
	[ q{EXECUTE 'RESET ROLE'; INSERT INTO public.secrets VALUES ('stolen');}, qr/cannot set parameter "role" within security-restricted operation/, 'it can not become somebody else' ],
	[ q{EXECUTE 'SET SESSION AUTHORIZATION DEFAULT'; INSERT INTO public.secrets VALUES ('stolen');}, qr/cannot set parameter "session_authorization"/, 'nor by another way' ],
	[ q{EXECUTE 'CREATE TEMP TABLE trap (a int)';}, qr/cannot create temporary table within security-restricted operation/, 'nor leave anything in the session' ],
	[ q{PERFORM pg_read_file('PG_VERSION');}, qr/permission denied for function pg_read_file/, 'what only a superuser may is refused' ])
{
	my ($body, $message, $name) = @$attempt;

	# a superuser's session
	logger("BEGIN $body END");
	$node->safe_psql('postgres', 'ALTER FUNCTION log_event OWNER TO auditor');
	in_session($session, $held);
	my ($answer, $warnings) = in_session($session, q{SELECT absmartly_context_track('goal'), absmartly_context_treatment('exp')});
	like($warnings, qr/WARNING:  .*event logger "public\.log_event" failed at event "goal": .*$message/, $name);
	is($answer, '|1', 'the call goes on');
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM secrets'), '0', 'nothing was stolen');
# what it sets is gone afterwards
logger("BEGIN PERFORM set_config('search_path', 'nowhere', false), set_config('work_mem', '64kB', false); $insert END");
$node->safe_psql('postgres', 'ALTER FUNCTION log_event OWNER TO auditor');
in_session($session, "SET search_path = public, pg_catalog;\nSET work_mem = '5MB'");
$id = new_context($session);
in_session($session, q{SELECT absmartly_context_track('goal')});
is(in_session($session, q{SELECT current_setting('search_path'), current_setting('work_mem'), current_user = session_user}), 'public, pg_catalog|5MB|t', 'settings of the logger end with it');
is(logged($id), 'ready, goal', 'it has worked');
in_session($session, "RESET search_path;\nRESET work_mem");
in_session($session, "SELECT absmartly_context_finalize('$PATIENCE s')");

#
# A logger that fails, is slow, is missing, or calls back
#

logger(q{BEGIN RAISE 'no %', event; END});
in_session($session, $held);
($result, $noise) = in_session($session, q{SELECT absmartly_context_treatment('exp'), absmartly_context_variable_value('colour', 'none'), absmartly_context_pending()});
is($result, '1|red|1', 'a logger that fails stops no treatment') ;
like($noise, qr/WARNING:  .*event logger "public\.log_event" failed at event "exposure": no exposure/, 'is reported');
($result, $noise) = in_session($session, "BEGIN;\nSELECT absmartly_context_track('goal');\nSELECT absmartly_context_pending();\nCOMMIT");
is($result, '2', 'and undoes nothing but its own');
is(in_session($session, "SELECT absmartly_context_publish('$PATIENCE s');\nSELECT absmartly_context_pending()"), '0', 'nor does it stop delivery');
ok(await(sub { log_of($node) =~ /event logger "public\.log_event" failed at event "publish": no publish/ }), 'the worker reports it, too');
($result, $noise) = in_session($session, "SELECT absmartly_context_refresh('$PATIENCE s');\nSELECT absmartly_context_finalize('$PATIENCE s');\nSELECT absmartly_context_is_finalized()");
is($result, 't', 'refresh and finalize go on');
like($noise, qr/failed at event "$_"/, "$_ is reported") for qw(refresh finalize);

# half its work is not left behind
logger("BEGIN $insert RAISE 'late'; END");
$id = new_context($session);
in_session($session, q{SELECT absmartly_context_track('goal')});
is(logged($id), '', 'a logger that fails in the end leaves nothing');

# one that takes its time
logger(q{BEGIN PERFORM pg_sleep(0.3); INSERT INTO public.event_log (context, event, data) VALUES (context, event, data); END});
$id = new_context($session);
cmp_ok(seconds_of(sub { in_session($session, q{SELECT absmartly_context_treatment('exp')}) }), '>=', 0.3, 'a slow logger is waited for');
is(logged($id), 'ready, exposure', 'and done then');
($result, $noise) = in_session($session, "SET statement_timeout = 100;\nSELECT absmartly_context_track('goal');\nRESET statement_timeout");
like($noise, qr/canceling statement due to statement timeout/, 'a cancelled statement is cancelled, the logger does not swallow it');
is(in_session($session, 'SELECT absmartly_context_pending()'), '1', 'and its goal with it');

$node->safe_psql('postgres', 'ALTER FUNCTION log_event RENAME TO log_elsewhere');
($result, $noise) = in_session($session, "$held SELECT absmartly_context_treatment('exp')");
is($result, '1', 'without its function all goes on');
like($noise, qr/event logger "public\.log_event" does not exist/, 'which is reported');
($result, $noise) = in_session($session, q{SELECT absmartly_context_track('goal'), absmartly_context_track('goal')});
is(scalar(() = $noise =~ /does not exist/g), 1, 'once, however often it is missed');
$node->safe_psql('postgres', 'ALTER FUNCTION log_elsewhere RENAME TO log_event');

# one that would change what its caller is at: the context, its data, the assignment
my $change = q{BEGIN PERFORM public.absmartly_context_%s; EXCEPTION WHEN insufficient_privilege THEN RAISE WARNING '%%', SQLERRM; END;};
for my $call (q{create('{"user_id": 99}')}, q{refresh()}, q{finalize()}, q{set_unit('email', 'x')}, q{set_units('{"email": "x"}')}, q{set_attribute('a', 'b'::text)},
	q{set_attributes('{"a": 1}')}, q{set_override('exp', 0)}, q{set_overrides('{"exp": 0}')}, q{set_custom_assignment('exp', 0)}, q{set_custom_assignments('{"exp": 0}')})
{
	my ($function) = $call =~ /(\w+)/;

	logger("BEGIN IF event IN ('exposure', 'goal') THEN " . sprintf($change, $call) . ' END IF; END');
	$id = new_context($session);
	($result, $noise) = in_session($session, q{SELECT absmartly_context_treatment('exp'), absmartly_context_variable_value('size', 'none'), absmartly_context_track('goal')});
	like($result, qr/^1\|[23]\|$/, "$function: the caller gets what it has asked for");
	like($noise, qr/WARNING:  cannot execute absmartly_context_$function\(\) within security-restricted operation/, 'the logger is refused');
	is(in_session($session, q{SELECT absmartly_context_id(), absmartly_context_units(), absmartly_context_attributes(), absmartly_context_is_finalized()}), qq($id|{"user_id": 1}|{}|f), 'and changes nothing');
}
logger("BEGIN IF event = 'exposure' THEN PERFORM set_config('absmartly.overrides', '{\"exp\": 7}', true), public.absmartly_context_peek_treatment('exp'); END IF; END");
$id = new_context($session);
is(in_session($session, q{SELECT absmartly_context_treatment('exp')}), '1', 'a treatment is the one that was exposed');
# data that is replaced while it is read
logger("BEGIN IF event = 'exposure' THEN PERFORM pg_advisory_xact_lock(1), public.absmartly_context_id(); END IF; END");
$id = new_context($session);
my $gate = session();
in_session($gate, 'SELECT pg_advisory_lock(1)');
$session->{stdin} .= "SELECT absmartly_context_variable_value('size', 'none') AS late_size;\n";
$session->{run}->pump_nb;
ok(await_sql($node, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'}, '1'), 'a logger works');
$node->safe_psql('postgres', q{SELECT absmartly_set_context_data('{"experiments": []}')});
$gate->quit;
like(in_session($session, 'SELECT 1'), qr/^[23] 1$/, 'a variable that is read meanwhile is that of the data from before');
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");

# what a maintenance command runs is not the session's either
$node->safe_psql('postgres', <<'EOT');
CREATE FUNCTION trap(i int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM public.absmartly_context_set_override('exp', 9); RETURN i; END $$;
CREATE TABLE baited AS SELECT 1 AS i;
EOT
$id = new_context($session);
like(in_session($session, 'CREATE INDEX ON baited (trap(i))'), qr/cannot execute absmartly_context_set_override\(\) within security-restricted operation/, 'code of a table\'s owner changes nothing, either');
is(in_session($session, q{SELECT absmartly_context_get_override('exp') IS NULL}), 't', 'of the context');

# one that uses the context
logger("BEGIN IF event = 'exposure' THEN PERFORM absmartly_context_track('by the logger'); END IF; $insert END");
$node->safe_psql('postgres', 'ALTER FUNCTION log_event SET search_path = public');
$id = new_context($session);
is(in_session($session, q{SELECT absmartly_context_treatment('exp'), absmartly_context_pending()}), '1|2', 'a logger may use the context');
is(logged($id), 'ready, exposure', 'and is not told of what it does itself');
# endlessly
logger("BEGIN PERFORM absmartly_context_track('again'); END");
$node->safe_psql('postgres', 'ALTER FUNCTION log_event SET search_path = public');
in_session($session, $held);
($result, $noise) = in_session($session, q{SELECT absmartly_context_track('goal')});
unlike(log_of($node), qr/PANIC|TRAP|terminated by signal/, 'one that calls itself without end does no harm');
is(in_session($session, 'SELECT 1'), '1', 'to the session');
logger($insert, language => 'sql');
$node->safe_psql('postgres', 'ALTER FUNCTION log_event RESET ALL');

#
# Parallel mode
#

$node->safe_psql('postgres', 'CREATE TABLE users AS SELECT i AS id FROM generate_series(1, 20000) AS i; ANALYZE users');
$id = new_context($session);
in_session($session, "SET parallel_setup_cost = 0;\nSET parallel_tuple_cost = 0;\nSET min_parallel_table_scan_size = 0;\nSET max_parallel_workers_per_gather = 2");
my $query = q{SELECT count(*), min(absmartly_context_treatment('exp')), max(length(absmartly_context_variable_value('colour', 'none'))), sum(absmartly_context_treatment('unknown ' || id % 3)) FROM users};
like(in_session($session, "EXPLAIN $query"), qr/Gather/, 'a query whose leader calls the functions under a parallel plan');
($result, $noise) = in_session($session, $query);
is($result, '20000|1|3|0', 'gives treatments');
is($noise, '', 'without a complaint');
is($node->safe_psql('postgres', "SELECT string_agg(data->>'name', ', ' ORDER BY data->>'name') FROM event_log WHERE context->>'id' = '$id' AND event = 'exposure'"),
	'exp, unknown 0, unknown 1, unknown 2', 'the logger is told of each exposure once');
is(in_session($session, 'SELECT absmartly_context_pending()'), '4', 'which are the pending ones');
# in a transaction that goes on, and one that is undone
$id = new_context($session);
in_session($session, "BEGIN;\n$query");
is(in_session($session, "SELECT count(*) FROM event_log WHERE context->>'id' = '$id' AND event = 'exposure'"), '4', 'not later than the next statement');
in_session($session, 'ROLLBACK');
is(logged($id), 'ready', 'nor beyond the transaction');
# in a block, which is one statement to the end of which nothing can wait
$id = new_context($session);
in_session($session, "DO \$do\$ BEGIN PERFORM count(*), min(absmartly_context_treatment('exp')) FROM users; END \$do\$");
is(logged($id), 'ready, exposure', 'a parallel query in a block is told of as well');
# undone with a part of the transaction
$id = new_context($session);
in_session($session, "DO \$do\$ BEGIN PERFORM count(*), min(absmartly_context_treatment('exp')), 1 / (count(*) - 20000) FROM users; EXCEPTION WHEN division_by_zero THEN PERFORM count(*) FROM event_log; END \$do\$");
is(in_session($session, 'SELECT absmartly_context_pending()'), '0', 'a parallel query that is undone leaves no exposure');
is(logged($id), 'ready', 'nor is the logger told of one');
# in a cursor that is read bit by bit
$id = new_context($session);
in_session($session, "BEGIN;\nDECLARE c CURSOR FOR SELECT id, absmartly_context_treatment('exp') FROM users;\nFETCH 5 FROM c;\nSELECT absmartly_context_track('between');\nFETCH 5 FROM c;\nCLOSE c;\nCOMMIT");
is(logged($id), 'ready, exposure, goal', 'a cursor changes nothing');
in_session($session, 'SET force_parallel_mode = on') if $node->pg_version < 16;
in_session($session, 'SET debug_parallel_query = on') if $node->pg_version >= 16;
$id = new_context($session);
is(in_session($session, q{SELECT absmartly_context_treatment('exp'), absmartly_context_peek_treatment('exp')}), '1|1', 'the same if parallel mode is forced');
in_session($session, q{SELECT absmartly_context_track('goal')});
is(logged($id), 'ready, exposure, goal', 'with all events');
in_session($session, "SELECT absmartly_context_publish('$PATIENCE s')");
is(logged($id), 'ready, exposure, goal, publish', 'and the publish');
$session->quit;

# nobody but the context's own events is told by it: the worker's are as before
is($node->safe_psql('postgres', q{SELECT string_agg(DISTINCT event, ' ') FROM event_log WHERE context->>'source' = 'worker' AND context->>'id' IS NOT NULL}), '', 'the worker\'s own events have no id');
# an event of one-shot calls is published by the worker
$node->safe_psql('postgres', q{SELECT absmartly_track('{"user_id": 1}', 'one-shot'); SELECT absmartly_publish()});
is($node->safe_psql('postgres', q{SELECT context->>'source', context->>'id', data->'goals'->0->>'name' FROM event_log WHERE event = 'publish' AND data::text LIKE '%one-shot%'}), 'worker||one-shot',
	'as is the request of one-shot calls');

unlike(log_of($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
$node->stop;
done_testing();
