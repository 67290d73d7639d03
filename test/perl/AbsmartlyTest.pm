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
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(
    await
    await_sql
    collector_settings
    configure
    create_extension
    experiment
    experiments
    fails_with
    log_events
    log_of
    rss_anon
    seconds_of
    start_collector
    start_node
    stat_of
    wait_ready
    worker_pid
    write_key
);

# Waits are bounded by this many seconds; a test that needs no luck never gets near it.
my $PATIENCE = $ENV{PG_TEST_TIMEOUT_DEFAULT} || 60;

# Waits until the code gives something true, and returns that; undef when the time is over.
sub await
{
	my ($code, $seconds) = @_;
	my $end = time + ($seconds // $PATIENCE);

	while (1)
	{
		my $result = $code->();
		return $result if $result;
		return undef if time > $end;
		sleep 0.02;
	}
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
		},
		$options{seconds});
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

# Makes a server; it is started unless start => 0 is given.
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
EOT
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'absmartly'\n")
		if $options{preload} // 1;
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

# The process of a database's worker; waits until there is one.
sub worker_pid
{
	my ($node, $database) = @_;

	return await(sub { stat_of($node, 'worker_pid', $database) });
}

# kB of a process's own memory; 0 where the system does not tell
sub rss_anon
{
	my ($pid) = @_;

	open my $status, '<', "/proc/$pid/status" or return 0;
	my ($kilobytes) = join('', <$status>) =~ /^RssAnon:\s+(\d+)/m;
	return $kilobytes;
}

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
