package AbsmartlyMain;

# What tests share that have one server, $node, and one collector, $collector: short names for what they do most.
#
#   use AbsmartlyMain qw(:DEFAULT arrived publish);
#   use AbsmartlyTest;
#
#   start_main(settings => "absmartly.publish_delay = 0\n");
#   sql(q{SELECT absmartly_track('{"user_id": 1}', 'bought')});
#   publish();
#   is(arrived('bought'), 1, 'it arrives');
#
# A test that starts them in another way sets the two variables.

use strict;
use warnings;

use AbsmartlyTest;
use Exporter qw(import);
use Test::More;

our @EXPORT = qw(
    $collector
    $node
    sql
    start_main
);
our @EXPORT_OK = qw(
    arrived
    publish
    put_fault
    puts
);

our ($collector, $node);

# Starts the collector, and a server with its data; the options are those of start_node().
#   data  of the collector (default: one experiment, exp)
sub start_main
{
	my (%options) = @_;

	$collector = start_collector(data => delete $options{data} // experiments(experiment('exp')));
	$node = start_node('main', collector => $collector, %options);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(wait_ready($node), 'ready');
}

# Runs statements, which must not fail, and gives what they give.
sub sql
{
	my ($query, $database) = @_;

	return $node->safe_psql($database // 'postgres', $query);
}

# Publishes what waits; gives how many events that were.
sub publish
{
	return sql("SELECT absmartly_publish('$PATIENCE s')");
}

# How many goals of a name have arrived.
sub arrived
{
	my ($goal) = @_;

	return scalar(() = $collector->goals(space => '/v1', name => $goal));
}

# The requests with events that have come, whatever became of them.
sub puts
{
	return $collector->requests(space => '/v1', method => 'PUT');
}

# Has the collector fail with requests with events until its faults are cleared, unless the fault says how often.
sub put_fault
{
	my (%fault) = @_;

	return $collector->fault('/v1', { match => { method => 'PUT' }, times => -1, %fault });
}

1;
