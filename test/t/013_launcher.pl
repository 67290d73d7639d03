
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

unlike(log_of($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
$node->stop;
done_testing();
