/*
 * trigger.h
 *		absmartly_track_trigger(), without a row.
 */
#ifndef ABSMARTLY_SQL_TRIGGER_H
#define ABSMARTLY_SQL_TRIGGER_H

#include "postgres.h"

#include "utils/rel.h"
#include "utils/reltrigger.h"

/*
 * Why a trigger of the function's cannot track the rows of its relation: the
 * error that it would raise, in the current memory context.  NULL if it can.
 */
extern ErrorData *trigger_problem(Relation relation, Trigger *trigger);

#endif /* ABSMARTLY_SQL_TRIGGER_H */
