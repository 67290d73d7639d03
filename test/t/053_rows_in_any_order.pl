
# VACUUM FULL may begin in the midst of a heap, so that the rows of a record do not lie in their order: the views show
# such a record nevertheless, it is delivered, and a backfill is known to be finished.

use strict;
use warnings;

use AbsmartlyTest;
use PostgreSQL::Test::Cluster;
use Test::More;

# a heap that is large, compared with this, is read from where others are
my $collector = start_collector(data => experiments(experiment('exp')));
my $node = start_node('main', collector => $collector, settings => <<'EOT');
absmartly.publishing = off
shared_buffers = 2MB
EOT

ok(wait_ready($node), 'ready');
$node->safe_psql('postgres', <<'EOT');
DO $$
BEGIN
	FOR i IN 1 .. 60 LOOP
		PERFORM absmartly_track('{"user_id": 1}', 'large', jsonb_build_object('n', i, 'text', repeat('x', 100000)));
		COMMIT;
	END LOOP;
END $$
EOT
my $look = q{SELECT count(*), count(DISTINCT properties->>'n'), min(length(properties->>'text')) FROM absmartly_pending_events};
is($node->safe_psql('postgres', $look), '60|60|100000', 'events of many rows wait');

# Has VACUUM FULL begin where this scan has ended. Gives whether a record's first row is not there.
sub tear
{
	my ($heap) = @_;

	$node->safe_psql('postgres', "SELECT count(*) FROM (SELECT FROM $heap LIMIT 100) AS head");
	$node->safe_psql('postgres', "VACUUM FULL $heap");
	return $node->safe_psql('postgres', "SET synchronize_seqscans = off; SELECT (SELECT chunk FROM $heap LIMIT 1) > 0") eq 't';
}

my @heaps = grep { $node->safe_psql('postgres', "SELECT pg_relation_size('$_') > 150 * 8192") eq 't' } 'absmartly_outbox_a', 'absmartly_outbox_b';
cmp_ok(scalar(grep { tear($_) } @heaps), '>', 0, 'a heap begins in the midst of a record');
is($node->safe_psql('postgres', $look), '60|60|100000', 'all events are shown');

configure($node, 'absmartly.publishing = on');
ok(await_sql($node, 'SELECT count(*) FROM absmartly_pending_events', '0'), 'and delivered');
is(join(' ', sort { $a <=> $b } map { $_->{properties}{n} } $collector->goals(space => '/v1', name => 'large')), join(' ', 1 .. 60), 'each once');

subtest 'backfills whose records are large' => sub {
	my $call = q{SET client_min_messages = error; CALL absmartly_backfill_goals('orders', 'id', 'filled', 'user_id=id', name => '%s');};
	my @names = map { "$_ " . 'x' x 36000 } 1 .. 40;
	my $known = q{SELECT count(*), min(length(name)), max(state) FROM absmartly_backfills WHERE state = 'finished'};

	$node->safe_psql('postgres', 'CREATE TABLE orders AS SELECT 1 AS id; CREATE UNIQUE INDEX ON orders (id)');
	$node->safe_psql('postgres', sprintf $call, $_) for @names;
	is($node->safe_psql('postgres', $known), '40|36002|finished', 'all are known');
	$node->safe_psql('postgres', 'SELECT count(*) FROM (SELECT FROM absmartly_outbox_parked LIMIT 100) AS head');
	is($node->safe_psql('postgres', $known), '40|36002|finished', 'also to a scan that begins in their midst');
	ok(tear('absmartly_outbox_parked'), 'the heap begins in the midst of a record');
	is($node->safe_psql('postgres', $known), '40|36002|finished', 'all are known still');
	my $done = grep { ($node->psql('postgres', sprintf $call, $_))[2] =~ /is finished/ } @names;
	is($done, 40, 'and none is done again');
};

$node->stop;
done_testing();
