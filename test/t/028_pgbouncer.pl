
# Contexts of the scope "transaction" through PgBouncer in transaction mode: clients that share a server connection never
# see each other's contexts, units or events.

use strict;
use warnings;

use AbsmartlyTest;
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

my ($program) = grep { -x } map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin';

plan skip_all => 'there is no pgbouncer' if !$program && !$ENV{CI};

my $collector = start_collector(data => experiments(experiment('exp')));
my $node = start_node('main', collector => $collector, settings => "absmartly.publish_delay = 50ms\n");

ok(wait_ready($node), 'ready');
ok($program, 'there is a pgbouncer');
my $user = $node->safe_psql('postgres', 'SELECT current_user');
my $folder = PostgreSQL::Test::Utils::tempdir_short();
my $port = 6432;    # names a socket in a folder of our own

$node->safe_psql('postgres', <<'EOT');
CREATE FUNCTION no_context() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	PERFORM absmartly_context_id();
	RETURN false;
EXCEPTION WHEN object_not_in_prerequisite_state THEN
	RETURN true;
END
$$;
-- what a transaction of a client does: it must find nothing, and have what is its own
CREATE FUNCTION serve(client text, n int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	uid text := client || '-' || n;
BEGIN
	IF NOT no_context() THEN
		RAISE 'client % sees the context of %', client, absmartly_context_units();
	END IF;
	PERFORM absmartly_context_create(jsonb_build_object('user_id', uid), jsonb_build_object('client', client));
	PERFORM absmartly_context_treatment('exp');
	PERFORM absmartly_context_track('served', jsonb_build_object('uid', uid));
	IF absmartly_context_units() IS DISTINCT FROM jsonb_build_object('user_id', uid)
		OR absmartly_context_attributes() IS DISTINCT FROM jsonb_build_object('client', client) OR absmartly_context_pending() <> 2 THEN
		RAISE 'client % has units % and % pending events', client, absmartly_context_units(), absmartly_context_pending();
	END IF;
	RETURN pg_backend_pid();
END
$$;
ALTER DATABASE postgres SET absmartly.context_scope = transaction;
EOT

open my $file, '>', "$folder/pgbouncer.ini" or die "pgbouncer.ini: $!";
print {$file} <<EOT;
[databases]
one = host=@{[ $node->host ]} port=@{[ $node->port ]} dbname=postgres user=$user pool_size=1
some = host=@{[ $node->host ]} port=@{[ $node->port ]} dbname=postgres user=$user pool_size=2
[pgbouncer]
pool_mode = transaction
auth_type = any
listen_port = $port
unix_socket_dir = $folder
logfile = $folder/log
max_client_conn = 50
ignore_startup_parameters = extra_float_digits
EOT
close $file or die "pgbouncer.ini: $!";
my $pgbouncer = IPC::Run::start([ $program, "$folder/pgbouncer.ini" ], '<', \undef, '>', '/dev/null', '2>', '/dev/null');
ok(await(sub { -S "$folder/.s.PGSQL.$port" }), 'pgbouncer runs');

sub client
{
	my ($database) = @_;

	return $node->background_psql($database, extra_params => [ '-d', "host=$folder port=$port dbname=$database" ], on_error_stop => 0);
}

# Clients take turns on one server connection.
my @clients = map { client('one') } 1 .. 3;
my %pids;
my $wrong = '';
for my $round (1 .. 10)
{
	for my $number (0 .. $#clients)
	{
		my $client = $clients[$number];

		# in one statement; in several, whose transaction ends in three ways
		$pids{ $client->query("SELECT serve('one $number', $round);") } = 1;
		$client->query("BEGIN;\nSELECT serve('two $number', $round);");
		$pids{ $client->query('SELECT pg_backend_pid() WHERE absmartly_context_units() ? \'user_id\';') } = 1;
		$client->query('SELECT 1 / 0;') if $round % 3 == 0;
		$wrong .= $client->{stderr} =~ s/^psql:<stdin>:\d+: ERROR:  division by zero$//mr;
		$client->{stderr} = '';
		$client->query($round % 3 == 1 ? 'ROLLBACK;' : 'COMMIT;');
		$wrong .= $client->{stderr};
		$wrong .= "client $number keeps a context\n" if $client->query('SELECT no_context();') ne 't';
	}
}
is($wrong, '', 'no client sees the context of another one, or of its own former transaction');
is(scalar(keys %pids), 1, 'though all have the same server connection');
$node->safe_psql('postgres', "SELECT absmartly_publish('$PATIENCE s')");
my @served = check_requests('takes turns');
is(scalar(@served), 3 * 10 + 3 * 3, 'of committed transactions');

# A multitude at once, some of whose transactions fail
$collector->forget('/v1');
open my $script, '>', "$folder/script.sql" or die "script.sql: $!";
print {$script} <<'EOT';
\set n random(1, 1000000)
\set end random(1, 4)
BEGIN;
SELECT serve('bench :client_id', :n);
SELECT 1 / (absmartly_context_units() = jsonb_build_object('user_id', 'bench :client_id-' || :n))::int;
\if :end = 1
ROLLBACK;
\else
COMMIT;
\endif
SELECT 1 / no_context()::int;
EOT
close $script or die "script.sql: $!";
my ($output, $error) = ('', '');
my $run = IPC::Run::run([ 'pgbench', '-n', '-h', $folder, '-p', $port, '-c', 8, '-j', 2, '-t', 40, '-f', "$folder/script.sql", 'some' ],
	'>', \$output, '2>', \$error, IPC::Run::timeout($PATIENCE));
ok($run && $output =~ m{number of transactions actually processed: 320/320}, 'eight clients on two server connections')
	|| diag("$output\n$error");
$node->safe_psql('postgres', "SELECT absmartly_publish('$PATIENCE s')");
cmp_ok(scalar(check_requests('a multitude')), '>', 100, 'most of their transactions are told of');

# Why the scope is needed: a context of a session is one of the server connection
$clients[0]->query(q{SELECT absmartly_context_create('{"user_id": "secret"}', options => '{"scope": "session"}');});
is($clients[1]->query('SELECT absmartly_context_units();'), '{"user_id": "secret"}', 'of the scope "session" the next client has the context of the one before');
$clients[1]->query('DISCARD ALL;');
is($clients[0]->query('SELECT no_context();'), 't', 'until somebody discards it');

$_->quit for @clients;
$pgbouncer->signal('TERM');
$pgbouncer->finish;
unlike(log_of($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
$node->stop;
done_testing();

# Checks that each request has the events of one client's transaction, under its own unit; gives the uids.
sub check_requests
{
	my ($name) = @_;
	my @requests = grep { $_->{goals} } $collector->publish_requests(space => '/v1');
	my @uids = map { $_->{properties}{uid} } map { @{ $_->{goals} } } @requests;
	my %hashes = map { split /\|/ } split /\n/, $node->safe_psql('postgres',
		'SELECT DISTINCT uid, absmartly_hash_unit(uid) FROM unnest($$' . '{' . join(',', map { "\"$_\"" } @uids) . '}' . '$$::text[]) AS uid');
	my $wrong = '';

	for my $request (@requests)
	{
		my $uid = $request->{goals}[0]{properties}{uid};
		my ($client) = $uid =~ /^(.*)-/;

		$wrong .= "$uid: units\n" if @{ $request->{units} } != 1 || $request->{units}[0]{uid} ne $hashes{$uid};
		$wrong .= "$uid: events\n" if @{ $request->{goals} } != 1 || @{ $request->{exposures} // [] } != 1;
		$wrong .= "$uid: attributes\n" if @{ $request->{attributes} // [] } != 1 || $request->{attributes}[0]{value} ne $client;
	}
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($wrong, '', "$name: each request has the events of one transaction under its own unit");
	return @uids;
}
