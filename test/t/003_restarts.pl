
# Restarts of all kinds: the last known good data is in force at once, and the worker comes back.

use strict;
use warnings;

use AbsmartlyTest;
use Test::More;

my $collector = start_collector(space_data => {
	'/v1' => experiments(experiment('exp', fullOnVariant => 1)),
	'/new/v1' => experiments(experiment('new_exp')) });
my $node = start_node('main', collector => $collector, settings => <<EOT);
restart_after_crash = on
absmartly.max_retries = 0
EOT
my $peek = q{SELECT absmartly_peek_treatment('{"user_id": 1}', 'exp')};

ok(wait_ready($node), 'ready');
is($node->safe_psql('postgres', $peek), '1', 'assigned');

# with the collector down, data comes from the file
$collector->stop;
$node->restart;
ok(wait_ready($node), 'ready after a restart with the collector down');
is($node->safe_psql('postgres', $peek), '1', 'assigned from the file');
is(stat_of($node, 'source'), 'file', 'which the statistics tell');

# a worker that is terminated comes back, without losing the data meanwhile
my $pid = worker_pid($node);
is($node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)"), 't', 'worker terminated');
is($node->safe_psql('postgres', $peek), '1', 'assignment goes on');
ok(await(sub { my $new = stat_of($node, 'worker_pid'); $new && $new != $pid }), 'another worker comes');

# a killed one takes the server down to a crash restart
$pid = worker_pid($node);
kill 'KILL', $pid;
ok(await(sub {
	my ($status, $output) = $node->psql('postgres', 'SELECT worker_pid FROM absmartly_stat WHERE ready');
	return $status == 0 && $output ne '' && $output != $pid;
}), 'after SIGKILL the server restarts and so does the worker');
is($node->safe_psql('postgres', $peek), '1', 'assigned after the crash restart');

# so does a crash of somebody else
my $session = $node->background_psql('postgres');
my $backend = $session->query_safe('SELECT pg_backend_pid()');
kill 'KILL', $backend;
eval { $session->quit };
ok(await(sub {
	my ($status, $output) = $node->psql('postgres', $peek);
	return $status == 0 && $output eq '1';
}), 'assigned after the crash of a backend');
ok(worker_pid($node), 'and a worker runs');

# an immediate shutdown
$node->stop('immediate');
$node->start;
ok(wait_ready($node), 'ready after an immediate shutdown');

# the launcher comes back, too, and takes over what runs
my $launcher = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'absmartly launcher'");
$pid = worker_pid($node);
$node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher)");
ok(await_sql($node, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'absmartly launcher' AND pid <> $launcher", '1'),
	'the launcher comes back');
is(worker_pid($node), $pid, 'and leaves the worker alone');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
ok(await(sub { my $new = stat_of($node, 'worker_pid'); $new && $new != $pid }), 'it restarts workers as before');

# another endpoint: the old data is not used from that moment, whatever the new collector does
$collector->restart;
$collector->fault('/new/v1', { match => { method => 'GET' }, hang => 1, times => -1 });
$node->safe_psql('postgres', "ALTER DATABASE postgres SET absmartly.endpoint = '" . $collector->url('/new/v1') . "'");
fails_with($node, "$peek;", '55000', qr/no experiment data/, 'after ALTER DATABASE the old data is not used any more');
is($node->safe_psql('postgres', "SET absmartly.on_not_ready = control; $peek"), '0', 'or control is given, if that is set');
ok($collector->wait_for_request(space => '/new/v1', state => 'pending'), 'the new collector is asked');
$collector->clear_faults('/new/v1');

# a running fetch is given up when the endpoint changes again
$node->safe_psql('postgres', 'ALTER DATABASE postgres RESET absmartly.endpoint');
ok(wait_ready($node), 'back to the first endpoint');
is($node->safe_psql('postgres', $peek), '1', 'with its data');
configure($node, "absmartly.endpoint = '" . $collector->url('/new/v1') . "'");
ok(await_sql($node, 'SELECT name FROM absmartly_experiments', 'new_exp'), 'a reload changes the endpoint, too');
is($node->safe_psql('postgres', 'SELECT endpoint FROM absmartly_shared_data()'), $collector->url('/new/v1'),
	'which the shared data tells');

# environment and application begin an epoch as well
$collector->set_data('/new/v1', experiments(experiment('staged')), environment => 'staging');
configure($node, "absmartly.environment = 'staging'");
ok(await_sql($node, 'SELECT name FROM absmartly_experiments', 'staged'), 'another environment, other data');

# a file that is damaged is not used, and said so
$collector->stop;
$node->stop;
my $oid = (grep { m{/\d+$} } glob($node->data_dir . '/absmartly/*'))[0];
open my $file, '+<', $oid or die "$oid: $!";
seek $file, -10, 2;
print {$file} 'damaged';
close $file;
$node->start;
ok(await(sub { log_of($node) =~ /file "absmartly\/\d+" is not usable/ }), 'a damaged file is reported');
is($node->safe_psql('postgres', 'SELECT absmartly_is_ready()'), 'f', 'and not used');
$collector->restart;
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
ok(wait_ready($node), 'the next fetch replaces it');

$node->stop;
done_testing();
