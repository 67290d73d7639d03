
# The launcher: many databases and few worker slots, extensions that come while it looks, settings of the server that
# are not meant for it.

use strict;
use warnings;

use AbsmartlyTest;
use Test::More;

my $collector = start_collector(data => experiments(experiment('exp', fullOnVariant => 1)));
my $node = start_node('main', collector => $collector, settings => <<EOT);
max_worker_processes = 8
default_transaction_isolation = serializable
default_transaction_deferrable = on
max_prepared_transactions = 2
EOT
my $peek = q{SELECT absmartly_peek_treatment('{"user_id": 1}', 'exp')};

ok(wait_ready($node), 'ready');

# many databases without the extension do not keep the one that has it waiting
$node->safe_psql('postgres', "CREATE DATABASE empty_$_") for 1 .. 25;
create_extension($node, 'empty_20');
ok(wait_ready($node, 'empty_20'), 'one among many is served');
takes_less(5, 'without waiting for the others', sub { ok(wait_ready($node, 'empty_20'), 'after a restart, too') },
	sub { $node->restart });
$node->stop('immediate');
$node->start;
ok(await_sql($node, 'SELECT absmartly_is_ready()', 't', database => 'empty_20'), 'and after a crash');
create_extension($node, 'empty_1');
ok(await_sql($node, 'SELECT absmartly_is_ready()', 't', database => 'empty_1'), 'a new one is served while others are looked at');
unlike(log_of($node), qr/no background worker slot/, 'the slots suffice');

# CREATE EXTENSION right after CREATE DATABASE, while its worker may be looking
for my $round (1 .. 10)
{
	$node->safe_psql('postgres', "CREATE DATABASE quick_$round");
	create_extension($node, "quick_$round");
	ok(await_sql($node, 'SELECT count(*) FROM pg_stat_activity WHERE backend_type = \'absmartly worker\' AND datname = current_database()', '1',
		database => "quick_$round"), "database $round is found by itself");
	$node->safe_psql('postgres', "DROP DATABASE quick_$round");
}
unlike(log_of($node), qr/FATAL: .*database \d+ does not exist/, 'no worker is started for a database that goes');

# commands that change nothing take nothing out of force
for my $command (
	'BEGIN; SAVEPOINT s; DROP EXTENSION absmartly; ROLLBACK TO s; COMMIT',
	'ALTER DATABASE postgres RESET ALL',
	"ALTER DATABASE postgres SET work_mem = '5MB'",
	"ALTER DATABASE postgres SET absmartly.refresh_interval = '30s'")
{
	is($node->safe_psql('postgres', "$command;\n$peek"), '1', "data stays in force: $command");
}
ok(wait_ready($node), 'still ready');

# the other spelling of ALTER DATABASE
$node->safe_psql('postgres', "ALTER ROLE ALL IN DATABASE postgres SET absmartly.environment = 'staging'");
ok(await_sql($node, 'SELECT environment FROM absmartly_shared_data()', 'staging'), 'ALTER ROLE ALL IN DATABASE is noticed');
$node->safe_psql('postgres', 'ALTER ROLE ALL IN DATABASE postgres RESET ALL');
ok(await_sql($node, 'SELECT environment FROM absmartly_shared_data()', 'production'), 'and so is its end');

# a database that is not to be served does not keep the launcher busy, nor its data in force
configure($node, "absmartly.databases = 'empty_20'");
ok(await_sql($node, 'SELECT absmartly_is_ready()', 'f'), 'a database that is not named any more has no data');
my $launcher = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'absmartly launcher'");
my $before = cpu_of($launcher);
$node->safe_psql('postgres', "SET absmartly.on_not_ready = control;\n" . "$peek;\n" x 3000);
cmp_ok(cpu_of($launcher) - $before, '<', 50, 'asking again and again does not keep the launcher busy');
configure($node, "absmartly.databases = ''");
ok(wait_ready($node), 'named again, served again');

# hundredths of a second that a process has used
sub cpu_of
{
	my ($pid) = @_;

	open my $stat, '<', "/proc/$pid/stat" or return 0;
	my @fields = split ' ', (<$stat> =~ s/^.*\) //r);
	return $fields[11] + $fields[12];
}

# no slot for a worker: data comes from the file, the reason can be seen, and the launcher waits in peace
for my $case ([ 2, 'no worker slot', 'with a launcher' ], [ 1, 'not running', 'without one' ])
{
	my ($slots, $state, $name) = @$case;

	$node->adjust_conf('postgresql.conf', 'max_worker_processes', $slots);
	$node->restart;
	ok(await_sql($node, $peek, '1'), "$name: assigned from the file");
	is($node->safe_psql('postgres', 'SELECT absmartly_is_ready(), absmartly_wait_until_ready()'), 't|t', "$name: ready");
	is($node->safe_psql('postgres', 'SELECT source, experiments FROM absmartly_stat'), 'file|1', "$name: the statistics tell the source");
	ok(await_sql($node, 'SELECT worker_state FROM absmartly_stat', $state), "$name: and why there is no worker");
	is($node->safe_psql('empty_20', $peek), '1', "$name: another database");
	is($node->safe_psql('postgres', <<'EOT'), "\n1\n1", "$name: a session context");
SELECT absmartly_context_create('{"user_id": 1}');
SELECT absmartly_context_peek_treatment('exp');
SET max_parallel_workers_per_gather = 2;
SELECT max(absmartly_peek_unit_treatment(i, 'exp')) FROM generate_series(1, 1000) i;
EOT
	is($node->safe_psql('postgres', <<'EOT'), "\n2", "$name: data by hand");
SELECT absmartly_set_context_data(replace(data::text, '"fullOnVariant":1', '"fullOnVariant":2')::json) FROM absmartly_shared_data();
SELECT absmartly_peek_treatment('{"user_id": 1}', 'exp');
EOT
	$node->safe_psql('postgres', q{SELECT absmartly_set_context_data(replace(data::text, '"fullOnVariant":2', '"fullOnVariant":1')::json)
		FROM absmartly_shared_data()});
}
$node->adjust_conf('postgresql.conf', 'max_worker_processes', 2);
$node->restart;
ok(await_sql($node, 'SELECT worker_state FROM absmartly_stat', 'no worker slot'), 'no slot again');
$launcher = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'absmartly launcher'");
SKIP:
{
	skip 'the system does not count', 1 if !defined wakes_of($launcher);
	ok(await(sub { my $wakes = wakes_of($launcher); sleep 3; wakes_of($launcher) - $wakes < 6 }), 'the launcher wakes ever more seldom');
}
$node->adjust_conf('postgresql.conf', 'max_worker_processes', 8);
$node->restart;
ok(await_sql($node, q{SELECT worker_pid IS NOT NULL AND source = 'fetched' FROM absmartly_stat}), 'with a slot a worker comes');

# how often a process has slept
sub wakes_of
{
	my ($pid) = @_;

	open my $status, '<', "/proc/$pid/status" or return undef;
	my ($count) = join('', <$status>) =~ /^voluntary_ctxt_switches:\s+(\d+)/m;
	return $count;
}

unlike(log_of($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
$node->stop;
done_testing();
