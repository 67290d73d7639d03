
# Without shared_preload_libraries: backends use the file of the last known good data, and what needs a worker says so.

use strict;
use warnings;

use AbsmartlyTest;
use Test::More;

my $collector = start_collector(data => experiments(experiment('exp', fullOnVariant => 1)));
my $node = start_node('main', collector => $collector);
my $peek = q{SELECT absmartly_peek_treatment('{"user_id": 1}', 'exp')};

ok(wait_ready($node), 'ready with the library preloaded');
$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "''");
$node->restart;

is($node->safe_psql('postgres', $peek), '1', 'assigned from the file');
is(stat_of($node, 'mode'), 'not preloaded', 'the statistics name the mode');
is(stat_of($node, 'source'), 'file', 'and the source');
is($node->safe_psql('postgres', "SELECT absmartly_is_ready(), absmartly_wait_until_ready('$PATIENCE s')"), 't|t', 'it is ready');
fails_with($node, 'SELECT absmartly_refresh();', '55000', qr/HINT:  Add absmartly to "shared_preload_libraries"/,
	'refresh needs a worker');

# parallel workers compile the file, too; of what is left out the session tells once
my $data = experiments(experiment('exp', fullOnVariant => 1), experiment('broken', id => 2, split => 'none'));
$node->safe_psql('postgres', "SELECT absmartly_set_context_data('$data')");
$node->safe_psql('postgres', 'CREATE TABLE users AS SELECT generate_series(1, 20000) AS id; ANALYZE users');
my ($status, $sum, $messages) = $node->psql('postgres', <<"EOT");
SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
SET max_parallel_workers_per_gather = 2;
SET parallel_leader_participation = off;
$peek;
SELECT sum(absmartly_peek_unit_treatment(id, 'exp')) FROM users;
EOT
is($sum, "1\n20000", 'a parallel query assigns');
is(scalar(() = $messages =~ /"broken" is left out/g), 1, 'and the workers repeat no warning') || diag($messages);

# data by hand reaches sessions that are open
$data = experiments(experiment('exp', fullOnVariant => 1));
$node->safe_psql('postgres', "SELECT absmartly_set_context_data('$data')");
my $session = $node->background_psql('postgres');
is($session->query_safe($peek), '1', 'a session that stays open');
$data = experiments(experiment('exp'), experiment('other', id => 2, fullOnVariant => 1));
$node->safe_psql('postgres', "SELECT absmartly_set_context_data('$data')");
is($session->query_safe(q{SELECT count(*) FROM absmartly_experiments}), '2', 'sees data that another one has set');
$session->quit;

# a database without any file
$node->safe_psql('postgres', 'CREATE DATABASE empty');
create_extension($node, 'empty');
fails_with($node, "$peek;", '55000', qr/no experiment data/, 'no file, no data', database => 'empty');
is($node->safe_psql('empty', 'SELECT absmartly_is_ready()'), 'f', 'and not ready');
$node->safe_psql('empty', 'SELECT absmartly_hash_unit(\'a\')');

$node->stop;
done_testing();
