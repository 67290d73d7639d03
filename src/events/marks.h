/*
 * marks.h
 *		Marks that subtransactions leave, for what a rollback takes back
 *		(DESIGN 6.1).
 *
 * Nothing is done when a subtransaction starts: its first event leaves a mark.
 * Marks are a stack; each has the nesting level of its subtransaction.
 */
#ifndef ABSMARTLY_EVENTS_MARKS_H
#define ABSMARTLY_EVENTS_MARKS_H

#include "postgres.h"

/* the level of the mark below the lowest one, and of the top transaction */
#define MARKS_TOP_LEVEL 1

/* Whether an event of this level leaves a mark above the last one's level. */
static inline bool
marks_wanted(int level, int last)
{
	return level > last;
}

/*
 * Whether the mark of a subtransaction that commits goes: its parent has one
 * (parent is the level of the mark below it), or is the top transaction.  Else
 * it becomes the parent's.
 */
static inline bool
marks_merge(int level, int parent)
{
	return parent >= level - 1;
}

#endif /* ABSMARTLY_EVENTS_MARKS_H */
