/*
 * version.c
 *		Versions of the experiments: published by the worker, pinned by
 *		readers for the length of a top-level statement.
 *
 * A version is one block in shared memory that never changes.  A reader pins
 * the one in force at the first call of a statement, by a counter in it, and
 * lets go at the statement's end.  A version that is replaced is retired, and
 * freed by the worker as soon as nobody pins it.
 *
 * The statement is the outermost query or utility command; a query's pin stays
 * with it while it is open, so that a cursor's rows agree with each other, and
 * FETCH counts as a part of its query.  COMMIT in a procedure lets go, too.
 *
 * Parallel workers pin nothing: they use the version that their leader has
 * pinned before it started them, and which it keeps until they have ended.
 *
 * Without shared memory (the library is not preloaded) the one version is the
 * backend's own, compiled from the file of the last known good answer.
 */
#include "postgres.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "access/parallel.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/ipc.h"
#include "tcop/utility.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "data/file.h"
#include "data/store.h"
#include "data/version.h"
#include "engine/compile.h"

/* text of so many bytes takes an order of magnitude more to compile */
#define LARGE_TEXT (1024 * 1024)

/* so often at most a backend asks the launcher for a worker */
#define ASK_INTERVAL_MS 1000

/* A pinned version, or the fact that there was none. */
typedef struct Pin
{
	dlist_node node; /* in pins, while something is pinned */
	DataVersion *version;
	dsa_pointer pointer;
} Pin;

/* A pin that lasts as long as a query is open. */
typedef struct QueryPin
{
	Pin pin;
	EState *estate; /* NULL: the query's memory has gone */
	dlist_node node; /* in query_pins */
	MemoryContextCallback callback;
} QueryPin;

bool data_pinned = false;
const DataVersion *data_pinned_version = NULL;
uint64 data_pinned_serial = 0;
void (*version_query_done)(void) = NULL;

/* all pins of this process, to be let go at its exit */
static dlist_head pins = DLIST_STATIC_INIT(pins);
static bool exit_registered = false;

/* queries that are open with a pin of their own */
static dlist_head query_pins = DLIST_STATIC_INIT(query_pins);

/* pin of the present statement if it is not a query */
static Pin statement_pin;
static bool statement_pin_used = false;

/* nesting of statements, and the outermost one if it is a query */
static int depth = 0;
static EState *outermost_query = NULL;

/* without shared memory: this backend's data */
static DataVersion *local_version = NULL;
static uint64 local_stamp = 0;
static uint64 local_generation = 0;
static DataInfo local_info;

static const SnapImage *compile(const char *text, size_t length,
								const char *environment, MemoryContext context,
								size_t *size);
static void version_fill(DataVersion *version, const SnapImage *snapshot,
						 size_t size, const DataTarget *target);

static ExecutorRun_hook_type prev_executor_run = NULL;
static ExecutorFinish_hook_type prev_executor_finish = NULL;
static ProcessUtility_hook_type prev_process_utility = NULL;

/*
 * Pins
 */

static void
pin_release(Pin *pin)
{
	DataVersion *version = pin->version;

	if (version == NULL)
		return;
	pin->version = NULL;
	dlist_delete(&pin->node);

	/* the worker frees what was retired and is not read any more */
	if (pg_atomic_sub_fetch_u32(&version->pins, 1) == 0)
	{
		DatabaseState *state = shared_my_database();

		if (state != NULL && state->nretired > 0)
			shared_wake_worker(state);
	}
}

static void
release_all_pins(int code, Datum argument)
{
	dlist_mutable_iter iter;

	/* parallel workers read what we have pinned: they must end first */
	AbortOutOfAnyTransaction();
	dlist_foreach_modify(iter, &pins)
		pin_release(dlist_container(Pin, node, iter.cur));
}

/*
 * Pins the version in force.  The counter is raised under the lock under which
 * a version is retired, so it can't be freed in between.
 */
static void
pin_acquire(Pin *pin, DatabaseState *state, uint64 *data_round)
{
	pin->version = NULL;
	pin->pointer = InvalidDsaPointer;

	if (!exit_registered)
	{
		before_shmem_exit(release_all_pins, (Datum) 0);
		exit_registered = true;
	}
	/* attach before the lock is held: that allocates */
	(void) shared_area();

	LWLockAcquire(&state->lock, LW_SHARED);
	if (state->database == MyDatabaseId && DsaPointerIsValid(state->current) &&
		!state->suspended)
	{
		DataVersion *version = dsa_get_address(shared_area(), state->current);

		pg_atomic_fetch_add_u32(&version->pins, 1);
		pin->version = version;
		pin->pointer = state->current;
		dlist_push_head(&pins, &pin->node);
		if (data_round != NULL)
			*data_round = state->data_round;
	}
	LWLockRelease(&state->lock);
}

static void
set_current(const DataVersion *version, dsa_pointer pointer)
{
	data_pinned = true;
	data_pinned_version = version;
	data_pinned_serial = version ? version->serial : 0;
	if (shared_available() && !IsParallelWorker())
		shared_slot(backend_slot_number())->version = pointer;
}

static void
clear_current(void)
{
	if (!data_pinned)
		return;
	data_pinned = false;
	data_pinned_version = NULL;
	data_pinned_serial = 0;
	if (shared_available() && !IsParallelWorker())
		shared_slot(backend_slot_number())->version = InvalidDsaPointer;
}

static void
query_pin_release(QueryPin *query_pin)
{
	dlist_delete(&query_pin->node);
	pin_release(&query_pin->pin);
	/* the callback stays registered as long as the query's memory lives */
	if (query_pin->estate == NULL)
		pfree(query_pin);
	else
		query_pin->estate = NULL;
}

/*
 * A query's memory goes, and with it the query's pin.  While a transaction
 * aborts, that is before its parallel workers have ended: then the pin is kept
 * for the end of the transaction.
 */
static void
query_memory_gone(void *argument)
{
	QueryPin *query_pin = argument;

	if (query_pin->estate == NULL)
		pfree(query_pin);
	else
	{
		query_pin->estate = NULL;
		if (!IsInParallelMode())
			query_pin_release(query_pin);
	}
}

static void
release_orphaned_pins(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &query_pins)
	{
		QueryPin *query_pin = dlist_container(QueryPin, node, iter.cur);

		if (query_pin->estate == NULL)
			query_pin_release(query_pin);
	}
}

static void
release_statement_pin(void)
{
	if (!statement_pin_used)
		return;
	statement_pin_used = false;
	pin_release(&statement_pin);
}

static QueryPin *
find_query_pin(EState *estate)
{
	dlist_iter iter;

	dlist_foreach(iter, &query_pins)
	{
		QueryPin *query_pin = dlist_container(QueryPin, node, iter.cur);

		if (query_pin->estate == estate)
			return query_pin;
	}
	return NULL;
}

/*
 * Makes the file's data this backend's own, if it has changed since the last
 * look.  A file that can't be used leaves what there was.
 */
static void
load_local_file(void)
{
	uint64 stamp = file_stamp(MyDatabaseId);
	MemoryContext context;
	MemoryContext previous;
	DataFile *file;

	if (stamp == local_stamp)
		return;
	local_stamp = stamp;
	if (stamp == 0)
		return;

	context = AllocSetContextCreate(CurrentMemoryContext, "absmartly file",
									ALLOCSET_DEFAULT_SIZES);
	previous = MemoryContextSwitchTo(context);
	file = file_read(MyDatabaseId);
	if (file != NULL)
	{
		bool unchanged;

		version_publish(NULL, &file->target, file->text, file->length,
						DATA_FILE, file->fetched_at, &unchanged);
	}
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(context);
}

/*
 * Nobody serves this database yet: lets the launcher have a look.  There may be
 * a reason for it that lasts, so not at every statement.
 */
static void
ask_for_worker(void)
{
	static TimestampTz asked_at = 0;
	TimestampTz now = GetCurrentStatementStartTimestamp();

	if (asked_at != 0 &&
		!TimestampDifferenceExceeds(asked_at, now, ASK_INTERVAL_MS))
		return;
	asked_at = now;
	shared_request_probe(MyDatabaseId);
}

/*
 * Finds the version for the present statement, at the statement's first call.
 */
const DataVersion *
data_pin(void)
{
	Pin *pin;
	DatabaseState *state;

	Assert(!data_pinned);

	if (!shared_available())
	{
		load_local_file();
		set_current(local_version, InvalidDsaPointer);
		return local_version;
	}

	if (IsParallelWorker())
	{
		dsa_pointer pointer =
			shared_slot(parallel_leader_slot_number())->version;

		set_current(DsaPointerIsValid(pointer)
						? dsa_get_address(shared_area(), pointer)
						: NULL,
					pointer);
		return data_pinned_version;
	}

	state = shared_my_database();
	if (state == NULL)
	{
		ask_for_worker();
		set_current(NULL, InvalidDsaPointer);
		return NULL;
	}

	if (outermost_query != NULL)
	{
		QueryPin *query_pin =
			MemoryContextAllocZero(TopMemoryContext, sizeof(QueryPin));

		pin = &query_pin->pin;
		pin_acquire(pin, state, NULL);
		query_pin->estate = outermost_query;
		dlist_push_head(&query_pins, &query_pin->node);
		query_pin->callback.func = query_memory_gone;
		query_pin->callback.arg = query_pin;
		MemoryContextRegisterResetCallback(outermost_query->es_query_cxt,
										   &query_pin->callback);
	}
	else
	{
		pin = &statement_pin;
		release_statement_pin();
		pin_acquire(pin, state, NULL);
		statement_pin_used = true;
	}
	set_current(pin->version, pin->pointer);
	return data_pinned_version;
}

void
version_unpin_statement(void)
{
	clear_current();
	if (outermost_query != NULL)
	{
		QueryPin *query_pin = find_query_pin(outermost_query);

		if (query_pin != NULL)
			query_pin_release(query_pin);
	}
	release_statement_pin();
}

/*
 * Data that is held from statement to statement
 */

static DataVersion *
copy_version(const DataVersion *version)
{
	DataVersion *copy = MemoryContextAllocHuge(TopMemoryContext, version->size);

	memcpy(copy, version, version->size);
	return copy;
}

bool
version_hold(DataHold *hold, uint64 *data_round)
{
	DatabaseState *state;
	Pin *pin;

	hold->version = NULL;
	hold->pin = NULL;
	*data_round = 0;
	if (!shared_available())
	{
		/* the one version makes place for the next one at any time */
		if (data_version() != NULL)
			hold->version = copy_version(data_version());
		return hold->version != NULL;
	}
	state = shared_my_database();
	if (state == NULL)
	{
		ask_for_worker();
		return false;
	}
	if (!DsaPointerIsValid(state->current))
		return false;
	pin = MemoryContextAlloc(TopMemoryContext, sizeof(Pin));
	pin_acquire(pin, state, data_round);
	if (pin->version == NULL)
	{
		pfree(pin);
		return false;
	}
	hold->version = pin->version;
	hold->pin = pin;
	return true;
}

/* What data that comes from no fetch is for. */
static void
present_target(DataTarget *target)
{
	DatabaseState *state = shared_my_database();

	memset(target, 0, sizeof(*target));
	if (state != NULL)
	{
		LWLockAcquire(&state->lock, LW_SHARED);
		if (state->target_known)
			*target = state->target;
		LWLockRelease(&state->lock);
	}
	else if (!shared_available() && data_version() != NULL)
		*target = data_version()->target;
}

void
version_hold_text(DataHold *hold, const char *text, size_t length)
{
	MemoryContext context = AllocSetContextCreate(
		CurrentMemoryContext, "absmartly compiler", ALLOCSET_DEFAULT_SIZES);
	const SnapImage *snapshot;
	DataVersion *version;
	DataTarget target;
	size_t size;

	present_target(&target);
	snapshot = compile(text, length, target.environment, context, &size);
	version =
		MemoryContextAllocHuge(TopMemoryContext, DATA_IMAGE_OFFSET + size);
	version_fill(version, snapshot, size, &target);
	MemoryContextDelete(context);
	hold->version = version;
	hold->pin = NULL;
}

bool
version_hold_is_stale(const DataHold *hold)
{
	DatabaseState *state;

	if (hold->pin == NULL)
		return false;
	state = shared_my_database();
	return state == NULL ||
		   *(volatile dsa_pointer *) &state->current != hold->pin->pointer;
}

void
version_hold_copy(DataHold *hold)
{
	DataVersion *copy = copy_version(hold->version);

	version_hold_release(hold);
	hold->version = copy;
}

void
version_hold_release(DataHold *hold)
{
	if (hold->pin != NULL)
	{
		pin_release(hold->pin);
		pfree(hold->pin);
	}
	else if (hold->version != NULL)
		pfree(unconstify(DataVersion *, hold->version));
	hold->version = NULL;
	hold->pin = NULL;
}

/*
 * Where statements begin and end
 */

static void
statement_begin(EState *estate)
{
	/* what was pinned outside of any statement, by the planner for example */
	clear_current();
	release_statement_pin();

	outermost_query = estate;
	if (estate != NULL)
	{
		QueryPin *query_pin = find_query_pin(estate);

		if (query_pin != NULL)
			set_current(query_pin->pin.version, query_pin->pin.pointer);
	}
}

static void
statement_end(bool finished)
{
	if (finished || outermost_query == NULL)
		version_unpin_statement();
	else
		clear_current();
	outermost_query = NULL;
}

/*
 * An error ends the statement.  Its parallel workers end later, while the
 * transaction aborts: until then the version must stay.
 */
static void
statement_failed(void)
{
	clear_current();
	outermost_query = NULL;
}

static void
version_executor_run(EXECUTOR_RUN_PARAMETERS)
{
	bool outermost = (depth == 0);

	if (outermost)
		statement_begin(query->estate);
	depth++;
	PG_TRY();
	{
		/*
		 * Workers must find the version when they start, whether or not the
		 * leader ever calls a function of ours.
		 */
		if (query->plannedstmt->parallelModeNeeded && shared_available())
			(void) data_version();

		if (prev_executor_run)
			prev_executor_run(EXECUTOR_RUN_ARGUMENTS);
		else
			standard_ExecutorRun(EXECUTOR_RUN_ARGUMENTS);
	}
	PG_CATCH();
	{
		depth--;
		if (outermost)
			statement_failed();
		PG_RE_THROW();
	}
	PG_END_TRY();
	depth--;
	if (outermost)
		/* triggers may still fire, and a cursor may still be read */
		statement_end(count == 0 && query->operation == CMD_SELECT &&
					  !query->plannedstmt->hasModifyingCTE);
	if (version_query_done != NULL)
		version_query_done();
}

static void
version_executor_finish(QueryDesc *query)
{
	bool outermost = (depth == 0);

	if (outermost)
		statement_begin(query->estate);
	depth++;
	PG_TRY();
	{
		if (prev_executor_finish)
			prev_executor_finish(query);
		else
			standard_ExecutorFinish(query);
	}
	PG_CATCH();
	{
		depth--;
		if (outermost)
			statement_failed();
		PG_RE_THROW();
	}
	PG_END_TRY();
	depth--;
	if (outermost)
		statement_end(true);
}

static void
version_process_utility(PlannedStmt *statement, const char *source,
						bool read_only_tree, ProcessUtilityContext context,
						ParamListInfo parameters, QueryEnvironment *environment,
						DestReceiver *receiver, QueryCompletion *completion)
{
	/* FETCH is a part of its query: that one is the statement */
	bool counts = !IsA(statement->utilityStmt, FetchStmt);
	volatile bool outermost = (counts && depth == 0);

	if (outermost)
		statement_begin(NULL);
	if (counts)
		depth++;
	PG_TRY();
	{
		if (prev_process_utility)
			prev_process_utility(statement, source, read_only_tree, context,
								 parameters, environment, receiver, completion);
		else
			standard_ProcessUtility(statement, source, read_only_tree, context,
									parameters, environment, receiver,
									completion);
	}
	PG_CATCH();
	{
		if (counts)
			depth--;
		if (outermost)
			statement_failed();
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (counts)
		depth--;
	if (outermost)
		statement_end(true);
}

/*
 * A transaction's end is a statement's end, also in a procedure.  What open
 * queries have pinned goes with their memory.
 */
static void
version_transaction_end(XactEvent event, void *argument)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
		case XACT_EVENT_PARALLEL_COMMIT:
		case XACT_EVENT_PARALLEL_ABORT:
			clear_current();
			release_statement_pin();
			release_orphaned_pins();
			break;
		default:
			break;
	}
}

/* A statement that failed after a savepoint ends here. */
static void
version_subtransaction_end(SubXactEvent event, SubTransactionId id,
						   SubTransactionId parent, void *argument)
{
	if (event != SUBXACT_EVENT_ABORT_SUB)
		return;
	if (depth == 0)
		release_statement_pin();
	release_orphaned_pins();
}

void
version_install(void)
{
	prev_executor_run = ExecutorRun_hook;
	ExecutorRun_hook = version_executor_run;
	prev_executor_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = version_executor_finish;
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = version_process_utility;
	RegisterXactCallback(version_transaction_end, NULL);
	RegisterSubXactCallback(version_subtransaction_end, NULL);
}

/*
 * Publishing
 */

/* Compiles text; the image is in context.  Raises if it can't. */
static const SnapImage *
compile(const char *text, size_t length, const char *environment,
		MemoryContext context, size_t *size)
{
	ArenaSource source;
	EngineText data = {text, length};
	EngineText client = {environment, strlen(environment)};
	SnapshotHost host;
	Arena arena;
	CompileResult result = {0};
	EngineStatus status;

	store_arena_source(&source, context);
	arena_init(&arena, &source);
	store_host_init(&host, context);
	status = snapshot_compile(data, client, &host, &arena, &result);
#ifdef __GLIBC__
	/* json-c's tree of a large answer would stay with the process */
	if (length >= LARGE_TEXT)
		malloc_trim(0);
#endif
	CHECK_FOR_INTERRUPTS();

	for (const CompileWarning *warning = result.warnings; warning != NULL;
		 warning = warning->next)
		ereport(WARNING, (errcode(ERRCODE_DATA_EXCEPTION),
						  errmsg("absmartly: %s",
								 store_message(warning->text, context))));

	switch (status)
	{
		case ENGINE_OK:
			break;
		case ENGINE_NO_MEMORY:
			ereport(ERROR,
					(errcode(ERRCODE_OUT_OF_MEMORY),
					 errmsg("out of memory while compiling experiment data of "
							"%zu bytes",
							length)));
			break;
		case ENGINE_TOO_LARGE:
			ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
							errmsg("experiment data of %zu bytes is too large",
								   length)));
			break;
		default:
			ereport(ERROR, (errcode(ERRCODE_INVALID_JSON_TEXT),
							errmsg("experiment data is malformed"),
							result.message
								? errdetail("%s", store_message(result.message,
																context))
								: 0));
			break;
	}
	*size = result.size;
	return result.snapshot;
}

/* Takes the version in force out of force.  The lock is held exclusively. */
static void
retire_current(DatabaseState *state)
{
	DataVersion *version;

	if (!DsaPointerIsValid(state->current))
		return;
	version = dsa_get_address(shared_area(), state->current);
	version->next = state->retired;
	state->retired = state->current;
	state->nretired++;
	state->current = InvalidDsaPointer;
	state->data_round = 0;
}

/*
 * Takes the retired versions that nobody pins out of the list, with the lock
 * held exclusively; gives them as a chain, for free_versions() without it.
 */
static dsa_pointer
collect_unpinned(DatabaseState *state)
{
	dsa_pointer pointer = state->retired;
	dsa_pointer kept = InvalidDsaPointer;
	dsa_pointer unpinned = InvalidDsaPointer;
	uint32 nkept = 0;

	while (DsaPointerIsValid(pointer))
	{
		DataVersion *version = dsa_get_address(shared_area(), pointer);
		dsa_pointer next = version->next;

		if (pg_atomic_read_u32(&version->pins) == 0)
		{
			state->version_bytes -= version->size;
			version->next = unpinned;
			unpinned = pointer;
		}
		else
		{
			version->next = kept;
			kept = pointer;
			nkept++;
		}
		pointer = next;
	}
	state->retired = kept;
	state->nretired = nkept;
	return unpinned;
}

static void
free_versions(dsa_pointer pointer)
{
	while (DsaPointerIsValid(pointer))
	{
		DataVersion *version = dsa_get_address(shared_area(), pointer);
		dsa_pointer next = version->next;

		dsa_free(shared_area(), pointer);
		pointer = next;
	}
}

void
version_reap(DatabaseState *state)
{
	dsa_pointer unpinned;

	if (state->nretired == 0)
		return;
	(void) shared_area();
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	unpinned = collect_unpinned(state);
	LWLockRelease(&state->lock);
	free_versions(unpinned);
}

void
version_withdraw(DatabaseState *state)
{
	(void) shared_area();
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	retire_current(state);
	state->fetched_at = 0;
	LWLockRelease(&state->lock);
	version_reap(state);
	ConditionVariableBroadcast(&state->changed);
}

bool
version_same_target(const DataTarget *left, const DataTarget *right)
{
	return strcmp(left->endpoint, right->endpoint) == 0 &&
		   strcmp(left->application, right->application) == 0 &&
		   strcmp(left->environment, right->environment) == 0;
}

bool
version_set_target(DatabaseState *state, const DataTarget *target)
{
	bool another;

	(void) shared_area();
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	another =
		!state->target_known || !version_same_target(&state->target, target);
	if (another)
	{
		retire_current(state);
		state->fetched_at = 0;
	}
	state->target = *target;
	state->target_known = true;
	state->suspended = false;
	pg_atomic_fetch_add_u32(&state->target_serial, 1);
	LWLockRelease(&state->lock);
	version_reap(state);
	ConditionVariableBroadcast(&state->changed);
	return another;
}

/* Whether version holds the same text for the same environment. */
static bool
same_data(const DataVersion *version, const DataTarget *target,
		  const char *text, size_t length)
{
	const SnapImage *snapshot = data_version_snapshot(version);

	return snapshot->raw.length == length &&
		   strcmp(version->target.environment, target->environment) == 0 &&
		   memcmp(snapshot_at(snapshot, snapshot->raw.offset), text, length) ==
			   0;
}

static void
version_fill(DataVersion *version, const SnapImage *snapshot, size_t size,
			 const DataTarget *target)
{
	memset(version, 0, DATA_IMAGE_OFFSET);
	pg_atomic_init_u32(&version->pins, 0);
	version->next = InvalidDsaPointer;
	version->size = DATA_IMAGE_OFFSET + size;
	version->target = *target;
	memcpy((char *) version + DATA_IMAGE_OFFSET, snapshot, size);
}

static uint64
publish_locally(const DataTarget *target, const char *text, size_t length,
				DataSource source, TimestampTz fetched_at, bool *unchanged)
{
	MemoryContext context;
	const SnapImage *snapshot;
	DataVersion *version;
	size_t size;

	*unchanged =
		local_version != NULL && same_data(local_version, target, text, length);
	/* reading again what this session wrote itself tells nothing new */
	if (!*unchanged || source != DATA_FILE)
	{
		local_info.source = source;
		local_info.fetched_at = fetched_at;
	}
	if (*unchanged)
		return local_version->generation;

	context = AllocSetContextCreate(CurrentMemoryContext, "absmartly compiler",
									ALLOCSET_DEFAULT_SIZES);
	snapshot = compile(text, length, target->environment, context, &size);
	version =
		MemoryContextAllocHuge(TopMemoryContext, DATA_IMAGE_OFFSET + size);
	version_fill(version, snapshot, size, target);
	MemoryContextDelete(context);
	version->generation = version->serial = ++local_generation;

	version_unpin_statement();
	if (local_version != NULL)
		pfree(local_version);
	local_version = version;
	return version->generation;
}

/*
 * Notes that the data in force was confirmed; false if it is not this text.
 * The text may be long: it is compared without the lock.
 */
static bool
confirm_unchanged(DatabaseState *state, const DataTarget *target,
				  const char *text, size_t length, DataSource source,
				  TimestampTz fetched_at, uint64 *generation)
{
	Pin pin;
	bool same;

	pin_acquire(&pin, state, NULL);
	if (pin.version == NULL)
		return false;
	same = same_data(pin.version, target, text, length);
	if (same)
	{
		LWLockAcquire(&state->lock, LW_EXCLUSIVE);
		same = state->current == pin.pointer;
		if (same)
		{
			state->source = source;
			state->fetched_at = fetched_at;
			*generation = pin.version->generation;
		}
		LWLockRelease(&state->lock);
	}
	pin_release(&pin);
	return same;
}

uint64
version_publish(DatabaseState *state, const DataTarget *target,
				const char *text, size_t length, DataSource source,
				TimestampTz fetched_at, bool *unchanged)
{
	MemoryContext context;
	const SnapImage *snapshot;
	DataVersion *version;
	dsa_pointer pointer;
	uint64 generation;
	uint64 round;
	size_t size;

	if (state == NULL)
		return publish_locally(target, text, length, source, fetched_at,
							   unchanged);

	(void) shared_area();
	*unchanged = confirm_unchanged(state, target, text, length, source,
								   fetched_at, &generation);
	if (*unchanged)
		return generation;

	context = AllocSetContextCreate(CurrentMemoryContext, "absmartly compiler",
									ALLOCSET_DEFAULT_SIZES);
	snapshot = compile(text, length, target->environment, context, &size);

	/* make room first: what nobody reads any more */
	version_reap(state);
	pointer = dsa_allocate_extended(shared_area(), DATA_IMAGE_OFFSET + size,
									DSA_ALLOC_HUGE | DSA_ALLOC_NO_OOM);
	if (!DsaPointerIsValid(pointer))
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of shared memory for %zu bytes of experiments",
						DATA_IMAGE_OFFSET + size),
				 errdetail("The data that was in force stays in force.")));
	version = dsa_get_address(shared_area(), pointer);
	version_fill(version, snapshot, size, target);
	version->serial = shared_next_serial();
	MemoryContextDelete(context);

	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	if (state->database != MyDatabaseId || !state->target_known ||
		!version_same_target(&state->target, target))
	{
		LWLockRelease(&state->lock);
		dsa_free(shared_area(), pointer);
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("the settings of absmartly have changed while "
							   "experiments were loaded"),
						errhint("Try again.")));
	}
	/* newer data does not change with which round there came to be any */
	round =
		state->data_round != 0 ? state->data_round : state->fetch_rounds + 1;
	retire_current(state);
	state->data_round = round;
	version->generation = generation = ++state->generation;
	state->current = pointer;
	state->version_bytes += version->size;
	state->source = source;
	state->fetched_at = fetched_at;
	LWLockRelease(&state->lock);
	version_reap(state);
	ConditionVariableBroadcast(&state->changed);
	return generation;
}

bool
version_info(DataInfo *info)
{
	DatabaseState *state;
	bool found;

	if (!shared_available())
	{
		*info = local_info;
		return local_version != NULL;
	}
	state = shared_my_database();
	if (state == NULL)
		return false;
	LWLockAcquire(&state->lock, LW_SHARED);
	found = DsaPointerIsValid(state->current) && !state->suspended;
	info->source = state->source;
	info->fetched_at = state->fetched_at;
	LWLockRelease(&state->lock);
	return found;
}

const char *
data_source_name(DataSource source)
{
	switch (source)
	{
		case DATA_FETCHED:
			return "fetched";
		case DATA_FILE:
			return "file";
		case DATA_SET:
			return "set";
	}
	return "unknown";
}
