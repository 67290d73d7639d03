
# A FOR ALL TABLES publication, with a subscriber that lacks the extension, goes on while data changes.

use strict;
use warnings;

use AbsmartlyTest;
use PostgreSQL::Test::Cluster;
use Test::More;

my $collector = start_collector(data => experiments(experiment('exp')));
my $publisher = start_node('publisher', collector => $collector, streaming => 'logical', settings => "wal_level = logical\n");
my $subscriber = PostgreSQL::Test::Cluster->new('subscriber');

ok(wait_ready($publisher), 'ready');
$subscriber->init;
$subscriber->start;
$_->safe_psql('postgres', 'CREATE TABLE orders (id int PRIMARY KEY)') for $publisher, $subscriber;
$publisher->safe_psql('postgres', 'CREATE PUBLICATION everything FOR ALL TABLES');
my $connection = $publisher->connstr . ' dbname=postgres';
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION everything CONNECTION '$connection' PUBLICATION everything");
$subscriber->wait_for_subscription_sync($publisher, 'everything');

for my $round (1 .. 10)
{
	$publisher->safe_psql('postgres', "INSERT INTO orders VALUES ($round)");
	$collector->set_data('/v1', experiments(experiment("exp_$round")));
	$publisher->safe_psql('postgres', 'SELECT absmartly_refresh()');
}
is($publisher->safe_psql('postgres', 'SELECT name FROM absmartly_experiments'), 'exp_10', 'data changes');
$publisher->wait_for_catchup('everything');
is($subscriber->safe_psql('postgres', 'SELECT count(*) FROM orders'), '10', 'and rows are replicated');
unlike(log_of($subscriber), qr/ERROR/, 'without an error of the subscriber');

# decoding sees nothing of ours
$publisher->safe_psql('postgres', "SELECT pg_create_logical_replication_slot('seen', 'test_decoding')");
$collector->set_data('/v1', experiments(experiment('last')));
$publisher->safe_psql('postgres', 'SELECT absmartly_refresh()');
$publisher->safe_psql('postgres', 'INSERT INTO orders VALUES (100)');
my $changes = $publisher->safe_psql('postgres', "SELECT data FROM pg_logical_slot_get_changes('seen', NULL, NULL)");
like($changes, qr/table public\.orders: INSERT/, 'decoding sees the user\'s change');
unlike($changes, qr/absmartly/, 'and nothing of the extension');
$publisher->safe_psql('postgres', "SELECT pg_drop_replication_slot('seen')");

# a dump has no data of ours, and can be restored
my $dump = $publisher->backup_dir . '/dump.sql';
$publisher->command_ok([ 'pg_dump', '--file', $dump, $connection ], 'a dump works');
$publisher->safe_psql('postgres', 'CREATE DATABASE restored');
$publisher->command_ok([ 'psql', '--no-psqlrc', '--set', 'ON_ERROR_STOP=1', '--file', $dump, $publisher->connstr('restored') ], 'and can be restored');
ok(wait_ready($publisher, 'restored'), 'the restored database is served');

$subscriber->stop;
$publisher->stop;
done_testing();
