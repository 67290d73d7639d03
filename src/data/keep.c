/*
 * keep.c
 *		Putting data in force and keeping it in the file, as one step.
 *
 * Data comes from the worker and from any number of sessions.  What was put in
 * force last must be what the file holds, since that is what a crash brings
 * back.  So both happen under one lock: a heavyweight one, because compiling
 * and writing take their time, and whoever waits must be able to leave.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/lock.h"

#include "data/file.h"
#include "data/keep.h"

/* advisory locks of this kind are none that SQL can take */
#define LOCK_KIND 4

/* Whether the file holds the data of that generation. */
static bool
is_saved(DatabaseState *state, uint64 generation)
{
	bool saved;

	LWLockAcquire(&state->lock, LW_SHARED);
	saved = state->saved_generation == generation;
	LWLockRelease(&state->lock);
	return saved;
}

/*
 * Notes that the file holds that data.  If the extension has gone meanwhile the
 * file goes, too: the launcher may have removed the one before it already.
 */
static void
note_saved(DatabaseState *state, uint64 generation)
{
	bool gone;

	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	gone = state->database != MyDatabaseId || !state->target_known;
	if (!gone)
		state->saved_generation = generation;
	LWLockRelease(&state->lock);
	if (gone)
		file_remove(MyDatabaseId);
}

uint64
keep_publish(DatabaseState *state, const DataTarget *target, const char *text,
			 size_t length, DataSource source, TimestampTz fetched_at,
			 bool *unchanged)
{
	uint64 generation;
	LOCKTAG lock;

	SET_LOCKTAG_ADVISORY(lock, MyDatabaseId, 0, 0, LOCK_KIND);
	(void) LockAcquire(&lock, ExclusiveLock, false, false);
	generation = version_publish(state, target, text, length, source,
								 fetched_at, unchanged);
	if (source == DATA_FILE)
		note_saved(state, generation);
	else if (state == NULL ? !*unchanged : !is_saved(state, generation))
	{
		bool written =
			file_write(MyDatabaseId, target, fetched_at, text, length);

		if (written && state != NULL)
			note_saved(state, generation);
	}
	/* others need not wait for the end of this transaction */
	LockRelease(&lock, ExclusiveLock, false);
	return generation;
}
