/*
 * pending.c
 *		What waits to be sent, event by event, for the views on the outbox
 *		(DESIGN 3.3).
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/int.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "engine/assign.h"
#include "engine/hash.h"
#include "events/encoding.h"
#include "sql/function.h"
#include "sql/granted.h"
#include "sql/text.h"
#include "worker/render.h"

/* columns of absmartly_decode_events() */
enum
{
	COLUMN_CONTEXT,
	COLUMN_UNIT_TYPES,
	COLUMN_UNITS,
	COLUMN_HISTORIC,
	COLUMN_ATTRIBUTES,
	COLUMN_KIND,
	COLUMN_EVENT_TIME,
	COLUMN_EXPERIMENT,
	COLUMN_EXPERIMENT_ID,
	COLUMN_UNIT_TYPE,
	COLUMN_VARIANT,
	COLUMN_ASSIGNED,
	COLUMN_ELIGIBLE,
	COLUMN_OVERRIDDEN,
	COLUMN_FULL_ON,
	COLUMN_CUSTOM,
	COLUMN_AUDIENCE_MISMATCH,
	COLUMN_RULE_OVERRIDE,
	COLUMN_HELD_OUT,
	COLUMN_HOLDOUT_ID,
	COLUMN_GOAL,
	COLUMN_PROPERTIES,
	COLUMN_COUNT
};

#define LAST_CONTEXT_COLUMN COLUMN_ATTRIBUTES

typedef struct Row
{
	Datum values[COLUMN_COUNT];
	bool nulls[COLUMN_COUNT];
} Row;

pg_noreturn static void
raise_malformed(const char *detail)
{
	ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
					errmsg("payload of events is malformed"),
					errdetail_internal("%s", detail)));
}

static void
set(Row *row, int column, Datum value)
{
	row->values[column] = value;
	row->nulls[column] = false;
}

/* The server takes what it gets for text, so it must be text. */
static char *
checked_text(EngineText text)
{
	if (text.length > MaxAllocSize / 2 ||
		!pg_verify_mbstr(PG_UTF8, text.data, (int) text.length, true))
		raise_malformed("A text in it is not UTF-8.");
	return text_for_message(text);
}

static Datum
text_value(EngineText text)
{
	return CStringGetTextDatum(checked_text(text));
}

/* Raises 22P02 if it is no JSON. */
static Datum
json_value(EngineText text)
{
	return DirectFunctionCall1(json_in, CStringGetDatum(checked_text(text)));
}

static Datum
time_value(int64 ms)
{
	const int64 epoch =
		(int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY * 1000;
	int64 time;

	if (pg_sub_s64_overflow(ms, epoch, &time) ||
		pg_mul_s64_overflow(time, 1000, &time) || !IS_VALID_TIMESTAMP(time))
		raise_malformed("A time in it is out of range.");
	return TimestampTzGetDatum(time);
}

static Datum
text_array(Datum *values, uint32 count)
{
	return PointerGetDatum(
		construct_array(values, (int) count, TEXTOID, -1, false, TYPALIGN_INT));
}

static void
set_context(Row *row, const EventContext *context)
{
	Datum types[ENCODING_MAX_UNITS];
	Datum hashes[ENCODING_MAX_UNITS];

	for (uint32 i = 0; i < context->nunits; i++)
	{
		char hash[base64url_length(ENCODING_UNIT_BYTES)];

		types[i] = text_value(context->units[i].type);
		base64url_encode(context->units[i].hash, ENCODING_UNIT_BYTES, hash);
		hashes[i] =
			PointerGetDatum(cstring_to_text_with_len(hash, sizeof(hash)));
	}
	set(row, COLUMN_UNIT_TYPES, text_array(types, context->nunits));
	set(row, COLUMN_UNITS, text_array(hashes, context->nunits));
	set(row, COLUMN_HISTORIC, BoolGetDatum(context->historic));
	row->nulls[COLUMN_ATTRIBUTES] = true;
	if (context->nattributes > 0)
	{
		StringInfoData attributes;

		initStringInfo(&attributes);
		render_attributes(&attributes, context);
		set(row, COLUMN_ATTRIBUTES,
			json_value((EngineText){attributes.data, attributes.len}));
	}
}

static void
set_exposure(Row *row, const EventExposure *exposure)
{
	static const struct
	{
		int column;
		uint32 flag;
	} flags[] = {{COLUMN_ASSIGNED, ASSIGN_ASSIGNED},
				 {COLUMN_ELIGIBLE, ASSIGN_ELIGIBLE},
				 {COLUMN_OVERRIDDEN, ASSIGN_OVERRIDDEN},
				 {COLUMN_FULL_ON, ASSIGN_FULL_ON},
				 {COLUMN_CUSTOM, ASSIGN_CUSTOM},
				 {COLUMN_AUDIENCE_MISMATCH, ASSIGN_AUDIENCE_MISMATCH},
				 {COLUMN_RULE_OVERRIDE, ASSIGN_RULE_OVERRIDE},
				 {COLUMN_HELD_OUT, ASSIGN_HELD_OUT}};

	set(row, COLUMN_KIND, CStringGetTextDatum("exposure"));
	set(row, COLUMN_EVENT_TIME, time_value(exposure->exposed_at));
	set(row, COLUMN_EXPERIMENT, text_value(exposure->name));
	set(row, COLUMN_EXPERIMENT_ID, Int64GetDatum(exposure->id));
	if (exposure->unit_type.data != NULL)
		set(row, COLUMN_UNIT_TYPE, text_value(exposure->unit_type));
	set(row, COLUMN_VARIANT, Int32GetDatum(exposure->variant));
	for (size_t i = 0; i < lengthof(flags); i++)
		set(row, flags[i].column,
			BoolGetDatum((exposure->flags & flags[i].flag) != 0));
	if (exposure->flags & ASSIGN_HELD_OUT)
		set(row, COLUMN_HOLDOUT_ID, Int64GetDatum(exposure->holdout_id));
}

static void
set_goal(Row *row, const EventGoal *goal)
{
	set(row, COLUMN_KIND, CStringGetTextDatum("goal"));
	set(row, COLUMN_EVENT_TIME, time_value(goal->achieved_at));
	set(row, COLUMN_GOAL, text_value(goal->name));
	if (goal->properties.data != NULL)
		set(row, COLUMN_PROPERTIES, json_value(goal->properties));
}

/* Looks once a query whether its reader may see events. */
static void
require_reader(FunctionCallInfo fcinfo)
{
	if (fcinfo->flinfo->fn_extra != NULL)
		return;
	if (!granted_view(fcinfo, "absmartly_pending_events") &&
		!granted_view(fcinfo, "absmartly_dead_letters"))
		granted_refuse(fcinfo, "absmartly_pending_events");
	fcinfo->flinfo->fn_extra = fcinfo->flinfo;
}

PG_FUNCTION_INFO_V1(absmartly_decode_events);

/*
 * absmartly_decode_events(bytea) -> setof record; strict
 *
 * A payload's events in their order.  Raises XX001 if it is malformed, 0A000
 * if it is of another version, 42501 for who may read neither of the views of
 * events.
 */
SQL_FUNCTION(absmartly_decode_events)
{
	const bytea *payload = PG_GETARG_BYTEA_PP(0);
	const char *data = VARDATA_ANY(payload);
	size_t length = VARSIZE_ANY_EXHDR(payload);
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext of_context;
	MemoryContext of_event;
	Decoder *decoder = palloc(sizeof(Decoder));
	int32 contexts = 0;
	EventKind kind;
	Row row;

	require_reader(fcinfo);
	InitMaterializedSRF(fcinfo, 0);
	if (length == 0)
		raise_malformed("It is empty.");
	if (!decoder_begin(decoder, data, length))
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("payload of events is of the unknown version %d",
							   encoding_version(data, length))));

	of_context = AllocSetContextCreate(caller, "absmartly context of events",
									   ALLOCSET_DEFAULT_SIZES);
	of_event = AllocSetContextCreate(caller, "absmartly event",
									 ALLOCSET_DEFAULT_SIZES);
	while ((kind = decoder_next(decoder)) != EVENT_END)
	{
		CHECK_FOR_INTERRUPTS();
		if (kind == EVENT_MALFORMED)
			raise_malformed("It is cut off or damaged.");
		if (kind == EVENT_CONTEXT)
		{
			MemoryContextReset(of_context);
			MemoryContextSwitchTo(of_context);
			set(&row, COLUMN_CONTEXT, Int32GetDatum(++contexts));
			set_context(&row, &decoder->context);
			continue;
		}

		MemoryContextReset(of_event);
		MemoryContextSwitchTo(of_event);
		memset(row.nulls + LAST_CONTEXT_COLUMN + 1, true,
			   COLUMN_COUNT - LAST_CONTEXT_COLUMN - 1);
		if (kind == EVENT_EXPOSURE)
			set_exposure(&row, &decoder->exposure);
		else
			set_goal(&row, &decoder->goal);
		tuplestore_putvalues(result->setResult, result->setDesc, row.values,
							 row.nulls);
	}
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(of_event);
	MemoryContextDelete(of_context);
	pfree(decoder);
	return (Datum) 0;
}
