
# The applications in examples/: each runs by its one command, twice, and the collector receives what it says.

use strict;
use warnings;

use AbsmartlyTest;
use FindBin;
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

my $EXAMPLES = "$FindBin::RealBin/../../examples";

my $collector = start_collector();    # the demonstration's experiments
my $node = start_node('main', collector => $collector);
my $csv = $node->basedir . '/assignments.csv';

ok(wait_ready($node), 'ready');

# Runs an example as its user would, and gives what it prints.
sub run_example
{
	my ($name, %options) = @_;
	local %ENV = (
		%ENV,
		PGHOST     => $node->host,
		PGPORT     => $node->port,
		PGDATABASE => $options{database} // 'postgres',
		$options{user} ? (PGUSER => $options{user}) : ());
	my ($output, $error);
	my $good = IPC::Run::run(["$EXAMPLES/$name/run", @{ $options{arguments} // [] }], '<', \undef, '>', \$output, '2>', \$error);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($good, $options{saying} // "$name runs") || diag($output, $error);
	return ($output, $error);
}

# Hashes of the units of events, with a field of theirs, as text.
sub of
{
	my ($field, @events) = @_;

	return join ' ', sort map { $_->{units}[0]{uid} . '=' . ($field->($_) // '') } @events;
}

sub expected
{
	my (%users) = @_;

	return join ' ', sort map { $node->safe_psql('postgres', "SELECT absmartly_hash_unit('$_')") . "=$users{$_}" } keys %users;
}

sub exposures
{
	my ($name, $space) = @_;

	return $collector->exposures(space => $space // '/v1', name => $name);
}

sub goals
{
	my ($name, $space) = @_;

	return $collector->goals(space => $space // '/v1', name => $name);
}

# web-shop
my ($output, $error) = run_example('web-shop');
is($error, '', 'without a word of complaint');
like($output, qr/delivered \n-+\n +[0-9]+\n/, 'it waits for the delivery');
my $variant = sub { $_[0]->{variant} };
my %shown = map { $_ => $node->safe_psql('postgres', qq[SELECT absmartly_peek_treatment('{"user_id": $_}', 'free_shipping_threshold')]) } (1, 2, 4);
is(of($variant, exposures('free_shipping_threshold')), expected(%shown), 'those who were at the checkout are exposed, once');
is(scalar(exposures('local_payment_methods')), 3, 'to the other experiment, too');
my $amount = sub { $_[0]->{properties}{amount} };
my $paid = $node->safe_psql('postgres', q{SELECT string_agg(customer_id || ' ' || trim_scale(amount), ',' ORDER BY customer_id) FROM web_shop.payments});
is(of($amount, goals('payment')), expected(map { split / / } split /,/, $paid), 'payments that were committed are goals');
is(of($amount, goals('refund')), expected(1 => '64.5'), 'so is the refund');
is($node->safe_psql('postgres', 'SELECT count(*) FROM web_shop.payments WHERE customer_id IN (3, 4)'), '0', 'neither the others nor their goals are there');
my ($refund) = goals('refund');
cmp_ok($refund->{achievedAt}, '==', $node->safe_psql('postgres',
	q{SELECT floor(extract(epoch FROM max(refunded_at)) * 1000)::bigint FROM web_shop.payments}), 'with its time');

run_example('web-shop', saying => 'web-shop runs again');
is(scalar(goals('payment')), 4, 'with its goals');
is(scalar(exposures('free_shipping_threshold')), 3, 'exposures are not repeated');

# nightly-batch
$collector->forget;
my @arguments = (arguments => [ '-v', "csv=$csv", '-v', 'users=2000' ]);
($output, $error) = run_example('nightly-batch', @arguments);
is($error, '', 'without a word of complaint');
my $of_users = $node->safe_psql('postgres', q{SELECT count(*) FROM absmartly_experiments WHERE unit_type = 'user_id'});
is($node->safe_psql('postgres', q{SELECT count(*), count(DISTINCT user_id) FROM nightly_batch.assignments}),
	2000 * $of_users . '|2000', 'all users have a variant of each experiment');
is($node->safe_psql('postgres', <<'EOT'), '0', 'the right one');
SELECT count(*)
FROM nightly_batch.assignments AS a JOIN nightly_batch.users AS u ON u.id = a.user_id
WHERE a.variant <> absmartly_peek_treatment(jsonb_build_object('user_id', u.id), a.experiment,
	jsonb_build_object('country', u.country, 'orders', u.orders, 'staff', u.staff))
EOT
my @lines = split /\n/, slurp_file($csv);
is($lines[0], 'user_id,country,experiment,variant,takes_part', 'the CSV has a head');
is(scalar @lines, 1 + 2000 * $of_users, 'and a line for each row');
my $counted = $node->safe_psql('postgres', q{SELECT format(' *%s \| *%s \|', count(*), count(*) FILTER (WHERE country = 'DE'))
	FROM nightly_batch.assignments WHERE experiment = 'free_shipping_threshold' AND variant = 2});
like($output, qr/free_shipping_threshold +\| +2 \|$counted/, 'the summary counts by variant and country');
like($node->safe_psql('postgres', <<'EOT'), qr/Gather/, 'the job may be parallel');
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
EXPLAIN SELECT a.variant FROM nightly_batch.users AS u CROSS JOIN LATERAL absmartly_assignments(jsonb_build_object('user_id', u.id)) AS a
EOT
run_example('nightly-batch', @arguments, saying => 'nightly-batch runs again');
is($node->safe_psql('postgres', "SELECT absmartly_publish('$PATIENCE s')"), '0', 'nobody was exposed');
is(scalar($collector->requests(method => 'PUT')), 0, 'nothing was sent');

# historic-backfill
($output, $error) = run_example('historic-backfill', arguments => [ '-v', 'rows=2000' ]);
like($error, qr/ERROR:  unit "user_id" must not be blank/, 'it stops at the broken row');
like($error, qr/goes on after key 1000, with 1000 rows done before/, 'and goes on');
is(scalar(exposures('local_payment_methods')), 2000, 'every visit is an exposure');
is(scalar(goals('payment')), 1999, 'every order with a customer a goal, once');
my @requests = $collector->publish_requests(space => '/v1');
is(scalar(grep { !$_->{historic} } @requests), 0, 'all of them historic');
my $span = q{SELECT (extract(epoch FROM min(%s)) * 1000)::bigint, (extract(epoch FROM max(%1$s)) * 1000)::bigint FROM historic_backfill.%s};
for (
	[ 'seen_at', 'visits', map { $_->{exposedAt} } exposures('local_payment_methods') ],
	[ 'paid_at', "orders WHERE customer IS NOT NULL", map { $_->{achievedAt} } goals('payment') ])
{
	my ($column, $table, @times) = @$_;
	@times = sort { $a <=> $b } @times;
	is("$times[0]|$times[-1]", $node->safe_psql('postgres', sprintf $span, $column, $table), "with $column as their time");
}
is($node->safe_psql('postgres', <<'EOT'), '0', 'the variants that were kept are those of the visitors');
SELECT count(*)
FROM historic_backfill.variants JOIN historic_backfill.visits ON id = visit
WHERE variant <> absmartly_peek_unit_treatment(user_id, 'local_payment_methods', visitor)
EOT
run_example('historic-backfill', arguments => [ '-v', 'rows=400' ], saying => 'historic-backfill runs again');
is(scalar(goals('payment')), 1999 + 399, 'from the beginning');

# for others: no superuser, the extension in another schema, another collector's experiments
$collector->set_data('/other/v1', experiments(experiment('exp')));
$node->safe_psql('postgres', <<"EOT");
CREATE ROLE shopkeeper LOGIN;
CREATE DATABASE other;
ALTER DATABASE other SET absmartly.endpoint = '${\ $collector->url('/other/v1') }';
GRANT CREATE ON DATABASE other TO shopkeeper;
EOT
$node->safe_psql('other', <<'EOT');
CREATE SCHEMA ab;
CREATE EXTENSION absmartly SCHEMA ab;
GRANT USAGE ON SCHEMA ab TO shopkeeper;
EOT
ok(await_sql($node, "SELECT ab.absmartly_wait_until_ready('$PATIENCE s')", 't', database => 'other'), 'another database is ready');
my @as_other = (database => 'other', user => 'shopkeeper');
($output, $error) = run_example('web-shop', @as_other, saying => 'web-shop runs for others');
is($error, '', 'without a word of complaint');
run_example('nightly-batch', @as_other, @arguments, saying => 'so does nightly-batch');
run_example('historic-backfill', @as_other, arguments => [ '-v', 'rows=80' ], saying => 'and historic-backfill');
$node->safe_psql('other', "SELECT ab.absmartly_publish('$PATIENCE s')");
is(scalar(goals('payment', '/other/v1')), 2 + 79, 'their goals arrive');
my @unknown = exposures('local_payment_methods', '/other/v1');
is(scalar @unknown, 3 + 80, 'so do their exposures');
is(scalar(grep { $_->{variant} != 0 } @unknown), 0, 'to the control, of an experiment that the collector does not know');

$node->stop;
done_testing();
