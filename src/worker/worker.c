/*
 * worker.c
 *		The worker of one database: its life and its loop.
 *
 * The loop never holds a transaction while it waits, and reaches an interrupt
 * check whenever its latch is set: signals, barriers and requests of backends
 * all set it.  The worker ends when it is asked to, without an error, and the
 * launcher decides whether it comes back.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/indexing.h"
#include "catalog/pg_db_role_setting.h"
#include "commands/extension.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "data/shared.h"
#include "data/version.h"
#include "settings.h"
#include "worker/fetch.h"
#include "worker/http.h"
#include "worker/launcher.h"
#include "worker/worker.h"

/* connections to the collector that are kept open */
#define MAX_CONNECTIONS 4
/* on a standby: how often the database's settings are looked at, at least */
#define STANDBY_LOOK_MS 60000L

static DatabaseState *my_database = NULL;

/* on a standby: the database's settings when this worker started */
static char *initial_settings = NULL;
static TimestampTz settings_looked_at = 0;

void
worker_set_state(DatabaseState *database, WorkerState worker_state)
{
	if (database->worker_state == worker_state)
		return;
	LWLockAcquire(&database->lock, LW_EXCLUSIVE);
	database->worker_state = worker_state;
	LWLockRelease(&database->lock);
}

/* Undoes attach(). */
static void
detach(int code, Datum argument)
{
	DatabaseState *state = (DatabaseState *) DatumGetPointer(argument);

	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	if (state->worker_pid == MyProcPid)
	{
		state->worker_pid = 0;
		state->worker_proc = NULL;
		state->worker_state = WORKER_NONE;
	}
	LWLockRelease(&state->lock);
	ConditionVariableBroadcast(&state->changed);
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
	if (state->database == database && !shared_database_held(state) &&
		(state->worker_pid == 0 ||
		 BackendPidGetProc(state->worker_pid) == NULL))
	{
		state->worker_pid = MyProcPid;
		state->worker_proc = MyProc;
		state->worker_state = WORKER_STARTING;
		state->launched_at = 0;
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
 * Settings of the database or the server that are meant for users' sessions
 * must not reach the worker.
 */
static void
pin_settings(void)
{
	static const char *const pinned[][2] = {
		{"search_path", "pg_catalog, pg_temp"},
		{"statement_timeout", "0"},
		{"lock_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_isolation", "read committed"},
		{"session_replication_role", "origin"},
		{"row_security", "off"},
		{"jit", "off"}};

	for (int i = 0; i < (int) lengthof(pinned); i++)
		SetConfigOption(pinned[i][0], pinned[i][1], PGC_SUSET, PGC_S_OVERRIDE);
}

static bool
extension_exists(void)
{
	bool exists;

	StartTransactionCommand();
	exists = OidIsValid(get_extension_oid("absmartly", true));
	CommitTransactionCommand();
	pgstat_report_stat(true);
	return exists;
}

/*
 * The database's own settings, as one string.  A standby is told of no ALTER
 * DATABASE: it compares.
 */
static char *
database_settings(MemoryContext context)
{
	Relation relation;
	SysScanDesc scan;
	ScanKeyData keys[2];
	HeapTuple tuple;
	char *result = NULL;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	relation = table_open(DbRoleSettingRelationId, AccessShareLock);
	ScanKeyInit(&keys[0], Anum_pg_db_role_setting_setdatabase,
				BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(MyDatabaseId));
	ScanKeyInit(&keys[1], Anum_pg_db_role_setting_setrole,
				BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(InvalidOid));
	scan = systable_beginscan(relation, DbRoleSettingDatidRolidIndexId, true,
							  NULL, 2, keys);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool isnull;
		Datum config = heap_getattr(tuple, Anum_pg_db_role_setting_setconfig,
									RelationGetDescr(relation), &isnull);

		if (!isnull)
			result = MemoryContextStrdup(
				context, OidOutputFunctionCall(F_ARRAY_OUT, config));
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
	pgstat_report_stat(true);
	return result ? result : MemoryContextStrdup(context, "");
}

static long
standby_look_interval(void)
{
	long interval = settings_refresh_interval * 1000L;

	return interval > 0 ? Min(interval, STANDBY_LOOK_MS) : STANDBY_LOOK_MS;
}

/* On a standby: whether the database's settings have changed. */
static bool
settings_changed(MemoryContext context)
{
	TimestampTz now;

	if (!RecoveryInProgress())
		return false;
	now = GetCurrentTimestamp();
	if (!TimestampDifferenceExceeds(settings_looked_at, now,
									(int) standby_look_interval()))
		return false;
	settings_looked_at = now;
	return strcmp(initial_settings, database_settings(context)) != 0;
}

/*
 * A setting's text in UTF-8.  That of ALTER DATABASE is in the database's
 * encoding; that of the configuration file is in any.
 */
static void
copy_setting(char *copy, const char *text, size_t size)
{
	int length = (int) strlen(text);
	MemoryContext context = CurrentMemoryContext;

	if (pg_encoding_verifymbstr(PG_UTF8, text, length) != length &&
		GetDatabaseEncoding() != PG_SQL_ASCII)
	{
		StartTransactionCommand();
		strlcpy(copy, pg_server_to_any(text, length, PG_UTF8), size);
		CommitTransactionCommand();
		MemoryContextSwitchTo(context);
	}
	else
		strlcpy(copy, text, size);
}

/* Publishes what data is fetched for; true if a new epoch begins with it. */
static bool
confirm_target(void)
{
	DataTarget target = {0};

	copy_setting(target.endpoint, settings_endpoint, SHARED_MAX_ENDPOINT);
	copy_setting(target.application, settings_application, SHARED_MAX_NAME);
	copy_setting(target.environment, settings_environment, SHARED_MAX_NAME);
	copy_setting(target.application_version, settings_application_version,
				 SHARED_MAX_NAME);
	return version_set_target(my_database, &target);
}

static long
earlier(long left, long right)
{
	if (left < 0)
		return right;
	return right < 0 ? left : Min(left, right);
}

void
absmartly_worker_main(Datum argument)
{
	Oid database = DatumGetObjectId(argument);
	MemoryContext loop_context;
	HttpClient *client;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	if (!attach(database))
		proc_exit(0);
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	pin_settings();

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
	initial_settings = database_settings(TopMemoryContext);
	settings_looked_at = GetCurrentTimestamp();
	MemoryContextSwitchTo(loop_context);

	client = http_client_create(MAX_CONNECTIONS);
	(void) confirm_target();
	fetch_load_file(my_database);

	for (;;)
	{
		HttpRequest *request;
		long timeout;

		MemoryContextSwitchTo(loop_context);
		MemoryContextReset(loop_context);
		CHECK_FOR_INTERRUPTS();

		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			if (confirm_target())
			{
				fetch_restart(my_database, client);
				fetch_load_file(my_database);
			}
			else
				fetch_settings_changed();
		}
		if (my_database->restart_requested || settings_changed(loop_context))
			proc_exit(0);

		version_reap(my_database);
		fetch_begin(my_database, client);

		timeout = fetch_timeout(my_database);
		if (RecoveryInProgress())
			timeout = earlier(timeout, standby_look_interval());
		http_wait(client, timeout, PG_WAIT_EXTENSION);
		CHECK_FOR_INTERRUPTS();

		while ((request = http_next_done(client)) != NULL)
			fetch_finish(my_database, client, request);
	}
}
