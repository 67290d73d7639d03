
# What a role without privileges may do: assign. What it may not: see the data as a whole, change it, or get at the key.

use strict;
use warnings;

use AbsmartlyTest;
use FindBin;
use PostgreSQL::Test::Utils;
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
is(as('app', "SELECT absmartly_wait_until_ready('$PATIENCE s')"), 't', 'waits for them');
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

# A GRANT on a view suffices, and is needed: for those who look after delivery.
$node->safe_psql('postgres', 'CREATE ROLE looker; CREATE ROLE counter; CREATE ROLE by_column');
my %views = (
	absmartly_stat           => 'SELECT mode FROM absmartly_stat',
	absmartly_outbox         => 'SELECT count(*) FROM absmartly_outbox',
	absmartly_pending_events => 'SELECT count(*) FROM absmartly_pending_events',
	absmartly_dead_letters   => 'SELECT count(*) FROM absmartly_dead_letters');
configure($node, 'absmartly.publishing = off');
$node->safe_psql('postgres', q{SELECT absmartly_track('{"user_id": 1}', 'g')});
my $session = $node->background_psql('postgres');    # what is in memory stays there while its context holds it
$session->query_safe(<<'EOT');
SELECT absmartly_context_create('{"user_id": 1}', options => '{"publish_delay": -1}'); SELECT absmartly_context_treatment('exp')
EOT
for my $view (sort keys %views)
{
	like(as('looker', $views{$view}), qr/permission denied for view $view/, "without a grant $view is not read");
	$node->safe_psql('postgres', "GRANT SELECT ON $view TO looker");
	unlike(as('looker', $views{$view}), qr/ERROR/, "with one it is");
	unlike(as('looker', "TABLE $view"), qr/ERROR/, 'all of it');
}
like(as('looker', 'SELECT DISTINCT kind FROM absmartly_pending_events ORDER BY kind DESC'), qr/^goal/, 'events are seen');
is(as('looker', q{SELECT count(*) FROM absmartly_outbox_records('absmartly_pending_events') WHERE payload IS NULL}), '0', 'from the function, too');

# who may see records but not events gets no events from the function
$node->safe_psql('postgres', 'GRANT SELECT ON absmartly_outbox TO counter; GRANT SELECT (goals) ON absmartly_outbox TO by_column');
unlike(as('counter', 'SELECT sum(bytes) FROM absmartly_outbox'), qr/ERROR/, 'records can be granted alone');
is(as('counter', q{SELECT count(payload) FROM absmartly_outbox_records('absmartly_outbox')}), '0', 'without what is in them');
unlike(as('by_column', 'SELECT sum(goals) FROM absmartly_outbox'), qr/ERROR/, 'and by column');
like(as('counter', $views{absmartly_pending_events}), qr/permission denied for view/, 'events are another thing');
like(as($_->[0], "SELECT count(*) FROM $_->[1]"), qr/permission denied for function/, "$_->[0] may not call $_->[1]")
	for [ 'app', q{absmartly_outbox_records('absmartly_outbox')} ], [ 'counter', q{absmartly_outbox_records('absmartly_pending_events')} ],
	[ 'counter', q{absmartly_outbox_records('absmartly_dead_letters')} ], [ 'app', q{absmartly_decode_events('')} ], [ 'counter', q{absmartly_decode_events('')} ],
	[ 'looker', 'absmartly_shared_data()' ], [ 'app', 'absmartly_stat_get()' ];
$session->quit;

# functions
for ([ 'absmartly_requeue(bigint)', 'absmartly_requeue()', '0' ], [ 'absmartly_discard(bigint)', 'absmartly_discard()', '0' ],
	[ 'absmartly_stat_reset()', 'absmartly_stat_reset()', '' ], [ 'absmartly_refresh(interval)', 'absmartly_refresh() > 0', 't' ],
	[ 'absmartly_shared_data()', '(SELECT count(*) FROM absmartly_shared_data())', '1' ])
{
	my ($function, $call, $result) = @$_;

	like(as('looker', "SELECT $call"), qr/permission denied for function/, "$function is not for everybody");
	$node->safe_psql('postgres', "GRANT EXECUTE ON FUNCTION $function TO looker");
	is(as('looker', "SELECT $call"), $result, 'a grant is enough');
}
configure($node, 'absmartly.publishing = on');

# The block of the reference for servers that strangers reach, as it stands there.
my $reference = slurp_file("$FindBin::RealBin/../../doc/reference.md");
my ($section) = $reference =~ /^### Shared and web-exposed servers\n(.*?)^## /ms;
my @blocks = $section =~ /^```sql\n(.*?)^```/msg;
is(scalar @blocks, 2, 'the reference has a block that takes, and one that gives');

sub of_public
{
	my ($database) = @_;

	return $node->safe_psql($database, <<'EOT');
WITH member AS (
	SELECT d.classid, d.objid FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
	WHERE e.extname = 'absmartly' AND d.deptype = 'e')
SELECT objid::regprocedure::text FROM member WHERE classid = 'pg_proc'::regclass AND has_function_privilege('stranger', objid, 'EXECUTE')
UNION ALL SELECT objid::regclass::text FROM member WHERE classid = 'pg_class'::regclass
AND (has_table_privilege('stranger', objid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
	OR has_any_column_privilege('stranger', objid, 'SELECT, INSERT, UPDATE, REFERENCES'))
UNION ALL SELECT c.reltype::regtype::text FROM member JOIN pg_class c ON c.oid = objid AND classid = 'pg_class'::regclass
WHERE has_type_privilege('stranger', c.reltype, 'USAGE')
EOT
}

$node->safe_psql('postgres', 'CREATE DATABASE exposed; CREATE ROLE stranger; CREATE ROLE shop; CREATE ROLE on_call');
create_extension($node, 'exposed');
ok(wait_ready($node, 'exposed'), 'an exposed database');
isnt(of_public('exposed'), '', 'PUBLIC has something');
$node->safe_psql('exposed', $blocks[0]);
is(of_public('exposed'), '', 'the block leaves it nothing');
$node->safe_psql('exposed', $blocks[0]);
is(of_public('exposed'), '', 'it can be run again');
$node->safe_psql('exposed', <<'EOT');
CREATE FUNCTION absmartly_later() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TYPE absmartly_later_type AS ENUM ('x');
ALTER EXTENSION absmartly ADD FUNCTION absmartly_later();
ALTER EXTENSION absmartly ADD TYPE absmartly_later_type;
EOT
is(of_public('exposed'), '', 'what is added later is not its, either');
is($node->safe_psql('exposed', q{SELECT has_type_privilege('stranger', 'absmartly_later_type', 'USAGE')}), 'f', 'nor are types');
$node->safe_psql('exposed', $blocks[1]);
is(of_public('exposed'), '', 'nor is what others are given');

sub exposed_as
{
	my ($role, $query) = @_;
	my ($status, $output, $error) = $node->psql('exposed', "SET ROLE $role; $query");

	return $status == 0 ? $output : $error;
}
like(exposed_as('stranger', $_), qr/permission denied/, "a stranger may not: $_")
	for q{SELECT absmartly_track('{"user_id": 1}', 'forged')}, q{SELECT absmartly_peek_treatment('{"user_id": 1}', 'exp')},
	'TABLE absmartly_experiments', 'SELECT absmartly_context_create()', q{CALL absmartly_backfill_goals('pg_class', 'oid', 'g', 'u=oid')};
is(exposed_as('shop', q{SELECT absmartly_treatment('{"user_id": 1}', 'exp'), absmartly_unit_treatment(2, 'exp')}),
	'1|1', 'the application assigns');
is(exposed_as('shop', q{SELECT absmartly_track('{"user_id": 1}', 'sold')}), '', 'and tracks');
like(exposed_as('shop', 'TABLE absmartly_outbox'), qr/permission denied/, 'and sees no outbox');
unlike(exposed_as('on_call', "TABLE $_"), qr/ERROR/, "those on call read $_")
	for qw(absmartly_experiments absmartly_stat absmartly_outbox absmartly_pending_events absmartly_dead_letters absmartly_backfills);
is(exposed_as('on_call', 'SELECT absmartly_requeue(), absmartly_discard()'), '0|0', 'and requeue');
is(exposed_as('on_call', q{SELECT absmartly_take_back(filter => 'false')}), '0', 'and take back');
like(exposed_as('stranger', q{SELECT absmartly_take_back(filter => 'false')}), qr/permission denied/, 'which strangers may not');
is(exposed_as('dba', 'SELECT mode FROM absmartly_stat'), 'preloaded', 'pg_monitor keeps the statistics');

# another schema, and a search path that leads elsewhere
$node->safe_psql('postgres', 'CREATE DATABASE placed');
$node->safe_psql('placed', 'CREATE SCHEMA ab; CREATE EXTENSION absmartly SCHEMA ab');
ok(await_sql($node, "SELECT ab.absmartly_wait_until_ready('$PATIENCE s')", 't', database => 'placed'), 'it works in a schema of its own');
is($node->safe_psql('placed', q{SELECT ab.absmartly_peek_treatment('{"user_id": 1}', 'exp')}), '1', 'and assigns there');
fails_with($node, 'ALTER EXTENSION absmartly SET SCHEMA public;', '0A000', qr/does not support SET SCHEMA/, 'it stays there',
	database => 'placed');

$node->stop;
done_testing();
