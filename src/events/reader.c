/*
 * reader.c
 *		The outbox: what the worker does with it.
 *
 * Visibility is that of the rows' transactions at this moment, not that of a
 * snapshot, and what has been delivered is marked in its row: so an old
 * snapshot of somebody else's means nothing here.
 *
 * Pages whose rows are all delivered are remembered, and not looked at again.
 * A heap that is empty and not written to any more is truncated under an
 * AccessExclusive lock, which proves that no writer is at work in it, prepared
 * transactions included; the lock is never waited for.
 *
 * Each lane has its two heaps and its passes.
 *
 * A record in flight is known by its id, so that it is not sent again when
 * somebody gives a heap another file (VACUUM FULL): reading begins anew there,
 * and who marks it finds where its rows are by then.
 *
 * The rows of a record are marked one page after the other, also when it is
 * requeued or dropped, and a crash may come in between.  A record of which some
 * rows are missing, in two passes, so that it is not just being committed, is
 * brought to the end of what was begun.
 *
 * The heap in which records are parked is not read in each pass, for it may be
 * full of what stays.  Which of its pages have records that session contexts
 * hold is remembered: these are of the live lane.  What else is to be sent from
 * there is bulk.  When most of it is done with, the rest moves to a new file.
 */
#include "postgres.h"

#include "access/generic_xlog.h"
#include "access/heapam.h"
#include "access/relation.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/storage.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "data/context_slot.h"
#include "events/encoding.h"
#include "events/endpoints.h"
#include "events/heaps.h"
#include "events/held.h"
#include "events/outbox.h"
#include "events/replicated.h"

/* pages that outbox_read() looks at for nothing before it wants a pause */
#define MAX_PAGES 512

/* pages at the end of the active heap that writers may be filling */
#define OPEN_PAGES 64

/* a record that is held for less stays where it is */
#define SHORT_HOLD_MS 2000

/* a heap is left for the other one when it has so many pages */
#define ROTATE_PAGES 1024
/* the same when nothing waits */
#define ROTATE_IDLE_PAGES 64
/* the parked heap is made smaller if no more than that has to stay */
#define COMPACT_BYTES ((Size) 16 * 1024 * 1024)
/* of a row of it, beside its payload, about */
#define ROW_OVERHEAD ((Size) 160)
/* so much may be done with as is not known */
#define UNKNOWN_BYTES (SIZE_MAX / 2)
/* after a heap could not be locked: doubled while it can't */
#define RETRY_MS 500L
#define MAX_RETRY_DOUBLINGS 5
/* between two reports of the same */
#define REPORT_MS 60000

/* A record that is handed out, with what only this file knows of it. */
typedef struct StoredRecord
{
	EventRecord record; /* first: what callers see */
	Oid database;
	int64 endpoint;
	EventLane lane; /* by which it was read */
	int chunks; /* how many there must be */
	TransactionId xid; /* whose commit a standby is to have; invalid: it is
						* all the same */
	bool held; /* its row says so */
	bool to_hold; /* it is to be parked for that */
	bool handed_out; /* or parked */
} StoredRecord;

typedef struct RecordKey
{
	int64 id;
	int32 place;
	int32 unused;
} RecordKey;

typedef struct Flight
{
	RecordKey key; /* first: the hash table's */
	EventRecord *record;
} Flight;

/* A record of several rows, of which some have been read in this pass. */
typedef struct Partial
{
	RecordKey key; /* first: the hash table's */
	int chunks; /* how many there must be */
	int waiting; /* that are to be sent */
	int kept; /* that are not */
	EngineText *payloads;
	ItemPointerData *tids;
} Partial;

/* A record that a crash has left with some of its rows. */
typedef struct Torn
{
	RecordKey key; /* first, for their order */
	int chunks;
	int waiting; /* rows, as in Partial */
	int kept;
	int64 endpoint; /* of those that wait */
} Torn;

/* What the worker knows of one of the lanes' heaps. */
typedef struct HeapKnowledge
{
	Oid filenode; /* another one: nothing is known */
	BlockNumber pages; /* when it was last looked at */
	BlockNumber low; /* all pages before have been done with */
	BlockNumber settled; /* pages before may be done with */
	BlockNumber empty; /* pages on which nothing was left */
	uint8 *done; /* a bit for each of these; what it says of a page that is
				  * not settled is true no longer than for this moment */
	BlockNumber done_size; /* pages that it has bits for */
} HeapKnowledge;

/* A pass of the worker's over the heaps of a lane, and what is parked. */
typedef struct Pass
{
	int order[3];
	int heaps; /* to read */
	int at; /* the one that is being read, of order */
	bool entered; /* what follows is valid */
	BlockNumber page;
	BlockNumber pages;
	/* of the parked heap only these pages, unless all is read */
	bool all;
	bool all_begun; /* and has not come to its end */
	HeldPage *free_pages;
	int nfree;
	int free_at; /* the next one */

	/* what outlives a pass */
	bool parked_wanted; /* all of the parked heap is to be read */
	List *page_records; /* read, and not handed out yet */
	List *suspects; /* Torn: perhaps, in the pass before or this one */
	MemoryContext partials_context;
	HTAB *partials; /* records in parts; NULL: there are none */
} Pass;

/* What was parked, for when that is committed. */
typedef struct ParkedPage
{
	uint64 key;
	uint64 sequence;
	BlockNumber page;
} ParkedPage;

/* the worker's */
static DatabaseState *worker_state = NULL;
static MemoryContext records_context = NULL;
static HTAB *in_flight = NULL;
static HeapKnowledge knowledge[RECORD_PARKED];
static Pass passes[LANE_COUNT];
static EventLane lane; /* that is read */
static Pass *pass = &passes[LANE_LIVE]; /* its pass */
static Relation reading[HEAPS_COUNT];
static Oid files[HEAPS_COUNT]; /* in which the rows in flight are */
static List *torn =
	NIL; /* Torn: to be seen to, in their pass's suspects still */
static List *to_park = NIL;
static List *parked_records = NIL; /* and their originals not marked yet */
static EventRecord **parked_array = NULL; /* the same, to be acknowledged */
static int max_parked_array = 0;
static MemoryContext compaction = NULL; /* for the time that it takes */
static XLogRecPtr flush_up_to = InvalidXLogRecPtr;
static bool parked_changed = false;
static OutboxHolds worker_holds;
static ParkedPage *parked_pages = NULL;
static int nparked_pages = 0;
static int max_parked_pages = 0;
static Size parked_done; /* bytes in the parked heap that are done with */

/*
 * What the worker knows of the heaps
 */

/* Publishes how many pages do not count as filled. */
static void
publish_empty(int place)
{
	pg_atomic_write_u32(&worker_state->outbox_empty[place],
						knowledge[place].empty);
}

/* The heap to which a lane's writers append. */
static int
active_heap(EventLane of_lane)
{
	return RECORD_HEAP(
		of_lane, pg_atomic_read_u32(&worker_state->outbox_active[of_lane]));
}

static void
know_nothing(int place)
{
	HeapKnowledge *known = &knowledge[place];

	known->low = 0;
	known->settled = 0;
	known->empty = 0;
	if (known->done != NULL)
		memset(known->done, 0, known->done_size / 8);
	publish_empty(place);
}

static bool
page_is_empty(const HeapKnowledge *known, BlockNumber page)
{
	return known->done[page / 8] & (1 << (page % 8));
}

/*
 * What was seen of pages since they could be written to means nothing.  Gives
 * whether something was seen.
 */
static bool
forget_unsettled(int place, BlockNumber from)
{
	HeapKnowledge *known = &knowledge[place];
	BlockNumber before = known->empty;

	for (BlockNumber page = from; page < known->pages; page++)
		if (page_is_empty(known, page))
		{
			known->done[page / 8] &= ~(1 << (page % 8));
			known->empty--;
		}
	known->low = Min(known->low, from);
	publish_empty(place);
	return known->empty < before;
}

/*
 * Takes note of a heap's size, and of whether it is still the same file; to
 * read it, or just so.
 */
static void
know_heap(int place, Relation relation, bool to_read)
{
	HeapKnowledge *known = &knowledge[place];
	BlockNumber pages = RelationGetNumberOfBlocks(relation);
	BlockNumber settled;

	if (known->filenode != relation->rd_rel->relfilenode ||
		pages < known->pages ||
		(pg_atomic_read_u32(&worker_state->outbox_rescan) & (1U << place)))
	{
		pg_atomic_fetch_and_u32(&worker_state->outbox_rescan, ~(1U << place));
		known->filenode = relation->rd_rel->relfilenode;
		know_nothing(place);
	}
	if (pages > known->done_size)
	{
		BlockNumber size = TYPEALIGN(8192, pages);

		if (known->done == NULL)
			known->done = MemoryContextAllocZero(records_context, size / 8);
		else
		{
			known->done = repalloc(known->done, size / 8);
			memset(known->done + known->done_size / 8, 0,
				   (size - known->done_size) / 8);
		}
		known->done_size = size;
	}

	/*
	 * Writers fill the last pages of the active heap.  Some may have seen the
	 * heap when it was smaller, or active; they look at this when they have
	 * written.
	 */
	settled = pages;
	if (place == active_heap(RECORD_LANE(place)))
		settled -= Min(pages, OPEN_PAGES);
	/* until it is seen again, what is empty counts as filled */
	if ((to_read || settled != known->settled) &&
		forget_unsettled(place, Min(settled, known->settled)) && !to_read)
		shared_events_committed(worker_state, RECORD_LANE(place), 1);
	known->pages = pages;
	known->settled = settled;
	pg_atomic_write_u32(&worker_state->outbox_settled[place], known->settled);
	pg_memory_barrier();
	pg_atomic_write_u32(&worker_state->outbox_blocks[place], pages);
}

/* Whether a page need not be looked at again. */
static bool
page_is_done(const HeapKnowledge *known, BlockNumber page)
{
	return page < known->settled && page_is_empty(known, page);
}

/* Nothing is left on a page. */
static void
page_emptied(int place, BlockNumber page)
{
	HeapKnowledge *known = &knowledge[place];

	if (page >= known->pages || page_is_empty(known, page))
		return;
	known->done[page / 8] |= 1 << (page % 8);
	known->empty++;
	publish_empty(place);
	while (known->low < known->settled && page_is_empty(known, known->low))
		known->low++;
}

/* Whether nothing is left in a heap, nor comes to it. */
static bool
heap_is_drained(const HeapKnowledge *known)
{
	return known->low >= known->pages;
}

/* Whether nothing was left in a heap when it was last looked at. */
static bool
heap_was_empty(const HeapKnowledge *known)
{
	return known->empty >= known->pages;
}

/*
 * Records in flight
 */

static RecordKey
record_key(int place, int64 id)
{
	RecordKey key = {.id = id, .place = place};

	return key;
}

static Flight *
find_flight(int place, int64 id)
{
	RecordKey key = record_key(place, id);

	return hash_search(in_flight, &key, HASH_FIND, NULL);
}

static void
take_off(EventRecord *record)
{
	RecordKey key = record_key(record->place, record->id);
	Flight *flight = hash_search(in_flight, &key, HASH_ENTER, NULL);

	flight->record = record;
}

static void
land(const EventRecord *record)
{
	RecordKey key = record_key(record->place, record->id);

	(void) hash_search(in_flight, &key, HASH_REMOVE, NULL);
}

/* A record is in flight no more, and where it was before. */
static void
let_go(const EventRecord *record)
{
	const StoredRecord *stored = (const StoredRecord *) record;

	/* what may fail comes first: the record is in flight still */
	if (record->place == RECORD_PARKED && stored->held)
		for (int i = 0; i < record->ntids; i++)
			held_add(record->payload.context,
					 ItemPointerGetBlockNumber(&record->tids[i]),
					 record->payload.sequence);
	else if (record->place == RECORD_PARKED)
		passes[LANE_BULK].parked_wanted = true;
	land(record);
}

static void
forget_records(List **records)
{
	while (*records != NIL)
	{
		EventRecord *record = llast(*records);

		let_go(record);
		*records = list_delete_last(*records);
		pfree(record);
	}
}

static void
forget_partials(Pass *of)
{
	of->partials = NULL;
	if (of->partials_context != NULL)
		MemoryContextReset(of->partials_context);
}

/*
 * Reading has failed, anywhere: what was not handed out by then is to be read
 * again.  Raises nothing.
 */
void
outbox_read_failed(EventLane of_lane)
{
	Pass *failed = &passes[of_lane];
	HASH_SEQ_STATUS scan;
	Flight *flight;

	if (in_flight == NULL)
		return;
	list_free(failed->page_records);
	list_free(to_park);
	list_free(torn);
	failed->page_records = NIL;
	to_park = NIL;
	torn = NIL;
	forget_partials(failed);
	hash_seq_init(&scan, in_flight);
	while ((flight = hash_seq_search(&scan)) != NULL)
	{
		EventRecord *record = flight->record;
		const StoredRecord *stored = (const StoredRecord *) record;

		if (stored->handed_out || stored->lane != of_lane)
			continue;
		if (record->place == RECORD_PARKED)
			failed->parked_wanted = true;
		(void) hash_search(in_flight, &flight->key, HASH_REMOVE, NULL);
		pfree(record);
	}
}

/* Records of endpoints that were in force before: are now for this one. */
static bool
has_old_endpoint(void *argument, const HeapRow *row, const HeapTupleData *tuple)
{
	return (row->status == OUTBOX_WAITING || row->status == OUTBOX_PREPARED ||
			row->status == OUTBOX_HELD) &&
		   row->database == MyDatabaseId &&
		   row->endpoint != *(int64 *) argument &&
		   endpoints_are_own(worker_state, (uint64) row->endpoint);
}

static void
set_endpoint(void *argument, HeapRow *row)
{
	row->endpoint = *(int64 *) argument;
}

void
outbox_list_endpoints(DatabaseState *state)
{
	MemoryContext context = CurrentMemoryContext;
	bool done;

	if (!endpoints_list_wanted(state))
		return;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	done = endpoints_list(state, true);
	CommitTransactionCommand();
	if (done)
		endpoints_listed();
	MemoryContextSwitchTo(context);
}

/*
 * What waits is meant for the new endpoint from now on, also where nobody
 * remembers the one before.
 */
void
outbox_adopt(DatabaseState *state)
{
	MemoryContext context = CurrentMemoryContext;
	int64 endpoint = (int64) record_endpoint_hash(state->target.endpoint);
	HeapWalk walk = {.visit = has_old_endpoint,
					 .change = set_endpoint,
					 .argument = &endpoint};

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (heaps_find())
		for (int place = 0; place < HEAPS_COUNT; place++)
		{
			Relation relation = heaps_open(place, RowExclusiveLock, true);

			if (relation == NULL)
				break;
			heaps_walk(relation, &walk);
			relation_close(relation, RowExclusiveLock);
		}
	endpoints_note_adoption(state);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
}

/* Forgets everything, in whatever state an error has left it. */
static void
forget_everything(void)
{
	MemoryContext memory = records_context;

	records_context = NULL;
	in_flight = NULL;
	torn = NIL;
	to_park = NIL;
	parked_records = NIL;
	parked_array = NULL;
	max_parked_array = 0;
	compaction = NULL;
	parked_pages = NULL;
	nparked_pages = 0;
	max_parked_pages = 0;
	memset(knowledge, 0, sizeof(knowledge));
	memset(files, 0, sizeof(files));
	memset(passes, 0, sizeof(passes));
	for (int i = 0; i < LANE_COUNT; i++)
		passes[i].parked_wanted = true;
	parked_changed = true;
	if (memory != NULL)
		MemoryContextDelete(memory);
}

void
outbox_worker_start(DatabaseState *state, OutboxHolds holds)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext memory;
	HASHCTL control = {0};

	forget_everything();
	worker_state = state;
	worker_holds = holds;

	/* it is the caller's until all is in it */
	memory = AllocSetContextCreate(context, "absmartly records",
								   ALLOCSET_DEFAULT_SIZES);
	control.keysize = sizeof(RecordKey);
	control.entrysize = sizeof(Flight);
	control.hcxt = memory;
	in_flight = hash_create("absmartly records in flight", 4096, &control,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	held_init(memory);
	for (int i = 0; i < LANE_COUNT; i++)
		passes[i].partials_context = AllocSetContextCreate(
			memory, "absmartly records in parts", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSetParent(memory, TopMemoryContext);
	records_context = memory;
}

/*
 * Reading
 */

/* Turns to a lane. */
static void
turn_to_lane(EventLane to)
{
	lane = to;
	pass = &passes[to];
}

void
outbox_pass_begin(EventLane of_lane)
{
	int active = active_heap(of_lane);

	turn_to_lane(of_lane);
	replicated_pass_begin(of_lane);
	pass->heaps = 0;
	pass->order[pass->heaps++] = RECORD_OTHER_HEAP(active);
	pass->order[pass->heaps++] = active;
	pass->at = 0;
	pass->entered = false;
	/* what an error has left behind is to be looked at again */
	forget_partials(pass);
	forget_records(&to_park);
	if (pg_atomic_fetch_and_u32(&worker_state->outbox_rescan,
								~(1U << RECORD_PARKED)) &
		(1U << RECORD_PARKED))
		passes[LANE_BULK].parked_wanted = true;
	if (pass->all_begun)
		pass->parked_wanted = true;
	pass->all_begun = false;
	if (pass->parked_wanted)
	{
		parked_changed = true;
		parked_done = UNKNOWN_BYTES;
	}
	/* records may come to be held while the other heaps are read */
	pass->order[pass->heaps++] = RECORD_PARKED;
}

/* Whether a pass of the lane reads a heap. */
static bool
is_of_lane(int place)
{
	return place == RECORD_PARKED || RECORD_LANE(place) == lane;
}

static void
close_heaps(Relation relations[HEAPS_COUNT], LOCKMODE mode)
{
	for (int place = 0; place < HEAPS_COUNT; place++)
		if (relations[place] != NULL)
			relation_close(relations[place], mode);
}

/* Finds out where the rows in flight are now. */
static bool
find_row(void *argument, const HeapRow *row, const HeapTupleData *tuple)
{
	const Flight *flight = find_flight(*(int *) argument, row->record);

	if (flight != NULL && row->chunk < flight->record->ntids)
		flight->record->tids[row->chunk] = tuple->t_self;
	return false;
}

/*
 * Takes note of the file that a heap has.  Whoever goes by what he knows of its
 * rows has to do that first, with a lock that keeps it from getting another
 * one.
 */
static void
follow_file(int place, Relation relation)
{
	Oid file = relation->rd_rel->relfilenode;
	HeapWalk walk = {.visit = find_row, .argument = &place};

	if (files[place] == file)
		return;
	if (OidIsValid(files[place]) && hash_get_num_entries(in_flight) > 0)
		heaps_walk(relation, &walk);
	for (int i = 0; i < LANE_COUNT; i++)
	{
		Pass *moved = &passes[i];

		if (moved->entered && moved->order[moved->at] == place)
		{
			/* it is read from its beginning, but for what is in flight */
			moved->entered = false;
			forget_partials(moved);
		}
		if (place == RECORD_PARKED)
			moved->parked_wanted = true;
	}
	files[place] = file;
}

/* A heap may have been cut between two transactions. */
static void
follow_size(void)
{
	if (pass->entered)
		pass->pages =
			Min(pass->pages,
				RelationGetNumberOfBlocks(reading[pass->order[pass->at]]));
}

bool
outbox_read_begin(EventLane of_lane)
{
	bool all = false;

	turn_to_lane(of_lane);

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	/* transactions that ended before it are told apart quickly */
	PushActiveSnapshot(GetTransactionSnapshot());
	replicated_look(GetActiveSnapshot());
	memset(reading, 0, sizeof(reading));
	if (heaps_find())
	{
		all = true;
		for (int place = 0; place < HEAPS_COUNT && all; place++)
		{
			if (!is_of_lane(place))
				continue;
			reading[place] = heaps_open(place, RowExclusiveLock, false);
			all = reading[place] != NULL;
		}
	}
	if (!all)
	{
		close_heaps(reading, RowExclusiveLock);
		PopActiveSnapshot();
		CommitTransactionCommand();
		return false;
	}
	for (int place = 0; place < HEAPS_COUNT; place++)
		if (reading[place] != NULL)
			follow_file(place, reading[place]);
	follow_size();
	return true;
}

static const EventOrigin *
row_origin(const EngineText texts[HEAP_TEXTS], int64 endpoint)
{
	EventOrigin origin;

	memset(&origin, 0, sizeof(origin));
	origin.endpoint = (uint64) endpoint;
	memcpy(origin.application, texts[HEAP_APPLICATION].data,
		   Min(texts[HEAP_APPLICATION].length, SHARED_MAX_NAME - 1));
	memcpy(origin.application_version, texts[HEAP_APPLICATION_VERSION].data,
		   Min(texts[HEAP_APPLICATION_VERSION].length, SHARED_MAX_NAME - 1));
	memcpy(origin.environment, texts[HEAP_ENVIRONMENT].data,
		   Min(texts[HEAP_ENVIRONMENT].length, SHARED_MAX_NAME - 1));
	origin.known = origin.application[0] != '\0' ||
				   origin.application_version[0] != '\0' ||
				   origin.environment[0] != '\0';
	return record_intern_origin(&origin);
}

/* The page that is being read. */
typedef struct PageRead
{
	int place;
	int waiting; /* rows that are not done with */
} PageRead;

static bool
is_note(EngineText text, const char *note)
{
	return text.length == strlen(note) &&
		   memcmp(text.data, note, text.length) == 0;
}

/* A record of so much payload, which is still to be filled in. */
static StoredRecord *
new_record(int place, const HeapRow *row, const HeapTupleData *tuple,
		   const EngineText texts[HEAP_TEXTS], Size length)
{
	Size tids = MAXALIGN(sizeof(StoredRecord));
	Size data = tids + MAXALIGN(Max(row->chunks, 1) * sizeof(ItemPointerData));
	EngineText note = texts[HEAP_NOTE];
	StoredRecord *stored = palloc(data + length + note.length + 1);
	char *note_copy = (char *) stored + data + length;
	EventRecord *record = &stored->record;

	memset(stored, 0, sizeof(*stored));
	record->place = place;
	record->id = row->record;
	record->created = row->created;
	record->origin = row_origin(texts, row->endpoint);
	record->payload.data = (char *) stored + data;
	record->payload.contexts = (uint32) row->contexts;
	record->payload.exposures = (uint32) row->exposures;
	record->payload.goals = (uint32) row->goals;
	record->payload.context = (uint64) row->context;
	record->payload.sequence = (uint64) row->sequence;
	record->payload.prepared = row->status == OUTBOX_PREPARED;
	record->payload.lane = lane;
	memcpy(note_copy, note.data, note.length);
	note_copy[note.length] = '\0';
	record->note = note_copy;
	record->tids = (ItemPointerData *) ((char *) stored + tids);
	stored->lane = lane;
	if (place != RECORD_PARKED && row->goals > 0 &&
		!is_note(texts[HEAP_NOTE], OUTBOX_NOTE_LOCAL))
		stored->xid = HeapTupleHeaderGetXmin(tuple->t_data);
	stored->held = row->status == OUTBOX_HELD;
	stored->database = row->database;
	stored->endpoint = row->endpoint;
	return stored;
}

static void
add_chunk(StoredRecord *stored, const ItemPointerData *tid, EngineText payload)
{
	EventRecord *record = &stored->record;

	memcpy(unconstify(char *, record->payload.data) + record->payload.length,
		   payload.data, payload.length);
	record->payload.length += payload.length;
	record->tids[record->ntids++] = *tid;
}

/*
 * Records in parts
 */

static Partial *
find_partial(int place, const HeapRow *row)
{
	RecordKey key = record_key(place, row->record);
	Partial *partial;
	bool found;

	if (pass->partials == NULL)
	{
		HASHCTL control = {.keysize = sizeof(RecordKey),
						   .entrysize = sizeof(Partial),
						   .hcxt = pass->partials_context};

		pass->partials = hash_create("absmartly records in parts", 16, &control,
									 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	partial = hash_search(pass->partials, &key, HASH_ENTER, &found);
	if (!found)
	{
		memset((char *) partial + sizeof(key), 0,
			   sizeof(*partial) - sizeof(key));
		partial->chunks = row->chunks;
		partial->payloads = MemoryContextAllocZero(
			pass->partials_context, row->chunks * sizeof(EngineText));
		partial->tids = MemoryContextAlloc(
			pass->partials_context, row->chunks * sizeof(ItemPointerData));
	}
	return partial;
}

static void
free_partial(Partial *partial)
{
	for (int i = 0; i < partial->chunks; i++)
		if (partial->payloads[i].data != NULL)
			pfree(unconstify(char *, partial->payloads[i].data));
	pfree(partial->payloads);
	pfree(partial->tids);
	(void) hash_search(pass->partials, &partial->key, HASH_REMOVE, NULL);
}

/*
 * Adds a row to a record of several; gives the record when it has all.  They
 * may come in any order: VACUUM FULL may begin in the midst of a heap.
 */
static StoredRecord *
add_part(int place, const HeapRow *row, const HeapTupleData *tuple,
		 const EngineText texts[HEAP_TEXTS], bool waits)
{
	Partial *partial = find_partial(place, row);
	StoredRecord *stored = NULL;

	if (row->chunk >= partial->chunks ||
		partial->payloads[row->chunk].data != NULL)
		return NULL;
	if (waits)
	{
		EngineText *payload = &partial->payloads[row->chunk];
		char *copy = MemoryContextAlloc(pass->partials_context,
										texts[HEAP_PAYLOAD].length);

		memcpy(copy, texts[HEAP_PAYLOAD].data, texts[HEAP_PAYLOAD].length);
		payload->data = copy;
		payload->length = texts[HEAP_PAYLOAD].length;
		partial->tids[row->chunk] = tuple->t_self;
		partial->waiting++;
	}
	else
		partial->kept++;

	if (partial->waiting == partial->chunks)
	{
		Size length = 0;

		for (int i = 0; i < partial->chunks; i++)
			length += partial->payloads[i].length;
		stored = new_record(place, row, tuple, texts, length);
		for (int i = 0; i < partial->chunks; i++)
			add_chunk(stored, &partial->tids[i], partial->payloads[i]);
	}
	if (stored != NULL || partial->kept == partial->chunks)
		free_partial(partial);
	return stored;
}

static bool
is_suspect(int place, int64 id)
{
	ListCell *cell;

	foreach (cell, pass->suspects)
	{
		const Torn *suspect = lfirst(cell);

		if (suspect->key.place == place && suspect->key.id == id)
			return true;
	}
	return false;
}

/*
 * A heap has been read.  What is in parts may have been committed meanwhile,
 * and is whole in the next pass, which is asked for once; or else it is torn.
 */
static void
judge_partials(int place)
{
	bool all = place != RECORD_PARKED || pass->all;
	List *found = NIL;
	bool again = false;
	HASH_SEQ_STATUS scan;
	Partial *partial;
	ListCell *cell;
	MemoryContext caller = MemoryContextSwitchTo(records_context);

	if (pass->partials != NULL)
	{
		hash_seq_init(&scan, pass->partials);
		while ((partial = hash_seq_search(&scan)) != NULL)
		{
			Torn *suspect = palloc0(sizeof(Torn));

			suspect->key = partial->key;
			suspect->chunks = partial->chunks;
			if (!is_suspect(place, partial->key.id))
				again = true;
			else if (all)
				torn = lappend(torn, suspect);
			found = lappend(found, suspect);
		}
		forget_partials(pass);
	}
	foreach (cell, pass->suspects)
	{
		Torn *suspect = lfirst(cell);

		if (suspect->key.place != place)
			continue;
		pass->suspects = foreach_delete_current(pass->suspects, cell);
		pfree(suspect);
	}
	if (found != NIL && place == RECORD_PARKED)
		pass->parked_wanted = true;
	pass->suspects = list_concat(pass->suspects, found);
	list_free(found);
	if (again)
		shared_events_committed(worker_state, lane, 1);
	MemoryContextSwitchTo(caller);
}

static bool
is_kept_status(int32 status)
{
	return status == OUTBOX_FOREIGN || status == OUTBOX_DEAD ||
		   status == OUTBOX_UNREADABLE;
}

/* The torn record that a row is of, if any. */
static Torn *
torn_of(int place, const HeapRow *row)
{
	ListCell *cell;

	foreach (cell, torn)
	{
		Torn *record = lfirst(cell);

		if (record->key.place == place && record->key.id == row->record)
			return record;
	}
	return NULL;
}

static bool
count_torn(void *argument, const HeapRow *row, const HeapTupleData *tuple)
{
	Torn *record = row->chunks > 1 ? torn_of(*(int *) argument, row) : NULL;

	if (record == NULL)
		return false;
	if (is_kept_status(row->status))
		record->kept++;
	else
	{
		record->waiting++;
		record->endpoint = row->endpoint;
	}
	return false;
}

/* Whether a record has all of its rows, but some of them requeued. */
static bool
is_half_requeued(const Torn *record)
{
	return record->waiting > 0 && record->kept > 0 &&
		   record->waiting + record->kept == record->chunks;
}

static bool
is_torn(void *argument, const HeapRow *row, const HeapTupleData *tuple)
{
	const Torn *record =
		row->chunks > 1 ? torn_of(*(int *) argument, row) : NULL;

	return record != NULL && record->waiting != record->chunks &&
		   record->kept != record->chunks;
}

static void
complete_row(void *argument, HeapRow *row)
{
	const Torn *record = torn_of(*(int *) argument, row);

	if (is_half_requeued(record))
	{
		row->status = OUTBOX_WAITING;
		row->database = MyDatabaseId;
		row->endpoint = record->endpoint;
	}
	else
		row->status = OUTBOX_DONE;
}

/*
 * Brings torn records to the end of what was begun with them: they are
 * delivered, moved, dropped or requeued.  What is on the heap's pages decides,
 * not what is known of them.
 */
static void
complete_torn(void)
{
	for (int place = 0; place < HEAPS_COUNT; place++)
	{
		HeapWalk count = {.visit = count_torn, .argument = &place};
		HeapWalk complete = {
			.visit = is_torn, .change = complete_row, .argument = &place};
		ListCell *cell;
		bool any = false;

		foreach (cell, torn)
		{
			any |= ((const Torn *) lfirst(cell))->key.place == place;
		}
		if (!any)
			continue;
		heaps_walk(reading[place], &count);
		heaps_walk(reading[place], &complete);
		if (place != RECORD_PARKED)
			pg_atomic_fetch_or_u32(&worker_state->outbox_rescan, 1U << place);
	}
	ereport(LOG, (errmsg_plural(
					 "absmartly: %d record that a crash had left in parts is "
					 "complete",
					 "absmartly: %d records that a crash had left in parts are "
					 "complete",
					 list_length(torn), list_length(torn))));
	list_free(torn);
	torn = NIL;
	/* the next pass sees what is left, if anything */
	shared_events_committed(worker_state, lane, 1);
}

static bool
is_foreign(const StoredRecord *stored)
{
	return stored->database != MyDatabaseId ||
		   !endpoints_are_own(worker_state, (uint64) stored->endpoint);
}

/*
 * A record is complete: hands it out, or parks it.  One that is soon free stays
 * where it is; what was parked was looked at before.
 */
static void
sort_record(StoredRecord *stored)
{
	EventRecord *record = &stored->record;
	const EventPayload *payload = &record->payload;
	TimestampTz until;

	if (!replicated_has(stored->lane, stored->xid))
	{
		let_go(record);
		pfree(stored);
	}
	else if (is_foreign(stored) ||
			 encoding_version(payload->data, payload->length) !=
				 ENCODING_VERSION)
		to_park = lappend(to_park, stored);
	else if (payload->context == 0 || record->place == RECORD_PARKED ||
			 !worker_holds(payload->context, payload->sequence,
						   payload->prepared, &until))
		pass->page_records = lappend(pass->page_records, stored);
	else if (TimestampDifferenceExceeds(GetCurrentTimestamp(), until,
										SHORT_HOLD_MS))
	{
		stored->to_hold = true;
		to_park = lappend(to_park, stored);
	}
	else
	{
		let_go(record);
		pfree(stored);
	}
}

/*
 * Whether a row is to be sent by this lane, or to be looked at for that: of
 * what was parked the live one sends what was held, the other one the rest.
 */
static bool
is_wanted(int place, const HeapRow *row, const HeapTupleData *tuple)
{
	BlockNumber page = ItemPointerGetBlockNumber(&tuple->t_self);
	uint64 key = (uint64) row->context;
	TimestampTz until;

	switch (row->status)
	{
		case OUTBOX_WAITING:
		case OUTBOX_PREPARED:
			return place != RECORD_PARKED || lane == LANE_BULK;
		case OUTBOX_HELD:
			if (lane == LANE_BULK)
				return false;
			if (!worker_holds(key, (uint64) row->sequence, true, &until))
				return true;
			held_add(key, page, (uint64) row->sequence);
			return false;
		default:
			return false;
	}
}

/*
 * Whether a row is of a record of which others may have been requeued, which
 * are bulk then.
 */
static bool
is_kept(const PageRead *page, const HeapRow *row)
{
	return lane == LANE_BULK && page->place == RECORD_PARKED && pass->all &&
		   row->chunks > 1 && is_kept_status(row->status);
}

/*
 * Takes a row that waits; runs under the page's lock.  An error may leave its
 * record in flight and in no list: see outbox_read_failed().
 */
static bool
take_row(void *argument, const HeapRow *row, const HeapTupleData *tuple)
{
	PageRead *page = argument;
	bool waits = is_wanted(page->place, row, tuple);
	EngineText texts[HEAP_TEXTS];
	StoredRecord *stored;

	page->waiting++;
	if (!waits && !is_kept(page, row))
		return false;
	if (find_flight(page->place, row->record) != NULL)
		return false;
	heaps_row_texts(row, texts);
	if (row->chunks > 1)
		stored = add_part(page->place, row, tuple, texts, waits);
	else
	{
		stored = new_record(page->place, row, tuple, texts,
							texts[HEAP_PAYLOAD].length);
		add_chunk(stored, &tuple->t_self, texts[HEAP_PAYLOAD]);
	}
	if (stored != NULL)
	{
		take_off(&stored->record);
		sort_record(stored);
	}

	/*
	 * Its commit may not be on disk.  That the row is hinted to be committed
	 * does not tell: such a hint may come before, on a page that is younger.
	 */
	if (waits && row->goals > 0)
	{
		XLogRecPtr commit =
			TransactionIdGetCommitLSN(HeapTupleHeaderGetXmin(tuple->t_data));

		flush_up_to = Max(flush_up_to, commit);
	}
	return false;
}

static void
read_page(int place, BlockNumber page_number)
{
	PageRead page = {place, 0};
	HeapWalk walk = {.visit = take_row, .argument = &page};
	MemoryContext previous = MemoryContextSwitchTo(records_context);
	bool wanted = pass->parked_wanted;
	int open;

	if (place == RECORD_PARKED && !pass->all)
	{
		/* should the reading fail */
		pass->parked_wanted = true;
		for (int i = pass->free_at - 1;
			 i >= 0 && pass->free_pages[i].page == page_number; i--)
			held_forget(pass->free_pages[i].context, page_number);
	}
	open = heaps_walk_page(reading[place], page_number, &walk);
	pass->parked_wanted = wanted;

	if (place != RECORD_PARKED && page.waiting == 0 && open == 0)
		page_emptied(place, page_number);
	MemoryContextSwitchTo(previous);
}

/* Comes to what is parked. */
static void
enter_parked(void)
{
	Relation relation = reading[RECORD_PARKED];

	pass->page = 0;
	pass->pages = RelationGetNumberOfBlocks(relation);
	pg_atomic_write_u32(&worker_state->outbox_blocks[RECORD_PARKED],
						pass->pages);
	pass->all = pass->parked_wanted;
	if (pass->all)
	{
		pass->parked_wanted = false;
		pass->all_begun = true;
		if (lane == LANE_LIVE)
			held_forget_all();
	}
	else
	{
		HeldPage *before = pass->free_pages;

		pass->free_pages = NULL;
		pass->nfree = 0;
		pass->free_at = 0;
		if (before != NULL)
			pfree(before);
		if (lane == LANE_LIVE)
			pass->free_pages = held_free_pages(worker_holds, &pass->nfree);
	}
}

/* Goes on to the next page on which a record is free. */
static void
next_free_page(void)
{
	pass->page = pass->pages;
	if (pass->free_at == pass->nfree)
		return;
	pass->page = pass->free_pages[pass->free_at].page;
	while (pass->free_at < pass->nfree &&
		   pass->free_pages[pass->free_at].page == pass->page)
		pass->free_at++;
}

/* The next page to read; false at the pass's end. */
static bool
next_page(int *place, BlockNumber *page)
{
	for (; pass->at < pass->heaps; pass->at++, pass->entered = false)
	{
		int heap = pass->order[pass->at];

		if (!pass->entered)
		{
			if (heap == RECORD_PARKED)
				enter_parked();
			else
			{
				know_heap(heap, reading[heap], true);
				pass->page = knowledge[heap].low;
				pass->pages = knowledge[heap].pages;
			}
			pass->entered = true;
		}
		while (heap != RECORD_PARKED && pass->page < pass->pages &&
			   page_is_done(&knowledge[heap], pass->page))
			pass->page++;
		if (heap == RECORD_PARKED && !pass->all)
			next_free_page();
		if (pass->page < pass->pages)
		{
			*place = heap;
			*page = pass->page++;
			return true;
		}
		judge_partials(heap);
		pass->all_begun = false;
	}
	return false;
}

EventRecord *
outbox_read(bool *end)
{
	int looked = 0;

	*end = false;
	while (pass->page_records == NIL)
	{
		int place;
		BlockNumber page;

		if (looked++ >= MAX_PAGES)
			return NULL;
		CHECK_FOR_INTERRUPTS();
		if (!next_page(&place, &page))
		{
			*end = true;
			return NULL;
		}
		read_page(place, page);
	}
	{
		StoredRecord *stored = linitial(pass->page_records);

		pass->page_records = list_delete_first(pass->page_records);
		stored->handed_out = true;
		return &stored->record;
	}
}

/* Takes note of a page to which a chunk of a held record comes. */
static void
note_parked(void *argument, BlockNumber page)
{
	const EventPayload *payload = argument;
	ParkedPage *parked;

	if (nparked_pages == max_parked_pages)
	{
		int most = Max(max_parked_pages * 2, 16);

		parked_pages =
			parked_pages == NULL
				? MemoryContextAlloc(records_context, most * sizeof(ParkedPage))
				: repalloc(parked_pages, most * sizeof(ParkedPage));
		max_parked_pages = most;
	}
	parked = &parked_pages[nparked_pages++];
	*parked = (ParkedPage){payload->context, payload->sequence, page};
}

/*
 * Copies a record as it is, with its id, to where it is parked; the original is
 * acknowledged.
 */
static void
park_stored(StoredRecord *stored)
{
	const EventRecord *original = &stored->record;
	HeapRecord record = {.status = stored->to_hold      ? OUTBOX_HELD
								   : is_foreign(stored) ? OUTBOX_FOREIGN
														: OUTBOX_UNREADABLE,
						 .id = stored->record.id,
						 .database = stored->database,
						 .endpoint = stored->endpoint,
						 .created = stored->record.created,
						 .origin = stored->record.origin,
						 .note = "",
						 .payload = &stored->record.payload};

	heaps_insert(reading[RECORD_PARKED], &record,
				 stored->to_hold ? note_parked : NULL, &stored->record.payload);
	for (int i = 0; i < original->ntids; i++)
		heaps_remove(reading[original->place], &original->tids[i],
					 original->id);
}

/* Says what was parked, at most once a minute. */
static void
report_parked(int foreign, int unreadable)
{
	static TimestampTz reported_at = 0;
	static int64 foreign_records = 0;
	static int64 unreadable_records = 0;
	TimestampTz now = GetCurrentTimestamp();

	foreign_records += foreign;
	unreadable_records += unreadable;
	if (reported_at != 0 &&
		!TimestampDifferenceExceeds(reported_at, now, REPORT_MS))
		return;
	if (foreign_records > 0)
		ereport(WARNING,
				(errmsg("absmartly: records of another database or endpoint "
						"are not sent, " INT64_FORMAT " so far",
						foreign_records),
				 errdetail("This database, or the server, seems to be a copy; "
						   "they are kept in the view absmartly_outbox."),
				 errhint("Use absmartly_requeue() to send them from here, or "
						 "absmartly_discard() to drop them.")));
	if (unreadable_records > 0)
		ereport(WARNING,
				(errmsg("absmartly: records are of a format that this version "
						"does not know, " INT64_FORMAT " so far",
						unreadable_records),
				 errdetail("They are kept in the view absmartly_outbox."),
				 errhint("Install the version that wrote them, or a later "
						 "one, and use absmartly_requeue().")));
	reported_at = now;
}

/*
 * Marks the originals of what was parked, which are gone by now: so their pages
 * are known to be empty.  Should that fail they stay in flight, and it is done
 * with the next ones.
 */
static void
acknowledge_parked(void)
{
	int number = list_length(parked_records);

	if (number == 0)
		return;
	if (number > max_parked_array)
	{
		if (parked_array != NULL)
			pfree(parked_array);
		parked_array = NULL;
		max_parked_array = 0;
		parked_array =
			MemoryContextAlloc(records_context, number * sizeof(EventRecord *));
		max_parked_array = number;
	}
	for (int i = 0; i < number; i++)
		parked_array[i] = list_nth(parked_records, i);
	outbox_acknowledge(parked_array, number, false);
	list_free_deep(parked_records);
	parked_records = NIL;
}

void
outbox_read_end(void)
{
	List *parked = to_park;
	List *all_parked;
	MemoryContext caller;
	ListCell *cell;
	int foreign = 0;
	int unreadable = 0;

	nparked_pages = 0;
	foreach (cell, parked)
	{
		StoredRecord *stored = lfirst(cell);

		park_stored(stored);
		if (is_foreign(stored))
			foreign++;
		else if (!stored->to_hold)
			unreadable++;
	}
	if (torn != NIL)
		complete_torn();
	close_heaps(reading, NoLock);
	PopActiveSnapshot();
	caller = MemoryContextSwitchTo(records_context);
	all_parked = list_concat_copy(parked_records, parked);
	MemoryContextSwitchTo(caller);
	CommitTransactionCommand();
	/* whatever fails from here on, the copies are there */
	foreach (cell, parked)
	{
		StoredRecord *stored = lfirst(cell);
		const EventPayload *payload = &stored->record.payload;

		stored->handed_out = true;
		if (stored->to_hold && payload->prepared)
			context_slot_count(payload->context,
							   payload->exposures + payload->goals);
	}
	list_free(parked_records);
	parked_records = all_parked;
	to_park = NIL;
	list_free(parked);
	if (nparked_pages > 0)
	{
		bool wanted = pass->parked_wanted;

		/* should this fail */
		pass->parked_wanted = true;
		for (int i = 0; i < nparked_pages; i++)
			held_add(parked_pages[i].key, parked_pages[i].page,
					 parked_pages[i].sequence);
		pass->parked_wanted = wanted;
	}
	if (foreign + unreadable > 0)
		report_parked(foreign, unreadable);
	acknowledge_parked();
}

void
outbox_flush(void)
{
	if (!XLogRecPtrIsInvalid(flush_up_to))
		XLogFlush(flush_up_to);
	flush_up_to = InvalidXLogRecPtr;
}

void
outbox_release(EventRecord *record)
{
	let_go(record);
}

/*
 * Acknowledging
 */

/* One tuple to be marked. */
typedef struct Mark
{
	int place;
	ItemPointerData tid;
	int64 record;
} Mark;

static int
compare_marks(const void *left, const void *right)
{
	const Mark *a = left;
	const Mark *b = right;

	if (a->place != b->place)
		return a->place < b->place ? -1 : 1;
	return ItemPointerCompare(unconstify(ItemPointerData *, &a->tid),
							  unconstify(ItemPointerData *, &b->tid));
}

/*
 * Marks rows of one page.  Gives the end of the WAL record.  A row that is
 * another one now is left alone.
 */
static XLogRecPtr
mark_page(Relation relation, const Mark *marks, int count)
{
	BlockNumber page_number = ItemPointerGetBlockNumber(&marks->tid);
	Buffer buffer;
	GenericXLogState *xlog;
	Page page;
	XLogRecPtr end;
	bool empty;

	if (page_number >= RelationGetNumberOfBlocks(relation))
		return InvalidXLogRecPtr;
	buffer = ReadBuffer(relation, page_number);
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	xlog = GenericXLogStart(relation);
	page = heaps_change_page(xlog, buffer);
	for (int i = 0; i < count; i++)
	{
		OffsetNumber offset = ItemPointerGetOffsetNumber(&marks[i].tid);
		ItemId item;

		if (PageIsNew(page) || offset > PageGetMaxOffsetNumber(page))
			continue;
		item = PageGetItemId(page, offset);
		if (ItemIdIsNormal(item) &&
			heap_row(page, item)->record == marks[i].record)
			heap_row(page, item)->status = OUTBOX_DONE;
	}
	end = GenericXLogFinish(xlog);
	empty =
		marks->place != RECORD_PARKED && heaps_page_is_empty(relation, buffer);
	UnlockReleaseBuffer(buffer);
	if (empty)
		page_emptied(marks->place, page_number);
	return end;
}

/* Opens the heaps in which records are, knowing where; false: they are gone. */
static bool
open_heaps_of(EventRecord **records, int count, Relation relations[HEAPS_COUNT])
{
	memset(relations, 0, HEAPS_COUNT * sizeof(Relation));
	if (!heaps_find())
		return false;
	for (int i = 0; i < count; i++)
	{
		int place = records[i]->place;

		if (relations[place] != NULL)
			continue;
		relations[place] = heaps_open(place, RowExclusiveLock, true);
		if (relations[place] == NULL)
			return false;
		follow_file(place, relations[place]);
	}
	return true;
}

void
outbox_acknowledge(EventRecord **records, int count, bool flush)
{
	MemoryContext context = CurrentMemoryContext;
	Relation relations[HEAPS_COUNT];
	Mark *marks;
	XLogRecPtr end = InvalidXLogRecPtr;
	int nmarks = 0;
	int ntids = 0;
	bool there;

	for (int i = 0; i < count; i++)
		ntids += records[i]->ntids;
	if (ntids == 0)
		return;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	there = open_heaps_of(records, count, relations);
	marks = palloc(ntids * sizeof(Mark));
	for (int i = 0; i < count; i++)
		for (int j = 0; j < records[i]->ntids; j++)
		{
			marks[nmarks].place = records[i]->place;
			marks[nmarks].tid = records[i]->tids[j];
			marks[nmarks++].record = records[i]->id;
		}
	qsort(marks, nmarks, sizeof(Mark), compare_marks);

	for (int at = 0; there && at < nmarks;)
	{
		int place = marks[at].place;
		int next = at + 1;
		XLogRecPtr lsn;

		while (next < nmarks && marks[next].place == place &&
			   ItemPointerGetBlockNumber(&marks[next].tid) ==
				   ItemPointerGetBlockNumber(&marks[at].tid))
			next++;
		lsn = mark_page(relations[place], &marks[at], next - at);
		end = Max(end, lsn);
		at = next;
		parked_changed |= place == RECORD_PARKED;
	}
	close_heaps(relations, NoLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);

	for (int i = 0; i < count; i++)
	{
		land(records[i]);
		if (records[i]->place == RECORD_PARKED && parked_done < UNKNOWN_BYTES)
			parked_done +=
				records[i]->payload.length + records[i]->ntids * ROW_OVERHEAD;
	}
	if (XLogRecPtrIsInvalid(end))
		return;
	if (flush)
		XLogFlush(end);
	else
		XLogSetAsyncXactLSN(end);
}

static Relation parked_rows = NULL;

void
outbox_park_begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	parked_rows = NULL;
	if (heaps_find())
		parked_rows = heaps_open(RECORD_PARKED, RowExclusiveLock, true);
}

void
outbox_park_row(const EventOrigin *origin, TimestampTz created,
				const EventPayload *payload, OutboxStatus status,
				const char *note)
{
	HeapRecord record = {.status = status,
						 .database = MyDatabaseId,
						 .endpoint = (int64) origin->endpoint,
						 .created = created,
						 .origin = origin,
						 .note = note,
						 .payload = payload};

	if (parked_rows != NULL)
		heaps_insert(parked_rows, &record, NULL, NULL);
}

void
outbox_park_original(const EventRecord *record)
{
	Relation relation;

	if (parked_rows == NULL)
		return;
	relation = heaps_open(record->place, RowExclusiveLock, true);
	if (relation == NULL)
		return;
	follow_file(record->place, relation);
	for (int i = 0; i < record->ntids; i++)
		heaps_remove(relation, &record->tids[i], record->id);
	relation_close(relation, NoLock);
}

void
outbox_park_end(void)
{
	if (parked_rows != NULL)
		relation_close(parked_rows, NoLock);
	parked_rows = NULL;
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/*
 * Changing heaps
 */

static bool
is_waiting(void *argument, const HeapRow *row, const HeapTupleData *tuple)
{
	(*(int64 *) argument)++;
	return false;
}

/*
 * Truncates a heap if that is empty, and nobody is at work in it.  False if it
 * could not be locked.
 */
static bool
truncate_heap(int place)
{
	MemoryContext context = CurrentMemoryContext;
	Relation relation = NULL;
	bool locked = false;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (heaps_find())
		relation = heaps_open(place, AccessExclusiveLock, false);
	if (relation != NULL)
	{
		BlockNumber pages = RelationGetNumberOfBlocks(relation);
		int64 waiting = 0;
		HeapWalk walk = {.visit = is_waiting, .argument = &waiting};

		locked = true;
		PushActiveSnapshot(GetTransactionSnapshot());
		for (BlockNumber page = 0; page < pages && waiting == 0; page++)
		{
			CHECK_FOR_INTERRUPTS();
			(void) heaps_walk_page(relation, page, &walk);
		}
		PopActiveSnapshot();
		if (waiting == 0 && pages > 0)
			RelationTruncate(relation, 0);
		if (waiting == 0)
			pg_atomic_write_u32(&worker_state->outbox_blocks[place], 0);
		if (waiting == 0 && place == RECORD_PARKED)
		{
			held_forget_all();
			parked_done = 0;
		}
		if (place != RECORD_PARKED)
		{
			know_nothing(place);
			if (waiting == 0)
				knowledge[place].pages = 0;
			pg_atomic_write_u32(&worker_state->outbox_settled[place], 0);
		}
		if (waiting > 0 && place != RECORD_PARKED)
			shared_events_committed(worker_state, RECORD_LANE(place),
									(uint64) waiting);
		relation_close(relation, NoLock);
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return locked;
}

/* The rows that have to stay when the parked heap gets a new file. */
typedef struct Staying
{
	HeapTuple *tuples;
	int count;
	int most;
	Size bytes;
	Size limit; /* beyond that nothing is moved */
} Staying;

static bool
collect_row(void *argument, const HeapRow *row, const HeapTupleData *tuple)
{
	Staying *staying = argument;

	staying->bytes += HEAPTUPLESIZE + tuple->t_len;
	if (staying->bytes > staying->limit)
		return false;
	if (staying->count == staying->most)
	{
		staying->most *= 2;
		staying->tuples =
			repalloc(staying->tuples, staying->most * sizeof(HeapTuple));
	}
	staying->tuples[staying->count++] =
		heap_copytuple(unconstify(HeapTupleData *, tuple));
	return false;
}

/* Moves what stays to a new file.  The rows are seen by all snapshots. */
static void
move_rows(Relation relation, const Staying *staying)
{
	set_new_file(relation);
	CommandCounterIncrement();
	for (int i = 0; i < staying->count; i++)
		heap_insert(relation, staying->tuples[i], GetCurrentCommandId(true),
					HEAP_INSERT_SKIP_FSM | HEAP_INSERT_FROZEN |
						HEAP_INSERT_NO_LOGICAL,
					NULL);
}

/*
 * Makes the parked heap smaller, so that what session contexts have held there
 * does not take up room for ever: what has to stay moves to a new file, unless
 * it is too much.  False if the heap could not be locked.
 */
static bool
compact_parked(void)
{
	MemoryContext context = CurrentMemoryContext;
	Staying staying = {.most = 64};
	HeapWalk walk = {.visit = collect_row, .argument = &staying};
	Relation relation = NULL;
	BlockNumber pages = 0;
	bool locked = false;

	if (compaction == NULL)
		compaction = AllocSetContextCreate(
			records_context, "absmartly compaction", ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(compaction);

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (heaps_find())
		relation = heaps_open(RECORD_PARKED, AccessExclusiveLock, false);
	if (relation != NULL)
	{
		locked = true;
		MemoryContextSwitchTo(compaction);
		PushActiveSnapshot(GetTransactionSnapshot());
		staying.tuples = palloc(staying.most * sizeof(HeapTuple));
		staying.limit =
			Min(COMPACT_BYTES,
				(Size) RelationGetNumberOfBlocks(relation) * BLCKSZ / 2);
		heaps_walk(relation, &walk);
		if (staying.bytes <= staying.limit)
			move_rows(relation, &staying);
		PopActiveSnapshot();
		pages = RelationGetNumberOfBlocks(relation);
		relation_close(relation, NoLock);
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	if (!locked)
		return false;

	parked_done = 0;
	if (staying.bytes <= staying.limit)
	{
		pg_atomic_write_u32(&worker_state->outbox_blocks[RECORD_PARKED], pages);
		/* the next pass finds out what is where */
		held_forget_all();
		for (int i = 0; i < LANE_COUNT; i++)
			passes[i].parked_wanted = true;
	}
	MemoryContextReset(compaction);
	return true;
}

/* Brings what is known of the sizes of a lane's heaps up to date. */
static bool
look_at_heaps(EventLane of_lane)
{
	MemoryContext context = CurrentMemoryContext;
	bool found = false;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (heaps_find())
	{
		found = true;
		for (int number = 0; number < 2 && found; number++)
		{
			int place = RECORD_HEAP(of_lane, number);
			Relation relation = heaps_open(place, AccessShareLock, false);

			found = relation != NULL;
			if (found)
			{
				know_heap(place, relation, false);
				relation_close(relation, AccessShareLock);
			}
		}
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return found;
}

/* Whether writers should leave the active heap for the other one. */
static bool
is_time_to_change(int active, BlockNumber least)
{
	const HeapKnowledge *left = &knowledge[active];
	const HeapKnowledge *entered = &knowledge[RECORD_OTHER_HEAP(active)];

	if (left->pages < least)
		return false;
	if (heap_is_drained(entered))
		return entered->pages < left->pages;

	/*
	 * It holds rows of prepared transactions, perhaps for good, or more events
	 * come than can be sent.  The active one must not grow for ever for that.
	 */
	return entered->pages < left->pages / 2;
}

/* Changes a lane's heaps, and truncates what is empty; false: no lock. */
static bool
maintain_lane(DatabaseState *state, EventLane of_lane, BlockNumber least,
			  bool idle)
{
	bool locked = true;
	int active = active_heap(of_lane);
	int other = RECORD_OTHER_HEAP(active);
	uint32 number = pg_atomic_read_u32(&state->outbox_active[of_lane]);

	/* when idle, what has not been seen to be done are just its last pages */
	if (knowledge[other].pages > 0 &&
		(heap_is_drained(&knowledge[other]) ||
		 (idle && heap_was_empty(&knowledge[other]))))
		locked = truncate_heap(other);
	if (pg_atomic_read_u32(&state->outbox_blocks[active]) >= least &&
		look_at_heaps(of_lane) && is_time_to_change(active, least))
	{
		bool stays = !heap_is_drained(&knowledge[other]);

		pg_atomic_write_u32(&state->outbox_active[of_lane], 1 - number);
		if (idle && heap_was_empty(&knowledge[active]))
		{
			bool truncated = truncate_heap(active);

			locked &= truncated;
			/* a heap that can't be emptied is not to grow */
			if (truncated && stays)
				pg_atomic_write_u32(&state->outbox_active[of_lane], number);
		}
	}
	return locked;
}

/* Takes the list of endpoints out of the heap, if that may be. */
static bool
drop_list(void)
{
	MemoryContext context = CurrentMemoryContext;
	bool dropped;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	dropped = endpoints_drop_list();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return dropped;
}

long
outbox_maintain(DatabaseState *state, bool idle)
{
	static int failed = 0; /* in a row */
	BlockNumber least = idle ? ROTATE_IDLE_PAGES : ROTATE_PAGES;
	BlockNumber parked;
	bool locked = true;

	if (RecoveryInProgress())
		return -1;
	for (int i = 0; i < LANE_COUNT; i++)
		locked &= maintain_lane(state, (EventLane) i, least, idle);
	if (idle && endpoints_list_is_left())
	{
		if (drop_list())
			parked_changed = true;
		else
			locked = false;
	}
	if (idle && parked_changed)
	{
		parked_changed = false;
		if (!truncate_heap(RECORD_PARKED))
		{
			parked_changed = true;
			locked = false;
		}
	}
	parked = pg_atomic_read_u32(&state->outbox_blocks[RECORD_PARKED]);
	if (parked >= least && parked_done >= (Size) parked * BLCKSZ / 2)
		locked &= compact_parked();
	if (locked)
	{
		failed = 0;
		return -1;
	}
	return RETRY_MS << Min(failed++, MAX_RETRY_DOUBLINGS);
}
