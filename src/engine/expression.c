/*
 * expression.c
 *		Compiler and evaluator of audience expressions (protocol 6).
 *
 * The compiler decides everything that does not depend on attributes: which
 * key of an object counts, whether it is an operator and has the form of
 * argument it needs, where a path splits.  What can only be null becomes an
 * EXPR_NULL node, so that the evaluator has no malformed input to deal with.
 *
 * A compiled expression is an array of nodes, path steps, names and literals
 * in one block.  Links count from the node (or step) that holds them.
 */
#include "expression.h"

#include <string.h>

#include "semver.h"

typedef enum ExprKind
{
	EXPR_NULL = 0, /* no valid expression */
	EXPR_LITERAL, /* link: JsonNode */
	EXPR_VAR, /* link: ExprStep[count] */
	EXPR_AND, /* link: ExprNode[count] */
	EXPR_OR, /* link: ExprNode[count] */
	EXPR_NOT, /* link: ExprNode[1], as for EXPR_IS_NULL */
	EXPR_IS_NULL,
	EXPR_EQ, /* link: ExprNode[2], as for all that follow */
	EXPR_GT,
	EXPR_GTE,
	EXPR_LT,
	EXPR_LTE,
	EXPR_IN,
	EXPR_MATCH,
	EXPR_SEMVER_EQ,
	EXPR_SEMVER_GT,
	EXPR_SEMVER_GTE,
	EXPR_SEMVER_LT,
	EXPR_SEMVER_LTE
} ExprKind;

struct ExprNode
{
	uint32_t kind; /* ExprKind */
	uint32_t count;
	int64_t link;
};

/* One step of a path */
typedef struct ExprStep
{
	int64_t link; /* the name's bytes */
	uint32_t length;
	uint32_t index; /* as an index into an array, or NO_INDEX */
} ExprStep;

#define NO_INDEX UINT32_MAX

/* What a node, an element, or a step of a path costs, apart from its length */
#define NODE_COST 16

typedef struct ExprOperator
{
	const char *name;
	ExprKind kind;
} ExprOperator;

/* Those whose argument is a list of two expressions */
static const ExprOperator binary_operators[] = {
	{"eq", EXPR_EQ},
	{"gt", EXPR_GT},
	{"gte", EXPR_GTE},
	{"lt", EXPR_LT},
	{"lte", EXPR_LTE},
	{"in", EXPR_IN},
	{"match", EXPR_MATCH},
	{"semver_eq", EXPR_SEMVER_EQ},
	{"semver_gt", EXPR_SEMVER_GT},
	{"semver_gte", EXPR_SEMVER_GTE},
	{"semver_lt", EXPR_SEMVER_LT},
	{"semver_lte", EXPR_SEMVER_LTE},
};

/*
 * The compiler's output.  It runs twice: first without a block, to learn the
 * size, then to fill the block.
 */
typedef struct ExprBuilder
{
	char *block; /* NULL in the first run */
	size_t used;
	Work work;
} ExprBuilder;

/* How an evaluation goes on; the order of the values has no meaning. */
typedef enum EvalOutcome
{
	EVAL_OK = 0,
	EVAL_ABORTED, /* a step into a null value */
	EVAL_STACK,
	EVAL_INTERRUPTED
} EvalOutcome;

static void compile(ExprBuilder *builder, const JsonNode *source, size_t at);
static EvalOutcome evaluate(const ExprNode *node, EvalContext *context,
							Value *result);

/*
 * The operators with large local buffers stay out of the evaluator's frame,
 * which is the hot path.
 */
#define COLD __attribute__((noinline))

/* Reserves size bytes of the block; returns where they start. */
static size_t
reserve(ExprBuilder *builder, size_t size)
{
	size_t at = builder->used;

	builder->used += (size + 7) & ~(size_t) 7;
	return at;
}

static void
put_node(ExprBuilder *builder, size_t at, ExprKind kind, uint32_t count,
		 size_t target)
{
	ExprNode *node;

	if (builder->block == NULL)
		return;
	node = (ExprNode *) (builder->block + at);
	node->kind = kind;
	node->count = count;
	node->link = (int64_t) target - (int64_t) at;
}

static bool
text_equals(const JsonNode *text, const char *other)
{
	size_t length = strlen(other);

	return text->count == length && memcmp(json_text(text), other, length) == 0;
}

/*
 * The index that a step means in an array: canonical decimal only, no sign,
 * no leading zero.
 */
static uint32_t
step_index(const char *text, size_t length)
{
	uint64_t index = 0;
	size_t at;

	if (length == 0 || length > 10 || (length > 1 && text[0] == '0'))
		return NO_INDEX;
	for (at = 0; at < length; at++)
	{
		if (text[at] < '0' || text[at] > '9')
			return NO_INDEX;
		index = index * 10 + (uint64_t) (text[at] - '0');
	}
	return index < NO_INDEX ? (uint32_t) index : NO_INDEX;
}

/*
 * Takes the first step off *path; *last tells whether nothing follows it.  The
 * empty path has one step, the empty name.
 */
static EngineText
take_step(EngineText *path, bool *last)
{
	EngineText step = *path;
	const char *slash = NULL;

	if (path->length > 0)
		slash = memchr(path->data, '/', path->length);
	*last = slash == NULL;
	if (slash != NULL)
	{
		step.length = (size_t) (slash - path->data);
		path->data = slash + 1;
		path->length -= step.length + 1;
	}
	return step;
}

static void
compile_path(ExprBuilder *builder, const JsonNode *text, size_t at)
{
	EngineText path = {json_text(text), text->count};
	uint32_t count = 1;
	uint32_t index;
	size_t steps;
	size_t names;
	size_t byte;

	for (byte = 0; byte < path.length; byte++)
	{
		if (byte % WORK_PIECE == 0 && !work_goes_on(&builder->work, WORK_PIECE))
			return;
		count += path.data[byte] == '/';
	}
	steps = reserve(builder, count * sizeof(ExprStep));
	names = reserve(builder, path.length);
	put_node(builder, at, EXPR_VAR, count, steps);
	if (builder->block == NULL)
		return;

	for (index = 0; index < count && work_goes_on(&builder->work, NODE_COST);
		 index++)
	{
		size_t place = steps + index * sizeof(ExprStep);
		ExprStep *step = (ExprStep *) (builder->block + place);
		bool last;
		EngineText name = take_step(&path, &last);

		if (name.length > 0)
			memcpy(builder->block + names, name.data, name.length);
		step->link = (int64_t) names - (int64_t) place;
		step->length = (uint32_t) name.length;
		step->index = step_index(name.data, name.length);
		names += name.length;
	}
}

/* var: a path, or an object that holds one as "path" */
static void
compile_var(ExprBuilder *builder, const JsonNode *argument, size_t at)
{
	if (argument->kind == JSON_OBJECT)
		argument = json_get(argument, "path");
	if (argument == NULL || argument->kind != JSON_STRING)
		put_node(builder, at, EXPR_NULL, 0, at);
	else
		compile_path(builder, argument, at);
}

static void
compile_literal(ExprBuilder *builder, const JsonNode *literal, size_t at)
{
	size_t copy = reserve(builder, json_copy_size(literal, &builder->work));

	put_node(builder, at, EXPR_LITERAL, 0, copy);
	if (builder->block != NULL)
		(void) json_copy(literal, builder->block + copy, &builder->work);
}

/*
 * An operator over a list of expressions.  For operators of two operands what
 * is missing stays an EXPR_NULL, and what is too much is left out.
 */
static void
compile_list(ExprBuilder *builder, ExprKind kind, const JsonNode *list,
			 uint32_t count, size_t at)
{
	size_t operands;
	uint32_t index;

	if (list->kind != JSON_ARRAY)
	{
		put_node(builder, at, EXPR_NULL, 0, at);
		return;
	}
	operands = reserve(builder, count * sizeof(ExprNode));
	put_node(builder, at, kind, count, operands);
	for (index = 0; index < count && work_goes_on(&builder->work, NODE_COST);
		 index++)
	{
		size_t place = operands + index * sizeof(ExprNode);

		if (index < list->count)
			compile(builder, json_element(list, index), place);
		else
			put_node(builder, place, EXPR_NULL, 0, place);
	}
}

static void
compile_unary(ExprBuilder *builder, ExprKind kind, const JsonNode *argument,
			  size_t at)
{
	size_t operand = reserve(builder, sizeof(ExprNode));

	put_node(builder, at, kind, 1, operand);
	compile(builder, argument, operand);
}

/* Compiles one expression into the node at that place of the block. */
static void
compile(ExprBuilder *builder, const JsonNode *source, size_t at)
{
	const JsonNode *name;
	const JsonNode *argument;
	size_t index;

	if (source->kind == JSON_ARRAY)
	{
		compile_list(builder, EXPR_AND, source, source->count, at);
		return;
	}
	if (source->kind != JSON_OBJECT || source->count == 0)
	{
		put_node(builder, at, EXPR_NULL, 0, at);
		return;
	}

	name = json_member_name(source, 0);
	argument = json_member_value(source, 0);
	if (text_equals(name, "value"))
		compile_literal(builder, argument, at);
	else if (text_equals(name, "var"))
		compile_var(builder, argument, at);
	else if (text_equals(name, "and"))
		compile_list(builder, EXPR_AND, argument, argument->count, at);
	else if (text_equals(name, "or"))
		compile_list(builder, EXPR_OR, argument, argument->count, at);
	else if (text_equals(name, "not"))
		compile_unary(builder, EXPR_NOT, argument, at);
	else if (text_equals(name, "null"))
		compile_unary(builder, EXPR_IS_NULL, argument, at);
	else
	{
		for (index = 0;
			 index < sizeof(binary_operators) / sizeof(binary_operators[0]);
			 index++)
		{
			if (text_equals(name, binary_operators[index].name))
			{
				compile_list(builder, binary_operators[index].kind, argument, 2,
							 at);
				return;
			}
		}
		put_node(builder, at, EXPR_NULL, 0, at);
	}
}

EngineStatus
expression_compile(const JsonNode *source, Arena *arena,
				   const ExprNode **expression, size_t *size)
{
	ExprBuilder builder = {.block = NULL};

	*expression = NULL;
	*size = 0;
	work_begin(&builder.work, arena->source->interrupted,
			   arena->source->context);
	compile(&builder, source, reserve(&builder, sizeof(ExprNode)));
	if (builder.work.stopped)
		return ENGINE_INTERRUPTED;
	builder.block = arena_alloc(arena, builder.used);
	if (builder.block == NULL)
		return ENGINE_NO_MEMORY;
	*size = builder.used;
	builder.used = 0;
	compile(&builder, source, reserve(&builder, sizeof(ExprNode)));
	if (builder.work.stopped)
		return ENGINE_INTERRUPTED;
	*expression = (const ExprNode *) builder.block;
	return ENGINE_OK;
}

/* An attribute by name: the user's, or else the system's. */
static bool
find_attribute(const EvalContext *context, const char *name, size_t length,
			   Value *result)
{
	int index;

	if (context->variables.kind == VALUE_OBJECT &&
		context->variables.u.container.ops->member(&context->variables, name,
												   length, result))
		return true;
	for (index = 0; index < context->nsystem; index++)
	{
		const SystemAttribute *attribute = &context->system[index];

		if (attribute->name.length == length &&
			memcmp(attribute->name.data, name, length) == 0)
		{
			*result = attribute->value;
			return true;
		}
	}
	return false;
}

/*
 * One step into value, which is replaced; false if there is nothing.  The
 * caller has dealt with null.
 */
static bool
walk_step(Value *value, const char *name, size_t length, uint32_t index)
{
	Value container = *value;

	if (container.kind == VALUE_OBJECT)
		return container.u.container.ops->member(&container, name, length,
												 value);
	if (container.kind == VALUE_ARRAY && index != NO_INDEX)
		return container.u.container.ops->element(&container, index, value);
	return false;
}

static EvalOutcome
evaluate_var(const ExprNode *node, EvalContext *context, Value *result)
{
	const ExprStep *step =
		(const ExprStep *) ((const char *) node + node->link);
	const ExprStep *end = step + node->count;

	if (find_attribute(context, (const char *) step + step->link, step->length,
					   result))
	{
		for (;;)
		{
			if (++step == end)
				return EVAL_OK;
			if (!work_goes_on(&context->work, NODE_COST + step->length))
				return EVAL_INTERRUPTED;
			if (result->kind == VALUE_NULL)
				return EVAL_ABORTED;
			if (!walk_step(result, (const char *) step + step->link,
						   step->length, step->index))
				break;
		}
	}
	result->kind = VALUE_NULL;
	return EVAL_OK;
}

static EvalOutcome
outcome_of(EngineStatus status)
{
	return status == ENGINE_OK      ? EVAL_OK
		   : status == ENGINE_STACK ? EVAL_STACK
									: EVAL_INTERRUPTED;
}

static EngineStatus
status_of(EvalOutcome outcome)
{
	return outcome == EVAL_STACK         ? ENGINE_STACK
		   : outcome == EVAL_INTERRUPTED ? ENGINE_INTERRUPTED
										 : ENGINE_OK;
}

/*
 * in: [haystack, needle], neither of them null.  The result is null for a
 * haystack that holds nothing.
 */
static COLD EvalOutcome
evaluate_in(const Value *haystack, const Value *needle, EvalContext *context,
			Value *result)
{
	char buffer[VALUE_NUMBER_TEXT];
	EngineText text;
	Value item;
	Work *work = &context->work;

	result->kind = VALUE_BOOLEAN;
	result->u.boolean = false;
	if (haystack->kind == VALUE_ARRAY)
	{
		uint32_t count = haystack->u.container.ops->count(haystack);
		ComparedValue compared;
		uint32_t index;

		compared_value_init(&compared, needle);
		for (index = 0; index < count && !result->u.boolean; index++)
		{
			EvalOutcome outcome;
			ValueOrder order;

			if (!work_goes_on(work, NODE_COST))
				return EVAL_INTERRUPTED;
			if (!haystack->u.container.ops->element(haystack, index, &item))
				break;
			if (item.kind == VALUE_STRING && needle->kind == VALUE_STRING)
			{
				result->u.boolean =
					texts_equal(item.u.string, needle->u.string, work);
				continue;
			}
			outcome =
				outcome_of(value_compare_with(&item, &compared, work, &order));
			if (outcome != EVAL_OK)
				return outcome;
			result->u.boolean = order == VALUE_EQUAL;
		}
	}
	else if (haystack->kind == VALUE_STRING)
	{
		if (value_to_string(needle, buffer, &text))
			result->u.boolean = text_contains(haystack->u.string, text, work);
	}
	else if (haystack->kind == VALUE_OBJECT)
	{
		if (value_to_string(needle, buffer, &text))
			result->u.boolean = haystack->u.container.ops->member(
				haystack, text.data, text.length, &item);
	}
	else
		result->kind = VALUE_NULL;
	return work->stopped ? EVAL_INTERRUPTED : EVAL_OK;
}

static COLD EvalOutcome
evaluate_match(const Value *value, const Value *pattern, EvalContext *context,
			   Value *result)
{
	char value_buffer[VALUE_NUMBER_TEXT];
	char pattern_buffer[VALUE_NUMBER_TEXT];
	EngineText value_text;
	EngineText pattern_text;
	MatchResult found = MATCH_UNDEFINED;

	if (context->matches != NULL &&
		value_to_string(value, value_buffer, &value_text) &&
		value_to_string(pattern, pattern_buffer, &pattern_text))
		found = match_search(context->matches, value_text, pattern_text,
							 &context->work);
	result->kind = found == MATCH_UNDEFINED ? VALUE_NULL : VALUE_BOOLEAN;
	result->u.boolean = found == MATCH_YES;
	return context->work.stopped ? EVAL_INTERRUPTED : EVAL_OK;
}

static COLD ValueOrder
compare_versions(const Value *left, const Value *right, Work *work)
{
	char left_buffer[VALUE_NUMBER_TEXT];
	char right_buffer[VALUE_NUMBER_TEXT];
	EngineText left_text;
	EngineText right_text;

	if (!value_to_string(left, left_buffer, &left_text) ||
		!value_to_string(right, right_buffer, &right_text))
		return VALUE_INCOMPARABLE;
	return semver_compare(left_text, right_text, work);
}

/* Operands mostly are attributes and literals: spares them a recursion. */
static inline EvalOutcome
evaluate_operand(const ExprNode *node, EvalContext *context, Value *result)
{
	if (ENGINE_LIKELY(node->kind == EXPR_VAR))
		return evaluate_var(node, context, result);
	if (ENGINE_LIKELY(node->kind == EXPR_LITERAL))
	{
		const void *literal = (const char *) node + node->link;

		value_from_json(literal, result);
		return EVAL_OK;
	}
	return evaluate(node, context, result);
}

/* Operators of two operands: null as soon as one of them is null. */
static EvalOutcome
evaluate_binary(const ExprNode *node, EvalContext *context, Value *result)
{
	const ExprNode *operands =
		(const ExprNode *) ((const char *) node + node->link);
	Value left;
	Value right;
	ValueOrder order;
	EvalOutcome outcome;

	result->kind = VALUE_NULL;
	outcome = evaluate_operand(&operands[0], context, &left);
	if (outcome != EVAL_OK || left.kind == VALUE_NULL)
		return outcome;
	outcome = evaluate_operand(&operands[1], context, &right);
	if (outcome != EVAL_OK || right.kind == VALUE_NULL)
		return outcome;

	if (node->kind >= EXPR_IN)
	{
		if (node->kind == EXPR_IN)
			return evaluate_in(&left, &right, context, result);
		if (node->kind == EXPR_MATCH)
			return evaluate_match(&left, &right, context, result);
		order = compare_versions(&left, &right, &context->work);
		outcome = context->work.stopped ? EVAL_INTERRUPTED : EVAL_OK;
	}
	else
		outcome =
			outcome_of(value_compare(&left, &right, &context->work, &order));
	if (outcome != EVAL_OK || order == VALUE_INCOMPARABLE)
		return outcome;

	result->kind = VALUE_BOOLEAN;
	switch ((ExprKind) node->kind)
	{
		case EXPR_GT:
		case EXPR_SEMVER_GT:
			result->u.boolean = order > 0;
			break;
		case EXPR_GTE:
		case EXPR_SEMVER_GTE:
			result->u.boolean = order >= 0;
			break;
		case EXPR_LT:
		case EXPR_SEMVER_LT:
			result->u.boolean = order < 0;
			break;
		case EXPR_LTE:
		case EXPR_SEMVER_LTE:
			result->u.boolean = order <= 0;
			break;
		default: /* eq, semver_eq */
			result->u.boolean = order == 0;
			break;
	}
	return EVAL_OK;
}

/*
 * and, or: stops at the first operand that converts to decisive, which then
 * is the result.  Without operands both are true.  *index is that of the
 * operand that was looked at last.
 */
static EvalOutcome
evaluate_list(const ExprNode *node, EvalContext *context, bool decisive,
			  Value *result, uint32_t *index)
{
	const ExprNode *operands =
		(const ExprNode *) ((const char *) node + node->link);

	for (*index = 0; *index < node->count; (*index)++)
	{
		EvalOutcome outcome = evaluate(&operands[*index], context, result);
		bool truth;

		if (outcome != EVAL_OK)
			return outcome;
		truth = result->kind == VALUE_BOOLEAN ? result->u.boolean
											  : value_to_boolean(result);
		if (truth == decisive)
		{
			result->kind = VALUE_BOOLEAN;
			result->u.boolean = decisive;
			return EVAL_OK;
		}
	}
	result->kind = VALUE_BOOLEAN;
	result->u.boolean = node->count == 0 || !decisive;
	return EVAL_OK;
}

/* The recursion is as deep as the expression's text, which is bounded. */
static EvalOutcome
evaluate(const ExprNode *node, EvalContext *context, Value *result)
{
	const void *target = (const char *) node + node->link;
	EvalOutcome outcome;
	uint32_t index;

	if (!work_goes_on(&context->work, NODE_COST))
		return EVAL_INTERRUPTED;
	switch ((ExprKind) node->kind)
	{
		case EXPR_NULL:
			result->kind = VALUE_NULL;
			return EVAL_OK;
		case EXPR_LITERAL:
			value_from_json(target, result);
			return EVAL_OK;
		case EXPR_VAR:
			return evaluate_var(node, context, result);
		case EXPR_AND:
			return evaluate_list(node, context, false, result, &index);
		case EXPR_OR:
			return evaluate_list(node, context, true, result, &index);
		case EXPR_NOT:
		case EXPR_IS_NULL:
			outcome = evaluate(target, context, result);
			if (outcome != EVAL_OK)
				return outcome;
			result->u.boolean = node->kind == EXPR_NOT
									? !value_to_boolean(result)
									: result->kind == VALUE_NULL;
			result->kind = VALUE_BOOLEAN;
			return EVAL_OK;
		default:
			return evaluate_binary(node, context, result);
	}
}

EngineStatus
expression_evaluate(const ExprNode *expression, EvalContext *context,
					Value *result, bool *aborted)
{
	EvalOutcome outcome;

	context->work.stopped = false;
	outcome = evaluate(expression, context, result);
	*aborted = outcome == EVAL_ABORTED;
	if (outcome != EVAL_OK)
		result->kind = VALUE_NULL;
	return status_of(outcome);
}

/* A clause that aborts the evaluation decides, too. */
EngineStatus
expression_deciding_clause(const ExprNode *expression, EvalContext *context,
						   const ExprNode **clause, int *index)
{
	EvalOutcome outcome;
	Value result;
	uint32_t last;

	*clause = NULL;
	*index = -1;
	if (expression->kind != EXPR_AND)
		return ENGINE_OK;
	context->work.stopped = false;
	outcome = evaluate_list(expression, context, false, &result, &last);
	if (status_of(outcome) != ENGINE_OK)
		return status_of(outcome);
	if (last < expression->count)
	{
		*clause =
			(const ExprNode *) ((const char *) expression + expression->link) +
			last;
		*index = (int) last;
	}
	return ENGINE_OK;
}

/*
 * Returns whether there is a value (a present null is one); *result is null
 * where there is none.
 */
bool
expression_extract(EvalContext *context, EngineText path, Value *result,
				   bool *aborted)
{
	bool last;
	EngineText step = take_step(&path, &last);
	bool found = find_attribute(context, step.data, step.length, result);

	*aborted = false;
	while (found && !last)
	{
		if (result->kind == VALUE_NULL)
		{
			*aborted = true;
			return false; /* *result is null already */
		}
		step = take_step(&path, &last);
		found = walk_step(result, step.data, step.length,
						  step_index(step.data, step.length));
	}
	if (!found)
		result->kind = VALUE_NULL;
	return found;
}
