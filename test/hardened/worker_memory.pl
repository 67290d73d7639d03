
# A worker that fetches and delivers, and fetches and delivers, is not larger afterwards.

use strict;
use warnings;

use AbsmartlyTest;
use Test::More;

my $ROUNDS = 1000;
my $WARM = 200;    # rounds until everything has had its turn

sub data
{
	my ($n) = @_;

	return experiments(
		experiment('exp'),
		experiment('other', id => 2, audience => '{"filter": [{"gte": [{"var": "age"}, {"value": 20}]}]}', audienceStrict => 1),
		experiment("changing_$n", id => 3, variants => [ { name => 'A', config => '{}' }, { name => 'B', config => qq({"colour": "red", "n": $n}) } ]),
		# what is left out, with a warning
		experiment('broken', id => 4, trafficSplit => 'none'));
}

my $collector = start_collector(data => data(0));
my $node = start_node('main', collector => $collector, settings => <<'EOT');
absmartly.publish_delay = 0
absmartly.request_timeout = 600s
log_min_messages = error
EOT
ok(wait_ready($node), 'ready');
my $session = $node->background_psql('postgres', timeout => 7200);
my $worker = worker_pid($node);

# One fetch of new data, and one delivery: of goals and exposures, every now and then of a context, and of dead letters.
sub rounds
{
	my ($from, $to) = @_;

	for my $n ($from .. $to)
	{
		$collector->set_data('/v1', data($n));
		$session->query_safe(q{SELECT absmartly_refresh('600 s')});
		$session->query_safe(
			qq{SELECT absmartly_track('{"user_id": $n}', 'goal', '{"n": $n}'), absmartly_treatment('{"user_id": $n}', 'exp'), absmartly_treatment('{"user_id": $n}', 'changing_$n')});
		$session->query_safe(q{SELECT absmartly_publish('600 s')});
		if ($n % 20 == 0)
		{
			$session->query_safe(q{SELECT absmartly_context_create('{"user_id": "1"}', NULL, NULL, '{"publish_delay": -1}')});
			$session->query_safe(q{SELECT absmartly_context_wait_until_ready('600 s'), absmartly_context_track('of a context'), absmartly_context_treatment('exp')});
			$session->query_safe(q{SELECT absmartly_context_finalize()});
			$collector->forget;
		}
	}
	return;
}

# What the worker's memory contexts have, by their own count.
sub used
{
	my $lines = () = log_of($node) =~ /Grand total/g;

	$node->safe_psql('postgres', "SELECT pg_log_backend_memory_contexts($worker)");
	await(sub { my $now = () = log_of($node) =~ /Grand total/g; return $now > $lines });
	my ($used) = log_of($node) =~ /.*Grand total: .* (\d+) used/s;
	return $used;
}

rounds(1, $WARM);
my $before = used();
my $rss = rss_anon($worker);
rounds($WARM + 1, $ROUNDS);
my $grown = used() - $before;
my $rss_grown = rss_anon($worker) - $rss;

cmp_ok(stat_of($node, 'fetch_requests'), '>=', $ROUNDS, 'so many fetches');
cmp_ok(stat_of($node, 'goals_sent'), '>=', $ROUNDS, 'so many deliveries');
is(worker_pid($node), $worker, 'by one worker');
cmp_ok($grown, '<', 16 * 1024, "its memory contexts have not grown ($grown bytes)");
# Valgrind keeps books of its own
cmp_ok($rss_grown, '<', 1024, "nor has the process ($rss_grown kB)") unless -e $node->config_data('--bindir') . '/postgres-alone';
$session->quit;
$node->stop;
done_testing();
