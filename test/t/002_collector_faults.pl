
# A collector that is slow, down, or answers what it should not: the data in force stays, the error is told once, and
# things go well again by themselves.

use strict;
use warnings;

use AbsmartlyTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $collector = start_collector(space_data => { '/v1' => experiments(experiment('exp')) }, keys => ['good']);
my $node = start_node('main', collector => $collector, start => 0, settings => <<EOT);
absmartly.max_retries = 1
EOT
$node->append_conf('postgresql.conf', "absmartly.api_key_file = '" . write_key($node, 'good') . "'\n");
$node->start;
create_extension($node);
ok(wait_ready($node), 'ready');

my $peek = q{SELECT absmartly_peek_treatment('{"user_id": 1}', 'exp')};
my $variant = $node->safe_psql('postgres', $peek);

# Each fault makes a refresh fail with its reason, and what was in force stays in force. Only where a time-out is to be
# seen is it short.
my $short = 10 * int $PATIENCE;
my @faults = (
	{ name => 'slow beyond the limit', fault => { delay_ms => 600_000, times => -1 }, error => qr/timed out after $short ms/, retried => 1, times_out => 1 },
	{ name => 'hanging', fault => { hang => 1, times => -1 }, error => qr/timed out after $short ms/, retried => 1, times_out => 1 },
	{ name => '401', fault => { status => 401, times => -1 }, error => qr/status 401/ },
	{ name => '403', fault => { status => 403, times => -1 }, error => qr/status 403/ },
	{ name => '404', fault => { status => 404, body => 'no such thing', times => -1 }, error => qr/status 404: "no such thing"/ },
	{ name => '500', fault => { status => 500, times => -1 }, error => qr/status 500/, retried => 1 },
	{ name => '503', fault => { status => 503, times => -1 }, error => qr/status 503/, retried => 1 },
	{ name => 'a redirect',
		fault => { status => 302, headers => { Location => $collector->url('/elsewhere/v1') . '/context' }, times => -1 },
		error => qr/status 302/ },
	{ name => 'HTML', fault => { html => 1, times => -1 }, error => qr/HTML/ },
	{ name => 'no JSON', fault => { status => 200, body => '{"experiments":[', content_type => 'application/json', times => -1 },
		error => qr/malformed/, retried => 1 },
	{ name => 'JSON that is no context data', fault => { status => 200, body => '[1,2]', content_type => 'application/json', times => -1 },
		error => qr/malformed/, retried => 1 },
	{ name => 'a connection cut in the middle', fault => { cut_after => 20, times => -1 }, error => qr/./, retried => 1 },
	{ name => 'a connection reset', fault => { reset => 1, times => -1 }, error => qr/./, retried => 1 },
	{ name => 'garbage instead of HTTP', fault => { garbage => 1, times => -1 }, error => qr/./ },
	{ name => '100 MB', fault => { huge => 100_000_000, times => -1 }, error => qr/./ },
	{ name => '100 MB of unknown length', fault => { huge => 100_000_000, chunked => 1, times => -1 }, error => qr/./ },
	{ name => 'an error text with control characters and more than a screen of it',
		fault => { status => 400, body => "\e[31m" . "long " x 1000, content_type => 'text/plain', times => -1 },
		error => qr/status 400: "[^\e]{1,300}"/ },
);

for my $case (@faults)
{
	my $generation = stat_of($node, 'generation');

	set_for_worker($node, request_timeout => "${short}ms") if $case->{times_out};
	$collector->fault('/v1', { match => { method => 'GET' }, %{ $case->{fault} } });
	$collector->forget;
	my ($status, $output, $error) = $node->psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
	isnt($status, 0, "$case->{name}: refresh fails");
	like($error, $case->{error}, "$case->{name}: and says why");
	is($node->safe_psql('postgres', $peek), $variant, "$case->{name}: assignment goes on");
	is(stat_of($node, 'generation'), $generation, "$case->{name}: with the data that was in force");
	like(stat_of($node, 'last_fetch_error'), $case->{error}, "$case->{name}: the statistics tell the error");
	my @requests = $collector->requests(space => '/v1', method => 'GET');
	my $expected = $case->{retried} ? 2 : 1;
	cmp_ok(scalar @requests, '>=', $expected, "$case->{name}: " . ($case->{retried} ? 'it was retried' : 'it was asked'));
	is(scalar $collector->requests(space => '/elsewhere/v1'), 0, "$case->{name}: no redirect is followed");
	unlike($error . stat_of($node, 'last_fetch_error'), qr/[\x00-\x08\x0b-\x1f]/, "$case->{name}: no control characters");

	$collector->clear_faults('/v1');
	set_for_worker($node, request_timeout => undef) if $case->{times_out};
	$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
}

# it ends by itself: nobody asks, and the fault passes
$collector->fault('/v1', { match => { method => 'GET' }, status => 500, times => -1 });
$node->psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
like(stat_of($node, 'worker_state'), qr/backing off|fetching|retrying/, 'after a failed round the worker tries on');
$collector->clear_faults('/v1');
$collector->set_data('/v1', experiments(experiment('exp'), experiment('later', id => 2)));
ok(await_sql($node, 'SELECT count(*) FROM absmartly_experiments', '2'),
	'when the collector works again the data comes by itself')
	|| $node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
is(stat_of($node, 'last_fetch_error'), '', 'and the error is gone from the statistics');

# down altogether: refused connections, then back on the same port
$collector->stop;
my ($status, $output, $error) = $node->psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
isnt($status, 0, 'down: refresh fails');
like($error, qr/could not connect/, 'down: and says so');
is($node->safe_psql('postgres', $peek), $variant, 'down: assignment goes on');
my $offset = -s $node->logfile;
$node->psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')") for 1 .. 3;
my $log = substr(log_of($node), $offset);
is(scalar(() = $log =~ /could not fetch experiments: /g), 0, 'down: the log is told once, not at every attempt');
$collector->restart;
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
is($node->safe_psql('postgres', 'SELECT last_fetch_error IS NULL AND ready FROM absmartly_stat'), 't', 'back again');
like(log_of($node), qr/fetching experiments works again/, 'which the log tells');

# 429 with Retry-After is heeded
$collector->fault('/v1', { match => { method => 'GET' }, status => 429, headers => { 'Retry-After' => '2' }, times => 1 });
my $seconds = seconds_of(sub { $node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')") });
cmp_ok($seconds, '>=', 1.5, 'Retry-After is heeded');

# a long one is not waited for: the fetch on request fails, the next one starts at once
$collector->fault('/v1', { match => { method => 'GET' }, status => 429, headers => { 'Retry-After' => $PATIENCE * 10 }, times => 1 });
($status, $output, $error) = $node->psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
isnt($status, 0, 'a long Retry-After: refresh fails');
like($error, qr/status 429/, 'and says why, without waiting');
$collector->forget;
sleep 3;
is(scalar $collector->requests(space => '/v1', method => 'GET'), 0, 'it is heeded when nobody asks');
$collector->clear_faults('/v1');
like($node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')"), qr/^\d+$/, 'whoever asks gets an answer all the same');

# a time-out is told by its limit, and only once
set_for_worker($node, request_timeout => '300ms');
$collector->fault('/v1', { match => { method => 'GET' }, hang => 1, times => -1 });
$offset = -s $node->logfile;
$node->psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')") for 1 .. 3;
$log = substr(log_of($node), $offset);
is(scalar(() = $log =~ /WARNING: .*could not fetch experiments: /g), 1, 'several time-outs are one warning');
like($log, qr/could not fetch experiments: timed out after 300 ms/, 'that names the limit');
$collector->clear_faults('/v1');
set_for_worker($node, request_timeout => undef);
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");

# the key is never quoted, however the collector writes it
my $secret = 'q7/+"x%zsecret-0123456789';
my %quoting = (
	'raw'             => "the key $secret is not known",
	'percent-encoded' => 'key=q7%2F%2b%22x%25zsecret%2d0123456789&',
	'in JSON'         => '{"error":"q7\/+\"x\u0025zsecret-0123456789 is not known"}',
	'in JSON, escaped where it needs not be' => '{"error":"\u00717/\u002B\"x%z\u0073ecret-0123456789"}',
	'at the border of what is quoted' => 'long ' x 38 . "$secret!",
	'cut by the collector at the end of a long text' => 'long ' x 38 . "$secret$secret",
	'in a redirect' => "moved: $secret",
	'cut by a NUL'  => "$secret\0$secret",
);
write_key($node, $secret);
$offset = -s $node->logfile;
for my $name (sort keys %quoting)
{
	$collector->fault('/v1', { match => { method => 'GET' }, status => $name =~ /redirect/ ? 302 : 401, times => 1,
		body => $quoting{$name}, content_type => 'text/plain' });
	($status, $output, $error) = $node->psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
	like($error, qr/status (401|302): ".*\*\*\*/, "the key $name: refresh fails, without it");
	unlike($error . stat_of($node, 'last_fetch_error'), qr/q7|%2F%2b|u0071|secret|0123/, "the key $name: it is not shown");
}
unlike(substr(log_of($node), $offset), qr/q7|%2F%2b|u0071|secret|0123/, 'nor logged');

# neither is where it comes from
unlink $node->basedir . '/api_key';
($status, $output, $error) = $node->psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
like($error, qr/could not open the file of "absmartly.api_key_file": No such file/, 'a missing file of the key');
unlike($error . stat_of($node, 'last_fetch_error'), qr{/api_key\b}, 'without its path');

# a corrected key is tried at the reload
write_key($node, 'wrong');
($status, $output, $error) = $node->psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
like($error, qr/status 401/, 'a wrong key');
ok(await_sql($node, 'SELECT worker_state FROM absmartly_stat', 'backing off'), 'leads to a pause');
write_key($node, 'good');
$node->reload;
ok(await_sql($node, 'SELECT last_fetch_error IS NULL FROM absmartly_stat', 't'), 'which a reload ends');

# what the settings refuse
fails_with($node, q{ALTER DATABASE postgres SET absmartly.proxy = 'http://user:word@127.0.0.1:3128'}, '22023',
	qr/A proxy holds no user name or password/, 'a proxy with a password');

# and never quote: users, passwords and keys that came to the wrong place
for my $case (
	[ 'endpoint', 'https://mona:s3cr3t@acme.absmartly.io/v1', qr/no user name or password/ ],
	[ 'endpoint', 'HTTP://mona:s3cr3t@acme.absmartly.io/v1', qr/no user name or password/ ],
	[ 'endpoint', 'ftp://mona:s3cr3t@acme.absmartly.io/v1', qr/starts with/ ],
	[ 'endpoint', 'mona:s3cr3t@acme.absmartly.io/v1', qr/starts with/ ],
	[ 'endpoint', 'https://:s3cr3t@acme.absmartly.io/v1', qr/names no host/ ],
	[ 'endpoint', 'https://mona:s3cr3t @acme.absmartly.io/v1', qr/no blanks/ ],
	[ 'endpoint', 'https://acme.absmartly.io/v1?key=s3cr3t', qr/no query/ ],
	[ 'endpoint', 'https://acme.absmartly.io/v1#s3cr3t', qr/no fragment/ ],
	[ 'endpoint', 'https://mona:s3cr3t@' . 'a' x 1100, qr/at most 1023/ ],
	[ 'proxy', 'http://mona:s3cr3t@127.0.0.1:3128', qr/no user name or password/ ],
	[ 'proxy', 'http://mona: s3cr3t@127.0.0.1:3128', qr/no blanks/ ],
	[ 'api_key_file', 's3cr3t', qr/absolute path/ ])
{
	my ($name, $value, $message) = @$case;

	$offset = -s $node->logfile;
	($status, $output, $error) = $node->psql('postgres', "SET log_min_error_statement = panic; SET log_statement = none;\nSET absmartly.$name = '$value'");
	like($error, $message, "a wrong $name: " . substr($value, 0, 50));
	unlike($error . substr(log_of($node), $offset), qr/s3cr3t/, 'is not quoted');
}
$offset = -s $node->logfile;
configure($node, "absmartly.endpoint = 'https://mona:s3cr3t\@acme.absmartly.io/v1'");
ok(await(sub { substr(log_of($node), $offset) =~ /invalid value for parameter "absmartly.endpoint"/ }), 'one in the configuration file is reported');
unlike(substr(log_of($node), $offset), qr/s3cr3t/, 'and not quoted');
$node->adjust_conf('postgresql.conf', 'absmartly.endpoint', "'" . $collector->url('/v1') . "'");
$node->reload;

# a file of the key that others may read
my $key_file = write_key($node, 'good');
$offset = -s $node->logfile;
chmod 0644, $key_file or die $!;
$node->safe_psql('postgres', q{SELECT absmartly_refresh('20 s')}) for 1 .. 3;
my @told = substr(log_of($node), $offset) =~ /WARNING: .*can be read by others\n.*DETAIL: .*0644/g;
is(scalar @told, 1, 'a file of the key that others may read is reported, once');
chmod 0600, $key_file or die $!;
$node->safe_psql('postgres', q{SELECT absmartly_refresh('20 s')});
chmod 0604, $key_file or die $!;
$node->safe_psql('postgres', q{SELECT absmartly_refresh('20 s')});
like(substr(log_of($node), $offset), qr/DETAIL: .*0604/, 'and again after it was put right');

# what editors leave in front of a text
write_key($node, "\xef\xbb\xbfgood");
$node->safe_psql('postgres', q{SELECT absmartly_refresh('20 s')});
pass('a byte order mark is no part of the key');
for my $wrong ("\xef\xbb\xbf", "go\xc3\xb6d", "good\0good", "good key")
{
	write_key($node, $wrong);
	fails_with($node, 'SELECT absmartly_refresh();', '08006', qr/must hold one key/, 'this is no key');
}
write_key($node, 'good');
$collector->set_data('/v1', "\xef\xbb\xbf" . experiments(experiment('marked')));
$node->safe_psql('postgres', q{SELECT absmartly_refresh('20 s')});
is($node->safe_psql('postgres', 'SELECT name FROM absmartly_experiments'), 'marked', 'nor of the data');
is($node->safe_psql('postgres', q{SELECT data -> 'experiments' -> 0 ->> 'name' FROM absmartly_shared_data()}), 'marked', 'which is shown as JSON');
$collector->set_data('/v1', experiments(experiment('exp')));
$node->safe_psql('postgres', q{SELECT absmartly_refresh('20 s')});

# the time-out of a refresh can be handled where it is called
$collector->fault('/v1', { match => { method => 'GET' }, hang => 1, times => 1 });
fails_with($node, q{SELECT absmartly_refresh('100 ms')}, '08006', qr/time-out while waiting/, 'a refresh whose time is over');
$collector->restart;    # which ends the request
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");

# broken parts of the data: what is sound is used, and the rest is named
my $warnings = -s $node->logfile;
$collector->set_data('/v1', experiments(
	experiment('exp'),
	experiment('broken_split', id => 2, split => 'half'),
	experiment('broken_config', id => 3, fullOnVariant => 1,
		variants => [ { name => 'A', config => undef }, { name => 'B', config => '{"colour"' } ])));
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
is($node->safe_psql('postgres', 'SELECT string_agg(name, \',\' ORDER BY id) FROM absmartly_experiments'),
	'exp,broken_config', 'an experiment with a broken field is left out');
is(stat_of($node, 'experiments_left_out'), '1', 'and counted');
is($node->safe_psql('postgres', q{SELECT absmartly_peek_variable_value('{"user_id": 1}', 'colour', 'none'::text)}),
	'none', 'a broken config has no variables');
$log = substr(log_of($node), $warnings);
is(scalar(() = $log =~ /WARNING: .*broken_split.*split/g), 1, 'one warning names the experiment and the field');
is(scalar(() = $log =~ /WARNING: .*broken_config/g), 1, 'one warning names the broken config');

# data that could not be saved is saved by the next fetch, also if it is still the same
my $folder = $node->data_dir . '/absmartly';
my $saved = sub { join '', map { slurp_file($_) } glob "$folder/*" };
chmod 0500, $folder or die "$folder: $!";
$collector->set_data('/v1', experiments(experiment('exp'), experiment('kept', id => 2)));
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
unlike($saved->(), qr/"kept"/, 'a folder without the right to write: the data is not saved');
is($node->safe_psql('postgres', 'SELECT count(*) FROM absmartly_experiments'), '2', 'but in force');
chmod 0700, $folder or die "$folder: $!";
$node->safe_psql('postgres', "SELECT absmartly_refresh('$PATIENCE s')");
like($saved->(), qr/"kept"/, 'it is saved when that is possible again');

$node->stop;
done_testing();
