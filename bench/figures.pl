#!/usr/bin/perl

# Makes figures of the times that bench/assign or bench/context took, and holds them against the bars.
#
#	bench/figures.pl table|tsv <TIMES
#
# Lines of input, separated by tabs: "about", name, text; "sample", mode, experiments, name, milliseconds by the clock,
# milliseconds of processor time (missing where nobody took it).

use strict;
use warnings;

use List::Util qw(max min);

my $form = $ARGV[0] // 'table';

my %about;
my (%clock, %cpu);
while (my $line = <STDIN>) {
    chomp $line;
    my ($kind, @fields) = split /\t/, $line;
    if ($kind eq 'about') {
        $about{$fields[0]} = $fields[1];
    } else {
        my ($mode, $size, $name, $clock, $cpu) = @fields;
        push @{$clock{"$mode/$size/$name"}}, $clock;
        push @{$cpu{"$mode/$size/$name"}},   $cpu if defined $cpu;
    }
}

# ---------------------------------------------------------------------------
# Times
# ---------------------------------------------------------------------------

sub quantile {
    my ($part, @times) = @_;
    my @sorted = sort { $a <=> $b } @times;
    my $place  = $part * $#sorted;
    my $below  = int $place;
    my $above  = $below < $#sorted ? $below + 1 : $below;
    return $sorted[$below] + ($place - $below) * ($sorted[$above] - $sorted[$below]);
}

sub has {
    my ($mode, $size, $name) = @_;
    return exists $clock{"$mode/$size/$name"};
}

# The ways to look at the times: the median round, the fastest one, the median of processor times
my @WAYS = qw(median fastest cpu);

sub time_of {
    my ($mode, $size, $name, $way) = @_;
    my $times = ($way eq 'cpu' ? \%cpu : \%clock)->{"$mode/$size/$name"}
        or die "nothing was measured: $mode, $size, $name, $way\n";
    return $way eq 'fastest' ? min(@$times) : quantile(0.5, @$times);
}

# with the scan taken off
sub net {
    my ($mode, $size, $name, $way) = @_;
    return time_of($mode, $size, $name, $way) - time_of($mode, $size, 'scan', $way);
}

# ---------------------------------------------------------------------------
# Output
# ---------------------------------------------------------------------------

my @missed;
my $judged = 0;

sub heading {
    my ($words) = @_;
    printf "\n%-66s %9s %-3s %9s %9s\n", $words, 'median', '', 'fastest', 'processor' if $form eq 'table';
    return;
}

# figure(ID, WORDS, UNIT, OF, option => value...): OF gives the value by one of the ways.
# Options: most, least: the bar; no_cpu: processor times are missing or mean nothing
sub figure {
    my ($id, $words, $unit, $of, %option) = @_;
    my %value = map { $_ => $_ eq 'cpu' && $option{no_cpu} ? undef : $of->($_) } @WAYS;
    my ($bar, $verdict) = ('', '');
    if (defined $option{most} || defined $option{least}) {
        my $most = $option{most};
        $bar     = defined $most ? "<= $most" : ">= $option{least}";
        $verdict = (defined $most ? $value{median} <= $most : $value{median} >= $option{least}) ? 'ok' : 'missed';
        $judged++;
        push @missed, sprintf '%s: %.3f%s, to reach: %s', $option{missed} // $words, $value{median},
            $unit && " $unit", $bar
            if $verdict eq 'missed';
    }
    if ($form eq 'tsv') {
        print join("\t", $id, (map { defined $value{$_} ? sprintf('%.4f', $value{$_}) : '' } @WAYS), $unit || 'ratio',
            $bar, $verdict), "\n";
    } else {
        printf "  %-64s %9.3f %-3s %9.3f %9s  %-8s %s\n", $words, $value{median}, $unit, $value{fastest},
            (defined $value{cpu} ? sprintf('%.3f', $value{cpu}) : ''), $bar, $verdict;
    }
    return;
}

if ($form eq 'table') {
    print "\n$about{server}; $about{processor}; load $about{load}\n";
    print "$about{rows} rows, $about{rounds} rounds; bars are for the median\n";
} else {
    print join("\t", 'figure', @WAYS, 'unit', 'bar', 'verdict'), "\n";
    print join("\t", "# $_", $about{$_}), "\n" for sort keys %about;
}

# ---------------------------------------------------------------------------
# Single calls
# ---------------------------------------------------------------------------

my %words = (
    scan               => 'the scan alone',
    md5                => 'md5(id::text)',
    argument           => "jsonb_build_object('user_id', id)",
    trivial            => 'a trivial C function',
    trivial_peek       => 'a trivial C function with a units object and a name',
    peek               => 'absmartly_peek_treatment',
    peek_unit          => 'absmartly_peek_unit_treatment',
    scan_attributes    => 'the scan with the attributes',
    peek_targeted      => 'absmartly_peek_treatment, with audience',
    peek_unit_targeted => 'absmartly_peek_unit_treatment, with audience',
);
my @names =
    qw(scan md5 argument trivial trivial_peek peek peek_unit scan_attributes peek_targeted peek_unit_targeted);
my @sizes = grep { has('serial', $_, 'scan') } 1, 20, 200, 2000;

for my $size (@sizes) {
    my $experiments = "$size experiment" . ($size > 1 ? 's' : '');
    heading("Nanoseconds for a row, $experiments; but for the scan's own, without it");
    for my $name (grep { has('serial', $size, $_) } @names) {
        my $time = $name =~ /^scan/ ? \&time_of : \&net;
        figure("ns_${name}_$size", $words{$name}, 'ns',
            sub { $time->('serial', $size, $name, $_[0]) * 1e6 / $about{rows} });
    }

    # sums of times, in times of md5
    my $ratio = sub {
        my %factor = @_;
        return sub {
            my ($way) = @_;
            my $sum = 0;
            $sum += $factor{$_} * time_of('serial', $size, $_, $way) for keys %factor;
            return $sum / net('serial', $size, 'md5', $way);
        };
    };
    my $show = sub {
        my ($id, $words, $factors, @bar) = @_;
        figure("${id}_$size", $words, '', $ratio->(%$factors), @bar, missed => "$words, $experiments");
    };
    heading('In times of md5(id::text)');
    $show->('argument', 'the units object alone', {argument => 1, scan => -1});
    $show->('trivial', 'a trivial C function', {trivial => 1, scan => -1});
    $show->('peek_total', 'absmartly_peek_treatment with its units object', {peek => 1, scan => -1},
        most => 0.95);
    $show->('peek_alone', 'absmartly_peek_treatment by itself', {peek => 1, argument => -1}, most => 0.3);
    $show->('peek_unit_total', 'absmartly_peek_unit_treatment', {peek_unit => 1, scan => -1}, most => 0.35);
    next if $size == 1;
    $show->('audience', 'what an audience adds to absmartly_peek_treatment',
        {peek_targeted => 1, peek => -1, scan_attributes => -1, scan => 1}, most => 0.4);
    $show->('audience_unit', 'what an audience adds to absmartly_peek_unit_treatment',
        {peek_unit_targeted => 1, peek_unit => -1, scan_attributes => -1, scan => 1}, most => 0.4);
}

if (has('serial', 1, 'scan') && has('serial', 2000, 'scan')) {
    heading('2000 experiments against 1');
    for my $name (qw(md5 peek peek_unit)) {
        figure("growth_$name", $words{$name}, '',
            sub { net('serial', 2000, $name, $_[0]) / net('serial', 1, $name, $_[0]) },
            $name eq 'md5' ? () : (most => 1.1, missed => "$words{$name}, 2000 experiments against 1"));
    }
}

for my $size (grep { has('parallel', $_, 'scan') } @sizes) {
    heading("Two parallel workers: times faster, whole query, experiments: $size");
    for my $name (grep { has('parallel', $size, $_) } @names) {
        figure("parallel_${name}_$size", $words{$name}, '',
            sub { time_of('serial', $size, $name, $_[0]) / time_of('parallel', $size, $name, $_[0]) },
            no_cpu => 1,
            $name =~ /^peek/ ? (least => 1.8, missed => "$words{$name}, parallel, $size experiments") : ());
    }
}

# ---------------------------------------------------------------------------
# The others
# ---------------------------------------------------------------------------

if (has('rows', 200, 'assignments')) {
    heading('All assignments of a unit, 200 experiments');
    my $each = sub {
        my ($name, $way) = @_;
        return (time_of('rows', 200, $name, $way) - time_of('rows', 200, 'rows_scan', $way)) * 1000 / $about{calls};
    };
    figure('constant_rows', 'a C function that returns constants', 'us', sub { $each->('constant_rows', $_[0]) });
    figure('assignments', 'absmartly_assignments', 'us', sub { $each->('assignments', $_[0]) });
    figure('assignments_ratio', 'absmartly_assignments in times of the constants', '',
        sub { $each->('assignments', $_[0]) / $each->('constant_rows', $_[0]) }, most => 1.6);
}

if (has('few', 200, 'plpgsql')) {
    heading("The same assignment in PL/pgSQL, measured over $about{few} users");
    my $each = sub {
        my ($way) = @_;
        return (time_of('few', 200, 'plpgsql', $way) - time_of('few', 200, 'few_scan', $way)) * 1000 / $about{few};
    };
    figure('plpgsql', 'one assignment', 'us', $each);
    if (has('serial', 200, 'peek_unit')) {
        figure('plpgsql_ratio', 'in times of absmartly_peek_unit_treatment', '',
            sub { $each->($_[0]) * $about{rows} / 1000 / net('serial', 200, 'peek_unit', $_[0]) });
    }
}

if (has('connect', 2000, 'trivial')) {
    my @calls = qw(trivial trivial_peek peek peek_unit);
    heading('First call in a new connection, 2000 experiments');
    for my $name (@calls) {
        figure("connect_$name", $words{$name}, 'ms', sub { time_of('connect', 2000, $name, $_[0]) }, no_cpu => 1);
    }
    for my $name (@calls[1 .. 3]) {
        figure("connect_over_$name", "$words{$name}, above a trivial one", 'ms',
            sub { time_of('connect', 2000, $name, $_[0]) - time_of('connect', 2000, 'trivial', $_[0]) },
            no_cpu => 1, $name =~ /^peek/ ? (most => 0.3, missed => "first call of $words{$name}") : ());
    }
}

# ---------------------------------------------------------------------------
# Session contexts
# ---------------------------------------------------------------------------

if (has('baseline', 200, 'md5')) {
    my %calls = (
        md5           => 'md5(id::text)',
        peek          => 'absmartly_context_peek_treatment',
        peek_targeted => 'absmartly_context_peek_treatment, with audience',
        treatment     => 'absmartly_context_treatment, exposed before',
        variable      => 'absmartly_context_peek_variable_value',
    );
    my %creations = (
        create           => 'absmartly_context_create',
        create_peek      => 'the same and one absmartly_context_peek_treatment',
        create_treatment => 'the same and one absmartly_context_treatment',
    );
    my $each = sub {
        my ($mode, $name, $way) = @_;
        my %calls = (baseline => $about{rows}, ten => 10 * $about{rows}, creation => $about{contexts});
        return net($mode, 200, $name, $way) * 1e6 / $calls{$mode};
    };
    my $ratio = sub {
        my ($mode, $name) = @_;
        return sub { $each->($mode, $name, $_[0]) / $each->('baseline', 'md5', $_[0]) };
    };
    my @calls = qw(peek peek_targeted treatment variable);
    my @creations = qw(create create_peek create_treatment);
    heading('Nanoseconds for a call on a context, without the scan');
    figure('ns_context_md5', $calls{md5}, 'ns', sub { $each->('baseline', 'md5', $_[0]) });
    figure("ns_context_$_", $calls{$_}, 'ns', do { my $name = $_; sub { $each->('ten', $name, $_[0]) } }) for @calls;
    heading("Nanoseconds for a context, of $about{contexts} one after the other");
    figure("ns_context_$_", $creations{$_}, 'ns', do { my $name = $_; sub { $each->('creation', $name, $_[0]) } }) for @creations;
    heading('In times of md5(id::text)');
    figure("context_$_", $calls{$_}, '', $ratio->('ten', $_), $_ eq 'peek' ? (most => 0.25) : ()) for @calls;
    figure("context_$_", $creations{$_}, '', $ratio->('creation', $_),
        $_ eq 'create_treatment' ? (most => 30, missed => 'absmartly_context_create and one absmartly_context_treatment') : ())
        for @creations;
}

# ---------------------------------------------------------------------------
# How far to trust them
# ---------------------------------------------------------------------------

# half of the rounds of a query lie within so many percent of its median
sub spreads {
    my ($times) = @_;
    return map { 100 * (quantile(0.75, @$_) - quantile(0.25, @$_)) / quantile(0.5, @$_) }
        map { $times->{$_} } grep { /^(?:serial|parallel|rows|baseline|ten|creation)/ } sort keys %$times;
}
my ($by_clock, $by_cpu) = map { [spreads($_)] } \%clock, \%cpu;
if (@$by_clock) {
    heading('Noise: half of the rounds of a query lie within so many percent');
    for my $part (0.5, 1) {
        my $of = sub { quantile($part, $_[0] eq 'cpu' ? @$by_cpu : @$by_clock) };
        figure("noise_$part", $part == 1 ? 'the worst of the queries' : 'the middle one of the queries', '%', $of);
    }
}

if ($form eq 'table') {
    printf "\n%d of %d bars reached\n", $judged - @missed, $judged if $judged;
    print "  missed: $_\n" for @missed;
}
