
# What a role without privileges may do: assign. What it may not: see the data as a whole, change it, or get at the key.

use strict;
use warnings;

use AbsmartlyTest;
use Test::More;

my $collector = start_collector(data => experiments(experiment('exp', fullOnVariant => 1)));
my $node = start_node('main', collector => $collector);

ok(wait_ready($node), 'ready');
$node->safe_psql('postgres', 'CREATE ROLE app LOGIN; CREATE ROLE dba LOGIN IN ROLE pg_monitor');

sub as
{
	my ($role, $query) = @_;
	my ($status, $output, $error) = $node->psql('postgres', "SET ROLE $role; $query");

	return $status == 0 ? $output : $error;
}

is(as('app', q{SELECT absmartly_peek_treatment('{"user_id": 1}', 'exp')}), '1', 'a role without privileges assigns');
is(as('app', q{SELECT absmartly_peek_unit_treatment(1, 'exp')}), '1', 'in bulk, too');
is(as('app', q{SELECT absmartly_peek_variable_value('{"user_id": 1}', 'colour', ''::text)}), 'red', 'reads variables');
is(as('app', q{SELECT count(*) FROM absmartly_assignments('{"user_id": 1}')}), '1', 'sees its assignments');
is(as('app', q{SELECT name FROM absmartly_experiments}), 'exp', 'and the experiments');
is(as('app', q{SELECT absmartly_wait_until_ready()}), 't', 'waits for them');
is(as('app', q{SET absmartly.overrides = '{"exp": 7}'; SELECT absmartly_peek_treatment('{"user_id": 1}', 'exp')}), '7', 'overrides for itself');

like(as('app', "SELECT * FROM $_"), qr/permission denied/, "may not read $_")
	for 'absmartly_shared_data()', 'absmartly_stat', 'absmartly_stat_get()';
like(as('app', "SELECT $_"), qr/permission denied/, "may not call $_")
	for 'absmartly_refresh()', q{absmartly_set_context_data('{}')}, 'absmartly_stat_reset()';

# nothing that it sets redirects traffic or reads the key
like(as('app', "SET absmartly.$_ = ''"), qr/permission denied|cannot be changed/, "may not set $_")
	for qw(endpoint api_key api_key_file application environment application_version refresh_interval ca_file proxy event_logger databases
	max_retries connect_timeout request_timeout);
like(as('app', "SHOW absmartly.$_"), qr/must be (superuser|a member)|permission denied/, "may not see $_")
	for qw(api_key api_key_file proxy);
like(as('app', 'ALTER DATABASE postgres SET absmartly.endpoint = \'http://127.0.0.1:1/v1\''), qr/must be owner|permission denied/,
	'nor for the database');

is(as('dba', 'SELECT ready FROM absmartly_stat'), 't', 'pg_monitor reads the statistics');
like(as('dba', 'SELECT absmartly_stat_reset()'), qr/permission denied/, 'and does not reset them');

# an owner of a database may not give its worker settings that only superusers set
$node->safe_psql('postgres', 'CREATE DATABASE appdb OWNER app');
like(as('app', "ALTER DATABASE appdb SET absmartly.endpoint = 'http://127.0.0.1:1/v1'"), qr/permission denied/,
	'an owner of a database may not set its endpoint');

# all objects of the extension have a comment, and belong to its schema
is($node->safe_psql('postgres', <<'EOT'), '', 'every function has a comment');
SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'absmartly'
WHERE obj_description(p.oid, 'pg_proc') IS NULL
EOT
is($node->safe_psql('postgres', <<'EOT'), '', 'every view has a comment');
SELECT c.oid::regclass FROM pg_class c JOIN pg_depend d ON d.objid = c.oid AND d.classid = 'pg_class'::regclass AND d.deptype = 'e'
JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'absmartly'
WHERE obj_description(c.oid, 'pg_class') IS NULL AND c.relkind IN ('r', 'v')
EOT

# another schema, and a search path that leads elsewhere
$node->safe_psql('postgres', 'CREATE DATABASE placed');
$node->safe_psql('placed', 'CREATE SCHEMA ab; CREATE EXTENSION absmartly SCHEMA ab');
ok(await_sql($node, 'SELECT ab.absmartly_wait_until_ready()', 't', database => 'placed'), 'it works in a schema of its own');
is($node->safe_psql('placed', q{SELECT ab.absmartly_peek_treatment('{"user_id": 1}', 'exp')}), '1', 'and assigns there');
fails_with($node, 'ALTER EXTENSION absmartly SET SCHEMA public;', '0A000', qr/does not support SET SCHEMA/, 'it stays there',
	database => 'placed');

$node->stop;
done_testing();
