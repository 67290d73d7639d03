
# No command loses events that are committed, whoever gives it: what takes materialized views, or all that there is in a
# schema or of an owner, leaves the outbox as it is, or is refused, or ends what would lose an event with an error.

use strict;
use warnings;

use AbsmartlyTest;
use Test::More;

my $collector = start_collector(data => experiments(experiment('exp')));
my $node = start_node('main', collector => $collector, settings => <<'EOT');
absmartly.publish_delay = 100ms
absmartly.publishing = off
EOT
my @heaps = map { "absmartly_outbox_$_" } qw(a b bulk_a bulk_b parked);
my $heap = $heaps[0];
my $waiting = 0;

ok(wait_ready($node), 'ready');

# Goals of which each has a number of its own.
sub track
{
	my ($number) = @_;
	my $first = $waiting + 1;

	$waiting += $number;
	$node->safe_psql('postgres', <<"EOT");
SELECT count(absmartly_track(jsonb_build_object('user_id', i), 'kept', jsonb_build_object('n', i))) FROM generate_series($first, $waiting) AS i
EOT
	return;
}

sub all_there
{
	my ($name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($node->safe_psql('postgres', q{SELECT count(*), count(DISTINCT properties ->> 'n') FROM absmartly_pending_events}),
		"$waiting|$waiting", "nothing is lost: $name");
}

# Runs a command in a session of its own. Gives the error, or the notices.
sub run
{
	my ($command) = @_;
	my ($status, $output, $error) = $node->psql('postgres', $command);

	return ($status, $error);
}

# REFRESH in every form says that it does nothing.
sub refresh
{
	my ($mode, $role) = @_;

	for my $name (@heaps, 'absmartly_outbox_nothing')
	{
		for my $command ("REFRESH MATERIALIZED VIEW $name", "REFRESH MATERIALIZED VIEW $name WITH DATA",
			"REFRESH MATERIALIZED VIEW $name WITH NO DATA", "REFRESH MATERIALIZED VIEW CONCURRENTLY $name",
			"DO \$\$ BEGIN FOR i IN 1..3 LOOP REFRESH MATERIALIZED VIEW public.$name WITH NO DATA; END LOOP; END \$\$",
			"PREPARE p AS SELECT 1; BEGIN; SAVEPOINT s; REFRESH MATERIALIZED VIEW $name; ROLLBACK TO s; REFRESH MATERIALIZED VIEW $name WITH NO DATA; COMMIT")
		{
			my ($status, $error) = run(($role ? "SET ROLE $role; " : '') . $command);

			ok($status == 0 && $error =~ /NOTICE: .* is not refreshed\n.*DETAIL/s, "$mode: $command") or diag($error);
		}
	}
	# what maintenance does
	my ($status, $error) = run(($role ? "SET ROLE $role; " : '') . <<'EOT');
DO $$ DECLARE v record; BEGIN
	FOR v IN SELECT schemaname, matviewname FROM pg_matviews LOOP
		EXECUTE format('REFRESH MATERIALIZED VIEW %I.%I', v.schemaname, v.matviewname);
	END LOOP;
END $$
EOT
	is($status, 0, "$mode: a script refreshes all materialized views") or diag($error);
	is($node->safe_psql('postgres', 'SELECT count(*) FROM mine'), '1', "$mode: and has refreshed the others");
	all_there("$mode: REFRESH");
	return;
}

$node->safe_psql('postgres', <<'EOT');
CREATE ROLE keeper SUPERUSER;
CREATE ROLE app;
CREATE SCHEMA other;
CREATE TABLE base (id int);
CREATE MATERIALIZED VIEW mine AS SELECT * FROM base WITH NO DATA;
INSERT INTO base VALUES (1);
EOT
track(200);
refresh('preloaded');

my ($status, $error) = run("SET ROLE app; REFRESH MATERIALIZED VIEW $heap WITH NO DATA");
like($error, qr/must be owner|permission denied/, 'who may not refresh is told so');
if ($node->pg_version >= 17)
{
	$node->safe_psql('postgres', 'CREATE ROLE maintainer; GRANT pg_maintain TO maintainer; GRANT USAGE ON SCHEMA public TO maintainer');
	refresh('by pg_maintain', 'maintainer');
	$node->safe_psql('postgres', "GRANT MAINTAIN ON $heap TO app");
	($status, $error) = run("SET ROLE app; REFRESH MATERIALIZED VIEW $heap WITH NO DATA");
	is($status, 0, 'who has MAINTAIN on one gets a notice, too');
	all_there('MAINTAIN');
}

# All that takes a materialized view, a relation, a schema, an owner; what is refused here, and by whom.
my @commands = (
	[ "ALTER MATERIALIZED VIEW $heap RENAME TO x", qr/cannot be changed in this way/ ],
	[ "ALTER TABLE $heap RENAME TO x", qr/cannot be changed in this way/ ],
	[ "ALTER MATERIALIZED VIEW $heap SET SCHEMA other", qr/cannot be changed in this way/ ],
	[ "ALTER TABLE $heap SET SCHEMA other", qr/cannot be changed in this way/ ],
	[ "ALTER MATERIALIZED VIEW $heap ALTER payload SET STORAGE EXTENDED", qr/cannot be changed in this way/ ],
	[ "ALTER TABLE $heap ALTER payload SET STORAGE MAIN", qr/cannot be changed in this way/ ],
	[ "ALTER MATERIALIZED VIEW $heap SET ACCESS METHOD heap", qr/cannot be changed in this way/ ],
	[ "CREATE INDEX ON $heap (status)", qr/cannot be changed in this way/ ],
	[ "ALTER EXTENSION absmartly DROP MATERIALIZED VIEW $heap", qr/cannot be changed in this way/ ],
	[ "CLUSTER $heap", qr/no previously clustered index/ ],
	[ "TRUNCATE $heap", qr/is not a table/ ],
	[ "DELETE FROM $heap", qr/cannot change materialized view/ ],
	[ "SET allow_system_table_mods = on; UPDATE $heap SET status = 1", qr/cannot change materialized view/ ],
	[ "INSERT INTO $heap SELECT * FROM $heap", qr/cannot change materialized view/ ],
	[ 'DELETE FROM absmartly_outbox', qr/cannot delete from view/ ],
	[ 'DELETE FROM absmartly_pending_events', qr/cannot delete from view/ ],
	[ 'UPDATE absmartly_dead_letters SET record = 1', qr/cannot update view/ ],
	[ "DROP MATERIALIZED VIEW $heap CASCADE", qr/extension absmartly requires it/ ],
	[ 'DROP VIEW absmartly_outbox', qr/extension absmartly requires it/ ],
	[ 'DROP FUNCTION absmartly_outbox_guard() CASCADE', qr/extension absmartly requires it/ ],
	[ 'DROP EVENT TRIGGER absmartly_outbox_keep', qr/extension absmartly requires it/ ],
	[ "CREATE RULE r AS ON INSERT TO $heap DO INSTEAD NOTHING", qr/rules on materialized views/ ],
	[ "CREATE TRIGGER t AFTER INSERT ON $heap EXECUTE FUNCTION absmartly_track_trigger()", qr/cannot have triggers|is not a table/ ],
	[ "CREATE POLICY p ON $heap", qr/is not a table/ ],
	[ "ALTER TABLE $heap ENABLE ROW LEVEL SECURITY", qr/cannot be performed/ ],
	[ "ALTER TABLE $heap SET UNLOGGED", qr/cannot be performed/ ],
	[ "ALTER TABLE $heap ADD COLUMN x int", qr/cannot be performed/ ],
	[ "ALTER TABLE $heap DROP COLUMN note", qr/cannot be performed/ ],
	[ "ALTER TABLE $heap ALTER status TYPE bigint", qr/cannot be performed/ ],
	[ "BEGIN; LOCK TABLE $heap", qr/is not a table|cannot lock/ ],
	[ "ALTER MATERIALIZED VIEW $heap SET TABLESPACE pg_default" ],
	[ 'ALTER MATERIALIZED VIEW ALL IN TABLESPACE pg_default SET TABLESPACE pg_default' ],
	[ "ALTER MATERIALIZED VIEW $heap SET (fillfactor = 50, autovacuum_enabled = on)" ],
	[ "ALTER MATERIALIZED VIEW $heap RENAME COLUMN payload TO p; ALTER MATERIALIZED VIEW $heap RENAME COLUMN p TO payload" ],
	[ "ALTER MATERIALIZED VIEW $heap OWNER TO keeper" ],
	[ 'REASSIGN OWNED BY keeper TO postgres' ],
	[ 'DROP OWNED BY keeper' ],
	[ 'GRANT ALL ON ALL TABLES IN SCHEMA public TO app' ],
	[ 'REVOKE ALL ON ALL TABLES IN SCHEMA public FROM app' ],
	[ 'DROP OWNED BY app CASCADE' ],
	[ "VACUUM $heap" ],
	[ "VACUUM (FREEZE, ANALYZE, TRUNCATE) $heap" ],
	[ "VACUUM FULL $heap" ],
	[ 'VACUUM FULL' ],
	[ "ANALYZE $heap" ],
	[ 'CLUSTER' ],
	[ "REINDEX TABLE $heap" ],
	[ 'REINDEX SCHEMA public' ],
	[ "COMMENT ON MATERIALIZED VIEW $heap IS 'something else'" ],
	[ "CREATE TABLE copied (LIKE $heap); DROP TABLE copied" ],
	[ "CREATE STATISTICS st (ndistinct) ON status, record FROM $heap" ]);

for my $case (@commands)
{
	my ($command, $refused) = @$case;

	($status, $error) = run($command);
	if ($refused) { like($error, $refused, $command); }
	else { is($status, 0, $command) or diag($error); }
	track(1);
	all_there($command);
}

# Without the library in the server, each session begins without it.
$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "''");
$node->restart;
refresh('not preloaded');

# A session that has not loaded it can make a heap unfit: then no event is taken that would be lost. A transaction that
# has begun writes to the heap that it knows, or fails.
sub unfit
{
	my ($change, $back, $message) = @_;
	my $track = q{SELECT absmartly_track('{"user_id": 1}', 'refused');};
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $next = $waiting + 1;

	$session->query_safe("BEGIN; SELECT absmartly_track('{\"user_id\": 1}', 'kept', '{\"n\": $next}')");
	$node->safe_psql('postgres', $change);
	$session->query('COMMIT');
	if ($session->{stderr} eq '') { $waiting++; }
	else { like($session->{stderr}, $message, "$change: a transaction that has an event is not committed"); }
	$session->quit;
	fails_with($node, $track, '55000', $message, "$change: nor is one that begins");
	fails_with($node, "BEGIN; $track COMMIT;", '55000', $message, "$change: in a block");
	$node->safe_psql('postgres', $back);
	track(1);
	all_there($change);
	return;
}
unfit("ALTER MATERIALIZED VIEW $heap RENAME TO x", "ALTER MATERIALIZED VIEW x RENAME TO $heap", qr/has no outbox/);
unfit("ALTER TABLE $heap SET SCHEMA other", "ALTER TABLE other.$heap SET SCHEMA public", qr/has no outbox/);
unfit("ALTER EXTENSION absmartly DROP MATERIALIZED VIEW $heap", "ALTER EXTENSION absmartly ADD MATERIALIZED VIEW $heap", qr/has no outbox/);
unfit("CREATE INDEX x ON $heap (status)", 'DROP INDEX x', qr/cannot be written.*It has an index/s);
unfit("ALTER TABLE $heap ALTER payload SET STORAGE EXTENDED", "ALTER TABLE $heap ALTER payload SET STORAGE PLAIN",
	qr/cannot be written.*not all of storage PLAIN/s);

# Event triggers that a session turns off leave the guard.
($status, $error) = run("ALTER EVENT TRIGGER absmartly_outbox_keep DISABLE; REFRESH MATERIALIZED VIEW $heap");
like($error, qr/cannot be refreshed/, 'without the event trigger a REFRESH with data fails');
$node->safe_psql('postgres', 'ALTER EVENT TRIGGER absmartly_outbox_keep ENABLE ALWAYS');
($status, $error) = run("SET session_replication_role = replica; REFRESH MATERIALIZED VIEW $heap WITH NO DATA");
like($error, qr/is not refreshed/, 'replicas are guarded, too');
all_there('without event triggers');

# All of it arrives, once.
$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "'absmartly'");
$node->adjust_conf('postgresql.conf', 'absmartly.publishing', 'on');
$node->restart;
ok(await_sql($node, 'SELECT outbox_events FROM absmartly_stat', '0'), 'it is delivered');
is(join(' ', sort { $a <=> $b } map { $_->{properties}{n} } $collector->goals(space => '/v1', name => 'kept')), join(' ', 1 .. $waiting),
	'all of it, once');
is(scalar(my @refused = $collector->goals(space => '/v1', name => 'refused')), 0, 'and nothing that was not committed');

$node->stop;
done_testing();
