# What strangers have made in the extension's schema, before it was created, is never run: overloads of all functions,
# aggregates, operators and types that the install script and the library's own queries name, each of which raises.

use strict;
use warnings;

use AbsmartlyTest;
use FindBin;
use PostgreSQL::Test::Utils;
use Test::More;

my $collector = start_collector(data => experiments(
	experiment('exp', fullOnVariant => 1,
		variants => [ { name => 'A', config => undef }, { name => 'B', config => '{"colour":"red","size":7,"deep":{"a":1}}' } ],
		customFieldValues => [ { name => 'field', type => 'text', value => 'value' } ])));
my $node = start_node('main', collector => $collector, extension => 0, settings => "absmartly.publish_delay = 100ms\n");
my $script = slurp_file("$FindBin::RealBin/../../sql/absmartly--1.0.sql");

# The names
# ---------

# Queries that the library makes name these.
my %functions = map { $_ => 1 } qw(jsonb_build_object to_jsonb count array_agg);
my %operators = map { $_ => 1 } split ' ', '= <> < > <= >= || #>> ->> - + ~~';
my $views = '';

(my $code = $script) =~ s/^--.*$//mg;
$code =~ s/^COMMENT ON .*?;$//msg;
$functions{$1} = 1 while $code =~ /\b(?:pg_catalog|\@extschema\@)\.(\w+)\s*\(/g;
$functions{$1} = 1 while $code =~ /^CREATE (?:FUNCTION|PROCEDURE) (\w+)/mg;
$functions{$_} = 1 for qw(now nullif coalesce max min sum string_agg octet_length);
$operators{$1} = 1 while $code =~ /OPERATOR\s*\(\s*pg_catalog\.(\S+?)\s*\)/g;
$views .= "$1;\n" while $code =~ /^CREATE (?:MATERIALIZED )?VIEW (.*?);$/msg;
like($views, qr/absmartly_pending_events/, 'the script has been read');

# What the script says
# --------------------

my @wrong;
my @keywords = qw(OPERATOR ANY FROM WITH VIEW AS);
my $names = $views;
$names =~ s/WITH \(fillfactor[^)]*\)//g;
$names =~ s/'(?:[^']|'')*'::pg_catalog\.\w+(?:\[\])?/LITERAL/g;
push @wrong, "literal without a type: $1" while $names =~ /('[^']*'.{0,20})/g;
while ($names =~ /(\S*?)(\w+)\s*\(/g)
{
	push @wrong, "function without a schema: $2" if $1 !~ /\.$/ && !grep { $_ eq $2 } @keywords;
}
push @wrong, "type without a schema: $1" while $names =~ /::(?!pg_catalog\.|int\b|bigint\b)(\w+)/g;
push @wrong, "operator to be looked up: $1" while $names =~ /\b(NULLIF|IN|BETWEEN|I?LIKE|SIMILAR|USING\s*\(|DISTINCT|CASE\s+(?!WHEN)\w+)\b/gi;
$names =~ s/OPERATOR\(pg_catalog\.\S+?\)//g;
$names =~ s/\(\*\)|SELECT \*|\@extschema\@//g;
push @wrong, "operator without a schema: $1" while $names =~ /([-+*\/<>=~!@#%^&|?]+)/g;
is(join("\n", @wrong), '', 'views look up no name');

# Strangers
# ---------

sub list { return join ', ', map { "'$_'" } sort @_; }

my $function_names = list(keys %functions);
my $operator_names = list(keys %operators);

# Makes overloads of everything in a schema, as a role that may create there.
sub make_strangers
{
	my ($database, $schema) = @_;

	$node->safe_psql($database, <<"EOT");
SET client_min_messages = warning;
SET ROLE mallory;
SET search_path = pg_catalog;
CREATE FUNCTION $schema.stranger() RETURNS int LANGUAGE plpgsql AS
\$\$ BEGIN RAISE EXCEPTION 'a stranger runs as %', current_user; END \$\$;
CREATE TYPE $schema.strange AS (x int);
DO \$do\$
DECLARE
	types text[] := ARRAY['int4', 'int8', 'text', 'bytea', 'name', 'oid', 'jsonb', 'timestamptz', 'bool', '$schema.strange', 'anyelement'];
	few text[] := ARRAY['int4', 'text', 'bytea', 'name', 'int8'];
	body constant text := 'RETURNS int LANGUAGE plpgsql AS \$x\$ BEGIN RETURN $schema.stranger(); END \$x\$';
	name text; a text; b text; c text; kind "char";
BEGIN
	-- casts to a type of one's own from whatever can be at hand
	FOREACH a IN ARRAY ARRAY['text', 'bytea', 'int4', 'int8', 'name', 'jsonb'] LOOP
		EXECUTE format('CREATE FUNCTION $schema.strange_cast(%s) RETURNS $schema.strange LANGUAGE plpgsql AS
			''BEGIN PERFORM $schema.stranger(); RETURN NULL; END''', a);
		EXECUTE format('CREATE CAST (%s AS $schema.strange) WITH FUNCTION $schema.strange_cast(%1\$s) AS IMPLICIT', a);
	END LOOP;

	-- state functions of aggregates, functions of operators
	FOREACH a IN ARRAY types LOOP
		EXECUTE format('CREATE FUNCTION $schema.strange_state(int, %s) %s', a, body);
		EXECUTE format('CREATE FUNCTION $schema.strange_unary(%s) %s', a, body);
		FOREACH b IN ARRAY types LOOP
			EXECUTE format('CREATE FUNCTION $schema.strange_state(int, %s, %s) %s', a, b, body);
			EXECUTE format('CREATE FUNCTION $schema.strange_operator(%s, %s) RETURNS bool LANGUAGE plpgsql AS
				''BEGIN RETURN $schema.stranger(); END''', a, b);
			FOREACH name IN ARRAY ARRAY[$operator_names] LOOP
				EXECUTE format('CREATE OPERATOR $schema.%s (FUNCTION = $schema.strange_operator, LEFTARG = %s, RIGHTARG = %s)', name, a, b);
			END LOOP;
		END LOOP;
	END LOOP;

	FOREACH name IN ARRAY ARRAY[$function_names] LOOP
		SELECT max(prokind::text)::"char" INTO kind FROM pg_proc WHERE proname = name AND prokind = 'a';
		IF kind = 'a' THEN
			FOREACH a IN ARRAY types LOOP
				EXECUTE format('CREATE AGGREGATE $schema.%I (%s) (SFUNC = $schema.strange_state, STYPE = int)', name, a);
				FOREACH b IN ARRAY types LOOP
					EXECUTE format('CREATE AGGREGATE $schema.%I (%s, %s) (SFUNC = $schema.strange_state, STYPE = int)', name, a, b);
				END LOOP;
			END LOOP;
			CONTINUE;
		END IF;
		-- the extension's own functions have neither names nor OIDs among their first arguments
		FOREACH a IN ARRAY CASE WHEN name LIKE 'absmartly%' THEN ARRAY['name', 'oid', '$schema.strange'] ELSE types END LOOP
			EXECUTE format('CREATE FUNCTION $schema.%I(%s) %s', name, a, body);
			FOREACH b IN ARRAY few LOOP
				EXECUTE format('CREATE FUNCTION $schema.%I(%s, %s) %s', name, a, b, body);
				CONTINUE WHEN name LIKE 'absmartly%' OR a <> ALL (few);
				FOREACH c IN ARRAY few LOOP
					EXECUTE format('CREATE FUNCTION $schema.%I(%s, %s, %s) %s', name, a, b, c, body);
				END LOOP;
			END LOOP;
		END LOOP;
	END LOOP;

	-- what calls with named arguments could mean
	EXECUTE 'CREATE FUNCTION $schema.absmartly_track(units jsonb, goal text, historic bool) ' || body;
	EXECUTE 'CREATE FUNCTION $schema.absmartly_track(units jsonb, goal text, achieved_at timestamptz, historic bool) ' || body;
	EXECUTE 'CREATE FUNCTION $schema.absmartly_track(units jsonb, goal text, properties jsonb, achieved_at timestamptz, historic bool) ' || body;
	EXECUTE 'CREATE FUNCTION $schema.absmartly_treatment(units jsonb, experiment text, historic bool) ' || body;
	EXECUTE 'CREATE FUNCTION $schema.absmartly_treatment(units jsonb, experiment text, exposed_at timestamptz, historic bool) ' || body;

	-- types by the names of those that the script uses
	FOREACH name IN ARRAY ARRAY['text', 'bytea', 'jsonb', 'json', 'oid', 'name', 'uuid', 'timestamptz', 'float8', 'regclass', 'record',
		'void', 'trigger', 'event_trigger', 'anyelement', 'int4', 'int8'] LOOP
		EXECUTE format('CREATE DOMAIN $schema.%I AS pg_catalog.int4 CHECK ($schema.stranger() IS NULL)', name);
	END LOOP;
END
\$do\$;
EOT
	return;
}

# Uses all that the extension has, while strangers come first in the search path.
sub use_everything
{
	my ($database, $schema) = @_;
	my $path = "SET search_path = $schema, public, pg_catalog;";
	my $units = q{'{"user_id": 1}'::pg_catalog.jsonb};
	my $text = sub { "'$_[0]'::pg_catalog.text" };
	my $exp = $text->('exp');
	my $check = sub {
		my ($query, $expected, $name) = @_;
		my ($status, $output, $error) = $node->psql($database, "$path\n$query");
		my $fits = $status == 0 && (ref $expected ? $output =~ $expected : $output eq $expected);
		ok($fits, "$schema: $name") or diag(join "\n", $query, substr($output, 0, 1000), $error);
	};

	$check->("SELECT $schema.absmartly_wait_until_ready('60 s'::pg_catalog.interval)", 't', 'it is ready');
	$check->("SELECT name FROM $schema.absmartly_experiments", 'exp', 'experiments');
	$check->("SELECT $schema.absmartly_treatment($units, $exp)", '1', 'a treatment');
	$check->("SELECT $schema.absmartly_unit_treatment(2::pg_catalog.int8, $exp)", '1', 'one of a number');
	$check->("SELECT $schema.absmartly_peek_unit_treatment($exp, $exp)", '1', 'one of a text');
	$check->("SELECT $schema.absmartly_variable_value($units, ${\ $text->('colour')}, ${\ $text->('none')})", 'red', 'a text');
	$check->("SELECT $schema.absmartly_peek_variable_value($units, ${\ $text->('size')}, $_)", '7', "a value of type $_")
		for '0::pg_catalog.int8', '0::pg_catalog.int2', '0::pg_catalog.numeric', '0::pg_catalog.float8', q{'0'::pg_catalog.jsonb};
	$check->("SELECT $schema.absmartly_peek_variable_value($units, ${\ $text->('deep')}, '{}'::pg_catalog.jsonb)", '{"a": 1}', 'an object');
	$check->("SELECT experiment FROM $schema.absmartly_assignments($units)", 'exp', 'assignments');
	$check->("SELECT $schema.absmartly_explain($units, $exp) OPERATOR(pg_catalog.->>) 'experiment'::pg_catalog.text", qr/exp/, 'an explanation');
	$check->("SELECT $schema.absmartly_variable_keys(), $schema.absmartly_custom_field_keys(), "
		. "$schema.absmartly_custom_field_value($exp, ${\ $text->('field')}), $schema.absmartly_custom_field_value_type($exp, ${\ $text->('field')})",
		qr/colour.*field.*"value".*text/, 'keys and fields');
	$check->("SELECT $schema.absmartly_hash_unit($exp), $schema.absmartly_match_audience("
		. "${\ $text->('{\"filter\":[{\"value\":true}]}')}, '{}'::pg_catalog.jsonb), "
		. "$schema.absmartly_evaluate('{\"value\":1}'::pg_catalog.json, '{}'::pg_catalog.jsonb), $schema.absmartly_base64url($exp), "
		. "$schema.absmartly_utf8_bytes($exp)", qr/\|t\|1\|/, 'the engine');

	# events of all ways
	$check->(<<"EOT", qr/1/, 'a session context');
SELECT $schema.absmartly_context_create($units);
SELECT $schema.absmartly_context_set_attribute(${\ $text->('a')}, 1::pg_catalog.numeric);
SELECT $schema.absmartly_context_set_attribute(${\ $text->('b')}, '2020-01-01'::pg_catalog.date);
SELECT $schema.absmartly_context_set_unit(${\ $text->('device')}, 5::pg_catalog.numeric);
SELECT $schema.absmartly_context_treatment($exp), $schema.absmartly_context_peek_variable_value(${\ $text->('size')}, 0::pg_catalog.numeric);
SELECT $schema.absmartly_context_track(${\ $text->('context goal')}, '{"a":1}'::pg_catalog.jsonb);
SELECT $schema.absmartly_context_attributes(), $schema.absmartly_context_pending(), $schema.absmartly_context_experiments();
EOT
	$node->safe_psql($database, <<"EOT");
CREATE TABLE public.orders (id int PRIMARY KEY, customer bigint, amount numeric, note text, paid timestamptz UNIQUE, tags text[], attr jsonb);
CREATE TRIGGER tracked AFTER INSERT ON public.orders FOR EACH ROW
	EXECUTE FUNCTION $schema.absmartly_track_trigger('order', 'user_id=customer', 'amount,note,tags', 'achieved_at=paid', 'attributes=attr');
EOT
	$check->("INSERT INTO public.orders SELECT i, i, 1.5, 'n'::pg_catalog.text, pg_catalog.make_timestamptz(2026, 1, i, 0, 0, 0), '{a}', '{\"x\": 1}' "
		. 'FROM pg_catalog.generate_series(1, 3) AS i', '', 'rows with a trigger');
	$check->('ALTER TABLE public.orders ADD COLUMN more pg_catalog.int4', '', 'its table is changed');
	$check->('CREATE DOMAIN public.more AS pg_catalog.int4; ALTER TABLE public.orders ADD COLUMN gone public.more; '
		. 'DROP DOMAIN public.more CASCADE', '', 'and loses a column with its type');
	$check->("SELECT pg_catalog.count(*) FROM $schema.absmartly_check_triggers()", '0', 'triggers are looked at');
	$check->("CALL $schema.absmartly_backfill_goals('public.orders'::pg_catalog.regclass, ${\ $text->('id')}, ${\ $text->('paid')}, "
		. "${\ $text->('user_id=customer')}, ${\ $text->('*')}, ${\ $text->('paid')}, ${\ $text->('attr')}, NULL, 2)", '', 'a backfill of goals');
	$check->("CALL $schema.absmartly_backfill_goals('public.orders'::pg_catalog.regclass, ${\ $text->('paid')}, ${\ $text->('named')}, "
		. "${\ $text->('user_id=customer')}, ${\ $text->('amount,note,tags')}, name => ${\ $text->('x')}, chunk => 2)",
		'', 'another, with few arguments');
	$check->("CALL $schema.absmartly_backfill_exposures('public.orders'::pg_catalog.regclass, ${\ $text->('id')}, $exp, "
		. "${\ $text->('user_id=customer')}, ${\ $text->('paid')}, ${\ $text->('attr')}, NULL, 2)", '', 'one of exposures');
	$check->("SELECT pg_catalog.count(*) FROM $schema.absmartly_backfills; TABLE $schema.absmartly_backfills", qr/\A3\n.*finished/s, 'the view of them');
	$check->("SELECT $schema.absmartly_take_back(NULL, ${\ $text->('x')}, ${\ $text->('true')})", '3', 'one of them is taken back');
	$check->("SELECT $schema.absmartly_track($units, ${\ $text->('big')}, "
		. "pg_catalog.jsonb_build_object('x'::pg_catalog.text, pg_catalog.repeat('y'::pg_catalog.text, 30000)))", '', 'a goal of several chunks');

	# and the views on them
	ok(await_sql($node, "SELECT pg_catalog.count(*) FROM $schema.absmartly_pending_events WHERE pg_catalog.starts_with(place, 'memory')", '0',
		database => $database), "$schema: events are in the heaps");
	$check->("SELECT pg_catalog.count(*) FROM $schema.absmartly_pending_events", qr/^(1[0-9]|[2-9][0-9])$/, 'events that wait');
	$check->("SELECT $schema.absmartly_context_create($units); SELECT $schema.absmartly_context_treatment($exp); "
		. "TABLE $schema.absmartly_outbox; TABLE $schema.absmartly_pending_events; TABLE $schema.absmartly_stat",
		qr/waiting.*context goal/s, 'all columns of the views');
	$node->safe_psql($database, "ALTER DATABASE $database SET absmartly.publishing = on");
	$check->("SELECT $schema.absmartly_publish('60 s'::pg_catalog.interval)", qr/^\d+$/, 'delivery');
	$check->("SELECT dead.kind, dead.goal FROM $schema.absmartly_dead_letters AS dead", 'goal|big', 'a dead letter');
	$check->("SELECT $schema.absmartly_discard(), $schema.absmartly_requeue(1::pg_catalog.int8)", '1|0', 'it is dropped');
	$check->("SELECT $schema.absmartly_refresh('60 s'::pg_catalog.interval) OPERATOR(pg_catalog.>) 0::pg_catalog.int8, "
		. "data IS NOT NULL FROM $schema.absmartly_shared_data()", 't|t', 'a fetch');
	$check->("REFRESH MATERIALIZED VIEW $schema.absmartly_outbox_a WITH NO DATA; SELECT $schema.absmartly_stat_reset()", '', 'a reset');

	# nothing of it leans on anything else
	is($node->safe_psql($database, <<"EOT"), '', "$schema: its objects depend on nothing of strangers");
WITH ours AS (
	SELECT d.classid, d.objid FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
	WHERE d.deptype = 'e' AND e.extname = 'absmartly'
), all_of_it AS (
	SELECT classid, objid FROM ours
	UNION SELECT 'pg_rewrite'::regclass, r.oid FROM pg_rewrite r JOIN ours o ON o.classid = 'pg_class'::regclass AND o.objid = r.ev_class
)
SELECT DISTINCT pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid) FROM pg_depend d JOIN all_of_it a USING (classid, objid)
WHERE d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_type'::regclass, 'pg_cast'::regclass, 'pg_class'::regclass)
	AND (d.refclassid, d.refobjid) NOT IN (SELECT classid, objid FROM ours)
EOT
	return;
}

$node->safe_psql('postgres', 'CREATE ROLE mallory LOGIN');
$collector->fault('/v1', { match => { method => 'PUT' }, reject_goal => 'big', times => -1 });
for my $schema (qw(public ab))
{
	my $database = "db_$schema";

	$node->safe_psql('postgres', "CREATE DATABASE $database; ALTER DATABASE $database SET absmartly.publishing = off");
	$node->safe_psql($database, "CREATE SCHEMA IF NOT EXISTS $schema; GRANT ALL ON SCHEMA $schema TO mallory");
	make_strangers($database, $schema);
	my ($status, $output, $error) = $node->psql($database, "CREATE EXTENSION absmartly SCHEMA $schema");
	is($status, 0, "$schema: the extension can be created") or diag($error);
	use_everything($database, $schema) if $status == 0;
}

# A function that fits as well as the extension's own makes calls ambiguous: an error, and nothing of it runs.
$node->safe_psql('postgres', 'CREATE DATABASE ambiguous');
$node->safe_psql('ambiguous', <<'EOT');
GRANT ALL ON SCHEMA public TO mallory;
SET ROLE mallory;
CREATE FUNCTION absmartly_outbox_records(view text, x int DEFAULT 0) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a stranger runs'; END $$
EOT
fails_with($node, 'CREATE EXTENSION absmartly SCHEMA public;', '42725', qr/is not unique/, 'no choice is made among functions that fit as well',
	database => 'ambiguous');

$node->stop;
done_testing();
