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
#include "access/xlog.h"
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
#include "worker/leave.h"
#include "worker/step.h"
#include "worker/worker.h"

/* between two looks at the catalog if nobody wakes us */
#define CYCLE_MS 60000L
/* while something is to be done again soon */
#define BUSY_CYCLE_MS 200L
/* after an error */
#define REST_MS 1000L
/* a worker that has not attached by then is given up */
#define LAUNCH_TIMEOUT_MS 10000
/* on a standby nobody tells us of a new extension, unless it is used */
#define STANDBY_PROBE_MS 300000
/* back-off for a database whose worker keeps ending */
#define RESTART_DELAY_MS 200
#define RESTART_DELAY_MAX_MS 60000
/* back-off for a database that there is no worker slot for */
#define SLOT_DELAY_MAX_MS 10000
/* a worker that ran for so long was in good health */
#define HEALTHY_MS 10000
/* worker slots may be taken for a moment; for longer it is worth a word */
#define SLOTS_PATIENCE_MS 5000
/* databases that are probed at a time: they take slots from others */
#define MAX_PROBING 2

/* What is known about a database, in the order in which they are served. */
typedef enum Expectation
{
	EXPECT_PRESENT, /* it had the extension when it was last looked at */
	EXPECT_ASKED, /* somebody asked for a look */
	EXPECT_UNKNOWN,
	EXPECT_ABSENT
} Expectation;

/* What the launcher knows of a database, in its own memory. */
typedef struct Candidate
{
	Oid database; /* the key */
	NameData name;
	bool exists; /* found in the catalog in this cycle */
	bool listed; /* and connectable, and no template */
	bool asked; /* for a look, since its last worker was started */
	Expectation expectation;
	TimestampTz probed_at;
	TimestampTz started_at; /* of its last worker */
	TimestampTz next_start;
	int delay_ms;
} Candidate;

static HTAB *candidates = NULL;
static TimestampTz slots_missed_at = 0; /* 0: there was one */
static bool slots_reported = false;
static bool places_reported = false;
static TimestampTz next_look; /* the first moment at which to start something;
							   * DT_NOEND: none */
static bool in_recovery = false;

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
		candidate->expectation = EXPECT_UNKNOWN;
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

	SetCurrentStatementStartTimestamp();
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
		candidate->listed = form->datallowconn && !form->datistemplate &&
							form->datconnlimit != DATCONNLIMIT_INVALID_DB;
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
}

/*
 * Starts a worker.  Whether it could not be started is found out by its not
 * attaching in time.  Returns false if there is no slot for it.
 */
static bool
start_worker(Candidate *candidate, DatabaseState *state, TimestampTz now)
{
	BackgroundWorker worker = {0};
	bool registered;

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

	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	state->launched_at = now;
	state->restart_requested = false;
	LWLockRelease(&state->lock);

	registered = RegisterDynamicBackgroundWorker(&worker, NULL);
	if (registered)
	{
		LWLockAcquire(&state->lock, LW_EXCLUSIVE);
		if (state->worker_state == WORKER_NO_SLOT)
			state->worker_state = WORKER_NONE;
		LWLockRelease(&state->lock);
		candidate->asked = false;
		candidate->started_at = now;
		candidate->next_start =
			TimestampTzPlusMilliseconds(now, candidate->delay_ms);
		candidate->delay_ms =
			Min(candidate->delay_ms * 2, RESTART_DELAY_MAX_MS);
		slots_missed_at = 0;
		slots_reported = false;
		return true;
	}

	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	state->launched_at = 0;
	state->worker_state = WORKER_NO_SLOT;
	LWLockRelease(&state->lock);
	ConditionVariableBroadcast(&state->changed);
	/* nobody tells of a slot that has become free */
	candidate->next_start =
		TimestampTzPlusMilliseconds(now, candidate->delay_ms);
	candidate->delay_ms = Min(candidate->delay_ms * 2, SLOT_DELAY_MAX_MS);
	if (slots_missed_at == 0)
		slots_missed_at = now;
	if (!slots_reported &&
		TimestampDifferenceExceeds(slots_missed_at, now, SLOTS_PATIENCE_MS))
	{
		slots_reported = true;
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("absmartly: no background worker slot is left for "
						"database \"%s\"",
						NameStr(candidate->name)),
				 errhint("Increase \"max_worker_processes\".")));
	}
	return false;
}

/* Takes a database's data away, and its place as soon as nobody reads it. */
static void
forget(DatabaseState *state, Oid database)
{
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	if (state->worker_state == WORKER_NO_SLOT)
		state->worker_state = WORKER_NONE;
	LWLockRelease(&state->lock);
	version_withdraw(state);
	shared_forget_database(database);
}

/* What has become of a database's last worker, which runs no more. */
static void
settle(Candidate *candidate, DatabaseState *state, TimestampTz now)
{
	if (candidate->started_at != 0 &&
		TimestampDifferenceExceeds(candidate->started_at, now, HEALTHY_MS))
		candidate->delay_ms = RESTART_DELAY_MS;

	/* one that ended on request comes back at once */
	if (state->restart_requested)
	{
		LWLockAcquire(&state->lock, LW_EXCLUSIVE);
		state->restart_requested = false;
		LWLockRelease(&state->lock);
		candidate->delay_ms = RESTART_DELAY_MS;
		candidate->next_start = now;
	}

	if (state->extension == EXTENSION_PRESENT)
		candidate->expectation = EXPECT_PRESENT;
	else if (state->extension == EXTENSION_ABSENT)
	{
		/* the extension may have been made while the worker looked */
		candidate->expectation =
			candidate->asked ? EXPECT_ASKED : EXPECT_ABSENT;
		candidate->probed_at = now;
		candidate->delay_ms = RESTART_DELAY_MS;
		candidate->next_start = now;
		LWLockAcquire(&state->lock, LW_EXCLUSIVE);
		state->extension = EXTENSION_UNKNOWN;
		LWLockRelease(&state->lock);
	}
}

/* Whether a worker is on its way. */
static bool
launching(const DatabaseState *state, TimestampTz now)
{
	return state->launched_at != 0 && state->launched_at <= now &&
		   !TimestampDifferenceExceeds(state->launched_at, now,
									   LAUNCH_TIMEOUT_MS);
}

/*
 * Brings one database to what is wanted of it.  *probing counts the workers
 * that look whether there is an extension.  Returns whether the database must
 * be looked at again soon.
 */
static bool
reconcile(Candidate *candidate, TimestampTz now, int *probing)
{
	DatabaseState *state = shared_database(candidate->database, false);
	bool wanted =
		candidate->listed && settings_database_wanted(NameStr(candidate->name));

	if (state != NULL && state->worker_pid != 0)
	{
		if (state->extension == EXTENSION_PRESENT)
		{
			candidate->expectation = EXPECT_PRESENT;
			candidate->asked = false;
		}
		else
			(*probing)++;
		if (!wanted)
		{
			LWLockAcquire(&state->lock, LW_EXCLUSIVE);
			state->restart_requested = true;
			LWLockRelease(&state->lock);
			shared_wake_worker(state);
		}
		return !wanted || state->extension != EXTENSION_PRESENT;
	}

	if (state != NULL)
	{
		settle(candidate, state, now);
		if (shared_database_held(state))
			return true;
		if (launching(state, now))
		{
			if (candidate->expectation != EXPECT_PRESENT)
				(*probing)++;
			return true;
		}
	}

	if (candidate->expectation == EXPECT_ABSENT && RecoveryInProgress() &&
		TimestampDifferenceExceeds(candidate->probed_at, now, STANDBY_PROBE_MS))
		candidate->expectation = EXPECT_UNKNOWN;
	if (!wanted || candidate->expectation == EXPECT_ABSENT)
	{
		if (state != NULL)
			forget(state, candidate->database);
		/* afterwards, lest somebody puts data in force and writes it again */
		if (!candidate->exists || candidate->expectation == EXPECT_ABSENT)
			file_remove(candidate->database);
		return false;
	}

	/* a clock that was set back does not keep a database waiting */
	if (now < candidate->next_start &&
		!TimestampDifferenceExceeds(now, candidate->next_start,
									RESTART_DELAY_MAX_MS))
	{
		next_look = Min(next_look, candidate->next_start);
		return false;
	}
	if (candidate->expectation != EXPECT_PRESENT)
	{
		if (*probing >= MAX_PROBING)
			return true;
		(*probing)++;
	}

	if (state == NULL)
		state = shared_database(candidate->database, true);
	if (state == NULL)
	{
		if (!places_reported)
			ereport(WARNING,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("absmartly serves at most %d databases of one "
							"server",
							SHARED_MAX_DATABASES),
					 errhint("Name the databases to serve in "
							 "\"absmartly.databases\".")));
		places_reported = true;
		candidate->next_start =
			TimestampTzPlusMilliseconds(now, RESTART_DELAY_MAX_MS);
		return false;
	}
	if (start_worker(candidate, state, now))
		return true;
	next_look = Min(next_look, candidate->next_start);
	return false;
}

/* A database that has a file had the extension. */
static void
look_at_file(Oid database, void *context)
{
	Candidate *candidate = hash_search(candidates, &database, HASH_FIND, NULL);

	if (candidate == NULL)
		file_remove(database);
	else
		candidate->expectation = EXPECT_PRESENT;
}

/* Notes for which databases a look was asked. */
static void
take_requests(void)
{
	Oid probes[SHARED_MAX_PROBES];
	int nprobes = shared_take_probes(probes);
	HASH_SEQ_STATUS status;
	Candidate *candidate;

	hash_seq_init(&status, candidates);
	while ((candidate = hash_seq_search(&status)) != NULL)
	{
		bool asked = nprobes < 0;

		for (int i = 0; i < nprobes; i++)
			asked |= (probes[i] == candidate->database);
		if (!asked)
			continue;
		candidate->asked = true;
		/* everybody may ask: a worker that keeps ending takes its time */
		if (candidate->expectation == EXPECT_PRESENT)
			continue;
		candidate->next_start = 0;
		candidate->delay_ms = RESTART_DELAY_MS;
		candidate->expectation = EXPECT_ASKED;
	}
}

/* A standby that becomes a primary is told of new extensions from then on. */
static void
look_at_recovery(void)
{
	bool was = in_recovery;
	HASH_SEQ_STATUS status;
	Candidate *candidate;

	in_recovery = RecoveryInProgress();
	if (!was || in_recovery)
		return;
	hash_seq_init(&status, candidates);
	while ((candidate = hash_seq_search(&status)) != NULL)
		if (candidate->expectation == EXPECT_ABSENT)
			candidate->expectation = EXPECT_UNKNOWN;
}

static int
by_expectation(const void *left, const void *right)
{
	const Candidate *a = *(Candidate *const *) left;
	const Candidate *b = *(Candidate *const *) right;

	if (a->expectation != b->expectation)
		return a->expectation < b->expectation ? -1 : 1;
	return a->database < b->database ? -1 : 1;
}

/* One look at everything.  Returns how long to wait for the next one. */
static long
cycle(bool first)
{
	TimestampTz now;
	HASH_SEQ_STATUS status;
	Candidate *candidate;
	Candidate **ordered;
	long count;
	int index = 0;
	int probing = 0;
	bool busy = false;

	look_at_recovery();
	list_databases();
	if (first)
		file_visit(look_at_file, NULL);
	take_requests();

	count = hash_get_num_entries(candidates);
	ordered = palloc(Max(count, 1) * sizeof(Candidate *));
	hash_seq_init(&status, candidates);
	while ((candidate = hash_seq_search(&status)) != NULL)
		ordered[index++] = candidate;
	qsort(ordered, index, sizeof(Candidate *), by_expectation);

	now = GetCurrentTimestamp();
	next_look = DT_NOEND;
	for (int i = 0; i < index; i++)
	{
		candidate = ordered[i];
		busy |= reconcile(candidate, now, &probing);
		if (!candidate->exists &&
			shared_database(candidate->database, false) == NULL)
			hash_search(candidates, &candidate->database, HASH_REMOVE, NULL);
	}
	if (busy)
		return BUSY_CYCLE_MS;
	if (next_look == DT_NOEND)
		return CYCLE_MS;
	return Min(TimestampDifferenceMilliseconds(now, next_look) + 1, CYCLE_MS);
}

/* An error ends a cycle, not the launcher: the next one looks at everything. */
static long
survive(MemoryContext loop_context)
{
	HOLD_INTERRUPTS();
	leave_end_work();
	EmitErrorReport();
	MemoryContextSwitchTo(loop_context);
	FlushErrorState();
	step_clean_up();
	MemoryContextSwitchTo(loop_context);
	RESUME_INTERRUPTS();
	return REST_MS;
}

/*
 * Ends the launcher.  Not with exit code 0, after which it would not be started
 * anew: a server that goes on needs it.
 */
pg_noreturn static void
leave(void)
{
	ereport(DEBUG1, (errmsg_internal("absmartly launcher shutting down")));
	proc_exit(1);
}

/* A cycle that SIGTERM ends, whatever it waits for. */
static long
interruptible_cycle(bool first)
{
	long timeout;

	PG_TRY();
	{
		leave_begin_work();
		timeout = cycle(first);
		leave_end_work();
	}
	PG_CATCH();
	{
		if (!ShutdownRequestPending)
			PG_RE_THROW();
		FlushErrorState();
		leave();
	}
	PG_END_TRY();
	return timeout;
}

void
absmartly_launcher_main(Datum argument)
{
	HASHCTL control = {0};
	MemoryContext loop_context;
	volatile bool first = true;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	CHECK_FOR_INTERRUPTS();
	pqsignal(SIGTERM, leave_on_sigterm);
	worker_pin_settings();
	/* what came before its signal could be heard */
	ProcessConfigFile(PGC_SIGHUP);

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
		volatile long timeout;

		MemoryContextReset(loop_context);
		MemoryContextSwitchTo(loop_context);
		PG_TRY();
		{
			if (ConfigReloadPending)
			{
				ConfigReloadPending = false;
				ProcessConfigFile(PGC_SIGHUP);
			}
			timeout = interruptible_cycle(first);
			first = false;
		}
		PG_CATCH();
		{
			timeout = survive(loop_context);
		}
		PG_END_TRY();

		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 timeout, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		if (ShutdownRequestPending)
			leave();
		CHECK_FOR_INTERRUPTS();
	}
}
