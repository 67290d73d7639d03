#!/usr/bin/perl

# Makes figures of what bench/events measured, and holds them against the bars.
#
#	bench/events-figures.pl table|tsv <SAMPLES
#
# Lines of input, separated by tabs: "about", name, text; "sample", part, size, name, round, value.  A ratio is made of
# the values of one round, which lie seconds apart, and the figure is the median of these ratios.

use strict;
use warnings;

use List::Util qw(max sum);

my $form = $ARGV[0] // 'table';

my %about;
my %value;
while (my $line = <STDIN>) {
    chomp $line;
    my ($kind, @fields) = split /\t/, $line;
    if ($kind eq 'about') {
        $about{$fields[0]} = $fields[1];
    } else {
        my ($part, $size, $name, $round, $value) = @fields;
        $value{$part}{$size}{$name}{$round} = $value;
    }
}

# ---------------------------------------------------------------------------
# Output
# ---------------------------------------------------------------------------

my @missed;
my $judged = 0;
my $heading = '';

sub quantile {
    my ($part, @values) = @_;
    my @sorted = sort { $a <=> $b } @values;
    my $place  = $part * $#sorted;
    my $below  = int $place;
    my $above  = $below < $#sorted ? $below + 1 : $below;
    return $sorted[$below] + ($place - $below) * ($sorted[$above] - $sorted[$below]);
}

sub digits {
    my ($value) = @_;
    return sprintf abs($value) >= 1000 ? '%.0f' : abs($value) >= 100 ? '%.1f' : '%.3f', $value;
}

# line(CELL...): of a table that is Markdown, too
sub line {
    printf "| %-68s | %10s | %10s | %23s | %-9s | %-7s |\n", @_;
    return;
}

sub heading {
    ($heading) = @_;
    return if $form eq 'tsv';
    print "\n$heading\n\n";
    line('measure', 'median', 'mean', 'half of the rounds', 'bar', 'verdict');
    line(map { '-' x $_ } 68, 10, 10, 23, 9, 7);
    return;
}

# figure(ID, WORDS, UNIT, VALUES, most or least => BAR)
sub figure {
    my ($id, $words, $unit, $values, %option) = @_;
    return unless @$values;
    my ($low, $median, $high) = map { quantile($_, @$values) } 0.25, 0.5, 0.75;
    my $mean = sum(@$values) / @$values;
    my ($bar, $verdict) = ('', '');
    if (my ($kind) = grep { defined $option{$_} } qw(most least)) {
        my $limit = $option{$kind};
        $bar     = ($kind eq 'most' ? '<= ' : '>= ') . $limit;
        $verdict = ($kind eq 'most' ? $median <= $limit : $median >= $limit) ? 'ok' : 'missed';
        $judged++;
        push @missed, sprintf '%s; %s: %s%s, to reach: %s', $heading, $words, digits($median), $unit && " $unit", $bar
            if $verdict eq 'missed';
    }
    if ($form eq 'tsv') {
        print join("\t", $id, (map { sprintf '%.4f', $_ } $median, $mean, $low, $high),
            $unit || 'ratio', $bar, $verdict), "\n";
    } else {
        line($unit ? "$words, $unit" : $words,
            digits($median), digits($mean), digits($low) . ' to ' . digits($high), $bar, $verdict);
    }
    return;
}

# ---------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------

# each_round(PART, SIZE, OF, NAME...): what OF makes of the values of these names, in each round that has them all
sub each_round {
    my ($part, $size, $of, @names) = @_;
    my $values = $value{$part}{$size};
    return [] if grep { !exists $values->{$_} } @names;
    return [
        map { my $round = $_; $of->(map { $values->{$_}{$round} } @names) }
        grep { my $round = $_; !grep { !defined $values->{$_}{$round} } @names }
        sort { $a <=> $b } keys %{$values->{$names[0]}}
    ];
}

sub plain {
    my ($part, $size, $name) = @_;
    return each_round($part, $size, sub { $_[0] }, $name);
}

sub ratio {
    my ($part, $size, $name, $of) = @_;
    return each_round($part, $size, sub { $_[0] / $_[1] }, $name, $of);
}

sub sizes {
    my ($part) = @_;
    return sort { $a <=> $b } keys %{$value{$part} // {}};
}

sub clients {
    my ($count) = @_;
    return $count == 1 ? '1 client' : "$count clients";
}

if ($form eq 'table') {
    print "\n$about{server}; $about{processor}; load $about{load}\n";
    print "$about{rounds} rounds of runs of $about{seconds} s, $about{long_rounds} of the long ones;",
        " bars are for the median of the rounds\n";
} else {
    print join("\t", qw(figure median mean low high unit bar verdict)), "\n";
    print join("\t", "# $_", $about{$_}), "\n" for sort keys %about;
}

# ---------------------------------------------------------------------------
# Recording
# ---------------------------------------------------------------------------

for my $size (sizes('insert')) {
    heading('INSERT of a row per transaction, ' . clients($size));
    figure("insert_${size}_track", 'with absmartly_track_trigger, delivery running, of none',
        '', ratio('insert', $size, 'track', 'none'), least => 0.85);
    figure("insert_${size}_plpgsql", 'with a PL/pgSQL trigger that inserts into a queue, of none',
        '', ratio('insert', $size, 'plpgsql', 'none'));
    figure("insert_${size}_none", 'without a trigger', 'tx/s', plain('insert', $size, 'none'));
    figure("insert_${size}_delivered", 'events delivered while the run lasted, of those recorded',
        '', plain('insert', $size, 'delivered'));
}

for my $size (sizes('bulk')) {
    my $above = sub {
        my ($name, $base) = @_;
        return each_round('bulk', $size, sub { ($_[0] - $_[1]) * 1000 / $size }, $name, $base);
    };
    heading("INSERT of $size rows by one statement");
    figure('bulk_track', 'absmartly_track_trigger above a trivial C trigger', 'us a row', $above->('track', 'trivial'),
        most => 1.5);
    figure('bulk_track_cpu', "the same by the backend's processor time", 'us a row',
        $above->('track.cpu', 'trivial.cpu'));
    figure('bulk_plpgsql', 'a PL/pgSQL trigger that inserts into a queue, above it', 'us a row',
        $above->('plpgsql', 'trivial'));
    figure('bulk_trivial', 'the trivial C trigger above none', 'us a row', $above->('trivial', 'none'));
    figure('bulk_none', 'no trigger', 'us a row', each_round('bulk', $size, sub { $_[0] * 1000 / $size }, 'none'));
    figure('bulk_bytes', 'outbox', 'bytes an event', each_round('bulk', $size, sub { $_[0] / $size }, 'track.bytes'));
}

for my $part (qw(select lookup)) {
    for my $size (sizes($part)) {
        heading(($part eq 'select' ? 'SELECT of one treatment' : 'SELECT of a row by key with one treatment')
            . ' per transaction, '
                . clients($size));
        figure("${part}_${size}_expose", 'absmartly_treatment, all units new, delivery running, of peeking',
            '', ratio($part, $size, 'expose', 'peek'), least => 0.7);
        figure("${part}_${size}_few", 'absmartly_treatment, exposed before, of peeking',
            '', ratio($part, $size, 'expose_few', 'peek_few'), least => 0.9);
        figure("${part}_${size}_peek", 'absmartly_peek_treatment', 'tx/s', plain($part, $size, 'peek'));
    }
}

for my $size (sizes('count')) {
    my $each = sub { each_round('count', $size, sub { $_[0] * 1000 / $size }, $_[0]) };
    heading("SELECT of $size treatments by one statement");
    figure('count_expose', 'absmartly_treatment, deduplication off, in times of peeking',
        '', ratio('count', $size, 'expose', 'peek'), most => 2.5);
    figure('count_expose_cpu', "the same by the backend's processor time",
        '', ratio('count', $size, 'expose.cpu', 'peek.cpu'));
    figure('count_marked', 'absmartly_treatment, deduplication on, all units new', '', ratio('count', $size, 'marked', 'peek'),
        most => 2.5);
    figure('count_expose_unit', 'absmartly_unit_treatment in times of absmartly_peek_unit_treatment',
        '', ratio('count', $size, 'expose_unit', 'peek_unit'));
    figure('count_peek', 'absmartly_peek_treatment with its units object', 'us a call', $each->('peek'));
    figure('count_bytes', 'outbox', 'bytes an exposure',
        each_round('count', $size, sub { $_[0] / $size }, 'expose.bytes'), most => 64);
}
if (my ($tenth, $all) = sizes('memory')) {
    figure('memory_tenth', "the backend's growth, at most, $tenth exposures", 'MB', plain('memory', $tenth, 'expose'));
    figure('memory', "the backend's growth, at most, $all exposures", 'MB', plain('memory', $all, 'expose'),
        most => 32);
}

# ---------------------------------------------------------------------------
# Delivery
# ---------------------------------------------------------------------------

if (exists $value{delivery}) {
    my @runs = (
        ['exposures', 'exposures queued by one statement', 200000],
        ['goals',     'goals queued by one statement',     200000],
        ['singles',   'goals queued one per transaction',  100000],
        ['waiting',   'a queue emptied by hand: rows taken out 500 at a time'],
    );
    my %size;
    for my $size (sizes('delivery')) {
        $size{$_} = $size for keys %{$value{delivery}{$size}};
    }
    heading('Delivery, each event of a unit of its own');
    for my $run (@runs) {
        my ($name, $words, $bar) = @$run;
        figure("delivery_$name", $words, 'a second', plain('delivery', $size{$name}, $name),
            $bar ? (least => $bar) : ());
    }
    for my $run (@runs[0 .. 2]) {
        my ($name, $words) = @$run;
        my ($ours, $theirs) = ($value{delivery}{$size{$name}}{$name}, $value{delivery}{$size{waiting}}{waiting});
        figure("delivery_${name}_ratio", "$words, of rows taken out by hand",
            '', [map { $ours->{$_} / $theirs->{$_} } sort { $a <=> $b } keys %$ours]);
        figure("delivery_${name}_size", "$words", 'a request', plain('delivery', $size{$name}, "$name.size"));
        figure("delivery_${name}_repeated", "$words, sent more than once",
            'events', plain('delivery', $size{$name}, "$name.repeated"), most => 0);
    }
}

for my $size (sizes('latency')) {
    my $ways = plain('latency', $size, 'way');
    heading("From COMMIT to the collector, absmartly.publish_delay = 0, each of " . @$ways . ' events');
    figure('latency', 'until the request arrives', 'ms', $ways, most => 5);
    figure('latency_95', '19 of 20 arrive within', 'ms', [quantile(0.95, @$ways)]);
    figure('latency_all', 'all arrive within', 'ms', [max(@$ways)]);
}

if ($form eq 'table') {
    printf "\n%d of %d bars reached\n", $judged - @missed, $judged if $judged;
    print "  missed: $_\n" for @missed;
}
