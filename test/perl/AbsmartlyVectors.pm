package AbsmartlyVectors;

# What the tests of the protocol's vectors share. JSON texts are taken as they stand in the files, so that the order of
# members and the text of numbers survive.

use strict;
use warnings;

use Exporter qw(import);
use JSON::PP ();
use Math::BigFloat;
use Test::More;

our @EXPORT = qw(
    call
    client_reason
    comparable
    elements
    is_null
    is_number
    is_string
    json
    json_string
    jsonb
    jsonb_or_null
    literal
    members
    no_text
    no_unit
    no_utf8
    number
    plain
    strip_strings
    text
    texts_of
    vectors_folder
);

# One JSON value, whatever it is.
my $value = qr{(?(DEFINE)(?<value>
	" (?: [^"\\]++ | \\. )*+ " |
	[\[\{] (?: [^\[\]\{\}"]++ | (?&value) )*+ [\]\}] |
	[^\s,:"\[\]\{\}]++ ))}xs;

# The folder that has the vectors; without it the test is skipped.
sub vectors_folder
{
	my $folder = ($ENV{ABSMARTLY_SHARED} // '') . '/vectors';

	plan skip_all => 'ABSMARTLY_SHARED does not name a folder that has the test vectors in vectors/'
		if !$ENV{ABSMARTLY_SHARED} || !-d $folder;
	return $folder;
}

#
# JSON texts
#

# Name => JSON text of a JSON object's members; none of null.
sub members
{
	my ($text) = @_;
	my %members;

	return if is_null($text);
	$text =~ /^\s*\{/gc or die "not an object: $text";
	$members{ plain($1) } = $2 while $text =~ /\G[\s,]*((?&value))\s*:\s*((?&value))$value/gc;
	return %members;
}

sub elements
{
	my ($text) = @_;
	my @elements;

	return if is_null($text);
	$text =~ /^\s*\[/gc or die "not an array: $text";
	push @elements, $1 while $text =~ /\G[\s,]*((?&value))$value/gc;
	return @elements;
}

# The value of a JSON text that is a string or a number, in UTF-8.
sub plain
{
	my ($text) = @_;
	my $plain = JSON::PP->new->utf8->allow_nonref->decode($text);

	utf8::encode($plain);
	return $plain;
}

sub json_string
{
	my ($text) = @_;

	utf8::decode($text);
	return JSON::PP->new->utf8->allow_nonref->encode($text);
}

sub is_null
{
	my ($text) = @_;

	return !defined $text || $text eq 'null';
}

sub is_number
{
	my ($text) = @_;

	return $text =~ /^-?\d/;
}

sub is_string
{
	my ($text) = @_;

	return $text =~ /^"/;
}

# Why text, or jsonb, can not hold these JSON texts; an empty list if they can.
sub no_text
{
	my @texts = @_;

	for my $text (@texts)
	{
		my @exponents = strip_strings($text) =~ /[eE][-+]?(\d+)/g;

		return 'text in the database has no U+0000' if $text =~ /(?<!\\)(?:\\\\)*\\u0000/;
		return 'numeric has at most 131072 digits' if grep { $_ > 131_000 } @exponents;
	}
	return no_utf8(@texts);
}

# Why not even json can hold them.
sub no_utf8
{
	for my $text (@_)
	{
		(my $rest = $text) =~ s/(?<!\\)((?:\\\\)*)\\ud[89ab]..\\ud[c-f]../$1/gi;

		return 'text in the database has no unpaired surrogates' if $rest =~ /(?<!\\)(?:\\\\)*\\ud[89a-f]/i;
	}
	return;
}

# Why a unit stands for something else here than in JavaScript.
sub no_unit
{
	my ($text) = @_;

	for my $number (strip_strings($text) =~ /-?\d[-+.\deE]*/g)
	{
		next if abs($number) < 2**53;
		my $exact = Math::BigFloat->new($number);
		next if !$exact->is_int;
		return 'an integral number stands for its exact decimal text'
			if abs($number) >= 1e21 || $exact->bstr ne sprintf '%.0f', unpack 'd', pack 'd', $number;
	}
	return no_text($text);
}

sub strip_strings
{
	my ($text) = @_;

	return $text =~ s/"(?:[^"\\]++|\\.)*+"/""/gsr;
}

#
# SQL
#

sub literal
{
	my ($text) = @_;

	return "'" . $text =~ s/'/''/gr . "'";
}

sub json
{
	my ($text) = @_;

	return literal($text) . '::json';
}

# What a function that gives SQL's NULL for JSON's gives.
sub jsonb_or_null
{
	my ($text) = @_;

	return is_null($text) ? 'NULL::jsonb' : jsonb($text);
}

sub jsonb
{
	my ($text) = @_;

	return literal($text) . '::jsonb';
}

# A JSON string as text; NULL if it is null.
sub text
{
	my ($string) = @_;

	return '(' . json($string) . q{ #>> '{}')};
}

sub number
{
	my ($text, $type) = @_;

	return is_null($text) ? "0::$type" : literal($text) . "::numeric::$type";
}

# A call of one of the extension's functions.
sub call
{
	my ($function, @arguments) = @_;

	return "absmartly_$function(" . join(', ', @arguments) . ')';
}

#
# Publishing
#

# Why the settings can not be those of a client of the case, where audiences see them.
sub client_reason
{
	my ($system, $environment, $name, $version) = @_;

	return if !$system;
	return 'a client without application or environment has empty ones' if is_null($name) || is_null($environment);
	return if is_null($version);
	return 'a version of digits is a number' if is_string($version) && plain($version) =~ /^\d+$/;
	return 'a version that is a number is a positive integer' if is_number($version) && $version !~ /^\d+$/;
	return;
}

# The bodies of single publish requests.
sub texts_of
{
	return map {
		my $text = $_->{body};

		utf8::encode($text);
		$_->{operation} eq 'context' ? $text : elements({ members($text) }->{requests})
	} @_;
}

# A publish request without what may differ. Times are compared with the expected ones if they are theirs, and else only
# have to lie in the period of the round.
sub comparable
{
	my ($request, $expected, $start, $end) = @_;
	my %copy = %$request;
	my $time = sub {
		my ($got, $other) = @_;

		return 'a time' if !defined $start || defined $other && $got == $other || $got >= $start && $got <= $end;
		return "$got is not in $start .. $end";
	};

	if (defined $start)
	{
		my $version = delete $copy{sdkVersion} // '';

		$copy{sdkVersion} = "version '$version'" if $version !~ /^\d+\.\d+/;
	}
	$copy{publishedAt} = $time->($copy{publishedAt});
	$copy{units} = [ sort { $a->{type} cmp $b->{type} } @{ $copy{units} } ];
	for my $list ([ exposures => 'exposedAt' ], [ goals => 'achievedAt' ], [ attributes => 'setAt' ])
	{
		my ($name, $field) = @$list;
		my $others = ref $expected ? $expected->{$name} // [] : [];
		my $index = 0;

		next if !exists $copy{$name};
		$copy{$name} = [ map {
			my %item = %$_;
			my $other = ($others->[ $index++ ] // {})->{$field};

			$item{$field} = $time->($item{$field}, $other);
			$item{value} = "<$item{name}>" if $name eq 'attributes' && $item{name} =~ /^sdk_(?:name|version)$/;
			\%item
		} @{ $copy{$name} } ];
	}
	return \%copy;
}

1;
