/*
 * subtransaction.h
 *		The end of a subtransaction of ours in which an error was caught.
 */
#ifndef ABSMARTLY_SUBTRANSACTION_H
#define ABSMARTLY_SUBTRANSACTION_H

#include "postgres.h"

#include "utils/resowner.h"

/*
 * For PG_CATCH: takes the error, a copy of which is made in context, undoes the
 * subtransaction, and goes on with context and owner.  Without memory for the
 * copy that is raised; the subtransaction is undone all the same.
 */
extern ErrorData *subtransaction_undo(MemoryContext context,
									  ResourceOwner owner);

#endif /* ABSMARTLY_SUBTRANSACTION_H */
