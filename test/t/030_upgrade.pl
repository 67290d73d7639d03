
# pg_upgrade takes along what waits in the outbox, and what is parked there; a dump takes none of it.

use strict;
use warnings;

use AbsmartlyTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $collector = start_collector(data => experiments(experiment('exp')));
my %options = (collector => $collector, settings => "absmartly.publish_delay = 100ms\n");
my $old = start_node('old', %options);
ok(wait_ready($old), 'ready');

sub track
{
	my ($node, $goal, $number) = @_;

	$node->safe_psql('postgres', <<"EOT");
SELECT count(absmartly_track(jsonb_build_object('user_id', i), '$goal', jsonb_build_object('n', i))) FROM generate_series(1, $number) AS i
EOT
	return;
}

sub arrived
{
	my ($goal) = @_;

	return join ' ', sort { $a <=> $b } map { $_->{properties}{n} } $collector->goals(space => '/v1', name => $goal);
}

$collector->fault('/v1', { match => { method => 'PUT' }, reject_goal => 'refused', times => -1 });
track($old, 'refused', 3);
ok(await_sql($old, 'SELECT dead_letters FROM absmartly_stat', '3'), 'there are dead letters');
$collector->clear_faults('/v1');
ok(set_publishing($old, 'off'), 'events are kept');
track($old, 'waiting', 500);
is(stat_of($old, 'outbox_events'), '500', 'some wait');

my $dump = $old->basedir . '/dump.sql';
$old->command_ok([ 'pg_dump', '--file', $dump, $old->connstr('postgres') ], 'a dump');
unlike(slurp_file($dump), qr/absmartly_outbox|REFRESH/, 'knows nothing of the outbox');
$old->stop;

my $new = start_node('new', %options, start => 0);
my $bindir = $old->config_data('--bindir');
chdir(PostgreSQL::Test::Utils::tempdir()) or die $!;
command_ok([ 'pg_upgrade', '--no-sync', '--old-datadir', $old->data_dir, '--new-datadir', $new->data_dir, '--old-bindir', $bindir,
	'--new-bindir', $bindir, '--socketdir', $new->host, '--old-port', $old->port, '--new-port', $new->port ], 'pg_upgrade works');
$new->start;
ok(wait_ready($new), 'the new server is ready');
ok(await_sql($new, 'SELECT outbox_events FROM absmartly_stat', '0'), 'it sends what waited');
is(arrived('waiting'), join(' ', 1 .. 500), 'all of it, once');
is(stat_of($new, 'foreign_records, dead_letters'), '0|3', 'nothing is foreign, and the dead letters are there');
is($new->safe_psql('postgres', q{SELECT count(*), sum(reltoastrelid::bigint) FROM pg_class WHERE relname ~ '^absmartly_outbox_(a|b|parked)$'}),
	'3|0', 'the heaps have no TOAST tables');
is($new->safe_psql('postgres', 'SELECT absmartly_requeue()'), '3', 'they can be queued again');
track($new, 'new', 100);
ok(await_sql($new, 'SELECT outbox_events FROM absmartly_stat', '0'), 'and sent, as new ones');
is(arrived('refused'), '1 2 3', 'those refused before');
is(arrived('new'), join(' ', 1 .. 100), 'and the new ones');

$new->stop;
done_testing();
