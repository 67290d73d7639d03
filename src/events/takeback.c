/*
 * takeback.c
 *		Taking back events that wait.
 *
 * A record all of whose events are taken back is marked as done, like one that
 * was delivered.  Of others those that stay are encoded anew, in place: they
 * never take more bytes than before.  The record gets another number then,
 * since those of its events have changed.
 */
#include "postgres.h"

#include "access/relation.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "common/pg_prng.h"

#include "compat.h"
#include "data/context_slot.h"
#include "events/encoding.h"
#include "events/heaps.h"
#include "events/outbox.h"
#include "events/progress.h"
#include "events/takeback.h"

/* advisory locks of this kind are none that SQL can take */
#define LOCK_KIND 6

/* between two looks whether the worker has let go */
#define ASK_MS 20
/* for so long after the last time that it was asked it does not come back */
#define WANTED_MS 500

/* the worker's */
static bool claimed = false;

static void
set_lock(LOCKTAG *lock)
{
	SET_LOCKTAG_ADVISORY(*lock, MyDatabaseId, 0, 0, LOCK_KIND);
}

/*
 * The worker's side
 */

bool
takeback_claim(void)
{
	LOCKTAG lock;

	set_lock(&lock);
	if (!claimed)
		claimed = LockAcquire(&lock, ExclusiveLock, true, true) !=
				  LOCKACQUIRE_NOT_AVAIL;
	return claimed;
}

bool
takeback_claimed(void)
{
	return claimed;
}

void
takeback_yield(void)
{
	LOCKTAG lock;

	set_lock(&lock);
	claimed = false;
	(void) LockRelease(&lock, ExclusiveLock, true);
}

bool
takeback_wanted(DatabaseState *state)
{
	static TimestampTz until = 0;
	TimestampTz now;

	if (pg_atomic_read_u32(&state->outbox_wanted) == 0 && until == 0)
		return false;
	now = GetCurrentTimestamp();
	if (pg_atomic_exchange_u32(&state->outbox_wanted, 0) != 0)
		until = TimestampTzPlusMilliseconds(now, WANTED_MS);
	if (now >= until)
		until = 0;
	return until != 0;
}

/*
 * Waits until nobody has read anything.  Whoever asks does so again and again:
 * it is forgotten if he gives up.
 */
static void
acquire(LOCKTAG *lock)
{
	DatabaseState *state = shared_my_database();
	TimestampTz started_at = GetCurrentTimestamp();

	set_lock(lock);
	while (LockAcquire(lock, ExclusiveLock, false, true) ==
		   LOCKACQUIRE_NOT_AVAIL)
	{
		if (LockTimeout > 0 &&
			TimestampDifferenceExceeds(started_at, GetCurrentTimestamp(),
									   LockTimeout))
			ereport(ERROR,
					(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
					 errmsg("canceling statement due to lock timeout"),
					 errdetail("A request with events is still on its way.")));
		if (state != NULL)
		{
			pg_atomic_write_u32(&state->outbox_wanted, 1);
			shared_wake_worker(state);
		}
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 ASK_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Taking back
 */

/* Events of a session context that were taken. */
typedef struct Settled
{
	uint64 context;
	uint64 events;
} Settled;

typedef struct TakeBackWalk
{
	TakeBack *work;
	MemoryContext context; /* for one row */
	Decoder *decoder;
	Encoder *encoder;
	char *data; /* what stays of a row's payload; NULL: nothing */
	int64 exposures; /* of it that are taken */
	int64 goals;
	Settled settled[MaxHeapTuplesPerPage]; /* of a page */
	int nsettled;
} TakeBackWalk;

static int
compare_events(const void *left, const void *right)
{
	const TakenEvent *a = left;
	const TakenEvent *b = right;

	if (a->record != b->record)
		return a->record < b->record ? -1 : 1;
	return a->event < b->event ? -1 : a->event > b->event ? 1 : 0;
}

/* Whether the row is of one of the backfills. */
static bool
is_of_backfills(const List *backfills, const HeapRow *row)
{
	EngineText texts[HEAP_TEXTS];
	ListCell *cell;

	heaps_row_texts(row, texts);
	foreach (cell, backfills)
	{
		const BackfillProgress *backfill = lfirst(cell);

		if (progress_noted(&backfill->key, texts[HEAP_NOTE].data,
						   texts[HEAP_NOTE].length))
			return true;
	}
	return false;
}

/* The events of a record that are to be taken; their number. */
static Size
find_events(const TakeBack *work, int64 record, const TakenEvent **first)
{
	Size low = 0;
	Size high = work->nevents;
	Size end;

	while (low < high)
	{
		Size middle = (low + high) / 2;

		if (work->events[middle].record < record)
			low = middle + 1;
		else
			high = middle;
	}
	for (end = low; end < work->nevents && work->events[end].record == record;)
		end++;
	*first = &work->events[low];
	return end - low;
}

/* Adds what stays to the payload; false if that can't be. */
static bool
keep_event(TakeBackWalk *walk, EventKind kind, bool of_context)
{
	Decoder *from = walk->decoder;
	Encoder *to = walk->encoder;

	if (kind == EVENT_CONTEXT)
		/* what a session's context says of itself stays */
		return !of_context || encoder_add_context(to, &from->context);
	if (!encoder_set_delay(to, from->delay))
		return false;
	return kind == EVENT_EXPOSURE
			   ? encoder_add_exposure(to, &from->context, &from->exposure)
			   : encoder_add_goal(to, &from->context, &from->goal);
}

/* Encodes what stays of a payload; false if it can't be. */
static bool
encode_rest(TakeBackWalk *walk, const HeapRow *row, EngineText payload,
			const TakenEvent *taken, Size ntaken)
{
	/* the encoder wants more room than is needed at the end */
	uint32 capacity = 2 * (uint32) payload.length + 1024;
	int64 event = 0;
	Size at = 0;
	EventKind kind;

	if (!decoder_begin(walk->decoder, payload.data, payload.length))
		return false;
	walk->data = palloc(capacity);
	encoder_begin(walk->encoder, walk->data, capacity);
	while ((kind = decoder_next(walk->decoder)) != EVENT_END)
	{
		if (kind == EVENT_MALFORMED)
			return false;
		if (kind != EVENT_CONTEXT)
			event++;
		while (at < ntaken && taken[at].event < event)
			at++;
		if (kind != EVENT_CONTEXT && at < ntaken && taken[at].event == event)
		{
			if (kind == EVENT_EXPOSURE)
				walk->exposures++;
			else
				walk->goals++;
		}
		else if (!keep_event(walk, kind, row->context != 0))
			return false;
	}
	return walk->encoder->at.length <= payload.length;
}

/* Whether something of a row is to be taken back, and what stays of it. */
static bool
is_taken(void *argument, const HeapRow *row, const HeapTupleData *tuple)
{
	TakeBackWalk *walk = argument;
	const TakeBack *work = walk->work;
	EngineText texts[HEAP_TEXTS];
	const TakenEvent *taken;
	Size ntaken;
	MemoryContext caller;
	bool good = false;

	if ((row->status != OUTBOX_WAITING && row->status != OUTBOX_PREPARED &&
		 row->status != OUTBOX_HELD) ||
		(work->record != 0 && row->record != work->record) ||
		(work->backfills != NIL && !is_of_backfills(work->backfills, row)))
		return false;
	MemoryContextReset(walk->context);
	walk->data = NULL;
	walk->exposures = row->exposures;
	walk->goals = row->goals;
	if (work->events == NULL)
		return true;
	ntaken = find_events(work, row->record, &taken);
	if (ntaken == 0 || (Size) (row->exposures + row->goals) == ntaken)
		return ntaken > 0;

	/* several rows can't be changed at once */
	if (row->chunks == 1)
	{
		heaps_row_texts(row, texts);
		walk->exposures = 0;
		walk->goals = 0;
		caller = MemoryContextSwitchTo(walk->context);
		good = encode_rest(walk, row, texts[HEAP_PAYLOAD], taken, ntaken);
		MemoryContextSwitchTo(caller);
	}
	if (!good && row->chunk == 0)
		walk->work->left += (int64) ntaken;
	return good;
}

/* Puts what stays in the place of what was there. */
static void
replace_payload(HeapRow *row, const TakeBackWalk *walk)
{
	const EncoderMark *rest = &walk->encoder->at;
	EngineText texts[HEAP_TEXTS];
	char *payload;

	heaps_row_texts(row, texts);
	payload = unconstify(char *, texts[HEAP_PAYLOAD].data);
	memcpy(payload, walk->data, rest->length);
	memset(payload + rest->length, 0,
		   texts[HEAP_PAYLOAD].length - rest->length);
	SET_VARSIZE(payload - VARHDRSZ, VARHDRSZ + rest->length);
	row->record = (int64) (pg_prng_uint64(&pg_global_prng_state) >> 1) | 1;
	row->contexts = (int32) rest->contexts;
	row->exposures = (int32) rest->exposures;
	row->goals = (int32) rest->goals;
}

static void
take_row(void *argument, HeapRow *row)
{
	TakeBackWalk *walk = argument;

	if (row->chunk == 0)
	{
		walk->work->exposures += walk->exposures;
		walk->work->goals += walk->goals;
		if (row->context != 0 && row->status != OUTBOX_PREPARED)
			walk->settled[walk->nsettled++] =
				(Settled){(uint64) row->context,
						  (uint64) (walk->exposures + walk->goals)};
	}
	if (walk->data == NULL)
		row->status = OUTBOX_DONE;
	else
		replace_payload(row, walk);
}

/* The contexts are told when the page is not locked any more. */
static void
walk_page(Relation relation, BlockNumber page, TakeBackWalk *walk)
{
	HeapWalk rows = {.visit = is_taken, .change = take_row, .argument = walk};

	walk->nsettled = 0;
	(void) heaps_walk_page(relation, page, &rows);
	for (int i = 0; i < walk->nsettled; i++)
		context_slot_settle(walk->settled[i].context, walk->settled[i].events);
}

static void
walk_heaps(TakeBackWalk *walk)
{
	for (int place = 0; place < HEAPS_COUNT; place++)
	{
		Relation relation = heaps_open(place, RowExclusiveLock, true);
		BlockNumber pages;

		if (relation == NULL)
			break;
		pages = RelationGetNumberOfBlocks(relation);
		for (BlockNumber page = 0; page < pages; page++)
		{
			CHECK_FOR_INTERRUPTS();
			walk_page(relation, page, walk);
		}
		relation_close(relation, RowExclusiveLock);
	}
}

void
takeback_run(TakeBack *work)
{
	TakeBackWalk walk;
	int64 before = work->exposures + work->goals;
	LOCKTAG lock;

	outbox_require();
	walk.work = work;
	if (work->events != NULL)
		qsort(work->events, work->nevents, sizeof(TakenEvent), compare_events);
	walk.context = AllocSetContextCreate(
		CurrentMemoryContext, "absmartly taking back", ALLOCSET_DEFAULT_SIZES);
	walk.decoder = palloc(sizeof(Decoder));
	walk.encoder = palloc(sizeof(Encoder));
	acquire(&lock);
	walk_heaps(&walk);
	(void) LockRelease(&lock, ExclusiveLock, false);
	pfree(walk.encoder);
	pfree(walk.decoder);
	MemoryContextDelete(walk.context);
	if (work->exposures + work->goals > before)
		outbox_parked_changed(1);
}
