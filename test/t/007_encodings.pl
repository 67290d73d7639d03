
# Databases in other encodings than UTF-8: text crosses the boundary in the database's encoding, and hashes stay the same.

use strict;
use warnings;

use AbsmartlyTest;
use Test::More;

# names beyond ASCII: one that LATIN1 has, and one that it has not
my $data = experiments(
	experiment("caf\x{e9}", fullOnVariant => 1, unitType => "us\x{e9}r",
		variants => [ { name => 'A', config => undef }, { name => 'B', config => "{\"gr\x{fc}n\":\"\x{e4}\"}" } ],
		customFieldValues => [ { name => "f\x{e9}ld", type => 'text', value => "v\x{e4}lue" } ]),
	experiment("sn\x{2603}w", id => 2),
	experiment('snow_config', id => 3, fullOnVariant => 1,
		variants => [ { name => 'A', config => undef }, { name => 'B', config => "{\"snow\":\"\x{2603}\"}" } ]),
	experiment('audience', id => 4, audienceStrict => JSON::PP::true, fullOnVariant => 1,
		audience => "{\"filter\":[{\"eq\":[{\"var\":\"city\"},{\"value\":\"K\x{f6}ln\"}]}]}"));
utf8::encode($data);

my $collector = start_collector(data => $data);
my $node = start_node('main', collector => $collector, extension => 0);
my %count;

for my $encoding (qw(UTF8 LATIN1 SQL_ASCII))
{
	my $name = lc $encoding;

	$node->safe_psql('postgres', "CREATE DATABASE $name ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
	create_extension($node, $name);
	ok(wait_ready($node, $name), "$encoding: ready");
	$count{$encoding} = $node->safe_psql($name, 'SELECT count(*) FROM absmartly_experiments');

	my $utf8 = "SET client_encoding = 'UTF8';";
	is($node->safe_psql($name, "$utf8 SELECT absmartly_peek_treatment('{\"us\xc3\xa9r\": 1}', 'caf\xc3\xa9')"), '1', "$encoding: names are found");
	is($node->safe_psql($name, "$utf8 SELECT absmartly_peek_variable_value('{\"us\xc3\xa9r\": 1}', 'gr\xc3\xbcn', ''::text)"), "\xc3\xa4",
		"$encoding: variables come in the database's encoding");
	is($node->safe_psql($name, "$utf8 SELECT absmartly_custom_field_value('caf\xc3\xa9', 'f\xc3\xa9ld')"), "\"v\xc3\xa4lue\"",
		"$encoding: so do custom fields");
	is($node->safe_psql($name, "$utf8 SELECT absmartly_hash_unit('a\xc3\xa7b')"),
		$node->safe_psql('postgres', "SELECT translate(rtrim(encode(decode(md5('a\xc3\xa7b'), 'hex'), 'base64'), '='), '+/', '-_')"),
		"$encoding: hashes are those of UTF-8");
	is($node->safe_psql($name, "$utf8 SELECT absmartly_peek_treatment('{\"user_id\": 1}', 'audience', '{\"city\": \"K\xc3\xb6ln\"}')"), '1',
		"$encoding: attributes are compared as UTF-8");
	is($node->safe_psql($name, "$utf8 SELECT absmartly_peek_treatment('{\"user_id\": 1}', 'audience', '{\"city\": \"Koeln\"}')"), '0',
		"$encoding: and differ where they differ");
	is($node->safe_psql($name, "$utf8 SET absmartly.overrides = '{\"caf\xc3\xa9\": 5}'; SELECT absmartly_peek_treatment('{}', 'caf\xc3\xa9')"), '5',
		"$encoding: overrides are found by name");
	fails_with($node, "$utf8 SET absmartly.overrides = '{\"caf\xc3\xa9\": \"x\"}';", '22023', qr/DETAIL: .*"caf\xc3\xa9" is not an integer/,
		"$encoding: a message names what is wrong in the database's encoding", database => $name);
	fails_with($node, "$utf8 SET absmartly.overrides = '{\"sn\\u2603w\": 1.5}';", '22023', qr/DETAIL: .*"sn(?:\?|\xe2\x98\x83)w" is not an integer/,
		"$encoding: as far as that can", database => $name);
	is($node->safe_psql($name, "$utf8 SELECT convert_from(absmartly_utf8_bytes('\xc3\xa9')::text::bytea, 'UTF8')"), '{195,169}',
		"$encoding: bytes are UTF-8's");
}

is($count{UTF8}, 4, 'UTF8 holds all experiments');
is($count{SQL_ASCII}, 4, 'SQL_ASCII, too');
is($count{LATIN1}, 3, 'LATIN1 leaves the experiment out whose name it lacks');
like(log_of($node), qr/WARNING: .*sn\?w/, 'and says so');
is($node->safe_psql('latin1', q{SELECT absmartly_peek_variable_value('{"user_id": 1}', 'snow', 'none'::text)}), 'none',
	'a config that LATIN1 cannot hold has no variables');
is($node->safe_psql('utf8', q{SELECT absmartly_peek_variable_value('{"user_id": 1}', 'snow', 'none'::text)}), "\xe2\x98\x83",
	'UTF8 has it');
fails_with($node, "SELECT absmartly_hash_unit(E'\\xff');", '22021', qr/invalid byte sequence/, 'SQL_ASCII: what is no UTF-8 is refused',
	database => 'sql_ascii');

$node->stop;
done_testing();
