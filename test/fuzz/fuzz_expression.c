/*
 * fuzz_expression.c
 *		Fuzz target: an expression is compiled and evaluated.
 *
 * The input is JSON: a list of the expression and the attributes, or an
 * expression alone.  It is evaluated at another address, then again while the
 * host fails in each of its ways: no memory, no stack, the work is to end.
 */
#include <stdlib.h>
#include <string.h>

#include "../engine/tree_value.h"
#include "expression.h"
#include "fuzz.h"

/*
 * What an evaluation may cost: so much, and so much for each byte, as long as
 * nothing is matched.  The factor is the depth of lists in lists, each of
 * which may compare the same attribute.
 */
#define LEAST_COST 100000
#define COST_FACTOR 64

/* Everything that an expression's evaluation depends on */
typedef struct Subject
{
	const ExprNode *expression;
	uint64_t clauses; /* at most so many operators */
	uint64_t size;
	Value variables;
	bool matches; /* some pattern may be matched */
	SystemAttribute system[2];
} Subject;

/* The result of an evaluation, as far as it can be compared */
typedef struct Outcome
{
	EngineStatus status;
	bool aborted;
	ValueKind kind;
	bool truth;
} Outcome;

/* The host's failures: it fails from the n-th time on that it is asked. */
static long memory_left;
static long asks_left;
static long stack_left;

static void *
poor_alloc(void *context, size_t size)
{
	(void) context;
	return memory_left-- > 0 ? malloc(size) : NULL;
}

static void
poor_free(void *context, void *chunk)
{
	(void) context;
	free(chunk);
}

static bool
is_interrupted(void *context)
{
	(void) context;
	return asks_left-- <= 0;
}

static bool
has_stack(void)
{
	return stack_left-- > 0;
}

static const ArenaSource poor_source = {poor_alloc, poor_free, NULL, NULL};

static void
rich_host(void)
{
	memory_left = asks_left = stack_left = 1000000000;
}

/* Evaluates with the host as it is; small slices let it be asked often. */
static Outcome
evaluate(const Subject *subject, MatchCache *cache, uint64_t slice)
{
	EvalContext context = {.variables = subject->variables,
						   .system = subject->system,
						   .nsystem = 2,
						   .matches = cache};
	Outcome outcome;
	char buffer[VALUE_NUMBER_TEXT];
	EngineText text;
	double number;
	Value value;

	work_begin(&context.work, is_interrupted, NULL);
	context.work.stack_ok = has_stack;
	context.work.granted = context.work.left = slice;
	outcome.status = expression_evaluate(subject->expression, &context, &value,
										 &outcome.aborted);
	outcome.kind = value.kind;
	outcome.truth = value_to_boolean(&value);
	if ((outcome.aborted || outcome.status != ENGINE_OK) &&
		value.kind != VALUE_NULL)
		abort();
	if (!subject->matches &&
		work_spent(&context.work) >
			LEAST_COST + COST_FACTOR * subject->clauses * subject->size)
		abort();
	if (outcome.status == ENGINE_OK)
	{
		(void) value_to_number(&value, &number, &context.work);
		if (value_to_string(&value, buffer, &text) && text.data == NULL &&
			text.length > 0)
			abort();
	}
	return outcome;
}

static void
must_be(Outcome found, Outcome expected)
{
	if (found.status != expected.status || found.aborted != expected.aborted ||
		found.kind != expected.kind || found.truth != expected.truth)
		abort();
}

/* The host fails once at each of the first times that it is asked. */
static void
fail_everywhere(const Subject *subject, Outcome expected)
{
	for (long times = 0; times < 20; times++)
	{
		MatchCache *cache;
		Outcome found;

		/* without memory a match may be null */
		rich_host();
		memory_left = 4 + times;
		cache = match_cache_create(&poor_source);
		if (cache != NULL)
		{
			found = evaluate(subject, cache, WORK_SLICE);
			if (found.status != ENGINE_OK)
				abort();
			memory_left = 1000000000;
			must_be(evaluate(subject, cache, WORK_SLICE), expected);

			asks_left = times;
			found = evaluate(subject, cache, 1);
			if (found.status == ENGINE_OK)
				must_be(found, expected);
			else if (found.status != ENGINE_INTERRUPTED)
				abort();

			rich_host();
			stack_left = times;
			found = evaluate(subject, cache, WORK_SLICE);
			if (found.status == ENGINE_OK)
				must_be(found, expected);
			else if (found.status != ENGINE_STACK)
				abort();

			rich_host();
			must_be(evaluate(subject, cache, 1), expected);
			match_cache_destroy(cache);
		}
		else if (times > 10)
			abort();
	}
}

/* More patterns than the cache holds must not change what it answers. */
static void
evict(MatchCache *cache)
{
	Work work = {.left = 0};

	for (char first = 'a'; first <= 'z'; first++)
	{
		for (char second = 'a'; second <= 'f'; second++)
		{
			char pattern[] = {first, second};

			(void) match_search(cache, (EngineText){"ab", 2},
								(EngineText){pattern, 2}, &work);
		}
	}
}

static void
explain(const Subject *subject, MatchCache *cache)
{
	EvalContext context = {.variables = subject->variables,
						   .system = subject->system,
						   .nsystem = 2,
						   .matches = cache};
	const ExprNode *clause;
	int index;

	if (expression_deciding_clause(subject->expression, &context, &clause,
								   &index) != ENGINE_OK ||
		(clause == NULL) != (index < 0))
		abort();
}

/* Compiling ends where the host wants it to. */
static void
compile_poorly(const JsonNode *source)
{
	ArenaSource chunks = poor_source;

	chunks.interrupted = is_interrupted;
	for (long times = 0; times < 4; times++)
	{
		const ExprNode *expression;
		size_t length;
		Arena arena;

		rich_host();
		memory_left = times / 2;
		asks_left = times % 2;
		arena_init(&arena, &chunks);
		if (expression_compile(source, &arena, &expression, &length) !=
				ENGINE_OK &&
			expression != NULL)
			abort();
		arena_release(&arena);
	}
}

/* Counts a byte, as a bound for the number of operators. */
static uint64_t
count_bytes(const uint8_t *data, size_t size, uint8_t byte)
{
	uint64_t count = 1;

	for (size_t i = 0; i < size; i++)
		count += data[i] == byte;
	return count;
}

static bool
mentions_match(const uint8_t *data, size_t size)
{
	/* escapes may spell it, too */
	return memmem(data, size, "match", 5) != NULL ||
		   memmem(data, size, "\\u", 2) != NULL;
}

static void
try_expression(Subject *subject, const ExprNode *expression, size_t length)
{
	MatchCache *cache = match_cache_create(&arena_malloc_source);
	ExprNode *moved = malloc(length);
	Outcome expected;

	if (cache == NULL || moved == NULL)
		abort();
	memcpy(moved, expression, length);
	subject->expression = moved;
	rich_host();
	expected = evaluate(subject, cache, WORK_SLICE);
	if (expected.status != ENGINE_OK)
		abort();
	explain(subject, cache);
	if (subject->matches)
		evict(cache);
	must_be(evaluate(subject, cache, WORK_SLICE), expected);

	/* what was matched with much effort is not tried twenty times */
	if (subject->size <= 4096)
		fail_everywhere(subject, expected);
	free(moved);
	match_cache_destroy(cache);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	Subject subject = {.size = size};
	const ExprNode *expression;
	const JsonNode *root;
	size_t length;
	Arena arena;

	arena_init(&arena, &arena_malloc_source);
	if (json_parse((const char *) data, size, ENGINE_MAX_DEPTH, &arena, &root,
				   NULL) == ENGINE_OK)
	{
		const JsonNode *source = root;

		if (root->kind == JSON_ARRAY && root->count == 2 &&
			json_element(root, 1)->kind == JSON_OBJECT)
		{
			source = json_element(root, 0);
			tree_value(json_element(root, 1), &arena, &subject.variables);
		}
		subject.clauses = count_bytes(data, size, '{');
		subject.matches = mentions_match(data, size);
		subject.system[0].name = (EngineText){"application", 11};
		subject.system[0].value.kind = VALUE_STRING;
		subject.system[0].value.u.string = (EngineText){"web", 3};
		subject.system[1].name = (EngineText){"app_version", 11};
		subject.system[1].value.kind = VALUE_NUMBER;
		subject.system[1].value.u.number = 1.5;
		if (expression_compile(source, &arena, &expression, &length) !=
			ENGINE_OK)
			abort();
		try_expression(&subject, expression, length);
		compile_poorly(source);
	}
	arena_release(&arena);
	return 0;
}
