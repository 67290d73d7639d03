/*
 * condition.c
 *		Conditions that a user gives as the text of an argument.
 */
#include "postgres.h"

#include "nodes/parsenodes.h"
#include "parser/parse_clause.h"
#include "parser/parse_node.h"
#include "parser/parse_relation.h"
#include "parser/parser.h"

#include "compat.h"
#include "sql/condition.h"

typedef struct ConditionCheck
{
	const char *condition;
	const char *function;
	const char *argument;
} ConditionCheck;

/* A position is one in the condition, not in the client's query. */
static void
error_callback(void *argument)
{
	const ConditionCheck *check = argument;
	int position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(check->condition);
	}
	errcontext("argument \"%s\" of %s()", check->argument, check->function);
}

/* The condition of what was parsed; NULL: it is something else, or more. */
static Node *
single_condition(List *parsed)
{
	const SelectStmt *select =
		(const SelectStmt *) linitial_node(RawStmt, parsed)->stmt;
	ResTarget *target;

	if (!IsA(select, SelectStmt) || list_length(select->targetList) != 1 ||
		select->distinctClause != NIL || select->fromClause != NIL ||
		select->whereClause != NULL || select->groupClause != NIL ||
		select->havingClause != NULL || select->windowClause != NIL ||
		select->sortClause != NIL || select->limitOffset != NULL ||
		select->limitCount != NULL || select->lockingClause != NIL)
		return NULL;
	target = linitial_node(ResTarget, select->targetList);
	if (target->name != NULL || target->indirection != NIL)
		return NULL;
	if (IsA(target->val, ColumnRef) &&
		IsA(linitial(((ColumnRef *) target->val)->fields), A_Star))
		return NULL;
	return target->val;
}

void
condition_check(const char *condition, Relation relation, const char *function,
				const char *argument)
{
	ConditionCheck check = {condition, function, argument};
	ErrorContextCallback callback = {error_context_stack, error_callback,
									 &check};
	ParseState *state = make_parsestate(NULL);
	ParseNamespaceItem *columns;
	Node *node;

	error_context_stack = &callback;
	node = single_condition(raw_parser(condition, RAW_PARSE_PLPGSQL_EXPR));
	if (node == NULL)
		ereport(ERROR, (errcode(ERRCODE_SYNTAX_ERROR),
						errmsg("argument \"%s\" of %s() is not one condition",
							   argument, function),
						errposition(1),
						errhint("Write what could follow WHERE, as in "
								"'amount > 100 AND currency = ''EUR'''.")));
	state->p_sourcetext = condition;
	columns = addRangeTableEntryForRelation(state, relation, AccessShareLock,
											NULL, true, true);
	addNSItemToQuery(state, columns, true, true, true);
	(void) transformWhereClause(state, node, EXPR_KIND_WHERE, "WHERE");
	free_parsestate(state);
	error_context_stack = callback.previous;
}

/* Takes the lines of a context out that tell of a query. */
static char *
without_query(char *context, const char *query)
{
	char *found;

	while (context != NULL && (found = strstr(context, query)) != NULL)
	{
		char *end = found + strlen(query);

		while (found > context && found[-1] != '\n')
			found--;
		while (*end != '\0' && *end != '\n')
			end++;
		if (*end == '\n')
			end++;
		memmove(found, end, strlen(end) + 1);
	}
	if (context != NULL && *context != '\0' &&
		context[strlen(context) - 1] == '\n')
		context[strlen(context) - 1] = '\0';
	return context != NULL && *context != '\0' ? context : NULL;
}

void
condition_rethrow(MemoryContext caller, const char *query)
{
	ErrorData *error;

	MemoryContextSwitchTo(caller);
	error = CopyErrorData();
	FlushErrorState();
	error->context = without_query(error->context, query);
	if (error->internalquery != NULL &&
		strcmp(error->internalquery, query) == 0)
	{
		error->internalquery = NULL;
		error->internalpos = 0;
	}
	ReThrowError(error);
}
