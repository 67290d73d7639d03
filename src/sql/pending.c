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
	COLUMN_CREATED,
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

/*
 * JSON text may have escapes that are text to nobody here: \u0000, halves of a
 * surrogate pair, characters that the database's encoding lacks.  The server
 * takes it as JSON all the same, and fails where a member becomes text.  Such
 * an event must not keep others from being seen: it is shown with U+FFFD
 * instead.
 */
#define ESCAPE_LENGTH 6 /* \uXXXX */

static int
hexadecimal_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The code unit of an escape; -1 if there is none. */
static int
escaped_unit(const char *at, const char *end)
{
	int unit = 0;

	if (end - at < ESCAPE_LENGTH || at[0] != '\\' || at[1] != 'u')
		return -1;
	for (int i = 2; i < ESCAPE_LENGTH; i++)
	{
		int digit = hexadecimal_digit(at[i]);

		if (digit < 0)
			return -1;
		unit = unit << 4 | digit;
	}
	return unit;
}

/* Bytes of an escape, or of a pair of them, and whether that is a text. */
static int
escape_length(const char *at, const char *end, bool *is_text)
{
	int unit = escaped_unit(at, end);
	int next;

	*is_text = true;
	if (unit < 0)
		return Min(2, (int) (end - at));
	*is_text = unit != 0 && (unit < 0x80 || text_database_is_utf8());
	if (unit < 0xD800 || unit > 0xDFFF)
		return ESCAPE_LENGTH;
	next = escaped_unit(at + ESCAPE_LENGTH, end);
	if (unit <= 0xDBFF && next >= 0xDC00 && next <= 0xDFFF)
		return 2 * ESCAPE_LENGTH;
	*is_text = false;
	return ESCAPE_LENGTH;
}

static EngineText
readable_json(EngineText json)
{
	const char *replacement = text_database_is_utf8() ? "\\ufffd" : "?";
	const char *end = json.data + json.length;
	const char *start = json.data; /* of what is not copied yet */
	const char *at = json.data;
	StringInfoData readable;

	readable.data = NULL;
	while ((at = memchr(at, '\\', (size_t) (end - at))) != NULL)
	{
		bool is_text;
		int length = escape_length(at, end, &is_text);

		if (!is_text)
		{
			if (readable.data == NULL)
				initStringInfo(&readable);
			appendBinaryStringInfo(&readable, start, (int) (at - start));
			appendStringInfoString(&readable, replacement);
			start = at + length;
		}
		at += length;
	}
	if (readable.data == NULL)
		return json;
	appendBinaryStringInfo(&readable, start, (int) (end - start));
	return (EngineText){readable.data, (size_t) readable.len};
}

/* Raises 22P02 if it is no JSON. */
static Datum
json_value(EngineText text)
{
	return DirectFunctionCall1(
		json_in, CStringGetDatum(checked_text(readable_json(text))));
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

/* When an event was recorded, so many ms after its record. */
static Datum
created_value(TimestampTz created, int64 delay)
{
	if (pg_mul_s64_overflow(delay, 1000, &delay) ||
		pg_add_s64_overflow(created, delay, &created))
		raise_malformed("A delay in it is out of range.");
	return TimestampTzGetDatum(created);
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
 * absmartly_decode_events(payload bytea, record_created timestamptz)
 *		-> setof record
 *
 * A payload's events in their order, with the times at which they were recorded
 * if the record's is given; none of a payload that is null, or of a version
 *that is not known.  Raises XX001 if it is malformed, 42501 for who may read
 *neither of the views of events.
 */
SQL_FUNCTION(absmartly_decode_events)
{
	const bytea *payload;
	TimestampTz created = PG_ARGISNULL(1) ? 0 : PG_GETARG_TIMESTAMPTZ(1);
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext of_context;
	MemoryContext of_event;
	Decoder *decoder;
	int32 contexts = 0;
	EventKind kind;
	Row row;

	require_reader(fcinfo);
	InitMaterializedSRF(fcinfo, 0);
	if (PG_ARGISNULL(0))
		return (Datum) 0;
	payload = PG_GETARG_BYTEA_PP(0);
	if (VARSIZE_ANY_EXHDR(payload) == 0)
		raise_malformed("It is empty.");
	decoder = palloc(sizeof(Decoder));
	if (!decoder_begin(decoder, VARDATA_ANY(payload),
					   VARSIZE_ANY_EXHDR(payload)))
	{
		/* the worker says so, and puts it aside */
		pfree(decoder);
		return (Datum) 0;
	}

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
		set(&row, COLUMN_CREATED, created_value(created, decoder->delay));
		row.nulls[COLUMN_CREATED] = PG_ARGISNULL(1);
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
