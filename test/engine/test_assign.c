/*
 * test_assign.c
 *		Tests of hashing, the snapshot compiler and assignment.
 *
 * Called with the folder of the protocol's vectors as its argument; without it
 * only the cases below are run.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "assign.h"
#include "compile.h"
#include "harness.h"
#include "number.h"
#include "tree_value.h"

#define lengthof(array) (sizeof(array) / sizeof((array)[0]))

static const char *vectors;

/* Where tests take their memory; emptied after each of them. */
static Arena arena;
static MatchCache *matches;

/* Work that nobody interrupts */
static Work work;

/* ----------
 * Small helpers
 * ----------
 */

static EngineText
text_of(const char *text)
{
	EngineText result = {text, text == NULL ? 0 : strlen(text)};

	return result;
}

static EngineText
text_of_node(const JsonNode *node)
{
	EngineText result = {json_text(node), node->count};

	return result;
}

static bool
same_text(EngineText text, const char *other)
{
	return text.length == strlen(other) &&
		   memcmp(text.data, other, text.length) == 0;
}

static bool
is_null(const JsonNode *node)
{
	return node == NULL || node->kind == JSON_NULL;
}

/* Parses or gives up: for texts of the tests themselves. */
static const JsonNode *
parse(EngineText text)
{
	const JsonNode *root;
	const char *message;

	if (json_parse(text.data, text.length, ENGINE_MAX_DEPTH, &arena, &root,
				   &message) != ENGINE_OK)
	{
		tap_diag("%.*s: %s", (int) text.length, text.data, message);
		abort();
	}
	return root;
}

static const char *
write_json(const JsonNode *node)
{
	EngineText text;

	if (json_write(node, &arena, &text) != ENGINE_OK)
		abort();
	return text.data;
}

static const char *
string_field(const JsonNode *node, const char *name)
{
	const JsonNode *field = json_get(node, name);

	return field == NULL || field->kind != JSON_STRING ? "" : json_text(field);
}

/* The environment of a case; NULL: not known. */
static const char *
environment_field(const JsonNode *node)
{
	return is_null(json_get(node, "environment"))
			   ? NULL
			   : string_field(node, "environment");
}

static double
number_field(const JsonNode *node, const char *name)
{
	const JsonNode *field = json_get(node, name);

	return field == NULL ? NAN : field->number;
}

static bool
bool_field(const JsonNode *node, const char *name)
{
	const JsonNode *field = json_get(node, name);

	return field != NULL && field->kind == JSON_TRUE;
}

static bool
same_json(const JsonNode *left, const JsonNode *right)
{
	Value left_value;
	Value right_value;
	bool equal = false;

	tree_value(left, &arena, &left_value);
	tree_value(right, &arena, &right_value);
	return value_deep_equal(&left_value, &right_value, &work, &equal) ==
			   ENGINE_OK &&
		   equal;
}

/* The bytes that a field gives in hexadecimal. */
static size_t
hex_field(const JsonNode *node, const char *name, uint8_t **bytes)
{
	const JsonNode *field = json_get(node, name);
	size_t length = field->count / 2;

	*bytes = arena_alloc(&arena, length + 1);
	for (size_t i = 0; i < length; i++)
	{
		char digits[3] = {json_text(field)[2 * i], json_text(field)[2 * i + 1],
						  '\0'};

		(*bytes)[i] = (uint8_t) strtoul(digits, NULL, 16);
	}
	return length;
}

static uint32_t
seed_field(const JsonNode *node, const char *name)
{
	double seed = fmod(number_field(node, name), 4294967296.0);

	return (uint32_t) (seed < 0 ? seed + 4294967296.0 : seed);
}

static const double *
split_field(const JsonNode *node, const char *name, uint32_t *count)
{
	const JsonNode *split = json_get(node, name);
	double *weights = arena_alloc(&arena, (split->count + 1) * sizeof(double));

	for (uint32_t i = 0; i < split->count; i++)
		weights[i] = json_element(split, i)->number;
	*count = split->count;
	return weights;
}

/* The hash of a unit as the SDK sets it; false if it does not count as set. */
static bool
hash_unit_node(const JsonNode *unit, UnitHash *hash)
{
	if (is_null(unit))
		return false;
	if (unit->kind == JSON_NUMBER)
		unit_hash_number(unit->number, hash);
	else
	{
		EngineText text = text_trim(json_text(unit), unit->count, &work);

		unit_hash(text.data, text.length, hash);
	}
	return true;
}

/*
 * Runs a test for each case of a file of vectors.
 */
static void
run_vectors(const char *name, void (*test)(const JsonNode *node))
{
	size_t length;
	char *content = tap_read_file(vectors, name, &length);
	const JsonNode *cases;
	const JsonNode *root;
	const char *message;
	Arena file;

	if (content == NULL)
	{
		tap_skip("no vectors %s", name);
		return;
	}
	arena_init(&file, &arena_malloc_source);
	if (json_parse(content, length, ENGINE_MAX_DEPTH, &file, &root, &message) !=
		ENGINE_OK)
		tap_ok(false, "%s: %s", name, message);
	else
	{
		cases = json_get(root, "cases");
		for (uint32_t i = 0; i < cases->count; i++)
		{
			test(json_element(cases, i));
			arena_release(&arena);
		}
	}
	arena_release(&file);
	free(content);
}

/* ----------
 * A host that stores values as JSON text, and text as it is
 * ----------
 */

typedef struct TestHost
{
	Arena memory;
	EngineStatus forced; /* what to answer when something is refused */
	const char *refused; /* refuse what contains this */
} TestHost;

static EngineStatus
host_store_text(void *context, EngineText text, const void **bytes,
				size_t *length)
{
	TestHost *host = context;
	char *copy = arena_strdup(&host->memory, text.data, text.length);

	if (copy == NULL)
		return ENGINE_NO_MEMORY;
	if (host->refused != NULL && strstr(copy, host->refused) != NULL)
		return host->forced;
	*bytes = copy;
	*length = text.length + 1;
	return ENGINE_OK;
}

static EngineStatus
host_store_json(void *context, const JsonNode *node, const void **bytes,
				size_t *length)
{
	TestHost *host = context;
	EngineText text;

	if (json_write(node, &host->memory, &text) != ENGINE_OK)
		return ENGINE_NO_MEMORY;
	return host_store_text(context, text, bytes, length);
}

static void
host_forget(void *context)
{
	TestHost *host = context;

	arena_release(&host->memory);
}

/* Compiles data into the tests' arena. */
static EngineStatus
compile_with(TestHost *host, EngineText data, const char *environment,
			 CompileResult *result)
{
	SnapshotHost functions = {.context = host,
							  .store_json = host_store_json,
							  .store_text = host_store_text,
							  .forget = host_forget};
	EngineStatus status;

	arena_init(&host->memory, &arena_malloc_source);
	status = snapshot_compile(data, text_of(environment), &functions, &arena,
							  result);
	arena_release(&host->memory);
	return status;
}

static EngineStatus
compile_text(EngineText data, const char *environment, CompileResult *result)
{
	TestHost host = {.forced = ENGINE_OK};

	return compile_with(&host, data, environment, result);
}

/* Compiles data that must compile. */
static const SnapImage *
compile(const char *data, const char *environment)
{
	CompileResult result;

	if (compile_text(text_of(data), environment, &result) != ENGINE_OK)
	{
		tap_ok(false, "compiles: %s", result.message);
		abort();
	}
	return result.snapshot;
}

static const char *
stored_text(const SnapImage *snapshot, SnapStored stored)
{
	return stored.offset == 0 ? "(none)" : snapshot_at(snapshot, stored.offset);
}

/* ----------
 * A client, as far as assignment is concerned
 * ----------
 */

typedef struct Client
{
	const SnapImage *snapshot;
	const JsonNode *units;
	const JsonNode *attributes;
	const JsonNode *overrides;
	const JsonNode *customs;
	SystemAttribute system[3];
	int nsystem;
} Client;

static bool
client_unit(void *context, const SnapExperiment *experiment, UnitHash *hash)
{
	const Client *client = context;
	EngineText type = snapshot_text(client->snapshot, experiment->unit_type);

	return client->units != NULL &&
		   hash_unit_node(json_get_n(client->units, type.data, type.length),
						  hash);
}

static void
client_eval(const Client *client, EvalContext *eval)
{
	memset(eval, 0, sizeof(*eval));
	if (client->attributes != NULL)
		tree_value(client->attributes, &arena, &eval->variables);
	eval->system = client->system;
	eval->nsystem = client->nsystem;
	eval->matches = matches;
}

static EngineStatus
client_assign(Client *client, EngineText name, const SnapExperiment *experiment,
			  Assignment *result, AssignTrace *trace)
{
	AssignRequest request = {0};
	const JsonNode *node;
	EvalContext eval;
	int32_t override;
	int32_t custom;

	client_eval(client, &eval);
	request.snapshot = client->snapshot;
	request.experiment = experiment;
	request.unit = client_unit;
	request.unit_context = client;
	request.eval = &eval;
	request.trace = trace;
	if (client->overrides != NULL &&
		(node = json_get_n(client->overrides, name.data, name.length)) != NULL)
	{
		override = (int32_t) node->number;
		request.override = &override;
	}
	if (client->customs != NULL &&
		(node = json_get_n(client->customs, name.data, name.length)) != NULL)
	{
		custom = (int32_t) node->number;
		request.custom = &custom;
	}
	return assign(&request, result);
}

/* Adds the system's attributes (protocol 8, "Attributes"). */
static void
client_add_system(Client *client, const JsonNode *application,
				  const JsonNode *environment)
{
	const JsonNode *name = application;
	const JsonNode *version = NULL;
	SystemAttribute *next = client->system;

	if (application != NULL && application->kind == JSON_OBJECT)
	{
		name = json_get(application, "name");
		version = json_get(application, "version");
	}
	if (!is_null(name))
	{
		next->name = text_of("application");
		tree_value(name, &arena, &next->value);
		next++;
	}
	if (!is_null(environment))
	{
		next->name = text_of("environment");
		tree_value(environment, &arena, &next->value);
		next++;
	}
	if (version != NULL &&
		((version->kind == JSON_STRING && version->count > 0) ||
		 (version->kind == JSON_NUMBER && version->number > 0)))
	{
		next->name = text_of("app_version");
		tree_value(version, &arena, &next->value);
		next++;
	}
	client->nsystem = (int) (next - client->system);
}

/* ----------
 * Hashing
 * ----------
 */

static bool
md5_is(const void *data, size_t length, const uint8_t *expected)
{
	uint8_t digest[16];

	md5_digest(data, length, digest);
	return memcmp(digest, expected, 16) == 0;
}

static void
md5_case(const JsonNode *node)
{
	uint8_t *input;
	uint8_t *expected;
	size_t length = hex_field(node, "inputHex", &input);
	char text[22];
	uint8_t digest[16];

	hex_field(node, "md5Hex", &expected);
	tap_ok(md5_is(input, length, expected), "%s", string_field(node, "id"));
	md5_digest(input, length, digest);
	tap_ok(base64url_encode(digest, 16, text) == 22 &&
			   memcmp(text, string_field(node, "base64url"), 22) == 0,
		   "%s as base64url", string_field(node, "id"));
}

static void
murmur_case(const JsonNode *node)
{
	uint8_t *input;
	size_t length = hex_field(node, "inputHex", &input);

	tap_ok(murmur3_32(input, length, (uint32_t) number_field(node, "seed")) ==
			   (uint32_t) number_field(node, "hash"),
		   "%s", string_field(node, "id"));
}

static void
base64url_case(const JsonNode *node)
{
	uint8_t *input;
	size_t length = hex_field(node, "inputHex", &input);
	const JsonNode *expected = json_get(node, "encoded");
	char *text = arena_alloc(&arena, base64url_length(length) + 1);
	size_t written = base64url_encode(input, length, text);

	tap_ok(written == expected->count && written == base64url_length(length) &&
			   memcmp(text, json_text(expected), written) == 0,
		   "%s", string_field(node, "id"));
}

static void
utf8_bytes_case(const JsonNode *node)
{
	const JsonNode *text = json_get(node, "text");
	uint8_t *expected;
	size_t length = hex_field(node, "bytesHex", &expected);
	char *result = arena_alloc(&arena, text->count + text->count / 2 + 1);
	size_t written = utf16_unit_bytes(json_text(text), text->count, result);

	tap_ok(written == length && memcmp(result, expected, length) == 0, "%s",
		   string_field(node, "id"));
}

static bool
unit_hash_is(const UnitHash *hash, const char *expected)
{
	return memcmp(hash->text, expected, UNIT_HASH_LENGTH) == 0 &&
		   hash->murmur == murmur3_32(expected, strlen(expected), 0);
}

static void
hash_unit_case(const JsonNode *node)
{
	const JsonNode *unit = json_get(node, "unit");
	UnitHash hash;

	if (unit->kind == JSON_NUMBER)
		unit_hash_number(unit->number, &hash);
	else
		unit_hash(json_text(unit), unit->count, &hash);
	tap_ok(unit_hash_is(&hash, string_field(node, "hash")), "%s",
		   string_field(node, "id"));
}

/* MD5 the slow way: through the streaming code, for any text. */
static void
reference_hash(const char *text, size_t length, char *result)
{
	char *bytes = malloc(length + length / 2 + 1);
	uint8_t digest[16];

	md5_digest(bytes, utf16_unit_bytes(text, length, bytes), digest);
	base64url_encode(digest, 16, result);
	free(bytes);
}

/* The short and the long way, and pieces of any kind, must agree. */
static void
test_hash(void)
{
	static const struct
	{
		const char *text;
		const char *digest;
	} rfc1321[] = {
		{"", "d41d8cd98f00b204e9800998ecf8427e"},
		{"a", "0cc175b9c0f1b6a831c399e269772661"},
		{"abc", "900150983cd24fb0d6963f7d28e17f72"},
		{"message digest", "f96b697d7cb7938d525a2f31aaf161d0"},
		{"abcdefghijklmnopqrstuvwxyz", "c3fcd3d76192e4007dfb496cca67e13b"},
		{"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
		 "d174ab98d277d9f5a5611c2c9f419d9f"},
		{"12345678901234567890123456789012345678901234567890123456789012345678"
		 "901234567890",
		 "57edf4a22be3c955ac49da2e2107b67a"},
	};
	char text[400];
	UnitHash hash;
	bool plain = true;
	bool astral = true;
	bool from_text = true;

	for (size_t i = 0; i < lengthof(rfc1321); i++)
	{
		uint8_t digest[16];
		char hex[33];

		md5_digest(rfc1321[i].text, strlen(rfc1321[i].text), digest);
		for (int j = 0; j < 16; j++)
			sprintf(hex + 2 * j, "%02x", digest[j]);
		tap_ok(strcmp(hex, rfc1321[i].digest) == 0, "RFC 1321: \"%s\"",
			   rfc1321[i].text);
	}

	for (size_t length = 0; length < 300; length++)
	{
		char expected[UNIT_HASH_LENGTH + 1] = {0};

		for (size_t i = 0; i < length; i++)
			text[i] = (char) ('!' + (i * 7 + length) % 90);
		reference_hash(text, length, expected);
		unit_hash(text, length, &hash);
		plain &= unit_hash_is(&hash, expected);
		unit_hash_from_text(expected, UNIT_HASH_LENGTH, &hash);
		from_text &= unit_hash_is(&hash, expected);

		for (size_t at = 0; at + 4 <= length; at += 3)
		{
			char saved[4];

			memcpy(saved, text + at, 4);
			memcpy(text + at, "\xf0\x9f\x98\x80", 4);
			reference_hash(text, length, expected);
			unit_hash(text, length, &hash);
			astral &= unit_hash_is(&hash, expected);
			if (length % 3 == 0)
				memcpy(text + at, saved, 4);
		}
	}
	tap_ok(plain, "unit_hash of plain text of every length");
	tap_ok(astral, "unit_hash of text with characters above U+FFFF");
	tap_ok(from_text, "unit_hash_from_text");

	/* what only looks like a character of four bytes is hashed as it is */
	reference_hash("a\xf0\x9f\x98", 4, text);
	text[UNIT_HASH_LENGTH] = '\0';
	unit_hash("a\xf0\x9f\x98", 4, &hash);
	tap_ok(unit_hash_is(&hash, text) &&
			   utf16_unit_bytes("\xf0\x80\x80\x80\xff", 5, text) == 5,
		   "invalid UTF-8 is taken as it is");

	unit_hash_from_text("abc", 3, &hash);
	tap_ok(hash.murmur == murmur3_32("abc", 3, 0) &&
			   memcmp(hash.text, "abc\0\0", 5) == 0,
		   "unit_hash_from_text of a short text");
}

/* ----------
 * The assigner
 * ----------
 */

static void
assign_case(const JsonNode *node)
{
	uint32_t count;
	const double *split = split_field(node, "split", &count);
	double probability;
	UnitHash hash;

	hash_unit_node(json_get(node, "unit"), &hash);
	tap_ok(unit_hash_is(&hash, string_field(node, "unitHash")), "%s: hash",
		   string_field(node, "id"));
	probability = assign_probability(hash.murmur, seed_field(node, "seedHi"),
									 seed_field(node, "seedLo"));
	tap_ok(probability == number_field(node, "probability"),
		   "%s: probability %.17g", string_field(node, "id"), probability);
	tap_ok(assign_choose(split, count, probability) ==
			   (int) number_field(node, "expected"),
		   "%s: variant", string_field(node, "id"));
}

static void
choose_variant_case(const JsonNode *node)
{
	uint32_t count;
	const double *split = split_field(node, "split", &count);

	tap_ok(assign_choose(split, count, number_field(node, "prob")) ==
			   (int) number_field(node, "expected"),
		   "%s", string_field(node, "id"));
}

static void
holdout_case(const JsonNode *node)
{
	const JsonNode *holdout = json_get(node, "holdout");
	uint32_t count;
	const double *split = split_field(holdout, "split", &count);
	Client client = {0};
	const SnapExperiment *experiment;
	Assignment result;
	double probability;
	const char *data;
	UnitHash hash;
	bool held;

	hash_unit_node(json_get(node, "unit"), &hash);
	probability = assign_probability(hash.murmur, seed_field(holdout, "seedHi"),
									 seed_field(holdout, "seedLo"));
	tap_ok(assign_choose(split, count, probability) ==
			   (int) number_field(node, "index"),
		   "%s: index", string_field(node, "id"));

	data = arena_printf(&arena,
						"{\"holdouts\":[%s],\"experiments\":[{\"id\":1,"
						"\"name\":\"e\",\"unitType\":\"u\",\"split\":[0,1],"
						"\"trafficSplit\":[0,1],\"variants\":[{},{}],"
						"\"holdoutIds\":[77,%.0f]}]}",
						write_json(holdout), number_field(holdout, "id"));
	client.snapshot = compile(data, "production");
	client.units = parse(text_of(arena_printf(
		&arena, "{\"u\":%s}", write_json(json_get(node, "unit")))));
	experiment = snapshot_find_experiment(client.snapshot, "e", 1);
	client_assign(&client, text_of("e"), experiment, &result, NULL);
	held = bool_field(node, "heldOut");
	tap_ok(((result.flags & ASSIGN_HELD_OUT) != 0) == held &&
			   result.variant == (held ? 0 : 1) &&
			   result.holdout_id == (held ? number_field(holdout, "id") : 0),
		   "%s: assignment", string_field(node, "id"));
}

/* ----------
 * Audiences and rules
 * ----------
 */

static void
audience_case(const JsonNode *node)
{
	const JsonNode *expected = json_get(node, "expected");
	const JsonNode *audience = json_get(node, "audience");
	AudienceVerdict wanted = AUDIENCE_NO_VERDICT;
	AudienceVerdict verdict;
	const SnapImage *snapshot;
	EvalContext eval;
	Client client = {0};

	if (expected->kind == JSON_TRUE)
		wanted = AUDIENCE_MATCH;
	else if (expected->kind == JSON_FALSE)
		wanted = AUDIENCE_MISMATCH;
	snapshot = compile(arena_printf(&arena,
									"{\"experiments\":[{\"id\":1,\"name\":"
									"\"e\",\"split\":[],\"trafficSplit\":[],"
									"\"variants\":[],\"audience\":%s}]}",
									write_json(audience)),
					   "");
	client.attributes = json_get(node, "attributes");
	client_eval(&client, &eval);
	tap_ok(assign_audience(snapshot, snapshot_experiment(snapshot, 0), &eval,
						   &verdict) == ENGINE_OK &&
			   verdict == wanted,
		   "%s", string_field(node, "id"));
}

static void
rules_case(const JsonNode *node)
{
	const JsonNode *expected = json_get(node, "expected");
	const JsonNode *effective = json_get(node, "effectiveVariant");
	EngineText variants = {"", 0};
	const SnapExperiment *experiment;
	const SnapImage *snapshot;
	Client client = {0};
	Assignment result;
	EvalContext eval;
	bool applies;
	int32_t variant;
	int position;

	for (int i = 0; i < (int) number_field(node, "variantCount"); i++)
		variants = text_of(
			arena_printf(&arena, "%s%s{}", variants.data, i == 0 ? "" : ","));
	snapshot = compile(
		arena_printf(&arena,
					 "{\"experiments\":[{\"id\":1,\"name\":\"e\",\"split\":[],"
					 "\"trafficSplit\":[],\"variants\":[%s],"
					 "\"assignmentRules\":%s}]}",
					 variants.data,
					 write_json(json_get(node, "assignmentRules"))),
		environment_field(node));
	experiment = snapshot_experiment(snapshot, 0);
	client.snapshot = snapshot;
	client.attributes = json_get(node, "attributes");
	client_eval(&client, &eval);
	tap_ok(assign_rules(snapshot, experiment, &eval, &applies, &variant,
						&position) == ENGINE_OK &&
			   applies == !is_null(expected) &&
			   (!applies || variant == (int32_t) expected->number),
		   "%s: rule", string_field(node, "id"));
	tap_ok(client_assign(&client, text_of("e"), experiment, &result, NULL) ==
				   ENGINE_OK &&
			   ((result.flags & ASSIGN_RULE_OVERRIDE) != 0) ==
				   !is_null(effective) &&
			   (is_null(effective) ||
				result.variant == (int32_t) effective->number),
		   "%s: assignment", string_field(node, "id"));
}

/* ----------
 * Whole assignments
 * ----------
 */

static bool
flag_is(const JsonNode *exposure, const char *name, uint32_t flags,
		uint32_t flag)
{
	return bool_field(exposure, name) == ((flags & flag) != 0);
}

static void
assignments_case(const JsonNode *node)
{
	const JsonNode *source = json_get(node, "experiment");
	const JsonNode *exposure = json_get(node, "exposure");
	const JsonNode *name = json_get(node, "experimentName");
	const SnapExperiment *experiment;
	EngineText unit = {NULL, 0};
	Client client = {0};
	Assignment traced;
	Assignment result;
	AssignTrace trace;
	int64_t id = 0;
	bool ok;

	client.snapshot =
		compile(arena_printf(&arena, "{\"experiments\":[%s]}",
							 is_null(source) ? "" : write_json(source)),
				environment_field(node));
	client.units = json_get(node, "units");
	client.attributes = json_get(node, "attributes");
	client.overrides = json_get(node, "overrides");
	client.customs = json_get(node, "customAssignments");
	if (bool_field(node, "includeSystemAttributes"))
		client_add_system(&client, json_get(node, "application"),
						  json_get(node, "environment"));

	experiment =
		snapshot_find_experiment(client.snapshot, json_text(name), name->count);
	if (experiment != NULL)
	{
		id = experiment->id;
		if ((experiment->flags & SNAP_HAS_UNIT_TYPE) != 0)
			unit = snapshot_text(client.snapshot, experiment->unit_type);
	}
	ok = client_assign(&client, text_of_node(name), experiment, &result,
					   NULL) == ENGINE_OK &&
		 client_assign(&client, text_of_node(name), experiment, &traced,
					   &trace) == ENGINE_OK;
	tap_ok(ok && result.variant == (int32_t) number_field(node, "treatment") &&
			   result.variant == traced.variant && result.flags == traced.flags,
		   "%s: treatment (%s)", string_field(node, "id"),
		   string_field(node, "name"));
	if (is_null(exposure))
		return;
	ok =
		(double) id == number_field(exposure, "id") &&
		result.variant == (int32_t) number_field(exposure, "variant") &&
		(unit.data == NULL ? is_null(json_get(exposure, "unit"))
						   : same_text(unit, string_field(exposure, "unit"))) &&
		flag_is(exposure, "assigned", result.flags, ASSIGN_ASSIGNED) &&
		flag_is(exposure, "eligible", result.flags, ASSIGN_ELIGIBLE) &&
		flag_is(exposure, "overridden", result.flags, ASSIGN_OVERRIDDEN) &&
		flag_is(exposure, "fullOn", result.flags, ASSIGN_FULL_ON) &&
		flag_is(exposure, "custom", result.flags, ASSIGN_CUSTOM) &&
		flag_is(exposure, "audienceMismatch", result.flags,
				ASSIGN_AUDIENCE_MISMATCH) &&
		flag_is(exposure, "ruleOverride", result.flags, ASSIGN_RULE_OVERRIDE);
	tap_ok(ok, "%s: exposure (%s)", string_field(node, "id"),
		   string_field(node, "name"));
}

/*
 * variableValue() (protocol 4); exposures are counted off against the
 * expected list.
 */
static const char *
variable_value(Client *client, EngineText key, const JsonNode *exposures,
			   bool *exposures_fit)
{
	const SnapVariable *variable =
		snapshot_find_variable(client->snapshot, key.data, key.length);
	const uint32_t *indexes;
	uint32_t exposed = 0;

	*exposures_fit = true;
	if (variable == NULL)
		return NULL;
	indexes = snapshot_at(client->snapshot, variable->experiments);
	for (uint32_t i = 0; i < variable->nexperiments; i++)
	{
		const SnapExperiment *experiment =
			snapshot_experiment(client->snapshot, indexes[i]);
		EngineText name = snapshot_text(client->snapshot, experiment->name);
		const JsonNode *expected;
		const SnapStored *value;
		Assignment result;

		if (client_assign(client, name, experiment, &result, NULL) != ENGINE_OK)
			abort();
		if (result.variant < 0 ||
			(uint32_t) result.variant >= experiment->nvariants)
			continue;
		if (exposed >= exposures->count)
			*exposures_fit = false;
		else
		{
			expected = json_element(exposures, exposed++);
			*exposures_fit &=
				same_text(name, string_field(expected, "name")) &&
				result.variant == (int32_t) number_field(expected, "variant") &&
				flag_is(expected, "assigned", result.flags, ASSIGN_ASSIGNED);
		}
		value = snapshot_variant_value(
			client->snapshot,
			snapshot_variant(client->snapshot, experiment,
							 (uint32_t) result.variant),
			variable);
		if (value != NULL &&
			(result.flags &
			 (ASSIGN_ASSIGNED | ASSIGN_OVERRIDDEN | ASSIGN_RULE_OVERRIDE)) != 0)
		{
			*exposures_fit &= exposed == exposures->count;
			return stored_text(client->snapshot, *value);
		}
	}
	*exposures_fit &= exposed == exposures->count;
	return NULL;
}

/* Whether variableKeys() gives this. */
static bool
variable_keys_are(const SnapImage *snapshot, const JsonNode *expected)
{
	const SnapVariable *variables = snapshot_at(snapshot, snapshot->variables);

	if (expected->count != snapshot->nvariables)
		return false;
	for (uint32_t i = 0; i < expected->count; i++)
	{
		const JsonNode *names = json_member_value(expected, i);
		const uint32_t *indexes =
			snapshot_at(snapshot, variables[i].experiments);

		if (!same_text(snapshot_text(snapshot, variables[i].key),
					   json_text(json_member_name(expected, i))) ||
			names->count != variables[i].nexperiments)
			return false;
		for (uint32_t j = 0; j < names->count; j++)
		{
			const SnapExperiment *experiment =
				snapshot_experiment(snapshot, indexes[j]);

			if (!same_text(snapshot_text(snapshot, experiment->name),
						   json_text(json_element(names, j))))
				return false;
		}
	}
	return true;
}

static void
variables_case(const JsonNode *node)
{
	Client client = {0};
	const char *found;
	bool exposures_fit;

	client.snapshot =
		compile(arena_printf(&arena, "{\"experiments\":%s}",
							 write_json(json_get(node, "experiments"))),
				"production");
	client.units = json_get(node, "units");
	client.attributes = json_get(node, "attributes");
	client.overrides = json_get(node, "overrides");
	client.customs = json_get(node, "customAssignments");
	found = variable_value(&client, text_of_node(json_get(node, "key")),
						   json_get(node, "exposures"), &exposures_fit);
	tap_ok(same_json(json_get(node, "expected"), found == NULL
													 ? json_get(node, "default")
													 : parse(text_of(found))),
		   "%s: value (%s)", string_field(node, "id"),
		   string_field(node, "name"));
	tap_ok(exposures_fit, "%s: exposures (%s)", string_field(node, "id"),
		   string_field(node, "name"));
	if (json_get(node, "variableKeys") != NULL)
		tap_ok(
			variable_keys_are(client.snapshot, json_get(node, "variableKeys")),
			"%s: keys (%s)", string_field(node, "id"),
			string_field(node, "name"));
}

static void
custom_fields_case(const JsonNode *node)
{
	const JsonNode *name = json_get(node, "field");
	const JsonNode *expected = json_get(node, "expected");
	const JsonNode *expected_type = json_get(node, "expectedType");
	const SnapExperiment *experiment;
	const SnapImage *snapshot;
	const SnapField *field = NULL;
	bool ok;

	snapshot =
		compile(arena_printf(&arena,
							 "{\"experiments\":[{\"id\":1,\"name\":\"e\","
							 "\"split\":[],\"trafficSplit\":[],\"variants\":[],"
							 "\"customFieldValues\":%s}]}",
							 write_json(json_get(node, "customFieldValues"))),
				"");
	experiment =
		snapshot_find_experiment(snapshot, string_field(node, "experiment"),
								 json_get(node, "experiment")->count);
	if (experiment != NULL)
		field = snapshot_find_field(snapshot, experiment, json_text(name),
									name->count);
	if (field == NULL)
		ok = is_null(expected) && is_null(expected_type);
	else
	{
		ok = same_text(snapshot_text(snapshot, field->type),
					   string_field(node, "expectedType")) &&
			 strcmp(stored_text(snapshot, field->type_text),
					string_field(node, "expectedType")) == 0;
		if (field->state == SNAP_FIELD_VALUE)
			ok = ok &&
				 same_json(expected,
						   parse(text_of(stored_text(snapshot, field->value))));
		else
			ok = ok && is_null(expected) &&
				 (field->state == SNAP_FIELD_NAN) ==
					 bool_field(node, "expectedNaN");
	}
	tap_ok(ok, "%s", string_field(node, "id"));
}

/* ----------
 * Broken data
 * ----------
 */

static const struct
{
	const char *name;
	const char *value;
} usual_fields[] = {
	{"id", "1"},
	{"name", "\"e\""},
	{"unitType", "\"u\""},
	{"iteration", "1"},
	{"seedHi", "3603515"},
	{"seedLo", "233373850"},
	{"split", "[0.5,0.5]"},
	{"trafficSeedHi", "449867249"},
	{"trafficSeedLo", "455443629"},
	{"trafficSplit", "[0,1]"},
	{"fullOnVariant", "0"},
	{"applications", "[{\"name\":\"website\"}]"},
	{"variants", "[{\"name\":\"A\",\"config\":null},"
				 "{\"name\":\"B\",\"config\":\"{\\\"k\\\":\\\"b\\\"}\"}]"},
	{"audience", "null"},
	{"audienceStrict", "false"},
	{"customFieldValues", "null"},
};

/* The usual experiment with one field changed, or left out (value NULL). */
static const char *
experiment_with(const char *field, const char *value)
{
	const char *text = "";
	bool known = false;

	for (size_t i = 0; i < lengthof(usual_fields); i++)
	{
		const char *usual = usual_fields[i].value;

		if (field != NULL && strcmp(usual_fields[i].name, field) == 0)
		{
			known = true;
			usual = value;
		}
		if (usual != NULL)
			text = arena_printf(&arena, "%s%s\"%s\":%s", text,
								*text == '\0' ? "" : ",", usual_fields[i].name,
								usual);
	}
	if (field != NULL && value != NULL && !known)
		text = arena_printf(&arena, "%s,\"%s\":%s", text, field, value);
	return arena_printf(&arena, "{%s}", text);
}

static int
count_warnings(const CompileResult *result)
{
	int count = 0;

	for (const CompileWarning *warning = result->warnings; warning != NULL;
		 warning = warning->next)
		count++;
	return count;
}

/* What becomes of an experiment with one unusual field */
typedef enum Outcome
{
	KEPT, /* without a word */
	WARNED, /* kept, with one warning */
	LEFT_OUT /* left out, with one warning that names the field */
} Outcome;

static void
test_broken_fields(void)
{
	static const struct
	{
		const char *field;
		const char *value;
		Outcome outcome;
	} cases[] = {
		{NULL, NULL, KEPT},
		{"unknown", "[{}]", KEPT},
		{"id", "null", LEFT_OUT},
		{"id", NULL, LEFT_OUT},
		{"id", "\"1\"", LEFT_OUT},
		{"id", "1.5", LEFT_OUT},
		{"id", "-1", LEFT_OUT},
		{"id", "2147483648", LEFT_OUT},
		{"id", "2147483647", KEPT},
		{"id", "0", KEPT},
		{"id", "1.0", KEPT},
		{"id", "1e400", LEFT_OUT},
		{"name", "null", LEFT_OUT},
		{"name", NULL, LEFT_OUT},
		{"name", "5", LEFT_OUT},
		{"name", "[]", LEFT_OUT},
		{"unitType", "null", KEPT},
		{"unitType", NULL, KEPT},
		{"unitType", "5", LEFT_OUT},
		{"unitType", "{}", LEFT_OUT},
		{"iteration", "null", KEPT},
		{"iteration", NULL, KEPT},
		{"iteration", "1.5", LEFT_OUT},
		{"iteration", "\"1\"", LEFT_OUT},
		{"seedHi", "null", KEPT},
		{"seedHi", NULL, KEPT},
		{"seedHi", "-1", KEPT},
		{"seedHi", "1099511627776", KEPT},
		{"seedHi", "1e400", KEPT},
		{"seedHi", "0.5", LEFT_OUT},
		{"seedHi", "\"1\"", LEFT_OUT},
		{"seedHi", "true", LEFT_OUT},
		{"seedLo", "[]", LEFT_OUT},
		{"trafficSeedHi", "1.25", LEFT_OUT},
		{"trafficSeedLo", "{}", LEFT_OUT},
		{"split", "null", LEFT_OUT},
		{"split", NULL, LEFT_OUT},
		{"split", "0.5", LEFT_OUT},
		{"split", "{}", LEFT_OUT},
		{"split", "[0.5,null]", LEFT_OUT},
		{"split", "[0.5,\"0.5\"]", LEFT_OUT},
		{"split", "[]", KEPT},
		{"split", "[-1,1e400]", KEPT},
		{"trafficSplit", "null", LEFT_OUT},
		{"trafficSplit", NULL, LEFT_OUT},
		{"trafficSplit", "[0,true]", LEFT_OUT},
		{"trafficSplit", "[]", KEPT},
		{"trafficSplit", "[1]", KEPT},
		{"trafficSplit", "[0,0,1]", KEPT},
		{"fullOnVariant", "null", KEPT},
		{"fullOnVariant", NULL, KEPT},
		{"fullOnVariant", "1", KEPT},
		{"fullOnVariant", "0.5", LEFT_OUT},
		{"fullOnVariant", "\"1\"", LEFT_OUT},
		{"fullOnVariant", "4294967296", LEFT_OUT},
		{"applications", "5", KEPT},
		{"variants", "null", LEFT_OUT},
		{"variants", NULL, LEFT_OUT},
		{"variants", "{}", LEFT_OUT},
		{"variants", "[null]", LEFT_OUT},
		{"variants", "[[]]", LEFT_OUT},
		{"variants", "[]", KEPT},
		{"variants", "[{},{}]", KEPT},
		{"variants", "[{\"name\":5},{\"config\":\"\"}]", KEPT},
		{"variants", "[{\"config\":\"{}\"}]", KEPT},
		{"variants", "[{\"config\":\" {\\\"a\\\":1} \"}]", KEPT},
		{"variants", "[{\"config\":\"null\"}]", WARNED},
		{"variants", "[{\"config\":\"[]\"}]", WARNED},
		{"variants", "[{\"config\":\"5\"}]", WARNED},
		{"variants", "[{\"config\":\"{\"}]", WARNED},
		{"variants", "[{\"config\":\"{\\\"a\\\":01}\"}]", WARNED},
		{"variants", "[{\"config\":\"{\\\"a\\\":NaN}\"}]", WARNED},
		{"variants", "[{\"config\":\" \"}]", WARNED},
		{"variants", "[{\"config\":{\"a\":1}}]", WARNED},
		{"variants", "[{\"config\":false}]", WARNED},
		{"audience", NULL, KEPT},
		{"audience", "\"\"", KEPT},
		{"audience", "5", KEPT},
		{"audience", "\"{\"", KEPT},
		{"audience", "{\"filter\":[]}", KEPT},
		{"audienceStrict", NULL, KEPT},
		{"audienceStrict", "\"yes\"", KEPT},
		{"assignmentRules", "null", KEPT},
		{"assignmentRules", "5", KEPT},
		{"assignmentRules", "\"\"", KEPT},
		{"assignmentRules", "\"{\"", KEPT},
		{"holdoutIds", "null", KEPT},
		{"holdoutIds", "[]", KEPT},
		{"holdoutIds", "[1,\"2\",null,1.5]", KEPT},
		{"holdoutIds", "1", WARNED},
		{"customFieldValues", NULL, KEPT},
		{"customFieldValues", "[]", KEPT},
		{"customFieldValues", "{}", WARNED},
		{"customFieldValues", "[null]", WARNED},
		{"customFieldValues", "[{\"type\":\"string\",\"value\":\"x\"}]",
		 WARNED},
		{"customFieldValues", "[{\"name\":\"f\",\"value\":\"x\"}]", WARNED},
		{"customFieldValues",
		 "[{\"name\":\"f\",\"type\":\"date\",\"value\":\"x\"}]", WARNED},
		{"customFieldValues",
		 "[{\"name\":\"f\",\"type\":\"json\",\"value\":\"{\"}]", WARNED},
		{"customFieldValues",
		 "[{\"name\":\"f\",\"type\":\"number\",\"value\":\"x\"}]", KEPT},
		{"customFieldValues", "[{\"name\":\"f\",\"type\":\"number\"}]", KEPT},
	};

	for (size_t i = 0; i < lengthof(cases); i++)
	{
		bool left_out = cases[i].outcome == LEFT_OUT;
		CompileResult result;
		bool ok;

		ok = compile_text(text_of(arena_printf(
							  &arena, "{\"experiments\":[%s,%s]}",
							  experiment_with(cases[i].field, cases[i].value),
							  experiment_with("name", "\"other\""))),
						  "production", &result) == ENGINE_OK;
		ok = ok && count_warnings(&result) == (cases[i].outcome != KEPT);
		ok = ok && result.snapshot->nleft_out == left_out &&
			 result.snapshot->nexperiments == (left_out ? 1 : 2) &&
			 snapshot_find_experiment(result.snapshot, "other", 5) != NULL;
		if (ok && left_out)
			ok = strstr(result.warnings->text,
						arena_printf(&arena, "\"%s\"", cases[i].field)) != NULL;
		if (ok && left_out && strcmp(cases[i].field, "name") != 0)
			ok = strstr(result.warnings->text, "experiment \"e\"") != NULL;
		tap_ok(ok, "field %s: %s",
			   cases[i].field == NULL ? "(none)" : cases[i].field,
			   cases[i].value == NULL ? "(absent)" : cases[i].value);
		if (!ok && result.warnings != NULL)
			tap_diag("%s", result.warnings->text);
		arena_release(&arena);
	}
}

/* What counts as strict, by JavaScript's rules. */
static void
test_audience_strict(void)
{
	static const struct
	{
		const char *value;
		bool strict;
	} cases[] = {{"true", true},  {"1", true},       {"-0.5", true},
				 {"1e400", true}, {"\"yes\"", true}, {"\"false\"", true},
				 {"[]", true},    {"{}", true},      {"false", false},
				 {"null", false}, {NULL, false},     {"0", false},
				 {"-0.0", false}, {"0e9", false},    {"\"\"", false}};

	for (size_t i = 0; i < lengthof(cases); i++)
	{
		const SnapExperiment *experiment = NULL;
		CompileResult result;

		if (compile_text(text_of(arena_printf(&arena, "{\"experiments\":[%s]}",
											  experiment_with("audienceStrict",
															  cases[i].value))),
						 "production", &result) == ENGINE_OK)
			experiment = snapshot_find_experiment(result.snapshot, "e", 1);
		tap_ok(experiment != NULL &&
				   ((experiment->flags & SNAP_AUDIENCE_STRICT) != 0) ==
					   cases[i].strict,
			   "audienceStrict %s",
			   cases[i].value == NULL ? "(absent)" : cases[i].value);
	}
}

/* The data as a whole. */
static void
test_whole_data(void)
{
	static const struct
	{
		const char *data;
		EngineStatus status;
	} cases[] = {
		{"{}", ENGINE_OK},
		{"{\"experiments\":null}", ENGINE_OK},
		{"{\"experiments\":[]}", ENGINE_OK},
		{"{\"experiments\":[],\"holdouts\":null}", ENGINE_OK},
		{" {\"other\":[1,2.5e3]} ", ENGINE_OK},
		{"", ENGINE_MALFORMED},
		{"[]", ENGINE_MALFORMED},
		{"null", ENGINE_MALFORMED},
		{"5", ENGINE_MALFORMED},
		{"{\"experiments\":{}}", ENGINE_MALFORMED},
		{"{\"experiments\":\"\"}", ENGINE_MALFORMED},
		{"{\"experiments\":[]", ENGINE_MALFORMED},
		{"{\"experiments\":[]}}", ENGINE_MALFORMED},
		{"\xef\xbb\xbf{}", ENGINE_MALFORMED},
		{"<html></html>", ENGINE_MALFORMED},
	};
	CompileResult result;
	char deep[600];

	for (size_t i = 0; i < lengthof(cases); i++)
	{
		EngineStatus status =
			compile_text(text_of(cases[i].data), "production", &result);
		bool ok = status == cases[i].status;

		if (status == ENGINE_OK)
			ok = ok && result.snapshot->nexperiments == 0 &&
				 snapshot_find_experiment(result.snapshot, "e", 1) == NULL &&
				 snapshot_find_variable(result.snapshot, "k", 1) == NULL &&
				 same_text(snapshot_text(result.snapshot, result.snapshot->raw),
						   cases[i].data);
		else
			ok = ok && result.snapshot == NULL && result.message != NULL;
		tap_ok(ok, "data: %s", cases[i].data);
		arena_release(&arena);
	}

	strcpy(deep, "{\"x\":");
	memset(deep + 5, '[', 128);
	memset(deep + 5 + 128, ']', 128);
	strcpy(deep + 5 + 256, "}");
	tap_ok(compile_text(text_of(deep), "", &result) == ENGINE_TOO_DEEP &&
			   result.message != NULL,
		   "data that is nested too deep");
	arena_release(&arena);
}

/* A name of n times the letter, as a JSON string. */
static const char *
long_name(char letter, int length)
{
	char *name = arena_alloc(&arena, (size_t) length + 3);

	memset(name, letter, (size_t) length + 2);
	name[0] = name[length + 1] = '"';
	return name;
}

static void
test_names(void)
{
	CompileResult result;
	const SnapImage *snapshot;
	const SnapExperiment *experiment;
	const char *name;
	const char *config;

	for (int extra = 0; extra < 2; extra++)
	{
		uint32_t kept = extra == 0 ? 1 : 0;

		name = long_name('n', ENGINE_MAX_NAME + extra);
		compile_text(text_of(arena_printf(&arena, "{\"experiments\":[%s]}",
										  experiment_with("name", name))),
					 "", &result);
		tap_ok(result.snapshot->nexperiments == kept &&
				   count_warnings(&result) == extra,
			   "experiment's name of %d bytes", ENGINE_MAX_NAME + extra);
		compile_text(text_of(arena_printf(&arena, "{\"experiments\":[%s]}",
										  experiment_with("unitType", name))),
					 "", &result);
		tap_ok(result.snapshot->nexperiments == kept &&
				   count_warnings(&result) == extra,
			   "unit type of %d bytes", ENGINE_MAX_NAME + extra);

		config = arena_printf(&arena,
							  "[{\"config\":\"{\\\"%.*s\\\":1,\\\"x\\\":2}\"}]",
							  ENGINE_MAX_NAME + extra, name + 1);
		compile_text(text_of(arena_printf(&arena, "{\"experiments\":[%s]}",
										  experiment_with("variants", config))),
					 "", &result);
		tap_ok(result.snapshot->nvariables == 2 * kept &&
				   count_warnings(&result) == extra,
			   "variable of %d bytes", ENGINE_MAX_NAME + extra);
		compile_text(text_of(arena_printf(
						 &arena, "{\"experiments\":[%s]}",
						 experiment_with("customFieldValues",
										 arena_printf(&arena,
													  "[{\"name\":%s,\"type\":"
													  "\"string\"}]",
													  name)))),
					 "", &result);
		tap_ok(result.snapshot->nfield_keys == kept &&
				   count_warnings(&result) == extra,
			   "custom field's name of %d bytes", ENGINE_MAX_NAME + extra);
		arena_release(&arena);
	}

	/* warnings quote no control characters and no more than is useful */
	compile_text(text_of("{\"experiments\":[{\"name\":\"a\\nb\\u0000c\"}]}"),
				 "", &result);
	tap_ok(strstr(result.warnings->text, "\"a?b?c\"") != NULL,
		   "control characters in a warning");

	snapshot = compile("{\"experiments\":[{\"id\":1,\"name\":\"\",\"split\":[],"
					   "\"trafficSplit\":[],\"variants\":[],"
					   "\"unitType\":\"\"},{\"id\":2,\"name\":\"a\\u0000b\","
					   "\"split\":[],\"trafficSplit\":[],\"variants\":[]}]}",
					   "");
	experiment = snapshot_find_experiment(snapshot, "", 0);
	tap_ok(experiment != NULL && experiment->id == 1 &&
			   (experiment->flags & SNAP_HAS_UNIT_TYPE) != 0,
		   "empty names");
	experiment = snapshot_find_experiment(snapshot, "a\0b", 3);
	tap_ok(experiment != NULL && experiment->id == 2 &&
			   snapshot_find_experiment(snapshot, "a", 1) == NULL,
		   "a name with U+0000");
	arena_release(&arena);
}

/* What the host cannot hold counts as broken. */
static void
test_unstorable(void)
{
	static const struct
	{
		const char *field;
		const char *value;
		bool left_out;
	} cases[] = {
		{"name", "\"xBADx\"", true},
		{"unitType", "\"BAD\"", true},
		{"variants", "[{\"config\":\"{\\\"k\\\":\\\"BAD\\\",\\\"l\\\":1}\"}]",
		 false},
		{"variants", "[{\"config\":\"{\\\"BAD\\\":1}\"}]", false},
		{"customFieldValues",
		 "[{\"name\":\"f\",\"type\":\"string\",\"value\":\"BAD\"}]", false},
		{"customFieldValues", "[{\"name\":\"BAD\",\"type\":\"string\"}]",
		 false},
		{"customFieldValues", "[{\"name\":\"f\",\"type\":\"BAD\"}]", false},
	};

	for (size_t i = 0; i < lengthof(cases); i++)
	{
		EngineText data = text_of(
			arena_printf(&arena, "{\"experiments\":[%s,%s]}",
						 experiment_with(cases[i].field, cases[i].value),
						 experiment_with("name", "\"other\"")));
		TestHost host = {.forced = ENGINE_UNSTORABLE, .refused = "BAD"};
		CompileResult result;
		const SnapExperiment *experiment;
		bool ok;

		ok = compile_with(&host, data, "", &result) == ENGINE_OK &&
			 count_warnings(&result) == 1 &&
			 result.snapshot->nleft_out == cases[i].left_out;
		experiment = snapshot_find_experiment(result.snapshot, "e", 1);
		if (ok && !cases[i].left_out)
		{
			ok = experiment != NULL && result.snapshot->nvariables == 1;
			if (ok && strcmp(cases[i].field, "variants") == 0)
				ok = snapshot_variant(result.snapshot, experiment, 0)
							 ->nmembers == 0 &&
					 strcmp(stored_text(
								result.snapshot,
								snapshot_variant(result.snapshot, experiment, 0)
									->variables),
							"{}") == 0;
		}
		tap_ok(ok, "unstorable %s", cases[i].value);

		host.forced = ENGINE_NO_MEMORY;
		tap_ok(compile_with(&host, data, "", &result) == ENGINE_NO_MEMORY &&
				   result.snapshot == NULL && result.message == NULL,
			   "host without memory for %s", cases[i].value);
		arena_release(&arena);
	}
}

/* ----------
 * What the compiler makes of sound data
 * ----------
 */

static const char realistic[] =
	"{\"holdouts\":[{\"id\":1,\"seedHi\":90210,\"seedLo\":4711,"
	"\"split\":[0.1,0.9]},{\"id\":2,\"seedHi\":1,\"seedLo\":2,\"split\":[1,0]},"
	"{\"id\":3,\"split\":[0,1]}],\"experiments\":["
	"{\"id\":7,\"name\":\"checkout\",\"unitType\":\"user_id\",\"iteration\":3,"
	"\"seedHi\":-55006150,\"seedLo\":47189152,\"split\":[0.34,0.33,0.33],"
	"\"trafficSeedHi\":705671872,\"trafficSeedLo\":212903484,"
	"\"trafficSplit\":[0.2,0.8],\"fullOnVariant\":0,\"applications\":["
	"{\"name\":\"website\"}],\"variants\":[{\"name\":\"A\",\"config\":\"\"},"
	"{\"name\":\"B\",\"config\":\"{\\\"b\\\":1,\\\"a\\\":{\\\"x\\\":[1,2]},"
	"\\\"c\\\":null}\"},{\"config\":\"{\\\"c\\\":\\\"\\\\u00e9\\\"}\"}],"
	"\"audience\":\"{\\\"filter\\\":[{\\\"gte\\\":[{\\\"var\\\":\\\"age\\\"},"
	"{\\\"value\\\":20}]},{\\\"match\\\":[{\\\"var\\\":\\\"lang\\\"},"
	"{\\\"value\\\":\\\"^en-?\\\"}]}]}\",\"audienceStrict\":true,"
	"\"assignmentRules\":\"{\\\"rules\\\":[{\\\"type\\\":\\\"assign\\\","
	"\\\"variant\\\":1,\\\"environments\\\":[\\\"staging\\\"]},"
	"{\\\"type\\\":\\\"assign\\\",\\\"variant\\\":2,\\\"name\\\":\\\"staff\\\","
	"\\\"conditions\\\":{\\\"eq\\\":[{\\\"var\\\":\\\"staff\\\"},"
	"{\\\"value\\\":true}]}}]}\",\"holdoutIds\":[3,9,1],"
	"\"customFieldValues\":[{\"name\":\"owner\",\"type\":\"string\","
	"\"value\":\"ann\"},{\"name\":\"size\",\"type\":\"number\","
	"\"value\":\"0x10\"},{\"name\":\"owner\",\"type\":\"text\","
	"\"value\":\"bob\"},{\"name\":\"meta\",\"type\":\"json\","
	"\"value\":\"{\\\"k\\\":[1.50,-0]}\"},{\"name\":\"on\","
	"\"type\":\"boolean\",\"value\":\"true\"}]},"
	"{\"id\":3,\"name\":\"banner\",\"unitType\":\"session_id\",\"iteration\":1,"
	"\"seedHi\":1,\"seedLo\":2,\"split\":[0.5,0.5],\"trafficSeedHi\":3,"
	"\"trafficSeedLo\":4,\"trafficSplit\":[0,1],\"fullOnVariant\":0,"
	"\"variants\":[{\"config\":\"{\\\"a\\\":1}\"},"
	"{\"config\":\"{\\\"z\\\":1,\\\"a\\\":2}\"}],"
	"\"customFieldValues\":[{\"name\":\"size\",\"type\":\"number\","
	"\"value\":\"big\"},{\"name\":\"extra\",\"type\":\"string\","
	"\"value\":null}]},"
	"{\"id\":5,\"name\":\"banner\",\"unitType\":\"user_id\",\"iteration\":1,"
	"\"seedHi\":1,\"seedLo\":2,\"split\":[0.5,0.5],\"trafficSeedHi\":3,"
	"\"trafficSeedLo\":4,\"trafficSplit\":[0,1],\"fullOnVariant\":1,"
	"\"variants\":[{},{\"config\":\"{\\\"a\\\":3}\"}],\"holdoutIds\":[2]}]}";

/* Whether a variable's experiments, as ids, are these. */
static bool
variable_ids_are(const SnapImage *snapshot, const char *key, const int *ids,
				 uint32_t count)
{
	const SnapVariable *variable =
		snapshot_find_variable(snapshot, key, strlen(key));
	const uint32_t *indexes;

	if (variable == NULL || variable->nexperiments != count)
		return false;
	indexes = snapshot_at(snapshot, variable->experiments);
	for (uint32_t i = 0; i < count; i++)
	{
		if (snapshot_experiment(snapshot, indexes[i])->id != ids[i])
			return false;
	}
	return true;
}

static void
test_snapshot(void)
{
	const SnapImage *snapshot = compile(realistic, "production");
	const SnapExperiment *checkout =
		snapshot_find_experiment(snapshot, "checkout", 8);
	const SnapExperiment *banner =
		snapshot_find_experiment(snapshot, "banner", 6);
	const SnapName *names;
	const SnapRule *rule;
	const SnapField *field;
	const uint32_t *indexes;
	const SnapVariant *variant;
	const SnapStored *value;
	AssignTrace trace;
	Assignment result;
	Client client = {0};

	tap_ok(snapshot->magic == SNAPSHOT_MAGIC && snapshot->nexperiments == 3 &&
			   snapshot->nleft_out == 0 && snapshot->has_holdouts &&
			   snapshot->nholdouts == 3,
		   "snapshot: header");
	tap_ok(same_text(snapshot_text(snapshot, snapshot->raw), realistic) &&
			   same_text(snapshot_text(snapshot, snapshot->environment),
						 "production"),
		   "snapshot: text and environment");
	tap_ok(checkout == snapshot_experiment(snapshot, 0) &&
			   banner == snapshot_experiment(snapshot, 2),
		   "snapshot: of equal names the later one is found");
	tap_ok((snapshot_experiment(snapshot, 1)->flags & SNAP_SHADOWED) != 0 &&
			   (banner->flags & SNAP_SHADOWED) == 0,
		   "snapshot: the earlier one is marked");
	tap_ok(checkout->split.seed_hi == UINT32_C(4294967296) - 55006150 &&
			   checkout->split.seed_lo == 47189152 &&
			   checkout->traffic.seed_hi == 705671872 &&
			   checkout->traffic.seed_lo == 212903484 &&
			   checkout->split.count == 3 && checkout->traffic.count == 2,
		   "snapshot: seeds and splits");
	tap_ok(checkout->iteration == 3 && checkout->nvariants == 3 &&
			   (checkout->flags & SNAP_AUDIENCE_STRICT) != 0 &&
			   (checkout->flags & SNAP_ALL_TRAFFIC) == 0 &&
			   (banner->flags & SNAP_ALL_TRAFFIC) != 0 &&
			   checkout->audience != 0 && banner->audience == 0 &&
			   banner->audience_text.offset == 0,
		   "snapshot: flags");

	names = snapshot_at(snapshot, snapshot->unit_types);
	tap_ok(
		snapshot->nunit_types == 2 &&
			same_text(snapshot_text(snapshot, names[0].name), "user_id") &&
			same_text(snapshot_text(snapshot, names[1].name), "session_id") &&
			strcmp(stored_text(snapshot, names[1].text), "session_id") == 0 &&
			checkout->unit_slot == 0 && banner->unit_slot == 0 &&
			snapshot_experiment(snapshot, 1)->unit_slot == 1,
		"snapshot: unit types");
	names = snapshot_at(snapshot, snapshot->field_keys);
	tap_ok(snapshot->nfield_keys == 5 &&
			   same_text(snapshot_text(snapshot, names[0].name), "owner") &&
			   same_text(snapshot_text(snapshot, names[1].name), "size") &&
			   same_text(snapshot_text(snapshot, names[2].name), "meta") &&
			   same_text(snapshot_text(snapshot, names[3].name), "on") &&
			   same_text(snapshot_text(snapshot, names[4].name), "extra"),
		   "snapshot: custom field keys");

	rule = snapshot_at(snapshot, checkout->rules);
	tap_ok(checkout->nrules == 1 && rule->position == 1 && rule->variant == 2 &&
			   rule->conditions != 0 &&
			   same_text(snapshot_text(snapshot, rule->name), "staff"),
		   "snapshot: rules of the environment");
	indexes = snapshot_at(snapshot, checkout->holdouts);
	tap_ok(checkout->nholdouts == 2 && indexes[0] == 2 && indexes[1] == 0,
		   "snapshot: holdouts in the order of the ids");

	tap_ok(checkout->nfields == 5 &&
			   (field = snapshot_find_field(snapshot, checkout, "owner", 5)) !=
				   NULL &&
			   strcmp(stored_text(snapshot, field->value), "\"ann\"") == 0,
		   "snapshot: the first of equal custom fields");
	field = snapshot_find_field(snapshot, checkout, "size", 4);
	tap_ok(strcmp(stored_text(snapshot, field->value), "16") == 0,
		   "snapshot: number field");
	field = snapshot_find_field(snapshot, checkout, "meta", 4);
	tap_ok(strcmp(stored_text(snapshot, field->value), "{\"k\":[1.50,-0]}") ==
			   0,
		   "snapshot: JSON field keeps the text of numbers");
	field = snapshot_find_field(snapshot, snapshot_experiment(snapshot, 1),
								"size", 4);
	tap_ok(field->state == SNAP_FIELD_NAN && field->value.offset == 0,
		   "snapshot: number field that does not parse");

	tap_ok(snapshot->nvariables == 4 &&
			   variable_ids_are(snapshot, "a", (int[]){5, 7}, 2) &&
			   variable_ids_are(snapshot, "b", (int[]){7}, 1) &&
			   variable_ids_are(snapshot, "c", (int[]){7}, 1) &&
			   variable_ids_are(snapshot, "z", (int[]){5}, 1),
		   "snapshot: variables");
	variant = snapshot_variant(snapshot, checkout, 1);
	value = snapshot_variant_value(snapshot, variant,
								   snapshot_find_variable(snapshot, "a", 1));
	tap_ok(value != NULL && variant->nmembers == 3 &&
			   strcmp(stored_text(snapshot, *value), "{\"x\":[1,2]}") == 0,
		   "snapshot: value of a variable");
	tap_ok(snapshot_variant_value(snapshot, variant,
								  snapshot_find_variable(snapshot, "z", 1)) ==
			   NULL,
		   "snapshot: no value");
	tap_ok(snapshot_variant(snapshot, checkout, 0)->config.offset != 0 &&
			   snapshot_variant(snapshot, checkout, 2)->name.offset == 0 &&
			   strcmp(stored_text(
						  snapshot,
						  snapshot_variant(snapshot, checkout, 0)->variables),
					  "{}") == 0,
		   "snapshot: variant without variables");

	client.snapshot = snapshot;
	client.units = parse(text_of("{\"user_id\":\"u1\"}"));
	client.attributes = parse(text_of("{\"age\":19,\"lang\":\"en-GB\"}"));
	client_assign(&client, text_of("checkout"), checkout, &result, &trace);
	tap_ok(trace.row == ASSIGN_ROW_STRICT_MISMATCH && trace.has_unit &&
			   trace.audience_evaluated && trace.verdict == AUDIENCE_MISMATCH &&
			   trace.traffic_choice >= 0 && trace.choice >= 0 &&
			   trace.rule == -1 && trace.holdout == -1 &&
			   result.flags == (ASSIGN_ELIGIBLE | ASSIGN_AUDIENCE_MISMATCH),
		   "trace: strict mismatch");
	client.attributes = parse(text_of("{\"staff\":true}"));
	client_assign(&client, text_of("checkout"), checkout, &result, &trace);
	tap_ok(trace.row == ASSIGN_ROW_RULE && trace.rule == 1 &&
			   !trace.audience_evaluated && result.variant == 2,
		   "trace: rule");
	client_assign(&client, text_of("banner"), banner, &result, &trace);
	tap_ok(trace.row == ASSIGN_ROW_HOLDOUT && trace.holdout == 1 &&
			   result.holdout_id == 2 && result.variant == 0 &&
			   result.flags ==
				   (ASSIGN_ASSIGNED | ASSIGN_ELIGIBLE | ASSIGN_HELD_OUT),
		   "trace: holdout before full on");
	client.customs = parse(text_of("{\"banner\":1}"));
	client_assign(&client, text_of("banner"), banner, &result, &trace);
	tap_ok(trace.row == ASSIGN_ROW_HOLDOUT && result.variant == 0,
		   "holdout beats custom assignment");
	client.overrides = parse(text_of("{\"banner\":-7}"));
	client_assign(&client, text_of("banner"), banner, &result, &trace);
	tap_ok(trace.row == ASSIGN_ROW_OVERRIDE && result.variant == -7 &&
			   result.flags == (ASSIGN_OVERRIDDEN | ASSIGN_ELIGIBLE) &&
			   result.holdout_id == 0,
		   "override beats holdout");
	client_assign(&client, text_of("nobody"), NULL, &result, &trace);
	tap_ok(trace.row == ASSIGN_ROW_UNKNOWN && result.variant == 0 &&
			   result.flags == ASSIGN_ELIGIBLE && !trace.has_unit,
		   "unknown experiment");
	client.overrides = client.units = NULL;
	client_assign(&client, text_of("banner"), banner, &result, &trace);
	tap_ok(trace.row == ASSIGN_ROW_FULL_ON && result.variant == 1 &&
			   result.flags ==
				   (ASSIGN_ASSIGNED | ASSIGN_ELIGIBLE | ASSIGN_FULL_ON),
		   "without the unit nobody is held out");
	arena_release(&arena);

	snapshot = compile(realistic, "staging");
	tap_ok(snapshot_experiment(snapshot, 0)->nrules == 2,
		   "rules in their environment");
	snapshot = compile(realistic, NULL);
	tap_ok(snapshot_experiment(snapshot, 0)->nrules == 1 &&
			   snapshot->environment.offset == 0,
		   "an unknown environment has only the rules for all");
	arena_release(&arena);

	snapshot = compile("{\"holdouts\":[],\"experiments\":[]}", "");
	tap_ok(snapshot->has_holdouts && snapshot->nholdouts == 0,
		   "an empty list of holdouts is a list");
	snapshot = compile("{\"holdouts\":null}", "");
	tap_ok(!snapshot->has_holdouts, "null is no list of holdouts");
	arena_release(&arena);
}

/* Broken holdouts are dropped, the others work. */
static void
test_broken_holdouts(void)
{
	static const char *const broken[] = {
		"null",
		"5",
		"{}",
		"{\"id\":1}",
		"{\"id\":\"1\",\"split\":[1]}",
		"{\"id\":1.5,\"split\":[1]}",
		"{\"id\":1,\"split\":null}",
		"{\"id\":1,\"split\":[\"1\"]}",
		"{\"id\":1,\"seedHi\":\"x\",\"split\":[1]}",
		"{\"id\":1,\"seedLo\":0.5,\"split\":[1]}",
	};
	CompileResult result;

	for (size_t i = 0; i < lengthof(broken); i++)
	{
		const SnapExperiment *experiment;

		compile_text(text_of(arena_printf(
						 &arena,
						 "{\"holdouts\":[%s,{\"id\":2,\"split\":[1]}],"
						 "\"experiments\":[%s]}",
						 broken[i], experiment_with("holdoutIds", "[1,2,1]"))),
					 "", &result);
		experiment = snapshot_experiment(result.snapshot, 0);
		tap_ok(count_warnings(&result) == 1 &&
				   result.snapshot->nholdouts == 1 &&
				   experiment->nholdouts == 1,
			   "broken holdout %s", broken[i]);
		arena_release(&arena);
	}
	tap_ok(compile_text(text_of("{\"holdouts\":{}}"), "", &result) ==
				   ENGINE_OK &&
			   count_warnings(&result) == 1 && !result.snapshot->has_holdouts,
		   "holdouts that are no list");
	arena_release(&arena);
}

static void
test_seeds(void)
{
	static const struct
	{
		const char *text;
		uint32_t seed;
	} cases[] = {
		{"0", 0},
		{"-1", UINT32_C(4294967295)},
		{"4294967295", UINT32_C(4294967295)},
		{"4294967296", 0},
		{"-2147483648", UINT32_C(2147483648)},
		{"1099511627777", 1},
		{"-4294967297", UINT32_C(4294967295)},
		{"1e3", 1000},
		{"-0", 0},
		{"1e300", 0},
		{"null", 0},
	};

	for (size_t i = 0; i < lengthof(cases); i++)
	{
		const SnapImage *snapshot =
			compile(arena_printf(&arena, "{\"experiments\":[%s]}",
								 experiment_with("seedLo", cases[i].text)),
					"");

		tap_ok(snapshot_experiment(snapshot, 0)->split.seed_lo == cases[i].seed,
			   "seed %s", cases[i].text);
		arena_release(&arena);
	}
}

/*
 * SNAP_ALL_TRAFFIC is set only where the choice is 1 whatever the
 * probability.
 */
static void
test_all_traffic(void)
{
	static const struct
	{
		const char *split;
		bool all;
	} cases[] = {
		{"[0,1]", true},    {"[-0.0,0]", true},    {"[0,0]", true},
		{"[-1,0.5]", true}, {"[1e-300,1]", false}, {"[1,0]", false},
		{"[]", false},      {"[0]", false},        {"[0,1,0]", false},
	};
	static const double probabilities[] = {0.0, 1e-300, 0.5, 1.0};

	for (size_t i = 0; i < lengthof(cases); i++)
	{
		const SnapImage *snapshot = compile(
			arena_printf(&arena, "{\"experiments\":[%s]}",
						 experiment_with("trafficSplit", cases[i].split)),
			"");
		const SnapExperiment *experiment = snapshot_experiment(snapshot, 0);
		bool all = (experiment->flags & SNAP_ALL_TRAFFIC) != 0;
		bool ok = all == cases[i].all;

		for (size_t j = 0; all && j < lengthof(probabilities); j++)
			ok &= assign_choose(
					  snapshot_at(snapshot, experiment->traffic.weights),
					  experiment->traffic.count, probabilities[j]) == 1;
		tap_ok(ok, "traffic split %s", cases[i].split);
		arena_release(&arena);
	}
}

/* ----------
 * Robustness
 * ----------
 */

/* Reads everything that an image holds; false if something is out of it. */
static bool
inside(const SnapImage *snapshot, SnapOffset offset, size_t count, size_t size)
{
	return count == 0 ||
		   (offset != 0 && offset % 8 == 0 && offset < snapshot->size &&
			count <= (snapshot->size - offset) / size);
}

static bool
text_inside(const SnapImage *snapshot, SnapText text)
{
	return text.offset == 0
			   ? text.length == 0
			   : inside(snapshot, text.offset, (size_t) text.length + 1, 1) &&
					 snapshot_text(snapshot, text).data[text.length] == '\0';
}

static bool
stored_inside(const SnapImage *snapshot, SnapStored stored)
{
	return inside(snapshot, stored.offset, stored.length, 1);
}

static bool
experiment_is_sound(const SnapImage *snapshot, const SnapExperiment *experiment)
{
	const SnapVariant *variants;
	const SnapField *fields;
	const uint32_t *holdouts;
	bool sound;

	sound = text_inside(snapshot, experiment->name) &&
			stored_inside(snapshot, experiment->name_text) &&
			text_inside(snapshot, experiment->unit_type) &&
			stored_inside(snapshot, experiment->unit_type_text) &&
			text_inside(snapshot, experiment->audience_text) &&
			text_inside(snapshot, experiment->rules_text) &&
			inside(snapshot, experiment->split.weights, experiment->split.count,
				   sizeof(double)) &&
			inside(snapshot, experiment->traffic.weights,
				   experiment->traffic.count, sizeof(double)) &&
			inside(snapshot, experiment->variants, experiment->nvariants,
				   sizeof(SnapVariant)) &&
			inside(snapshot, experiment->rules, experiment->nrules,
				   sizeof(SnapRule)) &&
			inside(snapshot, experiment->holdouts, experiment->nholdouts,
				   sizeof(uint32_t)) &&
			inside(snapshot, experiment->fields, experiment->nfields,
				   sizeof(SnapField)) &&
			((experiment->flags & SNAP_HAS_UNIT_TYPE) == 0 ||
			 experiment->unit_slot < snapshot->nunit_types);
	if (!sound)
		return false;
	variants = snapshot_at(snapshot, experiment->variants);
	for (uint32_t i = 0; i < experiment->nvariants; i++)
	{
		const SnapMember *members = snapshot_at(snapshot, variants[i].members);

		sound &= text_inside(snapshot, variants[i].name) &&
				 text_inside(snapshot, variants[i].config) &&
				 variants[i].variables.offset != 0 &&
				 stored_inside(snapshot, variants[i].variables) &&
				 inside(snapshot, variants[i].members, variants[i].nmembers,
						sizeof(SnapMember));
		for (uint32_t j = 0; sound && j < variants[i].nmembers; j++)
			sound &= stored_inside(snapshot, members[j].value) &&
					 members[j].variable < snapshot->nvariables &&
					 (j == 0 || members[j - 1].variable < members[j].variable);
	}
	fields = snapshot_at(snapshot, experiment->fields);
	for (uint32_t i = 0; i < experiment->nfields; i++)
		sound &= text_inside(snapshot, fields[i].name) &&
				 text_inside(snapshot, fields[i].type) &&
				 stored_inside(snapshot, fields[i].type_text) &&
				 stored_inside(snapshot, fields[i].value) &&
				 (fields[i].value.offset != 0) ==
					 (fields[i].state == SNAP_FIELD_VALUE);
	holdouts = snapshot_at(snapshot, experiment->holdouts);
	for (uint32_t i = 0; i < experiment->nholdouts; i++)
		sound &= holdouts[i] < snapshot->nholdouts;
	return sound;
}

static bool
image_is_sound(const SnapImage *snapshot, size_t size)
{
	const SnapVariable *variables = snapshot_at(snapshot, snapshot->variables);
	bool sound;

	sound = snapshot->magic == SNAPSHOT_MAGIC && snapshot->size == size &&
			text_inside(snapshot, snapshot->raw) &&
			inside(snapshot, snapshot->experiments, snapshot->nexperiments,
				   sizeof(SnapExperiment)) &&
			inside(snapshot, snapshot->variables, snapshot->nvariables,
				   sizeof(SnapVariable)) &&
			inside(snapshot, snapshot->holdouts, snapshot->nholdouts,
				   sizeof(SnapHoldout)) &&
			inside(snapshot, snapshot->name_index,
				   (size_t) snapshot->name_mask + 1, sizeof(uint32_t)) &&
			inside(snapshot, snapshot->variable_index,
				   (size_t) snapshot->variable_mask + 1, sizeof(uint32_t)) &&
			inside(snapshot, snapshot->unit_types, snapshot->nunit_types,
				   sizeof(SnapName)) &&
			inside(snapshot, snapshot->field_keys, snapshot->nfield_keys,
				   sizeof(SnapName));
	for (uint32_t i = 0; sound && i < snapshot->nexperiments; i++)
	{
		const SnapExperiment *experiment = snapshot_experiment(snapshot, i);
		EngineText name = snapshot_text(snapshot, experiment->name);
		const SnapExperiment *found =
			snapshot_find_experiment(snapshot, name.data, name.length);

		sound =
			experiment_is_sound(snapshot, experiment) && found != NULL &&
			(found == experiment) == ((experiment->flags & SNAP_SHADOWED) == 0);
	}
	for (uint32_t i = 0; sound && i < snapshot->nvariables; i++)
	{
		EngineText key = snapshot_text(snapshot, variables[i].key);
		const uint32_t *indexes =
			snapshot_at(snapshot, variables[i].experiments);

		sound = text_inside(snapshot, variables[i].key) &&
				stored_inside(snapshot, variables[i].key_text) &&
				snapshot_find_variable(snapshot, key.data, key.length) ==
					&variables[i] &&
				variables[i].nexperiments > 0 &&
				inside(snapshot, variables[i].experiments,
					   variables[i].nexperiments, sizeof(uint32_t));
		for (uint32_t j = 0; sound && j < variables[i].nexperiments; j++)
			sound = indexes[j] < snapshot->nexperiments;
	}
	return sound;
}

/* Assigns every experiment, with and without a trace. */
static bool
assigns_everything(const SnapImage *snapshot, const JsonNode *units,
				   const JsonNode *attributes)
{
	Client client = {
		.snapshot = snapshot, .units = units, .attributes = attributes};

	for (uint32_t i = 0; i < snapshot->nexperiments; i++)
	{
		const SnapExperiment *experiment = snapshot_experiment(snapshot, i);
		EngineText name = snapshot_text(snapshot, experiment->name);
		Assignment result;
		Assignment traced;
		AssignTrace trace;

		if (client_assign(&client, name, experiment, &result, NULL) !=
				ENGINE_OK ||
			client_assign(&client, name, experiment, &traced, &trace) !=
				ENGINE_OK ||
			result.variant != traced.variant || result.flags != traced.flags ||
			result.holdout_id != traced.holdout_id)
			return false;
	}
	return true;
}

static uint32_t
next_random(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

/* Damages a text in a random way; returns its new length. */
static size_t
mutate(char *text, size_t length, uint32_t *random)
{
	static const char interesting[] =
		"\"\\{}[],:0123456789-.eEtfn\x01\xc3\xff ";
	uint32_t changes = 1 + next_random(random) % 4;

	for (uint32_t i = 0; i < changes; i++)
	{
		size_t at = next_random(random) % length;
		size_t from = next_random(random) % length;
		size_t part = next_random(random) % 40;

		switch (next_random(random) % 8)
		{
			case 0:
				text[at] ^= (char) (1 << next_random(random) % 8);
				break;
			case 1: /* move a part over another */
				if (at + part < length && from + part < length)
					memmove(text + at, text + from, part);
				break;
			case 2: /* take a part out */
				if (part < length - at)
				{
					memmove(text + at, text + at + part, length - at - part);
					length -= part;
				}
				break;
			case 3:
				if (next_random(random) % 20 == 0)
					length = at + 1;
				break;
			default:
				text[at] = interesting[next_random(random) %
									   (sizeof(interesting) - 1)];
				break;
		}
	}
	return length;
}

static void
test_mutations(void)
{
	int rounds = 6000;
	char text[sizeof(realistic)];
	uint32_t random = 2463534242;
	int compiled = 0;
	bool sound = true;
	bool assigned = true;
	bool told = true;

	for (int i = 0; i < rounds; i++)
	{
		size_t length = sizeof(realistic) - 1;
		CompileResult result;
		EngineText data;

		memcpy(text, realistic, length);
		data.length = mutate(text, length, &random);
		data.data = text;
		if (compile_text(data, "production", &result) != ENGINE_OK)
			told &= result.message != NULL;
		else
		{
			const JsonNode *units =
				parse(text_of("{\"user_id\":\"u1\",\"session_id\":5}"));
			const JsonNode *attributes =
				parse(text_of("{\"age\":25,\"lang\":\"en-US\"}"));

			compiled++;
			sound &= image_is_sound(result.snapshot, result.size);
			assigned &= assigns_everything(result.snapshot, units, attributes);
		}
		arena_release(&arena);
	}
	tap_diag("%d of %d damaged texts compiled", compiled, rounds);
	tap_ok(compiled > 0 && compiled < rounds, "damaged texts: some compile");
	tap_ok(sound, "damaged texts: sound images");
	tap_ok(assigned, "damaged texts: assignments");
	tap_ok(told, "damaged texts: a message where nothing was compiled");
}

/* A source of memory that dries up */
typedef struct DrySource
{
	int left; /* allocations until it fails */
	int held; /* chunks not given back */
} DrySource;

static void *
dry_alloc(void *context, size_t size)
{
	DrySource *dry = context;

	if (dry->left-- <= 0)
		return NULL;
	dry->held++;
	return malloc(size);
}

static void
dry_free(void *context, void *chunk)
{
	DrySource *dry = context;

	dry->held--;
	free(chunk);
}

/* Wherever memory runs out, the compiler says so and gives all back. */
static void
test_no_memory(void)
{
	EngineStatus status = ENGINE_NO_MEMORY;
	bool clean = true;
	int budget;

	for (budget = 0; budget < 10000 && status != ENGINE_OK; budget++)
	{
		DrySource dry = {budget, 0};
		ArenaSource source = {dry_alloc, dry_free, &dry, NULL};
		TestHost host = {.forced = ENGINE_OK};
		SnapshotHost functions = {.context = &host,
								  .store_json = host_store_json,
								  .store_text = host_store_text,
								  .forget = host_forget};
		CompileResult result;
		Arena small;

		arena_init(&host.memory, &arena_malloc_source);
		arena_init(&small, &source);
		status = snapshot_compile(text_of(realistic), text_of("production"),
								  &functions, &small, &result);
		if (status == ENGINE_OK)
			clean &= image_is_sound(result.snapshot, result.size);
		else
			clean &= status == ENGINE_NO_MEMORY && result.snapshot == NULL &&
					 result.message == NULL;
		arena_release(&small);
		arena_release(&host.memory);
		clean &= dry.held == 0;
	}
	tap_diag("the compiler asks %d times for memory", budget - 1);
	tap_ok(clean && status == ENGINE_OK && budget > 5, "no memory");
}

/* Thousands of experiments must not take time out of proportion. */
static void
test_many(void)
{
	const uint32_t count = 2000;
	size_t size = 600 * (size_t) count;
	char *text = malloc(size);
	size_t used;
	const SnapImage *snapshot;
	bool found = true;

	used = (size_t) sprintf(text, "{\"experiments\":[");
	for (uint32_t i = 0; i < count; i++)
		used += (size_t) sprintf(
			text + used,
			"%s{\"id\":%u,\"name\":\"experiment_%u\",\"unitType\":\"user_id\","
			"\"seedHi\":%u,\"seedLo\":1,\"split\":[0.5,0.5],\"trafficSeedHi\":1"
			",\"trafficSeedLo\":2,\"trafficSplit\":[0,1],\"variants\":[{},"
			"{\"config\":\"{\\\"shared\\\":%u,\\\"own_%u\\\":1}\"}]}",
			i == 0 ? "" : ",", count - i, i, i, i, i);
	strcpy(text + used, "]}");
	snapshot = compile(text, "production");
	free(text);
	for (uint32_t i = 0; i < count; i++)
	{
		char name[32];
		int length = sprintf(name, "experiment_%u", i);
		const SnapExperiment *experiment =
			snapshot_find_experiment(snapshot, name, (size_t) length);

		found &= experiment != NULL && experiment->id == count - i;
		length = sprintf(name, "own_%u", i);
		found &=
			variable_ids_are(snapshot, name, (int[]){(int) (count - i)}, 1);
	}
	tap_ok(found && snapshot->nvariables == count + 1, "many experiments");
	tap_ok(image_is_sound(snapshot, snapshot->size), "many experiments: sound");
	found = true;
	for (uint32_t i = 1; i < count; i++)
	{
		const SnapVariable *shared =
			snapshot_find_variable(snapshot, "shared", 6);
		const uint32_t *indexes = snapshot_at(snapshot, shared->experiments);

		found &= shared->nexperiments == count &&
				 snapshot_experiment(snapshot, indexes[i - 1])->id == (int) i;
	}
	tap_ok(found, "many experiments: lowest id first");
	arena_release(&arena);
}

/*
 * kB that this process has taken at most; 0 where the system does not tell, or
 * where a sanitizer keeps what was freed.
 */
static long
most_memory(void)
{
#ifdef __SANITIZE_ADDRESS__
	return 0;
#else
	FILE *file = fopen("/proc/self/status", "r");
	char line[256];
	long kilobytes = 0;

	while (file != NULL && fgets(line, sizeof(line), file) != NULL)
		(void) sscanf(line, "VmHWM: %ld", &kilobytes);
	if (file != NULL)
		fclose(file);
	return kilobytes;
#endif
}

/*
 * Compiles in a process of its own.  Returns how much memory that took, in
 * kB; 0 if it can't be told, -1 if the data does not compile.
 */
static long
memory_to_compile(const char *text)
{
	long taken = 0;
	int ends[2];
	pid_t child;

	if (pipe(ends) != 0)
		return 0;
	child = fork();
	if (child == 0)
	{
		long before = most_memory();
		CompileResult result;

		if (compile_text(text_of(text), "production", &result) == ENGINE_OK)
			taken = most_memory() - before;
		else
			taken = -1;
		if (before == 0 && taken >= 0)
			taken = 0;
		if (write(ends[1], &taken, sizeof(taken)) != sizeof(taken))
			abort();
		_exit(0);
	}
	if (child < 0 || read(ends[0], &taken, sizeof(taken)) != sizeof(taken))
		taken = 0;
	close(ends[0]);
	close(ends[1]);
	if (child > 0)
		(void) waitpid(child, NULL, 0);
	return taken;
}

/* What compiling takes is a small multiple of the text. */
static void
memory_is_bounded(const char *what, char *text, long factor)
{
	long kilobytes = (long) (strlen(text) / 1024);
	long taken = memory_to_compile(text);

	if (taken == 0)
		tap_skip("memory cannot be measured here: %s", what);
	else
		tap_ok(taken > 0 && taken < factor * kilobytes,
			   "%s: %ld kB for %ld kB of text", what, taken, kilobytes);
	free(text);
}

#define LARGE_SIZE ((size_t) 8 * 1024 * 1024)

/* As many experiments as there is room for. */
static char *
many_experiments(void)
{
	char *text = malloc(LARGE_SIZE + 1024);
	size_t used = (size_t) sprintf(text, "{\"experiments\":[");

	for (uint32_t i = 0; used < LARGE_SIZE; i++)
		used += (size_t) sprintf(
			text + used,
			"%s{\"id\":%u,\"name\":\"experiment_%u\",\"unitType\":\"user_id\","
			"\"seedHi\":%u,\"seedLo\":1,\"split\":[0.5,0.5],\"trafficSeedHi\":1"
			",\"trafficSeedLo\":2,\"trafficSplit\":[0,1],\"variants\":[{},"
			"{\"config\":\"{\\\"shared\\\":%u,\\\"own_%u\\\":1}\"}]}",
			i == 0 ? "" : ",", i, i, i, i, i);
	strcpy(text + used, "]}");
	return text;
}

/* One experiment of one config, which repeats a part. */
static char *
large_config(const char *part)
{
	char *text = malloc(LARGE_SIZE + 1024);
	size_t used = (size_t) sprintf(
		text,
		"{\"experiments\":[{\"id\":1,\"name\":\"e\",\"split\":[1],"
		"\"trafficSplit\":[0,1],\"variants\":[{\"config\":\"{\\\"k\\\":[");
	size_t length = strlen(part);

	while (used < LARGE_SIZE)
	{
		memcpy(text + used, part, length);
		used += length;
	}
	strcpy(text + used - 1, "]}\"}]}]}");
	return text;
}

/* What has no use: elements that are repeated in the list of that name. */
static char *
large_list(const char *name, const char *part)
{
	char *text = malloc(LARGE_SIZE + 1024);
	size_t used = (size_t) sprintf(text, "{\"%s\":[", name);
	size_t length = strlen(part);

	while (used < LARGE_SIZE)
	{
		memcpy(text + used, part, length);
		used += length;
	}
	strcpy(text + used - 1, "]}");
	return text;
}

static void
test_memory(void)
{
	CompileResult result;
	char *text;
	uint32_t nwarnings = 0;

	memory_is_bounded("many experiments", many_experiments(), 8);
	memory_is_bounded("a config of objects",
					  large_config("{\\\"key\\\":\\\"value\\\"},"), 16);
	memory_is_bounded("a config of texts",
					  large_config("\\\"a text of some length\\\","), 16);
	memory_is_bounded("a long text", large_config("\\\"\\\\u00e9\\\\n\\\","),
					  16);
	memory_is_bounded("elements that nobody knows",
					  large_list("unknown", "{},"), 4);
	memory_is_bounded("experiments that are none",
					  large_list("experiments", "{},"), 5);
	memory_is_bounded("holdouts that are none", large_list("holdouts", "[1],"),
					  5);

	text = large_list("experiments", "{},");
	(void) compile_text(text_of(text), "production", &result);
	for (const CompileWarning *warning = result.warnings; warning != NULL;
		 warning = warning->next)
	{
		nwarnings++;
		if (warning->next == NULL)
			tap_ok(strstr(warning->text, "more warnings are not shown") != NULL,
				   "warnings that are only counted: %s", warning->text);
	}
	tap_ok(nwarnings == 1001, "warnings are bounded: %u", nwarnings);
	free(text);
	arena_release(&arena);
}

static void
test_audience_compile(void)
{
	static const struct
	{
		const char *text;
		bool compiles;
	} cases[] = {
		{"", false},
		{"{}", false},
		{"[]", false},
		{"{\"filter\":0}", false},
		{"{\"filter\":\"x\"}", false},
		{"{\"filter\":[]}", true},
		{"{\"filter\":{}}", true},
		{"{\"filter\":null,\"filter\":[]}", true},
		{"\xef\xbb\xbf{\"filter\":[]}", false},
	};

	for (size_t i = 0; i < lengthof(cases); i++)
	{
		const ExprNode *expression;
		size_t size;

		tap_ok(audience_compile(text_of(cases[i].text), &arena, &expression,
								&size) == ENGINE_OK &&
				   (expression != NULL) == cases[i].compiles,
			   "audience text: %s", cases[i].text);
	}
	arena_release(&arena);
}

int
main(int argc, char **argv)
{
	vectors = argc > 1 ? argv[1] : NULL;
	arena_init(&arena, &arena_malloc_source);
	matches = match_cache_create(&arena_malloc_source);

	test_hash();
	test_whole_data();
	test_broken_fields();
	test_audience_strict();
	test_names();
	test_unstorable();
	test_snapshot();
	test_broken_holdouts();
	test_seeds();
	test_all_traffic();
	test_audience_compile();
	test_many();
	test_memory();
	test_no_memory();
	test_mutations();

	run_vectors("md5.json", md5_case);
	run_vectors("murmur3_32.json", murmur_case);
	run_vectors("base64url.json", base64url_case);
	run_vectors("utf8_bytes.json", utf8_bytes_case);
	run_vectors("hash_unit.json", hash_unit_case);
	run_vectors("assign.json", assign_case);
	run_vectors("choose_variant.json", choose_variant_case);
	run_vectors("holdout_membership.json", holdout_case);
	run_vectors("audience.json", audience_case);
	run_vectors("rules.json", rules_case);
	run_vectors("assignments.json", assignments_case);
	run_vectors("variables.json", variables_case);
	run_vectors("custom_fields.json", custom_fields_case);

	match_cache_destroy(matches);
	arena_release(&arena);
	return tap_done();
}
