/*
 * outbox.c
 *		The outbox: what transactions and SQL do with it.
 *
 * Writers fill pages at the end of the active heap.  That lets the worker
 * remember which pages it has done with: it publishes up to which page it does
 * so (the settled pages) before it looks at them, and a writer that finds that
 * its row came to such a page says so.
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/hsearch.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "events/encoding.h"
#include "events/heaps.h"
#include "events/outbox.h"

/* how often, and after how long, absmartly_stat tries to lock a heap again */
#define SUMMARY_TRIES 10
#define SUMMARY_PAUSE_US 10000L

struct OutboxWriter
{
	Relation relation;
	int place;
	DatabaseState *state;
	const EventOrigin *origin;
	TimestampTz created;
	const char *note; /* on the records */
	bool local; /* its commit waits for no standby */
	bool settled_hit; /* a row came to a settled page */
	bool snapshot; /* pushed, for as long as rows are written */
};

static OutboxWriter writers[LANE_COUNT];

/*
 * Writers
 */

void
outbox_require(void)
{
	if (likely(heaps_find()))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the extension absmartly has no outbox in database \"%s\"",
					get_database_name(MyDatabaseId)),
			 OidIsValid(get_extension_oid("absmartly", true))
				 ? errhint("Its materialized views must have their names and "
						   "schema, and belong to the extension.")
				 : errhint("Run CREATE EXTENSION absmartly.")));
}

uint64
outbox_size(EventLane lane)
{
	DatabaseState *state = shared_my_database();
	uint64 blocks = 0;

	if (state != NULL)
	{
		for (int number = 0; number < 2; number++)
		{
			int place = RECORD_HEAP(lane, number);
			uint32 all = pg_atomic_read_u32(&state->outbox_blocks[place]);
			uint32 empty = pg_atomic_read_u32(&state->outbox_empty[place]);

			blocks += all - Min(all, empty);
		}
	}
	else
	{
		Relation relation =
			heaps_open(RECORD_HEAP(lane, 0), AccessShareLock, true);

		if (relation != NULL)
		{
			blocks = RelationGetNumberOfBlocks(relation);
			relation_close(relation, AccessShareLock);
		}
	}
	return blocks * BLCKSZ;
}

/*
 * Rows go to the page where this process put its last one, so that processes
 * seldom meet on a page; unless the worker is through with that one: then to
 * the heap's end.
 */
static void
choose_page(const OutboxWriter *to)
{
	BlockNumber target = RelationGetTargetBlock(to->relation);

	if (to->state == NULL || target == InvalidBlockNumber ||
		target < pg_atomic_read_u32(&to->state->outbox_settled[to->place]))
		RelationSetTargetBlock(to->relation, InvalidBlockNumber);
}

/* Opens the active heap, or the other one, if one can be locked at once. */
static bool
open_at_once(OutboxWriter *to, int active)
{
	/* the first may have just been left, and is being truncated */
	for (int i = 0; i < (to->state != NULL ? 2 : 1) && heaps_find(); i++)
	{
		to->place = i == 0 ? active : RECORD_OTHER_HEAP(active);
		to->relation = heaps_open(to->place, RowExclusiveLock, false);
		if (to->relation != NULL)
			return true;
	}
	return false;
}

Relation
outbox_open_waiting(int place)
{
	bool limit = StatementTimeout > 0 && !get_timeout_active(STATEMENT_TIMEOUT);
	Relation relation;

	if (limit)
		enable_timeout_after(STATEMENT_TIMEOUT, StatementTimeout);
	relation = heaps_open(place, RowExclusiveLock, true);
	if (limit)
		disable_timeout(STATEMENT_TIMEOUT, false);
	return relation;
}

int
outbox_active_heap(EventLane lane)
{
	DatabaseState *state = shared_my_database();

	return RECORD_HEAP(
		lane, state ? pg_atomic_read_u32(&state->outbox_active[lane]) : 0);
}

OutboxWriter *
outbox_write_begin(EventLane lane, bool prepare)
{
	DatabaseState *state = shared_my_database();
	OutboxWriter *to = &writers[lane];
	int active = outbox_active_heap(lane);

	if (!heaps_find())
	{
		/* with the extension its events go; otherwise none must be lost */
		if (OidIsValid(get_extension_oid("absmartly", true)))
			outbox_require();
		return NULL;
	}
	memset(to, 0, sizeof(*to));
	to->state = state;
	if (!open_at_once(to, active) &&
		!(heaps_unreserve() && open_at_once(to, active)) && heaps_find())
	{
		to->place = active;
		to->relation = outbox_open_waiting(active);
	}
	if (to->relation == NULL)
		return NULL;
	to->origin = record_current_origin();
	to->created = GetCurrentTimestamp();
	to->note = "";
	/* whoever commits what is prepared decides then */
	to->local =
		!prepare && synchronous_commit <= SYNCHRONOUS_COMMIT_LOCAL_FLUSH;
	choose_page(to);

	/*
	 * Who inserts must have a snapshot, and at the end of a transaction the
	 * statements' are gone.  A transaction that has one of its own keeps that:
	 * only READ COMMITTED takes another, which no rule of visibility notices.
	 */
	to->snapshot = !HaveRegisteredOrActiveSnapshot();
	if (to->snapshot)
		PushActiveSnapshot(GetTransactionSnapshot());
	return to;
}

/* A row came to a page: is that one that the worker has done with? */
static void
note_page(void *argument, BlockNumber page)
{
	OutboxWriter *to = argument;

	if (to->state == NULL)
		return;
	pg_memory_barrier();
	if (page < pg_atomic_read_u32(&to->state->outbox_settled[to->place]))
		to->settled_hit = true;
	if (page >= pg_atomic_read_u32(&to->state->outbox_blocks[to->place]))
		pg_atomic_write_u32(&to->state->outbox_blocks[to->place], page + 1);
}

static void
write_as(OutboxWriter *to, const EventOrigin *origin, TimestampTz created,
		 const EventPayload *payload)
{
	const char *note = to->note;
	HeapRecord record;

	if (to->local && payload->goals > 0 && note[0] == '\0')
		note = OUTBOX_NOTE_LOCAL;
	record = (HeapRecord){.status = payload->prepared ? OUTBOX_PREPARED
													  : OUTBOX_WAITING,
						  .database = MyDatabaseId,
						  .endpoint = (int64) origin->endpoint,
						  .created = created,
						  .origin = origin,
						  .note = note,
						  .payload = payload};

	heaps_insert(to->relation, &record, note_page, to);
}

TimestampTz
outbox_write_note(OutboxWriter *to, const char *note)
{
	to->note = note;
	return to->created;
}

void
outbox_write(OutboxWriter *to, const EventPayload *payload)
{
	write_as(to, to->origin, to->created, payload);
}

void
outbox_write_record(OutboxWriter *to, const EventRecord *record)
{
	write_as(to, record->origin, record->created, &record->payload);
}

void
outbox_write_end(OutboxWriter *to)
{
	if (to->settled_hit)
		pg_atomic_fetch_or_u32(&to->state->outbox_rescan,
							   (uint32) 1 << to->place);
	if (to->snapshot)
		PopActiveSnapshot();
	/* the lock stays until the transaction's end */
	relation_close(to->relation, NoLock);
	to->relation = NULL;
}

/*
 * Parked records, on behalf of SQL
 */

typedef struct ParkedWork
{
	int64 id; /* 0: all */
	int64 endpoint; /* to give them */
	HTAB *readable; /* ids of records of several rows that could not be read,
					 * and can now */
	int64 events;
} ParkedWork;

static bool
is_parked(void *argument, const HeapRow *row, const HeapTupleData *tuple)
{
	ParkedWork *work = argument;

	return (row->status == OUTBOX_FOREIGN || row->status == OUTBOX_DEAD ||
			row->status == OUTBOX_UNREADABLE) &&
		   (work->id == 0 || work->id == row->record);
}

static bool
is_readable(const HeapRow *row)
{
	EngineText texts[HEAP_TEXTS];

	heaps_row_texts(row, texts);
	return encoding_version(texts[HEAP_PAYLOAD].data,
							texts[HEAP_PAYLOAD].length) == ENCODING_VERSION;
}

/* The first row tells of the others, which may lie before it. */
static bool
note_readable(void *argument, const HeapRow *row, const HeapTupleData *tuple)
{
	ParkedWork *work = argument;

	if (row->status == OUTBOX_UNREADABLE && row->chunks > 1 &&
		row->chunk == 0 && is_parked(argument, row, tuple) && is_readable(row))
		(void) hash_search(work->readable, &row->record, HASH_ENTER, NULL);
	return false;
}

/* What can't be read can't be sent. */
static bool
is_requeueable(void *argument, const HeapRow *row, const HeapTupleData *tuple)
{
	ParkedWork *work = argument;
	bool readable;

	if (!is_parked(argument, row, tuple))
		return false;
	if (row->status != OUTBOX_UNREADABLE)
		return true;
	if (row->chunks == 1)
		return is_readable(row);
	(void) hash_search(work->readable, &row->record, HASH_FIND, &readable);
	return readable;
}

static void
count_events(ParkedWork *work, const HeapRow *row)
{
	if (row->chunk == 0)
		work->events += row->exposures + row->goals;
}

static void
requeue_row(void *argument, HeapRow *row)
{
	ParkedWork *work = argument;

	row->status = OUTBOX_WAITING;
	row->database = MyDatabaseId;
	row->endpoint = work->endpoint;
	count_events(work, row);
}

static void
discard_row(void *argument, HeapRow *row)
{
	row->status = OUTBOX_DONE;
	count_events(argument, row);
}

void
outbox_parked_changed(uint64 events)
{
	DatabaseState *state = shared_my_database();

	if (state == NULL)
		return;
	pg_atomic_fetch_or_u32(&state->outbox_rescan, 1U << RECORD_PARKED);
	shared_events_committed(state, LANE_BULK, events);
}

static int64
change_parked(const HeapWalk *before, const HeapWalk *walk)
{
	ParkedWork *work = walk->argument;
	Relation parked;

	outbox_require();
	parked = heaps_open(RECORD_PARKED, RowExclusiveLock, true);
	if (parked == NULL)
		return 0;
	if (before != NULL)
		heaps_walk(parked, before);
	heaps_walk(parked, walk);
	heaps_flush();
	relation_close(parked, RowExclusiveLock);
	if (work->events > 0)
		outbox_parked_changed((uint64) work->events);
	return work->events;
}

int64
outbox_requeue(int64 id)
{
	ParkedWork work = {.id = id,
					   .endpoint = (int64) record_current_origin()->endpoint};
	HeapWalk look = {.visit = note_readable, .argument = &work};
	HeapWalk walk = {
		.visit = is_requeueable, .change = requeue_row, .argument = &work};
	HASHCTL control = {.keysize = sizeof(int64),
					   .entrysize = sizeof(int64),
					   .hcxt = CurrentMemoryContext};
	int64 events;

	work.readable = hash_create("absmartly readable records", 64, &control,
								HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	events = change_parked(&look, &walk);
	hash_destroy(work.readable);
	return events;
}

int64
outbox_discard(int64 id)
{
	ParkedWork work = {.id = id};
	HeapWalk walk = {
		.visit = is_parked, .change = discard_row, .argument = &work};

	return change_parked(NULL, &walk);
}

/*
 * Monitoring
 */

typedef struct SummaryWork
{
	OutboxSummary *summary;
	EventLane lane; /* of what waits in the heap */
} SummaryWork;

static bool
summarize(void *argument, const HeapRow *row, const HeapTupleData *tuple)
{
	const SummaryWork *work = argument;
	OutboxSummary *summary = work->summary;
	OutboxLaneSummary *waiting = &summary->lanes[work->lane];

	if (row->chunk > 0)
		return false;
	switch (row->status)
	{
		case OUTBOX_WAITING:
		case OUTBOX_PREPARED:
			waiting->records++;
			waiting->events += row->exposures + row->goals;
			if (waiting->oldest == 0 || row->created < waiting->oldest)
				waiting->oldest = row->created;
			break;
		case OUTBOX_HELD:
			summary->held_records++;
			break;
		case OUTBOX_FOREIGN:
			summary->foreign_records++;
			break;
		case OUTBOX_DEAD:
			summary->dead_events += row->exposures + row->goals;
			break;
		default:
			break;
	}
	return false;
}

/* Opens a heap to look at it; NULL: somebody keeps it locked. */
static Relation
open_to_look(int place)
{
	Relation relation = NULL;

	/* the worker locks one for a moment when it truncates it */
	for (int i = 0; i < SUMMARY_TRIES && heaps_find(); i++)
	{
		relation = heaps_open(place, AccessShareLock, false);
		if (relation != NULL)
			break;
		CHECK_FOR_INTERRUPTS();
		pg_usleep(SUMMARY_PAUSE_US);
	}
	return relation;
}

void
outbox_summary(OutboxSummary *summary)
{
	SummaryWork work = {.summary = summary};
	HeapWalk walk = {.visit = summarize, .argument = &work};

	memset(summary, 0, sizeof(*summary));
	summary->known = true;
	for (int place = 0; place < HEAPS_COUNT && heaps_find(); place++)
	{
		Relation relation = open_to_look(place);

		summary->known = relation != NULL;
		if (!summary->known)
			break;
		work.lane = place == RECORD_PARKED ? LANE_BULK : RECORD_LANE(place);
		heaps_walk(relation, &walk);
		relation_close(relation, AccessShareLock);
	}
	for (EventLane lane = LANE_LIVE; lane < LANE_COUNT && heaps_find(); lane++)
		summary->lanes[lane].bytes = (int64) outbox_size(lane);
}
