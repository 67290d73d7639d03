
# VACUUM FULL may begin in the midst of a heap, so that the rows of a record do not lie in their order: the views show
# such a record nevertheless, and it is delivered.

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

my @heaps = grep { $node->safe_psql('postgres', "SELECT pg_relation_size('$_') > 150 * 8192") eq 't' } 'absmartly_outbox_a', 'absmartly_outbox_b';
my $torn = 0;
for my $heap (@heaps)
{
	$node->safe_psql('postgres', "SELECT count(*) FROM (SELECT FROM $heap LIMIT 100) AS first");
	$node->safe_psql('postgres', "VACUUM FULL $heap");
	$torn += $node->safe_psql('postgres', "SET synchronize_seqscans = off; SELECT (SELECT chunk FROM $heap LIMIT 1) > 0") eq 't';
}
cmp_ok($torn, '>', 0, 'a heap begins in the midst of a record');
is($node->safe_psql('postgres', $look), '60|60|100000', 'all events are shown');

configure($node, 'absmartly.publishing = on');
ok(await_sql($node, 'SELECT count(*) FROM absmartly_pending_events', '0'), 'and delivered');
is(join(' ', sort { $a <=> $b } map { $_->{properties}{n} } $collector->goals(space => '/v1', name => 'large')), join(' ', 1 .. 60), 'each once');

$node->stop;
done_testing();
