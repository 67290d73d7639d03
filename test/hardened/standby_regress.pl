
# The regression tests on a server that compares each page that its standby has replayed.

use strict;
use warnings;

use AbsmartlyTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = start_node('primary', streaming => 1, extension => 0, settings => <<'EOT');
wal_consistency_checking = all
max_prepared_transactions = 4
timezone = 'UTC'
absmartly.application = ''
absmartly.environment = ''
absmartly.refresh_interval = 1min
EOT
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;

my @tests = map { m{([^/]+)\.sql$} } sort glob 'test/sql/*.sql';
command_ok(
	[
		$ENV{PG_REGRESS}, '--bindir=' . $primary->config_data('--bindir'), '--host=' . $primary->host, '--port=' . $primary->port,
		'--inputdir=test', '--outputdir=.', '--no-locale', '--encoding=UTF8', '--dbname=contrib_regression', @tests
	],
	'the regression tests pass');

# what comes last is waited for by what it does: a position in the WAL may lie behind a page's header that nobody has written
$primary->safe_psql('postgres', 'CREATE TABLE last_of_all ()');
await(
	sub {
		my ($status, $there) = $standby->psql('postgres', q{SELECT to_regclass('last_of_all') IS NOT NULL});
		return $status != 0 || $there eq 't';
	});
is($standby->safe_psql('postgres', q{SELECT to_regclass('last_of_all') IS NOT NULL}), 't', 'the standby has replayed all of it');
unlike(log_of($standby), qr/inconsistent page/, 'and found all pages the same');
$_->stop for $standby, $primary;
done_testing();
