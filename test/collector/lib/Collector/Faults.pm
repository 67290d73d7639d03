package Collector::Faults;

# The faults the collector can be told to make: checking their descriptions, and finding the one a request gets.

use strict;
use warnings;

use Collector::Json qw(is_integer is_string is_boolean type_name);
use Exporter 'import';
use Mojo::JSON ();

our @EXPORT_OK = qw(new_fault take_fault reject_errors describe_fault);

my %CHECK = (
    count   => sub { is_integer($_[0]) && $_[0] >= 0 ? undef : 'must be an integer of 0 or more' },
    times   => sub { is_integer($_[0]) && ($_[0] == -1 || $_[0] > 0) ? undef : 'must be a positive integer or -1' },
    status  => sub { is_integer($_[0]) && $_[0] >= 200 && $_[0] <= 999 ? undef : 'must be an integer from 200 to 999' },
    rate    => sub { is_integer($_[0]) && $_[0] > 0 ? undef : 'must be a positive integer (bytes per second)' },
    string  => sub { is_string($_[0])               ? undef : 'must be a string' },
    boolean => sub { is_boolean($_[0])              ? undef : 'must be a boolean' },
    object  => sub { ref $_[0] eq 'HASH'            ? undef : 'must be an object' },
    any     => sub { undef },
    'boolean or string' => sub { is_boolean($_[0]) || is_string($_[0])  ? undef : 'must be true or a string' },
    'boolean or object' => sub { is_boolean($_[0]) || ref $_[0] eq 'HASH' ? undef : 'must be true or an object' },
);

my %FIELD = (
    match        => 'object',
    times        => 'times',
    after        => 'count',
    accept       => 'boolean',
    delay_ms     => 'count',
    status       => 'status',
    headers      => 'object',
    body         => 'any',
    body_base64  => 'string',
    content_type => 'string',
    cut_after    => 'count',
    drip         => 'rate',
    reset        => 'boolean',
    hang         => 'boolean',
    garbage      => 'boolean or string',
    html         => 'boolean or string',
    huge         => 'count',
    chunked      => 'boolean',
    bad_request  => 'boolean or object',
    batchIndex   => 'count',
    reject_goal  => 'string',
    with_index   => 'boolean',
    error        => 'object',
    most_errors  => 'count',
);
my %MATCH = (
    method      => 'string',
    path        => 'string',
    application => 'string',
    environment => 'string',
    larger_than => 'count',
);
my @ACTIONS = qw(delay_ms status headers body body_base64 cut_after drip reset hang garbage html huge chunked
    bad_request reject_goal);

# Checks a decoded description and returns the fault; dies with a one-line message if it is wrong.
sub new_fault {
    my ($description, $id) = @_;

    die 'a fault must be an object, not ' . type_name($description) . "\n" unless ref $description eq 'HASH';
    # 1 and 0 will do for true and false: Perl programs have no booleans to send.
    $description = {%$description};
    for my $field (grep { ($FIELD{$_} // '') =~ /boolean/ } keys %$description) {
        my $value = $description->{$field};
        $description->{$field} = $value ? Mojo::JSON->true : Mojo::JSON->false if is_integer($value) && "$value" =~ /\A[01]\z/;
    }
    for my $field (sort keys %$description) {
        my $check = $FIELD{$field} or die "unknown field \"$field\" in a fault\n";
        my $problem = $CHECK{$check}->($description->{$field});
        die "fault: \"$field\" $problem\n" if defined $problem;
    }
    die "a fault needs an action, one of: @ACTIONS\n" unless grep { _given($description->{$_}) } @ACTIONS;

    my $match = $description->{match} || {};
    for my $field (sort keys %$match) {
        my $check = $MATCH{$field} or die "unknown field \"$field\" in match\n";
        my $problem = $CHECK{$check}->($match->{$field});
        die "match: \"$field\" $problem\n" if defined $problem;
    }

    my %fault = (%$description, match => $match, id => $id, left => $description->{times} // 1, seen => 0, used => 0);
    delete $fault{$_} for grep { is_boolean($fault{$_}) && !$fault{$_} } qw(reset hang garbage html bad_request);
    return \%fault;
}

# Finds the first fault of the queue that fits the request and uses it up. $publish_requests is the decoded list of
# publish requests or undef.
sub take_fault {
    my ($queue, $record, $publish_requests) = @_;

    for my $index (0 .. $#$queue) {
        my $fault = $queue->[$index];
        next unless _matches($fault->{match}, $record);
        next if defined $fault->{reject_goal} && !@{reject_errors($fault, $publish_requests)};
        next if $fault->{seen}++ < ($fault->{after} // 0);

        $fault->{used}++;
        splice @$queue, $index, 1 if $fault->{left} > 0 && --$fault->{left} == 0;
        return $fault;
    }
    return undef;
}

# The errors that a reject_goal fault answers with: one for each goal of that name, as far as the fault names them.
sub reject_errors {
    my ($fault, $publish_requests) = @_;

    my @errors;
    my $name = $fault->{reject_goal};
    for my $batch_index (0 .. $#{$publish_requests || []}) {
        my $request = $publish_requests->[$batch_index];
        my $goals   = ref $request eq 'HASH' ? $request->{goals} : undef;
        next unless ref $goals eq 'ARRAY';
        for my $event_index (0 .. $#$goals) {
            my $goal = $goals->[$event_index];
            next unless ref $goal eq 'HASH' && is_string($goal->{name}) && $goal->{name} eq $name;
            my %error = (subject => "goals[$event_index].name", message => "goal \"$name\" is refused");
            @error{qw(batchIndex eventIndex)} = ($batch_index, $event_index)
                if !defined $fault->{with_index} || $fault->{with_index};
            my $wrong = $fault->{error} || {};
            $error{$_} = $wrong->{$_} for keys %$wrong;
            delete @error{grep { !defined $error{$_} } keys %error};
            push @errors, \%error;
            return \@errors if $fault->{most_errors} && @errors >= $fault->{most_errors};
        }
    }
    return \@errors;
}

# The fault as the admin API shows it.
sub describe_fault {
    my ($fault) = @_;
    my %shown = %$fault;
    delete @shown{qw(seen delay_from)};
    $shown{times} = delete $shown{left};
    return \%shown;
}

sub _given { return defined $_[0] && (!is_boolean($_[0]) || $_[0]) }

# path is an operation ("context", "context/batch", "healthy", "experiment") or a whole path that begins with "/"; a "*"
# at its end stands for any rest.
sub _matches {
    my ($match, $record) = @_;

    return 0 if defined $match->{method} && uc $match->{method} ne $record->{method};
    return 0 if defined $match->{larger_than} && length $record->{body} <= $match->{larger_than};
    for my $field (qw(application environment)) {
        next unless defined $match->{$field};
        return 0 if ($record->{query}{$field} // $record->{headers}{"x-$field"} // '') ne $match->{$field};
    }
    return 1 unless defined(my $wanted = $match->{path});
    my $path = $wanted =~ m{\A/} ? $record->{path} : $record->{operation} // '';
    return $wanted =~ s/\*\z//r eq substr $path, 0, length($wanted) - 1 if $wanted =~ /\*\z/;
    return $wanted eq $path;
}

1;
