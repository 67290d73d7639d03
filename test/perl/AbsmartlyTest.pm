package AbsmartlyTest;

# What the TAP tests share: private servers with the extension, the development collector, and bounded waits.
#
#   my $collector = start_collector(...);                 # arguments of AbsmartlyCollector->start
#   my $node = start_node('main', collector => $collector);
#   ok(wait_ready($node), 'experiments arrive');

use strict;
use warnings;

use AbsmartlyCollector;
use Exporter qw(import);
use JSON::PP ();
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

our @EXPORT = qw(
    $OUTBOX_FILES
    $PATIENCE
    another_worker
    await
    await_sql
    collector_settings
    configure
    create_extension
    experiment
    experiments
    fails_with
    idle
    log_events
    log_of
    look_up
    rss_anon
    seconds_of
    set_for_worker
    set_publishing
    start_collector
    start_node
    start_standby
    stat_of
    stop_asleep
    stop_until_shutdown
    takes_less
    wait_ready
    worker_pid
    write_key
);

# Nothing is waited for longer than this many seconds, those of PG_TEST_TIMEOUT_DEFAULT. It is the only time-out: that of
# waits of tests, of statements (absmartly_publish('... s')), of the collector and of servers that start and stop. No
# test needs luck to stay below it; runs on slow servers raise it.
our $PATIENCE = AbsmartlyCollector->patience;
$ENV{PGCTLTIMEOUT} = $PATIENCE;

# A session's patience is for each of its queries, not for all that it lasts.
{
	no warnings 'redefine';
	my ($begin, $quit) = (\&PostgreSQL::Test::Cluster::background_psql, \&PostgreSQL::Test::BackgroundPsql::quit);
	*PostgreSQL::Test::Cluster::background_psql = sub {
		my $session = $begin->(@_);
		$session->set_query_timer_restart;
		return $session;
	};
	*PostgreSQL::Test::BackgroundPsql::quit = sub { $_[0]{timeout}->start; return $quit->(@_) };
}

# SQL for the size of the outbox's files, those aside in which things are parked.
our $OUTBOX_FILES = q{(SELECT sum(pg_relation_size(oid)) FROM pg_class WHERE relkind = 'm' AND relname ~ '^absmartly_outbox_(?!parked|nothing)')};

# Waits until the code gives something true, and returns that; undef when the time is over.
sub await
{
	my ($code) = @_;

	return AbsmartlyCollector->wait_until($code);
}

# Waits until a query gives the expected text (default: t). Says what it gave last if it does not.
sub await_sql
{
	my ($node, $query, $expected, %options) = @_;
	my $database = $options{database} // 'postgres';
	my $last = '';

	$expected //= 't';
	my $met = await(
		sub {
			my ($status, $output, $error) = $node->psql($database, $query);
			$last = $status ? $error : $output;
			return $status == 0 && $output eq $expected;
		});
	diag("waited for \"$expected\" from: $query\nlast answer: $last") if !$met;
	return $met;
}

# Duration of a piece of code, in seconds.
sub seconds_of
{
	my ($code) = @_;
	my $start = time;

	$code->();
	return time - $start;
}

# Tests that something takes less than so many seconds. Other processes may be in its way, so it is tried up to ten
# times, each time after its preparation, and the shortest counts: a wait that is in the code is there each time. More
# patience than usual says that the server is slow, and makes the limit as much larger.
sub takes_less
{
	my ($limit, $name, $code, $prepare) = @_;
	my $least;

	$limit *= $PATIENCE / 120 if $PATIENCE > 120;
	for my $try (1 .. 10)
	{
		$prepare->() if $prepare;
		my $seconds = seconds_of($code);
		$least = $seconds if !defined $least || $seconds < $least;
		last if $least < $limit;
		note("$name: try $try took $seconds s");
	}
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return cmp_ok($least, '<', $limit, $name);
}

# Starts a collector, which ends with the test; the arguments are those of AbsmartlyCollector->start.
sub start_collector
{
	return AbsmartlyCollector->start(@_);
}

# Writes an API key into a file that only its owner reads, and gives the path.
sub write_key
{
	my ($node, $key, $name) = @_;
	my $path = $node->basedir . '/' . ($name // 'api_key');

	open my $file, '>', $path or die "$path: $!";
	print {$file} "$key\n";
	close $file or die "$path: $!";
	chmod 0600, $path or die "$path: $!";
	return $path;
}

# Lines of configuration that point to a space of a collector.
sub collector_settings
{
	my ($collector, $space) = @_;

	return "absmartly.endpoint = '" . $collector->url($space // '/v1') . "'\n";
}

# Makes a server. Its requests may take longer than any test: none fails for being late on a busy machine, and what waits
# for the end of one that hangs fails the test, unless it says how long. It is started unless start => 0 is given.
#   collector  its endpoint is configured, with space (default /v1)
#   preload    0: without shared_preload_libraries
#   settings   more lines of configuration
#   init       arguments for initdb, an array
#   streaming  1: ready for standbys
#   extension  0: without CREATE EXTENSION in the database postgres
sub start_node
{
	my ($name, %options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(
		allows_streaming => $options{streaming} ? 1 : 0,
		extra            => $options{init} // []);
	$node->append_conf('postgresql.conf', <<EOT);
max_worker_processes = 16
max_connections = 30
absmartly.application = 'website'
absmartly.environment = 'production'
absmartly.refresh_interval = 0
absmartly.connect_timeout = '10h'
absmartly.request_timeout = '10h'
EOT
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'absmartly'\n")
		if $options{preload} // 1;
	# a standby may be slow, and checkpoints many
	$node->append_conf('postgresql.conf', "wal_keep_size = 8GB\n")
		if $options{streaming};
	$node->append_conf('postgresql.conf', collector_settings($options{collector}, $options{space}))
		if $options{collector};
	$node->append_conf('postgresql.conf', $options{settings}) if $options{settings};
	if ($options{start} // 1)
	{
		$node->start;
		create_extension($node) if $options{extension} // 1;
	}
	return $node;
}

# Starts a standby of a server that was made for streaming, with these further settings.
sub start_standby
{
	my ($primary, %options) = @_;
	my $standby = PostgreSQL::Test::Cluster->new('standby');

	$primary->backup('base');
	$standby->init_from_backup($primary, 'base', has_streaming => 1);
	$standby->append_conf('postgresql.conf', $options{settings}) if $options{settings};
	$standby->start;
	return $standby;
}

# Makes the extension in a database.
sub create_extension
{
	my ($node, $database) = @_;

	$node->safe_psql($database // 'postgres', 'CREATE EXTENSION absmartly');
	return;
}

# Adds lines to the configuration and has them read.
sub configure
{
	my ($node, $lines) = @_;

	$node->append_conf('postgresql.conf', "$lines\n");
	$node->reload;
	return;
}

# Has a database's event logger write to the table event_log: n, context, event, data, and who, under which search path
# and when wrote it.
sub log_events
{
	my ($node, $database) = @_;

	$database //= 'postgres';
	$node->safe_psql($database, <<EOT);
CREATE TABLE public.event_log (n bigint GENERATED ALWAYS AS IDENTITY, context jsonb, event text, data jsonb,
	who text DEFAULT current_user, path text DEFAULT current_setting('search_path'), at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION public.log_event(context jsonb, event text, data jsonb) RETURNS void LANGUAGE sql
AS 'INSERT INTO public.event_log (context, event, data) VALUES (context, event, data)';
ALTER DATABASE $database SET absmartly.event_logger = 'public.log_event';
EOT
	return;
}

# Waits until a database has data; whether it has.
sub wait_ready
{
	my ($node, $database) = @_;

	return $node->safe_psql($database // 'postgres',
		"SELECT absmartly_wait_until_ready('$PATIENCE s')") eq 't';
}

# A column of absmartly_stat.
sub stat_of
{
	my ($node, $column, $database) = @_;

	return $node->safe_psql($database // 'postgres', "SELECT $column FROM absmartly_stat");
}

# What a query gives; empty if it fails, or the server is away, also before it has heard all of the query.
sub look_up
{
	my ($node, $query, $database) = @_;
	my ($status, $output) = eval { $node->psql($database // 'postgres', $query) };

	return defined $status && $status == 0 ? $output : '';
}

# Stops a process of a server, by SIGSTOP, while it sleeps: so it holds nothing that others would wait for.
sub stop_asleep
{
	my ($node, $pid) = @_;

	await(
		sub {
			kill 'STOP', $pid;
			return 1 if look_up($node, "SELECT wait_event_type IN ('Activity', 'Extension') FROM pg_stat_activity WHERE pid = $pid") eq 't';
			kill 'CONT', $pid;
			return 0;
		}) or die "process $pid does not sleep";
	return;
}

# Waits until the worker has nothing to do.
sub idle
{
	my ($node, $database) = @_;

	return await_sql($node, 'SELECT worker_state FROM absmartly_stat', 'idle', database => $database // 'postgres');
}

# Gives the database postgres a setting of its own (undef: takes it away), and waits for the worker that has it.
sub set_for_worker
{
	my ($node, $setting, $value) = @_;
	my $pid = worker_pid($node);

	$node->safe_psql('postgres',
		'ALTER DATABASE postgres ' . (defined $value ? "SET absmartly.$setting = '$value'" : "RESET absmartly.$setting"));
	another_worker($node, $pid) or die "the worker does not come back";
	idle($node);
	return;
}

# Turns publishing on or off for all databases, and waits until the worker of the database postgres has heard of that;
# where it is on, also until what waits is sent, at most for the time that is given (as absmartly_publish() takes it).
sub set_publishing
{
	my ($node, $value, $limit) = @_;

	$limit //= "$PATIENCE s";
	configure($node, "absmartly.publishing = $value");
	return await(
		sub {
			my (undef, undef, $error) = $node->psql('postgres', "SELECT absmartly_publish('$limit')");
			return ($error =~ /absmartly\.publishing" is off/) == ($value eq 'off');
		});
}

# Stops a process of a server (SIGSTOP), and lets it go on when the server has been told to shut down: what it has left
# undone until then is undone when that begins.
sub stop_until_shutdown
{
	my ($node, $pid) = @_;
	my $offset = -s $node->logfile;

	kill 'STOP', $pid;
	my $child = fork // die "fork: $!";
	return if $child;
	await(sub { substr(log_of($node), $offset) =~ /received (?:smart|fast) shutdown request/ });
	kill 'CONT', $pid;
	POSIX::_exit(0);    # nothing of what the test does at its end
}

# The process of a database's worker; waits until there is one, also while the server is away.
sub worker_pid
{
	my ($node, $database) = @_;

	return await(sub { look_up($node, 'SELECT worker_pid FROM absmartly_stat', $database) });
}

# Waits until the database postgres has a worker that is another one than the former, and gives its process.
sub another_worker
{
	my ($node, $former) = @_;

	return await(sub { my $pid = look_up($node, 'SELECT worker_pid FROM absmartly_stat'); $pid && $pid ne $former && $pid });
}

# kB of a process's own memory; 0 where the system does not tell, or a sanitizer keeps what was freed
sub rss_anon
{
	my ($pid) = @_;

	return 0 if $ENV{ASAN_OPTIONS};
	open my $status, '<', "/proc/$pid/status" or return 0;
	my ($kilobytes) = join('', <$status>) =~ /^RssAnon:\s+(\d+)/m;
	return $kilobytes;
}

# All that a server has logged.
sub log_of
{
	my ($node) = @_;

	return slurp_file($node->logfile);
}

# Runs a query that must fail, and checks its SQLSTATE and message.
sub fails_with
{
	my ($node, $query, $state, $message, $name, %options) = @_;
	my ($status, $output, $error) = $node->psql($options{database} // 'postgres',
		"\\set VERBOSITY verbose\n$query", extra_params => $options{extra_params} // []);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok($error =~ /ERROR:  \Q$state\E: / && $error =~ $message, $name)
		|| diag("output: $output\nerror: $error");
}

# An experiment with two halves; the arguments replace or add fields.
sub experiment
{
	my ($name, %fields) = @_;

	return {
		id                => 1,
		name              => $name,
		iteration         => 1,
		unitType          => 'user_id',
		seedHi            => 3603515,
		seedLo            => 233373850,
		split             => [ 0.5, 0.5 ],
		trafficSeedHi     => 449867249,
		trafficSeedLo     => 455443629,
		trafficSplit      => [ 0, 1 ],
		fullOnVariant     => 0,
		applications      => [ { name => 'website' } ],
		variants          => [ { name => 'A', config => undef }, { name => 'B', config => '{"colour":"red"}' } ],
		audience          => undef,
		audienceStrict    => JSON::PP::false,
		customFieldValues => undef,
		%fields
	};
}

# Context data of the given experiments, as JSON text.
sub experiments
{
	return JSON::PP->new->canonical->encode({ experiments => [@_] });
}

1;
