# Which version of the data a statement sees, and how long a version's memory stays: whatever happens in a transaction,
# nothing reads what was freed, and nothing is kept for good.  (Servers with assertions overwrite what is freed.)

use strict;
use warnings;

use AbsmartlyTest;
use Test::More;

# Version N has one experiment "exp" of interest, fully on with variant N, and others, fewer with each version, so that
# versions have different sizes and layouts.
my $LAST = 40;

sub version
{
	my ($number) = @_;
	my @variants = map { { name => "v$_", config => qq({"k":"v$_"}) } } 0 .. $LAST;
	my @filling = ({ name => 'A', config => undef }, { name => 'B', config => '{"q":"' . 'x' x 500 . '"}' });
	my @others = map { experiment("other_${number}_$_", id => $_, variants => \@filling) } 1 .. 60 - $number;

	return experiments(@others, experiment('exp', id => 999, fullOnVariant => $number, variants => \@variants));
}

my $node = start_node('main');
my $dir  = $node->basedir;

for my $number (1 .. $LAST)
{
	open my $file, '>', "$dir/v$number" or die "$dir/v$number: $!";
	print {$file} version($number);
	close $file or die "$dir/v$number: $!";
}
my $functions = <<EOT;
CREATE FUNCTION load(number int) RETURNS void LANGUAGE plpgsql AS
	'BEGIN PERFORM absmartly_set_context_data(pg_read_file(format(''$dir/v%s'', number))::json); END';
CREATE FUNCTION look() RETURNS int LANGUAGE sql STABLE AS \$\$ SELECT absmartly_peek_treatment('{"user_id": 1}', 'exp') \$\$;
EOT
$node->safe_psql('postgres', $functions);
$node->safe_psql('postgres', <<'EOT');
CREATE FUNCTION look_and_fail(fails boolean) RETURNS int LANGUAGE plpgsql STABLE AS $$
DECLARE result int;
BEGIN
	BEGIN
		result := absmartly_peek_treatment('{"user_id": 1}', 'exp');
		IF fails THEN RAISE EXCEPTION 'no'; END IF;
	EXCEPTION WHEN OTHERS THEN NULL;
	END;
	RETURN coalesce(result, absmartly_peek_treatment('{"user_id": 1}', 'exp'));
END $$;
-- waits for whoever holds lock 1
CREATE FUNCTION wait_for_lock() RETURNS void LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_lock_shared(1); PERFORM pg_advisory_unlock_shared(1); END $$;
EOT

sub load
{
	$node->safe_psql('postgres', "SELECT load($_)") for @_;
	return;
}

# Runs a query that waits for a lock in its middle; versions are loaded meanwhile.
my $gate = $node->background_psql('postgres');

sub in_the_middle
{
	my ($session, $query, @versions) = @_;

	$gate->query_safe('SELECT pg_advisory_lock(1)');
	$session->query_until(qr/started/, "\\echo started\n$query;\n");
	ok(await_sql($node, "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'advisory'"), 'it waits');
	load(@versions);
	$gate->query_safe('SELECT pg_advisory_unlock(1)');
	return $session->query_safe('SELECT') =~ s/\s+\z//r;
}

sub one_is_left
{
	my ($name) = @_;

	return ok(await_sql($node, 'SELECT data_versions FROM absmartly_stat', '1'), $name);
}

# Deferred triggers run outside of any statement: all of a commit see one version, also after an error that was caught.
load(1);
my $session = $node->background_psql('postgres', on_error_stop => 0);
$session->query_safe(<<'EOT');
CREATE TABLE seen (row int, variant int, k text);
CREATE TABLE orders (id int);
CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE first int;
BEGIN
	first := look_and_fail(new.id = 1);
	IF new.id = 2 THEN PERFORM wait_for_lock(); END IF;
	INSERT INTO seen VALUES (new.id, first, NULL), (new.id, look_and_fail(new.id = 3),
		absmartly_peek_variable_value('{"user_id": 1}', 'k', 'none'));
	FOR first IN SELECT look() FROM generate_series(1, 2) LOOP
		INSERT INTO seen VALUES (new.id, first, NULL);
	END LOOP;
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late();
EOT
in_the_middle($session, 'INSERT INTO orders SELECT generate_series(1, 8)', 2 .. 9);
is($node->safe_psql('postgres', 'SELECT count(*), min(variant), max(variant), min(k), max(k) FROM seen'), '32|1|1|v1|v1',
	'deferred triggers of one commit see one version');
is($session->query_safe('SELECT look()'), '9', 'the next statement sees the newest');
one_is_left('and nothing is left of the others');

# The same at COMMIT, with savepoints and an error of the database's own before.  (A server with assertions does not stand
# exception blocks there, whoever has them.)
$session->query_safe(<<'EOT');
CREATE TABLE payments (id int);
CREATE FUNCTION late_payment() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO seen VALUES (new.id, look(), NULL);
	IF new.id = 2 THEN PERFORM wait_for_lock(); END IF;
	INSERT INTO seen VALUES (new.id, absmartly_peek_treatment('{"user_id": 1}', 'exp'), NULL);
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON payments DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late_payment();
EOT
$session->query_safe('TRUNCATE seen; BEGIN; SAVEPOINT a; SELECT look(); SAVEPOINT b');
$session->query('SELECT look() / 0');
$session->{stderr} = '';
$session->query_safe('ROLLBACK TO b; INSERT INTO payments VALUES (5), (2), (3)');
in_the_middle($session, 'COMMIT', 10 .. 17);
is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT variant) FROM seen'), '6|1', 'deferred triggers at COMMIT');

# A query is planned, started (and pruned) and run with one version, a cursor wherever it is fetched.
$session->query_safe(<<'EOT');
CREATE TABLE parts (v int, t text) PARTITION BY LIST (v);
SELECT format('CREATE TABLE part%s PARTITION OF parts FOR VALUES IN (%s)', i, i) FROM generate_series(0, 45) AS i \gexec
INSERT INTO parts SELECT i % 46, 'row ' || i FROM generate_series(0, 459) AS i;
EOT
load(20);
$session->query_safe('BEGIN; DECLARE c CURSOR FOR SELECT v, look() FROM parts WHERE v = look() ORDER BY t');
load(21);
is($session->query_safe('FETCH 2 FROM c'), "20|20\n20|20", 'a cursor that was pruned when it was opened');
load(22);
is($session->query_safe('SELECT look()'), '22', 'beside it others see the newest');
is($session->query_safe('SAVEPOINT s; SELECT look(); ROLLBACK TO s; FETCH 2 FROM c'), "22\n20|20\n20|20", 'also after a rollback to a savepoint');
is($session->query_safe('SELECT count(*), min(v) FROM parts WHERE v = look()'), '10|22', 'a query that is pruned');
$session->query_safe('COMMIT');

# A function's cursor, fetched by others.
$session->query_safe(<<'EOT');
CREATE FUNCTION open_cursor(c refcursor) RETURNS int LANGUAGE plpgsql AS $$
DECLARE r int;
BEGIN OPEN c FOR SELECT look() FROM generate_series(1, 10); FETCH c INTO r; RETURN r; END $$;
CREATE FUNCTION fetch_cursor(c refcursor, OUT of_cursor int, OUT of_statement int) LANGUAGE plpgsql AS $$
BEGIN FETCH c INTO of_cursor; of_statement := look(); END $$;
EOT
load(23);
$session->query_safe(q{BEGIN; SELECT open_cursor('d')});
load(24);
is($session->query_safe('FETCH 1 FROM d'), '23', 'a cursor that a function has opened keeps its version');
load(25);
is($session->query_safe(q{SELECT * FROM fetch_cursor('d')}), '23|25', 'also where a function fetches from it');
$session->query_safe('COMMIT');

# A scroll cursor keeps it after its end.
$session->query_safe('BEGIN; DECLARE s SCROLL CURSOR FOR SELECT look() FROM generate_series(1, 3) AS i');
is($session->query_safe('FETCH ALL FROM s'), "25\n25\n25", 'a scroll cursor to its end');
load(26);
is($session->query_safe('FETCH BACKWARD 2 FROM s'), "25\n25", 'and back');
is($session->query_safe('FETCH ABSOLUTE 1 FROM s'), '25', 'and to its beginning');
$session->query_safe('COMMIT');
one_is_left('nothing is left of them');

# Labels of the user's that are wrong crash nothing: functions that let their statement see the newest data, at work in the
# leader of a parallel query, and in its workers.
$session->query_safe(<<'EOT');
CREATE FUNCTION unpin(i int) RETURNS int LANGUAGE plpgsql VOLATILE PARALLEL RESTRICTED AS $$
BEGIN IF i % 100 = 1 THEN PERFORM absmartly_wait_until_ready('0 s'); END IF; RETURN i; END $$;
CREATE FUNCTION unpin_in_worker(i int) RETURNS int LANGUAGE plpgsql VOLATILE PARALLEL SAFE AS $$
BEGIN IF i % 100 = 1 THEN PERFORM absmartly_wait_until_ready('0 s'); END IF; RETURN i; END $$;
CREATE FUNCTION gate(i int) RETURNS int LANGUAGE plpgsql VOLATILE PARALLEL RESTRICTED AS $$
BEGIN
	IF i = 1 THEN PERFORM absmartly_wait_until_ready('0 s'), wait_for_lock(), absmartly_wait_until_ready('0 s'); END IF;
	RETURN i;
END $$;
CREATE TABLE big AS SELECT generate_series(1, 20000) AS id;
ALTER TABLE big SET (parallel_workers = 2);
ANALYZE big;
SET parallel_leader_participation = off;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
SET max_parallel_workers_per_gather = 2;
EOT
my $parallel = q{SELECT count(*), sum(a) = sum(g), min(v), max(v) FROM (
	SELECT unpin(id) AS a, gate(id) AS g, absmartly_peek_unit_treatment(id, 'exp') AS v FROM big
	WHERE absmartly_peek_variable_value(jsonb_build_object('user_id', unpin_in_worker(id)), 'k', 'none') = 'v26') AS q};
like($session->query_safe("EXPLAIN $parallel"), qr/Gather/, 'the plan is parallel');
is(in_the_middle($session, $parallel, 27 .. 34), '20000|t|26|26', 'one version in leader and workers');
one_is_left('nothing is left of it');

# How much a long transaction may keep: the version in force, what its cursors read, and four others.
$session->query_safe('BEGIN; DECLARE c CURSOR FOR SELECT look() FROM generate_series(1, 9)');
is($session->query_safe('FETCH 1 FROM c'), '34', 'a cursor in a long transaction');
for my $number (1 .. 20)
{
	load($number);
	is($session->query_safe('SELECT look()'), $number, "statement $number of a long transaction sees the newest");
}
my $left = stat_of($node, 'data_versions');
cmp_ok($left, '<=', 2 + 4, 'a long transaction keeps few versions');
cmp_ok($left, '>=', 2, 'and its cursor\'s');
is($session->query_safe('FETCH 1 FROM c'), '34', 'which is read');
$session->query_safe('COMMIT');
one_is_left('none after its end');

# The same within one statement that loads data and looks at it, also where errors are caught on the way.
$session->query_safe(<<'EOT');
DO $$
DECLARE most int := 0; seen int;
BEGIN
	FOR i IN 1 .. 30 LOOP
		PERFORM load(i);
		IF look() <> i THEN RAISE 'version % is not seen', i; END IF;
		BEGIN
			seen := absmartly_peek_treatment('{"user_id": 1}', 'exp');
			seen := absmartly_peek_treatment('[]', 'exp');
		EXCEPTION WHEN OTHERS THEN NULL;
		END;
		SELECT data_versions INTO seen FROM absmartly_stat;
		most := greatest(most, seen);
	END LOOP;
	IF most > 2 + 4 THEN RAISE '% versions were kept', most; END IF;
END $$
EOT
pass('a statement that goes on to newer data keeps few versions');
one_is_left('none after its end');

# Prefetched data of contexts that replace each other in one statement does not pile up.
$session->query_safe(<<EOT);
DO \$\$
DECLARE least bigint; used bigint;
BEGIN
	FOR i IN 1 .. 40 LOOP
		PERFORM absmartly_context_create('{"user_id": 1}', data => pg_read_file('$dir/v1')::json);
		PERFORM absmartly_context_peek_treatment('exp');
		SELECT sum(total_bytes) INTO used FROM pg_backend_memory_contexts WHERE name = 'TopMemoryContext';
		IF i = 10 THEN least := used; END IF;
	END LOOP;
	IF used > least + 100000 THEN RAISE 'from % to % bytes', least, used; END IF;
END \$\$
EOT
pass('prefetched data of contexts does not pile up');
is($session->query_safe(q{SELECT absmartly_context_peek_treatment('exp')}), '1', 'the last context reads its data');

$session->quit;
$gate->quit;
unlike(log_of($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
$node->stop;

# Without preloading each session compiles the file; it may change while a cursor reads, or below a function.
$node = start_node('plain', preload => 0);
$node->safe_psql('postgres', $functions);
load(1);
$session = $node->background_psql('postgres');
$session->query_safe('BEGIN; DECLARE c CURSOR FOR SELECT look() FROM generate_series(1, 9)');
is($session->query_safe('FETCH 1 FROM c'), '1', 'a cursor, without preloading');
for my $number (2 .. 9)
{
	load($number);
	is($session->query_safe('SELECT look()'), $number, "version $number is read from the file");
}
is($session->query_safe('FETCH 1 FROM c'), '1', 'while the cursor keeps its version');
is($session->query_safe(q{SELECT look(), load(10) IS NULL, look()}), '9|f|10', 'a statement that loads data');
is($session->query_safe('FETCH 1 FROM c; COMMIT'), '1', 'and again');
$session->quit;
unlike(log_of($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
$node->stop;

done_testing();
