/*
 * endpoints.c
 *		Which endpoints were this server's own.
 *
 * Shared memory has those that count.  The file has them, too, for the next
 * start, and beside them what commands have announced: a command writes that
 * before it commits.  What was rolled back stays there, and does no harm: the
 * catalog does not have it.  The file is read and written under a heavyweight
 * lock, so that whoever waits for it can leave.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "storage/lock.h"

#include "data/file.h"
#include "events/endpoints.h"
#include "events/record.h"

/* advisory locks of this kind are none that SQL can take */
#define LOCK_KIND 5

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

void
endpoints_note(DatabaseState *state, const char *endpoint, bool of_database)
{
	FileEndpoints before;
	FileEndpoints now;
	LOCKTAG lock;
	uint64 hash;
	bool saved;
	int place;

	if (endpoint[0] == '\0')
		return;
	hash = record_endpoint_hash(endpoint);
	/* nobody but the database's worker changes them */
	if (state->endpoints_saved && last(state->endpoints) == hash)
		return;

	lock_file(&lock, state->database);
	saved = file_read_endpoints(state->database, &before);
	now = before;
	if (last(state->endpoints) != 0)
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
	FileEndpoints kept;
	LOCKTAG lock;

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
