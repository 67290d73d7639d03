
# What reaches the collector, field by field: requests, headers, times, units, events, attributes; what shares a request
# and when it is sent; which exposures are not sent twice.

use strict;
use warnings;
use utf8;

use AbsmartlyTest;
use JSON::PP ();
use Test::More;
use Time::HiRes qw(sleep time);

my ($true, $false) = (JSON::PP::true, JSON::PP::false);
my $session_hash = 'pAE3a1i5Drs5mKRNq56adA';
my $user_hash = '7N7Ys6rpQMeeDWJV2qw_jw';
my $both = q('{"session_id": "e791e240fcd3df7d238cfc285f475e8152fcc0ec", "user_id": 12317303}');
my $user = q('{"user_id": 12317303}');
my $grown_up = '{"filter":[{"gte":[{"var":"age"},{"value":20}]}]}';
my @experiments = (
	experiment('plain'),
	experiment('closed', id => 2, trafficSplit => [ 1, 0 ]),
	experiment('full on', id => 3, fullOnVariant => 1),
	experiment('strict', id => 4, audience => $grown_up, audienceStrict => $true),
	experiment('lenient', id => 5, audience => $grown_up, fullOnVariant => 1),
	experiment('ruled', id => 6, assignmentRules => '{"rules":[{"type":"assign","variant":1}]}'),
	experiment('of devices', id => 7, unitType => 'device_id'),
	experiment('of nobody', id => 8, unitType => undef));

my $collector = start_collector(data => experiments(@experiments), keys => ['the-key']);
my $node = start_node('main', start => 0, init => [ '--encoding=UTF8', '--locale=C' ], collector => $collector,
	settings => <<'EOT');
absmartly.publish_delay = '10min'
absmartly.max_retries = 1
absmartly.application_version = '3.1.4-beta.1'
EOT
$node->append_conf('postgresql.conf', "absmartly.api_key_file = '" . write_key($node, 'the-key') . "'\n");
$node->start;
create_extension($node);
ok(wait_ready($node), 'ready');
idle($node);

#
# Helpers
#

# Statements, in one transaction.
sub transaction
{
	return join "\n", 'BEGIN;', (map { "SELECT $_;" } @_), 'COMMIT;';
}

sub run
{
	my ($sql) = @_;

	utf8::encode($sql);
	return $node->safe_psql('postgres', $sql);
}

sub publish
{
	return $node->safe_psql('postgres', "SELECT absmartly_publish('$PATIENCE s')");
}

# Runs statements, has their events sent, and gives the requests that brought them.
sub requests_of
{
	my ($sql) = @_;

	$collector->forget;
	run($sql);
	publish();
	return $collector->requests(space => '/v1', method => 'PUT');
}

# The publish requests of statements, whatever they came in.
sub published
{
	my ($sql) = @_;

	requests_of($sql);
	return $collector->publish_requests(space => '/v1');
}

# The exposures of statements, in all requests.
sub exposures_of
{
	my ($sql) = @_;

	return map { @{ $_->{exposures} // [] } } published($sql);
}

# How many requests have come.
sub arrived
{
	return scalar $collector->requests(space => '/v1', method => 'PUT');
}

# How many publish requests each of some requests brings, the largest first: several are under way at once.
sub sizes
{
	return join ' ', sort { $b <=> $a } map { scalar @{ $_->{json}{requests} // [1] } } @_;
}

# The attributes of the only publish request of statements.
sub published_attributes
{
	my ($request) = published(@_);

	return timeless(@{ $request->{attributes} });
}

# Goals of so many units, in one transaction.
sub track_many
{
	my ($number) = @_;

	return "DO \$\$ BEGIN PERFORM absmartly_track(jsonb_build_object('user_id', i), 'many')"
		. " FROM generate_series(1, $number) AS i; END \$\$";
}

sub treat
{
	my ($unit, $arguments) = @_;

	return "SELECT absmartly_treatment('{\"user_id\": \"$unit\"}', 'plain'" . ($arguments // '') . ');';
}

# Changes what events are recorded under.
sub change_origin
{
	my ($setting, $value) = @_;

	configure($node, "absmartly.$setting = '$value'");
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(await_sql($node, "SELECT $setting FROM absmartly_shared_data()", $value), "the $setting changes to $value")
		if $setting ne 'application_version';
	# only events show it
	return ok(await(sub {
		run("SELECT absmartly_track($user, 'version')");
		return run('SELECT application_version FROM absmartly_outbox ORDER BY created DESC LIMIT 1') eq $value;
	}), "the version changes to $value");
}

sub now_ms
{
	return time * 1000;
}

# Whether a time in ms lies in a range; times are cut to whole ms.
sub is_between
{
	my ($ms, $from, $to, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok($ms =~ /^\d{13}$/ && $ms >= int($from) && $ms <= $to, $name) || diag("$ms is not in $from .. $to");
}

# Compares structures as JSON, where true is not 1 and 1 is not "1".
sub is_json
{
	my ($got, $expected, $name) = @_;
	my $json = JSON::PP->new->canonical->allow_nonref->ascii;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($json->encode($got), $json->encode($expected), $name);
}

# An exposure without its time: all flags are false, but eligible, unless they are named.
sub exposure
{
	my ($name, $id, $unit, $variant, @flags) = @_;
	my %exposure = (name => $name, id => $id, unit => $unit, variant => $variant, eligible => $true);

	$exposure{$_} = $false for qw(assigned overridden fullOn custom audienceMismatch ruleOverride);
	$exposure{ s/^not //r } = /^not / ? $false : $true for @flags;
	return \%exposure;
}

# Parts of requests without what differs from run to run.
sub timeless
{
	return [ map { my %part = %$_; delete @part{qw(exposedAt achievedAt setAt)}; \%part } @_ ];
}

#
# The request
#

my $before = now_ms();
$collector->forget;
run("SELECT absmartly_track($both, 'payment', '{\"amount\": 125}')");
my $tracked = now_ms();
sleep 0.05;
my $sending = now_ms();
is(publish(), '1', 'one event is published');
my $sent = now_ms();
my @requests = $collector->requests(space => '/v1', method => 'PUT');
is(scalar @requests, 1, 'in one request');
my $request = $requests[0];
is("$request->{method} $request->{path}", 'PUT /v1/context', 'a single publish request goes to /context');
is_json($request->{query}, {}, 'with nothing in the query');
is($request->{key}, 'accepted', 'with the API key');
my %headers = (
	'x-agent'               => 'absmartly-postgresql-sdk',
	'x-environment'         => 'production',
	'x-application'         => 'website',
	'x-application-version' => '3.1.4-beta.1',
	'content-type'          => 'application/json');
is($request->{headers}{$_}, $headers{$_}, "with the header $_") for sort keys %headers;
my $body = $request->{json};
is_json([ sort keys %$body ], [qw(goals hashed publishedAt sdkVersion units)], 'it has what it needs and nothing empty');
is_json($body->{hashed}, $true, 'uids are hashed');
like($body->{sdkVersion}, qr/^\d+\.\d+/, 'the version of this SDK');
is_json([ sort { $a->{type} cmp $b->{type} } @{ $body->{units} } ],
	[ { type => 'session_id', uid => $session_hash }, { type => 'user_id', uid => $user_hash } ], 'the units');
is_json(timeless(@{ $body->{goals} }), [ { name => 'payment', properties => { amount => 125 } } ], 'the goal');
is_between($body->{goals}[0]{achievedAt}, $before, $tracked, 'achieved when it was tracked');
is_between($body->{publishedAt}, $sending, $sent, 'published when it was sent');
is_json($request->{warnings} // [], [], 'the collector has nothing to remark');

# a retry is sent later, and is the same otherwise
$collector->fault('/v1', { match => { method => 'PUT' }, status => 503 });
my @attempts = requests_of("SELECT absmartly_track($user, 'retried')");
is(scalar @attempts, 2, 'a request and its retry');
cmp_ok($attempts[1]{json}{publishedAt} - $attempts[0]{json}{publishedAt}, '>=', 50, 'are published at their own times');
is($attempts[1]{body} =~ s/"publishedAt":\d+//r, $attempts[0]{body} =~ s/"publishedAt":\d+//r, 'all else is the same');

# several
@requests = requests_of("SELECT absmartly_track($user, 'one'); SELECT absmartly_track($user, 'two');");
is(join(' ', map { "$_->{method} $_->{path}" } @requests), 'PUT /v1/context/batch', 'several publish requests are a batch');
is(join(' ', map { $_->{goals}[0]{name} } @{ $requests[0]{json}{requests} }), 'one two', 'in order');
is_json([ keys %{ $requests[0]{json} } ], ['requests'], 'with nothing else');
is($requests[0]{headers}{$_}, $headers{$_}, "a batch has the header $_") for sort keys %headers;

#
# Which events share a publish request
#

my ($together, @more) = published(transaction("absmartly_treatment($both, 'plain')",
		"absmartly_track($both, 'first')", "absmartly_treatment($both, 'full on')", "absmartly_track($both, 'second')"));
is(scalar @more, 0, 'events of the same units in one transaction share a request');
is(join(' ', map { $_->{name} } @{ $together->{exposures} }), 'plain full on', 'its exposures in order');
is(join(' ', map { $_->{name} } @{ $together->{goals} }), 'first second', 'its goals, too');
is_json([ sort keys %$together ], [qw(exposures goals hashed publishedAt sdkVersion units)], 'without attributes');
is(scalar(published(transaction("absmartly_track($both, 'g')", "absmartly_track($user, 'g')"))), 2, 'other units have their own');
is(scalar(published(transaction("absmartly_track($user, 'g', attributes => '{\"a\": 1}')",
		"absmartly_track($user, 'g', attributes => '{\"a\": 2}')"))), 2, 'so have other attributes');
is(scalar(published("SELECT absmartly_track($user, 'g'); SELECT absmartly_track($user, 'g');")), 2, 'and other transactions');

#
# Units
#

my ($kinds) = published(q{SELECT absmartly_track('{"email": "  a@b.c ", "float": 2.5, "emoji": "😀", "none": null, "Zeichen \"ü\"": "x",
	"big": 9007199254740993}', 'g')});
is_json([ sort { $a->{type} cmp $b->{type} } @{ $kinds->{units} } ],
	[
		{ type => 'Zeichen "ü"', uid => run(q{SELECT absmartly_hash_unit('x')}) },
		{ type => 'big', uid => run(q{SELECT absmartly_hash_unit('9007199254740993')}) },
		{ type => 'email', uid => 'XWDU4oBm3yVNVFL5LJEAkg' },
		{ type => 'emoji', uid => '-Z9RwqljCn9rjBPBgYvAwg' },
		{ type => 'float', uid => '7MvIfktc4v4oMI_Z8qe68w' } ],
	'units of all kinds have the known hashes; one that is null is left out');
my ($single) = published(q{SELECT absmartly_unit_treatment('e791e240fcd3df7d238cfc285f475e8152fcc0ec', 'of devices')});
is_json($single->{units}, [ { type => 'device_id', uid => $session_hash } ], 'a single uid has the type of the experiment');

#
# Exposures: every case of the decision table
#

$before = now_ms();
my ($exposed, @others) = published("SET absmartly.exposure_dedup_interval = 0;"
	. "SET absmartly.overrides = '{\"overridden\": 3, \"closed\": 100}';"
	. transaction(
		(map { "absmartly_treatment($both, '$_')" } 'overridden', 'closed', 'no such', 'ruled', 'strict', 'full on', 'lenient',
			'of devices', 'of nobody'),
		"absmartly_treatment($both, 'plain', custom_variant => 7)",
		"absmartly_treatment($both, 'full on', custom_variant => 7)",
		"absmartly_treatment($both, 'plain')"));
my $after = now_ms();
my $plain = run("SELECT absmartly_peek_treatment($both, 'plain')") + 0;
is(scalar @others, 0, 'the decision table, in one request');
is_json(timeless(@{ $exposed->{exposures} }), [
		exposure('overridden', 0, undef, 3, 'overridden'),
		exposure('closed', 2, 'user_id', 100, 'overridden'),
		exposure('no such', 0, undef, 0),
		exposure('ruled', 6, 'user_id', 1, 'ruleOverride'),
		exposure('strict', 4, 'user_id', 0, 'audienceMismatch'),
		exposure('full on', 3, 'user_id', 1, 'assigned', 'fullOn'),
		exposure('lenient', 5, 'user_id', 1, 'assigned', 'fullOn', 'audienceMismatch'),
		exposure('of devices', 7, 'device_id', 0),
		exposure('of nobody', 8, undef, 0),
		exposure('plain', 1, 'user_id', 7, 'assigned', 'custom'),
		exposure('full on', 3, 'user_id', 1, 'assigned', 'fullOn'),
		exposure('plain', 1, 'user_id', $plain, 'assigned') ],
	'each with all its flags');
is(scalar(grep { $_->{exposedAt} =~ /^\d{13}$/ && $_->{exposedAt} >= int $before && $_->{exposedAt} <= $after } @{ $exposed->{exposures} }),
	12, 'and its time');
is_json(timeless(exposures_of("SELECT absmartly_treatment($user, 'closed')")),
	[ exposure('closed', 2, 'user_id', 0, 'assigned', 'not eligible') ], 'not eligible');
my ($matching) = published(qq(SELECT absmartly_treatment($user, 'strict', '{"age": 30}')));
is_json(timeless(@{ $matching->{exposures} }),
	[ exposure('strict', 4, 'user_id', run(qq(SELECT absmartly_peek_treatment($user, 'strict', '{"age": 30}'))) + 0, 'assigned') ],
	'in the audience');

# a variable exposes what it consults
is_json([ map { $_->{name} } exposures_of(q{SELECT absmartly_variable_value('{"user_id": "v"}', 'colour', 'none'::text)}) ],
	[ map { $_->{name} } exposures_of(q{SET absmartly.exposure_dedup_interval = 0;
		SELECT absmartly_variable_value('{"user_id": "v"}', 'colour', 'none'::text)}) ],
	'a variable exposes the same experiments each time');

# holdouts
$collector->set_data('/v1', JSON::PP->new->encode({
	experiments => [ experiment('plain', fullOnVariant => 1), experiment('held', id => 2, holdoutIds => [9]) ],
	holdouts => [ { id => 9, seedHi => 90210, seedLo => 4711, split => [ 1, 0 ] } ] }));
run("SELECT absmartly_refresh('$PATIENCE s')");
is_json(timeless(exposures_of(transaction(map { "absmartly_treatment('{\"user_id\": \"h\"}', '$_')" } qw(plain held other)))), [
		{ %{ exposure('plain', 1, 'user_id', 1, 'assigned', 'fullOn') }, heldOut => $false, holdoutId => 0 },
		{ %{ exposure('held', 2, 'user_id', 0, 'assigned') }, heldOut => $true, holdoutId => 9 },
		{ %{ exposure('other', 0, undef, 0) }, heldOut => $false, holdoutId => 0 } ],
	'where there are holdouts each exposure tells of them');
$collector->set_data('/v1', experiments(@experiments));
run("SELECT absmartly_refresh('$PATIENCE s')");
ok(!grep({ exists $_->{heldOut} || exists $_->{holdoutId} } exposures_of(q{SELECT absmartly_treatment('{"user_id": "i"}', 'plain')})),
	'and otherwise none');

#
# Goals and attributes
#

my ($goals) = published(transaction("absmartly_track($user, 'none')", "absmartly_track($user, 'null', 'null')",
		"absmartly_track($user, 'empty', '{}')",
		qq(absmartly_track($user, 'all', '{"n": 1.5, "s": "x", "z": null, "l": [1, [], {}], "o": {"k": {"deep": true}}, "f": false}'))));
is_json(timeless(@{ $goals->{goals} }), [
		{ name => 'none', properties => undef },
		{ name => 'null', properties => undef },
		{ name => 'empty', properties => {} },
		{
			name => 'all',
			properties => { n => 1.5, s => 'x', z => undef, l => [ 1, [], {} ], o => { k => { deep => $true } }, f => $false }
		} ],
	'goals without and with properties');

my $attributes = q('{"b": "2", "a": 1, "ab": null, "C": [1, {"x": false}]}');
$before = now_ms();
my ($with) = published("SELECT absmartly_track($user, 'g', attributes => $attributes)");
is_json(timeless(@{ $with->{attributes} }), [
		{ name => 'C', value => [ 1, { x => $false } ] },
		{ name => 'a', value => 1 },
		{ name => 'ab', value => undef },
		{ name => 'b', value => '2' } ],
	'attributes in the order of their names');
is(scalar(grep { $_->{setAt} == $with->{goals}[0]{achievedAt} } @{ $with->{attributes} }), 4, 'set at the time of the call');
is_between($with->{attributes}[0]{setAt}, $before, now_ms(), 'which is now');
($with) = published("SELECT absmartly_track($user, 'g', achieved_at => '2024-02-29 12:00:00.123456+00', attributes => $attributes)");
is_json([ $with->{goals}[0]{achievedAt}, map { $_->{setAt} } @{ $with->{attributes} } ], [ (1709208000123) x 5 ],
	'or the time that it gives');
($with) = published("SELECT absmartly_treatment($user, 'plain', $attributes, exposed_at => '1969-12-31 23:59:59.9995+00')");
is_json([ $with->{exposures}[0]{exposedAt}, map { $_->{setAt} } @{ $with->{attributes} } ], [ (-1) x 5 ],
	'also before the epoch: times are cut downwards');

my $system = published_attributes(qq(SET absmartly.include_system_attributes = on;
	SELECT absmartly_track($user, 'g', attributes => '{"a": 1, "application": "mine"}')));
is_json([ grep { $_->{name} ne 'sdk_version' } @$system ], [
		{ name => 'sdk_name', value => 'absmartly-postgresql-sdk' },
		{ name => 'application', value => 'website' },
		{ name => 'environment', value => 'production' },
		{ name => 'app_version', value => '3.1.4-beta.1' },
		{ name => 'a', value => 1 },
		{ name => 'application', value => 'mine' } ],
	'system attributes come first');
is($system->[1]{name}, 'sdk_version', 'with the version of this SDK');
is_json(published_attributes("SET absmartly.include_system_attributes = on; SELECT absmartly_treatment($user, 'new')")->[2],
	{ name => 'application', value => 'website' }, 'of exposures, too, without other attributes');

#
# Historic
#

my $when = "'2024-02-29 12:00+00'";
my @historic = (
	[ "SELECT absmartly_track($user, 'g', historic => true)",                          1, 'a goal by the argument' ],
	[ "SELECT absmartly_treatment($user, 'plain', historic => true)",                  1, 'an exposure by the argument' ],
	[ q{SELECT absmartly_unit_treatment('u', 'plain', historic => true)},              1, 'that of a single unit' ],
	[ "SET absmartly.historic = on; SELECT absmartly_track($user, 'g')",               1, 'a goal by the setting' ],
	[ "SET absmartly.historic = on; SELECT absmartly_treatment($user, 'plain')",       1, 'an exposure by the setting' ],
	[ "SET absmartly.historic = on; SELECT absmartly_track($user, 'g', historic => false)", 0, 'not if the argument says no' ],
	[ "SELECT absmartly_track($user, 'g', achieved_at => $when)",                      0, 'not for achieved_at alone' ],
	[ "SELECT absmartly_treatment($user, 'plain', exposed_at => $when)",               0, 'not for exposed_at alone' ],
	[ "SELECT absmartly_track($user, 'g', achieved_at => $when, historic => true)",    1, 'for both' ]);
for my $case (@historic)
{
	my ($sql, $expected, $name) = @$case;
	my ($request, @rest) = published($sql);

	is(scalar @rest, 0, "historic: $name: a request");
	is_json($request->{historic}, $expected ? $true : undef, "historic: $name");
}
is_json([ map { [ $_->{historic}, scalar @{ $_->{goals} } ] } published(transaction(
			"absmartly_track($user, 'a')", "absmartly_track($user, 'b', historic => true)",
			"absmartly_track($user, 'c', historic => true)", "absmartly_track($user, 'd')")) ],
	[ [ undef, 1 ], [ $true, 2 ], [ undef, 1 ] ], 'historic and other events have requests of their own');

#
# Text, numbers, size
#

my $strange = qq(quote " backslash \\ slash / tab \t line \n bell \a escape \e delete \x7f ü ↓ 😀 \x{2028});
(my $literal = $strange) =~ s/([\\'])/\\$1/g;
my ($text) = published("SELECT absmartly_track(jsonb_build_object(E'$literal', 1), E'$literal',"
	. " jsonb_build_object(E'$literal', E'$literal'), attributes => jsonb_build_object(E'$literal', E'$literal'))");
is_json(
	[ $text->{units}[0]{type}, $text->{goals}[0]{name}, $text->{goals}[0]{properties}, @{ timeless(@{ $text->{attributes} }) } ],
	[ $strange, $strange, { $strange => $strange }, { name => $strange, value => $strange } ],
	'characters of all kinds, in all texts');
is_json(timeless(exposures_of("SELECT absmartly_treatment($user, E'$literal')")), [ exposure($strange, 0, undef, 0) ],
	'in the name of an experiment that nobody knows, too');

my %numbers = (
	long  => '12345678901234567890123456789.000000000000000000001',
	large => '1' . '0' x 400,
	small => '0.' . '0' x 399 . '1',
	minus => '-9007199254740993',
	zeros => '125.00');
my $numbers = '{' . join(', ', map { "\"$_\": $numbers{$_}" } sort keys %numbers) . '}';
($request) = requests_of("SELECT absmartly_track($user, 'g', '$numbers', attributes => '$numbers')");
for my $name (sort keys %numbers)
{
	like($request->{body}, qr/"$name":\Q$numbers{$name}\E[,}].*"name":"$name","value":\Q$numbers{$name}\E,/,
		"a number is sent by its exact text: $name");
}
($request) = requests_of(qq(SELECT absmartly_track($user, 'g', '{"large": 1e400}')));
like($request->{body}, qr/"large":10{400}\}/, 'an exponent, too');

my ($huge) = published("SELECT absmartly_track($user, 'huge', jsonb_build_object('text', "
	. "(SELECT string_agg(md5(i::text), '' ORDER BY i) FROM generate_series(1, 28125) AS i), 'end', true))");
is(length $huge->{goals}[0]{properties}{text}, 900_000, 'properties of 900 kB');
is($huge->{goals}[0]{properties}{text},
	run(q{SELECT string_agg(md5(i::text), '' ORDER BY i) FROM generate_series(1, 28125) AS i}), 'arrive as they were');
is_json($huge->{goals}[0]{properties}{end}, $true, 'to their end');
@requests = requests_of("DO \$\$ BEGIN PERFORM absmartly_track(jsonb_build_object('user_id', i), 'huge', "
	. "jsonb_build_object('text', repeat(chr(64 + i), 900000))) FROM generate_series(1, 12) AS i; END \$\$");
my @huge = map { @{ $_->{json}{requests} // [ $_->{json} ] } } @requests;
is(scalar @huge, 12, 'twelve of them');
my %texts = map { substr($_->{goals}[0]{properties}{text}, 0, 1) => $_->{goals}[0]{properties}{text} } @huge;
is_json([ map { ($texts{$_} // '') eq $_ x 900_000 ? $_ : "not $_" } 'A' .. 'L' ], [ 'A' .. 'L' ], 'each its own');
cmp_ok(scalar @requests, '>', 2, 'in several requests, because of their size');

#
# Origins: events of one application, version and environment never go out under another
#

$node->safe_psql('postgres', 'ALTER DATABASE postgres SET absmartly.publishing = off');
$collector->forget;
run(transaction("absmartly_track($user, 'website production 3.1.4-beta.1')"));
change_origin(application => 'shop');
run(transaction("absmartly_track($user, 'shop production 3.1.4-beta.1')"));
change_origin(environment => 'staging');
run(transaction("absmartly_track($user, 'shop staging 3.1.4-beta.1')"));
change_origin(application_version => '4');
run(transaction("absmartly_track($user, 'shop staging 4')", "absmartly_track($user, 'shop staging 4')"));
change_origin(application => 'website');
run(transaction("absmartly_track($user, 'website staging 4')"));
is(scalar $collector->requests(space => '/v1', method => 'PUT'), 0, 'turned off, nothing is sent');
my $waiting = run('SELECT count(*) FROM absmartly_pending_events');
fails_with($node, 'SELECT absmartly_publish();', '55000', qr/events are not published: "absmartly\.publishing" is off/,
	'nor by absmartly_publish()');
set_for_worker($node, publishing => undef);
publish();
@requests = $collector->requests(space => '/v1', method => 'PUT');
my %seen;
for my $request (@requests)
{
	my $origin = join ' ', @{ $request->{headers} }{qw(x-application x-environment x-application-version)};

	for my $item (@{ $request->{json}{requests} // [ $request->{json} ] })
	{
		$seen{ $_->{name} eq 'version' ? 'version' : $_->{name} eq $origin ? $origin : "$_->{name} as $origin" }++
			for @{ $item->{goals} };
	}
}
my $versions = delete $seen{version};
is_json(\%seen, {
		'website production 3.1.4-beta.1' => 1,
		'shop production 3.1.4-beta.1' => 1,
		'shop staging 3.1.4-beta.1' => 1,
		'shop staging 4' => 2,
		'website staging 4' => 1 },
	'each event goes out under what it was recorded under');
is($versions + 6, $waiting, 'none is missing');
configure($node, "absmartly.environment = 'production'\nabsmartly.application_version = '3.1.4-beta.1'");
ok(await_sql($node, 'SELECT environment FROM absmartly_shared_data()', 'production'), 'as before');

#
# When, and how many
#

$collector->forget;
run("SELECT absmartly_track($user, 'patient')");
sleep 1;
is(arrived(), 0, 'a long publish_delay: an event waits for company');
publish();
is(arrived(), 1, 'absmartly_publish() does not');

set_for_worker($node, publish_delay => '5s');
$collector->forget;
$before = time;
run("SELECT absmartly_track($user, 'early')");
sleep 0.5;
run("SELECT absmartly_track($user, 'late')");
ok(await(sub { arrived() > 0 }), 'publish_delay: events are sent by themselves');
cmp_ok(time - $before, '>', 4.9, 'after the delay');
is(join(' ', map { map { $_->{name} } @{ $_->{goals} } } $collector->publish_requests(space => '/v1')), 'early late',
	'counted from the first one, together');

set_for_worker($node, publish_delay => '0');
takes_less(3, 'at once', sub {
	run("SELECT absmartly_track($user, 'at once')");
	ok(await(sub { arrived() > 0 }), 'without a delay they are sent');
}, sub { $collector->forget });

set_for_worker($node, publish_delay => '10min');
set_for_worker($node, batch_size => '3');
$collector->forget;
run(track_many(2));
sleep 0.5;
is(arrived(), 0, 'batch_size: fewer wait');
run("SELECT absmartly_track($user, 'full')");
ok(await(sub { $collector->publish_requests(space => '/v1') >= 3 }), 'as many as fill a batch do not');
is(sizes(requests_of(track_many(10))), '3 3 3 1', 'and no batch has more');
set_for_worker($node, batch_size => undef);
is(sizes(requests_of(track_many(1001))), '500 500 1', 'the collector takes 500');

set_for_worker($node, batch_bytes => '4kB');
@requests = requests_of(track_many(100));
my $item = length($requests[0]{body}) / scalar @{ $requests[0]{json}{requests} };
cmp_ok((sort { $b <=> $a } map { length $_->{body} } @requests)[0], '<=', 4096 + 2 * $item, 'batch_bytes: no batch is much larger');
cmp_ok(scalar @requests, '<=', 100 * $item / 4096 + 2, 'nor much smaller');
is(scalar(map { @{ $_->{json}{requests} // [1] } } @requests), 100, 'and all arrive');
@requests = requests_of(transaction(map { "absmartly_track($user, 'of one context $_')" } 1 .. 200));
cmp_ok(scalar @requests, '>', 3, 'a context that is larger than a batch is several requests');
my @parts = map { [ map { $_->{name} =~ /(\d+)$/ } @{ $_->{goals} } ] } $collector->publish_requests(space => '/v1');
is(join(',', map { @$_ } sort { $a->[0] <=> $b->[0] } @parts), join(',', 1 .. 200), 'with all its events, in order');
set_for_worker($node, batch_bytes => undef);

#
# The same exposure again
#

my $deduplicated = stat_of($node, 'exposures_deduplicated');
is(scalar exposures_of(treat('d1') . treat('d1')), 1, 'the same exposure twice in a session is sent once');
is(scalar exposures_of(treat('d1')), 0, 'in another session it is not sent again');
is(scalar exposures_of(transaction(map { s/^SELECT |;$//gr } (treat('d2')) x 3)), 1, 'nor in one transaction');
is(scalar exposures_of(treat('d3')), 1, 'that of another unit is');
is(stat_of($node, 'exposures_deduplicated') - $deduplicated, 4, 'those that were not are counted');
is(scalar exposures_of("SET absmartly.overrides = '{\"plain\": 5}';" . treat('d1') . treat('d1')), 1, 'so is that of another variant');
is(scalar exposures_of(treat('d1', ", exposed_at => now()") x 2), 2, 'with exposed_at each is');
is(scalar exposures_of(treat('d1', ', historic => true') x 2), 2, 'with historic, too');
is(scalar exposures_of(treat('d4', ', historic => true') . treat('d4')), 2, 'and it is not remembered');
is(scalar exposures_of('BEGIN;' . treat('d5') . 'ROLLBACK;' . treat('d5')), 1, 'what was rolled back is sent');
is(scalar exposures_of('BEGIN; SAVEPOINT s;' . treat('d6') . 'ROLLBACK TO s;' . treat('d6') . treat('d6') . 'COMMIT;'), 1,
	'also within a transaction');
is(scalar exposures_of(treat('d6')), 0, 'and remembered then');
my $interval = "SET absmartly.exposure_dedup_interval = '3s';";
is(scalar exposures_of($interval . treat('d7') . treat('d7') . 'SELECT pg_sleep(3.2);' . treat('d7')), 2, 'once per interval');
is(scalar exposures_of('SET absmartly.exposure_dedup_interval = 0;' . treat('d7') x 3), 3, 'without an interval each is sent');
is(scalar exposures_of("SELECT absmartly_peek_treatment($user, 'no exposure')"), 0, 'peeking is no exposure');

#
# The event logger
#

run(<<'EOT');
CREATE SCHEMA audit;
CREATE TABLE audit.events (n serial, context jsonb, event text, data jsonb);
CREATE FUNCTION audit.log(context jsonb, event text, data jsonb) RETURNS void LANGUAGE sql
AS $$ INSERT INTO audit.events (context, event, data) VALUES (context, event, data) $$;
EOT
set_for_worker($node, event_logger => 'audit.log');
run("SELECT absmartly_refresh('$PATIENCE s')");
run('TRUNCATE audit.events');
@requests = requests_of(transaction("absmartly_track($user, 'logged')", "absmartly_treatment($user, 'logged')"));
is(run('SELECT string_agg(event, \',\') FROM audit.events'), 'publish', 'a publish event for a request, when the waiter goes on');
is_json(JSON::PP->new->decode(run('SELECT data FROM audit.events')), JSON::PP->new->decode($requests[0]{body}), 'with what was sent');
is(run(q{SELECT context->>'source', context->>'database' FROM audit.events}), 'worker|postgres', 'from the worker');
run('TRUNCATE audit.events');
requests_of(track_many(5));
is(run(q{SELECT count(*), count(DISTINCT data->'units'->0->>'uid') FROM audit.events WHERE event = 'publish'}), '5|5',
	'one for each request of a batch');
run('TRUNCATE audit.events');
$collector->fault('/v1', { match => { method => 'PUT' }, status => 503, times => -1 });
run("SELECT absmartly_track($user, 'failing')");
$node->psql('postgres', "SELECT absmartly_publish('$PATIENCE s')");
# one for each round: others follow by themselves
like(run(q{SELECT string_agg(event, ',' ORDER BY n) FROM audit.events}), qr/^error(?:,error)*$/, 'a publish that fails is an error event');
like(run('SELECT data FROM audit.events'), qr/status 503/, 'with the reason');
$collector->clear_faults('/v1');
publish();
like(run(q{SELECT string_agg(event, ',' ORDER BY n) FROM audit.events}), qr/^error(?:,error)*,publish$/, 'the event comes when it is delivered');

$node->stop;
done_testing();
