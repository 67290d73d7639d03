
# The long accounting: each event for itself, whatever happens to servers and collector.
#
# Clients run transactions of all kinds. A goal carries an id of its transaction and its place in that ("12:3"), with a mark
# if it is undone by a savepoint; whether the transaction has committed says a row of the table witness, which it inserts as
# well. Clients keep a log of what was acknowledged to them; where a commit's outcome is unknown to them, the row decides.
# Every hundredth goal has a name that the collector always refuses, and says which events it means, names only the first of
# them, or does not say.
#
# Meanwhile servers are killed in all ways, and a synchronous standby becomes the primary; workers are ended, the endpoint
# changes, the outbox's heaps are rewritten, and the collector fails in each of its ways. What has arrived is in the
# collector's journal. In the end:
#
# - acknowledged transactions are there, and failed ones are not;
# - no goal is lost or invented, after a failover neither, and exposures of transactions with goals are not either;
# - dead letters are the guilty goals, each once, and arrive once when they are requeued and the collector has relented;
# - what arrived twice was in flight at a kill, or its answer was lost.
#
# What was in flight, so that it may arrive once more? An answer is *clean* if it is a full one of success, in time. It is
# in time if it came within half the request's time limit after the sending, which publishedAt tells: the queue of a busy
# collector counts. What had no clean answer may be repeated at any time. What had one is repeated only
#
# - if it was in flight at a kill, sent before the worker was gone. The worker has up to MAX_CONNECTIONS requests under way, and lets marks of at most
#   MAX_CONNECTIONS - 1 that are done wait for the disk while it looks for others, all of which may be done when it looks:
#   so that is in one of the last 2 * MAX_CONNECTIONS requests with a clean answer before the kill, or had its answer during
#   it. At a failover the marks have to be at the standby: that is asked for first, and what was in flight then counts.
# - or if it lies in one row of the outbox with an event that was not settled when the worker was killed: a row is marked as
#   a whole, and then read again as a whole; a worker that ends in order leaves the rest of it only. That may be any event of the transaction (or of the session context,
#   whose records are sent together) that is at most ROW events away, and that this worker has sent without a clean answer,
#   or not yet, or, if it is guilty, has not found out.
#
# Where a worker is ended in order, nothing with a clean answer may be repeated because it was in flight; in a fast shutdown,
# which waits for half a second, what had its answer before it began.
#
# Twenty thousand goals and eight kills by default. ABSMARTLY_ACCOUNTING tells how many goals, and ABSMARTLY_KILLS how many
# kills (50 from a million goals on); ABSMARTLY_SEED repeats a choice of transactions and disturbances.

use strict;
use warnings;

use AbsmartlyDisturbances;
use AbsmartlyTest;
use File::Path qw(rmtree);
use IPC::Open2;
use List::Util qw(max min shuffle sum0);
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $GOALS = $ENV{ABSMARTLY_ACCOUNTING} || 20_000;
my $KILLS = $ENV{ABSMARTLY_KILLS} // ($GOALS >= 1_000_000 ? 50 : 8);
my $LARGE = $GOALS > 100_000;
my $SEED = $ENV{ABSMARTLY_SEED} // int(time) % 1_000_000;
my $BATCH_SIZE = $LARGE ? 500 : 100;
# rows of a large transaction
my $BULK = $LARGE ? 4000 : 500;

use constant {
	CLIENTS         => 3,
	MAX_CONNECTIONS => 3,
	TIMEOUT_MS      => 4000,
	# requests that may be in flight, or done without a mark on disk
	UNMARKED => 2 * 3,
	# events of a row, at most
	ROW => 350,
	# transactions of a session context
	CONTEXT_LIFE => 8,
};

note "seed $SEED, $GOALS goals, $KILLS kills";
srand $SEED;

# ---------------------------------------------------------------------------
# Collector and servers
# ---------------------------------------------------------------------------

my $folder = PostgreSQL::Test::Utils::tempdir();
my $journal = "$folder/journal";
my @SPACES = qw(/v1 /second/v1);
my $collector = start_collector(
	data    => experiments(experiment('exp')),
	options => [
		'--keep', 1000, '--journal', $journal,
		map { ('--fault', $_) } '/v1={"reject_goal":"guilty","times":-1}',
		'/second/v1={"reject_goal":"guilty","most_errors":1,"times":-1}',
		map { "$_={\"reject_goal\":\"unsaid\",\"with_index\":false,\"status\":422,\"times\":-1}" } @SPACES
	]);

my $servers = 1;
my @all_nodes;
my $primary = start_node("server$servers", collector => $collector, streaming => 1, settings => disturbed_settings(
	publish_delay   => '50ms',
	batch_size      => $BATCH_SIZE,
	max_connections => MAX_CONNECTIONS,
	request_timeout => TIMEOUT_MS . 'ms',
	connect_timeout => '1s') . <<'EOT');
max_connections = 50
max_wal_size = 1GB
wal_keep_size = 512MB
wal_retrieve_retry_interval = 200ms
EOT
push @all_nodes, $primary;
my $standby;
ok(wait_ready($primary), 'ready');

$primary->safe_psql('postgres', <<'EOT');
CREATE TABLE witness (t bigint PRIMARY KEY);
CREATE FUNCTION goal_name(t bigint, k int) RETURNS text IMMUTABLE LANGUAGE sql AS
$$SELECT CASE WHEN (7 * t + k) % 101 <> 0 THEN 'truth' WHEN (7 * t + k) / 101 % 5 = 0 THEN 'unsaid' ELSE 'guilty' END$$;
CREATE FUNCTION goal_id(t bigint, k int, undone boolean) RETURNS text IMMUTABLE LANGUAGE sql AS
$$SELECT t::text || ':' || k::text || CASE WHEN undone THEN ':undone' ELSE '' END$$;
CREATE TABLE orders (t bigint, k int, undone boolean NOT NULL DEFAULT false,
	id text GENERATED ALWAYS AS (goal_id(t, k, undone)) STORED);
CREATE TABLE deferred (LIKE orders INCLUDING ALL);
DO $$
DECLARE
	goal text;
BEGIN
	FOREACH goal IN ARRAY '{truth,guilty,unsaid}'::text[] LOOP
		EXECUTE format('CREATE TRIGGER %I AFTER INSERT ON orders FOR EACH ROW WHEN (goal_name(NEW.t, NEW.k) = %L) '
			'EXECUTE FUNCTION absmartly_track_trigger(%L, ''user_id=id'', ''id'')', goal, goal, goal);
		EXECUTE format('CREATE CONSTRAINT TRIGGER %I AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED FOR EACH ROW '
			'WHEN (goal_name(NEW.t, NEW.k) = %L) EXECUTE FUNCTION absmartly_track_trigger(%L, ''user_id=id'', ''id'')', goal, goal, goal);
	END LOOP;
END $$;
CREATE FUNCTION track(t bigint, k int, undone boolean DEFAULT false, historic boolean DEFAULT false) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM absmartly_track(jsonb_build_object('user_id', goal_id(t, k, undone)), goal_name(t, k),
		jsonb_build_object('id', goal_id(t, k, undone)), historic => historic);
END $$;
CREATE FUNCTION track_in_context(t bigint, k int, undone boolean DEFAULT false) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM absmartly_context_track(goal_name(t, k), jsonb_build_object('id', goal_id(t, k, undone)));
END $$;
CREATE PROCEDURE walk(t bigint, many int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 0 .. many - 1 LOOP
		INSERT INTO witness VALUES (t + i);
		PERFORM track(t + i, 1, i % 2 = 1);
		INSERT INTO orders VALUES (t + i, 2, i % 2 = 1);
		IF i % 2 = 1 THEN
			ROLLBACK;
		ELSE
			COMMIT;
		END IF;
	END LOOP;
END $$;
CREATE FUNCTION try(t bigint, many int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO witness VALUES (t);
	FOR i IN 1 .. many LOOP
		BEGIN
			PERFORM track(t, i, true);
			INSERT INTO orders VALUES (t, i, true);
			INSERT INTO deferred VALUES (t, i, true);
			RAISE EXCEPTION 'undone';
		EXCEPTION WHEN raise_exception THEN
			INSERT INTO deferred VALUES (t, i);
		END;
	END LOOP;
END $$;
EOT

# Writes a file that nobody ever sees half of.
sub write_file
{
	my ($name, $text) = @_;

	open my $file, '>', "$name.new" or die "$name: $!";
	print {$file} $text;
	close $file or die "$name: $!";
	rename "$name.new", $name or die "$name: $!";
	return;
}

# What clients read when they connect, and before each transaction: how many goals there may be by now.
sub tell_clients { return write_file("$folder/primary", $primary->connstr('postgres')) }
sub allow { return write_file("$folder/allowed", int $_[0]) }

# A standby that each commit waits for.
sub add_standby
{
	my $backup = "backup$servers";

	$primary->backup($backup);
	$standby = PostgreSQL::Test::Cluster->new('server' . ++$servers);
	$standby->init_from_backup($primary, $backup, has_streaming => 1);
	rmtree($primary->backup_dir . "/$backup");
	push @all_nodes, $standby;
	$standby->start;
	return await(sub { look_up($primary, 'SELECT count(*) FROM pg_stat_replication') eq '1' })
		&& await(sub { done("ALTER SYSTEM SET synchronous_standby_names = '*'") })
		&& await(sub { look_up($primary, 'SELECT pg_reload_conf()') })
		&& await(sub { look_up($primary, q{SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'}) eq '1' });
}

# Whether the primary has done something; it may be away.
sub done
{
	my ($query) = @_;
	my ($status) = eval { $primary->psql('postgres', $query) };

	return defined $status && $status == 0;
}

# ---------------------------------------------------------------------------
# Clients
# ---------------------------------------------------------------------------

my ($session, $session_input, $session_output);    # psql, while there is a connection
my $context;                                          # the session's: its number, and transactions left to it
my ($log, $next, $number);
my $main = $$;

sub disconnect
{
	return if !$session;
	close $session_input;
	close $session_output;
	waitpid $session, 0;
	($session, $context) = ();
	return;
}

# Runs statements, which leave no transaction open; gives what they print, and whether the connection has outlived them.
# That the server says: psql may not have noticed when it comes to its own commands.
sub run_script
{
	my ($script) = @_;
	my $output = '';

	print {$session_input} "$script\nSELECT '<<done>>';\n";
	$session_input->flush;
	while (defined(my $line = readline $session_output))
	{
		return ($output, 1) if $line eq "<<done>>\n";
		$output .= $line;
	}
	disconnect();
	return ($output, 0);
}

sub connect_to_primary
{
	until ($session)
	{
		POSIX::_exit(1) if getppid != $main;
		$session = open2($session_output, $session_input, 'psql', '-XAt', '-d', slurp_file("$folder/primary"));
		run_script('');
		sleep 0.1 if !$session;
	}
	return;
}

sub write_log
{
	my ($what, $t, @more) = @_;

	$#more = 3;
	print {$log} join("\t", $what, $t, (map { $_ // '\N' } @more), sprintf('%.6f', time)) . "\n";
	$log->flush;
	return;
}

# What a transaction does is in {sql}. {kept} goals and {exposed} exposures are there if it commits, which {committed}
# shows in the output; without {committed} it must not.
my %kinds = (
	single => sub {
		my ($t) = @_;
		return { sql => "WITH w AS (INSERT INTO witness VALUES ($t) RETURNING t) SELECT 'kept', track(t, 1) FROM w;",
			kept => 1, committed => qr/^kept/m };
	},
	several => sub {
		my ($t) = @_;
		my $many = 1 + int rand 6;
		my $exposed = int rand 3;
		return { sql => "BEGIN; INSERT INTO witness VALUES ($t);" . join('', map { put($t, $_) } 1 .. $many)
				. join('', map { expose("$t:" . ($many + $_)) } 1 .. $exposed) . ' COMMIT;',
			kept => $many, exposed => $exposed, committed => qr/^COMMIT$/m };
	},
	'one unit' => sub {
		my ($t) = @_;
		my $many = 20 + int rand 100;
		return { sql => <<EOT, kept => $many, committed => qr/^COMMIT$/m };
BEGIN; INSERT INTO witness VALUES ($t);
SELECT count(absmartly_track('{"user_id": $t}', goal_name($t, k), jsonb_build_object('id', goal_id($t, k, false)))) FROM generate_series(1, $many) AS k;
COMMIT;
EOT
	},
	'rolled back' => sub {
		my ($t) = @_;
		return { sql => "BEGIN; INSERT INTO witness VALUES ($t);" . put($t, 1, 1) . expose("$t:2:undone") . put($t, 3, 1) . ' ROLLBACK;' };
	},
	aborted => sub {
		my ($t) = @_;
		return { sql => "BEGIN; INSERT INTO witness VALUES ($t);" . put($t, 1, 1) . ' SELECT 1/0; ' . put($t, 2, 1) . ' COMMIT;' };
	},
	savepoints => sub {
		my ($t) = @_;
		return { sql => "BEGIN; INSERT INTO witness VALUES ($t);" . put($t, 1) . ' SAVEPOINT a; ' . put($t, 1, 1) . expose("$t:1:undone")
				. ' SAVEPOINT b; ' . put($t, 2, 1) . ' RELEASE b; ' . put($t, 3, 1) . ' ROLLBACK TO a; ' . put($t, 2)
				. ' SAVEPOINT c; ' . put($t, 3) . ' RELEASE c; ' . expose("$t:5") . put($t, 4) . ' COMMIT;',
			kept => 4, exposed => 1, committed => qr/^COMMIT$/m };
	},
	caught => sub {
		my ($t) = @_;
		return { sql => "BEGIN; SELECT try($t, 6); COMMIT;", kept => 6, committed => qr/^COMMIT$/m };
	},
	bulk => sub {
		my ($t) = @_;
		my $many = $BULK / 5 + int rand $BULK;
		my $goals = ("INSERT INTO orders SELECT $t, k FROM generate_series(1, $many) AS k;",
			"SELECT count(track($t, k)) FROM generate_series(1, $many) AS k;",
			"SELECT count(track($t, k, historic => true)) FROM generate_series(1, $many) AS k;",
			"COPY orders (t, k) FROM stdin;\n" . join('', map { "$t\t$_\n" } 1 .. $many) . "\\.\n")[ rand 4 ];
		return { sql => "BEGIN; INSERT INTO witness VALUES ($t);\n$goals\nCOMMIT;", kept => $many, committed => qr/^COMMIT$/m };
	},
	'bulk rolled back' => sub {
		my ($t) = @_;
		return { sql => "BEGIN; INSERT INTO witness VALUES ($t); INSERT INTO orders SELECT $t, k, true FROM generate_series(1, $BULK) AS k; ROLLBACK;" };
	},
	prepared => sub {
		my ($t) = @_;
		my $name = "'p$t'";
		my $committed = rand() < 0.7;
		return { sql => "BEGIN; INSERT INTO witness VALUES ($t);" . put($t, 1) . ' SAVEPOINT a;' . put($t, 2, 1) . ' ROLLBACK TO a;'
				. put($t, 2) . expose("$t:3") . " PREPARE TRANSACTION $name;",
			kept => 2, exposed => 1, begun => qr/^PREPARE TRANSACTION$/m, attempts => 1,
			later => $committed ? "COMMIT PREPARED $name;" : "ROLLBACK PREPARED $name;",
			done => $committed ? qr/^COMMIT PREPARED$/m : qr/^ROLLBACK PREPARED$/m, outcome => $committed ? 'kept' : 'undone' };
	},
	backfill => sub {
		my ($t) = @_;
		my $many = $BULK / 5 + int rand $BULK;
		return { sql => "BEGIN; INSERT INTO witness VALUES ($t); CREATE TABLE history$t (k int PRIMARY KEY, id text);\n"
				. "INSERT INTO history$t SELECT k, goal_id($t, k, false) FROM generate_series(1, $many) AS k; COMMIT;",
			kept => $many, begun => qr/^COMMIT$/m,
			later => "CALL absmartly_backfill_goals('history$t', 'k', 'truth', 'user_id=id', 'id', chunk => " . (50 + int rand 200) . ", name => 'fill$t');",
			# what has finished without our knowing says so
			done => qr/^CALL$/m, outcome => 'kept', finished => 1 };
	},
	context => sub {
		my ($t) = @_;
		my $many = 1 + int rand 8;
		my $sql = '';
		if (!$context || $context->{left}-- <= 0)
		{
			$context = { number => $t, left => CONTEXT_LIFE - 1 };
			my $options = rand() < 0.5 ? '{"publish_delay": -1}' : '{}';
			$sql = "SELECT absmartly_context_create('{\"user_id\": \"s:$t\"}', options => '$options');";
		}
		my $prepare = rand() < 0.1;
		$sql .= "BEGIN; INSERT INTO witness VALUES ($t);" . join('', map { "SELECT track_in_context($t, $_);" } 1 .. $many)
			. " SAVEPOINT a; SELECT track_in_context($t, 1, true); ROLLBACK TO a; SELECT absmartly_context_set_attribute('n', $t);"
			. ($prepare ? " PREPARE TRANSACTION 'p$t'; COMMIT PREPARED 'p$t';" : ' COMMIT;');
		$sql .= q{SELECT absmartly_context_finalize('200 ms');} if $context->{left} == 0 && rand() < 0.3;
		return { sql => $sql, kept => $many, group => $context->{number}, committed => $prepare ? qr/^COMMIT PREPARED$/m : qr/^COMMIT$/m };
	},
	# nothing but exposures: a crash may take them, as documented
	exposing => sub {
		my ($t) = @_;
		return { sql => 'BEGIN;' . expose("$t:1") . ' COMMIT;', exposed => 1, unknown => 1 };
	});
my %weight = (single => 10, several => 20, 'one unit' => 5, 'rolled back' => 6, aborted => 5, savepoints => 12, caught => 6, walk => 6,
	bulk => 6, 'bulk rolled back' => 1, prepared => 12, backfill => 1.5, context => 12, exposing => 4);
my @bag = map { ($_) x (2 * $weight{$_}) } sort keys %weight;

sub put
{
	my ($t, $k, $undone) = @_;
	my $mark = $undone ? ', true' : '';

	return ("SELECT track($t, $k$mark);", "INSERT INTO orders VALUES ($t, $k$mark);", "INSERT INTO deferred VALUES ($t, $k$mark);")[ rand 3 ];
}

sub expose { return "SELECT absmartly_treatment('{\"user_id\": \"$_[0]\"}', 'exp');" }

# Runs one; gives the goals that are there by it for sure. What is to be finished later is appended to the list.
sub transact
{
	my ($later) = @_;
	my $kind = $bag[ rand @bag ];
	my $t = $next;

	if ($kind eq 'walk')
	{
		$next += 8;
		write_log('begin', $t + $_, $kind, 2, 0, 0) for 0 .. 7;
		my ($output) = run_script("CALL walk($t, 8);");
		my $called = $output =~ /^CALL$/m;
		write_log($_ % 2 ? 'undone' : $called ? 'kept' : 'unknown', $t + $_) for 0 .. 7;
		return $called ? 8 : 0;
	}
	$next++;
	my $does = $kinds{$kind}->($t);
	write_log('begin', $t, $kind, $does->{kept} // 0, $does->{exposed} // 0, $does->{group} // 0);
	my ($output, $connected) = run_script($does->{sql});
	if ($does->{begun})
	{
		if ($connected && $output !~ $does->{begun})
		{
			write_log('undone', $t);
			return 0;
		}
		push @$later, { %$does, t => $t, sure => scalar $output =~ $does->{begun} };
		return 0;
	}
	my $committed = $does->{committed} && $output =~ $does->{committed};
	write_log($committed ? 'kept' : $does->{unknown} || !$connected && $does->{committed} ? 'unknown' : 'undone', $t);
	return $committed ? $does->{kept} : 0;
}

# Goes on with what was begun; true if there is nothing left to do. A connection that is lost leaves it for the next time.
sub finish
{
	my ($begun) = @_;
	my ($output, $connected) = run_script($begun->{later});

	if ($output =~ $begun->{done})
	{
		write_log($begun->{outcome}, $begun->{t});
		return 1;
	}
	return 0 if !$connected;
	# It has not begun, or was finished when the connection was lost: then it has nothing to lose but what we know of it.
	return 0 if !$begun->{lost} && $begun->{sure} && !$begun->{finished};
	write_log('unknown', $begun->{t});
	return 1;
}

sub client
{
	my ($seed) = @_;
	my ($kept, @later) = (0);

	srand $seed;
	$next = $number * 100_000_000;
	local $SIG{PIPE} = 'IGNORE';
	open STDOUT, '>>', "$folder/output.$number" or POSIX::_exit(1);
	open STDERR, '>>', "$folder/errors.$number" or POSIX::_exit(1);
	open $log, '>>', "$folder/log.$number" or POSIX::_exit(1);
	while ($kept < $GOALS / CLIENTS)
	{
		POSIX::_exit(1) if getppid != $main;
		# also one that waits has a backend: it may be killed
		connect_to_primary();
		my $allowed = slurp_file("$folder/allowed") / CLIENTS;
		if ($kept >= $allowed)
		{
			sleep 0.05;
			next;
		}
		if (@later && rand() < 0.2)
		{
			my $begun = splice @later, rand @later, 1;
			if (finish($begun)) { $kept += $begun->{kept} if $begun->{outcome} eq 'kept' }
			else { push @later, { %$begun, lost => 1 } }
			next;
		}
		$kept += transact(\@later);
		write_file("$folder/kept.$number", $kept);
	}
	while (@later)
	{
		connect_to_primary();
		my $begun = shift @later;
		push @later, { %$begun, lost => 1 } if !finish($begun);
	}
	disconnect();
	POSIX::_exit(0);
}

# ---------------------------------------------------------------------------
# Disturbances
# ---------------------------------------------------------------------------

my @restarts;    # of workers, by whatever: kind, begin, end, kill (true or false)

# Waits until a worker is gone, takes note of when, and waits for another one.
sub replaced
{
	my ($restart, $former) = @_;

	await(sub { !-e "/proc/$former" }) or return 0;
	$restart->{end} = time;
	return another_worker($primary, $former);
}

# Processes of a server.
sub children_of
{
	my ($pid) = @_;
	my @children;

	for my $stat (glob '/proc/[0-9]*/stat')
	{
		open my $file, '<', $stat or next;
		my $line = readline $file // next;
		push @children, $1 if $line =~ /^(\d+) \(.*\) [A-Z] (\d+)/ && $2 == $pid;
	}
	return @children;
}

# Kills a postmaster, and waits until those that it leaves behind have noticed.
sub kill_postmaster
{
	my ($node) = @_;
	my ($pid) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;

	kill 'STOP', $pid;
	my @children = children_of($pid);
	$node->kill9;
	# also as zombies: a server that starts takes the former one for alive until then
	return await(sub { !grep { -e "/proc/$_" } $pid, @children });
}

# Runs a disturbance, which ends a worker, and takes note of when: from its beginning to when that was gone.
sub restart
{
	my ($kind, $is_kill, $code) = @_;
	my %restart = (kind => $kind, kill => $is_kill, begin => time);

	push @restarts, \%restart;
	my $done = $code->(\%restart) && worker_pid($primary);
	$restart{end} //= time;
	return $done;
}

my $space = 0;

sub change_endpoint
{
	my $url = $collector->url($SPACES[ $space ^= 1 ]);

	return await(sub { done("ALTER DATABASE postgres SET absmartly.endpoint = '$url'") });
}

my %kill = (
	'worker killed' => sub {
		my $pid = worker_pid($primary) or return 0;
		return restart('worker killed', 1, sub { kill('KILL', $pid) && replaced($_[0], $pid) });
	},
	'backend killed' => sub {
		my $worker = worker_pid($primary);
		my $pid = look_up($primary, q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1});
		# no client may have a connection at the moment
		my $own = $pid ? undef : $primary->background_psql('postgres');
		$pid ||= $own->query_safe('SELECT pg_backend_pid()');
		my $good = restart('backend killed', 1, sub { kill('KILL', $pid) && replaced($_[0], $worker) });
		$own->quit if $own;
		return $good;
	},
	'postmaster killed' => sub {
		return restart('postmaster killed', 1, sub {
			kill_postmaster($primary) or return 0;
			$_[0]{end} = time;
			return $primary->start;
		});
	},
	'immediate shutdown' => sub {
		return restart('immediate shutdown', 1, sub {
			# the endpoint in force is remembered
			return 0 if rand() < 0.5 && !change_endpoint();
			$primary->stop('immediate');
			$_[0]{end} = time;
			return $primary->start;
		});
	},
	'promotion' => sub {
		my $promoted = restart('promotion', 1, sub {
			my ($restart) = @_;
			# what is marked at this time is so at the standby when the kill comes
			my $position = await(sub { $restart->{begin} = time; look_up($primary, 'SELECT pg_current_wal_flush_lsn()') });
			await(sub { look_up($primary, "SELECT flush_lsn >= '$position' FROM pg_stat_replication") eq 't' }) or return 0;
			rand() < 0.5 ? kill_postmaster($primary) : $primary->stop('immediate');
			$restart->{end} = time;
			my $former = $primary;
			$standby->promote;
			$primary = $standby;
			tell_clients();
			$former->clean_node;
			return 1;
		});
		return $promoted && add_standby();
	});

my %order = (
	'worker ended' => sub {
		my $pid = worker_pid($primary);
		return restart('worker ended', 0, sub { look_up($primary, "SELECT pg_terminate_backend($pid)"); replaced($_[0], $pid) });
	},
	'endpoint changed' => sub {
		my $pid = worker_pid($primary);
		return restart('endpoint changed', 0, sub { change_endpoint() && replaced($_[0], $pid) });
	},
	'server restarted' => sub {
		return restart('server restarted', 0, sub { $primary->stop('fast'); $_[0]{end} = time; $primary->start });
	},
	'outbox rewritten' => sub {
		look_up($primary, "SET lock_timeout = '300ms'; VACUUM " . (rand() < 0.7 ? 'FULL ' : '') . "absmartly_outbox_$_") for qw(a b parked);
		return 1;
	},
	'collector killed' => sub {
		$collector->kill;
		sleep rand 0.5;
		$collector->restart;
		return 1;
	});

my @faults = (
	@FAULTS,
	{ status => 408 },
	{ status => 401 },
	{ drip => 20 },
	{ delay_ms => 500 },
	{ delay_ms => TIMEOUT_MS + 1000 },
	# larger than any single event
	{ status => 413, body => 'too large', content_type => 'text/plain', match => { larger_than => 2500 } },
	# not the collector's own words
	{ body => 'welcome', content_type => 'text/plain', accept => 0 },
	{ body => { status => 'fine' }, accept => 0 },
	{ huge => 2_000_000 });

# Each kind at least once, the rest at random; mixed.
sub disturbances
{
	my $some = sub {
		my ($list, $many) = @_;
		my @list = shuffle @$list;
		return (@list, map { $list[ rand @list ] } 1 .. $many - @list)[ 0 .. $many - 1 ];
	};
	my @kills = map { [ $_, $kill{$_} ] } $some->([ sort keys %kill ], $KILLS);
	my @orders = map { [ $_, $order{$_} ] } $some->([ sort keys %order, 'endpoint changed' ], max($KILLS - 2, 6));
	my @fails = map { my $fault = $_; [ 'collector failed', sub { fail_collector($collector, $SPACES[$space], $fault); return 1 } ] } $some->(\@faults, max(2 * $KILLS, scalar @faults));

	return shuffle @kills, @orders, @fails;
}

# ---------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------

sub kept_by_clients { return sum0 map { slurp_file($_) } glob "$folder/kept.?" }

# Lines of the journal; what has arrived is a little less.
my ($journal_size, $journal_lines) = (0, 0);
sub arrived
{
	open my $file, '<:raw', $journal or die "$journal: $!";
	seek $file, $journal_size, 0;
	while (my $read = read $file, my $piece, 1 << 20)
	{
		$journal_size += $read;
		$journal_lines += $piece =~ tr/\n//;
	}
	return $journal_lines;
}

# Waits as long as something goes on.
sub await_while_moving
{
	my ($code) = @_;
	my ($last, $since) = ('', time);

	until ($code->())
	{
		my $now = join ' ', arrived(), -s "$folder/log.1", -s "$folder/log.2", -s "$folder/log.3";
		($last, $since) = ($now, time) if $now ne $last;
		return 0 if time > $since + $PATIENCE;
		sleep 0.1;
	}
	return 1;
}

tell_clients();
allow(0);
ok(add_standby(), 'a synchronous standby');

my @clients;
for (1 .. CLIENTS)
{
	$number = $_;
	my $seed = $SEED * 10 + $number;
	open my $file, '>', "$folder/log.$number" or die "$folder: $!";
	close $file;
	my $pid = fork // die "cannot fork: $!";
	client($seed) if $pid == 0;
	push @clients, $pid;
}

my $start = time;
my @plan = disturbances();
my (%count, @stuck);
for my $at (0 .. $#plan)
{
	my ($kind, $disturb) = @{ $plan[$at] };
	my $step = $GOALS / (@plan + 1);

	# clients and delivery keep pace with the disturbances, so that these come upon something in each state
	allow(($at + 4) * $step);
	await_while_moving(sub { kept_by_clients() >= $at * $step && arrived() >= ($at - 4) * $step })
		or push @stuck, "nothing goes on before disturbance $at, $kind";
	sleep rand 0.5;
	$count{$kind}++;
	$disturb->() or push @stuck, "disturbance $at, $kind";
	# end a pause that a fault has led to
	look_up($primary, q{SELECT absmartly_publish('1 s')}) if rand() < 0.4;
	last if @stuck > 3;
}
is(scalar @stuck, 0, 'servers, workers and delivery are back each time') || diag(join "\n", @stuck);
allow($GOALS);
ok(await_while_moving(sub { @clients = grep { waitpid($_, POSIX::WNOHANG()) == 0 } @clients; !@clients }), 'the clients end');
kill 'KILL', @clients if @clients;
finish_prepared($primary);
is(look_up($primary, 'SELECT count(*) FROM pg_prepared_xacts'), '0', 'nothing is left prepared');
sub all_delivered { return await_while_moving(sub { done(q{SELECT absmartly_publish('5 s')}) }) }
ok(all_delivered(), 'all is delivered');

# what is left; then the collector relents
is(look_up($primary, q{SELECT * FROM absmartly_outbox WHERE status <> 'dead' LIMIT 10}), '', 'nothing is left in the outbox but dead letters');
look_up($primary, qq{COPY (SELECT goal, properties ->> 'id' FROM absmartly_dead_letters) TO '$folder/letters'});
my $relented = time;
$collector->clear_faults($_) for @SPACES;
look_up($primary, 'SELECT absmartly_requeue()');
ok(all_delivered(), 'dead letters are delivered when they may');
is(look_up($primary, 'SELECT count(*) FROM absmartly_outbox'), '0', 'nothing is left in the outbox at all');
ok(await_sql($primary, q{SELECT count(*) FROM (TABLE absmartly_outbox_a UNION ALL TABLE absmartly_outbox_b UNION ALL TABLE absmartly_outbox_bulk_a UNION ALL TABLE absmartly_outbox_bulk_b UNION ALL TABLE absmartly_outbox_parked) AS o WHERE status NOT IN (1, 5)}, '0'),
	'it has no row that nothing shows but delivered ones, and positions of backfills');
is(stat_of($primary, 'exposures_dropped, goals_dropped'), '0|0', 'nothing was dropped');
my $lasted = time - $start;

# ---------------------------------------------------------------------------
# The accounts
# ---------------------------------------------------------------------------

# The journal as it is loaded: requests, and what they carried. Numbers are made unique over restarts of the collector.
sub sort_journal
{
	my ($run, %open) = (0);

	open my $in, '<:raw', $journal or die "$journal: $!";
	open my $requests, '>', "$folder/requests" or die "$folder: $!";
	open my $sent, '>', "$folder/sent" or die "$folder: $!";
	my $end = sub {
		my ($r, @end) = @_;
		print {$requests} join("\t", $r, @{ delete $open{$r} }, @end) . "\n";
	};
	while (my $line = readline $in)
	{
		chomp $line;
		my ($tag, $n, @fields) = split /\t/, $line;
		my $r = $run * 1_000_000_000 + $n;
		if ($tag eq 'goal')
		{
			my ($t, $k, $rest) = $fields[3] =~ /"id":"(\d+):(\d+)(.*?)"/;
			print {$sent} join("\t", $r, $fields[1], $fields[2], $t // 0, $k // 0, defined $t && $rest eq '' ? 't' : 'f') . "\n";
		}
		elsif ($tag eq 'exposure') { print {$sent} join("\t", $r, 'exposure', $fields[2], 0, 0, 't') . "\n" }
		elsif ($tag eq 'request') { $open{$r} = [ $fields[0], $fields[2] / 1000, $fields[3] ] }
		elsif ($tag eq 'end') { $end->($r, @fields[ 0 .. 2 ]) }
		else
		{
			$end->($_, '\N', 'killed', '\N') for keys %open;
			$run++;
		}
	}
	$end->($_, '\N', 'open', '\N') for keys %open;
	close $_ for $requests, $sent;
	return;
}

sort_journal();
open my $file, '>', "$folder/restarts" or die "$folder: $!";
my $number_of = 0;
print {$file} join("\t", $number_of++, @$_{qw(kind kill begin end)}) . "\n" for @restarts;
close $file;

$primary->safe_psql('postgres', "COPY witness TO '$folder/witness'");
# commits need no standby any more
$primary->safe_psql('postgres', 'ALTER SYSTEM RESET synchronous_standby_names');
$primary->reload;
$standby->stop('immediate');
$primary->safe_psql('postgres', 'CREATE DATABASE accounts');

my %file = map { $_ => "'$folder/$_'" } qw(requests sent restarts witness letters);
$file{"log$_"} = "'$folder/log.$_'" for 1 .. CLIENTS;
my $parameters = join '', map { "\\set $_ $file{$_}\n" } sort keys %file;
$parameters .= "\\set in_time " . TIMEOUT_MS / 2000 . "\n\\set unmarked " . UNMARKED . "\n\\set relented $relented\n\\set row " . ROW . "\n";
$primary->safe_psql('accounts', $parameters . <<'EOT');
CREATE FUNCTION hash(text) RETURNS text IMMUTABLE LANGUAGE sql AS
$$SELECT translate(rtrim(encode(decode(md5($1), 'hex'), 'base64'), '='), '+/', '-_')$$;

CREATE TABLE request (r bigint PRIMARY KEY, received float8, published float8, accepted boolean, answered float8, state text, status int, clean boolean);
COPY request (r, received, published, accepted, answered, state, status) FROM :'requests';
UPDATE request SET clean = accepted AND state = 'answered' AND status BETWEEN 200 AND 299 AND answered - published < :in_time;
-- what a collector had written when it was killed may be lost with its connection
UPDATE request SET clean = false FROM (SELECT r / 1000000000 AS life, max(answered) AS answered FROM request GROUP BY 1) AS last
	WHERE request.r / 1000000000 = life AND request.answered = last.answered
	AND life < (SELECT max(r / 1000000000) FROM request);
CREATE TABLE sent (r bigint, name text, uid text, t bigint, k int, whole boolean);
COPY sent FROM :'sent';
CREATE TABLE log (what text, t bigint, kind text, kept int, exposed int, context bigint, at float8);
COPY log FROM :'log1';
COPY log FROM :'log2';
COPY log FROM :'log3';
CREATE TABLE witness (t bigint PRIMARY KEY);
COPY witness FROM :'witness';
CREATE TABLE letter (name text, id text);
COPY letter FROM :'letters';
CREATE TABLE restart (j int PRIMARY KEY, kind text, kill boolean, began float8, ended float8, previous float8, since float8);
COPY restart (j, kind, kill, began, ended) FROM :'restarts';

-- what has to be there
CREATE TABLE event AS
	SELECT t, k, context, at, CASE WHEN kind = 'backfill' OR (7 * t + k) % 101 <> 0 THEN 'truth' WHEN (7 * t + k) / 101 % 5 = 0 THEN 'unsaid' ELSE 'guilty' END AS name, NULL AS uid
	FROM log JOIN witness USING (t), generate_series(1, kept) AS k WHERE what = 'begin'
	UNION ALL
	SELECT t, k, context, at, 'exposure', hash(t || ':' || k)
	FROM log JOIN witness USING (t), generate_series(kept + 1, kept + exposed) AS k WHERE what = 'begin';
CREATE UNIQUE INDEX ON event (t, k);
CREATE INDEX ON event (context) WHERE context > 0;
CREATE INDEX ON event (uid) WHERE uid IS NOT NULL;

-- what was sent of that, and what else
CREATE TABLE attempt AS
	SELECT t, k, s.uid, s.name, r, published, received, accepted, answered, clean FROM sent s JOIN request USING (r) JOIN event USING (t, k)
		WHERE whole AND s.name <> 'exposure'
	UNION ALL
	SELECT e.t, e.k, s.uid, s.name, r, published, received, accepted, answered, clean FROM sent s JOIN request USING (r) JOIN event e USING (uid)
		WHERE s.name = 'exposure';
CREATE INDEX ON attempt (t, k);
CREATE TABLE stray AS
	SELECT s.* FROM sent s LEFT JOIN event e USING (t, k) WHERE s.name <> 'exposure' AND (NOT whole OR e.t IS NULL)
	UNION ALL
	SELECT s.* FROM sent s LEFT JOIN event e USING (uid) WHERE s.name = 'exposure' AND e.t IS NULL
		AND NOT EXISTS (SELECT FROM log WHERE what = 'begin' AND log.kind = 'exposing' AND hash(log.t || ':1') = s.uid);
ANALYZE;

-- since: answers from then on may not be marked on disk when it ended
UPDATE restart SET since = CASE WHEN NOT kill THEN CASE kind WHEN 'server restarted' THEN began ELSE 'infinity' END
	ELSE coalesce((SELECT answered FROM request WHERE clean AND answered < began ORDER BY answered DESC OFFSET :unmarked - 1 LIMIT 1), 0) END;
UPDATE restart SET previous = coalesce((SELECT max(ended) FROM restart o WHERE o.j < restart.j), 0);

-- what arrived more than once, and after a clean answer the first end of a worker between
CREATE TABLE repeated AS
	SELECT a.*, e.context, e.name IN ('guilty', 'unsaid') AS guilty, j.j, j.since <= a.answered AS in_flight, false AS in_open_row
	FROM (SELECT t, k, r, clean, published, answered, lead(published) OVER (PARTITION BY t, k ORDER BY r) AS next FROM attempt WHERE accepted) a
	JOIN event e USING (t, k)
	LEFT JOIN LATERAL (SELECT j, since FROM restart WHERE ended >= published AND began <= next ORDER BY j LIMIT 1) j ON clean
	WHERE next IS NOT NULL;

-- what was not settled when a worker ended, of the transactions and contexts of those
CREATE TABLE unsettled AS
	WITH wanted AS (SELECT DISTINCT t, context, j FROM repeated WHERE clean AND NOT in_flight),
		of_transactions AS (SELECT t, j FROM wanted UNION
			SELECT DISTINCT event.t, j FROM wanted JOIN event USING (context) WHERE context > 0)
	SELECT event.t, k, context, j
	FROM of_transactions JOIN restart USING (j) JOIN event USING (t),
		LATERAL (SELECT bool_or(published > previous) AS sent,
			bool_or(clean AND published > previous AND answered < least(since, ended)) AS delivered,
			bool_or(coalesce(answered, received) >= least(since, ended) AND received < :relented) AS again
			FROM attempt WHERE attempt.t = event.t AND attempt.k = event.k) AS attempts
	WHERE at <= ended AND sent AND CASE WHEN name IN ('guilty', 'unsaid') THEN again ELSE NOT delivered END;
CREATE INDEX ON unsettled (t, j, k);
CREATE INDEX ON unsettled (context, j) WHERE context > 0;
ANALYZE;
UPDATE repeated SET in_open_row = true
	WHERE clean AND NOT in_flight AND (SELECT kill FROM restart WHERE restart.j = repeated.j)
	AND (EXISTS (SELECT FROM unsettled o WHERE o.t = repeated.t AND o.j = repeated.j AND o.k BETWEEN repeated.k - :row AND repeated.k + :row)
		OR context > 0 AND EXISTS (SELECT FROM unsettled o WHERE o.context = repeated.context AND o.context > 0 AND o.j = repeated.j));
EOT

sub count_of { return $primary->safe_psql('accounts', $parameters . "SELECT count(*) FROM $_[0]") }

# Tests that there are none; shows some of them if there are.
sub none
{
	my ($from, $name) = @_;
	my $count = count_of($from);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($count, '0', $name) || diag($primary->safe_psql('accounts', "$parameters\\pset tuples_only off\nSELECT * FROM $from LIMIT 20"));
}

none(q{log LEFT JOIN witness USING (t) WHERE what = 'kept' AND witness.t IS NULL}, 'what was acknowledged is there');
none(q{log JOIN witness USING (t) WHERE what = 'undone'}, 'what has failed is not');
none(q{event WHERE NOT EXISTS (SELECT FROM attempt WHERE accepted AND attempt.t = event.t AND attempt.k = event.k)}, 'none is lost');
none(q{stray JOIN request USING (r)}, 'none is invented');
none(q{attempt JOIN event USING (t, k) WHERE attempt.name <> 'exposure'
	AND (attempt.name <> event.name OR attempt.uid NOT IN (hash(t || ':' || k), hash(t::text), hash('s:' || context)))}, 'all under their names and units');
none(q{attempt WHERE accepted AND name IN ('guilty', 'unsaid') AND received < :relented}, 'no guilty one is taken in before that may be');
none(q{letter WHERE name IS NULL OR name NOT IN ('guilty', 'unsaid')}, 'no dead letter is innocent');
none(q{event LEFT JOIN letter ON id = t || ':' || k WHERE event.name IN ('guilty', 'unsaid') AND id IS NULL}, 'each guilty one is a dead letter');
none(q{(SELECT id, count(*) FROM letter GROUP BY id HAVING count(*) > 1) AS twice}, 'once');
none(q{repeated WHERE guilty AND clean}, 'and arrives once when it may');
none(q{repeated LEFT JOIN restart USING (j) WHERE clean AND NOT guilty AND in_flight IS NOT TRUE AND NOT in_open_row}, 'none arrives twice but for a lost answer, or in flight at a kill');
none(q{(SELECT kind, count(*) AS repeated, (SELECT count(*) FROM attempt WHERE clean AND answered >= since AND published <= ended) AS was_in_flight
	FROM repeated JOIN restart USING (j) WHERE in_flight GROUP BY restart.j, kind, since, ended) AS ends WHERE repeated > was_in_flight}, 'no more than was in flight at a kill');

my $complaints = join '', map { grep { /PANIC|TRAP|invalid page|could not access status|could not read block|by signal (?:4|6|7|8|11):|absmartly: could not (?:read|acknowledge|keep|tidy)/ } split /^/, log_of($_) } @all_nodes;
is($complaints, '', 'servers have no complaint');
my $expected = qr/division by zero|transaction is aborted|terminating connection|connection to server|server closed|terminated abnormally|database system is|does not exist|is busy|Publish failed|finished|abnormally|warning: |crash|connection|no experiment data has been loaded/;
my @errors = grep { /ERROR|FATAL|PANIC/ && !/$expected/ } map { -e "$folder/errors.$_" ? split /^/, slurp_file("$folder/errors.$_") : () } 1 .. CLIENTS;
is(scalar @errors, 0, 'nor have clients') || diag(@errors[ 0 .. min($#errors, 20) ]);

note $primary->safe_psql('accounts', <<'EOT');
SELECT format('%s transactions, %s of them of unknown outcome; %s goals and %s exposures in %s requests (%s of them without a clean answer); %s dead letters',
	(SELECT count(*) FROM log WHERE what = 'begin'), (SELECT count(*) FROM log WHERE what = 'unknown' AND kind IS DISTINCT FROM 'exposing'),
	(SELECT count(*) FROM event WHERE name <> 'exposure'), (SELECT count(*) FROM event WHERE name = 'exposure'),
	(SELECT count(*) FROM request), (SELECT count(*) FROM request WHERE NOT clean), (SELECT count(*) FROM letter));
SELECT format('%s arrived again after a lost answer', count(*)) FROM repeated WHERE NOT clean;
SELECT format('%s: %s arrived again of %s in flight, and %s of open rows', kind,
	(SELECT count(*) FROM repeated WHERE repeated.j = restart.j AND in_flight),
	(SELECT count(*) FROM attempt WHERE clean AND answered >= since AND published <= ended),
	(SELECT count(*) FROM repeated WHERE repeated.j = restart.j AND in_open_row)) FROM restart ORDER BY j;
EOT
note sprintf '%s; %.0f s', join(', ', map { "$count{$_} x $_" } sort keys %count), $lasted;

$primary->stop;
done_testing();
