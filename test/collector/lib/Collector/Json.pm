package Collector::Json;

# JSON reader and writer that loses nothing.
#
# The collector must tell 1 from 1.0, from "1" and from true, and must show numbers the way they were sent. So integers
# of up to 18 digits become plain Perl integers, every other number becomes a Collector::Json::Number that keeps its
# text, strings are Perl strings and booleans are the objects of JSON::PP::Boolean that Mojo::JSON uses as well.

use strict;
use warnings;

use B ();
use Encode ();
use Exporter 'import';
use Mojo::JSON ();

our @EXPORT_OK = qw(decode_json_bytes encode_json_bytes is_integer is_number is_string is_boolean type_name);

use constant MAX_DEPTH => 200;

my $TRUE  = Mojo::JSON->true;
my $FALSE = Mojo::JSON->false;

my %UNESCAPED = (
    '"' => '"', '\\' => '\\', '/' => '/', 'b' => "\b", 'f' => "\f", 'n' => "\n", 'r' => "\r", 't' => "\t",
);
my %ESCAPED = (
    '"' => '\\"', '\\' => '\\\\', "\b" => '\\b', "\f" => '\\f', "\n" => '\\n', "\r" => '\\r', "\t" => '\\t',
);

# Decodes the bytes of one JSON text (UTF-8, strict). Dies with a one-line message if it is not JSON.
sub decode_json_bytes {
    my ($bytes) = @_;

    my $text = eval { Encode::decode('UTF-8', $bytes, Encode::FB_CROAK | Encode::LEAVE_SRC) };
    die "not valid UTF-8\n" unless defined $text;

    for ($text) {
        pos($_) = 0;
        my $value = _value(0);
        m/\G[ \t\r\n]*/gc;
        _fail('text after the end of the value') if pos($_) < length $_;
        return $value;
    }
}

# Encodes a value as UTF-8 bytes, keys sorted.
sub encode_json_bytes {
    my ($value) = @_;
    my $text = _encode($value);
    utf8::encode($text);
    return $text;
}

# True for a JSON number without fraction and exponent.
sub is_integer {
    my ($value) = @_;
    return $value->is_integer if ref $value eq 'Collector::Json::Number';
    return is_number($value);
}

sub is_number {
    my ($value) = @_;
    return 1 if ref $value eq 'Collector::Json::Number';
    return 0 if ref $value || !defined $value;
    my $flags = B::svref_2object(\$value)->FLAGS;
    return $flags & (B::SVf_IOK | B::SVf_NOK) && !($flags & B::SVf_POK) ? 1 : 0;
}

sub is_string {
    my ($value) = @_;
    return defined $value && !ref $value && !is_number($value) ? 1 : 0;
}

sub is_boolean { return ref $_[0] eq 'JSON::PP::Boolean' ? 1 : 0 }

sub type_name {
    my ($value) = @_;
    return 'null'    unless defined $value;
    return 'object'  if ref $value eq 'HASH';
    return 'array'   if ref $value eq 'ARRAY';
    return 'boolean' if is_boolean($value);
    return 'number'  if is_number($value);
    return 'string';
}

# The functions below work on $_, at pos($_).

sub _fail {
    my ($message) = @_;
    die "$message at offset " . (pos($_) // 0) . "\n";
}

sub _value {
    my ($depth) = @_;
    _fail('nested too deeply') if $depth > MAX_DEPTH;

    m/\G[ \t\r\n]*/gc;
    return $1 if m/\G"([^"\\\x00-\x1f]*)"/gc;
    return 0 + $1 if m/\G(-?(?:0|[1-9][0-9]{0,17}))(?![0-9.eE])/gc;

    if (m/\G\{/gc) {
        my %object;
        m/\G[ \t\r\n]*/gc;
        return \%object if m/\G\}/gc;
        while (1) {
            m/\G[ \t\r\n]*/gc;
            my $key = m/\G"([^"\\\x00-\x1f]*)"/gc ? $1 : _string() // _fail("expected a string as key");
            m/\G[ \t\r\n]*:/gc or _fail('expected ":"');
            $object{$key} = _value($depth + 1);
            next             if m/\G[ \t\r\n]*,/gc;
            return \%object if m/\G[ \t\r\n]*\}/gc;
            _fail('expected "," or "}"');
        }
    }

    if (m/\G\[/gc) {
        my @array;
        return \@array if m/\G[ \t\r\n]*\]/gc;
        while (1) {
            push @array, _value($depth + 1);
            next            if m/\G[ \t\r\n]*,/gc;
            return \@array if m/\G[ \t\r\n]*\]/gc;
            _fail('expected "," or "]"');
        }
    }

    my $string = _string();
    return $string  if defined $string;
    return $TRUE     if m/\Gtrue/gc;
    return $FALSE    if m/\Gfalse/gc;
    return undef     if m/\Gnull/gc;
    return bless {text => $1}, 'Collector::Json::Number'
        if m/\G(-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)/gc;
    _fail('expected a value');
}

# A string with escapes; undef if there is none.
sub _string {
    return undef unless m/\G"/gc;
    my $string = '';
    while (1) {
        $string .= $1 if m/\G([^"\\\x00-\x1f]+)/gc;
        return $string if m/\G"/gc;
        if (m/\G\\(["\\\/bfnrt])/gc) { $string .= $UNESCAPED{$1} }
        elsif (m/\G\\u([0-9a-fA-F]{4})/gc) {
            my $unit = hex $1;
            if ($unit >= 0xD800 && $unit < 0xDC00 && m/\G\\u([dD][c-fC-F][0-9a-fA-F]{2})/gc) {
                $unit = 0x10000 + (($unit - 0xD800) << 10) + (hex($1) - 0xDC00);
            }
            elsif ($unit >= 0xD800 && $unit < 0xE000) { $unit = 0xFFFD }    # half a pair
            $string .= chr $unit;
        }
        else { _fail('bad or unfinished string') }
    }
}

sub _encode {
    my ($value) = @_;
    return 'null' unless defined $value;
    if (my $type = ref $value) {
        return '[' . join(',', map { _encode($_) } @$value) . ']' if $type eq 'ARRAY';
        return '{' . join(',', map { _encode_string($_) . ':' . _encode($value->{$_}) } sort keys %$value) . '}'
            if $type eq 'HASH';
        return $value ? 'true' : 'false' if $type eq 'JSON::PP::Boolean';
        return $value->{text}            if $type eq 'Collector::Json::Number';
        return $$value ? 'true' : 'false' if $type eq 'SCALAR';
        die "cannot encode a $type\n";
    }
    return is_number($value) ? "$value" : _encode_string($value);
}

sub _encode_string {
    my ($string) = @_;
    $string =~ s/(["\\\x00-\x1f\x7f])/$ESCAPED{$1} \/\/ sprintf '\\u%04x', ord $1/ge;
    return qq{"$string"};
}

package Collector::Json::Number;

# A number that is not a short integer: fraction, exponent or more than 18 digits.

use overload '""' => sub { $_[0]{text} }, '0+' => sub { 0 + $_[0]{text} }, fallback => 1;

sub is_integer { return $_[0]{text} =~ /\A-?[0-9]+\z/ ? 1 : 0 }

1;
