
# The promise: a goal exists exactly if its transaction committed, whatever happens.
#
# Clients run transactions of all kinds that insert rows and track a goal for each, while the worker is ended and killed,
# the server crashes, and the collector fails in its ways, is killed and comes back. In the end the tables tell the truth:
# each row's goal was received, no other one was, and one was received more than once only where an answer was lost.
#
# ABSMARTLY_SEED gives the seed of a single round, ABSMARTLY_DISTURBANCES how many disturbances a round has.

use strict;
use warnings;

use AbsmartlyDisturbances;
use AbsmartlyMain;
use AbsmartlyTest;
use Digest::MD5 qw(md5_base64);
use List::Util qw(shuffle);
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use constant {
	CLIENTS         => 3,
	BATCH_SIZE      => 20,
	MAX_CONNECTIONS => 2,
	TIMEOUT_MS      => 1500,
	# between an answer and its mark on disk, on a noisy machine
	UNMARKED_MS     => 2000,
};

my @seeds = $ENV{ABSMARTLY_SEED} ? ($ENV{ABSMARTLY_SEED}) : map { int(time) % 1_000_000 * 10 + $_ } 1, 2;
my $disturbances = $ENV{ABSMARTLY_DISTURBANCES} // 15;

start_main(settings => disturbed_settings(
	publish_delay   => '20ms',
	batch_size      => BATCH_SIZE,
	max_connections => MAX_CONNECTIONS,
	request_timeout => TIMEOUT_MS . 'ms',
	connect_timeout => '500ms'));

sql(<<'EOT');
CREATE TABLE called (id bigint PRIMARY KEY, transaction xid8 DEFAULT pg_current_xact_id());
CREATE TABLE orders (id bigint PRIMARY KEY, transaction xid8 DEFAULT pg_current_xact_id());
CREATE TABLE deferred (id bigint PRIMARY KEY, transaction xid8 DEFAULT pg_current_xact_id());
CREATE TABLE deferred_called (id bigint PRIMARY KEY, transaction xid8 DEFAULT pg_current_xact_id());
CREATE VIEW truth AS
	TABLE called UNION ALL TABLE orders UNION ALL TABLE deferred UNION ALL TABLE deferred_called;
CREATE FUNCTION track(id bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM absmartly_track(jsonb_build_object('user_id', id), 'truth', jsonb_build_object('id', id));
END $$;
CREATE FUNCTION put(id bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO called VALUES (id);
	PERFORM track(id);
END $$;
CREATE FUNCTION track_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM track(NEW.id);
	RETURN NULL;
END $$;
CREATE TRIGGER track AFTER INSERT ON orders
	FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('truth', 'user_id=id', 'id');
CREATE CONSTRAINT TRIGGER track AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION absmartly_track_trigger('truth', 'user_id=id', 'id');
CREATE CONSTRAINT TRIGGER track AFTER INSERT ON deferred_called DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION track_row();
CREATE PROCEDURE walk(id bigint, many int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 0 .. many - 1 LOOP
		PERFORM put(id + i);
		IF i % 3 = 1 THEN
			COMMIT;
		ELSIF i % 5 = 4 THEN
			ROLLBACK;
		END IF;
	END LOOP;
END $$;
CREATE PROCEDURE try(id bigint, many int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 0 .. many - 1 LOOP
		BEGIN
			PERFORM put(id + i);
			INSERT INTO deferred VALUES (id + many + i);
			IF i % 2 = 1 THEN
				RAISE EXCEPTION 'undone';
			END IF;
		EXCEPTION WHEN raise_exception THEN
			INSERT INTO orders VALUES (id + 2 * many + i);
		END;
	END LOOP;
END $$;
EOT

# ---------------------------------------------------------------------------
# Clients
# ---------------------------------------------------------------------------

# Transactions at random. They take ids from the function, that many at a time.
sub transaction
{
	my ($take) = @_;
	my $insert = sub { sprintf 'INSERT INTO %s VALUES (%d);', (qw(orders deferred deferred_called))[ rand 3 ], $take->(1) };
	my $put = sub { rand() < 0.5 ? $insert->() : sprintf 'SELECT put(%d);', $take->(1) };
	my $dice = rand;

	return sprintf('SELECT put(%d);', $take->(1)) if $dice < 0.10;
	return $insert->() if $dice < 0.20;
	return 'BEGIN; ' . $put->() . $put->() . ' COMMIT;' if $dice < 0.30;
	return 'BEGIN; ' . $put->() . $put->() . ' ROLLBACK;' if $dice < 0.36;
	return 'BEGIN; ' . $put->() . ' SELECT 1/0; ' . $put->() . ' COMMIT;' if $dice < 0.42;
	return 'BEGIN; ' . $put->() . ' SAVEPOINT a; ' . $put->() . ' SAVEPOINT b; ' . $put->()
		. (' RELEASE b; ', ' ROLLBACK TO b; ', ' ')[ rand 3 ] . $put->()
		. (' RELEASE a; ', ' ROLLBACK TO a; ', ' ')[ rand 3 ] . $put->()
		. ' COMMIT;' if $dice < 0.57;
	return sprintf('CALL walk(%d, 11);', $take->(11)) if $dice < 0.65;
	return sprintf('CALL try(%d, 6);', $take->(18)) if $dice < 0.75;
	if ($dice < 0.96)
	{
		my $name = 'p' . $take->(1);
		return 'BEGIN; ' . $put->() . ' SAVEPOINT a; ' . $put->() . ' ROLLBACK TO a; ' . $put->() . " PREPARE TRANSACTION '$name'; "
			. ("COMMIT PREPARED '$name';", "COMMIT PREPARED '$name';", "ROLLBACK PREPARED '$name';",
				rand() < 0.3 ? '' : "COMMIT PREPARED '$name';")[ rand 4 ];
	}
	return sprintf('INSERT INTO orders SELECT generate_series(%d, %d);', map { $_, $_ + 299 } $take->(300)) if $dice < 0.98;
	return sprintf('BEGIN; INSERT INTO orders SELECT generate_series(%d, %d); ROLLBACK;', map { $_, $_ + 299 } $take->(300));
}

# Runs transactions until there is the file; lost connections don't matter.
sub client
{
	my ($number, $seed, $stop) = @_;
	my $next = ($number + 1) * 10_000_000;
	my $take = sub { my $id = $next; $next += $_[0]; return $id };
	my $end = time + 300;
	my $transactions = 0;

	srand $seed * 100 + $number;
	local $SIG{PIPE} = 'IGNORE';
	open STDOUT, '>>', "$stop.output" or POSIX::_exit(1);
	open STDERR, '>>', "$stop.errors" or POSIX::_exit(1);
	until (-e $stop || time > $end)
	{
		my @script = map { transaction($take) } 1 .. 20;
		open my $psql, '|-', 'psql', '-XAtq', '-d', $node->connstr('postgres') or POSIX::_exit(1);
		print {$psql} map { "$_\n" } @script;
		close $psql;
		$transactions += @script;
		sleep 0.35;
	}
	open my $file, '>', "$stop.$number" or POSIX::_exit(1);
	print {$file} $transactions;
	close $file;
	POSIX::_exit(0);
}

# ---------------------------------------------------------------------------
# What the collector has received
# ---------------------------------------------------------------------------

my %received;    # id => requests that carried it, in order
my ($strange, $swapped);

# The answer counts if it came in time after the sending: a busy collector lets requests wait before it takes note of them.
sub clean_answer
{
	my ($request) = @_;
	my $took = ($request->{time} - $request->{published}) * 1000 + ($request->{duration_ms} // 0);
	return $request->{state} eq 'answered' && !$request->{fault} && $took < TIMEOUT_MS / 2;
}

# Takes note of all that it has accepted, and has it forget that.
sub gather
{
	my %requests = map { $_->{n} => $_ } $collector->requests(space => '/v1', method => 'PUT', bodies => 0);

	for my $goal ($collector->goals(space => '/v1'))
	{
		my $id = $goal->{properties}{id};
		$strange++ if $goal->{name} ne 'truth' || !defined $id || @{ $goal->{units} } != 1;
		$swapped++ if $goal->{units}[0]{uid} ne md5_base64($id) =~ tr{+/}{-_}r;
		my $request = $requests{ $goal->{request} };
		$request->{published} = $goal->{publishedAt} / 1000;
		push @{ $received{$id} }, $request;
	}
	$collector->forget('/v1');
	return;
}

sub nothing_under_way
{
	return !$collector->requests(space => '/v1', method => 'PUT', state => 'pending', bodies => 0);
}

# ---------------------------------------------------------------------------
# Disturbances
# ---------------------------------------------------------------------------

my @faults = (
	@FAULTS,
	{ delay_ms => 300 },
	{ delay_ms => TIMEOUT_MS + 500 },
	# of a request of a single event it would be the event's own fault
	{ status => 413, body => 'too large', content_type => 'text/plain', match => { larger_than => 3000 } },
);

my %disturb = (
	'worker ended' => sub {
		my $pid = worker_pid($node);
		look_up($node, "SELECT pg_terminate_backend($pid)");
		return another_worker($node, $pid);
	},
	'worker killed' => sub {
		my $pid = worker_pid($node);
		kill 'KILL', $pid;
		return another_worker($node, $pid);
	},
	'server crashed' => sub {
		$node->stop('immediate');
		$node->start;
		return worker_pid($node);
	},
	'collector failed' => sub {
		fail_collector($collector, '/v1', $faults[ rand @faults ]);
		return 1;
	},
	'collector killed' => sub {
		# it remembers in memory only: it takes in nothing more, and is asked what it has, before it goes
		$collector->clear_faults('/v1');
		$collector->fault('/v1', { match => { method => 'PUT' }, status => 503, times => -1 });
		await(\&nothing_under_way) or return 0;
		gather();
		$collector->kill;
		sleep rand 0.5;
		$collector->restart;
		return 1;
	},
);
my %weight = ('worker ended' => 3, 'worker killed' => 2, 'server crashed' => 2, 'collector failed' => 9, 'collector killed' => 2);
my %crash = map { $_ => 1 } 'worker killed', 'server crashed';

# ---------------------------------------------------------------------------
# A round
# ---------------------------------------------------------------------------

sub play
{
	my ($seed) = @_;
	my $stop = $node->basedir . "/stop.$seed";
	my @history;
	my $start = time;
	my $log_offset = -s $node->logfile;

	srand $seed;
	%received = ();
	($strange, $swapped) = (0, 0);
	$collector->forget('/v1');
	sql('TRUNCATE called, orders, deferred, deferred_called');

	my @clients;
	for my $number (1 .. CLIENTS)
	{
		my $pid = fork // die "cannot fork: $!";
		client($number, $seed, $stop) if $pid == 0;
		push @clients, $pid;
	}
	my $some = sub { return await(sub { look_up($node, 'SELECT count(*) FROM truth') }) };

	# each kind at least once; the rest by weight
	my @bag = map { ($_) x $weight{$_} } sort keys %weight;
	my @kinds = (sort(keys %weight), map { $bag[ rand @bag ] } 1 .. $disturbances);
	my $survived = 1;
	for my $kind (shuffle @kinds[ 0 .. $disturbances - 1 ])
	{
		sleep 0.2 + rand 0.5;
		my $entry = { kind => $kind, begin => time * 1000 };
		$survived &&= $disturb{$kind}->() ? 1 : 0;
		$entry->{end} = time * 1000;
		push @history, $entry;
		# end a pause that a fault has led to
		look_up($node, q{SELECT absmartly_publish('1 s')}) if rand() < 0.3;
		finish_prepared($node) if rand() < 0.2;
	}
	ok($survived, 'worker, server and collector are back each time');
	cmp_ok($some->(), '>', 0, 'there are rows');

	open my $file, '>', $stop or die "$stop: $!";
	close $file;
	# no more than a script of theirs, and what they wait for
	ok(await(sub { @clients = grep { waitpid($_, POSIX::WNOHANG()) == 0 } @clients; !@clients }), 'the clients end');
	kill 'KILL', @clients if @clients;
	$collector->clear_faults('/v1');
	finish_prepared($node);
	is(look_up($node, 'SELECT count(*) FROM pg_prepared_xacts'), '0', 'nothing is left prepared');
	ok(await(sub { my ($status) = $node->psql('postgres', "SELECT absmartly_publish('$PATIENCE s')"); $status == 0 }), 'all is delivered');
	is(stat_of($node, 'outbox_records'), '0', 'nothing is left in the outbox');
	is(stat_of($node, 'dead_letters'), '0', 'nothing was refused');
	ok(await(\&nothing_under_way), 'the collector is at rest');
	gather();

	# the truth
	my %truth = map { split /\|/ } split /\n/, sql('SELECT id, transaction FROM truth');
	my @missing = grep { !$received{$_} } sort { $a <=> $b } keys %truth;
	my @invented = grep { !$truth{$_} } sort { $a <=> $b } keys %received;
	is(scalar @missing, 0, 'each row has its goal')
		|| diag("without: @missing[0 .. ($#missing > 20 ? 20 : $#missing)]");
	is(scalar @invented, 0, 'each goal has its row')
		|| diag("without: @invented[0 .. ($#invented > 20 ? 20 : $#invented)]");
	is($strange, 0, 'no other goals');
	is($swapped, 0, 'all under their units');

	# A goal is repeated because an answer was lost, or because of what happened before it was marked as delivered: that is
	# done for all goals of a record, so when the last one of its transaction is there.
	my ($repeated, $lost_answers, $of_open_records, %settled, @unexplained) = (0, 0, 0);
	for my $id (keys %received)
	{
		my ($clean) = grep { clean_answer($_) } @{ $received{$id} };
		my $time = $clean ? $clean->{time} : 'inf';
		my $transaction = $truth{$id} // next;
		$settled{$transaction} = $time if $time > ($settled{$transaction} // 0);
	}
	for my $id (keys %received)
	{
		my @requests = @{ $received{$id} };
		for my $at (1 .. $#requests)
		{
			my ($one, $next) = @requests[ $at - 1, $at ];
			$repeated++;
			if (!clean_answer($one))
			{
				$lost_answers++;
				next;
			}
			my @between = grep {
				$_->{kind} ne 'collector failed' && $_->{end} >= $one->{time} && $_->{begin} <= $next->{time}
			} @history;
			my $settled = $settled{ $truth{$id} // '' } // $one->{time};
			if (grep { $_->{begin} <= $settled } @between)
			{
				$of_open_records++;
				next;
			}
			my ($cause) = grep { $crash{ $_->{kind} } && $settled >= $_->{begin} - UNMARKED_MS } @between;
			$cause //= (grep { !$crash{ $_->{kind} } } @between)[0];
			if ($cause)
			{
				$cause->{repeated}++;
				$cause->{requests}{$settled} = 1;
			}
			push @unexplained, "$id at $one->{time} and $next->{time}" . join '', map { ", $_->{kind} at $_->{begin}" } @between
				if !$cause;
		}
	}
	is(scalar @unexplained, 0, 'goals are repeated only where an answer was lost')
		|| diag(join "\n", @unexplained[ 0 .. ($#unexplained > 20 ? 20 : $#unexplained) ]);
	my ($most, $crashed_most) = (0, 0);
	# Marks of one request less than may be under way wait for the disk, while as many are answered at the same time. The
	# goals of a record that is sent in several requests are all marked when the last of these is answered.
	for my $event (grep { $_->{repeated} } @history)
	{
		my $which = $crash{ $event->{kind} } ? \$crashed_most : \$most;
		my $requests = keys %{ $event->{requests} };
		$$which = $requests if $requests > $$which;
	}
	cmp_ok($crashed_most, '<=', 2 * MAX_CONNECTIONS - 1, 'no more than was under way at a crash')
		|| diag(join "\n", map { "$_->{repeated} because of: $_->{kind} from $_->{begin} to $_->{end}" } grep { $_->{repeated} } @history);
	cmp_ok($most, '<=', 2 * MAX_CONNECTIONS - 1, 'nor than was at anything else')
		|| diag(join "\n", map { "$_->{repeated} because of: $_->{kind} from $_->{begin} to $_->{end}" } grep { $_->{repeated} } @history);

	my $log = substr(log_of($node), $log_offset);
	my @broken = $log =~ /^.*(?:PANIC|TRAP|invalid page|could not access status|segmentation).*$/mg;
	is(scalar @broken, 0, 'the server has no complaint') || diag(join "\n", @broken);
	my @errors = grep { !/division by zero|terminating connection|connection to server|server closed|terminated abnormally|before or while processing|database system is|does not exist|is busy|current transaction is aborted|crash of another|abnormally|^\s*$|DETAIL|HINT|LOG|CONTEXT|maximum number of prepared|HINT|connection/ }
		split /\n/, slurp_file("$stop.errors");
	is(scalar @errors, 0, 'nor have the clients') || diag(join "\n", @errors[ 0 .. ($#errors > 20 ? 20 : $#errors) ]);

	my $transactions = 0;
	$transactions += slurp_file($_) for grep { -e } map { "$stop.$_" } 1 .. CLIENTS;
	my %count;
	$count{ $_->{kind} }++ for @history;
	note sprintf 'seed %s: %d transactions, %d rows, %d repeated goals (%d after lost answers, %d of records '
		. 'that were not done, of others those of at most %d requests after a crash and %d otherwise), '
		. '%s; %.1f s',
		$seed, $transactions, scalar keys %truth, $repeated, $lost_answers, $of_open_records, $crashed_most, $most,
		join(', ', map { "$count{$_} x $_" } sort keys %count), time - $start;
	return;
}

for my $seed (@seeds)
{
	subtest "seed $seed" => sub { play($seed) };
}

$node->stop;
done_testing();
