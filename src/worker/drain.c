/*
 * drain.c
 *		From the memory queue to the outbox.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "storage/fd.h"
#include "utils/pidfile.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "events/outbox.h"
#include "events/queue.h"
#include "worker/drain.h"

/* where the postmaster says what it does, in the data directory */
#define POSTMASTER_FILE "postmaster.pid"

/*
 * About what an asynchronous commit may lose: exposures that commit without
 * writing anything are written by the worker at the latest after this time,
 * many at once.
 */
#define MEMORY_MS 200

static void
write_records(List *records)
{
	OutboxWriter *writer;
	ListCell *cell;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	outbox_require();
	writer = outbox_write_begin();
	if (writer == NULL)
		elog(ERROR, "the outbox is gone");
	foreach (cell, records)
		outbox_write_record(writer, lfirst(cell));
	outbox_write_end(writer);
	PopActiveSnapshot();
	CommitTransactionCommand();
}

void
drain_queue(DatabaseState *state, void *argument)
{
	MemoryContext context = CurrentMemoryContext;
	List *volatile records = NIL;
	EventRecord *record;
	ListCell *cell;

	PG_TRY();
	{
		while ((record = queue_take(state)) != NULL)
			records = lappend(records, record);
		if (records != NIL)
			write_records(records);
	}
	PG_CATCH();
	{
		foreach (cell, records)
			queue_release(state, lfirst(cell));
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	foreach (cell, records)
	{
		queue_remove(state, lfirst(cell));
		pfree(lfirst(cell));
	}
	list_free(records);
}

long
drain_left(DatabaseState *state)
{
	TimestampTz oldest = queue_oldest(state);

	if (oldest == 0)
		return -1;
	return TimestampDifferenceMilliseconds(
		GetCurrentTimestamp(), TimestampTzPlusMilliseconds(oldest, MEMORY_MS));
}

bool
drain_server_stops(void)
{
	FILE *file = AllocateFile(POSTMASTER_FILE, "r");
	char line[MAXPGPATH];
	bool stops = false;

	if (file == NULL)
		return false;
	for (int i = 1; i <= LOCK_FILE_LINE_PM_STATUS &&
					fgets(line, sizeof(line), file) != NULL;
		 i++)
		stops =
			i == LOCK_FILE_LINE_PM_STATUS &&
			strncmp(line, PM_STATUS_STOPPING, strlen(PM_STATUS_STOPPING)) == 0;
	FreeFile(file);
	return stops;
}
