/*
 * shared.c
 *		The extension's shared memory: one state for each database.
 *
 * The directory is a plain array: it is written when a database gains or
 * loses the extension, and read once by each backend, which keeps a pointer.
 * A state's memory is never moved, and is reused only after its database is
 * gone or has no worker any more and no data, so that such a pointer stays
 * good for as long as the backend is connected.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/procarray.h"
#include "storage/shmem.h"
#include "utils/memutils.h"

#include "compat.h"
#include "data/shared.h"
#include "events/dedup.h"
#include "events/queue.h"

/* the part of the area that needs no segment of its own */
#define AREA_INITIAL_SIZE ((Size) 1024 * 1024)

typedef struct SharedHeader
{
	LWLock *directory_lock;
	int state_tranche;
	int area_tranche;
	void *area_place;
	BackendSlot *slots;
	pg_atomic_uint64 serial;
	pg_atomic_uint32 directory_changes;

	slock_t mutex; /* protects the rest up to the databases */
	PGPROC *launcher_proc;
	int nprobes; /* -1: too many */
	Oid probes[SHARED_MAX_PROBES];

	DatabaseState databases[SHARED_MAX_DATABASES];
} SharedHeader;

static SharedHeader *shared = NULL;
static dsa_area *area = NULL;

/* shared_my_database()'s memory */
static DatabaseState *my_state = NULL;
static bool my_state_looked_up = false;
static uint32 my_state_changes;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

bool
shared_available(void)
{
	return shared != NULL;
}

static Size
slots_size(void)
{
	return mul_size(backend_slot_count(), sizeof(BackendSlot));
}

static void
shared_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();

	RequestAddinShmemSpace(add_size(
		add_size(MAXALIGN(sizeof(SharedHeader)), MAXALIGN(slots_size())),
		AREA_INITIAL_SIZE));
	RequestAddinShmemSpace(MAXALIGN(queue_size()));
	RequestAddinShmemSpace(MAXALIGN(dedup_size()));
	RequestNamedLWLockTranche("absmartly_directory", 1);
}

/*
 * Initialises the memory.  Runs again after a crash restart: everything then
 * starts from nothing.
 */
static void
shared_startup(void)
{
	bool found;
	void *place;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);

	shared = ShmemInitStruct("absmartly", sizeof(SharedHeader), &found);
	if (!found)
	{
		memset(shared, 0, sizeof(SharedHeader));
		shared->directory_lock =
			&GetNamedLWLockTranche("absmartly_directory")->lock;
		shared->state_tranche = LWLockNewTrancheId();
		shared->area_tranche = LWLockNewTrancheId();
		SpinLockInit(&shared->mutex);
		pg_atomic_init_u64(&shared->serial, 1);
		pg_atomic_init_u32(&shared->directory_changes, 0);
		for (int i = 0; i < SHARED_MAX_DATABASES; i++)
		{
			DatabaseState *state = &shared->databases[i];

			LWLockInitialize(&state->lock, shared->state_tranche);
			ConditionVariableInit(&state->changed);
			pg_atomic_init_u32(&state->look_wanted, 0);
			pg_atomic_init_u32(&state->target_serial, 1);
			for (int j = 0; j < (int) lengthof(state->outbox_blocks); j++)
				pg_atomic_init_u32(&state->outbox_blocks[j], 0);
			for (int j = 0; j < (int) lengthof(state->outbox_settled); j++)
			{
				pg_atomic_init_u32(&state->outbox_empty[j], 0);
				pg_atomic_init_u32(&state->outbox_settled[j], 0);
			}
			pg_atomic_init_u32(&state->outbox_rescan, 0);
			pg_atomic_init_u32(&state->outbox_wanted, 0);
			for (int lane = 0; lane < LANE_COUNT; lane++)
			{
				pg_atomic_init_u32(&state->outbox_active[lane], 0);
				pg_atomic_init_u64(&state->pending[lane], 0);
				pg_atomic_init_u32(&state->wake_at[lane], 0);
				state->queue_first[lane] = -1;
				state->queue_last[lane] = -1;
			}
			pg_atomic_init_u32(&state->contexts_changed, 0);
			for (int j = 0; j < COUNTER_COUNT; j++)
				pg_atomic_init_u64(&state->counters[j], 0);
			state->queue_taken = -1;
		}

		shared->slots =
			ShmemInitStruct("absmartly slots", slots_size(), &found);
		memset(shared->slots, 0, slots_size());
		for (int i = 0; i < backend_slot_count(); i++)
		{
			ContextSlot *context = &shared->slots[i].context;

			pg_atomic_init_u64(&shared->slots[i].parallel_serial, 0);
			pg_atomic_init_u32(&shared->slots[i].warned, 0);
			pg_atomic_init_u64(&context->key, 0);
			pg_atomic_init_u64(&context->committed, 0);
			pg_atomic_init_u64(&context->released, 0);
			pg_atomic_init_u64(&context->due, 0);
			pg_atomic_init_u32(&context->discards, 0);
			pg_atomic_init_u64(&context->pending, 0);
		}

		/*
		 * The area lives as long as the server.  The postmaster itself must
		 * not stay attached: it could not follow segments that come and go.
		 */
		shared->area_place =
			ShmemInitStruct("absmartly area", AREA_INITIAL_SIZE, &found);
		area = dsa_create_in_place(shared->area_place, AREA_INITIAL_SIZE,
								   shared->area_tranche, NULL);
		dsa_pin(area);
		dsa_detach(area);
		area = NULL;
	}

	place = ShmemInitStruct("absmartly queue", queue_size(), &found);
	queue_init(place, found);
	place = ShmemInitStruct("absmartly dedup", dedup_size(), &found);
	dedup_init(place, found);

	LWLockRelease(AddinShmemInitLock);

	LWLockRegisterTranche(shared->state_tranche, "absmartly_database");
	LWLockRegisterTranche(shared->area_tranche, "absmartly_area");
}

void
shared_install(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = shared_request;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shared_startup;
}

dsa_area *
shared_area(void)
{
	MemoryContext previous;

	if (likely(area != NULL))
		return area;

	Assert(shared != NULL);
	previous = MemoryContextSwitchTo(TopMemoryContext);
	area = dsa_attach_in_place(shared->area_place, NULL);
	dsa_pin_mapping(area);
	on_shmem_exit(dsa_on_shmem_exit_release_in_place,
				  PointerGetDatum(shared->area_place));
	MemoryContextSwitchTo(previous);
	return area;
}

/*
 * Makes a free place a database's.  Locks, condition variables and what may
 * be looked at without a lock are kept as they are.
 */
static void
state_reset(DatabaseState *state, Oid database)
{
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	Assert(!DsaPointerIsValid(state->current));
	Assert(state->nretired == 0);
	state->database = database;
	state->target_known = false;
	state->suspended = false;
	memset(&state->target, 0, sizeof(state->target));
	state->current = InvalidDsaPointer;
	state->retired = InvalidDsaPointer;
	state->version_bytes = 0;
	state->generation = 0;
	state->saved_generation = 0;
	state->source = 0;
	state->fetched_at = 0;
	state->extension = EXTENSION_UNKNOWN;
	state->worker_pid = 0;
	state->worker_proc = NULL;
	state->leaver_pid = 0;
	state->worker_state = WORKER_NONE;
	state->restart_requested = false;
	memset(state->holders, 0, sizeof(state->holders));
	state->launched_at = 0;
	pg_atomic_write_u32(&state->look_wanted, 0);
	memset(&state->logger, 0, sizeof(state->logger));
	state->refresh_requested = 0;
	state->refresh_urgent = 0;
	state->refresh_finished = 0;
	state->refresh_succeeded = 0;
	state->refresh_error[0] = '\0';
	memset(&state->fetch, 0, sizeof(state->fetch));
	pg_atomic_fetch_add_u32(&state->target_serial, 1);
	for (int i = 0; i < (int) lengthof(state->outbox_blocks); i++)
		pg_atomic_write_u32(&state->outbox_blocks[i], 0);
	for (int i = 0; i < (int) lengthof(state->outbox_settled); i++)
	{
		pg_atomic_write_u32(&state->outbox_empty[i], 0);
		pg_atomic_write_u32(&state->outbox_settled[i], 0);
	}
	pg_atomic_write_u32(&state->outbox_rescan, 0);
	pg_atomic_write_u32(&state->outbox_wanted, 0);
	for (int lane = 0; lane < LANE_COUNT; lane++)
	{
		pg_atomic_write_u32(&state->outbox_active[lane], 0);
		pg_atomic_write_u64(&state->pending[lane], 0);
		pg_atomic_write_u32(&state->wake_at[lane], 0);
	}
	for (int i = 0; i < COUNTER_COUNT; i++)
		pg_atomic_write_u64(&state->counters[i], 0);
	memset(state->endpoints, 0, sizeof(state->endpoints));
	state->endpoints_saved = false;
	state->endpoints_adopted = false;
	state->worker_leaves = false;
	state->publish_requested = 0;
	state->publish_finished = 0;
	state->publish_succeeded = 0;
	state->publish_delivered = 0;
	state->publish_error[0] = '\0';
	memset(&state->publish, 0, sizeof(state->publish));
	state->fetch_rounds = 0;
	state->fetch_running = false;
	state->data_round = 0;
	memset(state->discarded, 0, sizeof(state->discarded));
	state->discarded_next = 0;
	queue_clear(state);
	LWLockRelease(&state->lock);
}

/* shared_database() with the directory's lock held */
static DatabaseState *
find_or_create(Oid database, bool create)
{
	DatabaseState *unused = NULL;

	for (int i = 0; i < SHARED_MAX_DATABASES; i++)
	{
		DatabaseState *candidate = &shared->databases[i];

		if (candidate->database == database)
			return candidate;
		if (unused == NULL && !OidIsValid(candidate->database))
			unused = candidate;
	}
	if (!create || unused == NULL)
		return NULL;
	state_reset(unused, database);
	pg_atomic_fetch_add_u32(&shared->directory_changes, 1);
	return unused;
}

DatabaseState *
shared_database(Oid database, bool create)
{
	DatabaseState *state;

	Assert(OidIsValid(database));
	if (shared == NULL)
		return NULL;
	LWLockAcquire(shared->directory_lock, create ? LW_EXCLUSIVE : LW_SHARED);
	state = find_or_create(database, create);
	LWLockRelease(shared->directory_lock);
	return state;
}

DatabaseState *
shared_my_database(void)
{
	uint32 changes;

	if (likely(my_state != NULL) && likely(my_state->database == MyDatabaseId))
		return my_state;
	if (shared == NULL || !OidIsValid(MyDatabaseId))
		return NULL;

	/* look again only when the directory has changed since */
	changes = pg_atomic_read_u32(&shared->directory_changes);
	if (my_state_looked_up && my_state == NULL && changes == my_state_changes)
		return NULL;
	my_state_changes = changes;
	my_state_looked_up = true;
	my_state = shared_database(MyDatabaseId, false);
	return my_state;
}

void
shared_forget_database(Oid database)
{
	if (shared == NULL)
		return;

	LWLockAcquire(shared->directory_lock, LW_EXCLUSIVE);
	for (int i = 0; i < SHARED_MAX_DATABASES; i++)
	{
		DatabaseState *state = &shared->databases[i];

		if (state->database != database)
			continue;
		LWLockAcquire(&state->lock, LW_EXCLUSIVE);
		if (!DsaPointerIsValid(state->current) && state->nretired == 0 &&
			state->worker_pid == 0 && state->leaver_pid == 0 &&
			!shared_database_held(state))
		{
			state->target_known = false;
			queue_clear(state);
			state->database = InvalidOid;
			pg_atomic_fetch_add_u32(&shared->directory_changes, 1);
		}
		LWLockRelease(&state->lock);
		break;
	}
	LWLockRelease(shared->directory_lock);
}

DatabaseState *
shared_database_hold(Oid database)
{
	DatabaseState *state;
	bool held = false;

	/* the directory's lock keeps the place from being given to another one */
	LWLockAcquire(shared->directory_lock, LW_EXCLUSIVE);
	state = find_or_create(database, true);
	if (state != NULL)
	{
		LWLockAcquire(&state->lock, LW_EXCLUSIVE);
		for (int i = 0; i < SHARED_MAX_HOLDERS && !held; i++)
		{
			pid_t holder = state->holders[i];

			held = holder == 0 || holder == MyProcPid ||
				   BackendPidGetProc(holder) == NULL;
			if (held)
				state->holders[i] = MyProcPid;
		}
		LWLockRelease(&state->lock);
	}
	LWLockRelease(shared->directory_lock);
	return held ? state : NULL;
}

void
shared_database_release(DatabaseState *state)
{
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	for (int i = 0; i < SHARED_MAX_HOLDERS; i++)
		if (state->holders[i] == MyProcPid)
			state->holders[i] = 0;
	LWLockRelease(&state->lock);
}

bool
shared_database_held(const DatabaseState *state)
{
	for (int i = 0; i < SHARED_MAX_HOLDERS; i++)
		if (state->holders[i] != 0 &&
			BackendPidGetProc(state->holders[i]) != NULL)
			return true;
	return false;
}

BackendSlot *
shared_slot(int number)
{
	Assert(shared != NULL);
	Assert(number >= 0 && number < backend_slot_count());
	return &shared->slots[number];
}

uint64
shared_next_serial(void)
{
	Assert(shared != NULL);
	return pg_atomic_fetch_add_u64(&shared->serial, 1);
}

void
shared_set_launcher(PGPROC *proc)
{
	SpinLockAcquire(&shared->mutex);
	shared->launcher_proc = proc;
	SpinLockRelease(&shared->mutex);
}

bool
shared_has_launcher(void)
{
	bool result;

	SpinLockAcquire(&shared->mutex);
	result = shared->launcher_proc != NULL;
	SpinLockRelease(&shared->mutex);
	return result;
}

void
shared_wake_launcher(void)
{
	PGPROC *proc;

	if (shared == NULL)
		return;
	SpinLockAcquire(&shared->mutex);
	proc = shared->launcher_proc;
	SpinLockRelease(&shared->mutex);
	/* a PGPROC outlives its process: at worst another one wakes for nothing */
	if (proc != NULL)
		SetLatch(&proc->procLatch);
}

void
shared_wake_worker(DatabaseState *state)
{
	PGPROC *proc = *(PGPROC *volatile *) &state->worker_proc;

	if (proc != NULL)
		SetLatch(&proc->procLatch);
}

void
shared_events_committed(DatabaseState *state, EventLane lane, uint64 contexts)
{
	uint64 pending =
		pg_atomic_fetch_add_u64(&state->pending[lane], contexts) + contexts;
	uint32 wake_at = pg_atomic_read_u32(&state->wake_at[lane]);

	/* who sets it to 0 wakes the worker, so that it is woken once */
	if (wake_at != 0 && pending >= wake_at &&
		pg_atomic_compare_exchange_u32(&state->wake_at[lane], &wake_at, 0))
		shared_wake_worker(state);
}

void
shared_events_undone(DatabaseState *state)
{
	for (EventLane lane = LANE_LIVE; lane < LANE_COUNT; lane++)
		shared_events_committed(state, lane, 1);
}

uint64
shared_events_take(DatabaseState *state, EventLane lane)
{
	pg_atomic_write_u32(&state->wake_at[lane], 0);
	return pg_atomic_exchange_u64(&state->pending[lane], 0);
}

bool
shared_events_sleep(DatabaseState *state, EventLane lane, uint32 wake_at)
{
	/* a full barrier: what is committed later will see it */
	(void) pg_atomic_exchange_u32(&state->wake_at[lane], wake_at);
	return wake_at == 0 || pg_atomic_read_u64(&state->pending[lane]) < wake_at;
}

void
shared_count(EventCounter counter, uint64 number)
{
	DatabaseState *state = shared_my_database();

	if (state != NULL && number > 0)
		pg_atomic_fetch_add_u64(&state->counters[counter], number);
}

void
shared_request_probe(Oid database)
{
	bool known = false;

	if (shared == NULL)
		return;
	SpinLockAcquire(&shared->mutex);
	for (int i = 0; i < shared->nprobes; i++)
		known |= (shared->probes[i] == database);
	if (!known && shared->nprobes >= 0)
	{
		if (shared->nprobes < SHARED_MAX_PROBES)
			shared->probes[shared->nprobes++] = database;
		else
			shared->nprobes = -1;
	}
	SpinLockRelease(&shared->mutex);
	shared_wake_launcher();
}

int
shared_take_probes(Oid *databases)
{
	int count;

	SpinLockAcquire(&shared->mutex);
	count = shared->nprobes;
	if (count > 0)
		memcpy(databases, shared->probes, count * sizeof(Oid));
	shared->nprobes = 0;
	SpinLockRelease(&shared->mutex);
	return count;
}
