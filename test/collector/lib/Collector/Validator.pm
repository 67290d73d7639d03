package Collector::Validator;

# Checks the body of PUT /context and PUT /context/batch the way the collector's API describes it.
#
# The result is a hash: ok, errors and warnings (as the API returns them), events (how many exposures, goals and
# attributes there are, and how many publish requests), exposures_by_name and goals_by_name.

use strict;
use warnings;

use Collector::Json qw(is_boolean is_integer is_string type_name);
use Exporter 'import';

our @EXPORT_OK = qw(validate_publish validate_batch);

use constant {
    MAX_BATCH    => 500,
    MAX_MESSAGES => 100,
};

my %CHECK = (
    string => sub { is_string($_[0]) ? undef : 'must be a string' },
    name   => sub { !is_string($_[0]) ? 'must be a string' : length $_[0] ? undef : 'must not be empty' },
    'string or null'  => sub { !defined $_[0] || is_string($_[0])       ? undef : 'must be a string or null' },
    'object or null'  => sub { !defined $_[0] || ref $_[0] eq 'HASH'    ? undef : 'must be an object or null' },
    boolean           => sub { is_boolean($_[0])                        ? undef : 'must be a boolean' },
    'boolean or null' => sub { !defined $_[0] || is_boolean($_[0])      ? undef : 'must be a boolean or null' },
    array             => sub { ref $_[0] eq 'ARRAY'                     ? undef : 'must be an array' },
    any               => sub { undef },
    int64   => sub { _is_int64($_[0])                       ? undef : 'must be an int64' },
    int32   => sub { _is_in($_[0], -2147483648, 2147483647) ? undef : 'must be an int32' },
    id      => sub { _is_in($_[0], 0,           2147483647) ? undef : 'must be an int32 of 0 or more' },
    variant => sub { _is_in($_[0], 0,           128)        ? undef : 'must be an int32 from 0 to 128' },
    uid     => sub {
        !is_string($_[0]) ? 'must be a string' : length $_[0] && length $_[0] <= 640 ? undef : 'must have 1 to 640 characters';
    },
);

# field => [check, required]
my %PUBLISH = (
    units       => ['array', 1],
    publishedAt => ['int64', 1],
    hashed      => ['boolean or null'],
    historic    => ['boolean or null'],
    exposures   => ['array'],
    goals       => ['array'],
    attributes  => ['array'],
    sdkVersion  => ['string'],
);
my %UNIT     = (type => ['string', 1], uid => ['uid']);
my %EXPOSURE = (
    id           => ['id',      1],
    name         => ['name',    1],
    variant      => ['variant', 1],
    exposedAt    => ['int64',   1],
    assigned     => ['boolean', 1],
    eligible     => ['boolean', 1],
    unit         => ['string or null'],
    holdoutId    => ['int32'],
    map { $_ => ['boolean'] } qw(overridden fullOn custom audienceMismatch ruleOverride heldOut),
);
my %GOAL      = (name => ['name', 1], achievedAt => ['int64', 1], properties => ['object or null']);
my %ATTRIBUTE = (name => ['name', 1], setAt      => ['int64', 1], value      => ['any']);

sub validate_publish {
    my ($request) = @_;
    my $result = _new_result();
    _publish_request($result, 0, $request);
    return _finish($result);
}

sub validate_batch {
    my ($batch) = @_;
    my $result = _new_result();

    my $problem
        = ref $batch ne 'HASH'              ? ['body',     'must be an object']
        : !exists $batch->{requests}        ? ['requests', 'is required']
        : ref $batch->{requests} ne 'ARRAY' ? ['requests', 'must be an array']
        : !@{$batch->{requests}}            ? ['requests', 'must not be empty']
        : @{$batch->{requests}} > MAX_BATCH ? ['requests', 'must not have more than ' . MAX_BATCH . ' items']
        :                                     undef;
    if ($problem) {
        _add($result, 'errors', undef, undef, @$problem);
        return _finish($result);
    }

    for my $field (sort keys %$batch) {
        _add($result, 'warnings', undef, undef, $field, 'is unknown') if $field ne 'requests';
    }
    my $index = 0;
    _publish_request($result, $index++, $_) for @{$batch->{requests}};
    return _finish($result);
}

sub _new_result {
    return {
        errors            => [],
        warnings          => [],
        events            => {requests => 0, exposures => 0, goals => 0, attributes => 0},
        exposures_by_name => {},
        goals_by_name     => {},
    };
}

sub _finish {
    my ($result) = @_;
    $result->{ok} = @{$result->{errors}} ? 0 : 1;
    return $result;
}

sub _publish_request {
    my ($result, $batch_index, $request) = @_;

    $result->{events}{requests}++;
    if (ref $request ne 'HASH') {
        _add($result, 'errors', $batch_index, undef, 'request', 'must be an object, not ' . type_name($request));
        return;
    }
    _fields($result, $batch_index, undef, '', $request, \%PUBLISH);

    my $hashed = is_boolean($request->{hashed}) && $request->{hashed};
    my $index  = 0;
    for my $unit (_items($request->{units})) {
        my $subject = "units[$index]";
        _fields($result, $batch_index, undef, "$subject.", $unit, \%UNIT);
        if (ref $unit eq 'HASH') {
            if (!exists $unit->{uid}) { _add($result, 'warnings', $batch_index, undef, "$subject.uid", 'is missing') }
            elsif ($hashed && is_string($unit->{uid}) && $unit->{uid} !~ /\A[A-Za-z0-9_-]{22}\z/) {
                _add($result, 'errors', $batch_index, undef, "$subject.uid", 'is not a hash (22 characters of base64url)');
            }
        }
        $index++;
    }

    _events($result, $batch_index, $request, 'exposures',  \%EXPOSURE, $result->{exposures_by_name});
    _events($result, $batch_index, $request, 'goals',      \%GOAL,     $result->{goals_by_name});
    _events($result, $batch_index, $request, 'attributes', \%ATTRIBUTE);
}

sub _events {
    my ($result, $batch_index, $request, $list, $spec, $by_name) = @_;

    my $index = 0;
    for my $event (_items($request->{$list})) {
        _fields($result, $batch_index, $index, "$list\[$index].", $event, $spec);
        $by_name->{$event->{name}}++ if $by_name && ref $event eq 'HASH' && is_string($event->{name});
        $index++;
    }
    $result->{events}{$list} += $index;
}

sub _items { return ref $_[0] eq 'ARRAY' ? @{$_[0]} : () }

sub _fields {
    my ($result, $batch_index, $event_index, $prefix, $object, $spec) = @_;

    if (ref $object ne 'HASH') {
        (my $subject = $prefix) =~ s/\.\z//;
        _add($result, 'errors', $batch_index, $event_index, $subject, 'must be an object, not ' . type_name($object));
        return;
    }

    my $known = 0;
    for my $field (keys %$spec) {
        my ($check, $required) = @{$spec->{$field}};
        if (!exists $object->{$field}) {
            _add($result, 'errors', $batch_index, $event_index, "$prefix$field", 'is required') if $required;
            next;
        }
        $known++;
        my $problem = $CHECK{$check}->($object->{$field});
        _add($result, 'errors', $batch_index, $event_index, "$prefix$field",
            "$problem, not " . _short($object->{$field}))
            if defined $problem;
    }
    return if $known == keys %$object;
    for my $field (sort keys %$object) {
        _add($result, 'warnings', $batch_index, $event_index, "$prefix$field", 'is unknown') if !$spec->{$field};
    }
}

sub _add {
    my ($result, $kind, $batch_index, $event_index, $subject, $message) = @_;
    return if @{$result->{$kind}} >= MAX_MESSAGES;
    my %entry = (subject => $subject, message => "$subject $message");
    $entry{batchIndex} = $batch_index if defined $batch_index;
    $entry{eventIndex} = $event_index if defined $event_index;
    push @{$result->{$kind}}, \%entry;
}

sub _short {
    my ($value) = @_;
    my $type = type_name($value);
    return $type if $type eq 'null' || $type eq 'object' || $type eq 'array';
    return $value ? 'true' : 'false' if $type eq 'boolean';
    my $text = length $value > 40 ? substr($value, 0, 40) . '...' : "$value";
    return $type eq 'string' ? qq{the string "$text"} : $text;
}

sub _is_in {
    my ($value, $low, $high) = @_;
    return !ref $value && is_integer($value) && $value >= $low && $value <= $high;
}

sub _is_int64 {
    my ($value) = @_;
    return 0 unless is_integer($value);
    return 1 unless ref $value;    # at most 18 digits
    my ($sign, $digits) = "$value" =~ /\A(-?)([0-9]+)\z/;
    return 0 if length $digits > 19;
    my $limit = $sign ? '9223372036854775808' : '9223372036854775807';
    return length $digits < 19 || $digits le $limit;
}

1;
