package Collector::Journal;

# A file that tells what was published: for tests with more events than can be remembered, or asked for. It is appended
# to, by one write for each request before that is answered, so that it also outlives a collector that is killed.
#
# A line has seven fields, in the text format of PostgreSQL's COPY:
#
#   tag       number of the request  then
#   request   n  time                space, publishedAt of its first item, whether it was taken in (1, 0), how many items
#   exposure  n  which item          name, uids of the units (with commas between), variant, \N
#   goal      n  which item          name, uids of the units (with commas between), properties, \N
#   end       n  time                state (answered, aborted), status, \N, \N
#
# Times are seconds; an answer's is when it has been written. A request's events follow it, also if it was not taken in.
# Numbers begin anew with each start of the collector; "start 0 time" and four \N tell of that.

use strict;
use warnings;

use Collector::Json qw(encode_json_bytes);
use Encode ();
use Fcntl qw(O_APPEND O_CREAT O_WRONLY);
use Time::HiRes ();

my %ESCAPED = ("\\" => '\\\\', "\t" => '\\t', "\n" => '\\n', "\r" => '\\r');

# Dies with a one-line message if the file cannot be opened.
sub new {
    my ($class, $file) = @_;
    sysopen my $handle, $file, O_WRONLY | O_APPEND | O_CREAT or die "cannot write $file: $!\n";
    my $self = bless {handle => $handle}, $class;
    $self->_write(_line('start', 0, _seconds(Time::HiRes::time()), (undef) x 4));
    return $self;
}

# A publish request (its record, and its items as they were decoded) that is about to be answered.
sub request {
    my ($self, $record, $items) = @_;
    my @hashes = map { ref eq 'HASH' ? $_ : {} } @$items;
    my $lines  = _line('request', $record->{n}, _seconds($record->{time}), _bytes($record->{space}),
        @hashes ? _bytes($hashes[0]{publishedAt}) : undef, $record->{accepted}, scalar @$items);

    for my $index (0 .. $#hashes) {
        my $item = $hashes[$index];
        my $uids = join ',', map { ref eq 'HASH' ? _bytes($_->{uid}) // '' : '' } _list($item, 'units');
        $lines .= _line('exposure', $record->{n}, $index, _bytes($_->{name}), $uids, _bytes($_->{variant}), undef)
            for grep { ref eq 'HASH' } _list($item, 'exposures');
        $lines .= _line('goal', $record->{n}, $index, _bytes($_->{name}), $uids,
            defined $_->{properties} ? encode_json_bytes($_->{properties}) : undef, undef)
            for grep { ref eq 'HASH' } _list($item, 'goals');
    }
    $self->_write($lines);
    return;
}

# The end of a request, if it was one that publishes: its answer has been written, or never will be.
sub end_of_request {
    my ($self, $record) = @_;
    return unless $record->{events};
    $self->_write(_line('end', $record->{n}, _seconds(Time::HiRes::time()),
        @$record{qw(state status)}, undef, undef));
    return;
}

sub _seconds { return sprintf '%.6f', $_[0] }

sub _list { my ($item, $name) = @_; return ref $item->{$name} eq 'ARRAY' ? @{$item->{$name}} : () }

sub _bytes { return defined $_[0] ? Encode::encode('UTF-8', "$_[0]") : undef }

sub _line {
    return join("\t", map { defined $_ ? s/([\\\t\n\r])/$ESCAPED{$1}/gr : '\\N' } @_) . "\n";
}

sub _write {
    my ($self, $bytes) = @_;
    while (length $bytes) {
        my $written = syswrite $self->{handle}, $bytes;
        die "cannot write the journal: $!\n" unless $written;
        substr $bytes, 0, $written, '';
    }
    return;
}

1;
