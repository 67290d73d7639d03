
# The first fetch: it follows CREATE EXTENSION without a restart; databases have their own collectors and keys; the
# API key is nowhere to be seen.

use strict;
use warnings;

use AbsmartlyTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $key       = 'k3y-0f-the-first-database';
my $other_key = 'k3y-0f-the-second-database';
my $collector = start_collector(
	space_data => {
		'/one/v1' => experiments(experiment('exp_one', fullOnVariant => 1)),
		'/two/v1' => experiments(experiment('exp_two', fullOnVariant => 1)),
	},
	space_keys => { '/one/v1' => [$key], '/two/v1' => [$other_key] });

my $node = start_node('main', collector => $collector, space => '/one/v1', extension => 0, start => 0);
$node->append_conf('postgresql.conf', "absmartly.api_key_file = '" . write_key($node, $key) . "'\n");
$node->start;

is(scalar $collector->requests, 0, 'without the extension nothing is fetched');

# a view on what happens after CREATE EXTENSION: no restart, no reload
create_extension($node);
ok(wait_ready($node), 'experiments arrive after CREATE EXTENSION');
is($node->safe_psql('postgres', q{SELECT absmartly_peek_treatment('{"user_id": 1}', 'exp_one')}),
	'1', 'they are the collector\'s');
is(stat_of($node, 'mode'), 'preloaded', 'the statistics name the mode');
is(stat_of($node, 'source'), 'fetched', 'the statistics name the source');
is(stat_of($node, 'experiments'), '1', 'the statistics count the experiments');
ok(await_sql($node, 'SELECT worker_state FROM absmartly_stat', 'idle'), 'the worker comes to rest');

my ($request) = $collector->requests(space => '/one/v1');
is($request->{key}, 'accepted', 'the key was sent');
is_deeply($request->{query}, { application => 'website', environment => 'production' }, 'application and environment were sent');
is($request->{headers}{'x-agent'}, 'absmartly-postgresql-sdk', 'the agent is named');
is($request->{headers}{'x-application'}, 'website', 'header of the application');
is($request->{headers}{'x-environment'}, 'production', 'header of the environment');
is($request->{headers}{'x-application-version'}, '0', 'header of the version');

# another database: another endpoint, key and data, through ALTER DATABASE
my $other_file = write_key($node, $other_key, 'other_key');
$node->safe_psql('postgres', 'CREATE DATABASE two');
$node->safe_psql('postgres', "ALTER DATABASE two SET absmartly.endpoint = '" . $collector->url('/two/v1') . "'");
$node->safe_psql('postgres', "ALTER DATABASE two SET absmartly.api_key_file = '$other_file'");
create_extension($node, 'two');
ok(wait_ready($node, 'two'), 'the second database is served');
is($node->safe_psql('two', 'SELECT name FROM absmartly_experiments'), 'exp_two', 'with its own data');
is($node->safe_psql('postgres', 'SELECT name FROM absmartly_experiments'),
	'exp_one', 'and the first one keeps its own');
isnt(worker_pid($node, 'two'), worker_pid($node), 'each has its own worker');

# new data on request, in one database only
$collector->set_data('/two/v1', experiments(experiment('exp_three')));
$node->safe_psql('two', "SELECT absmartly_refresh('$PATIENCE s')");
is($node->safe_psql('two', 'SELECT name FROM absmartly_experiments'), 'exp_three', 'refresh brings new data');
is(stat_of($node, 'generation'), '1', 'the other database is not concerned');
my $generation = stat_of($node, 'generation', 'two');
is($node->safe_psql('two', "SELECT absmartly_refresh('$PATIENCE s')"), $generation, 'unchanged data keeps its generation');

# new data by itself
$node->safe_psql('postgres', 'ALTER DATABASE two SET absmartly.refresh_interval = 1');
$collector->set_data('/two/v1', experiments(experiment('exp_four')));
ok(await_sql($node, 'SELECT name FROM absmartly_experiments', 'exp_four', database => 'two'),
	'a changed interval reaches the worker, and brings data by itself');

configure($node, "absmartly.refresh_interval = 1");
$collector->set_data('/one/v1', experiments(experiment('exp_five')));
ok(await_sql($node, 'SELECT name FROM absmartly_experiments', 'exp_five'), 'so does a reload');
configure($node, "absmartly.refresh_interval = 0");

# settings of a role have no place in a worker
fails_with(
	$node,
	"ALTER ROLE CURRENT_USER SET absmartly.endpoint = 'http://127.0.0.1:1/v1'",
	'55P02',
	qr/cannot be set for a role/,
	'the endpoint can not be set for a role');
fails_with(
	$node,
	"ALTER DATABASE two SET absmartly.api_key = '$key'",
	'55P02',
	qr/cannot be changed now/,
	'the key can not be set for a database');

# wrong values are refused when they are set
for my $case (
	[ 'endpoint', 'acme.absmartly.io/v1', qr/starts with/ ],
	[ 'endpoint', 'ftp://acme.absmartly.io/v1', qr/starts with/ ],
	[ 'endpoint', 'https://', qr/names no host/ ],
	[ 'endpoint', 'https://user:pass@acme.absmartly.io/v1', qr/no user name/ ],
	[ 'endpoint', 'https://acme.absmartly.io/v1?x=1', qr/no query/ ],
	[ 'connect_timeout', '0', qr/outside the valid range/ ],
	[ 'request_timeout', '0', qr/outside the valid range/ ],
	[ 'application_version', 'a b', qr/semantic version/ ],
	[ 'application_version', '2.7', qr/semantic version/ ],
	[ 'application_version', 'v1.2.3', qr/semantic version/ ],
	[ 'application_version', '1.2.3-', qr/semantic version/ ],
	[ 'application_version', '1.2.3+a..b', qr/semantic version/ ],
	[ 'application_version', '9223372036854775808', qr/semantic version/ ],
	[ 'overrides', '{"exp": 128}', qr/not between 0 and 127/ ],
	[ 'api_key_file', 'relative/path', qr/absolute path/ ],
	[ 'event_logger', 'unqualified', qr/named with its schema/ ],
	[ 'overrides', '[1]', qr/JSON object/ ],
	[ 'overrides', '{"a": "b"}', qr/not an integer/ ])
{
	my ($name, $value, $message) = @$case;
	fails_with($node, "SET absmartly.$name = '$value'", '22023', $message, "wrong value refused: $name = $value");
}

# the key as a setting: usable, and never shown
configure($node, "absmartly.api_key_file = ''\nabsmartly.api_key = '$key'");
$collector->forget;
ok(await(sub {
	$node->psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
	my @seen = $collector->requests(space => '/one/v1', last => 1);
	return @seen && $seen[0]{key} eq 'accepted';
}), 'a key from the configuration file is used after a reload');
is($node->safe_psql('postgres', 'SHOW absmartly.api_key'), '********', 'SHOW masks it');
$node->safe_psql('postgres', 'CREATE ROLE monitor LOGIN IN ROLE pg_monitor');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_settings WHERE name ~ 'api_key\$'"), '0', 'pg_settings lacks it');
configure($node, "absmartly.api_key = 'wr\x{7f}ong-k3y'");
configure($node, "absmartly.api_key = 'an0ther-k3y'");
ok(await(sub {
	my ($status, $output, $error) = $node->psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
	return $status && $error =~ /status 401/;
}), 'a refused key is an error of refresh');

my $activity = $node->safe_psql('postgres', 'SELECT * FROM pg_stat_activity');
my $settings = $node->safe_psql('postgres', 'SELECT * FROM pg_settings');
my $stat = $node->safe_psql('postgres', 'SELECT * FROM absmartly_stat');
my $shared = $node->safe_psql('postgres', 'SELECT * FROM absmartly_shared_data()');
my $log = log_of($node);

# statements that name the key are not ours to hide
$log =~ s{^.*(?:STATEMENT:|LOG:  statement:).*$}{}mg;
for my $secret ($key, $other_key, 'an0ther-k3y', "wr\x{7f}ong-k3y")
{
	unlike($_->[1], qr/\Q$secret\E/, "no key in $_->[0]")
		for [ 'pg_stat_activity', $activity ], [ 'pg_settings', $settings ], [ 'absmartly_stat', $stat ],
		[ 'absmartly_shared_data()', $shared ], [ 'the log', $log ];
}

$node->stop;
done_testing();
