/*
 * variables.h
 *		Variables, for the functions that take the units and for those of the
 *		context.
 */
#ifndef ABSMARTLY_SQL_VARIABLES_H
#define ABSMARTLY_SQL_VARIABLES_H

#include "postgres.h"

#include "fmgr.h"
#include "utils/jsonb.h"

#include "engine/snapshot.h"
#include "sql/convert.h"

/*
 * What a function that gives the value of a variable returns: value (NULL:
 * none) as the type of the default, which is the argument of that number, or
 * else the default, with one warning per session if the value does not fit.
 * target is the call site's.
 */
extern Datum variable_result(FunctionCallInfo fcinfo, Target *target,
							 const text *key, const Jsonb *value, int argument);

/*
 * Each variable with the names of its experiments, lowest id first, an object;
 * empty without a snapshot (NULL).
 */
extern Jsonb *variable_keys(const SnapImage *snapshot);

#endif /* ABSMARTLY_SQL_VARIABLES_H */
