# The journal, and faults that are there from the start.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use AbsmartlyCollector;
use File::Temp ();
use HTTP::Tiny;
use Test::More;

my $folder    = File::Temp->newdir;
my $journal   = "$folder/journal";
my $collector = AbsmartlyCollector->start(
    data    => '{"experiments":[]}',
    options => ['--journal', $journal, '--keep', 2, '--fault', '/v1={"reject_goal":"refused","times":-1}'],
);
my $http = HTTP::Tiny->new(timeout => $collector->patience, http_proxy => undef, proxy => undef);

my %HEADERS = (
    'X-Agent' => 'test', 'X-Environment' => 'e', 'X-Application' => 'a', 'X-Application-Version' => 0,
    'Content-Type' => 'application/json',
);

sub put {
    my ($items, $space) = @_;
    return $http->put($collector->url($space // '/v1') . '/context/batch',
        {content => qq({"requests":[$items]}), headers => \%HEADERS})->{status};
}

# The lines, without times.
sub lines {
    open my $file, '<:raw', $journal or die "$journal: $!";
    chomp(my @lines = readline $file);
    return map {s/\A((?:start|request|end)\t[0-9]+\t)[0-9]+\.[0-9]{6}\t/$1TIME\t/r} @lines;
}

my $unit = '"units":[{"type":"user_id","uid":"a"},{"type":"b","uid":"b"}]';
my $goal = '{"name":"g","achievedAt":1,"properties":{"b":"tab\\there","a":1}}';
my $exposure = '{"id":1,"name":"e","variant":2,"exposedAt":1,"assigned":true,"eligible":true}';

is put(qq({"publishedAt":77,$unit,"goals":[$goal]},{"publishedAt":78,$unit,"exposures":[$exposure]})), 200, 'taken';
is put(q({"publishedAt":1,"units":[],"goals":[{"name":"refused","achievedAt":1}]}), '/other/v1'), 200, 'another space';
is put(q({"publishedAt":1,"units":[],"goals":[{"name":"refused","achievedAt":1}]})), 400, 'a fault from the start';
is $http->get($collector->url . '/context')->{status}, 200, 'what is not published';
is_deeply [lines()], [
    "start\t0\tTIME\t\\N\t\\N\t\\N\t\\N",
    "request\t1\tTIME\t/v1\t77\t1\t2",
    "goal\t1\t0\tg\ta,b\t{\"a\":1,\"b\":\"tab\\\\there\"}\t\\N",
    "exposure\t1\t1\te\ta,b\t2\t\\N",
    "end\t1\tTIME\tanswered\t200\t\\N\t\\N",
    "request\t2\tTIME\t/other/v1\t1\t1\t1",
    "goal\t2\t0\trefused\t\t\\N\t\\N",
    "end\t2\tTIME\tanswered\t200\t\\N\t\\N",
    "request\t3\tTIME\t/v1\t1\t0\t1",
    "goal\t3\t0\trefused\t\t\\N\t\\N",
    "end\t3\tTIME\tanswered\t400\t\\N\t\\N",
    ], 'the journal';
is $collector->stats->{kept}, 2, 'needs nothing to be remembered';

my $before = lines();
$collector->fault('/v1', {reset => 1});
eval { put(qq({"publishedAt":77,$unit,"goals":[$goal]})) };
# HTTP::Tiny asks once more where a connection was reset
$collector->wait_until(sub { grep {/\Aend/} (lines())[$before .. lines() - 1] });
is_deeply [(lines())[$before, $before + 2]], ["request\t5\tTIME\t/v1\t77\t0\t1", "end\t5\tTIME\taborted\t\\N\t\\N\t\\N"],
    'a request without an answer';

$before = lines();
$collector->kill;
$collector->restart;
is_deeply [(lines())[$before]], ["start\t0\tTIME\t\\N\t\\N\t\\N\t\\N"], 'goes on after a crash';
is put(q({"publishedAt":1,"units":[],"goals":[{"name":"refused","achievedAt":1}]})), 400, 'the fault is there again';
$collector->clear_faults('/v1');
is put(q({"publishedAt":1,"units":[],"goals":[{"name":"refused","achievedAt":1}]})), 200, 'until it is cleared';

for my $wrong ("--fault '/v1={\"hang\":2}'", "--journal $folder/none/journal") {
    qx($^X $FindBin::RealBin/../collector $wrong 2>&1);
    is $? >> 8, 2, "refused: $wrong";
}

done_testing;
