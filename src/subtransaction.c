/*
 * subtransaction.c
 *		The end of a subtransaction of ours in which an error was caught.
 */
#include "postgres.h"

#include "access/xact.h"

#include "subtransaction.h"

/*
 * The copy comes first: an error that was thrown on may have texts in memory
 * that goes with the subtransaction.
 */
ErrorData *
subtransaction_undo(MemoryContext context, ResourceOwner owner)
{
	ErrorData *error = NULL;

	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_CATCH();
	{
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		PG_RE_THROW();
	}
	PG_END_TRY();
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error;
}
