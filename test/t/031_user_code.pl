
# Code of the user's that runs inside of our functions: casts to json, checks of domains and the event logger, which end
# or replace the context, change the experiments, begin subtransactions, or raise. No state that was found before may be
# used after it. And values that do not fit a type, in parallel plans as in others; and JSON that would be GBs of text.

use strict;
use warnings;

use AbsmartlyTest;
use PostgreSQL::Test::Utils;
use Test::More;

# Two versions of the data, of different sizes.
sub data_of
{
	my ($iteration, $more) = @_;
	my $config = '{"size":50,"tags":"red","range":"[9,1)","ranges":"{[1,2),[9,1)}","pair":"(x,y)","list":"{5,50}",'
		. '"word":"short","tiny":1e-320,"nothing":null,"big":' . ('1' . '0' x 400) . '}';

	return experiments(
		experiment('exp', iteration => $iteration, split => [ 0, 1 ], variants => [ { name => 'A', config => undef }, { name => 'B', config => $config } ]),
		map { experiment("more_$_", id => 1 + $_, iteration => $iteration, split => [ 0, 1 ], variants => [ { name => 'A', config => undef }, { name => 'B', config => '{"size":' . $_ . ',"other":"' . 'x' x 500 . '"}' } ]) } 1 .. $more);
}

my @data = (data_of(1, 3), data_of(2, 60));
my $collector = start_collector(data => $data[0]);
my $node = start_node('main', collector => $collector, settings => <<'EOT');
absmartly.max_event_size = 64kB
absmartly.publish_delay = 10ms
EOT

ok(wait_ready($node), 'ready');

$node->safe_psql('postgres', "CREATE TABLE versions (n int, data json); INSERT INTO versions VALUES (1, '$data[0]'), (2, '$data[1]')");
$node->safe_psql('postgres', 'SELECT absmartly_set_context_data(data) FROM versions WHERE n = 1');

#
# What runs in the middle: deed() does what the setting test.deed says, once: what it calls may call it.
#

$node->safe_psql('postgres', <<'EOT');
CREATE FUNCTION deed() RETURNS void LANGUAGE plpgsql AS $$
DECLARE what text := current_setting('test.deed', true);
BEGIN
	IF what <> '' THEN
		PERFORM set_config('test.deed', '', false);
		BEGIN
			EXECUTE what;
		EXCEPTION WHEN OTHERS THEN
			-- what is told as such is meant for the caller; all else is undone
			IF sqlerrm LIKE 'from a deed%' THEN RAISE; END IF;
		END;
		PERFORM set_config('test.deed', what, false);
	END IF;
END $$;
CREATE FUNCTION versions() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 3 LOOP
		PERFORM absmartly_set_context_data(data) FROM versions WHERE n = 2;
		PERFORM absmartly_peek_treatment('{"user_id": 1}', 'exp');
		PERFORM absmartly_set_context_data(data) FROM versions WHERE n = 1;
	END LOOP;
END $$;
CREATE FUNCTION fill() RETURNS void LANGUAGE sql AS $$
	SELECT absmartly_context_create((SELECT jsonb_object_agg('unit_' || i, i) FROM generate_series(1, 200) i) || '{"user_id": 1}',
		(SELECT jsonb_object_agg('attribute_' || i, repeat('x', 50)) FROM generate_series(1, 200) i));
	SELECT absmartly_context_set_override('override_' || i, 1) FROM generate_series(1, 50) i;
	SELECT absmartly_context_treatment('exp');
$$;

CREATE TYPE trap AS ENUM ('a', 'b');
CREATE FUNCTION trap_json(trap) RETURNS json LANGUAGE plpgsql AS $$BEGIN PERFORM deed(); RETURN '"uid"'; END$$;
CREATE CAST (trap AS json) WITH FUNCTION trap_json(trap);
CREATE FUNCTION trap_check(int) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN PERFORM deed(); RETURN $1 < 10; END$$;
CREATE FUNCTION trap_check(text) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN PERFORM deed(); RETURN length($1) > 10; END$$;
CREATE DOMAIN trap_domain AS trap;
CREATE DOMAIN trap_int AS int CHECK (trap_check(VALUE));
CREATE DOMAIN trap_word AS text CHECK (trap_check(VALUE));
CREATE TYPE trap_pair AS (a int, b trap);
CREATE TYPE int_pair AS (a int, b trap_int);

CREATE TABLE tracked (id int, t trap, ts trap[], p trap_pair, j jsonb, n numeric[], b bit varying, bs boolean[], a jsonb);
CREATE TRIGGER tracked AFTER INSERT ON tracked FOR EACH ROW
	EXECUTE FUNCTION absmartly_track_trigger('row', 'user_id=id', 't,ts,p', 'attributes=a');
CREATE TABLE tracked_softly (LIKE tracked);
CREATE TRIGGER tracked AFTER INSERT ON tracked_softly FOR EACH ROW
	EXECUTE FUNCTION absmartly_track_trigger('row', 'user_id=id', '*');
EOT

my %deeds = (
	'another context'     => q{SELECT absmartly_context_create('{"other": 1}')},
	'many contexts'       => q{SELECT absmartly_context_create('{"other": 1}', options => '{"scope": "transaction"}') FROM generate_series(1, 20); SELECT fill()},
	'the context ends'    => q{SELECT absmartly_context_finalize()},
	'ends and another'    => q{SELECT absmartly_context_finalize(); SELECT absmartly_context_create('{"other": 1}', '{"a": 1}')},
	'other data'          => q{SELECT versions()},
	'other data, another' => q{SELECT versions(); SELECT absmartly_context_create('{"other": 1}'); SELECT versions()},
	'a full context'      => q{SELECT absmartly_context_set_unit('more_' || i, i), absmartly_context_set_attribute('more_' || i, i), absmartly_context_treatment('more_' || i) FROM generate_series(1, 40) i},
	'subtransactions'     => q{DO $$BEGIN FOR i IN 1 .. 5 LOOP BEGIN PERFORM absmartly_context_treatment('more_' || i), absmartly_context_track('g'), 1 / 0; EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END$$},
	'the same again'      => q{SELECT absmartly_context_set_unit('nested', 'b'::trap), absmartly_context_set_attribute('nested', 'b'::trap), absmartly_context_variable_value('size', 7::trap_int); INSERT INTO tracked VALUES (2, 'a', '{a,b}', '(1,b)')},
	'an error'            => q{DO $$BEGIN RAISE EXCEPTION 'from a deed'; END$$},
	'another, an error'   => q{SELECT absmartly_context_create('{"other": 1}'); DO $$BEGIN RAISE EXCEPTION 'from a deed' USING ERRCODE = 'XX000'; END$$});

# Each place where a value of a type of the user's gets in.
my @calls = (
	q{absmartly_context_set_unit('u', 'a'::trap)},
	q{absmartly_context_set_unit('u', 'a'::trap_domain)},
	q{absmartly_context_set_unit('u', '{a}'::trap[])},
	q{absmartly_context_set_attribute('x', 'a'::trap)},
	q{absmartly_context_set_attribute('x', '{{a,b},{b,a}}'::trap[])},
	q{absmartly_context_set_attribute('x', row(1, 'a'::trap, row(2, 'b'::trap)))},
	q{absmartly_context_set_attribute('x', '(1,b)'::trap_pair)},
	q{absmartly_context_set_attribute('x', '{"(1,b)"}'::trap_pair[])},
	(map { my $function = $_; map { "absmartly_context_${function}variable_value($_)" } q{'size', 7::trap_int}, q{'list', '{7}'::trap_int[]}, q{'pair', '(1,2)'::int_pair}, q{'word', 'a longer word'::trap_word}, q{'nothing', 7::trap_int} } '', 'peek_'),
	(map { my $function = $_; map { "absmartly_${function}variable_value('{\"user_id\": 1}', $_)" } q{'size', 7::trap_int}, q{'list', '{7}'::trap_int[]}, q{'pair', '(1,2)'::int_pair}, q{'word', 'a longer word'::trap_word} } '', 'peek_'));

my @statements = ((map { "SELECT $_" } @calls),
	q{INSERT INTO tracked VALUES (1, 'a', '{a,b}', '(1,a)', NULL, NULL, NULL, NULL, '{"a": 1}'), (2, 'b', '{}', NULL)},
	q{INSERT INTO tracked_softly VALUES (1, 'a', '{a,b}', '(1,a)')});

# All of them in one session, each with a fresh context. What counts is that the session lives, and agrees with itself.
sub run_all
{
	my ($deed, @before) = @_;
	my $script = join "\n", '\set VERBOSITY terse', "SET absmartly.trigger_errors = 'error';", @before;

	for my $statement (@statements)
	{
		$script .= "\nSET test.deed = '';\nSELECT fill();\nSET test.deed = \$deed\$$deed\$deed\$;\n$statement;\nBEGIN;\nSAVEPOINT a;\n$statement;\nROLLBACK TO a;\n$statement;\nCOMMIT;\nSET test.deed = '';\n"
			. "SELECT count(*) FROM jsonb_object_keys(absmartly_context_units()), jsonb_object_keys(absmartly_context_attributes());\nSELECT absmartly_context_pending() >= 0;\nSELECT absmartly_context_create();\n";
	}
	my ($status, $output, $error) = $node->psql('postgres', "SELECT pg_backend_pid();$script\nSELECT pg_backend_pid();", on_error_stop => 0);
	my @lines = split /\n/, $output;

	return ($status == 0 && $lines[0] eq $lines[-1], $error);
}

for my $name (sort keys %deeds)
{
	my ($lived, $error) = run_all($deeds{$name});

	ok($lived, "a session lives: $name") || diag($error);
}

# What was set goes to the context of that moment.
sub after
{
	my ($statements) = @_;
	my ($status, $output, $error) = $node->psql('postgres', $statements, on_error_stop => 0, extra_params => ['-q']);
	my @lines = split /\n/, $output;

	return $lines[-1] // $error;
}

is(after(q{SELECT fill(); SET test.deed = $$SELECT absmartly_context_create('{"other": 1}')$$; SELECT absmartly_context_set_unit('u', 'a'::trap); SELECT absmartly_context_units()}),
	'{"u": "uid", "other": 1}', 'a unit goes to the context that there is then');
is(after(q{SELECT fill(); SET test.deed = $$SELECT absmartly_context_create('{"other": 1}')$$; SELECT absmartly_context_set_attribute('x', '{a}'::trap[]); SELECT absmartly_context_attributes()}),
	'{"x": ["uid"]}', 'an attribute, too');
fails_with($node, q{SELECT fill(); SET test.deed = $$SELECT absmartly_context_finalize()$$; SELECT absmartly_context_set_unit('u', 'a'::trap)},
	'55000', qr/ABSmartly Context is finalized/, 'which may be finalized by then');

# JSON of arrays and rows is what it was.
is(after(q{SELECT fill(); SELECT absmartly_context_set_attribute('x', row(1, array[[1.5, 2], [3, 'NaN'::numeric]], '{[1,2),[3,4)}'::int4multirange, '{"a": [1, {"b": null}]}'::jsonb, null, '{}'::int[], 1e-7::float8, array['2020-01-02'::date], '{"[2020-01-01,2020-01-02)"}'::daterange[])); SELECT absmartly_context_get_attribute('x')}),
	'{"f1": 1, "f2": [[1.5, 2], [3, "NaN"]], "f3": "{[1,2),[3,4)}", "f4": {"a": [1, {"b": null}]}, "f5": null, "f6": [], "f7": 0.0000001, "f8": ["2020-01-02"], "f9": ["[2020-01-01,2020-01-02)"]}',
	'JSON of what is made of others');

#
# The event logger
#

$node->safe_psql('postgres', <<'EOT');
CREATE TABLE told (event text, n bigint GENERATED ALWAYS AS IDENTITY);
CREATE FUNCTION tell(context jsonb, event text, data jsonb) RETURNS void LANGUAGE plpgsql SET search_path = public, pg_catalog AS $$
BEGIN
	INSERT INTO told VALUES (event);
	PERFORM deed();
END $$;
EOT

for my $name (sort keys %deeds)
{
	my $deed = $deeds{$name};
	my $script = <<"EOT";
\\set VERBOSITY terse
SELECT pg_backend_pid();
SET absmartly.event_logger = 'public.tell';
SET test.deed = \$deed\$$deed\$deed\$;
SELECT absmartly_context_create('{"user_id": 1}', options => '{"refresh_interval": 1}');
SELECT absmartly_context_treatment('exp'), absmartly_context_variable_value('size', 7), absmartly_context_variable_value('other', 'x');
SELECT absmartly_context_variable_value('size', '7'::text), absmartly_context_track('goal', '{"a": 1}');
BEGIN;
SAVEPOINT a;
SELECT absmartly_context_treatment('more_' || i), absmartly_context_track('goal') FROM generate_series(1, 3) i;
ROLLBACK TO a;
SELECT absmartly_context_treatment('more_' || i), absmartly_context_variable_value('size', i) FROM generate_series(1, 3) i;
COMMIT;
SET test.deed = '';
SELECT absmartly_set_context_data(data) FROM versions WHERE n = 2;
SET test.deed = \$deed\$$deed\$deed\$;
SELECT absmartly_context_treatment('exp'), absmartly_context_variable_value('size', 7) FROM pg_sleep(0.01);
SELECT absmartly_context_units();
SELECT absmartly_context_finalize();
SELECT absmartly_context_create('{"user_id": 2}', data => '{"experiments": []}');
SELECT absmartly_context_finalize();
SELECT pg_backend_pid();
EOT
	my ($status, $output, $error) = $node->psql('postgres', $script, on_error_stop => 0, extra_params => ['-q']);
	my @lines = split /\n/, $output;

	ok($status == 0 && $lines[0] eq $lines[-1], "a session with a logger lives: $name") || diag($error);
	# the logger runs in a security-restricted operation: it can't set anything of the context
	ok((grep { $_ eq '{"user_id": 1}' } @lines), "the context is its own: $name") || diag($error);
}
is($node->safe_psql('postgres', q{SELECT string_agg(DISTINCT event, ' ') FROM told}), 'exposure finalize goal ready refresh', 'the logger was told of all events');

#
# Values that do not fit, in every plan
#

$node->safe_psql('postgres', <<'EOT');
SELECT absmartly_set_context_data(data) FROM versions WHERE n = 1;
CREATE DOMAIN small AS int CHECK (VALUE < 10);
CREATE DOMAIN given AS int NOT NULL;
CREATE FUNCTION is_small(int) RETURNS boolean LANGUAGE plpgsql PARALLEL SAFE AS $$BEGIN RETURN $1 < 10; END$$;
CREATE FUNCTION is_small_sql(int) RETURNS boolean LANGUAGE sql VOLATILE PARALLEL SAFE AS 'SELECT count(*) > 0 FROM (SELECT 1 WHERE $1 < 10) s';
CREATE FUNCTION refuse(int) RETURNS boolean LANGUAGE plpgsql PARALLEL SAFE AS $$BEGIN IF $1 < 10 THEN RETURN true; END IF; RAISE 'too large'; END$$;
CREATE FUNCTION divide(int) RETURNS boolean LANGUAGE plpgsql PARALLEL SAFE AS $$BEGIN RETURN 1 / ($1 - 50) <= 0; END$$;
CREATE FUNCTION divide_sql(int) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT 1 / ($1 - 50) <= 0';
CREATE DOMAIN divided AS int CHECK (divide(VALUE));
CREATE DOMAIN divided_sql AS int CHECK (divide_sql(VALUE));
CREATE DOMAIN small_plpgsql AS int CHECK (is_small(VALUE));
CREATE DOMAIN small_sql AS int CHECK (is_small_sql(VALUE));
CREATE DOMAIN small_refused AS int CHECK (refuse(VALUE));
CREATE DOMAIN smaller AS small CHECK (VALUE < 9);
CREATE DOMAIN long_word AS text CHECK (length(VALUE) > 10);
CREATE DOMAIN few AS int[] CHECK (cardinality(VALUE) < 2);
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TYPE small_pair AS (a int, b small_plpgsql);
CREATE FUNCTION pin(integer, text, anycompatible) RETURNS anycompatible LANGUAGE sql PARALLEL SAFE
	AS 'SELECT absmartly_peek_variable_value(jsonb_build_object(''user_id'', $1), $2, $3)';
CREATE TABLE people AS SELECT i AS id, '{none}'::text[] AS tags, '{1}'::int[] AS ints, '[1,2)'::int4range AS range, '{}'::int4multirange AS ranges,
	7::small AS small, 7::small_plpgsql AS small_plpgsql, 7::small_sql AS small_sql, 7::smaller AS smaller, 7::given AS given, 7::small_refused AS small_refused, 7::divided AS divided, 7::divided_sql AS divided_sql,
	'a longer word'::long_word AS word, '{1}'::few AS few, 'good'::mood AS mood, '(1,2)'::small_pair AS pair, '{7}'::small_plpgsql[] AS smalls,
	'pg_class'::regclass AS class, '2020-01-01'::date AS day, 'f'::boolean AS flag, '(1,2)'::point AS point, 0.5::float4 AS real, 0.25::float8 AS double,
	'a & b'::tsquery AS query
	FROM generate_series(1, 2000) i;
ANALYZE people;
EOT

my %variables = (
	tags => 'tags', ints => 'tags', range => 'range', ranges => 'ranges', small => 'size', small_plpgsql => 'size', small_sql => 'size', smaller => 'size', divided_sql => 'size',
	given => 'nothing', word => 'word', few => 'list', mood => 'tags', pair => 'pair', smalls => 'list', class => 'tags', day => 'tags', flag => 'tags',
	point => 'tags', real => 'tiny', double => 'big', query => 'range');
my $serial = 'SET max_parallel_workers_per_gather = 0;';
my $parallel = 'SET max_parallel_workers_per_gather = 2; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;';

sub counted
{
	my ($settings, $query) = @_;
	my ($status, $output, $error) = $node->psql('postgres', "$settings $query", extra_params => ['-q']);
	my $warnings = () = $error =~ /^.*WARNING:  the value of variable/mg;

	return "$output, $warnings warnings" . ($error =~ /ERROR:  (.*)/ ? ", $1" : '');
}

my $sum = join ', ', map { "count(*) FILTER (WHERE pin(id, '$variables{$_}', $_)::text = $_\::text)" } sort keys %variables;
my $plan = $node->safe_psql('postgres', "$parallel EXPLAIN SELECT $sum FROM people");
like($plan, qr/Partial Aggregate/, 'the values are asked for in parallel workers');
my $expected = join('|', (2000) x keys %variables) . ', 1 warnings';
is(counted($serial, "SELECT $sum FROM people"), $expected, 'a value that does not fit gives the default');
is(counted($parallel, "SELECT $sum FROM people"), $expected, 'in parallel workers, with one warning');
is(counted("$parallel SET parallel_leader_participation = off;", "SELECT $sum FROM people"), $expected, 'in workers alone');
is(counted("$parallel BEGIN; SAVEPOINT a;", "SELECT $sum FROM people; COMMIT"), $expected, 'in a subtransaction');

# functions that record run in the leader of a parallel plan, in parallel mode
my $recorded = join ', ', map { "count(absmartly_variable_value(jsonb_build_object('user_id', id), '$variables{$_}', $_)) FILTER (WHERE id <= 20)" } sort keys %variables;
like($node->safe_psql('postgres', "$parallel EXPLAIN SELECT $recorded FROM people WHERE id > 0"), qr/Gather/, 'functions that record run above parallel workers');
is(counted($parallel, "SELECT $recorded FROM people WHERE id > 0"), join('|', (20) x keys %variables) . ', 1 warnings', 'and give the default there');

# An error of a function's that is about the value; before version 17 it can't be taken back in parallel mode.
my $divided = "SELECT count(*) FILTER (WHERE pin(id, 'size', divided) = divided) FROM people";
is(counted($serial, $divided), '2000, 1 warnings', 'a function may refuse a value by an error');
like(counted($parallel, $divided), $node->pg_version >= 17 ? qr/^2000, 1 warnings$/ : qr/division by zero$/, 'in a parallel plan as far as the server can');

# other errors are the user's, in every plan
my $refused = "SELECT count(*) FILTER (WHERE pin(id, 'size', small_refused) = small_refused) FROM people";
for my $settings ($serial, $parallel)
{
	is(counted($settings, $refused), ', 0 warnings, too large', 'what RAISE says reaches the user');
}

# Nothing is left over: the server reports that when it commits.
unlike(log_of($node), qr/leak|not closed|non-empty SPI stack/i, 'nothing is left over');

# Types of defaults
is($node->safe_psql('postgres', q{SELECT absmartly_peek_variable_value('{"user_id": 1}', 'size', row(9, 'z'))}), '(9,z)', 'an anonymous row as a default');
is($node->safe_psql('postgres', q{SELECT pg_typeof(absmartly_peek_variable_value('{"user_id": 1}', 'word', 'a longer word'::long_word)), absmartly_peek_variable_value('{"user_id": 1}', 'word', 'a longer word'::long_word)}),
	'long_word|a longer word', 'a domain over text keeps its constraint');
is($node->safe_psql('postgres', q{SELECT pg_typeof(absmartly_peek_variable_value('{"user_id": 1}', 'word', 'x')), pg_typeof(absmartly_peek_variable_value('{"user_id": 1}', 'word', NULL)), absmartly_peek_variable_value('{"user_id": 1}', 'word', NULL)}),
	'text|text|short', 'a literal is text');
is($node->safe_psql('postgres', q{PREPARE p AS SELECT absmartly_peek_variable_value($1, $2, $3); EXECUTE p('{"user_id": 1}', 'word', 'x')}), 'short', 'a parameter without a type, too');
is($node->safe_psql('postgres', q{SELECT absmartly_peek_variable_value('{"user_id": 1}', 'tiny', 0.5::float4), absmartly_peek_variable_value('{"user_id": 1}', 'tiny', 0.5::float8), absmartly_peek_variable_value('{"user_id": 1}', 'big', 0.5::float8)}),
	'0.5|1e-320|0.5', 'numbers that a type does not have');
for my $number (q{'NaN'::float8}, q{'Infinity'::float4}, q{'NaN'::numeric}, q{'-Infinity'::numeric})
{
	fails_with($node, "SELECT absmartly_context_create(); SELECT absmartly_context_set_unit('u', $number)", '22023', qr/Unit 'u' must be a string or a number/, "$number is no uid");
}

#
# JSON with more digits than there is room for
#

my $digits = q{('{"a": [' || repeat('1e131071,', 20000) || '1]}')::jsonb};
my $before = length log_of($node);
my $session = $node->background_psql('postgres', on_error_stop => 0);
my $pid = $session->query('SELECT pg_backend_pid();');
my %large = (
	'INSERT of jsonb'      => "INSERT INTO tracked_softly (id, j) VALUES (1, $digits)",
	'INSERT of numbers'    => q{INSERT INTO tracked_softly (id, n) VALUES (1, array_fill('1e131071'::numeric, ARRAY[20000]))},
	'INSERT of bits'       => q{INSERT INTO tracked_softly (id, b) VALUES (1, repeat('1', 2000000)::bit varying)},
	'INSERT of booleans'   => q{INSERT INTO tracked_softly (id, bs) VALUES (1, array_fill(true, ARRAY[2000000]))},
	'INSERT of attributes' => "INSERT INTO tracked (id, a) VALUES (1, $digits)");
my %too_large = (
	'track'            => "SELECT absmartly_track('{\"user_id\": 1}', 'g', $digits)",
	'attributes'       => "SELECT absmartly_track('{\"user_id\": 1}', 'g', NULL, NULL, $digits)",
	'treatment'        => "SELECT absmartly_treatment('{\"user_id\": 77}', 'exp', $digits)",
	'context_create'   => "SELECT absmartly_context_create('{\"user_id\": 1}', $digits)",
	'context_track'    => "SELECT absmartly_context_track('g', $digits)",
	'set_attribute'    => "SELECT absmartly_context_set_attribute('a', $digits)",
	'set_attribute []' => q{SELECT absmartly_context_set_attribute('a', array_fill('1e131071'::numeric, ARRAY[20000]))},
	'set_attribute {}' => q{SELECT absmartly_context_set_attribute('a', (SELECT range_agg(numrange('1e131071'::numeric + i * 2, '1e131071'::numeric + i * 2 + 1)) FROM generate_series(1, 20) i))},
	'set_attribute ()' => q{SELECT absmartly_context_set_attribute('a', path(polygon(4000000, '<(0,0),1>'::circle)))},
	'set_unit'         => q{SELECT absmartly_context_set_unit('a', array_fill('1e131071'::numeric, ARRAY[20000]))});

$session->query(q{SET statement_timeout = '20s'; SELECT absmartly_context_create('{"user_id": 1}');});
for my $name (sort keys %large)
{
	$session->{stderr} = '';
	$session->query("$large{$name};");
	like($session->{stderr}, qr/WARNING:  goal of trigger "tracked" on table "\w+" is tracked without its properties/, "$name passes, with a warning");
	unlike($session->{stderr}, qr/ERROR/, "$name has no error");
}
for my $name (sort keys %too_large)
{
	$session->{stderr} = '';
	$session->query("\\set VERBOSITY sqlstate\n$too_large{$name};");
	like($session->{stderr}, qr/ERROR:  54000/, "$name is refused");
}
is($session->query('SELECT count(*) FROM tracked_softly WHERE j IS NOT NULL OR n IS NOT NULL OR b IS NOT NULL OR bs IS NOT NULL;'), 4, 'the rows are there');
SKIP:
{
	skip 'a sanitizer keeps what was freed', 1 if $ENV{ASAN_OPTIONS};

	my ($peak) = slurp_file("/proc/$pid/status") =~ /^VmHWM:\s+(\d+)/m;
	ok(!defined $peak || $peak < 300_000, 'with little memory') || diag("$peak kB");
}
$session->query(q{SELECT absmartly_context_set_attribute('exact', 1e300 + 1);});
is($session->query(q{SELECT length(absmartly_context_get_attribute('exact')::text);}), 301, 'what fits keeps its digits');
$session->quit;

#
# Code that goes on to more and more data
#

my $data_of_its_own = q{SELECT count(absmartly_context_create('{"user_id": 1}', NULL, '{"experiments": []}')) FROM generate_series(1, 100)};

fails_with($node, "$data_of_its_own; SET test.deed = \$a\$DO \$\$BEGIN PERFORM ($data_of_its_own);"
		. " EXCEPTION WHEN program_limit_exceeded THEN RAISE 'from a deed: %', sqlerrm USING ERRCODE = '54000'; END\$\$\$a\$;"
		. " SELECT absmartly_context_set_attribute('x', 'a'::trap)",
	'54000', qr/from a deed: too many versions of the experiments/, 'what a cast may load is bounded');

#
# A database of another encoding
#

$node->safe_psql('postgres', q{CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0});
$node->safe_psql('latin', 'CREATE EXTENSION absmartly');
my ($status, $output, $error) = $node->psql('latin', qq{SET client_encoding = 'UTF8'; SET absmartly.overrides = '{"caf\xc3\xa9": "x"}'});
like($error, qr/The variant of experiment "caf\xc3\xa9" is not an integer/, 'a detail is in the encoding of the database');

unlike(log_of($node), qr/terminated by signal|was not properly shut down|TRAP:|PANIC/, 'no process of the server has died');

done_testing();
