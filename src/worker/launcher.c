/*
 * launcher.c
 *		The launcher: keeps one worker for each database that has the
 *		extension.
 *
 * It is connected to no database and reads the shared catalog of databases
 * only.  Every cycle compares what is wanted with what runs, so that nothing
 * is lost if a message or a worker is.  A database is probed by starting its
 * worker, which ends at once where the extension is missing; such a database
 * is not probed again before somebody asks for it.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "data/file.h"
#include "data/shared.h"
#include "data/version.h"
#include "settings.h"
#include "worker/launcher.h"
#include "worker/worker.h"

/* between two looks at the catalog if nobody wakes us */
#define CYCLE_MS 60000L
/* while something is to be done again soon */
#define BUSY_CYCLE_MS 1000L
/* a worker that has not attached by then is given up */
#define LAUNCH_TIMEOUT_MS 10000
/* on a standby nobody tells us of a new extension */
#define STANDBY_PROBE_MS 60000
/* back-off for a database whose worker keeps ending */
#define RESTART_DELAY_MS 200
#define RESTART_DELAY_MAX_MS 60000
/* a worker that ran for so long was in good health */
#define HEALTHY_MS 10000

/* What the launcher knows of a database, in its own memory. */
typedef struct Candidate
{
	Oid database; /* the key */
	NameData name;
	bool exists; /* found in the catalog in this cycle */
	bool listed; /* and connectable, and no template */
	bool absent; /* probed: it lacks the extension */
	TimestampTz probed_at;
	TimestampTz started_at; /* of its last worker */
	TimestampTz next_start;
	int delay_ms;
} Candidate;

static HTAB *candidates = NULL;
static bool slots_exhausted = false;

void
launcher_register(void)
{
	BackgroundWorker worker = {0};

	/* pg_upgrade wants its databases for itself */
	if (IsBinaryUpgrade)
		return;

	worker.bgw_flags =
		BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_ConsistentState;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "absmartly",
			sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "absmartly_launcher_main",
			sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_name, "absmartly launcher", sizeof(worker.bgw_name));
	strlcpy(worker.bgw_type, "absmartly launcher", sizeof(worker.bgw_type));
	RegisterBackgroundWorker(&worker);
}

static void
launcher_exit(int code, Datum argument)
{
	shared_set_launcher(NULL);
}

static Candidate *
candidate_get(Oid database)
{
	bool found;
	Candidate *candidate =
		hash_search(candidates, &database, HASH_ENTER, &found);

	if (!found)
	{
		memset(candidate, 0, sizeof(*candidate));
		candidate->database = database;
		candidate->delay_ms = RESTART_DELAY_MS;
	}
	return candidate;
}

/* Reads the catalog: which databases there are, and which may have a worker. */
static void
list_databases(void)
{
	Relation relation;
	TableScanDesc scan;
	HeapTuple tuple;
	HASH_SEQ_STATUS status;
	Candidate *candidate;
	MemoryContext context = CurrentMemoryContext;

	hash_seq_init(&status, candidates);
	while ((candidate = hash_seq_search(&status)) != NULL)
		candidate->exists = candidate->listed = false;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		candidate = candidate_get(form->oid);
		candidate->name = form->datname;
		candidate->exists = true;
		candidate->listed = form->datallowconn && !form->datistemplate;
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
}

static bool
worker_runs(DatabaseState *state)
{
	return state->worker_pid != 0 &&
		   BackendPidGetProc(state->worker_pid) != NULL;
}

/*
 * Starts a worker.  Whether it could not be started is found out by its not
 * attaching in time.
 */
static void
start_worker(Candidate *candidate, DatabaseState *state, TimestampTz now)
{
	BackgroundWorker worker = {0};

	worker.bgw_flags =
		BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_ConsistentState;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "absmartly",
			sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "absmartly_worker_main",
			sizeof(worker.bgw_function_name));
	snprintf(worker.bgw_name, sizeof(worker.bgw_name),
			 "absmartly worker for database %u", candidate->database);
	strlcpy(worker.bgw_type, "absmartly worker", sizeof(worker.bgw_type));
	worker.bgw_main_arg = ObjectIdGetDatum(candidate->database);
	worker.bgw_notify_pid = MyProcPid;

	candidate->next_start =
		TimestampTzPlusMilliseconds(now, candidate->delay_ms);
	candidate->delay_ms = Min(candidate->delay_ms * 2, RESTART_DELAY_MAX_MS);

	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	state->launched_at = now;
	LWLockRelease(&state->lock);

	if (RegisterDynamicBackgroundWorker(&worker, NULL))
	{
		slots_exhausted = false;
		candidate->started_at = now;
		return;
	}

	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	state->launched_at = 0;
	LWLockRelease(&state->lock);
	if (!slots_exhausted)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("absmartly: no background worker slot is left for "
						"database \"%s\"",
						NameStr(candidate->name)),
				 errhint("Increase \"max_worker_processes\".")));
	slots_exhausted = true;
}

/* Takes a database's state and file away, as far as nobody uses them. */
static void
forget(DatabaseState *state, Oid database)
{
	version_withdraw(state);
	shared_forget_database(database);
}

/*
 * Brings one database to what is wanted of it.  Returns whether it must be
 * looked at again soon.
 */
static bool
reconcile(Candidate *candidate, TimestampTz now)
{
	DatabaseState *state = shared_database(candidate->database, false);
	bool wanted =
		candidate->listed && settings_database_wanted(NameStr(candidate->name));
	bool launching;

	if (state != NULL)
	{
		if (worker_runs(state))
		{
			candidate->absent = false;
			if (!wanted)
			{
				state->restart_requested = true;
				shared_wake_worker(state);
				return true;
			}
			if (TimestampDifferenceExceeds(candidate->started_at, now,
										   HEALTHY_MS))
				candidate->delay_ms = RESTART_DELAY_MS;
			return false;
		}

		/* a worker that ended on request comes back at once */
		if (state->restart_requested)
		{
			state->restart_requested = false;
			candidate->delay_ms = RESTART_DELAY_MS;
			candidate->next_start = now;
		}
		if (shared_database_held(state))
			return true;
		if (state->extension == EXTENSION_ABSENT || !candidate->exists)
		{
			candidate->absent = true;
			candidate->probed_at = now;
			candidate->delay_ms = RESTART_DELAY_MS;
			file_remove(candidate->database);
			forget(state, candidate->database);
			return false;
		}
		launching = state->launched_at != 0 &&
					!TimestampDifferenceExceeds(state->launched_at, now,
												LAUNCH_TIMEOUT_MS);
		if (launching)
			return true;
	}

	if (candidate->absent && RecoveryInProgress() &&
		TimestampDifferenceExceeds(candidate->probed_at, now, STANDBY_PROBE_MS))
		candidate->absent = false;
	if (!wanted || candidate->absent)
	{
		/* a place that was taken to keep workers away, and is not needed */
		if (state != NULL && state->extension == EXTENSION_UNKNOWN)
			shared_forget_database(candidate->database);
		return false;
	}
	if (now < candidate->next_start)
		return true;

	if (state == NULL)
		state = shared_database(candidate->database, true);
	if (state == NULL)
	{
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("absmartly serves at most %d databases of one server",
						SHARED_MAX_DATABASES),
				 errhint("Name the databases to serve in "
						 "\"absmartly.databases\".")));
		candidate->next_start =
			TimestampTzPlusMilliseconds(now, RESTART_DELAY_MAX_MS);
		return false;
	}
	start_worker(candidate, state, now);
	return true;
}

static void
forget_unlisted_file(Oid database, void *context)
{
	if (hash_search(candidates, &database, HASH_FIND, NULL) == NULL)
		file_remove(database);
}

/* One look at everything.  Returns how long to wait for the next one. */
static long
cycle(bool first)
{
	TimestampTz now;
	HASH_SEQ_STATUS status;
	Candidate *candidate;
	Oid probes[SHARED_MAX_PROBES];
	int nprobes = shared_take_probes(probes);
	bool busy = false;

	list_databases();
	if (first)
		file_visit(forget_unlisted_file, NULL);

	for (int i = 0; i < nprobes; i++)
	{
		candidate = hash_search(candidates, &probes[i], HASH_FIND, NULL);
		if (candidate != NULL)
			candidate->absent = false;
	}

	now = GetCurrentTimestamp();
	hash_seq_init(&status, candidates);
	while ((candidate = hash_seq_search(&status)) != NULL)
	{
		if (nprobes < 0)
			candidate->absent = false;
		busy |= reconcile(candidate, now);
		if (!candidate->exists &&
			shared_database(candidate->database, false) == NULL)
			hash_search(candidates, &candidate->database, HASH_REMOVE, NULL);
	}
	return busy ? BUSY_CYCLE_MS : CYCLE_MS;
}

/* The earliest moment at which a delayed start is due, to wake up for it. */
static long
until_next_start(long timeout)
{
	TimestampTz now = GetCurrentTimestamp();
	HASH_SEQ_STATUS status;
	Candidate *candidate;

	hash_seq_init(&status, candidates);
	while ((candidate = hash_seq_search(&status)) != NULL)
		if (candidate->listed && !candidate->absent &&
			candidate->next_start > now)
			timeout = Min(timeout, TimestampDifferenceMilliseconds(
									   now, candidate->next_start) +
									   1);
	return timeout;
}

void
absmartly_launcher_main(Datum argument)
{
	HASHCTL control = {0};
	MemoryContext loop_context;
	bool first = true;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	before_shmem_exit(launcher_exit, (Datum) 0);
	shared_set_launcher(MyProc);

	control.keysize = sizeof(Oid);
	control.entrysize = sizeof(Candidate);
	candidates = hash_create("absmartly databases", 64, &control,
							 HASH_ELEM | HASH_BLOBS);
	loop_context = AllocSetContextCreate(TopMemoryContext, "absmartly launcher",
										 ALLOCSET_DEFAULT_SIZES);

	for (;;)
	{
		long timeout;

		MemoryContextReset(loop_context);
		MemoryContextSwitchTo(loop_context);
		timeout = until_next_start(cycle(first));
		first = false;

		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 timeout, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
	}
}
