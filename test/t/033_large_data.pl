
# Data of tens of thousands of experiments, and prefetched data of any role: what it takes grows with its size and no
# faster, and can be interrupted.

use strict;
use warnings;

use AbsmartlyTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_node('main');

$node->safe_psql('postgres', <<'EOT');
-- kB that this backend has taken at most, and hundredths of a second that it has used
CREATE FUNCTION most_memory() RETURNS int LANGUAGE sql
AS $$ SELECT substring(pg_read_file('/proc/self/status') FROM 'VmHWM:\s+(\d+)')::int $$;
CREATE FUNCTION cpu() RETURNS int LANGUAGE sql
AS $$ SELECT f[12]::int + f[13]::int FROM regexp_split_to_array(regexp_replace(pg_read_file('/proc/self/stat'), '^.*\) ', ''), ' ') f $$;
-- so many experiments with a variable and a custom field each
CREATE FUNCTION data(count int) RETURNS json LANGUAGE sql AS $$
	SELECT json_build_object('experiments', json_agg(json_build_object('id', i, 'name', 'exp_' || i, 'unitType', 'user_id', 'iteration', 1,
		'seedHi', 1, 'seedLo', i, 'split', '[0.5, 0.5]'::json, 'trafficSeedHi', 2, 'trafficSeedLo', i, 'trafficSplit', '[0, 1]'::json,
		'fullOnVariant', 1, 'audience', '', 'audienceStrict', false,
		'variants', json_build_array(json_build_object('name', 'A'), json_build_object('name', 'B', 'config', '{"var_' || i || '": ' || i || '}')),
		'customFieldValues', json_build_array(json_build_object('name', 'field_' || i, 'type', 'string', 'value', 'v')))))
	FROM generate_series(1, count) i $$;
CREATE TABLE kept (name text, data json);
INSERT INTO kept VALUES ('small', data(2)), ('many', data(30000));
-- one config of many small objects
INSERT INTO kept SELECT 'config', json_build_object('experiments', json_build_array(json_build_object('id', 1, 'name', 'exp', 'unitType', 'user_id',
	'seedHi', 1, 'seedLo', 2, 'split', '[0.5, 0.5]'::json, 'trafficSeedHi', 2, 'trafficSeedLo', 3, 'trafficSplit', '[0, 1]'::json,
	'fullOnVariant', 1, 'variants', json_build_array(json_build_object('name', 'A'), json_build_object('name', 'B', 'config',
		(SELECT '{"list": [' || string_agg('{"a":' || i || '}', ',') || ']}' FROM generate_series(1, 500000) i))))));
GRANT SELECT ON kept TO PUBLIC;
CREATE ROLE plain LOGIN;
EOT

# What a query takes in a new session: kB of memory beyond what there was, and hundredths of a second.
sub cost_of
{
	my ($query) = @_;
	my @lines = split /\n/, $node->safe_psql('postgres', <<EOT);
SELECT absmartly_is_ready();
SELECT most_memory(), cpu();
$query;
SELECT most_memory(), cpu();
EOT
	my ($memory, $cpu) = split /\|/, $lines[1];
	my ($memory_after, $cpu_after) = split /\|/, $lines[-1];
	return ($memory_after - $memory, $cpu_after - $cpu, $lines[2]);
}

SKIP:
{
	skip 'the system does not tell what a process takes', 28 if !-r '/proc/self/status';

	# all experiments: quadratic, the view took 1 GB and several seconds
	$node->safe_psql('postgres', q{SELECT absmartly_set_context_data(data) FROM kept WHERE name = 'many'});
	for my $case (
		[ 'SELECT count(*) FROM absmartly_experiments', 30000, 96 ],
		[ 'SELECT sum(cardinality(variables)) + sum(cardinality(custom_fields)) FROM absmartly_experiments', 60000, 96 ],
		[ q{SELECT count(*) FROM absmartly_assignments('{"user_id": 1}')}, 30000, 96 ],
		[ 'SELECT count(*) FROM jsonb_object_keys(absmartly_variable_keys())', 30000, 128 ],
		[ 'SELECT cardinality(absmartly_custom_field_keys())', 30000, 96 ],
		[ 'SELECT length(data::text) > 1000000 FROM absmartly_shared_data()', 't', 160 ],
		[ q{SELECT absmartly_explain('{"user_id": 1}', 'exp_29999') #>> '{result,variant}'}, 1, 64 ],
		[ q{SELECT sum(absmartly_peek_variable_value('{"user_id": 1}', 'var_' || i, 0)) FROM generate_series(1, 30000) i}, 450015000, 64 ])
	{
		my ($query, $expected, $megabytes) = @$case;
		my ($memory, $cpu, $result) = cost_of($query);

		is($result, $expected, $query);
		cmp_ok($memory, '<', $megabytes * 1024, "... takes little memory ($memory kB)");
		cmp_ok($cpu, '<', 150, "... and little time ($cpu)");
	}

	# prefetched data, and data by hand
	for my $name ('many', 'config')
	{
		my $size = $node->safe_psql('postgres', "SELECT octet_length(data::text) / 1024 FROM kept WHERE name = '$name'");

		for my $function (q{absmartly_context_create('{"user_id": 1}', data => data)}, 'absmartly_set_context_data(data)')
		{
			my ($memory) = cost_of("SELECT $function FROM kept WHERE name = '$name'");

			cmp_ok($memory, '<', 22 * $size, "$function, $name: $memory kB for $size kB");
		}
	}
}

# what makes use of it gives what it should
$node->safe_psql('postgres', q{SELECT absmartly_set_context_data(data) FROM kept WHERE name = 'many'});
is($node->safe_psql('postgres', <<'EOT'), <<'EOT' =~ s/\n\z//r, 'a context over the same');
SELECT absmartly_context_create('{"user_id": 1}', data => data) FROM kept WHERE name = 'many';
SELECT jsonb_array_length(absmartly_context_experiments()), jsonb_array_length(absmartly_context_custom_field_keys()),
	absmartly_context_peek_treatment('exp_30000'), absmartly_context_peek_variable_value('var_777', 0);
EOT

30000|30000|1|777
EOT

# it can be interrupted
for my $name ('many', 'config')
{
	fails_with($node, <<EOT, '57014', qr/statement timeout/, "compiling is interrupted: $name");
SET statement_timeout = '20ms';
SELECT absmartly_context_create('{"user_id": 1}', data => data) FROM kept WHERE name = '$name';
EOT
}

# a bound for what any role may give
fails_with($node, <<'EOT', '54000', qr/experiment data of \d+ bytes is too large.*It may have up to 1024 kB/s, 'prefetched data is bounded');
ALTER ROLE plain SET absmartly.max_context_data = '1MB';
\c - plain
SELECT absmartly_context_create('{"user_id": 1}', data => data) FROM kept WHERE name = 'config';
EOT
fails_with($node, <<'EOT', '42501', qr/absmartly.max_context_data/, 'which that role cannot raise');
SET ROLE plain;
SET absmartly.max_context_data = '64MB';
EOT
fails_with($node, <<'EOT', '54000', qr/experiment data of \d+ bytes is too large.*It may have up to 65536 kB/s, 'so is data by hand');
SELECT absmartly_set_context_data(json_build_object('x', repeat('x', 70000000)));
EOT
is(stat_of($node, 'experiments'), 30000, 'which changes nothing then');

# a context knows many names, and not too many
is($node->safe_psql('postgres', <<'EOT'), "\n110000|\n1|0|1\nt", 'names beyond the bound are not kept');
SELECT absmartly_context_create('{"user_id": 1}', data => data) FROM kept WHERE name = 'small';
SELECT count(absmartly_context_peek_treatment('none_' || i)), max(NULL::int) FROM generate_series(1, 110000) i;
SELECT absmartly_context_treatment('exp_1'), absmartly_context_treatment('none_110000'), absmartly_context_peek_variable_value('var_2', 0) - 1;
SELECT total_bytes < 64 * 1024 * 1024 FROM pg_backend_memory_contexts WHERE name = 'absmartly context';
EOT
fails_with($node, <<'EOT', '54000', qr/too many experiments.*up to 100000 experiments/s, 'overrides beyond it are refused');
SELECT absmartly_context_create('{"user_id": 1}', data => data) FROM kept WHERE name = 'small';
SELECT absmartly_context_set_overrides(jsonb_object_agg('none_' || i, 1)) FROM generate_series(1, 100001) i;
EOT

# overrides of many experiments
is($node->safe_psql('postgres', <<'EOT'), "30000", 'as many overrides as experiments');
SELECT FROM set_config('absmartly.overrides', (SELECT json_object_agg('exp_' || i, 0)::text FROM generate_series(1, 30000) i), false);
SELECT count(*) FILTER (WHERE variant = 0 AND overridden) FROM absmartly_assignments('{"user_id": 1}');
EOT

# data of several sessions at once: what the file holds is what is in force, whoever comes last
$node->safe_psql('postgres', <<'EOT');
CREATE TABLE sets AS SELECT i, json_build_object('experiments', '[]'::json, 'mark', 'mark-' || i || '-', 'padding', repeat('x', 4000000 * (i % 2))) AS data
	FROM generate_series(1, 6) i;
EOT
my $script = $node->basedir . '/set.sql';
append_to_file($script, <<'EOT');
\set i random(1, 6)
SELECT absmartly_set_context_data(data) FROM sets WHERE i = :i;
EOT
my $in_force = q{SELECT data ->> 'mark' FROM absmartly_shared_data()};
my $agreed = 0;
for my $round (1 .. 12)
{
	$node->command_ok([ 'pgbench', '-n', '-c', '4', '-j', '4', '-t', '5', '-f', $script, 'postgres' ], "sessions set data, round $round");
	$agreed += $node->safe_psql('postgres', <<'EOT') eq 't';
SELECT position(convert_to(data ->> 'mark', 'UTF8') IN pg_read_binary_file('absmartly/' || (SELECT oid FROM pg_database WHERE datname = 'postgres'))) > 0
FROM absmartly_shared_data()
EOT
}
is($agreed, 12, 'the file holds what is in force');
my $mark = $node->safe_psql('postgres', $in_force);
$node->stop('immediate');
$node->start;
ok(wait_ready($node), 'ready after a crash');
is($node->safe_psql('postgres', $in_force), $mark, 'with the same data');

# who waits for another one can leave
my $holder = $node->background_psql('postgres');
$holder->query_safe(q{BEGIN; SELECT absmartly_set_context_data('{"experiments":[]}')});
is($node->safe_psql('postgres', q{SET lock_timeout = '60s'; SELECT absmartly_set_context_data('{"experiments":[], "a": 1}')}), '',
	'nobody waits for the end of a transaction that has set data');
$holder->quit;

# the file goes with the extension
$node->safe_psql('postgres', 'DROP EXTENSION absmartly');
ok(await(sub { !-e $node->data_dir . '/absmartly/' . $node->safe_psql('postgres', q{SELECT oid FROM pg_database WHERE datname = 'postgres'}) }),
	'without the extension there is no file');

unlike(log_of($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
$node->stop;
done_testing();
