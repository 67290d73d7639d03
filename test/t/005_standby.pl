
# A hot standby assigns, follows new data with a worker of its own, and goes on after its promotion.

use strict;
use warnings;

use AbsmartlyTest;
use PostgreSQL::Test::Cluster;
use Test::More;

my $collector = start_collector(space_data => {
	'/v1'     => experiments(experiment('exp', fullOnVariant => 1)),
	'/new/v1' => experiments(experiment('new_exp')) });
my $primary = start_node('primary', collector => $collector, streaming => 1, settings => "absmartly.refresh_interval = 1\n");
my $peek = q{SELECT absmartly_peek_treatment('{"user_id": 1}', 'exp')};

ok(wait_ready($primary), 'the primary is ready');

# the base backup brings the last known good data: no network is needed
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$collector->stop;
$standby->start;
ok(wait_ready($standby), 'the standby is ready without the collector');
is($standby->safe_psql('postgres', $peek), '1', 'and assigns');
is(stat_of($standby, 'source'), 'file', 'from the file of the backup');

$collector->restart;
$collector->set_data('/v1', experiments(experiment('exp', fullOnVariant => 0, split => [ 1, 0 ]), experiment('second', id => 2)));
ok(await_sql($standby, 'SELECT count(*) FROM absmartly_experiments', '2'), 'the standby follows new data');
is(stat_of($standby, 'source'), 'fetched', 'which its own worker has fetched');
is($standby->safe_psql('postgres', 'SELECT pg_is_in_recovery()'), 't', 'as a standby');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM absmartly_assignments(\'{"user_id": 1}\')'), '2', 'sets work as well');

# new data on request
$collector->set_data('/v1', experiments(experiment('exp')));
$standby->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
is($standby->safe_psql('postgres', 'SELECT count(*) FROM absmartly_experiments'), '1', 'refresh works on the standby');

# a changed setting of the database arrives through replication
$primary->safe_psql('postgres', "ALTER DATABASE postgres SET absmartly.endpoint = '" . $collector->url('/new/v1') . "'");
ok(await_sql($standby, 'SELECT name FROM absmartly_experiments', 'new_exp'), 'ALTER DATABASE on the primary reaches the standby');

# a database that comes and goes on the primary
$primary->safe_psql('postgres', 'CREATE DATABASE other');
create_extension($primary, 'other');
$primary->wait_for_catchup($standby, 'replay');
ok(await(sub { my ($status, $output) = $standby->psql('other', 'SELECT absmartly_is_ready()'); $status == 0 && $output eq 't' }),
	'a new database is served on the standby');
ok(await_sql($standby, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'absmartly worker' AND datname = 'other'", '1'),
	'it has a worker there');
$primary->safe_psql('other', 'DROP EXTENSION absmartly');
ok(await_sql($standby, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'absmartly worker' AND datname = 'other'", '0'),
	'which ends when the extension is dropped on the primary');
create_extension($primary, 'other');
$primary->wait_for_catchup($standby, 'replay');
ok(await(sub { my ($status, $output) = $standby->psql('other', 'SELECT absmartly_is_ready()'); $status == 0 && $output eq 't' }),
	'and comes back with it');
$primary->safe_psql('postgres', 'DROP DATABASE other');
ok(await_sql($standby, "SELECT count(*) FROM pg_database WHERE datname = 'other'", '0'), 'its end is replayed in spite of the worker');

# promotion
my $pid = worker_pid($standby);
$primary->stop;
$standby->promote;
ok(await_sql($standby, 'SELECT NOT pg_is_in_recovery()', 't'), 'promoted');
is($standby->safe_psql('postgres', 'SELECT absmartly_is_ready()'), 't', 'it still has its data');
$collector->set_data('/new/v1', experiments(experiment('newer_exp')));
ok(await_sql($standby, 'SELECT name FROM absmartly_experiments', 'newer_exp'), 'and follows new data');
$standby->safe_psql('postgres', "ALTER DATABASE postgres RESET absmartly.endpoint");
ok(await_sql($standby, 'SELECT name FROM absmartly_experiments', 'exp'), 'and settings, now its own');

$standby->stop;
done_testing();
