/*
 * test_values.c
 *		Tests of the engine's values: numbers, conversions, comparison,
 *		versions, regular expressions and expressions (protocol 5 to 7).
 *
 * Usage: test_values [folder of the conformance vectors]
 *
 * The built-in cases are about what the vectors leave open.  Where they say
 * what JavaScript does, they were checked against it.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/arena.h"
#include "engine/expression.h"
#include "engine/json.h"
#include "engine/match.h"
#include "engine/number.h"
#include "engine/semver.h"
#include "engine/value.h"
#include "harness.h"
#include "tree_value.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static Arena arena;
static MatchCache *matches;

/* Work that nobody interrupts */
static Work work;

/* A text from a literal, NUL bytes included */
#define TEXT(literal) ((EngineText){(literal), sizeof(literal) - 1})

static EngineText
text_of(const char *string)
{
	EngineText text = {string, strlen(string)};

	return text;
}

static EngineText
node_text(const JsonNode *node)
{
	EngineText text = {json_text(node), node->count};

	return text;
}

/* JSON for a test's own use; a mistake in it ends the program. */
static const JsonNode *
parse(const char *text, size_t length)
{
	const JsonNode *root;
	const char *message = NULL;

	if (json_parse(text, length, ENGINE_MAX_DEPTH, &arena, &root, &message) !=
		ENGINE_OK)
	{
		printf("Bail out! %s in %s\n", message ? message : "no memory", text);
		exit(1);
	}
	return root;
}

static Value
value_of(const char *json)
{
	Value value;

	tree_value(parse(json, strlen(json)), &arena, &value);
	return value;
}

static bool
same_value(const Value *left, const Value *right)
{
	bool equal;

	return value_deep_equal(left, right, &work, &equal) == ENGINE_OK && equal;
}

static bool
always(void)
{
	return true;
}

static bool
never(void)
{
	return false;
}

static Work no_stack = {.stack_ok = never};

/* ---------------------------------------------------------------------- */

typedef void (*VectorTest)(const char *id, const JsonNode *test);

static ValueOrder
expected_order(const JsonNode *test)
{
	const JsonNode *expected = json_get(test, "expected");

	return expected->kind == JSON_NULL ? VALUE_INCOMPARABLE
									   : (ValueOrder) expected->number;
}

static void
check_conversion(const char *id, const JsonNode *test)
{
	EngineText op = node_text(json_get(test, "op"));
	Value value;
	Value expected;
	Value result;
	char buffer[VALUE_NUMBER_TEXT];

	tree_value(json_get(test, "value"), &arena, &value);
	tree_value(json_get(test, "expected"), &arena, &expected);
	result.kind = VALUE_NULL;
	if (op.data[0] == 'b')
	{
		result.kind = VALUE_BOOLEAN;
		result.u.boolean = value_to_boolean(&value);
	}
	else if (op.data[0] == 'n')
	{
		if (value_to_number(&value, &result.u.number, &work))
			result.kind = VALUE_NUMBER;
	}
	else if (value_to_string(&value, buffer, &result.u.string))
		result.kind = VALUE_STRING;
	tap_ok(same_value(&result, &expected), "%s", id);
}

static void
check_compare(const char *id, const JsonNode *test)
{
	Value left;
	Value right;
	ValueOrder order;

	tree_value(json_get(test, "lhs"), &arena, &left);
	tree_value(json_get(test, "rhs"), &arena, &right);
	tap_ok(value_compare(&left, &right, &work, &order) == ENGINE_OK &&
			   order == expected_order(test),
		   "%s", id);
}

static void
check_deep_equal(const char *id, const JsonNode *test)
{
	Value left;
	Value right;
	bool equal;

	tree_value(json_get(test, "a"), &arena, &left);
	tree_value(json_get(test, "b"), &arena, &right);
	tap_ok(value_deep_equal(&left, &right, &work, &equal) == ENGINE_OK &&
			   equal == (json_get(test, "expected")->kind == JSON_TRUE),
		   "%s", id);
}

static void
check_semver(const char *id, const JsonNode *test)
{
	char left_buffer[VALUE_NUMBER_TEXT];
	char right_buffer[VALUE_NUMBER_TEXT];
	EngineText left_text;
	EngineText right_text;
	Value left;
	Value right;
	ValueOrder order = VALUE_INCOMPARABLE;

	tree_value(json_get(test, "lhs"), &arena, &left);
	tree_value(json_get(test, "rhs"), &arena, &right);
	if (value_to_string(&left, left_buffer, &left_text) &&
		value_to_string(&right, right_buffer, &right_text))
		order = semver_compare(left_text, right_text, &work);
	tap_ok(order == expected_order(test), "%s", id);
}

static void
check_match(const char *id, const JsonNode *test)
{
	JsonKind expected = (JsonKind) json_get(test, "expected")->kind;
	MatchResult result =
		match_search(matches, node_text(json_get(test, "text")),
					 node_text(json_get(test, "pattern")), &work);

	tap_ok(result == (expected == JSON_NULL   ? MATCH_UNDEFINED
					  : expected == JSON_TRUE ? MATCH_YES
											  : MATCH_NO),
		   "%s", id);
}

static void
init_context(EvalContext *context, const Value *variables)
{
	memset(context, 0, sizeof(EvalContext));
	context->variables = *variables;
	context->matches = matches;
	context->work.stack_ok = always;
}

static void
check_extract(const char *id, const JsonNode *test)
{
	EvalContext context;
	Value variables;
	Value expected;
	Value result;
	bool aborted;

	tree_value(json_get(test, "vars"), &arena, &variables);
	tree_value(json_get(test, "expected"), &arena, &expected);
	init_context(&context, &variables);
	(void) expression_extract(&context, node_text(json_get(test, "path")),
							  &result, &aborted);
	tap_ok(!aborted && same_value(&result, &expected), "%s", id);
}

/*
 * Compiles, moves the block to another place, wipes the first one, and
 * evaluates there.
 */
static EngineStatus
run_expression(const JsonNode *source, EvalContext *context, Value *result,
			   bool *aborted)
{
	const ExprNode *expression;
	size_t size;
	void *moved;

	*aborted = false;
	if (expression_compile(source, &arena, &expression, &size) != ENGINE_OK)
		return ENGINE_NO_MEMORY;
	moved = arena_alloc(&arena, size);
	if (moved == NULL)
		return ENGINE_NO_MEMORY;
	memcpy(moved, expression, size);
	memset((void *) expression, 0xa5, size);
	return expression_evaluate(moved, context, result, aborted);
}

static void
check_jsonexpr(const char *id, const JsonNode *test)
{
	EvalContext context;
	Value variables;
	Value expected;
	Value result;
	bool aborted;
	bool truth = json_get(test, "expectedBoolean")->kind == JSON_TRUE;

	tree_value(json_get(test, "vars"), &arena, &variables);
	tree_value(json_get(test, "expected"), &arena, &expected);
	init_context(&context, &variables);
	tap_ok(run_expression(json_get(test, "expr"), &context, &result,
						  &aborted) == ENGINE_OK &&
			   !aborted && same_value(&result, &expected) &&
			   value_to_boolean(&result) == truth,
		   "%s", id);
}

static void
run_vectors(const char *folder, const char *file, VectorTest check)
{
	size_t length;
	char *text = tap_read_file(folder, file, &length);
	const JsonNode *cases;
	uint32_t index;

	if (text == NULL)
	{
		tap_skip("no vectors: %s", file);
		return;
	}
	cases = json_get(parse(text, length), "cases");
	for (index = 0; index < cases->count; index++)
	{
		const JsonNode *test = json_element(cases, index);
		EngineText id = node_text(json_get(test, "id"));

		check(arena_strdup(&arena, id.data, id.length), test);
	}
	free(text);
}

/* ---------------------------------------------------------------------- */

static void
test_arena(void)
{
	Arena own;
	char *first;
	char *big;
	char *text;
	int round;
	bool aligned = true;

	arena_init(&own, &arena_malloc_source);
	first = arena_alloc(&own, 3);
	strcpy(first, "ab");
	big = arena_alloc(&own, 1000000);
	big[999999] = 1;
	for (round = 0; round < 5000; round++)
	{
		char *piece = arena_alloc(&own, (size_t) round % 97);

		aligned = aligned && ((uintptr_t) piece & 7) == 0;
	}
	tap_ok(aligned && strcmp(first, "ab") == 0 && big[0] == 0,
		   "arena: aligned, zeroed, nothing overlaps");
	text = arena_printf(&own, "%s %d", "number", 42);
	tap_ok(text != NULL && strcmp(text, "number 42") == 0, "arena_printf");
	text = arena_strdup(&own, "abc", 2);
	tap_ok(text != NULL && strcmp(text, "ab") == 0, "arena_strdup");
	tap_ok(!own.failed && arena_alloc(&own, SIZE_MAX) == NULL && own.failed,
		   "arena: a size that cannot be had");
	arena_release(&own);
	tap_ok(own.chunks == NULL && !own.failed, "arena_release");
}

static void
test_to_fixed(void)
{
	static const struct
	{
		double number;
		int decimals;
		const char *expected;
	} cases[] = {
		{0.0, 0, "0"},
		{-0.0, 0, "0"},
		{-0.0, 15, "0.000000000000000"},
		{-0.4, 0, "-0"},
		{0.5, 0, "1"},
		{-0.5, 0, "-1"},
		{1.5, 0, "2"},
		{2.5, 0, "3"},
		{125.75, 0, "126"},
		{0.49999999999999994, 0, "0"},
		{4503599627370495.5, 0, "4503599627370496"},
		{9007199254740993.0, 0, "9007199254740992"},
		{1.005, 2, "1.00"},
		{1.45, 1, "1.4"},
		{8.345, 2, "8.35"},
		{0.5, 15, "0.500000000000000"},
		{1.0 / 3, 15, "0.333333333333333"},
		{123.456, 15, "123.456000000000003"},
		{0.9999999999999999, 15, "1.000000000000000"},
		{4.9e-324, 15, "0.000000000000000"},
		{5e-16, 15, "0.000000000000001"},
		{4.9e-16, 15, "0.000000000000000"},
		{1e20, 2, "100000000000000000000.00"},
		{999999999999999900000.0, 0, "999999999999999868928"},
		{1e21, 15, "1e+21"},
		{1.25e22, 0, "1.25e+22"},
		{-1.7976931348623157e308, 15, "-1.7976931348623157e+308"},
	};
	size_t index;

	for (index = 0; index < COUNT(cases); index++)
	{
		char buffer[64];
		size_t length =
			number_to_fixed(cases[index].number, cases[index].decimals, buffer);

		tap_ok(strcmp(buffer, cases[index].expected) == 0 &&
				   length == strlen(buffer),
			   "toFixed: %s", cases[index].expected);
	}
}

static void
test_shortest(void)
{
	static const struct
	{
		double number;
		const char *expected;
	} cases[] = {
		{-0.0, "0"},
		{1, "1"},
		{-1.5, "-1.5"},
		{0.1, "0.1"},
		{0.30000000000000004, "0.30000000000000004"},
		{1e-6, "0.000001"},
		{1e-7, "1e-7"},
		{1.5e-7, "1.5e-7"},
		{123456789012345680000.0, "123456789012345680000"},
		{1e21, "1e+21"},
		{5e-324, "5e-324"},
		{2.2250738585072014e-308, "2.2250738585072014e-308"},
		{9007199254740993.0, "9007199254740992"},
		/* powers of two, where the nearest decimal does not read back */
		{5.684341886080802e-14, "5.684341886080802e-14"},
		{9.5367431640625e-07, "9.5367431640625e-7"},
		{1.7976931348623157e308, "1.7976931348623157e+308"},
	};
	size_t index;
	char buffer[64];

	for (index = 0; index < COUNT(cases); index++)
	{
		size_t length = number_to_shortest(cases[index].number, buffer);

		tap_ok(strcmp(buffer, cases[index].expected) == 0 &&
				   length == strlen(buffer),
			   "shortest: %s", cases[index].expected);
	}
	(void) number_to_shortest(HUGE_VAL, buffer);
	tap_ok(strcmp(buffer, "Infinity") == 0, "shortest: Infinity");
}

static void
test_parse_numbers(void)
{
	static const struct
	{
		const char *text;
		double prefix; /* NAN: not a number */
		double whole;
	} cases[] = {
		{"", NAN, 0},
		{" ", NAN, 0},
		{"12px", 12, NAN},
		{" \xc2\xa0\xef\xbb\xbf\xe2\x80\x83 7 \xe3\x80\x80", 7, 7},
		{"\xc2\x85"
		 "7",
		 NAN, NAN},
		{"\xe2\x80\x8b"
		 "7",
		 NAN, NAN},
		{"0x1F", 0, 31},
		{"0X1f", 0, 31},
		{"0o17", 0, 15},
		{"0b101", 0, 5},
		{"0b102", 0, NAN},
		{"0x", 0, NAN},
		{"+0x10", 0, NAN},
		{"0x20000000000001", 0, 9007199254740992.0},
		{"0x20000000000003", 0, 9007199254740996.0},
		{"0x200000000000010000000000001", 0, 4.056481920730335e+31},
		{"1e", 1, NAN},
		{"1e+", 1, NAN},
		{"1e5", 1e5, 1e5},
		{"1E-2", 0.01, 0.01},
		{".5", 0.5, 0.5},
		{"-.5e1", -5, -5},
		{"5.", 5, 5},
		{"5.e1", 50, 50},
		{".", NAN, NAN},
		{".e1", NAN, NAN},
		{"+", NAN, NAN},
		{"--1", NAN, NAN},
		{"+-1", NAN, NAN},
		{"1,5", 1, NAN},
		{"1_000", 1, NAN},
		{"1 2", 1, NAN},
		{"1.5.2", 1.5, NAN},
		{"Infinity", NAN, HUGE_VAL},
		{"-Infinity", NAN, -HUGE_VAL},
		{"infinity", NAN, NAN},
		{"inf", NAN, NAN},
		{"nan", NAN, NAN},
		{"NaN", NAN, NAN},
		{"1e400", NAN, HUGE_VAL},
		{"1e-400", 0, 0},
		{"1e99999999999999999999", NAN, HUGE_VAL},
		{"0e99999999999999999999", 0, 0},
		{"1e-99999999999999999999", 0, 0},
		{"9007199254740993", 9007199254740992.0, 9007199254740992.0},
		{"9007199254740993.0000000000000000000000000000000001",
		 9007199254740994.0, 9007199254740994.0},
		{"2.2250738585072011e-308", 2.2250738585072011e-308,
		 2.2250738585072011e-308},
		{"0.1e1foo", 1, NAN},
		{"12\xc2\xa0", 12, 12},
		{"\xd9\xa3", NAN, NAN},
	};
	size_t index;
	double number;
	char *digits;

	for (index = 0; index < COUNT(cases); index++)
	{
		const char *text = cases[index].text;
		bool found = number_parse_prefix(text, strlen(text), &number, &work);

		tap_ok(found ? number == cases[index].prefix
					 : isnan(cases[index].prefix),
			   "parseFloat(\"%s\")", text);
		found = number_parse_whole(text, strlen(text), &number, &work);
		tap_ok(found ? number == cases[index].whole : isnan(cases[index].whole),
			   "Number(\"%s\")", text);
	}

	/* the middle between two doubles, and a little above it */
	digits = arena_alloc(&arena, 5000);
	memset(digits, '0', 5000);
	memcpy(digits, "9007199254740993.", 17);
	tap_ok(number_parse_prefix(digits, 5000, &number, &work) &&
			   number == 9007199254740992.0,
		   "five thousand digits, a tie");
	digits[4999] = '1';
	tap_ok(number_parse_prefix(digits, 5000, &number, &work) &&
			   number == 9007199254740994.0,
		   "five thousand digits, not a tie");
	memset(digits, '9', 5000);
	tap_ok(!number_parse_prefix(digits, 5000, &number, &work),
		   "five thousand digits, too large");
	memcpy(digits + 4993, "e-4990x", 7);
	tap_ok(number_parse_prefix(digits, 5000, &number, &work) && number == 1000,
		   "five thousand digits and an exponent");
	tap_ok(number_parse_prefix(TEXT("1\0002").data, 3, &number, &work) &&
			   number == 1,
		   "a NUL ends a number");
	tap_ok(!number_parse_whole(TEXT("1\0002").data, 3, &number, &work),
		   "a NUL is no blank");
}

static void
test_trim(void)
{
	static const struct
	{
		const char *text;
		const char *expected;
	} cases[] = {
		{"", ""},
		{"  ", ""},
		{"\xc2\xa0", ""},
		{" a b ", "a b"},
		{"\t\n\v\f\r a", "a"},
		{"a\xe2\x80\xa8\xe2\x80\xa9", "a"},
		{"\xe1\x9a\x80\xe2\x80\xaf\xe2\x81\x9f\xe3\x80\x80\xef\xbb\xbf"
		 "a",
		 "a"},
		{"a\xe2\x80\x8a", "a"},
		{"a\xe2\x80\x8b", "a\xe2\x80\x8b"}, /* U+200B */
		{"a\xc2\x85", "a\xc2\x85"}, /* U+0085 */
		{"a\xe1\xa0\x8e", "a\xe1\xa0\x8e"}, /* U+180E */
		{"\xe2\x80", "\xe2\x80"}, /* cut */
		{"\xc3\xa0", "\xc3\xa0"}, /* its last byte is not a blank */
	};
	size_t index;

	for (index = 0; index < COUNT(cases); index++)
	{
		EngineText text =
			text_trim(cases[index].text, strlen(cases[index].text), &work);

		tap_ok(text.length == strlen(cases[index].expected) &&
				   memcmp(text.data, cases[index].expected, text.length) == 0,
			   "trim %d", (int) index);
	}
}

static void
test_strings(void)
{
	static const struct
	{
		double number;
		const char *expected;
	} cases[] = {
		{-0.0, "0"},
		{100, "100"},
		{-1e-20, "-0"},
		{0.1, "0.1"},
		{1e-15, "0.000000000000001"},
		{1e30, "1e+3"},
		{1e100, "1e+1"},
		{1.5e300, "1.5e+3"},
		{1e21, "1e+21"},
		{1e20, "100000000000000000000"},
		{10.5, "10.5"},
	};
	/* ascending by UTF-16 code units */
	static const char *const order[] = {"",
										"0",
										"Z",
										"a",
										"aa",
										"z",
										"\xc3\xa9",
										"\xed\x9f\xbf",
										"\xf0\x90\x80\x80",
										"\xf0\x9f\x98\x80",
										"\xf0\x9f\x98\x80z",
										"\xee\x80\x80",
										"\xef\xbf\xbd"};
	size_t index;
	size_t other;

	for (index = 0; index < COUNT(cases); index++)
	{
		char buffer[VALUE_NUMBER_TEXT];
		EngineText text;
		Value value;

		value.kind = VALUE_NUMBER;
		value.u.number = cases[index].number;
		tap_ok(value_to_string(&value, buffer, &text) &&
				   text.length == strlen(cases[index].expected) &&
				   memcmp(text.data, cases[index].expected, text.length) == 0,
			   "string(%g)", cases[index].number);
	}
	for (index = 0; index < COUNT(order); index++)
	{
		bool right = true;

		for (other = 0; other < COUNT(order); other++)
		{
			int found = value_compare_text(text_of(order[index]),
										   text_of(order[other]), &work);

			right = right && found == (index > other) - (index < other);
		}
		tap_ok(right, "order of texts %d", (int) index);
	}
}

static void
test_compare(void)
{
	static const struct
	{
		const char *left;
		const char *right;
		ValueOrder expected;
	} cases[] = {
		{"0", "-0", VALUE_EQUAL},
		{"1", "\"1.0\"", VALUE_EQUAL},
		{"\"1.0\"", "1", VALUE_GREATER},
		{"0", "\"\"", VALUE_INCOMPARABLE},
		{"0", "false", VALUE_EQUAL},
		{"false", "\"false\"", VALUE_EQUAL},
		{"true", "[]", VALUE_EQUAL},
		{"false", "[]", VALUE_LESS},
		{"\"\"", "[]", VALUE_INCOMPARABLE},
		{"\"0\"", "-0", VALUE_EQUAL},
		{"null", "null", VALUE_EQUAL},
		{"null", "false", VALUE_INCOMPARABLE},
		{"[]", "null", VALUE_INCOMPARABLE},
		{"[1]", "[1.0]", VALUE_EQUAL},
		{"{\"a\":null}", "{\"b\":null}", VALUE_INCOMPARABLE},
		{"{\"a\":1,\"b\":[{}]}", "{\"b\":[{}],\"a\":1}", VALUE_EQUAL},
		{"[[1]]", "[[\"1\"]]", VALUE_INCOMPARABLE},
		{"1e400", "1e308", VALUE_GREATER},
	};
	size_t index;
	Value left;
	Value right;
	ValueOrder order;
	bool equal;

	for (index = 0; index < COUNT(cases); index++)
	{
		left = value_of(cases[index].left);
		right = value_of(cases[index].right);
		tap_ok(value_compare(&left, &right, &work, &order) == ENGINE_OK &&
				   order == cases[index].expected,
			   "compare %s with %s", cases[index].left, cases[index].right);
	}
	left = value_of("[[1]]");
	tap_ok(value_deep_equal(&left, &left, &no_stack, &equal) == ENGINE_STACK,
		   "no stack for deep_equal");
	tap_ok(value_compare(&left, &left, &no_stack, &order) == ENGINE_STACK,
		   "no stack for compare");
	left = value_of("1");
	tap_ok(value_compare(&left, &left, &no_stack, &order) == ENGINE_OK,
		   "scalars need no stack");
}

static void
test_semver(void)
{
	static const struct
	{
		const char *left;
		const char *right;
		ValueOrder expected;
	} cases[] = {
		{"", "1", VALUE_INCOMPARABLE},
		{"v", "1", VALUE_INCOMPARABLE},
		{"+1", "1", VALUE_INCOMPARABLE},
		{"-1", "1", VALUE_INCOMPARABLE},
		{"v-a", "1", VALUE_INCOMPARABLE},
		{"vv1", "v1", VALUE_GREATER}, /* "v1" is not numeric */
		{"1", "1.0.0.0", VALUE_EQUAL},
		{"1.", "1", VALUE_GREATER}, /* an empty part is not numeric */
		{"1..1", "1.0.1", VALUE_GREATER},
		{"1.0.0-", "1.0.0", VALUE_EQUAL},
		{"1.0.0-+x", "1.0.0", VALUE_EQUAL},
		{"1.0.0-a+x", "1.0.0-a+y", VALUE_EQUAL},
		{"1.0.0-a-b", "1.0.0-a", VALUE_GREATER},
		{"1.0.0-a.b", "1.0.0-a.b.0", VALUE_LESS},
		{"1.0.0-a.", "1.0.0-a", VALUE_GREATER},
		{"1.0.0--", "1.0.0-0", VALUE_GREATER},
		{"1.0.0-9", "1.0.0-10", VALUE_LESS},
		{"1.0.0-09", "1.0.0-9", VALUE_EQUAL},
		{"1.0.0-9a", "1.0.0-10", VALUE_GREATER},
		{"latest", "9999", VALUE_GREATER},
		{"1.x", "1.9", VALUE_GREATER},
		{"18446744073709551617", "18446744073709551616", VALUE_GREATER},
		{"000000000000000000000000001", "1", VALUE_EQUAL},
		{"0", "00", VALUE_EQUAL},
		{"1.0", "1.a", VALUE_LESS},
		{"1", "1.a", VALUE_LESS},
		{"\xf0\x9f\x98\x80", "\xef\xbf\xbd", VALUE_LESS},
		{"\xd9\xa3", "9", VALUE_GREATER},
	};
	size_t index;

	for (index = 0; index < COUNT(cases); index++)
	{
		ValueOrder expected = cases[index].expected;
		EngineText left = text_of(cases[index].left);
		EngineText right = text_of(cases[index].right);

		tap_ok(semver_compare(left, right, &work) == expected,
			   "version %s and %s", cases[index].left, cases[index].right);
		if (expected != VALUE_INCOMPARABLE)
			expected = (ValueOrder) - (int) expected;
		tap_ok(semver_compare(right, left, &work) == expected,
			   "version %s and %s", cases[index].right, cases[index].left);
	}
}

/* ---------------------------------------------------------------------- */

static void
test_match(void)
{
	static const struct
	{
		const char *pattern;
		const char *text;
		MatchResult expected;
	} cases[] = {
		/* what JavaScript rejects */
		{"(?i)a", "a", MATCH_UNDEFINED},
		{"(?i:a)", "a", MATCH_UNDEFINED},
		{"(?#c)a", "a", MATCH_UNDEFINED},
		{"(?>a)", "a", MATCH_UNDEFINED},
		{"(?|a)", "a", MATCH_UNDEFINED},
		{"(?P<n>a)", "a", MATCH_UNDEFINED},
		{"(?'n'a)", "a", MATCH_UNDEFINED},
		{"(?R)", "a", MATCH_UNDEFINED},
		{"(?1)(a)", "a", MATCH_UNDEFINED},
		{"(?(1)a|b)", "a", MATCH_UNDEFINED},
		{"(?C1)a", "a", MATCH_UNDEFINED},
		{"(*UTF)a", "a", MATCH_UNDEFINED},
		{"a*+", "a", MATCH_UNDEFINED},
		{"a{1}+", "a", MATCH_UNDEFINED},
		{"a**", "a", MATCH_UNDEFINED},
		{"*", "a", MATCH_UNDEFINED},
		{"a|*", "a", MATCH_UNDEFINED},
		{"(*a)", "a", MATCH_UNDEFINED},
		{"^*", "a", MATCH_UNDEFINED},
		{"$?", "a", MATCH_UNDEFINED},
		{"\\b+", "a", MATCH_UNDEFINED},
		{"(?<=a)*", "a", MATCH_UNDEFINED},
		{"(?<!a){2}", "a", MATCH_UNDEFINED},
		{"{1}", "{1}", MATCH_UNDEFINED},
		{"a|{1,}", "a", MATCH_UNDEFINED},
		{"a{2,1}", "a", MATCH_UNDEFINED},
		{"[b-a]", "a", MATCH_UNDEFINED},
		{"[\\x62-\\x61]", "a", MATCH_UNDEFINED},
		{"[a", "a", MATCH_UNDEFINED},
		{"[a\\]", "a", MATCH_UNDEFINED},
		{"[", "a", MATCH_UNDEFINED},
		{"[^", "a", MATCH_UNDEFINED},
		{"\\", "a", MATCH_UNDEFINED},
		{"a\\", "a", MATCH_UNDEFINED},
		{"(", "a", MATCH_UNDEFINED},
		{")", "a", MATCH_UNDEFINED},
		{"(?", "a", MATCH_UNDEFINED},
		{"(?:", "a", MATCH_UNDEFINED},
		{"(?<", "a", MATCH_UNDEFINED},
		{"(?<n", "a", MATCH_UNDEFINED},
		{"(?<>a)", "a", MATCH_UNDEFINED},
		{"(?<1>a)", "a", MATCH_UNDEFINED},
		{"(?<a-b>a)", "a", MATCH_UNDEFINED},
		{"(?<n>a)(?<n>b)", "ab", MATCH_UNDEFINED},
		{"(?<n>a)|(?<n>b)", "ab", MATCH_UNDEFINED},
		{"(?<n>a)(?<\\u006e>b)", "ab", MATCH_UNDEFINED},
		{"(?<n>a)\\k", "ak", MATCH_UNDEFINED},
		{"(?<n>a)\\k<m>", "aa", MATCH_UNDEFINED},
		{"(?<n>a)[\\k]", "ak", MATCH_UNDEFINED},
		/* letters like any other */
		{"^\\A\\Z\\z\\G\\K\\Q\\E\\R\\X\\N\\C\\h\\H\\a\\e\\p\\P\\i$",
		 "AZzGKQERXNChHaepPi", MATCH_YES},
		{"^\\p{L}$", "p{L}", MATCH_YES},
		{"^\\N{2}$", "NN", MATCH_YES},
		{"^\\o{7}$", "ooooooo", MATCH_YES},
		{"^\\g1$", "g1", MATCH_YES},
		{"^[\\Q]\\E]$", "QE]", MATCH_YES},
		{"^[[:alpha:]]$", "h]", MATCH_YES},
		{"^[[:alpha:]]$", "x]", MATCH_NO},
		{"^[[.a.]]$", ".]", MATCH_YES},
		{"a b # c", "a b # c", MATCH_YES},
		/* escapes */
		{"^\\v$", "\v", MATCH_YES},
		{"\\v", "\f", MATCH_NO},
		{"^\\0$", "0", MATCH_NO},
		{"^\\x41\\x4\\x$", "Ax4x", MATCH_YES},
		{"^\\u0041\\u004\\u{2}$", "Au004uu", MATCH_YES},
		{"^\\x{41}$", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", MATCH_YES},
		{"^\\cJ\\cj$", "\n\n", MATCH_YES},
		{"^\\c$", "\\c", MATCH_YES},
		{"^\\c1$", "\\c1", MATCH_YES},
		{"^[\\c1]$", "\x11", MATCH_YES},
		{"^[\\c_]$", "\x1f", MATCH_YES},
		{"^[\\c]+$", "\\c", MATCH_YES},
		{"^[\\c*]+$", "\\c*", MATCH_YES},
		{"^\\1\\7\\377$", "\x01\x07\xc3\xbf", MATCH_YES},
		{"^\\400$", " 0", MATCH_YES},
		{"^\\8\\9$", "89", MATCH_YES},
		{"^\\08$", "08", MATCH_NO},
		{"^(a)\\2$", "a\x02", MATCH_YES},
		{"^(a)\\10$", "a\x08", MATCH_YES},
		{"^(a)\\18$",
		 "a\x01"
		 "8",
		 MATCH_YES},
		{"^\\k<n>$", "k<n>", MATCH_YES},
		{"^[\\b]$", "\b", MATCH_YES},
		{"^[\\B\\k\\-\\8]+$", "Bk-8", MATCH_YES},
		{"^[\\1]$", "\x01", MATCH_YES},
		/* literal braces and brackets */
		{"^a{,2}$", "a{,2}", MATCH_YES},
		{"^a{1, 2}$", "a{1, 2}", MATCH_YES},
		{"^a{1$", "a{1", MATCH_YES},
		{"^x{}]}$", "x{}]}", MATCH_YES},
		{"^a{0}b$", "b", MATCH_YES},
		{"^{$", "{", MATCH_YES},
		/* classes */
		{"[]", "a", MATCH_NO},
		{"^[]*$", "", MATCH_YES},
		{"^[^]$", "\n", MATCH_YES},
		{"^[^][^]$", "\xf0\x9f\x98\x80", MATCH_YES},
		{"^[]]$", "]", MATCH_NO},
		{"^[a-\\d]+$", "a-5", MATCH_YES},
		{"^[\\d-z]+$", "5-z", MATCH_YES},
		{"^[a-\\d]$", "b", MATCH_NO},
		{"^[a-]+$", "a-", MATCH_YES},
		{"^[-a]+$", "a-", MATCH_YES},
		{"^[a-c-e]+$", "b-e", MATCH_YES},
		{"^[^^]$", "^", MATCH_NO},
		{"^[a^]+$", "^a", MATCH_YES},
		{"^[\\W]$", "\xc3\xa9", MATCH_YES},
		{"^[^\\W]$", "\xc3\xa9", MATCH_NO},
		{"^[^\\D]$", "\xd9\xa3", MATCH_NO},
		{"[\\s\\S]", "", MATCH_NO},
		{"[^\\s\\S]", "a", MATCH_NO},
		/* blanks */
		{"^\\s+$",
		 "\t\n\v\f\r \xc2\xa0\xe1\x9a\x80\xe2\x80\x80\xe2\x80\x8a\xe2\x80\xa8"
		 "\xe2\x80\xa9\xe2\x80\xaf\xe2\x81\x9f\xe3\x80\x80\xef\xbb\xbf",
		 MATCH_YES},
		{"^[\\s]$", "\xe3\x80\x80", MATCH_YES},
		{"\\S", "\xe3\x80\x80\xef\xbb\xbf", MATCH_NO},
		{"[^\\s]", "\xe3\x80\x80\xef\xbb\xbf", MATCH_NO},
		{"[\\S]", "\xe3\x80\x80\xef\xbb\xbf", MATCH_NO},
		{"\\s", "\xc2\x85\xe2\x80\x8b\xe1\xa0\x8e", MATCH_NO},
		/* the point, ends of lines, ASCII only */
		{".", "\n\r\xe2\x80\xa8\xe2\x80\xa9", MATCH_NO},
		{"^..$", "\v\xc2\x85", MATCH_YES},
		{"a$", "a\n", MATCH_NO},
		{"^b", "a\nb", MATCH_NO},
		{"\\w", "\xc3\xa9\xc5\xbf\xe2\x84\xaa", MATCH_NO},
		{"\\b", "\xc3\xa9", MATCH_NO},
		{"\\B", "", MATCH_YES},
		{"\\b", "", MATCH_NO},
		{"^\\d$", "\xd9\xa3", MATCH_NO},
		/* code units */
		{"^.$", "\xf0\x9f\x98\x80", MATCH_NO},
		{"^..$", "\xf0\x9f\x98\x80", MATCH_YES},
		{"^\xf0\x9f\x98\x80$", "\xf0\x9f\x98\x80", MATCH_YES},
		{"^\xf0\x9f\x98\x80{2}$", "\xf0\x9f\x98\x80\xf0\x9f\x98\x80", MATCH_NO},
		{"^(?:\xf0\x9f\x98\x80){2}$", "\xf0\x9f\x98\x80\xf0\x9f\x98\x80",
		 MATCH_YES},
		{"\\ud83d\\ude00", "\xf0\x9f\x98\x80", MATCH_YES},
		{"\\ud83d$", "\xf0\x9f\x98\x80", MATCH_NO},
		{"^[\xf0\x9f\x98\x80]$", "\xf0\x9f\x98\x80", MATCH_NO},
		{"^[^a]{2}$", "\xf0\x9f\x98\x80", MATCH_YES},
		/* groups and references */
		{"^(?:(a)|b)*\\1$", "aba", MATCH_NO},
		{"^(?:(a)|b)*\\1$", "ab", MATCH_YES},
		{"^(?:(a)|(b))+\\1\\2$", "abb", MATCH_YES},
		{"^(z)((a+)?(b+)?(c))*\\3$", "zaacbbbcac", MATCH_NO},
		{"^(?:(?=(a)))?\\1$", "a", MATCH_NO},
		{"^(?=(a))*\\1$", "a", MATCH_NO},
		{"^(?=(a))+\\1$", "a", MATCH_YES},
		{"^(?=(a)){0}\\1b$", "b", MATCH_YES},
		{"^(?!(a)b)\\1ac$", "ac", MATCH_YES},
		{"^\\1(a)$", "a", MATCH_YES},
		{"^(a\\1)$", "a", MATCH_YES},
		{"^(a\\1)+$", "aa", MATCH_YES},
		{"^(?:\\2b|(a)(c))+$", "acb", MATCH_YES},
		{"^(a)?\\1b$", "aab", MATCH_YES},
		{"^(a){0}\\1$", "", MATCH_YES},
		{"^(?<n>a)\\k<n>$", "aa", MATCH_YES},
		{"^\\k<n>(?<n>a)$", "a", MATCH_YES},
		{"^(?<n>a\\k<n>)$", "a", MATCH_YES},
		{"^(?<\\u{6e}_$1>a)\\k<n_$1>$", "aa", MATCH_YES},
		{"^(?<\xc3\xa9>a)\\k<\\u00e9>$", "aa", MATCH_YES},
		{"^(a)\\1{2}$", "aaa", MATCH_YES},
		{"^(a)(?:\\1)2$", "aa2", MATCH_YES},
		{"^(?:a*)*$", "aaab", MATCH_NO},
		{"^(?:a*?)*?b$", "aab", MATCH_YES},
		{"^(?:|a)+$", "aaa", MATCH_YES},
		{"^(?:|a){2,3}?$", "aaa", MATCH_YES},
		{"^(?:|(?=(b)c)|a){0}$", "", MATCH_YES},
		/* PCRE2 10.42 by itself finds nothing here */
		{"(?:|(?=bbb)x|b){0}", "zz", MATCH_YES},
		/* looking around */
		{"(?<=a+)b", "aab", MATCH_YES},
		{"(?<=^a+)b", "caab", MATCH_NO},
		{"(?<!a+)b", "aab", MATCH_NO},
		{"(?<=\\$\\d+(?:\\.\\d*)?)x", "$10.25x", MATCH_YES},
		{"(?<=(\\d+)(\\d+))$\\1", "1053", MATCH_NO},
		{"^(?<=a|bc|)", "", MATCH_YES},
		{"(?<=a(?:b|cd))e", "acde", MATCH_YES},
		{"(?<=(a)\\1)b", "aab", MATCH_YES},
		{"(?<=\\1(a))b", "aab", MATCH_YES},
		{"(?<=\\1(a))b", "cab", MATCH_NO},
		{"(?<=(?=a)a)b", "ab", MATCH_YES},
		{"(?<=(?<!c)a*)b", "aab", MATCH_YES},
		{"^(?=a)*b", "b", MATCH_YES},
		{"^(?=a)+b", "b", MATCH_NO},
		{"^(?!a){2}b", "b", MATCH_YES},
		{"^(?=(a+))a*b\\1$", "aaba", MATCH_NO},
		{"^.*?(?=(a+))a*b\\1$", "baaabac", MATCH_NO},
		/* large counts */
		{"^a{0,70000}$", "aaa", MATCH_YES},
		{"a{70000}", "aaa", MATCH_NO},
		{"^a{1,99999999999}$", "aaa", MATCH_YES},
		{"^(?:abc){5000}$", "abc", MATCH_NO},
		{"^(?:(?:a{1,9}){1,9}){1,9}$", "aaaa", MATCH_YES},
	};
	size_t index;

	for (index = 0; index < COUNT(cases); index++)
		tap_ok(match_search(matches, text_of(cases[index].text),
							text_of(cases[index].pattern),
							&work) == cases[index].expected,
			   "match %s in \"%s\"", cases[index].pattern, cases[index].text);

	tap_ok(match_search(matches, TEXT("a\0b"), TEXT("^a\0b$"), &work) ==
			   MATCH_YES,
		   "match: NUL in both");
	tap_ok(match_search(matches, TEXT("a\0b"), TEXT("^a\\0b$"), &work) ==
			   MATCH_YES,
		   "match: \\0");
	tap_ok(match_search(matches, TEXT("a\0b"), TEXT("^a[\\0]b$"), &work) ==
			   MATCH_YES,
		   "match: [\\0]");
	tap_ok(match_search(matches, TEXT(""), TEXT(""), &work) == MATCH_YES,
		   "match: nothing in nothing");
	tap_ok(match_search(matches, (EngineText){NULL, 0}, (EngineText){NULL, 0},
						&work) == MATCH_YES,
		   "match: no bytes at all");
	tap_ok(match_search(matches, TEXT("\xff\xf0\x9f"), TEXT("^...$"), &work) ==
			   MATCH_YES,
		   "match: bytes that are not UTF-8");
}

/* Bounds: large or evil patterns and texts */
static void
test_match_bounds(void)
{
	size_t length = 20000;
	char *text = arena_alloc(&arena, length + 1);
	char *pattern = arena_alloc(&arena, 4 * length);
	EngineText many = {text, length};
	EngineText part = {pattern, 0};
	EngineText few = {text + length - 1000, 1000};
	size_t at;

	memset(text, 'a', length);
	text[length - 1] = '!';
	tap_ok(match_search(matches, many, TEXT("^(?:a+)+$"), &work) ==
			   MATCH_UNDEFINED,
		   "match: exponential effort");
	tap_ok(match_search(matches, many, TEXT("^(?:(a+)|b)+\\1$"), &work) ==
			   MATCH_UNDEFINED,
		   "match: exponential effort with a reference");
	tap_ok(match_search(matches, many, TEXT("^(?:a|b)+!$"), &work) == MATCH_YES,
		   "match: a long text needs a large stack");
	tap_ok(match_search(matches, many, TEXT("^(?:(a)|(b))*!$"), &work) ==
			   MATCH_YES,
		   "match: and so with groups");
	tap_ok(match_search(matches, few, TEXT("(?<=a+)!"), &work) == MATCH_YES,
		   "match: looking behind");
	tap_ok(match_search(matches, many, TEXT("^(a)\\1{19997}.!?$"), &work) ==
			   MATCH_YES,
		   "match: a very large count");

	memset(pattern, 'a', 4 * length);
	part.length = MATCH_MAX_PATTERN;
	tap_ok(match_search(matches, many, part, &work) == MATCH_YES,
		   "match: the longest pattern");
	part.length++;
	tap_ok(match_search(matches, many, part, &work) == MATCH_UNDEFINED,
		   "match: a longer one");
	part.length = 4 * length;
	tap_ok(match_search(matches, many, part, &work) == MATCH_UNDEFINED,
		   "match: a much longer one");

	for (at = 0; at < 150; at++)
		pattern[at] = '(';
	pattern[150] = 'a';
	for (at = 151; at < 301; at++)
		pattern[at] = ')';
	part.length = 301;
	tap_ok(match_search(matches, many, part, &work) == MATCH_YES,
		   "match: deep groups");
	for (at = 0; at < 4000; at++)
		pattern[at] = '(';
	for (; at < 8000; at++)
		pattern[at] = ')';
	part.length = 8000;
	tap_ok(match_search(matches, many, part, &work) == MATCH_UNDEFINED,
		   "match: too deep groups");
	for (at = 0; at + 4 <= 8000; at += 4)
		memcpy(pattern + at, "(a)|", 4);
	tap_ok(match_search(matches, many, part, &work) == MATCH_YES,
		   "match: two thousand groups");
}

/* More patterns than the cache holds, several times over */
static void
test_match_cache(void)
{
	bool right = true;
	int round;
	int index;
	char pattern[40];

	for (round = 0; round < 3; round++)
	{
		for (index = 0; index < 3 * MATCH_CACHE_SIZE; index++)
		{
			MatchResult expected = MATCH_YES;

			(void) snprintf(pattern, sizeof(pattern), "^x%d$", index);
			if (index % 5 == 0)
			{
				strcat(pattern, "(");
				expected = MATCH_UNDEFINED;
			}
			else if (index % 7 == 0)
				strcat(pattern, "(?<=x\\d+)");
			if (match_search(matches, TEXT("x"), TEXT("^x$"), &work) !=
				MATCH_YES)
				right = false;
			if (match_search(
					matches,
					(EngineText){pattern + 1, strcspn(pattern, "$") - 1},
					text_of(pattern), &work) != expected)
				right = false;
		}
	}
	tap_ok(right, "match: more patterns than the cache holds");
}

/* A source that fails at its n-th allocation, and counts what is out */
typedef struct Meter
{
	int until_failure;
	int out;
} Meter;

static void *
meter_alloc(void *context, size_t size)
{
	Meter *meter = context;

	if (meter->until_failure-- <= 0)
		return NULL;
	meter->out++;
	return malloc(size);
}

static void
meter_free(void *context, void *chunk)
{
	Meter *meter = context;

	meter->out--;
	free(chunk);
}

static void
test_no_memory(void)
{
	static const char *const patterns[] = {"^(?:a|b)+c$", "(?<=a+)c", "(", ""};
	bool right = true;
	bool clean = true;
	bool enough = false;
	int limit;

	for (limit = 0; !enough && limit < 1000; limit++)
	{
		Meter meter = {limit, 0};
		ArenaSource source = {meter_alloc, meter_free, &meter, NULL};
		MatchCache *cache = match_cache_create(&source);
		size_t index;

		if (cache != NULL)
		{
			enough = true;
			for (index = 0; index < COUNT(patterns); index++)
			{
				MatchResult result = match_search(
					cache, TEXT("aabc"), text_of(patterns[index]), &work);
				MatchResult expected =
					patterns[index][0] == '(' && patterns[index][1] == '\0'
						? MATCH_UNDEFINED
					: index == 1 ? MATCH_NO
								 : MATCH_YES;

				if (result != expected)
				{
					enough = false;
					right = right && result == MATCH_UNDEFINED;
				}
			}
			/* memory is back: so must be the right answers */
			meter.until_failure = 1000;
			if (match_search(cache, TEXT("aabc"), text_of(patterns[0]),
							 &work) != MATCH_YES ||
				match_search(cache, TEXT("aac"), text_of(patterns[1]), &work) !=
					MATCH_YES)
				right = false;
			match_cache_destroy(cache);
		}
		clean = clean && meter.out == 0;
	}
	tap_ok(right && enough, "match: no memory, at each of %d allocations",
		   limit);
	tap_ok(clean, "match: nothing is lost then");
}

/* ---------------------------------------------------------------------- */

#define ABORTS "aborts"

static void
test_expressions(void)
{
	static const char variables[] =
		"{\"a\":null,\"n\":5,\"s\":\"x\\u0000y\",\"\":{\"\":1},\"o\":{\"k\":"
		"null,"
		"\"5\":\"five\",\"01\":2},\"l\":[10,[20,null],{\"x\":1}],\"t\":true}";
	static const struct
	{
		const char *expression;
		const char *expected; /* JSON, or ABORTS */
	} cases[] = {
		/* forms */
		{"{}", "null"},
		{"[]", "true"},
		{"[{}]", "false"},
		{"1", "null"},
		{"\"n\"", "null"},
		{"true", "null"},
		{"null", "null"},
		{"{\"Value\":1}", "null"},
		{"{\"xor\":[],\"value\":1}", "null"},
		{"{\"value\":{\"value\":[1,{\"var\":\"n\"}]},\"eq\":1}",
		 "{\"value\":[1,{\"var\":\"n\"}]}"},
		{"{\"value\":null}", "null"},
		{"{\"value\":\"\"}", "\"\""},
		/* var */
		{"{\"var\":\"n\"}", "5"},
		{"{\"var\":{\"path\":\"n\"}}", "5"},
		{"{\"var\":{\"x\":1,\"path\":\"n\"}}", "5"},
		{"{\"var\":{\"path\":5}}", "null"},
		{"{\"var\":{\"path\":{\"path\":\"n\"}}}", "null"},
		{"{\"var\":{}}", "null"},
		{"{\"var\":[\"n\"]}", "null"},
		{"{\"var\":5}", "null"},
		{"{\"var\":null}", "null"},
		{"{\"var\":\"\"}", "{\"\":1}"},
		{"{\"var\":\"/\"}", "1"},
		{"{\"var\":\"//\"}", "null"},
		{"{\"var\":\"n/\"}", "null"},
		{"{\"var\":\"missing/x\"}", "null"},
		{"{\"var\":\"a\"}", "null"},
		{"{\"var\":\"a/x\"}", ABORTS},
		{"{\"var\":\"a/\"}", ABORTS},
		{"{\"var\":\"o/k/x\"}", ABORTS},
		{"{\"var\":\"l/1/1/0\"}", ABORTS},
		{"{\"var\":\"o/x/y\"}", "null"},
		{"{\"var\":\"n/toString\"}", "null"},
		{"{\"var\":\"s/length\"}", "null"},
		{"{\"var\":\"s/0\"}", "null"},
		{"{\"var\":\"s\"}", "\"x\\u0000y\""},
		{"{\"var\":\"o/5\"}", "\"five\""},
		{"{\"var\":\"o/01\"}", "2"},
		{"{\"var\":\"l/0\"}", "10"},
		{"{\"var\":\"l/00\"}", "null"},
		{"{\"var\":\"l/-0\"}", "null"},
		{"{\"var\":\"l/ 0\"}", "null"},
		{"{\"var\":\"l/1.0\"}", "null"},
		{"{\"var\":\"l/1/0\"}", "20"},
		{"{\"var\":\"l/2/x\"}", "1"},
		{"{\"var\":\"l/3\"}", "null"},
		{"{\"var\":\"l/length\"}", "null"},
		{"{\"var\":\"l/4294967295\"}", "null"},
		{"{\"var\":\"l/4294967296\"}", "null"},
		{"{\"var\":\"l/18446744073709551616\"}", "null"},
		/* and, or, not, null */
		{"{\"and\":[]}", "true"},
		{"{\"or\":[]}", "true"},
		{"{\"or\":[{\"value\":0}]}", "false"},
		{"{\"or\":[{\"value\":\"x\"}]}", "true"},
		{"{\"and\":{\"value\":true}}", "null"},
		{"{\"or\":{\"value\":true}}", "null"},
		{"{\"and\":null}", "null"},
		{"[{\"value\":\"0\"}]", "false"},
		{"[[],[[]]]", "true"},
		{"{\"not\":{\"value\":null}}", "true"},
		{"{\"not\":[]}", "false"},
		{"{\"not\":7}", "true"},
		{"{\"null\":{\"var\":\"a\"}}", "true"},
		{"{\"null\":{\"var\":\"zz\"}}", "true"},
		{"{\"null\":{\"value\":0}}", "false"},
		{"{\"null\":{\"bad\":0}}", "true"},
		{"{\"null\":[]}", "false"},
		/* an abort happens only if it is reached */
		{"[{\"value\":false},{\"var\":\"a/x\"}]", "false"},
		{"[{\"value\":true},{\"var\":\"a/x\"}]", ABORTS},
		{"{\"or\":[{\"value\":true},{\"var\":\"a/x\"}]}", "true"},
		{"{\"or\":[{\"var\":\"a/x\"},{\"value\":true}]}", ABORTS},
		{"{\"not\":{\"var\":\"a/x\"}}", ABORTS},
		{"{\"null\":{\"var\":\"a/x\"}}", ABORTS},
		{"{\"eq\":[{\"var\":\"a\"},{\"var\":\"a/x\"}]}", "null"},
		{"{\"eq\":[{\"value\":1},{\"var\":\"a/x\"}]}", ABORTS},
		{"{\"eq\":[{\"value\":1},{\"value\":1},{\"var\":\"a/x\"}]}", "true"},
		{"{\"in\":[{\"value\":1},{\"var\":\"a/x\"}]}", ABORTS},
		/* two operands */
		{"{\"eq\":[]}", "null"},
		{"{\"eq\":[{\"value\":1}]}", "null"},
		{"{\"eq\":[1,1]}", "null"},
		{"{\"eq\":{\"0\":{\"value\":1},\"1\":{\"value\":1}}}", "null"},
		{"{\"eq\":[{\"value\":null},{\"value\":null}]}", "null"},
		{"{\"not\":{\"eq\":[{\"var\":\"zz\"},{\"value\":1}]}}", "true"},
		{"{\"eq\":[{\"value\":1},{\"value\":\"1x\"}]}", "true"},
		{"{\"eq\":[{\"value\":\"1x\"},{\"value\":1}]}", "false"},
		{"{\"gt\":[{\"value\":[2]},{\"value\":[1]}]}", "null"},
		{"{\"gte\":[{\"value\":[1]},{\"value\":[1]}]}", "true"},
		{"{\"gt\":[{\"value\":[1]},{\"value\":[1]}]}", "false"},
		{"{\"lte\":[{\"value\":{}},{\"value\":{}}]}", "true"},
		{"{\"lt\":[{\"value\":\"\\ud83d\\ude00\"},{\"value\":\"\\uff5e\"}]}",
		 "true"},
		/* in */
		{"{\"in\":[{\"value\":[1,\"2\",null]},{\"value\":2}]}", "true"},
		{"{\"in\":[{\"value\":[null]},{\"value\":0}]}", "false"},
		{"{\"in\":[{\"value\":[[1],{}]},{\"value\":{}}]}", "true"},
		{"{\"in\":[{\"value\":[]},{\"value\":1}]}", "false"},
		{"{\"in\":[{\"value\":[1]},{\"value\":null}]}", "null"},
		{"{\"in\":[{\"value\":\"abc\"},{\"value\":\"bc\"}]}", "true"},
		{"{\"in\":[{\"value\":\"ababc\"},{\"value\":\"abc\"}]}", "true"},
		{"{\"in\":[{\"value\":\"abc\"},{\"value\":\"\"}]}", "true"},
		{"{\"in\":[{\"value\":\"\"},{\"value\":\"a\"}]}", "false"},
		{"{\"in\":[{\"value\":\"\"},{\"value\":\"\"}]}", "true"},
		{"{\"in\":[{\"value\":\"ab\"},{\"value\":\"abc\"}]}", "false"},
		{"{\"in\":[{\"value\":\"x1.5y\"},{\"value\":1.5}]}", "true"},
		{"{\"in\":[{\"value\":\"abc\"},{\"value\":[]}]}", "false"},
		{"{\"in\":[{\"var\":\"o\"},{\"value\":5}]}", "true"},
		{"{\"in\":[{\"var\":\"o\"},{\"value\":\"k\"}]}", "true"},
		{"{\"in\":[{\"var\":\"o\"},{\"value\":{}}]}", "false"},
		{"{\"in\":[{\"value\":{\"true\":0}},{\"value\":true}]}", "true"},
		{"{\"in\":[{\"value\":5},{\"value\":5}]}", "null"},
		{"{\"in\":[{\"value\":true},{\"value\":true}]}", "null"},
		/* match, versions */
		{"{\"match\":[{\"var\":\"n\"},{\"value\":5}]}", "true"},
		{"{\"match\":[{\"value\":true},{\"value\":\"^tr\"}]}", "true"},
		{"{\"match\":[{\"value\":\"a\"},{\"value\":\"(\"}]}", "null"},
		{"{\"match\":[{\"var\":\"l\"},{\"value\":\"a\"}]}", "null"},
		{"{\"match\":[{\"var\":\"s\"},{\"value\":\"^x.y$\"}]}", "true"},
		{"{\"semver_eq\":[{\"value\":1.5},{\"value\":\"v1.5.0\"}]}", "true"},
		{"{\"semver_gt\":[{\"value\":\"1.10\"},{\"value\":\"1.9\"}]}", "true"},
		{"{\"semver_gte\":[{\"value\":\"1.9\"},{\"value\":\"1.9\"}]}", "true"},
		{"{\"semver_lt\":[{\"value\":\"1\"},{\"value\":\"1-a\"}]}", "false"},
		{"{\"semver_lte\":[{\"value\":\"\"},{\"value\":\"1\"}]}", "null"},
		{"{\"semver_eq\":[{\"value\":[]},{\"value\":[]}]}", "null"},
	};
	EvalContext context;
	Value root = value_of(variables);
	size_t index;

	init_context(&context, &root);
	for (index = 0; index < COUNT(cases); index++)
	{
		const char *source = cases[index].expression;
		bool aborts = strcmp(cases[index].expected, ABORTS) == 0;
		Value expected = value_of(aborts ? "null" : cases[index].expected);
		Value result;
		bool aborted;

		tap_ok(run_expression(parse(source, strlen(source)), &context, &result,
							  &aborted) == ENGINE_OK &&
				   aborted == aborts && same_value(&result, &expected),
			   "%s", source);
	}
}

static void
test_evaluation(void)
{
	SystemAttribute system[2];
	EvalContext context;
	const ExprNode *expression;
	Value variables = value_of("{\"environment\":null,\"l\":[[1]]}");
	Value result;
	size_t size;
	bool aborted;
	const ExprNode *operand;
	int clause;
	const char *source;
	char deep[4 * ENGINE_MAX_DEPTH];
	size_t at;

	init_context(&context, &variables);
	system[0].name = TEXT("application");
	system[0].value = value_of("{\"name\":\"web\"}");
	system[1].name = TEXT("environment");
	system[1].value = value_of("\"production\"");
	context.system = system;
	context.nsystem = 2;
	tap_ok(expression_extract(&context, TEXT("application/name"), &result,
							  &aborted) &&
			   result.kind == VALUE_STRING,
		   "a system attribute");
	tap_ok(
		expression_extract(&context, TEXT("environment"), &result, &aborted) &&
			result.kind == VALUE_NULL,
		"the user's null wins over a system attribute");
	tap_ok(!expression_extract(&context, TEXT("environment/x"), &result,
							   &aborted) &&
			   aborted && result.kind == VALUE_NULL,
		   "a step into the user's null aborts");
	tap_ok(!expression_extract(&context, TEXT("l/application"), &result,
							   &aborted) &&
			   !aborted && result.kind == VALUE_NULL,
		   "system attributes count at the first step only");
	context.variables.kind = VALUE_NULL;
	tap_ok(
		expression_extract(&context, TEXT("environment"), &result, &aborted) &&
			result.kind == VALUE_STRING,
		"system attributes without variables");
	tap_ok(!expression_extract(&context, TEXT("l/0"), &result, &aborted) &&
			   !aborted,
		   "no variables: missing, not aborted");

	init_context(&context, &variables);
	source = "[{\"value\":1},{\"eq\":[{\"var\":\"zz\"},{\"value\":1}]},"
			 "{\"var\":\"environment/x\"}]";
	tap_ok(expression_compile(parse(source, strlen(source)), &arena,
							  &expression, &size) == ENGINE_OK &&
			   expression_deciding_clause(expression, &context, &operand,
										  &clause) == ENGINE_OK &&
			   clause == 1,
		   "the deciding clause");
	source = "{\"and\":[{\"value\":1},{\"var\":\"environment/x\"}]}";
	(void) expression_compile(parse(source, strlen(source)), &arena,
							  &expression, &size);
	tap_ok(expression_deciding_clause(expression, &context, &operand,
									  &clause) == ENGINE_OK &&
			   clause == 1,
		   "a clause that aborts decides");
	source = "[{\"value\":1}]";
	(void) expression_compile(parse(source, strlen(source)), &arena,
							  &expression, &size);
	(void) expression_deciding_clause(expression, &context, &operand, &clause);
	tap_ok(clause == -1, "no clause decides");
	source = "{\"or\":[{\"value\":0}]}";
	(void) expression_compile(parse(source, strlen(source)), &arena,
							  &expression, &size);
	(void) expression_deciding_clause(expression, &context, &operand, &clause);
	tap_ok(clause == -1, "an \"or\" has no deciding clause");

	source = "{\"or\":[{\"in\":[{\"var\":\"l\"},{\"value\":[1]}]}]}";
	(void) expression_compile(parse(source, strlen(source)), &arena,
							  &expression, &size);
	context.work.stack_ok = never;
	tap_ok(expression_evaluate(expression, &context, &result, &aborted) ==
				   ENGINE_STACK &&
			   !aborted && result.kind == VALUE_NULL,
		   "no stack left");
	context.work.stack_ok = NULL;
	tap_ok(expression_evaluate(expression, &context, &result, &aborted) ==
				   ENGINE_OK &&
			   value_to_boolean(&result),
		   "no check of the stack");
	context.matches = NULL;
	source = "{\"match\":[{\"value\":\"a\"},{\"value\":\"a\"}]}";
	(void) expression_compile(parse(source, strlen(source)), &arena,
							  &expression, &size);
	tap_ok(expression_evaluate(expression, &context, &result, &aborted) ==
				   ENGINE_OK &&
			   result.kind == VALUE_NULL,
		   "match without a cache is null");

	for (at = 0; at < ENGINE_MAX_DEPTH; at++)
	{
		deep[at] = '[';
		deep[ENGINE_MAX_DEPTH + at] = ']';
	}
	tap_ok(run_expression(parse(deep, 2 * ENGINE_MAX_DEPTH), &context, &result,
						  &aborted) == ENGINE_OK &&
			   value_to_boolean(&result),
		   "the deepest expression");
}

/* Compiling without memory fails, and says so. */
static void
test_compile_no_memory(void)
{
	Meter meter = {0, 0};
	ArenaSource source = {meter_alloc, meter_free, &meter, NULL};
	Arena poor;
	const ExprNode *expression;
	size_t size;

	arena_init(&poor, &source);
	tap_ok(expression_compile(parse("[]", 2), &poor, &expression, &size) ==
				   ENGINE_NO_MEMORY &&
			   expression == NULL && poor.failed,
		   "no memory for an expression");
	arena_release(&poor);
}

int
main(int argc, char **argv)
{
	const char *folder = argc > 1 ? argv[1] : NULL;

	arena_init(&arena, &arena_malloc_source);
	matches = match_cache_create(&arena_malloc_source);

	test_arena();
	test_to_fixed();
	test_shortest();
	test_parse_numbers();
	test_trim();
	test_strings();
	test_compare();
	test_semver();
	test_match();
	test_match_bounds();
	test_match_cache();
	test_no_memory();
	test_expressions();
	test_evaluation();
	test_compile_no_memory();

	run_vectors(folder, "conversions.json", check_conversion);
	run_vectors(folder, "compare.json", check_compare);
	run_vectors(folder, "deep_equal.json", check_deep_equal);
	run_vectors(folder, "semver.json", check_semver);
	run_vectors(folder, "match.json", check_match);
	run_vectors(folder, "extract_var.json", check_extract);
	run_vectors(folder, "jsonexpr.json", check_jsonexpr);

	match_cache_destroy(matches);
	arena_release(&arena);
	return tap_done();
}
