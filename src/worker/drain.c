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

#include "events/encoding.h"
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

/*
 * What waits in memory is small: the events of a transaction each.  Put
 * together, they cost the outbox and its reader a fraction.
 */
#define MERGED_BYTES 7000
#define MERGED_CONTEXTS 250
/* beyond that a record is left as it is, as is one of a session context */
#define MAX_MERGED_RECORD 2048

/* what is moved in a transaction: no more is held in memory at a time */
#define DRAIN_BYTES ((Size) 4 * 1024 * 1024)

typedef struct Merge
{
	OutboxWriter *writers[LANE_COUNT]; /* NULL: nothing to write yet */
	const EventRecord *first; /* whose origin and time are the record's, and
							   * to whose time the others' is a delay; NULL:
							   * empty */
	char data[MERGED_BYTES];
} Merge;

static Encoder encoder;
static Decoder decoder;

static void
write_record(Merge *merge, const EventRecord *record)
{
	EventLane lane = record->payload.lane;

	if (merge->writers[lane] == NULL)
		merge->writers[lane] = outbox_write_begin(lane, false);
	if (merge->writers[lane] == NULL)
		elog(ERROR, "the outbox is gone");
	outbox_write_record(merge->writers[lane], record);
}

static void
merge_end(Merge *merge)
{
	const EncoderMark *at = &encoder.at;
	EventRecord record;

	if (merge->first == NULL)
		return;
	record = *merge->first;
	record.payload = (EventPayload){.data = encoder.data,
									.length = at->length,
									.contexts = at->contexts,
									.exposures = at->exposures,
									.goals = at->goals,
									.lane = record.payload.lane};
	write_record(merge, &record);
	merge->first = NULL;
}

/* Rounded up: nothing was recorded before it happened. */
static int64
delay_ms(const Merge *merge, const EventRecord *record)
{
	int64 delay = record->created - merge->first->created;

	return (delay > 0 ? delay + 999 : delay) / 1000;
}

static bool
add_event(Merge *merge, const EventRecord *record, EventKind kind)
{
	if (!encoder_set_delay(&encoder, delay_ms(merge, record)))
		return false;
	return kind == EVENT_EXPOSURE
			   ? encoder_add_exposure(&encoder, &decoder.context,
									  &decoder.exposure)
			   : encoder_add_goal(&encoder, &decoder.context, &decoder.goal);
}

static void
merge_record(Merge *merge, const EventRecord *record)
{
	EventKind kind;

	if (record->payload.length > MAX_MERGED_RECORD ||
		record->payload.context != 0 ||
		!decoder_begin(&decoder, record->payload.data, record->payload.length))
	{
		write_record(merge, record);
		return;
	}
	if (merge->first != NULL &&
		(merge->first->origin != record->origin ||
		 merge->first->payload.lane != record->payload.lane))
		merge_end(merge);
	while ((kind = decoder_next(&decoder)) != EVENT_END)
	{
		if (kind == EVENT_CONTEXT)
			continue;
		if (kind == EVENT_MALFORMED)
			elog(ERROR, "events in the memory queue are damaged");
		if (merge->first != NULL && (encoder.at.contexts >= MERGED_CONTEXTS ||
									 !add_event(merge, record, kind)))
			merge_end(merge);
		else if (merge->first != NULL)
			continue;
		merge->first = record;
		encoder_begin(&encoder, merge->data, MERGED_BYTES);
		if (!add_event(merge, record, kind))
			elog(ERROR, "an event of the memory queue does not fit");
	}
}

static void
write_records(DatabaseState *state, List *records)
{
	static Merge merge;
	ListCell *cell;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	outbox_require();
	merge.first = NULL;
	memset(merge.writers, 0, sizeof(merge.writers));
	foreach (cell, records)
		merge_record(&merge, lfirst(cell));
	merge_end(&merge);
	for (int lane = 0; lane < LANE_COUNT; lane++)
		if (merge.writers[lane] != NULL)
			outbox_write_end(merge.writers[lane]);
	queue_moving(state, records, GetCurrentTransactionId());
	PopActiveSnapshot();
	CommitTransactionCommand();
}

static EventRecord *
take_next(DatabaseState *state)
{
	EventRecord *record = queue_take(state, LANE_LIVE);

	return record != NULL ? record : queue_take(state, LANE_BULK);
}

/* Moves some records, at most so many; gives their number. */
static int64
drain_some(DatabaseState *state, int64 most)
{
	MemoryContext context = CurrentMemoryContext;
	List *volatile records = NIL;
	EventRecord *volatile loose = NULL; /* taken, and not in the list */
	ListCell *cell;
	int64 count;

	PG_TRY();
	{
		Size bytes = 0;

		while (bytes < DRAIN_BYTES && list_length(records) < most &&
			   (loose = take_next(state)) != NULL)
		{
			records = lappend(records, loose);
			bytes += sizeof(EventRecord) + loose->payload.length;
			loose = NULL;
		}
		if (records != NIL)
			write_records(state, records);
	}
	PG_CATCH();
	{
		/* the last one first, so that each one's place is soon found */
		if (loose != NULL)
			queue_release(state, loose);
		for (int i = list_length(records) - 1; i >= 0; i--)
			queue_release(state, list_nth(records, i));
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	foreach (cell, records)
	{
		queue_remove(state, lfirst(cell));
		pfree(lfirst(cell));
	}
	count = list_length(records);
	list_free(records);
	return count;
}

void
drain_queue(DatabaseState *state, void *argument)
{
	int64 left;
	int64 bytes;
	int64 moved = 1;

	/* what is there now: others go on adding */
	queue_fill(state, &left, &bytes);
	for (; left > 0 && moved > 0; left -= moved)
	{
		CHECK_FOR_INTERRUPTS();
		moved = drain_some(state, left);
	}
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

	/* who cannot tell does not make a server wait */
	if (file == NULL)
		return true;
	for (int i = 1; i <= LOCK_FILE_LINE_PM_STATUS &&
					fgets(line, sizeof(line), file) != NULL;
		 i++)
		stops =
			i == LOCK_FILE_LINE_PM_STATUS &&
			strncmp(line, PM_STATUS_STOPPING, strlen(PM_STATUS_STOPPING)) == 0;
	FreeFile(file);
	return stops;
}
