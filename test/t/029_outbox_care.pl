
# What the outbox owes to the disk and to the server's other inhabitants.

use strict;
use warnings;

use AbsmartlyMain qw(:DEFAULT arrived publish);
use AbsmartlyTest;
use Test::More;

start_main(settings => <<'EOT');
absmartly.publish_delay = 0
autovacuum = off
bgwriter_lru_maxpages = 0
fsync = on
EOT

sub track
{
	my ($goal, $number) = @_;

	return sprintf q{SELECT count(absmartly_track(jsonb_build_object('user_id', i), '%s')) FROM generate_series(1, %d) AS i},
		$goal, $number // 1;
}

# A goal that the collector has received must not be undone by a crash, however lazily its transaction was committed.
subtest 'a goal is sent when its commit is on disk' => sub {
	ok(set_publishing($node, 'off'), 'events wait');
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my ($writer) = sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'});

	stop_asleep($node, $writer);
	$session->query_safe('SET synchronous_commit = off; ' . track('lazy'));
	my $committed = $session->query_safe('SELECT pg_current_wal_insert_lsn()');

	# a transaction that fails after it has written to the outbox: the page is younger than the commit
	$session->query(<<"EOT");
BEGIN;
CREATE TEMPORARY TABLE one (id int PRIMARY KEY) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE other (id int REFERENCES one);
@{[ track('failed') ]};
COMMIT;
EOT
	like($session->{stderr}, qr/unsupported ON COMMIT and foreign key combination/, 'a transaction fails at its end');
	$session->{stderr} = '';
	is(sql("SELECT pg_current_wal_flush_lsn() < '$committed'"), 't', 'the commit is not on disk');

	$collector->fault('/v1', { match => { method => 'PUT' }, hang => 1, times => -1 });
	configure($node, "absmartly.publishing = on\nabsmartly.request_timeout = 1s");
	ok($collector->wait_for_request(method => 'PUT', state => 'pending'), 'the goal is on its way');
	is(sql("SELECT pg_current_wal_flush_lsn() >= '$committed'"), 't', 'and its commit on disk');

	kill 'CONT', $writer;
	$session->quit;
	$collector->clear_faults('/v1');
	# from here on only a collector that is very slow gets something twice
	configure($node, 'absmartly.request_timeout = 10h');
	ok(set_publishing($node, 'on'), 'it is delivered');
	is(arrived('failed'), 0, 'and the one that failed is not');
};

subtest 'the heap of parked records is emptied' => sub {
	my $size = q{SELECT pg_relation_size('absmartly_outbox_parked') > 0};

	ok(await_sql($node, $size, 'f'), 'it is empty');
	sql('CREATE TABLE orders AS SELECT i AS id FROM generate_series(1, 1000) AS i; CREATE UNIQUE INDEX ON orders (id)');
	sql(q{CALL absmartly_backfill_goals('orders', 'id', 'filled', 'user_id=id', filter => 'id IS NOT NULL', chunk => 100)});
	my $one_page = q{SELECT pg_relation_size('absmartly_outbox_parked') / current_setting('block_size')::int};
	is(sql($one_page), '1', 'a backfill leaves in it that it is finished');
	is(sql('SELECT name, state, rows FROM absmartly_backfills'), 'goal filled of public.orders by id|finished|1000', 'and nothing else');
	sql("SELECT absmartly_publish('$PATIENCE s')");
	is(arrived('filled'), 1000, 'whose events were sent');

	$collector->fault('/v1', { match => { method => 'PUT' }, status => 400, times => 1 });
	sql(track('refused'));
	ok(await_sql($node, 'SELECT dead_letters FROM absmartly_stat', '1'), 'it has a dead letter');
	is(sql('SELECT absmartly_discard()'), '1', 'which is dropped');
	is(sql(q{SELECT count(*) FROM absmartly_outbox_parked WHERE status <> 1}), '1', 'then it has only that again');
};

# The worker does not look at pages again that it is through with, unless a writer says that something came to them.
subtest 'a row on a page that was done with' => sub {
	my $deliver = sub { sql($_[0]); sql("SELECT absmartly_publish('$PATIENCE s')") };

	# writers begin with the first heap
	$node->restart;
	ok(wait_ready($node), 'ready again');
	my ($reader, $locker) = map { $node->background_psql('postgres') } 1 .. 2;
	$reader->query_safe('BEGIN; SELECT count(*) FROM absmartly_outbox_a');
	# more in a transaction would be bulk
	$deliver->(<<'EOT') for 1 .. 2;
SELECT absmartly_track(jsonb_build_object('user_id', i), 'many', jsonb_build_object('text', repeat('x', 600))) FROM generate_series(1, 500) AS i
EOT
	is(arrived('many'), 1000, 'many are delivered');
	$deliver->(track('another one')) for 1 .. 3;
	is(sql(q{SELECT pg_relation_size('absmartly_outbox_a') > 64 * 8192, pg_relation_size('absmartly_outbox_b') > 0}), 't|t',
		'writers have left the heap, which a reader keeps');

	$locker->query_safe('BEGIN; ALTER MATERIALIZED VIEW absmartly_outbox_b OWNER TO CURRENT_USER');
	sql(track('late'));
	$locker->query_safe('ROLLBACK');
	ok(await(sub { arrived('late') }), 'what comes to it is delivered');
	is(arrived('late'), 1, 'once');
	$_->quit for $reader, $locker;
	ok(await_sql($node, "SELECT $OUTBOX_FILES < 64 * 8192"), 'then the heap is emptied');
};

# What another version, or a broken disk, may leave behind.  SQL lets nobody write rows like that, but for a trick.
subtest 'records that can not be read' => sub {
	my $outbox = q{oid = 'absmartly_outbox_a'::regclass};
	my $offset = -s $node->logfile;
	my $parked = q{SELECT string_agg(status || ' ' || record || ' ' || (note <> ''), ', ' ORDER BY record) FROM absmartly_outbox};

	ok(set_publishing($node, 'off'), 'events wait');
	# writers begin with the first heap
	$node->restart;
	sql(track('readable', 3));
	sql(<<"EOT");
BEGIN;
CREATE TEMPORARY TABLE crafted AS SELECT * FROM absmartly_outbox_a WHERE status = 0;
CREATE TEMPORARY TABLE damaged AS TABLE crafted;
ALTER TABLE crafted ALTER COLUMN payload SET STORAGE PLAIN;
UPDATE pg_class SET relkind = 'r', relhasrules = false WHERE $outbox;
UPDATE crafted SET record = 100, chunk = 0, chunks = 2, payload = set_byte(payload, 0, 99) || repeat('x', 6000)::bytea;
INSERT INTO absmartly_outbox_a TABLE crafted;
UPDATE crafted SET chunk = 1;
INSERT INTO absmartly_outbox_a TABLE crafted;
UPDATE damaged SET record = 200, payload = substr(payload, 1, length(payload) - 1);
INSERT INTO absmartly_outbox_a TABLE damaged;
UPDATE pg_class SET relkind = 'm', relhasrules = true WHERE $outbox;
COMMIT;
EOT
	ok(set_publishing($node, 'on'), 'they are sent');
	is(arrived('readable'), 3 + 2, 'also what can be read of one that is damaged');
	is(sql(q{SELECT count(*) FROM absmartly_outbox WHERE status = 'unreadable'}), '2', 'and all is kept of what can not');
	my $log = substr(log_of($node), $offset);
	like($log, $_, 'as the log says') for qr/format that this version does not know, 1 so far/, qr/a record of events is damaged/;

	# as VACUUM FULL may leave them
	my $heap = q{oid = 'absmartly_outbox_parked'::regclass};
	sql(<<"EOT");
BEGIN;
UPDATE pg_class SET relkind = 'r', relhasrules = false WHERE $heap;
CREATE TEMPORARY TABLE chunks AS SELECT * FROM absmartly_outbox_parked WHERE chunks = 2 AND status <> 1;
ALTER TABLE chunks ALTER COLUMN payload SET STORAGE PLAIN;
DELETE FROM absmartly_outbox_parked WHERE chunks = 2 AND status <> 1;
INSERT INTO absmartly_outbox_parked SELECT * FROM chunks ORDER BY chunk DESC;
UPDATE pg_class SET relkind = 'm', relhasrules = true WHERE $heap;
COMMIT;
EOT
	my $chunks = q{SELECT string_agg(chunk || ' ' || status, ', ' ORDER BY ctid) FROM absmartly_outbox_parked WHERE chunks = 2 AND status <> 1};
	my $were = sql($chunks);
	like($were, qr/^1 (\d+), 0 \1$/, 'the rows of one lie in another order');
	is(sql('SELECT absmartly_requeue()'), '3', 'one of them can be queued again');
	is(sql($chunks), $were, 'the other one is left as it was');
	sql("SELECT absmartly_publish('$PATIENCE s')");
	is(arrived('readable'), 3 + 2 + 2, 'and is sent as far as it goes');
	is(sql(q{SELECT count(*) FROM absmartly_outbox WHERE status = 'unreadable'}), '2', 'both are kept again');
	is(sql('SELECT absmartly_discard()'), '6', 'and are dropped');
	is(sql(q{SELECT count(*) FROM absmartly_outbox_parked WHERE status NOT IN (1, 5)}), '0', 'then nothing is left of them');
};

# Rows are written and read as those of heaps, whatever new tables are.
subtest 'default_table_access_method' => sub {
	sql('CREATE DATABASE other');
	sql('CREATE ACCESS METHOD other TYPE TABLE HANDLER heap_tableam_handler', 'other');
	sql('SET default_table_access_method = other; CREATE EXTENSION absmartly', 'other');
	is(sql(q{SELECT string_agg(DISTINCT amname, ',') FROM pg_class AS c JOIN pg_am AS a ON a.oid = c.relam WHERE relkind = 'm'}, 'other'),
		'heap', 'is not that of the outbox');
};

$node->stop;
done_testing();
