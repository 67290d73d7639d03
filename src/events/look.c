/*
 * look.c
 *		What is in the outbox and in the memory queue, for the views.
 *
 * Records move while one looks: from memory to the outbox, and from one of its
 * heaps to where they stay.  Rows are marked in place, when something is done
 * with them, so that no snapshot shows them as they were.  Therefore places are
 * looked at in the order of the moves, and what could be found twice is told
 * from the rest:
 *
 * - The list of what is in memory and a snapshot are taken at one moment.  Of
 *	 the other heaps those rows count that this snapshot sees; of the entries in
 *	 memory those whose mover it does not see.
 * - What was parked counts whoever sees it, for it may have been moved since,
 *	 and its original may have been deleted before it was looked at; until that
 *	 is committed, the original counts.  A copy has its original's id.  Records
 *are moved that session contexts hold, and what cannot be sent; so the ids of
 *what may be among these are remembered.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/transam.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "events/chunks.h"
#include "events/encoding.h"
#include "events/heaps.h"
#include "events/look.h"
#include "events/queue.h"

typedef struct Look
{
	uint32 statuses;
	LookVisit visit;
	void *argument;
	Snapshot moment; /* NULL: rows count whoever sees them */
	const char *place;
	HTAB *movable; /* ids of records that were seen, and may be parked */
	int64 endpoint; /* in force */
	MemoryContext page_context;
	List *page; /* copies of the rows of a page */
	List *partial; /* records in parts */
} Look;

static bool
is_wanted(const Look *look, OutboxStatus status)
{
	return (look->statuses & (1U << status)) != 0;
}

/* Runs under the page's lock: takes copies. */
static bool
copy_row(void *argument, const HeapRow *row, const HeapTupleData *tuple)
{
	Look *look = argument;
	TransactionId writer = HeapTupleHeaderGetXmin(tuple->t_data);

	if (is_wanted(look, row->status) &&
		(look->moment == NULL || !XidInMVCCSnapshot(writer, look->moment)))
		look->page = lappend(
			look->page, heap_copytuple(unconstify(HeapTupleData *, tuple)));
	return false;
}

static bool
may_be_moved(const Look *look, const HeapRow *row, EngineText payload)
{
	return row->context != 0 || row->database != MyDatabaseId ||
		   (row->endpoint != 0 && row->endpoint != look->endpoint) ||
		   encoding_version(payload.data, payload.length) != ENCODING_VERSION;
}

/*
 * Makes a record of a row, or of one of its rows and all of its payload.  False
 * if the record was seen before.
 */
static bool
make_record(Look *look, const HeapRow *row, const EngineText texts[HEAP_TEXTS],
			LookRecord *record)
{
	bool before = false;

	if (look->moment == NULL)
		(void) hash_search(look->movable, &row->record, HASH_FIND, &before);
	else if (may_be_moved(look, row, texts[HEAP_PAYLOAD]))
		(void) hash_search(look->movable, &row->record, HASH_ENTER, NULL);
	if (before)
		return false;
	*record =
		(LookRecord){.place = look->place,
					 .status = row->status,
					 .id = row->record,
					 .created = row->created,
					 .database = row->database,
					 .application = texts[HEAP_APPLICATION],
					 .application_version = texts[HEAP_APPLICATION_VERSION],
					 .environment = texts[HEAP_ENVIRONMENT],
					 .note = texts[HEAP_NOTE],
					 .payload = {.data = texts[HEAP_PAYLOAD].data,
								 .length = (uint32) texts[HEAP_PAYLOAD].length,
								 .context = (uint64) row->context,
								 .sequence = (uint64) row->sequence,
								 .contexts = (uint32) row->contexts,
								 .exposures = (uint32) row->exposures,
								 .goals = (uint32) row->goals}};
	return true;
}

/*
 * One of several chunks of a record.  That is seen when it is whole, since some
 * of it may have been moved before it was looked at.
 */
static void
see_chunk(Look *look, const HeapRow *row, EngineText texts[HEAP_TEXTS])
{
	LookRecord record;

	if (!chunks_add(&look->partial, row, &texts[HEAP_PAYLOAD]))
		return;
	if (make_record(look, row, texts, &record))
		look->visit(look->argument, &record);
	pfree(unconstify(char *, texts[HEAP_PAYLOAD].data));
}

static void
see_row(Look *look, const HeapRow *row)
{
	EngineText texts[HEAP_TEXTS];
	LookRecord record;

	heaps_row_texts(row, texts);
	if (row->chunks > 1)
		see_chunk(look, row, texts);
	else if (make_record(look, row, texts, &record))
		look->visit(look->argument, &record);
}

static void
look_at_page(Look *look, Relation relation, BlockNumber page)
{
	HeapWalk walk = {.visit = copy_row, .argument = look, .leaving = true};
	MemoryContext caller = MemoryContextSwitchTo(look->page_context);
	ListCell *cell;

	look->page = NIL;
	(void) heaps_walk_page(relation, page, &walk);
	MemoryContextSwitchTo(caller);
	foreach (cell, look->page)
		see_row(look, (const HeapRow *) GETSTRUCT((HeapTuple) lfirst(cell)));
	MemoryContextReset(look->page_context);
}

static void
look_at_heap(Look *look, int place)
{
	Relation relation = heaps_open(place, AccessShareLock, true);
	BlockNumber pages;

	if (relation == NULL)
		return;
	look->place = heaps_place(place);
	pages = RelationGetNumberOfBlocks(relation);
	for (BlockNumber page = 0; page < pages; page++)
	{
		CHECK_FOR_INTERRUPTS();
		look_at_page(look, relation, page);
	}
	relation_close(relation, AccessShareLock);
	/* done with meanwhile, or torn by a crash */
	chunks_free(&look->partial);
}

static void
see_entry(Look *look, const EventRecord *entry)
{
	const EventOrigin *origin = entry->origin;

	look->visit(
		look->argument,
		&(LookRecord){
			.place = "memory",
			.status = OUTBOX_WAITING,
			.id = entry->id,
			.created = entry->created,
			.database = MyDatabaseId,
			.application = {origin->application, strlen(origin->application)},
			.application_version = {origin->application_version,
									strlen(origin->application_version)},
			.environment = {origin->environment, strlen(origin->environment)},
			.note = {"", 0},
			.payload = entry->payload});
}

/* Whether what a transaction has written is seen by a snapshot. */
static bool
sees(Snapshot moment, TransactionId writer)
{
	return TransactionIdIsValid(writer) && !XidInMVCCSnapshot(writer, moment) &&
		   TransactionIdDidCommit(writer);
}

static void
look_at_memory(Look *look, Snapshot moment)
{
	List *entries = queue_list(shared_my_database(), moment);
	ListCell *cell;

	foreach (cell, entries)
	{
		EventRecord *entry = lfirst(cell);

		CHECK_FOR_INTERRUPTS();
		if (is_wanted(look, OUTBOX_WAITING) && !sees(moment, entry->mover))
			see_entry(look, entry);
		pfree(entry);
	}
	list_free(entries);
}

void
look(uint32 statuses, LookVisit visit, void *argument)
{
	/* of its own, so that it may be taken in parallel mode, too */
	static SnapshotData moment = {.snapshot_type = SNAPSHOT_MVCC};
	Look look = {.statuses = statuses, .visit = visit, .argument = argument};
	HASHCTL control = {.keysize = sizeof(int64),
					   .entrysize = sizeof(int64),
					   .hcxt = CurrentMemoryContext};

	if (!heaps_find())
		return;
	look.endpoint = (int64) record_current_origin()->endpoint;
	look.movable = hash_create("absmartly records that may move", 256, &control,
							   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	look.page_context = AllocSetContextCreate(
		CurrentMemoryContext, "absmartly page", ALLOCSET_DEFAULT_SIZES);
	if (is_wanted(&look, OUTBOX_WAITING))
	{
		look.moment = &moment;
		look_at_memory(&look, look.moment);
		for (int place = 0; place < RECORD_PARKED; place++)
			look_at_heap(&look, place);
		look.moment = NULL;
	}
	look_at_heap(&look, RECORD_PARKED);
	MemoryContextDelete(look.page_context);
	hash_destroy(look.movable);
}
