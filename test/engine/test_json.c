/*
 * test_json.c
 *		Tests of the JSON reader and writer.
 */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "json.h"

#define lengthof(array) (sizeof(array) / sizeof((array)[0]))

/* A text in which a NUL may stand */
#define TEXT(literal) literal, sizeof(literal) - 1

static Arena arena;

/* Whether two trees are equal, but for the order of members. */
static bool
same_json(const JsonNode *left, const JsonNode *right)
{
	const JsonNode *other;

	if (left->kind != right->kind || left->count != right->count)
		return false;
	switch ((JsonKind) left->kind)
	{
		case JSON_NUMBER:
		case JSON_STRING:
			return memcmp(json_text(left), json_text(right), left->count) == 0;
		case JSON_ARRAY:
			for (uint32_t i = 0; i < left->count; i++)
			{
				if (!same_json(json_element(left, i), json_element(right, i)))
					return false;
			}
			return true;
		case JSON_OBJECT:
			for (uint32_t i = 0; i < left->count; i++)
			{
				const JsonNode *name = json_member_name(left, i);

				other = json_get_n(right, json_text(name), name->count);
				if (other == NULL ||
					!same_json(json_member_value(left, i), other))
					return false;
			}
			return true;
		default:
			return true;
	}
}

/* Whether text, parsed, copied and written again, is what is expected. */
static bool
writes_as(const char *text, size_t length, const char *expected)
{
	Work work = {.left = 0};
	const JsonNode *root;
	const JsonNode *copy;
	EngineText written;
	bool same;
	void *block;
	void *moved;
	size_t size;

	if (json_parse(text, length, ENGINE_MAX_DEPTH, &arena, &root, NULL) !=
			ENGINE_OK ||
		json_write(root, &arena, &written) != ENGINE_OK)
		return false;
	same = strcmp(written.data, expected) == 0 &&
		   written.length == strlen(expected);

	/* the copy is one block that can be moved */
	size = json_copy_size(root, &work);
	block = malloc(size);
	moved = malloc(size);
	copy = json_copy(root, block, &work);
	same = same && (const void *) copy == block;
	memcpy(moved, block, size);
	free(block);
	same = same && json_write(moved, &arena, &written) == ENGINE_OK &&
		   written.length == strlen(expected) && same_json(moved, root);
	free(moved);
	return same;
}

static void
test_accepted(void)
{
	static const struct
	{
		const char *text;
		size_t length;
		const char *written;
	} cases[] = {
		{TEXT("null"), "null"},
		{TEXT(" true "), "true"},
		{TEXT("\r\n\tfalse"), "false"},
		{TEXT("\"\""), "\"\""},
		{TEXT("[]"), "[]"},
		{TEXT("{}"), "{}"},
		{TEXT("[ [ ] , { } ]"), "[[],{}]"},
		{TEXT("0"), "0"},
		{TEXT("-0"), "-0"},
		{TEXT("-0.0e-0"), "-0.0e-0"},
		{TEXT("1.50E+02"), "1.50E+02"},
		{TEXT("[1e400,-1e400]"), "[1e400,-1e400]"},
		{TEXT("123456789012345678901234567890"),
		 "123456789012345678901234567890"},
		{TEXT("{\"a\":1,\"b\":2.0,\"a\":3}"), "{\"a\":3,\"b\":2.0}"},
		{TEXT("{\"a\":[1,2],\"b\":5,\"a\":6e1,\"c\":7}"),
		 "{\"a\":6e1,\"b\":5,\"c\":7}"},
		{TEXT("{\"\":1}"), "{\"\":1}"},
		{TEXT("{\"a\":1,\"b\":[2],\"\\u0061\":{\"a\":3},\"b\":4,\"a\":[5]}"),
		 "{\"a\":[5],\"b\":4}"},
		{TEXT("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\""),
		 "\"\\\"\\\\/\\b\\f\\n\\r\\t\""},
		{TEXT("\"\\u0000\\u001f\\u0041\\u00e9\""),
		 "\"\\u0000\\u001fA\xc3\xa9\""},
		{TEXT("\"\\ud83d\\ude00\""), "\"\xf0\x9f\x98\x80\""},
		{TEXT("\"\\ud83dx\\ude00\""), "\"\xef\xbf\xbdx\xef\xbf\xbd\""},
		{TEXT("\"\\ud83d\""), "\"\xef\xbf\xbd\""},
		{TEXT("\"\\ud800\\ud83d\\ude00\""), "\"\xef\xbf\xbd\xf0\x9f\x98\x80\""},
		{TEXT("\"\\udE00\\uD83d\\u0041\""), "\"\xef\xbf\xbd\xef\xbf\xbd"
											"A\""},
		{TEXT("\"\\u007f\\u0080\\u07ff\\u0800\\uffff\\udbff\\udfff\""),
		 "\"\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf\xf4\x8f\xbf\xbf\""},
		{TEXT("\"\x7f\xc2\x80\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf\""),
		 "\"\x7f\xc2\x80\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf\""},
		{TEXT("\"\\u0001\""), "\"\\u0001\""},
		{TEXT("\"\\u00015\""), "\"\\u00015\""},
		{TEXT("\"\\u0001\\u0001\""), "\"\\u0001\\u0001\""},
		{TEXT("\"5\\u0001\""), "\"5\\u0001\""},
		{TEXT("{\"a\\u0000\":1,\"a\":2,\"a\\u0001\":3,\"a\\u00010\":4}"),
		 "{\"a\\u0000\":1,\"a\":2,\"a\\u0001\":3,\"a\\u00010\":4}"},
		{TEXT("{\"\\u0000\":\"\\u0000\"}"), "{\"\\u0000\":\"\\u0000\"}"},
	};

	for (size_t i = 0; i < lengthof(cases); i++)
	{
		tap_ok(writes_as(cases[i].text, cases[i].length, cases[i].written),
			   "accepted: %s", cases[i].text);
		arena_release(&arena);
	}
}

static void
test_refused(void)
{
	static const struct
	{
		const char *text;
		size_t length;
	} cases[] = {
		{TEXT("")},
		{TEXT("  ")},
		{TEXT("nul")},
		{TEXT("nulll")},
		{TEXT("NULL")},
		{TEXT("True")},
		{TEXT("NaN")},
		{TEXT("nan")},
		{TEXT("Infinity")},
		{TEXT("-Infinity")},
		{TEXT("-")},
		{TEXT("+1")},
		{TEXT("01")},
		{TEXT("-01")},
		{TEXT("1.")},
		{TEXT(".5")},
		{TEXT("-.5")},
		{TEXT("1e")},
		{TEXT("1e+")},
		{TEXT("1.e5")},
		{TEXT("0x10")},
		{TEXT("1 2")},
		{TEXT("1,")},
		{TEXT("[")},
		{TEXT("]")},
		{TEXT("[1,]")},
		{TEXT("[,1]")},
		{TEXT("[1 2]")},
		{TEXT("[1}")},
		{TEXT("{\"a\":1]")},
		{TEXT("{\"a\"}")},
		{TEXT("{\"a\":}")},
		{TEXT("{\"a\":1,}")},
		{TEXT("{\"a\" 1}")},
		{TEXT("{a:1}")},
		{TEXT("{1:1}")},
		{TEXT("{'a':1}")},
		{TEXT("'a'")},
		{TEXT("\"")},
		{TEXT("\"a")},
		{TEXT("\"a\\")},
		{TEXT("\"\\\"")},
		{TEXT("\"\\x41\"")},
		{TEXT("\"\\\0\"")},
		{TEXT("\"\\u12\"")},
		{TEXT("\"\\u12g4\"")},
		{TEXT("\"\\u+123\"")},
		{TEXT("\"\n\"")},
		{TEXT("\"\0\"")},
		{TEXT("\"\x1f\"")},
		{TEXT("1\0")},
		{TEXT("\f1")},
		{TEXT("\xc2\xa0"
			  "1")},
		{TEXT("\xef\xbb\xbf{}")},
		{TEXT("/* */1")},
		{TEXT("1 // x")},
		{TEXT("\"\x80\"")},
		{TEXT("\"\xc0\xaf\"")},
		{TEXT("\"\xc3\"")},
		{TEXT("\"\xe0\x80\x80\"")},
		{TEXT("\"\xed\xa0\x80\"")},
		{TEXT("\"\xf0\x80\x80\x80\"")},
		{TEXT("\"\xf4\x90\x80\x80\"")},
		{TEXT("\"\xff\"")},
		{TEXT("\"\xf0\x9f\x98")},
	};

	for (size_t i = 0; i < lengthof(cases); i++)
	{
		const JsonNode *root;
		const char *message;
		EngineStatus status;

		/* in memory of its own, so that reading too far shows */
		char *text = malloc(cases[i].length == 0 ? 1 : cases[i].length);

		memcpy(text, cases[i].text, cases[i].length);
		status = json_parse(text, cases[i].length, ENGINE_MAX_DEPTH, &arena,
							&root, &message);
		tap_ok(status == ENGINE_MALFORMED && root == NULL && message != NULL,
			   "refused: %s (%s)", cases[i].text,
			   message == NULL ? "" : message);
		free(text);
		arena_release(&arena);
	}
}

static void
test_numbers(void)
{
	static const struct
	{
		const char *text;
		double number;
	} cases[] = {
		{"0", 0.0},
		{"1", 1.0},
		{"-17", -17.0},
		{"0.1", 0.1},
		{"123.456", 123.456},
		{"-0.000001", -0.000001},
		{"0.30000000000000004", 0.30000000000000004},
		{"9007199254740993", 9007199254740992.0},
		{"9007199254740991", 9007199254740991.0},
		{"12345678901234.5", 12345678901234.5},
		{"1e23", 1e23},
		{"1E-7", 1e-7},
		{"2.2250738585072011e-308", 2.2250738585072011e-308},
		{"5e-324", 5e-324},
		{"1e-400", 0.0},
		{"1.7976931348623157e308", DBL_MAX},
		{"1e309", DBL_MAX},
		{"-1e400", -DBL_MAX},
	};
	const JsonNode *root;

	for (size_t i = 0; i < lengthof(cases); i++)
	{
		json_parse(cases[i].text, strlen(cases[i].text), 1, &arena, &root,
				   NULL);
		tap_ok(root != NULL && root->kind == JSON_NUMBER &&
				   root->number == cases[i].number &&
				   strcmp(json_text(root), cases[i].text) == 0,
			   "number %s", cases[i].text);
		arena_release(&arena);
	}
	json_parse("-0", 2, 1, &arena, &root, NULL);
	tap_ok(root->number == 0 && signbit(root->number), "-0 keeps its sign");
	arena_release(&arena);
}

static void
test_depth(void)
{
	char text[1024];
	const JsonNode *root;

	for (int depth = 0; depth < 200; depth += depth < 4 || depth > 120 ? 1 : 29)
	{
		const char *message;
		EngineStatus status;

		memset(text, '[', (size_t) depth);
		text[depth] = '1';
		memset(text + depth + 1, ']', (size_t) depth);
		status = json_parse(text, 2 * (size_t) depth + 1, ENGINE_MAX_DEPTH,
							&arena, &root, &message);
		if (status !=
				(depth <= ENGINE_MAX_DEPTH ? ENGINE_OK : ENGINE_TOO_DEEP) ||
			(status != ENGINE_OK && message == NULL))
			tap_ok(false, "depth %d", depth);
		arena_release(&arena);
	}
	tap_ok(json_parse("[{\"a\":[1]}]", 11, 3, &arena, &root, NULL) == ENGINE_OK,
		   "as deep as it may be");
	tap_ok(json_parse("[{\"a\":[1]}]", 11, 2, &arena, &root, NULL) ==
			   ENGINE_TOO_DEEP,
		   "deeper than it may be");
	arena_release(&arena);
}

static void
test_get(void)
{
	static const char text[] = "{\"a\":1,\"b\\u0000c\":2,\"\":3,\"a\":4}";
	const JsonNode *root;

	json_parse(text, strlen(text), 8, &arena, &root, NULL);
	tap_ok(json_get(root, "a")->number == 4 && json_get(root, "")->number == 3,
		   "members by name");
	tap_ok(json_get_n(root, "b\0c", 3)->number == 2 &&
			   json_get(root, "b") == NULL,
		   "a member whose name has a NUL");
	tap_ok(json_get(json_get(root, "a"), "a") == NULL,
		   "a number has no members");
	arena_release(&arena);
}

/*
 * Strings are gone through in pieces: nothing may suffer, wherever it is cut.
 */
static void
test_pieces(void)
{
	static const char tail[] =
		"\\ud83d\\ude00\\ud83d\\n\xf0\x9f\x98\x80\",-12.50,null,true,"
		"{\"k\\u0000\":false,\"\\u0001\":\"\\u0001\"}]";
	static const char written[] =
		"\xf0\x9f\x98\x80\xef\xbf\xbd\\n\xf0\x9f\x98\x80\",-12.50,null,true,"
		"{\"k\\u0000\":false,\"\\u0001\":\"\\u0001\"}]";
	bool ok = true;

	for (size_t padding = 16300; padding < 16500; padding++)
	{
		char *text = malloc(17000);
		char *expected = malloc(17000);

		strcpy(text, "[\"");
		memset(text + 2, 'x', padding);
		strcpy(text + 2 + padding, tail);
		memcpy(expected, text, padding + 2);
		strcpy(expected + 2 + padding, written);
		ok &= writes_as(text, strlen(text), expected);
		free(text);
		free(expected);
		arena_release(&arena);
	}
	tap_ok(ok, "strings that are cut");
}

/* A part of a text, repeated behind a beginning and before an end. */
static char *
repeat(const char *begin, const char *part, size_t count, const char *end)
{
	size_t length = strlen(part);
	char *text = malloc(strlen(begin) + count * length + strlen(end) + 1);
	char *next = text + sprintf(text, "%s", begin);

	for (size_t i = 0; i < count; i++, next += length)
		memcpy(next, part, length);
	strcpy(next, end);
	return text;
}

static void
long_value(const char *what, char *text, char *expected)
{
	tap_ok(writes_as(text, strlen(text), expected), "long values: %s", what);
	free(text);
	free(expected);
	arena_release(&arena);
}

/* Values longer than the pieces, and objects of many members. */
static void
test_long(void)
{
	long_value("numbers", repeat("[", "-1.50 , ", 100000, "7]"),
			   repeat("[", "-1.50,", 100000, "7]"));
	long_value(
		"all kinds",
		repeat(" [ ", "[],{},\"\",null,true,false,{\"a\":[1]},", 9000,
			   "[ ] ] "),
		repeat("[", "[],{},\"\",null,true,false,{\"a\":[1]},", 9000, "[]]"));
	long_value("deep", repeat("[[[[[[{\"a\":[", "\"x\",", 30000, "0]}]]]]]]"),
			   repeat("[[[[[[{\"a\":[", "\"x\",", 30000, "0]}]]]]]]"));
	long_value("long among short",
			   repeat("[1,[", "2,", 20000, "3],4,5,{\"a\":\"b\"}]"),
			   repeat("[1,[", "2,", 20000, "3],4,5,{\"a\":\"b\"}]"));
	long_value("text", repeat("\"", "abcdefg", 100000, "\""),
			   repeat("\"", "abcdefg", 100000, "\""));
	long_value("escapes",
			   repeat("\"", "\\u0001\\ud83d\\ude00\\u0000\\\"", 10000, "\""),
			   repeat("\"", "\\u0001\xf0\x9f\x98\x80\\u0000\\\"", 10000, "\""));
	long_value("half a pair", repeat("\"", "\\ud83d", 10000, "\""),
			   repeat("\"", "\xef\xbf\xbd", 10000, "\""));
	long_value("a long name", repeat("{\"", "n\xc3\xa9", 10000, "\":1}"),
			   repeat("{\"", "n\xc3\xa9", 10000, "\":1}"));
	long_value("one name again and again",
			   repeat("{\"b\":0,", "\"a\":1,", 20000, "\"c\":[3]}"),
			   repeat("", "{\"b\":0,\"a\":1,\"c\":[3]}", 1, ""));
	long_value("names with marks",
			   repeat("{\"\\u0001\":0,\"\\u0000\":1,", "\"\\u00011\":2,", 20000,
					  "\"\\u0000\":{\"\\u0000\":3}}"),
			   repeat("",
					  "{\"\\u0001\":0,\"\\u0000\":{\"\\u0000\":3},"
					  "\"\\u00011\":2}",
					  1, ""));
}

/* Strings that end where a piece does, or near it. */
static void
test_borders(void)
{
	bool ok = true;

	for (size_t count = 16300; count < 16460; count++)
	{
		char *text = repeat("{\"a\":[\"", "x", count,
							"\\n\"],\"b\":{\"c\":[1]},\"a\":2}");
		char *kept =
			repeat("{\"b\":[\"", "x", count, "\\n\"],\"a\":{\"c\":[1]}}");

		ok &= writes_as(text, strlen(text), "{\"a\":2,\"b\":{\"c\":[1]}}");
		ok &= writes_as(kept, strlen(kept), kept);
		free(text);
		free(kept);
		arena_release(&arena);
	}
	tap_ok(ok, "values of about a piece's length");
}

/* The walk over a text that was checked. */
static void
test_walk(void)
{
	static const char text[] =
		" { \"a\" : [ 1 , {\"b\":\"]\\\"\"} ] ,\"a\":-1.5e3 ,\"\\\\\":null,"
		"\"\" : { } } ";
	static const char *const values[] = {
		"\"a\"",    "[ 1 , {\"b\":\"]\\\"\"} ]",
		"\"a\"",    "-1.5e3",
		"\"\\\\\"", "null",
		"\"\"",     "{ }"};
	EngineText whole = {TEXT(text)};
	EngineText value;
	JsonWalk walk;
	size_t count = 0;
	bool ok = json_check(TEXT(text), 3, &arena, NULL) == ENGINE_OK &&
			  json_walk_kind(whole) == JSON_OBJECT;

	json_walk_begin(&walk, whole);
	while (json_walk_next(&walk, &value))
	{
		ok &= count < lengthof(values) &&
			  strlen(values[count]) == value.length &&
			  memcmp(values[count], value.data, value.length) == 0;
		count++;
	}
	tap_ok(ok && count == lengthof(values), "walk");
	tap_ok(json_check(TEXT(text), 2, &arena, NULL) == ENGINE_TOO_DEEP &&
			   json_check("[1,]", 4, 8, &arena, NULL) == ENGINE_MALFORMED,
		   "check");
	arena_release(&arena);
}

/* A text whose tree would take too much is refused. */
static void
test_cost(void)
{
	size_t count = 12 * 1024 * 1024;
	char *text = repeat("[", "1,", count, "1]");
	const JsonNode *root;
	const char *message;

	tap_ok(json_parse(text, strlen(text), ENGINE_MAX_DEPTH, &arena, &root,
					  &message) == ENGINE_TOO_LARGE &&
			   message != NULL,
		   "too many values");
	free(text);
	arena_release(&arena);
}

/* Says yes when it was asked often enough. */
static bool
lose_patience(void *context)
{
	int *patience = context;

	return (*patience)-- <= 0;
}

/* A host that wants the work to end. */
static void
test_interrupted(void)
{
	const size_t count = 100000;
	char *text = malloc(2 * count + 2);
	int patience;
	ArenaSource source = arena_malloc_source;
	int refused = 0;

	text[0] = '[';
	for (size_t i = 0; i < count; i++)
		memcpy(text + 1 + 2 * i, "1,", 2);
	text[2 * count] = ']';
	source.context = &patience;
	source.interrupted = lose_patience;
	for (int allowed = 0; allowed < 20; allowed++)
	{
		Arena short_lived;
		const JsonNode *root;

		patience = allowed;
		arena_init(&short_lived, &source);
		if (json_parse(text, 2 * count + 1, ENGINE_MAX_DEPTH, &short_lived,
					   &root, NULL) == ENGINE_NO_MEMORY &&
			root == NULL && short_lived.failed)
			refused++;
		arena_release(&short_lived);
	}
	tap_ok(refused == 20, "work ends when the host wants it (%d of 20)",
		   refused);
	free(text);
}

/* A host that has memory for so many chunks. */
static void *
alloc_some(void *context, size_t size)
{
	int *left = context;

	return (*left)-- > 0 ? malloc(size) : NULL;
}

/* Wherever memory ends, so does the work, and nothing else happens. */
static void
test_no_memory(void)
{
	char *text = repeat("{\"b\":[", "{\"a\\n\":[1,[\"x\"]],\"a\":2},", 2000,
						"{}],\"c\":3,\"b\":[]}");
	ArenaSource source = arena_malloc_source;
	EngineStatus status = ENGINE_NO_MEMORY;
	bool ok = true;
	int left;
	int chunks;

	source.context = &left;
	source.alloc = alloc_some;
	for (chunks = 0; status == ENGINE_NO_MEMORY && chunks < 1000; chunks++)
	{
		Arena short_lived;
		const JsonNode *root;

		left = chunks;
		arena_init(&short_lived, &source);
		status = json_parse(text, strlen(text), ENGINE_MAX_DEPTH, &short_lived,
							&root, NULL);
		ok &= (root == NULL) == (status == ENGINE_NO_MEMORY) &&
			  short_lived.failed == (root == NULL);
		arena_release(&short_lived);
	}
	tap_ok(ok && status == ENGINE_OK && chunks > 8,
		   "memory that ends (%d chunks are enough)", chunks - 1);
	free(text);
}

int
main(void)
{
	arena_init(&arena, &arena_malloc_source);
	test_accepted();
	test_refused();
	test_numbers();
	test_depth();
	test_get();
	test_pieces();
	test_long();
	test_borders();
	test_walk();
	test_cost();
	test_interrupted();
	test_no_memory();
	return tap_done();
}
