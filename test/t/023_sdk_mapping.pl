
# The examples of the documentation: every SQL block is executed, in order, and gives the results that stand in it.
#
# A comment right below a statement is its result, a line per row; one below nothing, or below an empty line, is a remark.
# "-- ERROR 22023: text" is a result, too.

use strict;
use warnings;

use AbsmartlyTest;
use FindBin;
use PostgreSQL::Test::Utils;
use Test::More;

my $PROJECT = "$FindBin::RealBin/../..";
my $MAPPING = 'doc/sdk-mapping.md';
my $LOGGER  = 'experiments.log_event';    # which the document makes

my $collector = start_collector();        # the demonstration's experiments
my $node = start_node('main', collector => $collector, settings => <<"EOT");
absmartly.application = 'shop'
absmartly.event_logger = '$LOGGER'
EOT

ok(wait_ready($node), 'ready');

# The blocks of a language in a document, or in a section of it, as [first line's number, text].
sub blocks
{
	my ($document, $language, $section) = @_;
	my @lines = split /\n/, slurp_file("$PROJECT/$document");
	my ($inside, @blocks) = !defined $section;
	my ($block, $depth);

	for my $number (1 .. @lines)
	{
		my $line = $lines[ $number - 1 ];

		if ($block)
		{
			if ($line =~ /^```/) { $block = undef; next; }
			$block->[1] .= "$line\n" if $block->[0];
		}
		elsif ($line =~ /^```(\w*)/)
		{
			$block = [ 0, '' ];
			push @blocks, $block = [ $number + 1, '' ] if $inside && $1 eq $language;
		}
		elsif (defined $section && $line =~ /^(#+) (.*)/)
		{
			if ($2 eq $section) { ($inside, $depth) = (1, length $1); }
			elsif ($inside && length $1 <= $depth) { $inside = 0; }
		}
	}
	return @blocks;
}

# The statements of a block, as [line's number, text, expected result].
sub statements
{
	my ($first, $text) = @_;
	my ($number, $statement, @statements) = ($first);
	my $below = 0;    # right below a statement

	for my $line (split /\n/, $text)
	{
		if (defined $statement)
		{
			$statement->[1] .= "\n$line";
		}
		elsif ($line =~ /^-- ?(.*)/)
		{
			push @{ $statements[-1][2] }, $1 if $below;
		}
		elsif ($line =~ /\S/)
		{
			$statement = [ $number, $line, [] ];
		}
		else
		{
			$below = 0;
		}
		if ($statement && $statement->[1] =~ /;\s*\z/ && ($statement->[1] =~ s/\$\$/\$\$/g) % 2 == 0)
		{
			push @statements, $statement;
			($statement, $below) = (undef, 1);
		}
		$number++;
	}
	die "the statement at line $statement->[0] has no end" if $statement;
	return map { [ $_->[0], $_->[1], join "\n", @{ $_->[2] } ] } @statements;
}

# Plays blocks in one session and compares.
sub play
{
	my ($document, $database, @blocks) = @_;
	my @statements = map { statements(@$_) } @blocks;
	my $script = "\\set ON_ERROR_STOP off\n";
	my ($output, $error, $good) = ('', '', 1);

	cmp_ok(scalar @statements, '>', 0, "$document has examples");
	for my $i (0 .. $#statements)
	{
		$script .= "$statements[$i][1]\n\\if :ERROR\n\\echo ERROR :LAST_ERROR_SQLSTATE: :LAST_ERROR_MESSAGE\n\\endif\n\\echo <$i>\n";
	}
	IPC::Run::run(
		[ 'psql', '-XqAt', '-F', ' | ', '-P', 'null=NULL', '-d', $node->connstr($database), '-f', '-' ],
		'<', \$script, '>', \$output, '2>', \$error,
		IPC::Run::timeout(2 * $PostgreSQL::Test::Utils::timeout_default));
	for my $i (0 .. $#statements)
	{
		my ($number, $statement, $expected) = @{ $statements[$i] };
		my $got = $output =~ s/\A(.*?)^<$i>\n//ms ? $1 : 'nothing: the session has ended';

		# functions without a result give empty columns
		$got =~ s/\A[ |\n]*\z//;
		chomp $got;
		is($got, $expected, "$document:$number " . ($statement =~ s/\s+/ /gr)) || ($good = 0);
	}
	diag($error) if !$good;
	return map { $_->[1] } @statements;
}

my @played = play($MAPPING, 'postgres', blocks($MAPPING, 'sql'));
my %known = map { $_ => 1 } split /\n/, $node->safe_psql('postgres', q{SELECT name FROM pg_settings WHERE name ~ '^absmartly\.'});
my %named = map { $_ => 1 } map { $_->[1] =~ /^(absmartly\.\w+) = /mg } blocks($MAPPING, 'ini');
is(join(' ', grep { !$known{$_} } sort keys %named), '', 'the settings that it shows are settings');

# nothing is forgotten
my @functions = split /\n/, $node->safe_psql('postgres', q{SELECT DISTINCT proname FROM pg_proc WHERE proname ~ '^absmartly_context_' ORDER BY 1});
cmp_ok(scalar @functions, '>', 30, 'there are functions of contexts');
my $played = join "\n", @played;
is(join(' ', grep { $played !~ /\b$_\(/ } @functions), '', 'an example for each of them');
my $reference = slurp_file("$PROJECT/doc/reference.md");
is(join(' ', grep { $reference !~ /^ {4}$_\(/m } @functions), '', 'an entry in the reference for each');

# where examples of contexts stand besides
for ([ 'README.md', 'Port code from another SDK' ], [ 'doc/reference.md', 'Session contexts' ])
{
	my ($document, $section) = @$_;

	play($document, 'postgres', blocks($document, 'sql', $section));
}

# what all of that has led to
my $goals = sub { $collector->goals(space => '/v1', name => $_[0]) };
is($node->safe_psql('postgres', "SELECT absmartly_publish('$PATIENCE s') >= 0"), 't', 'everything is delivered');
is(scalar $goals->('logout'), 1, 'a goal of the document is there, once');
is(scalar(grep { $_->{properties} && $_->{properties}{amount} == 64.5 && $_->{historic} } $goals->('payment')), 1, 'and a historic one');

$node->stop;
done_testing();
