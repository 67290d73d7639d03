# Context data, keys, spaces and what is kept of requests.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use AbsmartlyCollector;
use File::Temp ();
use HTTP::Tiny;
use IO::Socket::INET;
use Mojo::JSON qw(decode_json);
use Test::More;

my $folder = File::Temp->newdir;
my $http   = HTTP::Tiny->new(timeout => AbsmartlyCollector->patience, http_proxy => undef, proxy => undef);

sub write_file {
    my ($name, $bytes) = @_;
    open my $handle, '>:raw', "$folder/$name" or die $!;
    print {$handle} $bytes;
    close $handle or die $!;
}

my $collector;
sub get {
    my ($url, %headers) = @_;
    return $http->get($url =~ /\Ahttp/ ? $url : $collector->url('') . $url, {headers => \%headers});
}

# The demonstration data
$collector = AbsmartlyCollector->start;
my $answer = get('/v1/context?application=shop&environment=production');
is $answer->{status}, 200, 'data served';
is $answer->{headers}{'content-type'}, 'application/json', 'as JSON';
my $demo = decode_json($answer->{content});
is scalar(@{$demo->{experiments}}), 8, 'with experiments';
for my $experiment (@{$demo->{experiments}}) {
    my @texts = (map { $_->{config} } @{$experiment->{variants}});
    push @texts, $experiment->{audience}, $experiment->{assignmentRules};
    for my $text (grep { length($_ // '') } @texts) {
        ok ref decode_json(Mojo::Util::encode('UTF-8', $text)), "$experiment->{name}: JSON in a string";
    }
    is @{$experiment->{split}}, @{$experiment->{variants}}, "$experiment->{name}: as many parts as variants";
}
is get('/v1/healthy')->{status}, 200, 'healthy';
$answer = get('/v1/experiment', 'X-Agent' => 't', 'X-Environment' => 'e', 'X-Application' => 'a', 'X-Application-Version' => 1);
is $answer->{status}, 200, 'experiment list';
is scalar(@{decode_json($answer->{content})->{experiments}}), 8, 'with experiments';
is get('/v1/experiment')->{status}, 400, 'which needs headers';
is get('/v1/nothing')->{status}, 404, 'unknown call';
is $http->post($collector->url . '/healthy')->{status}, 405, 'wrong method';

# Byte for byte
my $odd = qq({ "b" : 1.0,\n\t"a":"\xC3\xA9", "b":2 }\r\n);
$collector->set_data('/v1', $odd);
is get('/v1/context')->{content}, $odd, 'pushed data comes back byte for byte';
$collector->set_data('/v1', "not JSON \x00\xff");
is get('/v1/context')->{content}, "not JSON \x00\xff", 'even if it is not JSON';
$collector->set_data('/v1', '{"x":1}', application => 'a b', environment => "\xe9");
is get('/v1/context?application=a%20b&environment=%C3%A9')->{content}, '{"x":1}', 'data for one application and environment';
is get('/v1/context?application=a%20b')->{content}, "not JSON \x00\xff", 'not for others';
is scalar(@{decode_json(get('/other/v1/context')->{content})->{experiments}}), 8, 'not for other spaces';
my $tag = get('/v1/context')->{headers}{etag};
is get('/v1/context', 'If-None-Match' => $tag)->{status}, 304, 'unchanged data';
$collector->clear_data('/v1');
is scalar(@{decode_json(get('/v1/context')->{content})->{experiments}}), 8, 'data removed again';

# Keys and spaces
$collector->set_keys('/v1', ['first-key-of-two', 'second']);
is get('/v1/context')->{status}, 401, 'no key';
is get('/v1/context', 'X-API-Key' => 'first-key-of-tw')->{status}, 401, 'wrong key';
is get('/v1/context', 'X-API-Key' => 'first-key-of-two')->{status}, 200, 'right key';
is get('/v1/context', 'X-API-Key' => 'second')->{status}, 200, 'other right key';
is get('/v1/healthy')->{status}, 200, 'healthy needs none';
is get('/shop/v1/context')->{status}, 200, 'other space without keys';
is_deeply [map { $_->{key} } $collector->requests(space => '/v1', path => 'context', last => 4)],
    [qw(missing refused accepted accepted)], 'the records tell';
my $everything = join '', map { get($collector->admin_url . "/$_")->{content} } qw(requests stats keys);
unlike $everything, qr/first-key-of-tw/, 'keys are not shown';
like $everything, qr/firs\*\*\*/, 'but their beginning';
$collector->set_keys('/v1', undef);
is get('/v1/context')->{status}, 200, 'keys removed';

$collector->forget;
get('/a/b/v1/context');
get('/v1/context');
get('/context');
is_deeply [map { $_->{space} } $collector->requests], ['/a/b/v1', '/v1', '/'], 'spaces by prefix';
is scalar($collector->requests(space => '/a/b/v1')), 1, 'requests of one space';
my ($first) = $collector->requests;
is scalar($collector->requests(since => $first->{n})), 2, 'requests since';
is scalar($collector->requests(last => 1)), 1, 'last request';
is scalar($collector->requests(path => '/context')), 1, 'requests of one path';
$collector->forget('/v1');
is scalar($collector->requests), 2, 'one space forgotten';

$collector->set_batch('/v1', 0);
is $http->put($collector->url . '/context/batch')->{status}, 404, 'batch switched off';
is $http->put($collector->url('/a') . '/context/batch')->{status}, 400, 'not elsewhere';

is get($collector->admin_url . '/data?space=/v1')->{status}, 200, 'admin: data';
is get($collector->admin_url . '/nothing')->{status}, 404, 'admin: unknown call';
is $http->put($collector->admin_url . '/data', {content => '{}'})->{status}, 400, 'admin: space required';
is $http->put($collector->admin_url . '/keys?space=/v1', {content => '[1]'})->{status}, 400, 'admin: keys checked';
my $page = get($collector->url('') . '/');
like $page->{content}, qr/<h1>Development collector/, 'page for people';
unlike $page->{content}, qr{https?://}, 'which needs nothing from elsewhere';

# Files and folders
write_file('default.json',         '{"experiments":[],"from":"default"}');
write_file('shop.json',            '{"from":"shop"}');
write_file('shop.production.json', '{"from":"shop production"}');
$collector = AbsmartlyCollector->start(data => "$folder", keys => ['k'], batch => 0);
my %key = ('X-API-Key' => 'k');
is get('/v1/context?application=shop&environment=production', %key)->{content}, '{"from":"shop production"}', 'most specific file';
is get('/v1/context?application=shop&environment=test', %key)->{content}, '{"from":"shop"}', 'file of the application';
like get("/v1/context?application=$_", %key)->{content}, qr/default/, "default file for $_" for qw(x ..%2Fshop .);
write_file('shop.json', '{"from":"SHOP"}');
is get('/v1/context?application=shop', %key)->{content}, '{"from":"SHOP"}', 'file is read again';
unlink "$folder/default.json";
is get('/v1/context?application=x', %key)->{status}, 404, 'no file';
is get('/v1/context?application=shop')->{status}, 401, 'keys given at the start';
is $http->put($collector->url . '/context/batch', {headers => \%key})->{status}, 404, 'batches switched off at the start';

# Kept requests are bounded
$collector = AbsmartlyCollector->start(data => '{"experiments":[]}', options => ['--keep', 5]);
get('/v1/context') for 1 .. 8;
my $stats = $collector->stats;
is $stats->{kept}, 5, 'old requests are dropped';
is $stats->{forgotten}, 3, 'and counted';
is $stats->{spaces}{'/v1'}{total}, 8, 'all count';

done_testing;
