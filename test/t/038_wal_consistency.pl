
# A server that compares the pages of its standby with its own finds them the same, whatever becomes of the outbox; and
# checksums of pages hold.

use strict;
use warnings;

use AbsmartlyTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $collector = start_collector(data => experiments(experiment('exp')));
my $primary = start_node('primary', collector => $collector, streaming => 1, init => ['--data-checksums'], settings => <<'EOT');
wal_consistency_checking = all
max_prepared_transactions = 4
hot_standby_feedback = on
autovacuum = off
absmartly.publish_delay = 20ms
absmartly.async_commit = off
EOT
ok(wait_ready($primary), 'ready');
my $standby = start_standby($primary);

sub sql
{
	my ($query) = @_;

	return $primary->safe_psql('postgres', $query);
}

sub track
{
	my ($goal, $number) = @_;

	return sprintf q{SELECT count(absmartly_track(jsonb_build_object('user_id', i), '%s', jsonb_build_object('text', repeat('x', 100)))) FROM generate_series(1, %d) AS i;},
		$goal, $number // 1;
}

sub emptied { return await_sql($primary, q{SELECT outbox_events FROM absmartly_stat}, '0') }

# Replay has come to where the primary is, and has seen nothing odd; the standby's sessions look at all rows, too, and leave
# their hint bits.
sub same
{
	my ($name) = @_;
	my $end = $primary->lsn('insert');

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	await(
		sub {
			my ($status, $replayed) = $standby->psql('postgres', "SELECT pg_last_wal_replay_lsn() >= '$end' FROM absmartly_stat");
			return $status != 0 || $replayed eq 't';
		});
	return ok(log_of($standby) !~ /inconsistent page|PANIC|FATAL:.*page/ && $standby->psql('postgres', 'SELECT 1') == 0, $name)
		|| die(join "\n", grep { /FATAL|PANIC|CONTEXT/ } split /\n/, log_of($standby));
}

ok(await_sql($standby, 'SELECT count(*) FROM absmartly_stat', '1'), 'the standby has it all');

# Single commits, read by others while they wait, so that their hint bits are set on one side and on the other.
ok(set_publishing($primary, 'off'), 'events are kept');
for (1 .. 10)
{
	sql(track('single') . track('single', 3));
	sql('BEGIN;' . track('aborted', 2) . 'ROLLBACK');
	sql(q{SELECT absmartly_treatment('{"user_id": 1}', 'exp', exposed_at => now())});
}
sql('SELECT count(*) FROM absmartly_outbox');
$standby->safe_psql('postgres', 'SELECT count(*) FROM absmartly_stat');
# on the same pages: one that has been undone after it was written, one that stays open, and commands with numbers
sql(q{BEGIN;} . track('undone', 2) . q{PREPARE TRANSACTION 'undone'});
sql(q{BEGIN;} . track('prepared', 2) . q{PREPARE TRANSACTION 'prepared'});
sql(q{BEGIN; CREATE TEMP TABLE t (n int); INSERT INTO t VALUES (1); INSERT INTO t VALUES (2); SAVEPOINT s;} . track('numbered', 2) . 'COMMIT');
sql(q{ROLLBACK PREPARED 'undone'});
same('events that wait');
configure($primary, 'absmartly.publishing = on');
ok(await_sql($primary, 'SELECT outbox_events FROM absmartly_stat', '0'), 'all are delivered but the open one');
same('delivered events');
sql(q{COMMIT PREPARED 'prepared'});
ok(emptied(), 'the open one, too');
same('a prepared transaction');

# dead letters: to the third heap, queued again, discarded
$collector->fault('/v1', { match => { method => 'PUT' }, reject_goal => 'refused', times => -1 });
sql(track('refused', 5) . track('fine', 5));
ok(await_sql($primary, 'SELECT dead_letters FROM absmartly_stat', '5'), 'there are dead letters');
same('dead letters');
$standby->safe_psql('postgres', 'SELECT count(*) FROM absmartly_dead_letters');
sql('SELECT absmartly_requeue()');
ok(await_sql($primary, 'SELECT dead_letters, outbox_events FROM absmartly_stat', '5|0'), 'refused again');
same('requeued events');
$collector->clear_faults('/v1');

# held by a context, then let go: so many that the third heap gets a new file, with the dead letters
my $file = sql(q{SELECT pg_relation_filenode('absmartly_outbox_parked')});
my $session = $primary->background_psql('postgres', timeout => 180);
$session->query_safe(q{SELECT absmartly_context_create('{"user_id": "1"}', NULL, NULL, '{"publish_delay": -1}')});
$session->query_safe(q{SELECT absmartly_context_wait_until_ready('60 s')});
for my $n (1 .. 3)
{
	$session->query_safe(qq{SELECT absmartly_context_track('held', jsonb_build_object('n', i, 'text', repeat('x', 200))) FROM generate_series(1, 4000) AS i});
	sql(q{SELECT absmartly_publish('60 s')});
	is(sql('SELECT held_records > 0, outbox_events FROM absmartly_stat'), 't|0', 'a pass moves them aside');
	same("held events, $n");
	$session->query_safe(q{SELECT absmartly_context_publish('60 s')});
	same("published events of a context, $n");
}
$session->quit;
ok(await_sql($primary, qq{SELECT pg_relation_filenode('absmartly_outbox_parked') <> $file}, 't'), 'the third heap has got a new file');
same('a new file');
is(sql('SELECT absmartly_discard()'), '5', 'the dead letters are discarded');
same('discarded events');

# heaps that grow are changed and truncated; rewritten and vacuumed by others
sql(track('many', 20_000)) for 1 .. 2;
sql('VACUUM absmartly_outbox_a, absmartly_outbox_b, absmartly_outbox_parked');
ok(emptied(), 'many are delivered');
same('many events');
sql("VACUUM FULL absmartly_outbox_$_") for qw(a b parked);
sql(track('after'));
ok(emptied(), 'delivery goes on');
ok(await_sql($primary, q{SELECT pg_relation_size('absmartly_outbox_a') + pg_relation_size('absmartly_outbox_b') < 128 * 8192}, 't'),
	'the heaps were truncated');
same('truncated heaps');

$standby->promote;
ok(wait_ready($standby), 'the standby is a primary');
$standby->safe_psql('postgres', track('promoted'));
ok(await_sql($standby, 'SELECT outbox_events FROM absmartly_stat', '0'), 'and delivers');
for my $node ($primary, $standby)
{
	$node->stop;
	command_ok([ 'pg_checksums', '--check', '--pgdata', $node->data_dir ], 'checksums of ' . $node->name);
}

done_testing();
