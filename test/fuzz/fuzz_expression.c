/*
 * fuzz_expression.c
 *		Fuzz target: an expression is compiled and evaluated.
 *
 * The input is JSON: a list of the expression and the attributes, or an
 * expression alone.
 */
#include <stdlib.h>
#include <string.h>

#include "expression.h"
#include "fuzz.h"

/* Evaluates what was compiled, at another address. */
static void
evaluate(const ExprNode *expression, size_t size, EvalContext *context)
{
	ExprNode *moved = malloc(size);
	EngineText text;
	char buffer[VALUE_NUMBER_TEXT];
	double number;
	bool aborted;
	Value value;
	const ExprNode *clause;
	int index;

	memcpy(moved, expression, size);
	if (expression_evaluate(moved, context, &value, &aborted) != ENGINE_OK ||
		(aborted && value.kind != VALUE_NULL))
		abort();
	(void) value_to_boolean(&value);
	(void) value_to_number(&value, &number);
	if (value_to_string(&value, buffer, &text) && text.data == NULL &&
		text.length > 0)
		abort();
	if (expression_deciding_clause(moved, context, &clause, &index) !=
			ENGINE_OK ||
		(clause == NULL) != (index < 0))
		abort();
	free(moved);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	EvalContext context = {.matches = NULL};
	const ExprNode *expression;
	const JsonNode *root;
	size_t length;
	Arena arena;

	arena_init(&arena, &arena_malloc_source);
	context.matches = match_cache_create(&arena_malloc_source);
	if (json_parse((const char *) data, size, ENGINE_MAX_DEPTH, &arena, &root,
				   NULL) == ENGINE_OK)
	{
		const JsonNode *source = root;

		if (root->kind == JSON_ARRAY && root->count == 2 &&
			json_element(root, 1)->kind == JSON_OBJECT)
		{
			source = json_element(root, 0);
			value_from_json(json_element(root, 1), &context.variables);
		}
		if (expression_compile(source, &arena, &expression, &length) !=
			ENGINE_OK)
			abort();
		evaluate(expression, length, &context);
	}
	match_cache_destroy(context.matches);
	arena_release(&arena);
	return 0;
}
