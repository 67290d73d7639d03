# What the collector accepts and refuses in published requests.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use AbsmartlyCollector;
use IO::Socket::INET;
use Mojo::JSON qw(decode_json);
use Test::More;

my $collector = AbsmartlyCollector->start;

my %HEADERS = (
    'X-API-Key'             => 'any',
    'X-Agent'               => 'test',
    'X-Environment'         => 'production',
    'X-Application'         => 'shop',
    'X-Application-Version' => '1.2.3-rc.1+5',
    'Content-Type'          => 'application/json',
);

# Sends a PUT and returns the status and the decoded answer. A header of undef is left out.
sub put {
    my ($path, $body, %changes) = @_;
    my %headers = (%HEADERS, Connection => 'close', 'Content-Length' => length $body, %changes);
    my $head    = join '', map {"$_: $headers{$_}\r\n"} grep { defined $headers{$_} } sort keys %headers;
    my $socket  = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $collector->port, Timeout => 5) or die $!;
    local $SIG{ALRM} = sub { die "no answer to PUT $path\n" };
    alarm 120;
    print {$socket} "PUT /v1$path HTTP/1.1\r\nHost: localhost\r\n$head\r\n$body";
    $socket->flush;
    my $answer = do { local $/; readline $socket };
    alarm 0;
    my ($status, $content) = $answer =~ m{\A(?:HTTP/1\.1 100 Continue\r\n\r\n)?HTTP/1\.1 ([0-9]+) .*?\r\n\r\n(.*)\z}s;
    return ($status, eval { decode_json($content) });
}

my $UNITS = '"units":[{"type":"user_id","uid":"pAE3a1i5Drs5mKRNq56adA"}]';
my $FULL  = qq({"publishedAt":1611141535829,"hashed":true,"sdkVersion":"1.14.0",$UNITS,)
    . '"exposures":[{"id":1,"name":"exp","unit":null,"variant":1,"exposedAt":1611141535729,"assigned":true,'
    . '"eligible":true,"overridden":false,"fullOn":false,"custom":false,"audienceMismatch":false,"ruleOverride":false,'
    . '"heldOut":false,"holdoutId":0}],"goals":[{"name":"g","achievedAt":1,"properties":null},'
    . '{"name":"g","achievedAt":-9223372036854775808,"properties":{"a":0.10}}],'
    . '"attributes":[{"name":"a","value":[1],"setAt":2},{"name":"a","value":null,"setAt":3}]}';

sub exposure {
    my (%changes) = @_;
    my %fields = (id => 1, name => '"e"', variant => 0, exposedAt => 5, assigned => 'true', eligible => 'true', %changes);
    my $text = join ',', map {qq("$_":$fields{$_})} grep { defined $fields{$_} } sort keys %fields;
    return qq({"publishedAt":1,$UNITS,"exposures":[{$text}]});
}

sub request { return qq({"publishedAt":1,$UNITS,) . shift() . '}' }

my @accepted = (
    ['full request'              => $FULL],
    ['least request'             => '{"publishedAt":1,"units":[]}'],
    ['uid of 640 characters'     => '{"publishedAt":1,"units":[{"type":"t","uid":"' . 'é' x 640 . '"}]}'],
    ['nulls'                     => request('"hashed":null,"historic":null,"goals":[]')],
    ['largest int64'             => request('"goals":[{"name":"g","achievedAt":9223372036854775807}]')],
    ['largest id'                => exposure(id => 2147483647)],
    ['variant 128'               => exposure(variant => 128)],
    ['escapes and blanks'        => qq( { "publishedAt" : 1 , "units" : [ ] , "sdkVersion" : "\\u00e9\\n\\ud83d\\ude00" } \n)],
);
for (@accepted) {
    my ($name, $body) = @$_;
    my ($status, $answer) = put('/context', $body);
    is $status, 200, "accepted: $name" or diag explain $answer;
    is_deeply $answer, {ok => Mojo::JSON->true}, "answer: $name";
}

my @refused = (
    ['no units'              => '{"publishedAt":1}',                    'units'],
    ['units null'            => '{"publishedAt":1,"units":null}',       'units'],
    ['no publishedAt'        => '{"units":[]}',                         'publishedAt'],
    ['time as a string'      => '{"publishedAt":"1","units":[]}',       'publishedAt'],
    ['time with fraction'    => '{"publishedAt":1.0,"units":[]}',       'publishedAt'],
    ['time too large'        => '{"publishedAt":9223372036854775808,"units":[]}', 'publishedAt'],
    ['hashed as a number'    => request('"hashed":1'),                  'hashed'],
    ['historic as a string'  => request('"historic":"true"'),           'historic'],
    ['sdkVersion number'     => request('"sdkVersion":1'),              'sdkVersion'],
    ['exposures null'        => request('"exposures":null'),            'exposures'],
    ['unit not an object'    => '{"publishedAt":1,"units":["x"]}',      'units[0]'],
    ['unit without type'     => '{"publishedAt":1,"units":[{"uid":"x"}]}', 'units[0].type'],
    ['empty uid'             => '{"publishedAt":1,"units":[{"type":"t","uid":""}]}', 'units[0].uid'],
    ['uid a number'          => '{"publishedAt":1,"units":[{"type":"t","uid":5}]}',  'units[0].uid'],
    ['uid too long'          => '{"publishedAt":1,"units":[{"type":"t","uid":"' . 'x' x 641 . '"}]}', 'units[0].uid'],
    ['uid not a hash'        => '{"publishedAt":1,"hashed":true,"units":[{"type":"t","uid":"user 1"}]}', 'units[0].uid'],
    ['exposure without id'   => exposure(id => undef),                  'exposures[0].id'],
    ['negative id'           => exposure(id => -1),                     'exposures[0].id'],
    ['id beyond int32'       => exposure(id => 2147483648),             'exposures[0].id'],
    ['id as a string'        => exposure(id => '"1"'),                  'exposures[0].id'],
    ['no name'               => exposure(name => undef),                'exposures[0].name'],
    ['name null'             => exposure(name => 'null'),               'exposures[0].name'],
    ['variant 129'           => exposure(variant => 129),               'exposures[0].variant'],
    ['variant -1'            => exposure(variant => -1),                'exposures[0].variant'],
    ['variant 1.5'           => exposure(variant => 1.5),               'exposures[0].variant'],
    ['variant true'          => exposure(variant => 'true'),            'exposures[0].variant'],
    ['assigned as a number'  => exposure(assigned => 1),                'exposures[0].assigned'],
    ['eligible as a string'  => exposure(eligible => '"true"'),         'exposures[0].eligible'],
    ['eligible missing'      => exposure(eligible => undef),            'exposures[0].eligible'],
    ['unit a number'         => exposure(unit => 1),                    'exposures[0].unit'],
    ['custom null'           => exposure(custom => 'null'),             'exposures[0].custom'],
    ['heldOut a number'      => exposure(heldOut => 0),                 'exposures[0].heldOut'],
    ['goal without time'     => request('"goals":[{"name":"g"}]'),      'goals[0].achievedAt'],
    ['properties an array'   => request('"goals":[{"name":"g","achievedAt":1,"properties":[]}]'), 'goals[0].properties'],
    ['attribute without name' => request('"attributes":[{"setAt":1,"value":1}]'), 'attributes[0].name'],
    ['attribute time null'   => request('"attributes":[{"name":"a","setAt":null}]'), 'attributes[0].setAt'],
    ['not an object'         => '[]',                                   'request'],
    ['not JSON'              => '{"publishedAt":1,}',                   'body'],
    ['empty body'            => '',                                     'body'],
    ['text after the end'    => '{} x',                                 'body'],
    ['byte order mark'       => "\xEF\xBB\xBF{}",                       'body'],
    ['not UTF-8'             => "{\"\xff\":1}",                         'body'],
    ['leading zero'          => '{"publishedAt":01,"units":[]}',        'body'],
    ['too deep'              => '[' x 5000,                             'body'],
);
for (@refused) {
    my ($name, $body, $subject) = @$_;
    my ($status, $answer) = put('/context', $body);
    is $status, 400, "refused: $name";
    ok !$answer->{ok}, "answer says so: $name";
    is $answer->{errors}[0]{subject}, $subject, "subject: $name" or diag explain $answer;
}

# Unknown fields
my ($status, $answer) = put('/context', request('"more":1,"goals":[{"name":"g","achievedAt":1,"extra":{}}]'));
is $status, 200, 'unknown fields are accepted';
is_deeply [map { $_->{subject} } @{$answer->{warnings}}], ['more', 'goals[0].extra'], 'with warnings';

# Batches
my $good = request('"goals":[{"name":"g","achievedAt":1}]');
my $bad  = request('"goals":[{"name":"g","achievedAt":1},{"name":"g","achievedAt":"1"}]');
($status, $answer) = put('/context/batch', qq({"requests":[$good,$good]}));
is $status, 200, 'batch accepted';
($status, $answer) = put('/context/batch', qq({"requests":[$good,$good,$bad]}));
is $status, 400, 'batch with a bad item refused';
is_deeply [@{$answer->{errors}[0]}{qw(batchIndex eventIndex subject)}], [2, 1, 'goals[1].achievedAt'], 'item named';
is +(put('/context/batch', '{"requests":[' . join(',', ($good) x 500) . ']}'))[0], 200, '500 items accepted';
is +(put('/context/batch', '{"requests":[' . join(',', ($good) x 501) . ']}'))[0], 400, '501 items refused';
is +(put('/context/batch', '{"requests":[]}'))[0], 400, 'no items refused';
is +(put('/context/batch', $good))[0],             400, 'a single request refused';

# Headers
for my $name (qw(X-Agent X-Environment X-Application X-Application-Version Content-Type)) {
    ($status, $answer) = put('/context', $good, $name => undef);
    is $status, 400, "$name is required";
    is $answer->{code}, 400, "$name: code";
    like $answer->{message}, qr/\Q$name/, "$name: message";
}
is +(put('/context', $good, 'X-Application-Version' => $_))[0], 200, "version $_ is fine" for qw(0 17 1.0.0 1.14.0-beta.1);
is +(put('/context', $good, 'X-Application-Version' => $_))[0], 400, "version $_ is not"  for qw(x 1.0 v1.0.0);
is +(put('/context', $good, 'Content-Type' => 'application/json; charset=utf-8'))[0], 200, 'content type with charset';
is +(put('/context', $good, 'Content-Type' => 'text/plain'))[0], 400, 'other content type';

# A large body, and one that is announced
my $large = request('"attributes":[{"name":"a","setAt":1,"value":"' . 'x' x 3_000_000 . '"}]');
is +(put('/context', $large))[0], 200, 'body of 3 MB';
is +(put('/context', $good, Expect => '100-continue'))[0], 200, 'Expect: 100-continue';

# Accepted events only are listed and counted
$collector->forget;
put('/context',       $FULL);
put('/context',       $bad);
put('/context/batch', qq({"requests":[$good,$FULL]}));
my $stats = $collector->stats('/v1');
is_deeply $stats->{events}, {requests => 3, exposures => 2, goals => 5, attributes => 4}, 'events counted';
is_deeply $stats->{refused}, {requests => 1, exposures => 0, goals => 2, attributes => 0}, 'refused events counted';
is_deeply $stats->{goals_by_name}, {g => 5}, 'goals by name';
is scalar($collector->goals), 5, 'goals listed';
is scalar($collector->goals(all => 1)), 7, 'all goals listed';
is scalar($collector->goals(last => 2)), 2, 'last goals listed';
my ($exposure) = $collector->exposures(name => 'exp');
is $exposure->{units}[0]{type}, 'user_id', 'exposure with its units';
is $exposure->{application}, 'shop', 'exposure with its application';
is scalar($collector->publish_requests), 3, 'publish requests listed one by one';
is scalar($collector->publish_requests(accepted => 0)), 4, 'refused ones too';

done_testing;
