
# The endpoint in force is remembered in the data directory: what waits while it changes is this server's own after a crash
# at any moment, and after restarts, prepared transactions included. To a copy with another endpoint it is foreign.

use strict;
use warnings;

use AbsmartlyTest;
use PostgreSQL::Test::Cluster;
use Test::More;

my $data = experiments(experiment('exp'));
my @spaces = map {"/e$_/v1"} 0 .. 13;
my $collector = start_collector(space_data => { map { $_ => $data } '/copy/v1', @spaces });
my $node = start_node('main', collector => $collector, space => shift @spaces, streaming => 1, settings => <<'EOT');
absmartly.publish_delay = 20ms
absmartly.max_retries = 0
absmartly.publishing = off
max_prepared_transactions = 5
EOT
ok(wait_ready($node), 'ready');
$node->safe_psql('postgres', 'CREATE DATABASE shop');
create_extension($node, 'shop');
ok(wait_ready($node, 'shop'), 'so is another database');

sub track
{
	my ($goal, $database, $server) = @_;

	return ($server // $node)->safe_psql($database, <<EOT);
SELECT count(absmartly_track(jsonb_build_object('user_id', i), '$goal', jsonb_build_object('n', i))) FROM generate_series(1, 10) AS i
EOT
}

sub arrived
{
	my ($space, $goal) = @_;

	return scalar(() = $collector->goals(space => $space, name => $goal));
}

sub arrive
{
	my ($space, $goal, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	await(sub { arrived($space, $goal) >= 10 });
	return is(arrived($space, $goal), 10, $name);
}

sub alter
{
	my ($database, $space) = @_;

	return "ALTER DATABASE $database " . ($space ? "SET absmartly.endpoint = '" . $collector->url($space) . q{'} : 'RESET absmartly.endpoint');
}

# Waits until the worker of a database has taken note of its endpoint.
sub await_endpoint
{
	my ($server, $database, $space) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(await_sql($server, 'SELECT endpoint FROM absmartly_shared_data()', $collector->url($space), database => $database),
		"$database turns to $space");
}

sub await_foreign
{
	my ($server, $database, $number, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(await_sql($server, 'SELECT foreign_records, outbox_records FROM absmartly_stat', "$number|0", database => $database), $name);
}

# Starts a server with publishing on, and turns it off again when the goal has come.
sub delivers
{
	my ($space, $goal, $database, $name) = @_;

	$node->append_conf('postgresql.conf', "absmartly.publishing = on\n");
	$node->start;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	arrive($space, $goal, $name);
	$node->safe_psql($database, 'SELECT absmartly_publish()');
	is(stat_of($node, 'foreign_records, outbox_records', $database), '0|0', 'nothing is foreign, and nothing left');
	is(arrived($space, $goal), 10, 'once');
	configure($node, 'absmartly.publishing = off');
	return ok(
		await(
			sub {
				my (undef, undef, $error) = $node->psql($database, 'SELECT absmartly_publish()');
				return $error =~ /is off/;
			}),
		'publishing is off');
}

#
# ALTER DATABASE and a crash
#

for my $moment ('at once', 'before the worker has seen it', 'when the worker has seen it')
{
	my $space = shift @spaces;

	track($moment, 'shop');
	stop_asleep($node, worker_pid($node, 'shop')) if $moment =~ /before/;
	$node->safe_psql('postgres', alter('shop', $space));
	await_endpoint($node, 'shop', $space) if $moment =~ /when/;
	$node->stop('immediate');
	delivers($space, $moment, 'shop', "an endpoint given by ALTER DATABASE, a crash $moment");
}
track('early', 'shop');
$node->restart;
$node->safe_psql('postgres', alter('shop', $spaces[0]));
$node->stop('immediate');
delivers($spaces[0], 'early', 'shop', 'one that comes right after the start, and a crash');
shift @spaces;
track('twice', 'shop');
$node->safe_psql('postgres', alter('shop', $spaces[0]) . '; ' . alter('shop', $spaces[1]));
$node->stop('immediate');
delivers($spaces[1], 'twice', 'shop', 'two of them, and a crash');
track('rolled back', 'shop');
$node->safe_psql('postgres', 'BEGIN; ' . alter('shop', $spaces[2]) . '; ROLLBACK');
$node->stop('immediate');
delivers($spaces[1], 'rolled back', 'shop', 'one that is rolled back, and a crash');
track('reset', 'shop');
stop_asleep($node, worker_pid($node, 'shop'));
$node->safe_psql('shop', alter('shop'));
$node->stop('immediate');
delivers('/e0/v1', 'reset', 'shop', 'the endpoint of the configuration again, and a crash');

# by the configuration file: it is in force when the worker has seen it
track('reloaded', 'postgres');
my $space = $spaces[0];
configure($node, collector_settings($collector, $space));
await_endpoint($node, 'postgres', $space);
$node->stop('immediate');
delivers($space, 'reloaded', 'postgres', 'an endpoint that was reloaded, and a crash');

#
# Transactions that were prepared before
#

$node->safe_psql('shop', q{BEGIN; SELECT absmartly_track('{"user_id": 1}', 'prepared', jsonb_build_object('n', i)) FROM generate_series(1, 10) AS i; PREPARE TRANSACTION 'p'});
for my $new (@spaces[ 1, 2 ])
{
	$node->safe_psql('shop', alter('shop', $new));
	await_endpoint($node, 'shop', $new);
	$node->restart;
	ok(wait_ready($node, 'shop'), 'restarted');
}
$node->safe_psql('shop', q{COMMIT PREPARED 'p'});
$node->stop;
delivers($spaces[2], 'prepared', 'shop', 'events of a transaction that was prepared two endpoints and restarts before');

#
# Copies
#

# Makes a server of a backup; it starts with these lines of configuration.
sub clone
{
	my ($name, $backup, $settings, %options) = @_;
	my $clone = PostgreSQL::Test::Cluster->new($name);

	$clone->init_from_backup($node, $backup, %options);
	$clone->append_conf('postgresql.conf', $settings);
	$clone->start;
	return $clone;
}

track('original', $_) for qw(shop postgres);
$node->backup('base');
my $clone = clone('clone', 'base', collector_settings($collector, '/copy/v1') . "absmartly.publishing = on\n");
await_foreign($clone, 'postgres', 1, 'to a copy with another endpoint what waits is foreign');
$clone->stop('immediate');
$clone->append_conf('postgresql.conf', collector_settings($collector, '/e0/v1'));
$clone->start;
track('of the copy', 'postgres', $clone);
arrive('/e0/v1', 'of the copy', 'one that the original had before makes no difference');
is(stat_of($clone, 'foreign_records'), 1, 'it stays foreign');
$clone->stop;

# who takes care that the copy sends nothing until it has its own endpoint
my $careful = clone('careful', 'base', "absmartly.databases = 'nosuch'\nabsmartly.publishing = on\n");
$careful->safe_psql('postgres', alter('shop', '/copy/v1'));
$careful->append_conf('postgresql.conf', "absmartly.databases = ''\n" . collector_settings($collector, '/copy/v1'));
$careful->restart;
await_foreign($careful, 'shop', 1, 'nor is it its own where a copy got its endpoint before it had a worker');
is(arrived('/copy/v1', 'original'), 0, 'and nothing is sent');
$careful->stop;

# an endpoint of before that comes back while the server is down
$node->stop;
$node->append_conf('postgresql.conf', collector_settings($collector, '/e0/v1') . "absmartly.publishing = on\n");
$node->start;
await_foreign($node, 'postgres', 1, 'an endpoint that differs at the start is another server\'s, also if it had been in force');
is($node->safe_psql('postgres', 'SELECT absmartly_requeue()'), '10', 'they can be adopted');
arrive('/e0/v1', 'original', 'and arrive');

#
# A heap that somebody keeps locked
#

my $locker = $node->background_psql('shop');
$locker->query_safe('BEGIN; ALTER MATERIALIZED VIEW absmartly_outbox_parked OWNER TO CURRENT_USER');
my $former = worker_pid($node, 'shop');
$node->safe_psql('shop', "SELECT pg_terminate_backend($former)");
ok(await_sql($node, "SELECT worker_pid <> $former AND worker_state NOT IN ('none', 'starting') FROM absmartly_stat", 't', database => 'shop'),
	'a worker starts all the same');
$node->safe_psql('shop', alter('shop', $spaces[6]));
await_endpoint($node, 'shop', $spaces[6]);
$locker->query_safe('ROLLBACK');
$locker->quit;

#
# A standby
#

configure($node, 'absmartly.publishing = off');
$node->backup('later');

# an endpoint that a standby has never seen
my $between = clone('between', 'later', '', has_streaming => 1);
ok(wait_ready($between, 'shop'), 'a standby');
my $blind = worker_pid($between, 'shop');
stop_asleep($between, $blind);
$node->safe_psql('shop', alter('shop', $spaces[4]));
await_endpoint($node, 'shop', $spaces[4]);
$node->safe_psql('shop', q{BEGIN; SELECT absmartly_track('{"user_id": 1}', 'between', jsonb_build_object('n', i)) FROM generate_series(1, 10) AS i; PREPARE TRANSACTION 'b'});
$node->safe_psql('shop', alter('shop', $spaces[5]));
await_endpoint($node, 'shop', $spaces[5]);
$node->wait_for_catchup($between, 'replay');
kill 'CONT', $blind;
$between->promote;
$between->safe_psql('shop', q{COMMIT PREPARED 'b'});
configure($between, 'absmartly.publishing = on');
arrive($spaces[5], 'between', 'a standby that has not seen an endpoint come and go knows of it when it is promoted');
is(stat_of($between, 'foreign_records', 'shop'), '0', 'nothing is foreign');
ok(await_sql($between, q{SELECT pg_relation_size('absmartly_outbox_parked')}, '0', database => 'shop'), 'and nothing of them stays');
$between->stop;
$node->safe_psql('shop', q{ROLLBACK PREPARED 'b'});

# one that was away while it changed
my $standby = clone('standby', 'later', '', has_streaming => 1);
ok(wait_ready($standby, 'shop'), 'a standby');
$standby->stop;
$node->safe_psql('shop', q{BEGIN; SELECT absmartly_track('{"user_id": 1}', 'promoted', jsonb_build_object('n', i)) FROM generate_series(1, 10) AS i; PREPARE TRANSACTION 'q'});
$node->safe_psql('shop', alter('shop', $spaces[3]));
await_endpoint($node, 'shop', $spaces[3]);
$standby->start;
$node->wait_for_catchup($standby, 'replay');
await_endpoint($standby, 'shop', $spaces[3]);
$node->stop('immediate');
$standby->promote;
$standby->safe_psql('shop', q{COMMIT PREPARED 'q'});
configure($standby, 'absmartly.publishing = on');
arrive($spaces[3], 'promoted', 'a standby that was away while the endpoint changed goes on with what was prepared before');
is(stat_of($standby, 'foreign_records', 'shop'), '0', 'nothing is foreign');

my $file = $standby->data_dir . '/absmartly/' . $standby->safe_psql('postgres', q{SELECT oid FROM pg_database WHERE datname = 'shop'});
ok(-e "$file.endpoints", 'what is remembered is in a file');
$standby->safe_psql('postgres', 'DROP DATABASE shop');
ok(await(sub { !-e "$file.endpoints" && !-e $file }), 'which goes with the database');
$standby->stop;

done_testing();
