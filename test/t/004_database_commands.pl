
# Commands that need a database for themselves, while its worker hangs in a request: none waits for it. Requests may take
# longer than the test, so what waited for their end would not be done at all.

use strict;
use warnings;

use AbsmartlyTest;
use Test::More;

my $LIMIT = 2;    # seconds that a command may take
my $collector = start_collector(data => experiments(experiment('exp', fullOnVariant => 1)));
my $node = start_node('main', collector => $collector);
ok(wait_ready($node), 'ready');
$collector->fault('/hang/v1', { match => { method => 'GET' }, hang => 1, times => -1 });

# Waits until the worker of a database hangs in a request.
sub hangs
{
	my ($name) = @_;

	return await_sql($node, 'SELECT worker_state FROM absmartly_stat', 'fetching', database => $name)
		&& $collector->wait_for_request(space => '/hang/v1', state => 'pending');
}

# Makes a database whose worker hangs in a request, if it is not there already.
sub hanging_database
{
	my ($name) = @_;

	if (!$node->safe_psql('postgres', "SELECT count(*) FROM pg_database WHERE datname = '$name'"))
	{
		$node->safe_psql('postgres', "CREATE DATABASE $name");
		$node->safe_psql('postgres', "ALTER DATABASE $name SET absmartly.endpoint = '" . $collector->url('/hang/v1') . "'");
	}
	$node->safe_psql($name, 'SET client_min_messages = warning; CREATE EXTENSION IF NOT EXISTS absmartly');
	ok(hangs($name), "the worker of database $name hangs in a request");
	return;
}

# Runs a command, which must be quick; its preparation sees to a worker that hangs.
sub quick
{
	my ($name, $prepare, $command, $database) = @_;

	return takes_less($LIMIT, "$name takes less than $LIMIT s",
		sub { $node->safe_psql($database // 'postgres', $command->()) }, $prepare);
}

quick('DROP DATABASE of another database', sub { hanging_database('a') }, sub { "CREATE DATABASE unrelated;\nDROP DATABASE unrelated" });
my $copies = 0;
quick('CREATE DATABASE ... TEMPLATE', sub { hanging_database('a') }, sub { 'CREATE DATABASE a_copy_' . ++$copies . ' TEMPLATE a' });
ok(await(sub { stat_of($node, 'worker_pid', 'a') }), 'the template\'s worker comes back');
ok(await(sub { stat_of($node, 'worker_pid', "a_copy_$copies") }), 'and the copy gets one, too');
$node->safe_psql('postgres', "DROP DATABASE a_copy_$_") for 1 .. $copies;
my $name = 'a';
quick('ALTER DATABASE ... RENAME', sub { hanging_database($name) }, sub { "ALTER DATABASE $name RENAME TO " . ($name .= '_'); });
ok(await(sub { stat_of($node, 'worker_pid', $name) }), 'the renamed database gets its worker back');
quick('DROP DATABASE', sub { hanging_database($name) }, sub { "DROP DATABASE $name" });
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE datname = '$name'"), '0', 'its worker is gone');

quick('DROP EXTENSION', sub { hanging_database('b') }, sub { 'DROP EXTENSION absmartly' }, 'b');
ok(await_sql($node, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'absmartly worker' AND datname = 'b'", '0'),
	'no worker is left after DROP EXTENSION');
quick('CREATE EXTENSION again', sub { $node->safe_psql('b', 'DROP EXTENSION IF EXISTS absmartly') },
	sub { 'CREATE EXTENSION absmartly' }, 'b');
ok(worker_pid($node, 'b'), 'it gets a worker again');

# a rolled back DROP EXTENSION changes nothing
my $before = worker_pid($node);
$node->safe_psql('postgres', 'BEGIN; DROP EXTENSION absmartly; ROLLBACK');
is($node->safe_psql('postgres', q{SELECT absmartly_peek_treatment('{"user_id": 1}', 'exp')}), '1',
	'a rolled back DROP EXTENSION leaves the data in force');
is(worker_pid($node), $before, 'and the worker alone');
$node->safe_psql('b', 'BEGIN; DROP EXTENSION absmartly; CREATE EXTENSION absmartly; COMMIT');
ok(worker_pid($node, 'b'), 'dropped and made again in one transaction: served again');

quick('DROP DATABASE ... WITH (FORCE)', sub { hanging_database('c') }, sub { 'DROP DATABASE c WITH (FORCE)' });

# a user who may not drop it can't stop its worker either
hanging_database('d');
my $pid = worker_pid($node, 'd');
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
my $large = experiments(map {
	experiment("exp_$_", id => $_, customFieldValues => [ { name => 'filler', type => 'text', value => 'x' x 400 } ])
} 1 .. 40_000);

sub large_database
{
	return if $node->safe_psql('postgres', q{SELECT count(*) FROM pg_database WHERE datname = 'large'});
	$collector->set_data('/large/v1', experiments(experiment('exp')));
	$node->safe_psql('postgres', 'CREATE DATABASE large');
	$node->safe_psql('postgres', "ALTER DATABASE large SET absmartly.endpoint = '" . $collector->url('/large/v1') . "'");
	create_extension($node, 'large');
	ok(wait_ready($node, 'large'), 'database large is ready');
	return;
}

# A command that waited for the worker would never be done before the answer is in force. On a busy machine one that does
# not wait may not either: then there is another answer.
my $during = 0;
for my $try (1 .. 10)
{
	large_database();
	$collector->set_data('/large/v1', $large);
	$collector->forget;
	my $session = $node->background_psql('large');
	$session->query_until(qr/started/, "\\echo started\nSELECT absmartly_refresh('$PATIENCE s') > 1;\n");
	ok($collector->wait_for_request(space => '/large/v1', state => 'answered'), 'a large answer comes');
	while (stat_of($node, 'experiments', 'large') == 1)
	{
		$node->safe_psql('postgres', "CREATE DATABASE unrelated;\nDROP DATABASE unrelated");
		$during++ if stat_of($node, 'experiments', 'large') == 1;
	}
	is($session->query_safe('SELECT 1'), "t\n1", 'it is in force');
	$session->quit;
	last if $during;
	$node->safe_psql('postgres', 'DROP DATABASE large');
}
cmp_ok($during, '>', 0, 'CREATE and DROP DATABASE while the worker compiles');
ok(await(sub { rss_anon(worker_pid($node, 'large')) < 256 * 1024 }), 'the memory is given back')
	|| diag(rss_anon(worker_pid($node, 'large')) . ' kB');
quick('DROP DATABASE of a large one', \&large_database, sub { 'DROP DATABASE large' });

my $stops = 0;
takes_less($LIMIT, 'a fast shutdown', sub { $node->stop('fast') }, sub {
	$node->start if $stops++;
	hanging_database('e');
});
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
