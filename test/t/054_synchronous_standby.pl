
# With a synchronous standby no goal is at the collector that a failover undoes: one whose commit is not on the standby, because
# the wait was cancelled or the server crashed meanwhile, is sent when the standby has it. Those who do not ask for the
# standby do not wait for it.

use strict;
use warnings;

use AbsmartlyMain qw(:DEFAULT arrived);
use AbsmartlyTest;
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

start_main(streaming => 1, settings => <<'EOT');
absmartly.publish_delay = 20ms
absmartly.refresh_interval = 1
max_prepared_transactions = 5
EOT
$node->safe_psql('postgres', <<'EOT');
CREATE TABLE orders (id int PRIMARY KEY);
CREATE TRIGGER track AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('order', 'user_id=id', 'id');
EOT
my $standby = start_standby($node, settings => "synchronous_standby_names = ''\nabsmartly.publishing = off");
configure($node, "synchronous_standby_names = '*'");
ok(await_sql($node, q{SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'}, '1'), 'a synchronous standby');

sub arrives
{
	my ($goal, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	await(sub { arrived($goal) });
	return is(arrived($goal), 1, $name);
}

sub track
{
	my ($goal) = @_;

	return qq{SELECT absmartly_track('{"user_id": 1}', '$goal')};
}

my $waiting = q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'};
my @sessions;

# Has a session wait for the standby at the commit of these statements.
sub wait_for_standby
{
	my ($query) = @_;
	my $before = sql($waiting);
	my $session = $node->background_psql('postgres', on_error_stop => 0);

	$session->query_until(qr/started/, "\\echo started\n$query;\n");
	push @sessions, $session;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(await_sql($node, $waiting, $before + 1), "a commit waits: $query");
}

# The waits are cancelled: the transactions are committed, and the standby does not have them.
sub cancel
{
	sql(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'});
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(await_sql($node, $waiting, '0'), 'they are cancelled');
}

# Sessions whose server may have gone.
sub end_sessions
{
	for my $session (splice @sessions)
	{
		eval { $session->quit };
	}
	return;
}

# Goals that do not ask for the standby are sent, with what was committed before them if that could be.
sub others_are_sent
{
	my ($goal) = @_;

	sql('SET synchronous_commit = local; ' . track($goal));
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return arrives($goal, "one that does not ask for the standby is sent: $goal");
}

#
# A standby that is there
#

sql(track("there $_")) for 1 .. 3;
is(sql('SELECT absmartly_publish() >= 0'), 't', 'publishing ends');
is(arrived("there $_"), 1, 'goals are sent') for 1 .. 3;
sql(q{SELECT absmartly_context_create('{"user_id": 1}'); SELECT absmartly_context_track('of context'); SELECT absmartly_context_publish()});
is(arrived('of context'), 1, 'and those of a session context');

#
# One that is away
#

$standby->stop;
wait_for_standby(track('cancelled'));
sql('SET synchronous_commit = local; BEGIN; ' . track('prepared') . q{; PREPARE TRANSACTION 'p'});
wait_for_standby(q{COMMIT PREPARED 'p'});
cancel();
end_sessions();
is(sql('SELECT count(*), bool_and(status = $$waiting$$) FROM absmartly_outbox'), '2|t', 'what the standby does not have is there and waits');
others_are_sent('meanwhile');
fails_with($node, "SELECT absmartly_publish('1 s');", '08006', qr/./, 'publishing does not come to its end');
my $xid = sql('SELECT pg_snapshot_xmax(pg_current_snapshot())');
my $fetches = stat_of($node, 'fetch_requests');
ok(await_sql($node, "SELECT fetch_requests > $fetches + 2 FROM absmartly_stat"), 'the worker goes on');
is(sql('SELECT pg_snapshot_xmax(pg_current_snapshot())'), $xid, 'and uses no transaction ids for what waits');
wait_for_standby(track('crashed'));
is(arrived($_), 0, "$_: it is not sent") for qw(cancelled prepared crashed);

# after a crash nobody waits any more
$node->stop('immediate');
end_sessions();
$node->start;
ok(wait_ready($node), 'after a crash');
is(sql('SELECT count(*) FROM absmartly_outbox'), '3', 'what waited for the standby is there, too');
others_are_sent('after the crash');
is(arrived($_), 0, "$_: it is not sent") for qw(cancelled prepared crashed);

# it comes back
$standby->start;
arrives($_, "$_: it is sent when the standby has it") for qw(cancelled prepared crashed);
sql('SELECT absmartly_publish()');
is(arrived($_), 1, "$_: once") for qw(cancelled prepared crashed);

# it is given up
$standby->stop;
wait_for_standby(track('given up'));
cancel();
end_sessions();
others_are_sent('others');
is(arrived('given up'), 0, 'it is not sent');
configure($node, "synchronous_standby_names = ''");
arrives('given up', 'it is when there is to be no standby');

#
# A failover in the middle of it all
#

$standby->start;
configure($node, "synchronous_standby_names = '*'");
ok(await_sql($node, q{SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'}, '1'), 'the standby is back');
my @clients = map {
	my $file = $node->basedir . "/orders$_.sql";

	append_to_file($file, join '', map { "INSERT INTO orders VALUES ($_);\n" } $_ * 100_000 .. $_ * 100_000 + 20_000);
	IPC::Run::start([ 'psql', '-X', '-q', '-d', $node->connstr('postgres'), '-f', $file ],
		'<', '/dev/null', '>', '/dev/null', '2>', '/dev/null');
} 1 .. 3;
ok(await(sub { arrived('order') > 100 }), 'orders come, and their goals are sent');
my $receiver = $standby->safe_psql('postgres', 'SELECT pid FROM pg_stat_wal_receiver');
kill 'STOP', $receiver;
for my $try (1 .. 3)
{
	ok(await_sql($node, $waiting, '3'), 'commits wait for the standby');
	sql(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'});
}
others_are_sent('in the end');
$node->stop('immediate');
eval { $_->finish } for @clients;
kill 'CONT', $receiver;
$standby->promote;
configure($standby, 'absmartly.publishing = on');
ok(wait_ready($standby), 'the standby is promoted');
my %there = map { $_ => 1 } split /\n/, $standby->safe_psql('postgres', 'SELECT id FROM orders');
my %had = map { $_->{properties}{id} => 1 } $collector->goals(space => '/v1', name => 'order');
is(join(' ', grep { !$there{$_} } sort keys %had), '', 'no goal is at the collector whose order the new primary does not have');
$standby->safe_psql('postgres', "SELECT absmartly_publish('$PATIENCE s')");
%had = map { $_->{properties}{id} => 1 } $collector->goals(space => '/v1', name => 'order');
is(join(' ', sort keys %had), join(' ', sort keys %there), 'and it delivers those of all that it has');
$standby->stop;

done_testing();
