
# A FOR ALL TABLES publication, with a subscriber that lacks the extension, goes on while data changes, and events come
# and go.

use strict;
use warnings;

use AbsmartlyTest;
use PostgreSQL::Test::Cluster;
use Test::More;

my $collector = start_collector(data => experiments(experiment('exp')));
my $publisher = start_node('publisher', collector => $collector, streaming => 'logical', settings => <<'EOT');
wal_level = logical
absmartly.publish_delay = 100ms
max_prepared_transactions = 5
EOT
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
	$publisher->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
}
is($publisher->safe_psql('postgres', 'SELECT name FROM absmartly_experiments'), 'exp_10', 'data changes');

# Events of all kinds come to the outbox beside rows, are delivered, parked, dropped and truncated.
sub events
{
	my ($first, $goal) = @_;
	my ($second, $third) = ($first + 1, $first + 2);

	$collector->fault('/v1', { match => { method => 'PUT' }, reject_goal => 'bad', times => -1 });
	$publisher->safe_psql('postgres', <<"EOT");
BEGIN;
INSERT INTO orders VALUES ($first);
SELECT absmartly_track(jsonb_build_object('user_id', i), '$goal', jsonb_build_object('text', repeat('x', 500)))
FROM generate_series(1, 2000) AS i;
SELECT absmartly_treatment(jsonb_build_object('user_id', '$goal' || i), 'exp_10') FROM generate_series(1, 1000) AS i;
COMMIT;
SELECT absmartly_treatment('{"user_id": "$goal"}', 'exp_10');
BEGIN;
INSERT INTO orders VALUES ($second);
SELECT absmartly_track('{"user_id": 1}', '$goal');
PREPARE TRANSACTION '$goal';
COMMIT PREPARED '$goal';
INSERT INTO orders VALUES ($third);
SELECT absmartly_track('{"user_id": 1}', 'bad');
CALL absmartly_backfill_goals('orders', 'id', '$goal', 'user_id=id', chunk => 5);
EOT
	ok(await_sql($publisher, 'SELECT dead_letters FROM absmartly_stat', '1'), "$goal: one is refused");
	ok(await_sql($publisher, 'SELECT outbox_events = 0 AND memory_queue_entries = 0 FROM absmartly_stat'), "$goal: the others are delivered");
	is($publisher->safe_psql('postgres', 'SELECT absmartly_discard()'), '1', "$goal: it is dropped");
	ok(await_sql($publisher, "SELECT $OUTBOX_FILES < 64 * 8192"), "$goal: the outbox has been truncated");
	$collector->clear_faults('/v1');
	return;
}
events(21, 'replicated');
$publisher->wait_for_catchup('everything');
is($subscriber->safe_psql('postgres', 'SELECT count(*) FROM orders'), '13', 'and rows are replicated');
unlike(log_of($subscriber), qr/ERROR/, 'without an error of the subscriber');

# decoding sees nothing of ours
$publisher->safe_psql('postgres', "SELECT pg_create_logical_replication_slot('seen', 'test_decoding')");
$collector->set_data('/v1', experiments(experiment('last')));
$publisher->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
events(100, 'decoded');
my $changes = $publisher->safe_psql('postgres', "SELECT data FROM pg_logical_slot_get_changes('seen', NULL, NULL)");
like($changes, qr/table public\.orders: INSERT/, 'decoding sees the user\'s change');
is(scalar(() = $changes =~ /^table /mg), 3, 'of which there are three');
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
