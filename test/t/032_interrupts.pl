# What is made to take long, by expressions, attributes, patterns or data, ends when it is told to, and keeps nobody
# waiting meanwhile.  Each of these would take many seconds, most of them minutes.

use strict;
use warnings;

use AbsmartlyTest;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use Test::More;

# Seconds of processor time that a session may take beyond what it was given: a third of a second is promised, the rest
# is for slow builds of the server.
my $SLACK = 1.5;

my $node = start_node('main', settings => <<'EOT');
autovacuum = off
EOT

# Seconds of processor time that a process has taken; undef where the system does not tell, or it is gone.
sub cpu_of
{
	my ($pid) = @_;

	open my $stat, '<', "/proc/$pid/stat" or return;
	my @fields = split / /, (<$stat> // '') =~ s/^.*\) //r;
	return @fields ? ($fields[11] + $fields[12]) / 100 : undef;
}

sub session
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);

	$session->query('\set VERBOSITY sqlstate');
	return ($session, $session->query('SELECT pg_backend_pid();'));
}

# Runs a statement that must be ended by its timeout, after what prepares it.
sub times_out
{
	my ($name, $query, $prepare) = @_;
	my ($session, $pid) = session();

	$session->query($prepare) if $prepare;
	$session->{stderr} = '';
	my $before = cpu_of($pid);
	$session->query("SET statement_timeout = '200ms'; $query;");
	my $error = $session->{stderr};
	my $spent = (cpu_of($pid) // 0) - ($before // 0);
	ok($error =~ /ERROR:  57014/ && $spent < 0.2 + $SLACK, "$name: ends with its timeout")
		|| diag("error: $error\nspent: $spent s");
	$session->{stderr} = '';
	$session->quit;
	return;
}

# Starts a statement and waits until it, or a parallel worker of it, has taken some time.
sub start
{
	my ($query, $prepare) = @_;
	my ($session, $pid) = session();

	$session->query($prepare) if $prepare;
	my $before = cpu_of($pid) // 0;
	$session->query_until(qr/started/, "\\echo started\n$query;\n");
	await(sub {
		my $worker = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE leader_pid = $pid AND pid <> $pid");
		return $worker ? (cpu_of($worker) // 1e9) > 0.2 : (cpu_of($pid) // 1e9) > $before + 0.2; });
	return ($session, $pid);
}

# Ends what was started with a function of the server.
sub is_ended
{
	my ($name, $session, $pid, $function) = @_;
	my $before = cpu_of($pid);
	my $last = $before;
	my $gone = $function eq 'pg_terminate_backend' ? '' : 'idle';

	$node->safe_psql('postgres', "SELECT $function($pid)");
	ok( await(sub {
			$last = cpu_of($pid) // $last;
			return $node->safe_psql('postgres', "SELECT state FROM pg_stat_activity WHERE pid = $pid") eq $gone; })
			&& ($last // 0) - ($before // 0) < $SLACK,
		"$name: ended by $function")
		|| diag('spent: ' . (($last // 0) - ($before // 0)) . ' s');
	$session->{stderr} = '';
	eval { $session->quit };
	return;
}

# A list of many clauses, as text of SQL.
sub clauses
{
	my ($count, $clause) = @_;

	$clause =~ s/'/''/g;
	return "(SELECT ('{\"or\":[' || string_agg(replace('$clause', '#', i::text), ',') || ']}')::json"
		. " FROM generate_series(1, $count) i)";
}

sub evaluation
{
	my ($clauses, $attributes) = @_;

	return "SELECT absmartly_evaluate($clauses, jsonb_build_object($attributes))";
}

my $evil = '{"match":[{"var":"a"},{"value":"^(a+)+$"}]}';
my $evil_attributes = q{'a', repeat('a', 30) || 'b'};

my @shapes = (
	[ 'short needles', clauses(20000, '{"in":[{"var":"a"},{"value":"x#"}]}'), q{'a', repeat('xa', 500000)} ],
	[ 'long needles', clauses(20000, '{"in":[{"var":"a"},{"var":"b"}]}'),
		q{'a', repeat('a', 1000000), 'b', repeat('a', 500000) || 'b'} ],
	[ 'evil patterns', clauses(20000, $evil), $evil_attributes ],
	[ 'different patterns', clauses(20000, '{"match":[{"var":"a"},{"value":"^(a+|#)+$"}]}'), $evil_attributes ],
	[ 'a pattern on a long text', clauses(1, '{"match":[{"var":"a"},{"value":"(?=(a*))\\\\1b"}]}'),
		q{'a', repeat('a', 1000000)} ],
	[ 'patterns from each place', clauses(1000, '{"match":[{"var":"a"},{"value":"a*[bc]"}]}'), q{'a', repeat('a', 100000)} ],
	[ 'a reference in what is looked behind at', clauses(1000, '{"match":[{"var":"a"},{"value":"(?<=(a)\\\\1*)b"}]}'),
		q{'a', repeat('a', 1000000)} ],
	[ 'long blanks', clauses(20000, '{"eq":[{"value":1},{"var":"a"}]}'), q{'a', repeat(' ', 1000000) || '2'} ],
	[ 'long versions', clauses(20000, '{"semver_gt":[{"var":"a"},{"var":"a"}]}'), q{'a', repeat('1.', 500000) || '1'} ],
	[ 'long texts', clauses(20000, '{"gt":[{"var":"a"},{"var":"a"}]}'), q{'a', repeat('a', 20000000)} ],
	[ 'lists of numbers and a text', clauses(1000, '{"in":[{"var":"a"},{"var":"b"}]}'),
		q{'a', (SELECT jsonb_agg(i) FROM generate_series(1, 100000) i), 'b', repeat('0', 1000000)} ],
	[ 'equal lists', clauses(2000, '{"not":{"eq":[{"var":"a"},{"var":"a"}]}}'),
		q{'a', (SELECT jsonb_agg(i) FROM generate_series(1, 100000) i)} ],
	[ 'equal objects', clauses(2000, '{"not":{"eq":[{"var":"a"},{"var":"a"}]}}'),
		q{'a', (SELECT jsonb_object_agg('k' || i, i) FROM generate_series(1, 100000) i)} ]);

times_out($_->[0], evaluation($_->[1], $_->[2])) foreach @shapes;

# what does not take long any more
is( $node->safe_psql('postgres', <<'EOT'), "f\nt\n0", 'a long needle and objects in opposite order are quick');
SET statement_timeout = '60s';
SELECT absmartly_evaluate('{"in":[{"var":"h"},{"var":"n"}]}',
	jsonb_build_object('h', repeat('a', 2000000), 'n', repeat('a', 1000000) || 'b'))::bool;
SELECT absmartly_evaluate(format('{"eq":[{"value":%s},{"value":%s}]}',
	(SELECT json_object_agg('k' || i, i ORDER BY i) FROM generate_series(1, 50000) i),
	(SELECT json_object_agg('k' || i, i ORDER BY i DESC) FROM generate_series(1, 50000) i))::json, '{}')::bool;
SELECT count(*) FROM generate_series(1, 100) i WHERE absmartly_evaluate(format('{"in":[{"value":%s},{"value":"k%s"}]}',
	(SELECT json_object_agg('k' || i, i) FROM generate_series(1, 10000) i), i + 10000)::json, '{}')::bool;
EOT

# compiling
times_out('a large expression', "SELECT absmartly_match_audience(x, '{}') FROM long",
	q{CREATE TEMP TABLE long AS SELECT '{"filter":[' || repeat('[0,1,1,0],', 1000000) || '0]}' AS x;});
times_out('a long path', "SELECT absmartly_match_audience(x, '{}') FROM long",
	q{CREATE TEMP TABLE long AS SELECT '{"filter":{"var":"' || repeat('a/', 30000000) || '"}}' AS x;});
times_out('a text of which the bytes are asked for', "SELECT absmartly_utf8_bytes(x), absmartly_base64url(x),"
	. " absmartly_hash_unit(x) FROM long, generate_series(1, 100)",
	q{CREATE TEMP TABLE long AS SELECT repeat('a', 60000000) AS x;});

# from data: an audience and rules
my $filter = '{"filter":[' . join(',', ("{\"not\":$evil}") x 20000) . ']}';
my $rules = '{"rules":[' . join(',', ("{\"type\":\"assign\",\"variant\":1,\"conditions\":$evil}") x 20000) . ']}';
my $data = experiments(experiment('evil', audience => $filter), experiment('ruled', id => 2, assignmentRules => $rules));

$node->safe_psql('postgres', "SELECT absmartly_set_context_data('$data')");
my $attributes = "jsonb_build_object($evil_attributes)";

times_out('a unit of blanks', "SELECT absmartly_peek_treatment(x, 'evil') FROM long, generate_series(1, 1000)",
	q{CREATE TEMP TABLE long AS SELECT jsonb_build_object('user_id', repeat(' ', 60000000) || '1') AS x;});

foreach my $name ('evil', 'ruled')
{
	times_out("$name, peek", "SELECT absmartly_peek_treatment('{\"user_id\": 1}', '$name', $attributes)");
	times_out("$name, treatment", "SELECT absmartly_treatment('{\"user_id\": 1}', '$name', $attributes)");
	times_out("$name, explain", "SELECT absmartly_explain('{\"user_id\": 1}', '$name', $attributes)");
	times_out("$name, in a context", "SELECT absmartly_context_peek_treatment('$name')",
		"SELECT absmartly_context_create('{\"user_id\": 1}'); SELECT absmartly_context_set_attributes($attributes);");
}
times_out('match_audience', "SELECT absmartly_match_audience(x, $attributes) FROM audience",
	"CREATE TEMP TABLE audience AS SELECT '$filter' AS x;");

$node->safe_psql('postgres', <<'EOT');
CREATE TABLE visit (id int, attributes jsonb, variant int);
CREATE FUNCTION assign_visit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	NEW.variant = absmartly_peek_treatment(jsonb_build_object('user_id', NEW.id), 'evil', NEW.attributes);
	RETURN NEW;
END $$;
CREATE TRIGGER assign_visit BEFORE INSERT ON visit FOR EACH ROW EXECUTE FUNCTION assign_visit();
EOT
times_out('in a trigger', "INSERT INTO visit SELECT i, $attributes FROM generate_series(1, 10) i");

my $parallel = $node->safe_psql('postgres', "SELECT name FROM pg_settings WHERE name IN"
	. " ('force_parallel_mode', 'debug_parallel_query')");
my $in_worker = "SELECT absmartly_peek_treatment('{\"user_id\": 1}', 'evil', attributes) FROM visit";

$node->safe_psql('postgres', "ALTER TABLE visit DISABLE TRIGGER assign_visit;"
	. " INSERT INTO visit VALUES (1, $attributes)");
like($node->safe_psql('postgres', "SET $parallel = on; EXPLAIN $in_worker"), qr/Gather/, 'a plan for a worker');
times_out('in a parallel worker', $in_worker, "SET $parallel = on;");

# cancel and terminate; nobody else waits
foreach my $shape (@shapes[ 0, 2, 4, 6 ])
{
	my ($name, $clauses, $values) = @$shape;

	is_ended($name, start(evaluation($clauses, $values)), $_) foreach ('pg_cancel_backend', 'pg_terminate_backend');
}
is_ended('in a parallel worker', start($in_worker, "SET $parallel = on;"), 'pg_cancel_backend');

my ($session, $pid) = start(evaluation($shapes[4][1], $shapes[4][2]));
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('postgres', 'DROP DATABASE other');
is($node->safe_psql('postgres', "SELECT state FROM pg_stat_activity WHERE pid = $pid"),
	'active', 'DROP DATABASE of another database does not wait for a search');
is_ended('after that', $session, $pid, 'pg_terminate_backend');

# what is too large or too deep to be read
fails_with($node, q{SELECT absmartly_match_audience('{"filter":[' || repeat('0,', 20000000) || '0]}', '{}')},
	'54000', qr/JSON text is too large/, 'a text of too many values');
fails_with($node, q{SELECT absmartly_match_audience('{"filter":' || repeat('[', 200) || repeat(']', 200) || '}', '{}')},
	'54001', qr/nested too deep/, 'an audience that is nested too deep');

my $deep = '{"filter":' . ('[' x 200) . (']' x 200) . '}';
my $deep_rules = '{"rules":' . ('[' x 200) . (']' x 200) . '}';
$data = experiments(experiment('strict', audience => $deep, audienceStrict => JSON::PP::true),
	experiment('ruled', id => 2, assignmentRules => $deep_rules), experiment('fine', id => 3));
my ($status, $output, $error) = $node->psql('postgres', "SELECT absmartly_set_context_data('$data')");
my @warnings = $error =~ /WARNING:  (.*)/g;
is_deeply(\@warnings, [
	'absmartly: experiment "strict" is left out: its "audience" is nested too deep',
	'absmartly: experiment "ruled" is left out: its "assignmentRules" is nested too deep' ],
	'experiments whose audience or rules are nested too deep are left out, with a warning each');
is($node->safe_psql('postgres', q{SELECT string_agg(name, ' ') FROM absmartly_experiments}),
	'fine', 'the others are there');

$node->stop('fast');
done_testing();
