
# The worker's event logger: told of ready, refresh and error; runs as its owner; its failures stop nothing.

use strict;
use warnings;

use AbsmartlyTest;
use Test::More;

my $collector = start_collector(data => experiments(experiment('exp')));
my $node = start_node('main', collector => $collector, extension => 0, settings => "absmartly.max_retries = 0\n");

$node->safe_psql('postgres', <<'EOT');
CREATE SCHEMA audit;
CREATE TABLE audit.events (n serial, context jsonb, event text, data jsonb, who text DEFAULT current_user, path text DEFAULT current_setting('search_path'),
	at timestamptz DEFAULT now());
CREATE ROLE auditor;
GRANT USAGE ON SCHEMA audit TO auditor;
GRANT INSERT ON audit.events TO auditor;
GRANT USAGE ON SEQUENCE audit.events_n_seq TO auditor;
CREATE FUNCTION audit.log(context jsonb, event text, data jsonb) RETURNS void LANGUAGE sql
AS $$ INSERT INTO audit.events (context, event, data) VALUES (context, event, data) $$;
ALTER FUNCTION audit.log OWNER TO auditor;
ALTER DATABASE postgres SET absmartly.event_logger = 'audit.log';
EOT
create_extension($node);
ok(wait_ready($node), 'ready');

my $events = q{SELECT string_agg(event, ',' ORDER BY n) FROM audit.events};
ok(await_sql($node, $events, 'ready'), 'ready is told once');
is($node->safe_psql('postgres', q{SELECT context->>'source', context->>'database', (context->>'pid')::int > 0, context ? 'id' FROM audit.events}),
	'worker|postgres|t|t', 'with its context');
is($node->safe_psql('postgres', q{SELECT data->'experiments'->0->>'name' FROM audit.events}), 'exp', 'and the data');
is($node->safe_psql('postgres', q{SELECT DISTINCT who, path FROM audit.events}), 'auditor|pg_catalog, pg_temp', 'as its owner, with a safe search path');

$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
is($node->safe_psql('postgres', $events), 'ready,refresh', 'refresh is told before the caller goes on');
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
is($node->safe_psql('postgres', q{SELECT bool_and(at > before) FROM (SELECT at, lag(at) OVER (ORDER BY n) AS before FROM audit.events) t}),
	't', 'now() goes on from one event to the next');
$node->safe_psql('postgres', q{DELETE FROM audit.events WHERE n = (SELECT max(n) FROM audit.events)});
$collector->fault('/v1', { match => { method => 'GET' }, status => 404, times => 1 });
$node->psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
is($node->safe_psql('postgres', $events), 'ready,refresh,error', 'so is an error');
like($node->safe_psql('postgres', q{SELECT data FROM audit.events WHERE event = 'error'}), qr/status 404/, 'with its text');
is($node->safe_psql('postgres', q{SELECT jsonb_typeof(data) FROM audit.events WHERE event = 'error'}), 'string', 'as a JSON string');

# an owner without the right to do something, a function that fails, one that is missing: reported, and nothing else
$node->safe_psql('postgres', <<'EOT');
CREATE TABLE audit.secrets (secret text);
CREATE OR REPLACE FUNCTION audit.log(context jsonb, event text, data jsonb) RETURNS void LANGUAGE plpgsql
AS $$ BEGIN INSERT INTO audit.secrets VALUES ('stolen'); END $$;
EOT
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
ok(await(sub { log_of($node) =~ /event logger "audit\.log" failed at event "refresh": permission denied for table secrets/ }),
	'a logger may do what its owner may, no more');
$node->safe_psql('postgres', <<'EOT');
CREATE OR REPLACE FUNCTION audit.log(context jsonb, event text, data jsonb) RETURNS void LANGUAGE plpgsql
AS $$ BEGIN RESET ROLE; INSERT INTO audit.secrets VALUES ('stolen'); END $$;
EOT
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
ok(await(sub { log_of($node) =~ /failed at event "refresh": cannot set parameter "role" within security-restricted operation/ }),
	'it can not become somebody else');
is($node->safe_psql('postgres', 'SELECT count(*) FROM audit.secrets'), '0', 'nothing was stolen');
$node->safe_psql('postgres', 'DROP FUNCTION audit.log');
is($node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s') > 0"), 't', 'without the function refresh goes on');
ok(await(sub { log_of($node) =~ /event logger "audit\.log" does not exist/ }), 'and the log tells');

$node->stop;
done_testing();
