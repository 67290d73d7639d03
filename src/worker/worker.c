/*
 * worker.c
 *		The worker of one database: its life and its loop.
 *
 * The loop never holds a transaction while it waits, and reaches an interrupt
 * check whenever its latch is set: signals, barriers and requests of backends
 * all set it.  An error does not end it: what may be half done then is
 * forgotten and done again, from what is in the outbox and in shared memory.
 * The worker ends when it is asked to, without an error, and the launcher
 * decides whether it comes back.  SIGTERM ends what is under way and the loop,
 * so that all can be put in order (leave.c).
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "data/shared.h"
#include "data/version.h"
#include "events/endpoints.h"
#include "events/logger.h"
#include "settings.h"
#include "worker/collector.h"
#include "worker/database_settings.h"
#include "worker/fetch.h"
#include "worker/http.h"
#include "worker/launcher.h"
#include "worker/leave.h"
#include "worker/publish.h"
#include "worker/step.h"
#include "worker/worker.h"

/* connections to the collector: those of publishing, and the fetch's */
#define wanted_connections() (settings_max_connections + 1)
/* for what others hold locks on it is tried again later */
#define LOCK_TIMEOUT "1s"
/* while statements still read data that was replaced */
#define REAP_MS 5000L
/* after an error */
#define REST_MS 1000
/* on a standby: how often the catalogs are looked at, at least */
#define STANDBY_LOOK_MS 60000L
/* the same on a primary, where commands tell nearly all */
#define PRIMARY_LOOK_MS 300000L
/* the least time between two looks for which COMMIT PREPARED asks */
#define WANTED_LOOK_MS 1000L

static DatabaseState *my_database = NULL;

/* what outdated() compares with, and when it last did */
static char *initial_settings = NULL;
static TimestampTz looked_at = 0;
static bool standby = false;

static HttpClient *client = NULL;
static int client_connections = 0;

static bool prepared = false; /* for the settings that are in force */
static bool failed = false; /* something may be half done */
static CollectorPause rest;

/* what has to be saved before the process ends is */
static bool in_order = false;

static void
worker_set_state(DatabaseState *database, WorkerState worker_state)
{
	if (database->worker_state == worker_state)
		return;
	LWLockAcquire(&database->lock, LW_EXCLUSIVE);
	/* one that leaves has a successor */
	if (database->worker_pid == MyProcPid)
		database->worker_state = worker_state;
	LWLockRelease(&database->lock);
}

/* Shows what the worker does, before it waits. */
static void
show_state(void)
{
	static const WorkerState order[] = {WORKER_FETCHING, WORKER_PUBLISHING,
										WORKER_RETRYING, WORKER_BACKING_OFF};
	WorkerState fetching = fetch_state();
	WorkerState publishing = publish_state();

	for (int i = 0; i < (int) lengthof(order); i++)
		if (fetching == order[i] || publishing == order[i])
		{
			worker_set_state(my_database, order[i]);
			return;
		}
	worker_set_state(my_database, WORKER_IDLE);
}

/* Calls the event logger with data or, if that is NULL, with a message. */
static void
call_logger(DatabaseState *database, uint64 context, const char *event,
			const char *data, size_t length, const char *message)
{
	if (!logger_wanted() || ShutdownRequestPending)
		return;
	worker_set_state(database, WORKER_LOGGING);
	leave_begin_user_code();
	if (data != NULL)
		logger_emit_from_worker(database, context, event, data, length);
	else
		logger_emit_error_from_worker(database, context, message);
	leave_end_work();
}

void
worker_log_event(DatabaseState *database, uint64 context, const char *event,
				 const char *data, size_t length)
{
	call_logger(database, context, event, data, length, NULL);
}

void
worker_log_error(DatabaseState *database, uint64 context, const char *message)
{
	call_logger(database, context, "error", NULL, 0, message);
}

/* Makes place for another worker, with the state's lock held. */
static void
make_place(DatabaseState *state)
{
	if (state->worker_pid != MyProcPid)
		return;
	state->worker_pid = 0;
	state->worker_proc = NULL;
	state->worker_state = WORKER_NONE;
	state->fetch_running = false;
}

/* Undoes attach(). */
static void
detach(int code, Datum argument)
{
	DatabaseState *state = (DatabaseState *) DatumGetPointer(argument);

	/* whatever ends the process must not wait for itself */
	LWLockReleaseAll();
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	make_place(state);
	if (state->leaver_pid == MyProcPid)
		state->leaver_pid = 0;
	LWLockRelease(&state->lock);
	ConditionVariableBroadcast(&state->changed);
	shared_wake_worker(state);
	shared_wake_launcher();
}

void
worker_hand_over(void)
{
	LWLockAcquire(&my_database->lock, LW_EXCLUSIVE);
	make_place(my_database);
	my_database->leaver_pid = MyProcPid;
	LWLockRelease(&my_database->lock);
	ConditionVariableBroadcast(&my_database->changed);
	shared_wake_launcher();
}

/*
 * Makes this process the database's worker.  False if it is not wanted (any
 * more), or has another one.
 */
static bool
attach(Oid database)
{
	DatabaseState *state = shared_database(database, false);
	bool attached = false;

	if (state == NULL)
		return false;
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	state->launched_at = 0;
	if (state->database == database && state->worker_pid == 0 &&
		!shared_database_held(state))
	{
		state->worker_pid = MyProcPid;
		state->worker_leaves = false;
		state->worker_proc = MyProc;
		state->worker_state = WORKER_STARTING;
		state->restart_requested = false;
		attached = true;
	}
	LWLockRelease(&state->lock);
	if (attached)
	{
		my_database = state;
		before_shmem_exit(detach, PointerGetDatum(state));
	}
	return attached;
}

/*
 * Settings that a database or a role may have been given for its sessions, and
 * that would act in the launcher and the workers.  All of the server's settings
 * were looked through: those that are not here have no effect where no query
 * runs, or tune (costs, memory, WAL), or say how values look as text and what
 * is logged, which an event logger is to find as its database has them.
 */
static const struct
{
	const char *name;
	const char *value;
} pinned_settings[] = {
	/* who waits for others must be able to leave, and a standby may be away */
	{"synchronous_commit", "local"},
	/* what has a limit sets it itself; lock_timeout is the worker's own */
	{"statement_timeout", "0"},
	{"lock_timeout", "0"},
	{"idle_in_transaction_session_timeout", "0"},
	{"idle_session_timeout", "0"},
	COMPAT_PINNED_SETTINGS
	/* an error is caught, reported and tried again */
	{"exit_on_error", "off"},
	/* the outbox is written, and nobody is waited for before that */
	{"default_transaction_read_only", "off"},
	{"default_transaction_deferrable", "off"},
	{"default_transaction_isolation", "read committed"},
	/* who it is, and which objects it sees */
	{"role", "none"},
	{"search_path", "pg_catalog, pg_temp"},
	{"row_security", "off"},
	{"session_replication_role", "origin"},
	/* a page that can't be read is an error, not events that are gone */
	{"zero_damaged_pages", "off"},
	{"ignore_checksum_failure", "off"},
	/* a logger's statements are small */
	{"jit", "off"}};

void
worker_pin_settings(void)
{
	if (GetSessionUserId() != BOOTSTRAP_SUPERUSERID)
		SetSessionAuthorization(BOOTSTRAP_SUPERUSERID, true);
	for (int i = 0; i < (int) lengthof(pinned_settings); i++)
		SetConfigOption(pinned_settings[i].name, pinned_settings[i].value,
						PGC_SUSET, PGC_S_OVERRIDE);
}

static bool
extension_exists(void)
{
	bool exists;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	exists = OidIsValid(get_extension_oid("absmartly", true));
	CommitTransactionCommand();
	pgstat_report_stat(true);
	return exists;
}

/* How often the catalogs are looked at for what nobody tells a worker. */
static long
look_interval(void)
{
	long interval = settings_refresh_interval * 1000L;

	if (!standby)
		return PRIMARY_LOOK_MS;
	return interval > 0 ? Min(interval, STANDBY_LOOK_MS) : STANDBY_LOOK_MS;
}

/* Milliseconds until the next look. */
static long
look_left(void)
{
	bool wanted = pg_atomic_read_u32(&my_database->look_wanted) != 0;
	long interval = wanted ? WANTED_LOOK_MS : look_interval();
	long left = TimestampDifferenceMilliseconds(
		GetCurrentTimestamp(),
		TimestampTzPlusMilliseconds(looked_at, interval));

	/* a clock that was set back does not put it off */
	return left > interval ? 0 : left;
}

/*
 * Whether this worker should make place for another one, because the extension
 * has gone, the database's settings have changed, or a standby was promoted.  A
 * standby is told of none of that, and COMMIT PREPARED only says that it may be
 * so.
 */
static bool
outdated(MemoryContext context)
{
	TimestampTz now = GetCurrentTimestamp();
	DatabaseSettings settings;
	bool promoted = standby && !RecoveryInProgress();
	bool exists;

	if (!promoted && look_left() > 0)
		return false;
	looked_at = now;
	standby = RecoveryInProgress();
	pg_atomic_write_u32(&my_database->look_wanted, 0);
	pg_memory_barrier();

	leave_begin_work();
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	exists = OidIsValid(get_extension_oid("absmartly", true));
	database_settings_read(MyDatabaseId, &settings);
	if (initial_settings == NULL)
		initial_settings = MemoryContextStrdup(TopMemoryContext, settings.all);
	exists = exists && strcmp(initial_settings, settings.all) == 0;
	CommitTransactionCommand();
	leave_end_work();
	MemoryContextSwitchTo(context);
	pgstat_report_stat(true);
	return promoted || !exists;
}

/* Copies a setting's text in UTF-8, or as it is if that can't be told. */
static void
copy_setting(char *copy, const char *text, size_t size)
{
	const char *utf8 = settings_to_utf8(text);

	strlcpy(copy, utf8 ? utf8 : text, size);
}

/* Publishes what data is fetched for; true if a new epoch begins with it. */
static bool
confirm_target(void)
{
	DataTarget target = {0};
	DatabaseSettings settings;
	MemoryContext context = CurrentMemoryContext;

	/* conversions are looked up in the catalog */
	leave_begin_work();
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	copy_setting(target.endpoint, settings_endpoint, SHARED_MAX_ENDPOINT);
	copy_setting(target.application, settings_application, SHARED_MAX_NAME);
	copy_setting(target.environment, settings_environment, SHARED_MAX_NAME);
	copy_setting(target.application_version, settings_application_version,
				 SHARED_MAX_NAME);
	/* before anybody can see it, and write events for it */
	database_settings_read(MyDatabaseId, &settings);
	endpoints_note(my_database, target.endpoint, settings.endpoint != NULL);
	CommitTransactionCommand();
	leave_end_work();
	MemoryContextSwitchTo(context);
	return version_set_target(my_database, &target);
}

/* Settings were read anew. */
static void
apply_settings(void)
{
	char endpoint[SHARED_MAX_ENDPOINT];
	bool new_epoch;

	prepared = false; /* until all know of them */
	strlcpy(endpoint, my_database->target.endpoint, sizeof(endpoint));
	new_epoch = confirm_target();
	if (new_epoch)
	{
		fetch_restart(my_database, client);
		fetch_load_file(my_database);
	}
	else
		fetch_settings_changed();
	if (strcmp(endpoint, my_database->target.endpoint) != 0)
		publish_endpoint_changed();
	else
		publish_settings_changed();
	prepared = true;
}

/*
 * Starts what is due, and gives the milliseconds until there is more to do.  A
 * client for another number of connections is made when nothing is in flight:
 * until then nothing is started.
 */
static long
begin_requests(void)
{
	if (client != NULL && client_connections != wanted_connections() &&
		!http_busy(client))
	{
		http_client_destroy(client);
		client = NULL;
	}
	if (client == NULL)
	{
		client_connections = wanted_connections();
		client = http_client_create(client_connections);
	}
	if (client_connections != wanted_connections())
		return -1;
	fetch_begin(my_database, client);
	publish_begin(my_database, client);
	return collector_earlier(fetch_timeout(my_database),
							 publish_timeout(my_database));
}

/* Judges the requests that are done. */
static void
finish_requests(void)
{
	HttpRequest *request;

	while ((request = http_next_done(client)) != NULL)
	{
		if (publish_owns(request))
			publish_finish(my_database, client, request);
		else
			fetch_finish(my_database, client, request);
	}
	publish_settle(my_database);
}

/* Finds out what there is to begin with. */
static void
prepare(void)
{
	(void) confirm_target();
	fetch_restart(my_database, client);
	fetch_load_file(my_database);
	publish_start(my_database);
	prepared = true;
}

/* Does what is due, and waits for more.  False: the worker is to end. */
static bool
work(MemoryContext loop_context)
{
	long timeout;
	long pause = collector_pause_left(&rest);

	CHECK_FOR_INTERRUPTS();
	if (ShutdownRequestPending || my_database->restart_requested ||
		shared_database_held(my_database))
		return false;
	if (pause > 0)
	{
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, pause,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		return true;
	}
	if (failed)
	{
		fetch_begin_anew(my_database);
		publish_begin_anew(my_database);
		failed = false;
	}
	if (!prepared)
	{
		if (outdated(loop_context))
			return false;
		prepare();
	}
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		apply_settings();
	}
	if (outdated(loop_context))
		return false;

	version_reap(my_database);
	timeout = collector_earlier(begin_requests(), look_left());
	if (my_database->nretired > 0)
		timeout = Min(timeout, REAP_MS);
	show_state();
	http_wait(client, timeout, PG_WAIT_EXTENSION);
	CHECK_FOR_INTERRUPTS();
	finish_requests();
	return true;
}

/*
 * An error has come from work(), which may have left anything half done.  It
 * begins anew after a rest, from what is in the outbox and in shared memory.
 */
static void
recover(MemoryContext loop_context)
{
	HttpClient *broken = client;

	HOLD_INTERRUPTS();
	leave_end_work();
	/* SIGTERM ends what waits with an error */
	if (!ShutdownRequestPending)
		EmitErrorReport();
	MemoryContextSwitchTo(loop_context);
	FlushErrorState();
	step_clean_up();
	MemoryContextSwitchTo(loop_context);
	RESUME_INTERRUPTS();

	failed = true;
	collector_pause(&rest, GetCurrentTimestamp(), REST_MS);
	client = NULL;
	if (broken != NULL)
		http_client_destroy(broken);
}

/*
 * Nothing but an event logger that does not let itself be cancelled ends the
 * worker at once.  If the server stops, what is in memory has to be saved all
 * the same.
 */
static void
save_at_exit(int code, Datum argument)
{
	if (in_order || !ShutdownRequestPending || RecoveryInProgress())
		return;
	in_order = true;
	AbortOutOfAnyTransaction();
	LWLockReleaseAll();
	leave_begin_last_work();
	/* or a lock would be waited for without end */
	RESUME_INTERRUPTS();
	publish_save_queue(my_database);
	HOLD_INTERRUPTS();
}

void
absmartly_worker_main(Datum argument)
{
	Oid database = DatumGetObjectId(argument);
	MemoryContext loop_context;
	volatile bool goes_on = true;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	if (!attach(database))
		proc_exit(0);
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	worker_pin_settings();
	SetConfigOption("lock_timeout", LOCK_TIMEOUT, PGC_SUSET, PGC_S_OVERRIDE);
	/* what came before its signal could be heard */
	ProcessConfigFile(PGC_SIGHUP);

	if (!extension_exists())
	{
		LWLockAcquire(&my_database->lock, LW_EXCLUSIVE);
		my_database->extension = EXTENSION_ABSENT;
		LWLockRelease(&my_database->lock);
		proc_exit(0);
	}
	LWLockAcquire(&my_database->lock, LW_EXCLUSIVE);
	my_database->extension = EXTENSION_PRESENT;
	LWLockRelease(&my_database->lock);

	loop_context = AllocSetContextCreate(TopMemoryContext, "absmartly worker",
										 ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(loop_context);
	standby = RecoveryInProgress();
	before_shmem_exit(save_at_exit, (Datum) 0);
	CHECK_FOR_INTERRUPTS();
	pqsignal(SIGTERM, leave_on_sigterm);

	do
	{
		MemoryContextSwitchTo(loop_context);
		MemoryContextReset(loop_context);
		PG_TRY();
		{
			goes_on = work(loop_context);
		}
		PG_CATCH();
		{
			recover(loop_context);
		}
		PG_END_TRY();
	} while (goes_on);

	MemoryContextSwitchTo(loop_context);

	leave_begin_last_work();
	if (!ShutdownRequestPending)
	{
		/* it is to come back, without delay */
		LWLockAcquire(&my_database->lock, LW_EXCLUSIVE);
		my_database->restart_requested = true;
		LWLockRelease(&my_database->lock);
	}
	/* after an error there is none: what is in memory is saved nevertheless */
	if (client != NULL)
	{
		publish_shutdown(my_database, client, ShutdownRequestPending);
		in_order = true;
	}
	proc_exit(0);
}
