/*
 * test_work.c
 *		Tests of what work costs, and that the host can end it.
 *
 * A cost counts steps, not time: what takes more steps than its input's size
 * times a factor fails here with small inputs already.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "expression.h"
#include "harness.h"
#include "hash.h"
#include "number.h"
#include "tree_value.h"

#define lengthof(array) (sizeof(array) / sizeof((array)[0]))

static Arena arena;
static MatchCache *matches;

/* The host ends the work when it has been asked so often. */
static long patience;
static long asked;

static bool
lose_patience(void *context)
{
	(void) context;
	asked++;
	return patience-- <= 0;
}

/* before, count times part, after */
static EngineText
repeated(const char *before, const char *part, size_t count, const char *after)
{
	size_t length = strlen(part);
	char *text = arena_alloc(&arena, strlen(before) + count * length +
										 strlen(after) + 1);
	EngineText result = {text, 0};
	char *to;

	if (text == NULL)
		abort();
	to = text + sprintf(text, "%s", before);
	for (size_t i = 0; i < count; i++, to += length)
		memcpy(to, part, length);
	to += sprintf(to, "%s", after);
	result.length = (size_t) (to - text);
	return result;
}

/* A list of numbers, or an object whose members are named by them. */
static EngineText
numbered(const char *before, size_t count, bool object, bool downwards,
		 const char *after)
{
	char *text =
		arena_alloc(&arena, strlen(before) + count * 24 + strlen(after) + 3);
	EngineText result = {text, 0};
	char *to;

	if (text == NULL)
		abort();
	to = text + sprintf(text, "%s%c", before, object ? '{' : '[');
	for (size_t i = 0; i < count; i++)
	{
		size_t number = downwards ? count - i : i + 1;

		to += sprintf(to, i == 0 ? "" : ",");
		to += object ? sprintf(to, "\"k%zu\":%zu", number, number)
					 : sprintf(to, "%zu", number);
	}
	to += sprintf(to, "%c%s", object ? '}' : ']', after);
	result.length = (size_t) (to - text);
	return result;
}

static const JsonNode *
parse(EngineText text)
{
	const JsonNode *root;

	if (json_parse(text.data, text.length, ENGINE_MAX_DEPTH, &arena, &root,
				   NULL) != ENGINE_OK)
	{
		printf("Bail out! cannot parse %.60s\n", text.data);
		exit(1);
	}
	return root;
}

static EngineText
join(EngineText a, EngineText b)
{
	char *text = arena_alloc(&arena, a.length + b.length + 1);

	memcpy(text, a.data, a.length);
	memcpy(text + a.length, b.data, b.length);
	return (EngineText){text, a.length + b.length};
}

static EngineText
text_of(const char *text)
{
	return (EngineText){text, strlen(text)};
}

/*
 * An expression over attributes: what it costs, and that it ends whenever the
 * host wants it to.
 */
static void
check(const char *name, EngineText expression, EngineText attributes,
	  const char *expected, uint64_t factor)
{
	uint64_t size = expression.length + attributes.length;
	EvalContext context = {.matches = matches};
	const ExprNode *compiled;
	Value result;
	bool aborted;
	size_t block;
	long asks;
	bool ends = true;

	if (expression_compile(parse(expression), &arena, &compiled, &block) !=
		ENGINE_OK)
		abort();
	tree_value(parse(attributes), &arena, &context.variables);

	/* patterns are compiled once */
	(void) expression_evaluate(compiled, &context, &result, &aborted);

	work_begin(&context.work, lose_patience, NULL);
	patience = 1000000000;
	asked = 0;
	tap_ok(expression_evaluate(compiled, &context, &result, &aborted) ==
				   ENGINE_OK &&
			   (strcmp(expected, "null") == 0
					? result.kind == VALUE_NULL
					: result.kind == VALUE_BOOLEAN &&
						  result.u.boolean == (expected[0] == 't')),
		   "%s: %s", name, expected);
	tap_ok(work_spent(&context.work) <= factor * size,
		   "%s: costs %llu for %llu bytes", name,
		   (unsigned long long) work_spent(&context.work),
		   (unsigned long long) size);

	/* at some of the times that it was asked */
	asks = asked;
	for (long at = 0; at < asks && ends; at += asks / 10 + 1)
	{
		work_begin(&context.work, lose_patience, NULL);
		patience = at;
		asked = 0;
		ends = expression_evaluate(compiled, &context, &result, &aborted) ==
				   ENGINE_INTERRUPTED &&
			   asked == at + 1 && result.kind == VALUE_NULL && !aborted &&
			   work_spent(&context.work) <= factor * size;
	}
	tap_ok(ends && (asks > 0 || size < WORK_SLICE),
		   "%s: ends when the host wants it to (%ld)", name, asks);

	/* and is not spoilt by that */
	work_begin(&context.work, NULL, NULL);
	tap_ok(expression_evaluate(compiled, &context, &result, &aborted) ==
				   ENGINE_OK &&
			   (result.kind == VALUE_NULL) == (strcmp(expected, "null") == 0),
		   "%s: the same afterwards", name);
}

static void
test_costs(void)
{
	EngineText up = numbered("", 20000, true, false, "");
	EngineText down = numbered("", 20000, true, true, "");
	EngineText objects;

	check("a long needle",
		  text_of("{\"in\":[{\"var\":\"h\"},{\"var\":\"n\"}]}"),
		  join(repeated("{\"h\":\"", "a", 200000, "\""),
			   repeated(",\"n\":\"", "a", 100000, "b\"}")),
		  "false", 8);
	check("a long needle with a period",
		  text_of("{\"in\":[{\"var\":\"h\"},{\"var\":\"n\"}]}"),
		  join(repeated("{\"h\":\"", "aab", 70000, "\""),
			   repeated(",\"n\":\"", "aab", 30000, "aaa\"}")),
		  "false", 8);
	check("a short needle",
		  text_of("{\"in\":[{\"var\":\"h\"},{\"var\":\"n\"}]}"),
		  join(repeated("{\"h\":\"", "a", 300000, "\""),
			   repeated(",\"n\":\"", "a", 4000, "b\"}")),
		  "false", 2);

	objects = join(join(text_of("{\"eq\":[{\"value\":"), up),
				   join(text_of("},{\"value\":"), join(down, text_of("}]}"))));
	check("objects in opposite order", objects, text_of("{}"), "true", 8);
	check("an object of the attributes",
		  join(join(text_of("{\"eq\":[{\"var\":\"o\"},{\"value\":"), up),
			   text_of("}]}")),
		  join(text_of("{\"o\":"), join(down, text_of("}"))), "true", 8);
	check("numbers and a long text",
		  text_of("{\"in\":[{\"var\":\"l\"},{\"var\":\"t\"}]}"),
		  join(numbered("{\"l\":", 20000, false, false, ""),
			   repeated(",\"t\":\"", "0", 200000, "\"}")),
		  "false", 8);
	check("texts and a number",
		  text_of("{\"in\":[{\"var\":\"l\"},{\"value\":1e-300}]}"),
		  repeated("{\"l\":[", "\"0.000000000001\",", 20000, "0]}"), "false",
		  8);
	check("a long number", text_of("{\"gt\":[{\"value\":1},{\"var\":\"t\"}]}"),
		  repeated("{\"t\":\"", "9", 400000, "e-500000\"}"), "true", 4);
	check("blanks before a number",
		  text_of("{\"eq\":[{\"value\":1},{\"var\":\"t\"}]}"),
		  repeated("{\"t\":\"", " ", 400000, "1\"}"), "true", 4);
	check("long versions",
		  text_of("{\"semver_eq\":[{\"var\":\"t\"},{\"var\":\"t\"}]}"),
		  repeated("{\"t\":\"", "1.", 100000, "0-a\"}"), "true", 64);
	check("a version of zeros",
		  text_of("{\"semver_eq\":[{\"var\":\"t\"},{\"value\":\"1\"}]}"),
		  repeated("{\"t\":\"", "0", 200000, "1\"}"), "true", 8);
	check("a version of pre-releases",
		  text_of("{\"semver_gt\":[{\"var\":\"t\"},{\"var\":\"t\"}]}"),
		  repeated("{\"t\":\"1-", "a.", 100000, "b\"}"), "false", 64);
	check("equal texts", text_of("{\"eq\":[{\"var\":\"t\"},{\"var\":\"t\"}]}"),
		  repeated("{\"t\":\"", "a", 400000, "\"}"), "true", 2);
	check("many clauses", repeated("[", "{\"value\":1},", 20000, "[]]"),
		  text_of("{}"), "true", 16);
	check("a long path", repeated("{\"var\":\"", "a/", 20000, "a\"}"),
		  text_of("{\"a\":{}}"), "null", 64);
}

static void
test_matches(void)
{
	check("a pattern on a long text",
		  text_of("{\"match\":[{\"var\":\"t\"},{\"value\":\"b\"}]}"),
		  repeated("{\"t\":\"", "a", 300000, "\"}"), "false", 4);
	check("a class on a long text",
		  text_of("{\"match\":[{\"var\":\"t\"},{\"value\":\"^[^x]*$\"}]}"),
		  repeated("{\"t\":\"", "\xc3\xa9", 150000, "\"}"), "true", 8);

	/* these are ended by a limit, or take long in their nature */
	check("an exponential pattern",
		  text_of("{\"match\":[{\"var\":\"t\"},{\"value\":\"^(a+)+$\"}]}"),
		  repeated("{\"t\":\"", "a", 30, "b\"}"), "null", 10000000);
	check("a pattern from each place",
		  text_of("{\"match\":[{\"var\":\"t\"},{\"value\":\"a*[bc]*d\"}]}"),
		  repeated("{\"t\":\"", "a", 3000, "\"}"), "false", 100000);
	check("a pattern that PCRE2 cannot match",
		  text_of("{\"match\":[{\"var\":\"t\"},"
				  "{\"value\":\"(?<=(a)\\\\1*)b\"}]}"),
		  repeated("{\"t\":\"", "a", 2000, "\"}"), "false", 100000);
}

/* Code with callouts says the same as code without. */
static void
test_long_and_short(void)
{
	static const struct
	{
		const char *pattern;
		const char *end;
		bool found;
	} cases[] = {
		{"^(?:x|y)*z$", "z", true},
		{"(?:x|y)*z$", "!", false},
		{"(?=(x+))\\1z", "z", true},
		{"(x|xx|xxx)(?!x)$", "", true},
		{"(?:x{2,5}?){3}(?<=xx)z", "z", true},
		{"(?:x*x*)*q", "z", false},
		{"x+?(?:z|q)\\b", "z", true},
		{"(?<!x)z", "z", false},
		{"([xz])\\1$", "zz", true},
		{"(?:(x)|(z)){4}\\b$", "zz", true},
		{"^x(?:){0}(?:)*x{3}.*z[^]$", "z\n", true},
		{"", "", true},
	};

	for (size_t i = 0; i < lengthof(cases); i++)
	{
		bool right = true;
		Work work = {.left = 0};

		for (size_t length = 10; length <= 100000; length *= 100)
		{
			EngineText text = repeated("", "x", length, cases[i].end);
			MatchResult found =
				match_search(matches, text, text_of(cases[i].pattern), &work);

			if (found != (cases[i].found ? MATCH_YES : MATCH_NO) &&
				(found != MATCH_UNDEFINED || length < 1000))
				right = false;
		}
		tap_ok(right, "short and long texts: %s", cases[i].pattern);
	}
}

/* Whether needle is in haystack, the plain way */
static bool
is_part(EngineText haystack, EngineText needle)
{
	for (size_t at = 0; at + needle.length <= haystack.length; at++)
	{
		if (memcmp(haystack.data + at, needle.data, needle.length) == 0)
			return true;
	}
	return false;
}

/* Long needles over few letters, many of them periodic */
static void
test_contains(void)
{
	uint32_t random = 1;
	unsigned wrong = 0;
	unsigned found = 0;
	Work work = {.left = 0};

	for (int round = 0; round < 1500; round++)
	{
		char haystack[20000];
		char needle[9000];
		EngineText text = {haystack, 0};
		EngineText part = {needle, 4100};
		size_t period;

		random = random * 1664525 + 1013904223;
		text.length = 9000 + (random >> 16) % 11000;
		random = random * 1664525 + 1013904223;
		period = 1 + (random >> 16) % (round % 3 == 0 ? 5000 : 40);
		for (size_t i = 0; i < text.length; i++)
		{
			random = random * 1664525 + 1013904223;
			haystack[i] = i >= period && (random >> 12) % 3000 != 0
							  ? haystack[i - period]
							  : (char) ('a' + (random >> 28) % 2);
		}
		random = random * 1664525 + 1013904223;
		part.length += (random >> 16) % 4000;
		random = random * 1664525 + 1013904223;
		memcpy(needle, haystack + (random >> 8) % (text.length - part.length),
			   part.length);
		if (round % 2 == 0)
			needle[(random >> 4) % part.length] ^= 3;
		found += is_part(text, part);
		wrong += text_contains(text, part, &work) != is_part(text, part);
	}
	tap_ok(wrong == 0 && found > 500 && found < 1400,
		   "long needles (%u found, %u wrong)", found, wrong);

	wrong = 0;
	for (size_t at = 32000; at < 33600; at++)
	{
		EngineText text = repeated("", "a", 70000, "");

		((char *) text.data)[at] = 'b';
		((char *) text.data)[at + 1000] = 'c';
		wrong +=
			!text_contains(text, (EngineText){text.data + at, 1001}, &work);
		arena_release(&arena);
	}
	tap_ok(wrong == 0, "short needles across pieces (%u wrong)", wrong);
}

/* Compiling, copying and hashing end, too. */
static void
test_ends(void)
{
	EngineText keys = numbered("{\"value\":", 20000, true, true, "}");
	const JsonNode *tree = parse(keys);
	ArenaSource source = arena_malloc_source;
	bool ends = true;
	long asks;
	EngineText text = repeated("", "\xf0\x9f\x98\x80x", 60001, "");
	UnitHash whole;
	UnitHash pieces;
	Work work;

	source.interrupted = lose_patience;
	patience = 1000000000;
	asked = 0;
	for (long at = -1; at < asked && ends; at++)
	{
		const ExprNode *expression;
		size_t size;
		Arena own;
		EngineStatus status;

		patience = at < 0 ? 1000000000 : at;
		asks = asked;
		arena_init(&own, &source);
		status = expression_compile(tree, &own, &expression, &size);
		if (at >= 0)
		{
			ends = status == ENGINE_INTERRUPTED || status == ENGINE_NO_MEMORY;
			asked = asks;
		}
		arena_release(&own);
	}
	tap_ok(ends && asked > 10, "compiling ends when the host wants it to (%ld)",
		   asked);

	unit_hash(text.data, text.length, &whole);
	work_begin(&work, NULL, NULL);
	tap_ok(unit_hash_long(text.data, text.length, &pieces, &work) &&
			   memcmp(whole.text, pieces.text, UNIT_HASH_LENGTH) == 0 &&
			   whole.murmur == pieces.murmur,
		   "a hash in pieces");
	work_begin(&work, lose_patience, NULL);
	patience = 3;
	tap_ok(!unit_hash_long(text.data, text.length, &pieces, &work),
		   "a hash ends when the host wants it to");
	work_begin(&work, lose_patience, NULL);
	patience = 1;
	text = repeated("", "\xe3\x80\x80", 200000, "");
	(void) text_trim(text.data, text.length, &work);
	tap_ok(work.stopped, "trimming ends when the host wants it to");
}

int
main(void)
{
	arena_init(&arena, &arena_malloc_source);
	matches = match_cache_create(&arena_malloc_source);
	test_costs();
	test_matches();
	test_long_and_short();
	test_contains();
	test_ends();
	match_cache_destroy(matches);
	arena_release(&arena);
	return tap_done();
}
