package Collector::Store;

# What the collector knows: its spaces (one per path prefix: data, keys, faults, counters) and the requests it received.

use strict;
use warnings;

use Collector::Json qw(decode_json_bytes);
use Encode ();
use Time::HiRes ();

use constant MAX_SPACES => 1000;
use constant MAX_NAMES  => 1000;    # names counted per space and kind

# Arguments: data (file or directory or undef), keys (array), batch (bool), keep (requests), keep_bytes (of bodies)
sub new {
    my ($class, %args) = @_;
    return bless {
        data       => $args{data},
        keys       => $args{keys} || [],
        batch      => $args{batch} // 1,
        keep       => $args{keep},
        keep_bytes => $args{keep_bytes},
        spaces     => {},
        records    => [],
        bytes      => 0,
        last       => 0,
        forgotten  => 0,
        last_fault => 0,
    }, $class;
}

# '/shop/v1/' and 'shop/v1' mean '/shop/v1'; the empty prefix is '/'.
sub space_name {
    my ($name) = @_;
    $name =~ s{/+\z}{};
    $name = "/$name" if $name !~ m{\A/};
    return $name;
}

# The space of that name, created if need be; undef if there are too many already.
sub space {
    my ($self, $name) = @_;
    return $self->{spaces}{$name} ||= do {
        return undef if keys %{$self->{spaces}} >= MAX_SPACES;
        {
            name   => $name,
            data   => {},       # selector => bytes
            keys   => undef,    # array once the space has its own
            batch  => undef,    # bool once the space has its own
            faults => [],
            counts => _new_counts(),
        };
    };
}

sub spaces { my ($self) = @_; return map { $self->{spaces}{$_} } sort keys %{$self->{spaces}} }

sub known_space { my ($self, $name) = @_; return $self->{spaces}{$name} }

sub _new_counts {
    return {
        total    => 0,
        requests => {},    # "METHOD operation status" => count
        events   => {requests => 0, exposures => 0, goals => 0, attributes => 0},
        refused  => {requests => 0, exposures => 0, goals => 0, attributes => 0},
        exposures_by_name => {},
        goals_by_name     => {},
    };
}

sub keys_of {
    my ($self, $space) = @_;
    return $space->{keys} || $self->{keys};
}

sub batch_of {
    my ($self, $space) = @_;
    return $space->{batch} // $self->{batch};
}

# Context data

sub set_data {
    my ($self, $space, $application, $environment, $bytes) = @_;
    $space->{data}{_selector($application, $environment)} = $bytes;
}

sub clear_data {
    my ($self, $space) = @_;
    $space->{data} = {};
}

# The bytes to serve: the space's own data, most specific first, else the file; undef if there is nothing.
sub context_data {
    my ($self, $space, $application, $environment) = @_;

    for my $selector (
        _selector($application, $environment), _selector($application, undef),
        _selector(undef,        $environment), _selector(undef,        undef)
    ) {
        return $space->{data}{$selector} if exists $space->{data}{$selector};
    }

    my $path = $self->{data};
    return '{"experiments":[]}' unless defined $path;
    return _slurp($path)        unless -d $path;

    my @names;
    for ($application, $environment) { $_ = '' unless defined $_ && _is_file_name($_) }
    push @names, "$application.$environment" if length $application && length $environment;
    push @names, $application                if length $application;
    for my $name (@names, 'default') {
        my $file = "$path/" . Encode::encode('UTF-8', $name) . '.json';
        my $bytes = _slurp($file);
        return $bytes if defined $bytes;
    }
    return undef;
}

sub _selector { return join "\0", map { $_ // '' } @_ }

sub _is_file_name { return $_[0] !~ m{\A\.|[/\\\0]} && length $_[0] <= 100 }

sub _slurp {
    my ($file) = @_;
    return undef unless -f $file;
    open my $handle, '<:raw', $file or return undef;
    local $/;
    return scalar readline $handle;
}

# Received requests

# Takes a new record (a hash), numbers and keeps it.
sub add_record {
    my ($self, $record) = @_;

    $record->{n}     = ++$self->{last};
    $record->{time}  = Time::HiRes::time();
    $record->{state} = 'pending';
    push @{$self->{records}}, $record;
    $self->{bytes} += length $record->{body};

    my $records = $self->{records};
    while (@$records > 1 && (@$records > $self->{keep} || $self->{bytes} > $self->{keep_bytes})) {
        $self->{bytes} -= length shift(@$records)->{body};
        $self->{forgotten}++;
    }

    if (my $space = $self->{spaces}{$record->{space}}) {
        $space->{counts}{total}++;
        $self->_count($space, $record, 1);
    }
    return $record;
}

# Ends a pending record: state is answered or aborted. False if it has ended before.
sub end_record {
    my ($self, $record, $state, $status) = @_;
    return 0 if $record->{state} ne 'pending';

    my $space = $self->{spaces}{$record->{space}};
    $self->_count($space, $record, -1) if $space;
    $record->{state}    = $state;
    $record->{status}   = $status;
    $record->{duration} = Time::HiRes::time() - $record->{time};
    $self->_count($space, $record, 1) if $space;
    return 1;
}

# Adds the events of a validated request to the counters.
sub count_events {
    my ($self, $space, $result, $accepted) = @_;
    my $counts = $space->{counts};
    my $target = $counts->{$accepted ? 'events' : 'refused'};
    $target->{$_} += $result->{events}{$_} for keys %{$result->{events}};
    return unless $accepted;
    for my $kind (qw(exposures_by_name goals_by_name)) {
        my $sums = $counts->{$kind};
        for my $name (keys %{$result->{$kind}}) {
            my $key = exists $sums->{$name} || keys %$sums < MAX_NAMES ? $name : '(others)';
            $sums->{$key} += $result->{$kind}{$name};
        }
    }
}

sub _count {
    my ($self, $space, $record, $step) = @_;
    return if $record->{uncounted};
    my $status = $record->{state} eq 'answered' ? $record->{status} : $record->{state};
    my $counts = $space->{counts}{requests};
    my $key    = join ' ', $record->{method}, $record->{operation} // '(unknown)', $status;
    delete $counts->{$key} unless $counts->{$key} += $step;
}

# The records numbered above $since (all by default), oldest first. The caller must not change the list.
sub records_since {
    my ($self, $since) = @_;
    my $records = $self->{records};
    my ($low, $high) = (0, scalar @$records);
    while ($low < $high) {
        my $middle = int(($low + $high) / 2);
        if   ($records->[$middle]{n} > $since) { $high = $middle }
        else                                   { $low  = $middle + 1 }
    }
    return $low ? [@$records[$low .. $#$records]] : $records;
}

# Forgets the requests of one space or of all, and their counts. Numbering goes on.
sub forget {
    my ($self, $name) = @_;
    my ($gone, @kept) = (0);
    for my $record (@{$self->{records}}) {
        if (defined $name && $record->{space} ne $name) { push @kept, $record }
        else {
            $record->{uncounted} = 1;
            $self->{bytes} -= length $record->{body};
            $gone++;
        }
    }
    $self->{records} = \@kept;
    for my $space ($self->spaces) {
        $space->{counts} = _new_counts() if !defined $name || $space->{name} eq $name;
    }
    $self->{forgotten} = 0 unless defined $name;
    return $gone;
}

1;
