/*
 * logger.c
 *		The event logger: a function of the user's that is told what happens.
 *
 * The function runs as its owner, in a security-restricted operation and with
 * a safe search path, wherever it is called: naming it gives it no rights that
 * its owner lacks.
 *
 * In a session its time is that of the session's statement.  The worker has
 * other work: it cancels a logger that takes too long, and ends with one that
 * does not let itself be cancelled.  Either is not called for a while then.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/sequence.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/varlena.h"

#include "compat.h"
#include "data/context_slot.h"
#include "data/store.h"
#include "events/logger.h"
#include "settings.h"
#include "subtransaction.h"

/* a logger that runs for longer is cancelled: the worker has other work */
#define LOGGER_TIMEOUT_MS 60000
/* and so long after that, or after SIGTERM, the worker ends with it */
#define LOGGER_GRACE_MS 5000
#define LOGGER_LEAVE_MS 500
/* how often it is looked at for that */
#define WATCH_MS 100
/* how long it rests, at first and at most */
#define REST_MS INT64CONST(60000)
#define MAX_REST_MS INT64CONST(3600000)
/* between two reports of the same */
#define REPORT_MS 60000

bool
logger_wanted(void)
{
	return settings_event_logger != NULL && settings_event_logger[0] != '\0';
}

/* A function as it is: one that was replaced is another one. */
typedef struct FunctionVersion
{
	Oid function; /* InvalidOid: there is none */
	TransactionId changed_by;
	ItemPointerData tuple;
} FunctionVersion;

/* the one that was called last */
static FunctionVersion found;

static bool
is_same_function(const FunctionVersion *a, const FunctionVersion *b)
{
	if (!OidIsValid(a->function) || !OidIsValid(b->function))
		return a->function == b->function;
	return a->function == b->function && a->changed_by == b->changed_by &&
		   ItemPointerEquals(unconstify(ItemPointerData *, &a->tuple),
							 unconstify(ItemPointerData *, &b->tuple));
}

/*
 * The logger's function and its owner.  Raises if there is none.  Who calls it
 * need not have any privilege on its schema.
 */
static Oid
find_function(Oid *owner)
{
	static const Oid types[] = {JSONBOID, TEXTOID, JSONBOID};
	char *schema;
	char *name;
	Oid schema_id = InvalidOid;
	Oid function;
	HeapTuple tuple;

	memset(&found, 0, sizeof(found));
	DeconstructQualifiedName(qualified_name_list(settings_event_logger),
							 &schema, &name);
	if (schema != NULL)
		schema_id = get_namespace_oid(schema, true);
	tuple =
		SearchSysCache3(PROCNAMEARGSNSP, CStringGetDatum(name),
						PointerGetDatum(buildoidvector(types, lengthof(types))),
						ObjectIdGetDatum(schema_id));
	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("event logger \"%s\" does not exist",
						settings_event_logger),
				 errhint("\"absmartly.event_logger\" names a function with "
						 "arguments (context jsonb, event text, data "
						 "jsonb).")));
	function = ((Form_pg_proc) GETSTRUCT(tuple))->oid;
	*owner = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
	found.function = function;
	found.changed_by = HeapTupleHeaderGetRawXmin(tuple->t_data);
	found.tuple = tuple->t_self;
	ReleaseSysCache(tuple);
	return function;
}

/*
 * {source, pid, id, database}: source is "context", with its id, for what a
 * session context has done, wherever it is told from, else "worker"; pid is the
 * process that calls the logger.
 */
static Datum
context_datum(uint64 context)
{
	char id[CONTEXT_ID_SIZE];
	const char *source = context != 0 ? "context" : "worker";
	JsonbParseState *state = NULL;
	JsonbValue *result;
	const char *database = get_database_name(MyDatabaseId);
	const struct
	{
		const char *key;
		JsonbValue value;
	} members[] = {
		{"source",
		 {.type = jbvString,
		  .val.string = {strlen(source), unconstify(char *, source)}}},
		{"pid",
		 {.type = jbvNumeric,
		  .val.numeric = DatumGetNumeric(
			  DirectFunctionCall1(int4_numeric, Int32GetDatum(MyProcPid)))}},
		{"id",
		 {.type = context != 0 ? jbvString : jbvNull,
		  .val.string = {CONTEXT_ID_SIZE - 1, id}}},
		{"database",
		 {.type = jbvString,
		  .val.string = {strlen(database), unconstify(char *, database)}}}};

	context_slot_id(context, id);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < (int) lengthof(members); i++)
	{
		JsonbValue key = {.type = jbvString,
						  .val.string = {strlen(members[i].key),
										 unconstify(char *, members[i].key)}};
		JsonbValue value = members[i].value;

		pushJsonbValue(&state, WJB_KEY, &key);
		pushJsonbValue(&state, WJB_VALUE, &value);
	}
	result = pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	return JsonbPGetDatum(JsonbValueToJsonb(result));
}

static void
call_function(Datum context, const char *event, Datum data)
{
	LOCAL_FCINFO(call, 3);
	FmgrInfo info;
	Oid owner;
	Oid function = find_function(&owner);
	Oid saved_user;
	int saved_security;
	int nest_level;

	GetUserIdAndSecContext(&saved_user, &saved_security);
	SetUserIdAndSecContext(owner,
						   saved_security | SECURITY_RESTRICTED_OPERATION);
	nest_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);

	/* whatever it returns: it may be null */
	fmgr_info(function, &info);
	InitFunctionCallInfoData(*call, &info, 3, InvalidOid, NULL, NULL);
	call->args[0].value = context;
	call->args[0].isnull = false;
	call->args[1].value = CStringGetTextDatum(event);
	call->args[1].isnull = false;
	call->args[2].value = data;
	call->args[2].isnull = false;
	(void) FunctionCallInvoke(call);

	AtEOXact_GUC(false, nest_level);
	SetUserIdAndSecContext(saved_user, saved_security);
}

/* JSON text as a datum; null where jsonb can't hold it. */
static Datum
data_datum(const char *data, size_t length)
{
	SnapshotHost host;
	Arena arena;
	ArenaSource source;
	const JsonNode *root;
	const void *stored;
	size_t size;
	Datum result;

	store_host_init(&host, CurrentMemoryContext);
	store_arena_source(&source, CurrentMemoryContext);
	arena_init(&arena, &source);
	if (json_parse(data, length, ENGINE_MAX_DEPTH, &arena, &root, NULL) ==
			ENGINE_OK &&
		host.store_json(host.context, root, &stored, &size) == ENGINE_OK)
		result = PointerGetDatum(stored);
	else
		result = DirectFunctionCall1(jsonb_in, CStringGetDatum("null"));
	arena_release(&arena);
	/* one of them may have ended the parsing */
	CHECK_FOR_INTERRUPTS();
	return result;
}

/* Text in the database's encoding as a JSON string. */
static Datum
text_datum(const char *text)
{
	JsonbValue value = {
		.type = jbvString,
		.val.string = {(int) strlen(text), unconstify(char *, text)}};

	return JsonbPGetDatum(JsonbValueToJsonb(&value));
}

/*
 * Reports
 */

/* What was last reported of an event. */
typedef struct FailureReport
{
	const char *event;
	FunctionVersion function;
	TimestampTz at; /* 0: nothing */
	uint64 untold; /* failures since */
} FailureReport;

/*
 * Reports a failure: of each event once a minute, or if the function is another
 * one by now.
 */
static void
report_failure(const char *event, const ErrorData *error)
{
	static FailureReport reports[] = {
		{.event = "ready"}, {.event = "refresh"}, {.event = "exposure"},
		{.event = "goal"},  {.event = "publish"}, {.event = "finalize"},
		{.event = "error"}};
	TimestampTz now = GetCurrentTimestamp();
	FailureReport *report = &reports[0];
	uint64 untold;

	for (int i = 0; i < (int) lengthof(reports); i++)
		if (strcmp(reports[i].event, event) == 0)
			report = &reports[i];
	if (report->at != 0 && report->at <= now &&
		!TimestampDifferenceExceeds(report->at, now, REPORT_MS) &&
		is_same_function(&report->function, &found))
	{
		report->untold++;
		return;
	}
	untold = report->untold;
	report->function = found;
	report->at = now;
	report->untold = 0;
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("absmartly: event logger \"%s\" failed at event "
					"\"%s\": %s",
					settings_event_logger, event, error->message),
			 untold > 0
				 ? errdetail(
					   "Before that it has failed at this event " UINT64_FORMAT
					   " times without a report.",
					   untold)
				 : 0));
}

/*
 * In a session
 */

/* An event that waits for the end of parallel mode. */
typedef struct WaitingEvent
{
	struct WaitingEvent *next;
	int level; /* of the subtransaction that it is of */
	uint64 context;
	const char *event; /* a constant */
	char *data; /* NULL: message counts */
	size_t length;
	char *message;
} WaitingEvent;

/* in TopTransactionContext, the oldest one first */
static WaitingEvent *waiting = NULL;
static WaitingEvent *last_waiting = NULL;

static bool in_logger = false;

bool
logger_is_running(void)
{
	return in_logger;
}

/* A failed logger is undone; the cancellation of the query is not its own. */
static void
survive_failure(const char *event, MemoryContext context, ResourceOwner owner)
{
	ErrorData *error;

	in_logger = false;
	error = subtransaction_undo(context, owner);
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		ReThrowError(error);
	report_failure(event, error);
	FreeErrorData(error);
}

static void
call_in_session(uint64 context_key, const char *event, const char *data,
				size_t length, const char *message)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	in_logger = true;
	PG_TRY();
	{
		Datum json = data ? data_datum(data, length) : text_datum(message);

		PushActiveSnapshot(GetTransactionSnapshot());
		call_function(context_datum(context_key), event, json);
		PopActiveSnapshot();
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		in_logger = false;
	}
	PG_CATCH();
	{
		survive_failure(event, context, owner);
	}
	PG_END_TRY();
}

/* Keeps an event for the end of parallel mode, which allows no calls. */
static void
let_wait(uint64 context, const char *event, const char *data, size_t length,
		 const char *message)
{
	MemoryContext previous = MemoryContextSwitchTo(TopTransactionContext);
	WaitingEvent *entry = palloc0(sizeof(WaitingEvent));

	entry->level = GetCurrentTransactionNestLevel();
	entry->context = context;
	entry->event = event;
	if (data != NULL)
	{
		entry->data = pnstrdup(data, length);
		entry->length = length;
	}
	else
		entry->message = pstrdup(message);
	if (last_waiting != NULL)
		last_waiting->next = entry;
	else
		waiting = entry;
	last_waiting = entry;
	MemoryContextSwitchTo(previous);
}

static void
emit_in_session(uint64 context, const char *event, const char *data,
				size_t length, const char *message)
{
	if (!logger_wanted() || in_logger)
		return;
	if (IsInParallelMode())
	{
		let_wait(context, event, data, length, message);
		return;
	}
	logger_flush();
	call_in_session(context, event, data, length, message);
}

void
logger_emit(uint64 context, const char *event, const char *data, size_t length)
{
	emit_in_session(context, event, data, length, NULL);
}

void
logger_emit_error(uint64 context, const char *message)
{
	emit_in_session(context, "error", NULL, 0, message);
}

void
logger_flush(void)
{
	if (likely(waiting == NULL) || in_logger || IsInParallelMode())
		return;
	while (waiting != NULL)
	{
		WaitingEvent *entry = waiting;

		waiting = entry->next;
		if (waiting == NULL)
			last_waiting = NULL;
		call_in_session(entry->context, entry->event, entry->data,
						entry->length, entry->message);
	}
}

void
logger_forget(void)
{
	waiting = NULL;
	last_waiting = NULL;
	in_logger = false;
}

void
logger_subtransaction_end(SubXactEvent event)
{
	int level = GetCurrentTransactionNestLevel();
	WaitingEvent *kept = NULL;

	if (likely(waiting == NULL) || in_logger ||
		(event != SUBXACT_EVENT_ABORT_SUB && event != SUBXACT_EVENT_COMMIT_SUB))
		return;
	/* those of a subtransaction come after all that was there before it */
	for (WaitingEvent *entry = waiting; entry != NULL; entry = entry->next)
	{
		if (entry->level >= level && event == SUBXACT_EVENT_ABORT_SUB)
			break;
		entry->level = Min(entry->level, level - 1);
		kept = entry;
	}
	last_waiting = kept;
	if (kept != NULL)
		kept->next = NULL;
	else
		waiting = NULL;
}

/*
 * In the worker
 */

/*
 * Watching.  What the watch finds out it does in a signal handler.
 */
static TimeoutId watch_timeout;
static DatabaseState *watched_state = NULL;
static volatile int ticks = 0;
static volatile int leave_ticks = 0;
static volatile sig_atomic_t ended = false;

static void
watch(void)
{
	ticks++;
	if (ShutdownRequestPending)
		leave_ticks++;
	if (ticks * WATCH_MS >= LOGGER_TIMEOUT_MS + LOGGER_GRACE_MS)
		ended = true;
	/* no exception block swallows that */
	if (ended || leave_ticks * WATCH_MS >= LOGGER_LEAVE_MS)
	{
		ProcDiePending = true;
		InterruptPending = true;
		SetLatch(MyLatch);
	}
}

/* It is not called for a while, the next worker included. */
static void
begin_rest(LoggerRest *rest)
{
	int64 pause_ms = Min(REST_MS << Min(rest->rests, 16), MAX_REST_MS);

	rest->rests++;
	rest->until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), pause_ms);
	ereport(
		WARNING,
		(errcode(ERRCODE_QUERY_CANCELED),
		 errmsg("absmartly: event logger \"%s\" took more than %d s, and is "
				"not called for the next %d min",
				settings_event_logger, LOGGER_TIMEOUT_MS / 1000,
				(int) (pause_ms / 60000)),
		 errdetail("Nothing is fetched or published while it runs."),
		 ended ? errhint("It does not let itself be cancelled: the worker "
						 "is ended with it, and comes back.")
			   : 0));
}

/* The process ends: the next one is to know why. */
static void
note_end(int code, Datum argument)
{
	if (ended)
		begin_rest(&watched_state->logger);
}

static void
begin_watch(DatabaseState *state)
{
	if (watched_state == NULL)
	{
		watched_state = state;
		watch_timeout = RegisterTimeout(USER_TIMEOUT, watch);
		before_shmem_exit(note_end, (Datum) 0);
	}
	ticks = 0;
	leave_ticks = 0;
	enable_timeout_every(
		watch_timeout,
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), WATCH_MS), WATCH_MS);
	enable_timeout_after(STATEMENT_TIMEOUT, LOGGER_TIMEOUT_MS);
}

static void
end_watch(void)
{
	disable_timeout(STATEMENT_TIMEOUT, false);
	disable_timeout(watch_timeout, false);
	/* it has come to its end in the last moment */
	if (ended || leave_ticks * WATCH_MS >= LOGGER_LEAVE_MS)
		ProcDiePending = false;
	ended = false;
}

/* What a function leaves in its session, beyond its transaction. */
static void
clean_session(void)
{
	LockReleaseAll(USER_LOCKMETHOD, true);
	ResetSequenceCaches();
	if (MyReplicationSlot != NULL)
		ReplicationSlotRelease();
	drop_temporary_slots();
}

/* Whether the logger rests; says how many events it has missed when not. */
static bool
is_resting(LoggerRest *rest)
{
	static uint64 missed = 0;
	TimestampTz now = GetCurrentTimestamp();
	uint32 name = hash_bytes((const unsigned char *) settings_event_logger,
							 (int) strlen(settings_event_logger));

	if (rest->name != name)
		*rest = (LoggerRest){.name = name};
	/* a clock that was set back prolongs nothing */
	if (rest->until > now &&
		!TimestampDifferenceExceeds(now, rest->until, (int) MAX_REST_MS))
	{
		missed++;
		return true;
	}
	rest->until = 0;
	if (missed > 0)
		ereport(
			LOG,
			(errmsg(
				"absmartly: event logger \"%s\" was not told of " UINT64_FORMAT
				" events while it was not called",
				settings_event_logger, missed)));
	missed = 0;
	return false;
}

/* Calls the logger with data or, if that is NULL, with a message. */
static void
emit(DatabaseState *state, uint64 context_key, const char *event,
	 const char *data, size_t length, const char *message)
{
	MemoryContext context = CurrentMemoryContext;
	LoggerRest *rest = &state->logger;

	if (is_resting(rest))
		return;
	pgstat_report_activity(
		STATE_RUNNING,
		psprintf("absmartly: event logger \"%s\"", settings_event_logger));
	begin_watch(state);
	PG_TRY();
	{
		Datum json;

		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		json = data ? data_datum(data, length) : text_datum(message);
		call_function(context_datum(context_key), event, json);
		PopActiveSnapshot();
		CommitTransactionCommand();
		end_watch();
	}
	PG_CATCH();
	{
		ErrorData *error;

		end_watch();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		MemoryContextSwitchTo(context);
		/* that it was cancelled because the worker leaves is not its fault */
		if (!ShutdownRequestPending)
			report_failure(event, error);
		FreeErrorData(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	clean_session();
	if (ticks * WATCH_MS >= LOGGER_TIMEOUT_MS)
		begin_rest(rest);
	else if (!ShutdownRequestPending)
		rest->rests = 0;
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);
}

void
logger_emit_from_worker(DatabaseState *state, uint64 context, const char *event,
						const char *data, size_t length)
{
	emit(state, context, event, data, length, NULL);
}

void
logger_emit_error_from_worker(DatabaseState *state, uint64 context,
							  const char *message)
{
	emit(state, context, "error", NULL, 0, message);
}
