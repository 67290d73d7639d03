package AbsmartlyDisturbances;

# What the tests share in which clients work while servers, workers and the collector are disturbed.

use strict;
use warnings;

use AbsmartlyTest;
use Exporter qw(import);

our @EXPORT = qw(
    @FAULTS
    disturbed_settings
    fail_collector
    finish_prepared
);

# Faults of a collector, none of which is due to what it was sent.
our @FAULTS = (
	{ status => 500 },
	{ status => 503, accept => 1 },
	{ status => 429, headers => { 'Retry-After' => '1' } },
	{ hang => 1 },
	{ hang => 1, accept => 1 },
	{ cut_after => 5 },
	{ cut_after => 5, reset => 1 },
	{ reset => 1 },
	{ reset => 1, accept => 1 },
	{ garbage => 1, accept => 1 },
	{ html => 1 },
);

# Lines of configuration of a server that outlives crashes, and that has the worker try again soon; with these settings of
# the extension.
sub disturbed_settings
{
	my (%settings) = @_;

	return join('', map { "absmartly.$_ = '$settings{$_}'\n" } sort keys %settings) . <<'EOT';
absmartly.max_retries = 2
max_prepared_transactions = 100
restart_after_crash = on
log_statement = none
EOT
}

# Has some requests with events meet a fault, and waits for a while until they have. A match of the fault's own counts, too.
sub fail_collector
{
	my ($collector, $space, $fault) = @_;
	my ($id) = $collector->fault($space, { %$fault, match => { method => 'PUT', %{ $fault->{match} // {} } }, times => 1 + int rand 3 });

	$collector->wait_until(sub { !grep { $_->{id} == $id } $collector->faults($space) }, 3);
	return;
}

# Commits or rolls back all that was prepared and not finished, by whoever it was.
sub finish_prepared
{
	my ($node) = @_;

	for my $name (split /\n/, look_up($node, 'SELECT gid FROM pg_prepared_xacts'))
	{
		look_up($node, (rand() < 0.5 ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$name'");
	}
	return;
}

1;
