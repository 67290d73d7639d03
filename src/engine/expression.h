/*
 * expression.h
 *		Audience expressions (protocol 6): compiled once, evaluated often.
 *
 * A compiled expression is one block whose links are relative to the node
 * that holds them, so that it can stand in a snapshot at any address.
 */
#ifndef ABSMARTLY_ENGINE_EXPRESSION_H
#define ABSMARTLY_ENGINE_EXPRESSION_H

#include "arena.h"
#include "engine.h"
#include "json.h"
#include "match.h"
#include "value.h"

typedef struct ExprNode ExprNode; /* laid out in expression.c */

/* An attribute that the system adds; the user's of that name wins. */
typedef struct SystemAttribute
{
	EngineText name;
	Value value;
} SystemAttribute;

/* What an evaluation sees. */
typedef struct EvalContext
{
	Value variables; /* the attributes; VALUE_OBJECT or VALUE_NULL */
	const SystemAttribute *system; /* looked at after variables */
	int nsystem;
	MatchCache *matches; /* NULL: match gives null */
	Work work;
} EvalContext;

/*
 * Compiles any JSON value as an expression into one block in the arena
 * (aligned to 8, *size bytes, movable as a whole).  What is no valid
 * expression evaluates to null, as the protocol says: compiling fails only
 * for want of memory, or because the arena's source says that it shall.
 */
extern EngineStatus expression_compile(const JsonNode *source, Arena *arena,
									   const ExprNode **expression,
									   size_t *size);

/*
 * Evaluates.  *aborted is set when a step into a null value ended the
 * evaluation (protocol 6, "Paths"); the result is then null.  Results refer to
 * memory of the expression and of the variables.  ENGINE_OK, ENGINE_STACK or
 * ENGINE_INTERRUPTED.
 */
extern EngineStatus expression_evaluate(const ExprNode *expression,
										EvalContext *context, Value *result,
										bool *aborted);

/*
 * For explanations: if the expression is a list (or an "and"), the first
 * operand that does not convert to true and its index; else NULL and -1.
 */
extern EngineStatus expression_deciding_clause(const ExprNode *expression,
											   EvalContext *context,
											   const ExprNode **clause,
											   int *index);

/* The value at a path in variables (protocol 6, "Paths"), for tests and SQL. */
extern bool expression_extract(EvalContext *context, EngineText path,
							   Value *result, bool *aborted);

#endif /* ABSMARTLY_ENGINE_EXPRESSION_H */
