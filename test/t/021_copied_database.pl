
# A copy of a database, or of a server, does not send what is the original's; an endpoint that was changed is no copy.

use strict;
use warnings;

use AbsmartlyTest;
use PostgreSQL::Test::Cluster;
use Test::More;
use Time::HiRes qw(sleep);

my $data = experiments(experiment('exp'));
my $collector = start_collector(space_data => { map { $_ => $data } qw(/v1 /copy/v1 /new/v1) });
my $node = start_node('main', collector => $collector, streaming => 1, settings => <<'EOT');
absmartly.publish_delay = 50ms
absmartly.max_retries = 0
EOT
my $down = { match => { method => 'PUT' }, status => 503, times => -1 };

ok(wait_ready($node), 'ready');
$node->safe_psql('postgres', 'CREATE DATABASE shop');
create_extension($node, 'shop');
ok(wait_ready($node, 'shop'), 'so is another database');

# A goal for each number, in one transaction.
sub track
{
	my ($server, $database, $goal, $from, $to) = @_;

	return $server->safe_psql($database, <<EOT);
SELECT count(absmartly_track(jsonb_build_object('user_id', i), '$goal', jsonb_build_object('n', i)))
FROM generate_series($from, $to) AS i
EOT
}

# The numbers of the goals of a name that have arrived at a space, in order.
sub arrived
{
	my ($space, $goal) = @_;

	return join ' ', sort { $a <=> $b } map { $_->{properties}{n} } $collector->goals(space => $space, name => $goal);
}

sub arrive
{
	my ($space, $goal, $from, $to, $name) = @_;
	my $expected = join ' ', $from .. $to;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	await(sub { length arrived($space, $goal) >= length $expected });
	return is(arrived($space, $goal), $expected, $name);
}

sub publish
{
	my ($server, $database) = @_;

	return $server->safe_psql($database, "SELECT absmartly_publish('$PATIENCE s')");
}

# Waits until the worker of a database publishes, or does not.
sub await_publishing
{
	my ($server, $database, $value) = @_;

	return await(
		sub {
			my ($status, undef, $error) = $server->psql($database, "SELECT absmartly_publish('$PATIENCE s')");
			return $value eq 'off' ? $error =~ /is off/ : $status == 0 || $error =~ /status 503/;
		});
}

# Turns publishing on or off, and waits for the workers of these databases.
sub turn_publishing
{
	my ($server, $value, @databases) = @_;

	configure($server, "absmartly.publishing = $value");
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(!(grep { !await_publishing($server, $_, $value) } @databases), "publishing is $value");
}

# Waits until the worker of a database has taken note of its endpoint.
sub await_endpoint
{
	my ($database, $space) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(await_sql($node, 'SELECT endpoint FROM absmartly_shared_data()', $collector->url($space), database => $database),
		"$database turns to $space");
}

sub await_foreign
{
	my ($server, $database, $number, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(await_sql($server, 'SELECT foreign_records, outbox_records FROM absmartly_stat', "$number|0", database => $database), $name);
}

# How many records were reported as foreign: there is a WARNING, with a hint.
sub reported
{
	my ($server) = @_;

	return log_of($server) =~ /WARNING:\s+absmartly: records of another database or endpoint are not sent, (\d+) so far\n.*DETAIL:.*\n.*HINT:\s+Use absmartly_requeue\(\)/
		? $1 : 0;
}

# A copied database
turn_publishing($node, 'off', 'postgres', 'shop');
track($node, 'shop', 'original', 1, 10);
track($node, 'shop', 'original', 11, 20);
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE shop');
is($node->safe_psql('copy', 'SELECT count(*) FROM absmartly_pending_events'), '20', 'a copy has the events of the original');
turn_publishing($node, 'on', 'shop', 'copy');
arrive('/v1', 'original', 1, 20, 'the original sends them');
await_foreign($node, 'copy', 2, 'to the copy they are foreign');
ok(await(sub { reported($node) }), 'which it reports, with a hint');
is($node->safe_psql('copy', q{SELECT place, status, count(*), sum(goals), bool_or(database = (SELECT oid FROM pg_database WHERE datname = 'shop')) FROM absmartly_outbox GROUP BY 1, 2}),
	'parked|foreign|2|20|t', 'they are kept apart');
is($node->safe_psql('copy', 'SELECT count(*) FROM absmartly_pending_events'), '0', 'and do not wait');
is(stat_of($node, 'foreign_records', 'shop'), '0', 'the original has none');
track($node, 'copy', 'of copy', 1, 5);
arrive('/v1', 'of copy', 1, 5, 'the copy sends events of its own');
is(publish($node, 'copy'), '0', 'and no others');
is(arrived('/v1', 'original'), join(' ', 1 .. 20), 'so all were sent once');

# adopted
$node->safe_psql('postgres', q{ALTER DATABASE copy SET absmartly.endpoint = '} . $collector->url('/copy/v1') . q{'});
await_endpoint('copy', '/copy/v1');
is(publish($node, 'copy'), '0', 'with an endpoint of its own they are foreign, too');
is($node->safe_psql('copy', 'SELECT absmartly_requeue(min(record)) FROM absmartly_outbox'), '10', 'absmartly_requeue() adopts a record');
publish($node, 'copy');
like(arrived('/copy/v1', 'original'), qr/^(1 2 3 4 5 6 7 8 9 10|11 12 13 14 15 16 17 18 19 20)$/, 'it arrives where the copy sends to');
await_foreign($node, 'copy', 1, 'the other one stays');
is($node->safe_psql('copy', 'SELECT absmartly_requeue()'), '10', 'absmartly_requeue() adopts all');
publish($node, 'copy');
is(arrived('/copy/v1', 'original'), join(' ', 1 .. 20), 'they arrive');
await_foreign($node, 'copy', 0, 'nothing is left');
is(arrived('/v1', 'original'), join(' ', 1 .. 20), 'the original has no part in it');
is($node->safe_psql('copy', 'SELECT absmartly_requeue()'), '0', 'there is nothing more to adopt');

# copied while the collector fails, and dropped
$collector->fault('/v1', $down);
track($node, 'shop', 'in trouble', 1, 10);
fails_with($node, "SELECT absmartly_publish('$PATIENCE s');", '08006', qr/status 503/, 'the collector fails', database => 'shop');
$node->safe_psql('postgres', 'CREATE DATABASE second TEMPLATE shop');
await_foreign($node, 'second', 1, 'in the copy they are foreign');
await_publishing($node, 'shop', 'on');
$collector->clear_faults('/v1');
publish($node, 'shop');
is(publish($node, 'second'), '0', 'the copy does not send them');
is(arrived('/v1', 'in trouble'), join(' ', 1 .. 10), 'the original does, once');
is($node->safe_psql('second', 'SELECT absmartly_discard()'), '10', 'absmartly_discard() drops them');
await_foreign($node, 'second', 0, 'nothing is left');
publish($node, 'second');
is(arrived('/v1', 'in trouble'), join(' ', 1 .. 10), 'and nothing is sent');
$node->safe_psql('postgres', "DROP DATABASE $_") for qw(copy second);

# A copied server
turn_publishing($node, 'off', 'postgres', 'shop');
track($node, 'postgres', 'backed up', 1, 10);
track($node, 'postgres', 'backed up', 11, 15);
$node->backup('base');
my $clone = PostgreSQL::Test::Cluster->new('clone');
$clone->init_from_backup($node, 'base');
$clone->append_conf('postgresql.conf', collector_settings($collector, '/copy/v1') . "absmartly.publishing = on\n");
$clone->start;
await_foreign($clone, 'postgres', 2, 'to a copied server with another endpoint its events are foreign');
ok(await(sub { reported($clone) }), 'which it reports');
is(publish($clone, 'postgres'), '0', 'it does not send them');
turn_publishing($node, 'on', 'postgres', 'shop');
arrive('/v1', 'backed up', 1, 15, 'the original does');
$clone->restart;
await_foreign($clone, 'postgres', 2, 'they are foreign after a restart, too');
is(publish($clone, 'postgres'), '0', 'and not sent');
is(arrived('/copy/v1', 'backed up'), '', 'nowhere');
is($clone->safe_psql('postgres', 'SELECT absmartly_requeue(record) FROM absmartly_outbox WHERE goals = 10'), '10', 'a record is adopted');
is($clone->safe_psql('postgres', 'SELECT absmartly_discard(record) FROM absmartly_outbox WHERE goals = 5'), '5', 'another one dropped');
publish($clone, 'postgres');
is(arrived('/copy/v1', 'backed up'), join(' ', 1 .. 10), 'the one that was adopted arrives');
await_foreign($clone, 'postgres', 0, 'nothing is left');
is(arrived('/v1', 'backed up'), join(' ', 1 .. 15), 'the original collector was sent them once');
$clone->stop;

# An endpoint that changes under a running worker takes with it what waits
sub turn_to
{
	my ($database, $space, $by_database) = @_;

	if ($by_database)
	{
		$node->safe_psql('postgres', "ALTER DATABASE $database SET absmartly.endpoint = '" . $collector->url($space) . "'");
	}
	else
	{
		configure($node, collector_settings($collector, $space));
	}
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return await_endpoint($database, $space);
}

# from /v1 to /new/v1, by the database's settings or by the configuration file's; restarted after that or not
sub moves
{
	my ($goal, %how) = @_;
	my $database = $how{by_database} ? 'shop' : 'postgres';

	$collector->fault('/v1', $down);
	turn_publishing($node, 'off', $database) if $how{off};
	track($node, $database, $goal, 1, 10);
	$node->psql($database, "SELECT absmartly_publish('$PATIENCE s')");
	# at the new one it fails as well until it is known whether the restart makes a difference
	$collector->fault('/new/v1', $down) if $how{restart} && !$how{off};
	turn_to($database, '/new/v1', $how{by_database});
	$node->psql($database, "SELECT absmartly_publish('$PATIENCE s')");
	if ($how{restart})
	{
		is(arrived('/new/v1', $goal), '', 'they wait');
		$node->restart;
		$collector->clear_faults('/new/v1');
	}
	turn_publishing($node, 'on', $database) if $how{off};
	arrive('/new/v1', $goal, 1, 10, 'what waited goes to the new endpoint');
	publish($node, $database);
	is(arrived('/new/v1', $goal), join(' ', 1 .. 10), 'once');
	$collector->clear_faults('/v1');
	is(stat_of($node, 'foreign_records, outbox_records', $database), '0|0', 'nothing is foreign, and nothing left');
	turn_to($database, '/v1', $how{by_database});
	publish($node, $database);
	is(arrived('/v1', $goal), '', 'and nothing goes to the former one');
	return;
}

subtest 'endpoint changed by a reload' => sub { moves('reload') };
subtest 'endpoint changed by ALTER DATABASE' => sub { moves('database', by_database => 1) };
subtest 'endpoint changed by a reload, publishing off' => sub { moves('reload off', off => 1) };
subtest 'endpoint changed by ALTER DATABASE, publishing off' => sub { moves('database off', by_database => 1, off => 1) };
subtest 'endpoint changed by a reload, then a restart' => sub { moves('reload restart', restart => 1) };
subtest 'endpoint changed by ALTER DATABASE, then a restart' => sub { moves('database restart', by_database => 1, restart => 1) };
subtest 'endpoint changed by a reload, publishing off, then a restart' => sub { moves('reload off restart', off => 1, restart => 1) };
subtest 'endpoint changed by ALTER DATABASE, publishing off, then a restart' =>
	sub { moves('database off restart', by_database => 1, off => 1, restart => 1) };

# an endpoint that changed while the server was down is another's
turn_publishing($node, 'off', 'postgres');
track($node, 'postgres', 'stopped', 1, 10);
$node->stop;
$node->append_conf('postgresql.conf', collector_settings($collector, '/new/v1') . "absmartly.publishing = on\n");
$node->start;
await_foreign($node, 'postgres', 1, 'an endpoint that differs at the start makes records foreign');
is($node->safe_psql('postgres', 'SELECT absmartly_requeue()'), '10', 'absmartly_requeue() adopts them');
arrive('/new/v1', 'stopped', 1, 10, 'they arrive');

$node->stop;
done_testing();
