/*
 * logger.c
 *		The event logger: a function of the user's that is told what happens.
 *
 * The function runs as its owner, in a security-restricted operation and with
 * a safe search path, wherever it is called: naming it gives it no rights that
 * its owner lacks.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "pgstat.h"
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

/* a logger that runs for longer is cancelled: the worker has other work */
#define LOGGER_TIMEOUT_MS 60000

bool
logger_wanted(void)
{
	return settings_event_logger != NULL && settings_event_logger[0] != '\0';
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

	/* an error without memory for its copy must not leave these behind */
	in_logger = false;
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	error = CopyErrorData();
	FlushErrorState();
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		ReThrowError(error);
	ereport(WARNING, (errcode(error->sqlerrcode),
					  errmsg("absmartly: event logger \"%s\" failed at event "
							 "\"%s\": %s",
							 settings_event_logger, event, error->message)));
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

/* Calls the logger with data or, if that is NULL, with a message. */
static void
emit(uint64 context_key, const char *event, const char *data, size_t length,
	 const char *message)
{
	MemoryContext context = CurrentMemoryContext;

	pgstat_report_activity(
		STATE_RUNNING,
		psprintf("absmartly: event logger \"%s\"", settings_event_logger));
	PG_TRY();
	{
		Datum json;

		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		json = data ? data_datum(data, length) : text_datum(message);
		enable_timeout_after(STATEMENT_TIMEOUT, LOGGER_TIMEOUT_MS);
		call_function(context_datum(context_key), event, json);
		disable_timeout(STATEMENT_TIMEOUT, false);
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		ErrorData *error;

		disable_timeout(STATEMENT_TIMEOUT, false);
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		MemoryContextSwitchTo(context);
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("absmartly: event logger \"%s\" failed at event "
						"\"%s\": %s",
						settings_event_logger, event, error->message)));
		FreeErrorData(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);
}

void
logger_emit_from_worker(uint64 context, const char *event, const char *data,
						size_t length)
{
	emit(context, event, data, length, NULL);
}

void
logger_emit_error_from_worker(uint64 context, const char *message)
{
	emit(context, "error", NULL, 0, message);
}
