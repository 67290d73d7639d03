/*
 * outbox_functions.c
 *		What SQL may do with the outbox, and what it may not (DESIGN 3.3, 6.1).
 */
#include "postgres.h"

#include "commands/event_trigger.h"
#include "commands/extension.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "events/guard.h"
#include "events/look.h"
#include "events/outbox.h"
#include "sql/function.h"
#include "sql/granted.h"
#include "sql/text.h"

#define RECORD_COLUMNS 15

PG_FUNCTION_INFO_V1(absmartly_outbox_guard);

/*
 * absmartly_outbox_guard() -> boolean
 *
 * False, so that the heaps are made empty; 0A000 for a REFRESH that nothing
 * else has kept from them: where event triggers are off.
 */
SQL_FUNCTION(absmartly_outbox_guard)
{
	if (!creating_extension && !IsBinaryUpgrade)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("the outbox of absmartly cannot be refreshed"),
						errdetail("It holds events that wait to be sent.")));
	PG_RETURN_BOOL(false);
}

PG_FUNCTION_INFO_V1(absmartly_outbox_keep);

/*
 * absmartly_outbox_keep() -> event_trigger
 *
 * Keeps a REFRESH from the heaps in a process that had not loaded the library.
 */
SQL_FUNCTION(absmartly_outbox_keep)
{
	if (!CALLED_AS_EVENT_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_EVENT_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("%s() was not called by an event trigger",
						"absmartly_outbox_keep")));
	guard_command(((EventTriggerData *) fcinfo->context)->parsetree);
	PG_RETURN_NULL();
}

/* The statuses that a view shows, as bits. */
typedef struct ViewOfRecords
{
	const char *name;
	uint32 statuses;
	bool events; /* it shows what is in the payloads */
} ViewOfRecords;

#define PENDING_STATUSES \
	(1U << OUTBOX_WAITING | 1U << OUTBOX_PREPARED | 1U << OUTBOX_HELD)

static const ViewOfRecords views[] = {
	{"absmartly_outbox",
	 PENDING_STATUSES | 1U << OUTBOX_FOREIGN | 1U << OUTBOX_DEAD |
		 1U << OUTBOX_UNREADABLE,
	 false},
	{"absmartly_pending_events", PENDING_STATUSES, true},
	{"absmartly_dead_letters", 1U << OUTBOX_DEAD, true}};

static const ViewOfRecords *
find_view(const char *name)
{
	for (int i = 0; i < (int) lengthof(views); i++)
		if (strcmp(views[i].name, name) == 0)
			return &views[i];
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("\"%s\" is no view of records", name)));
}

static const char *
status_word(OutboxStatus status)
{
	switch (status)
	{
		case OUTBOX_HELD:
			return "held";
		case OUTBOX_FOREIGN:
			return "foreign";
		case OUTBOX_DEAD:
			return "dead";
		case OUTBOX_UNREADABLE:
			return "unreadable";
		default:
			return "waiting";
	}
}

/* UTF-8 that is shown as well as the database's encoding can. */
static Datum
shown_text(EngineText utf8)
{
	return CStringGetTextDatum(text_for_message(utf8));
}

static Datum
context_id(uint64 key)
{
	return CStringGetTextDatum(psprintf("%016" INT64_MODIFIER "x", key));
}

static Datum
make_bytea(const char *data, Size length)
{
	bytea *result = palloc(VARHDRSZ + length);

	SET_VARSIZE(result, VARHDRSZ + length);
	memcpy(VARDATA(result), data, length);
	return PointerGetDatum(result);
}

typedef struct RecordsResult
{
	ReturnSetInfo *rows;
	const ViewOfRecords *view;
	MemoryContext context; /* of a record's values */
} RecordsResult;

static void
put_record(void *argument, const LookRecord *record)
{
	RecordsResult *result = argument;
	const EventPayload *payload = &record->payload;
	MemoryContext caller = MemoryContextSwitchTo(result->context);
	Datum values[RECORD_COLUMNS];
	bool nulls[RECORD_COLUMNS] = {false};
	int column = 0;

	values[column++] = CStringGetTextDatum(record->place);
	values[column++] = CStringGetTextDatum(status_word(record->status));
	values[column++] = Int64GetDatum(record->id);
	values[column++] = TimestampTzGetDatum(record->created);
	values[column++] = ObjectIdGetDatum(record->database);
	nulls[column] = payload->context == 0;
	values[column++] =
		payload->context == 0 ? (Datum) 0 : context_id(payload->context);
	values[column++] = Int32GetDatum((int32) payload->contexts);
	values[column++] = Int32GetDatum((int32) payload->exposures);
	values[column++] = Int32GetDatum((int32) payload->goals);
	values[column++] = shown_text(record->application);
	values[column++] = shown_text(record->application_version);
	values[column++] = shown_text(record->environment);
	values[column++] = Int64GetDatum((int64) payload->length);
	values[column++] = PointerGetDatum(
		cstring_to_text_with_len(record->note.data, (int) record->note.length));
	nulls[column] = !result->view->events;
	values[column++] = result->view->events
						   ? make_bytea(payload->data, payload->length)
						   : (Datum) 0;
	Assert(column == RECORD_COLUMNS);
	tuplestore_putvalues(result->rows->setResult, result->rows->setDesc, values,
						 nulls);
	MemoryContextSwitchTo(caller);
	MemoryContextReset(result->context);
}

PG_FUNCTION_INFO_V1(absmartly_outbox_records);

/*
 * absmartly_outbox_records(view text) -> table; strict
 *
 * The records that a view shows, wherever they are; the payload is null for the
 * view that does not show it.  22023 if there is no such view, 42501 for who
 * may not read it.
 */
SQL_FUNCTION(absmartly_outbox_records)
{
	RecordsResult result = {.rows = (ReturnSetInfo *) fcinfo->resultinfo};

	result.view = find_view(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	if (!granted_view(fcinfo, result.view->name))
		granted_refuse(fcinfo, result.view->name);
	InitMaterializedSRF(fcinfo, 0);
	result.context = AllocSetContextCreate(
		CurrentMemoryContext, "absmartly record", ALLOCSET_DEFAULT_SIZES);
	look(result.view->statuses, put_record, &result);
	MemoryContextDelete(result.context);
	return (Datum) 0;
}

/*
 * Changes the parked record that is the function's argument, or all of them if
 * that is null.
 */
static Datum
change_parked(FunctionCallInfo fcinfo, const char *function,
			  int64 (*change)(int64 id))
{
	PreventCommandDuringRecovery(function);
	PreventCommandIfReadOnly(function);
	if (PG_ARGISNULL(0))
		PG_RETURN_INT64(change(0));
	/* numbers of records are positive */
	PG_RETURN_INT64(PG_GETARG_INT64(0) > 0 ? change(PG_GETARG_INT64(0)) : 0);
}

PG_FUNCTION_INFO_V1(absmartly_requeue);

/*
 * absmartly_requeue(record bigint) -> bigint
 *
 * Lets parked events be sent again, as events of this database and for its
 * endpoint; gives their number.  25006 in a read-only transaction.
 */
SQL_FUNCTION(absmartly_requeue)
{
	return change_parked(fcinfo, "absmartly_requeue()", outbox_requeue);
}

PG_FUNCTION_INFO_V1(absmartly_discard);

/*
 * absmartly_discard(record bigint) -> bigint
 *
 * Drops parked events; gives their number.  25006 in a read-only transaction.
 */
SQL_FUNCTION(absmartly_discard)
{
	return change_parked(fcinfo, "absmartly_discard()", outbox_discard);
}
