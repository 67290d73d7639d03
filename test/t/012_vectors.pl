
# The protocol's test vectors, through SQL; doc/vectors.md tells what of them SQL can not express.
#
# ABSMARTLY_SHARED names the folder that has them in vectors/. Each case becomes a few statements that compare what the
# extension gives with what the case expects, and counts as one test. Values go into the statements as they stand in the
# files, so that the order of members and the text of numbers survive.

use strict;
use warnings;

use AbsmartlyTest;
use AbsmartlyVectors;
use JSON::PP ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $folder = vectors_folder();

# The files, and what makes statements of their cases: given a case's members, name => JSON text, it gives a list of
#   check(...), load(...), set(...)  statements, in order
#   client(...)                      what application, version and environment they are about, if not the usual ones
#   a text                           why a part of the case, or all of it, can not be expressed
my @files = (
	[ md5                => \&md5 ],
	[ base64url          => \&base64url ],
	[ utf8_bytes         => \&utf8_bytes ],
	[ hash_unit          => \&hash_unit ],
	[ assign             => \&assign ],
	[ holdout_membership => \&holdout_membership ],
	[ conversions        => \&conversions ],
	[ compare            => \&compare ],
	[ deep_equal         => \&deep_equal ],
	[ semver             => \&semver ],
	[ match              => \&match ],
	[ extract_var        => \&extract_var ],
	[ jsonexpr           => \&jsonexpr ],
	[ audience           => \&audience ],
	[ rules              => \&rules ],
	[ assignments        => \&assignments ],
	[ variables          => \&variables ],
	[ custom_fields      => \&custom_fields ]);

# Where what an exposure tells is found: columns of absmartly_assignments, and names of absmartly_explain's result.
my %flags = (
	id               => 'id',
	unit             => 'unit_type',
	variant          => 'variant',
	assigned         => 'assigned',
	eligible         => 'eligible',
	overridden       => 'overridden',
	fullOn           => 'full_on',
	custom           => 'custom',
	audienceMismatch => 'audience_mismatch',
	ruleOverride     => 'rule_override',
	heldOut          => 'held_out',
	holdoutId        => 'holdout_id');

my $node = start_node('main', extension => 0, settings => "max_worker_processes = 100\n");
my %databases;
my $collector;

for my $file (@files)
{
	my ($name, $statements) = @$file;
	my $path = "$folder/$name.json";

	SKIP:
	{
		skip "there is no $name.json", 1 if !-e $path;
		my %content = members(slurp_file($path));
		my @cases = map { { members($_) } } elements($content{cases});
		ok(@cases > 0, "$name.json has cases");
		run_cases($statements, @cases);
	}
}

SKIP:
{
	skip 'there is no publish.json', 1 if !-e "$folder/publish.json";
	my %content = members(slurp_file("$folder/publish.json"));
	my @cases = map { { members($_) } } elements($content{cases});
	ok(@cases > 0, 'publish.json has cases');
	publish_case(%$_) for @cases;
}

unlike(log_of($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
$node->stop;
done_testing();

#
# Running cases
#

# Makes a script for each database, runs it, and reports each case.
sub run_cases
{
	my ($statements, @cases) = @_;
	my (@reports, %scripts);

	for my $case (@cases)
	{
		my @items = $statements->(%$case);
		my @sql = map { $_->{sql} // () } grep { ref } @items;
		my ($client) = map { $_->{client} // () } grep { ref } @items;
		my %report = (
			name      => plain($case->{id}),
			reason    => join('; ', grep { !ref } @items),
			expected  => scalar(grep { ref && $_->{check} } @items),
			done      => 0,
			different => []);

		push @reports, \%report;
		next if !$report{expected};
		push @{ $scripts{ database($client // [ 'website', '0', 'production' ]) } }, "\\set n $#reports",
			map { ($_, '\if :ERROR', '\echo :n error :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE', '\endif') } @sql,
			'RESET absmartly.overrides;', 'RESET absmartly.include_system_attributes;';
	}

	for my $database (sort keys %scripts)
	{
		my ($status, $output) = $node->psql($database,
			join("\n", '\pset fieldsep \'\t\'', "SET client_encoding = 'UTF8';", @{ $scripts{$database} }),
			on_error_stop => 0);

		for my $line (split /\n/, $output)
		{
			if ($line =~ /^(\d+)\t([^\t]*)\t([tf])\t([^\t]*)\t([^\t]*)$/)
			{
				my $report = $reports[$1];

				$report->{done}++;
				push @{ $report->{different} }, "$2: $4 instead of $5" if $3 eq 'f';
			}
			elsif ($line =~ /^(\d+) (error .*)/)
			{
				push @{ $reports[$1]{different} }, $2;
			}
		}
	}

	for my $report (@reports)
	{
		SKIP:
		{
			skip "$report->{name}: $report->{reason}", 1 if !$report->{expected};
			my $name = $report->{reason} eq '' ? $report->{name} : "$report->{name}, except: $report->{reason}";
			ok(!@{ $report->{different} } && $report->{done} == $report->{expected}, $name)
				|| diag(join "\n", @{ $report->{different} },
					"$report->{done} of $report->{expected} comparisons were made");
		}
	}
	return;
}

# The database that has a worker for this client.
sub database
{
	my ($client) = @_;
	my $key = join "\0", @$client;

	if (!$databases{$key})
	{
		my $name = 'client_' . keys %databases;
		my %settings;

		@settings{qw(application application_version environment)} = @$client;
		$node->safe_psql('postgres',
			"CREATE DATABASE $name ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
		$node->safe_psql('postgres', "ALTER DATABASE $name SET absmartly.$_ = " . literal($settings{$_}))
			for sort keys %settings;
		create_extension($node, $name);
		$databases{$key} = $name;
	}
	return $databases{$key};
}

# Compares the values of two SQL expressions. A value that is NULL shows as nothing.
sub check
{
	my ($what, $got, $expected) = @_;

	return { check => 1, sql => "SELECT :n, '$what', g IS NOT DISTINCT FROM e, to_json(g::text), to_json(e::text)"
		. " FROM (SELECT ($got) AS g, ($expected) AS e) AS s;" };
}

sub load
{
	my ($data) = @_;

	return check('data is loaded', call(set_context_data => json($data)) . ' IS NOT NULL', 'true');
}

sub set
{
	my ($name, $setting) = @_;

	return { sql => "SET absmartly.$name = " . literal($setting) . ';' };
}

sub client
{
	my ($application, $version, $environment) = @_;

	return { client => [ $application, $version, $environment ] };
}

sub boolean
{
	my ($text) = @_;

	return is_null($text) ? 'NULL::boolean' : $text;
}

sub split_array
{
	my ($text) = @_;

	return 'ARRAY[' . join(', ', map { number($_, 'float8') } elements($text)) . ']::float8[]';
}

sub evaluate
{
	my ($expression, $variables) = @_;

	return call(evaluate => json($expression), jsonb($variables // '{}'));
}

#
# Hashing and the assigner
#

# As text, where the bytes are those of one: UTF-8 of characters up to U+FFFF.
sub text_of_hex
{
	my ($hex) = @_;
	my $text = pack 'H*', plain($hex);

	return if !utf8::decode($text) || $text =~ /[\0\x{10000}-\x{10ffff}]/;
	utf8::encode($text);
	return $text;
}

sub md5
{
	my %case = @_;
	my $text = text_of_hex($case{inputHex});

	return 'only units, which are text, are hashed' if !defined $text;
	return check('unit hash', call(hash_unit => literal($text) . '::text'), text($case{base64url}));
}

sub base64url
{
	my %case = @_;
	my $text = text_of_hex($case{inputHex});
	my $encoded = text($case{encoded});

	return (
		check('of bytes', call(base64url => 'decode(' . text($case{inputHex}) . ", 'hex')"), $encoded),
		defined $text ? check('of text', call(base64url => literal($text) . '::text'), $encoded) : ());
}

sub utf8_bytes
{
	my %case = @_;

	return no_text($case{text}) if no_text($case{text});
	return check('bytes',
		"(SELECT coalesce(string_agg(lpad(to_hex(byte), 2, '0'), '' ORDER BY place), '')"
			. ' FROM unnest(' . call(utf8_bytes => text($case{text})) . ') WITH ORDINALITY AS b (byte, place))',
		text($case{bytesHex}));
}

sub hash_unit
{
	my %case = @_;

	return no_unit($case{unit}) if no_unit($case{unit});
	return check('hash',
		call(hash_unit => is_number($case{unit}) ? number($case{unit}, 'numeric') : text($case{unit})),
		text($case{hash}));
}

sub assign
{
	my %case = @_;
	my $variants = join ',', ('{}') x elements($case{split});
	my @items = check('variant', choice(text($case{unitHash}), %case), number($case{expected}, 'int'));
	my @reasons = no_unit($case{unit});

	return (@items, @reasons) if @reasons;
	my @arguments = ("jsonb_build_object('u', " . jsonb($case{unit}) . ')', q('e'));
	my $explained = call(explain => @arguments);
	return (
		@items,
		load(qq({"experiments":[{"id":1,"name":"e","unitType":"u","split":$case{split},"seedHi":$case{seedHi},)
			. qq("seedLo":$case{seedLo},"trafficSplit":[0,1],"variants":[$variants]}]})),
		check('hash', "$explained #>> '{unit,hash}'", text($case{unitHash})),
		check('probability',
			"($explained #>> '{assignment,probability}')::float8", number($case{probability}, 'float8')),
		check('treatment', call(peek_treatment => @arguments), number($case{expected}, 'int')));
}

sub holdout_membership
{
	my %case = @_;
	my %holdout = members($case{holdout});
	my @reasons = no_unit($case{unit});

	return @reasons if @reasons;
	my $units = "jsonb_build_object('u', " . jsonb($case{unit}) . ')';
	my $explained = call(explain => $units, q('e'));
	my $held = $case{heldOut} eq 'true';
	return (
		load(qq({"holdouts":[$case{holdout}],"experiments":[{"id":1,"name":"e","unitType":"u","split":[0,1],)
			. qq("trafficSplit":[0,1],"variants":[{},{}],"holdoutIds":[$holdout{id}]}]})),
		check('index', choice("$explained #>> '{unit,hash}'", %holdout), number($case{index}, 'int')),
		check('index, explained', "$explained #> '{holdouts,0,membership,choice}'", jsonb($case{index})),
		check('treatment', call(peek_treatment => $units, q('e')), $held ? 0 : 1),
		check('row of all assignments',
			'SELECT array[held_out::int, holdout_id, assigned::int, eligible::int] FROM ' . call(assignments => $units),
			'array[' . ($held ? "1, $holdout{id}" : '0, 0') . ', 1, 1]'));
}

# What the assigner chooses for a hash, by a split and its seeds.
sub choice
{
	my ($hash, %split) = @_;

	return call(
		assign => $hash,
		split_array($split{split}),
		number($split{seedHi}, 'bigint'),
		number($split{seedLo}, 'bigint'));
}

#
# Expressions
#

# With the operands as literals and, where jsonb can hold them, as variables: these are two ways of reading values.
sub both_ways
{
	my ($what, $expression, $expected, @operands) = @_;

	return no_utf8(@operands) if no_utf8(@operands);
	my @items = check("$what of literals",
		evaluate(sprintf $expression, map { "{\"value\":$_}" } @operands), $expected);

	return @items if no_text(@operands);
	my $variables = '{' . join(',', map { "\"v$_\":$operands[$_]" } 0 .. $#operands) . '}';
	return (
		@items,
		check("$what of variables",
			evaluate(sprintf($expression, map { "{\"var\":\"v$_\"}" } 0 .. $#operands), $variables), $expected));
}

sub conversions
{
	my %case = @_;
	my $op = plain($case{op});
	my $none = is_null($case{expected});

	return both_ways('boolean', '{"not":{"not":%s}}', jsonb($case{expected}), $case{value}) if $op eq 'boolean';

	# what is equal to the conversion's result by the left side's type
	my $left = !$none ? $case{expected} : $op eq 'number' ? '0' : '""';
	return both_ways($op, '{"eq":[%s,%s]}', jsonb_or_null($none ? 'null' : 'true'), $left, $case{value});
}

# The five operators of a comparison, given as -1, 0, 1 or null.
sub comparison
{
	my ($prefix, $expected, @operands) = @_;
	my %holds = (eq => [0], gt => [1], gte => [ 0, 1 ], lt => [-1], lte => [ -1, 0 ]);
	my $none = is_null($expected) || grep { is_null($_) } @operands;

	return map {
		my $op = $_;
		both_ways("$prefix$op", "{\"$prefix$op\":[%s,%s]}",
			jsonb_or_null($none ? 'null' : (grep { $_ == $expected } @{ $holds{$op} }) ? 'true' : 'false'), @operands)
	} sort keys %holds;
}

sub compare
{
	my %case = @_;
	my @items = comparison('', @case{qw(expected lhs rhs)});
	my $equal = $case{expected} eq '0' ? 'true' : 'false';

	return $items[0] if !ref $items[0];
	return (
		@items,
		# an element may be null, what is looked for may not
		both_ways('in', '{"in":[%s,%s]}',
			jsonb_or_null(is_null($case{rhs}) ? 'null' : $equal), "[$case{lhs}]", $case{rhs}),
		is_null($case{lhs}) && is_null($case{rhs}) ? 'the operators take no nulls' : ());
}

# In arrays, since values of other types are converted when they are compared.
sub deep_equal
{
	my %case = @_;

	my $result = $case{expected} eq 'true' ? 'true' : 'null';

	return both_ways('eq', '{"eq":[%s,%s]}', jsonb_or_null($result), "[$case{a}]", "[$case{b}]");
}

sub semver
{
	my %case = @_;
	my @items = comparison('semver_', @case{qw(expected lhs rhs)});

	return ref $items[0] ? @items : $items[0];
}

sub match
{
	my %case = @_;

	return both_ways('match', '{"match":[%s,%s]}', jsonb_or_null($case{expected}), @case{qw(text pattern)});
}

sub extract_var
{
	my %case = @_;
	my @reasons = no_text(@case{qw(vars path expected)});

	return @reasons if @reasons;
	my $expected = jsonb_or_null($case{expected});
	return (
		check('var', evaluate("{\"var\":$case{path}}", $case{vars}), $expected),
		check('var with path', evaluate("{\"var\":{\"path\":$case{path}}}", $case{vars}), $expected));
}

sub jsonexpr
{
	my %case = @_;
	my @reasons = (no_utf8($case{expr}), no_text(@case{qw(vars expected)}));

	return $reasons[0] if @reasons;
	# a filter that is neither array nor object gives no verdict
	my $verdict = $case{expr} =~ /^[\[\{]/ ? boolean($case{expectedBoolean}) : 'NULL::boolean';
	return (
		check('result', evaluate($case{expr}, $case{vars}), jsonb_or_null($case{expected})),
		check('verdict', call(match_audience => literal("{\"filter\":$case{expr}}"), jsonb($case{vars})), $verdict));
}

sub audience
{
	my %case = @_;
	my @reasons = no_text(@case{qw(audience attributes)});
	my $attributes = jsonb($case{attributes});

	return @reasons if @reasons;
	return (
		check('verdict', call(match_audience => text($case{audience}), $attributes), boolean($case{expected})),
		load(qq({"experiments":[{"id":1,"name":"e","unitType":"u","split":[0,1],"trafficSplit":[0,1],)
			. qq("variants":[{},{}],"audience":$case{audience},"audienceStrict":true}]})),
		check('treatment',
			call(peek_treatment => q('{"u":1}'), q('e'), $attributes), $case{expected} eq 'false' ? 0 : 1));
}

#
# Assignment
#

sub rules
{
	my %case = @_;
	my $environment = is_null($case{environment}) ? '' : plain($case{environment});
	my $variants = join ',', ('{}') x $case{variantCount};
	my @reasons = no_text(@case{qw(assignmentRules attributes)});
	my @arguments = (q('{}'), q('e'), jsonb($case{attributes}));
	my $explained = call(explain => @arguments);

	push @reasons, 'without an environment the setting is empty, which these rules name'
		if is_null($case{environment}) && is_string($case{assignmentRules})
		&& plain($case{assignmentRules}) =~ /"environments"\s*:\s*\[[^\]]*""/;
	return $reasons[0] if @reasons;
	return (
		client('website', '0', $environment),
		load(qq({"experiments":[{"id":1,"name":"e","split":[],"trafficSplit":[],"variants":[$variants],)
			. qq("assignmentRules":$case{assignmentRules}}]})),
		check('rule', "$explained #> '{rule,variant}'", jsonb_or_null($case{expected})),
		check('rule decides',
			"($explained #> '{result,rule_override}')::boolean", is_null($case{effectiveVariant}) ? 'false' : 'true'),
		check('treatment', call(peek_treatment => @arguments), number($case{effectiveVariant}, 'int')));
}

sub assignments
{
	my %case = @_;
	my %experiment = is_null($case{experiment}) ? () : members($case{experiment});
	my %customs = members($case{customAssignments});
	my %units = members($case{units});
	my %application = (name => $case{application});
	my $system = ($case{includeSystemAttributes} // '') eq 'true';
	my $name = plain($case{experimentName});
	my $custom = $customs{$name};
	my @reasons = (
		no_text(@case{qw(experimentName attributes overrides)}),
		no_unit($case{units}),
		no_variants($case{overrides}, $custom));

	%application = members($case{application}) if ($case{application} // '') =~ /^\{/;
	push @reasons, client_reason($system, $case{environment}, @application{qw(name version)});
	return $reasons[0] if @reasons;

	my $units = jsonb($case{units});
	my $experiment = text($case{experimentName});
	my $attributes = jsonb($case{attributes});
	my @items = (
		client(
			is_null($application{name}) ? '' : plain($application{name}),
			is_null($application{version}) ? '0' : plain($application{version}),
			is_null($case{environment}) ? '' : plain($case{environment})),
		load('{"experiments":[' . (%experiment ? $case{experiment} : '') . ']}'),
		set(overrides => is_null($case{overrides}) ? '{}' : $case{overrides}),
		set(include_system_attributes => $system ? 'on' : 'off'),
		check('treatment',
			call(peek_treatment => $units, $experiment, $attributes, $custom // 'NULL'), $case{treatment}));

	my $type = is_null($experiment{unitType}) ? '' : plain($experiment{unitType});
	if (!defined $custom && is_string($units{$type} // ''))
	{
		push @items, check('treatment of the unit',
			call(peek_unit_treatment => text($units{$type}), $experiment, $attributes), $case{treatment});
	}
	return @items if is_null($case{exposure});

	# absmartly_explain and absmartly_assignments take no custom variant: what it does not change can be seen
	my %exposure = members($case{exposure});
	my @wanted = grep { $exposure{$_} } sort keys %flags;
	if ($exposure{custom} eq 'true')
	{
		@wanted = grep { !/^(?:variant|custom)$/ } @wanted;
		push @items, 'of a custom assignment only the variant can be seen';
	}
	my $expected = jsonb('{' . join(',', map { "\"$_\":$exposure{$_}" } @wanted) . '}');
	my %explained = (id => q{coalesce(x->'id', '0')}, unit => q{coalesce(x#>'{unit,type}', 'null')});
	push @items, check('explanation',
		'SELECT jsonb_build_object('
			. join(', ', map { "'$_', " . ($explained{$_} // "x#>'{result,$flags{$_}}'") } @wanted)
			. ') FROM ' . call(explain => $units, $experiment, $attributes) . ' AS x',
		$expected);
	if (!is_null($experiment{name}) && plain($experiment{name}) eq $name)
	{
		push @items, check('row of all assignments',
			'SELECT jsonb_build_object(' . join(', ', map { "'$_', a.$flags{$_}" } @wanted)
				. ') FROM ' . call(assignments => $units, $attributes) . ' AS a',
			$expected);
	}
	return @items;
}

# Why variants can not be those that are set by hand: overrides and a custom variant.
sub no_variants
{
	my ($overrides, $custom) = @_;
	my %overrides = members($overrides);

	return (grep { !/^-?\d{1,9}$/ } values %overrides, $custom // '0') ? 'variants are integers' : ();
}

sub variables
{
	my %case = @_;
	my %customs = members($case{customAssignments});
	my @reasons = (
		no_text(@case{qw(key attributes overrides default expected)}),
		no_unit($case{units}),
		no_variants($case{overrides}));

	return $reasons[0] if @reasons;
	my @items = load("{\"experiments\":$case{experiments}}");
	push @items, check('keys', 'absmartly_variable_keys()', jsonb($case{variableKeys})) if $case{variableKeys};
	return (@items, 'variables take no custom assignments') if %customs;

	my ($units, $key, $attributes) = (jsonb($case{units}), text($case{key}), jsonb($case{attributes}));
	my $value_or = sub { call(peek_variable_value => $units, $key, $_[0], $attributes) };
	push @items, set(overrides => is_null($case{overrides}) ? '{}' : $case{overrides}),
		check('value', $value_or->(jsonb($case{default})), jsonb($case{expected}));
	push @items, check('value as text', $value_or->(text($case{default})), text($case{expected}))
		if is_string($case{default}) && is_string($case{expected});
	return @items;
}

sub custom_fields
{
	my %case = @_;
	my @reasons = no_text(@case{qw(experiment field expected expectedType)});
	my @arguments = (text($case{experiment}), text($case{field}));

	return @reasons if @reasons;
	return (
		load(qq({"experiments":[{"id":1,"name":"e","split":[],"trafficSplit":[],"variants":[],)
			. qq("customFieldValues":$case{customFieldValues}}]})),
		# a number that is none (expectedNaN) is NULL, too
		check('value', call(custom_field_value => @arguments), jsonb_or_null($case{expected})),
		check('type', call(custom_field_value_type => @arguments), text($case{expectedType})));
}

#
# Publishing
#

# A case has a database and a space of a collector to itself. All between two publishes is one transaction of one-shot
# calls, which stands for a context if units and attributes are set before the first event.
sub publish_case
{
	my %case = @_;
	my $name = plain($case{id});
	my ($reason, @rounds) = publish_rounds(%case);

	$reason //= join '; ', client_reason(
		1, $case{environment}, @{ { members($case{application}) } }{qw(name version)});
	SKIP:
	{
		skip "$name: $reason", 1 if $reason ne '';
		$collector //= start_collector(data => '{"experiments":[]}');
		my $space = "/$name/v1";
		my $database = publish_database($name, $space, %case);
		my (@periods, @sent);

		for my $round (@rounds)
		{
			my $start = time * 1000;

			$node->safe_psql($database, join "\n", "SET client_encoding = 'UTF8';", @$round);
			$node->safe_psql($database, "SELECT absmartly_publish('$PATIENCE s')");
			push @sent, map { JSON::PP->new->utf8->decode($_) } texts_of($collector->requests(space => $space, method => 'PUT'));
			push @periods, [ int $start, time * 1000 ] while @periods < @sent;
			$collector->forget($space);
		}

		my @expected = map { JSON::PP->new->utf8->decode($_) } elements($case{expected});
		my $json = JSON::PP->new->canonical->ascii;
		my @got = map { comparable($sent[$_], $expected[$_], @{ $periods[$_] }) } 0 .. $#sent;

		is($json->encode(\@got), $json->encode([ map { comparable($_) } @expected ]), $name);
	}
	return;
}

# The database whose worker fetches the case's experiments and sends its events.
sub publish_database
{
	my ($name, $space, %case) = @_;
	my %application = members($case{application});
	my %settings = (
		endpoint            => $collector->url($space),
		application         => plain($application{name}),
		application_version => is_null($application{version}) ? '0' : plain($application{version}),
		environment         => plain($case{environment}));
	my $database = $name =~ s/\W/_/gr;

	$collector->set_data($space, $case{contextData});
	$node->safe_psql('postgres',
		"CREATE DATABASE $database ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
	$node->safe_psql('postgres', "ALTER DATABASE $database SET absmartly.$_ = " . literal($settings{$_}))
		for sort keys %settings;
	create_extension($node, $database);
	wait_ready($node, $database) or die "no data in $database";
	return $database;
}

# The transactions of a case, each as a list of statements; before them why they can not be, or undef.
sub publish_rounds
{
	my %case = @_;
	my %units = members($case{units});
	my %options = members($case{options});
	my (%attributes, %overrides, %customs, @calls, @rounds);
	my $events = 0;
	my @settings = map { "SET absmartly.$_->[1] = on;" } grep { ($options{ $_->[0] } // '') eq 'true' }
		[ includeSystemAttributes => 'include_system_attributes' ], [ historic => 'historic' ];

	my @unknown = grep { !/^(?:includeSystemAttributes|historic)$/ } sort keys %options;
	return "option $unknown[0] is one of session contexts" if @unknown;

	for my $operation (map { { members($_) } } elements($case{operations}))
	{
		my $action = plain($operation->{action});
		my @arguments = elements($operation->{args});
		my %many = $action =~ s/s$// ? members($arguments[0]) : (plain($arguments[0] // '""') => $arguments[1]);
		my $object = sub { jsonb('{' . join(',', map { json_string($_) . ":$_[0]{$_}" } sort keys %{ $_[0] }) . '}') };

		if ($action eq 'unit' || $action eq 'attribute')
		{
			my $known = $action eq 'unit' ? \%units : \%attributes;

			return "$action is set after an event, which is for session contexts" if $events;
			return 'an attribute is set twice, which is for session contexts' if grep { exists $attributes{$_} } keys %many;
			return 'attributes of a call are in the order of their names' if $action eq 'attribute'
				&& grep { my $new = $_; grep { $_ gt $new } keys %attributes } keys %many;
			$known->{$_} = $many{$_} for keys %many;
		}
		elsif ($action eq 'override')
		{
			$overrides{$_} = $many{$_} for keys %many;
			push @calls, set(overrides => '{' . join(',', map { json_string($_) . ":$overrides{$_}" } sort keys %overrides) . '}')->{sql};
		}
		elsif ($action eq 'customAssignment')
		{
			$customs{$_} = $many{$_} for keys %many;
		}
		elsif ($action =~ /^(?:treatment|peek|track)$/)
		{
			my @reasons = no_text(@arguments, values %units, values %attributes);
			my $custom = $customs{ plain($arguments[0]) } // 'NULL';
			my $time = is_null($arguments[-1]) || @arguments < ($action eq 'track' ? 3 : 2)
				? 'NULL' : "to_timestamp($arguments[-1] / 1000.0)";

			return $reasons[0] if @reasons;
			return 'variants are integers' if $custom !~ /^(?:-?\d+|NULL)$/;
			return 'goals without a unit are for session contexts' if $action eq 'track' && !grep { !is_null($_) } values %units;
			my @call = ($object->(\%units), text($arguments[0]));
			push @calls, 'SELECT '
				. ($action eq 'track'
					? call(track => @call, jsonb_or_null($arguments[1] // 'null'), $time, $object->(\%attributes))
					: $action eq 'peek' ? call(peek_treatment => @call, $object->(\%attributes), $custom)
					: call(treatment => @call, $object->(\%attributes), $custom, $time)) . ';';
			$events++ if $action ne 'peek';
		}
		elsif ($action eq 'publish')
		{
			push @rounds, [ @settings, 'BEGIN;', splice(@calls), 'COMMIT;' ];
			$events = 0;
		}
		else
		{
			return "$action is one of session contexts";
		}
	}
	return undef, @rounds;
}
