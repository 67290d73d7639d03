# Every kind of fault.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use AbsmartlyCollector;
use HTTP::Tiny;
use IO::Socket::INET;
use IO::Select;
use Mojo::JSON qw(decode_json true false);
use Test::More;
use Time::HiRes qw(time);

my $DATA      = '{"experiments":[]}';
my $collector = AbsmartlyCollector->start(data => $DATA);
my $http      = HTTP::Tiny->new(timeout => $collector->patience, max_redirect => 0, http_proxy => undef, proxy => undef);

my %HEADERS = (
    'X-Agent' => 'test', 'X-Environment' => 'e', 'X-Application' => 'a', 'X-Application-Version' => 0,
    'Content-Type' => 'application/json',
);

sub get { return $http->get($collector->url . '/context') }

sub put {
    my (@goals) = @_;
    my $requests = join ',', map {qq({"publishedAt":1,"units":[],"goals":[{"name":"$_","achievedAt":1}]})} @goals;
    return $http->put($collector->url . '/context/batch', {content => qq({"requests":[$requests]}), headers => \%HEADERS});
}

# Sends a request over a plain socket, without the repetitions that HTTP::Tiny makes.
sub open_request {
    my ($method, $path, $body) = @_ ? @_ : ('GET', '/v1/context', '');
    my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $collector->port, Timeout => $collector->patience) or die $!;
    print {$socket} "$method $path HTTP/1.1\r\nHost: x\r\n", (map {"$_: $HEADERS{$_}\r\n"} sort keys %HEADERS),
        'Content-Length: ', length $body, "\r\n\r\n", $body;
    $socket->flush;
    return $socket;
}

# Everything the socket gives until it ends, and the error it ends with.
sub read_all {
    my ($socket) = @_;
    my ($all, $end) = ('', time + $collector->patience);
    while (IO::Select->new($socket)->can_read($end - time)) {
        my $read = sysread $socket, $all, 65536, length $all;
        return ($all, $!{ECONNRESET} ? 'reset' : "$!") unless defined $read;
        return ($all, 'end') unless $read;
    }
    return ($all, 'time-out');
}

sub last_request { return ($collector->requests(last => 1))[0] }

# status, headers, body
$collector->fault('/v1', {status => 503, headers => {'Retry-After' => 7}});
my $answer = get();
is $answer->{status}, 503, 'status';
is $answer->{headers}{'retry-after'}, 7, 'header';
is decode_json($answer->{content})->{code}, 503, 'error body';
is last_request()->{fault}{status}, 503, 'the record tells the fault';
is get()->{status}, 200, 'once by default';
$collector->fault('/v1', {status => 302, headers => {Location => 'http://127.0.0.1:1/'}});
is get()->{headers}{location}, 'http://127.0.0.1:1/', 'redirect';
$collector->fault('/v1', {body => 'hello', content_type => 'text/plain'});
$answer = get();
is "$answer->{status} $answer->{content} $answer->{headers}{'content-type'}", '200 hello text/plain', 'body';
$collector->fault('/v1', {body => {a => [1, true]}});
is get()->{content}, '{"a":[1,true]}', 'body as a structure';
$collector->fault('/v1', {body_base64 => '/wA='});
is get()->{content}, "\xff\x00", 'body of any bytes';

# Counts, order, match, spaces
$collector->fault('/v1', {status => 500, times => 2}, {status => 501, after => 1});
is join(' ', map { get()->{status} } 1 .. 5), '500 500 200 501 200', 'order and counts';
$collector->fault('/v1', {status => 500, times => -1});
is join(' ', map { get()->{status} } 1 .. 4), '500 500 500 500', 'until cleared';
is(($collector->faults('/v1'))[0]{used}, 4, 'uses are counted');
is $http->get($collector->url('/other') . '/context')->{status}, 200, 'not in other spaces';
is $collector->clear_faults('/v1'), 1, 'cleared';
is get()->{status}, 200, 'no fault any more';
$collector->fault('/v1', {match => {method => 'PUT', path => 'context*'}, status => 429, headers => {'Retry-After' => '1'}});
is get()->{status}, 200, 'no match';
is put('g')->{status}, 429, 'match';
is put('g')->{status}, 200, 'match used up';
$collector->fault('/v1', {match => {larger_than => 150}, status => 413, times => -1});
is put('g')->{status}, 200, 'small enough';
is put('g', 'g', 'g')->{status}, 413, 'too large';
$collector->clear_faults('/v1');
$collector->fault('/v1', {match => {path => '/v1/context'}, status => 418});
is put('g')->{status}, 200, 'other path';
is get()->{status}, 418, 'whole path';
$collector->fault('/v1', {status => 500, times => -1}, {status => 429});
$collector->fault('/other', {status => 418});
my @ids = $collector->replace_faults('/v1', {status => 502}, {status => 501, after => 1});
is join(' ', @ids), join(' ', map { $_->{id} } $collector->faults('/v1')), 'others take the place of those that are there';
is join(' ', map { get()->{status} } 1 .. 4), '502 200 501 200', 'in their order';
is $collector->clear_faults('/other'), 1, 'those of other spaces stay';
$collector->fault('/v1', {status => 500});
is eval { $collector->replace_faults('/v1', {status => 502}, {status => 'x'}); 1 }, undef, 'no wrong ones';
is join(' ', map { get()->{status} } 1 .. 2), '500 200', 'then those that are there stay';
for my $wrong ('{}', '[]x', '{"stat":1}', '{"status":"500"}', '{"status":500,"times":0}', '{"hang":2}', '{"hang":false}',
    '{"status":500,"match":{"x":"y"}}', '5')
{
    is eval { $collector->fault('/v1', $wrong); 1 }, undef, "refused: $wrong";
}

# Slow, hanging
$collector->fault('/v1', {delay_ms => 3_600_000});
my $slow = open_request();
ok $collector->wait_for_request(state => 'pending'), 'a slow request is pending';
is $http->get($collector->url('/other') . '/context')->{status}, 200, 'others are not held up';
is +($collector->requests(space => '/v1', last => 1))[0]{state}, 'pending', 'by one that is pending still';
close $slow;
$collector->fault('/v1', {delay_ms => 300});
my $start = time;
$slow = open_request();
like read_some($slow), qr/\AHTTP\/1\.1 200 .*\Q$DATA\E\z/s, 'answer comes';
cmp_ok time - $start, '>=', 0.3, 'after the delay';
is +($collector->requests(space => '/v1', last => 1))[0]{state}, 'answered', 'as the records tell';

sub read_some {
    my ($socket) = @_;
    my $text = '';
    my $end  = time + $collector->patience;
    while ($text !~ /\Q$DATA\E\z/ && IO::Select->new($socket)->can_read($end - time)) {
        sysread $socket, $text, 65536, length $text or last;
    }
    return $text;
}

$collector->fault('/v1', {hang => true});
my $hanging = open_request();
my $record  = $collector->wait_for_request(state => 'pending');
ok $record, 'a hanging request is pending';
ok !IO::Select->new($hanging)->can_read(0.3), 'no answer';
close $hanging;
ok $collector->wait_for_request(sub { $_[0]{n} == $record->{n} && $_[0]{state} eq 'aborted' }), 'aborted when the client goes';

# The connection
$collector->fault('/v1', {reset => 1});
is +(read_all(open_request()))[1], 'reset', 'reset';
is last_request()->{state}, 'aborted', 'reset: aborted';
$collector->fault('/v1', {cut_after => 5});
my ($text, $how) = read_all(open_request());
like $text, qr/Content-Length: 18\r\n.*\r\n\r\n\{"exp\z/s, 'cut: full length, part of the body';
is $how, 'end', 'cut: then the end';
$collector->fault('/v1', {cut_after => 0, status => 500});
like +(read_all(open_request()))[0], qr/\AHTTP\/1\.1 500 .*\r\n\r\n\z/s, 'cut before the body';
$collector->fault('/v1', {cut_after => 5, reset => true});
is +(read_all(open_request()))[1], 'reset', 'cut with reset';
$collector->fault('/v1', {drip => 60});
$start = time;
($text) = read_all(open_request());
like $text, qr/\Q$DATA\E\z/, 'drip: all arrives';
cmp_ok time - $start, '>', 0.15, 'drip: slowly';
$collector->fault('/v1', {garbage => true}, {garbage => "SSH-2.0-x\r\n"});
unlike +(read_all(open_request()))[0], qr/HTTP\/1/, 'garbage';
is +(read_all(open_request()))[0], "SSH-2.0-x\r\n", 'garbage of choice';
$collector->fault('/v1', {html => true});
$answer = get();
like $answer->{content}, qr/\A<!DOCTYPE html>/, 'HTML';
like $answer->{headers}{'content-type'}, qr{\Atext/html}, 'as such';

$collector->fault('/v1', {chunked => true});
$answer = get();
is "$answer->{headers}{'transfer-encoding'} $answer->{content}", "chunked $DATA", 'chunked';

# Large answers
for my $size (1, 30, 31, 32, 65_535, 65_536, 65_565, 5_000_000) {
    for my $chunked (0, 1) {
        $collector->fault('/v1', {huge => $size, $chunked ? (chunked => true) : ()});
        $answer = get();
        is length $answer->{content}, $size < 30 ? 30 : $size, "huge $size" . ($chunked ? ', chunked' : '');
        like $answer->{content}, qr/\A\{"experiments":\[\],"filler":"x*"\}\z/, 'and JSON';
        is defined $answer->{headers}{'content-length'} ? 1 : 0, 1 - $chunked, 'length told or not';
    }
}
$collector->fault('/v1', {huge => 1_000_000_000_000});
my $endless = open_request();
sysread $endless, $text, 65536;
is $http->get($collector->url('/other') . '/context')->{status}, 200, 'others are served during a huge answer';
close $endless;
ok $collector->wait_for_request(space => '/v1', state => 'aborted', last => 1), 'huge answer given up';

# Refused publish requests
$collector->forget;
$collector->fault('/v1', {match => {method => 'PUT'}, bad_request => true, batchIndex => 1});
$answer = put('a', 'b', 'c');
is $answer->{status}, 400, 'bad request';
is decode_json($answer->{content})->{errors}[0]{batchIndex}, 1, 'names the item';
is put('a', 'b', 'c')->{status}, 200, 'once';
$collector->fault('/v1', {reject_goal => 'poison', times => -1});
is put('a', 'b')->{status}, 200, 'other goals pass';
$answer = put('a', 'poison', 'c', 'poison');
is $answer->{status}, 400, 'goal refused';
is_deeply [map { $_->{batchIndex} } @{decode_json($answer->{content})->{errors}}], [1, 3], 'items named';
$collector->clear_faults('/v1');
$collector->fault('/v1', {reject_goal => 'poison', with_index => false});
$answer = put('a', 'poison');
is $answer->{status}, 400, 'goal refused';
ok !exists decode_json($answer->{content})->{errors}[0]{batchIndex}, 'without naming the item';
is scalar($collector->goals), 5, 'refused goals are not taken in';
$collector->fault('/v1', {reject_goal => 'poison', error => {subject => undef, eventIndex => 7}, most_errors => 2});
$answer = put('a', 'poison', 'poison', 'poison');
is_deeply decode_json($answer->{content})->{errors},
    [map { {batchIndex => $_, eventIndex => 7, message => 'goal "poison" is refused'} } 1, 2], 'named wrongly, and not all';

# Taken in although the answer gets lost
$collector->forget;
$collector->fault('/v1', {cut_after => 1}, {status => 500}, {status => 500, accept => true}, {delay_ms => 1, accept => false});
read_all(open_request('PUT', '/v1/context', '{"publishedAt":1,"units":[],"goals":[{"name":"cut","achievedAt":1}]}'));
put($_) for qw(refused accepted not);
is join(' ', map { $_->{name} } $collector->goals), 'cut accepted', 'accepted or not';

done_testing;
