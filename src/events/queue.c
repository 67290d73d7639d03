/*
 * queue.c
 *		The memory queue: events of those who can't or won't write to the
 *		outbox (DESIGN 6.3).
 *
 * The pool consists of blocks of one size.  An entry is a chain of them: its
 * first block begins with the entry's header, and after that origin and payload
 * are spread over the chain.  An entry is known by the number of its first
 * block.
 *
 * Each database has lists of entries: for each lane those that wait, oldest
 * first, and those that the worker has taken.  All operations on them take
 * constant time, but putting back, which looks for the entry's place among the
 * oldest.
 *
 * One lock protects pool and lists.  Bytes are copied without it: blocks that
 * are in no list belong to who has got them from the pool, and a taken entry
 * belongs to the worker.
 */
#include "postgres.h"

#include "access/transam.h"
#include "storage/lwlock.h"
#include "storage/procarray.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "events/queue.h"
#include "settings.h"

#define BLOCK_SIZE 256
#define BLOCK_DATA (BLOCK_SIZE - sizeof(int32))

#define NO_BLOCK (-1)

typedef struct QueueBlock
{
	int32 next; /* of the same entry, or of the free ones; NO_BLOCK: none */
	char data[BLOCK_DATA];
} QueueBlock;

StaticAssertDecl(sizeof(QueueBlock) == BLOCK_SIZE, "blocks have no padding");

/* at the start of an entry's first block, after its next */
typedef struct QueueEntry
{
	int32 next_block;
	int32 last_block;
	int32 nblocks;
	int32 previous; /* in the list */
	int32 following;
	Oid database; /* InvalidOid: no entry begins here */
	bool taken;
	uint8 lane;
	bool known; /* origin */
	TransactionId mover; /* that takes it to the outbox, once it is written */
	uint8 application_length;
	uint8 application_version_length;
	uint8 environment_length;
	uint32 length; /* payload */
	uint32 contexts;
	uint32 exposures;
	uint32 goals;
	uint64 context;
	uint64 sequence;
	int64 number; /* entries are counted */
	TimestampTz created;
	uint64 endpoint;
} QueueEntry;

StaticAssertDecl(SHARED_MAX_NAME <= PG_UINT8_MAX + 1,
				 "lengths of an origin's texts take a byte");

/* where an entry's bytes begin in its first block */
#define ENTRY_DATA_OFFSET sizeof(QueueEntry)

/* what an origin takes at most */
#define MAX_ORIGIN (3 * (SHARED_MAX_NAME - 1))

typedef struct QueueHeader
{
	LWLock lock; /* protects all that follows */
	int tranche;
	int32 nblocks;
	int32 nfree;
	int32 first_free; /* of those that were in use before */
	int32 first_unused; /* this one and all after it were never used */
	int64 last_number;
} QueueHeader;

/* what precedes the payload in a record */
#define RECORD_HEADER MAXALIGN(sizeof(EventRecord))

#define QUEUE_BLOCKS_OFFSET CACHELINEALIGN(sizeof(QueueHeader))

static QueueHeader *queue = NULL;
static QueueBlock *blocks;

#define entry_at(number) ((QueueEntry *) &blocks[number])

Size
queue_size(void)
{
	return add_size(QUEUE_BLOCKS_OFFSET,
					mul_size(settings_memory_queue_size, (Size) 1024));
}

void
queue_init(void *place, bool found)
{
	queue = place;
	blocks = (QueueBlock *) ((char *) place + QUEUE_BLOCKS_OFFSET);
	if (!found)
	{
		queue->tranche = LWLockNewTrancheId();
		LWLockInitialize(&queue->lock, queue->tranche);
		queue->nblocks =
			(int32) ((Size) settings_memory_queue_size * 1024 / BLOCK_SIZE);
		queue->nfree = queue->nblocks;
		queue->first_free = NO_BLOCK;
		queue->first_unused = 0;
		queue->last_number = 0;
	}
	LWLockRegisterTranche(queue->tranche, "absmartly_queue");
}

Size
queue_capacity(void)
{
	Size capacity;

	if (queue == NULL)
		return 0;
	capacity = queue->nblocks * BLOCK_DATA -
			   (ENTRY_DATA_OFFSET - offsetof(QueueBlock, data)) - MAX_ORIGIN;
	/* a record of it must fit in one allocation */
	return Min(capacity, MaxAllocSize - RECORD_HEADER);
}

bool
queue_has_room(Size bytes)
{
	/* a glance is enough: whoever comes too late finds out */
	return queue != NULL &&
		   (Size) ((volatile QueueHeader *) queue)->nfree * BLOCK_DATA >
			   (Size) queue->nblocks * BLOCK_DATA / 2 + bytes;
}

/*
 * Copying to and from a chain
 */

typedef struct Cursor
{
	QueueBlock *block;
	Size offset; /* in the block */
} Cursor;

static inline Cursor
cursor_begin(int32 entry)
{
	return (Cursor){&blocks[entry], ENTRY_DATA_OFFSET};
}

static inline Size
cursor_room(Cursor *cursor)
{
	if (cursor->offset == BLOCK_SIZE)
	{
		cursor->block = &blocks[cursor->block->next];
		cursor->offset = offsetof(QueueBlock, data);
	}
	return BLOCK_SIZE - cursor->offset;
}

static void
cursor_write(Cursor *cursor, const char *data, Size length)
{
	while (length > 0)
	{
		Size part = Min(length, cursor_room(cursor));

		memcpy((char *) cursor->block + cursor->offset, data, part);
		cursor->offset += part;
		data += part;
		length -= part;
	}
}

static void
cursor_read(Cursor *cursor, char *data, Size length)
{
	while (length > 0)
	{
		Size part = Min(length, cursor_room(cursor));

		memcpy(data, (const char *) cursor->block + cursor->offset, part);
		cursor->offset += part;
		data += part;
		length -= part;
	}
}

/*
 * The pool, with the lock held
 */

/* A chain of blocks, or NO_BLOCK.  Its last block is put in *last. */
static int32
pool_get(int32 count, int32 *last)
{
	int32 first = NO_BLOCK;

	if (count > queue->nfree)
		return NO_BLOCK;
	queue->nfree -= count;
	*last = NO_BLOCK;
	for (int32 i = 0; i < count; i++)
	{
		int32 block = queue->first_free;

		if (block != NO_BLOCK)
			queue->first_free = blocks[block].next;
		else
			block = queue->first_unused++;
		blocks[block].next = first;
		if (*last == NO_BLOCK)
			*last = block;
		first = block;
	}
	return first;
}

/* Gives an entry's blocks back. */
static void
pool_return(int32 number)
{
	QueueEntry *entry = entry_at(number);

	entry->database = InvalidOid;
	blocks[entry->last_block].next = queue->first_free;
	queue->first_free = number;
	queue->nfree += entry->nblocks;
}

/*
 * Lists, with the lock held
 */

/*
 * Puts an entry into its list of waiting ones, before another or at the end.
 */
static void
waiting_insert(DatabaseState *state, int32 number, int32 before)
{
	QueueEntry *entry = entry_at(number);
	int lane = entry->lane;

	entry->taken = false;
	entry->mover = InvalidTransactionId;
	entry->following = before;
	if (before != NO_BLOCK)
	{
		entry->previous = entry_at(before)->previous;
		entry_at(before)->previous = number;
	}
	else
	{
		entry->previous = state->queue_last[lane];
		state->queue_last[lane] = number;
	}
	if (entry->previous != NO_BLOCK)
		entry_at(entry->previous)->following = number;
	else
		state->queue_first[lane] = number;
}

/* Puts a taken entry back where it was. */
static void
waiting_return(DatabaseState *state, int32 number)
{
	int32 before = state->queue_first[entry_at(number)->lane];

	while (before != NO_BLOCK &&
		   entry_at(before)->number < entry_at(number)->number)
		before = entry_at(before)->following;
	waiting_insert(state, number, before);
}

/* Takes the first one out of a list of waiting ones. */
static void
waiting_remove_first(DatabaseState *state, EventLane lane)
{
	QueueEntry *entry = entry_at(state->queue_first[lane]);

	state->queue_first[lane] = entry->following;
	if (entry->following != NO_BLOCK)
		entry_at(entry->following)->previous = NO_BLOCK;
	else
		state->queue_last[lane] = NO_BLOCK;
}

/* Whether entries wait, of either lane. */
static bool
some_wait(const DatabaseState *state)
{
	for (int lane = 0; lane < LANE_COUNT; lane++)
		if (state->queue_first[lane] != NO_BLOCK)
			return true;
	return false;
}

static void
taken_insert(DatabaseState *state, int32 number)
{
	QueueEntry *entry = entry_at(number);

	entry->taken = true;
	entry->previous = NO_BLOCK;
	entry->following = state->queue_taken;
	if (entry->following != NO_BLOCK)
		entry_at(entry->following)->previous = number;
	state->queue_taken = number;
}

static void
taken_remove(DatabaseState *state, int32 number)
{
	QueueEntry *entry = entry_at(number);

	if (entry->previous != NO_BLOCK)
		entry_at(entry->previous)->following = entry->following;
	else
		state->queue_taken = entry->following;
	if (entry->following != NO_BLOCK)
		entry_at(entry->following)->previous = entry->previous;
}

/* Takes a taken entry out of the queue. */
static void
taken_drop(DatabaseState *state, int32 number)
{
	QueueEntry *entry = entry_at(number);

	taken_remove(state, number);
	state->queue_entries--;
	state->queue_bytes -= (int64) entry->nblocks * BLOCK_SIZE;
	pool_return(number);
}

/*
 * Whether the entry of a record is still what the record was taken from: the
 * queue may have been cleared since.
 */
static bool
still_taken(const DatabaseState *state, const EventRecord *record)
{
	const QueueEntry *entry;

	Assert(record->place == RECORD_MEMORY);
	if (record->entry < 0 || record->entry >= queue->first_unused)
		return false;
	entry = entry_at(record->entry);
	return entry->database == state->database && entry->taken &&
		   entry->number == record->id;
}

/*
 * Adding
 */

bool
queue_put(DatabaseState *state, const EventOrigin *origin,
		  const EventPayload *payload, bool *first)
{
	uint8 application_length = (uint8) strlen(origin->application);
	uint8 version_length = (uint8) strlen(origin->application_version);
	uint8 environment_length = (uint8) strlen(origin->environment);
	Size size = ENTRY_DATA_OFFSET - offsetof(QueueBlock, data) +
				application_length + version_length + environment_length +
				(Size) payload->length;
	Size count = (size + BLOCK_DATA - 1) / BLOCK_DATA;
	int32 number;
	int32 last;
	QueueEntry *entry;
	Cursor cursor;

	if (payload->length > queue_capacity())
		return false;

	LWLockAcquire(&queue->lock, LW_EXCLUSIVE);
	number = pool_get((int32) count, &last);
	LWLockRelease(&queue->lock);
	if (number == NO_BLOCK)
		return false;

	entry = entry_at(number);
	entry->last_block = last;
	entry->nblocks = (int32) count;
	entry->database = InvalidOid;
	entry->lane = (uint8) payload->lane;
	entry->known = origin->known;
	entry->application_length = application_length;
	entry->application_version_length = version_length;
	entry->environment_length = environment_length;
	entry->length = payload->length;
	entry->contexts = payload->contexts;
	entry->exposures = payload->exposures;
	entry->goals = payload->goals;
	entry->context = payload->context;
	entry->sequence = payload->sequence;
	entry->created = GetCurrentTimestamp();
	entry->endpoint = origin->endpoint;

	cursor = cursor_begin(number);
	cursor_write(&cursor, origin->application, application_length);
	cursor_write(&cursor, origin->application_version, version_length);
	cursor_write(&cursor, origin->environment, environment_length);
	cursor_write(&cursor, payload->data, payload->length);

	LWLockAcquire(&queue->lock, LW_EXCLUSIVE);
	entry->database = state->database;
	entry->number = ++queue->last_number;
	*first |= !some_wait(state);
	waiting_insert(state, number, NO_BLOCK);
	state->queue_entries++;
	state->queue_bytes += (int64) count * BLOCK_SIZE;
	LWLockRelease(&queue->lock);
	return true;
}

/*
 * The worker's side
 */

/* Those taken last come first, so each one's place is soon found. */
void
queue_worker_start(DatabaseState *state)
{
	if (queue == NULL)
		return;
	while (state->queue_taken != NO_BLOCK)
	{
		/* only the worker changes what is taken */
		int32 number = state->queue_taken;
		TransactionId mover = entry_at(number)->mover;
		bool moved =
			TransactionIdIsValid(mover) && TransactionIdDidCommit(mover);

		LWLockAcquire(&queue->lock, LW_EXCLUSIVE);
		if (moved)
			taken_drop(state, number);
		else
		{
			taken_remove(state, number);
			waiting_return(state, number);
		}
		LWLockRelease(&queue->lock);
	}
}

void
queue_moving(DatabaseState *state, const List *records, TransactionId mover)
{
	ListCell *cell;

	LWLockAcquire(&queue->lock, LW_EXCLUSIVE);
	foreach (cell, records)
	{
		const EventRecord *record = lfirst(cell);

		if (still_taken(state, record))
			entry_at(record->entry)->mover = mover;
	}
	LWLockRelease(&queue->lock);
}

/* A copy of an entry, in the current memory context. */
static EventRecord *
copy_entry(int32 number)
{
	const QueueEntry *entry = entry_at(number);
	EventRecord *record;
	EventOrigin origin;
	Cursor cursor;
	char *data;

	record = palloc(RECORD_HEADER + (Size) entry->length);
	memset(record, 0, sizeof(EventRecord));
	data = (char *) record + RECORD_HEADER;
	/* texts are zero-terminated by this */
	memset(&origin, 0, sizeof(origin));
	origin.known = entry->known;
	origin.endpoint = entry->endpoint;
	cursor = cursor_begin(number);
	cursor_read(&cursor, origin.application, entry->application_length);
	cursor_read(&cursor, origin.application_version,
				entry->application_version_length);
	cursor_read(&cursor, origin.environment, entry->environment_length);
	cursor_read(&cursor, data, entry->length);
	record->origin = record_intern_origin(&origin);

	record->place = RECORD_MEMORY;
	record->id = entry->number;
	record->created = entry->created;
	record->payload.data = data;
	record->payload.length = entry->length;
	record->payload.contexts = entry->contexts;
	record->payload.exposures = entry->exposures;
	record->payload.goals = entry->goals;
	record->payload.context = entry->context;
	record->payload.sequence = entry->sequence;
	record->payload.lane = (EventLane) entry->lane;
	record->entry = number;
	record->mover = entry->mover;
	return record;
}

EventRecord *
queue_take(DatabaseState *state, EventLane lane)
{
	EventRecord *record;
	int32 number;

	if (queue == NULL)
		return NULL;

	/* nobody else takes, so the first one stays the first one */
	LWLockAcquire(&queue->lock, LW_SHARED);
	number = state->queue_first[lane];
	LWLockRelease(&queue->lock);
	if (number == NO_BLOCK)
		return NULL;

	/* what can fail comes before it is taken */
	record = copy_entry(number);

	LWLockAcquire(&queue->lock, LW_EXCLUSIVE);
	Assert(state->queue_first[lane] == number &&
		   entry_at(number)->number == record->id);
	waiting_remove_first(state, lane);
	taken_insert(state, number);
	LWLockRelease(&queue->lock);
	return record;
}

TimestampTz
queue_oldest(DatabaseState *state)
{
	TimestampTz created = 0;

	if (queue == NULL)
		return 0;
	LWLockAcquire(&queue->lock, LW_SHARED);
	for (int lane = 0; lane < LANE_COUNT; lane++)
	{
		int32 number = state->queue_first[lane];

		if (number != NO_BLOCK &&
			(created == 0 || entry_at(number)->created < created))
			created = entry_at(number)->created;
	}
	LWLockRelease(&queue->lock);
	return created;
}

void
queue_release(DatabaseState *state, EventRecord *record)
{
	LWLockAcquire(&queue->lock, LW_EXCLUSIVE);
	if (still_taken(state, record))
	{
		taken_remove(state, record->entry);
		waiting_return(state, record->entry);
	}
	LWLockRelease(&queue->lock);
}

void
queue_remove(DatabaseState *state, EventRecord *record)
{
	LWLockAcquire(&queue->lock, LW_EXCLUSIVE);
	if (still_taken(state, record))
		taken_drop(state, record->entry);
	LWLockRelease(&queue->lock);
}

/* Gives back all entries of a list, which is left as it is. */
static void
return_list(int32 number)
{
	while (number != NO_BLOCK)
	{
		int32 following = entry_at(number)->following;

		pool_return(number);
		number = following;
	}
}

void
queue_clear(DatabaseState *state)
{
	if (queue == NULL)
		return;
	LWLockAcquire(&queue->lock, LW_EXCLUSIVE);
	for (int lane = 0; lane < LANE_COUNT; lane++)
	{
		return_list(state->queue_first[lane]);
		state->queue_first[lane] = NO_BLOCK;
		state->queue_last[lane] = NO_BLOCK;
	}
	return_list(state->queue_taken);
	state->queue_taken = NO_BLOCK;
	state->queue_entries = 0;
	state->queue_bytes = 0;
	LWLockRelease(&queue->lock);
}

void
queue_fill(DatabaseState *state, int64 *entries, int64 *bytes)
{
	*entries = 0;
	*bytes = 0;
	if (queue == NULL)
		return;
	LWLockAcquire(&queue->lock, LW_SHARED);
	*entries = state->queue_entries;
	*bytes = state->queue_bytes;
	LWLockRelease(&queue->lock);
}

List *
queue_list(DatabaseState *state, Snapshot moment)
{
	List *records = NIL;

	if (queue == NULL || state == NULL)
	{
		if (moment != NULL)
			(void) GetSnapshotData(moment);
		return NIL;
	}
	/* an error releases the lock */
	LWLockAcquire(&queue->lock, LW_SHARED);
	if (moment != NULL)
		(void) GetSnapshotData(moment);
	for (int32 number = state->queue_taken; number != NO_BLOCK;
		 number = entry_at(number)->following)
		records = lappend(records, copy_entry(number));
	for (int lane = 0; lane < LANE_COUNT; lane++)
		for (int32 number = state->queue_first[lane]; number != NO_BLOCK;
			 number = entry_at(number)->following)
			records = lappend(records, copy_entry(number));
	LWLockRelease(&queue->lock);
	return records;
}
