/*
 * record.c
 *		Records: what waits in the outbox and in the memory queue.
 *
 * Origins are few in the life of a process, and each is kept once, for good: so
 * records refer to them, and two are the same if they are at the same address.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/memutils.h"

#include "data/version.h"
#include "events/record.h"
#include "settings.h"

typedef struct KnownOrigin
{
	struct KnownOrigin *next;
	EventOrigin origin;
} KnownOrigin;

static KnownOrigin *known_origins = NULL;

/* record_current_origin()'s memory */
static const EventOrigin *current = NULL;
static const DatabaseState *current_state;
static uint32 current_serial;

static const EventOrigin unknown_origin;

uint64
record_endpoint_hash(const char *endpoint)
{
	size_t length = strlen(endpoint);
	uint64 hash;

	while (length > 0 && endpoint[length - 1] == '/')
		length--;
	hash =
		hash_bytes_extended((const unsigned char *) endpoint, (int) length, 0);
	return hash != 0 ? hash : 1;
}

static bool
same_origin(const EventOrigin *left, const EventOrigin *right)
{
	return left->known == right->known && left->endpoint == right->endpoint &&
		   strcmp(left->application, right->application) == 0 &&
		   strcmp(left->application_version, right->application_version) == 0 &&
		   strcmp(left->environment, right->environment) == 0;
}

/* The one copy of an origin; NULL if there is no memory for it. */
static const EventOrigin *
find_or_keep(const EventOrigin *origin)
{
	KnownOrigin *entry;

	for (entry = known_origins; entry != NULL; entry = entry->next)
		if (same_origin(&entry->origin, origin))
			return &entry->origin;

	entry = MemoryContextAllocExtended(TopMemoryContext, sizeof(KnownOrigin),
									   MCXT_ALLOC_NO_OOM);
	if (entry == NULL)
		return NULL;
	entry->origin = *origin;
	entry->next = known_origins;
	known_origins = entry;
	return &entry->origin;
}

const EventOrigin *
record_intern_origin(const EventOrigin *origin)
{
	const EventOrigin *kept = find_or_keep(origin);

	if (kept == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	return kept;
}

/* Fills in what requests to a target say. */
static void
origin_of_target(EventOrigin *origin, const DataTarget *target)
{
	origin->known = true;
	/* without an endpoint there is nobody yet whom events could be for */
	if (target->endpoint[0] != '\0')
		origin->endpoint = record_endpoint_hash(target->endpoint);
	strlcpy(origin->application, target->application, SHARED_MAX_NAME);
	strlcpy(origin->application_version, target->application_version,
			SHARED_MAX_NAME);
	strlcpy(origin->environment, target->environment, SHARED_MAX_NAME);
}

/* The target of the settings of this session; false if they can't be used. */
static bool
target_of_settings(DataTarget *target)
{
	const struct
	{
		const char *setting;
		char *place;
		size_t size;
	} texts[] = {{settings_endpoint, target->endpoint, SHARED_MAX_ENDPOINT},
				 {settings_application, target->application, SHARED_MAX_NAME},
				 {settings_application_version, target->application_version,
				  SHARED_MAX_NAME},
				 {settings_environment, target->environment, SHARED_MAX_NAME}};

	for (int i = 0; i < (int) lengthof(texts); i++)
	{
		const char *utf8 = settings_to_utf8(texts[i].setting);

		if (utf8 == NULL || strlen(utf8) >= texts[i].size)
			return false;
		strlcpy(texts[i].place, utf8, texts[i].size);
	}
	/* without an endpoint there is nobody yet whom events could be for */
	return target->endpoint[0] != '\0';
}

/*
 * Without shared memory: where the statement's data came from, if there is any.
 * Its settings are the database's, as the worker that fetched it saw them;
 * those of the session may be the user's own.
 */
static const EventOrigin *
origin_without_worker(void)
{
	const DataVersion *version = data_version();
	DataTarget settings;
	EventOrigin origin;
	const EventOrigin *kept;

	memset(&origin, 0, sizeof(origin));
	if (version != NULL)
		origin_of_target(&origin, &version->target);
	else if (target_of_settings(&settings))
		origin_of_target(&origin, &settings);
	kept = find_or_keep(&origin);
	return kept != NULL ? kept : &unknown_origin;
}

/* What the worker has confirmed last. */
static const EventOrigin *
origin_of_state(DatabaseState *state)
{
	EventOrigin origin;
	uint32 serial;

	memset(&origin, 0, sizeof(origin));
	LWLockAcquire(&state->lock, LW_SHARED);
	serial = pg_atomic_read_u32(&state->target_serial);
	if (state->target_known)
		origin_of_target(&origin, &state->target);
	LWLockRelease(&state->lock);

	current = find_or_keep(&origin);
	if (current == NULL)
		return &unknown_origin;
	current_state = state;
	current_serial = serial;
	return current;
}

const EventOrigin *
record_current_origin(void)
{
	DatabaseState *state = shared_my_database();

	if (likely(state != NULL))
	{
		if (likely(current != NULL) && current_state == state &&
			current_serial == pg_atomic_read_u32(&state->target_serial))
			return current;
		return origin_of_state(state);
	}
	if (shared_available())
		return &unknown_origin;
	return origin_without_worker();
}

const EventOrigin *
record_complete_origin(const EventOrigin *origin)
{
	const EventOrigin *now;
	EventOrigin complete;

	if (likely(origin->known && origin->application[0] != '\0' &&
			   origin->environment[0] != '\0'))
		return origin;
	now = record_current_origin();
	if (!origin->known)
		return now;
	complete = *origin;
	if (complete.application[0] == '\0')
		strlcpy(complete.application, now->application, SHARED_MAX_NAME);
	if (complete.environment[0] == '\0')
		strlcpy(complete.environment, now->environment, SHARED_MAX_NAME);
	return record_intern_origin(&complete);
}
