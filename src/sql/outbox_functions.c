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
#include "utils/timestamp.h"

#include "compat.h"
#include "events/guard.h"
#include "events/outbox.h"
#include "events/queue.h"
#include "sql/function.h"
#include "sql/granted.h"

#define MEMORY_COLUMNS 13

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

static Datum
make_bytea(const char *data, Size length)
{
	bytea *result = palloc(VARHDRSZ + length);

	SET_VARSIZE(result, VARHDRSZ + length);
	memcpy(VARDATA(result), data, length);
	return PointerGetDatum(result);
}

PG_FUNCTION_INFO_V1(absmartly_outbox_memory);

/*
 * absmartly_outbox_memory() -> table
 *
 * What waits in this database's memory queue: for the views, in which it
 * stands beside what is in the heaps.  The payload is for who may read the view
 * of events, and null for who may read the one of records only; 42501 for all
 * others.
 */
SQL_FUNCTION(absmartly_outbox_memory)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	DatabaseState *state = shared_my_database();
	bool events = granted_view(fcinfo, "absmartly_pending_events");
	List *records;
	ListCell *cell;

	if (!events && !granted_view(fcinfo, "absmartly_outbox"))
		granted_refuse(fcinfo, "absmartly_outbox");
	records = state ? queue_list(state) : NIL;
	InitMaterializedSRF(fcinfo, 0);
	foreach (cell, records)
	{
		const EventRecord *record = lfirst(cell);
		const EventOrigin *origin = record->origin;
		const EventPayload *payload = &record->payload;
		Datum values[MEMORY_COLUMNS];
		bool nulls[MEMORY_COLUMNS] = {false};
		int column = 0;

		CHECK_FOR_INTERRUPTS();
		values[column++] = Int64GetDatum(record->id);
		values[column++] = Int64GetDatum((int64) payload->context);
		values[column++] = Int64GetDatum((int64) payload->sequence);
		values[column++] = TimestampTzGetDatum(record->created);
		values[column++] = ObjectIdGetDatum(MyDatabaseId);
		values[column++] = Int32GetDatum((int32) payload->contexts);
		values[column++] = Int32GetDatum((int32) payload->exposures);
		values[column++] = Int32GetDatum((int32) payload->goals);
		values[column++] =
			make_bytea(origin->application, strlen(origin->application));
		values[column++] = make_bytea(origin->application_version,
									  strlen(origin->application_version));
		values[column++] =
			make_bytea(origin->environment, strlen(origin->environment));
		values[column++] = Int32GetDatum((int32) payload->length);
		if (events)
			values[column] = make_bytea(payload->data, payload->length);
		else
			nulls[column] = true;
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
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
