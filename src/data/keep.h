/*
 * keep.h
 *		Putting data in force and keeping it in the file, as one step.
 */
#ifndef ABSMARTLY_DATA_KEEP_H
#define ABSMARTLY_DATA_KEEP_H

#include "postgres.h"

#include "data/shared.h"
#include "data/version.h"

/*
 * version_publish(), and the file is made to hold what is in force then.  Waits
 * for others who are at it, and can be interrupted while it does.  What could
 * not be written is only reported, and is written the next time, also if the
 * data is the same.  Needs an open transaction.
 */
extern uint64 keep_publish(DatabaseState *state, const DataTarget *target,
						   const char *text, size_t length, DataSource source,
						   TimestampTz fetched_at, bool *unchanged);

#endif /* ABSMARTLY_DATA_KEEP_H */
