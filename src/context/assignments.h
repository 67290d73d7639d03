/*
 * assignments.h
 *		The assignments of a context: made once, and kept by the rules of
 *		protocol 8, "Assignment cache".
 */
#ifndef ABSMARTLY_CONTEXT_ASSIGNMENTS_H
#define ABSMARTLY_CONTEXT_ASSIGNMENTS_H

#include "postgres.h"

#include "context/context.h"
#include "settings.h"

/* Makes the table of a new context. */
extern void assignments_init(Context *context);

/*
 * The entry of an experiment, by its name in UTF-8, to set something in it;
 * made if need be.  Raises 54000 if there are too many.
 */
extern ContextEntry *assignments_entry(Context *context, EngineText name);

/*
 * The same, for an assignment.  Where there are too many it is an entry that
 * nobody keeps: *kept is false, and it is good until the next call.
 */
extern ContextEntry *assignments_use(Context *context, EngineText name,
									 bool *kept);

/* The same, NULL if there is none. */
extern ContextEntry *assignments_find(const Context *context, EngineText name);

/*
 * Makes sure that the entry's assignment is the one of this moment: keeps it or
 * makes another one, not exposed.  Raises 54001 for expressions that are nested
 * too deep.
 */
extern void assignments_update(Context *context, ContextEntry *entry);

static inline void
assignments_assign(Context *context, ContextEntry *entry)
{
	if (unlikely(entry->checked != context->changes ||
				 settings_have_overrides()))
		assignments_update(context, entry);
}

/*
 * Lets go of the data: what assignments refer to in it is copied.  Raises 53200
 * and may be called again then.
 */
extern void assignments_detach(Context *context);

#endif /* ABSMARTLY_CONTEXT_ASSIGNMENTS_H */
