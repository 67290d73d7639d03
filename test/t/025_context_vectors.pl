
# The protocol's vectors of session contexts, through SQL: sequences of calls with what they give and the events they
# emit, and the bodies of publish requests. doc/vectors.md tells what of them SQL can not express.
#
# Each case has a space of the collector to itself, to which the database is pointed: a new epoch. Calls are made one by
# one, in transactions of their own, in one session; events come from an event logger that writes to a table.

use strict;
use warnings;

use AbsmartlyTest;
use AbsmartlyVectors;
use JSON::PP ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $folder = vectors_folder();
my $json = JSON::PP->new->utf8->allow_nonref->canonical;
my $ascii = JSON::PP->new->ascii->allow_nonref->canonical;

# What an event may tell beyond what a case expects of it, and what it has to be then.
my %more = (
	exposedAt   => \&is_time,
	achievedAt  => \&is_time,
	setAt       => \&is_time,
	publishedAt => \&is_time,
	sdkVersion  => sub { $_[0] =~ /^\d+\.\d+/ },
	heldOut     => sub { !$_[0] },
	holdoutId   => sub { $_[0] == 0 });
my $began;

# Functions that give nothing.
my $void = qr{^absmartly_context_(?:set_|track|refresh|publish|finalize|close|create)};

# The members of the calls' parameters, in the order that vectors without names give them.
my %positions = (
	(map { $_ => ['experimentName'] } qw(treatment peek)),
	(map { $_ => [qw(experimentName variant)] } qw(override customAssignment)),
	(map { $_ => ['values'] } qw(units attributes overrides customAssignments)),
	(map { $_ => [qw(key defaultValue)] } qw(variableValue peekVariableValue)),
	(map { $_ => [] } qw(publish finalize close pending)),
	refresh   => ['newData'],
	unit      => [qw(unitType uid)],
	attribute => [qw(name value)],
	track     => [qw(goalName properties achievedAt)]);

my $collector = start_collector(data => '{"experiments":[]}');
my $node = start_node('main', extension => 0, settings => "absmartly.max_retries = 0\n");
my $spaces = 0;

$node->safe_psql('postgres', "CREATE DATABASE contexts ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
create_extension($node, 'contexts');
log_events($node, 'contexts');

for my $case (cases_of('context_sequences'))
{
	sequence($case, 0);
	sequence($case, 1) if $case->{steps} =~ /"createContextWith"/ && $case->{steps} !~ /"(?:payloadThrottle|failLoad|createContextFailed)"/;
}
publishing($_) for cases_of('publish');

unlike(log_of($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
$node->stop;
done_testing();

#
# Cases
#

# The cases of a file, each as its members, name => JSON text.
sub cases_of
{
	my ($name) = @_;
	my $path = "$folder/$name.json";
	my @cases;

	SKIP:
	{
		skip "there is no $name.json", 1 if !-e $path;
		my %content = members(slurp_file($path));
		@cases = map { { members($_) } } elements($content{cases});
		ok(@cases > 0, "$name.json has cases");
	}
	return @cases;
}

# Makes a sequence of calls. Prefetched: the context is given its data, instead of having the database's.
sub sequence
{
	my ($case, $prefetched) = @_;
	my $name = plain($case->{id}) . ($prefetched ? ', prefetched' : '');
	my @steps = map { { members($_) } } elements($case->{steps});
	my @reasons = map { step_reasons($_) } @steps;
	my $client = { data => $case->{contextData}, environment => $case->{environment}, prefetched => $prefetched };
	my @wrong;

	SKIP:
	{
		skip "$name: $reasons[0]", 1 if @reasons;
		$began = int(time * 1000);
		for my $index (0 .. $#steps)
		{
			my $step = $steps[$index];
			my %expect = members($step->{expect});
			my $action = plain($step->{action});
			my $answer = perform($client, $action, members($step->{params}));

			push @wrong, map { "step $index, $action: $_" } differences($client, $action, $answer, %expect);
		}
		finish($client);
		ok(!@wrong, $name) || diag(join "\n", @wrong);
	}
	return;
}

# Makes the calls of a case of publish requests, and compares the bodies that the collector has received.
sub publishing
{
	my ($case) = @_;
	my $name = plain($case->{id});
	my %application = is_string($case->{application} // '') ? (name => $case->{application}) : members($case->{application});
	my @reasons = client_reason(1, $case->{environment}, @application{qw(name version)});
	my $client = { data => $case->{contextData}, environment => $case->{environment}, application => \%application };
	my (@wrong, @calls);

	for my $operation (map { { members($_) } } elements($case->{operations}))
	{
		my $action = plain($operation->{action});
		my @arguments = elements($operation->{args});
		my @names = @{ $positions{$action} // [] };
		my %params;

		push @reasons, "$action is not known with these arguments" if !$positions{$action} || @arguments > @names;
		@params{ @names[ 0 .. $#arguments ] } = @arguments if @arguments && @arguments <= @names;
		push @calls, [ $action, \%params ];
		push @reasons, step_reasons({ params => '{' . join(',', map { "\"$_\":$params{$_}" } keys %params) . '}' });
	}
	push @reasons, no_unit($case->{units}), no_text(grep { defined } @{$case}{qw(units options)});

	SKIP:
	{
		skip "$name: $reasons[0]", 1 if @reasons;
		$began = int(time * 1000);
		for my $call ([ createContextWith => { units => $case->{units}, options => $case->{options} } ], @calls)
		{
			my $answer = perform($client, $call->[0], %{ $call->[1] });

			push @wrong, "$call->[0]: $answer->{message}" if defined $answer->{message};
		}
		my $end = int(time * 1000);
		my @sent = map { $json->decode($_) } texts_of($collector->requests(space => $client->{space}, method => 'PUT'));
		my @expected = map { $json->decode($_) } elements($case->{expected});
		my @got = map { comparable($sent[$_], $expected[$_], $began, $end) } 0 .. $#sent;

		is(join("\n", @wrong, map { $ascii->encode($_) } @got), join("\n", map { $ascii->encode(comparable($_)) } @expected), $name);
		ok(!(grep { !in_order($_) } @sent), "$name: times are in order");
		finish($client);
	}
	return;
}

# Whether what happened first has the earlier time.
sub in_order
{
	my ($request) = @_;
	my @own = grep { $_->{name} =~ /^(?:sdk_|application$|environment$|app_version$)/ } @{ $request->{attributes} // [] };
	my %is_own = map { $_ => 1 } @own;

	for my $times (
		[ map { $_->{exposedAt} } @{ $request->{exposures} // [] } ],
		[ map { $_->{achievedAt} } @{ $request->{goals} // [] } ],
		[ map { $_->{setAt} } grep { !$is_own{$_} } @{ $request->{attributes} // [] } ])
	{
		push @$times, $request->{publishedAt};
		return 0 if grep { $times->[ $_ - 1 ] > $times->[$_] } 1 .. $#$times;
	}
	return !grep { $_->{setAt} != $request->{publishedAt} } @own;
}

# Why a step can not be expressed in SQL.
sub step_reasons
{
	my ($step) = @_;
	my %params = members($step->{params});
	my @texts = grep { defined } @params{ grep { !/^(?:newData|data)$/ } keys %params };

	return (
		no_text(@texts, $step->{expect} // ()),
		(map { no_unit($_) } grep { defined } @params{qw(uid units)}),
		defined $params{variant} && $params{variant} !~ /^-?\d{1,9}$/ ? 'variants are integers' : ());
}

#
# Calls
#

# Makes a call. Gives result (JSON text), or state and message of the error; and events, each decoded.
sub perform
{
	my ($client, $action, %params) = @_;
	my $loads = is_true($params{fail}) ? { match => { method => 'GET' }, status => 404, times => -1 } : undef;

	return create($client, $action, %params) if $action =~ /^createContext/;
	$collector->set_data($client->{space}, $client->{new_data} = $params{newData}) if $params{newData} && !$loads;
	$collector->fault($client->{space}, $loads) if $loads;
	if ($action eq 'publishFail')
	{
		$collector->fault($client->{space}, { match => { method => 'PUT' }, status => 503, times => -1 });
		$client->{refusing} = 1;
		return { result => 'null', events => [] };
	}
	my $answer = ask($client, statement($action, %params));
	my $refused = $client->{refusing} && $action =~ /^(?:publish|finalize)$/;

	$collector->clear_faults($client->{space}) if $loads || $refused;
	$client->{refusing} = 0 if $refused;
	if (!defined $answer->{message})
	{
		$answer->{result} = $json->encode([ sort keys %{ $json->decode($answer->{result}) } ]) if $action eq 'variableKeys';
		$answer->{result} = $json->encode({ isError => $JSON::PP::true, message => $json->decode($answer->{result}) })
			if $action eq 'readyError' && $answer->{result} ne 'null';
	}
	return $answer;
}

# Points the database to a space of the case's, and makes a context in a new session.
sub create
{
	my ($client, $action, %params) = @_;
	my %given = members($params{options});
	my %options = (publish_delay => -1, refresh_interval => 0);
	my %names = (historic => 'historic', includeSystemAttributes => 'include_system_attributes', publishDelay => 'publish_delay',
		refreshPeriod => 'refresh_interval');
	my $fails = $action eq 'createContextFailed' || is_true($params{failLoad});
	my $space = sprintf '/case-%d/v1', ++$spaces;

	finish($client);
	$client->{space} = $space;
	$collector->set_data($space, $client->{new_data} = $client->{data});
	$collector->fault($space, { match => { method => 'GET' }, status => 404, times => -1 }) if $fails;
	$collector->fault($space, { match => { method => 'GET' }, delay_ms => 0 + $given{payloadThrottle}, times => -1 })
		if $given{payloadThrottle};
	point($client, $space);
	begin($client);
	$options{ $names{$_} } = $given{$_} for grep { $names{$_} && !is_null($given{$_}) } keys %given;
	my $wait = !$given{payloadThrottle};
	my $answer = ask($client,
		call(context_create => jsonb($params{units} // '{}'),
			"data => " . ($client->{prefetched} && !$fails ? json($client->{data}) : 'NULL'),
			"options => " . jsonb('{' . join(',', map { "\"$_\":$options{$_}" } sort keys %options) . '}')),
		'SELECT absmartly_context_id() AS id \gset',
		$wait ? "SELECT absmartly_context_wait_until_ready('$PATIENCE s') AS ready \\gset" : ());

	return $answer if defined $answer->{message};
	my $states = ask($client, q{json_build_object('ready', absmartly_context_is_ready(), 'failed', absmartly_context_is_failed(),}
		. q{ 'finalized', absmartly_context_is_finalized())});
	return { result => $states->{result}, events => [ @{ $answer->{events} }, @{ $states->{events} } ] };
}

# Starts a case's session, in which there is no context.
sub begin
{
	my ($client) = @_;

	$client->{session} = $node->background_psql('contexts', on_error_stop => 0);
	$client->{session}->query_safe("SET client_encoding = 'UTF8';\n\\set id ''");
	$client->{last} = 0;
	return;
}

# Has the database's worker talk to a space, as the client of a case.
sub point
{
	my ($client, $space) = @_;
	my %application = (name => '"website"', version => '0', %{ $client->{application} // {} });
	my %settings = (
		endpoint            => $collector->url($space),
		environment         => is_null($client->{environment}) ? '' : plain($client->{environment}),
		application         => is_null($application{name}) ? '' : plain($application{name}),
		application_version => is_null($application{version}) ? '0' : plain($application{version}));

	# in one transaction, so that the endpoint is the last to change: a fetch for the others alone is not made
	$node->safe_psql('contexts',
		join "\n", 'BEGIN;', (map { "ALTER DATABASE contexts SET absmartly.$_ = " . literal($settings{$_}) . ';' } sort keys %settings), 'COMMIT;');
	return;
}

# Ends a case's session; what its context has left is sent while the collector's space is still the case's.
sub finish
{
	my ($client) = @_;
	my $session = delete $client->{session};

	return if !$session;
	$collector->clear_faults($client->{space});
	$session->query('DISCARD ALL;');
	$session->query("SELECT absmartly_publish('$PATIENCE s');");
	$session->quit;
	return;
}

# Evaluates an expression in the case's session, and sees which events of the context came up since the last time.
sub ask
{
	my ($client, $expression, @then) = @_;

	begin($client) if !$client->{session};
	my $output = $client->{session}->query(join "\n",
		"SELECT '\@result ' || coalesce(to_json(x)::text, 'null') FROM (SELECT $expression AS x OFFSET 0) AS s;",
		'\if :ERROR', '\echo @error :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE', '\else', @then, '\endif',
		"SELECT '\@events ' || coalesce(json_agg(json_build_object('n', n, 'type', event, 'data', data, 'source', context->>'source')"
			. " ORDER BY n), '[]') FROM event_log WHERE n > $client->{last} AND context->>'id' = :'id';");
	my %answer = (events => $output =~ /^\@events (.*)$/m ? $json->decode($1) : []);

	$client->{last} = $answer{events}[-1]{n} if @{ $answer{events} };
	if ($output =~ /^\@result (.*)$/m)
	{
		# void shows as an empty string
		$answer{result} = $1 eq '""' && $expression =~ $void ? 'null' : $1;
	}
	elsif ($output =~ /^\@error (\S+) (.*)$/m)
	{
		@answer{qw(state message)} = ($1, $2);
	}
	else
	{
		die "no answer to $expression: $output";
	}
	return \%answer;
}

# The call of SQL for an action of the conformance interface.
sub statement
{
	my ($action, %params) = @_;
	my ($experiment, $key, $name) = map { defined $params{$_} ? text($params{$_}) : 'NULL' } qw(experimentName key name);
	my $values = jsonb($params{values} // $params{units} // $params{attributes} // $params{overrides}
		// $params{customAssignments} // '{}');
	my $default = is_null($params{defaultValue}) ? "'null'::jsonb" : jsonb($params{defaultValue});
	my %statements = (
		setUnit              => sub { call(context_set_unit => text($params{unitType}), value($params{uid})) },
		setUnits             => sub { call(context_set_units => $values) },
		getUnit              => sub { call(context_get_unit => text($params{unitType})) },
		getUnits             => sub { 'absmartly_context_units()' },
		attribute            => sub { call(context_set_attribute => $name, value($params{value})) },
		setAttributes        => sub { call(context_set_attributes => $values) },
		getAttribute         => sub { call(context_get_attribute => $name) },
		getAttributes        => sub { 'absmartly_context_attributes()' },
		override             => sub { call(context_set_override => $experiment, $params{variant}) },
		setOverrides         => sub { call(context_set_overrides => $values) },
		getOverride          => sub { call(context_get_override => $experiment) },
		customAssignment     => sub { call(context_set_custom_assignment => $experiment, $params{variant}) },
		setCustomAssignments => sub { call(context_set_custom_assignments => $values) },
		getCustomAssignment  => sub { call(context_get_custom_assignment => $experiment) },
		treatment            => sub { call(context_treatment => $experiment) },
		peek                 => sub { call(context_peek_treatment => $experiment) },
		variableValue        => sub { call(context_variable_value => $key, $default) },
		peekVariableValue    => sub { call(context_peek_variable_value => $key, $default) },
		variableKeys         => sub { 'absmartly_context_variable_keys()' },
		customFieldValue     => sub { call(context_custom_field_value => $experiment, text($params{fieldName})) },
		customFieldValueType => sub { call(context_custom_field_value_type => $experiment, text($params{fieldName})) },
		customFieldKeys      => sub { 'absmartly_context_custom_field_keys()' },
		track                => sub { call(context_track => text($params{goalName}), jsonb_or_null($params{properties} // 'null'),
			is_null($params{achievedAt}) ? () : "to_timestamp($params{achievedAt} / 1000.0)") },
		pending              => sub { 'absmartly_context_pending()' },
		isReady              => sub { 'absmartly_context_is_ready()' },
		isFailed             => sub { 'absmartly_context_is_failed()' },
		isFinalizing         => sub { 'absmartly_context_is_finalizing()' },
		isFinalized          => sub { 'absmartly_context_is_finalized()' },
		readyError           => sub { 'absmartly_context_ready_error()' },
		experiments          => sub { 'absmartly_context_experiments()' },
		data                 => sub { 'absmartly_context_data()' },
		waitForReady         => sub { call(context_wait_until_ready => "'" . ($params{timeout} // 5000) . " ms'") },
		publish              => sub { call(context_publish => "'$PATIENCE s'") },
		finalize             => sub { call(context_finalize => "'$PATIENCE s'") },
		close                => sub { call(context_close => "'$PATIENCE s'") },
		refresh              => sub { call(context_refresh => "'$PATIENCE s'") },
		diagnostic           => sub { diagnostic(plain($params{operation}), $params{value}) });
	my %same = (
		unit                   => 'setUnit',
		units                  => 'setUnits',
		setAttribute           => 'attribute',
		attributes             => 'setAttributes',
		setOverride            => 'override',
		overrides              => 'setOverrides',
		setCustomAssignment    => 'customAssignment',
		customAssignments      => 'setCustomAssignments',
		peekTreatment          => 'peek',
		variableKeysMap        => 'variableKeys',
		globalCustomFieldKeys  => 'customFieldKeys');
	my $statement = $statements{ $same{$action} // $action } or die "action $action is not known";

	return $statement->();
}

# A unit or the value of an attribute, by the function for its type.
sub value
{
	my ($text) = @_;

	return jsonb('null') if is_null($text);
	return is_string($text) ? text($text) : is_number($text) ? number($text, 'numeric') : jsonb($text);
}

sub diagnostic
{
	my ($operation, $value) = @_;
	my %operations = (
		hashUnit        => sub { call(hash_unit => is_number($value) ? number($value, 'numeric') : text($value)) },
		base64UrlNoPadding => sub { call(base64url => text($value)) },
		utf8Bytes       => sub { call(utf8_bytes => text($value)) },
		isObject        => sub { 'jsonb_typeof(' . jsonb($value) . q{) = 'object'} },
		isNumeric       => sub { 'jsonb_typeof(' . jsonb($value) . q{) = 'number'} },
		isPromise       => sub { 'false' });

	return ($operations{$operation} // die "operation $operation is not known")->();
}

#
# Comparing
#

# How an answer differs from what a step expects.
sub differences
{
	my ($client, $action, $answer, %expect) = @_;
	my @wrong;

	if ($expect{error} || $expect{errorContains})
	{
		push @wrong, error_differences($action, $answer, %expect);
	}
	elsif (defined $answer->{message})
	{
		push @wrong, "the error $answer->{message}";
	}
	elsif (exists $expect{result})
	{
		push @wrong, map { "result: $_" } unlike_expected($json->decode($answer->{result}), $json->decode($expect{result}), $action);
	}
	# who waits until a context is ready may be who notices it
	push @wrong, event_differences($client, $answer->{events}, map { { members($_) } } elements($expect{events}))
		if $expect{events} && $action ne 'waitForReady';
	return @wrong;
}

# The texts are the protocol's, but for failures of the collector: their reasons are our own.
sub error_differences
{
	my ($action, $answer, %expect) = @_;
	my $message = $answer->{message};
	my $expected = plain($expect{error} // $expect{errorContains});
	my $whole = $expect{error};
	my $state = '22023';

	return "no error, instead of: $expected" if !defined $message;
	$state = '55000' if $expected =~ /Context is/;
	$state = '08006', $whole = 0 if $expected =~ /^Publish failed/;
	if ($action eq 'refresh' && $expected !~ /Context is/)
	{
		$expected = 'status 404';
		$whole = 0;
		$state = '08006';
	}
	return "error: $message instead of: $expected" if $whole ? $message ne $expected : index(lc $message, lc $expected) < 0;
	return $answer->{state} eq $state ? () : "SQLSTATE $answer->{state} instead of $state";
}

sub event_differences
{
	my ($client, $events, @expected) = @_;
	my $types = join ' ', map { $_->{type} } @$events;
	my $expected_types = join ' ', map { plain($_->{type}) } @expected;
	my @wrong;

	return "events: [$types] instead of [$expected_types]" if $types ne $expected_types;
	for my $index (0 .. $#expected)
	{
		my ($type, $data) = @{ $events->[$index] }{qw(type data)};
		my $where = "event $index, $type";

		push @wrong, "$where: from source $events->[$index]{source}" if $events->[$index]{source} ne 'context';
		push @wrong, map { "$where: $_" } unlike_expected($data, $json->decode($expected[$index]{data}), '')
			if $expected[$index]{data} && $type !~ /^(?:ready|refresh)$/;
		push @wrong, map { "$where: $_" } unlike_expected($data, $json->decode($client->{new_data}), '')
			if $type =~ /^(?:ready|refresh)$/;
		push @wrong, "$where: no text" if $type eq 'error' && (ref $data || !length($data // ''));
	}
	return @wrong;
}

# How a value differs from the expected one: names and elements must be the same, but for what may be told in addition.
sub unlike_expected
{
	my ($got, $expected, $where) = @_;

	if (ref $expected eq 'HASH' && ref $got eq 'HASH')
	{
		return (
			(map { exists $got->{$_} ? unlike_expected($got->{$_}, $expected->{$_}, "$where.$_") : "$where.$_ is missing" }
				sort keys %$expected),
			(map { "$where.$_: " . $ascii->encode($got->{$_}) . ' is not expected' }
				grep { !exists $expected->{$_} && !($more{$_} && $more{$_}->($got->{$_})) } sort keys %$got));
	}
	if (ref $expected eq 'ARRAY' && ref $got eq 'ARRAY' && @$got == @$expected)
	{
		my @pair = ($got, $expected);

		@pair = map { [ sort { $a->{type} cmp $b->{type} } @$_ ] } @pair if $where =~ /\.units$/;
		@pair = map { [ sort @$_ ] } @pair if $where eq 'variableKeys';
		return map { unlike_expected($pair[0][$_], $pair[1][$_], "$where\[$_]") } 0 .. $#$expected;
	}
	my ($got_text, $expected_text) = map { $ascii->encode($_) } $got, $expected;
	return $got_text eq $expected_text ? () : "$where: $got_text instead of $expected_text";
}

# Whether a time lies between the case's start and now.
sub is_time
{
	my ($time) = @_;

	return $time =~ /^\d+$/ && $time >= $began && $time <= time * 1000;
}

sub is_true
{
	my ($text) = @_;

	return ($text // '') eq 'true';
}
