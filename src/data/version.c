/*
 * version.c
 *		Versions of the experiments: which one a statement sees, how long its
 *		memory stays, and how new ones come in force.
 *
 * A version is one block that never changes.  Two questions about it have
 * nothing to do with each other:
 *
 * Visibility.  A statement of the client's sees one version: the one in force
 * when something of it looks for the first time.  A query keeps the version
 * that its planning, its start or a run has seen for as long as it is open, so
 * that the rows of a cursor agree with each other, wherever they are fetched.
 * What runs on behalf of no statement (deferred triggers at COMMIT, changes
 * that a subscription applies, the planner) shares a version for as long as
 * the time of the statement is the same.  COMMIT in a procedure ends all that.
 *
 * Lifetime.  A process holds each version that it has handed out, by a counter
 * in it, and lets go of it no earlier than at the end of the top transaction.
 * Nothing that happens within the transaction matters, be it errors,
 * savepoints, or functions that call each other in unexpected ways.  Longer
 * hold those who say so: statements, queries that are open, session contexts.
 * A version that was replaced is freed by the worker when no process holds it.
 * Without shared memory (the library is not preloaded) versions are memory of
 * the backend's own, under the same rules.
 *
 * A transaction that lasts keeps up to VERSIONS_KEPT versions that no
 * statement uses any more.  If it has more of them, they go where it is
 * certain that no pointer to them is left: between the statements of the
 * client, and in a function that replaces what its statement sees, unless
 * another function of ours is at work below it on the stack (version_calls).
 * What such a function calls may go on to VERSIONS_MOST of them.
 *
 * Parallel workers hold for themselves what their leader's statement sees.
 */
#include "postgres.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "access/parallel.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/ipc.h"
#include "tcop/pquery.h"
#include "tcop/utility.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "data/file.h"
#include "data/keep.h"
#include "data/store.h"
#include "data/version.h"
#include "engine/compile.h"

/* what compiling a text of so many bytes has taken goes back at once */
#define LARGE_TEXT (1024 * 1024)

/* so often at most a backend asks the launcher for a worker */
#define ASK_INTERVAL_MS 1000

/* so many versions that nobody uses may wait for their transaction's end */
#define VERSIONS_KEPT 4

/* so many that may still be read by a function further out on the stack */
#define VERSIONS_MOST 16

/* A version that this process keeps from being freed. */
typedef struct Held
{
	dlist_node node; /* in held_versions */
	DataVersion *version;
	dsa_pointer pointer; /* invalid: memory of this process */
	uint32 users; /* statements, queries, contexts */
	bool transaction; /* handed out in the present transaction */
} Held;

/* What a statement sees. */
typedef struct Statement
{
	bool decided;
	Held *held; /* one of its users; NULL: there was no data */
	uint64 transaction; /* in which that was decided */
} Statement;

/* What a query sees that is open. */
typedef struct OpenQuery
{
	dlist_node node; /* in open_queries */
	EState *estate;
	Statement statement;
	MemoryContextCallback callback;
} OpenQuery;

bool data_pinned = false;
const DataVersion *data_pinned_version = NULL;
uint32 version_calls = 0;
void (*version_query_done)(void) = NULL;

static dlist_head held_versions = DLIST_STATIC_INIT(held_versions);
static uint32 nheld = 0;
static Held *spare_held = NULL; /* memory for the next one */
static bool exit_registered = false;

static dlist_head open_queries = DLIST_STATIC_INIT(open_queries);

/* what runs on behalf of no statement, and the time for which that holds */
static Statement loose;
static TimestampTz loose_time;

/* the statement at work, and how many executors and utility commands are */
static Statement *present = &loose;
static int depth = 0;

/* grows with each end of a transaction */
static uint64 transaction_number = 0;

/* without shared memory: what is in force, one of its users */
static Held *local_current = NULL;
static uint64 local_stamp = 0;
static uint64 local_serial = 0;
static uint64 local_generation = 0;
static DataInfo local_info;

static const SnapImage *compile(const char *text, size_t length,
								const char *environment, MemoryContext context,
								size_t *size);
static DataVersion *new_local_version(const SnapImage *snapshot, size_t size,
									  const DataTarget *target);

static ExecutorStart_hook_type prev_executor_start = NULL;
static ExecutorRun_hook_type prev_executor_run = NULL;
static ExecutorFinish_hook_type prev_executor_finish = NULL;
static ProcessUtility_hook_type prev_process_utility = NULL;

/*
 * Lifetime
 */

static Held *
held_find(const DataVersion *version)
{
	dlist_iter iter;

	dlist_foreach(iter, &held_versions)
	{
		Held *held = dlist_container(Held, node, iter.cur);

		if (held->version == version)
			return held;
	}
	return NULL;
}

#ifdef USE_ASSERT_CHECKING
bool
version_is_held(const DataVersion *version)
{
	return version->magic == VERSION_MAGIC && held_find(version) != NULL;
}
#endif

static void
held_free(Held *held)
{
	DataVersion *version = held->version;
	bool local = !DsaPointerIsValid(held->pointer);
	DatabaseState *state;

	dlist_delete(&held->node);
	nheld--;
	pfree(held);
	if (local)
	{
		version->magic = 0;
		pfree(version);
		return;
	}
	/* the worker frees what was retired and is not read any more */
	if (pg_atomic_sub_fetch_u32(&version->pins, 1) > 0)
		return;
	state = shared_my_database();
	if (state != NULL && state->nretired > 0)
		shared_wake_worker(state);
}

static void
held_free_if_unused(Held *held)
{
	if (held->users == 0 && !held->transaction)
		held_free(held);
}

/* A user less.  In a transaction pointers may be left: its end looks again. */
static void
held_release(Held *held)
{
	Assert(held->users > 0);
	held->users--;
	held_free_if_unused(held);
}

static void
held_end_transaction(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &held_versions)
	{
		Held *held = dlist_container(Held, node, iter.cur);

		held->transaction = false;
		held_free_if_unused(held);
	}
}

/*
 * No pointer is left to what nobody uses: keeps no more of these than the last
 * few.  The newest ones are at the list's head.
 */
static void
held_trim(void)
{
	dlist_mutable_iter iter;
	uint32 unused = 0;

	if (nheld <= VERSIONS_KEPT)
		return;
	dlist_foreach_modify(iter, &held_versions)
	{
		Held *held = dlist_container(Held, node, iter.cur);

		if (held->users == 0 && ++unused > VERSIONS_KEPT)
			held_free(held);
	}
}

static void
release_at_exit(int code, Datum argument)
{
	dlist_mutable_iter iter;

	AbortOutOfAnyTransaction();
	data_pinned_version = NULL;
	present = &loose;
	memset(&loose, 0, sizeof(loose));
	local_current = NULL;
	dlist_init(&open_queries);
	dlist_foreach_modify(iter, &held_versions)
		held_free(dlist_container(Held, node, iter.cur));
}

/*
 * Code of the user's that a function of ours calls could have us keep any
 * number of versions, of which none can be let go of before it returns.
 */
static void
held_check_number(void)
{
	dlist_iter iter;
	uint32 unused = 0;

	if (nheld < VERSIONS_MOST)
		return;
	dlist_foreach(iter, &held_versions)
	{
		if (dlist_container(Held, node, iter.cur)->users == 0)
			unused++;
	}
	if (unused >= VERSIONS_MOST)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("too many versions of the experiments"),
				 errdetail("Code that a function of absmartly calls, like a "
						   "cast to json, may use up to %d of them.",
						   VERSIONS_MOST)));
}

/* Does beforehand what may fail when something is held. */
static void
held_prepare(void)
{
	held_check_number();
	if (!exit_registered)
	{
		before_shmem_exit(release_at_exit, (Datum) 0);
		exit_registered = true;
	}
	if (spare_held == NULL)
		spare_held = MemoryContextAllocZero(TopMemoryContext, sizeof(Held));
}

/* Nobody uses it yet.  Never fails after held_prepare(). */
static Held *
held_link(DataVersion *version, dsa_pointer pointer)
{
	Held *held = spare_held;

	spare_held = NULL;
	held->version = version;
	held->pointer = pointer;
	held->users = 0;
	held->transaction = false;
	dlist_push_head(&held_versions, &held->node);
	nheld++;
	return held;
}

/* Finds a version that is not freed yet, with the state's lock held. */
static dsa_pointer
find_serial(DatabaseState *state, uint64 serial)
{
	dsa_pointer pointer = state->current;

	if (!DsaPointerIsValid(pointer))
		pointer = state->retired;
	while (DsaPointerIsValid(pointer))
	{
		const DataVersion *version = dsa_get_address(shared_area(), pointer);

		if (version->serial == serial)
			break;
		pointer = pointer == state->current ? state->retired : version->next;
	}
	return pointer;
}

/*
 * Holds the version with a serial, or, if that is 0, the one in force; NULL if
 * there is none.  The counter is raised under the lock under which a version is
 * retired and freed, so it can't be freed in between.  Nobody uses it yet.
 */
static Held *
hold_shared(DatabaseState *state, uint64 serial, uint64 *data_round)
{
	Held *held = NULL;
	dsa_pointer pointer = InvalidDsaPointer;

	held_prepare();
	/* attach before the lock is held: that allocates */
	(void) shared_area();

	LWLockAcquire(&state->lock, LW_SHARED);
	if (state->database == MyDatabaseId)
	{
		if (serial != 0)
			pointer = find_serial(state, serial);
		else if (!state->suspended)
			pointer = state->current;
	}
	if (DsaPointerIsValid(pointer))
	{
		DataVersion *version = dsa_get_address(shared_area(), pointer);

		held = held_find(version);
		if (held == NULL)
		{
			pg_atomic_fetch_add_u32(&version->pins, 1);
			held = held_link(version, pointer);
		}
		if (data_round != NULL)
			*data_round = state->data_round;
	}
	LWLockRelease(&state->lock);
	return held;
}

/*
 * Visibility
 */

/* Makes what the statement at work has seen what data_version() gives. */
static void
show_present(void)
{
	const Held *held = present->held;

	/* a parallel worker sees one version all its life */
	if (IsParallelWorker() && data_pinned)
		return;
	data_pinned = present != &loose && present->decided &&
				  present->transaction == transaction_number;
	data_pinned_version = data_pinned && held ? held->version : NULL;
}

static void
statement_forget(Statement *statement)
{
	Held *held = statement->held;

	statement->decided = false;
	statement->held = NULL;
	if (held != NULL)
		held_release(held);
}

static void
statement_decide(Statement *statement, Held *held)
{
	statement_forget(statement);
	if (held != NULL)
		held->users++;
	statement->held = held;
	statement->transaction = transaction_number;
	statement->decided = true;
}

static void
statement_copy(Statement *statement, const Statement *from)
{
	statement_decide(statement, from->held);
	statement->transaction = from->transaction;
}

/* Whether what runs on behalf of no statement has seen something just now. */
static bool
loose_is_good(void)
{
	return loose.decided && loose.transaction == transaction_number &&
		   loose_time == GetCurrentStatementStartTimestamp();
}

/*
 * Whether an error tells of the file itself, which then is not tried again
 * until it changes.  Any other one, such as the statement's end by its timeout,
 * may have nothing to do with it.
 */
static bool
error_is_about_file(void)
{
	return geterrcode() == ERRCODE_INVALID_JSON_TEXT ||
		   geterrcode() == ERRCODE_PROGRAM_LIMIT_EXCEEDED;
}

/*
 * Makes the file's data this backend's own, if it has changed since the last
 * look.  Raises, once, if it cannot be compiled.
 */
static void
load_local_file(void)
{
	uint64 stamp = file_stamp(MyDatabaseId);
	uint64 before = local_stamp;
	MemoryContext context;
	MemoryContext previous;

	if (stamp == local_stamp)
		return;
	local_stamp = stamp;
	if (stamp == 0)
		return;

	context = AllocSetContextCreate(CurrentMemoryContext, "absmartly file",
									ALLOCSET_DEFAULT_SIZES);
	previous = MemoryContextSwitchTo(context);
	PG_TRY();
	{
		DataFile *file = file_read(MyDatabaseId);
		bool unchanged;

		if (file != NULL)
			version_publish(NULL, &file->target, file->text, file->length,
							DATA_FILE, file->fetched_at, &unchanged);
	}
	PG_CATCH();
	{
		if (!error_is_about_file())
			local_stamp = before;
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(context);
}

/*
 * There is no data, and no worker that will bring any soon: the server has no
 * slot for one, or no launcher.  Then this backend puts the file's data in
 * force for all.  What it is for is what the file says, until a worker knows
 * better.  A file that could not be used is not tried again.
 */
static DatabaseState *
load_shared_file(DatabaseState *volatile state)
{
	static uint64 tried = 0;
	MemoryContext context;
	MemoryContext previous;
	DataFile *file;
	uint64 stamp;
	bool alone;

	if (state == NULL
			? shared_has_launcher()
			: DsaPointerIsValid(state->current) || state->worker_pid != 0 ||
				  (state->worker_state != WORKER_NO_SLOT &&
				   shared_has_launcher()))
		return state;
	if (IsParallelWorker() || !OidIsValid(MyDatabaseId))
		return state;
	stamp = file_stamp(MyDatabaseId);
	if (stamp == 0 || stamp == tried)
		return state;
	tried = stamp;

	context = AllocSetContextCreate(CurrentMemoryContext, "absmartly file",
									ALLOCSET_DEFAULT_SIZES);
	previous = MemoryContextSwitchTo(context);
	PG_TRY();
	{
		file = file_read(MyDatabaseId);
		if (file != NULL && state == NULL)
			state = shared_database(MyDatabaseId, true);
		if (file != NULL && state != NULL)
		{
			LWLockAcquire(&state->lock, LW_EXCLUSIVE);
			alone = state->database == MyDatabaseId && state->worker_pid == 0 &&
					!DsaPointerIsValid(state->current) && !state->suspended;
			if (alone && !state->target_known)
			{
				state->target = file->target;
				state->target_known = true;
				pg_atomic_fetch_add_u32(&state->target_serial, 1);
			}
			alone = alone && version_same_target(&state->target, &file->target);
			LWLockRelease(&state->lock);
			if (alone)
			{
				bool unchanged;

				(void) keep_publish(state, &file->target, file->text,
									file->length, DATA_FILE, file->fetched_at,
									&unchanged);
				tried = 0;
			}
		}
	}
	PG_CATCH();
	{
		if (!error_is_about_file())
			tried = 0;
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(context);
	return state;
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

/* What is in force, held for this transaction; NULL if there is no data. */
static Held *
hold_in_force(void)
{
	DatabaseState *state;
	Held *held = NULL;

	if (version_calls <= 1)
		held_trim();
	if (!shared_available())
	{
		load_local_file();
		held = local_current;
	}
	else if ((state = load_shared_file(shared_my_database())) == NULL)
		ask_for_worker();
	else
		held = hold_shared(state, 0, NULL);
	if (held != NULL)
		held->transaction = true;
	return held;
}

/*
 * A version that another process holds for as long as we need to hold it, too:
 * it can't be gone, and any other one would be wrong.
 */
static Held *
hold_of_leader(uint64 serial)
{
	DatabaseState *state = shared_my_database();
	Held *held = state ? hold_shared(state, serial, NULL) : NULL;

	if (held == NULL)
		elog(ERROR, "parallel worker does not find its leader's experiments");
	held->transaction = true;
	return held;
}

/*
 * A parallel worker sees what its leader's statement sees, all its life.  Where
 * the leader runs no query, but builds an index, that is what is in force.
 */
static const DataVersion *
pin_in_parallel_worker(void)
{
	uint64 serial = 0;
	Held *held = NULL;

	if (shared_available())
		serial = pg_atomic_read_u64(
			&shared_slot(parallel_leader_slot_number())->parallel_serial);
	if (serial == 0)
		held = hold_in_force();
	else if (serial != PARALLEL_NO_DATA)
		held = hold_of_leader(serial);
	if (held != NULL)
		held->users++;
	data_pinned = true;
	data_pinned_version = held ? held->version : NULL;
	return data_pinned_version;
}

/*
 * Decides which version the statement at work sees, at its first call.
 */
const DataVersion *
data_pin(void)
{
	Assert(!data_pinned);

	if (IsParallelWorker())
		return pin_in_parallel_worker();
	if (present != &loose)
	{
		statement_decide(present, hold_in_force());
		show_present();
		return data_pinned_version;
	}
	if (!loose_is_good())
	{
		Held *held = hold_in_force();

		statement_decide(&loose, held);
		loose_time = GetCurrentStatementStartTimestamp();
	}
	data_pinned_version = loose.held ? loose.held->version : NULL;
	return data_pinned_version;
}

void
version_unpin_statement(void)
{
	/* in parallel all see the same until all have ended */
	if (IsInParallelMode() || IsParallelWorker())
		return;
	statement_forget(present);
	statement_forget(&loose);
	show_present();
	if (version_calls <= 1)
		held_trim();
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

static void
hold_set(DataHold *hold, Held *held)
{
	hold->version = held ? held->version : NULL;
	hold->held = held;
	hold->kept = false;
	if (held != NULL)
		held->transaction = true;
}

bool
version_hold(DataHold *hold, uint64 *data_round)
{
	DatabaseState *state;
	Held *held = NULL;

	*data_round = 0;
	if (!shared_available())
		held = hold_in_force();
	else if ((state = load_shared_file(shared_my_database())) == NULL)
		ask_for_worker();
	else if (DsaPointerIsValid(state->current))
		held = hold_shared(state, 0, data_round);
	hold_set(hold, held);
	return held != NULL;
}

void
version_hold_keep(DataHold *hold)
{
	Assert(!hold->kept);
	hold->held->users++;
	hold->kept = true;
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
	DataTarget target;
	size_t size;

	present_target(&target);
	snapshot = compile(text, length, target.environment, context, &size);
	if (version_calls <= 1)
		held_trim();
	held_prepare();
	hold_set(hold, held_link(new_local_version(snapshot, size, &target),
							 InvalidDsaPointer));
	MemoryContextDelete(context);
}

bool
version_hold_is_stale(const DataHold *hold)
{
	DatabaseState *state;

	if (hold->held == NULL || !DsaPointerIsValid(hold->held->pointer))
		return false;
	state = shared_my_database();
	return state == NULL ||
		   *(volatile dsa_pointer *) &state->current != hold->held->pointer;
}

void
version_hold_copy(DataHold *hold)
{
	DataHold copy;

	Assert(hold->kept);
	if (version_calls <= 1)
		held_trim();
	held_prepare();
	hold_set(&copy, held_link(copy_version(hold->version), InvalidDsaPointer));
	version_hold_keep(&copy);
	version_hold_release(hold);
	*hold = copy;
}

void
version_hold_release(DataHold *hold)
{
	if (hold->kept)
	{
		/* somebody may be reading what a function of his lets go of */
		if (IsTransactionState())
			hold->held->transaction = true;
		held_release(hold->held);
	}
	hold->version = NULL;
	hold->held = NULL;
	hold->kept = false;
}

/*
 * Where statements begin and end
 */

/*
 * Whether what begins is a statement of the client's.  It is run by a portal,
 * and by nobody's function.
 */
static bool
statement_of_client(void)
{
	return depth == 0 && ActivePortal != NULL &&
		   SPI_unregister_relation("") == SPI_ERROR_UNCONNECTED;
}

static OpenQuery *
open_query_find(EState *estate)
{
	dlist_iter iter;

	dlist_foreach(iter, &open_queries)
	{
		OpenQuery *query = dlist_container(OpenQuery, node, iter.cur);

		if (query->estate == estate)
			return query;
	}
	return NULL;
}

static void
open_query_gone(void *argument)
{
	OpenQuery *query = argument;

	if (present == &query->statement)
	{
		present = &loose;
		show_present();
	}
	dlist_delete(&query->node);
	statement_forget(&query->statement);
}

/* What is run of the query later will see what the statement has seen. */
static void
open_query_remember(EState *estate, const Statement *statement)
{
	OpenQuery *query =
		MemoryContextAllocZero(estate->es_query_cxt, sizeof(OpenQuery));

	query->estate = estate;
	query->callback.func = open_query_gone;
	query->callback.arg = query;
	MemoryContextRegisterResetCallback(estate->es_query_cxt, &query->callback);
	statement_copy(&query->statement, statement);
	dlist_push_head(&open_queries, &query->node);
}

/* What a hook has to put back. */
typedef struct Scope
{
	Statement own; /* of a statement that has just begun */
	Statement *before;
	uint32 calls_before;
	bool of_client;
	bool adopted; /* own is what runs on behalf of no statement */
} Scope;

/*
 * Begins a part of a query or, without one, a utility command.  It belongs to
 * the statement at work, or is one of its own.
 */
static void
scope_begin(Scope *scope, const QueryDesc *query)
{
	OpenQuery *open = NULL;

	if (query != NULL && query->estate != NULL)
		open = open_query_find(query->estate);
	memset(scope, 0, sizeof(*scope));
	scope->before = present;
	scope->of_client = statement_of_client();
	/* whatever errors have left there, no function of ours is below us */
	if (scope->of_client)
		version_calls = 0;
	scope->calls_before = version_calls;

	if (open != NULL)
		present = &open->statement;
	else if (scope->of_client || (present == &loose && query != NULL))
	{
		/* what has seen something may be the planner, at work for us */
		if (query != NULL && loose_is_good())
			statement_copy(&scope->own, &loose);
		scope->adopted = !scope->of_client;
		present = &scope->own;
	}
	if (scope->of_client)
	{
		statement_forget(&loose);
		held_trim();
	}
	depth++;
	show_present();
}

static void
scope_leave(Scope *scope)
{
	depth--;
	version_calls = scope->calls_before;
	present = scope->before;
	statement_forget(&scope->own);
	show_present();
}

/*
 * Whether more of a query may be run later than what was run now: it is the
 * client's, and has triggers that fire at its end, or it is a portal's.
 */
static bool
query_stays(const Scope *scope, const QueryDesc *query)
{
	return scope->of_client ||
		   (ActivePortal != NULL && (ActivePortal->status == PORTAL_DEFINED ||
									 ActivePortal->queryDesc == query));
}

/*
 * What was seen is remembered for the rest of the query, and for what else runs
 * on behalf of no statement.  It may raise, so the scope is left afterwards.
 */
static void
scope_remember(const Scope *scope, const QueryDesc *query)
{
	if (present->decided && query_stays(scope, query) &&
		open_query_find(query->estate) == NULL)
		open_query_remember(query->estate, present);
	if (scope->adopted && scope->own.decided)
	{
		statement_copy(&loose, &scope->own);
		loose_time = GetCurrentStatementStartTimestamp();
	}
}

static void
version_executor_start(QueryDesc *query, int flags)
{
	Scope scope;

	scope_begin(&scope, query);
	PG_TRY();
	{
		if (prev_executor_start)
			prev_executor_start(query, flags);
		else
			standard_ExecutorStart(query, flags);
		scope_remember(&scope, query);
	}
	PG_CATCH();
	{
		scope_leave(&scope);
		PG_RE_THROW();
	}
	PG_END_TRY();
	scope_leave(&scope);
}

/*
 * Parallel workers must find the version when they start, whether or not the
 * leader ever calls a function of ours.  After an error they live until the
 * (sub)transaction ends, and find it until then.
 */
static bool
tell_parallel_workers(const QueryDesc *query)
{
	const DataVersion *version;

	if (!query->plannedstmt->parallelModeNeeded || !shared_available() ||
		IsInParallelMode())
		return false;
	version = data_version();
	pg_atomic_write_u64(&shared_slot(backend_slot_number())->parallel_serial,
						version ? version->serial : PARALLEL_NO_DATA);
	return true;
}

static void
forget_parallel_workers(void)
{
	if (shared_available() && !IsParallelWorker() && MyProc != NULL)
		pg_atomic_write_u64(
			&shared_slot(backend_slot_number())->parallel_serial, 0);
}

static void
version_executor_run(EXECUTOR_RUN_PARAMETERS)
{
	volatile bool parallel = false;
	Scope scope;

	scope_begin(&scope, query);
	PG_TRY();
	{
		parallel = tell_parallel_workers(query);
		if (prev_executor_run)
			prev_executor_run(EXECUTOR_RUN_ARGUMENTS);
		else
			standard_ExecutorRun(EXECUTOR_RUN_ARGUMENTS);
		scope_remember(&scope, query);
	}
	PG_CATCH();
	{
		scope_leave(&scope);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (parallel)
		forget_parallel_workers();
	scope_leave(&scope);
	if (version_query_done != NULL)
		version_query_done();
}

static void
version_executor_finish(QueryDesc *query)
{
	Scope scope;

	scope_begin(&scope, query);
	PG_TRY();
	{
		if (prev_executor_finish)
			prev_executor_finish(query);
		else
			standard_ExecutorFinish(query);
		scope_remember(&scope, query);
	}
	PG_CATCH();
	{
		scope_leave(&scope);
		PG_RE_THROW();
	}
	PG_END_TRY();
	scope_leave(&scope);
}

static void
version_process_utility(PlannedStmt *statement, const char *source,
						bool read_only_tree, ProcessUtilityContext context,
						ParamListInfo parameters, QueryEnvironment *environment,
						DestReceiver *receiver, QueryCompletion *completion)
{
	/* FETCH is a part of its query: that one is the statement */
	bool counts = !IsA(statement->utilityStmt, FetchStmt);
	Scope scope;

	if (counts)
		scope_begin(&scope, NULL);
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
			scope_leave(&scope);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (counts)
		scope_leave(&scope);
}

/*
 * The end of a transaction ends what its statements see, also in a procedure,
 * and all holds but those of queries that are still open and of contexts.
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
			transaction_number++;
			statement_forget(present);
			statement_forget(&loose);
			show_present();
			held_end_transaction();
			forget_parallel_workers();
			break;
		default:
			break;
	}
}

/*
 * An error that was caught has left calls of ours without their ends.  Where
 * savepoints are nested deeper than this remembers, a number too high may stay
 * until the client's next statement, which only keeps versions longer.
 */
static void
version_subtransaction_end(SubXactEvent event, SubTransactionId id,
						   SubTransactionId parent, void *argument)
{
	static uint32 calls[32];
	int level =
		Min(GetCurrentTransactionNestLevel(), (int) lengthof(calls) - 1);

	if (event == SUBXACT_EVENT_START_SUB)
		calls[level] = version_calls;
	else if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		version_calls = calls[level];
		/* newer servers have subtransactions within a parallel query */
		if (!IsInParallelMode())
			forget_parallel_workers();
	}
}

void
version_install(void)
{
	prev_executor_start = ExecutorStart_hook;
	ExecutorStart_hook = version_executor_start;
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
	if (length >= LARGE_TEXT)
		malloc_trim(0);
#endif
	CHECK_FOR_INTERRUPTS();

	/* a parallel worker compiles what its session has been told of */
	if (IsParallelWorker())
		result.warnings = NULL;
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
		case ENGINE_INTERRUPTED:
			ereport(ERROR, (errcode(ERRCODE_QUERY_CANCELED),
							errmsg("compiling experiment data was "
								   "interrupted")));
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

#ifdef USE_ASSERT_CHECKING
		/* who reads it all the same shall notice */
		memset(version, 0x7F, version->size);
#endif
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
	/* whoever is about to publish must not */
	state->target_known = false;
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
	version->magic = VERSION_MAGIC;
	pg_atomic_init_u32(&version->pins, 0);
	version->next = InvalidDsaPointer;
	version->size = DATA_IMAGE_OFFSET + size;
	version->target = *target;
	memcpy((char *) version + DATA_IMAGE_OFFSET, snapshot, size);
}

/* A version in memory of this process, to be linked at once. */
static DataVersion *
new_local_version(const SnapImage *snapshot, size_t size,
				  const DataTarget *target)
{
	DataVersion *version =
		MemoryContextAllocHuge(TopMemoryContext, DATA_IMAGE_OFFSET + size);

	version_fill(version, snapshot, size, target);
	version->serial =
		shared_available() ? shared_next_serial() : ++local_serial;
	return version;
}

static uint64
publish_locally(const DataTarget *target, const char *text, size_t length,
				DataSource source, TimestampTz fetched_at, bool *unchanged)
{
	MemoryContext context;
	const SnapImage *snapshot;
	Held *previous = local_current;
	size_t size;

	*unchanged =
		previous != NULL && same_data(previous->version, target, text, length);
	/* reading again what this session wrote itself tells nothing new */
	if (*unchanged)
	{
		if (source != DATA_FILE)
		{
			local_info.source = source;
			local_info.fetched_at = fetched_at;
		}
		return previous->version->generation;
	}

	context = AllocSetContextCreate(CurrentMemoryContext, "absmartly compiler",
									ALLOCSET_DEFAULT_SIZES);
	snapshot = compile(text, length, target->environment, context, &size);
	held_prepare();
	local_current =
		held_link(new_local_version(snapshot, size, target), InvalidDsaPointer);
	local_current->users++;
	local_current->version->generation = ++local_generation;
	local_info.source = source;
	local_info.fetched_at = fetched_at;
	if (previous != NULL)
		held_release(previous);
	MemoryContextDelete(context);
	return local_current->version->generation;
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
	Held *held = hold_shared(state, 0, NULL);
	bool same;

	if (held == NULL)
		return false;
	held->users++;
	same = same_data(held->version, target, text, length);
	if (same)
	{
		LWLockAcquire(&state->lock, LW_EXCLUSIVE);
		same = state->current == held->pointer;
		if (same)
		{
			state->source = source;
			state->fetched_at = fetched_at;
			*generation = held->version->generation;
		}
		LWLockRelease(&state->lock);
	}
	held_release(held);
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
		return local_current != NULL;
	}
	state = load_shared_file(shared_my_database());
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
