
# What a commit needs is taken when events are recorded, what it waits for can be ended, and room in the outbox is what
# nothing waits in.

use strict;
use warnings;

use AbsmartlyMain qw(:DEFAULT arrived publish);
use AbsmartlyTest;
use Test::More;

start_main(settings => <<'EOT');
absmartly.publish_delay = 0
absmartly.exposure_dedup_interval = 0
autovacuum = off
max_locks_per_transaction = 10
max_prepared_transactions = 5
EOT

my @heaps = map { "absmartly_outbox_$_" } qw(a b);

sub track
{
	my ($goal, $number, $bytes) = @_;

	return sprintf q{SELECT count(absmartly_track(jsonb_build_object('user_id', i), '%s', jsonb_build_object('text', i || repeat('x', %d)))) FROM generate_series(1, %d) AS i},
		$goal, $bytes // 10, $number // 1;
}

#
# A full lock table
#

sql(join '', map { "CREATE TABLE filler_$_ (id int);" } 1 .. 300);
sql(<<'EOT');
CREATE FUNCTION fill(mode text DEFAULT 'ROW EXCLUSIVE') RETURNS int LANGUAGE plpgsql AS $$
DECLARE n int := 0; failed int := 0;
BEGIN
	FOR key IN 0 .. 100000 LOOP
		BEGIN
			-- what follows is looked up while there is room for that
			IF key = 0 THEN RAISE out_of_memory; END IF;
			IF key <= 300 AND mode <> '' THEN EXECUTE format('LOCK TABLE filler_%s IN %s MODE', key, mode);
			ELSE PERFORM pg_advisory_xact_lock(key); END IF;
			n := n + 1;
		EXCEPTION WHEN out_of_memory THEN
			-- what is free is in several lists
			failed := failed + 1;
			EXIT WHEN failed > 1000;
		END;
	END LOOP;
	RETURN n;
END $$;
EOT

# What the server looks up for a statement takes locks, too, but for the first time only.
sub warm
{
	my ($fill) = @_;

	return "BEGIN; SAVEPOINT s; ROLLBACK TO s; " . track('warm') . "; $fill; SELECT 'warm'; ROLLBACK;";
}

for my $case (
	[ 'by itself', 'SELECT fill()', 'in_itself' ],
	[ 'by itself, with no relation', "SELECT fill('')", 'no_relation' ],
	[ 'after all advisory locks were released', 'SELECT pg_advisory_unlock_all(); SELECT fill()', 'unlocked' ])
{
	my ($name, $fill, $goal) = @$case;

	subtest "a transaction that fills the lock table $name" => sub {
		my ($status, $output, $error) = $node->psql('postgres',
			warm($fill) . 'BEGIN; ' . track($goal) . "; $fill; COMMIT; SELECT 'committed'", on_error_stop => 1);
		like($output, qr/committed/, 'commits') or diag($error);
		publish();
		is(arrived($goal), 1, 'and its goal arrives');
	};
}

subtest 'a savepoint does not take it away' => sub {
	my ($status, $output, $error) = $node->psql('postgres',
		warm('SELECT fill()') . 'BEGIN; SAVEPOINT s; ' . track('undone') . '; ROLLBACK TO s; ' . track('savepoint')
		. "; SELECT fill(); COMMIT; SELECT 'committed'", on_error_stop => 1);
	like($output, qr/committed/, 'it commits') or diag($error);
	publish();
	is(arrived('savepoint') . arrived('undone'), '10', 'and one goal arrives');
};

subtest 'a lock table that another session has filled' => sub {
	my ($writer, $filler) = map { $node->background_psql('postgres', on_error_stop => 0) } 1 .. 2;
	my $late = $node->background_psql('postgres', on_error_stop => 0);

	$_->query_safe(warm('')) for $writer, $late;
	$writer->query_safe('BEGIN; ' . track('others_fill', 200, 500));
	$late->query_safe('BEGIN');
	$filler->query_safe("BEGIN; SELECT fill('')");
	$late->query(track('too_late'));
	like($late->{stderr}, qr/out of shared memory/, 'who records then is told so');
	$late->{stderr} = '';
	$late->query('ROLLBACK');
	$writer->query('COMMIT');
	is($writer->{stderr}, '', 'who has recorded before commits');
	$filler->query('ROLLBACK');
	$_->quit for $writer, $filler, $late;
	publish();
	is(arrived('others_fill'), 200, 'its goals arrive');
	is(arrived('too_late'), 0, 'and no other');
};

# The page is looked at and left again, with what tells that all see it: nothing of that is kept.
subtest 'a full lock table, and a page that all see' => sub {
	ok(set_publishing($node, 'off'), 'events wait');
	sql(track('seen', 1, 5000));
	sql('VACUUM absmartly_outbox_a, absmartly_outbox_b');
	my ($status, $output, $error) = $node->psql('postgres',
		warm('SELECT fill()') . 'BEGIN; ' . track('after_it', 1, 6000) . "; SELECT fill(); COMMIT; SELECT 'committed'", on_error_stop => 1);
	like($output, qr/committed/, 'a transaction commits');
	is($error, '', 'without a word');
	ok(set_publishing($node, 'on'), 'events are sent');
	publish();
	is(arrived('seen') . arrived('after_it'), '11', 'each once');
};

my $places = q{SELECT count(*) FROM pg_locks WHERE locktype = 'userlock' AND pid};
is((split /\n/, sql('BEGIN; ' . track('places') . "; COMMIT; $places = pg_backend_pid()"))[-1], '3', 'places stay with the session');
ok(await_sql($node, q{SELECT count(*) FROM pg_locks WHERE locktype = 'userlock'}, '0'), 'and end with it');
sql('BEGIN; ' . track('prepared') . q{; PREPARE TRANSACTION 'prepared'});
is(sql("$places IS NULL"), '0', 'and not with a transaction that is prepared');
is(sql(q{SELECT count(*) FROM pg_locks WHERE relation::regclass::text LIKE 'absmartly_outbox%' AND mode = 'RowExclusiveLock'}), '1', 'which keeps its heap');
sql(q{COMMIT PREPARED 'prepared'});
publish();
is(arrived('prepared'), 1, 'it arrives');

# A transaction that lasts does not keep the outbox from being emptied.
subtest 'a transaction that has recorded, and lasts' => sub {
	my $session = $node->background_psql('postgres');

	$session->query_safe('BEGIN; ' . track('lasting'));
	is(sql(q{SELECT count(*) FROM pg_locks WHERE relation::regclass::text LIKE 'absmartly_outbox%'}), '0', 'locks no heap');
	sql(track('meanwhile', 2000, 500)) && publish() for 1 .. 3;
	ok(await_sql($node, "SELECT $OUTBOX_FILES < 64 * 8192"), 'the files are emptied meanwhile');
	$session->query_safe('COMMIT');
	$session->quit;
	publish();
	is(arrived('lasting'), 1, 'and it arrives');
};

#
# The temporary file
#

subtest 'no room for the temporary file' => sub {
	my $failed = 0;

	ok(set_publishing($node, 'off'), 'events wait');
	for my $limit (map { 4080 + 4 * $_ } 0 .. 15)
	{
		my ($status, $output, $error) = $node->psql('postgres', "SET temp_file_limit = $limit; BEGIN; " . track('spilled', 4200, 1000)
			. "; \\echo recorded\nCOMMIT; \\echo committed", on_error_stop => 1);
		$failed++ if $error ne '';
		like("$output $error", qr/recorded\ncommitted|temp_file_limit/, "$limit kB");
		unlike($output, qr/recorded(?!\ncommitted)/, 'is enough for the commit, if for recording');
	}
	cmp_ok($failed, '>', 0, 'some were too small');
	cmp_ok($failed, '<', 16, 'and some were not');
	is(sql('SELECT outbox_events FROM absmartly_stat'), 4200 * (16 - $failed), 'what was committed is there');
};

#
# Heaps that somebody has locked
#

subtest 'both heaps are locked' => sub {
	my $locker = $node->background_psql('postgres');

	$locker->query_safe('BEGIN; ' . join ' ', map { "ALTER MATERIALIZED VIEW $_ OWNER TO CURRENT_USER;" } @heaps, 'absmartly_outbox_parked');
	is(sql("SET statement_timeout = '$PATIENCE s'; SELECT outbox_records IS NULL AND outbox_bytes > 0 AND dead_letters IS NULL FROM absmartly_stat"), 't',
		'absmartly_stat does not wait, and tells what it can');
	my (undef, undef, $error) = $node->psql('postgres', "SET statement_timeout = '1s'; BEGIN; " . track('in_vain') . '; COMMIT');
	like($error, qr/canceling statement due to statement timeout/, 'statement_timeout ends a COMMIT');
	(undef, undef, $error) = $node->psql('postgres', "SET statement_timeout = '1s'; " . track('in_vain'));
	like($error, qr/canceling statement due to statement timeout/, 'also that of a single statement');
	(undef, undef, $error) = $node->psql('postgres', "SET lock_timeout = '1s'; " . track('in_vain'));
	like($error, qr/canceling statement due to lock timeout/, 'so does lock_timeout');
	for my $how ('pg_cancel_backend', 'pg_terminate_backend')
	{
		my $session = $node->background_psql('postgres', on_error_stop => 0);
		my $pid = $session->query_safe('SELECT pg_backend_pid()');

		$session->query_until(qr/started/, "BEGIN; " . track('in_vain') . ";\n\\echo started\nCOMMIT;\n");
		ok(await_sql($node, "SELECT wait_event_type FROM pg_stat_activity WHERE pid = $pid", 'Lock'), 'a COMMIT waits');
		sql("SELECT $how($pid)");
		ok(await_sql($node, "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND wait_event_type = 'Lock'", '0'), "$how() ends it");
		eval { $session->quit };
	}
	$locker->query_safe('ROLLBACK');
	$locker->quit;
	is(sql("SET statement_timeout = '$PATIENCE s'; BEGIN; " . track('later') . "; COMMIT; SELECT 'committed'"), "1\ncommitted", 'then one goes on');
	ok(set_publishing($node, 'on'), 'it is sent');
	is(arrived('later') . arrived('in_vain'), '10', 'as are none of the others');
};

#
# Room in the outbox: in the live lane, so with transactions that are not bulk
#

# What is left of outbox_max_size, when exposures are recorded.
sub are_taken
{
	my ($name) = @_;
	my $before = stat_of($node, 'exposures_dropped');

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sql("SELECT absmartly_unit_treatment(i, 'exp') FROM generate_series(1, 100) AS i");
	return is(stat_of($node, 'exposures_dropped'), $before, $name);
}

configure($node, "absmartly.outbox_max_size = '1MB'\nabsmartly.durability = transaction");
is(sql('SHOW absmartly.outbox_max_size'), '1MB', 'the outbox may have 1 MB');

subtest 'a session that has looked at the outbox' => sub {
	my $session = $node->background_psql('postgres');

	$session->query_safe('BEGIN; SELECT count(*) FROM absmartly_outbox_a, absmartly_outbox_b');
	for (1 .. 5)
	{
		sql(track('looked_at', 400, 1000));
		publish();
		are_taken('exposures are taken while the files can not shrink');
	}
	cmp_ok(sql("SELECT $OUTBOX_FILES"), '>', 1024 * 1024, 'they are larger than that');
	cmp_ok(stat_of($node, 'outbox_bytes'), '<', 600_000, 'but what waits is not');
	$session->quit;
};

my $fails = <<'EOT';
CREATE TEMPORARY TABLE one (id int PRIMARY KEY) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE other (id int REFERENCES one);
EOT
for my $case (
	[ 'fails at its end', "BEGIN; $fails " . track('failed', 400, 5000) . '; COMMIT' ],
	[ 'is prepared and rolled back', 'BEGIN; ' . track('failed', 400, 5000) . "; PREPARE TRANSACTION 'two'; ROLLBACK PREPARED 'two'" ])
{
	my ($name, $script) = @$case;

	subtest "a transaction that $name" => sub {
		my $session = $node->background_psql('postgres');

		# nobody shall make room by truncating
		$session->query_safe('BEGIN; SELECT count(*) FROM absmartly_outbox_a, absmartly_outbox_b');
		$node->psql('postgres', $script);
		cmp_ok(sql("SELECT $OUTBOX_FILES"), '>', 1024 * 1024, 'has filled the files');
		ok(await_sql($node, 'SELECT outbox_bytes < 600000 FROM absmartly_stat'), 'what it has written does not count');
		are_taken('and exposures are taken');
		$session->quit;
		ok(await_sql($node, "SELECT $OUTBOX_FILES < 64 * 8192"), 'the files shrink then');
		is(arrived('failed'), 0, 'nothing of it is sent');
	};
}

subtest 'what waits counts' => sub {
	my $before = stat_of($node, 'exposures_dropped');

	ok(set_publishing($node, 'off'), 'events wait');
	sql(track('waiting', 400, 5000));
	cmp_ok(stat_of($node, 'outbox_bytes'), '>', 1024 * 1024, 'more than the outbox may have');
	sql("SELECT absmartly_unit_treatment(i, 'exp') FROM generate_series(1, 100) AS i");
	is(stat_of($node, 'exposures_dropped'), $before + 100, 'so exposures are dropped');
	ok(set_publishing($node, 'on'), 'they are sent');
	ok(await_sql($node, 'SELECT outbox_bytes < 600000 FROM absmartly_stat'), 'then there is room');
	are_taken('and exposures are taken again');
};

$node->stop;
done_testing();
