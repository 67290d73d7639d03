/*
 * endpoints.c
 *		Which endpoints were this server's own.
 *
 * Shared memory has those that count.  The file has them, too, for the next
 * start, and beside them what commands have announced: a command writes that
 * before it commits.  What was rolled back stays there, and does no harm: the
 * catalog does not have it.  The file is read and written under a heavyweight
 * lock, so that whoever waits for it can leave.
 *
 * A standby sees only now and then which endpoint its database has.  So as long
 * as records may lie in the outbox for one that is not in force any more, a row
 * of the parked heap has the list as well.  It is written before anything is
 * written for the next one: what a standby has of the outbox is not ahead of
 * what it has of that.  Only where somebody keeps the heap locked is it written
 * later, since an endpoint must not wait for him.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/transam.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "data/file.h"
#include "events/endpoints.h"
#include "events/heaps.h"
#include "events/outbox.h"
#include "events/record.h"

/* advisory locks of this kind are none that SQL can take */
#define LOCK_KIND 5

/* of the worker: whether the heap has the list; where the endpoint is from */
static bool listed = false;
static bool from_database = false;

/*
 * The next transaction id when all that waited was adopted, if the heap has the
 * list from before that; else 0.
 */
static uint64 adopted_at = 0;

static void
lock_file(LOCKTAG *lock, Oid database)
{
	SET_LOCKTAG_ADVISORY(*lock, InvalidOid, database, 0, LOCK_KIND);
	(void) LockAcquire(lock, ExclusiveLock, false, false);
}

static void
unlock_file(const LOCKTAG *lock)
{
	(void) LockRelease(lock, ExclusiveLock, false);
}

static int
find(const uint64 *list, uint64 endpoint)
{
	for (int i = 0; i < SHARED_MAX_ENDPOINTS; i++)
		if (list[i] == endpoint)
			return i;
	return -1;
}

static void
take_out(uint64 *list, int place)
{
	memmove(&list[place], &list[place + 1],
			(SHARED_MAX_ENDPOINTS - 1 - place) * sizeof(list[0]));
	list[SHARED_MAX_ENDPOINTS - 1] = 0;
}

static uint64
last(const uint64 *list)
{
	int place = find(list, 0);

	if (place == 0)
		return 0;
	return list[(place < 0 ? SHARED_MAX_ENDPOINTS : place) - 1];
}

/* Puts an endpoint at the end; the first one is forgotten if there are many. */
static void
put_last(uint64 *list, uint64 endpoint)
{
	int place = find(list, endpoint);

	if (place >= 0)
		take_out(list, place);
	else if (find(list, 0) < 0)
		take_out(list, 0);
	list[find(list, 0)] = endpoint;
}

/*
 * Whether the endpoint that is found at the server's start goes on from what
 * was kept.  A standby's database gets its settings from where its records come
 * from, too.
 */
static bool
goes_on(const FileEndpoints *kept, uint64 endpoint, bool of_database)
{
	if (last(kept->own) == endpoint)
		return true;
	if (last(kept->own) == 0)
		return false;
	if (!of_database)
		return kept->reset_announced;
	return find(kept->announced, endpoint) >= 0 || RecoveryInProgress();
}

/*
 * The list in the heap
 */

/* That list, whose row may not be there yet. */
typedef struct ListRow
{
	uint64 own[SHARED_MAX_ENDPOINTS];
	uint64 adopted_at;
	bool found;
} ListRow;

/* Where a row has the list; NULL: it is another one. */
static char *
list_in(const HeapRow *row)
{
	EngineText texts[HEAP_TEXTS];

	if (row->status != OUTBOX_ENDPOINTS || row->database != MyDatabaseId)
		return NULL;
	heaps_row_texts(row, texts);
	if (texts[HEAP_PAYLOAD].length != sizeof(((ListRow *) 0)->own))
		return NULL;
	return unconstify(char *, texts[HEAP_PAYLOAD].data);
}

/* Takes note of the list; a copied database has one of the original's, too. */
static bool
read_list(void *argument, const HeapRow *row, const HeapTupleData *tuple)
{
	ListRow *list = argument;
	const char *own = list_in(row);

	if (own != NULL)
	{
		memcpy(list->own, own, sizeof(list->own));
		list->found = true;
		list->adopted_at = (uint64) row->sequence;
	}
	return row->status == OUTBOX_ENDPOINTS && row->database != MyDatabaseId;
}

static bool
is_list(void *argument, const HeapRow *row, const HeapTupleData *tuple)
{
	return list_in(row) != NULL;
}

static void
change_list(void *argument, HeapRow *row)
{
	const ListRow *list = argument;

	memcpy(list_in(row), list->own, sizeof(list->own));
	row->sequence = 0;
}

/*
 * What was committed has got the stamp of the endpoint in force; what runs, or
 * is prepared, has not.  The row's sequence tells of the latter.
 */
static void
set_adopted(void *argument, HeapRow *row)
{
	adopted_at = U64FromFullTransactionId(ReadNextFullTransactionId());
	row->sequence = (int64) adopted_at;
}

static void
set_done(void *argument, HeapRow *row)
{
	row->status = OUTBOX_DONE;
}

static void
insert_list(Relation parked, const ListRow *list)
{
	static const EventOrigin nowhere = {0};
	EventPayload payload = {.data = (const char *) list->own,
							.length = sizeof(list->own)};
	HeapRecord record = {.status = OUTBOX_ENDPOINTS,
						 .database = MyDatabaseId,
						 .created = GetCurrentTimestamp(),
						 .origin = &nowhere,
						 .note = "",
						 .payload = &payload};

	PushActiveSnapshot(GetTransactionSnapshot());
	heaps_insert(parked, &record, NULL, NULL);
	PopActiveSnapshot();
}

/*
 * Whether what the heap has is what this server goes on from.  That is its own
 * list, or, after a promotion, the former primary's, which may have had more
 * endpoints than the standby has seen.
 */
static bool
goes_on_from_heap(const ListRow *list, const uint64 *own)
{
	if (!list->found)
		return false;
	if (last(list->own) == last(own))
		return true;
	if (!from_database)
		return false;
	/* the database has its settings from where it has the list */
	for (int i = 0; i < SHARED_MAX_ENDPOINTS && own[i] != last(own); i++)
		if (find(list->own, own[i]) >= 0)
			return true;
	return false;
}

/* Adds those that the heap has, which are newer than those before the last. */
static void
add_from_heap(DatabaseState *state, const ListRow *list)
{
	uint64 own[SHARED_MAX_ENDPOINTS];
	uint64 in_force = last(state->endpoints);
	FileEndpoints kept;
	LOCKTAG lock;

	memcpy(own, state->endpoints, sizeof(own));
	for (int i = 0; i < SHARED_MAX_ENDPOINTS && list->own[i] != 0; i++)
		put_last(own, list->own[i]);
	put_last(own, in_force);
	if (memcmp(own, state->endpoints, sizeof(own)) == 0)
		return;

	lock_file(&lock, state->database);
	if (file_read_endpoints(state->database, &kept))
	{
		memcpy(kept.own, own, sizeof(kept.own));
		kept.adopted = false;
		(void) file_write_endpoints(state->database, &kept);
	}
	unlock_file(&lock);
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	memcpy(state->endpoints, own, sizeof(own));
	state->endpoints_adopted = false;
	LWLockRelease(&state->lock);
}

/* The list is needed as long as something may wait that was not adopted. */
static void
write_list(Relation parked, const DatabaseState *state, ListRow *list)
{
	HeapWalk walk = {.visit = is_list, .argument = list};
	bool needed = state->endpoints[1] != 0 && !state->endpoints_adopted;
	bool differs = memcmp(list->own, state->endpoints, sizeof(list->own)) != 0;

	memcpy(list->own, state->endpoints, sizeof(list->own));
	adopted_at = list->found && !differs ? list->adopted_at : 0;
	walk.change = needed ? change_list : set_done;
	if (list->found && differs)
		heaps_walk(parked, &walk);
	else if (!list->found && needed)
		insert_list(parked, list);
}

bool
endpoints_list_wanted(const DatabaseState *state)
{
	return !listed && last(state->endpoints) != 0 && !RecoveryInProgress();
}

bool
endpoints_list_is_left(void)
{
	return adopted_at != 0;
}

bool
endpoints_drop_list(void)
{
	HeapWalk walk = {.visit = is_list, .change = set_done};
	FullTransactionId next = ReadNextFullTransactionId();
	TransactionId oldest = GetActiveSnapshot()->xmin;
	Relation parked = NULL;

	if (adopted_at > U64FromFullTransactionId(next) -
						 (XidFromFullTransactionId(next) - oldest))
		return false;
	if (heaps_find())
		parked = heaps_open(RECORD_PARKED, RowExclusiveLock, false);
	if (parked == NULL)
		return false;
	heaps_walk(parked, &walk);
	relation_close(parked, NoLock);
	adopted_at = 0;
	return true;
}

bool
endpoints_list(DatabaseState *state, bool wait)
{
	ListRow list = {.found = false};
	HeapWalk walk = {.visit = read_list, .change = set_done, .argument = &list};
	Relation parked = NULL;

	if (heaps_find())
		parked = heaps_open(RECORD_PARKED, RowExclusiveLock, wait);
	if (parked == NULL)
		return false;
	heaps_walk(parked, &walk);
	if (goes_on_from_heap(&list, state->endpoints))
		add_from_heap(state, &list);
	write_list(parked, state, &list);
	relation_close(parked, NoLock);
	return true;
}

void
endpoints_listed(void)
{
	listed = true;
}

/*
 * What becomes of the lists
 */

void
endpoints_note(DatabaseState *state, const char *endpoint, bool of_database)
{
	bool first = last(state->endpoints) == 0;
	FileEndpoints before;
	FileEndpoints now;
	LOCKTAG lock;
	uint64 hash;
	bool saved;
	int place;

	from_database = of_database;
	listed = false;
	if (endpoint[0] == '\0')
		return;
	hash = record_endpoint_hash(endpoint);
	/* nobody but the database's worker changes them */
	if (state->endpoints_saved && last(state->endpoints) == hash)
		return;

	lock_file(&lock, state->database);
	saved = file_read_endpoints(state->database, &before);
	now = before;
	if (!first)
	{
		memcpy(now.own, state->endpoints, sizeof(now.own));
		now.adopted = state->endpoints_adopted;
	}
	else if (!goes_on(&before, hash, of_database))
		memset(&now, 0, sizeof(now));
	if (last(now.own) != hash)
	{
		put_last(now.own, hash);
		now.adopted = false;
	}
	place = find(now.announced, hash);
	if (of_database && place >= 0)
		take_out(now.announced, place);
	else if (!of_database)
		now.reset_announced = false;
	if (!saved || memcmp(&before, &now, sizeof(now)) != 0)
		saved = file_write_endpoints(state->database, &now);
	unlock_file(&lock);

	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	memcpy(state->endpoints, now.own, sizeof(now.own));
	state->endpoints_adopted = now.adopted;
	state->endpoints_saved = saved;
	LWLockRelease(&state->lock);
	adopted_at = 0;
	/* before anything is written for it; looked at again before adoption */
	if (!first && endpoints_list_wanted(state))
		(void) endpoints_list(state, false);
}

bool
endpoints_are_seen(Oid database)
{
	DatabaseState *state = shared_database(database, false);
	FileEndpoints kept;

	if (state != NULL &&
		(state->target_known || state->worker_state == WORKER_NO_SLOT))
		return true;
	return !file_read_endpoints(database, &kept);
}

void
endpoints_announce(Oid database, const char *endpoint)
{
	DatabaseState *state = shared_database(database, false);
	FileEndpoints kept;
	LOCKTAG lock;
	bool known;

	if (state == NULL || (endpoint != NULL && endpoint[0] == '\0'))
		return;
	/* before the first one was noted, nothing goes on from it */
	LWLockAcquire(&state->lock, LW_SHARED);
	known = last(state->endpoints) != 0;
	LWLockRelease(&state->lock);
	if (!known)
		return;

	lock_file(&lock, database);
	if (file_read_endpoints(database, &kept))
	{
		if (endpoint == NULL)
			kept.reset_announced = true;
		else
			put_last(kept.announced, record_endpoint_hash(endpoint));
		(void) file_write_endpoints(database, &kept);
	}
	unlock_file(&lock);
}

bool
endpoints_are_own(const DatabaseState *state, uint64 endpoint)
{
	return endpoint == 0 || find(state->endpoints, endpoint) >= 0;
}

bool
endpoints_adoption_wanted(const DatabaseState *state)
{
	return state->endpoints[1] != 0 && !state->endpoints_adopted &&
		   state->target.endpoint[0] != '\0';
}

void
endpoints_note_adoption(DatabaseState *state)
{
	HeapWalk walk = {.visit = is_list, .change = set_adopted};
	Relation parked = NULL;
	FileEndpoints kept;
	LOCKTAG lock;

	if (heaps_find())
		parked = heaps_open(RECORD_PARKED, RowExclusiveLock, true);
	if (parked != NULL)
	{
		heaps_walk(parked, &walk);
		relation_close(parked, NoLock);
	}
	/* a crash must not leave less than what is noted */
	heaps_flush();

	state->endpoints_adopted = true;
	lock_file(&lock, state->database);
	if (file_read_endpoints(state->database, &kept) &&
		memcmp(kept.own, state->endpoints, sizeof(kept.own)) == 0)
	{
		kept.adopted = true;
		(void) file_write_endpoints(state->database, &kept);
	}
	unlock_file(&lock);
}
