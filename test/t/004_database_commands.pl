
# Commands that need a database for themselves, while its worker hangs in a request: none waits for it.

use strict;
use warnings;

use AbsmartlyTest;
use Test::More;

my $LIMIT = 2;    # seconds
my $collector = start_collector(data => experiments(experiment('exp', fullOnVariant => 1)));
my $node = start_node('main', collector => $collector, settings => <<EOT);
absmartly.request_timeout = '60s'
absmartly.connect_timeout = '60s'
EOT
ok(wait_ready($node), 'ready');
$collector->fault($_, { match => { method => 'GET' }, hang => 1, times => -1 })
	for qw(/a/v1 /b/v1 /c/v1 /d/v1 /e/v1);

# Makes a database whose worker hangs in a request.
sub hanging_database
{
	my ($name) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql('postgres', "ALTER DATABASE $name SET absmartly.endpoint = '" . $collector->url("/$name/v1") . "'");
	create_extension($node, $name);
	ok($collector->wait_for_request(space => "/$name/v1", state => 'pending', timeout => 10), "database $name hangs in a request");
	return;
}

sub quick
{
	my ($name, $code) = @_;
	my $seconds = seconds_of($code);

	cmp_ok($seconds, '<', $LIMIT, "$name takes less than $LIMIT s") || diag("it took $seconds s");
	return;
}

hanging_database('a');
quick('DROP DATABASE of another database', sub {
	$node->safe_psql('postgres', 'CREATE DATABASE unrelated');
	$node->safe_psql('postgres', 'DROP DATABASE unrelated');
});
quick('CREATE DATABASE ... TEMPLATE', sub { $node->safe_psql('postgres', 'CREATE DATABASE a_copy TEMPLATE a') });
ok(await(sub { stat_of($node, 'worker_pid', 'a') }), 'the template\'s worker comes back');
ok(await(sub { stat_of($node, 'worker_pid', 'a_copy') }), 'and the copy gets one, too');
quick('ALTER DATABASE ... RENAME', sub { $node->safe_psql('postgres', 'ALTER DATABASE a RENAME TO renamed') });
ok(await(sub { stat_of($node, 'worker_pid', 'renamed') }), 'the renamed database gets its worker back');
quick('DROP DATABASE', sub { $node->safe_psql('postgres', 'DROP DATABASE renamed') });
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE datname = 'renamed'"), '0', 'its worker is gone');

hanging_database('b');
my $oid = $node->safe_psql('b', 'SELECT oid FROM pg_database WHERE datname = current_database()');
my $pid = worker_pid($node, 'b');
quick('DROP EXTENSION', sub { $node->safe_psql('b', 'DROP EXTENSION absmartly') });
ok(await_sql($node, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'absmartly worker' AND datname = 'b'", '0'),
	'no worker is left after DROP EXTENSION');
quick('CREATE EXTENSION again', sub { create_extension($node, 'b') });
ok(worker_pid($node, 'b'), 'it gets a worker again');

# a rolled back DROP EXTENSION changes nothing
my $before = worker_pid($node);
$node->safe_psql('postgres', 'BEGIN; DROP EXTENSION absmartly; ROLLBACK');
is($node->safe_psql('postgres', q{SELECT absmartly_peek_treatment('{"user_id": 1}', 'exp')}), '1',
	'a rolled back DROP EXTENSION leaves the data in force');
is(worker_pid($node), $before, 'and the worker alone');
$node->safe_psql('b', 'BEGIN; DROP EXTENSION absmartly; CREATE EXTENSION absmartly; COMMIT');
ok(worker_pid($node, 'b'), 'dropped and made again in one transaction: served again');

hanging_database('c');
quick('DROP DATABASE ... WITH (FORCE)', sub { $node->safe_psql('postgres', 'DROP DATABASE c WITH (FORCE)') });

# a user who may not drop it can't stop its worker either
hanging_database('d');
$pid = worker_pid($node, 'd');
$node->safe_psql('postgres', 'CREATE ROLE nobody LOGIN');
my ($status, $output, $error) = $node->psql('postgres', 'SET ROLE nobody; DROP DATABASE d');
like($error, qr/must be owner/, 'somebody else can not drop it');
is(worker_pid($node, 'd'), $pid, 'nor stop its worker');

# a failed command lets the worker come back
my $session = $node->background_psql('d');
$session->query_safe('SELECT 1');
($status, $output, $error) = $node->psql('postgres', 'ALTER DATABASE d RENAME TO d2');
like($error, qr/being accessed by other users/, 'RENAME fails for a reason of its own');
$session->quit;
ok(worker_pid($node, 'd'), 'and the worker comes back');

# a database that becomes a template, or takes no connections, has no worker
$node->safe_psql('postgres', 'ALTER DATABASE d IS_TEMPLATE true');
ok(await_sql($node, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'absmartly worker' AND datname = 'd'", '0'),
	'a template has no worker');
$node->safe_psql('postgres', 'ALTER DATABASE d IS_TEMPLATE false');
ok(worker_pid($node, 'd'), 'it comes back when it is none any more');

# only the databases that are named
configure($node, "absmartly.databases = 'postgres'");
ok(await_sql($node, "SELECT string_agg(datname, ',') FROM pg_stat_activity WHERE backend_type = 'absmartly worker'", 'postgres'),
	'absmartly.databases limits the workers');
configure($node, "absmartly.databases = ''");
ok(worker_pid($node, 'd'), 'and lets them come back');

# a worker that is busy with a very large answer keeps nobody waiting either
$node->safe_psql('postgres', 'CREATE DATABASE large');
$node->safe_psql('postgres', "ALTER DATABASE large SET absmartly.endpoint = '" . $collector->url('/large/v1') . "'");
create_extension($node, 'large');
ok(wait_ready($node, 'large'), 'database large is ready');
$collector->set_data('/large/v1', experiments(map {
	experiment("exp_$_", id => $_, customFieldValues => [ { name => 'filler', type => 'text', value => 'x' x 400 } ])
} 1 .. 40_000));
my $large = $node->background_psql('large');
$large->query_until(qr/started/, "\\echo started\nSELECT absmartly_refresh('60 s') > 1;\n");
my $rounds = 0;
while (stat_of($node, 'experiments', 'large') == 1 && $rounds++ < 100)
{
	my $seconds = seconds_of(sub {
		$node->safe_psql('postgres', 'CREATE DATABASE unrelated');
		$node->safe_psql('postgres', 'DROP DATABASE unrelated');
	});
	cmp_ok($seconds, '<', $LIMIT, 'CREATE and DROP DATABASE while the worker compiles') || diag("it took $seconds s");
}
cmp_ok($rounds, '>', 0, 'there was time to look');
is($large->query_safe('SELECT 1'), "t\n1", 'the large answer is in force');
$large->quit;
cmp_ok(rss_anon(worker_pid($node, 'large')), '<', 256 * 1024, 'and its memory was given back (kB)');
quick('DROP DATABASE of a large one', sub { $node->safe_psql('postgres', 'DROP DATABASE large') });

hanging_database('e');
quick('a fast shutdown', sub { $node->stop('fast') });
unlike(log_of($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');

# what is gone leaves no files behind
$node->start;
my %databases = map { $_ => 1 } split /\n/, $node->safe_psql('postgres', 'SELECT oid FROM pg_database');
ok(wait_ready($node), 'ready again');
is_deeply([grep { !$databases{$_} } map { m{(\d+)$} } glob($node->data_dir . '/absmartly/*')], [], 'no file of a dropped database is left');

# no worker slot left: the setting to raise is named
$node->append_conf('postgresql.conf', "max_worker_processes = 2\n");
$node->restart;
ok(await(sub { log_of($node) =~ /no background worker slot is left.*?Increase "max_worker_processes"/s }), 'without a slot the log names the setting');

$node->stop;
done_testing();
