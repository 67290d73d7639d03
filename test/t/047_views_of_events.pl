
# The views of events show what is committed and not delivered, each event once, also while it moves, and whatever is in it.

use strict;
use warnings;

use AbsmartlyMain qw(:DEFAULT publish);
use AbsmartlyTest;
use IPC::Run qw(finish start);
use PostgreSQL::Test::Cluster;
use Test::More;

start_main(settings => <<'EOT');
absmartly.publishing = off
EOT

# A look must not show fewer events than the one before, since none is delivered, nor one of them twice.
sql(<<'EOT');
CREATE TABLE finished (who text);
CREATE TABLE looks (looks int, fewer int, twice int, most bigint);
CREATE PROCEDURE look_until(finishes int, statement text) LANGUAGE plpgsql AS $$
DECLARE
	looks int := 0;
	fewer int := 0;
	twice int := 0;
	last bigint := 0;
	n bigint;
	different bigint;
BEGIN
	LOOP
		EXECUTE statement INTO n, different;
		looks := looks + 1;
		fewer := fewer + (n < last)::int;
		twice := twice + (n > different)::int;
		last := n;
		EXIT WHEN (SELECT count(*) FROM finished) = finishes;
		PERFORM pg_stat_clear_snapshot();
	END LOOP;
	-- and what came after the last one
	EXECUTE statement INTO n, different;
	INSERT INTO looks VALUES (looks, fewer, twice + (n > different)::int, n);
END $$;
CREATE PROCEDURE expose(first int, count int) LANGUAGE plpgsql AS $$
BEGIN
	FOR unit IN first .. first + count - 1 LOOP
		PERFORM absmartly_unit_treatment(unit, 'exp');
		COMMIT;
		PERFORM pg_sleep(0.002);
	END LOOP;
	INSERT INTO finished VALUES ('expose');
END $$;
CREATE PROCEDURE hold(count int) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM absmartly_context_create('{"user_id": 1}', options => '{"publish_delay": -1}');
	FOR i IN 1 .. count LOOP
		PERFORM absmartly_context_track('held ' || i);
		COMMIT;
		PERFORM pg_sleep(0.002);
	END LOOP;
	INSERT INTO finished VALUES ('hold');
END $$;
CREATE PROCEDURE keep_delivering() LANGUAGE plpgsql AS $$
BEGIN
	WHILE NOT EXISTS (SELECT FROM finished) LOOP
		PERFORM absmartly_track('{"user_id": 2}', 'delivered');
		COMMIT;
		PERFORM pg_sleep(0.01);
	END LOOP;
END $$;
EOT

# Starts a statement in a session of its own.
sub begin
{
	my ($statement) = @_;
	my $output;

	return start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), '-c', $statement ], '<', \undef, '>&', \$output);
}

subtest 'from memory to the outbox' => sub {
	my @sessions = map { begin($_) } 'CALL expose(1, 1500)', 'CALL expose(10001, 1500)',
		q{CALL look_until(2, $$SELECT count(*), count(DISTINCT units) FROM absmartly_pending_events$$)},
		q{CALL look_until(2, $$SELECT coalesce(sum(exposures), 0), coalesce(sum(contexts), 0) FROM absmartly_outbox$$)};

	is((scalar grep { !finish($_) } @sessions), 0, 'events are made while others look');
	is(sql('SELECT DISTINCT fewer, twice, most FROM looks'), '0|0|3000', 'no look missed one, or showed one twice');
	cmp_ok(sql('SELECT min(looks) FROM looks'), '>', 10, 'some looks were taken');
	ok(await_sql($node, q{SELECT count(*) = 0 FROM absmartly_outbox WHERE place = 'memory'}), 'all have moved');
	cmp_ok(sql('SELECT count(*) FROM absmartly_outbox'), '<', 3000, 'and share records');
};

subtest 'when an event was recorded' => sub {
	is(sql(q{SELECT count(*) FROM absmartly_pending_events WHERE created < event_time}), '0', 'no event was recorded before it happened');
	is(sql(<<'EOT'), '0', 'each has its own time, not that of those it shares a record with');
SELECT count(*) FROM absmartly_pending_events JOIN absmartly_outbox AS o USING (record)
WHERE absmartly_pending_events.created < o.created OR (o.exposures = 1 AND absmartly_pending_events.created <> o.created)
EOT
	sql(<<'EOT');
CREATE TABLE times (unit int, before timestamptz, after timestamptz);
CREATE PROCEDURE expose_apart() LANGUAGE plpgsql AS $$
DECLARE
	before timestamptz[];
	after timestamptz[];
BEGIN
	FOR i IN 1 .. 20 LOOP
		before[i] := clock_timestamp();
		PERFORM absmartly_unit_treatment(20000 + i, 'exp');
		COMMIT;
		after[i] := clock_timestamp();
		PERFORM pg_sleep(0.01);
	END LOOP;
	-- what writes something itself does not go by way of memory
	INSERT INTO times SELECT 20000 + i, before[i], after[i] FROM generate_series(1, 20) AS i;
END $$;
CALL expose_apart();
EOT
	ok(await_sql($node, q{SELECT count(*) = 0 FROM absmartly_outbox WHERE place = 'memory'}), 'these have moved as well');
	is(sql(<<'EOT'), '20|20', 'each was recorded between what was done before and after');
SELECT count(*), count(*) FILTER (WHERE created BETWEEN before AND after + interval '1 ms')
FROM times JOIN absmartly_pending_events ON units[1] = absmartly_hash_unit(unit::text)
EOT
	isnt(sql(<<'EOT'), '20', 'though some share a record');
SELECT count(DISTINCT record) FROM times JOIN absmartly_pending_events ON units[1] = absmartly_hash_unit(unit::text)
EOT
};

subtest 'to where records stay' => sub {
	set_for_worker($node, publishing => 'on');
	sql('TRUNCATE finished, looks');
	publish();
	# what is held is moved, and stays while its session lasts
	my $session = $node->background_psql('postgres', on_error_stop => 1);
	my @lookers = map { begin($_) }
		q{CALL look_until(1, $$SELECT count(*), count(DISTINCT goal) FROM absmartly_pending_events WHERE goal LIKE 'held%'$$)},
		q{CALL look_until(1, $$SELECT coalesce(sum(goals), 0), count(DISTINCT record) FROM absmartly_outbox WHERE context_id IS NOT NULL$$)},
		'CALL keep_delivering()';

	$session->query_safe('CALL hold(1500)');
	is((scalar grep { !finish($_) } @lookers), 0, 'events are held while others look');
	is(sql('SELECT DISTINCT fewer, twice, most FROM looks'), '0|0|1500', 'no look missed one, or showed one twice');
	ok(sql(q{SELECT count(*) FROM absmartly_outbox WHERE place = 'parked'}) > 0, 'some have moved meanwhile');

	# a snapshot of before the move
	my $old = $node->background_psql('postgres', on_error_stop => 1);
	$old->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
	$session->query_safe(q{SELECT absmartly_context_track('late')});
	sql(qq{SELECT absmartly_track('{"user_id": 2}', 'delivered'); SELECT absmartly_publish('$PATIENCE s')});
	ok(await_sql($node, q{SELECT count(*) = 1501 FROM absmartly_pending_events WHERE place = 'parked'}), 'one more has moved');
	is($old->query_safe('SELECT count(*), count(DISTINCT goal) FROM absmartly_pending_events'), '1501|1501', 'an old snapshot hides nothing');
	$old->quit;
	$session->quit;
	ok(await_sql($node, 'SELECT count(*) = 0 FROM absmartly_pending_events'), 'what was held is delivered in the end');
	set_for_worker($node, publishing => 'off');
};

subtest 'a look keeps nobody waiting' => sub {
	my $session = $node->background_psql('postgres', on_error_stop => 1);

	$session->query_safe('BEGIN; SELECT count(*) FROM absmartly_outbox; SELECT count(*) FROM absmartly_pending_events');
	is(sql(q{SELECT count(*) FROM pg_locks WHERE relation::regclass::text LIKE 'absmartly_outbox_%' AND mode <> 'RowExclusiveLock'}),
		'0', 'a transaction that has looked locks no heap');
	$session->quit;
};

subtest 'whatever is in an event' => sub {
	sql(<<'EOT');
CREATE TABLE notes (id int, note json);
CREATE TRIGGER noted AFTER INSERT ON notes FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('noted', 'user_id=id', 'note');
INSERT INTO notes VALUES
	(1, '"nul \u0000."'), (2, '"\ud83d\ude00 \ud83d alone"'), (3, '"\ude00 alone"'), (4, '"no escape: \\u0000"'),
	(5, '{"\u0000": ["\u0000", "\u0000\ud83d"]}'), (6, '"\u00e9 \"quoted\" \\"'), (7, '"\ud83d\u0000"'), (8, '"\ud83d\\"');
EOT
	is(sql(<<'EOT'), <<'EOT' =~ s/\n\z//r, 'each is shown, and its members can be taken out');
SELECT n, properties ->> 'note' FROM absmartly_pending_events JOIN generate_series(1, 8) AS n ON units[1] = absmartly_hash_unit(n::text)
WHERE goal = 'noted' AND properties::jsonb IS NOT NULL ORDER BY n
EOT
1|nul �.
2|😀 � alone
3|� alone
4|no escape: \u0000
5|{"\ufffd": ["\ufffd", "\ufffd\ufffd"]}
6|é "quoted" \
7|��
8|�\
EOT
	set_for_worker($node, publishing => 'on');
	publish();
	is((scalar grep { $_->{name} eq 'noted' && $_->{properties}{note} eq "nul \0." } $collector->goals), 1, 'the collector gets what was recorded');
};

$node->stop;
done_testing();
