
# New data while sessions assign: every statement sees one version, and nothing leaks.

use strict;
use warnings;

use AbsmartlyTest;
use Test::More;

my $SESSIONS = 8;
my $VERSIONS = 100;
my $USERS    = 2000;

# A version is recognised by the variant that all its experiments are fully on with.
sub version
{
	my ($number) = @_;
	my @variants = map { { name => "v$_", config => "{\"version\":$_}" } } 0 .. $VERSIONS;

	return experiments(map { experiment("exp_$_", id => $_, fullOnVariant => $number, variants => \@variants) } 1 .. 5);
}

my $collector = start_collector(data => version(1));
my $node = start_node('main', collector => $collector, settings => "autovacuum = off\n");

ok(wait_ready($node), 'ready');
$node->safe_psql('postgres', "CREATE TABLE users AS SELECT generate_series(1, $USERS) AS id; ANALYZE users");
$node->safe_psql('postgres', 'CREATE TABLE seen (kind text, versions int, version int)');

# Statements of different kinds, each of which must find exactly one version in all its rows.
my $units = q{jsonb_build_object('user_id', users.id)};
my @kinds = (
	[ plain => qq{SELECT absmartly_peek_treatment($units, 'exp_' || (1 + id % 5)) AS v FROM users} ],
	[ parallel => qq{SELECT absmartly_peek_unit_treatment(id, 'exp_1') AS v FROM users} ],
	[ sets => qq{SELECT a.variant AS v FROM users, absmartly_assignments($units) a WHERE users.id <= 100} ],
	[ variables => qq{SELECT absmartly_peek_variable_value($units, 'version', 0) AS v FROM users} ],
	[ nested => qq{SELECT nested(id) AS v FROM users WHERE id <= 300} ],
	[ subquery => qq{SELECT absmartly_peek_unit_treatment(id, 'exp_2') AS v FROM users WHERE id IN (SELECT id FROM users WHERE absmartly_peek_unit_treatment(id, 'exp_3') > 0)} ],
);
$node->safe_psql('postgres', <<'EOT');
CREATE FUNCTION nested(id int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE result int;
BEGIN
	SELECT absmartly_peek_unit_treatment(nested.id, 'exp_4') INTO result;
	RETURN result;
END $$;
CREATE PROCEDURE look(kind text, query text, rounds int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. rounds LOOP
		EXECUTE format('INSERT INTO seen SELECT %L, count(DISTINCT v), min(v) FROM (%s) AS q', kind, query);
		COMMIT;
		EXIT WHEN EXISTS (SELECT FROM pg_tables WHERE tablename = 'done');
	END LOOP;
END $$;
EOT

my @sessions;
for my $number (0 .. $SESSIONS - 1)
{
	my ($kind, $query) = @{ $kinds[$number % @kinds] };
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $parallel = $kind eq 'parallel'
		? 'SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET max_parallel_workers_per_gather = 2;'
		: '';

	$query =~ s/'/''/g;
	$session->query_safe($parallel || 'SELECT 1');
	$session->query_until(qr/started/, "\\echo started\nCALL look('$kind', '$query', 1000000);\n");
	push @sessions, $session;
}

for my $number (2 .. $VERSIONS)
{
	$collector->set_data('/v1', version($number));
	$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
}
is(stat_of($node, 'generation'), $VERSIONS, "the data has changed to version $VERSIONS");
$node->safe_psql('postgres', 'CREATE TABLE done ()');
$_->quit for @sessions;

is($node->safe_psql('postgres', 'SELECT count(*) FROM seen WHERE versions <> 1'), '0', 'every statement\'s rows agree with one version');
for my $kind (map { $_->[0] } @kinds)
{
	cmp_ok($node->safe_psql('postgres', "SELECT count(DISTINCT version) FROM seen WHERE kind = '$kind'"), '>', 1, "$kind: several versions were seen");
}
ok(await_sql($node, 'SELECT data_versions FROM absmartly_stat', '1'), 'one version is left in shared memory');
my $bytes = stat_of($node, 'data_bytes');
cmp_ok($bytes, '<', 200_000, 'of the size of one version');

# An open cursor keeps the version it began with; the statements beside it see the newest. Nothing is left afterwards.
my $session = $node->background_psql('postgres');
$session->query_safe('BEGIN');
$session->query_safe(q{DECLARE c CURSOR FOR SELECT absmartly_peek_unit_treatment(id, 'exp_1') FROM users});
is($session->query_safe('FETCH 1 FROM c'), $VERSIONS, 'a cursor\'s first row');
$collector->set_data('/v1', version(1));
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
is($session->query_safe('FETCH 1 FROM c'), $VERSIONS, 'the rows of a cursor agree with each other');
is($session->query_safe(q{SELECT absmartly_peek_unit_treatment(1, 'exp_1')}), '1', 'another statement sees the newest version');
is(stat_of($node, 'data_versions'), '2', 'two versions are in shared memory');
$session->query_safe('ROLLBACK');
ok(await_sql($node, 'SELECT data_versions FROM absmartly_stat', '1'), 'one again when the cursor is gone');

# What a transaction has read goes with it, however its last statement ended; an idle session holds nothing.
for my $query (q{SELECT absmartly_peek_unit_treatment(1, 'exp_1')}, q{SELECT absmartly_peek_unit_treatment(1, 'exp_1') / 0},
	q{SAVEPOINT s; SELECT absmartly_peek_unit_treatment(id, 'exp_1') / (id - 10) FROM users; ROLLBACK TO s})
{
	my $idle = $node->background_psql('postgres', on_error_stop => 0);
	$idle->query("BEGIN; $query");
	$idle->query('ROLLBACK');
	$collector->set_data('/v1', version(2 + int rand 50));
	$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
	ok(await_sql($node, 'SELECT data_versions FROM absmartly_stat', '1'), "idle after: $query");
	$idle->quit;
}

# A procedure sees newer data after COMMIT.
$node->safe_psql('postgres', <<'EOT');
CREATE PROCEDURE twice(INOUT before int, INOUT same int, INOUT after int) LANGUAGE plpgsql AS $$
BEGIN
	before := absmartly_peek_unit_treatment(1, 'exp_1');
	PERFORM pg_advisory_xact_lock(1);
	same := absmartly_peek_unit_treatment(1, 'exp_1');
	COMMIT;
	after := absmartly_peek_unit_treatment(1, 'exp_1');
END $$
EOT
$collector->set_data('/v1', version(60));
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
my $gate = $node->background_psql('postgres');
$gate->query_safe('SELECT pg_advisory_lock(1)');
$session->query_until(qr/started/, "\\echo started\nCALL twice(0, 0, 0);\n");
ok(await_sql($node, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'", '1'), 'the procedure is at work');
$collector->set_data('/v1', version(61));
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
$gate->quit;
is($session->query_safe('SELECT 1'), "60|60|61\n1", 'one version until COMMIT, the newest after it');
$session->quit;

# A session's memory does not grow over ten million calls.
$session = $node->background_psql('postgres');
$session->query_safe('SET max_parallel_workers_per_gather = 0; SET jit = off');
my $calls = q{SELECT count(absmartly_peek_treatment(jsonb_build_object('user_id', i), 'exp_1', '{"a": 1}')) FROM generate_series(1, %d) AS i};
$session->query_safe(sprintf $calls, 100_000);
my $memory = q{SELECT sum(total_bytes) FROM pg_backend_memory_contexts};
my $backend = $session->query_safe('SELECT pg_backend_pid()');
my $before = $session->query_safe($memory);
my $rss = rss_anon($backend);
$session->query_safe(sprintf $calls, 10_000_000);
cmp_ok($session->query_safe($memory) - $before, '<', 100_000, 'memory contexts have not grown over 10 million calls');
cmp_ok(rss_anon($backend) - $rss, '<', 4096, 'nor has the process (kB)');
$session->quit;

unlike(log_of($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
$node->stop;
done_testing();
