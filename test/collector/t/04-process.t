# The command line, the client module and the life of the process.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use AbsmartlyCollector;
use File::Temp ();
use HTTP::Tiny;
use Mojo::JSON qw(true);
use Test::More;
use Time::HiRes qw(time sleep);

my $http   = HTTP::Tiny->new(timeout => AbsmartlyCollector->patience, http_proxy => undef, proxy => undef);
my $script = "$FindBin::RealBin/../collector";

# The command alone
like qx($^X $script --help), qr/\AUsage: collector/, 'help';
for my $wrong ('--nonsense', 'extra', '--listen ftp://x', '--data /does/not/exist', '--space-data x') {
    qx($^X $script $wrong 2>&1);
    is $? >> 8, 2, "refused: $wrong";
}

my $folder = File::Temp->newdir;
my $pid    = fork // die $!;
if (!$pid) {
    open STDOUT, '>', "$folder/out";
    exec $^X, $script, qw(--listen http://127.0.0.1:0), map { ("--$_-file", "$folder/$_") } qw(port pid);
}
my $end = time + AbsmartlyCollector->patience;
sleep 0.02 until -e "$folder/port" || time > $end;
my $url = read_file("$folder/port");
like $url, qr{\Ahttp://127\.0\.0\.1:[0-9]+\n\z}, 'port file';
is read_file("$folder/pid"), "$pid\n", 'pid file';
$url =~ s/\n//;
is $http->get("$url/v1/healthy")->{status}, 200, 'it listens';
is $http->get("$url/v1/context")->{content}, '{"experiments":[]}', 'without data';
kill 'TERM', $pid;
is wait_for_exit($pid), 0, 'ends cleanly';
ok !-e "$folder/$_", "$_ file removed" for qw(port pid);
is read_file("$folder/out"), "$url\n", 'URL printed';

sub read_file {
    my ($file) = @_;
    open my $handle, '<', $file or return '';
    local $/;
    return scalar readline $handle;
}

sub wait_for_exit {
    my ($child) = @_;
    my $limit = time + AbsmartlyCollector->patience;
    while (time < $limit) {
        return $? if waitpid($child, 1) == $child;
        sleep 0.02;
    }
    kill 'KILL', $child;
    return 'time-out';
}

# The client module
my $collector = AbsmartlyCollector->start(
    data       => {experiments => [{id => 1}]},
    space_data => {'/b/v1' => '{"b": 1}'},
    space_keys => {'/b/v1' => ['kb']},
);
is $http->get($collector->url . '/context')->{content}, '{"experiments":[{"id":1}]}', 'data as a structure';
is $http->get($collector->url('/b/v1') . '/context')->{status}, 401, 'keys of a space';
is $http->get($collector->url('/b/v1') . '/context', {headers => {'X-API-Key' => 'kb'}})->{content}, '{"b": 1}', 'data of a space';
$collector->set_data('/v1', '{"new":1}');
$collector->set_data('/v1', '{"app":1}', application => 'x');
$collector->set_batch('/v1', 0);
my $before = $collector->url;
my $first  = $collector->pid;
$collector->restart;
is $collector->url, $before, 'restart on the same port';
isnt $collector->pid, $first, 'as another process';
is $http->get($collector->url . '/context')->{content}, '{"new":1}', 'with the same data';
is $http->get($collector->url . '/context?application=x')->{content}, '{"app":1}', 'for each application';
is $http->put($collector->url . '/context/batch')->{status}, 404, 'and the same switches';
is $http->get($collector->url('/b/v1') . '/context')->{status}, 401, 'and keys';

$collector->kill;
ok !$collector->is_running, 'killed';
is $http->get($collector->url . '/context')->{status}, 599, 'nobody answers';
$collector->restart;
$collector->pause;
my $impatient = HTTP::Tiny->new(timeout => 0.3, http_proxy => undef, proxy => undef);
is $impatient->get($collector->url . '/context')->{status}, 599, 'paused';
$collector->resume;
is $http->get($collector->url . '/context')->{status}, 200, 'resumed';
ok $collector->wait_for_request(method => 'GET'), 'request seen';
my $start = time;
is $collector->wait_for_request(sub {0}, 0.2), undef, 'wait ends';
cmp_ok time - $start, '<', $collector->patience / 2, 'in time';
like $collector->log_text, qr{GET /v1/context answered 200}, 'log';
$collector->pause;
$collector->stop;
ok !$collector->is_running, 'stopped although paused';

is eval { AbsmartlyCollector->start(options => ['--nonsense']) }, undef, 'start fails';
like $@, qr/nonsense/, 'with the reason';

# It does not outlive its parent.
pipe my $reader, my $writer or die $!;
my $parent = fork // die $!;
if (!$parent) {
    $ENV{TMPDIR} = "$folder";    # the killed process cannot remove its files
    my $orphan = AbsmartlyCollector->start;
    syswrite $writer, $orphan->pid . "\n";
    kill 'KILL', $$;
}
close $writer;
my $orphan = readline $reader;
chomp $orphan;
waitpid $parent, 0;
$end = time + $collector->patience;
sleep 0.05 while kill(0, $orphan) && !is_zombie($orphan) && time < $end;
ok time < $end, 'ends with its parent';

sub is_zombie {
    my ($process) = @_;
    return read_file("/proc/$process/stat") =~ /\) Z /;
}

done_testing;
