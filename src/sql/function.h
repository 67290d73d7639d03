/*
 * function.h
 *		How functions that SQL calls are written.
 *
 * SQL_FUNCTION(name) stands for "Datum name(PG_FUNCTION_ARGS)".  The function
 * counts itself while it is at work, so that what others may still be reading
 * is not let go of (data/version.h).  An error leaves the count too high; it is
 * put right where the error is caught.
 */
#ifndef ABSMARTLY_SQL_FUNCTION_H
#define ABSMARTLY_SQL_FUNCTION_H

#include "postgres.h"

#include "fmgr.h"

#include "data/version.h"

/* Calls the body of a function that SQL has called. */
static inline Datum
sql_function_call(PGFunction body, FunctionCallInfo fcinfo)
{
	uint32 calls = version_calls++;
	Datum result = body(fcinfo);

	version_calls = calls;
	return result;
}

#define SQL_FUNCTION(name)                             \
	static Datum name##_body(PG_FUNCTION_ARGS);        \
	Datum name(PG_FUNCTION_ARGS)                       \
	{                                                  \
		return sql_function_call(name##_body, fcinfo); \
	}                                                  \
	static Datum name##_body(PG_FUNCTION_ARGS)

#endif /* ABSMARTLY_SQL_FUNCTION_H */
