/*
 * condition.h
 *		Conditions that a user gives as the text of an argument.
 *
 * They become a part of a query of ours.  What is wrong with one is told as if
 * it stood alone: the position is one in it, and the rest of the query, which
 * the user has never seen, is kept out of messages.
 */
#ifndef ABSMARTLY_SQL_CONDITION_H
#define ABSMARTLY_SQL_CONDITION_H

#include "postgres.h"

#include "utils/rel.h"

#include "compat.h"

/*
 * Raises what is wrong with a condition over the columns of a relation, of
 * which there is a lock.  What passes is one condition: in parentheses, with a
 * line of its own for the second one, it cannot reach beyond them.
 */
extern void condition_check(const char *condition, Relation relation,
							const char *function, const char *argument);

/*
 * Raises the present error again, in a PG_CATCH() block, without the query that
 * has failed.
 */
pg_noreturn extern void condition_rethrow(MemoryContext caller,
										  const char *query);

#endif /* ABSMARTLY_SQL_CONDITION_H */
